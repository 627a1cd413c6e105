"""Agents as processes of their own that die at a chosen moment, or live by another clock.

Run as a program it reads commands of `shala-agent` from stdin, one a line as JSON, and forks a process for each:
hundreds of starts of Python would take minutes. In that process everything is the agent's own but this: its
container says nothing (agent_school.QuietContainer), that of a restore has databases
that are files (little_databases.LastingDatabases); with `at`, SIGKILL comes just before its n-th change of the
disk (a file opened for writing, renamed, linked, removed, a commit of SQLite, ...); with `clock`, it is
another time by so many seconds. What was written just now is believed at once, so that short tests draw
sketches, too.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGES = {"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Ended:
    """How a process ended: by its exit code, or by SIGKILL.

    `count` is how often it changed the disk; from `began` to `ended` it was there (of the monotonic clock; 0 where
    it was killed).
    """

    killed: bool
    code: int
    said: str
    count: int = 0
    began: float = 0
    ended: float = 0


class Agents:
    """Starts agents on a school, one at a time or several."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def run(
        self,
        school: Any,
        *command: str,
        at: int = 0,
        clock: float = 0,
        times: int = 1,
        meanwhile: Callable[[int], None] | None = None,
        said: Path | None = None,
    ) -> list[Ended]:
        """Run a command to its end, or `times` of it at once; `meanwhile` is given the first process.

        What they say lies in the folder `said` meanwhile, the school's own if none is given.
        """
        said = (said or school.root) / "said"
        wanted = {
            "arguments": ["--config", str(school.config_path), *command],
            "at": at, "clock": clock, "times": times, "said": str(said),
        }  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(wanted) + "\n")
        self._server.stdin.flush()
        process = int(self._server.stdout.readline())
        if meanwhile is not None:
            meanwhile(process)
        ended = []
        for number, status in enumerate(json.loads(self._server.stdout.readline())):
            file, noted = (Path(f"{said}-{number}{suffix}") for suffix in ("", ".noted"))
            killed = os.WIFSIGNALED(status)
            # Who was killed may have been so while it wrote them.
            figures = {} if killed else json.loads(noted.read_text())
            text = file.read_text() if file.exists() else ""  # it was killed before it could speak
            ended.append(Ended(killed, -1 if killed else os.WEXITSTATUS(status), text, **figures))
            file.unlink(missing_ok=True)
            noted.unlink(missing_ok=True)
        return ended


@contextmanager
def agents() -> Iterator[Agents]:
    """Have agents to start while the block runs."""
    command = [sys.executable, str(Path(__file__))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            yield Agents(server)
        finally:
            assert server.stdin is not None
            server.stdin.close()
            server.wait(60)


# -- in the process ------------------------------------------------------------------------------------------


class Dying:
    """Counts the changes of the disk, and dies before the one that was chosen (0: never)."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0

    def step(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Hear an audit event of the interpreter: each comes before what it is about."""
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            self.step()


def count_commits(dying: Dying) -> None:
    """Have the end of each transaction of SQLite count as a change of the disk: before it there is none."""

    class Connection(sqlite3.Connection):
        def commit(self) -> None:
            dying.step()
            super().commit()

        def __exit__(self, *arguments: Any) -> Any:
            dying.step()
            return super().__exit__(*arguments)

    connect = sqlite3.connect
    sqlite3.connect = lambda *a, **named: connect(*a, **{"factory": Connection, **named})


def jump(seconds: float) -> None:
    """Make it another time for this process; what the kernel notes of files stays as it is."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)

    class Jumped(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Jumped:
            return cls.fromtimestamp(time.time(), tz)

    datetime.datetime = Jumped  # type: ignore[misc]


def live(wanted: dict[str, Any], number: int) -> None:
    """Be one agent, to its end."""
    from shala_agent import cli, collect, sketch

    collect.RACY_NS = sketch.RACY_NS = -1  # what has just been written counts as at rest
    began = time.monotonic()
    said = f"{wanted['said']}-{number}"
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if wanted["clock"]:
        jump(wanted["clock"])
    dying = Dying(wanted["at"])
    count_commits(dying)
    sys.addaudithook(dying.hear)
    sys.argv = ["shala-agent", *wanted["arguments"]]
    code = 1
    try:
        cli.main()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        dying.at = 0
        sys.stdout.flush()
        noted = {"count": dying.count, "began": began, "ended": time.monotonic()}
        Path(f"{said}.noted").write_text(json.dumps(noted))
        os._exit(code)


def answer(document: object) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Fork agents until stdin ends."""
    from agent_school import QuietContainer
    from little_databases import LastingDatabases
    from shala_agent import chain, cli, collect, priority, restore  # noqa: F401 - imported once, here

    chain.Container = QuietContainer  # type: ignore[misc]
    restore.Container = lambda _, locks: LastingDatabases(locks.parents[1])  # type: ignore[misc]
    priority.yield_to_others = lambda: None  # there are hundreds of them
    collect.CHECKPOINT_FILES = 5  # often, so that there are more moments to die at
    for line in sys.stdin:
        wanted = json.loads(line)
        processes = []
        for number in range(wanted["times"]):
            if not (process := os.fork()):
                live(wanted, number)
            processes.append(process)
        answer(processes[0])
        answer([os.waitpid(process, 0)[1] for process in processes])


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
