"""A new release was switched to, with one release kept."""

from __future__ import annotations


def test_only_the_new_release_is_left_and_in_use(host):
    (release,) = host.check_output("ls /opt/shala/agent/releases").split()
    assert host.check_output("readlink /opt/shala/agent/current").endswith(release)
    assert host.run("shala-agent --help").rc == 0


def test_the_keys_are_as_they_were(host):
    assert host.file("/var/lib/shala-pull/.ssh/authorized_keys").content_string.count("ssh-ed25519") == 1
