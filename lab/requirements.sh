#!/usr/bin/env bash
# Compile the pinned requirements: dev.txt from the workspace, agent.txt and central.txt (what goes into the
# wheelhouses) under the same pins. No index URL is ever written. Upgrade with: lab/requirements.sh --upgrade
set -euo pipefail
cd "$(dirname "$0")/.."
python - <<'PY' > build/requirements.in
import tomllib, pathlib
load = lambda path: tomllib.loads(pathlib.Path(path).read_text())
wanted = []
for package in ("agent", "central"):
    wanted += load(f"{package}/pyproject.toml")["project"]["dependencies"]
    print("\n".join(d for d in load(f"{package}/pyproject.toml")["project"]["dependencies"] if not d.startswith("shala")),
          file=open(f"build/{package}.in", "w"))
for group in load("pyproject.toml")["dependency-groups"].values():
    wanted += [entry for entry in group if isinstance(entry, str)]
print("\n".join(sorted({w for w in wanted if not w.startswith("shala")})))
PY
cat build/agent.in >> build/central.in
compile() { uv pip compile -q --no-header --no-emit-index-url --no-emit-find-links --generate-hashes --python-version "$1" "${@:3}" -o "requirements/$2.txt"; }
compile 3.11 dev build/requirements.in "$@"
sed -E '/--hash=/d; s/ \\$//' requirements/dev.txt > build/constraints.txt
compile 3.10 agent build/agent.in -c build/constraints.txt
compile 3.11 central build/central.in -c build/constraints.txt
