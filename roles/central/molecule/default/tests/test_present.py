"""The centre after the role."""

from __future__ import annotations

import json

import tomllib


def test_the_command_line_answers(host):
    assert host.run("shala --help").rc == 0
    assert host.check_output("readlink /opt/shala/central/current").startswith(
        "/opt/shala/central/releases/0."
    )


def test_the_fleet_is_every_school_of_the_inventory(host):
    fleet = json.loads(host.file("/etc/shala/fleet.json").content_string)
    assert fleet["format"] == 1
    assert {server["name"]: (server["address"], server["port"]) for server in fleet["servers"]} == {
        "2031017-mz17": ("198.51.100.17", 22),
        "3080101-rj1": ("198.51.100.20", 43001),
    }


def test_the_host_keys_of_the_schools_are_known(host):
    for label in ("198.51.100.17", "[198.51.100.20]:43001"):
        assert host.run(f"ssh-keygen -F '{label}' -f /var/lib/shala/ssh/known_hosts").rc == 0


def test_the_key_that_pulls_is_for_one_account_alone(host):
    key = host.file("/var/lib/shala/ssh/id_ed25519")
    assert (key.user, key.mode) == ("shala", 0o600)
    assert host.file("/var/lib/shala/ssh").mode == 0o700


def test_the_keys_of_the_bucket_are_for_one_account_alone(host):
    keys = host.file("/etc/shala/s3.toml")
    assert (keys.user, keys.mode) == ("shala", 0o600)
    assert 'secret_access_key = "not a secret"' in keys.content_string


def test_what_is_sensitive_is_encrypted_to_the_researchers(host):
    configuration = tomllib.loads(host.file("/etc/shala/central.toml").content_string)
    assert configuration["archive"]["recipients"][0].startswith("age1")
    assert "postgres-dump" in configuration["archive"]["sensitive_items"]


def test_the_archive_is_read_again_every_night(host):
    assert host.service("shala-scrub.timer").is_enabled


def test_the_archive_belongs_to_the_account_that_pulls(host):
    archive = host.file("/srv/shala/archive")
    assert (archive.user, archive.mode) == ("shala", 0o750)


def test_rsync_is_one_that_may_face_a_hostile_sender(host):
    version = host.check_output("rsync --version").split()[2].removeprefix("v")
    assert tuple(int(part) for part in version.split(".")[:2]) >= (3, 5)


def test_it_pulls_by_itself(host):
    for name in ("shala-pull.timer", "shala-prune.timer"):
        timer = host.service(name)
        assert timer.is_enabled
        assert timer.is_running


def test_it_prunes_in_the_same_confinement(host):
    host.run("systemctl start shala-prune.service")
    status = host.check_output("systemctl show shala-prune.service -p ExecMainStatus --value")
    assert status == "0", host.run("journalctl -u shala-prune --no-pager -n 30").stdout


def test_the_puller_runs_in_its_confinement(host):
    # Nobody answers at these addresses: 3 is shala's own answer, systemd's refusals are above 200.
    host.run("systemctl start shala-pull.service")
    status = host.check_output("systemctl show shala-pull.service -p ExecMainStatus --value")
    assert status == "3", host.run("journalctl -u shala-pull --no-pager -n 30").stdout
    assert "2031017-mz17: offline" in host.run("journalctl -u shala-pull --no-pager -n 30").stdout
