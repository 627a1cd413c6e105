"""Writers: the platform's own programs that may be at work at any moment: its cron starts them every hour.

What they write is neither gathered nor made beside them: a file that stands still for a while, or even
parses, may still be half of one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shala_agent.container import KEPT_OUTPUT

if TYPE_CHECKING:
    from shala_agent.container import Container

POLL = 5.0  # seconds between two looks
# Seconds: where it cannot be seen who is at work, each of them may have been for so long; a real one takes up
# to 17 minutes (facts/gstudio.md 2).
LONGEST = 3600.0
SLACK = 2.0  # seconds by which a start may be known wrong

# One line a process: seconds since the boot, its stat (the 22nd field is its start), its command line.
_PROCESSES = """read up _ < /proc/uptime
for folder in /proc/[0-9]*; do
  read -r stat < "$folder/stat" && command=$(tr '\\0' ' ' < "$folder/cmdline") && echo "$up|$stat|$command"
done 2>/dev/null; echo "|end"
"""
_END = "|end"  # without it not all were seen


@dataclass(frozen=True, slots=True)
class Writer:
    """One running program of the platform: what it is, and when it began, by this machine's clock; or one
    that may be running, as it could not be seen.
    """

    command: str
    began: float
    is_seen: bool = True

    def __str__(self) -> str:
        return f"{'' if self.is_seen else 'maybe, as it cannot be seen, '}the platform's own '{self.command}'"


def running(container: Container, words: Sequence[str]) -> list[Writer]:
    """Return the programs whose command line has one of the words; where that cannot be seen, all of them may
    be at work. Raises ContainerUnavailable.
    """
    if not words:
        return []
    ran = container.run(["sh", "-c", _PROCESSES], timeout_seconds=30)
    lines = ran.stdout.splitlines()
    if ran.timed_out or len(ran.stdout) >= KEPT_OUTPUT or lines[-1:] != [_END]:
        return [Writer(word, time.time() - LONGEST, is_seen=False) for word in words]
    now, ticks = time.time(), os.sysconf("SC_CLK_TCK")
    found = []
    for line in lines:
        up, _, rest = line.partition("|")
        stat, _, command = rest.partition("|")
        word = next((word for word in words if word in command), None)
        fields = stat.rpartition(")")[2].split()
        if word is None or len(fields) < 20:
            continue
        try:
            began = now - (float(up) - int(fields[19]) / ticks)
        except ValueError:
            continue
        found.append(Writer(word, began))
    return found


def wait_until_idle(container: Container, words: Sequence[str], wait_seconds: float) -> str:
    """Wait until none of the programs runs; return "" or which one does. Raises ContainerUnavailable."""
    give_up = time.monotonic() + wait_seconds
    while found := running(container, words):
        if time.monotonic() + POLL > give_up:
            since = max(0.0, time.time() - min(writer.began for writer in found))
            return f"{found[0]} has been running for {since / 60:.0f} minutes"
        time.sleep(POLL)
    return ""
