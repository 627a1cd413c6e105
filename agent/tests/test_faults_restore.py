"""Restores that are killed: nothing good is lost at any instant, and the same command ends as if nobody had cut it.

Without a container: its databases are files (little_databases.LastingDatabases), which a kill finds half replaced,
too. SHALA_FAULTS=1000 kills at more random points instead of 150; SHALA_FAULTS_SEED repeats a run that failed.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from agent_school import School, bson, rcs, school_in
from dying_agent import Agents, Ended, agents
from injected import Tally
from little_databases import DATABASE, LastingDatabases, dump, users_in
from shala_agent import checks
from shala_agent.restore import STEP
from shala_agent.restore_note import FILE as NOTE
from test_faults_school import assert_ledger_sound, left_behind, tree
from test_restore import Bag

POINTS = int(os.environ.get("SHALA_FAULTS", "150"))
SEED = int(os.environ.get("SHALA_FAULTS_SEED", "2031017"))
STRIDE = (
    2 if POINTS <= 150 else 1
)  # of two servers the one is killed at the odd changes, the other at the even
pytestmark = [pytest.mark.faults, pytest.mark.timeout(600 + 6 * POINTS)]

SETTINGS = "code/gstudio/gnowsys-ndf/gnowsys_ndf"
PLATFORMS = ("data", "assessments", "code", "databases")  # the folders that hold what the platform has
OF_TODAY = b'["of today"]'


@dataclass
class Server:
    """A server before its restore, the collection that it is given, and how it is to be in the end."""

    school: School
    command: tuple[str, ...]
    pristine: Path
    before: dict[str, bytes]
    whole: dict[str, bytes]
    changes: int  # of the disk, by a restore that nobody cuts
    first_change: int  # before which it is killed

    @property
    def databases(self) -> LastingDatabases:
        return LastingDatabases(self.school.root)

    def make_anew(self) -> None:
        """Have it as it was before any restore."""
        shutil.rmtree(self.school.root)
        shutil.copytree(self.pristine, self.school.root, symlinks=True)


@pytest.fixture(scope="module")
def started() -> Iterator[Agents]:
    with agents() as made:
        yield made


@pytest.fixture(params=["a server with data", "a new server"])
def server(request: pytest.FixtureRequest, started: Agents, tmp_path: Path) -> Server:
    root = tmp_path / "school"
    root.mkdir()
    school, bag = school_in(root), collection(tmp_path / "bag")
    has_data = request.param == "a server with data"
    live_here(school) if has_data else be_new(school)
    pristine = shutil.copytree(root, tmp_path / "pristine", symlinks=True)
    command = ("restore", str(bag.folder), *(["--yes"] if has_data else []))
    made = Server(school, command, pristine, there_is(school), {}, 0, 1 if has_data else STRIDE)
    (ended,) = started.run(school, *command)
    assert ended.code == 0, ended.said
    assert_as_collected(made, bag)
    made.whole, made.changes = there_is(school), ended.count
    return made


def collection(folder: Path) -> Bag:
    """Something of every kind: accounts, documents, files new and other, settings."""
    bag = Bag(folder)
    accounts = {"green-apple-mz17": "!", "blue-bat-mz17": "!", "administrator": "!"}
    bag.put("postgres-dump/pg_dump_all.sql", dump(accounts))
    for name, count in {"Nodes": 5, "Benchmarks": 2, "Counters": 1}.items():
        bag.put(f"db/{DATABASE}/{name}.bson", bson(count))
        bag.put(f"db/{DATABASE}/{name}.metadata.json", b"{}")
    for number in range(3):
        bag.put(f"rcs-repo/Nodes/{number}/x.json,v", rcs(f"{{{number}}}"))
    bag.put("gstudio_tools_logs/policesquad/7-policesquad.json", b'["collected"]')
    bag.put("assessment-media/repository/AssetContent/q.png", b"png of then")
    bag.put("local_settings.py", b"DEBUG = 'collected'\n")
    return bag


def live_here(school: School) -> None:
    """Let the school work on it: everything is there, in a form of its own."""
    databases = LastingDatabases(school.root)
    databases.users = {"green-apple-mz17": "pbkdf2_sha256$1$a$b=", "of-today-mz17": "pbkdf2_sha256$1$c$d="}
    databases.documents = {"Nodes": 7, "Benchmarks": 9, "Filehives": 3}
    for path in ("rcs-repo/Nodes/0/x.json,v", "gstudio_tools_logs/policesquad/7-policesquad.json"):
        school.write(f"data/{path}", OF_TODAY, age=1)
    school.write(f"{SETTINGS}/local_settings.py", "DEBUG = 'of today'\n", age=1)


def be_new(school: School) -> None:
    """Have nothing of a school but what the installation has brought."""
    for folder in ("data/rcs-repo", "data/media", "data/gstudio_tools_logs", "assessments/repository"):
        shutil.rmtree(school.root / folder)
    databases = LastingDatabases(school.root)
    databases.users, databases.documents = {"administrator": "!unusable"}, {"Nodes": 1}


# -- what must be true whatever happened ---------------------------------------------------------------------


def there_is(school: School) -> dict[str, bytes]:
    """What the platform holds, by path, and nothing of the agent's own."""
    files = {
        f"{folder}/{path}": content
        for folder in PLATFORMS
        for path, content in tree(school.root / folder).items()
    }
    return {path: content for path, content in files.items() if not path.startswith("data/.shala/")}


def kept(school: School) -> list[Path]:
    """The files of before that restores have kept."""
    return [path for path in (school.data / ".shala/before-restore").rglob("*") if path.is_file()]


def assert_as_collected(server: Server, bag: Bag) -> None:
    school = server.school
    assert server.databases.documents.items() >= {"Nodes": 5, "Benchmarks": 2, "Counters": 1}.items()
    assert set(server.databases.users) == {"green-apple-mz17", "blue-bat-mz17", "administrator"}
    collected = tree(bag.folder / "data/gstudio")
    for item in ("rcs-repo", "gstudio_tools_logs"):
        put = {path: content for path, content in collected.items() if path.startswith(f"{item}/")}
        assert put.items() <= tree(school.data).items()
    assert (school.root / "assessments/repository/AssetContent/q.png").read_bytes() == b"png of then"
    assert (school.root / SETTINGS / "local_settings.py").read_text() == "DEBUG = 'collected'\n"


def assert_nothing_lost(server: Server) -> None:
    """What was there before is there still, or was kept whole: each file, the accounts, the documents."""
    school, there = server.school, there_is(server.school)
    aside = kept(school)
    contents = {path.read_bytes() for path in aside}
    for path, content in server.before.items():
        if not path.startswith(
            ("databases/", "data/postgres-dump/")
        ):  # that dump is made anew by each restore
            assert there.get(path) == content or content in contents, path
    before = LastingDatabases(server.pristine)
    if server.databases.users != before.users:
        dumps = [path for path in aside if path.name == "pg_dump_all.sql"]
        assert before.users in [
            users_in(file) for file in dumps if not list(checks.sql_dump_is_complete(file))
        ]
    if server.databases.documents != before.documents:
        held = {path.stem: checks.count_bson(path) for path in aside if path.suffix == ".bson"}
        assert held == before.documents
    assert_ledger_sound(school)


def assert_done(server: Server, ended: Ended) -> None:
    """It ended as a restore that nobody cut, and nothing half-made is left."""
    assert ended.code == 0, ended.said
    assert there_is(server.school) == server.whole
    assert_nothing_lost(server)
    assert not (server.school.root / "state" / NOTE).exists()
    assert not (server.school.data / ".shala/restore").exists()
    # The folder in which dumps take each other's place stays, with nothing in it.
    assert set(left_behind(server.school)) <= {"data/.shala/db.part"}
    assert tree(server.school.data / ".shala/db.part") == {}


def is_done(server: Server) -> bool:
    """Return whether nothing is left to do: all is back and in the ledger, the note is gone."""
    if (server.school.root / "state" / NOTE).exists() or there_is(server.school) != server.whole:
        return False
    with closing(server.school.ledger()) as ledger:
        return any(step.step == STEP for run in ledger.runs(1) for step in ledger.steps(run.id))


def what_is_left_to_do(server: Server) -> str:
    if is_done(server):
        return "everything was back already"
    begun = (server.school.root / "state" / NOTE).exists()
    return "the next run went on" if begun else "nothing was changed yet"


def finished(started: Agents, server: Server, ended: Ended) -> Ended:
    """Give the same command again, unless all was done: then it would be another restore."""
    if is_done(server):
        return dataclasses.replace(ended, code=0) if ended.killed else ended
    (again,) = started.run(server.school, *server.command)
    return again


# -- kill -9 -------------------------------------------------------------------------------------------------


def test_a_restore_killed_before_a_change_of_the_disk_is_done_by_the_next(
    started: Agents, server: Server, tally: Tally
) -> None:
    killed, points = True, itertools.count(server.first_change, STRIDE)
    while killed:
        at = next(points)
        server.make_anew()
        with tally.injected("kill-restore") as injection:
            (ended,) = started.run(server.school, *server.command, at=at)
            injection.hit = killed = ended.killed
            assert_nothing_lost(server)
            injection.saw = what_is_left_to_do(server)
            assert_done(server, finished(started, server, ended))
    assert at > 50


def test_a_restore_killed_again_and_again_at_random_comes_to_its_end(
    started: Agents, server: Server, tally: Tally
) -> None:
    chance = random.Random(SEED)
    for _ in tally.until_it_hits("kill-restore-again", max(1, POINTS // 6)):
        server.make_anew()
        for _ in range(chance.randint(2, 6)):
            with tally.injected("kill-restore-again") as injection:
                (ended,) = started.run(
                    server.school, *server.command, at=chance.randint(1, server.changes // 2)
                )
                assert_nothing_lost(server)
                injection.hit, injection.saw = ended.killed, what_is_left_to_do(server)
            if is_done(server):
                break
        assert_done(server, finished(started, server, ended))
