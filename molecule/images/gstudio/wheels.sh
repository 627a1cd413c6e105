#!/usr/bin/env bash
# Fetch the image's Python packages into .wheels with this machine's own pip settings (index, certificates, proxy), so
# that the build itself needs none of them. Does nothing when the wheels are already there. Usage: wheels.sh [python]
set -euo pipefail
cd "$(dirname "$0")"
python=${1:-../../../.venv/bin/python}
[ -x "$python" ] || command -v "$python" >/dev/null || python=python3
wanted=$(sha256sum < requirements.txt)
[ "$(cat .wheels/.requirements 2>/dev/null)" = "$wanted" ] && exit 0
rm -rf .wheels
"$python" -m pip download -qq --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
  -d .wheels -r requirements.txt
echo "$wanted" > .wheels/.requirements
