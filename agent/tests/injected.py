"""What the fault suite injects: the list of faults, and the tally of how often each hit and what was seen then.

A fault that missed - a kill that came when its process had ended, a disk that was not filled after all - is not
injected. The tally becomes docs/reliability.md (lab/reliability_docs.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

TALLIES = Path(__file__).resolve().parents[2] / "build/faults"
SUITE = "suite"  # the folder of the fault suite's tallies, one of each of its processes
BY_THE_FLEET = "fleet.json"  # the tally of what tests/ injects into the lab fleet, in a run of its own
TRIES = 3  # so often is tried, for each time that a fault is to hit

KILL = "kill -9 of the agent"
CONTAINER = "the container"
DATABASES = "databases"
DISK = "the disk"
CLOCK = "the clock"
AGENTS = "agents and identity"
SWITCH = "the platform's own scripts"
POWER = "the whole server"


class Fault(NamedTuple):
    """A row: of what group, in which words, made how, and how often it hits in a whole run at the least.

    That is well below what a whole run injects.
    """

    group: str
    what: str
    how: str
    least: int = 1


FAULTS: dict[str, Fault] = {
    "kill-collect": Fault(
        KILL,
        "before each change of the disk while a day is collected and sealed, one after the other",
        "processes without a container",
        60,
    ),
    "kill-first": Fault(KILL, "before a random change of the disk during the first collection", "same", 20),
    "kill-chain": Fault(
        KILL,
        "before a random change of the disk during the whole chain: ledger, heartbeat, collection",
        "same; the dumps and derivations of it fail",
        20,
    ),
    "kill-heartbeat": Fault(KILL, "before each change of the disk during a heartbeat", "same", 12),
    "kill-instant": Fault(KILL, "at a random instant of a collection", "same, killed from outside", 80),
    "kill-restore": Fault(
        KILL,
        "before every other change of the disk during a restore: databases, files, settings",
        "same; the databases are files",
        80,
    ),
    "kill-restore-again": Fault(
        KILL, "before random changes of the disk, up to six times during one restore", "same", 30
    ),
    "kill-boundary": Fault(
        KILL,
        "as each step of the whole chain has just ended",
        "a process with the stand-in container",
        3,
    ),
    "kill-step": Fault(
        KILL, "at a random instant of the whole chain: dumps, derivations, collection", "same", 8
    ),
    "container-killed": Fault(CONTAINER, "killed under a running step", "`docker kill`"),
    "container-paused": Fault(CONTAINER, "paused under a running step", "`docker pause`"),
    "container-restarting": Fault(CONTAINER, "restarted under a running step", "`docker restart`"),
    "engine-restarted": Fault(
        CONTAINER,
        "the Docker engine restarted under a running step, its containers with it",
        "an engine of the test's own",
    ),
    "postgres-down": Fault(DATABASES, "PostgreSQL down during a chain", "switch of the stand-in"),
    "mongod-late": Fault(DATABASES, "MongoDB not ready for 180 s after the start", "switch of the stand-in"),
    "disk-full": Fault(DISK, "full after a random number of bytes, while collecting", "a small tmpfs", 10),
    "disk-full-dumps": Fault(
        DISK,
        "full after a random number of bytes, while dumping and deriving",
        "a small tmpfs below container and agent",
    ),
    "inodes": Fault(DISK, "no file more can be made, while collecting", "a small tmpfs", 2),
    "read-only": Fault(DISK, "read-only", "tmpfs mounted anew as `ro`", 2),
    "clock-1970": Fault(CLOCK, "jumped to 1970 for one run", "the time of the agent's process alone"),
    "clock-2090": Fault(CLOCK, "jumped to 2090 for one run", "the time of the agent's process alone"),
    "two-agents": Fault(AGENTS, "two to four started at once", "processes without a container", 5),
    "identity": Fault(
        AGENTS,
        "the settings name another server, or none, between two runs",
        "server_settings.py rewritten",
        8,
    ),
    "switches": Fault(
        SWITCH,
        "each fault switch of the stand-in: exports cut, empty or slow, partial dumps, wrong clock, ...",
        "switches of the stand-in",
        15,
    ),
    "power-cut": Fault(
        POWER,
        "its power cut 60 to 120 s after each boot, until a full collection is sealed",
        "`docker kill` of a server of the lab fleet",
    ),
}
OF_THE_FLEET = ("power-cut",)
# Kills at seeded random points, and how many of them a whole run has at the least.
RANDOM_KILLS = ("kill-first", "kill-chain", "kill-instant", "kill-restore-again", "kill-step")
LEAST_RANDOM_KILLS = 200


@dataclass
class Injection:
    """One fault as its test sees it: whether it really hit, and in a few words what was seen afterwards."""

    hit: bool = False
    saw: str = ""


class Tally:
    """How often each fault hit and missed, what was seen afterwards, and how often something was lost."""

    def __init__(self) -> None:
        self.seen: dict[str, Counter[str]] = {}
        self.missed: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()

    @contextmanager
    def injected(self, fault: str) -> Iterator[Injection]:
        """Count a fault, unless its test finds that it missed; a test that fails is a loss either way."""
        assert fault in FAULTS
        injection = Injection()
        try:
            yield injection
            assert injection.saw or not injection.hit, "what was seen after it?"
        except BaseException:
            self.lost[fault] += 1
            raise
        finally:
            if injection.hit:
                self.seen.setdefault(fault, Counter())[injection.saw or "-"] += 1
            else:
                self.missed[fault] += 1

    def hits(self, fault: str) -> int:
        """Return how often a fault hit."""
        return self.seen.get(fault, Counter()).total()

    def until_it_hits(self, fault: str, times: int) -> Iterator[int]:
        """Yield numbers from 0 until a fault has hit `times` more, but no more than TRIES for each."""
        wanted = self.hits(fault) + times
        for number in range(TRIES * times):
            if self.hits(fault) >= wanted:
                return
            yield number

    # -- a whole run -------------------------------------------------------------------------------------

    def never_injected(self) -> list[str]:
        """Return the rows of the fault suite that no injection hit."""
        return [fault for fault in FAULTS if fault not in OF_THE_FLEET and not self.hits(fault)]

    def problems(self) -> list[str]:
        """Return what stands against the claim that all was injected often enough and nothing was lost."""
        suite = [fault for fault in FAULTS if fault not in OF_THE_FLEET]
        found = [self._too_few(fault) for fault in suite if self.hits(fault) < FAULTS[fault].least]
        kills = {fault: self.hits(fault) for fault in RANDOM_KILLS}
        if sum(kills.values()) < LEAST_RANDOM_KILLS:
            each = ", ".join(f"{fault} {times}" for fault, times in kills.items())
            found.append(f"random kills: {sum(kills.values())} of at least {LEAST_RANDOM_KILLS} ({each})")
        return found + [f"{fault}: {self.lost[fault]} of them lost something" for fault in +self.lost]

    def _too_few(self, fault: str) -> str:
        missed = f", {self.missed[fault]} more missed" if self.missed[fault] else ""
        return f"{fault}: injected {self.hits(fault)} of at least {FAULTS[fault].least} times{missed}"

    # -- on the disk -------------------------------------------------------------------------------------

    def write(self, path: Path) -> None:
        """Write the tally as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            fault: {
                "seen": dict(self.seen.get(fault, {})),
                "missed": self.missed[fault],
                "lost": self.lost[fault],
            }
            for fault in sorted({*self.seen, *self.missed, *self.lost})
        }
        path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")

    def add(self, path: Path) -> None:
        """Add a tally that was written. Raises ValueError for one that counts what is no row."""
        for fault, counts in json.loads(path.read_text()).items():
            if fault not in FAULTS:
                raise ValueError(f"{path} counts '{fault}', which is no row of agent/tests/injected.py")
            self.seen.setdefault(fault, Counter()).update(counts["seen"])
            self.missed[fault] += counts.get("missed", 0)
            self.lost[fault] += counts["lost"]
