"""The copies of the archive's tables: made when they are whole, put back when they are not."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from central_school import School, received
from shala_central.archive import Archive
from shala_central.backup import back_up, damaged_tables, put_back
from shala_central.history import HistoryError
from shala_central.integrity import damaged_objects


@pytest.fixture
def archive(centre) -> Archive:
    centre.archive.open()
    return centre.archive


def deliver(archive: Archive, school: School, number: int) -> None:
    school.sequence = number
    school.items = {"db": "ok", "logs": "ok"}
    received(archive, school, files_of(number))


def files_of(number: int) -> dict[str, bytes]:
    return {"gstudio/db/a": b"%d " % number * 3000, "gstudio/logs/l": b"line\n" * number}


def spoil(path: Path) -> None:
    """Overwrite a table as a failing disk does; what SQLite keeps beside it goes with it."""
    for left in ("-wal", "-shm"):
        path.with_name(path.name + left).unlink(missing_ok=True)
    path.write_bytes(b"no table at all" * 1000)


def numbers(archive: Archive, school: School) -> list[int]:
    return [version.sequence for version in archive.versions(school.name)]


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
    for version in archive.versions(school.name):
        folder = tmp_path / str(version.sequence)
        archive.checkout(version, folder)
        found = {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        assert found == files_of(version.sequence)
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
    with archive.history():
        pass
    assert "is empty" in back_up(archive)[0].problem
    assert copy.read_bytes() == before
    put_back(archive)
    assert numbers(archive, school) == [1, 2]


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
    archive.prune(keep_days=10_000, keep_months=0)
    back_up(archive)
    archive.objects.cold._opened().close()
    spoil(archive.hidden / "cold.sqlite")
    archive = Archive(archive.root)
    assert [found.path for found in damaged_tables(archive)] == ["cold.sqlite"]
    put_back(archive)
    assert damaged_objects(Archive(archive.root), school.name) == []


def test_a_table_without_any_copy_is_named_and_left(archive, school):
    deliver(archive, school, 1)
    deliver(archive, school, 2)
    spoil(archive.hidden / "history.sqlite")
    assert "there is no copy of it" in damaged_tables(archive)[0].problem
    assert put_back(archive)[0].copied == ""
    with pytest.raises(HistoryError):
        archive.versions(school.name)


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
    archive.prune(keep_days=10_000, keep_months=0)
    spoil(archive.hidden / "cold.sqlite")
    done = centre.shala("archive", "verify")
    assert done.returncode == 3
    assert "cold.sqlite is damaged" in done.stdout
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(archive.hidden / "cold.sqlite").execute("SELECT * FROM cold")
