from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
from contextlib import closing

import bagit
import msgspec
import pytest
from agent_school import EARLIER, School, bson, csv, rcs, school_in, sql
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shala_agent import collect as collect_module
from shala_agent import copying
from shala_agent import seen as seen_module
from shala_agent import spool as spool_module
from shala_agent.acknowledge import acknowledge
from shala_agent.checks import PROGRESS_COLUMNS
from shala_agent.collection import read_collection, write_collection
from shala_agent.device import SIGNATURE, Device, SignatureWrong, device_id, signer_of
from shala_agent.failure import AgentError
from shala_agent.identity import IdentityRefused
from shala_agent.manifest import File, bagit_lines, read_changes, sort_key
from shala_agent.outcome import MAX_REASONS, Findings, Result, failed, shortened
from shala_agent.privacy import NEVER, Policy
from shala_agent.writers import Writer


def item(collected, name, platform="gstudio"):
    return collected.collection.item(platform, name)


RECORDING = "data/gstudio/assessment-media/studentResponseFiles/a.wav"
RECORDED = "assessments/studentResponseFiles/a.wav"


class PowerCut(BaseException):
    """The plug is pulled."""


def judge(school: School) -> None:
    """Let the reference implementation of BagIt decide, and check HEAD."""
    bag = bagit.Bag(str(school.bag()))
    assert bag.validate()
    head = school.spool.head()
    digest = hashlib.sha256((school.bag() / "manifest-sha256.txt").read_bytes()).hexdigest()
    assert head is not None
    assert head.manifest_sha256 == digest
    modes = {path: path.stat() for path in school.bag().rglob("*") if path.is_file()}
    # Readable for the group; what is written once may be the platform's own file, readable for all.
    linked = {path for path in modes if "media" in str(path.relative_to(school.bag()))}
    assert all(s.st_mode & 0o777 == 0o640 for path, s in modes.items() if path not in linked)
    assert all(modes[path].st_mode & 0o777 in {0o640, 0o644} for path in linked)
    files = list(school.spool.files())
    listed = {school.bag() / file.path: file for file in files}
    assert listed.keys() == {path for path in modes if "data" in path.relative_to(school.bag()).parts}
    assert all(
        (s.st_size, s.st_mtime_ns) == (listed[p].size, listed[p].mtime_ns)
        for p, s in modes.items()
        if p in listed
    )
    assert list(bagit_lines(files)) == (school.bag() / "manifest-sha256.txt").read_bytes().splitlines(
        keepends=True
    )
    assert not (school.root / "spool/NEXT").exists()
    assert not school.spool.assembling.exists()
    assert all(path.stat().st_mode & 0o777 == 0o750 for path in school.bag().rglob("*") if path.is_dir())


def test_a_whole_school_is_collected_as_a_valid_bag(school):
    collected = school.collect()
    assert collected.sealed
    assert {i.name: i.outcome for i in collected.collection.items} == dict.fromkeys(
        (i.name for i in collected.collection.items), "ok"
    )
    assert len(collected.collection.items) == 15
    judge(school)
    assert (school.bag() / "data/gstudio/db/gstudio-mongodb/Nodes.bson").read_bytes() == bson(5)
    assert (school.bag() / "data/gstudio/assessment-media/studentResponseFiles/a.wav").exists()
    assert (school.bag() / "data/gstudio/media").stat().st_mtime > EARLIER
    head = json.loads((school.root / "spool/HEAD").read_bytes())
    assert head["server_name"] == "2031017-mz17"
    assert head["format"] == 2
    assert int((school.bag() / "data/gstudio/nginx-logs/access.log").stat().st_mtime) == EARLIER


def test_nothing_new_seals_nothing(school):
    first = school.collect()
    second = school.collect()
    assert not second.sealed
    assert second.head == first.head
    assert school.spool.sequences() == [1]
    judge(school)


def test_unchanged_files_stay_as_they_are_and_changed_ones_are_replaced(school):
    school.collect()
    same, log = (
        school.bag() / f"data/gstudio/{name}" for name in ("server_settings.py", "nginx-logs/access.log")
    )
    before = same.stat().st_ino, log.stat().st_ino
    digest = hashlib.sha256((school.bag() / "manifest-sha256.txt").read_bytes()).hexdigest()
    school.write("data/nginx-logs/access.log", "GET /\nGET /2\n")
    with log.open("rb") as reader:
        collected = school.collect()
        assert reader.read() == b"GET /\n"
    assert collected.sealed
    judge(school)
    assert same.stat().st_ino == before[0]
    assert log.stat().st_ino != before[1]
    assert collected.collection.previous_manifest_sha256 == digest


def test_changes_say_how_each_collection_came_from_the_one_before(school):
    held = []
    for day in range(3):
        school.write("data/nginx-logs/access.log", f"day {day}\n")
        school.write(f"data/rcs-repo/{day}.json", "{}")
        if day:
            (school.data / f"rcs-repo/{day - 1}.json").unlink()
        school.collect()
        held.append(list(school.spool.files()))
    assert school.spool.sequences() == [1, 2, 3]
    folded: dict[str, File] = {}
    for number, files in enumerate(held, 1):
        changes = (school.root / f"spool/changes/{number:08d}.txt").read_bytes().splitlines(keepends=True)
        assert len(changes) < 5 or number == 1
        for change in read_changes(changes):
            folded.pop(change.path, None)
            if isinstance(change, File):
                folded[change.path] = change
        assert sorted(folded.values(), key=lambda file: sort_key(file.path)) == files


def test_a_file_that_becomes_a_folder_and_back_is_replaced(school):
    thing = school.write("data/rcs-repo/thing", "file\n")
    school.collect()
    thing.unlink()
    school.write("data/rcs-repo/thing/inside", "folder\n")
    school.collect()
    judge(school)
    (thing / "inside").unlink()
    thing.rmdir()
    school.write("data/rcs-repo/thing", "file again\n")
    school.collect()
    judge(school)
    assert (school.bag() / "data/gstudio/rcs-repo/thing").read_text() == "file again\n"


def test_what_is_written_once_takes_no_room_twice(school):
    school.collect()
    assert (school.bag() / "data/gstudio/assessment-media/studentResponseFiles/a.wav").samefile(
        school.root / "assessments/studentResponseFiles/a.wav"
    )
    assert (school.bag() / "data/gstudio/nginx-logs/access.log").stat().st_nlink == 1


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o666])
def test_what_others_may_not_read_or_may_write_is_copied(school, mode):
    recording = school.root / "assessments/studentResponseFiles/a.wav"
    recording.chmod(mode)
    school.collect()
    taken = school.bag() / "data/gstudio/assessment-media/studentResponseFiles/a.wav"
    assert taken.stat().st_nlink == 1
    assert taken.stat().st_mode & 0o777 == 0o640


def test_an_unchanged_file_is_not_read_again(school, monkeypatch):
    school.collect()
    school.write("data/nginx-logs/access.log", "GET /\nGET /2\n")
    read = []
    read_through = copying.read_through
    monkeypatch.setattr(copying, "read_through", lambda *a: read.append(a) or read_through(*a))
    school.collect()
    assert len(read) == 1


def test_the_same_content_under_a_new_time_is_not_stored_twice(school):
    school.collect()
    dump = school.data / "postgres-dump/pg_dump_all.sql"
    os.utime(dump)
    school.write("data/nginx-logs/access.log", "other\n")
    school.collect()
    name = "data/gstudio/postgres-dump/pg_dump_all.sql"
    assert (school.bag() / name).stat().st_mtime == EARLIER
    assert len((school.root / "spool/changes/00000002.txt").read_bytes().splitlines()) == 1


def test_only_the_newest_changes_stay(school):
    settings = msgspec.structs.replace(school.config.collect, changes_kept=2)
    school.config = msgspec.structs.replace(school.config, collect=settings)
    for day in range(4):
        school.write("data/nginx-logs/access.log", f"day {day}\n")
        school.collect()
    assert school.spool.sequences() == [3, 4]
    judge(school)


def test_an_item_that_cannot_be_made_keeps_the_last_good_copy(school):
    school.collect()
    with closing(school.ledger()) as ledger:
        ledger.finish(ledger.start("by hand"), "postgres-dump", failed("PostgreSQL: it does not answer"))
    school.write("data/postgres-dump/pg_dump_all.sql", "half\n")
    school.write("data/nginx-logs/access.log", "new\n")
    collected = school.collect()
    kept = item(collected, "postgres-dump")
    assert (kept.outcome, kept.carried_from) == ("failed", 1)
    assert any("PostgreSQL: it does not answer" in reason for reason in kept.reasons)
    assert b"complete" in (school.bag() / "data/gstudio/postgres-dump/pg_dump_all.sql").read_bytes()
    school.write("data/nginx-logs/access.log", "newer\n")
    assert item(school.collect(), "postgres-dump").carried_from == 1
    judge(school)


def test_an_item_that_has_gone_is_carried_and_said(school):
    school.collect()
    (school.data / "rcs-repo").rename(school.root / "away")
    school.write("data/nginx-logs/access.log", "new\n")
    gone = item(school.collect(), "rcs-repo")
    assert (gone.outcome, gone.carried_from, gone.files) == ("failed", 1, 1)
    judge(school)


def test_an_item_that_was_emptied_is_carried_and_said(school):
    school.collect()
    (school.data / "postgres-dump/pg_dump_all.sql").unlink()
    for path in (school.data / "media").rglob("*.ogg"):
        path.unlink()
    school.write("data/nginx-logs/access.log", "new\n")
    collected = school.collect()
    for name in ("postgres-dump", "media"):
        assert (item(collected, name).outcome, item(collected, name).carried_from) == ("failed", 1)
        assert item(collected, name).files
    judge(school)


def test_a_broken_dump_never_replaces_a_good_one(school):
    school.collect()
    school.write("data/postgres-dump/pg_dump_all.sql", "")
    school.write("data/.shala/db/gstudio-mongodb/Nodes.bson", bson(5)[:-3])
    school.write("data/nginx-logs/access.log", "new\n")
    collected = school.collect()
    for name in ("postgres-dump", "db"):
        assert (item(collected, name).outcome, item(collected, name).carried_from) == ("failed", 1)
    assert (school.bag() / "data/gstudio/db/gstudio-mongodb/Nodes.bson").read_bytes() == bson(5)
    judge(school)


def test_a_dump_that_was_never_good_is_taken_and_labelled(school):
    school.write("data/postgres-dump/pg_dump_all.sql", "half\n")
    for _ in range(2):
        assert item(school.collect(), "postgres-dump").outcome == "suspect"
        school.write("data/nginx-logs/access.log", "new\n")


def test_a_file_that_the_mirror_has_lost_is_taken_again(school):
    school.collect()
    lost = school.bag() / "data/gstudio/rcs-repo/Nodes/a/b/c/x.json,v"
    lost.unlink()
    school.write("data/nginx-logs/access.log", "new\n")
    school.collect()
    assert lost.read_bytes() == rcs()
    judge(school)


@pytest.mark.parametrize("failing", ["write_manifest", "_apply", "_write_head"])
def test_a_disk_that_is_full_at_any_step_costs_nothing_but_time(school, monkeypatch, failing):
    school.collect()
    school.write("data/nginx-logs/access.log", "new\n")
    school.write("data/rcs-repo/new.json", "{}")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spool_module.Spool, failing, full)
        with pytest.raises(AgentError, match="No space left"):
            school.collect()
    school.collect()
    judge(school)
    assert (school.bag() / "data/gstudio/rcs-repo/new.json").read_text() == "{}"


def test_a_full_disk_as_the_cache_meets_it_is_one_line(school, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("shala_agent.seen.Seen.commit", full)
    with pytest.raises(AgentError, match="disk is full"):
        school.collect()


def test_a_staged_file_that_is_lost_never_becomes_part_of_a_collection(school, monkeypatch):
    school.collect()
    school.write("data/rcs-repo/new.json", "{}")
    apply = spool_module.Spool._apply

    def losing(spool, changes):
        (spool.assembling / "bag/data/gstudio/rcs-repo/new.json").unlink()
        return apply(spool, changes)

    with monkeypatch.context() as patch:
        patch.setattr(spool_module.Spool, "_apply", losing)
        with pytest.raises(AgentError, match=r"new\.json was lost .* takes it again"):
            school.collect()
    assert (school.bag() / RECORDING).exists()
    assert school.collect().head.sequence == 3
    judge(school)
    assert (school.bag() / "data/gstudio/rcs-repo/new.json").exists()


@pytest.mark.parametrize("lost", ["a file", "its list of changes", "a list of files"])
def test_what_is_lost_of_a_collection_before_it_is_in_its_place_is_taken_again(school, monkeypatch, lost):
    school.collect()
    school.write("data/rcs-repo/new.json", "{}")
    finish = spool_module.Spool._finish

    def cut(spool):
        if (spool.root / "NEXT").exists():
            raise PowerCut
        return finish(spool)

    with monkeypatch.context() as patch:
        patch.setattr(spool_module.Spool, "_finish", cut)
        with contextlib.suppress(PowerCut):
            school.collect()
    assembled = school.spool.assembling
    if lost == "a file":
        os.truncate(assembled / "bag/data/gstudio/rcs-repo/new.json", 1)
        before = (school.bag() / RECORDING).stat().st_ctime_ns
    elif lost == "its list of changes":
        (assembled / "changes.txt").write_bytes(b"nonsense\n")
    else:
        (assembled / "bag/tagmanifest-sha256.txt").unlink()
        (school.bag() / "tagmanifest-sha256.txt").unlink()
    collected = school.collect()
    judge(school)
    assert all(i.outcome == "ok" for i in collected.collection.items)
    assert (school.bag() / "data/gstudio/rcs-repo/new.json").read_text() == "{}"
    if lost == "a file":  # and nothing else
        assert (school.bag() / RECORDING).stat().st_ctime_ns == before
        changes = (school.root / "spool/changes/00000003.txt").read_text().splitlines()
        assert [line.split("gstudio/")[1] for line in changes] == ["rcs-repo/new.json"]


def test_a_folder_that_cannot_be_read_costs_only_what_is_in_it(school, monkeypatch):
    school.write("data/rcs-repo/sound.json", "{}")
    school.collect()
    scandir = os.scandir
    broken = (school.data / "rcs-repo/Nodes/a").stat().st_ino

    def failing(folder="."):
        if isinstance(folder, int) and os.fstat(folder).st_ino == broken:
            raise OSError(5, "Input/output error")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    school.write("data/rcs-repo/sound.json", "[1]")
    repo = item(school.collect(), "rcs-repo")
    assert (repo.outcome, repo.files) == ("suspect", 2)
    assert any("Nodes/a/ could not be read: Input/output error" in reason for reason in repo.reasons)
    assert (school.bag() / "data/gstudio/rcs-repo/sound.json").read_text() == "[1]"
    judge(school)


@pytest.mark.parametrize("where", ["a file", "an item"])
def test_whatever_goes_wrong_with_one_thing_stops_no_other(school, monkeypatch, where):
    school.collect()
    name = "findings" if where == "a file" else "_take_part"
    owner = copying.Copy if where == "a file" else collect_module._Collector
    deed = getattr(owner, name)

    def failing(self, *arguments):
        if "rcs-repo" in (self._spot.path if where == "a file" else arguments[0].prefix):
            raise LookupError("unheard of")
        return deed(self, *arguments)

    monkeypatch.setattr(owner, name, failing)
    school.write("data/rcs-repo/Nodes/a/b/c/x.json,v", rcs("[]"))
    school.write("data/nginx-logs/access.log", "new\n")
    collected = school.collect()
    repo = item(collected, "rcs-repo")
    assert repo.outcome == ("suspect" if where == "a file" else "failed")
    assert "LookupError: unheard of" in repo.reasons[0]
    assert (school.bag() / "data/gstudio/rcs-repo/Nodes/a/b/c/x.json,v").read_bytes() == rcs()
    assert (school.bag() / "data/gstudio/nginx-logs/access.log").read_text() == "new\n"
    judge(school)


def test_an_unplatform_folder_that_cannot_be_read_is_said_and_what_was_in_it_stays(school, monkeypatch):
    school.write("unplatform/lesson/data.json", "{}")
    folder = str(school.root / "unplatform")
    paths = msgspec.structs.replace(school.config.paths, unplatform=folder)
    school.config = msgspec.structs.replace(school.config, paths=paths)
    school.collect()
    school.write("data/nginx-logs/access.log", "new\n")
    scandir = os.scandir

    def failing(path="."):
        if path == folder:
            raise OSError(5, "Input/output error")
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing)
        collected = school.collect()
    said = item(collected, "unplatform", "unplatform")
    assert (said.outcome, said.files) == ("failed", 0)
    assert said.reasons == [f"{folder} could not be read: Input/output error"]
    assert (school.bag() / "data/unplatform/lesson/data.json").exists()
    assert (school.bag() / "data/gstudio/nginx-logs/access.log").read_text() == "new\n"
    judge(school)
    assert item(school.collect(), "unplatform", "unplatform") is None


def test_names_that_are_no_text_stop_nothing(school):
    odd = os.fsencode(school.data / "media") + b"/caf\xe9"
    os.mkdir(odd)  # noqa: PTH102
    os.symlink(b"/etc/passwd", odd + b"/link")  # noqa: PTH211
    deep = school.data / "rcs-repo" / "/".join("d" * 60)
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    (school.root / "unplatform").mkdir()
    (school.root / "unplatform/a\nShala-Sequence: 99").write_text("x")
    paths = msgspec.structs.replace(school.config.paths, unplatform=str(school.root / "unplatform"))
    school.config = msgspec.structs.replace(school.config, paths=paths)
    collected = school.collect()
    assert any("caf" in reason for reason in item(collected, "media").reasons)
    assert any("folders deep" in reason for reason in item(collected, "rcs-repo").reasons)
    assert (school.bag() / "bag-info.txt").read_text().count("Shala-Sequence") == 1
    judge(school)


def test_what_the_container_makes_a_link_is_not_followed(school):
    (school.root / "elsewhere").mkdir()
    (school.data / ".shala").rename(school.root / "elsewhere/.shala")
    (school.data / ".shala").symlink_to(school.root / "elsewhere/.shala")
    dumped = item(school.collect(), "db")
    assert dumped.outcome == "failed"
    assert "does not follow" in dumped.reasons[0]


def test_a_recording_that_is_still_coming_in_is_copied(school):
    school.write("assessments/studentResponseFiles/new.wav", "half", age=1)
    school.collect()
    assert (school.bag() / "data/gstudio/assessment-media/studentResponseFiles/new.wav").stat().st_nlink == 1


def test_a_file_of_the_far_future_is_taken(school):
    path = "data/gstudio-exported-users-analytics-csvs/future.csv"
    file = school.write(path, b"server_id,sch")
    os.utime(file, (time.time() + 10**7,) * 2)
    assert item(school.collect(), "gstudio-exported-users-analytics-csvs").outcome == "suspect"


def test_a_failure_is_sealed_although_no_byte_has_changed(school):
    school.collect()
    with closing(school.ledger()) as ledger:
        ledger.finish(ledger.start("by hand"), "postgres-dump", failed("PostgreSQL: it does not answer"))
    collected = school.collect()
    assert collected.sealed
    assert item(collected, "postgres-dump").outcome == "failed"
    assert not school.collect().sealed


def test_an_item_that_never_was_is_skipped(school):
    (school.data / "qbank").rename(school.root / "away")
    assert item(school.collect(), "qbank").outcome == "skipped"


def test_what_is_not_whole_is_labelled(school):
    school.write("data/gstudio-exported-users-analytics-csvs/empty.csv", b"")
    school.write("data/qbank/student-activities/activity-data.csv", b"Username,UserID\r\n")
    school.write("data/.shala/db/gstudio-mongodb/Triples.bson", bson(3)[:-1])
    school.write(f"data/media/a/a/a/{'a' * 61}.ogg", b"another thing")
    collected = school.collect()
    for name, reason in {
        "gstudio-exported-users-analytics-csvs": "empty.csv is empty",
        "qbank": "holds only its header",
        "db": "is cut inside document 3",
        "media": "not what its name promises",
    }.items():
        assert item(collected, name).outcome == "suspect"
        assert any(reason in said for said in item(collected, name).reasons)
    # Findings are remembered with the file: an unchanged broken file stays suspect.
    assert item(school.collect(), "media").outcome == "suspect"


def test_a_csv_that_is_still_being_written_waits_for_the_next_time(school):
    school.write("data/gstudio-exported-users-analytics-csvs/new.csv", b"server_id,sch", age=1)
    collected = school.collect()
    assert item(collected, "gstudio-exported-users-analytics-csvs").outcome == "ok"
    assert not (school.bag() / "data/gstudio/gstudio-exported-users-analytics-csvs/new.csv").exists()


def test_a_log_is_cut_at_its_last_whole_line_and_taken_whole_later(school):
    log = school.write("data/nginx-logs/access.log", "GET /\nGET /ha", age=1)
    collected = school.collect()
    taken = school.bag() / "data/gstudio/nginx-logs/access.log"
    assert taken.read_text() == "GET /\n"
    assert any("last whole line" in reason for reason in item(collected, "nginx-logs").reasons)
    os.utime(log, (EARLIER, EARLIER))
    school.collect()
    assert (school.bag() / "data/gstudio/nginx-logs/access.log").read_text() == "GET /\nGET /ha"


def test_a_tool_log_in_mid_rewrite_is_read_again_until_it_parses(school, monkeypatch):
    log = school.write("data/gstudio_tools_logs/policesquad/7-policesquad.json", "", age=1)
    monkeypatch.setattr(
        collect_module.time, "sleep", lambda _s: log.write_text('[{"appName": "policesquad"}]')
    )
    assert item(school.collect(), "gstudio_tools_logs").outcome == "ok"
    assert (
        "appName"
        in (school.bag() / "data/gstudio/gstudio_tools_logs/policesquad/7-policesquad.json").read_text()
    )


def test_a_torn_tool_log_never_replaces_the_good_one(school, monkeypatch):
    monkeypatch.setattr(collect_module, "PAUSE", 0.001)
    school.collect()
    school.write("data/gstudio_tools_logs/policesquad/7-policesquad.json", '[{"a', age=1)
    school.write("data/nginx-logs/access.log", "new\n")
    collected = school.collect()
    assert item(collected, "gstudio_tools_logs").outcome == "suspect"
    assert (
        school.bag() / "data/gstudio/gstudio_tools_logs/policesquad/7-policesquad.json"
    ).read_text() == "[]"


EXPORTS = "gstudio-exported-users-analytics-csvs"
HALF, LATER, FUTURE = (
    f"{EXPORTS}/2031017-mz17-eb-unit1-{stamp}.csv"
    for stamp in ("20180815-09h00m", "20180816-09h00m", "20900101-09h00m")
)
EXPORT = csv([*PROGRESS_COLUMNS, "Quiz [5a]"])


@pytest.mark.parametrize("half", [b"", EXPORT[:-40]])
@pytest.mark.parametrize("name", [HALF, FUTURE])
def test_half_an_export_is_left_out_once_a_later_one_is_whole(school, name, half):
    school.write(f"data/{name}", half)
    suspect = item(school.collect(), EXPORTS)
    assert (suspect.outcome, suspect.files) == ("suspect", 2)
    school.write(f"data/{LATER}", EXPORT)
    for _ in range(2):  # read, and then known
        whole = item(school.collect(), EXPORTS)
        assert (whole.outcome, whole.files) == ("ok", 2)
        assert whole.reasons == ["left out: 1 file not whole, of which a later export is"]
        assert not (school.bag() / "data/gstudio" / name).exists()
        judge(school)
    assert not school.collect().sealed
    assert (school.data / name).exists()


def test_half_an_export_is_left_out_though_a_later_half_lies_beside(school):
    later_half = LATER.replace("20180816", "20180817")
    for name, content in ((HALF, EXPORT[:-40]), (LATER, EXPORT), (later_half, EXPORT[:-30])):
        school.write(f"data/{name}", content)
    found = item(school.collect(), EXPORTS)
    assert (found.outcome, found.files) == ("suspect", 3)
    assert later_half.partition("/")[2] in " ".join(found.reasons)
    assert HALF.partition("/")[2] not in " ".join(found.reasons)


@pytest.mark.parametrize(
    "later, content, age",
    [
        (LATER, EXPORT[:-40], 0),  # is half itself
        (LATER, EXPORT, 1),  # may still be written
        (LATER, csv(PROGRESS_COLUMNS, 1), 0),  # is smaller: what was below it may be gone
        (FUTURE, EXPORT, 0),  # is of a clock that was wrong
        (LATER.replace("unit1", "unit2"), EXPORT, 0),  # is of another export
        (LATER.replace("20180816", "20180814"), EXPORT, 0),  # is an earlier one
    ],
)
def test_half_an_export_without_a_later_whole_one_is_taken_and_named(school, later, content, age):
    school.write(f"data/{HALF}", EXPORT[:-40])
    school.write(f"data/{later}", content, age)
    found = item(school.collect(), EXPORTS)
    assert found.outcome == "suspect"
    assert HALF.partition("/")[2] in " ".join(found.reasons)
    assert (school.bag() / "data/gstudio" / HALF).exists()


@pytest.mark.parametrize("broken", [b"other,columns\r\n1,2\r\n", EXPORT.replace(b"\r\n", b",\r\n", 1)])
def test_an_export_that_is_broken_and_not_cut_is_never_left_out(school, broken):
    school.write(f"data/{HALF}", broken)
    school.write(f"data/{LATER}", EXPORT)
    assert item(school.collect(), EXPORTS).outcome == "suspect"
    assert (school.bag() / "data/gstudio" / HALF).exists()


def test_the_good_copy_of_an_export_stays_when_its_source_was_cut_later(school):
    school.write(f"data/{HALF}", EXPORT)
    school.collect()
    school.write(f"data/{HALF}", EXPORT[:-40])
    school.write(f"data/{LATER}", EXPORT)
    for _ in range(2):
        assert item(school.collect(), EXPORTS).outcome == "suspect"
        assert (school.bag() / "data/gstudio" / HALF).read_bytes() == EXPORT


WORSE = {
    "gstudio-exported-users-analytics-csvs/2031017-mz17-eb-unit0-20180814-17h33m.csv": b"",
    "activity-timestamp-csvs/mz17-blue-bat-mz17-activity-visits-20180814-17h37m.csv": b"Unit,Les",
    "system-heartbeat/system-heartbeat-20180814-120100.log": b"",
    "rcs-repo/Nodes/a/b/c/x.json,v": b"",
}


@pytest.mark.parametrize("cache", ["there", "lost"])
@pytest.mark.parametrize("path", [*WORSE, "local_settings.py", "media"])
def test_a_broken_file_never_replaces_the_whole_one(school, path, cache):
    name = path.split("/")[0]
    source = school.data / path
    if path == "local_settings.py":
        source = school.settings.with_name(path)
    elif path == "media":
        source = next(source.rglob("*.ogg"))
        path = f"media/{source.relative_to(school.data / 'media')}"
    good = source.read_bytes()
    school.collect()
    source.unlink()
    for worse in (WORSE.get(path, b""), b"\0\0"):
        school.write(str(source.relative_to(school.root)), worse)
        if cache == "lost":
            (school.root / "state/seen.sqlite").unlink()
        collected = school.collect()
        assert item(collected, name).outcome == "suspect"
        assert "the copy of the previous collection is kept" in item(collected, name).reasons[0]
        assert (school.bag() / "data/gstudio" / path).read_bytes() == good
        judge(school)
    school.write(str(source.relative_to(school.root)), good)
    assert item(school.collect(), name).outcome == "ok"


def test_a_broken_file_is_taken_after_one_that_was_no_better(school):
    source = school.write("data/rcs-repo/a.json,v", "half a history")
    school.collect()
    source.write_bytes(b"half another")
    assert item(school.collect(), "rcs-repo").outcome == "suspect"
    assert (school.bag() / "data/gstudio/rcs-repo/a.json,v").read_bytes() == b"half another"


def test_a_json_that_has_grown_too_large_to_check_is_taken_and_labelled(school, monkeypatch):
    monkeypatch.setattr("shala_agent.checks.MAX_JSON", 100)
    school.collect()
    log = "gstudio_tools_logs/policesquad/7-policesquad.json"
    school.write(f"data/{log}", json.dumps(list(range(200))))
    logs = item(school.collect(), "gstudio_tools_logs")
    assert logs.outcome == "suspect"
    assert "not read" in logs.reasons[0]
    assert json.loads((school.bag() / "data/gstudio" / log).read_bytes())[-1] == 199


def replaced(school: School, content: bytes) -> None:
    (school.root / RECORDED).unlink()
    school.write(RECORDED, content)


@pytest.mark.parametrize("content", [b"", b"another voice"])
def test_what_is_written_once_and_changes_keeps_its_copy_and_says_so(school, content):
    school.collect()
    replaced(school, content)
    for _ in range(2):
        media = item(school.collect(), "assessment-media")
        assert media.outcome == "suspect"
        assert "a.wav is written once and has changed" in media.reasons[0]
        assert (school.bag() / RECORDING).read_bytes() == b"wav"
        school.write("data/nginx-logs/access.log", "other\n")
    judge(school)


def test_what_is_written_once_and_changes_is_taken_when_the_centre_has_the_one_before(school):
    head = school.collect().head
    acknowledge(school.config, school.ledger(), head.sequence, head.manifest_sha256)
    replaced(school, b"another voice")
    media = item(school.collect(), "assessment-media")
    assert (media.outcome, media.files) == ("suspect", 2)
    assert "the centre has the one before" in media.reasons[0]
    assert (school.bag() / RECORDING).read_bytes() == b"another voice"
    assert item(school.collect(), "assessment-media").outcome == "ok"


def test_a_recording_that_was_taken_while_it_came_in_is_taken_whole(school):
    school.collect()
    replaced(school, b"wav" * 10)
    assert item(school.collect(), "assessment-media").outcome == "ok"
    assert (school.bag() / RECORDING).read_bytes() == b"wav" * 10


def test_a_recording_that_is_emptied_in_place_takes_the_mirrors_with_it_and_that_is_said(school):
    school.collect()
    os.truncate(school.root / RECORDED, 0)
    for _ in range(2):
        media = item(school.collect(), "assessment-media")
        assert media.outcome == "suspect"
        assert "in the mirror too: what it held is lost here" in media.reasons[0]
        judge(school)


def test_what_is_made_anew_is_taken_when_the_step_that_makes_it_has_ended(school):
    path = "data/gstudio-exported-users-analytics-csvs/new.csv"
    whole = csv([*PROGRESS_COLUMNS, "Quiz [5a]"])
    school.write(path, whole, age=1)  # whole by all that can be seen, and perhaps still growing
    taken = school.bag() / path.replace("data/", "data/gstudio/")
    progress = item(school.collect(), "gstudio-exported-users-analytics-csvs")
    assert progress.outcome == "ok"
    assert not taken.exists()
    with closing(school.ledger()) as ledger:
        ledger.finish(ledger.start("by hand"), "progress", Result("ok"))
    school.collect()
    assert taken.read_bytes() == whole


def running(command: str, seconds: float) -> str:
    """One process as the container shows it: it began so long ago."""
    up = 10_000.0
    start = int((up - seconds) * os.sysconf("SC_CLK_TCK"))
    return f"{up}|77 (python (x)) S {' '.join(['0'] * 18)} {start} 0|{command}\n"


def test_what_a_running_program_of_the_platform_may_be_writing_waits(school):
    folder = "data/gstudio-exported-users-analytics-csvs"
    slow = school.write(f"{folder}/slow.csv", csv([*PROGRESS_COLUMNS, "Quiz [5a]"]))
    os.utime(slow, (time.time() - 500,) * 2)  # at rest for long
    with closing(school.ledger()) as ledger:
        ledger.finish(ledger.start("by hand"), "progress", Result("ok"))
    school.container.processes = running("/usr/bin/python manage.py export_users_analytics ", 600)
    progress = item(school.collect(), "gstudio-exported-users-analytics-csvs")
    assert progress.reasons == ["slow.csv is still being written: it will be taken the next time"]
    assert progress.files == 1
    school.container.processes = running("/usr/bin/python manage.py export_users_analytics ", 100)
    assert item(school.collect(), "gstudio-exported-users-analytics-csvs").files == 2


def test_an_item_that_a_program_deletes_and_makes_anew_is_kept_meanwhile(school):
    school.collect()
    school.container.processes = running("python single_school_get_MIT_activity_data.py ", 1)
    (school.data / "qbank/student-activities/activity-data.csv").unlink()
    qbank = item(school.collect(), "qbank")
    assert (qbank.outcome, qbank.carried_from, qbank.files) == ("failed", 1, 1)
    assert "was writing it" in qbank.reasons[0]
    school.container.processes = ""
    judge(school)


@pytest.mark.parametrize("seen", [(True, False), (False, True)])
def test_a_program_that_ends_or_begins_meanwhile_counts_too(school, monkeypatch, seen):
    school.collect()
    looks = iter(seen)
    writer = Writer("single_school_get_MIT_activity_data.py", time.time() - 1)
    monkeypatch.setattr(collect_module, "running", lambda *_: [writer] if next(looks) else [])
    school.write("data/qbank/student-activities/activity-data.csv", b"Username,UserID\r\na,1\r\n")
    assert item(school.collect(), "qbank").outcome == "failed"
    assert (
        b"blue-bat" in (school.bag() / "data/gstudio/qbank/student-activities/activity-data.csv").read_bytes()
    )
    judge(school)


def test_our_own_dump_is_taken_before_the_platforms(school):
    school.write("data/.shala/postgres-dump/pg_dump_all.sql", sql(users=7))
    school.write("data/postgres-dump/pg_dump_all.sql", b"")
    assert item(school.collect(), "postgres-dump").outcome == "ok"
    assert b"user-6" in (school.bag() / "data/gstudio/postgres-dump/pg_dump_all.sql").read_bytes()


def test_much_less_than_the_last_good_one_is_suspect_until_it_is_said_to_be_right(school):
    for number in range(20):
        school.write(f"data/rcs-repo/{number}.json", "[]")
    school.collect()
    for number in range(15):
        (school.data / f"rcs-repo/{number}.json").unlink()
    for _ in range(2):  # the suspect one does not become the measure
        repo = item(school.collect(), "rcs-repo")
        assert repo.outcome == "suspect"
        assert "it holds 6 files, the last good one held 21" in repo.reasons[0]
        school.write("data/nginx-logs/access.log", "other\n")
    table = school.root / "catalogue.toml"
    table.write_text("format = 1\n[items.rcs-repo]\nlargest_drop = 100\n")
    paths = msgspec.structs.replace(school.config.paths, catalogue=str(table))
    school.config = msgspec.structs.replace(school.config, paths=paths)
    assert item(school.collect(), "rcs-repo").outcome == "ok"


def test_what_an_item_has_lost_in_great_number_stays_until_the_centre_has_it(school):
    for number in range(20):
        school.write(f"data/rcs-repo/{number}.json", "[]")
    school.collect()
    for number in range(18):
        (school.data / f"rcs-repo/{number}.json").unlink()
    (school.data / "rcs-repo/0.json").mkdir()
    school.write("data/rcs-repo/0.json/inside", "a folder now")
    mirror = school.bag() / "data/gstudio/rcs-repo"
    for _ in range(2):
        repo = item(school.collect(), "rcs-repo")
        assert (repo.outcome, repo.files, repo.good_files) == ("suspect", 21, 21)
        assert "it holds 4 files, the last good one held 21" in repo.reasons[0]
        assert "17 files that it has no more stay until the centre has them" in repo.reasons[1]
        assert (mirror / "17.json").exists()
        judge(school)
    head = school.spool.head()
    acknowledge(school.config, school.ledger(), head.sequence, head.manifest_sha256)
    repo = item(school.collect(), "rcs-repo")
    assert (repo.outcome, repo.files) == ("suspect", 4)
    assert not (mirror / "17.json").exists()
    judge(school)


def test_what_the_policy_excludes_now_is_not_kept_for_having_been_much(school):
    for number in range(20):
        school.write(f"data/rcs-repo/{number}.json", "[]")
    school.collect()
    table = school.root / "catalogue.toml"
    table.write_text('format = 1\n[items.rcs-repo]\nexclude = ["*.json"]\n')
    paths = msgspec.structs.replace(school.config.paths, catalogue=str(table))
    school.config = msgspec.structs.replace(school.config, paths=paths)
    assert item(school.collect(), "rcs-repo").files == 1
    (school.data / "rcs-repo").rename(school.root / "away")
    assert item(school.collect(), "rcs-repo").files == 1
    judge(school)


def test_a_tool_log_that_lost_most_of_its_events_is_suspect(school):
    log = "data/gstudio_tools_logs/policesquad/7-policesquad.json"
    school.write(log, json.dumps(list(range(1000))))
    school.collect()
    school.write(log, "[]")
    assert item(school.collect(), "gstudio_tools_logs").outcome == "suspect"


def test_an_old_broken_json_costs_no_waiting(school, monkeypatch):
    school.write("data/rcs-repo/broken.json", "")
    monkeypatch.setattr(collect_module.time, "sleep", lambda _s: pytest.fail("it waited"))
    assert item(school.collect(), "rcs-repo").outcome == "suspect"


def test_no_torn_json_under_a_writer_that_truncates_and_rewrites(school):
    log = school.write("data/gstudio_tools_logs/policesquad/7-policesquad.json", "[]", age=1)
    stop = threading.Event()

    def rewrite() -> None:
        body = json.dumps([{"n": n} for n in range(2000)])
        while not stop.is_set():
            with log.open("w") as file:
                for start in range(0, len(body), 4096):
                    file.write(body[start : start + 4096])
                    file.flush()
            time.sleep(0.002)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(15):
            collected = school.collect()
            taken = (
                school.bag() / "data/gstudio/gstudio_tools_logs/policesquad/7-policesquad.json"
            ).read_text()
            if item(collected, "gstudio_tools_logs").outcome == "ok":
                json.loads(taken)
    finally:
        stop.set()
        writer.join()


def test_links_devices_and_impossible_names_never_enter(school):
    secret = school.write("secret", "root's own")
    media = school.data / "media"
    (media / "link").symlink_to(secret)
    (media / "folder").symlink_to(school.root)
    os.mkfifo(media / "pipe")
    (media / "new\nline").write_text("x")
    (media / os.fsdecode(b"\xff\xfe")).write_text("x")
    collected = school.collect()
    names = {path.name for path in (school.bag() / "data/gstudio/media").rglob("*")}
    assert not names & {"link", "folder", "pipe", "new\nline"}
    assert item(collected, "media").outcome == "suspect"
    judge(school)


def test_a_link_in_place_of_an_item_is_not_followed(school):
    (school.data / "media").rename(school.root / "elsewhere")
    (school.data / "media").symlink_to(school.root / "elsewhere")
    media = item(school.collect(), "media")
    assert media.outcome == "failed"
    assert "not followed" in media.reasons[0]


def test_another_identity_than_the_inventorys_or_the_last_one_is_refused(school):
    school.collect()
    text = school.settings.read_text().replace("mz17", "mz18")
    school.settings.write_text(text)
    with pytest.raises(IdentityRefused, match="the inventory says 2031017-mz17"):
        school.collect()
    identity = msgspec.structs.replace(school.config.identity, server_name="")
    school.config = msgspec.structs.replace(school.config, identity=identity)
    with pytest.raises(IdentityRefused, match="is now 2031017-mz18"):
        school.collect()
    assert school.spool.sequences() == [1]


def test_settings_that_were_damaged_name_nobody(school):
    os.truncate(school.settings, 10_000_000)
    with pytest.raises(IdentityRefused, match=r"server_settings\.py is larger than"):
        school.collect()


def test_a_container_that_is_down_costs_only_what_it_makes(school):
    school.collect()
    school.container.up = False
    school.write("data/nginx-logs/access.log", "new\n")
    collected = school.collect()
    assert {i.name for i in collected.collection.items if i.outcome == "failed"} == {"git-commit.log"}
    assert item(collected, "git-commit.log").carried_from == 1


def test_unplatform_has_an_item_for_each_entry(school):
    school.write("unplatform/lesson/data.json", "{}")
    school.write("unplatform/log.txt", "x")
    paths = msgspec.structs.replace(school.config.paths, unplatform=str(school.root / "unplatform"))
    school.config = msgspec.structs.replace(school.config, paths=paths)
    collected = school.collect()
    assert item(collected, "lesson", "unplatform").files == 1
    assert (school.bag() / "data/unplatform/log.txt").read_text() == "x"
    judge(school)


def test_a_full_disk_changes_nothing_and_says_so(school, monkeypatch):
    school.collect()
    school.write("data/nginx-logs/access.log", "new\n")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(copying, "read_through", full)
        with pytest.raises(AgentError, match="No space left"):
            school.collect()
    assert school.spool.sequences() == [1]
    assert school.collect().sealed
    judge(school)


def test_a_lost_or_broken_cache_costs_time_only(school):
    school.collect()
    inode = (school.bag() / "data/gstudio/server_settings.py").stat().st_ino
    (school.root / "state/seen.sqlite").write_bytes(b"rubbish" * 1000)
    for suffix in ("-wal", "-shm"):
        (school.root / f"state/seen.sqlite{suffix}").unlink(missing_ok=True)
    assert not school.collect().sealed
    school.write("data/nginx-logs/access.log", "new\n")
    school.collect()
    assert (school.bag() / "data/gstudio/server_settings.py").stat().st_ino == inode
    judge(school)


def test_a_cache_that_is_damaged_in_its_middle_costs_one_run(school):
    for number in range(500):
        school.write(f"data/rcs-repo/{number}.json", "[]")
    school.collect()
    cache = school.root / "state/seen.sqlite"
    with closing(sqlite3.connect(cache)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with cache.open("r+b") as file:
        file.seek(4096)
        file.write(b"rubbish " * ((cache.stat().st_size - 4096) // 8))
    with pytest.raises(AgentError, match=r"seen\.sqlite is made anew by the next run"):
        school.collect()
    assert not school.collect().sealed
    judge(school)


def test_a_full_disk_as_the_cache_is_opened_is_one_line_and_leaves_the_cache(school, monkeypatch):
    school.collect()
    opened = seen_module._opened

    def full(_path):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(seen_module, "_opened", full)
        with pytest.raises(AgentError, match="disk is full"):
            school.collect()
    with closing(opened(school.root / "state/seen.sqlite")) as cache:
        assert cache.execute("SELECT count(*) FROM known").fetchone()[0] > 10


def test_a_lost_head_is_written_anew(school):
    school.collect()
    head = school.spool.head()
    (school.root / "spool/HEAD").unlink()
    assert not school.collect().sealed
    assert school.spool.head() == head
    judge(school)


def test_a_mirror_that_is_damaged_without_its_head_is_made_anew(school):
    school.collect()
    (school.root / "spool/HEAD").unlink()
    (school.bag() / "files.txt").write_text("nonsense")
    assert school.collect().head.sequence == 2
    judge(school)


@pytest.mark.parametrize("at", range(1, 24, 2))
def test_a_cut_at_any_write_of_the_seal_leaves_the_old_or_finishes_the_new(school, monkeypatch, at):
    school.collect()
    school.write("data/nginx-logs/access.log", "new\n")
    school.write("data/rcs-repo/new/file.json,v", rcs())
    (school.data / "rcs-repo/Nodes/a/b/c/x.json,v").unlink()
    calls = 0

    def cutting(wrapped):
        def call(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls == at:
                raise PowerCut
            return wrapped(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "replace", "rmdir"):  # those of pathlib end there as well
            patch.setattr(os, name, cutting(getattr(os, name)))
        with contextlib.suppress(PowerCut):
            school.collect()
    if not (school.root / "spool/NEXT").exists():
        assert bagit.Bag(str(school.bag())).validate()
    school.collect()
    judge(school)
    assert school.spool.head().sequence in (2, 3)
    assert (school.bag() / "data/gstudio/rcs-repo/new/file.json,v").read_bytes() == rcs()
    assert not (school.bag() / "data/gstudio/rcs-repo/Nodes").exists()


def test_the_sequence_never_goes_back_even_when_the_spool_is_lost(school):
    school.collect()
    (school.root / "spool").rename(school.root / "lost")
    assert school.collect().head.sequence == 2


@pytest.mark.parametrize("the_centre_has_it", [False, True])
def test_a_year_that_a_jumped_clock_gave_stays_only_where_the_centre_has_it(
    school, monkeypatch, the_centre_has_it
):
    class Ahead(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz).replace(year=2090)

    with monkeypatch.context() as patch:
        patch.setattr(datetime, "datetime", Ahead)
        head = school.collect().head
    assert head.year == 2090
    if the_centre_has_it:
        acknowledge(school.config, school.ledger(), head.sequence, head.manifest_sha256)
    this_year = datetime.datetime.now().astimezone().year
    assert school.collect().head.year == (2090 if the_centre_has_it else this_year)


def test_a_run_without_news_writes_nothing(school, monkeypatch):
    school.collect()
    school.collect()
    before = (school.root / "state/seen.sqlite").stat().st_mtime_ns
    monkeypatch.setattr(spool_module.Spool, "write_manifest", None)
    monkeypatch.setattr(copying, "read_through", None)
    assert not school.collect().sealed
    assert (school.root / "state/seen.sqlite").stat().st_mtime_ns == before


def test_a_mirror_that_has_lost_a_file_is_mended_although_nothing_is_new(school):
    school.collect()
    lost = school.bag() / "data/gstudio/rcs-repo/Nodes/a/b/c/x.json,v"
    lost.unlink()
    assert school.collect().sealed
    assert lost.read_bytes() == rcs()
    judge(school)
    assert not school.collect().sealed


def test_what_the_mirror_has_lost_is_not_carried(school):
    school.collect()
    (school.bag() / "data/gstudio/db/gstudio-mongodb/Nodes.metadata.json").unlink()
    with closing(school.ledger()) as ledger:
        ledger.finish(ledger.start("by hand"), "mongo-dump", failed("MongoDB: it does not answer"))
    kept = item(school.collect(), "db")
    assert (kept.outcome, kept.carried_from, kept.files) == ("failed", 1, 1)
    judge(school)


@pytest.mark.parametrize("lost", ["lost", "cut"])
def test_what_the_mirror_has_lost_is_not_listed_when_its_folder_cannot_be_read(school, monkeypatch, lost):
    school.write("data/rcs-repo/Nodes/a/b/c/y.json,v", rcs("[]"))
    school.collect()
    gone = school.bag() / "data/gstudio/rcs-repo/Nodes/a/b/c/x.json,v"
    gone.unlink()
    if lost == "cut":
        gone.write_bytes(b"head")
    scandir = os.scandir
    broken = (school.data / "rcs-repo/Nodes/a").stat().st_ino

    def failing(folder="."):
        if isinstance(folder, int) and os.fstat(folder).st_ino == broken:
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    repo = item(school.collect(), "rcs-repo")
    assert (repo.outcome, repo.files) == ("suspect", 1)
    assert repo.reasons[0] == "the mirror has lost files that are to be carried on: 1"
    listed = (school.bag() / "manifest-sha256.txt").read_text()
    assert "y.json,v" in listed
    assert "x.json,v" not in listed
    judge(school)


@pytest.mark.parametrize("how", ["the folder is gone", "the folder cannot be opened"])
def test_an_item_that_is_carried_whole_lists_nothing_that_the_mirror_has_lost(school, how):
    school.write("data/rcs-repo/y.json", "{}")
    school.collect()
    (school.bag() / "data/gstudio/rcs-repo/Nodes/a/b/c/x.json,v").unlink()
    if how == "the folder is gone":
        shutil.rmtree(school.data / "rcs-repo")
    else:
        (school.data / "rcs-repo").rename(school.data / "aside")
        (school.data / "rcs-repo").symlink_to(school.data / "aside")
    repo = item(school.collect(), "rcs-repo")
    assert (repo.outcome, repo.files, repo.carried_from) == ("failed", 1, 1)
    assert repo.reasons[0] == "the mirror has lost files that are to be carried on: 1"
    judge(school)


def test_awkward_neighbours_come_and_go_in_order(school):
    folder = school.data / "rcs-repo"
    names = ["a/x", "a.b", "a b", "a-b", "a!/x", "\u00e4", "a\u0304/x", "A", "\U0001f600", "\ufb01"]
    for name in names:
        school.write(f"data/rcs-repo/{name}", name)
    school.collect()
    judge(school)
    (folder / "a/x").unlink()
    (folder / "a").rmdir()
    (folder / "a b").unlink()
    school.write("data/rcs-repo/a", "now a file\n")
    school.write("data/rcs-repo/a b/x/y", "now a folder\n")
    school.write("data/rcs-repo/a b/x.y", "beside it\n")
    assert school.collect().sealed
    judge(school)
    changes = (school.root / "spool/changes/00000002.txt").read_text().splitlines()
    assert [line.split("rcs-repo/")[1] for line in changes] == ["a", "a/x", "a b", "a b/x/y", "a b/x.y"]
    assert not school.collect().sealed


def test_a_name_with_the_manifests_separator_is_never_taken_for_another_path(school):
    for number in range(9):
        school.write(f"data/media/x{number}", "song")
    known = school.write("data/media/a/b", "song")
    school.collect()
    known.rename(school.data / "media/a\x01b")
    media = item(school.collect(), "media")
    assert any("no manifest can hold" in reason for reason in media.reasons)
    assert not (school.bag() / "data/gstudio/media/a/b").exists()
    judge(school)


def test_what_a_cut_run_has_staged_is_not_read_again(school, monkeypatch):
    school.collect()
    for number in range(5):
        school.write(f"data/rcs-repo/{number}.json", f"{number}")
    school.write("data/rcs-repo/passing.json", "{}")

    def cut(*_):
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(spool_module.Spool, "remove_unplanned", cut)
        with contextlib.suppress(PowerCut):
            school.collect()
    (school.data / "rcs-repo/passing.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(copying, "read_through", None)
        assert item(school.collect(), "rcs-repo").files == 6
    judge(school)
    assert not (school.bag() / "data/gstudio/rcs-repo/passing.json").exists()


def test_more_files_than_one_page_of_the_cache_holds(school, monkeypatch):
    monkeypatch.setattr("shala_agent.seen.PAGE", 7)
    monkeypatch.setattr("shala_agent.seen.BUFFER", 3)
    for number in range(60):
        school.write(f"data/rcs-repo/{number % 7}/{number}.json", f"{number}")
    school.collect()
    for number in range(0, 60, 6):
        (school.data / f"rcs-repo/{number % 7}/{number}.json").unlink()
    school.write("data/rcs-repo/3/new.json", "{}")
    assert item(school.collect(), "rcs-repo").files == 52
    judge(school)
    assert not school.collect().sealed


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda n: n not in (".", "..") and not n.startswith(".shala-")
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(NAMES, st.binary(max_size=40), max_size=6), min_size=1, max_size=4))
def test_any_sequence_of_trees_gives_valid_bags_that_hold_what_is_there(tmp_path_factory, days):
    root = tmp_path_factory.mktemp("school")
    school = school_in(root)
    folder = school.data / "rcs-repo"
    never = Policy(exclude=NEVER)
    before = {}
    for day in days:
        for path in folder.rglob("*"):
            if path.is_file():
                path.unlink()
        for name, content in day.items():
            (folder / name).write_bytes(content)
            os.utime(folder / name, (EARLIER, EARLIER))
        head = school.collect().head
        # Until the archive has them, files that are gone stay.
        acknowledge(school.config, school.ledger(), head.sequence, head.manifest_sha256)
        judge(school)
        bag = school.bag() / "data/gstudio/rcs-repo"
        taken = {p.name: p.read_bytes() for p in bag.iterdir()} if bag.is_dir() else {}
        day = {n: c for n, c in day.items() if not never.leaves_out(n)}  # noqa: PLW2901
        plain = {n: c for n, c in day.items() if n.isprintable() and "%" not in n and n == n.strip()}
        if not plain and taken.items() == before.items():
            continue  # an item that was emptied keeps what it had
        assert taken.items() <= day.items()
        assert plain.items() <= taken.items()
        before = taken


def test_unknown_fields_of_a_collection_survive_a_round_trip(school):
    school.collect()
    raw = json.loads((school.bag() / "collection.json").read_bytes())
    raw["signature"] = {"key": 1}
    raw["items"][0]["sensitive"] = True
    raw["container"]["version"] = "2"
    original = json.dumps(raw).encode()
    again = json.loads(write_collection(read_collection(original), original))
    assert again == raw


def test_a_result_of_a_step_is_what_the_item_says(school):
    with closing(school.ledger()) as ledger:
        ledger.finish(
            ledger.start("by hand"), "progress", Result("suspect", ["3 CSVs, the last time it were 28"])
        )
    progress = item(school.collect(), "gstudio-exported-users-analytics-csvs")
    assert progress.outcome == "suspect"
    assert "progress: 3 CSVs, the last time it were 28" in progress.reasons


def test_a_collection_is_signed_by_the_device_and_its_key_is_for_nobody_else(school):
    school.collect()
    signer = signer_of(
        (school.bag() / SIGNATURE).read_bytes(), (school.bag() / "tagmanifest-sha256.txt").read_bytes()
    )
    key = school.root / "state/device.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert device_id(signer) == Device(key).id == school.spool.collection().device
    assert f"Shala-Device: {device_id(signer)}\n" in (school.bag() / "bag-info.txt").read_text()
    assert bagit.Bag(str(school.bag())).is_valid()


def test_a_signature_of_anything_else_is_not_believed(school, tmp_path):
    school.collect()
    signature = (school.bag() / SIGNATURE).read_bytes()
    tags = (school.bag() / "tagmanifest-sha256.txt").read_bytes()
    other = Device(tmp_path / "other.key")
    said = json.loads(signature)
    for wrong, beside in (
        (signature, tags + b"\n"),
        (other.sign_collection(tags).replace(other.public_key.encode(), said["public_key"].encode()), tags),
        (json.dumps({**said, "device": "0" * 64}).encode(), tags),
        (json.dumps({**said, "signature": "0" * 128}).encode(), tags),
        (json.dumps({**said, "format": 2}).encode(), tags),
        (b"{", tags),
        (b"[" * 5000, tags),
    ):
        with pytest.raises(SignatureWrong):
            signer_of(wrong, beside)


def test_a_key_that_is_none_is_named(school):
    (school.root / "state").mkdir(exist_ok=True)
    (school.root / "state/device.key").write_bytes(b"short")
    with pytest.raises(AgentError, match=r"device\.key is not a key of 32 bytes"):
        school.collect()


def test_of_a_million_broken_files_the_first_are_kept_and_all_are_counted():
    found = Findings()
    found += (f"{number} is empty" for number in range(1_000_000))
    assert len(found) <= MAX_REASONS + 1
    assert shortened([*found], found.unsaid)[-1] == f"and {1_000_000 - MAX_REASONS} more"
