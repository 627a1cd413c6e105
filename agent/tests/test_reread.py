"""Reread: an old disk changes bytes and tells nobody."""

from __future__ import annotations

import os

import pytest
from agent_school import School
from msgspec.structs import replace
from shala_agent import reread
from shala_agent.config import CollectConfig
from shala_agent.reread import CHANGED

DUMP = "data/postgres-dump/pg_dump_all.sql"
LOG = "data/gstudio-logs/export_users_analytics.log"


@pytest.fixture
def later(school: School, monkeypatch) -> School:
    """A school that was collected, a year ago."""
    school.collect()
    today = reread.time.time()
    monkeypatch.setattr("shala_agent.reread.time", type("Clock", (), {"time": lambda: today + 365 * 86_400}))
    return school


def rot(path) -> None:
    """Change a byte of a file as a bad disk does: no time tells."""
    seen = path.stat()
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


@pytest.fixture(autouse=True)
def _no_ctime(monkeypatch):
    # Only a disk changes bytes and leaves the ctime; a test cannot.
    monkeypatch.setattr(
        "shala_agent.collect._signs", lambda _item, seen: (seen.st_size, seen.st_mtime_ns, 0, seen.st_ino)
    )
    as_sealed = "shala_agent.collect._is_as_sealed"
    monkeypatch.setattr(
        as_sealed,
        lambda known, item, seen: (
            known.sight((seen.st_size, seen.st_mtime_ns, 0, seen.st_ino), item.check_id) is not None
            and known.sha256 == known.sealed_sha256
        ),
    )


def item(collected, name: str):
    return next(one for one in collected.collection.items if one.name == name)


def reads(monkeypatch) -> list[str]:
    seen: list[str] = []
    real = reread.Reread.read

    def read(self, entry, known, mirror):
        seen.append(entry.relative)
        return real(self, entry, known, mirror)

    monkeypatch.setattr(reread.Reread, "read", read)
    return seen


def test_after_its_days_an_unchanged_file_is_read_again_and_then_rests(later: School, monkeypatch):
    monkeypatch.setattr("shala_agent.seen.time", reread.time)
    read = reads(monkeypatch)
    assert not later.collect().sealed
    assert "export_users_analytics.log" in read
    del read[:]
    assert not later.collect().sealed
    assert read == []


def test_before_its_days_nothing_is_read_again(school: School, monkeypatch):
    school.collect()
    read = reads(monkeypatch)
    school.collect()
    assert read == []


def test_one_collection_reads_no_more_again_than_it_may(later: School, monkeypatch):
    for number in range(5):
        later.write(f"data/rcs-repo/Nodes/{number}.json", f'["{"x" * 700_000}"]')
    later.collect()
    read = reads(monkeypatch)
    config = replace(later.config, collect=CollectConfig(reread_mb=1))
    School(later.root, config, later.config_path, later.container).collect()
    assert 1 <= sum("Nodes/" in one for one in read) <= 2


def test_no_days_mean_never(later: School, monkeypatch):
    read = reads(monkeypatch)
    config = replace(later.config, collect=CollectConfig(reread_days=0))
    School(later.root, config, later.config_path, later.container).collect()
    assert read == []


def test_a_copy_that_has_gone_bad_is_taken_again(later: School):
    mirror = later.bag() / "data/gstudio/gstudio-logs/export_users_analytics.log"
    rot(mirror)
    collected = later.collect()
    assert mirror.read_bytes() == (later.root / LOG).read_bytes()
    assert "gone bad in the mirror" in item(collected, "gstudio-logs").reasons[0]
    assert item(collected, "gstudio-logs").outcome == "ok"


def test_a_source_that_has_gone_bad_never_replaces_the_good_copy(later: School):
    good = (later.root / LOG).read_bytes()
    rot(later.root / LOG)
    for _ in range(2):  # it is said as long as it is so
        collected = later.collect()
        assert item(collected, "gstudio-logs").outcome == "suspect"
        assert any(CHANGED in one for one in item(collected, "gstudio-logs").reasons)
        assert (later.bag() / "data/gstudio/gstudio-logs/export_users_analytics.log").read_bytes() == good


def test_what_has_gone_bad_in_both_is_taken_and_labelled_until_it_changes(later: School):
    song = next((later.root / "data/media").rglob("*.ogg"))
    rot(song)
    for _ in range(2):
        collected = later.collect()
        assert item(collected, "media").outcome == "suspect"
        assert any(CHANGED in one for one in item(collected, "media").reasons)
    assert not list(later.spool.damaged())


def test_what_the_policy_gave_another_form_is_compared_in_both_forms(later: School, monkeypatch):
    monkeypatch.setattr("shala_agent.seen.time", reread.time)
    read = reads(monkeypatch)
    mirror = later.bag() / "data/gstudio/postgres-dump/pg_dump_all.sql"
    assert mirror.read_bytes() != (later.root / DUMP).read_bytes()
    assert not later.collect().sealed
    assert "pg_dump_all.sql" in read


def test_a_copy_in_another_form_that_has_gone_bad_is_made_again(later: School):
    mirror = later.bag() / "data/gstudio/postgres-dump/pg_dump_all.sql"
    good = mirror.read_bytes()
    rot(mirror)
    assert item(later.collect(), "postgres-dump").outcome == "ok"
    assert mirror.read_bytes() == good
