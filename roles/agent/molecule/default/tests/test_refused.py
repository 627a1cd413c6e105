"""A new release came with a configuration that it refuses."""

from __future__ import annotations


def test_the_old_release_goes_on(host):
    releases = host.check_output("ls /opt/shala/agent/releases").split()
    assert len(releases) == 2
    by_age = host.check_output("ls -tr /opt/shala/agent/releases").split()
    assert host.check_output("readlink /opt/shala/agent/current").endswith(by_age[0])


def test_the_old_configuration_is_in_place(host):
    assert '[items."nginx-logs"]' in host.file("/etc/shala/catalogue.toml").content_string
    assert "every_minutes = 60" in host.file("/etc/shala/agent.toml").content_string
    assert host.run("shala-agent check-config --files-later /etc/shala/agent.toml").rc == 0
