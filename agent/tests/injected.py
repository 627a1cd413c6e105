"""What the fault suite injects: the list of faults, and the tally of how often each was injected and what was seen.

The tally becomes docs/reliability.md (lab/reliability_docs.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TALLIES = Path(__file__).resolve().parents[2] / "build/faults"
BY_THE_FLEET = "fleet.json"  # the tally of what tests/ injects into the lab fleet, apart from the fault suite

KILL = "kill -9 of the agent"
CONTAINER = "the container"
DATABASES = "databases"
DISK = "the disk"
CLOCK = "the clock"
AGENTS = "agents and identity"
SWITCH = "the platform's own scripts"
POWER = "the whole server"

# Each fault: of what group, in which words, made how.
FAULTS: dict[str, tuple[str, str, str]] = {
    "kill-collect": (
        KILL,
        "before each change of the disk while a day is collected and sealed, one after the other",
        "processes without a container",
    ),
    "kill-first": (KILL, "before a random change of the disk during the first collection", "same"),
    "kill-chain": (
        KILL,
        "before a random change of the disk during the whole chain: ledger, heartbeat, collection",
        "same; the dumps and derivations of it fail",
    ),
    "kill-heartbeat": (KILL, "before each change of the disk during a heartbeat", "same"),
    "kill-instant": (KILL, "at a random instant of a collection", "same, killed from outside"),
    "kill-boundary": (
        KILL,
        "as each step of the whole chain has just ended",
        "a process with the stand-in container",
    ),
    "kill-step": (KILL, "at a random instant of the whole chain: dumps, derivations, collection", "same"),
    "container-killed": (CONTAINER, "killed under a running step", "`docker kill`"),
    "container-paused": (CONTAINER, "paused under a running step", "`docker pause`"),
    "container-restarting": (CONTAINER, "restarted under a running step", "`docker restart`"),
    "engine-restarted": (
        CONTAINER,
        "the Docker engine restarted under a running step, its containers with it",
        "an engine of the test's own",
    ),
    "postgres-down": (DATABASES, "PostgreSQL down during a chain", "switch of the stand-in"),
    "mongod-late": (DATABASES, "MongoDB not ready for 180 s after the start", "switch of the stand-in"),
    "disk-full": (DISK, "full after a random number of bytes, while collecting", "a small tmpfs"),
    "disk-full-dumps": (
        DISK,
        "full after a random number of bytes, while dumping and deriving",
        "a small tmpfs below container and agent",
    ),
    "inodes": (DISK, "no file more can be made, while collecting", "a small tmpfs"),
    "read-only": (DISK, "read-only", "tmpfs mounted anew as `ro`"),
    "clock-1970": (CLOCK, "jumped to 1970 for one run", "the time of the agent's process alone"),
    "clock-2090": (CLOCK, "jumped to 2090 for one run", "the time of the agent's process alone"),
    "two-agents": (AGENTS, "two to four started at once", "processes without a container"),
    "identity": (
        AGENTS,
        "the settings name another server, or none, between two runs",
        "server_settings.py rewritten",
    ),
    "switches": (
        SWITCH,
        "each fault switch of the stand-in: exports cut, empty or slow, partial dumps, wrong clock, ...",
        "switches of the stand-in",
    ),
    "power-cut": (
        POWER,
        "its power cut 60 to 120 s after each boot, until a full collection is sealed",
        "`docker kill` of a server of the lab fleet",
    ),
}
OF_THE_FLEET = ("power-cut",)


class Tally:
    """How often each fault was injected, and what was seen afterwards."""

    def __init__(self) -> None:
        self.seen: dict[str, Counter[str]] = {}
        self.lost: Counter[str] = Counter()

    @contextmanager
    def injected(self, fault: str) -> Iterator[list[str]]:
        """Count a fault, whose test notes in one word what it saw; a test that fails is a loss."""
        assert fault in FAULTS
        saw: list[str] = []
        try:
            yield saw
        except BaseException:
            self.lost[fault] += 1
            raise
        finally:
            self.seen.setdefault(fault, Counter())[saw[0] if saw else "-"] += 1

    def write(self, path: Path) -> None:
        """Write the tally as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {name: {"seen": dict(seen), "lost": self.lost[name]} for name, seen in self.seen.items()}
        path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
