#!/usr/bin/env bash
# Build the lab's two images, and build/gstudio.tar, which plays the image archive a school gets on a USB disk.
# Each image carries the digest of its sources as a label: what has not changed is not built again.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '==> %s\n' "$*"; }
export DOCKER_BUILDKIT=0

sources_digest() { (cd "$1" && find . -type f ! -path '*/__pycache__/*' ! -path '*/.*_cache/*' ! -path './tests/*' ! -path './.wheels/*' ! -name '*.md' -print0 | sort -z | xargs -0 sha256sum; echo "${2:-}") | sha256sum | cut -d' ' -f1; }
label() { docker image inspect --format '{{ index .Config.Labels "shala.sources" }}' "$1" 2>/dev/null || true; }

minimal_debian() {
  if docker image inspect shala-lab/debian:bookworm >/dev/null 2>&1; then return; fi
  if timeout 120 docker pull -q debian:bookworm-slim >/dev/null 2>&1; then
    docker tag debian:bookworm-slim shala-lab/debian:bookworm
    return
  fi
  say "No registry answers: bootstrapping a minimal Debian (about a minute)"
  [ "$(id -u)" -eq 0 ] || { echo "shala: no registry answers, and only root can build the base image (run this as root once, or: docker pull debian:bookworm-slim)" >&2; exit 1; }
  lab/bootstrap.sh debootstrap
  local root mirror list lists=()
  root=$(mktemp -d)
  # The mirror and the security archive are whatever this machine itself uses.
  for list in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
    if [ -f "$list" ] && grep -qi bookworm "$list"; then lists+=("$list"); fi
  done
  [ ${#lists[@]} -gt 0 ] || { echo "shala: no registry answers and this machine has no Debian 12 package sources to build the base image from (give one of them)" >&2; exit 1; }
  mirror=$(awk '/^URIs:/ {print $2; exit} /^deb / {for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) {print $i; exit}}' "${lists[@]}")
  debootstrap --variant=minbase bookworm "$root" "$mirror" | awk 'NR % 60 == 0 { print "    " $0 }'
  rm -f "$root/etc/apt/sources.list"
  for list in "${lists[@]}"; do cp "$list" "$root$list"; done
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  tar -C "$root" -c . | docker import - shala-lab/debian:bookworm >/dev/null
  rm -rf "$root"
}

build() { # TAG FOLDER EXTRA_DIGEST [docker build arguments...]
  local tag=$1 folder=$2 extra=$3 digest; shift 3
  digest=$(sources_digest "$folder" "$extra")
  if [ "$(label "$tag")" = "$digest" ]; then say "Image $tag is up to date"; return; fi
  say "Building image $tag"
  [ ! -x "$folder/wheels.sh" ] || "$folder/wheels.sh"
  docker build -q --label "shala.sources=$digest" -t "$tag" "$@" "$folder" 2> >(grep -vE '^(DEPRECATED| *BuildKit| *environment-variable|$)' >&2) >/dev/null
}

save_gstudio() {
  local id; id=$(docker image inspect --format '{{ .Id }}' gstudio:lab)
  [ "$(cat build/gstudio.tar.id 2>/dev/null)" = "$id" ] && [ -f build/gstudio.tar.sha256 ] && return
  say "Saving gstudio:lab to build/gstudio.tar"
  docker save -o build/gstudio.tar.part gstudio:lab
  sha256sum build/gstudio.tar.part | sed 's/\.part$//; s# build/# #' > build/gstudio.tar.sha256
  mv build/gstudio.tar.part build/gstudio.tar
  echo "$id" > build/gstudio.tar.id
}

mkdir -p build
minimal_debian
build shala-lab/base:bookworm molecule/images/base "" --build-arg BASE=shala-lab/debian:bookworm
if [ "${1:-all}" = all ]; then
  build gstudio:lab molecule/images/gstudio "$(docker image inspect --format '{{ .Id }}' shala-lab/base:bookworm)" --build-arg BASE=shala-lab/base:bookworm
  save_gstudio
fi
