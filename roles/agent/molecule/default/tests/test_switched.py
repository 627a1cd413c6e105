"""A new release was switched to, with one release kept."""

from __future__ import annotations


def test_only_the_new_release_is_left_and_in_use(host):
    (release,) = host.check_output("ls /opt/shala/agent/releases").split()
    assert host.check_output("readlink /opt/shala/agent/current").endswith(release)
    assert host.run("shala-agent --help").rc == 0


def test_the_keys_are_as_they_were(host):
    assert host.file("/var/lib/shala-pull/.ssh/authorized_keys").content_string.count("ssh-ed25519") == 1


def test_a_run_that_says_nothing_of_the_catalogue_leaves_what_may_leave_the_server(host):
    assert '[items."nginx-logs"]' in host.file("/etc/shala/catalogue.toml").content_string


def test_a_run_that_knows_no_centre_leaves_the_one_that_is_known(host):
    assert "of the centre" in host.file("/etc/shala/centre.pem").content_string
    assert 'ca_file = "/etc/shala/centre.pem"' in host.file("/etc/shala/agent.toml").content_string
