"""A collection comes back onto a server: what is refused, and what files do."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from agent_school import School
from click.testing import CliRunner
from shala_agent import cli
from shala_agent.chain import Chain
from shala_agent.collection import Collection, ItemResult, write_collection
from shala_agent.config import read_config
from shala_agent.failure import AgentError, Stopped, UsageError
from shala_agent.payload import Damaged
from shala_agent.restore import Restored, restore
from shala_agent.restore_files import copy_aside, put_back
from shala_agent.restore_note import Note, forget_note, half_done, write_note

SETTINGS = (
    "GSTUDIO_INSTITUTE_ID ='{0}'\nGSTUDIO_INSTITUTE_ID_SECONDARY ='2031017'\nGSTUDIO_INSTITUTE_NAME ='Hill'\n"
)


class Bag:
    """A collection as `shala archive export` packs it, unpacked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items: list[ItemResult] = []
        folder.mkdir()
        (folder / "bagit.txt").write_text("BagIt-Version: 1.0\n")
        self.seal()

    def put(self, path: str, content: bytes = b"{}", policy: str = "", outcome: str = "ok") -> Path:
        file = self.folder / "data/gstudio" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        name = path.partition("/")[0].removesuffix(".age")
        self.items.append(ItemResult(platform="gstudio", name=name, outcome=outcome, policy=policy, files=1))
        self.seal()
        return file

    def seal(self) -> None:
        files = sorted(path for path in self.folder.glob("data/**/*") if path.is_file())
        lines = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(self.folder)}\n"
            for path in files
        ]
        (self.folder / "manifest-sha256.txt").write_text("".join(lines))
        collection = Collection(
            server_name="2031017-mz17", state="mz", school_code="2031017", server_id="mz17", school_name="Hill",
            sequence=3, year=2026, started="", sealed="2026-11-21T08:00:00Z", items=self.items,
        )  # fmt: skip
        (self.folder / "collection.json").write_bytes(write_collection(collection))


@pytest.fixture
def bag(tmp_path: Path) -> Bag:
    return Bag(tmp_path / "bag")


def brought_back(school: School, bag: Bag, *names: str) -> Restored:
    return restore(read_config(school.config_path), bag.folder, names)


def test_a_file_that_is_not_what_was_collected_is_refused(school: School, bag: Bag) -> None:
    file = bag.put("rcs-repo/Nodes/a.json")
    file.write_bytes(b"[]")
    with pytest.raises(Damaged, match=r"rcs-repo/Nodes/a\.json is not what was collected"):
        brought_back(school, bag)


def test_a_file_that_is_missing_is_named(school: School, bag: Bag) -> None:
    bag.put("rcs-repo/Nodes/a.json")
    bag.put("rcs-repo/Nodes/b.json").unlink()
    with pytest.raises(Damaged, match=r"rcs-repo/Nodes/b\.json is missing"):
        brought_back(school, bag)


def test_without_a_manifest_the_checks_of_the_kind_decide(school: School, bag: Bag) -> None:
    bag.put("media/0/1/2/" + "a" * 61 + ".png", b"another picture")
    with pytest.raises(Damaged, match="media/0/1/2"):
        restore(read_config(school.config_path), bag.folder / "data")


def test_a_dump_that_is_cut_is_refused_though_it_was_collected_so(school: School, bag: Bag) -> None:
    bag.put("postgres-dump/pg_dump_all.sql", b"CREATE DATABASE gstudio_psql;\n")
    with pytest.raises(Damaged, match=r"pg_dump_all\.sql"):
        brought_back(school, bag)


def test_a_manifest_that_is_no_text_is_damaged(school: School, bag: Bag) -> None:
    bag.put("rcs-repo/Nodes/a.json")
    (bag.folder / "manifest-sha256.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(Damaged, match=r"manifest-sha256\.txt is damaged"):
        brought_back(school, bag)


@pytest.mark.parametrize("where", ["rcs-repo/Nodes/link.json", "rcs-repo/elsewhere", "media"])
def test_a_link_in_the_folder_is_refused(school: School, bag: Bag, where: str) -> None:
    bag.put("rcs-repo/Nodes/a.json")
    (bag.folder / "data/gstudio" / where).symlink_to("/etc")
    with pytest.raises(Damaged, match="link"):
        brought_back(school, bag)


def test_a_device_in_the_folder_is_refused(school: School, bag: Bag) -> None:
    bag.put("rcs-repo/Nodes/a.json")
    os.mkfifo(bag.folder / "data/gstudio/rcs-repo/Nodes/pipe.json")
    with pytest.raises(Damaged, match="special file"):
        brought_back(school, bag)


@pytest.mark.parametrize(
    ("path", "policy", "why"),
    [
        ("rcs-repo/a.json", "pseudonyms in username [0123456789ab]", "holds pseudonyms"),
        ("rcs-repo/a.json.age", "sealed to age1xyz [0123456789ab]", r"a\.json\.age is sealed"),
        ("local_settings.py.age", "", r"local_settings\.py\.age is sealed"),
        ("db/id/ids.bson.age", "", r"ids\.bson\.age is sealed"),
    ],
)
def test_what_is_not_as_the_platform_had_it_is_refused_by_itself(
    school: School, bag: Bag, path: str, policy: str, why: str
) -> None:
    bag.put(path, policy=policy)
    done = brought_back(school, bag)
    [(_, result)] = done.items
    assert result.outcome == "failed"
    assert re.search(why, result.reasons[0]), result.reasons
    assert done.exit_code == 1


def test_the_settings_of_another_server_stay_where_they_are(school: School, bag: Bag) -> None:
    bag.put("server_settings.py", SETTINGS.format("mz18").encode())
    [(name, result)] = brought_back(school, bag).items
    assert (name, result.outcome) == ("server_settings.py", "skipped")
    assert "the collection is of 2031017-mz18, this server is 2031017-mz17 and stays so" in result.reasons[0]


def test_what_the_platform_makes_itself_is_left_with_the_reason(school: School, bag: Bag) -> None:
    bag.put("nginx-logs/access.log", b"GET /\n")
    [(_, result)] = brought_back(school, bag).items
    assert result.outcome == "skipped"
    assert "tells of the machine" in result.reasons[0]
    with pytest.raises(UsageError, match="--item nginx-logs: it does not go back"):
        brought_back(school, bag, "nginx-logs")


def test_an_item_that_is_not_there_is_a_usage_error(school: School, bag: Bag) -> None:
    bag.put("media/x", b"x")
    with pytest.raises(UsageError, match=r"--item db: the collection has no such item \(it has: media\)"):
        brought_back(school, bag, "db")


def test_a_folder_that_is_no_collection_is_a_usage_error(school: School, tmp_path: Path) -> None:
    ran = CliRunner().invoke(
        cli.shala_agent, ["--config", str(school.config_path), "restore", str(tmp_path / "data")]
    )
    assert isinstance(ran.exception, UsageError)
    assert "holds no collection" in str(ran.exception)


# -- files -----------------------------------------------------------------------------------------------------


def digests_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Files of an item, as they were collected."""
    source = tmp_path / "rcs-repo"
    for name in ("a/one.json", "a/b/two.json", "three.json"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    return source


def test_files_that_are_there_already_are_not_written_again(repository: Path, tmp_path: Path) -> None:
    target = tmp_path / "data/rcs-repo"
    target.parent.mkdir()
    put_back(repository, digests_of(repository), target, tmp_path / "kept")
    (target / "a/one.json").write_text("changed")
    (target / "besides.json").write_text("of today")
    inode = (target / "three.json").stat().st_ino
    done = put_back(repository, digests_of(repository), target, tmp_path / "kept")
    assert (done.written, done.same) == (1, 2)
    assert (target / "three.json").stat().st_ino == inode
    assert digests_of(target).items() >= digests_of(repository).items()
    assert (target / "besides.json").read_text() == "of today"


def test_owner_and_permissions_are_the_platforms(repository: Path, tmp_path: Path) -> None:
    target = tmp_path / "data/rcs-repo"
    (target / "a").mkdir(parents=True)
    (target / "a/one.json").write_text("changed")
    (target / "a/one.json").chmod(0o604)
    os.chown(target, 1234, 2345)
    target.chmod(0o750)
    put_back(repository, digests_of(repository), target, tmp_path / "kept")
    assert (target / "a/one.json").stat().st_mode & 0o777 == 0o604
    made = (target / "three.json").stat()
    assert (made.st_uid, made.st_gid) == (1234, 2345)
    assert made.st_mode & 0o777 == (repository / "three.json").stat().st_mode & 0o777


@pytest.mark.parametrize("place", ["", "a", "a/b"])
def test_a_link_in_the_way_is_not_followed(repository: Path, tmp_path: Path, place: str) -> None:
    target, outside = tmp_path / "data/rcs-repo", tmp_path / "outside"
    outside.mkdir()
    (target / place).parent.mkdir(parents=True, exist_ok=True)
    (target / place).symlink_to(outside)
    with pytest.raises(AgentError, match="is a link or a file, where a folder was"):
        put_back(repository, digests_of(repository), target, tmp_path / "kept")
    assert not list(outside.iterdir())


def test_a_linked_file_is_not_written_through(repository: Path, tmp_path: Path) -> None:
    target, outside = tmp_path / "data/rcs-repo", tmp_path / "shadow"
    outside.write_text("secret")
    target.mkdir(parents=True)
    (target / "three.json").symlink_to(outside)
    with pytest.raises(AgentError, match=r"'three\.json' is a link"):
        put_back(repository, digests_of(repository), target, tmp_path / "kept")
    assert outside.read_text() == "secret"


def test_a_file_that_changes_after_it_was_looked_at_replaces_nothing(
    repository: Path, tmp_path: Path
) -> None:
    target = tmp_path / "data/rcs-repo"
    shutil.copytree(repository, target)
    (target / "three.json").write_text("good")
    digests = digests_of(repository)
    (repository / "three.json").write_text("swapped")
    with pytest.raises(Damaged, match="changed while it was restored"):
        put_back(repository, digests, target, tmp_path / "kept")
    assert (target / "three.json").read_text() == "good"
    assert not list(target.rglob(".shala-*"))


def test_a_file_that_is_replaced_is_kept_and_never_what_was_kept_before(
    repository: Path, tmp_path: Path
) -> None:
    target, kept = tmp_path / "data/rcs-repo", tmp_path / "kept/files/rcs-repo"
    for content in ("of today", "of tomorrow"):
        (target / "a/b").mkdir(parents=True, exist_ok=True)
        (target / "a/b/two.json").write_text(content)
        (target / "three.json").write_text("three.json")
        put_back(repository, digests_of(repository), target, kept)
    assert {path.relative_to(kept).as_posix(): path.read_text() for path in kept.rglob("*.*")} == {
        "a/b/two.json": "of today",
        "a/b/two.json.1": "of tomorrow",
    }
    assert [folder.stat().st_mode & 0o077 for folder in (kept, *kept.parents[:2])] == [0, 0, 0]
    assert (target / "a/b/two.json").read_text() == "a/b/two.json"


def test_what_is_kept_on_another_file_system_is_a_copy(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_file_system(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", other_file_system)
    target, kept = tmp_path / "data/rcs-repo", tmp_path / "kept"
    target.mkdir(parents=True)
    (target / "three.json").write_text("of today")
    os.utime(target / "three.json", (5, 5))
    put_back(repository, digests_of(repository), target, kept)
    assert {path.name: (path.read_text(), path.stat().st_mtime) for path in kept.iterdir()} == {
        "three.json": ("of today", 5)
    }


def test_a_file_that_is_gone_after_it_was_looked_at_is_no_success(repository: Path, tmp_path: Path) -> None:
    digests = digests_of(repository)
    (repository / "a/one.json").unlink()
    (tmp_path / "data").mkdir()
    with pytest.raises(Damaged, match=r"a/one\.json is gone since it was looked at"):
        put_back(repository, digests, tmp_path / "data/rcs-repo", tmp_path / "kept")
    with pytest.raises(Damaged, match=r"a/one\.json is gone since it was looked at"):
        copy_aside(repository, digests, tmp_path / "aside")


# -- a restore that was cut --------------------------------------------------------------------------------------


def test_half_of_a_database_is_never_dumped_as_the_schools(school: School) -> None:
    state = school.root / "state"
    state.mkdir()
    write_note(state, Note("digest", "/data/.shala/before-restore/then", ["db/assessment"]))
    assert "a restore of db/assessment was cut" in half_done(state)
    with closing(school.ledger()) as ledger:
        passage = Chain(school.config, ledger).by_hand(("mongo-dump", "collect"))
    (_, dumped), (_, collected) = passage.steps
    assert dumped.outcome == "failed"
    assert "a restore of db/assessment was cut (run it again" in dumped.reasons[0]
    assert passage.collected is not None
    assert collected.detail["sealed"]
    forget_note(state)
    assert half_done(state) == ""


@pytest.mark.parametrize(
    ("half", "said"),
    [
        (["db/assessment"], "stopped; a restore of db/assessment was cut (run it again"),
        ([], "stopped; no database is half restored, the same command goes on"),
    ],
)
def test_who_stops_a_restore_hears_what_is_half_done(
    school: School,
    bag: Bag,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    half: list[str],
    said: str,
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise Stopped("SIGTERM")

    monkeypatch.setattr("shala_agent.restore.restore", stopped)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(
        "sys.argv", ["shala-agent", "--config", str(school.config_path), "restore", str(bag.folder)]
    )
    (school.root / "state").mkdir()
    write_note(school.root / "state", Note("digest", "/data/.shala/before-restore/then", half))
    with pytest.raises(SystemExit, match="3"):
        cli.main()
    assert said in capsys.readouterr().err


def test_a_folder_and_the_list_of_items_are_refused_together(school: School):
    line = ["--config", str(school.config_path), "restore", str(school.root), "--list"]
    ran = CliRunner().invoke(cli.shala_agent, line)
    assert ran.exit_code == 2
    assert ran.output.splitlines()[-1].startswith("Error: --list shows what can go back at all")
