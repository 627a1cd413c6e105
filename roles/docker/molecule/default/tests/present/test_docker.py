"""The engine as its users find it."""

from __future__ import annotations

import json

testinfra_hosts = ["docker://shala-docker-1"]


def test_the_engine_answers_and_comes_back_at_boot(host):
    assert host.service("docker").is_running
    assert host.service("docker").is_enabled
    assert host.run("docker version").succeeded


def test_the_engine_runs_with_the_settings(host):
    told = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert told["LiveRestoreEnabled"] is True
    assert told["LoggingDriver"] == "json-file"
    written = json.loads(host.file("/etc/docker/daemon.json").content_string)
    assert written["log-opts"] == {"max-size": "2m", "max-file": "3"}
    assert written["max-concurrent-downloads"] == 1


def test_the_first_start_was_made_with_the_settings(host):
    starts = host.check_output("systemctl show docker --property=NRestarts --value")
    assert starts == "0"
    assert (
        host.check_output("journalctl -u docker --no-pager -o cat | grep -c 'Started docker.service'") == "1"
    )


def test_ansible_modules_find_their_library(host):
    assert host.run("python3 -c 'import docker, requests'").succeeded
