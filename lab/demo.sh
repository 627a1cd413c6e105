#!/usr/bin/env bash
# One full round of the main job on the lab fleet: boot, provision, collect, pull, show. `demo.sh down` takes it away.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.venv/bin:$PATH ANSIBLE_CONFIG=$PWD/ansible.cfg ANSIBLE_INVENTORY=$PWD/inventories/lab
started=$SECONDS
step() { printf '\n==> [%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$1"; }

partly=0
play() {  # 3 is partly done: the round goes on, and the demo ends with it
  local code=0
  ansible-playbook "playbooks/$1.yml" || code=$?
  case $code in 0) ;; 3) partly=3 ;; *) exit $code ;; esac
}
# Molecule says, in red, that there is no scenario "default" here; there need not be.
scenario() { molecule "$@" -s fleet 2> >(grep -v "glob failed" >&2); }

down() {
  if docker info >/dev/null 2>&1; then scenario destroy; fi
  lab/bootstrap.sh stop-engine
}

up() {
  step "Setting up this machine"
  lab/bootstrap.sh all
  step "Images and wheelhouses"
  lab/images.sh
  lab/wheelhouse.sh
  step "Booting a centre and three school servers"
  molecule reset -s fleet >/dev/null 2>&1  # what it remembers may be gone; creating is safe to repeat
  scenario create
  step "Provisioning (playbooks/site.yml)"
  play site
  step "Collecting and deriving on each server (playbooks/collect.yml)"
  play collect
  step "Pulling into the archive (playbooks/pull.yml)"
  play pull
  step "A zone whose students move: both its servers get what the other one has (playbooks/sync.yml)"
  play sync
  step "The archive at the centre, LEVEL 0 to LEVEL 4"
  docker exec -u shala shala-lab-centre-1 shala archive tree
  cat <<'TEXT'

One round is done. To look further:
  docker exec -u shala -it shala-lab-centre-1 bash           a shell at the centre; then: shala archive show 2031017-mz17
  docker exec -u shala shala-lab-centre-1 shala archive status --html /tmp/status.html   how complete it is, as a page; then:
  docker exec shala-lab-centre-1 cat /tmp/status.html > build/status.html    ... and open build/status.html
  docker exec -u shala shala-lab-centre-1 shala zone status  how far each server of a zone is
  docker cp shala-lab-2031008-mz8:/var/lib/shala/progress.html build/    the teacher's page: her students' progress on all servers of the zone
  docker exec -it shala-lab-2031017-mz17 bash               a shell on a school server; then: shala-agent status
  ANSIBLE_INVENTORY=inventories/lab .venv/bin/ansible-playbook playbooks/status.yml    how the fleet is
  make demo                                                 the round again (nothing unchanged moves twice)
  make demo-down                                            take the machines away
  docs/operator.md                                          the operator's guide, for all that comes after
TEXT
  return $partly
}

case ${1:-} in
  up) up ;;
  down) down ;;
  *) echo "shala: lab/demo.sh up | down" >&2; exit 2 ;;
esac
