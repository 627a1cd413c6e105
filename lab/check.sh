#!/usr/bin/env bash
# Lint, types and unit tests. No Docker.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '==> %s\n' "$1"; shift; "$@"; }
step "ruff" ruff check -q .
step "ruff format" ruff format -q --check .
step "mypy (strict)" mypy --no-error-summary
step "yamllint" yamllint -s .
step "role documentation" python lab/role_docs.py --check
step "ansible-lint (production)" ansible-lint --offline -q
step "playbook syntax" ansible-playbook -i inventories/example --syntax-check playbooks/*.yml > /dev/null
step "unit tests" python -m pytest -q -m "not docker and not ssh and not http and not postgres and not fleet"
