"""Damaged records: each is named, stops nothing else, and is mended of a second copy or by the school."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from central_school import School, deliver, overwrite, tree_of
from shala_central.archive import Archive
from shala_central.backup import back_up
from shala_central.checkout import checkout
from shala_central.commit import changing, republish, restore
from shala_central.failure import CentralError
from shala_central.integrity import SecondCopy, damaged_objects, repair
from shala_central.mending import mend_earlier_years
from shala_central.records import RecordDamaged, flaws
from shala_central.retention import prune
from shala_central.verify import verify
from shala_central.versions import pulls_of, record_of, version_of, versions_of

GOOD = {"gstudio/db/a": b"good", "gstudio/qbank/q": b"q1"}
NEWER = {"gstudio/db/a": b"newer", "gstudio/qbank/q": b"q1"}


@pytest.fixture
def other(another_school: Callable[..., School]) -> School:
    return another_school("2031018-mz18")


@pytest.fixture
def fleet(archive: Archive, school: School, other: School) -> Archive:
    """An archive of two servers with two collections each."""
    for one in (school, other):
        deliver(archive, one, GOOD)
        deliver(archive, one, NEWER)
    return archive


@pytest.fixture
def fleet_of_centre(centre, school: School, other: School) -> tuple[School, School]:
    """Two servers in the fleet of a centre, each with a collection."""
    school.port = 22
    centre.archive.open()
    for one in (school, other):
        centre.schools.append(one)
        deliver(centre.archive, one, GOOD)
    return school, other


@pytest.fixture
def copy(fleet: Archive, tmp_path: Path) -> Path:
    shutil.copytree(fleet.root, tmp_path / "copy")
    return tmp_path / "copy"


def collections(archive: Archive, school: School) -> Path:
    return archive.hidden / "collections" / school.name


def record_folder(archive: Archive, school: School) -> Path:
    (record,) = (path for path in collections(archive, school).iterdir() if path.is_dir())
    return record


def spoil_pointer(archive: Archive, school: School) -> None:
    (collections(archive, school) / "current.json").write_bytes(b"\x00garbage")


def lose_pointer(archive: Archive, school: School) -> None:
    (collections(archive, school) / "current.json").unlink()


def cut_pull(archive: Archive, school: School) -> None:
    path = record_folder(archive, school) / "pull.json"
    overwrite(path, path.read_bytes()[:40])


def lose_record(archive: Archive, school: School) -> None:
    shutil.rmtree(record_folder(archive, school))


def lose_all(archive: Archive, school: School) -> None:
    shutil.rmtree(collections(archive, school))


UNREADABLE = [spoil_pointer, lose_pointer, cut_pull, lose_record, lose_all]


@pytest.mark.parametrize("deed", UNREADABLE)
def test_an_unreadable_record_is_named_and_the_other_servers_go_on(fleet, school, other, deed, tmp_path):
    before = {path: path.stat().st_ino for path in (fleet.objects.root / school.name).rglob("*")}
    deed(fleet, school)
    assert fleet.servers() == [other.name]
    assert list(fleet.damaged()) == fleet.known()[:1] == [school.name]
    assert [found.path for found in verify(fleet, school.name)] == ["the record"]
    assert verify(fleet, other.name) == []
    prune(fleet, keep_days=0, keep_months=0)
    assert {path: path.stat().st_ino for path in (fleet.objects.root / school.name).rglob("*")} == before


@pytest.mark.parametrize("deed", UNREADABLE)
def test_a_second_copy_gives_back_a_record_that_cannot_be_read(fleet, school, deed, copy):
    whole = fleet.committed(school.name).pull
    deed(fleet, school)
    done = repair(fleet, school.name, SecondCopy(fleet, copy))
    assert done.mended
    assert done.lost == []
    assert fleet.committed(school.name).pull == whole
    assert verify(fleet, school.name) == damaged_objects(fleet, school.name) == []
    assert [version.sequence for version in versions_of(fleet, school.name)] == [1, 2]


@pytest.mark.parametrize("deed", [spoil_pointer, lose_pointer, cut_pull])
def test_what_a_whole_record_still_tells_needs_no_second_copy(fleet, school, deed):
    deed(fleet, school)
    assert repair(fleet, school.name).lost == []
    assert verify(fleet, school.name) == []
    assert fleet.committed(school.name).pull.sequence == 2


def test_a_record_that_was_followed_by_another_is_not_put_back_in_its_place(archive, school, tmp_path):
    deliver(archive, school, GOOD)
    shutil.copytree(archive.root, tmp_path / "copy")
    deliver(archive, school, NEWER)
    lose_record(archive, school)
    assert repair(archive, school.name, SecondCopy(archive, tmp_path / "copy")).lost
    with pytest.raises(RecordDamaged):
        archive.committed(school.name)


@pytest.mark.parametrize(
    "name", ["HEAD", "collection.json", "bag-info.txt", "bagit.txt", "tagmanifest-sha256.txt", "files.txt"]
)
def test_every_file_of_a_record_is_compared_and_mended_of_a_second_copy(fleet, school, name, copy):
    path = record_folder(fleet, school) / name
    whole = path.read_bytes()
    for damaged in (bytes([whole[0] ^ 1]) + whole[1:], whole[:-1], None):
        if damaged is None:
            path.unlink()
        else:
            overwrite(path, damaged)
        assert name in {found.path for found in verify(fleet, school.name)}
        done = repair(fleet, school.name, SecondCopy(fleet, copy))
        assert (name in done.mended, done.lost) == (True, [])
        path = record_folder(fleet, school) / name
        assert path.read_bytes() == whole
        assert verify(fleet, school.name) == []


def test_two_damaged_files_of_a_record_are_mended_at_once(fleet, school, copy):
    for name in ("HEAD", "files.txt"):
        overwrite(record_folder(fleet, school) / name, b"?")
    assert repair(fleet, school.name, SecondCopy(fleet, copy)).lost == []
    assert verify(fleet, school.name) == []


def test_a_record_that_is_gone_comes_back_as_it_was_last_night(fleet, school):
    back_up(fleet)
    lose_all(fleet, school)
    assert repair(fleet, school.name).lost == []
    assert verify(fleet, school.name) == []


@pytest.mark.parametrize("deed", UNREADABLE)
def test_a_lost_record_is_named_every_night_and_its_last_good_copy_stays(fleet, school, other, deed):
    whole = fleet.committed(school.name).pull
    assert back_up(fleet) == []
    deed(fleet, school)
    for _ in range(3):
        (found,) = back_up(fleet)
        assert (found.path, "is damaged" in found.problem) == (f"the record of {school.name}", True)
        deliver(fleet, other, NEWER)
    assert repair(fleet, school.name).lost == []
    assert fleet.committed(school.name).pull == whole
    assert verify(fleet, school.name) == back_up(fleet) == []


@pytest.mark.parametrize("name", ["HEAD", "collection.json", "files.txt", "pull.json"])
def test_a_bit_that_changes_in_a_record_is_mended_of_the_copy_of_any_night_before(fleet, school, name):
    assert back_up(fleet) == []
    path = record_folder(fleet, school) / name
    whole = path.read_bytes()
    overwrite(path, whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
    for _ in range(3):
        (found,) = back_up(fleet)
        assert (found.path, name in found.problem) == (f"the record of {school.name}", True)
    assert repair(fleet, school.name).lost == []
    assert (record_folder(fleet, school) / name).read_bytes() == whole


def test_where_the_last_copy_of_a_record_is_damaged_too_the_one_before_mends(fleet, school):
    back_up(fleet)
    copies = fleet.hidden / "backup"
    shutil.copytree(copies / "records", copies / "records.1")
    for folder in (copies / "records" / school.name, collections(fleet, school)):
        (files,) = folder.glob("*/files.txt")
        overwrite(files, files.read_bytes()[:-9])
    assert repair(fleet, school.name).lost == []
    assert verify(fleet, school.name) == []


def test_a_copy_of_a_record_is_a_file_of_its_own_and_takes_room_once(fleet, school, other):
    def inodes(end: str) -> set[int]:
        return {path.stat().st_ino for path in (fleet.hidden / f"backup/records{end}").rglob("files.txt")}

    own = {path.stat().st_ino for path in (fleet.hidden / "collections").rglob("files.txt")}
    back_up(fleet)
    back_up(fleet)
    assert inodes("") == inodes(".1")
    assert (len(inodes("")), own & inodes("")) == (2, set())
    deliver(fleet, school, GOOD)
    back_up(fleet)
    assert len(inodes("") & inodes(".1")) == 1
    (copied,) = fleet.copied_records(school.name)[:1]
    assert (copied.name, flaws(copied)) == (record_folder(fleet, school).name, [])


def test_a_damaged_record_of_the_second_copy_mends_nothing(fleet, school, copy):
    for root in (fleet.root, copy):
        inside = (record_folder(fleet, school) / "files.txt").relative_to(fleet.root)
        overwrite(root / inside, (root / inside).read_bytes().replace(b"gstudio/db/a", b"gstudio/db/b"))
    assert "files.txt" in repair(fleet, school.name, SecondCopy(fleet, copy)).lost[0]


def test_the_next_collection_follows_a_record_whose_origin_is_lost(fleet, school):
    cut_pull(fleet, school)
    with pytest.raises(CentralError, match=r"is damaged.*shala pull --again"):
        fleet.committed(school.name)
    last = fleet.last_known(school.name)
    assert (last.year, last.sequence) == (2026, 2)


def test_a_file_that_vanished_is_put_back_and_a_stranger_is_removed_and_both_are_counted(fleet, school):
    tree = fleet.committed(school.name).tree
    (tree / "gstudio/db").chmod(0o750)
    (tree / "gstudio/db/a").unlink()
    (tree / "gstudio/db/stranger").write_bytes(b"?")
    done = repair(fleet, school.name)
    assert (done.mended, done.put_back) == ([], ["gstudio/db/a"])
    assert done.removed == ["gstudio/db/stranger"]
    assert repair(fleet, school.name).put_back == []
    assert verify(fleet, school.name) == []


def test_a_folder_that_cannot_be_read_is_named_and_nothing_in_it(fleet, school, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("gstudio/db"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (found,) = verify(fleet, school.name)
    assert (found.path, found.problem) == ("gstudio/db/", "cannot be read: Permission denied (a folder)")


def test_what_the_tree_shows_damaged_is_not_counted_twice(fleet, school):
    overwrite(fleet.committed(school.name).tree / "gstudio/qbank/q", b"??")
    told = verify(fleet, school.name)
    assert [found.path for found in told] == ["gstudio/qbank/q"]
    assert damaged_objects(fleet, school.name, told) == []


def test_the_commands_name_a_damaged_record_and_go_on(centre, fleet_of_centre):
    school, other = fleet_of_centre
    (record_folder(centre.archive, school) / "pull.json").write_bytes(b"{")
    overwrite(record_folder(centre.archive, other) / "collection.json", b"{")
    for command in ("status", "prune", "verify"):
        done = centre.shala("archive", command)
        assert done.returncode == (1 if command == "verify" else 3), (command, done.stdout, done.stderr)
        assert school.name in done.stdout + done.stderr
    assert centre.shala("archive", "status", "--json").returncode == 3
    assert "unknown" in centre.shala("archive", "status").stdout
    for one in (school, other):
        shown = centre.shala("archive", "show", one.name)
        assert shown.returncode == 3
        assert "is damaged" in shown.stderr
    mended = centre.shala("archive", "repair")
    assert mended.returncode == 3
    assert f"{school.name}: 1 mended" in mended.stdout
    assert f"pull --again {other.name}" in mended.stdout


def test_a_pull_record_that_was_changed_is_named_and_mended_from_another_copy(fleet, school, copy):
    pull = record_folder(fleet, school) / "pull.json"
    good = pull.read_bytes()
    overwrite(pull, good.replace(b'"address":"', b'"address":"10.9.9.9'))
    assert pull.read_bytes() != good
    assert [found.path for found in verify(fleet, school.name)] == ["pull.json"]
    with pytest.raises(CentralError, match="is damaged"):
        republish(fleet, school.name)  # which would give it a digest of its own
    repaired = repair(fleet, school.name, SecondCopy(fleet, copy))
    assert (repaired.mended, repaired.lost) == (["pull.json"], [])
    assert (record_folder(fleet, school) / "pull.json").read_bytes() == good
    assert verify(fleet, school.name) == []


def flip_pull(archive: Archive, school: School, field: str) -> None:
    """Change a bit of the last character of a field of pull.json."""
    pull = record_folder(archive, school) / "pull.json"
    raw = bytearray(pull.read_bytes())
    found = re.search(rb'"%s":"?([0-9a-f-]+)' % field.encode(), raw)
    assert found is not None
    raw[found.end() - 1] ^= 4
    overwrite(pull, bytes(raw))


def pulled_in_history(archive: Archive, school: School) -> list[str]:
    with archive.history() as history:
        return [version.pulled for version in history.versions(school.name)]


@pytest.mark.parametrize("field", ["pulled", "sequence", "manifest_sha256"])
def test_a_changed_pull_record_is_put_back_of_the_nightly_copy_before_it_goes_into_the_history(
    fleet, school, field, caplog
):
    back_up(fleet)
    pull = fleet.committed(school.name).pull
    flip_pull(fleet, school, field)
    deliver(fleet, school, {"gstudio/db/a": b"newest"})
    assert pulled_in_history(fleet, school)[-1] == pull.pulled
    assert [version.sequence for version in versions_of(fleet, school.name)] == [1, 2, 3]
    assert pulls_of(fleet, school.name)[1].is_of_same_collection(pull)
    assert f"pull.json of {school.name} was damaged" in caplog.text


@pytest.mark.parametrize("field", ["pulled", "sequence", "manifest_sha256"])
def test_nothing_that_a_changed_pull_record_says_goes_into_the_history(fleet, school, field, caplog):
    pull = fleet.committed(school.name).pull
    flip_pull(fleet, school, field)
    wrong = fleet.committed(school.name).pull
    deliver(fleet, school, {"gstudio/db/a": b"newest"})
    assert pulls_of(fleet, school.name)[1].is_of_same_collection(pull)
    assert pulled_in_history(fleet, school)[-1] != wrong.pulled
    assert f"pull.json of collection 2 of {school.name} was damaged" in caplog.text
    assert verify(fleet, school.name) == []


@pytest.mark.parametrize("is_copied", [True, False])
def test_what_a_changed_pull_record_says_was_held_back_is_not_believed(fleet, school, is_copied, caplog):
    deliver(fleet, school, {**NEWER, "gstudio/db/a": b"half"}, "db")
    held = fleet.committed(school.name).pull.held
    assert list(held) == ["gstudio/db"]
    if is_copied:
        back_up(fleet)
    pull = record_folder(fleet, school) / "pull.json"
    overwrite(pull, pull.read_bytes().replace(b'{"gstudio/db":"2@', b'{"gstudio/db":"1@'))
    assert fleet.committed(school.name).pull.held != held
    newest = {**NEWER, "gstudio/db/a": b"half again"}
    deliver(fleet, school, newest, "db")
    assert fleet.committed(school.name).pull.held == (held if is_copied else {})
    assert (b"newer" in tree_of(fleet.committed(school.name).tree).values()) == is_copied
    assert ("not known any more" in caplog.text) != is_copied
    assert verify(fleet, school.name) == damaged_objects(fleet, school.name) == []


WHICH_ONE = ["sequence", "year", "manifest_sha256"]


@pytest.mark.parametrize("field", WHICH_ONE)
def test_a_pull_record_that_names_another_collection_is_the_one_to_blame_and_is_mended(
    fleet, school, copy, field
):
    good = (record_folder(fleet, school) / "pull.json").read_bytes()
    flip_pull(fleet, school, field)
    assert [found.path for found in verify(fleet, school.name)] == ["pull.json"]
    repaired = repair(fleet, school.name, SecondCopy(fleet, copy))
    assert (repaired.mended, repaired.lost) == (["pull.json"], [])
    assert (record_folder(fleet, school) / "pull.json").read_bytes() == good
    assert verify(fleet, school.name) == []


@pytest.mark.parametrize("field", WHICH_ONE)
def test_the_next_collection_is_held_against_what_head_says_where_the_pull_record_was_changed(
    fleet, school, field
):
    whole = fleet.last_known(school.name)
    flip_pull(fleet, school, field)
    assert fleet.committed(school.name).pull != whole
    assert fleet.last_known(school.name).is_of_same_collection(whole)


@pytest.mark.ssh
def test_a_pull_record_with_too_high_a_number_lets_the_next_collection_in(centre, school, online):
    online(school).seal(GOOD)
    centre.pull()
    flip_pull(centre.archive, school, "sequence")
    assert centre.archive.committed(school.name).pull.sequence == 5
    school.seal(NEWER)
    assert centre.pull_here().result == "committed"


def test_a_record_of_an_older_shala_without_the_digest_of_its_pull_is_whole(fleet, school):
    (record_folder(fleet, school) / "pull.sha256").unlink()
    assert verify(fleet, school.name) == []


def test_how_an_earlier_collection_came_is_kept_without_a_digest_of_what_is_written_anew(fleet, school):
    school.sequence += 1
    deliver(fleet, school, {**GOOD, "gstudio/qbank/new": b"n"})
    with fleet.history() as history:
        assert "pull.sha256" not in history.record(history.versions(school.name)[-1])


RECIPIENT = "age17qlygu53999tup3ggj36spscfgznqm34ywt0pht00cjuyyfcsgzs8cuu90"


@pytest.mark.parametrize("deed", [cut_pull, lose_all])
def test_encrypting_names_a_damaged_record_and_encrypts_all_others(centre, fleet_of_centre, deed):
    school, other = fleet_of_centre
    deed(centre.archive, school)
    centre.archive_settings = f'recipients = ["{RECIPIENT}"]\nsensitive_items = ["qbank"]\n'
    done = centre.shala("archive", "encrypt", "--json")
    assert done.returncode == 3
    answer = json.loads(done.stdout)
    assert list(answer["failed"]) == [school.name]
    assert f"the record of {school.name} is damaged" in done.stderr
    assert [(one["name"], one["objects"]) for one in answer["servers"]] == [(other.name, 1)]


@pytest.mark.parametrize("command", ["encrypt", "repair"])
def test_a_server_that_is_pulled_just_now_holds_up_no_other(centre, fleet_of_centre, command):
    school, other = fleet_of_centre
    centre.archive_settings = f'recipients = ["{RECIPIENT}"]\nsensitive_items = ["qbank"]\n'
    with centre.archive.lock(school.name):
        done = centre.shala("archive", command)
        assert (done.returncode, done.stderr.count("\n")) == (3, 1)
        assert f"shala: {school.name} is being pulled (try again" in done.stderr
        assert "1 server" in done.stdout
        answer = json.loads(centre.shala("archive", command, "--json").stdout)
    assert [one["name"] for one in answer["servers"]] == [other.name]
    assert centre.shala("archive", command).returncode == 0


# -- asked of the school again -------------------------------------------------------------------------------


@pytest.mark.ssh
@pytest.mark.parametrize("deed", UNREADABLE)
def test_a_school_that_is_asked_again_makes_the_record_anew(centre, school, online, deed):
    online(school).seal(GOOD)
    centre.pull()
    deed(centre.archive, school)
    result = centre.pull_here(again=True)
    assert (result.result, result.reason) == ("committed", "")
    assert verify(centre.archive, school.name) == []
    assert flaws(centre.archive.committed(school.name).record) == []
    assert [version.sequence for version in versions_of(centre.archive, school.name)] == [1]


@pytest.mark.ssh
def test_asking_again_leaves_what_the_operator_restored(centre, school, online):
    school.items = {"db": "ok", "qbank": "ok"}
    online(school).seal(GOOD)
    centre.pull()
    school.seal(NEWER)
    centre.pull()
    archive = centre.archive
    restore(archive, school.name, version_of(archive, school.name, 1), ["gstudio/db"])
    assert centre.pull_here(again=True).result == "committed"
    assert centre.published(school)["gstudio/db/a"] == b"good"
    assert archive.committed(school.name).pull.held["gstudio/db"].startswith("1@20")
    school.items = {"db": "failed", "qbank": "ok"}
    school.seal({**NEWER, "gstudio/qbank/q": b"q2"})
    centre.pull()
    assert centre.published(school) == {"gstudio/db/a": b"good", "gstudio/qbank/q": b"q2"}
    school.items = {"db": "ok", "qbank": "ok"}
    school.seal({**NEWER, "gstudio/qbank/q": b"q3"})
    centre.pull()
    assert centre.published(school)["gstudio/db/a"] == b"newer"


@pytest.mark.ssh
def test_a_collection_that_is_asked_for_again_keeps_how_it_came_first(centre, school, online):
    online(school).seal(GOOD)
    centre.pull()
    archive = centre.archive
    first = archive.committed(school.name).pull
    assert centre.pull_here(again=True).result == "committed"
    once_more = archive.committed(school.name).pull
    assert once_more.again > first.pulled
    assert once_more == msgspec.structs.replace(first, again=once_more.again)
    assert f"; again {once_more.again[:19]}\n" in centre.shala("archive", "show", school.name).stdout
    assert once_more.again[:16] in centre.shala("archive", "status").stdout


# -- what a damaged record leaves of the history -------------------------------------------------------------


def test_where_a_list_was_lost_the_collections_before_it_are_not_told_as_something_else(
    fleet, school, caplog, tmp_path
):
    (record_folder(fleet, school) / "files.txt").unlink()
    deliver(fleet, school, {"gstudio/db/a": b"newest"})
    assert [version.sequence for version in versions_of(fleet, school.name)] == [1, 3]
    with pytest.raises(RecordDamaged, match=r"collection 1 of .* cannot be told any more"):
        checkout(fleet, version_of(fleet, school.name, 1), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (aside,) = (fleet.hidden / "damaged").iterdir()
    assert (aside / "bag-info.txt").exists()
    assert f"what is left of its record: {aside}" in caplog.text
    assert verify(fleet, school.name) == []


@pytest.mark.parametrize("lost", ["HEAD", "collection.json", "bag-info.txt"])
def test_a_record_without_one_of_its_small_files_still_leads_to_the_collections_before_it(
    fleet, school, tmp_path, lost
):
    (record_folder(fleet, school) / lost).unlink()
    deliver(fleet, school, {"gstudio/db/a": b"newest"})
    for number, files in ((1, GOOD), (2, NEWER)):
        version, out = version_of(fleet, school.name, number), tmp_path / str(number)
        checkout(fleet, version, out)
        assert {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()} == files
    with pytest.raises(RecordDamaged, match=f"{lost} in the record of collection 2 of .* is gone"):
        record_of(fleet, version_of(fleet, school.name, 2))


def test_a_tree_of_an_earlier_year_stays_as_it_is_where_its_list_cannot_be_told(fleet, school, caplog):
    (record_folder(fleet, school) / "files.txt").unlink()
    # The tree of 2026 shows a collection that is lost.
    deliver(fleet, school, {"gstudio/db/a": b"newest"}, year=2027)
    tree = fleet.root / "2026/mz" / school.name
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    with changing(fleet, school.name):
        assert mend_earlier_years(fleet, school.name) == []
    assert {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()} == before
    assert "the tree of 2026" in caplog.text


def test_of_a_server_that_was_installed_anew_a_damaged_record_counts_and_not_the_higher_numbers_before(
    archive, school
):
    school.sequence = 19
    deliver(archive, school, GOOD)
    school.sequence = 0
    deliver(archive, school, NEWER)
    cut_pull(archive, school)
    assert archive.last_known(school.name).sequence == 1
    lose_all(archive, school)
    assert archive.last_known(school.name).sequence == 20


def test_prune_names_the_server_that_it_leaves_alone_and_ends_with_3(centre, fleet_of_centre):
    school, other = fleet_of_centre
    for one in (school, other):
        deliver(centre.archive, one, NEWER)
    (record_folder(centre.archive, school) / "bag-info.txt").unlink()
    done = centre.shala("archive", "prune")
    assert done.returncode == 3
    assert f"{school.name} is left alone: its record is not whole" in done.stderr
    assert "by packing" in done.stdout
    assert other.name not in done.stderr


def test_prune_leaves_a_server_alone_of_which_content_is_nowhere(fleet, school, other):
    before = set((fleet.objects.root / school.name).rglob("*"))
    gone = fleet.objects.find(school.name, "gstudio/db/a", hashlib.sha256(GOOD["gstudio/db/a"]).hexdigest())
    gone.unlink()
    pruned = prune(fleet, keep_days=10_000, keep_months=0)
    assert list(pruned.left_alone) == [school.name]
    assert "1 of the contents that it needs are nowhere" in pruned.left_alone[school.name]
    assert set((fleet.objects.root / school.name).rglob("*")) == before - {gone}
