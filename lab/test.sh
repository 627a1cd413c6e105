#!/usr/bin/env bash
# The whole test suite from a bare machine; nothing it starts is left running.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.venv/bin:$PATH ANSIBLE_CONFIG=$PWD/ansible.cfg
# Here a test that lacks an engine or the image fails; alone it is skipped.
export SHALA_NO_SKIP=1
roles=${ROLES-baseline docker gstudio agent central}
started=$SECONDS
mkdir -p build
exec > >(tee build/test.log) 2>&1
step() { printf '\n==> [%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$1"; }
engine_was_there=no; docker info >/dev/null 2>&1 && engine_was_there=yes

clean_up() {
  local status=$?
  trap - EXIT
  step "Taking everything down"
  [ -z "$beside" ] || { kill -- "-$beside" 2>/dev/null && wait "$beside"; } || true
  local role
  for role in $roles; do (cd "roles/$role" && molecule destroy >/dev/null 2>&1) || true; done
  molecule destroy -s fleet >/dev/null 2>&1 || true
  [ "$engine_was_there" = yes ] || lab/bootstrap.sh stop-engine
  if [ $status -eq 0 ]; then step "All tests passed"; else
    step "FAILED: build/test.log has all of it"
    # Last, for whoever sees no more than the end: which tests, and why.
    sed 's/\x1b\[[0-9;]*m//g' build/test.log | grep -E 'FAILED|ERROR|E   |fatal:|^shala: ' | cut -c 1-160 | tail -n 9
  fi
  exit $status
}
beside=
trap clean_up EXIT

run_scenario() {  # <what it is called> <folder> <scenario>; the log is shown when it fails
  local log=$PWD/build/molecule-${1// /-}.log
  (cd "$2" && molecule test -s "$3" > "$log" 2>&1) || { tail -n 200 "$log"; echo "shala: the scenario of $1 failed; the whole log is $log" >&2; exit 1; }
  grep -oE '[0-9]+ passed.*' "$log" || { echo "shala: the scenario of $1 ran no test ($log)" >&2; exit 1; }
}

step "Bootstrap"; lab/bootstrap.sh all; lab/bootstrap.sh test-tools
step "Check: lint, types, unit tests"; lab/check.sh
step "Images and wheelhouses"; lab/images.sh; lab/wheelhouse.sh

# Molecule waits for its machines most of the time: the roles are tried beside the packages. In a group of
# their own, so that they can be ended together.
try_roles() {
  local role
  for role in $roles; do step "molecule: role $role"; run_scenario "role $role" "roles/$role" default; done
  step "molecule: all roles done"
}
set -m; try_roles > build/roles.log 2>&1 < /dev/null & beside=$!; set +m
step "Packages on real parts: ssh, rsync, docker exec, HTTP, PostgreSQL; 300 simulated runs (the roles beside them)"; python -m pytest -q -n 2 --dist loadfile --durations=5 -m "(docker or ssh or http or postgres or simulator or plays) and not faults and not fleet"
step "Faults: the agent killed, starved and misled (the roles beside it)"; lab/faults.sh
roles_status=0; wait "$beside" || roles_status=$?
beside=; cat build/roles.log; [ $roles_status -eq 0 ] || exit 1
step "molecule: the fleet"; run_scenario "the fleet" . fleet
