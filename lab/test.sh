#!/usr/bin/env bash
# The whole test suite from a bare machine; nothing it starts is left running.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.venv/bin:$PATH ANSIBLE_CONFIG=$PWD/ansible.cfg
# Here a test that lacks an engine or the image fails; alone it is skipped.
export SHALA_NO_SKIP=1
roles=${ROLES-baseline docker gstudio agent central}
started=$SECONDS
step() { printf '\n==> [%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$1"; }
engine_was_there=no; docker info >/dev/null 2>&1 && engine_was_there=yes

clean_up() {
  local status=$?
  trap - EXIT
  step "Taking everything down"
  local role
  for role in $roles; do (cd "roles/$role" && molecule destroy >/dev/null 2>&1) || true; done
  molecule destroy -s fleet >/dev/null 2>&1 || true
  [ "$engine_was_there" = yes ] || lab/bootstrap.sh stop-engine
  [ $status -eq 0 ] && step "All tests passed" || step "FAILED: the lines above say where"
  exit $status
}
trap clean_up EXIT

run_scenario() {  # <what it is called> <folder> <scenario>; the log is shown when it fails
  local log=$PWD/build/molecule-${1// /-}.log
  (cd "$2" && molecule test -s "$3" > "$log" 2>&1) || { tail -n 150 "$log"; echo "shala: the scenario of $1 failed; the whole log is $log" >&2; exit 1; }
  grep -oE '[0-9]+ passed.*' "$log" || { echo "shala: the scenario of $1 ran no test ($log)" >&2; exit 1; }
}

step "Bootstrap"; lab/bootstrap.sh all
step "Check: lint, types, unit tests"; lab/check.sh
step "Images and wheelhouses"; lab/images.sh; lab/wheelhouse.sh
step "Packages on real parts: ssh, rsync, docker exec, HTTP, PostgreSQL"; python -m pytest -q --durations=5 -m "(docker or ssh or http or postgres) and not fleet"
for role in $roles; do
  step "molecule: role $role"
  run_scenario "role $role" "roles/$role" default
done
step "molecule: the fleet"
run_scenario "the fleet" . fleet
