"""Organizations, zones and devices: the database on both engines, and `shala org|zone|device` as an operator meets them."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import sqlite3
import stat
import tempfile
import threading
from pathlib import Path
from unittest import mock

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import CliRunner
from shala_agent import wire, write_ahead
from shala_agent.cli import shala_agent
from shala_agent.membership import Statement, decode_statement
from shala_agent.records import Change, Records
from shala_agent.segment import NONE, Entry, encode_entry, make_segment, read_segment
from shala_central.centre_key import KeyProblem
from shala_central.config import ZoneSettings, read_config
from shala_central.database import Database, DatabaseProblem
from shala_central.failure import UsageError
from shala_central.tables import metadata
from shala_central.zones import Zones, names_of
from zone_world import Device, ZoneCentre, account, free_port, progress

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
        assert {column.name for column in metadata.tables[name].columns} == there - {"at_centre", "ours"}


def test_of_two_workers_that_enrol_a_device_in_two_zones_at_once_the_later_is_refused(zone_centre):
    key, id_ = bytes(32), b"i" * 16
    first_has_written, refusals = threading.Event(), []

    def second() -> None:
        first_has_written.wait(20)
        with zone_centre.zones() as zones:
            try:
                with zones.database.writing() as session:
                    zones.enrol(session, zones.zone(session, "rj"), key, id_, "mz17")
            except UsageError as refusal:
                refusals.append(str(refusal))

    other = threading.Thread(target=second)
    other.start()
    with zone_centre.zones() as zones:
        with zones.database.writing() as session:
            zones.enrol(session, zones.zone(session, "mz"), key, id_, "mz17")
            first_has_written.set()
            other.join(0.5)  # it looks and waits: nothing of this is there yet
            assert other.is_alive()
        other.join(20)
        with zones.database.reading() as session:
            rows = session.query("SELECT z.name FROM device d JOIN zone z ON z.id = d.zone")
            said = session.query("SELECT z.name FROM statement s JOIN zone z ON z.id = s.zone")
    assert refusals == ["'mz17' has just been enrolled in another zone (shala device show mz17)"]
    assert [tuple(row) for row in rows] == [tuple(row) for row in said] == [("mz",)]


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


def test_a_new_database_is_made_ready_by_one_process_at_a_time(tmp_path):
    opened = threading.Thread(target=lambda: Database(f"sqlite:///{tmp_path}/new.sqlite").open().close())
    with write_ahead.in_turn(tmp_path):
        opened.start()
        opened.join(0.5)
        waits, there = opened.is_alive(), (tmp_path / "new.sqlite").exists()
    opened.join(60)
    assert (waits, there) == (True, False)
    assert (tmp_path / "new.sqlite").stat().st_size


def test_a_database_of_a_newer_shala_is_left_alone(zone_centre):
    zone_centre.query("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseProblem, match="update shala"):
        Database(zone_centre.database).open()


def test_an_update_that_knows_other_types_makes_the_records_anew(served, join):
    aizawl = join()
    aizawl.write(account("zo"))
    aizawl.sync()
    served.stop()
    served.query("DELETE FROM record")
    assert served.query("SELECT key FROM record") == []
    served.query("UPDATE meta SET value = ? WHERE name = 'types'", b"of an older shala")
    assert [tuple(row) for row in served.query("SELECT key FROM record")] == [("zo",)]


@pytest.fixture
def first_release(zone_centre, tmp_path) -> Database:
    """An empty database as the first release made it."""
    url = zone_centre.postgres.url() if zone_centre.postgres else f"sqlite:///{tmp_path}/first.sqlite"
    database = Database(url)
    with mock.patch("shala_central.database.REVISION", "0001"):
        return database.open()


def living(name: str, seed: int, zone: int = 1) -> tuple[object, ...]:
    return (hashlib.sha256(bytes([seed])).digest(), bytes([seed]) * 32, zone, name, seed)


_PUT_DEVICE = 'INSERT INTO device (id, "key", zone, name, enrolled) VALUES (?, ?, ?, ?, ?)'


def test_devices_and_sizes_of_the_first_release_outlive_the_upgrade(first_release):
    with first_release.writing() as session:
        session.query("INSERT INTO organization (name, created) VALUES ('clix', 1)")
        session.query(
            "INSERT INTO zone (name, centre, organization, created, digest) VALUES ('mz', ?, 1, 1, ?)",
            (bytes(32), bytes(8)),
        )
        session.many(_PUT_DEVICE, [living("mz17", 1), living("mz17", 2), living("mz18", 3)])
        session.query(
            'INSERT INTO segment (id, zone, "key", epoch, log, "first", "last", previous, size, data)'
            " VALUES (?, 1, ?, 1, ?, 1, 1, ?, 500, ?)",
            (bytes(32), living("", 1)[1], bytes(16), bytes(32), b""),
        )
    with first_release.open().reading() as session:
        sizes = [
            session.query(f"SELECT bytes FROM {table} ORDER BY 1 DESC")[0][0] for table in ("zone", "device")
        ]
        names = [name for (name,) in session.query("SELECT name FROM device ORDER BY enrolled")]
    first_release.close()
    assert sizes == [500, 500]
    assert names == ["mz17", f"mz17~{living('', 2)[0].hex()[:12]}", "mz18"]


def test_records_of_the_first_release_outlive_the_upgrade(first_release):
    put = (
        "INSERT INTO record (zone, type, key, value, log, counter, depth, at, schema, conflict, waits)"
        " VALUES (1, 'account', ?, '{}', 1, ?, 1, 0, 1, ?, ?)"
    )
    with first_release.writing() as session:
        session.many(put, [("zo", 1, 0, None), ("ma", 2, 1, "account/zo")])
    with first_release.open().reading() as session:
        rows = session.query("SELECT key, counter, conflict, waits FROM record ORDER BY counter")
    first_release.close()
    assert list(map(tuple, rows)) == [("zo", 1, 0, None), ("ma", 2, 1, "account/zo")]


def test_a_name_is_one_living_devices_whatever_two_enrolments_at_once_have_seen(zone_centre, join):
    zone_centre.start()
    join("2031017-mz17")
    with pytest.raises(DatabaseProblem, match=r"(?i)unique"):
        zone_centre.query(_PUT_DEVICE, *living("2031017-mz17", 1, zone=2))
    zone_centre.query("UPDATE device SET revoked = 1")
    zone_centre.query(_PUT_DEVICE, *living("2031017-mz17", 1, zone=2))


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


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "https://sync.example.org/shala",
        "https://a b",
        "ftp://localhost",
        "https://a:70000",
    ],
)
def test_an_address_that_no_server_would_take_is_refused(tmp_path, url):
    path = tmp_path / "central.toml"
    path.write_text(f'format = 1\n[zones]\nurl = "{url}"\n')
    with pytest.raises(UsageError) as refusal:
        read_config(path)
    expected = 'expected an address such as "https://sync.example.org"'
    assert str(refusal.value).startswith(f"{path}: zones.url = '{url}': {expected}")


@pytest.mark.parametrize("url", ["", "https://sync.example.org:8443", "http://[::1]:8470"])
def test_an_address_that_servers_take_is_taken(tmp_path, url):
    path = tmp_path / "central.toml"
    path.write_text(f'format = 1\n[zones]\nurl = "{url}"\n')
    assert read_config(path).zones.url == url


def test_a_password_is_never_shown(tmp_path):
    database = Database("postgresql://shala:geheim@127.0.0.1:1/zones")
    with pytest.raises(DatabaseProblem) as caught:
        database.open()
    assert "geheim" not in str(caught.value)


def test_a_password_among_the_options_of_a_url_is_refused_and_not_shown():
    with pytest.raises(UsageError, match="holds a password") as caught:
        Database("postgresql://shala@db.example.org/zones?password=geheim")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "command",
    [
        ("org", "list"),
        ("zone", "status"),
        ("zone", "create", "mz", "--org", "clix"),
        ("device", "create", "--zone", "mz"),
    ],
)
def test_a_mistyped_path_makes_no_database(tmp_path, command):
    centre = ZoneCentre(tmp_path, f"sqlite:///{tmp_path}/typo/zones.sqlite")
    done = centre.shala(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"shala: no database at {tmp_path}/typo/zones.sqlite (correct zones.database; "
    )
    assert [path.name for path in tmp_path.iterdir()] == ["central.toml"]


@pytest.mark.parametrize("command", [("serve",), ("org", "create", "clix")])
@pytest.mark.parametrize(
    "slip", ["typo/zones.sqlite", "srv/zone.sqlite", "srv/empty.sqlite", "srv/dangling.sqlite"]
)
def test_who_has_its_key_makes_no_database_where_it_has_none(tmp_path, command, slip):
    place = tmp_path / "srv"
    centre = ZoneCentre(tmp_path, f"sqlite:///{place}/zones.sqlite")
    centre.shala("org", "create", "first")  # who has none yet makes its folder, too
    assert place.is_dir()
    (place / "empty.sqlite").touch()
    (place / "dangling.sqlite").symlink_to(tmp_path / "unmounted/zones.sqlite")
    gc.collect()  # closes the first database: until then SQLite's own files lie beside it
    before = sorted(tmp_path.rglob("*"))
    centre.database = f"sqlite:///{tmp_path}/{slip}"
    if command == ("serve",):
        command += ("--listen", f"127.0.0.1:{free_port()}")
    with mock.patch("uvicorn.run") as served:
        done = centre.shala(*command)
    assert (done.returncode, done.stdout, served.called) == (2, "", False)
    assert done.stderr == (
        f"shala: no database at {tmp_path}/{slip}, and {centre.key_file} is the key of one (correct"
        " zones.database, mount its disk, or put a backup there; to begin anew with this key: shala org create"
        " NAME --new-database)\n"
    )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("step", ["database.Database.open", "centre_key.durable.sync", "zones._set_meta"])
def test_a_centre_that_is_cut_off_while_it_is_made_is_made_by_the_next_command(tmp_path, step):
    centre = ZoneCentre(tmp_path, f"sqlite:///{tmp_path}/zones.sqlite")
    with mock.patch(f"shala_central.{step}", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        Zones.open(centre.settings)
    assert centre.shala("org", "create", "clix").returncode == 0


def test_a_database_without_tables_is_none_to_read_from(zone_centre, tmp_path):
    url = zone_centre.postgres.url() if zone_centre.postgres else f"sqlite:///{tmp_path}/empty.sqlite"
    (tmp_path / "empty.sqlite").touch()
    done = ZoneCentre(tmp_path, url).shala("zone", "list")
    assert done.returncode == 2
    assert "shala: no database at " in done.stderr


def test_a_file_that_is_no_database_is_named_with_the_way_out(tmp_path):
    (tmp_path / "zones.sqlite").write_bytes(b"garbage" * 1000)
    done = ZoneCentre(tmp_path, f"sqlite:///{tmp_path}/zones.sqlite").shala("zone", "list")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "zones.sqlite: file is not a database (correct zones.database, or put a backup" in done.stderr


@pytest.mark.parametrize("host, why", [("127.0.0.1", "in use"), ("192.0.2.1", "annot assign"), ("a..b", "")])
def test_an_address_that_nobody_can_listen_on_is_one_line_before_anything_is_served(tmp_path, host, why):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        listen = f"{host}:{busy.getsockname()[1]}"
        done = ZoneCentre(tmp_path, f"sqlite:///{tmp_path}/zones.sqlite").shala("serve", "--listen", listen)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"shala: {listen} cannot be listened on: ")
    assert why in done.stderr
    assert not (tmp_path / "zones.sqlite").exists()


def test_a_second_server_is_one_line_while_the_first_one_has_yet_to_listen(tmp_path):
    centre, seconds = ZoneCentre(tmp_path, f"sqlite:///{tmp_path}/zones.sqlite"), []
    command = ("serve", "--listen", f"127.0.0.1:{free_port()}")

    def run(*_: object, **__: object) -> None:
        seconds.append(centre.shala(*command))

    with mock.patch("uvicorn.run", run):
        assert centre.shala(*command).returncode == 0
    (second,) = seconds
    assert (second.returncode, len(second.stderr.splitlines())) == (2, 1)
    assert "is shala serve running already?" in second.stderr


@pytest.fixture
def open_folder():
    """A folder of root's that everybody may look into, with a centre that has its database in it."""
    # Not below TMPDIR, which may be its owner's alone.
    folder = Path(tempfile.mkdtemp(prefix="shala-rights-", dir="/tmp"))
    folder.chmod(0o755)
    for name, mode in (("etc", 0o777), ("data", 0o755)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
    yield folder / "data"
    shutil.rmtree(folder)


def as_nobody(centre, *arguments: str):
    os.seteuid(65534)
    try:
        return centre.shala(*arguments)
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another one")
@pytest.mark.parametrize(
    "folder_mode, file_mode, named",
    [
        (0o755, 0o644, "data"),
        (0o755, 0o666, "data"),
        (0o777, 0o444, "data/zones.sqlite"),
        (0o777, 0o600, "data/zones.sqlite"),
        (0o700, 0o600, "data"),
        (0o755, None, "data"),
    ],
)
def test_a_database_that_may_not_be_written_is_named_before_anything_is_served(
    open_folder, folder_mode, file_mode, named
):
    etc, path = open_folder.parent / "etc", open_folder / "zones.sqlite"
    centre = ZoneCentre(etc, f"sqlite:///{path}")
    if file_mode is not None:
        assert centre.shala("org", "create", "clix").returncode == 0
        (etc / "zones.key").chmod(0o644)
        path.chmod(file_mode)
    (etc / "central.toml").unlink(missing_ok=True)
    open_folder.chmod(folder_mode)
    listen = f"127.0.0.1:{free_port()}"
    with mock.patch("uvicorn.run") as served:
        done = as_nobody(centre, "serve", "--listen", listen)
    assert (done.returncode, done.stdout, served.called) == (2, "", False)
    place = open_folder.parent / named
    assert done.stderr == (
        f"shala: {place} is not for nobody to use (run: sudo -u root shala serve --listen {listen})\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another one")
def test_a_key_that_may_not_be_read_is_named_with_who_may(open_folder):
    open_folder.chmod(0o777)
    centre = ZoneCentre(open_folder.parent / "etc", f"sqlite:///{open_folder}/zones.sqlite")
    assert centre.shala("org", "create", "clix").returncode == 0
    (centre.folder / "central.toml").unlink()
    for path in open_folder.iterdir():
        os.chown(path, 65534, 65534)
    done = as_nobody(centre, "org", "list")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(f"shala: {centre.key_file} is not for nobody to use (run: sudo -u root ")


@pytest.mark.parametrize("path, said", [("folder", "is a folder"), ("file/zones.sqlite", "is no folder")])
def test_a_path_where_no_database_can_be_is_one_line(tmp_path, path, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for command in (
        ("serve", "--listen", f"127.0.0.1:{free_port()}"),
        ("org", "create", "clix"),
        ("org", "list"),
    ):
        done = ZoneCentre(tmp_path, f"sqlite:///{tmp_path}/{path}").shala(*command)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done
        assert str(tmp_path / path.partition("/")[0]) in done.stderr


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize(
    "tables",
    [
        "CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT)",
        "CREATE TABLE alembic_version (version_num TEXT); INSERT INTO alembic_version VALUES ('0003')",
        "PRAGMA application_id = 252006673",
    ],
    ids=["other tables", "of Alembic, too", "its number"],
)
def test_the_database_of_another_program_is_refused_and_stays_as_it_is(tmp_path, tables, journal):
    path = tmp_path / "theirs.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as theirs:
        theirs.execute(f"PRAGMA journal_mode = {journal}")
        theirs.executescript(tables)
    before = path.read_bytes()
    centre = ZoneCentre(tmp_path, f"sqlite:///{path}")
    for command in (
        ("serve", "--listen", f"127.0.0.1:{free_port()}"),
        ("org", "create", "clix"),
        ("zone", "list"),
    ):
        done = centre.shala(*command)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done
        assert done.stderr.startswith(f"shala: {path} is another program's database and stays as it is (")
    assert path.read_bytes() == before
    assert {one.name for one in tmp_path.iterdir()} == {"theirs.sqlite", "central.toml"}


def test_the_records_of_a_school_server_are_no_database_of_a_centre(tmp_path):
    Records(tmp_path / "records.sqlite")
    done = ZoneCentre(tmp_path, f"sqlite:///{tmp_path}/records.sqlite").shala("org", "list")
    assert (done.returncode, "is another program's database" in done.stderr) == (2, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another's files")
def test_what_root_makes_in_the_folder_of_the_service_is_the_services(tmp_path):
    folder = tmp_path / "service"
    folder.mkdir()
    os.chown(folder, 12345, 23456)
    centre = ZoneCentre(tmp_path, f"sqlite:///{folder}/zones.sqlite", key_folder=folder)
    assert centre.shala("org", "create", "clix").returncode == 0
    assert centre.shala("org", "list").returncode == 0
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in folder.iterdir()}
    assert owners.keys() >= {"zones.sqlite", "zones.key"}
    assert set(owners.values()) == {(12345, 23456)}


def test_a_database_that_a_link_leads_to_is_read_by_its_owner_only(tmp_path):
    target = tmp_path / "data" / "z.sqlite"
    target.parent.mkdir()
    (tmp_path / "zones.sqlite").symlink_to(target)
    centre = ZoneCentre(tmp_path, f"sqlite:///{tmp_path}/zones.sqlite")
    assert centre.shala("org", "create", "clix").returncode == 0
    assert (tmp_path / "zones.sqlite").is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another's files")
def test_the_folders_that_root_makes_below_the_services_are_the_services(tmp_path):
    folder = tmp_path / "service"
    folder.mkdir()
    os.chown(folder, 12345, 23456)
    centre = ZoneCentre(
        tmp_path, f"sqlite:///{folder}/zones/now/zones.sqlite", key_folder=folder / "keys/own"
    )
    assert centre.shala("org", "create", "clix").returncode == 0
    made = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*")}
    assert made.keys() >= {"zones", "zones/now", "zones/now/zones.sqlite", "keys", "keys/own"}
    assert {(one.st_uid, one.st_gid) for one in made.values()} == {(12345, 23456)}
    assert {stat.S_IMODE(made[name].st_mode) for name in ("zones/now", "keys/own")} == {0o700}


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
        (
            ("zone", "record", "hologram", "zo"),
            "no zone has a record hologram zo (there is no type 'hologram'",
        ),
        (("zone", "redact", "mz", "acount", "zo", "--yes"), "there is no type 'acount' here: account, "),
        (("zone", "redact", "mz", "account", "zo", "--yes"), "has no entry of account zo"),
        (("zone", "redact", "mz", "progress", "zo/1", "--with-dependents"), "goes with an account"),
        (("zone", "redact", "mz", "account", "", "--yes"), "KEY is empty"),
        (("zone", "records", "--user", "zo", "--zone", "none"), "there is no zone 'none'"),
        (("device", "create", "--zone", "none"), "there is no zone 'none'"),
        (("device", "create", "--zone", "mz", "--name", "a b"), "is no name of a server"),
        (("device", "create", "--zone", "mz", "--replace"), "needs --name"),
        (("device", "show", "none"), "there is no device 'none'"),
        (("device", "move", "none", "--zone", "mz"), "there is no device 'none'"),
        (("device", "revoke", "none"), "there is no device 'none'"),
        (("device", "token", "revoke", "abcdefab"), "no open token has this id"),
        (("device", "token", "revoke", ""), "at least 8 digits of a token's id"),
        (("device", "token", "list", "--zone", "none"), "there is no zone 'none'"),
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


def tokens_of(centre, *arguments: str) -> list[dict[str, object]]:
    done = centre.shala("device", "token", "list", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["tokens"]


def test_the_tokens_that_can_still_be_used_are_listed_without_themselves(served, tmp_path):
    token = served.shala("device", "create", "--zone", "mz", "--name", "2031017-mz17").stdout.strip()
    used = served.shala("device", "create", "--zone", "rj").stdout.strip()
    assert Device("2081001-rj1", tmp_path / "used", served).enrol(used).status == 200
    served.token("mz", days=-1)
    (found,) = tokens_of(served)
    assert (found["zone"], found["name"], found["replaces"]) == ("mz", "2031017-mz17", False)
    assert found["expires"] - found["created"] == 30 * 86400
    assert tokens_of(served, "--zone", "rj") == []
    shown = served.shala("device", "token", "list").stdout
    assert "2031017-mz17" in shown
    assert token not in shown + str(found)


def test_a_token_that_was_revoked_enrols_nobody(served, tmp_path):
    token, other = served.token("mz"), served.token("mz", "2031017-mz17")
    (gone,) = (one["id"] for one in tokens_of(served) if not one["name"])
    done = served.shala("device", "token", "revoke", str(gone)[:12])
    assert (done.returncode, "shala device create --zone mz" in done.stdout) == (0, True)
    device = Device("2031017-mz17", tmp_path / "device", served)
    assert device.enrol(token).status == 403
    assert device.enrol(other).status == 200


def test_an_id_that_may_be_several_tokens_revokes_none(served):
    for _ in range(2):
        served.token("mz")
    first, second = (str(one["id"]) for one in tokens_of(served))
    twin = bytes.fromhex(first[:16] + second[16:])
    served.query("UPDATE token SET digest = ? WHERE digest = ?", twin, bytes.fromhex(second))
    for given, why in ((first[:7], "at least 8 digits"), (first[:12], "more than one open token")):
        done = served.shala("device", "token", "revoke", given)
        assert (done.returncode, why in done.stderr, done.stderr.count("\n")) == (2, True, 1)
    assert len(tokens_of(served)) == 2


def test_a_used_token_is_not_revoked_and_no_token_is_repeated(served, join):
    join()
    (digest,) = (bytes(digest).hex() for (digest,) in served.query("SELECT digest FROM token"))
    token = served.token("mz")
    for given in (digest, token):
        done = served.shala("device", "token", "revoke", given)
        assert (done.returncode, given in done.stderr) == (2, False)
    assert len(tokens_of(served)) == 1


def everything(centre) -> list[object]:
    return [
        centre.query(f"SELECT * FROM {table} ORDER BY 1")
        for table in ("token", "device", "statement", "arrival")
    ]


@pytest.mark.parametrize("more", [(), ("--replace",)], ids=["", "replaces"])
def test_a_token_for_a_server_that_another_zone_has_is_refused_with_the_way_out(served, join, more):
    join("2031017-mz17")
    before = everything(served)
    done = served.shala("device", "create", "--zone", "rj", "--name", "2031017-mz17", *more)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "'2031017-mz17' is in the zone 'mz'" in done.stderr
    assert "shala device move 2031017-mz17 --zone rj" in done.stderr
    assert "shala device revoke 2031017-mz17" in done.stderr
    assert everything(served) == before


@pytest.mark.parametrize("new_disk", [False, True], ids=["its own key", "a new disk"])
@pytest.mark.parametrize("named, replaces", [("", False), ("2031017-mz17", False), ("2031017-mz17", True)])
def test_a_token_from_before_a_server_went_to_another_zone_does_not_take_it_away(
    served, join, tmp_path, new_disk, named, replaces
):
    token = served.token("rj", named, replaces=replaces)
    device = join("2031017-mz17")
    if new_disk:
        device = Device("2031017-mz17", tmp_path / "new", served)
    before = everything(served)
    answer = device.enrol(token)
    assert answer.status == 403
    assert answer.json["error"] == "this server is in another zone (at the centre: shala device list)"
    assert everything(served) == before


@pytest.mark.parametrize("new_disk", [False, True], ids=["its own key", "a new disk"])
def test_an_approval_for_a_server_that_another_zone_has_is_refused(served, join, tmp_path, new_disk):
    device = join("2031017-mz17")
    if new_disk:
        device = Device("2031017-mz17", tmp_path / "new", served)
    path, output = tmp_path / "request", tmp_path / "approval"
    path.write_bytes(msgspec.json.encode(device.enrol_request()))
    before = everything(served)
    for more in ((), ("--replace",)):
        done = served.shala("device", "approve", str(path), "--zone", "rj", "--output", str(output), *more)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert "shala device move 2031017-mz17 --zone rj" in done.stderr
    assert (everything(served), output.exists()) == (before, False)


def said_of_membership(centre) -> list[Statement]:
    rows = centre.query("SELECT data FROM statement WHERE kind <> 'redact'")
    return [decode_statement(bytes(data)) for (data,) in rows]


def test_what_is_said_of_a_device_later_is_greater_than_all_that_was_said_of_it_in_any_zone(served, join):
    join("2031018-mz18")
    join("2031017-mz17")
    greatest = 1
    for zone in ("rj", "mz", "rj"):
        before = said_of_membership(served)
        served.shala("device", "move", "2031017-mz17", "--zone", zone)
        later = [one for one in said_of_membership(served) if one not in before]
        revoked, enrolled = sorted(later, key=lambda one: one.generation)
        assert (revoked.kind, enrolled.kind) == ("revoke", "enrol")
        assert greatest < revoked.generation < enrolled.generation
        greatest = enrolled.generation
    assert [one.generation for one in said_of_membership(served) if one.name == "2031018-mz18"] == [1]


def test_who_was_revoked_is_named_with_the_command_that_enrols_it_anew(served, join):
    device = join("2031017-mz17")
    for command in (("revoke",), ("revoke",), ("move", "--zone", "mz")):
        done = served.shala("device", command[0], device.name, *command[1:])
        hint = "to enrol it anew: shala device create --zone mz --name 2031017-mz17"
        assert hint in done.stdout + done.stderr
    assert served.shala(*shlex.split(hint.partition(": shala ")[2])).returncode == 0


def test_a_server_that_was_revoked_and_asks_to_enrol_is_told_so_with_the_way_back(served, join):
    device = join("2031017-mz17")
    served.shala("device", "revoke", device.name, "--reason", "stolen")
    said = device.enrol().json["error"]
    assert said.startswith("this device is revoked: stolen (")
    assert "shala device create --zone mz --name 2031017-mz17, then here: shala-agent enrol" in said


def test_a_server_that_lost_its_key_and_asks_to_enrol_is_told_how_it_is_replaced(served, tmp_path):
    stranger = Device("2031017-mz17", tmp_path / "stranger", served)
    assert "with --replace where device.key was lost" in stranger.enrol().json["error"]


def test_a_server_that_was_revoked_in_one_zone_may_enrol_in_another(served, join):
    device = join("2031017-mz17")
    assert served.shala("device", "revoke", device.name).returncode == 0
    served.query("UPDATE device SET revoked = revoked - 60")  # its token is not older
    assert device.enrol(served.token("rj", device.name)).status == 200


def test_a_token_goes_to_a_file_that_only_its_owner_reads(zone_centre, tmp_path):
    path = tmp_path / "token"
    done = zone_centre.shala("device", "create", "--zone", "mz", "--token-file", str(path))
    token = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in done.stdout + done.stderr


def test_a_token_that_lies_in_a_file_is_not_overwritten(zone_centre, tmp_path):
    path = tmp_path / "token"
    path.touch()  # as mktemp does
    create = ("device", "create", "--zone", "mz", "--token-file", str(path))
    assert zone_centre.shala(*create).returncode == 0
    first = path.read_text()
    done = zone_centre.shala(*create)
    assert (done.returncode, done.stderr) == (
        2,
        f"shala: {path} is there already and is not overwritten (name another file, or remove it if it is used)\n",
    )
    assert path.read_text() == first
    assert len(tokens_of(zone_centre)) == 1


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


def test_a_request_of_a_changed_disk_is_told_how_it_is_approved(served, join, tmp_path):
    join("2031017-mz17")
    anew = Device("2031017-mz17", tmp_path / "new", served)
    request, approval = tmp_path / "request", tmp_path / "approval"
    request.write_bytes(msgspec.json.encode(anew.enrol_request()))
    command = ("device", "approve", str(request), "--zone", "mz", "--output", str(approval))
    done = served.shala(*command)
    assert (done.returncode, approval.exists()) == (2, False)
    assert "is another device's (was the disk changed? shala device approve ... --replace)" in done.stderr
    assert served.shala(*command, "--replace").returncode == 0


@pytest.mark.parametrize("raw", [b"", b"{}", b"x" * 100_000, b'{"key":"", "name":"x","signature":""}'])
@pytest.mark.parametrize("zone_centre", ["sqlite"], indirect=True)
def test_a_request_file_that_is_none_is_refused(zone_centre, tmp_path, raw):
    path = tmp_path / "request"
    path.write_bytes(raw)
    done = zone_centre.shala(
        "device", "approve", str(path), "--zone", "mz", "--output", str(tmp_path / "out")
    )
    assert (done.returncode, "is no request for enrolment" in done.stderr) == (2, True)
    assert "(on the server: shala-agent enrol --request FILE writes one)" in done.stderr
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


@pytest.mark.parametrize("name", ["none/file", "file/file", "folder"])
@pytest.mark.parametrize("zone_centre", ["sqlite"], indirect=True)
def test_what_cannot_be_written_is_one_line_and_nothing_is_done_at_the_centre(served, join, tmp_path, name):
    path, request = tmp_path / name, tmp_path / "request"
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    request.write_bytes(msgspec.json.encode(Device("2031018-mz18", tmp_path / "new", served).enrol_request()))
    moved = join("2031017-mz17")
    tokens = served.query("SELECT COUNT(*) FROM token")
    for command in (
        ("create", "--zone", "mz", "--token-file", str(path)),
        ("approve", str(request), "--zone", "mz", "--output", str(path)),
        ("move", moved.name, "--zone", "rj", "--output", str(path)),
    ):
        done = served.shala("device", *command)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert (str(path) in done.stderr, ".part" in done.stderr) == (True, False)
    assert served.query("SELECT COUNT(*) FROM token") == tokens
    (device,) = json.loads(served.shala("device", "list", "--json").stdout)["devices"]
    assert (device["name"], device["zone"]) == (moved.name, "mz")


@pytest.fixture
def as_said(served, tmp_path):
    """Run what a hint of the centre, which knows its address, ends with, on a school server."""
    served.url = f"http://127.0.0.1:{served.port}"
    config = tmp_path / "agent.toml"
    config.write_text(
        f'format = 1\n[paths]\nstate = "{tmp_path}/state"\n[identity]\nserver_name = "2031017-mz17"\n'
    )

    def run(hint: str, *more: str, stdin: str = ""):
        command = shlex.split(hint[hint.index("shala-agent ") :])
        line = ["--config", str(config), *command[1:], *more]
        return CliRunner().invoke(shala_agent, line, input=stdin, catch_exceptions=False)

    return run


@pytest.mark.parametrize("zone_centre", ["sqlite"], indirect=True)
@pytest.mark.parametrize("file", ["", "a token"], ids=["on the terminal", "in a file"])
def test_the_hint_beside_a_token_is_a_command_that_enrols(served, as_said, tmp_path, file):
    more = ("--token-file", str(tmp_path / file)) if file else ()
    made = served.shala("device", "create", "--zone", "mz", "--name", "2031017-mz17", *more)
    done = as_said(made.stderr, stdin=made.stdout)
    assert done.exit_code == 0, done.output
    assert "device of zone mz" in done.output


@pytest.mark.parametrize("zone_centre", ["sqlite"], indirect=True)
def test_the_hints_beside_approvals_are_commands_that_enrol(served, as_said, tmp_path):
    request, approval = tmp_path / "request", tmp_path / "an approval"
    assert as_said("shala-agent enrol", "--request", str(request)).exit_code == 0
    made = served.shala("device", "approve", str(request), "--zone", "mz", "--output", str(approval))
    assert "device of zone mz" in as_said(made.stdout.splitlines()[-1]).output
    moved = served.shala("device", "move", "2031017-mz17", "--zone", "rj", "--output", str(approval))
    assert "device of zone rj" in as_said(moved.stdout).output
    moved = served.shala("device", "move", "2031017-mz17", "--zone", "mz")
    assert "device of zone mz" in as_said(moved.stdout).output


@pytest.mark.parametrize("zone_centre", ["sqlite"], indirect=True)
def test_a_zone_shows_the_fingerprint_that_a_school_sees_when_it_enrols(served, as_said):
    made = served.shala("device", "create", "--zone", "mz", "--name", "2031017-mz17")
    assert "(there: shala zone show mz shows the same)" in as_said(made.stderr, stdin=made.stdout).output
    seen = json.loads(as_said(made.stderr, "--json", stdin=made.stdout).output)["centre"]
    assert re.fullmatch(r"([0-9a-f]{4} ){7}[0-9a-f]{4}", seen)
    assert json.loads(served.shala("zone", "show", "mz", "--json").stdout)["centre"] == seen
    assert f"The key of this centre: {seen} " in served.shala("zone", "show", "mz").stdout


def test_the_smallest_configuration_of_the_guide_is_one(request, tmp_path):
    guide = (request.config.rootpath / "docs/operator.md").read_text()
    (block,) = re.findall(r"```toml\n(# /etc/shala/central.toml\n.*?)```", guide, re.DOTALL)
    (tmp_path / "central.toml").write_text(block)
    assert read_config(tmp_path / "central.toml").zones == ZoneSettings(url="https://sync.example.org")


@pytest.mark.parametrize("url", ["", "https://sync.example.org"], ids=["unknown", "known"])
@pytest.mark.parametrize("zone_centre", ["sqlite"], indirect=True)
def test_an_approval_without_an_address_is_said_in_one_line(zone_centre, tmp_path, url):
    zone_centre.url = url
    request, approval = tmp_path / "request", str(tmp_path / "approval")
    device = Device("2031017-mz17", tmp_path / "device", zone_centre)
    request.write_bytes(msgspec.json.encode(device.enrol_request()))
    for command in (
        ("approve", str(request), "--zone", "mz", "--output", approval),
        ("move", device.name, "--zone", "rj", "--output", approval),
    ):
        done = zone_centre.shala("device", *command, "--json")
        assert done.returncode == 0
        said = [
            line.startswith("shala: zones.url in central.toml is empty") for line in done.stderr.splitlines()
        ]
        assert said == ([] if url else [True])
    assert zone_centre.shala("device", "move", device.name, "--zone", "mz").stderr == ""


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


def last_line(centre) -> str:
    return centre.shala("zone", "status", "mz").stdout.splitlines()[-1]


def test_who_was_sent_all_has_only_to_confirm_it_and_is_not_behind(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    lunglei.sync()
    aizawl.write(account("zo"))
    aizawl.sync()

    assert last_line(served).startswith("1 of 2 devices behind.")
    lunglei.open()  # as it does that only uploads
    lunglei.sync()
    assert last_line(served).startswith(
        "0 of 2 devices behind, 1 to confirm with the next sync what is there."
    )
    lunglei.sync()
    assert last_line(served).startswith("0 of 2 devices behind.")


def test_who_opens_sessions_and_fetches_nothing_is_behind(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.write(account("zo"))
    aizawl.sync()
    for _ in range(3):
        lunglei.open()
        assert last_line(served).startswith("1 of 2 devices behind.")


def test_who_comes_again_without_what_it_was_sent_is_behind_until_it_has_it(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.write(account("zo"))
    aizawl.sync()
    for _ in range(3):  # its disk is full
        named = lunglei.open().items
        assert lunglei.get(named[-1].id).status == 200
    assert last_line(served).startswith("1 of 2 devices behind.")
    lunglei.sync()
    lunglei.sync()
    aizawl.write(account("zodin"))
    aizawl.sync()
    assert last_line(served).startswith("1 of 2 devices behind.")
    lunglei.sync()
    assert last_line(served).startswith("0 of 2 devices behind, 1 to confirm")


def told(centre) -> list[int]:
    return [lag["to_be_told"] for lag in status(centre)["devices"]]


def test_a_redaction_names_who_has_yet_to_hear_of_it_and_status_counts_it_until_then(served, join):
    aizawl, lunglei, champhai = (join(f"203101{n}-mz1{n}") for n in (7, 8, 9))
    aizawl.write(account("zo"), progress("zo", 1))
    for device in (aizawl, lunglei, champhai):
        device.sync()
    assert served.shala("device", "revoke", champhai.name).returncode == 0
    done = served.shala("zone", "redact", "mz", "account", "zo", "--yes")
    assert done.stdout.splitlines()[-1] == (
        "Have yet to hear of it: 2031017-mz17, 2031018-mz18"
        " (shala zone status mz counts what each is to be told)"
    )
    assert told(served) == [2, 2, 0]
    assert ", 2 to be told of revocations or redactions." in last_line(served)
    lunglei.sync()
    assert told(served) == [2, 2, 0]  # whether it has kept what it was sent it says with the next one
    lunglei.sync()
    assert told(served) == [2, 0, 0]
    done = served.shala("zone", "redact", "mz", "progress", "zo/geometry", "--yes", "--json")
    assert json.loads(done.stdout)["to_be_told"] == [aizawl.name, lunglei.name]
    assert told(served) == [3, 1, 0]
    for _ in range(2):
        aizawl.sync()
    assert told(served) == [0, 1, 0]


def test_who_was_sent_a_redaction_and_lost_the_line_is_still_to_be_told(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.write(account("zo"))
    aizawl.sync()
    assert served.shala("zone", "redact", "mz", "account", "zo", "--yes").returncode == 0
    lunglei.open()
    assert told(served) == [1, 1]


def test_an_enrolment_is_nothing_that_others_are_to_be_told(served, join):
    join("2031017-mz17")
    join("2031018-mz18")
    assert told(served) == [0, 0]


def test_who_moved_is_to_be_told_again(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.write(account("zo"))
    aizawl.sync()
    assert served.shala("zone", "redact", "mz", "account", "zo", "--yes").returncode == 0
    for _ in range(2):
        lunglei.sync()
    assert told(served) == [1, 0]
    for zone in ("rj", "mz"):
        assert served.shala("device", "move", lunglei.name, "--zone", zone).returncode == 0
    assert told(served) == [2, 2]  # its own revocation, too


def test_what_is_known_of_a_device_is_of_all_its_epochs_and_nothing_before_it_spoke(served, join):
    aizawl = join()
    assert [
        line.split()[1:3] for line in served.shala("zone", "status").stdout.splitlines() if "mz17" in line
    ] == [["-", "0"]]
    aizawl.write(account("zo"), progress("zo", 1))
    aizawl.sync()
    aizawl.records.renew()
    aizawl.nonce = ""
    aizawl.open()
    (lag,) = status(served)["devices"]
    assert (lag["counter"], lag["held"], lag["up_entries"]) == (2, 2, 0)


def test_what_was_deleted_waits_for_nobody(served, join):
    aizawl = join()
    aizawl.write(gone := progress("zo", 1))
    aizawl.sync()
    assert status(served)["waiting"] == {"account/zo": 1}
    aizawl.write(gone._replace(value=None))
    aizawl.sync()
    assert status(served)["waiting"] == {}


def test_what_is_left_to_fetch_does_not_count_ones_own_and_is_nothing_for_who_was_revoked(served, join):
    devices = [join(f"203101{n}-mz1{n}") for n in range(4)]
    for device in devices:
        device.write(account(device.name))
        device.sync()
    assert [lag["down_entries"] for lag in status(served)["devices"]] == [3, 3, 3, 3]
    for device in devices[1:]:
        device.sync()
        device.open()  # with the cursor that says so
    devices[2].write(account("late"))
    devices[2].sync()
    assert served.shala("device", "revoke", devices[3].name).returncode == 0
    assert [lag["down_entries"] for lag in status(served)["devices"]] == [4, 1, 0, 0]


def test_a_zone_whose_servers_were_moved_is_not_one_that_never_had_any(served, join):
    aizawl = join("2031017-mz17")
    aizawl.write(account("zo"))
    aizawl.sync()
    assert served.shala("device", "move", aizawl.name, "--zone", "rj").returncode == 0
    shown = served.shala("zone", "status", "mz").stdout
    assert "1 record in 1 segment\n  no device now: who wrote here was moved (" in shown


def test_status_says_how_many_it_does_not_name(served, join):
    aizawl = join()
    aizawl.write(*(progress(f"stranger{number}", 1) for number in range(25)))
    aizawl.sync()
    shown = served.shala("zone", "status").stdout
    assert "no device yet (shala device create --zone rj --name SERVER)" in shown
    assert shown.count("waiting: 1 record for") == 20
    assert "and 5 more, waiting" in shown
    assert len(status(served)["waiting"]) == 25


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
    said = aizawl.sync_request()
    for one in (said, msgspec.structs.replace(said, software="shala-agent on a copy")):
        aizawl.send("POST", "/v1/sync", msgspec.json.encode(one))
    (fork,) = status(served)["forks"]
    assert fork.startswith("2031017-mz17: ")
    assert "shala device create" in fork


def test_a_redaction_stops_at_a_segment_that_cannot_be_read(served, join):
    aizawl = join()
    for user in ("zo", "ma"):
        aizawl.write(account(user))
        aizawl.sync()
    served.query('UPDATE segment SET data = ? WHERE "first" = 2', b"x" * 100)
    done = served.shala("zone", "redact", "mz", "account", "zo", "--yes")
    assert (done.returncode, "is damaged, nothing was forgotten" in done.stderr) == (1, True)
    assert len(done.stderr.splitlines()) == 1
    assert ("zo",) in served.query("SELECT key FROM record")


@pytest.mark.parametrize("answer", ["n\n", "\n", ""], ids=["no", "nothing", "end of file"])
@pytest.mark.parametrize("zone_centre", ["sqlite"], indirect=True)
def test_a_redaction_that_nobody_confirms_is_one_line_and_changes_nothing(served, join, answer):
    aizawl = join()
    aizawl.write(account("zo"))
    aizawl.sync()
    done = served.shala("zone", "redact", "mz", "account", "zo", stdin=answer)
    assert (done.returncode, done.stdout.strip()) == (2, "")
    assert "shala: not confirmed, nothing was changed" in done.stderr.splitlines()[-1]
    assert served.query("SELECT key FROM record") == [("zo",)]


@pytest.mark.parametrize("more", [(), ("--with-dependents",)], ids=["", "with dependents"])
def test_a_redaction_of_what_is_not_there_asks_nothing(served, join, more):
    aizawl = join()
    aizawl.write(account("zo"))
    aizawl.sync()
    done = served.shala("zone", "redact", "mz", "account", "nope", *more, stdin="y\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "shala: the zone mz has no entry of account nope (shala zone status tells what has not arrived)\n"
    )


def test_a_redaction_goes_on_with_a_yes(served, join):
    aizawl = join()
    aizawl.write(account("zo"))
    aizawl.sync()
    assert served.shala("zone", "redact", "mz", "account", "zo", stdin="y\n").returncode == 0
    assert served.query("SELECT key FROM record") == []


@pytest.fixture
def zos_records(served, join):
    """In the zone mz of zo: an account, progress, visits and a type that nobody knows; in rj an account."""
    aizawl, newer, ajmer = join("2031017-mz17"), join("2031019-mz19"), join("2081001-rj1", "rj")
    aizawl.write(
        account("zo"), progress("zo", 1), progress("zo", 2, "algebra"), Change("activity", "zo/1", {})
    )
    aizawl.write(account("zodin"), progress("zodin", 1))
    ajmer.write(account("zo"))
    for device in (aizawl, ajmer):
        device.sync()
    hologram = encode_entry(Entry("hologram", "zo/1", 1, 1, 0, "{}"))
    newer.open()
    newer.put(make_segment(newer.key, "mz", newer.records.epoch, 1, NONE, [hologram]).data)


def records_of(centre, user: str, *arguments: str) -> list[str]:
    done = centre.shala("zone", "records", "--user", user, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return [" ".join(one.values()) for one in json.loads(done.stdout)["records"]]


def test_all_records_of_a_user_are_listed_and_nobody_elses(served, zos_records):
    in_mz = ["mz account zo", "mz activity zo/1", "mz progress zo/algebra", "mz progress zo/geometry"]
    assert records_of(served, "zo") == [*in_mz, "rj account zo"]
    assert records_of(served, "zo", "--zone", "mz") == in_mz
    shown = served.shala("zone", "records", "--user", "zo").stdout
    assert "mz: 1 account, 1 activity, 2 progress" in shown
    assert "No record names nobody" in served.shala("zone", "records", "--user", "nobody").stdout


def test_a_redacted_account_names_what_else_names_the_user_and_how_it_goes_too(served, zos_records):
    done = served.shala("zone", "redact", "mz", "account", "zo", "--yes")
    assert done.returncode == 0, done.stderr
    assert "Left in mz, and naming zo: 1 activity, 2 progress" in done.stdout
    assert "shala zone redact mz account zo --with-dependents" in done.stdout
    assert "Left in rj, and naming zo: 1 account" in done.stdout
    assert len(records_of(served, "zo", "--zone", "mz")) == 3


def test_a_redaction_with_dependents_leaves_nothing_of_the_user_in_the_zone(served, zos_records, join):
    lunglei = join("2031018-mz18")
    asked = served.shala("zone", "redact", "mz", "account", "zo", "--with-dependents", stdin="y\n")
    assert "Forget account zo and what hangs on it (1 activity, 2 progress) in mz" in asked.stderr
    assert "Left in mz" not in asked.stdout
    assert records_of(served, "zo") == ["rj account zo"]
    lunglei.sync()
    assert set(lunglei.values()) == {("account", "zodin"), ("progress", "zodin/geometry")}
    for (data,) in served.query(
        "SELECT s.data FROM segment s JOIN zone z ON z.id = s.zone WHERE z.name = 'mz'"
    ):
        left = {names_of(raw) for _, raw in read_segment(bytes(data)).numbered()}
        assert not any("zo" in key.split("/") for _, key in left)


def test_who_redacts_an_account_that_is_gone_is_told_how_the_rest_goes(served, zos_records):
    for _ in range(2):
        done = served.shala("zone", "redact", "mz", "account", "zo", "--yes")
    assert done.returncode == 2
    assert "it has 1 activity, 2 progress: shala zone redact mz account zo --with-dependents" in done.stderr


def test_a_redaction_with_dependents_finds_them_after_the_account(served, zos_records):
    for more in ((), ("--with-dependents",)):
        done = served.shala("zone", "redact", "mz", "account", "zo", "--yes", "--json", *more)
    assert json.loads(done.stdout)["left"] == [{"zone": "rj", "type": "account", "records": 1}]
    assert records_of(served, "zo", "--zone", "mz") == []


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
    said = msgspec.json.decode(approval.read_bytes(), type=wire.EnrolAnswer)
    assert said.key == bytes(aizawl.key.verify_key).hex()
    aizawl.take_approval(said)
    aizawl.sync()
    assert status(served, "rj")["records"] == 1
    assert served.shala("device", "move", aizawl.name, "--zone", "rj").returncode == 2
