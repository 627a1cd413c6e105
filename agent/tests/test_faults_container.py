"""Faults with a real container: the agent killed in any step, the container and its engine taken away under it.

Needs a Docker engine and the image gstudio:lab; the engine that is restarted is one of the test's own.
SHALA_FAULTS=1000 kills more often at random instants; SHALA_FAULTS_SEED repeats a run that failed.
"""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import bagit
import pytest
from injected import Tally
from shala_agent import checks
from shala_agent.databases import wait_for
from shala_agent.ledger import Ledger
from shala_agent.spool import Spool
from test_container import IMAGE, Platform, docker, outcome, require_image

POINTS = max(1, int(os.environ.get("SHALA_FAULTS", "150")) // 8)
SEED = int(os.environ.get("SHALA_FAULTS_SEED", "2031017"))
pytestmark = [pytest.mark.faults, pytest.mark.docker, pytest.mark.timeout(900 + 30 * POINTS)]

STEPS = (
    "heartbeat",
    "postgres-dump",
    "mongo-dump",
    "activity-timestamps",
    "progress",
    "assessments",
    "collect",
)
DATABASES = ("gstudio-mongodb", "assessment", "logging")
SMALL = [f"--env=GSTUDIO_STANDIN_{one}" for one in ("USERS=4", "UNITS=3", "MEDIA_FILES=20", "SCALE=0.003")]
NAME = "faults"


@contextmanager
def small_platform(folder: Path, *options: str) -> Iterator[Platform]:
    """A stand-in with few users and three databases, that is there while the block runs."""
    made = Platform(folder, NAME)
    try:
        made.start(*SMALL, *options)
        few_databases(made)
        yield made
    finally:
        subprocess.run(["docker", "rm", "-f", made.name], capture_output=True, check=False)


def few_databases(platform: Platform) -> None:
    with platform.config_path.open("a") as config:
        config.write(f"[databases]\nmongo = {list(DATABASES)}\n[spool]\nmin_free_mb = 0\n")


@pytest.fixture(scope="module")
def platform(late: object) -> Iterator[Platform]:
    """A platform on a disk of its own, that was collected whole."""
    with tempfile.TemporaryDirectory(prefix="shala-faults-") as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "shala-test", folder]
        if (done := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
            skip = pytest.fail if os.environ.get("SHALA_NO_SKIP") else pytest.skip
            skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        try:
            with small_platform(Path(folder)) as made:
                assert_runs_through(made)
                yield made
        finally:
            subprocess.run(["umount", folder], check=True)


@pytest.fixture(autouse=True)
def no_faults(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "platform" in request.fixturenames:
        for fault in (request.getfixturevalue("platform").root / "faults").iterdir():
            fault.unlink()


# -- agents --------------------------------------------------------------------------------------------------


def agent(platform: Platform, *command: str) -> subprocess.Popen[str]:
    """Start shala-agent."""
    return subprocess.Popen(
        [sys.executable, "-m", "shala_agent.cli", "--config", str(platform.config_path), *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(process: subprocess.Popen[str]) -> bool:
    """Kill it; return whether it still lived."""
    lived = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return lived and process.returncode == -signal.SIGKILL


def running_step(platform: Platform) -> str:
    """Return the step that was begun and has not ended."""
    path = platform.root / "state/ledger.sqlite"
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        row = db.execute(
            "SELECT step FROM steps WHERE ended IS NULL AND run = (SELECT max(id) FROM runs)"
        ).fetchone()
        return str(row[0]) if row else ""
    return ""


def seconds_of(platform: Platform, step: str) -> float:
    """Return how long a step took in the newest run."""
    with closing(Ledger(platform.root / "state/ledger.sqlite")) as ledger:
        (record,) = (one for one in ledger.steps(ledger.runs(1)[0].id) if one.step == step)
        return record.seconds or 0.0


def until_running(platform: Platform, step: str, process: subprocess.Popen[str]) -> None:
    while running_step(platform) != step:
        assert process.poll() is None, f"{step} never ran"
        time.sleep(0.02)


# -- what must be true whatever happened ---------------------------------------------------------------------


def documents(platform: Platform) -> dict[str, int]:
    """Return how many documents each collection of the last good dumps has; each is walked to its end."""
    folder = platform.root / "data/.shala/db"
    return {str(file.relative_to(folder)): checks.count_bson(file) for file in folder.rglob("*.bson")}


def assert_sound(platform: Platform, *, moving: str = "") -> None:
    """The dumps under their final names are whole and all there, the mirror is whole, the ledger sound.

    `moving` is the step that may just be putting a new dump into the place of an old one.
    """
    assert (
        list(checks.sql_dump_is_complete(platform.root / "data/.shala/postgres-dump/pg_dump_all.sql")) == []
    )
    held = {path.split("/")[0] for path in documents(platform)}
    aside = {path.stem for path in (platform.root / "data/.shala/db.part").glob("*.old")}
    assert held | (aside if moving == "mongo-dump" else set()) == set(DATABASES)
    spool = Spool(platform.root / "spool")
    head = spool.head()
    assert head is not None
    if not (spool.root / "NEXT").exists():
        assert bagit.Bag(str(spool.bag)).validate()
        items = {item.name: item for item in spool.collection().items}
        assert {path.name for path in (spool.bag / "data/gstudio/db").iterdir()} == set(DATABASES)
        for name in ("gstudio-exported-users-analytics-csvs", "activity-timestamp-csvs"):
            if items[name].outcome == "ok":
                assert_csvs_whole(spool.bag / "data/gstudio" / name)
    with closing(Ledger(platform.root / "state/ledger.sqlite")) as ledger:
        assert ledger.mark("sequence") >= head.sequence
    assert not list((platform.root / "state").glob("*.damaged*"))


def assert_csvs_whole(folder: Path) -> None:
    """No row is cut, and no export has fewer rows than the same one before: users and visits only become more."""
    before: dict[str, int] = {}
    stamp = re.compile(r"-(\d{8}-\d\dh\d\dm)\.csv$")
    for path in sorted(folder.iterdir(), key=lambda path: stamp.findall(path.name)):
        header, *lines = csv.reader(path.open(newline="", encoding="utf-8"))
        assert {len(line) for line in lines} <= {len(header)}, path
        export = stamp.sub("", path.name)
        assert len(lines) >= before.get(export, 0), path
        before[export] = len(lines)


def left_behind(platform: Platform) -> list[str]:
    """Temporary files of ours, and what still runs in the container of what we started."""
    found = [
        str(path.relative_to(platform.root))
        for folder in ("state", "spool", "data")
        for path in (platform.root / folder).rglob("*")
        if path.is_file() and (path.name.startswith(".shala-") or ".part" in str(path))
    ]
    unfinished = ("spool/NEXT", "spool/.assembling", "state/plain", "state/fetched")
    found += [name for name in unfinished if (platform.root / name).exists()]
    processes = platform.processes().splitlines()
    ours = ("timeout -k", "pg_dumpall", "mongodump", "manage.py", "single_school", ".shala-exec")
    found += [line for line in processes if any(word in line for word in ours)]
    found += docker("exec", platform.name, "sh", "-c", "ls -d /tmp/.shala-* 2>/dev/null; true").split()
    return found


def assert_runs_through(platform: Platform, *, resumes: bool = False) -> None:
    """A whole chain succeeds by itself, leaves nothing behind, and what it made is collected as ok.

    Where a derivation was cut the platform keeps half of a CSV: that item may be suspect, and names it.
    """
    if resumes:  # what was cut too often was passed over, which the chain says; the one after it does it
        agent(platform, "run").communicate()
    process = agent(platform, "run")
    _, said = process.communicate()
    assert process.returncode == 0, said
    items = {item.name: item for item in Spool(platform.root / "spool").collection().items}
    for name, item in items.items():
        halves = name in ("gstudio-exported-users-analytics-csvs", "activity-timestamp-csvs")
        assert item.outcome == "ok" or (halves and "csv" in item.reasons[0]), (name, item.reasons)
    assert_sound(platform)
    assert left_behind(platform) == []


# -- kill -9 -------------------------------------------------------------------------------------------------


def test_a_chain_killed_as_any_step_ends_goes_on_at_the_next(platform: Platform, tally: Tally):
    cut = False
    for number, step in enumerate(STEPS):
        with tally.injected("kill-boundary") as injection:
            process = agent(platform, "run")
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if line.startswith(f"{step}: "):
                    break
            else:
                raise AssertionError(f"{step} never ended")
            cut_before, cut = cut, kill(process)
            injection.hit = cut
            # A heartbeat is of its moment: each run takes a new one.
            ended = tuple(f"{one}: " for one in STEPS[1:number]) if cut_before else ()
            again = [line for line in said if line.startswith(ended)] if ended else []
            assert all("done before the cut" in line or "not due" in line for line in again), again
            assert_sound(platform)
            injection.saw = "the next run went on at the next step"
    assert_runs_through(platform)


def test_a_chain_killed_at_any_instant_loses_nothing(platform: Platform, tally: Tally):
    chance = random.Random(SEED)
    good = documents(platform)
    landed: dict[str, int] = {}
    for number in tally.until_it_hits("kill-step", POINTS):
        with tally.injected("kill-step") as injection:
            process = agent(platform, "run")
            # Mostly from the step on at which the chain goes on: starting takes long on a busy machine.
            while number % 4 and process.poll() is None and running_step(platform) in ("", "heartbeat"):
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 2.5))
            step = running_step(platform)
            injection.hit = kill(process)
            assert_sound(platform, moving=step)
            injection.saw = f"in {step}" if step else "between two steps"
            if injection.hit:
                landed[step] = landed.get(step, 0) + 1
    assert_runs_through(platform, resumes=True)
    assert {name: count >= good[name] for name, count in documents(platform).items()} == dict.fromkeys(
        good, True
    )
    assert len(landed) >= min(3, POINTS // 3), landed


# -- the container -------------------------------------------------------------------------------------------


def slowly(platform: Platform) -> None:
    """Have the platform take its time, so that there is something to interrupt."""
    platform.fault("export-slow", "1")
    platform.fault("dump-slow", "1")


def state_of(platform: Platform) -> str:
    """Return the engine's word for the state of the container."""
    return docker("inspect", "-f", "{{.State.Status}}", platform.name)


def start_of(platform: Platform) -> str:
    """Return since when the container runs."""
    return docker("inspect", "-f", "{{.State.StartedAt}}", platform.name)


def is_running(platform: Platform, step: str, process: subprocess.Popen[str]) -> bool:
    """Return whether an agent is in a step."""
    return running_step(platform) == step and process.poll() is None


def in_its_own_time(platform: Platform) -> None:
    for name in ("export-slow", "dump-slow"):
        (platform.root / "faults" / name).unlink()


COMMANDS = {
    "postgres-dump": ("collect",),
    "mongo-dump": ("collect",),
    "progress": ("derive", "progress"),
    "activity-timestamps": ("derive", "activity-timestamps"),
    "assessments": ("derive", "assessments"),
}


@pytest.mark.parametrize(
    "how, step",
    [
        ("killed", "mongo-dump"),
        ("killed", "progress"),
        ("killed", "assessments"),
        ("restarting", "postgres-dump"),
        ("restarting", "mongo-dump"),
        ("restarting", "activity-timestamps"),
    ],
)
def test_a_container_that_goes_away_under_a_step_costs_that_step_alone(
    platform: Platform, tally: Tally, how, step
):
    good = documents(platform)
    with tally.injected(f"container-{how}") as injection:
        slowly(platform)
        process = agent(platform, *COMMANDS[step])
        until_running(platform, step, process)
        time.sleep(random.Random(f"{SEED}{how}{step}").uniform(0, 0.3 if step == "postgres-dump" else 2))
        started, under_the_step = start_of(platform), is_running(platform, step, process)
        docker("kill", platform.name) if how == "killed" else docker("restart", "-t", "1", platform.name)
        gone = state_of(platform) == "exited" if how == "killed" else start_of(platform) != started
        injection.hit = under_the_step and gone
        _, said = process.communicate(timeout=200)
        in_its_own_time(platform)
        if how == "killed":
            docker("start", platform.name)
        platform.ready()
        assert_sound(platform)
        assert process.returncode in (0, 1, 3), said
        assert "Traceback" not in said
        injection.saw = "the step failed and said why" if process.returncode else "what was made was whole"
        again = agent(platform, *COMMANDS[step])
        _, said = again.communicate()
        assert again.returncode == 0, said
        assert documents(platform).keys() >= good.keys()
        assert left_behind(platform) == []


@pytest.mark.parametrize("step", ["mongo-dump", "progress"])
def test_a_container_that_is_paused_under_a_step_is_named_and_then_tidied(
    platform: Platform, tally: Tally, monkeypatch, step
):
    monkeypatch.setattr("shala_agent.container.SILENCE", 1)
    good = documents(platform)
    with tally.injected("container-paused") as injection:
        slowly(platform)
        pauser = threading.Timer(2.5, docker, ["pause", platform.name])
        pauser.start()
        try:
            word, reasons = outcome(platform.do(lambda chain: chain.by_hand((step,))))
        finally:
            pauser.join()
            injection.hit = state_of(platform) == "paused"
            docker("unpause", platform.name)
        assert word == "failed"
        assert f"docker unpause {platform.name}" in reasons
        assert documents(platform) == good
        injection.saw = "the step failed and said why"
        in_its_own_time(platform)
        assert outcome(platform.do(lambda chain: chain.by_hand((step,))))[0] in ("ok", "suspect")
        assert_sound(platform)
        assert left_behind(platform) == []


# -- databases and the disk ----------------------------------------------------------------------------------


def test_a_chain_without_postgresql_keeps_the_last_good_users(platform: Platform, tally: Tally, monkeypatch):
    dump = platform.root / "data/.shala/postgres-dump/pg_dump_all.sql"
    before = dump.read_bytes()
    with tally.injected("postgres-down") as injection:
        platform.fault("postgres-down")
        time.sleep(3)
        injection.hit = wait_for(platform.container, "postgres", 0) != ""
        with monkeypatch.context() as patch:
            patch.setattr("shala_agent.databases.wait_for.__defaults__", (1.0,))
            passage = platform.do(lambda chain: chain.run())
        outcomes = {name: result.outcome for name, result in passage.steps}
        assert outcomes["postgres-dump"] == "failed"
        assert outcomes["progress"] in ("suspect", "failed")
        item = passage.collected.collection.item("gstudio", "postgres-dump")
        assert (item.outcome, dump.read_bytes()) == ("failed", before)
        assert item.carried_from
        injection.saw = "the last good dump stood, the exports were not believed"
        (platform.root / "faults/postgres-down").unlink()
        time.sleep(2)
        platform.ready()
        assert_runs_through(platform)


def test_a_disk_that_fills_while_dumping_and_deriving_spoils_nothing(platform: Platform, tally: Tally):
    chance = random.Random(SEED)
    ballast = platform.root / "ballast"
    for _ in tally.until_it_hits("disk-full-dumps", max(2, POINTS // 5)):
        good = documents(platform)
        with tally.injected("disk-full-dumps") as injection:
            free = chance.choice([0, 8_000, 60_000, 400_000]) + chance.randrange(1, 60_000)
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(platform.root).free - free)
            process = agent(platform, "collect")
            _, said = process.communicate()
            ballast.unlink()
            assert process.returncode in (0, 1, 3), said
            assert "Traceback" not in said
            assert documents(platform) == good
            assert_sound(platform)
            injection.hit = process.returncode != 0  # otherwise there was room enough
            injection.saw = "failed in one line, the last good dumps stood"
            again = agent(platform, "collect")
            _, said = again.communicate()
            assert again.returncode == 0, said
            assert left_behind(platform) == []


@pytest.fixture(scope="module")
def late() -> Iterator[tuple[Platform, subprocess.Popen[str]]]:
    """A platform whose MongoDB answers 180 s after its start, and an agent that has found it so.

    It is there from the first test on, so that the last one need not wait.
    """
    require_image()
    with tempfile.TemporaryDirectory(prefix="shala-faults-") as folder:
        made = Platform(Path(folder), f"{NAME}-late")
        try:
            made.begin(*SMALL, faults={"mongod-delay": "180"})
            few_databases(made)
            process = agent(made, "run")
            yield made, process
            process.kill()
            process.communicate()
        finally:
            subprocess.run(["docker", "rm", "-f", made.name], capture_output=True, check=False)


# -- the engine ----------------------------------------------------------------------------------------------


class Engine:
    """A Docker engine of the test's own: socket, data, containerd, and no network."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.address = f"unix://{root}/sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        root = self._root
        command = [
            # In a network of its own: an engine without a bridge removes the machine's docker0.
            "unshare", "--net", "dockerd", "--data-root", f"{root}/data", "--exec-root", f"{root}/exec", "--pidfile", f"{root}/pid",
            "-H", self.address, "--bridge=none", "--iptables=false", "--ip-masq=false",
            "--containerd-namespace", "shala-faults", "--containerd-plugins-namespace", "shala-faults-plugins",
        ]  # fmt: skip
        with (root / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(300):
            if self.answers():
                return
            time.sleep(0.1)
        raise AssertionError((root / "log").read_text()[-2000:])

    def answers(self) -> bool:
        asked = ["docker", "-H", self.address, "info"]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    def end(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    require_image()
    if None in (shutil.which("dockerd"), shutil.which("unshare")) or os.geteuid() != 0:
        skip = pytest.fail if os.environ.get("SHALA_NO_SKIP") else pytest.skip
        skip("an engine of the test's own needs dockerd, unshare and root")
    # A short path: the name of a socket has room for 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="shala-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    made = Engine(folder)
    made.start()
    try:
        save = subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE)
        subprocess.run(
            ["docker", "-H", made.address, "load", "-q"], stdin=save.stdout, check=True, capture_output=True
        )
        save.wait()
        yield made
    finally:
        made.end()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def speaking_to(engine: Engine) -> Iterator[None]:
    """Whoever speaks to Docker meanwhile speaks to that engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine.address)
        yield


@pytest.fixture(scope="module")
def beside(engine: Engine) -> Iterator[Platform]:
    """A platform in the engine of the test's own."""
    with tempfile.TemporaryDirectory(prefix="shala-faults-") as folder, ExitStack() as stack:
        with speaking_to(engine):
            made = stack.enter_context(small_platform(Path(folder), "--network=none", "--restart=always"))
            agent(made, "collect").communicate()
        yield made
        with speaking_to(engine):
            stack.close()


@pytest.mark.parametrize("step", ["mongo-dump", "progress"])
def test_an_engine_that_restarts_under_a_step_costs_that_step_alone(
    beside: Platform, engine: Engine, tally: Tally, step
):
    with speaking_to(engine), tally.injected("engine-restarted") as injection:
        slowly(beside)
        process = agent(beside, *COMMANDS[step])
        until_running(beside, step, process)
        time.sleep(random.Random(f"{SEED}{step}").uniform(0.2, 2))
        under_the_step = is_running(beside, step, process)
        engine.end()
        injection.hit = under_the_step and not engine.answers()
        in_its_own_time(beside)
        _, said = process.communicate(timeout=200)
        assert process.returncode in (1, 3), said
        assert_sound(beside)
        engine.start()
        beside.ready()
        assert_sound(beside, moving="mongo-dump")
        injection.saw = "the step failed and said why"
        again = agent(beside, *COMMANDS[step])
        _, said = again.communicate()
        assert again.returncode == 0, said
        assert left_behind(beside) == []


def test_a_mongodb_that_is_late_is_waited_for_and_never_dumped_half(
    late: tuple[Platform, subprocess.Popen[str]], tally: Tally
):
    platform, process = late
    with tally.injected("mongod-late") as injection:
        _, said = process.communicate(timeout=400)
        injection.hit = process.returncode != 0 or seconds_of(platform, "mongo-dump") > 20
        if process.returncode:
            assert "mongo-dump: failed (MongoDB: it does not answer" in said
            injection.saw = "the step failed and said why, the next run dumped it"
        else:
            injection.saw = "it was waited for and dumped"
        platform.ready()
        assert_runs_through(platform)
