"""A bit that changes within a row of a table: named, never copied, put back, and nothing else lost."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from central_school import School, received, tree_of
from shala_central import row_mending
from shala_central.archive import Archive
from shala_central.backup import back_up, damaged_tables, put_back
from shala_central.checkout import checkout
from shala_central.failure import CentralError
from shala_central.history import HistoryError, _read_record
from shala_central.integrity import damaged_objects, scrub
from shala_central.retention import prune
from shala_central.versions import files_of, versions_of

WRONG = "1 row is not what was written"


@pytest.fixture
def archive(centre) -> Archive:
    centre.archive.open()
    return centre.archive


@pytest.fixture
def deliver(archive: Archive, school: School) -> Callable[..., None]:
    """Let the school deliver collections, by their numbers."""

    def days(*numbers: int) -> None:
        for number in numbers:
            school.sequence = number
            received(archive, school, files_on(number), f"2026-11-{number:02d}T00:00:00+00:00")

    return days


def files_on(number: int) -> dict[str, bytes]:
    return {"gstudio/db/a": b"%d " % number * 3000, "gstudio/logs/l": b"line %d\n" % number * 500}


def run(table: Path, statement: str, *values: object) -> list[tuple]:
    with closing(sqlite3.connect(table)) as db, db:
        return db.execute(statement, values).fetchall()


def settled(table: Path) -> bytes:
    run(table, "PRAGMA wal_checkpoint(TRUNCATE)")
    return table.read_bytes()


def flip(table: Path, within: bytes, *, key: str, bit: int = 1) -> None:
    """Change one bit of the row that has these bytes, near their end; `key` is what else it holds."""
    raw, before = settled(table), rows_of(table)
    begin = raw.find(within)
    while begin >= 0:  # freed pages have them too
        damaged = bytearray(raw)
        damaged[begin + len(within) - 3] ^= bit
        table.write_bytes(damaged)
        changed = [row for row, now in zip(before, rows_of(table), strict=True) if row != now]
        if len(changed) == 1 and key in map(str, changed[0]):
            break
        begin = raw.find(within, begin + 1)
    assert begin >= 0
    assert run(table, "PRAGMA quick_check(1)") == [("ok",)], "the structure is whole"


def of_collection(table: Path, column: str, number: int) -> bytes:
    """Return the end of a value of a collection: the rest may lie on another page."""
    ((value,),) = run(table, f"SELECT CAST({column} AS BLOB) FROM collection WHERE sequence = ?", number)
    return bytes(value)[-40:]


def rows_of(table: Path) -> list[tuple]:
    name = "collection" if "history" in table.name else "cold"
    with closing(sqlite3.connect(table)) as db:
        db.text_factory = bytes
        return db.execute(f"SELECT * FROM {name}").fetchall()


def numbers(archive: Archive, school: School) -> list[int]:
    return [version.sequence for version in versions_of(archive, school.name)]


def all_come_back(archive: Archive, school: School, folder: Path) -> None:
    for version in versions_of(archive, school.name):
        target = folder / str(version.sequence)
        checkout(archive, version, target)
        assert tree_of(target) == files_on(version.sequence)


@pytest.mark.parametrize("column", ["record", "changes", "pulled", "sum"])
def test_a_bit_that_changes_in_a_collection_is_named_never_copied_and_put_back_with_nothing_lost(
    centre, archive, school, deliver, tmp_path, column
):
    deliver(1, 2, 3)
    assert back_up(archive) == []
    deliver(4, 5)
    table, copy = archive.hidden / "history.sqlite", archive.hidden / "backup/history.sqlite"
    before, copied = rows_of(table), copy.read_bytes()
    flip(table, of_collection(table, column, 2), key=str(b"2026-11-02T00:00:00+00:00"))
    verified = centre.shala("archive", "verify")
    assert (verified.returncode, WRONG in verified.stdout) == (3, True)
    assert f"collection 2 of {school.name}" in verified.stdout
    for _ in range(2):
        scrubbed = centre.shala("archive", "scrub", "--days", "1")
        assert (scrubbed.returncode, WRONG in scrubbed.stdout) == (1, True)
    assert copy.read_bytes() == copied
    mended = centre.shala("archive", "repair")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "history.sqlite: 1 row of the copy of 20" in mended.stdout
    assert rows_of(table) == before
    assert damaged_tables(archive) == []
    all_come_back(archive, school, tmp_path / "out")


@pytest.mark.parametrize("column", ["packed", "sha256"])
def test_a_bit_that_changes_in_what_is_packed_is_named_never_copied_and_put_back_with_nothing_lost(
    centre, archive, school, deliver, tmp_path, column
):
    deliver(1, 2)
    prune(archive, keep_days=10_000, keep_months=0)
    assert back_up(archive) == []
    table, copy = archive.hidden / "cold.sqlite", archive.hidden / "backup/cold.sqlite"
    ((sha256, value),) = run(table, f"SELECT sha256, {column} FROM cold ORDER BY sha256 LIMIT 1")
    deliver(3, 4)
    prune(archive, keep_days=10_000, keep_months=0)
    before, copied = rows_of(table), copy.read_bytes()
    assert len(before) > len(rows_of(copy))
    flip(table, value[-40:], key=str(sha256))
    assert WRONG in centre.shala("archive", "verify").stdout
    for _ in range(2):
        assert WRONG in centre.shala("archive", "scrub").stdout
    assert copy.read_bytes() == copied
    with pytest.raises(CentralError, match=f"nothing is removed while .*{WRONG}"):
        prune(Archive(archive.root), keep_days=0, keep_months=0)
    mended = centre.shala("archive", "repair")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert rows_of(table) == before
    archive = Archive(archive.root, archive.objects.shared_items)
    assert scrub(archive, 1).damage == damaged_objects(archive, school.name) == []
    all_come_back(archive, school, tmp_path / "out")


@pytest.mark.parametrize("older", [False, True], ids=["with sums", "of an older shala"])
def test_where_the_newest_copy_has_the_row_damaged_too_it_comes_from_the_one_before(
    archive, school, deliver, tmp_path, older
):
    deliver(1, 2, 3)
    assert back_up(archive) == back_up(archive) == []
    table, folder = archive.hidden / "history.sqlite", archive.hidden / "backup"
    before = rows_of(table)
    key = str(b"2026-11-02T00:00:00+00:00")
    flip(table, school.name.encode(), key=key, bit=0x80)
    if older:
        run(folder / "history.sqlite.1", "ALTER TABLE collection DROP COLUMN sum")
    flip(folder / "history.sqlite", of_collection(folder / "history.sqlite", "changes", 2), key=key)
    assert WRONG in damaged_tables(archive)[0].problem
    (done,) = put_back(archive)
    assert (done.rows, done.is_good, done.lost) == (1, True, [])
    assert rows_of(table) == before
    all_come_back(archive, school, tmp_path / "out")


def test_what_was_merged_into_a_damaged_collection_since_the_copy_is_merged_into_it_again(
    archive, school, deliver, tmp_path
):
    deliver(1, 2, 3, 4, 5, 6)
    assert back_up(archive) == []
    table = archive.hidden / "history.sqlite"
    with archive.history() as history:
        history.forget(history.versions(school.name)[2:4])
    before = rows_of(table)
    flip(table, of_collection(table, "changes", 2), key=str(b"2026-11-02T00:00:00+00:00"))
    (done,) = put_back(archive)
    assert (done.rows, done.left, done.lost) == (1, 0, [])
    assert rows_of(table) == before
    assert numbers(archive, school) == [1, 2, 5, 6]
    all_come_back(archive, school, tmp_path / "out")


def test_a_damaged_collection_that_no_copy_has_is_named_and_stays(centre, archive, school, deliver):
    deliver(1, 2)
    assert back_up(archive) == []
    deliver(3, 4)
    table = archive.hidden / "history.sqlite"
    for number in (1, 3):
        value = of_collection(table, "changes", number)
        flip(table, value, key=str(b"2026-11-%02dT00:00:00+00:00" % number))
    assert "2 rows are not what was written" in damaged_tables(archive)[0].problem
    mended = centre.shala("archive", "repair")
    assert mended.returncode == 3, mended.stdout
    assert "1 damaged row left" in mended.stdout
    assert f"collection 3 of {school.name}: no copy has it whole" in mended.stdout
    assert f"(collection 3 of {school.name})" in damaged_tables(archive)[0].problem
    assert numbers(archive, school) == [1, 2, 3, 4]
    with archive.history() as history, pytest.raises(HistoryError, match=r"collection 3 .* is damaged"):
        history.mark(history.versions(school.name)[2], "note.txt", b"a new sum would hide it")


def lost_collection(archive: Archive, deliver, number: int) -> Path:
    """Let a collection be damaged before the night's copy of it."""
    deliver(1, 2)
    assert back_up(archive) == []
    deliver(3, 4, 5)
    table = archive.hidden / "history.sqlite"
    at = str(b"2026-11-%02dT00:00:00+00:00" % number)
    flip(table, of_collection(table, "changes", number), key=at)
    return table


def test_a_row_that_no_copy_has_stops_neither_the_copies_nor_the_pruning_of_other_servers(
    centre, archive, school, deliver
):
    table = lost_collection(archive, deliver, 3)
    assert centre.shala("archive", "repair").returncode == 3
    (damage,) = back_up(archive)
    assert (
        "(shala archive repair puts back what a copy has whole, --give-up forgets what none" in damage.problem
    )
    assert rows_of(archive.hidden / "backup/history.sqlite") == rows_of(table)
    left = prune(archive, keep_days=10_000, keep_months=0).left_alone
    assert "collection 3 of" in left[school.name]
    assert "--give-up" in left[school.name]
    deliver(6)
    back_up(archive)
    assert rows_of(archive.hidden / "backup/history.sqlite") == rows_of(table)


def test_a_row_that_a_copy_has_is_mended_before_anything_is_copied_or_removed(archive, deliver):
    table = lost_collection(archive, deliver, 1)
    copied = (archive.hidden / "backup/history.sqlite").read_bytes()
    assert WRONG in back_up(archive)[0].problem
    assert (archive.hidden / "backup/history.sqlite").read_bytes() == copied
    with pytest.raises(CentralError, match=f"nothing is removed while {table} is damaged: {WRONG}"):
        prune(archive, keep_days=10_000, keep_months=0)


@pytest.mark.parametrize("number", [1, 3, 4])
def test_a_row_that_is_given_up_takes_with_it_what_cannot_be_read_without_it_and_nothing_else(
    centre, archive, school, deliver, tmp_path, number
):
    table = lost_collection(archive, deliver, number)
    for copy in (archive.hidden / "backup").glob("history.sqlite*"):
        copy.unlink()
    done = centre.shala("archive", "repair", "--give-up")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "history.sqlite: 1 damaged row given up" in done.stdout
    assert f"collection {number} of {school.name}: given up" in done.stdout
    assert damaged_tables(archive) == back_up(archive) == []
    kept = numbers(archive, school)
    assert {*range(number + 1, 6)} <= {*kept} <= {1, 2, 3, 4, 5} - {number}
    all_come_back(archive, school, tmp_path / "out")
    assert prune(archive, keep_days=10_000, keep_months=0).left_alone == {}
    assert rows_of(table) == rows_of(archive.hidden / "backup/history.sqlite")


def test_a_row_of_which_the_servers_name_is_damaged_can_be_given_up(
    centre, archive, school, deliver, tmp_path
):
    table = lost_collection(archive, deliver, 3)
    run(table, "UPDATE collection SET server = CAST(? AS TEXT) WHERE sequence = 3", b"203\xff017-mz17")
    refused = centre.shala("archive", "prune")
    assert (refused.returncode, "nothing is removed" in refused.stderr) == (1, True)
    assert "Traceback" not in refused.stderr
    done = centre.shala("archive", "repair", "--give-up")
    assert done.returncode == 0, done.stdout + done.stderr
    assert damaged_tables(archive) == []
    all_come_back(archive, school, tmp_path / "out")


def test_a_row_that_only_a_second_copy_of_the_archive_has_comes_from_there(
    centre, archive, school, deliver, tmp_path
):
    deliver(1, 2, 3, 4)
    second = shutil.copytree(archive.root, tmp_path / "second")
    table, there = archive.hidden / "history.sqlite", second / ".shala"
    before, files = rows_of(table), sorted(there.iterdir())
    flip(table, of_collection(table, "changes", 2), key=str(b"2026-11-02T00:00:00+00:00"))
    done = centre.shala("archive", "repair", "--from", str(second))
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows_of(table) == before
    assert sorted(there.iterdir()) == files, "nothing is written there"
    all_come_back(archive, school, tmp_path / "out")


def test_a_record_of_which_a_bit_has_changed_is_never_handed_out_though_it_can_be_unpacked(
    centre, archive, school, deliver, tmp_path
):
    deliver(1, 2, 3)
    table = archive.hidden / "history.sqlite"
    ((record,),) = run(table, "SELECT record FROM collection WHERE sequence = 2")
    good = _read_record(record)
    for place, bit in itertools.product(range(len(record)), range(8)):
        flipped = bytes([*record[:place], record[place] ^ 1 << bit, *record[place + 1 :]])
        with contextlib.suppress(ValueError):
            if _read_record(flipped) != good:
                break
    run(table, "UPDATE collection SET record = ? WHERE sequence = 2", flipped)
    target = tmp_path / "export.tar"
    done = centre.shala("archive", "export", school.name, "--number", "2", "--to", str(target))
    assert (done.returncode, f"collection 2 of {school.name} is damaged" in done.stderr) == (1, True)
    assert not target.exists()


def test_a_bit_that_makes_another_type_of_a_value_is_mended_too(archive, school, deliver, tmp_path):
    table = three_days_packed(archive, deliver)["cold"]
    assert back_up(archive) == []
    before = rows_of(table)
    ((sha256,),) = run(table, "SELECT sha256 FROM cold ORDER BY sha256 LIMIT 1")
    run(table, "UPDATE cold SET sha256 = CAST(? AS TEXT) WHERE sha256 = ?", sha256, sha256)
    assert WRONG in damaged_tables(archive)[0].problem
    (done,) = put_back(archive)
    assert (done.rows, done.left) == (1, 0)
    assert rows_of(table) == before


def test_a_cut_between_putting_rows_back_and_merging_them_changes_nothing(
    archive, school, deliver, monkeypatch
):
    deliver(1, 2, 3, 4, 5, 6)
    assert back_up(archive) == []
    table = archive.hidden / "history.sqlite"
    with archive.history() as history:
        history.forget(history.versions(school.name)[2:4])
    flip(table, of_collection(table, "changes", 2), key=str(b"2026-11-02T00:00:00+00:00"))
    with monkeypatch.context() as cut:
        cut.setattr(row_mending, "_merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            put_back(archive)
    assert WRONG in damaged_tables(archive)[0].problem
    put_back(archive)
    assert numbers(archive, school) == [1, 2, 5, 6]
    assert damaged_tables(archive) == damaged_objects(archive, school.name) == []


def test_packed_content_of_which_no_copy_has_the_row_comes_of_a_second_copy_of_the_archive(
    centre, archive, school, deliver, tmp_path
):
    deliver(1, 2)
    prune(archive, keep_days=10_000, keep_months=0)
    archive.objects.cold.settle()
    second = shutil.copytree(archive.root, tmp_path / "second")
    table = archive.hidden / "cold.sqlite"
    ((sha256, packed),) = run(table, "SELECT sha256, packed FROM cold ORDER BY sha256 LIMIT 1")
    flip(table, packed[-40:], key=str(sha256))
    alone = centre.shala("archive", "repair")
    assert alone.returncode != 0
    assert f"{sha256.hex()}: no copy has it whole" in alone.stdout
    mended = centre.shala("archive", "repair", "--from", str(second))
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert damaged_tables(archive) == damaged_objects(archive, school.name) == []
    assert centre.shala("archive", "scrub", "--days", "1").returncode == 0
    all_come_back(archive, school, tmp_path / "out")


def test_a_bit_that_changes_in_an_index_is_named_and_mended_without_a_copy(archive, school, deliver):
    deliver(1, 2, 3)
    table = archive.hidden / "history.sqlite"
    raw, before = settled(table), rows_of(table)
    begin = 0
    while not damaged_tables(archive):  # until it is in the index and in use
        begin = raw.index(b"2026-11-02T", begin + 1)
        table.write_bytes(raw[:begin] + b"3" + raw[begin + 1 :])
        if rows_of(table) != before:
            table.write_bytes(raw)
    assert "index" in damaged_tables(archive)[0].problem
    assert [len(found.path) > 0 for found in back_up(archive)] == [True]
    (done,) = put_back(archive)
    assert (done.rows, done.is_good) == (0, True)
    assert damaged_tables(archive) == back_up(archive) == []
    assert rows_of(table) == before


def three_days_packed(archive: Archive, deliver: Callable[..., None]) -> dict[str, Path]:
    """Return the files of both tables, by the names of the tables in them; nobody has them open."""
    deliver(1, 2, 3)
    prune(archive, keep_days=10_000, keep_months=0)
    archive.objects.cold._opened().close()
    archive.objects.cold._db = None
    return {"collection": archive.hidden / "history.sqlite", "cold": archive.hidden / "cold.sqlite"}


def take_sums_away(table: Path, name: str, version: int) -> None:
    """Leave a table as an older shala has written it."""
    run(table, f"ALTER TABLE {name} DROP COLUMN sum")
    run(table, f"PRAGMA user_version = {version}")


@pytest.mark.parametrize("version", [1, 2])
def test_rows_that_an_older_shala_has_written_get_their_sums_with_the_next_copy(
    archive, school, deliver, tmp_path, version
):
    tables = three_days_packed(archive, deliver)
    rows = [rows_of(table) for table in tables.values()]
    for name, table in tables.items():
        take_sums_away(table, name, version)
    all_come_back(archive, school, tmp_path / "read")
    assert damaged_tables(archive) == []
    assert [
        len(rows_of(table)[0]) - len(old[0]) for table, old in zip(tables.values(), rows, strict=True)
    ] == [-1, -1]
    assert back_up(archive) == []
    assert [rows_of(table) for table in tables.values()] == rows
    assert {run(table, "PRAGMA user_version")[0][0] for table in tables.values()} == {2}
    deliver(4, 5)
    prune(archive, keep_days=10_000, keep_months=0)
    assert damaged_tables(archive) == back_up(archive) == []
    for table in tables.values():
        (archive.hidden / "backup" / table.name).unlink()
    assert put_back(archive) == []


@pytest.mark.parametrize("name", ["collection", "cold"])
def test_the_first_writer_of_an_older_table_gives_its_rows_a_place_for_the_sum(
    archive, school, deliver, tmp_path, name
):
    table = three_days_packed(archive, deliver)[name]
    take_sums_away(table, name, 1)
    deliver(4)
    prune(archive, keep_days=10_000, keep_months=0)
    ((with_sum, without),) = run(table, f"SELECT count(sum), count(*) - count(sum) FROM {name}")
    assert with_sum
    assert without
    assert damaged_tables(archive) == []
    all_come_back(archive, school, tmp_path / "out")


def test_a_row_without_a_sum_that_cannot_be_unpacked_is_damaged_too(archive, school, deliver):
    deliver(1, 2, 3)
    table = archive.hidden / "history.sqlite"
    run(table, "UPDATE collection SET sum = NULL, changes = ? WHERE sequence = 1", b"no zstd")
    assert WRONG in damaged_tables(archive)[0].problem
    assert WRONG in back_up(archive)[0].problem
    assert WRONG in damaged_tables(archive)[0].problem, "no sum was written that says that it is whole"


def test_a_collection_that_is_damaged_is_one_line_with_the_way_out(centre, archive, school, deliver):
    deliver(1, 2, 3)
    table = archive.hidden / "history.sqlite"
    run(table, "UPDATE collection SET record = ?, changes = ? WHERE sequence = 1", b"no zstd", b"no zstd")
    way = r"/history\.sqlite: collection 1 of .* is damaged \(shala archive repair"
    first = versions_of(archive, school.name)[0]
    with pytest.raises(HistoryError, match=way), archive.history() as history:
        history.record(first)
    with pytest.raises(HistoryError, match=way):
        list(files_of(archive, first))
    shown = centre.shala("archive", "show", school.name, "--number", "1")
    assert shown.returncode != 0
    assert "Traceback" not in shown.stderr
    assert "Exception ignored" not in shown.stderr
    for command in (["diff", school.name, "1", "2"], ["verify", "--deep"], ["prune", "--dry-run"]):
        done = centre.shala("archive", *command)
        assert "Traceback" not in done.stderr, done.stderr
        assert "Exception ignored" not in done.stderr
