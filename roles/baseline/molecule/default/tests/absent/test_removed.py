"""What is left when the role is taken back."""

from __future__ import annotations

testinfra_hosts = ["docker://shala-baseline-1", "docker://shala-baseline-2"]


def test_nothing_of_the_role_is_left(host):
    assert not host.run("find /etc -name '*shala*' -not -path '/etc/ssh/sshd_config.d'").stdout.strip()
    assert not host.user("shala").exists


def test_the_server_goes_on(host):
    assert host.run("/usr/sbin/sshd -t").succeeded
    assert host.service("ssh").is_running
    assert host.service("systemd-journald").is_running
