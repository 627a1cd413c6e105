"""Room: the spool leaves the platform its disk, and what nobody else has is never given up for it."""

from __future__ import annotations

import json

import pytest
from agent_school import School, sql
from click.testing import CliRunner
from msgspec.structs import replace
from shala_agent import cli, room
from shala_agent.acknowledge import acknowledge
from shala_agent.config import SpoolConfig
from shala_agent.failure import Stopped
from shala_agent.room import MB, Room
from shala_agent.spool import Spool

DUMP = "data/gstudio/postgres-dump/pg_dump_all.sql"


def limited(school: School, **limits: int) -> School:
    """Return the same school with other limits of its spool."""
    return School(
        school.root, replace(school.config, spool=SpoolConfig(**limits)), school.config_path, school.container
    )


def item(collected, name: str):
    return next(one for one in collected.collection.items if one.name == name)


def told(school: School) -> None:
    """Have the centre say that it has the newest collection."""
    head = school.spool.head()
    acknowledge(school.config, school.ledger(), head.sequence, head.manifest_sha256)


@pytest.fixture
def full(school: School, monkeypatch) -> School:
    """A school whose disk has room for a new dump only when the old one is gone."""
    school.write("data/postgres-dump/pg_dump_all.sql", sql(100_000))
    school.collect()
    new = school.write("data/postgres-dump/pg_dump_all.sql", sql(100_001), age=1).stat().st_size
    mirror = school.bag() / DUMP
    old = mirror.stat().st_size

    def free(_path) -> int:
        # Until it has lost its password hashes, the new one lies there twice.
        return 500 * MB + 2 * new - old // 2 + (0 if mirror.exists() else old)

    monkeypatch.setattr(room, "free_at", free)
    return school


def test_what_does_not_fit_is_named_and_the_rest_is_taken(school: School, monkeypatch):
    monkeypatch.setattr(room, "free_at", lambda _path: 500 * MB + 10_000)
    school.write("data/rcs-repo/Nodes/a/large.json", json.dumps(["x" * 20_000]))
    collected = school.collect()
    assert item(collected, "rcs-repo").outcome == "suspect"
    assert "Nodes/a/large.json finds no room: 500 MB are free" in item(collected, "rcs-repo").reasons[0]
    assert item(collected, "rcs-repo").files == 1
    assert item(collected, "server_settings.py").outcome == "ok"


def test_what_the_centre_does_not_have_is_never_given_up(full: School):
    collected = full.collect()
    assert item(collected, "postgres-dump").outcome == "failed"
    assert "finds no room" in item(collected, "postgres-dump").reasons[0]
    assert (full.bag() / DUMP).read_bytes().count(b"user-") == 100_000


def test_what_the_centre_has_makes_room_for_the_new_and_it_is_said(full: School):
    told(full)
    collected = full.collect()
    assert item(collected, "postgres-dump").outcome == "ok"
    assert any(
        "collection 1, which the centre has" in one for one in item(collected, "postgres-dump").reasons
    )
    assert (full.bag() / DUMP).read_bytes().count(b"user-") == 100_001
    assert not list(full.spool.damaged())


@pytest.mark.parametrize("disk", ["the spool's", "its own"])
def test_a_plain_copy_leaves_the_disk_its_floor_too(school: School, monkeypatch, disk):
    plain = school.root / "state/plain"
    size = school.write("data/postgres-dump/pg_dump_all.sql", sql(10_000)).stat().st_size
    copied: list[int] = []

    def free(path) -> int:
        if disk == "its own" and path != plain:
            return 10_000 * MB
        return 500 * MB + size // 2 + (size if disk == "the spool's" else 0)

    if disk == "its own":
        monkeypatch.setattr("shala_agent.collect._on_one_disk", lambda *_: False)
    monkeypatch.setattr(room, "free_at", free)
    monkeypatch.setattr("shala_agent.copying.Copy._copy_plain", lambda *_: copied.append(1))
    dump = item(school.collect(), "postgres-dump")
    assert dump.outcome == "failed"
    assert "finds no room: 500 MB are free" in dump.reasons[0]
    assert not copied


def test_a_cut_after_the_old_one_was_given_up_is_made_good_by_the_next_run(full: School, monkeypatch):
    told(full)
    with monkeypatch.context() as patch:
        new_file = Spool.new_file

        def cut(self, path):
            if path.endswith("pg_dump_all.sql"):
                raise Stopped
            return new_file(self, path)

        patch.setattr(Spool, "new_file", cut)
        with pytest.raises(Stopped):
            full.collect()
    assert not (full.bag() / DUMP).exists()
    assert item(full.collect(), "postgres-dump").outcome == "ok"
    assert (full.bag() / DUMP).read_bytes().count(b"user-") == 100_001
    assert not list(full.spool.damaged())


def test_nothing_is_given_up_in_vain(full: School, monkeypatch):
    told(full)
    monkeypatch.setattr(room, "free_at", lambda _path: 0)
    full.collect()
    assert (full.bag() / DUMP).exists()


def test_the_oldest_acknowledged_lists_of_changes_go_first(school: School, monkeypatch):
    for day in range(4):
        school.write("data/gstudio-logs/day.log", "day\n" * (day + 1))
        school.collect()
    acknowledge(school.config, school.ledger(), 2, "")
    monkeypatch.setattr(room, "free_at", lambda _path: 0)
    school.write("data/gstudio-logs/day.log", "another\n")
    school.collect()
    assert school.spool.sequences() == [3, 4, 5]


def test_a_quota_counts_what_the_spool_holds_and_not_the_platforms_own_files(school: School):
    limited(school, quota_mb=1).collect()
    spool = Room(school.root / "spool", SpoolConfig(quota_mb=1, min_free_mb=0))
    assert spool.lacks(1_000_000).startswith("finds no room: the spool may hold 1 MB")
    assert not spool.lacks(100_000)
    school.write("data/rcs-repo/Nodes/large.json", json.dumps(["x" * 2_000_000]))
    song = b"song" * 1_000_000
    school.write(f"data/media/1/2/3/{'4' * 61}.ogg", song)
    collected = limited(school, quota_mb=1).collect()
    assert "the spool may hold 1 MB" in item(collected, "rcs-repo").reasons[0]
    assert item(collected, "media").files == 3


def test_what_others_write_meanwhile_is_seen_before_the_floor_is_far_behind(tmp_path, monkeypatch):
    free = [10_000 * MB]
    monkeypatch.setattr(room, "free_at", lambda _path: free[0])
    disk = Room(tmp_path, SpoolConfig())
    assert not disk.lacks(MB)
    free[0] = 0
    written = 0
    while not disk.lacks(MB):
        disk.add(MB)
        written += MB
    assert written <= room.UNMEASURED


def test_without_room_no_dump_is_made_and_the_heartbeat_is_taken(school: School, monkeypatch):
    from shala_agent import chain

    monkeypatch.setattr(chain, "free_at", lambda _path: 0)
    monkeypatch.setattr(chain, "Container", lambda *_: school.container)
    passage = chain.Chain(school.config, school.ledger()).run()
    how = dict(passage.steps)
    assert "0 MB are free" in how["postgres-dump"].reasons[0]
    assert how["progress"].outcome == "failed"
    assert how["heartbeat"].outcome != "failed"


def test_a_collection_is_acknowledged_by_its_number_and_its_manifest(school: School):
    def asked(*arguments: str):
        return CliRunner().invoke(
            cli.shala_agent, ["--config", str(school.config_path), "acknowledge", *arguments]
        )

    assert "was never sealed here" in str(asked("1", "--manifest", "0" * 64).exception)
    school.collect()
    head = school.spool.head()
    assert "another manifest" in str(asked("1", "--manifest", "0" * 64).exception)
    done = asked("1", "--manifest", head.manifest_sha256, "--json")
    assert (done.exit_code, json.loads(done.output)["acknowledged"]) == (0, 1)
    assert school.ledger().mark(room.ACKNOWLEDGED) == 1
    shown = CliRunner().invoke(cli.shala_agent, ["--config", str(school.config_path), "status"]).output
    assert "the centre has collection 1" in shown
