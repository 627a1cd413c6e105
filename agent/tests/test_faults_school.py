"""Faults on a school without a container: the agent killed, its disk full, its clock wrong, itself there twice.

SHALA_FAULTS=1000 kills at so many random points instead of 150; SHALA_FAULTS_SEED repeats a run that failed.
Whatever was injected: the ledger is sound, no good collection is lost or mixed with another, the next run
succeeds by itself and leaves no temporary file.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import bagit
import pytest
from agent_school import School, bson, school_in
from dying_agent import Agents, Ended, agents
from injected import Tally

POINTS = int(os.environ.get("SHALA_FAULTS", "150"))
SEED = int(os.environ.get("SHALA_FAULTS_SEED", "2031017"))
pytestmark = [pytest.mark.faults, pytest.mark.timeout(300 + 3 * POINTS)]

COLLECT = ("collect", "--without-dumps")
TREES = {"rcs-repo": "rcs-repo", "nginx-logs": "nginx-logs", "media": "media", "db": ".shala/db"}
YEAR = 365.25 * 86400
NO_ROOM = "what did not fit was said and kept as it was"
Held = dict[str, dict[str, bytes]]  # item: {path: content}


@pytest.fixture(scope="module")
def started() -> Iterator[Agents]:
    with agents() as made:
        yield made


@pytest.fixture
def school(tmp_path: Path) -> School:
    return school_in(tmp_path)


# -- the world -----------------------------------------------------------------------------------------------


def a_day_passes(school: School, chance: random.Random) -> None:
    """Let files come, change and go, in every way in which a mirror has to follow."""
    today = f"{chance.getrandbits(48):x}"
    repo = school.data / "rcs-repo"
    there = sorted(path for path in repo.rglob("*") if path.is_file())
    # As much comes as goes: much less than before would be suspect.
    for path in chance.sample(there, max(0, len(there) - 13)):
        path.unlink()
    for path in chance.sample(there, len(there) // 4):
        if path.exists() and path.suffix != ".json,v":  # of which the agent knows when it is whole
            school.write(str(path.relative_to(school.root)), chance.randbytes(1000 + chance.randrange(100)))
    for number in range(4):
        content = chance.randbytes(1000 + chance.randrange(100))
        school.write(f"data/rcs-repo/{today[:1]}/{today}-{number}", content)
    thing = repo / "thing"  # a file that becomes a folder and back
    if thing.is_dir():
        shutil.rmtree(thing)
        school.write("data/rcs-repo/thing", today)
    else:
        thing.unlink(missing_ok=True)
        school.write("data/rcs-repo/thing/inside", today)
    content = chance.randbytes(1000)
    digest = hashlib.sha256(content).hexdigest()
    school.write(f"data/media/{digest[0]}/{digest[1]}/{digest[2]}/{digest[3:]}.ogg", content)
    school.write("data/nginx-logs/access.log", f"GET /{today}\n" * 3)
    nodes = school.data / ".shala/db/gstudio-mongodb/Nodes.bson"
    school.write(str(nodes.relative_to(school.root)), nodes.read_bytes() + bson(1))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def there_is(school: School) -> Held:
    """What the platform holds, by item."""
    return {name: tree(school.data / folder) for name, folder in TREES.items()}


def mirrored(school: School) -> Held:
    """What the newest collection holds, by item."""
    return {name: tree(school.bag() / "data/gstudio" / name) for name in TREES}


# -- what must be true whatever happened ---------------------------------------------------------------------


def assert_ledger_sound(school: School) -> None:
    path = school.root / "state/ledger.sqlite"
    if not path.exists():
        return
    with closing(school.ledger()) as ledger:
        runs = ledger.runs(1000)
        assert sum(run.kind == "chain" and run.ended is None for run in runs) <= 1
        head = school.spool.head()
        assert ledger.mark("sequence") >= (head.sequence if head else 0)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    assert not list((school.root / "state").glob("*.damaged*"))


def assert_nothing_worse(school: School, before: Held, after: Held) -> str:
    """As assert_one_of, but single files may lack room: then their item keeps the older ones, and says so."""
    if (school.root / "spool/NEXT").exists() or mirrored(school) in (before, after):
        return assert_one_of(school, before, after)
    assert_ledger_sound(school)
    assert bagit.Bag(str(school.bag())).validate()
    for name, files in mirrored(school).items():
        item = school.spool.collection().item("gstudio", name)
        assert item is not None
        assert files == after[name] if item.outcome == "ok" else any("no room" in one for one in item.reasons)
        for path, content in files.items():
            assert content in (before[name].get(path), after[name].get(path)), path
    return NO_ROOM


def assert_one_of(school: School, *collections: Held) -> str:
    """The mirror holds one of the collections, whole, or says that it is just getting the last one."""
    assert_ledger_sound(school)
    if (school.root / "spool/NEXT").exists():
        return "the next run finished what was sealed"
    if not school.spool.head():
        return "nothing was sealed yet"
    assert bagit.Bag(str(school.bag())).validate()
    held = mirrored(school)
    assert held in collections, "a mixture of collections"
    return "the new one was sealed" if held == collections[-1] else "the last one stood"


def left_behind(school: School) -> list[str]:
    """Temporary files, wherever they are."""
    found = [
        path
        for folder in ("state", "spool", "data", "code", "assessments")
        for path in (school.root / folder).rglob("*")
        if path.name.startswith(".shala-") or path.name.endswith((".part", ".old"))
    ]
    unfinished = ("spool/NEXT", "spool/.assembling", "state/plain", "state/fetched")
    return [str(p.relative_to(school.root)) for p in found] + [
        name for name in unfinished if (school.root / name).exists()
    ]


def assert_recovered(school: School, ran: Ended) -> None:
    """The run succeeded, and all that there is is in the newest collection, as its signature says."""
    assert ran.code == 0, ran.said
    assert_one_of(school, there_is(school))
    head = school.spool.head()
    assert head is not None
    listed = hashlib.sha256((school.bag() / "manifest-sha256.txt").read_bytes()).hexdigest()
    assert head.manifest_sha256 == listed
    assert {item.outcome for item in school.spool.collection().items} == {"ok"}
    assert school.spool.sequences()[-1] == head.sequence
    assert left_behind(school) == []


def kill_and_recover(started: Agents, school: School, tally: Tally, fault: str, at: int) -> Ended:
    """Kill an agent on a new day, look, and have the next one collect it."""
    before, after = mirrored(school), there_is(school)
    with tally.injected(fault) as injection:
        (ended,) = started.run(school, *COLLECT, at=at)
        assert ended.killed or ended.code == 0, ended.said
        injection.hit, injection.saw = ended.killed, assert_one_of(school, before, after)
        (again,) = started.run(school, *COLLECT)
        assert_recovered(school, again)
    return ended


# -- kill -9 -------------------------------------------------------------------------------------------------


def test_an_agent_killed_before_any_change_of_the_disk_loses_nothing(started, school, tally: Tally):
    chance = random.Random(SEED)
    for _ in range(3):
        a_day_passes(school, chance)
    (first,) = started.run(school, *COLLECT)
    assert_recovered(school, first)
    at, killed = 0, True
    while killed:
        at += 1
        a_day_passes(school, chance)
        killed = kill_and_recover(started, school, tally, "kill-collect", at).killed
    assert at > 50


def test_an_agent_killed_during_its_first_collection_makes_it_the_next_time(started, tmp_path, tally: Tally):
    chance = random.Random(SEED)
    (whole,) = started.run(school_in(made(tmp_path / "whole")), *COLLECT)
    assert whole.code == 0
    for number in tally.until_it_hits("kill-first", max(1, POINTS // 5)):
        school = school_in(made(tmp_path / str(number)))
        kill_and_recover(started, school, tally, "kill-first", chance.randint(1, whole.count))
        shutil.rmtree(school.root)


def test_a_chain_killed_anywhere_goes_on_and_keeps_the_last_good_dumps(started, school, tally: Tally):
    chance = random.Random(SEED)
    (ran,) = started.run(school, *COLLECT)
    assert_recovered(school, ran)
    dumps = {name: tree(school.bag() / "data/gstudio" / name) for name in ("db", "postgres-dump")}
    (whole,) = started.run(school, "run")
    for _ in tally.until_it_hits("kill-chain", max(1, POINTS // 5)):
        # Without a container the dumps fail: what is carried of them must be the last good one.
        a_day_passes(school, chance)
        new = {name: files for name, files in there_is(school).items() if name != "db"}
        with tally.injected("kill-chain") as injection:
            (ended,) = started.run(school, "run", at=chance.randint(1, whole.count))
            assert_ledger_sound(school)
            cut, injection.hit = ended.killed and open_chain(school), ended.killed
            injection.saw = f"the next run {'went on with the chain' if cut else 'began a new chain'}"
            (again,) = started.run(school, "run", "--json")
            assert again.code == 3, again.said
            assert f'"resumed": {"true" if cut else "false"}' in again.said
            held = mirrored(school)
            assert {name: held[name] for name in new} == new
            for name, good in dumps.items():
                assert tree(school.bag() / "data/gstudio" / name) == good
            assert bagit.Bag(str(school.bag())).validate()
            assert not open_chain(school)
            assert left_behind(school) == []


def test_a_heartbeat_that_is_killed_leaves_nothing_behind(started, school, tally: Tally):
    folder = school.data / "system-heartbeat"
    at, killed = 0, True
    while killed:
        at += 1
        with tally.injected("kill-heartbeat") as injection:
            (ended,) = started.run(school, "heartbeat", at=at)
            injection.hit = killed = ended.killed
            injection.saw = "whole or not there"
            (again,) = started.run(school, "heartbeat")
            assert again.code == 0, again.said
            assert_ledger_sound(school)
            assert left_behind(school) == []
            for log in folder.glob("system-heartbeat-2*.log"):
                if not log.name.startswith("system-heartbeat-2018"):
                    assert log.read_text().endswith("end of heartbeat\n")


def test_an_agent_killed_at_any_instant_loses_nothing(started, school, tally: Tally):
    chance = random.Random(SEED)
    began = time.monotonic()
    (first,) = started.run(school, *COLLECT)
    longest = (time.monotonic() - began) * 1.2
    assert_recovered(school, first)
    for _ in tally.until_it_hits("kill-instant", max(1, POINTS * 4 // 5)):
        a_day_passes(school, chance)
        before, after = mirrored(school), there_is(school)
        with tally.injected("kill-instant") as injection:

            def kill(process: int) -> None:
                time.sleep(chance.uniform(0, longest))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

            (ended,) = started.run(school, *COLLECT, meanwhile=kill)
            injection.hit, injection.saw = ended.killed, assert_one_of(school, before, after)
            (again,) = started.run(school, *COLLECT)
            assert_recovered(school, again)


def open_chain(school: School) -> bool:
    with closing(school.ledger()) as ledger:
        return any(run.ended is None for run in ledger.runs(1000, "chain"))


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


# -- the disk ------------------------------------------------------------------------------------------------


class SmallDisk:
    """A disk of 32 MB with a school on it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._ballast = place / "ballast"

    def leave(self, free: int) -> None:
        """Leave only so many bytes; 0 frees all again."""
        self._ballast.unlink(missing_ok=True)
        if free:
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self.place).free - free)

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    place = made(tmp_path / "disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "shala-test", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        skip = pytest.fail if os.environ.get("SHALA_NO_SKIP") else pytest.skip
        skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield SmallDisk(place)
    subprocess.run(["umount", str(place)], check=True)


def school_on(disk: SmallDisk) -> School:
    """A school that may fill its disk to the last byte."""
    school = school_in(disk.place)
    with school.config_path.open("a") as config:
        config.write("[spool]\nmin_free_mb = 0\n")
    return school


def one_line(ended: Ended) -> None:
    """It failed, and said so in one line, with no traceback."""
    assert ended.code in (1, 3), ended.said
    assert "Traceback" not in ended.said, ended.said


def test_a_disk_that_is_full_after_any_number_of_bytes_costs_nothing_but_time(
    started, small_disk, tmp_path, tally: Tally
):
    chance = random.Random(SEED)
    school = school_on(small_disk)
    (first,) = started.run(school, *COLLECT)
    assert_recovered(school, first)
    for _ in tally.until_it_hits("disk-full", max(4, POINTS // 5)):
        a_day_passes(school, chance)
        school.write("data/rcs-repo/large", chance.randbytes(300_000))
        before, after = mirrored(school), there_is(school)
        small_disk.leave(chance.choice([4096, 20_000, 100_000, 300_000, 700_000]) + chance.randrange(50_000))
        with tally.injected("disk-full") as injection:
            (ended,) = started.run(school, *COLLECT, said=tmp_path)
            if ended.code:
                one_line(ended)
            small_disk.leave(0)
            injection.saw = assert_nothing_worse(school, before, after)
            injection.hit = ended.code != 0 or injection.saw == NO_ROOM
            (again,) = started.run(school, *COLLECT)
            assert_recovered(school, again)
    assert tally.hits("disk-full"), "it was never full"


def test_a_disk_without_inodes_costs_nothing_but_time(started, small_disk, tmp_path, tally: Tally):
    chance = random.Random(SEED)
    school = school_on(small_disk)
    (first,) = started.run(school, *COLLECT)
    assert_recovered(school, first)
    for free in (1, 3, 5, 9, 13, 20):
        a_day_passes(school, chance)
        before, after = mirrored(school), there_is(school)
        used = os.statvfs(small_disk.place)
        small_disk.remount(f"nr_inodes={used.f_files - used.f_ffree + free}")
        with tally.injected("inodes") as injection:
            (ended,) = started.run(school, *COLLECT, said=tmp_path)
            if ended.code:
                one_line(ended)
            small_disk.remount("nr_inodes=100000")
            injection.saw = assert_nothing_worse(school, before, after)
            injection.hit = ended.code != 0 or injection.saw == NO_ROOM
            (again,) = started.run(school, *COLLECT)
            assert_recovered(school, again)


@pytest.mark.parametrize("command", [COLLECT, ("run",), ("heartbeat",)])
def test_a_read_only_disk_is_said_in_one_line(started, small_disk, tmp_path, tally: Tally, command):
    chance = random.Random(SEED)
    school = school_on(small_disk)
    (first,) = started.run(school, *COLLECT)
    assert_recovered(school, first)
    a_day_passes(school, chance)
    before, after = mirrored(school), there_is(school)
    with tally.injected("read-only") as injection:
        small_disk.remount("ro")
        injection.hit = bool(os.statvfs(small_disk.place).f_flag & os.ST_RDONLY)
        try:
            (ended,) = started.run(school, *command, said=tmp_path)
            one_line(ended)
            assert len(ended.said.splitlines()) == 1
        finally:
            small_disk.remount("rw")
        injection.saw = assert_one_of(school, before, after)
        (again,) = started.run(school, *COLLECT)
        assert_recovered(school, again)


# -- the clock -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [1970, 2090])
@pytest.mark.parametrize("before", ["a collection", "nothing"])
def test_a_clock_that_jumps_loses_nothing_and_what_it_did_is_done_over(
    started, school, tally: Tally, year, before
):
    chance = random.Random(SEED)
    clock = (year - 1970) * YEAR + 40 * 86400 - time.time()
    this_year = time.gmtime().tm_year
    if before == "a collection":
        (first,) = started.run(school, *COLLECT)
        assert_recovered(school, first)
    a_day_passes(school, chance)
    with tally.injected(f"clock-{year}") as injection:
        for path in (school.data / "rcs-repo").rglob("*"):  # the platform lives by that clock, too
            os.utime(path, (max(0, time.time() + clock - 3600),) * 2)
        (ended,) = started.run(school, *COLLECT, clock=clock)
        assert_recovered(school, ended)
        with closing(school.ledger()) as ledger:
            injection.hit = ledger.runs(1)[0].started.startswith(f"{year}-")
        started.run(school, "run", clock=clock)
        a_day_passes(school, chance)
        (again,) = started.run(school, *COLLECT)
        assert again.code in (0, 3), again.said
        head = school.spool.head()
        assert head is not None
        assert head.year == this_year
        injection.saw = "kept, and of the right year"
        # A step that the wrong clock called done is due again.
        (chain,) = started.run(school, "run", "--json")
        assert '"left": []' in chain.said
        assert "not due" not in chain.said
        assert mirrored(school)["rcs-repo"] == there_is(school)["rcs-repo"]
        assert left_behind(school) == []


# -- two agents, and another identity ------------------------------------------------------------------------


def some_were_there_at_once(ended: list[Ended]) -> bool:
    in_turn = sorted(ended, key=lambda one: one.began)
    return any(later.began < earlier.ended for earlier, later in itertools.pairwise(in_turn))


@pytest.mark.parametrize("times", [2, 3, 4])
@pytest.mark.parametrize("wait", [(), ("--wait", "1")])
def test_of_agents_that_start_together_one_collects(started, school, tally: Tally, times, wait):
    chance = random.Random(SEED)
    for _ in range(max(1, POINTS // 50)):
        a_day_passes(school, chance)
        with tally.injected("two-agents") as injection:
            ended = started.run(school, *COLLECT, *wait, times=times)
            assert all(one.code == 0 or "is in use by" in one.said for one in ended), ended
            assert sum(one.code == 0 for one in ended) >= (times if wait else 1)
            assert sum("is sealed" in one.said for one in ended) == 1, ended
            injection.hit = some_were_there_at_once(ended)
            injection.saw = f"one sealed, the others {'waited' if wait else 'said why not'}"
            assert_recovered(school, next(one for one in ended if one.code == 0))


@pytest.mark.parametrize(
    "server_id, code",
    [
        ("mz18", "2031017"),
        ("mz17", "2031018"),
        ("rj17", "2031017"),
        ("sp100", "00000000"),
        ("", ""),
        ("NA", "NA"),
        ("mz1'7", "2031017"),
        ("xx17", "2031017"),
    ],
)
@pytest.mark.parametrize("inventory", [True, False])
def test_a_server_that_is_another_all_at_once_takes_nothing(
    started, school, tally: Tally, server_id, code, inventory
):
    if not inventory:
        school.config_path.write_text(
            school.config_path.read_text().replace('server_name = "2031017-mz17"\n', "")
        )
    (first,) = started.run(school, *COLLECT)
    assert_recovered(school, first)
    before, settings = mirrored(school), school.settings.read_text()
    a_day_passes(school, random.Random(SEED))
    with tally.injected("identity") as injection:
        school.settings.write_text(settings.replace("2031017", code).replace("mz17", server_id))
        injection.hit = school.settings.read_text() != settings
        (ended,) = started.run(school, *COLLECT)
        one_line(ended)
        assert_one_of(school, before)
        assert school.spool.sequences() == [1]
        injection.saw = "refused, the last one stood"
        school.settings.write_text(settings)
        (again,) = started.run(school, *COLLECT)
        assert_recovered(school, again)
