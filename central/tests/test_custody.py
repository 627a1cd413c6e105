"""What the operator may do with the archive: accept, restore, repair, scrub, export, release; and packing."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

import bagit
import pytest
import zstandard
from central_school import School, deliver, overwrite, tree_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shala_agent.device import Device
from shala_central import cold as cold_module
from shala_central import commit as commit_module
from shala_central import copies as copies_module
from shala_central import export as export_module
from shala_central.archive import Archive
from shala_central.bag import BagRefused, Broken, survey
from shala_central.checkout import checkout
from shala_central.cold import CHAIN, Cold, ColdDamaged, ColdFailed
from shala_central.commit import accept, restore
from shala_central.config import Limits
from shala_central.export import export
from shala_central.failure import CentralError, UsageError
from shala_central.integrity import SecondCopy, damaged_objects, repair, scrub
from shala_central.provenance import provenance
from shala_central.publish import remove_tree
from shala_central.quarantine import (
    close_release,
    discard,
    in_quarantine,
    let_in,
    lifted_for,
    quarantine,
    releases_of,
)
from shala_central.retention import prune
from shala_central.staging import Staging
from shala_central.verify import verify
from shala_central.versions import items_of, pulls_of, version_of, versions_of


@pytest.fixture
def day(archive, school):
    """Let a school deliver a day: `day(files, suspect items...)`."""

    return functools.partial(deliver, archive, school)


def seen(archive: Archive, school: School, year: int = 2026) -> dict[str, bytes]:
    tree = archive.tree_of(year, "mz", school.name)
    return tree_of(tree)


def object_of(archive: Archive, school: School, path: str, content: bytes) -> Path:
    place = archive.objects.find(school.name, path, hashlib.sha256(content).hexdigest())
    assert place is not None
    return place


GOOD = {"gstudio/db/a": b"good", "gstudio/db/b": b"good too", "gstudio/qbank/q": b"q1"}
BAD = {"gstudio/db/a": b"half", "gstudio/qbank/q": b"q2"}


# -- what is suspect -----------------------------------------------------------------------------------------


def test_a_suspect_item_leaves_the_last_good_one_in_view(archive, school, day):
    day(GOOD)
    day(BAD, "db")
    expected = {**GOOD, "gstudio/qbank/q": b"q2"}
    assert seen(archive, school) == expected
    assert archive.committed(school.name).pull.held == {"gstudio/db": "1@2026-11-01T04:00:00+00:00"}
    assert verify(archive, school.name) == []
    day({**BAD, "gstudio/db/a": b"still half"}, "db")
    assert seen(archive, school) == expected
    assert archive.committed(school.name).pull.held == {"gstudio/db": "1@2026-11-01T04:00:00+00:00"}


def test_the_next_good_one_replaces_what_was_held(archive, school, day):
    day(GOOD)
    day(BAD, "db")
    better = {**GOOD, "gstudio/db/a": b"better"}
    day(better)
    assert seen(archive, school) == better
    assert archive.committed(school.name).pull.held == {}


def test_of_each_collection_is_told_which_items_were_in_doubt(archive, school, day):
    def told() -> list[dict[str, str] | None]:
        return [items_of(archive, version) for version in versions_of(archive, school.name)]

    day(GOOD)
    day(BAD, "db")
    good = {"gstudio/db": "ok", "gstudio/qbank": "ok"}
    assert told() == [good, {**good, "gstudio/db": "held"}]
    accept(archive, school.name)
    assert told() == [good, {**good, "gstudio/db": "accepted"}]


def test_a_suspect_item_is_seen_where_there_is_no_good_one(archive, school, day):
    day(BAD, "db")
    assert seen(archive, school) == BAD
    worse = {**BAD, "gstudio/db/a": b"worse"}
    day(worse, "db")
    assert seen(archive, school) == worse
    day(GOOD, year=2027)
    day({**BAD, "gstudio/db/a": b"new year"}, "db", year=2027)
    assert seen(archive, school, 2027)["gstudio/db/a"] == b"good"


def test_what_the_operator_accepts_is_seen_and_counts_as_good(archive, school, day):
    day(GOOD)
    day(BAD, "db")
    assert accept(archive, school.name) == ["gstudio/db"]
    assert seen(archive, school) == BAD
    assert verify(archive, school.name) == []
    assert [record.sequence for record in pulls_of(archive, school.name)] == [1, 2]
    day({**BAD, "gstudio/db/a": b"worse"}, "db")
    assert seen(archive, school) == BAD
    with pytest.raises(UsageError, match=r"'gstudio/qbank' of .* is not held back .held are: gstudio/db"):
        accept(archive, school.name, ["gstudio/qbank"])


def test_what_is_held_back_survives_pruning(archive, school, day):
    day(GOOD)
    day(BAD, "db")
    prune(archive, keep_days=0, keep_months=0)
    assert verify(archive, school.name) == []
    assert damaged_objects(archive, school.name) == []
    accept(archive, school.name)
    assert seen(archive, school) == BAD


def test_the_view_of_an_earlier_year_keeps_what_it_held(archive, school, day):
    day(GOOD)
    day(BAD, "db")
    day(GOOD, year=2027)
    prune(archive, keep_days=0, keep_months=0)
    assert verify(archive, school.name) == []
    assert seen(archive, school)["gstudio/db/a"] == b"good"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    overwrite(path, bytes(content))


def view_of(archive: Archive, school: School) -> Path:
    return archive.committed(school.name).record / "view.txt"


def test_a_bit_that_flipped_anywhere_in_the_list_of_what_is_in_view_is_found_and_mended(archive, school, day):
    day(GOOD)
    day(BAD, "db")
    whole = view_of(archive, school).read_bytes()
    for at in range(0, len(whole), 13):
        flip(view_of(archive, school), at)
        assert "view.txt" in {found.path for found in verify(archive, school.name)}
        assert len(damaged_objects(archive, school.name)) == 1
        assert repair(archive, school.name).mended == ["view.txt"]
        assert view_of(archive, school).read_bytes() == whole
    view_of(archive, school).unlink()
    assert "view.txt" in {found.path for found in verify(archive, school.name)}
    assert repair(archive, school.name).lost == []
    assert verify(archive, school.name) == damaged_objects(archive, school.name) == []
    assert seen(archive, school) == {**GOOD, "gstudio/qbank/q": b"q2"}


@pytest.mark.parametrize("wrong", [b"gstudio/db/a\n", b"gstudio/db/b\n", b" 4 "])
def test_nothing_that_a_damaged_list_names_is_published(archive, school, day, wrong):
    day(GOOD)
    day(BAD, "db")
    place = view_of(archive, school)
    flip(place, place.read_bytes().index(wrong) + len(wrong) - 2)
    for deed in (
        lambda: accept(archive, school.name),
        lambda: restore(archive, school.name, version_of(archive, school.name, 1)),
    ):
        with pytest.raises(CentralError, match=r"is damaged .shala pull --again"):
            deed()
    day({**BAD, "gstudio/db/a": b"still half"}, "db")
    assert seen(archive, school) == {**GOOD, "gstudio/qbank/q": b"q2"}
    assert verify(archive, school.name) == damaged_objects(archive, school.name) == []


def test_where_nobody_knows_what_was_held_back_readers_see_what_came_and_the_log_says_so(
    archive, school, day, caplog
):
    day(GOOD)
    day(BAD, "db")
    place = view_of(archive, school)
    flip(place, place.read_bytes().index(b"gstudio/db/a") + 11)
    with archive.history() as history:
        history.forget(history.versions(school.name))
    assert "record" in repair(archive, school.name).lost[0]
    worse = {**BAD, "gstudio/db/a": b"still half"}
    day(worse, "db")
    assert seen(archive, school) == worse
    assert archive.committed(school.name).pull.held == {}
    assert "was held back of 2031017-mz17 is not known any more" in caplog.text
    assert verify(archive, school.name) == damaged_objects(archive, school.name) == []


def test_pruning_leaves_a_server_alone_whose_list_of_what_is_in_view_is_damaged(archive, school, day):
    day(GOOD)
    day(BAD, "db")
    with archive.history() as history:
        history.forget(history.versions(school.name))
    place = view_of(archive, school)
    at = place.read_bytes().index(hashlib.sha256(b"good").hexdigest().encode())
    flip(place, at)
    prune(archive, keep_days=0, keep_months=0)
    flip(place, at)
    assert verify(archive, school.name) == damaged_objects(archive, school.name) == []


# -- restore -------------------------------------------------------------------------------------------------


def test_an_earlier_item_can_be_put_in_view_until_the_next_good_one(archive, school, day):
    day(GOOD)
    day({**GOOD, "gstudio/db/a": b"emptied by mistake"})
    assert restore(archive, school.name, version_of(archive, school.name, 1), ["gstudio/db"]) == [
        "gstudio/db"
    ]
    assert seen(archive, school) == GOOD
    assert archive.committed(school.name).pull.held == {"gstudio/db": "1@2026-11-01T04:00:00+00:00"}
    assert [version.sequence for version in versions_of(archive, school.name)] == [1, 2]
    newest = {**GOOD, "gstudio/db/a": b"mended"}
    day(newest)
    assert seen(archive, school) == newest


def test_an_earlier_collection_that_is_packed_can_be_put_in_view(archive, school, day):
    day(GOOD)
    day({"gstudio/db/a": b"good" * 1000, "gstudio/qbank/q": b"q1"})
    day({"gstudio/db/a": b"x", "gstudio/qbank/q": b"q1"})
    prune(archive, keep_days=1000, keep_months=0)
    restore(archive, school.name, version_of(archive, school.name, 2))
    assert seen(archive, school)["gstudio/db/a"] == b"good" * 1000
    restore(archive, school.name, version_of(archive, school.name, 3))
    assert seen(archive, school)["gstudio/db/a"] == b"x"
    assert archive.committed(school.name).pull.held == {}
    with pytest.raises(UsageError, match="has no item 'gstudio/none'"):
        restore(archive, school.name, version_of(archive, school.name, 1), ["gstudio/none"])


# -- packing -------------------------------------------------------------------------------------------------


def big(number: int) -> bytes:
    """Return a database of which a little differs from number to number."""
    raw = bytearray(random.Random(1).randbytes(400_000))
    for page in range(number):
        raw[page * 4096 : page * 4096 + 8] = b"changed!"
    return bytes(raw)


def test_old_versions_are_packed_against_newer_ones_and_come_back(archive, school, day, tmp_path):
    days = [{"gstudio/db/big": big(number), "gstudio/logs/l": b"line\n" * number} for number in range(1, 31)]
    for files in days:
        day(files)
    done = prune(archive, keep_days=1000, keep_months=0)
    assert done.packed > 27 * 350_000
    pool = archive.hidden / "objects" / school.name
    assert sum(path.stat().st_size for path in pool.rglob("*")) < 1_500_000
    for number in (1, 20, 30):
        checkout(archive, version_of(archive, school.name, number), tmp_path / str(number))
        assert (tmp_path / str(number) / "gstudio/db/big").read_bytes() == days[number - 1]["gstudio/db/big"]
    assert damaged_objects(archive, school.name) == []
    db = sqlite3.connect(archive.hidden / "cold.sqlite")
    assert db.execute("SELECT max(height) FROM cold").fetchone()[0] <= CHAIN + 1


def test_a_content_that_comes_again_is_unpacked_and_not_fetched(archive, school, day):
    text = b"".join(b"%d\n" % number for number in range(5000))
    day({"gstudio/db/a": text})
    day({"gstudio/db/a": b"other"})
    prune(archive, keep_days=1000, keep_months=0)
    assert archive.objects.plain(school.name, hashlib.sha256(text).hexdigest()) is None
    day({"gstudio/db/a": text})
    assert archive.committed(school.name).pull.files_received == 0
    assert seen(archive, school) == {"gstudio/db/a": text}


def test_what_others_are_packed_against_stays_as_long_as_they_do(archive, school, day, tmp_path):
    for number in range(1, 6):
        day({"gstudio/db/big": big(number)})
    prune(archive, keep_days=1000, keep_months=0)
    with archive.history() as history:
        history.forget(history.versions(school.name)[1:])
    prune(archive, keep_days=1000, keep_months=0)
    checkout(archive, version_of(archive, school.name, 1), tmp_path / "out")
    assert (tmp_path / "out/gstudio/db/big").read_bytes() == big(1)
    with archive.history() as history:
        history.forget(history.versions(school.name))
    prune(archive, keep_days=1000, keep_months=0)
    assert list(archive.objects.cold.stored(school.name)) == []


def test_packed_content_that_is_damaged_is_told_and_never_given_out(archive, school, day, tmp_path):
    day({"gstudio/db/a": b"text " * 1000})
    day({"gstudio/db/a": b"other"})
    prune(archive, keep_days=1000, keep_months=0)
    with sqlite3.connect(archive.hidden / "cold.sqlite") as db:
        row = db.execute("SELECT packed FROM cold").fetchone()[0]
        db.execute("UPDATE cold SET packed = ?", (row[:-1] + bytes([row[-1] ^ 1]),))
    assert [found.path for found in damaged_objects(archive, school.name)] == ["gstudio/db/a"]
    assert len(scrub(archive, 1).damage) == 1
    with pytest.raises(CentralError, match="cannot be unpacked"):
        checkout(archive, version_of(archive, school.name, 1), tmp_path / "out")


def test_a_cut_between_packing_and_removing_loses_nothing(archive, school, day, monkeypatch, tmp_path):
    day({"gstudio/db/a": b"text " * 1000})
    day({"gstudio/db/a": b"other"})

    def off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", off)
        with pytest.raises(KeyboardInterrupt):
            prune(archive, keep_days=1000, keep_months=0)
    prune(archive, keep_days=1000, keep_months=0)
    checkout(archive, version_of(archive, school.name, 1), tmp_path / "out")
    assert (tmp_path / "out/gstudio/db/a").read_bytes() == b"text " * 1000


def test_a_table_that_takes_no_more_is_told_in_one_line_and_loses_nothing(archive, school, day, tmp_path):
    days = [{"gstudio/db/a": random.Random(number).randbytes(60_000).hex().encode()} for number in range(4)]
    for files in days:
        day(files)
    archive.objects.cold._opened().execute("PRAGMA max_page_count = 20")
    with pytest.raises(
        ColdFailed, match=r"cold\.sqlite: database or disk is full \(is the disk full"
    ) as told:
        prune(archive, keep_days=1000, keep_months=0)
    assert "\n" not in str(told.value)
    assert damaged_objects(archive, school.name) == []
    archive.objects.cold._opened().execute("PRAGMA max_page_count = 100000")
    prune(archive, keep_days=1000, keep_months=0)
    assert len(list(archive.objects.cold.stored(school.name))) == 3
    for number, files in enumerate(days, 1):
        checkout(archive, version_of(archive, school.name, number), tmp_path / str(number))
        assert (tmp_path / str(number) / "gstudio/db/a").read_bytes() == files["gstudio/db/a"]


def test_a_packed_file_that_does_not_fit_on_the_disk_leaves_nothing_half(archive, school, day, monkeypatch):
    day({"gstudio/db/a": random.Random(1).randbytes(400_000).hex().encode()})
    day({"gstudio/db/a": b"other"})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cold_module.os, "fsync", full)
        with pytest.raises(ColdFailed, match=r"\.cold: No space left on device \(free some space"):
            prune(archive, keep_days=1000, keep_months=0)
    assert list((archive.hidden / "objects").rglob("*.part")) == []
    assert damaged_objects(archive, school.name) == []
    assert prune(archive, keep_days=1000, keep_months=0).packed > 300_000


@pytest.mark.parametrize("deed", ["prune", "scrub"])
def test_a_table_that_is_locked_or_no_table_is_told_and_no_content_is_named_damaged(
    archive, school, day, monkeypatch, deed
):
    monkeypatch.setattr(copies_module, "BUSY_SECONDS", 0.1)
    day({"gstudio/db/a": b"text " * 1000})
    day({"gstudio/db/a": b"other"})
    deeds = {
        "prune": lambda: prune(archive, keep_days=1000, keep_months=0),
        "scrub": lambda: scrub(archive, 1),
    }
    table = archive.hidden / "cold.sqlite"
    table.write_bytes(b"no table at all" * 1000)
    with pytest.raises(
        CentralError, match=r"cold.sqlite.* is not a database .(shala archive repair|there is)"
    ):
        deeds[deed]()
    table.unlink()
    with sqlite3.connect(table, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ColdFailed, match=r"is locked .is the disk full, or another run at work"):
            deeds[deed]()
        other.execute("ROLLBACK")
    deeds[deed]()
    assert damaged_objects(archive, school.name) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=200), min_size=2, max_size=8, unique=True))
def test_any_chain_of_contents_is_packed_and_read_as_it_was(tmp_path_factory, contents):
    root = tmp_path_factory.mktemp("archive") / "objects"
    cold = Cold(root)
    places: dict[str, Path] = {}
    for content in contents:
        digest = hashlib.sha256(content).hexdigest()
        places[digest] = root / "p" / digest[:2] / digest
        places[digest].parent.mkdir(parents=True, exist_ok=True)
        places[digest].write_bytes(content)

    def plain(_pool: str, digest: str) -> bytes | None:
        return places[digest].read_bytes() if places[digest].exists() else None

    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    for digest, base in zip(digests, [*digests[1:], None], strict=True):
        cold.pack("p", digest, places[digest], base, plain)
    for digest, content in zip(digests, contents, strict=True):
        here = plain("p", digest)
        assert (cold.read("p", digest, plain) if here is None else here) == content
    with pytest.raises(ColdDamaged):
        cold.read("p", "0" * 64, plain)


# -- reading again, and mending ------------------------------------------------------------------------------


def test_a_sample_always_finds_what_is_missing_and_in_the_end_what_has_changed(archive, school, day):
    day({f"gstudio/db/{number}": b"%d" % number for number in range(20)})
    tree = archive.tree_of(2026, "mz", school.name)
    overwrite(tree / "gstudio/db/7", b"8")
    assert any(verify(archive, school.name, share=0.2) for _ in range(200))
    (tree / "gstudio/db").chmod(0o750)
    (tree / "gstudio/db/3").unlink()
    assert "is missing" in [found.problem for found in verify(archive, school.name, share=1e-9)]


def test_everything_is_read_again_within_the_period_whatever_is_cut(archive, school, day):
    day({f"gstudio/db/{number}": b"%d" % number for number in range(50)})
    read = [scrub(archive, 4) for _ in range(4)]
    assert sum(done.objects for done in read) == 50
    assert [bool(done.oldest) for done in read] == [False, False, False, True]
    overwrite(object_of(archive, school, "gstudio/db/7", b"7"), b"8")
    found = [found.path for _ in range(4) for found in scrub(archive, 4).damage]
    assert [path.rpartition("/")[2] for path in found] == [hashlib.sha256(b"7").hexdigest()]


def test_what_is_unpacked_or_packed_while_it_is_read_is_not_damage(archive, school, day, monkeypatch):
    text = b"text " * 1000
    day({"gstudio/db/a": text})
    day({"gstudio/db/a": b"other " * 1000})
    prune(archive, keep_days=1000, keep_months=0)
    stored, plain, asked = Cold.stored, archive.objects.plain, []

    def unpacked_meanwhile(cold, pool, bucket=""):
        for row in list(stored(cold, pool, bucket)):
            archive.objects.thaw(school.name, "gstudio/db/a", row[0])
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(Cold, "stored", unpacked_meanwhile)
        assert scrub(archive, 1).damage == []

    def packed_meanwhile(pool, sha256):
        asked.append(sha256)
        if len(asked) == 1:
            raise FileNotFoundError(sha256)
        return plain(pool, sha256)

    for number in (1, 2):
        day({"gstudio/db/a": big(number)})
    prune(archive, keep_days=1000, keep_months=0)
    monkeypatch.setattr(archive.objects, "plain", packed_meanwhile)
    assert scrub(archive, 1).damage == []
    asked.clear()
    assert damaged_objects(archive, school.name) == []
    assert len(asked) > 1


def test_damage_is_mended_from_a_second_copy_in_every_view(archive, school, day, tmp_path):
    day(GOOD)
    day({**GOOD, "gstudio/db/a": b"newer"})
    subprocess.run(["cp", "-a", str(archive.root), str(tmp_path / "copy")], check=True)
    overwrite(object_of(archive, school, "gstudio/qbank/q", b"q1"), b"??")
    object_of(archive, school, "gstudio/db/a", b"good").unlink()
    assert {found.path for found in damaged_objects(archive, school.name)} == {
        "gstudio/qbank/q",
        "gstudio/db/a",
    }
    alone = repair(archive, school.name)
    assert (alone.mended, sorted(alone.lost)) == ([], ["gstudio/db/a", "gstudio/qbank/q"])
    done = repair(archive, school.name, SecondCopy(archive, tmp_path / "copy"))
    assert (sorted(done.mended), done.lost) == (["gstudio/db/a", "gstudio/qbank/q"], [])
    assert verify(archive, school.name) == damaged_objects(archive, school.name) == []
    assert seen(archive, school)["gstudio/qbank/q"] == b"q1"


def test_a_second_copy_that_is_damaged_itself_mends_nothing(archive, school, day, tmp_path):
    day(GOOD)
    subprocess.run(["cp", "-a", str(archive.root), str(tmp_path / "copy")], check=True)
    for root in (archive.root, tmp_path / "copy"):
        inside = object_of(archive, school, "gstudio/db/a", b"good").relative_to(archive.root)
        overwrite(root / inside, b"gold")
    assert repair(archive, school.name, SecondCopy(archive, tmp_path / "copy")).lost == ["gstudio/db/a"]


def everything_in(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


@pytest.mark.parametrize("at_rest", [True, False], ids=["copied at rest", "copied while it was at work"])
def test_what_the_second_copy_holds_packed_mends_and_the_copy_is_only_read(
    archive, school, day, tmp_path, at_rest
):
    contents = [big(1), big(2), big(3)]
    for content in contents:
        day({"gstudio/db/big": content, "gstudio/logs/l": hashlib.sha256(content).hexdigest().encode() * 200})
    prune(archive, keep_days=1000, keep_months=0)
    if at_rest:
        archive.objects.cold._opened().close()
        archive.objects.cold._db = None
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(archive.root), str(copy)], check=True)
    assert (copy / ".shala/cold.sqlite-wal").exists() != at_rest
    before = everything_in(copy)
    pool = school.name
    packed = [digest for digest, _ in archive.objects.cold.stored(pool)]
    assert len(packed) == 4
    archive.objects.cold.remove(pool, packed)
    assert repair(archive, school.name).mended == []
    done = repair(archive, school.name, SecondCopy(archive, copy))
    assert (len(done.mended), done.lost) == (4, [])
    assert everything_in(copy) == before
    assert damaged_objects(archive, school.name) == []
    checkout(archive, version_of(archive, school.name, 1), tmp_path / "out")
    assert (tmp_path / "out/gstudio/db/big").read_bytes() == contents[0]


def padded(number: int) -> bytes:
    return big(number) + bytes(100_000)  # else it cannot be made smaller


def damage_packed(archive: Archive, sha256: str) -> None:
    """Damage a content that lies packed in a file of its own."""
    (place,) = archive.objects.root.rglob(f"{sha256}.cold")
    place.chmod(0o640)
    raw = place.read_bytes()
    place.write_bytes(raw[:2000] + bytes([raw[2000] ^ 1]) + raw[2001:])


@pytest.fixture
def second_of_packed(archive, school, day, tmp_path) -> SecondCopy:
    """Pack a database in a file of its own and one against it, copy the archive, and damage that file."""
    for number, content in enumerate((padded(1), padded(2), b"another")):
        day({"gstudio/db/big": content, "gstudio/logs/l": b"%d" % number})
    prune(archive, keep_days=1000, keep_months=0)
    archive.objects.cold.settle()
    subprocess.run(["cp", "-a", str(archive.root), str(tmp_path / "copy")], check=True)
    damage_packed(archive, hashlib.sha256(padded(2)).hexdigest())
    return SecondCopy(archive, tmp_path / "copy")


def test_a_damaged_packed_content_that_was_mended_is_damaged_nowhere_any_more(
    archive, school, second_of_packed, tmp_path
):
    assert len(scrub(archive, 1).damage) == 2
    assert repair(archive, school.name).mended == []
    done = repair(archive, school.name, second_of_packed)
    assert (done.mended, done.lost) == (["gstudio/db/big"] * 2, [])
    assert scrub(archive, 1).damage == damaged_objects(archive, school.name) == []
    for number, content in ((1, padded(1)), (2, padded(2))):
        checkout(archive, version_of(archive, school.name, number), tmp_path / str(number))
        assert (tmp_path / str(number) / "gstudio/db/big").read_bytes() == content


def test_a_damaged_packed_content_beside_a_good_plain_one_is_removed(
    archive, school, second_of_packed, monkeypatch
):
    with monkeypatch.context() as patch:  # as an older shala has mended it
        patch.setattr("shala_central.integrity._drop_packed", lambda *_: [])
        repair(archive, school.name, second_of_packed)
    assert len(scrub(archive, 1).damage) == 1
    assert [name.endswith(", packed") for name in repair(archive, school.name).mended] == [True]
    assert scrub(archive, 1).damage == damaged_objects(archive, school.name) == []


@pytest.fixture
def unreadable(archive, school, day) -> Path:
    """Pack an earlier collection, and let there be a plain object of a packed content that cannot be read."""
    for number in range(3):
        day({"gstudio/db/big": padded(number), "gstudio/logs/l": b"%d" % number})
    prune(archive, keep_days=1000, keep_months=0)
    digest = hashlib.sha256(padded(1)).hexdigest()
    assert archive.objects.cold.has(school.name, digest)
    place = archive.objects.root / school.name / digest[:2] / digest
    same = archive.root / "same"
    same.write_bytes(padded(1))
    place.symlink_to(same)  # no link is followed there: to open it fails, as with a bad sector
    return place


def test_a_plain_object_that_cannot_be_read_is_named_and_mended_of_its_packed_copy(
    archive, school, unreadable, tmp_path
):
    assert [found.problem.partition(":")[0] for found in damaged_objects(archive, school.name)] == [
        "cannot be read"
    ]
    done = repair(archive, school.name)
    assert (done.mended, done.lost) == (["gstudio/db/big"], [])
    assert unreadable.read_bytes() == padded(1)
    assert not unreadable.is_symlink()
    for number in range(3):
        checkout(archive, version_of(archive, school.name, number + 1), tmp_path / str(number))
        assert (tmp_path / str(number) / "gstudio/db/big").read_bytes() == padded(number)


def test_a_plain_object_that_cannot_be_read_and_nobody_needs_stops_no_repair(archive, school, unreadable):
    with archive.history() as history:
        history.forget(history.versions(school.name))
    assert repair(archive, school.name).lost == []
    assert unreadable.is_symlink()


def test_a_second_copy_gives_back_a_plain_object_that_cannot_be_read(archive, school, unreadable, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(archive.root), str(copy)], check=True)
    (copy / unreadable.relative_to(archive.root)).unlink()
    archive.objects.cold.remove(school.name, [unreadable.name])
    assert repair(archive, school.name).lost == ["gstudio/db/big"]
    assert repair(archive, school.name, SecondCopy(archive, copy)).mended == ["gstudio/db/big"]
    assert damaged_objects(archive, school.name) == []


def test_a_second_copy_whose_packed_contents_are_lost_still_gives_its_plain_ones(
    archive, school, day, tmp_path, caplog
):
    day(GOOD)
    subprocess.run(["cp", "-a", str(archive.root), str(tmp_path / "copy")], check=True)
    (tmp_path / "copy/.shala/cold.sqlite").write_bytes(b"nothing" * 1000)
    for path, content in (
        ("gstudio/db/a", b"good"),
        ("gstudio/qbank/q", b"q1"),
        ("gstudio/db/b", b"good too"),
    ):
        object_of(archive, school, path, content).unlink()
    for content in (b"q1", b"good too"):
        next((tmp_path / "copy").rglob(hashlib.sha256(content).hexdigest())).unlink()
    for tree in (archive.root, tmp_path / "copy"):
        (tree / f"2026/mz/{school.name}/gstudio/qbank").chmod(0o750)
        (tree / f"2026/mz/{school.name}/gstudio/qbank/q").unlink()
    done = repair(archive, school.name, SecondCopy(archive, tmp_path / "copy"))
    assert (sorted(done.mended), done.lost) == (["gstudio/db/a", "gstudio/db/b"], ["gstudio/qbank/q"])
    assert caplog.text.count("nothing packed can be used") == 1


# -- where it comes from, and taking it elsewhere ------------------------------------------------------------


def test_a_published_file_tells_where_it_comes_from(archive, school, day):
    day(GOOD)
    day({**GOOD, "gstudio/qbank/q": b"q2"})
    day(BAD, "db")
    found = provenance(archive, f"2026/mz/{school.name}/gstudio/db/a")
    assert (found.server_name, found.collection, found.first_collection) == (school.name, 2, 1)
    assert (found.software, found.container_image, found.item_outcome) == (
        "shala-agent 0.1.0",
        "gstudio:lab",
        "ok",
    )
    assert (found.sha256, found.bytes) == (hashlib.sha256(b"good").hexdigest(), 4)
    newest = provenance(archive, f"2026/mz/{school.name}/gstudio/qbank/q")
    assert (newest.collection, newest.first_collection) == (3, 2 if BAD["gstudio/qbank/q"] == b"q2" else 3)
    for wrong in (
        "2026",
        f"2026/mz/{school.name}/gstudio/none",
        f"2025/mz/{school.name}/gstudio/db/a",
        "a/b/c/d",
    ):
        with pytest.raises(UsageError):
            provenance(archive, wrong)


@pytest.mark.parametrize("name", ["out.tar", "out.tar.zst"])
def test_a_selection_is_exported_as_bags_that_the_reference_accepts(archive, school, day, tmp_path, name):
    day(GOOD)
    day({**GOOD, "gstudio/media/m": b"media"})
    done = export(
        archive, [version_of(archive, school.name, 2)], ["gstudio/db", "gstudio/media"], tmp_path / name
    )
    assert (done.servers, done.files, done.bytes) == ([school.name], 3, 17)
    raw = (tmp_path / name).read_bytes()
    if name.endswith(".zst"):
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    (tmp_path / "plain.tar").write_bytes(raw)
    shutil.unpack_archive(tmp_path / "plain.tar", tmp_path / "x")
    bag = bagit.Bag(str(tmp_path / "x" / school.name))
    assert bag.is_valid()
    assert sorted(bag.payload_files()) == ["data/gstudio/db/a", "data/gstudio/db/b", "data/gstudio/media/m"]
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="exists already"):
        export(archive, [version_of(archive, school.name, 2)], [], tmp_path / name)


def test_of_two_exports_to_one_file_the_first_to_end_stays(archive, school, day, tmp_path, monkeypatch):
    day(GOOD)
    add, versions, whole = export_module._add, [version_of(archive, school.name, 1)], []

    def meanwhile(*arguments):
        if not whole:
            whole.append(b"")
            export(archive, versions, [], tmp_path / "out.tar")
            whole.append((tmp_path / "out.tar").read_bytes())
        return add(*arguments)

    monkeypatch.setattr(export_module, "_add", meanwhile)
    with pytest.raises(UsageError, match="exists already"):
        export(archive, versions, ["gstudio/db"], tmp_path / "out.tar")
    assert (tmp_path / "out.tar").read_bytes() == whole[1]
    assert [path.name for path in tmp_path.iterdir() if "out.tar" in path.name] == ["out.tar"]


def test_nothing_half_is_left_of_an_export_that_fails(archive, school, day, tmp_path):
    day(GOOD)
    overwrite(object_of(archive, school, "gstudio/db/b", b"good too"), b"????????")
    with pytest.raises(CentralError, match="has changed"):
        export(archive, [version_of(archive, school.name, 1)], [], tmp_path / "out.tar")
    with pytest.raises(UsageError, match="no chosen server has gstudio/none"):
        export(archive, [version_of(archive, school.name, 1)], ["gstudio/none"], tmp_path / "out.tar")
    assert not [path for path in tmp_path.iterdir() if "out.tar" in path.name]


def newest_refused(archive: Archive, school: School) -> str:
    return Path(str(in_quarantine(archive, school.name)[-1]["folder"])).name


RULE = Broken("sequence", "its collection is number 2, but 3 is committed already")


# -- quarantine and signatures -------------------------------------------------------------------------------


def test_what_a_rule_stands_against_can_be_let_in_and_nothing_else(archive, school):
    for folder in (school.name, f"{school.name}-00000001-20261121T000000Z", "../../x-00000001-2"):
        with pytest.raises(UsageError, match="is not in quarantine"):
            let_in(archive, folder)
    broken = Broken("sequence", "went back")
    quarantine(archive, school.name, 1, BagRefused(["went back"], broken=[broken]), {"HEAD": b"one"})
    release = let_in(archive, newest_refused(archive, school))
    assert (release.sequence, release.broken, release.how) == (
        1,
        [broken],
        "shala archive quarantine release",
    )
    assert lifted_for(archive, school.name, b"one") == [broken]
    assert lifted_for(archive, school.name, b"two") == []
    quarantine(archive, school.name, 2, BagRefused(["it is not whole"]), {"HEAD": b"two"})
    with pytest.raises(UsageError, match="cannot be let in: it is not whole"):
        let_in(archive, newest_refused(archive, school))
    assert discard(archive, school.name) == 2
    assert in_quarantine(archive, school.name) == []


def test_what_comes_while_the_operator_looks_is_not_let_in_in_its_place(archive, school):
    broken = Broken("sequence", "went back")
    quarantine(archive, school.name, 1, BagRefused(["went back"], broken=[broken]), {"HEAD": b"one"})
    looked_at = newest_refused(archive, school)
    quarantine(archive, school.name, 2, BagRefused(["went back"], broken=[broken]), {"HEAD": b"two"})
    quarantine(archive, school.name, 1, BagRefused(["went back"], broken=[broken]), {"HEAD": b"one"})
    assert newest_refused(archive, school) == looked_at, "the same is known by the same name"
    let_in(archive, looked_at)
    assert (lifted_for(archive, school.name, b"one"), lifted_for(archive, school.name, b"two")) == (
        [broken],
        [],
    )


def test_nothing_is_let_in_or_thrown_away_while_its_server_is_pulled(archive, school):
    quarantine(archive, school.name, 1, BagRefused(["went back"], broken=[RULE]), {"HEAD": b"one"})
    with archive.lock(school.name):
        for deed in (
            lambda: let_in(archive, newest_refused(archive, school)),
            lambda: discard(archive, school.name),
        ):
            with pytest.raises(CentralError, match="is being pulled"):
                deed()
    assert lifted_for(archive, school.name, b"one") == []
    assert discard(archive, school.name) == 1


def signed(school: School, device: Device) -> None:
    tags = (school.spool / "bag/tagmanifest-sha256.txt").read_bytes()
    (school.spool / "bag/signature.json").write_bytes(device.sign_collection(tags))


@pytest.mark.ssh
def test_a_device_that_signed_once_stays_the_one_that_signs(centre, school, online, tmp_path):
    device, other = Device(tmp_path / "device.key"), Device(tmp_path / "other.key")
    online(school).seal(GOOD)
    signed(school, device)
    assert centre.pull()[0] == 0
    committed = centre.archive.committed(school.name)
    assert (committed.pull.device, committed.pull.public_key) == (device.id, device.public_key)
    assert verify(centre.archive, school.name) == []
    school.seal(BAD)
    for wrong, reason in ((None, "is not signed any more"), (other, "is signed by another device")):
        (school.spool / "bag/signature.json").unlink()
        if wrong is not None:
            signed(school, wrong)
        _, results = centre.pull()
        assert results[school.name]["result"] == "quarantined"
        assert reason in results[school.name]["reason"]
        (school.spool / "bag/signature.json").write_text("{")
    _, results = centre.pull()
    assert "signature.json is not readable" in results[school.name]["reason"]
    signed(school, other)
    centre.pull()
    assert (
        centre.shala("archive", "quarantine", "release", newest_refused(centre.archive, school)).returncode
        == 0
    )
    code, results = centre.pull()
    assert (code, results[school.name]["result"]) == (0, "committed")
    assert centre.archive.committed(school.name).pull.device == other.id


def reinstalled(school: School, device: Device) -> None:
    """Let a school begin anew, with another key."""
    shutil.rmtree(school.spool / "bag")
    shutil.rmtree(school.spool / "changes")
    school.sequence = 0
    school.seal(BAD)
    signed(school, device)


@pytest.mark.ssh
def test_a_release_names_what_it_lifts_and_lifts_nothing_else(centre, school, online, tmp_path):
    devices = [Device(tmp_path / f"{number}.key") for number in range(3)]
    online(school).seal(GOOD)
    school.seal({**GOOD, "gstudio/db/a": b"day two"})
    signed(school, devices[0])
    centre.pull()
    reinstalled(school, devices[1])
    short = [device.id[:12] for device in devices]
    for refused, lifted, how in (
        ("number 1, but 2", "sequence: its collection is number 1, but 2 is committed already\n", None),
        (f"another device than before, {short[1]}", f"before, {short[1]} (before: {short[0]})\n", devices[2]),
        (f"another device than before, {short[2]}", f"before, {short[2]} (before: {short[0]})\n", None),
    ):
        _, results = centre.pull()
        assert results[school.name]["result"] == "quarantined"
        assert refused in results[school.name]["reason"]
        done = centre.shala("archive", "quarantine", "release", newest_refused(centre.archive, school))
        assert done.returncode == 0
        assert lifted in done.stdout
        assert done.stdout.count("  ") == 1
        if how is not None:
            signed(school, how)
    code, results = centre.pull()
    assert (code, results[school.name]["result"]) == (0, "committed")
    assert centre.archive.committed(school.name).pull.device == devices[2].id
    releases = releases_of(centre.archive, school.name)
    assert [broken.rule for release in releases for broken in release.broken] == [
        "sequence",
        "device",
        "device",
    ]
    assert all(release.by and release.at.startswith("20") for release in releases)
    assert "let in: number 1, " in centre.shala("archive", "show", school.name).stdout


@pytest.mark.ssh
def test_what_is_accepted_while_pulling_is_written_down_as_well(centre, school, online):
    online(school).seal(GOOD)
    school.seal({**GOOD, "gstudio/db/a": b"day two"})
    centre.pull()
    school.sequence, school.year = 0, 2025
    school.seal(BAD)
    reason = centre.pull()[1][school.name]["reason"]
    assert "number 1, but 2" in reason
    assert "of 2025, but one of 2026" in reason
    assert centre.pull("--accept-reset", school.name)[0] == 0
    (release,) = releases_of(centre.archive, school.name)
    assert ([b.rule for b in release.broken], release.how) == (
        ["year", "sequence"],
        "shala pull --accept-reset",
    )


@pytest.mark.ssh
def test_what_is_damaged_at_the_centre_is_asked_of_the_school_again(centre, school, online):
    online(school).seal(GOOD)
    centre.pull()
    place = object_of(centre.archive, school, "gstudio/db/a", b"good")
    overwrite(place, b"gold")
    assert centre.shala("archive", "verify").returncode == 1
    assert centre.shala("archive", "repair").returncode == 1
    assert centre.pull()[1][school.name]["result"] == "unchanged"
    code, results = centre.pull("--again", school.name)
    assert (code, results[school.name]["result"], results[school.name]["files_received"]) == (
        0,
        "committed",
        1,
    )
    assert centre.published(school) == GOOD
    assert centre.shala("archive", "verify", "--deep").returncode == 0


@pytest.mark.ssh
def test_every_command_of_the_archive_says_what_it_did(centre, school, online, tmp_path):
    school.items = {"db": "ok", "qbank": "ok"}
    online(school).seal(GOOD)
    centre.pull()
    school.items = {"db": "suspect", "qbank": "ok"}
    school.seal(BAD)
    centre.pull()
    path = f"2026/mz/{school.name}/gstudio/db/a"
    said = {
        command: centre.shala("archive", *command)
        for command in (
            ("show", school.name),
            ("provenance", path),
            ("restore", school.name, "1", "--item", "gstudio/qbank"),
            ("accept", school.name, "gstudio/db"),
            ("export", school.name, "--to", str(tmp_path / "x.tar")),
            ("scrub", "--days", "1"),
            ("verify", "--deep", "--sample", "50"),
            ("repair",),
            ("quarantine", "list"),
            ("prune",),
        )
    }
    assert {command: done.stderr for command, done in said.items() if done.returncode} == {}
    assert "readers see gstudio/db of collection 1" in said["show", school.name].stdout
    assert (
        "readers see collection 1 of gstudio/qbank"
        in said["restore", school.name, "1", "--item", "gstudio/qbank"].stdout
    )
    assert centre.published(school) == {**BAD, "gstudio/qbank/q": b"q1"}
    answer = json.loads(centre.shala("archive", "provenance", "--json", path).stdout)
    assert answer["collection"] == 2
    assert (tmp_path / "x.tar").exists()


# -- what a review found -------------------------------------------------------------------------------------


def test_contents_that_change_places_are_never_packed_against_each_other(archive, school, day, tmp_path):
    one, other = big(1), big(2)
    day({"gstudio/db/p": one, "gstudio/db/q": other})
    day({"gstudio/db/p": other, "gstudio/db/q": one})
    day({"gstudio/db/r": b"neither"})
    for _ in range(2):
        prune(archive, keep_days=1000, keep_months=0)
    assert damaged_objects(archive, school.name) == []
    assert scrub(archive, 1).damage == []
    checkout(archive, version_of(archive, school.name, 1), tmp_path / "out")
    assert (tmp_path / "out/gstudio/db/q").read_bytes() == other


def test_pruning_finishes_commits_that_were_cut_first(archive, school, day, monkeypatch):
    day(GOOD)

    def off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(commit_module, "_finish", off)
        with pytest.raises(KeyboardInterrupt):
            day({**GOOD, "gstudio/db/a": b"newer"})
    prune(archive, keep_days=1000, keep_months=0)
    assert [version.sequence for version in versions_of(archive, school.name)] == [1, 2]
    assert verify(archive, school.name) == damaged_objects(archive, school.name) == []


def test_what_nobody_can_say_is_needless_stays(archive, school, day):
    day({**GOOD, "gstudio/media/m": b"media"})
    current = archive.hidden / "collections" / school.name / "current.json"
    lost = current.read_bytes()
    current.unlink()
    prune(archive, keep_days=0, keep_months=0)
    current.write_bytes(lost)
    assert damaged_objects(archive, school.name) == []


def test_what_an_unfinished_pull_has_fetched_stays(archive, school, day):
    day(GOOD)
    place = archive.hidden / "objects" / school.name / "00" / ("0" * 64)
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"fetched")
    (archive.staging(school.name) / "data").mkdir()
    prune(archive, keep_days=0, keep_months=0)
    assert place.exists()
    (archive.staging(school.name) / "data").rmdir()
    prune(archive, keep_days=0, keep_months=0)
    assert not place.exists()


def test_what_was_fetched_of_a_school_that_never_came_back_is_given_up(archive, school, day, caplog):
    day(GOOD)
    data = archive.staging(school.name) / "data"
    (data / "gstudio").mkdir(parents=True)
    (data / "gstudio/half").write_bytes(b"half of it")
    os.utime(data, (time.time() - 61 * 86400,) * 2)
    with archive.lock(school.name):
        prune(archive, keep_days=0, keep_months=0)
    prune(archive, keep_days=0, keep_months=0, pretend=True)
    assert (data / "gstudio/half").exists()
    Staging(data, archive.objects, school.name)
    prune(archive, keep_days=0, keep_months=0)
    assert (data / "gstudio/half").exists(), "a pull has gone on with it"
    os.utime(data, (time.time() - 61 * 86400,) * 2)
    prune(archive, keep_days=0, keep_months=0)
    assert not data.exists()
    assert f"what was fetched of {school.name} is given up" in caplog.text
    assert verify(archive, school.name) == []


def later(archive: Archive, name: str, days: int) -> None:
    """Let so many days pass since a pool was first seen without a record."""
    mark = archive.hidden / "abandoned" / name
    os.utime(mark, (time.time() - days * 86400, time.time() - days * 86400))


def pool_without_records(archive: Archive, school: School, day) -> Path:
    """Leave content of a server of which nothing else is left."""
    for number in (1, 2):
        day({"gstudio/db/a": b"text %d" % number * 1000})
    prune(archive, keep_days=1000, keep_months=0)
    for gone in ("collections", "staging", "spare"):
        remove_tree(archive.hidden / gone / school.name)
    remove_tree(archive.root / "2026")
    (archive.hidden / "history.sqlite").unlink()
    return archive.objects.root / school.name


def test_content_of_a_server_without_any_trace_goes_after_a_while_and_is_announced(
    archive, school, day, caplog
):
    pool = pool_without_records(archive, school, day)
    assert prune(archive, keep_days=0, keep_months=0).objects == 0
    assert f"{school.name} has content and no record: it goes on " in caplog.text
    later(archive, school.name, 59)
    assert prune(archive, keep_days=0, keep_months=0).objects == 0
    later(archive, school.name, 61)
    assert prune(archive, keep_days=0, keep_months=0, pretend=True).objects == 2
    assert pool.is_dir()
    assert prune(archive, keep_days=0, keep_months=0).objects == 2
    assert list(archive.objects.pools()) == []


@pytest.mark.parametrize("trace", ["a first pull that was cut", "a tree", "its records, brought back"])
def test_content_of_a_server_with_any_trace_stays(archive, school, day, trace):
    pool = pool_without_records(archive, school, day)
    prune(archive, keep_days=0, keep_months=0)
    later(archive, school.name, 61)
    if trace == "a tree":
        archive.tree_of(2026, "mz", school.name).mkdir(parents=True)
    elif trace == "a first pull that was cut":
        (archive.staging(school.name) / "data").mkdir()
    else:
        (archive.hidden / "collections" / school.name).mkdir()
    assert prune(archive, keep_days=0, keep_months=0).objects == 0
    assert pool.is_dir()
    assert not (archive.hidden / "abandoned" / school.name).exists()
    with (
        archive.in_use(),
        pytest.raises(CentralError, match="a pull, or a command that adds to it, is at work"),
    ):
        prune(archive, keep_days=0, keep_months=0)


def test_the_collection_that_the_tree_of_an_earlier_year_shows_is_always_kept(archive, school, day):
    day({"gstudio/db/a": b"dec20"}, year=2025)
    day({"gstudio/db/a": b"dec31"}, year=2025)
    day({"gstudio/db/a": b"jan"})
    day({"gstudio/db/a": b"feb"})
    prune(archive, keep_days=0, keep_months=0)
    assert 2 in [version.sequence for version in versions_of(archive, school.name)]
    assert verify(archive, school.name) == []
    repair(archive, school.name)
    assert seen(archive, school, 2025) == {"gstudio/db/a": b"dec31"}


def test_a_year_that_comes_back_shows_nothing_old(archive, school, day):
    same = {f"gstudio/f/{n}": b"%d" % n for n in range(3)}
    day({**same, "gstudio/f/g": b"of the old 2027"}, year=2027)
    day({**same, "gstudio/h": b"x"}, year=2026)
    for number in range(3):
        files = {**same, "gstudio/k": b"%d" % number}
        day(files, year=2027)
        assert seen(archive, school, 2027) == files


def test_a_folder_whose_last_file_is_gone_does_not_come_back(archive, school, day):
    for number in range(5):
        files = {"gstudio/f/a": b"a", "gstudio/day": b"%d" % number}
        if number < 2:
            files["gstudio/f/pupil/x"] = b"x"
        day(files)
        tree = archive.tree_of(2026, "mz", school.name)
        assert (tree / "gstudio/f/pupil").exists() == (number < 2)


def test_nothing_is_published_from_a_damaged_record(archive, school, day):
    day(GOOD)
    day(BAD, "db")
    record = archive.committed(school.name).record / "files.txt"
    overwrite(record, record.read_bytes().replace(b"gstudio/db/a", b"gstudio/db/c"))
    assert "record" in repair(archive, school.name).lost[0]
    for deed in (
        lambda: accept(archive, school.name),
        lambda: restore(archive, school.name, version_of(archive, school.name, 1)),
    ):
        with pytest.raises(CentralError, match=r"is damaged .shala pull --again"):
            deed()
    assert seen(archive, school) == {**GOOD, "gstudio/qbank/q": b"q2"}


def test_quarantine_goes_by_time_and_not_by_the_number_a_school_gives(archive, school):
    for number in (101, 102, 103, 104, 105, 2):
        quarantine(
            archive, school.name, number, BagRefused([str(number)], broken=[RULE]), {"HEAD": b"%d" % number}
        )
    assert [entry["sequence"] for entry in in_quarantine(archive, school.name)] == [102, 103, 104, 105, 2]
    let_in(archive, newest_refused(archive, school))
    assert lifted_for(archive, school.name, b"2") == [RULE]


def test_what_was_let_in_is_let_in_once(archive, school, day):
    day(GOOD)
    head = (archive.committed(school.name).record / "HEAD").read_bytes()
    quarantine(archive, school.name, 2, BagRefused(["rule"], broken=[RULE]), {"HEAD": head})
    let_in(archive, newest_refused(archive, school))
    close_release(archive, school.name)
    assert lifted_for(archive, school.name, head) == []
    assert [release.broken for release in releases_of(archive, school.name)] == [[RULE]]


@pytest.mark.parametrize("mode", ["4755", "2755", "1777"])
def test_no_school_makes_a_program_that_runs_as_its_owner(mode):
    line = b"0" * 64 + b" 1 1 %s data/gstudio/x\n" % mode.encode()
    with pytest.raises(BagRefused):
        survey([line], Limits())


def test_a_time_that_no_file_can_have_is_refused():
    line = b"0" * 64 + b" 1 9999999999999999999 0644 data/gstudio/db/x\n"
    with pytest.raises(BagRefused, match="has a time that no file can have"):
        survey([line], Limits())


@pytest.mark.ssh
def test_a_signed_collection_that_did_not_change_can_be_pulled_again(centre, school, online, tmp_path):
    online(school).seal(GOOD)
    signed(school, Device(tmp_path / "device.key"))
    centre.pull()
    object_of(centre.archive, school, "gstudio/db/a", b"good").unlink()
    code, results = centre.pull("--again", school.name)
    assert (code, results[school.name]["result"], results[school.name]["reason"]) == (0, "committed", "")
    assert centre.archive.committed(school.name).pull.public_key
