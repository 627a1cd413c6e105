#!/usr/bin/env bash
# Run the built image on this machine's engine and check the whole contract. Usage: smoke.sh [image]
set -euo pipefail
cd "$(dirname "$0")/../../.."
export GSTUDIO_STANDIN_IMAGE=${1:-gstudio:lab}
exec .venv/bin/python -m pytest -m docker molecule/images/gstudio/tests/test_contract.py "${@:2}"
