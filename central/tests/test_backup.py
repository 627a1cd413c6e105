"""The copies of the archive's tables: made when they are whole, put back when they are not."""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyrage
import pytest
from central_school import School, received, tree_of
from power_cut import Crash, steps
from shala_central import copies as copies_module
from shala_central.archive import Archive
from shala_central.backup import _TURN, _put_back, back_up, damaged_tables, put_back
from shala_central.checkout import checkout
from shala_central.commit import changing
from shala_central.failure import CentralError
from shala_central.history import History, HistoryError
from shala_central.integrity import SecondCopy, damaged_objects, repair
from shala_central.retention import prune
from shala_central.verify import verify
from shala_central.versions import NotRemembered, files_of, version_of, versions_of


@pytest.fixture
def archive(centre) -> Archive:
    centre.archive.open()
    return centre.archive


def deliver(archive: Archive, school: School, number: int) -> None:
    school.sequence = number
    school.items = {"db": "ok", "logs": "ok"}
    received(archive, school, files_on(number))


def files_on(number: int) -> dict[str, bytes]:
    return {
        "gstudio/db/a": b"%d " % number * 3000,
        "gstudio/logs/l": b"line\n" * number,
        "gstudio/logs/sometimes": b"%d" % (number // 4),
    }


def spoil(path: Path) -> None:
    """Overwrite a table as a failing disk does; what SQLite keeps beside it goes with it."""
    for left in ("-wal", "-shm"):
        path.with_name(path.name + left).unlink(missing_ok=True)
    path.write_bytes(b"no table at all" * 1000)


def numbers(archive: Archive, school: School) -> list[int]:
    return [version.sequence for version in versions_of(archive, school.name)]


def test_a_damaged_history_comes_back_with_what_was_newest_at_its_copy(archive, school, tmp_path):
    for number in (1, 2, 3):
        deliver(archive, school, number)
    assert back_up(archive) == []
    deliver(archive, school, 4)
    deliver(archive, school, 5)
    spoil(archive.hidden / "history.sqlite")
    assert [found.path for found in damaged_tables(archive)] == ["history.sqlite"]
    (done,) = put_back(archive)
    assert done.copied
    assert "up to 1 collections between 3 and the newest" in done.lost[0]
    assert numbers(archive, school) == [1, 2, 3, 5]
    for version in versions_of(archive, school.name):
        folder = tmp_path / str(version.sequence)
        checkout(archive, version, folder)
        assert tree_of(folder) == files_on(version.sequence)
    assert damaged_tables(archive) == []


def test_a_copy_is_never_made_of_a_damaged_table_nor_of_an_empty_one(archive, school):
    deliver(archive, school, 1)
    deliver(archive, school, 2)
    back_up(archive)
    table, copy = archive.hidden / "history.sqlite", archive.hidden / "backup/history.sqlite"
    before = copy.read_bytes()
    spoil(table)
    assert back_up(archive)
    table.unlink()
    assert "is gone" in back_up(archive)[0].problem
    sqlite3.connect(table).executescript("CREATE TABLE collection (id); PRAGMA user_version = 1").close()
    assert "is empty" in back_up(archive)[0].problem
    assert copy.read_bytes() == before
    put_back(archive)
    assert numbers(archive, school) == [1, 2]


@pytest.mark.parametrize("name", ["history.sqlite", "cold.sqlite", "encrypted.sqlite"])
@pytest.mark.parametrize("left", [None, b""])
def test_a_table_that_is_gone_is_named_and_never_made_anew(centre, archive, school, name, left):
    encrypting = Archive(
        archive.root,
        recipients=[str(pyrage.x25519.Identity.generate().to_public())],
        sensitive_items=["logs"],
    )
    for number in (1, 2):
        deliver(encrypting, school, number)
    prune(encrypting, keep_days=10_000, keep_months=0)
    assert back_up(archive) == []
    table, copy = archive.hidden / name, archive.hidden / "backup" / name
    before = copy.read_bytes()
    spoil(table)
    table.unlink()
    if left is not None:
        table.write_bytes(left)
    uses = {
        "history.sqlite": lambda: versions_of(archive, school.name),
        "cold.sqlite": lambda: archive.objects.cold.has(school.name, "00" * 32),
        "encrypted.sqlite": lambda: archive.objects.ciphertexts.items(school.name),
    }
    archive = Archive(archive.root)
    with pytest.raises(
        CentralError, match=rf"{name} is gone \(shala archive repair puts back the copy of 20"
    ):
        uses[name]()
    assert (table.read_bytes() if table.exists() else None) == left
    assert f"{name} is gone" in centre.shala("archive", "scrub").stdout
    assert copy.read_bytes() == before
    mended = centre.shala("archive", "repair")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert damaged_objects(Archive(archive.root), school.name) == []
    assert numbers(Archive(archive.root), school) == [1, 2]


@pytest.mark.parametrize("name", ["history.sqlite", "cold.sqlite", "encrypted.sqlite"])
def test_nothing_is_pruned_while_a_table_is_damaged_or_gone(archive, school, name):
    for number in (1, 2):
        deliver(archive, school, number)
    prune(archive, keep_days=10_000, keep_months=0)
    archive.objects.ciphertexts._table._opened()
    back_up(archive)
    spoil(archive.hidden / name)
    for _ in range(2):
        with pytest.raises(CentralError, match=f"nothing is removed while .*{name} is (damaged|gone)"):
            prune(Archive(archive.root), keep_days=0, keep_months=0)
        (archive.hidden / name).unlink(missing_ok=True)
    put_back(Archive(archive.root))
    assert prune(Archive(archive.root), keep_days=10_000, keep_months=0).left_alone == {}


def test_the_copy_before_the_last_one_is_kept_of_every_table_but_where_something_was_taken_out_of_it(
    archive, school
):
    for number in (1, 2):
        deliver(archive, school, number)
    prune(archive, keep_days=10_000, keep_months=0)
    folder = archive.hidden / "backup"
    for _ in range(2):
        back_up(archive)
    assert {path.name for path in folder.glob("*.1")} == {"cold.sqlite.1", "history.sqlite.1", "records.1"}
    back_up(archive, keep_packed=False)
    assert {path.name for path in folder.glob("*.1")} == {"history.sqlite.1", "records.1"}


@pytest.mark.parametrize("way", ["lock", "full"])
def test_a_table_that_is_locked_or_on_a_full_disk_is_not_taken_for_a_damaged_one(
    archive, school, monkeypatch, way
):
    for number in (1, 2):
        deliver(archive, school, number)
    back_up(archive)
    table = archive.hidden / "history.sqlite"
    if way == "lock":
        monkeypatch.setattr(copies_module, "BUSY_SECONDS", 0.1)
        other = sqlite3.connect(table)
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("UPDATE collection SET server = server")
        with pytest.raises(CentralError, match="cannot be looked at now: database is locked"):
            put_back(archive)
        assert "is not copied" in back_up(archive)[0].problem
        other.rollback()
        other.close()
    else:
        before = table.read_bytes()
        spoil(table)

        def full(_source: Path, target: Path) -> None:
            target.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copyfile", full)
            with pytest.raises(CentralError, match="is not put back: No space left on device"):
                put_back(archive)
        assert table.read_bytes() != before, "the damaged one stays in its place"
        assert [path.name for path in archive.hidden.glob(".*.part")] == []
        put_back(archive)
    assert numbers(archive, school) == [1, 2]


def test_a_power_cut_while_a_table_is_put_back_leaves_no_log_of_another_beside_it_and_no_way_back_out(
    tmp_path, school, monkeypatch
):
    for crash_at in range(1, 40):
        archive = Archive(tmp_path / str(crash_at))
        archive.open()
        for number in (1, 2, 3):
            deliver(archive, school, number)
        back_up(archive)
        deliver(archive, school, 4)
        table, copy = archive.hidden / "history.sqlite", archive.hidden / "backup/history.sqlite"
        log = table.with_name("history.sqlite-wal")
        other = sqlite3.connect(table)
        other.execute("DELETE FROM collection")
        other.commit()
        deletes = log.read_bytes()
        other.close()
        table.write_bytes(b"no table at all")
        log.write_bytes(deletes)
        with monkeypatch.context() as patch:
            done = steps(patch, crash_at, (shutil, "copyfile"), (History, "add"))
            try:
                _put_back(archive, table, copy)
            except Crash:
                finished = False
            else:
                finished = True
        put_back(archive)
        assert numbers(archive, school) == [1, 2, 3, 4], done
        assert [len(list(files_of(archive, version))) for version in versions_of(archive, school.name)] == [
            3
        ] * 4
        assert (archive.hidden / "backup/history.sqlite.damaged").read_bytes().startswith(b"no table")
        if finished:
            break
    assert finished
    assert crash_at > 5


def test_what_copies_and_what_puts_back_waits_for_the_other(archive, school):
    for number in (1, 2):
        deliver(archive, school, number)
    started, done = threading.Event(), threading.Event()

    def copy() -> None:
        started.set()
        back_up(archive)
        done.set()

    with archive.turn(_TURN):
        thread = threading.Thread(target=copy)
        thread.start()
        started.wait()
        assert not done.wait(0.5)
        assert not (archive.hidden / "backup/history.sqlite").exists()
    thread.join()
    assert (archive.hidden / "backup/history.sqlite").exists()


def test_a_power_cut_between_the_records_and_the_table_of_a_copy_loses_no_way_back(archive, school):
    for number in (1, 2):
        deliver(archive, school, number)
    back_up(archive)
    deliver(archive, school, 3)
    back_up(archive)
    folder = archive.hidden / "backup"
    (folder / "history.sqlite.1").replace(folder / "history.sqlite")  # the new records, the old table
    deliver(archive, school, 4)
    spoil(archive.hidden / "history.sqlite")
    (done,) = put_back(archive)
    assert done.lost == []
    assert numbers(archive, school) == [1, 2, 3, 4]
    assert [len(list(files_of(archive, version))) for version in versions_of(archive, school.name)] == [3] * 4


def test_where_the_last_copy_is_damaged_too_the_one_before_is_put_back(archive, school):
    deliver(archive, school, 1)
    deliver(archive, school, 2)
    back_up(archive)
    deliver(archive, school, 3)
    back_up(archive)
    spoil(archive.hidden / "backup/history.sqlite")
    spoil(archive.hidden / "history.sqlite")
    put_back(archive)
    assert numbers(archive, school) == [1, 2, 3]


def test_what_was_packed_comes_back_with_the_copy_of_its_table(archive, school):
    for number in (1, 2, 3):
        deliver(archive, school, number)
    prune(archive, keep_days=10_000, keep_months=0)
    back_up(archive)
    archive.objects.cold._opened().close()
    spoil(archive.hidden / "cold.sqlite")
    archive = Archive(archive.root, archive.objects.shared_items)
    assert [found.path for found in damaged_tables(archive)] == ["cold.sqlite"]
    put_back(archive)
    assert damaged_objects(Archive(archive.root, archive.objects.shared_items), school.name) == []


def test_a_second_copy_that_has_the_tables_of_the_backup_alone_gives_what_is_packed(
    archive, school, tmp_path
):
    for number in (1, 2):
        deliver(archive, school, number)
    prune(archive, keep_days=10_000, keep_months=0)
    back_up(archive)
    left_out = shutil.ignore_patterns("????", "cold.sqlite-*")
    copy = shutil.copytree(archive.root, tmp_path / "copy", ignore=left_out)
    (copy / ".shala/cold.sqlite").unlink()
    cold = archive.objects.cold
    cold.remove(school.name, [digest for digest, _ in cold.stored(school.name)])
    lost = [found.path for found in damaged_objects(archive, school.name)]
    assert lost
    assert repair(archive, school.name, SecondCopy(archive, copy)).mended == lost


def test_a_table_without_any_copy_is_named_and_left(archive, school):
    deliver(archive, school, 1)
    deliver(archive, school, 2)
    spoil(archive.hidden / "history.sqlite")
    assert "there is no copy of it" in damaged_tables(archive)[0].problem
    assert put_back(archive)[0].copied == ""
    with pytest.raises(HistoryError):
        versions_of(archive, school.name)


def test_with_a_damaged_history_what_needs_none_goes_on_and_it_is_told_once(centre, archive, school):
    centre.schools.append(school)
    school.port = 22
    for number in (1, 2):
        deliver(archive, school, number)
    assert centre.shala("archive", "scrub").returncode == 0
    spoil(archive.hidden / "history.sqlite")
    verified = centre.shala("archive", "verify")
    assert verified.returncode == 3
    assert verified.stdout.count("history.sqlite") == 1
    assert "1 of 1 server undamaged" in verified.stdout
    logged = centre.shala("archive", "log", school.name, "--json")
    assert (logged.returncode, len(json.loads(logged.stdout)["collections"])) == (3, 1)
    assert "collection 2" in centre.shala("archive", "show", school.name).stdout
    assert school.name in centre.shala("archive", "status").stdout
    assert centre.shala("archive", "scrub").returncode == 1
    mended = centre.shala("archive", "repair")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "history.sqlite: the copy of " in mended.stdout
    assert centre.shala("archive", "verify").returncode == 0
    assert numbers(archive, school) == [1, 2]


def test_a_damaged_table_of_packed_contents_does_not_pass(centre, archive, school):
    deliver(archive, school, 1)
    deliver(archive, school, 2)
    prune(archive, keep_days=10_000, keep_months=0)
    spoil(archive.hidden / "cold.sqlite")
    done = centre.shala("archive", "verify")
    assert done.returncode == 3
    assert "cold.sqlite is damaged" in done.stdout
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(archive.hidden / "cold.sqlite").execute("SELECT * FROM cold")


def test_who_only_looks_writes_nothing_into_a_table(archive, school):
    for number in (1, 2):
        deliver(archive, school, number)
    table = archive.hidden / "history.sqlite"
    before = (table.read_bytes(), table.stat().st_mtime_ns)
    assert numbers(archive, school) == [1, 2]
    assert archive.objects.cold.has(school.name, "00" * 32) is False
    assert (table.read_bytes(), table.stat().st_mtime_ns) == before


def test_between_a_commit_and_its_place_in_the_history_no_collection_is_told_as_damaged(
    archive, school, monkeypatch
):
    for number, school.year in ((1, 2026), (2, 2026), (3, 2027)):
        deliver(archive, school, number)
    with monkeypatch.context() as patch:
        patch.setattr(History, "add", off)
        with pytest.raises(Crash):
            deliver(archive, school, 4)
    with pytest.raises(NotRemembered, match="is finished by the next pull"):
        list(files_of(archive, version_of(archive, school.name, 1)))
    assert verify(archive, school.name) == []
    files = History.files

    def finished_meanwhile(*arguments: Any) -> Iterator[bytes]:
        lines = files(*arguments)
        with changing(archive, school.name):
            return lines

    with monkeypatch.context() as patch:
        patch.setattr(History, "files", finished_meanwhile)
        with pytest.raises(NotRemembered):
            list(files_of(archive, version_of(archive, school.name, 1)))
    deliver(archive, school, 5)
    assert [len(list(files_of(archive, version))) for version in versions_of(archive, school.name)] == [3] * 5


def off(*_arguments: object) -> None:
    raise Crash
