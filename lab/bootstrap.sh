#!/usr/bin/env bash
# Bring a bare Debian 12 machine to where the lab can run: system packages, a Docker engine that answers, the virtual
# environment. Safe to run again; says what it does. Usage: lab/bootstrap.sh [venv|engine|debootstrap|test-tools|stop-engine|all]
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '==> %s\n' "$*"; }
die() { printf 'shala: %s\n' "$*" >&2; exit 1; }

install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  command -v apt-get >/dev/null || die "these Debian packages are missing: ${missing[*]} (install them with your system's package manager, then run this again)"
  [ "$(id -u)" -eq 0 ] || die "these Debian packages are missing: ${missing[*]} (run this as root, or: sudo apt-get install ${missing[*]})"
  say "Installing Debian packages: ${missing[*]}"
  apt-get update -qq || die "apt-get update failed: the machine needs Debian's packages once (check its network and /etc/apt)"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null \
    || die "apt-get could not install ${missing[*]} (the lines above say why)"
}

make_venv() {
  local python=${PYTHON:-python3} stamp=.venv/.requirements wanted
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || die "'$python' is not Python 3.11 or newer (install python3.11, or name one: make PYTHON=/path/to/python3.11)"
  "$python" -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
  wanted=$(cat requirements/dev.txt agent/pyproject.toml central/pyproject.toml | sha256sum | cut -d' ' -f1)
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  say "Making the virtual environment .venv (one to three minutes)"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  .venv/bin/pip install -qq --no-deps --require-hashes -r requirements/dev.txt
  .venv/bin/pip install -qq --no-deps --no-build-isolation -e agent -e central
  .venv/bin/pip check >/dev/null || die "requirements/dev.txt does not fit the packages' needs: $(.venv/bin/pip check | head -3)"
  echo "$wanted" > "$stamp"
}

start_engine() {
  docker info >/dev/null 2>&1 && return
  # An engine that exists but refuses us is not ours to replace.
  if [ "$(id -u)" -ne 0 ]; then
    die "no Docker engine answers and this is not root (start Docker, add yourself to the group docker, or run this as root)"
  fi
  # An engine that is only stopped, docker-ce perhaps, is not replaced by another.
  command -v dockerd >/dev/null || install_packages docker.io
  install_packages iptables
  if docker info >/dev/null 2>&1; then return; fi
  if [ -d /run/systemd/system ]; then
    say "Starting the Docker service"
    systemctl start docker
  else
    say "Starting dockerd (no init system here); its log is build/lab/dockerd.log"
    mkdir -p build/lab
    rm -f /var/run/docker.pid
    setsid nohup dockerd > build/lab/dockerd.log 2>&1 < /dev/null &
    echo $! > build/lab/dockerd.pid
  fi
  for _ in $(seq 60); do docker info >/dev/null 2>&1 && return; sleep 1; done
  die "the Docker engine does not answer after 60 s ($(tail -n 1 build/lab/dockerd.log 2>/dev/null || echo 'see: journalctl -u docker'))"
}

stop_engine() {
  # Only the engine that start_engine put there.
  [ -f build/lab/dockerd.pid ] || return 0
  local pid; pid=$(cat build/lab/dockerd.pid)
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
    say "Stopping the dockerd that the lab started"
    kill "$pid"
    for _ in $(seq 60); do [ -d "/proc/$pid" ] || break; sleep 0.5; done
  fi
  rm -f build/lab/dockerd.pid
}

case ${1:-all} in
  venv) make_venv ;;
  engine) install_packages git openssh-client rsync; start_engine ;;
  debootstrap) install_packages debootstrap ;;
  test-tools) install_packages chromium openssh-client openssh-server postgresql rsync ;;
  stop-engine) stop_engine ;;
  all) make_venv; install_packages git openssh-client openssh-server postgresql rsync; start_engine ;;
  *) die "unknown step '$1' (one of: venv, engine, debootstrap, test-tools, stop-engine, all)" ;;
esac
