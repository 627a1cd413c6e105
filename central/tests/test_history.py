"""Earlier collections: what is kept, how it comes back, and what may go."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import zstandard
from central_school import School, received, tree_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shala_central import history
from shala_central.archive import Archive
from shala_central.checkout import checkout
from shala_central.failure import CentralError, UsageError
from shala_central.history import Version, superfluous
from shala_central.retention import prune
from shala_central.verify import verify
from shala_central.versions import diff, version_of, versions_of

SHARED = ("gstudio/media",)
NAMES = st.sampled_from(
    ["gstudio/db/a", "gstudio/db/b/c", "gstudio/media/x", "gstudio/media/y/z", "unplatform/u"]
)
DAYS = st.lists(st.dictionaries(NAMES, st.binary(max_size=2), min_size=1, max_size=5), min_size=1, max_size=7)
NOW = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)


def objects_of(archive: Archive) -> set[tuple[str, str]]:
    return {(pool, digest) for pool in archive.objects.pools() for digest, _ in archive.objects.stored(pool)}


def needed_by(name: str, days: list[dict[str, bytes]]) -> set[tuple[str, str]]:
    return {
        ("shared" if path.startswith("gstudio/media/") else name, hashlib.sha256(content).hexdigest())
        for day in days
        for path, content in day.items()
    }


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DAYS, st.sets(st.integers(0, 6)))
def test_every_kept_collection_comes_back_as_it_was_sealed_and_nothing_else_is_kept(
    tmp_path_factory, days, old
):
    folder = tmp_path_factory.mktemp("archive")
    school = School(tmp_path_factory.mktemp("spool"))
    archive = Archive(folder / "archive", SHARED)
    archive.open()
    committed: dict[int, dict[str, bytes]] = {}
    for number, day in enumerate(days):
        school.sequence = number + 1
        # A month each: of the last 30 days there is one, the policy keeps what is not in `old`.
        pulled = f"{2024 if number in old else 2026}-{number + 1:02d}-01T00:00:00+00:00"
        if received(archive, school, day, pulled) is not None:
            committed[school.sequence] = day
    prune(archive, keep_days=100_000, keep_months=0)
    kept = {version.sequence: version for version in versions_of(archive, school.name)}
    assert kept.keys() == committed.keys()
    forgotten = prune(archive, keep_days=330, keep_months=0).versions
    dated = [sequence for sequence in list(committed)[:-1] if sequence - 1 in old]
    assert {version.sequence for version in forgotten} == set(dated[:-1])
    for version in forgotten:
        del committed[version.sequence]
    for number, (sequence, day) in enumerate(committed.items()):
        version = version_of(archive, school.name, sequence)
        assert checkout(archive, version, folder / str(number)) == (len(day), sum(map(len, day.values())))
        assert tree_of(folder / str(number)) == day
    assert objects_of(archive) == needed_by(school.name, list(committed.values()))
    for (one, a), (other, b) in itertools.pairwise(committed.items()):
        differences = diff(
            archive, version_of(archive, school.name, one), version_of(archive, school.name, other)
        )
        assert {d.path for d in differences} == {p for p in a.keys() | b.keys() if a.get(p) != b.get(p)}
    assert verify(archive, school.name) == []


def test_a_checkout_has_the_times_and_permissions_of_the_school(archive, school, tmp_path):
    school.sequence = 1
    received(archive, school, {"gstudio/db/a": b"one"})
    checkout(archive, version_of(archive, school.name, 1), tmp_path / "out")
    seen = (tmp_path / "out/gstudio/db/a").stat()
    assert (seen.st_mtime, seen.st_mode & 0o777) == (1_700_000_000, 0o644)


def test_a_checkout_of_one_item_holds_nothing_else(archive, school, tmp_path):
    school.sequence = 1
    received(archive, school, {"gstudio/db/a": b"one", "gstudio/db2/a": b"two"})
    checkout(archive, version_of(archive, school.name, 1), tmp_path / "out", "gstudio/db")
    assert tree_of(tmp_path / "out") == {"gstudio/db/a": b"one"}
    with pytest.raises(UsageError, match="holds nothing at 'gstudio/media'"):
        checkout(archive, version_of(archive, school.name, 1), tmp_path / "other", "gstudio/media")
    with pytest.raises(UsageError, match="exists already"):
        checkout(archive, version_of(archive, school.name, 1), tmp_path / "out")
    with pytest.raises(UsageError, match="has no collection 7"):
        version_of(archive, school.name, 7)


def test_damaged_or_lost_content_is_never_checked_out(archive, school, tmp_path):
    school.sequence = 1
    received(archive, school, {"gstudio/db/a": b"one"})
    place = archive.objects.find(school.name, "gstudio/db/a", hashlib.sha256(b"one").hexdigest())
    place.chmod(0o640)
    place.write_bytes(b"0ne")
    with pytest.raises(CentralError, match="has changed"):
        checkout(archive, version_of(archive, school.name, 1), tmp_path / "out")
    place.unlink()
    with pytest.raises(CentralError, match="not in the archive any more"):
        checkout(archive, version_of(archive, school.name, 1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_another_school_sent_is_used_of_shared_items_and_of_no_other(archive, tmp_path):
    one, other = (School(tmp_path / name, name=name, sequence=1) for name in ("2031017-mz17", "2031008-mz8"))
    for school in (one, other):
        school.spool.mkdir()
    secret, lesson = {"gstudio/db/a": b"marks"}, {"gstudio/media/x": b"lesson"}
    received(archive, one, {**secret, **lesson})
    received(archive, other, {"gstudio/db/a": b"own", **lesson})
    assert archive.committed(other.name).pull.files_received == 1
    # Nor does naming another's content under a shared item give it away.
    other.sequence = 2
    received(archive, other, {"gstudio/media/claimed": b"marks"})
    assert archive.committed(other.name).pull.files_received == 1
    assert (archive.root / "2026/mz" / one.name / "gstudio/media/x").stat().st_nlink == 2


def test_nothing_is_pruned_while_somebody_pulls(archive):
    with archive.in_use(), archive.in_use(), pytest.raises(CentralError, match="a pull, or a command"):
        prune(archive, 30, 24)
    with (
        archive.in_use(alone=True),
        pytest.raises(CentralError, match="prune, or a repair, is at work"),
        archive.in_use(),
    ):
        pass


def test_a_dry_run_removes_nothing(archive, school):
    for number in range(1, 4):
        school.sequence = number
        received(archive, school, {"gstudio/db/a": str(number).encode()}, f"2020-01-0{number}T00:00:00+00:00")
    before = objects_of(archive)
    told = prune(archive, 30, 24, pretend=True)
    assert [version.sequence for version in told.versions] == [1]
    assert objects_of(archive) == before
    done = prune(archive, 30, 24)
    assert (len(done.versions), done.objects, done.bytes) == (1, 1, 1)


@given(st.lists(st.integers(0, 4000), max_size=40), st.integers(0, 60), st.integers(0, 40))
def test_the_policy_keeps_all_recent_ones_and_the_newest_of_each_month_and_year(ages, days, months):
    ages = sorted(ages, reverse=True)
    versions = [
        Version(i, "s", (NOW - datetime.timedelta(days=age)).isoformat(), 2026, i, 1, 1)
        for i, age in enumerate(ages)
    ]
    gone = {version.id for version in superfluous(versions, NOW, days, months)}
    assert all(ages[i] > days for i in gone)
    old = [v for v in versions if ages[v.id] > days]
    kept_years = {v.pulled[:4] for v in old if v.id not in gone}
    assert kept_years == {v.pulled[:4] for v in old}
    for v in old:
        then = datetime.datetime.fromisoformat(v.pulled)
        if (NOW.year - then.year) * 12 + NOW.month - then.month <= months:
            newest = max(w.id for w in old if w.pulled[:7] == v.pulled[:7])
            assert (v.id in gone) == (v.id != newest)


def test_a_day_without_news_costs_the_history_less_than_two_kilobytes(archive, school):
    files = {f"gstudio/media/{n}": str(n).encode() for n in range(300)}
    path = archive.hidden / "history.sqlite"
    sizes = []
    for number in range(1, 42):
        school.sequence = number
        beat = {"gstudio/system-heartbeat/beat.log": str(number).encode()}
        received(archive, school, {**files, **beat}, f"2026-01-01T00:00:{number:02d}+00:00")
        sizes.append(path.stat().st_size if path.exists() else 0)
    assert (sizes[-1] - sizes[10]) / 30 < 2048


# -- how a record is packed ----------------------------------------------------------------------------------


@pytest.fixture
def two(archive: Archive, school: School) -> Archive:
    """An archive with an earlier collection of the school, and its newest."""
    for number in (1, 2):
        school.sequence = number
        received(archive, school, {"gstudio/db/a": bytes([number])}, f"2026-11-{number:02d}T00:00:00+00:00")
    return archive


def test_the_shape_by_which_records_are_read_never_changes():
    shape = Path(history.__file__).with_name("record-shape-1.txt").read_bytes()
    assert (
        hashlib.sha256(shape).hexdigest()
        == "29276b3dfa718986b50618c82f2bddb962fa52bf275fe3991762e9fa4f57b3b8"
    )


def test_what_all_records_have_in_common_takes_no_room(two: Archive, school: School):
    with two.history() as kept:
        record = kept.record(kept.versions(school.name)[0])
    alone = len(zstandard.compress(msgspec.msgpack.encode(record), 12))
    with closing(sqlite3.connect(two.hidden / "history.sqlite")) as db:
        ((size,),) = db.execute("SELECT length(record) FROM collection")
    assert size < alone * 0.75


def test_a_record_that_an_older_shala_packed_by_itself_is_read_and_marked(two: Archive, school: School):
    with two.history() as kept:
        (version,) = kept.versions(school.name)
        record = kept.record(version)
    with closing(sqlite3.connect(two.hidden / "history.sqlite")) as db, db:
        db.execute("ALTER TABLE collection DROP COLUMN sum")
        db.execute("UPDATE collection SET record = ?", (zstandard.compress(msgspec.msgpack.encode(record)),))
        db.execute("PRAGMA user_version = 1")
    with two.history() as kept:
        assert kept.record(version) == record
        kept.mark(version, "note.txt", b"said later")
        assert kept.record(version) == {**record, "note.txt": b"said later"}
    with closing(sqlite3.connect(two.hidden / "history.sqlite")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (history.VERSION,)


def test_a_history_that_a_newer_shala_has_written_is_left_alone(two: Archive):
    with closing(sqlite3.connect(two.hidden / "history.sqlite")) as db:
        db.execute(f"PRAGMA user_version = {history.VERSION + 1}")
    with pytest.raises(CentralError, match="update the centre"), two.history():
        pass
