"""A school whose power is cut every 60 to 120 seconds: how many boots does a full collection take?

Runs last on the lab fleet (`molecule verify -s fleet`): the machine of a server is killed with all that runs in it,
Docker engine, container and agent, and switched on again; the agent's timer alone starts the chain. Of the dead
machine's disk what is sealed is read. SHALA_POWER_CUTS=5 wants so many collections, one after the other;
SHALA_POWER_SEED repeats a run that failed; SHALA_POWER_SERVER names another provisioned lab server.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bagit
import pytest
from shala_agent.ledger import Ledger
from shala_agent.seen import Seen
from shala_agent.spool import Spool

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "agent/tests"))

from injected import BY_THE_FLEET, TALLIES, Injection, Tally  # noqa: E402

pytestmark = pytest.mark.fleet

SERVER = os.environ.get("SHALA_POWER_SERVER", "shala-lab-3080101-rj1")
SEED = int(os.environ.get("SHALA_POWER_SEED", "7"))
COLLECTIONS = max(1, int(os.environ.get("SHALA_POWER_CUTS", "1")))
ON_FOR = (60.0, 120.0)  # seconds from switching the machine on to the next cut
MOST_BOOTS = 10  # a chain of six steps, of which each cut may cost one, on a machine that has other work too
# Seconds for each file, so that the chain takes longer than the power is ever on, and no step as long as it is.
SLOWLY = {"export-slow": "1.3", "dump-slow": "0.8"}
OURS = ("timeout -k", "pg_dumpall", "mongodump", "manage.py", "single_school", ".shala-exec")


@dataclass
class Machine:
    """The container that plays a server."""

    name: str

    def on(self, *command: str) -> str:
        """Run a command on the server; return what it printed."""
        done = self._docker("exec", self.name, *command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, Any] | None:
        """Return what the agent says of itself, None while the machine boots."""
        done = self._docker("exec", self.name, "shala-agent", "status", "--json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def cut_power(self) -> None:
        assert self._docker("kill", self.name).returncode == 0

    def is_off(self) -> bool:
        return self._docker("inspect", "-f", "{{.State.Running}}", self.name).stdout.strip() == "false"

    def switch_on(self) -> None:
        assert self._docker("start", self.name).returncode == 0

    def wait_for_platform(self) -> None:
        """Wait until it has booted, and the platform's container with it."""
        for _ in range(90):
            if self._docker("exec", self.name, "docker", "exec", "gstudio", "true").returncode == 0:
                return
            time.sleep(1)
        raise AssertionError(f"{self.name} does not come back")

    def disk(self, folder: str, into: Path) -> Path:
        """Copy a folder from the disk of a machine that is off."""
        into.parent.mkdir(parents=True, exist_ok=True)
        done = self._docker("cp", f"{self.name}:{folder}", str(into))
        assert done.returncode == 0, done.stderr
        return into

    def _docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, timeout=300, check=False
        )


@dataclass
class Story:
    """What came of it: how often the machine was on, and in which step each cut fell, after how many seconds."""

    boots: int = 0
    cuts: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        cuts = "; ".join(self.cuts)
        return f"a full collection at boot {self.boots}, {self.seconds:.0f} s after the first ({cuts})"


@pytest.fixture
def school() -> Iterator[Machine]:
    """A server that is on for a minute or two at a time, whose platform is slow, and whose agent starts by itself."""
    machine = Machine(SERVER)
    for switch, seconds in SLOWLY.items():
        machine.on("docker", "exec", "gstudio", "sh", "-c", f"echo {seconds} > /faults/{switch}")
    machine.on("systemctl", "enable", "shala-agent.timer")
    yield machine
    machine.switch_on()  # a test that failed may have left it off
    machine.wait_for_platform()
    machine.on("systemctl", "disable", "--now", "shala-agent.timer")
    machine.on("docker", "exec", "gstudio", "rm", "-f", *(f"/faults/{switch}" for switch in SLOWLY))


@pytest.fixture
def tally() -> Iterator[Tally]:
    made = Tally()
    yield made
    made.write(TALLIES / BY_THE_FLEET)


def collected_through_cuts(machine: Machine, chance: random.Random, folder: Path, tally: Tally) -> Story:
    """Let a school day pass, then cut the power again and again until all of it is collected."""
    machine.on("systemctl", "stop", "shala-agent.timer", "shala-agent.service")
    if json.loads(machine.on("shala-agent", "status", "--json"))["chain"]["ended"] is None:
        machine.on("shala-agent", "run")  # a chain that is open has begun before that day
    machine.on("docker", "exec", "gstudio", "standin", "next-day", "1")
    before = json.loads(machine.on("shala-agent", "status", "--json"))
    story, began = Story(), time.monotonic()
    with ExitStack() as injected:
        cuts: list[Injection] = []
        machine.cut_power()
        while True:
            machine.switch_on()
            story.boots += 1
            assert story.boots <= MOST_BOOTS, story
            seconds = chance.uniform(*ON_FOR)
            if full := collected_within(machine, seconds, before):
                break
            cuts.append(injected.enter_context(tally.injected("power-cut")))
            machine.cut_power()
            cuts[-1].hit = machine.is_off()
            off = folder / f"{story.boots}"
            assert_whole(machine, off, at_least=before["sealed"])
            story.cuts.append(f"{running_step(off)} after {seconds:.0f} s")
        story.seconds = time.monotonic() - began
        assert {
            item["name"]: item["reasons"] for item in full["sealed"]["items"] if item["outcome"] != "ok"
        } == {}
        assert {step["step"]: step["reasons"] for step in full["steps"] if step["outcome"] != "ok"} == {}
        assert left_behind(machine) == []
        machine.cut_power()
        assert_whole(machine, folder / "last", at_least=full["sealed"])
        machine.switch_on()
        machine.wait_for_platform()
        for cut in cuts:
            cut.saw = f"a full collection at boot {story.boots}"
    return story


def collected_within(machine: Machine, seconds: float, before: dict[str, Any]) -> dict[str, Any] | None:
    """Return the status when a chain has come to its end with all that is new sealed, None when the time is over."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        time.sleep(min(3.0, left))
        status = machine.status()
        if status is None or status["chain"]["outcome"] != "done":
            continue
        if (
            status["chain"]["id"] > before["chain"]["id"]
            and status["sealed"]["sequence"] > before["sealed"]["sequence"]
        ):
            return status
    return None


# -- the disk of a machine that is off ------------------------------------------------------------


def assert_whole(machine: Machine, folder: Path, *, at_least: dict[str, Any]) -> None:
    """What is sealed on the disk is a whole bag, not older than it was, and the ledger is sound."""
    state = machine.disk("/var/lib/shala", folder / "state")
    assert list(state.glob("*.damaged*")) == []
    spool = Spool(machine.disk("/var/spool/shala", folder / "spool"))
    with closing(Seen(folder / "seen.sqlite")) as seen:
        spool.prepare(seen)  # as the next run would: what was being put into the mirror is put there
    head = spool.head()
    assert head is not None
    assert head.sequence >= at_least["sequence"]
    assert bagit.Bag(str(spool.bag)).validate()
    with closing(Ledger(state / "ledger.sqlite")) as ledger:
        assert ledger.mark("sequence") >= head.sequence
    assert list(state.glob("*.damaged*")) == []


def running_step(folder: Path) -> str:
    """Return in which step the chain was when the power went."""
    with closing(Ledger(folder / "state/ledger.sqlite")) as ledger:
        run = ledger.runs(1)[0]
        begun = [step.step for step in ledger.steps(run.id) if step.ended is None]
    return "between chains" if run.ended else f"in {begun[-1]}" if begun else "between two steps"


def left_behind(machine: Machine) -> list[str]:
    """Return temporary files of ours, and what still runs in the container of what we started."""
    folders = ("/var/lib/shala", "/var/spool/shala", "/home/core/data")
    temporary = ("-name", ".shala-*", "-o", "-path", "*.part/*", "-o", "-name", "NEXT")
    found = machine.on("find", *folders, "-type", "f", "(", *temporary, ")").split()
    unfinished = ("/var/spool/shala/.assembling", "/var/lib/shala/plain", "/var/lib/shala/fetched")
    found += machine.on("sh", "-c", f"ls -d {' '.join(unfinished)} 2>/dev/null; true").split()
    processes = machine.on("docker", "exec", "gstudio", "ps", "-eo", "args").splitlines()
    found += [line for line in processes if any(word in line for word in OURS)]
    return (
        found
        + machine.on("docker", "exec", "gstudio", "sh", "-c", "ls -d /tmp/.shala-* 2>/dev/null; true").split()
    )


# -- the test -------------------------------------------------------------------------------------


def test_a_school_that_is_on_for_a_minute_or_two_gets_its_full_collection(
    school: Machine, tally: Tally, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)
    for number in range(COLLECTIONS):
        story = collected_through_cuts(school, chance, tmp_path / str(number), tally)
        with capsys.disabled():
            sys.stdout.write(f"\nThe power was cut every {ON_FOR[0]:.0f} to {ON_FOR[1]:.0f} s: {story}\n")
        assert story.cuts, "it was never cut: the chain is too fast for this test (SLOWLY)"
