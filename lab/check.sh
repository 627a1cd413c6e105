#!/usr/bin/env bash
# Lint, types and unit tests. No Docker.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '==> %s\n' "$1"; shift; "$@"; }
no_conflict_markers() { ! git grep -nE '^(<<<<<<<|>>>>>>>) ' -- .; }
step "no conflict markers" no_conflict_markers
step "ruff" ruff check -q .
step "ruff format" ruff format -q --check .
# The longest of them, beside the others.
linted=$(mktemp)
ansible-lint --offline -q > "$linted" 2>&1 &
lint=$!
no_complaint() { wait "$lint" || { cat "$linted"; return 1; }; rm -f "$linted"; }
step "mypy (strict)" mypy --no-error-summary
# A school's Debian may be older or newer than this machine's: 3.11 is what runs here.
for version in 3.10 3.12; do
  step "mypy (strict) of the agent as Python $version" mypy --no-error-summary --python-version "$version" agent/shala_agent
done
step "yamllint" yamllint -s .
step "role documentation" python lab/role_docs.py --check
step "catalogue documentation" python lab/catalogue_docs.py --check
step "list of faults" python lab/reliability_docs.py --check
step "ansible-lint (production)" no_complaint
step "playbook syntax" ansible-playbook -i inventories/example --syntax-check playbooks/*.yml > /dev/null
# Thousands of fsyncs that need not outlive the run: in memory where there is room for them.
[ "$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 2000000 ] 2>/dev/null && export TMPDIR=/dev/shm
TMPDIR=$(mktemp -d -t shala-check-XXXXXX); export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
step "unit tests" python -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m "not docker and not ssh and not http and not postgres and not simulator and not faults and not fleet and not plays"
