"""The archive: what readers see at every moment, what a crash leaves, what verify and tree say."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
import time
from pathlib import Path

import msgspec
import pytest
from central_school import School, received, tree_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from power_cut import Crash, steps
from shala_agent.manifest import File, write_line
from shala_central import commit as commit_module
from shala_central import publish as publish_module
from shala_central import pull as pull_module
from shala_central import verify as verify_module
from shala_central.archive import Archive
from shala_central.bag import BagRefused
from shala_central.failure import CentralError, UsageError
from shala_central.quarantine import discard, in_quarantine, quarantine, quarantine_counts
from shala_central.staging import Staging
from shala_central.tree import list_tree
from shala_central.verify import verify
from shala_central.versions import files_of, pulls_of, versions_of

DAY_0 = {"gstudio/db/a": b"zero", "gstudio/media/same": b"same", "unplatform/x/y": b"u"}
DAY_1 = {"gstudio/db/a": b"one", "gstudio/media/same": b"same", "unplatform/x/y": b"u"}
DAY_2 = {"gstudio/db/a": b"two!", "gstudio/media/same": b"same", "gstudio/media/new": b"new"}
FOLDER_STEPS = ((Path, "mkdir"), (os, "chmod"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"))


@pytest.fixture
def receive(archive, school):
    """Bring a collection into the archive as a pull does, but without a network."""

    def receive(files: dict[str, bytes], sequence: int, year: int = 2026) -> None:
        school.sequence, school.year = sequence, year
        received(archive, school, files)

    return receive


def seen(archive: Archive, year: int = 2026) -> dict[str, bytes]:
    tree = archive.root / str(year) / "mz" / "2031017-mz17"
    return tree_of(tree)


def test_a_collection_replaces_the_one_before_and_shares_what_is_the_same(archive, school, receive):
    receive(DAY_1, 1)
    same = archive.root / "2026/mz" / school.name / "gstudio/media/same"
    inode = same.stat().st_ino
    receive(DAY_2, 2)
    assert seen(archive) == DAY_2
    assert same.stat().st_ino == inode
    assert same.stat().st_nlink == 3, (
        "the object, the tree, and the spare one that keeps what has not changed"
    )
    assert not list((archive.hidden / "spare").rglob("a")), "what has changed is not kept in a tree"
    assert [record.sequence for record in pulls_of(archive, school.name)] == [1, 2]
    assert archive.committed(school.name).pull.sequence == 2


@pytest.mark.parametrize("year", [2026, 2027])
def test_a_crash_at_any_step_shows_the_old_or_the_new_and_the_next_run_mends_it(
    archive, school, receive, year
):
    receive(DAY_0, 1)
    receive(DAY_1, 2)
    for crash_at in range(1, 300):
        with pytest.MonkeyPatch.context() as monkeypatch:
            done = steps(monkeypatch, crash_at, *FOLDER_STEPS)
            try:
                receive(DAY_2, 3, year)
            except Crash:
                finished = False
            else:
                finished = True
        assert seen(archive, year) in (DAY_1 if year == 2026 else {}, DAY_2), done
        told = archive.committed(school.name).pull.sequence
        assert told == (3 if seen(archive, year) == DAY_2 else 2), "the record is of another tree"
        receive(DAY_2, 3, year)
        assert seen(archive, year) == DAY_2, done
        assert archive.committed(school.name).pull.sequence == 3, done
        assert [len(list(files_of(archive, one))) for one in versions_of(archive, school.name)] == [3] * 3, (
            done
        )
        assert not (archive.hidden / "damaged").exists(), done
        assert not list(archive.staging(school.name).iterdir()), done
        assert verify(archive, school.name) == [], done
        if finished:
            break
        # Back to the first day for the next crash.
        publish_module.remove_tree(archive.root / "2027")
        publish_module.remove_tree(archive.hidden / "collections" / school.name)
        publish_module.remove_tree(archive.root / "2026")
        publish_module.remove_tree(archive.hidden / "objects")
        publish_module.remove_tree(archive.hidden / "spare")
        (archive.hidden / "history.sqlite").unlink()
        receive(DAY_0, 1)
        receive(DAY_1, 2)
    assert finished
    assert crash_at > 20


def test_folders_that_stay_the_same_are_moved_between_the_trees(archive, school, receive):
    same = {f"gstudio/rcs-repo/{n}/{n}.json": b"%d" % n for n in range(5)}
    folder = archive.root / "2026/mz" / school.name / "gstudio/rcs-repo"
    inodes = []
    for number in range(1, 5):
        receive({**same, "gstudio/rcs-repo/x/day.json": b"%d" % number}, number)
        inodes.append({path.name: path.stat().st_ino for path in folder.iterdir()})
        assert verify(archive, school.name) == []
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o550}
    assert inodes[0] != inodes[1]
    # (That of the folder with the changed file may be new and bear the old number all the same.)
    assert [inodes[3][name] for name in "01234"] == [inodes[1][name] for name in "01234"]


PATHS = st.sampled_from([f"gstudio/{a}/{b}" for a in ("db", "media/x", "rcs-repo/y/z") for b in "pqr"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(PATHS, st.binary(max_size=1), min_size=1), min_size=2, max_size=6))
def test_who_still_reads_an_old_tree_misses_files_and_never_sees_a_mixture(tmp_path_factory, days):
    archive = Archive(tmp_path_factory.mktemp("archive"))
    archive.open()
    school = School(tmp_path_factory.mktemp("spool"))
    held: list[tuple[int, dict[str, bytes]]] = []
    for day in days:
        school.sequence += 1
        received(archive, school, day)
        tree = archive.root / "2026/mz" / school.name
        held.append((os.open(tree, os.O_RDONLY), day))
        assert seen(archive) == day
        for descriptor, then in held:
            found = {
                f"{folder}/{name}".removeprefix("./"): open_below(inside, name)
                for folder, _, names, inside in os.fwalk(".", dir_fd=descriptor)
                for name in names
            }
            assert found.items() <= then.items()
    for descriptor, _ in held:
        os.close(descriptor)


def open_below(folder: int, name: str) -> bytes:
    with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
        return file.read()


def test_a_spare_tree_that_is_damaged_is_given_up(archive, school, receive):
    for number in range(1, 3):
        receive({**DAY_1, "gstudio/db/day": b"%d" % number}, number)
    publish_module.remove_tree(archive.hidden / "spare" / school.name / "tree/gstudio/media")
    receive({**DAY_1, "gstudio/db/day": b"3"}, 3)
    assert seen(archive) == {**DAY_1, "gstudio/db/day": b"3"}
    assert verify(archive, school.name) == []


def test_a_run_that_was_cut_before_it_published_leaves_nothing_in_the_way(archive, school, receive):
    def off(*_: object) -> None:
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit_module, "publish", off)
        with pytest.raises(Crash):
            receive(DAY_1, 1)
    receive(DAY_2, 2)
    assert seen(archive) == DAY_2


@pytest.fixture
def staging(archive, school) -> Staging:
    return Staging(archive.staging(school.name) / "data", archive.objects, school.name)


def files_with(contents: dict[str, bytes]) -> list[File]:
    return [
        File(f"data/{path}", hashlib.sha256(content).hexdigest(), len(content), 0, 0o644)
        for path, content in contents.items()
    ]


def put(staging: Staging, path: str, content: bytes) -> None:
    (staging.folder / path).parent.mkdir(parents=True, exist_ok=True)
    (staging.folder / path).write_bytes(content)


def test_what_came_wrongly_is_named_and_the_rest_is_taken(archive, school, staging):
    put(staging, "gstudio/db/a", b"0ne")
    put(staging, "unplatform/x/y", b"u")
    (staging.folder / "gstudio/media").mkdir()
    (staging.folder / "gstudio/media/same").symlink_to("/etc/passwd")
    with pytest.raises(BagRefused) as refused:
        staging.take(files_with({**DAY_1, "gstudio/db/none": b""}))
    assert refused.value.reasons == [
        "'gstudio/db/a' is not what the manifest says (sha256 differs)",
        "'gstudio/media/same' is not a plain file",
        "'gstudio/db/none' is listed but was not sent",
    ]
    assert archive.objects.find(school.name, "unplatform/x/y", hashlib.sha256(b"u").hexdigest())


def test_a_file_of_another_size_than_listed_is_named(staging):
    put(staging, "gstudio/db/a", b"one")
    listed = msgspec.structs.replace(files_with({"gstudio/db/a": b"one"})[0], size=4)
    with pytest.raises(BagRefused, match="'gstudio/db/a' is not what the manifest says"):
        staging.take([listed])


def test_what_an_earlier_run_fetched_whole_is_taken_and_what_is_in_the_way_removed(archive, school, staging):
    put(staging, "gstudio/db/a", b"one")
    put(staging, "gstudio/db/b", b"half")
    put(staging, "gstudio/media", b"was a file")
    put(staging, "unplatform/x/y/z", b"was a folder")
    later = Staging(staging.folder, archive.objects, school.name)
    lines = [write_line(file) for file in files_with({**DAY_1, "gstudio/db/b": b"whole"})]
    lines.sort(key=lambda line: line.split(b" ", 4)[4].replace(b"/", b"\x01"))
    missing = [file.path for file in later.missing([], lines)]
    assert missing == ["data/gstudio/db/b", "data/gstudio/media/same", "data/unplatform/x/y"]
    assert not (staging.folder / "gstudio/media").exists()
    assert not (staging.folder / "unplatform/x/y").exists()


def test_a_content_is_fetched_once_whatever_it_is_called(staging):
    files = files_with({"gstudio/db/a": b"x", "gstudio/db/b": b"x", "gstudio/db/c": b"y"})
    assert [[f.path for f in batch] for batch in staging.batches(files)] == [
        ["data/gstudio/db/a", "data/gstudio/db/c"]
    ]
    assert [len(batch) for batch in staging.batches(files, size=1)] == [1, 1, 1]


def test_a_published_file_that_was_cut_is_fetched_again(archive, school, receive):
    receive(DAY_1, 1)
    damaged = archive.root / "2026/mz" / school.name / "gstudio/media/same"
    damaged.chmod(0o640)
    damaged.write_bytes(b"s")
    receive({**DAY_1, "gstudio/db/more": b"more"}, 2)
    assert archive.committed(school.name).pull.files_received == 2
    assert verify(archive, school.name) == []


def test_an_object_that_is_gone_is_asked_for_again(archive, school, receive):
    receive(DAY_1, 1)
    archive.objects.find(school.name, "gstudio/db/a", hashlib.sha256(b"one").hexdigest()).unlink()
    receive({**DAY_1, "gstudio/db/more": b"more"}, 2)
    assert archive.committed(school.name).pull.files_received == 2
    assert verify(archive, school.name) == []


def test_verify_names_what_was_changed_removed_and_added(archive, school, receive):
    receive(DAY_1, 1)
    assert verify(archive, school.name) == []
    tree = archive.root / "2026/mz" / school.name
    (tree / "gstudio/db").chmod(0o750)
    (tree / "gstudio/media").chmod(0o750)
    (tree / "gstudio/db/a").chmod(0o640)
    (tree / "gstudio/db/a").write_bytes(b"0ne")
    (tree / "gstudio/media/same").unlink()
    (tree / "gstudio/media/more").write_bytes(b"")
    (tree / "gstudio/media/away").symlink_to("/tmp")
    assert [(damage.path, damage.problem) for damage in verify(archive, school.name)] == [
        ("gstudio/db/a", "has changed (sha256 differs)"),
        ("gstudio/media/away", "does not belong to the collection"),
        ("gstudio/media/more", "does not belong to the collection"),
        ("gstudio/media/same", "is missing"),
    ]


def test_verify_looks_at_earlier_years_too(archive, school, receive):
    receive(DAY_1, 1)
    receive(DAY_2, 2, 2027)
    old = archive.root / "2026/mz" / school.name / "gstudio/db/a"
    old.chmod(0o640)
    old.write_bytes(b"0ne")
    assert [(d.path, d.problem) for d in verify(archive, school.name)] == [
        ("2026: gstudio/db/a", "has changed (sha256 differs)")
    ]


def test_a_commit_during_verify_is_no_damage(archive, school, receive, monkeypatch):
    receive(DAY_1, 1)
    differences = verify_module.differences

    def meanwhile(*arguments):
        monkeypatch.setattr(verify_module, "differences", differences)
        receive(DAY_2, 2)
        return differences(*arguments)

    monkeypatch.setattr(verify_module, "differences", meanwhile)
    assert verify(archive, school.name) == []


def test_an_archive_of_somebody_else_is_left_alone(tmp_path):
    root = tmp_path / "archive"
    root.mkdir()
    os.chown(root, 65534, -1)
    with pytest.raises(CentralError, match="belongs to nobody"):
        Archive(root).open()


def test_quarantine_keeps_the_newest_refusals(archive, school):
    for number in range(1, 9):
        quarantine(archive, school.name, number, BagRefused([f"reason {number}"]), {})
    assert [entry["sequence"] for entry in in_quarantine(archive, school.name)] == [4, 5, 6, 7, 8]


def test_a_refusal_that_was_cut_while_it_was_kept_leaves_nothing(archive, school):
    kept = quarantine(archive, school.name, 1, BagRefused(["a reason"]), {})
    cut = kept.with_name(kept.name.replace("-00000001-", "-00000002-"))
    shutil.copytree(kept, cut)
    (cut / "reason.json").unlink()
    assert quarantine_counts(archive) == {school.name: 2}
    assert discard(archive, school.name) == 1
    assert quarantine_counts(archive) == {}


def test_a_cancelled_pull_waits_for_the_thread_that_writes():
    order: list[str] = []

    def writing() -> None:
        time.sleep(0.2)
        order.append("written")

    async def cancelled() -> None:
        task = asyncio.ensure_future(pull_module._to_its_end(writing))
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        order.append("given up")

    asyncio.run(cancelled())
    assert order == ["written", "given up"]


def test_the_tree_names_levels_with_sizes(archive, school, receive):
    receive(DAY_1, 1)
    found = [(entry.level, entry.name, entry.bytes, entry.files) for entry in list_tree(archive)]
    assert found == [
        (0, "2026", 8, 3),
        (1, "mz", 8, 3),
        (2, "2031017-mz17", 8, 3),
        (3, "gstudio", 7, 2),
        (4, "db", 3, 1),
        (4, "media", 4, 1),
        (3, "unplatform", 1, 1),
        (4, "x", 1, 1),
    ]
    assert [entry.name for entry in list_tree(archive, depth=1)] == ["2026", "mz"]
    assert list_tree(archive, "2026/mz/2031017-mz17/gstudio")[0].path == "2026/mz/2031017-mz17/gstudio"
    for wrong in ("../..", ".shala", "2099"):
        with pytest.raises(UsageError):
            list_tree(archive, wrong)


def test_two_runs_of_one_server_do_not_meet(archive, school):
    with archive.lock(school.name) as first, archive.lock(school.name) as second:
        assert first is not None
        assert second is None
    with archive.lock(school.name) as again:
        assert again is not None


def test_a_file_system_that_cannot_exchange_is_refused_before_anything(archive, monkeypatch):
    class OldKernel:
        @staticmethod
        def renameat2(*_: object) -> int:
            ctypes.set_errno(errno.EINVAL)
            return -1

    monkeypatch.setattr(publish_module, "_libc", OldKernel)
    with pytest.raises(CentralError, match="put the archive on ext4, xfs or btrfs"):
        archive.open()


def test_the_hostile_paths_of_a_refused_manifest_move_nothing(archive, school, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    data = archive.staging(school.name) / "data"
    data.mkdir()
    (data / "out").symlink_to(tmp_path)
    paths = ["../../../../victim", str(victim), "out/victim", "", "\0", "x" * 5000]
    folder = quarantine(archive, school.name, 1, BagRefused(["bad"], paths), {})
    assert victim.read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == ["reason.json"]
    assert json.loads((folder / "reason.json").read_bytes())["reasons"] == ["bad"]


def test_modes_let_the_group_read_and_nobody_write(archive, school, receive):
    receive(DAY_1, 1)
    tree = archive.root / "2026/mz" / school.name
    modes = {str(path.relative_to(tree)): stat.S_IMODE(path.stat().st_mode) for path in tree.rglob("*")}
    assert modes["gstudio"] == 0o550
    assert modes["gstudio/db/a"] == 0o440
    assert stat.S_IMODE(tree.stat().st_mode) == 0o750
