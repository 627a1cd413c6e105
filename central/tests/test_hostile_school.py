"""A school that means harm, from its spool to what is published: what it may try, and what comes of it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from central_school import sha256
from shala_agent.manifest import File, write_line
from shala_central.bag import MAX_ITEMS, BagRefused, survey
from shala_central.config import Limits
from shala_central.verify import verify

DAY_1 = {"gstudio/db/a": b"one", "gstudio/media/b": b"two", "gstudio/nginx-logs/c": b"three"}
DAY_2 = {**DAY_1, "gstudio/db/a": b"another", "gstudio/db/new": b"new"}
EMPTY = sha256(b"")

over_ssh = [pytest.mark.ssh, pytest.mark.timeout(120)]

# Runs a command and says what memory it took at most, in kilobytes.
PEAK = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:]);"
    " print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)"
)


@pytest.fixture
def victim(centre, school, online):
    """A school of which a good collection is published, and which turns hostile now."""
    online(school).seal(DAY_1)
    assert centre.pull()[0] == 0
    return school


def refusal_of(centre, school, result: str = "quarantined") -> str:
    """Pull; nothing may have changed for readers. Return the reason, which a terminal can show."""
    before = centre.published(school)
    came = centre.pull_here()
    assert came.result == result, came
    assert centre.published(school) == before
    assert verify(centre.archive, school.name) == []
    assert came.reason.isprintable()
    return came.reason


def seal_listing(school, files: dict[str, bytes], listed: list[File], **changes: object) -> Path:
    """Seal a collection whose list says something else than what is in the mirror."""
    bag = school.seal(files)
    school.write_tags(bag, school.tag_files_of(listed, **changes))
    return bag


def listing(files: dict[str, bytes]) -> list[File]:
    return [File(f"data/{path}", sha256(content), len(content), 0, 0o644) for path, content in files.items()]


def speaks_through(school, tmp_path: Path, script: str) -> None:
    """Let the school answer with a program of its own instead of rrsync."""
    program = tmp_path / "hostile"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    keyfile = tmp_path / f"sshd-{school.name}-{school.port}" / "authorized_keys"
    rrsync = f"/usr/bin/rrsync -ro {school.spool}"
    keyfile.write_text(keyfile.read_text().replace(rrsync, str(program)))
    assert str(program) in keyfile.read_text()


# -- paths ---------------------------------------------------------------------------------------------------


class TestPaths:
    pytestmark = over_ssh

    HARM: ClassVar = {
        "data/gstudio/../../../../../../outside": "climbs out of its folder",
        "/tmp/outside": "is an absolute path",
        "data/gstudio/db/\x1b]0;owned\x07": "holds control characters",
        "data/gstudio/db/A": "only in case",
    }

    def test_a_list_with_paths_that_do_harm_is_refused_before_anything_is_fetched(self, centre, victim):
        seal_listing(
            victim, DAY_2, [*listing(DAY_2), *(File(path, EMPTY, 0, 0, 0o644) for path in self.HARM)]
        )
        reason = refusal_of(centre, victim)
        for why in self.HARM.values():
            assert why in reason
        staged = centre.root / ".shala/staging" / victim.name / "data"
        assert not list(staged.rglob("*")), "nothing of it was asked for"

    def test_devices_pipes_and_sockets_in_place_of_files_bring_nothing(self, centre, victim):
        bag = victim.seal(DAY_2)
        kinds = {"fifo": os.mkfifo, "device": lambda p: os.mknod(p, 0o60644, os.makedev(7, 0))}
        named = [f"gstudio/db/{kind}" for kind in (*kinds, "socket")]
        for kind, make in kinds.items():
            make(bag / "data/gstudio/db" / kind)
        with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(bag / "data/gstudio/db"):
            listener.bind("socket")
            listed = listing({**DAY_2, **{path: path.encode() for path in named}})
            victim.write_tags(bag, victim.tag_files_of(listed))
            reason = refusal_of(centre, victim)
        for path in named:
            assert f"'{path}' is listed but was not sent" in reason
        for path in centre.root.rglob("*"):
            assert path.is_dir() or path.is_file() or path.is_symlink(), path

    def test_a_folder_that_is_a_link_leads_nowhere(self, centre, victim, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        files = {**DAY_1, "gstudio/db/folder/secret": b"secret"}
        bag = victim.seal(files)
        shutil.rmtree(bag / "data/gstudio/db/folder")
        (bag / "data/gstudio/db/folder").symlink_to(outside)
        assert "'gstudio/db/folder/secret' is listed but was not sent" in refusal_of(centre, victim)

    def test_a_folder_in_place_of_a_file_brings_nothing(self, centre, victim):
        bag = victim.seal(DAY_2)
        (bag / "data/gstudio/db/new").unlink()
        (bag / "data/gstudio/db/new/inner").mkdir(parents=True)
        assert "'gstudio/db/new' is not a plain file" in refusal_of(centre, victim)
        victim.seal(DAY_2)
        assert centre.pull()[0] == 0
        assert centre.published(victim) == DAY_2


# -- absurd sizes and counts ---------------------------------------------------------------------------------


class TestAmounts:
    def test_a_list_without_end_is_read_no_further_than_the_limit(self):
        read = 0

        def lines() -> Iterator[bytes]:
            nonlocal read
            for number in range(10_000_000):
                read += 1
                yield write_line(File(f"data/gstudio/db/{number:08d}", EMPTY, 0, 0, 0o644))

        with pytest.raises(BagRefused, match=r"more than 5000 files \(limits\.max_files"):
            survey(lines(), Limits(max_files=5000))
        assert read == 5001

    def test_more_items_than_any_school_has_are_refused(self):
        lines = (write_line(File(f"data/gstudio/{n:05d}", EMPTY, 0, 0, 0o644)) for n in range(MAX_ITEMS + 1))
        with pytest.raises(BagRefused, match=f"more than {MAX_ITEMS} items"):
            survey(lines, Limits())

    def test_a_folder_in_a_folder_without_end_is_refused(self):
        deep = File("data/gstudio/" + "d/" * 400 + "x", EMPTY, 0, 0, 0o644)
        with pytest.raises(BagRefused, match="folders deep"):
            survey([write_line(deep)], Limits())

    @pytest.mark.ssh
    @pytest.mark.parametrize("files, why", [(5, "limits.max_bytes allows"), (12, "names no Payload-Oxum")])
    def test_exabytes_are_refused_before_a_byte_is_fetched(self, centre, victim, files, why):
        absurd = [File(f"data/gstudio/db/x{n}", sha256(b"%d" % n), 10**17, 0, 0o644) for n in range(files)]
        seal_listing(victim, DAY_2, [*listing(DAY_2), *absurd])
        assert why in refusal_of(centre, victim)

    @pytest.mark.ssh
    def test_one_file_of_terabytes_is_told_not_to_fit(self, centre, victim):
        big = File("data/gstudio/db/big", sha256(b"big"), 399_000_000_000, 0, 0o644)
        bag = seal_listing(victim, DAY_2, [*listing(DAY_2), big])
        with (bag / "data/gstudio/db/big").open("wb") as sparse:
            sparse.truncate(399_000_000_000)
        assert "the archive's disk has" in refusal_of(centre, victim, "failed")

    @pytest.mark.ssh
    def test_changes_beyond_the_limit_are_not_fetched_and_the_whole_list_is(self, centre, victim):
        victim.seal(DAY_2)
        with (victim.spool / f"changes/{victim.sequence:08d}.txt").open("wb") as sparse:
            sparse.truncate(600 << 20)
        _, results = centre.pull()
        assert results[victim.name]["result"] == "committed"
        assert centre.published(victim) == DAY_2

    @pytest.mark.ssh
    def test_a_list_of_files_beyond_the_limit_is_not_fetched(self, centre, victim):
        bag = victim.seal(DAY_2)
        (victim.spool / f"changes/{victim.sequence:08d}.txt").unlink()
        with (bag / "files.txt").open("wb") as sparse:
            sparse.truncate(600 << 20)
        assert "files.txt is missing" in refusal_of(centre, victim)

    @pytest.mark.ssh
    @pytest.mark.parametrize("name", ["changes", "files"])
    def test_a_line_of_hundreds_of_megabytes_fills_no_memory(self, centre, victim, name):
        bag = victim.seal(DAY_2)
        changes = victim.spool / f"changes/{victim.sequence:08d}.txt"
        changes.unlink()
        # Zeros travel compressed: a few kilobytes on the line, half of what is allowed here.
        with (changes if name == "changes" else bag / "files.txt").open("wb") as sparse:
            sparse.truncate(250 << 20)
        # Through a small process: the peak of this one would be the least that its child's can be.
        command = [sys.executable, "-S", "-c", PEAK, *centre.command("pull", "--json")]
        pull = subprocess.run(command, env=centre.environment(), capture_output=True, text=True, check=False)
        (result,) = json.loads(pull.stdout)["servers"]
        assert result["result"] == ("committed" if name == "changes" else "quarantined"), result
        assert int(pull.stderr.split()[-1]) < 150_000, "kilobytes"
        assert centre.published(victim) == (DAY_2 if name == "changes" else DAY_1)


# -- HEAD, NEXT and the tag files ----------------------------------------------------------------------------


def link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)


def huge(path: Path) -> None:
    with path.open("wb") as sparse:
        sparse.truncate(20 << 20)


class TestTagFiles:
    pytestmark = over_ssh

    TELLS = "is no plain file of at most"

    @pytest.mark.parametrize(
        "name, kinds",
        [
            ("HEAD", {link: "", os.mkfifo: "", folder: TELLS, huge: TELLS}),
            ("NEXT", {folder: TELLS, huge: TELLS}),
            ("bag/collection.json", {link: "is not what", folder: TELLS, huge: TELLS}),
        ],
        ids=["HEAD", "NEXT", "collection.json"],
    )
    def test_what_stands_there_instead_is_refused_and_no_end_of_the_pulls(self, centre, victim, name, kinds):
        victim.seal(DAY_2)
        path = victim.spool / name
        for make, why in kinds.items():
            path.unlink(missing_ok=True)
            make(path)
            if why:
                assert f"{path.name} {why}" in refusal_of(centre, victim)
            else:
                assert "has not sealed a collection yet" in refusal_of(centre, victim, "failed")
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        victim.seal(DAY_2)
        assert centre.pull()[0] == 0
        assert centre.published(victim) == DAY_2

    def test_a_link_at_next_is_as_if_nothing_stood_there(self, centre, victim):
        victim.seal(DAY_2)
        link(victim.spool / "NEXT")
        assert centre.pull()[0] == 0
        assert centre.published(victim) == DAY_2

    def test_a_collection_nested_without_end_is_refused(self, centre, victim):
        bag = victim.seal(DAY_2)
        tags = victim.tag_files(DAY_2)
        tags["collection.json"] = b'{"format": 1, "x": ' + b"[" * 100_000
        victim.write_tags(bag, victim.resealed(tags))
        assert "collection.json is not readable" in refusal_of(centre, victim)

    def test_names_that_paint_the_terminal_are_shown_without_their_paint(self, centre, victim):
        paint = "\x1b[2J\x1b]0;owned\x07"
        victim.items = {"db": "ok", "media": "ok", f"x{paint}": "failed"}
        collection = victim.collection()
        items = [{**item, "reasons": [f"because {paint}"]} for item in collection["items"]]
        victim.seal(DAY_2, school_name=f"School{paint}", items=items)
        centre.pull()
        for command in (("show", victim.name), ("tree",), ("log", victim.name)):
            shown = centre.shala("archive", *command)
            assert "\x1b" not in shown.stdout + shown.stderr, command
            assert "\x07" not in shown.stdout + shown.stderr, command


# -- content of others ---------------------------------------------------------------------------------------


class TestOthersContent:
    pytestmark = over_ssh
    SECRETS: ClassVar = [b"pupils' answers %d of another school" % number for number in range(3)]

    @pytest.fixture
    def thief(self, centre, school, online, another_school):
        """A school that knows digests of what another one has sent."""
        secrets = {f"gstudio/db/{n}": secret for n, secret in enumerate(self.SECRETS)}
        online(school).seal({**DAY_1, **secrets, "gstudio/media/film": b"film" * 99})
        assert centre.pull()[0] == 0
        return online(another_school("2031008-mz8", zone="mz-aizawl"))

    def test_the_digest_of_anothers_private_file_gives_nothing_under_no_path(self, centre, thief):
        places = ("db/mine", "media/mine", "medialike/mine")
        claimed = [
            File(f"data/gstudio/{place}", sha256(secret), len(secret), 0, 0o644)
            for place, secret in zip(places, self.SECRETS, strict=True)
        ]
        seal_listing(thief, DAY_1, [*listing(DAY_1), *claimed])
        _, results = centre.pull()
        assert results[thief.name]["result"] == "quarantined"
        for place in places:
            assert f"'gstudio/{place}' is listed but was not sent" in results[thief.name]["reason"]
        assert centre.published(thief) == {}

    def test_the_digest_of_a_shared_file_is_enough(self, centre, thief):
        film = File("data/gstudio/media/film", sha256(b"film" * 99), 396, 0, 0o644)
        bag = seal_listing(thief, DAY_1, [*listing(DAY_1), film])
        assert not (bag / "data/gstudio/media/film").exists()
        _, results = centre.pull()
        assert results[thief.name]["result"] == "committed", results
        assert centre.published(thief) == {**DAY_1, "gstudio/media/film": b"film" * 99}

    def test_poisoned_content_never_gets_the_name_of_a_shared_one(self, centre, thief, school):
        wanted = b"the film of tomorrow"
        bag = thief.seal({**DAY_1, "gstudio/media/tomorrow": wanted})
        (bag / "data/gstudio/media/tomorrow").write_bytes(b"something else, alas")
        _, results = centre.pull()
        assert results[thief.name]["result"] == "quarantined"
        school.seal({**DAY_1, "gstudio/media/tomorrow": wanted})
        _, results = centre.pull(school.name)
        assert results[school.name]["files_received"] == 1
        assert centre.published(school)["gstudio/media/tomorrow"] == wanted


# -- while it is fetched -------------------------------------------------------------------------------------


class TestWhileFetching:
    pytestmark = over_ssh

    @pytest.mark.parametrize("size", [900_000, 9_000_000], ids=["cut", "grown"])
    def test_a_file_that_changes_its_size_meanwhile_is_taken_as_it_was_sealed_or_not_at_all(
        self, centre, victim, size
    ):
        content = random.Random(4).randbytes(1_000_000)
        files = {**DAY_2, "gstudio/db/big": content}
        bag = victim.seal(files)
        centre.settings = "bandwidth_kbps = 8000\n"
        staged = centre.root / ".shala/staging" / victim.name / "data"

        def change() -> None:
            end = time.monotonic() + 20
            while time.monotonic() < end and not (staged / "gstudio").exists():
                time.sleep(0.005)
            with (bag / "data/gstudio/db/big").open("r+b") as file:
                file.truncate(size)

        changing = threading.Thread(target=change)
        changing.start()
        code, results = centre.pull()
        changing.join()
        if size > len(content) and code == 0:  # what was added was not asked for
            assert centre.published(victim) == files
            return
        # What is too large is cut off while it comes.
        why = "is not what the manifest says" if size < len(content) else ""
        assert "gstudio/db/big" in results[victim.name]["reason"]
        assert why in results[victim.name]["reason"]
        assert centre.published(victim) == DAY_1
        (bag / "data/gstudio/db/big").write_bytes(content)
        centre.settings = ""
        assert centre.pull()[0] == 0
        assert centre.published(victim) == files

    def test_words_without_end_beside_a_good_collection_do_not_last(self, centre, victim, tmp_path):
        victim.seal(DAY_2)
        centre.settings = "stall_seconds = 5\n"
        speaks_through(victim, tmp_path, f"yes 'all is well' >&2 &\nexec /usr/bin/rrsync -ro {victim.spool}")
        started = time.monotonic()
        assert centre.pull_here().result == "committed"  # every byte of it was checked
        assert centre.published(victim) == DAY_2
        assert time.monotonic() - started < 20

    def test_a_program_that_is_no_rsync_brings_nothing(self, centre, victim, tmp_path):
        victim.seal(DAY_2)
        centre.settings = "stall_seconds = 5\n"
        for words in (
            "exec cat /dev/urandom",
            "exec sleep 60",
            "echo Welcome to the school; exit 0",
            # All of a disk, whatever was asked for.
            "exec rsync --server --sender -logDtprze.iLsfxCIvu . /usr/lib/",
        ):
            speaks_through(victim, tmp_path, words)
            started = time.monotonic()
            assert refusal_of(centre, victim, "failed")
            assert time.monotonic() - started < 20, words
