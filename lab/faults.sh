#!/usr/bin/env bash
# The fault suite of the agent. What it injected and saw goes to build/faults, for lab/reliability_docs.py.
set -euo pipefail
cd "$(dirname "$0")/.."
export SHALA_FAULTS_TALLY=$PWD/build/faults/suite SHALA_NO_SKIP=1
rm -rf "$SHALA_FAULTS_TALLY"  # of this run alone; what the fleet's tests counted lies beside it
# Thousands of fsyncs that need not outlive the run: in memory where there is room for them.
[ "$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 3000000 ] 2>/dev/null && export TMPDIR=/dev/shm
# A worker for each file: two of them mostly wait for their containers.
python -m pytest -q -n 3 --dist loadfile --durations=5 -m faults agent/tests
python lab/reliability_docs.py --counted
