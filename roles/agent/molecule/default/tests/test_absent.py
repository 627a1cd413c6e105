"""The agent was taken off; what it had collected stays."""

from __future__ import annotations

import pytest

GONE = (
    "/usr/local/bin/shala-agent",
    "/opt/shala/agent",
    "/etc/shala/agent.toml",
    "/etc/shala/catalogue.toml",
    "/etc/shala/centre.pem",
    "/etc/systemd/system/shala-agent.service",
    "/etc/systemd/system/shala-agent.timer",
    "/var/lib/shala-pull",
)


@pytest.mark.parametrize("path", GONE)
def test_is_gone(host, path):
    assert not host.file(path).exists


def test_the_centres_account_is_gone(host):
    assert not host.user("shala-pull").exists


def test_the_data_are_kept_for_root_alone(host):
    spool = host.file("/var/spool/shala")
    assert (spool.is_directory, spool.user, spool.group, spool.mode) == (True, "root", "root", 0o700)
    assert host.file("/var/lib/shala").is_directory
    assert (
        host.file("/etc/shala/pseudonym.key").mode == 0o600
    )  # which the pseudonyms in the spool are made with
