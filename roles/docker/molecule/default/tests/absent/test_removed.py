"""What is left of the engine when it is removed."""

from __future__ import annotations

testinfra_hosts = ["docker://shala-docker-1"]


def test_no_engine_is_left(host):
    assert not host.exists("dockerd")
    assert not host.exists("containerd")
    assert not host.process.filter(comm="dockerd")
    assert not host.process.filter(comm="sleep")


def test_no_settings_and_no_data_are_left(host):
    assert not host.file("/etc/docker/daemon.json").exists
    assert host.check_output("ls -A /var/lib/docker") == ""
