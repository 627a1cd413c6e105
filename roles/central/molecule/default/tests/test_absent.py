"""The centre's software was taken off; archive and keys stay."""

from __future__ import annotations

import pytest

GONE = (
    "/usr/local/bin/shala",
    "/opt/shala/central",
    "/etc/shala/central.toml",
    "/etc/shala/fleet.json",
    "/etc/shala/s3.toml",
    "/etc/systemd/system/shala-pull.service",
    "/etc/systemd/system/shala-pull.timer",
    "/etc/systemd/system/shala-prune.service",
    "/etc/systemd/system/shala-prune.timer",
    "/etc/systemd/system/shala-scrub.service",
    "/etc/systemd/system/shala-scrub.timer",
    "/etc/systemd/system/shala-serve.service",
    "/etc/nginx/sites-enabled/shala",
    "/etc/nginx/sites-available/shala",
    "/etc/shala/zones.json",
    "/etc/shala/pgpass",
)


@pytest.mark.parametrize("path", GONE)
def test_is_gone(host, path):
    assert not host.file(path).exists


def test_nobody_is_served_any_more(host):
    assert host.run("curl -sk https://shala-central-1/v1/health").rc == 7  # nobody listens
    assert not host.service("shala-serve").is_running


def test_archive_key_and_account_stay(host):
    assert host.file("/srv/shala/archive").is_directory
    assert host.file("/var/lib/shala/ssh/id_ed25519").exists
    assert host.file("/var/lib/shala/zones.sqlite").exists
    assert host.file("/etc/shala/tls/authority.key").exists
    assert host.user("shala").exists
