#!/usr/bin/env bash
# Pack shala-agent and shala-central with all they need into build/shala-{agent,central}-wheelhouse.tar: flat tars of
# wheels, the same bytes from the same sources. Nothing is done when the sources have not changed.
# For school servers with another Python than this one: lab/wheelhouse.sh 3.10 packs build/shala-agent-3.10-wheelhouse.tar
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:-$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')} mark=${1:+-$1}
export SOURCE_DATE_EPOCH=1577836800 PIP_DISABLE_PIP_VERSION_CHECK=1

pack() { # NAME: agent or central; the further arguments are the package folders that go in
  local name=$1 digest target=build/shala-$1$mark-wheelhouse.tar folder; shift
  digest=$( (echo "$version"; cat "requirements/$name.txt"; for folder in "$@"; do find "$folder" -name '*.py' -path '*/shala_*' -o -name pyproject.toml -o -path '*/shala_*' -type f ! -name '*.pyc' ! -path '*.egg-info/*'; done | sort -u | xargs sha256sum) | sha256sum | cut -d' ' -f1)
  [ "$(cat "$target.sources" 2>/dev/null)" = "$digest" ] && [ -f "$target" ] && return
  echo "==> Packing $target for Python $version"
  local wheels; wheels=$(mktemp -d)
  python -m pip download -qq --no-deps --require-hashes --only-binary :all: --python-version "$version" -d "$wheels" -r "requirements/$name.txt"
  for folder in "$@"; do
    local copy; copy=$(mktemp -d)
    cp -r "$folder/." "$copy/"
    find "$copy" -name __pycache__ -prune -exec rm -rf {} + ; rm -rf "$copy"/*.egg-info "$copy/build"
    python -m pip wheel -qq --no-deps --no-build-isolation -w "$wheels" "$copy"
    rm -rf "$copy"
  done
  tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=0644 -C "$wheels" -cf "$target.part" .
  mv "$target.part" "$target"
  rm -rf "$wheels"
  echo "$digest" > "$target.sources"
}

mkdir -p build
pack agent agent
[ -n "$mark" ] || pack central agent central
