"""Organizations, zones and devices: the database on both engines, and `shala org|zone|device` as an operator meets them."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from shala_agent import wire
from shala_agent.records import Change
from shala_central.centre_key import KeyProblem
from shala_central.config import ZoneSettings
from shala_central.database import Database, DatabaseProblem
from shala_central.failure import UsageError
from shala_central.tables import metadata
from shala_central.zones import Zones
from zone_world import Device, account, progress

# -- the database --------------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_code_knows(zone_centre):
    with zone_centre.zones() as zones, zones.database.reading() as session:
        assert compare_metadata(MigrationContext.configure(session.connection), metadata) == []


def test_the_tables_of_a_zone_have_the_columns_that_they_have_on_a_server(zone_centre, tmp_path):
    device = Device("2031017-mz17", tmp_path / "device", zone_centre)
    for name in ("log", "fork", "statement", "segment", "record", "quarantine"):
        there = {
            row[1] for row in device.records._database.query(f"SELECT * FROM pragma_table_info('{name}')")
        }
        assert {column.name for column in metadata.tables[name].columns} == there - {"at_centre"}


def test_several_workers_may_start_on_an_empty_database_at_once(zone_centre, tmp_path):
    settings = ZoneSettings(
        database=zone_centre.postgres.url() if zone_centre.postgres else f"sqlite:///{tmp_path}/new.sqlite",
        key_file=str(tmp_path / "new.key"),
    )
    keys, failures = [], []

    def start() -> None:
        try:
            keys.append(Zones.open(settings).public_key)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(set(keys)) == 1


def test_a_database_of_a_newer_shala_is_left_alone(zone_centre):
    zone_centre.query("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseProblem, match="update shala"):
        Database(zone_centre.database).open()


def test_what_fails_in_a_transaction_leaves_nothing(zone_centre):
    def half_done(zones: Zones) -> None:
        with zones.database.writing() as session:
            zones.create_organization(session, "half")
            zones.create_organization(session, "clix")

    with zone_centre.zones() as zones, pytest.raises(UsageError, match="already"):
        half_done(zones)
    assert not zone_centre.query("SELECT 1 FROM organization WHERE name = 'half'")


@pytest.mark.parametrize(
    "url", ["mysql://host/name", "sqlite:///relative", "sqlite://", "nonsense", "postgresql:"]
)
def test_a_url_that_names_no_database_of_ours_is_refused(url):
    with pytest.raises((UsageError, DatabaseProblem)):
        Database(url).open()


def test_a_password_is_never_shown(tmp_path):
    database = Database("postgresql://shala:geheim@127.0.0.1:1/zones")
    with pytest.raises(DatabaseProblem) as caught:
        database.open()
    assert "geheim" not in str(caught.value)


def test_the_centres_key_is_made_once_and_only_its_owner_reads_it(zone_centre):
    path = zone_centre.folder / "zones.key"
    seed = path.read_bytes()
    for file in zone_centre.folder.glob("zones.*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with zone_centre.zones() as zones:
        assert bytes(zones.key) == path.read_bytes() == seed


def test_another_key_and_a_lost_one_are_refused(zone_centre):
    path = zone_centre.folder / "zones.key"
    path.write_bytes(b"x" * 32)
    with pytest.raises(KeyProblem, match="not the key"), zone_centre.zones():
        pass
    path.unlink()
    with pytest.raises(KeyProblem, match="is gone"), zone_centre.zones():
        pass
    assert not path.exists()


# -- the command line ----------------------------------------------------------------------------------------


def test_organizations_and_zones_are_made_listed_and_shown(zone_centre):
    assert zone_centre.shala("org", "create", "mizoram").returncode == 0
    assert zone_centre.shala("zone", "create", "mz-lunglei", "--org", "mizoram").returncode == 0
    assert json.loads(zone_centre.shala("org", "show", "mizoram", "--json").stdout)["zones"] == ["mz-lunglei"]
    listed = json.loads(zone_centre.shala("zone", "list", "--json").stdout)["zones"]
    assert {"zone": "mz-lunglei", "organization": "mizoram", "devices": 0} in listed


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("org", "create", "Mizo ram"), "cannot be the name of an organization"),
        (("org", "create", "clix"), "already"),
        (("org", "show", "none"), "there is no organization 'none'"),
        (("zone", "create", "x", "--org", "none"), "there is no organization 'none'"),
        (("zone", "create", "../x", "--org", "clix"), "cannot be the name of a zone"),
        (("zone", "create", "mz", "--org", "clix"), "already"),
        (("zone", "show", "none"), "there is no zone 'none'"),
        (("zone", "status", "none"), "there is no zone 'none'"),
        (("zone", "record", "account", "zo"), "no zone has a record account zo"),
        (("zone", "record", "hologram", "zo"), "no zone has a record hologram zo"),
        (("zone", "redact", "mz", "account", "zo", "--yes"), "has no entry of account zo"),
        (("device", "create", "--zone", "none"), "there is no zone 'none'"),
        (("device", "create", "--zone", "mz", "--name", "a b"), "is no name of a server"),
        (("device", "create", "--zone", "mz", "--replace"), "needs --name"),
        (("device", "show", "none"), "there is no device 'none'"),
        (("device", "move", "none", "--zone", "mz"), "there is no device 'none'"),
        (("device", "revoke", "none"), "there is no device 'none'"),
        (("serve", "--listen", "nonsense"), "HOST:PORT"),
    ],
)
@pytest.mark.parametrize("zone_centre", ["sqlite"], indirect=True)
def test_wrong_usage_is_one_line_and_exit_code_2(zone_centre, arguments, complaint):
    done = zone_centre.shala(*arguments)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_token_is_printed_once_and_kept_nowhere(zone_centre):
    done = zone_centre.shala("device", "create", "--zone", "mz", "--name", "2031017-mz17")
    token = done.stdout.strip()
    assert len(token) == 48
    assert token.encode() not in bytes(zone_centre.query("SELECT digest FROM token")[0][0])
    assert "token" not in str(zone_centre.query("SELECT name FROM token"))


def test_a_token_goes_to_a_file_that_only_its_owner_reads(zone_centre, tmp_path):
    path = tmp_path / "token"
    done = zone_centre.shala("device", "create", "--zone", "mz", "--token-file", str(path))
    token = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in done.stdout + done.stderr


def test_a_server_without_a_network_is_enrolled_by_files(served, tmp_path):
    aizawl = Device("2031017-mz17", tmp_path / "aizawl", served)
    request, approval = tmp_path / "request", tmp_path / "approval"
    request.write_bytes(msgspec.json.encode(aizawl.enrol_request()))
    done = served.shala("device", "approve", str(request), "--zone", "mz", "--output", str(approval))
    assert done.returncode == 0, done.stderr
    aizawl.take_approval(msgspec.json.decode(approval.read_bytes(), type=wire.EnrolAnswer))
    aizawl.write(account("zo"))
    aizawl.sync()
    assert served.query("SELECT COUNT(*) FROM record")[0][0] == 1


@pytest.mark.parametrize("raw", [b"", b"{}", b"x" * 100_000, b'{"key":"", "name":"x","signature":""}'])
@pytest.mark.parametrize("zone_centre", ["sqlite"], indirect=True)
def test_a_request_file_that_is_none_is_refused(zone_centre, tmp_path, raw):
    path = tmp_path / "request"
    path.write_bytes(raw)
    done = zone_centre.shala(
        "device", "approve", str(path), "--zone", "mz", "--output", str(tmp_path / "out")
    )
    assert (done.returncode, "is no request for enrolment" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("zone_centre", ["sqlite"], indirect=True)
def test_a_forged_request_file_is_refused(zone_centre, tmp_path):
    aizawl = Device("2031017-mz17", tmp_path / "aizawl", zone_centre)
    path = tmp_path / "request"
    path.write_bytes(
        msgspec.json.encode(msgspec.structs.replace(aizawl.enrol_request(), name="2031018-mz18"))
    )
    done = zone_centre.shala(
        "device", "approve", str(path), "--zone", "mz", "--output", str(tmp_path / "out")
    )
    assert (done.returncode, "not signed" in done.stderr) == (2, True)
    assert not zone_centre.query("SELECT 1 FROM device")


def test_devices_are_listed_and_shown_by_name_and_by_id(served, join):
    aizawl = join()
    aizawl.sync()
    (listed,) = json.loads(served.shala("device", "list", "--zone", "mz", "--json").stdout)["devices"]
    assert (listed["name"], listed["device"], listed["software"]) == (
        aizawl.name,
        aizawl.id,
        "shala-agent test",
    )
    assert aizawl.name in served.shala("device", "show", aizawl.id[:10]).stdout


# -- status --------------------------------------------------------------------------------------------------


def status(centre, zone: str = "mz"):
    done = centre.shala("zone", "status", zone, "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["zones"]
    return found


def test_status_tells_what_each_device_has_still_to_send_and_to_fetch(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    lunglei.sync()
    aizawl.write(account("zo"), progress("zo", 1))
    (data,) = aizawl.segments()
    aizawl.open([wire.Offer("ab" * 32, len(data))])
    before = {lag["name"]: lag for lag in status(served)["devices"]}
    assert (before[aizawl.name]["counter"], before[aizawl.name]["held"]) == (2, 0)
    assert (before[aizawl.name]["up_entries"], before[aizawl.name]["up_bytes"]) == (2, len(data))
    aizawl.put(data)
    after = {lag["name"]: lag for lag in status(served)["devices"]}
    assert (after[aizawl.name]["up_entries"], after[aizawl.name]["up_bytes"]) == (0, 0)
    assert (after[lunglei.name]["down_entries"], after[lunglei.name]["down_bytes"]) == (2, len(data))
    lunglei.sync()
    lunglei.sync()
    assert not any(lag["down_entries"] for lag in status(served)["devices"])


def test_status_names_conflicts_waiting_records_and_quarantine(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.write(account("zo", "Zo"), progress("stranger", 1))
    lunglei.write(account("zo", "Zodin"))
    for device in (aizawl, lunglei):
        device.sync()
    found = status(served)
    assert found["conflicts"] == ["account zo"]
    assert found["waiting"] == {"account/stranger": 1}
    lunglei.write(Change("account", "bad", {str(number): 1 for number in range(2001)}))
    lunglei.sync()
    assert "more than 2000" in status(served)["quarantined"][0]
    shown = served.shala("zone", "status").stdout
    assert "conflict: account zo" in shown
    assert "2031018-mz18, entry 2" in shown


def test_status_says_of_a_copied_disk_what_to_do(served, join):
    aizawl = join()
    body = msgspec.json.encode(aizawl.sync_request())
    for _ in range(2):
        aizawl.send("POST", "/v1/sync", body)
    (fork,) = status(served)["forks"]
    assert fork.startswith("2031017-mz17: ")
    assert "shala device create" in fork


def test_where_a_record_is_names_its_author_its_versions_and_its_servers(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.write(account("zo", "Zo"))
    lunglei.write(account("zo", "Zodin"))
    aizawl.sync()
    lunglei.sync()
    lunglei.sync()
    (found,) = json.loads(served.shala("zone", "record", "account", "zo", "--json").stdout)["records"]
    assert found["zone"] == "mz"
    assert found["conflict"]
    versions = {version["author"]: version for version in found["versions"]}
    assert versions[aizawl.name]["at_servers"] == [aizawl.name, lunglei.name]
    assert versions[lunglei.name]["at_servers"] == [lunglei.name]
    assert found["missing_at"] == [aizawl.name]
    assert "not confirmed by: 2031017-mz17" in served.shala("zone", "record", "account", "zo").stdout


def test_where_a_record_is_finds_it_on_a_branch_of_a_forked_log(served, join, tmp_path):
    from test_server import copy_of

    aizawl = join()
    aizawl.sync()
    twin = copy_of(aizawl, tmp_path / "twin")
    for device, user in ((aizawl, "one"), (twin, "two")):
        device.write(account(user))
        device.number += 50
        device.sync()
    for user in ("one", "two"):
        (found,) = json.loads(served.shala("zone", "record", "account", user, "--json").stdout)["records"]
        assert found["versions"][0]["author"] == aizawl.name


def test_moving_a_device_offline_writes_its_approval(served, join, tmp_path):
    aizawl = join()
    aizawl.write(account("zo"))
    aizawl.sync()
    approval = tmp_path / "approval"
    done = served.shala("device", "move", aizawl.name, "--zone", "rj", "--output", str(approval))
    assert done.returncode == 0, done.stderr
    aizawl.take_approval(msgspec.json.decode(Path(approval).read_bytes(), type=wire.EnrolAnswer))
    aizawl.sync()
    assert status(served, "rj")["records"] == 1
    assert served.shala("device", "move", aizawl.name, "--zone", "rj").returncode == 2
