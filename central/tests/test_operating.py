"""The commands of the archive in the hands of somebody new: names that are none, numbers that are two, rights."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import bagit
import pytest
from central_school import School, overwrite, received, sha256
from conftest import Centre
from shala_central import checkout as checkout_module
from shala_central import completeness as completeness_module
from shala_central import export as export_module
from shala_central import show_commands
from shala_central.archive import Archive
from shala_central.bag import BagRefused, Broken
from shala_central.checkout import checkout
from shala_central.cli import _print_results, shala
from shala_central.commit import restore
from shala_central.failure import CentralError, UsageError
from shala_central.integrity import repair
from shala_central.probe import _reason
from shala_central.provenance import provenance
from shala_central.pull import ServerResult
from shala_central.quarantine import in_quarantine, let_in, quarantine
from shala_central.retention import prune
from shala_central.transport import _tail
from shala_central.versions import handles, version_of, versions_of

DAY = {"gstudio/db/a": b"good", "gstudio/qbank/q": b"q1"}


@pytest.fixture
def day(centre, school):
    """Let a school deliver a day into the centre's archive: `day(files, school)`."""

    def deliver(files: dict[str, bytes], of: School = school, pulled: str = "", number: int = 0) -> Archive:
        archive = centre.archive
        archive.open()
        if of not in centre.schools:
            of.port = of.port or 22
            centre.schools.append(of)
        of.sequence = number or of.sequence + 1
        of.items = {path.split("/")[1]: "ok" for path in files}
        received(archive, of, files, pulled)
        return archive

    return deliver


def everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if not path.name.startswith("history.sqlite")}


# -- names and groups ----------------------------------------------------------------------------------------


def test_an_export_of_no_server_is_never_one_of_all(centre, school, day, another_school, tmp_path):
    day(DAY)
    day(DAY, another_school("3080101-rj1"))
    for names, limit in (([school.name], "state_rj"), ([], ""), ([school.name], ",")):
        done = centre.shala("archive", "export", *names, "--limit", limit, "--to", str(tmp_path / "out.tar"))
        assert (done.returncode, done.stdout) == (2, "")
        assert "--limit" in done.stderr
        assert not (tmp_path / "out.tar").exists()


@pytest.mark.parametrize("name", ["../../evil", "2031099-mz99"])
@pytest.mark.parametrize(
    "command",
    [
        ("archive", "show"),
        ("archive", "log"),
        ("archive", "verify"),
        ("archive", "repair"),
        ("archive", "accept"),
        ("archive", "encrypt"),
        ("archive", "quarantine", "list"),
        ("archive", "quarantine", "release"),
        ("archive", "quarantine", "discard"),
        ("archive", "diff", ..., "1"),
        ("archive", "restore", ..., "1"),
        ("archive", "checkout", ..., "1", "out"),
        ("archive", "export", ..., "--to", "out.tar"),
        ("pull",),
    ],
    ids=lambda command: command[-1] if ... not in command else command[1],
)
def test_a_name_that_is_no_server_is_one_line_and_makes_nothing(
    centre, school, day, tmp_path, monkeypatch, command, name
):
    centre.archive_settings = f'recipients = ["{RECIPIENT}"]\n'
    day(DAY)
    _ = centre.config
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    words = [name if word is ... else word for word in command]
    done = centre.shala(*words, *([] if ... in command else [name]))
    assert done.returncode == 2, done
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)
    assert everything(tmp_path) == before


RULE = Broken("sequence", "its collection is number 1, but 3 is committed already")
RECIPIENT = "age17qlygu53999tup3ggj36spscfgznqm34ywt0pht00cjuyyfcsgzs8cuu90"


def test_a_wrong_name_among_right_ones_is_said_before_anything_is_done(centre, school, day):
    day(DAY)
    for command in ("verify", "repair"):
        done = centre.shala("archive", command, school.name, "nope")
        assert (done.returncode, done.stdout) == (2, "")
        assert "nothing of 'nope' is in the archive" in done.stderr


def test_no_lock_and_no_folder_is_made_for_what_is_no_server(day):
    archive = day(DAY)
    with pytest.raises(UsageError, match="is not a server name"), archive.lock("../../evil"):
        pass
    with pytest.raises(UsageError, match="is not a server name"):
        archive.staging("../../evil")


def test_a_second_copy_that_is_no_archive_is_named(centre, school, day, tmp_path):
    day(DAY)
    done = centre.shala("archive", "repair", school.name, "--from", str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path} is not an archive" in done.stderr


def test_the_archive_is_no_second_copy_of_itself(centre, school, day, tmp_path):
    day(DAY)
    (tmp_path / "link").symlink_to(centre.root)
    (centre.root.parent / ".shala").mkdir()
    (centre.root / "2026/.shala").mkdir()
    for folder in (centre.root, tmp_path / "link", centre.root.parent, centre.root / "2026"):
        done = centre.shala("archive", "repair", "--from", str(folder))
        assert (done.returncode, done.stdout) == (2, ""), folder
        assert f"shala: {folder} is no other copy than {centre.root} (" in done.stderr


def test_a_bucket_that_there_is_not_is_not_read(centre, school, day):
    day(DAY)
    done = centre.shala("archive", "scrub", "--bucket", "5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("shala: --bucket: there is no bucket, archive.objects_url is empty")


def test_scrub_says_what_was_read_and_names_a_damaged_content_once(centre, school, day):
    day({"gstudio/db/a": b"text " * 1000})
    archive = day({"gstudio/db/a": b"other"})
    assert centre.shala("archive", "scrub").stdout.endswith(" Not all was read once yet.\n")
    prune(archive, keep_days=1000, keep_months=0)
    with sqlite3.connect(archive.hidden / "cold.sqlite") as db:
        row = db.execute("SELECT packed FROM cold").fetchone()[0]
        db.execute("UPDATE cold SET packed = ?", (row[:-1] + bytes([row[-1] ^ 1]),))
    said = centre.shala("archive", "scrub", "--days", "1").stdout
    assert [line.count(sha256(b"text " * 1000)) for line in said.splitlines() if "unpacked" in line] == [1]
    assert " The oldest reading is of 20" in said


def test_other_shared_items_than_before_are_refused_before_content_is_looked_for_elsewhere(
    centre, school, day
):
    day({"gstudio/media/m": b"m"})
    for name in ("key", "known_hosts"):
        (centre.folder / name).touch()
    centre.archive_settings = 'shared_items = ["gstudio/qbank"]\n'
    for command in (("archive", "prune"), ("archive", "verify"), ("pull",)):
        done = centre.shala(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert "archive.shared_items is gstudio/qbank, but of what is in" in done.stderr
    centre.archive_settings = ""
    assert centre.shala("archive", "verify", "--deep").returncode == 0


# -- quarantine ----------------------------------------------------------------------------------------------


def test_the_list_of_what_was_refused_says_what_was_let_in_and_how_often_it_was_seen(centre, school, day):
    archive = day(DAY)
    said = centre.shala("archive", "quarantine", "list").stdout
    assert said == "0 refused collections\n"
    quarantine(archive, school.name, 1, BagRefused(["went back"], broken=[RULE]), {"HEAD": b"x"})
    before = centre.shala("archive", "quarantine", "list").stdout
    assert "seen 1 time\n" in before
    (refused,) = in_quarantine(archive, school.name)
    let_in(archive, Path(str(refused["folder"])).name)
    after = centre.shala("archive", "quarantine", "list", school.name).stdout
    assert "seen 1 time  released: the next pull lets it in\n" in after
    assert "released: the next pull lets it in\n" in centre.shala("archive", "show", school.name).stdout
    (entry,) = json.loads(centre.shala("archive", "quarantine", "list", "--json").stdout)["quarantine"]
    assert entry["released"]


# -- which collection ----------------------------------------------------------------------------------------


@pytest.fixture
def installed_anew(centre, school, day):
    """A server that has delivered two collections of the number 2."""
    day({"gstudio/db/a": b"one"}, number=1, pulled="2026-11-19T04:00:00.000001+00:00")
    day({"gstudio/db/a": b"before"}, number=2, pulled="2026-11-20T04:00:00.000001+00:00")
    return day({"gstudio/db/a": b"after"}, number=2, pulled="2026-11-21T04:00:00.000001+00:00")


def test_a_number_that_two_collections_have_is_never_guessed(centre, school, installed_anew, tmp_path):
    for command in (
        ("diff", school.name, "1", "2"),
        ("checkout", school.name, "2", str(tmp_path / "out")),
        ("restore", school.name, "2"),
        ("export", school.name, "--number", "2", "--to", str(tmp_path / "out.tar")),
    ):
        done = centre.shala("archive", *command)
        assert (done.returncode, done.stdout) == (2, "")
        assert "name one: 2@2026-11-20T04:00, 2@2026-11-21T04:00" in done.stderr


def test_each_collection_has_a_handle_that_the_log_shows_and_every_command_takes(
    centre, school, installed_anew, tmp_path
):
    listed = centre.shala("archive", "log", school.name).stdout
    assert [line.split()[0] for line in listed.splitlines()[2:5]] == [
        "2@2026-11-21T04:00",
        "2@2026-11-20T04:00",
        "1",
    ]
    answer = json.loads(centre.shala("archive", "log", school.name, "--json").stdout)
    assert answer["collections"][0]["handle"] == "2@2026-11-21T04:00"
    assert [one["items"] for one in answer["collections"]] == [{"gstudio/db": "ok"}] * 3
    before, after = "2@2026-11-20T04:00", "2@2026-11-21"
    for command in (
        ("diff", school.name, before, after),
        ("checkout", school.name, before, str(tmp_path / "out")),
        ("export", school.name, "--number", before, "--to", str(tmp_path / "out.tar")),
        ("restore", school.name, before),
    ):
        done = centre.shala("archive", *command)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/gstudio/db/a").read_bytes() == b"before"
    assert centre.published(school) == {"gstudio/db/a": b"before"}


def test_what_is_in_view_of_a_server_that_was_installed_anew_is_known_by_its_time(
    centre, school, installed_anew
):
    archive = installed_anew
    restore(archive, school.name, version_of(archive, school.name, "2@2026-11-20"))
    assert (
        "readers see gstudio/db of collection 2@2026-11-20T04:00 ("
        in centre.shala("archive", "show", school.name).stdout
    )
    assert "of collection 2@2026-11-20T04:00 is in view" in centre.shala("archive", "status").stdout
    provenance_of = provenance(archive, f"2026/mz/{school.name}/gstudio/db/a")
    assert provenance_of.pulled.startswith("2026-11-20")
    view = archive.committed(school.name).record / "view.txt"
    view.chmod(0o640)
    view.write_bytes(b"?")
    assert repair(archive, school.name).mended == ["view.txt"]
    assert centre.published(school) == {"gstudio/db/a": b"before"}


def test_two_collections_of_one_number_and_minute_are_told_apart(day, school):
    for number, content in enumerate((b"a", b"b", b"c")):
        archive = day(
            {"gstudio/db/a": content}, number=1, pulled=f"2026-11-21T04:00:0{number // 2}.{number}+00:00"
        )
    names = [*handles(versions_of(archive, school.name)).values()]
    assert len(set(names)) == 3
    assert [version_of(archive, school.name, name).pulled for name in names] == [
        version.pulled for version in versions_of(archive, school.name)
    ]


def test_provenance_names_the_collection_that_was_restored_and_when_its_file_was_written(day, school, centre):
    day({"gstudio/db/a": b"one"})
    day({"gstudio/db/a": b"one", "gstudio/qbank/q": b"q"})
    archive = day({"gstudio/db/a": b"three"})
    restore(archive, school.name, version_of(archive, school.name, 1))
    path = f"2026/mz/{school.name}/gstudio/db/a"
    found = provenance(archive, path)
    assert (found.collection, found.modified_at_school) == (1, "2023-11-14T22:13:20+00:00")
    assert "path in collection  data/gstudio/db/a\n" in centre.shala("archive", "provenance", path).stdout


# -- what is taken elsewhere ---------------------------------------------------------------------------------


def test_a_checkout_is_for_its_owner_alone(centre, school, day, tmp_path):
    day(DAY)
    for number, words in enumerate((("--item", "gstudio/db"), ())):
        folder = tmp_path / "new" / str(number)
        done = centre.shala("archive", "checkout", school.name, "1", str(folder), *words)
        assert done.returncode == 0, done.stderr
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "gstudio/db/a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "failure",
    [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), CentralError("damaged")],
)
def test_nothing_half_is_left_of_a_checkout_that_fails(day, school, tmp_path, monkeypatch, failure):
    archive = day(DAY)
    copy_out = checkout_module._copy_out

    def fail(archive, version, path, file, target):
        copy_out(archive, version, path, file, target)
        if path.endswith("/q"):
            raise failure

    monkeypatch.setattr(checkout_module, "_copy_out", fail)
    before = everything(tmp_path)
    with pytest.raises(type(failure)):
        checkout(archive, version_of(archive, school.name, 1), tmp_path / "out")
    with pytest.raises(UsageError, match="holds nothing"):
        checkout(archive, version_of(archive, school.name, 1), tmp_path / "out", "gstudio/none")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["out.tar.gz", "out.zip", "out", "out.zst"])
def test_an_export_of_a_kind_that_is_not_written_is_refused(centre, school, day, tmp_path, name):
    day(DAY)
    done = centre.shala("archive", "export", school.name, "--to", str(tmp_path / name))
    assert done.returncode == 2
    assert "ends in .tar, or in .tar.zst" in done.stderr
    assert not (tmp_path / name).exists()


def test_an_export_of_a_group_says_who_is_not_in_it(centre, school, day, another_school, tmp_path):
    day(DAY)
    day({"gstudio/db/a": b"x"}, another_school("2031018-mz18"))
    silent = another_school("2031019-mz19")
    silent.port = 22
    centre.schools.append(silent)
    words = ("--limit", "state_mz", "--item", "gstudio/qbank", "--to", str(tmp_path / "out.tar"))
    done = centre.shala("archive", "export", *words)
    assert (done.returncode, done.stderr) == (0, "shala: nothing of 2031018-mz18, 2031019-mz19 is in it\n")
    assert "1 server, 1 file" in done.stdout


@pytest.mark.parametrize("name", ["out.tar", "out.tar.zst"])
def test_an_export_leaves_out_the_servers_of_which_something_is_damaged_and_names_them(
    centre, school, day, another_school, tmp_path, name
):
    others = [another_school("2031018-mz18"), another_school("2031019-mz19")]
    for of in (school, *others):
        archive = day(DAY | {"gstudio/db/of": of.name.encode()}, of)
    overwrite(archive.root / f"2026/mz/{others[0].name}/gstudio/db/of", b"?" * 12)
    done = centre.shala("archive", "export", "--to", str(tmp_path / name))
    assert done.returncode == 3
    assert done.stderr.startswith("shala: data/gstudio/db/of of 2031018-mz18: ")
    assert done.stdout.endswith("2 servers, 6 files, 36 B; left out: 1 damaged server\n")
    subprocess.run(["tar", "-xf", tmp_path / name, "-C", tmp_path], check=True)
    assert not (tmp_path / others[0].name).exists()
    for of in (school, others[1]):
        assert bagit.Bag(str(tmp_path / of.name)).is_valid()


def test_an_export_into_a_folder_that_is_none_is_refused(centre, school, day, tmp_path):
    day(DAY)
    done = centre.shala("archive", "export", school.name, "--to", str(tmp_path / "none/out.tar"))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path}/none is no folder" in done.stderr


def test_a_server_that_is_named_twice_is_exported_once(centre, school, day, tmp_path):
    day(DAY)
    centre.shala("archive", "export", school.name, school.name, "--to", str(tmp_path / "out.tar"))
    with tarfile.open(tmp_path / "out.tar") as tar:
        names = tar.getnames()
    assert len(names) == len(set(names)) == len(DAY) + 5


def test_the_way_to_mend_begins_with_plain_repair_and_asks_a_school_only_for_what_it_has(centre, school, day):
    day(DAY)
    archive = day({**DAY, "gstudio/db/a": b"newer"})
    archive.objects.find(school.name, "gstudio/db/a", sha256(b"good")).unlink()
    plain = f"Mend: shala archive repair {school.name}"
    from_copy = "--from ROOT (another copy of the archive)"
    assert centre.shala("archive", "verify", "--deep").stdout.endswith(
        f". {plain}; what that leaves: {from_copy}\n"
    )
    assert centre.shala("archive", "repair").stdout.endswith(f"left. {plain} {from_copy}\n")
    archive.objects.find(school.name, "gstudio/db/a", sha256(b"newer")).unlink()
    overwrite(archive.committed(school.name).tree / "gstudio/db/a", b"?")
    again = f"{from_copy}, or shala pull --again {school.name}\n"
    assert centre.shala("archive", "verify").stdout.endswith(f"; what that leaves: {again}")
    assert centre.shala("archive", "repair").stdout.endswith(f"left. {plain} {again}")


def test_what_is_known_as_damaged_of_a_server_is_shown_with_it(centre, school, day):
    archive = day(DAY)
    assert "known as damaged" not in centre.shala("archive", "show", school.name).stdout
    overwrite(archive.committed(school.name).tree / "gstudio/db/a", b"bad!")
    centre.shala("archive", "verify")
    told = "\n  known as damaged: gstudio/db/a has changed (sha256 differs) (1 damaged, seen 20"
    assert told in centre.shala("archive", "show", school.name).stdout
    known = json.loads(centre.shala("archive", "show", school.name, "--json").stdout)["known_damage"]
    assert (known["files"], known["earlier"]) == (1, False)


def test_what_readers_see_of_an_earlier_collection_is_not_asked_of_the_school(centre, school, day):
    archive = day(DAY)
    day({**DAY, "gstudio/db/a": b"newer"})
    restore(archive, school.name, version_of(archive, school.name, "1"), ["gstudio/db"])
    overwrite(archive.committed(school.name).tree / "gstudio/db/a", b"bad!")
    assert "pull --again" not in centre.shala("archive", "verify").stdout


# -- what is written outside the archive ---------------------------------------------------------------------


def writes(school: School, folder: Path) -> list[tuple[Path, list[str]]]:
    """Return the commands that write something outside the archive, each with what it writes."""
    return [
        (folder / "out", ["checkout", school.name, "1", str(folder / "out")]),
        (folder / "out.tar", ["export", school.name, "--to", str(folder / "out.tar")]),
        (folder / "out.html", ["status", "--html", str(folder / "out.html")]),
    ]


def test_nothing_is_written_into_the_archive_itself(centre, school, day, tmp_path):
    archive = day(DAY)
    (tmp_path / "link").symlink_to(archive.root)
    before = everything(archive.root)
    for folder in (archive.root, archive.root / "2026/mz", tmp_path / "link"):
        for target, words in writes(school, folder):
            done = centre.shala("archive", *words)
            assert (done.returncode, done.stdout) == (2, "")
            assert f"{target} is in the archive itself" in done.stderr
            assert done.stderr.count("\n") == 1
    assert everything(archive.root) == before


def test_a_target_that_cannot_be_written_is_named_as_it_was_given(centre, school, day):
    day(DAY)
    for target, words in writes(school, Path("/proc")):
        done = centre.shala("archive", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"shala: {target} cannot be written: ")
        assert done.stderr.endswith("(name another place)\n")


def test_a_target_without_room_is_named(centre, school, day, tmp_path, monkeypatch):
    day(DAY)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkout_module, "_copy_out", fail)
    monkeypatch.setattr(export_module, "_add", fail)
    monkeypatch.setattr(show_commands, "_write_page", fail)
    for target, words in writes(school, tmp_path):
        with pytest.raises(UsageError, match=f"^{target} cannot be written: No space left on device"):
            shala.main(["archive", *words, "--config", str(centre.config)], standalone_mode=False)


def test_an_archive_that_cannot_be_read_is_not_blamed_on_the_target(
    centre, school, day, tmp_path, monkeypatch
):
    archive = day(DAY)
    beside = archive.root.with_name("out")

    def fail(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied", str(archive.root / "object"))

    monkeypatch.setattr(checkout_module, "_copy_out", fail)
    words = ["archive", "checkout", school.name, "1", str(beside), "--config", str(centre.config)]
    with pytest.raises(PermissionError):
        shala.main(words, standalone_mode=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda one: one.name)
def test_what_ends_a_command_leaves_nothing_of_what_it_wrote_and_says_so(
    centre, school, day, tmp_path, monkeypatch, number
):
    day(DAY)

    def end(*_: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(checkout_module, "_copy_out", end)
    monkeypatch.setattr(export_module, "_add", end)
    config, before = str(centre.config), everything(tmp_path)
    # Whoever runs the tests may have had them ignored: nohup, a shell's background.
    ours = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        for target, words in writes(school, tmp_path)[:2]:
            with pytest.raises(CentralError, match=f"^interrupted; {target} is not written"):
                shala.main(["archive", *words, "--config", config], standalone_mode=False)
    finally:
        signal.signal(number, ours)
    assert everything(tmp_path) == before


def test_a_page_that_cannot_be_replaced_stays_as_it_was(centre, school, day, tmp_path, monkeypatch):
    day(DAY)
    page = tmp_path / "status.html"
    page.write_text("of yesterday")
    page.chmod(0o644)
    command = ["archive", "status", "--html", str(page), "--config", str(centre.config)]
    ours = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with monkeypatch.context() as ended:
            ended.setattr(completeness_module, "page", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(CentralError, match=r"^interrupted; "):
                shala.main(command, standalone_mode=False)
    finally:
        signal.signal(signal.SIGTERM, ours)
    with files_of_at_most(1000), pytest.raises(UsageError, match=f"^{page} cannot be written: "):
        shala.main(command, standalone_mode=False)
    assert (page.read_text(), len(list(tmp_path.glob("*status.html*")))) == ("of yesterday", 1)
    shala.main(command, standalone_mode=False)
    assert "<html" in page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == 0o640


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Have the disk take no longer files."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


# -- rights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["repair", "verify", "scrub", "prune --dry-run", "objects --upload", "objects --reindex"]
)
def test_root_is_told_the_very_command_that_its_owner_may_run(centre, school, day, command):
    day(DAY)
    os.chown(centre.root, 65534, -1)
    before = everything(centre.root)
    done = centre.shala("archive", *command.split())
    assert (done.returncode, done.stdout) == (1, "")
    assert f"belongs to nobody (run: sudo -u nobody shala archive {command})" in done.stderr
    assert everything(centre.root) == before


def test_who_may_not_read_the_archive_is_told_who_may(day):
    archive = day(DAY)
    archive.root.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(CentralError, match=r"is not for nobody to use \(run: sudo -u "):
            archive.require()
    finally:
        os.seteuid(0)


def test_an_archive_that_is_not_there_and_cannot_be_made_is_named_with_the_way_to_make_it():
    with as_nobody() as folder:
        folder.chmod(0o555)
        root = folder / "archive"
        with pytest.raises(
            CentralError, match=f"^{root} is not there, .* .run: sudo install -d -o nobody -m 0750 {root}.$"
        ):
            Archive(root).open()


def test_what_permissions_shut_is_opened_and_not_mended(capsys):
    with as_nobody() as folder:
        (folder / "spool").mkdir()
        school = School(folder / "spool", port=22)
        centre = Centre(folder, schools=[school])
        archive = centre.archive
        archive.open()
        school.sequence = 1
        received(archive, school, DAY)
        shut = archive.committed(school.name).tree / "gstudio/db/a"
        shut.chmod(0)
        for words in (["verify"], ["verify", "--deep"], ["scrub", "--days", "1"], ["repair"]):
            shala.main(["archive", *words, "--config", str(centre.config)], standalone_mode=False)
            said = "".join(capsys.readouterr())
            assert "chmod u+rX /" in said, words
            assert "Mend" not in said or words == ["repair"], words


@contextlib.contextmanager
def as_nobody():
    """Be a user who is not root while the block runs; yields a folder of that user's."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # pytest's own folders are root's alone
        os.chown(name, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


@pytest.fixture
def a_reader(school, capsys, monkeypatch):
    """Run commands on an archive of three collections as a member of its group: `run(*words, as_owner=...)`."""
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")  # where everybody may write
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are root's alone
        folder = Path(name)
        folder.chmod(0o755)
        centre = Centre(folder, schools=[school])
        school.port = 22
        archive = centre.archive
        archive.open()
        for number in (1, 2, 3):
            school.sequence, school.items = number, {"db": "ok", "qbank": "ok"}
            received(archive, school, {**DAY, "gstudio/db/a": b"%d" % number})
        config = str(centre.config)

        def run(*words: str, as_owner: bool = False) -> tuple[int, str, str]:
            os.seteuid(0 if as_owner else 65534)  # of root's group: it may read
            try:
                code = shala.main(["archive", *words, "--config", config], standalone_mode=False)
            finally:
                os.seteuid(0)
            return (code, *capsys.readouterr())

        run.archive = archive
        yield run


def test_a_member_of_the_group_is_told_what_the_owner_is(school, a_reader):
    for words in (
        ("status",),
        ("show", school.name),
        ("log", school.name),
        ("diff", school.name, "1"),
        ("provenance", f"2026/mz/{school.name}/gstudio/db/a"),
        ("quarantine", "list"),
    ):
        as_owner = a_reader(*words, as_owner=True)
        assert as_owner[0] == 0
        assert a_reader(*words) == as_owner


def test_a_member_of_the_group_can_have_earlier_collections(school, a_reader):
    with tempfile.TemporaryDirectory() as out:
        Path(out).chmod(0o777)
        a_reader("checkout", school.name, "1", f"{out}/root", as_owner=True)
        assert a_reader("checkout", school.name, "1", f"{out}/mine")[0] == 0
        assert Path(out, "mine/gstudio/db/a").read_bytes() == b"1"
        assert a_reader("export", school.name, "--number", "2", "--to", f"{out}/mine.tar")[0] == 0


def test_a_member_of_the_group_sees_what_was_committed_since(school, a_reader):
    a_reader("log", school.name, as_owner=True)
    assert "\n         3  " in a_reader("log", school.name)[1]
    school.sequence = 4
    received(a_reader.archive, school, {**DAY, "gstudio/db/a": b"4"})
    assert "\n         4  " in a_reader("log", school.name)[1]


def test_a_member_of_the_group_is_told_who_verifies(school, a_reader):
    with pytest.raises(CentralError, match=r"belongs to root \(run: sudo -u root "):
        a_reader("verify")


# -- what is refused -----------------------------------------------------------------------------------------


def test_release_and_discard_take_a_server_and_a_folder(centre, school, day):
    archive = day(DAY)
    for number in (1, 2, 3):
        quarantine(archive, school.name, number, BagRefused(["old"], broken=[RULE]), {"HEAD": b"%d" % number})
    one, two, three = (Path(str(entry["folder"])).name for entry in in_quarantine(archive, school.name))
    many = centre.shala("archive", "quarantine", "release", school.name)
    assert (many.returncode, many.stdout) == (2, "")
    assert (
        f"3 collections of {school.name} are in quarantine (name one: {one}, {two}, {three})" in many.stderr
    )
    assert centre.shala("archive", "quarantine", "discard", one).returncode == 0
    again = centre.shala("archive", "quarantine", "discard", one)
    assert (again.returncode, "is in quarantine" in again.stderr) == (2, True)
    path = str(archive.hidden / "quarantine" / two)
    assert centre.shala("archive", "quarantine", "discard", path).returncode == 0
    assert [Path(str(entry["folder"])).name for entry in in_quarantine(archive, school.name)] == [three]
    released = centre.shala("archive", "quarantine", "release", school.name)
    assert (released.returncode, f"{three} will be let in" in released.stdout) == (0, True)
    assert centre.shala("archive", "quarantine", "discard", school.name).returncode == 0
    assert in_quarantine(archive, school.name) == []


# -- what is said --------------------------------------------------------------------------------------------


def test_the_path_that_show_prints_can_be_given_to_tree(centre, school, day):
    archive = day(DAY)
    tree = archive.committed(school.name).tree
    assert str(tree) in centre.shala("archive", "show", school.name).stdout
    below = centre.shala("archive", "tree", str(tree.relative_to(archive.root)))
    assert below.returncode == 0
    for place, said in ((tree, below.stdout), (archive.root, centre.shala("archive", "tree").stdout)):
        assert centre.shala("archive", "tree", str(place)).stdout == said


def test_a_dry_run_of_prune_says_what_it_does_not_estimate(centre, school, day):
    centre.archive_settings = "keep_days = 0\nkeep_months = 0\n"
    for number in range(3):
        day({**DAY, "gstudio/db/a": b"%d" % number}, pulled=f"2025-0{number + 1}-01T04:00:00+00:00")
    said = centre.shala("archive", "prune", "--dry-run").stdout
    assert "would go: 1 collection; 0 objects that nothing needs even now, 0 B (what only those" in said
    assert "is not estimated" in said


def test_what_readers_see_of_an_earlier_collection_is_one_line(centre, school, day):
    items = [f"gstudio/item{number}" for number in range(6)]
    day({f"{item}/a": b"1" for item in items})
    archive = day({f"{item}/a": b"2" for item in items})
    restore(archive, school.name, version_of(archive, school.name, 1))
    said = centre.shala("archive", "show", school.name).stdout
    assert said.count("readers see") == 1
    assert (
        "readers see gstudio/item0, gstudio/item1, gstudio/item2 and 3 others of collection 1@2026-11-01T04:00"
        f" (shala archive accept {school.name})"
    ) in said
    assert (
        " gstudio/item0, gstudio/item1, gstudio/item2 and 3 others of collection 1@2026-11-01T04:00 are in view\n"
    ) in centre.shala("archive", "status").stdout


def test_a_long_reason_is_cut_in_the_table_and_whole_in_json(centre, school, day, monkeypatch):
    reason = " ".join(["a check found something in this item"] * 10)
    sealed = school.collection
    changed = sealed()["items"][:1]
    changed[0]["reasons"] = [reason]
    monkeypatch.setattr(school, "collection", lambda **changes: sealed(**changes, items=changed))
    day({"gstudio/db/a": b"good"})
    said = centre.shala("archive", "show", school.name).stdout
    assert max(map(len, said.splitlines())) < 200
    assert " ...\n" in said
    shown = json.loads(centre.shala("archive", "show", school.name, "--json").stdout)
    assert shown["collection"]["items"][0]["reasons"] == [reason]


def test_accept_reset_without_names_is_refused_before_anything_is_announced(centre, school, day):
    day(DAY)
    done = centre.shala("pull", "--accept-reset")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_pull_without_anything_new_speaks_of_no_saving_and_who_is_offline_took_no_time(capsys):
    _print_results(
        [
            ServerResult("2031017-mz17", "mz", "", "unchanged", bytes_received=300, bytes=5000, seconds=1),
            ServerResult("3080101-rj1", "rj", "", "offline", "no answer within 2 s", seconds=0.01),
        ]
    )
    said = capsys.readouterr().out
    assert "travel" not in said
    assert "0 files, 300 B received." in said
    assert next(line for line in said.splitlines() if line.startswith("3080101")).split()[-2:] == ["-", "-"]


def test_a_network_that_cannot_be_reached_is_said_in_the_words_of_the_system():
    unreachable = OSError(errno.ENETUNREACH, "Connect call failed ('172.30.77.17', 22)")
    assert _reason(unreachable) == "network is unreachable"


def test_what_is_kept_of_many_complaints_begins_with_a_whole_line():
    async def kept() -> bytes:
        stream, found = asyncio.StreamReader(), bytearray()
        stream.feed_data(b"".join(b"file %d: No space left on device\n" % n for n in range(500)))
        stream.feed_eof()
        await _tail(stream, found)
        return bytes(found)

    lines = asyncio.run(kept()).splitlines()
    assert lines[-1] == b"file 499: No space left on device"
    assert all(line.startswith(b"file ") for line in lines)


def test_a_reader_who_began_before_a_prune_is_not_told_that_content_is_gone(school, a_reader):
    archive = a_reader.archive
    for number in (4, 5):
        school.sequence = number
        received(archive, school, {"gstudio/db/a": b"%d" % number * 4000})
    prune(archive, keep_days=10_000, keep_months=0)
    readers = archive.root.parent / "readers"
    readers.mkdir(mode=0o777)
    readers.chmod(0o777)
    os.seteuid(65534)
    reader = Archive(archive.root, archive.objects.shared_items)
    checkout(reader, version_of(reader, school.name, 4), readers / "4")
    os.seteuid(0)
    for number in (6, 7):
        school.sequence = number
        received(archive, school, {"gstudio/db/a": b"%d" % number * 4000})
    prune(Archive(archive.root, archive.objects.shared_items), keep_days=10_000, keep_months=0)
    os.seteuid(65534)
    try:
        checkout(reader, version_of(reader, school.name, 5), readers / "5")
        assert (readers / "5/gstudio/db/a").read_bytes() == b"5" * 4000
    finally:
        os.seteuid(0)


def test_a_reader_without_room_for_a_copy_is_told_so_and_the_archive_is_not_blamed(a_reader):
    with files_of_at_most(1000), pytest.raises(CentralError, match=r"/var/tmp does not take it: .*TMPDIR"):
        a_reader("log", "2031017-mz17")
