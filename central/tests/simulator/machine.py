"""Machine: processes that die at exact write points, on one virtual clock, with one source of chance.

Everything that the product takes from outside of itself - time, randomness, SQLite's connections, threads and
sockets - is replaced in `patched`, and nowhere else.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import anyio.to_thread
import httpx._client
import shala_agent.record_types
import shala_agent.records
import shala_agent.segment
import shala_agent.state
import shala_agent.store
import shala_agent.sync
import shala_central.arrivals
from shala_agent.merge import RecordType

_connect = sqlite3.connect
BEGIN = 1_700_000_000.0  # seconds since 1970, at which every run begins


class Crash(BaseException):
    """A process dies here: nothing that it would still do is done."""

    def __init__(self, process: Process) -> None:
        super().__init__(f"{process.name} dies")
        self.process = process


@dataclass(eq=False)
class Process:
    """A program on a disk, with a clock of its own."""

    name: str
    folder: Path
    types: Mapping[str, RecordType]
    skew: float = 0.0  # seconds by which its clock is wrong
    dies_after: int | None = None  # write points from now on
    dead: bool = False
    lives: int = 0
    connections: list[Connection] = field(default_factory=list)

    def point(self) -> None:
        """Pass a point at which something is about to be, or has just been, written."""
        self.check()
        if self.dies_after is not None:
            self.dies_after -= 1
            if self.dies_after < 0:
                self.dead = True
                raise Crash(self)

    def check(self) -> None:
        """Do nothing more when dead."""
        if self.dead:
            raise Crash(self)

    def bury(self) -> None:
        """Have what was on the disk when the process died, and only that, for the next one."""
        self.lives += 1
        after = self.folder.with_name(f"{self.folder.name.partition('~')[0]}~{self.lives}")
        copy_disk(self.folder, after)
        self.close()
        remove_disk(self.folder)
        self.folder = after
        self.dead, self.dies_after = False, None

    def close(self) -> None:
        """Close what is still open."""
        for connection in self.connections:
            sqlite3.Connection.close(connection)
        self.connections.clear()


def copy_disk(source: Path, target: Path) -> None:
    """Copy a disk as it is; SQLite makes its index of the log (-shm) anew."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*-shm"))


def remove_disk(folder: Path) -> None:
    """Destroy a disk."""
    for path in [path for path in _looks if path.parent == folder]:
        _looks.pop(path).close()
    if folder.exists():
        shutil.rmtree(folder)


class Connection(sqlite3.Connection):
    """A connection of a process that may die at its commits."""

    process: Process

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        if self.process.dead:
            if sql == "ROLLBACK":
                return self.cursor()
            raise Crash(self.process)
        at_once = not self.in_transaction and not sql.startswith(("SELECT", "BEGIN", "PRAGMA"))
        if sql != "COMMIT" and not at_once:
            return super().execute(sql, parameters)
        self.process.point()
        found = super().execute(sql, parameters)
        self.process.point()
        return found

    def executemany(self, sql: str, parameters: Any) -> sqlite3.Cursor:
        self.process.check()
        return super().executemany(sql, parameters)

    def commit(self) -> None:
        if not self.in_transaction:
            return
        writes = self.total_changes != getattr(self, "_seen", -1)
        if writes:
            self.process.point()
        super().commit()
        self._seen = self.total_changes
        if writes:
            self.process.point()

    def rollback(self) -> None:
        if not self.process.dead:
            super().rollback()

    def close(self) -> None:
        if self in self.process.connections and not self.process.dead:
            self.process.connections.remove(self)
            super().close()


@dataclass
class Machine:
    """The clock, the chance, and which process runs."""

    seed: int
    now: float = BEGIN
    _running: list[Process] = field(default_factory=list)
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"product {self.seed}")

    @contextlib.contextmanager
    def running(self, process: Process) -> Iterator[None]:
        """Be this process for a while."""
        self._enter(process)
        try:
            yield
        finally:
            self._running.pop()
            if self._running:
                _install(self._running[-1])

    def _enter(self, process: Process) -> None:
        self._running.append(process)
        _install(process)

    def point(self) -> None:
        """Pass a point at which who runs may die."""
        if self._running:
            self._running[-1].point()

    def runs(self, process: Process) -> bool:
        """Return whether a process is at work, maybe waiting for another one."""
        return process in self._running

    # -- what the product sees -------------------------------------------------------------------------------

    def time(self) -> float:
        return self.now + (self._running[-1].skew if self._running else 0.0)

    def monotonic(self) -> float:
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def connect(self, path: Any, *arguments: Any, **more: Any) -> sqlite3.Connection:
        if not self._running:
            return _connect(path, *arguments, **more)
        connection = _connect(path, *arguments, **{**more, "factory": Connection})
        connection.process = self._running[-1]
        connection.process.connections.append(connection)
        return connection


@dataclass(frozen=True)
class Sizes:
    """Limits of the product, made small, so that a small run meets them."""

    page: int  # items in one answer
    offers: int
    part: int  # bytes of one upload
    entries: int  # in one segment
    at_once: int  # changes in one transaction, keys in one query


@contextlib.contextmanager
def patched(machine: Machine, sizes: Sizes, transport: Callable[..., httpx.BaseTransport]) -> Iterator[None]:
    """Replace everything by which the world outside could reach into a run."""
    chance = machine.chance

    async def inline(work: Callable[..., Any], *arguments: Any, **_more: Any) -> Any:
        return work(*arguments)

    patches = [
        mock.patch("time.time", machine.time),
        mock.patch("time.monotonic", machine.monotonic),
        mock.patch("time.sleep", machine.sleep),
        mock.patch("shala_agent.sync.now", return_value="then"),
        mock.patch("secrets.randbits", chance.getrandbits),
        mock.patch("secrets.token_bytes", chance.randbytes),
        mock.patch("secrets.token_hex", lambda size: chance.randbytes(size).hex()),
        mock.patch("sqlite3.connect", machine.connect),
        mock.patch("sqlite3.dbapi2.connect", machine.connect),
        mock.patch.object(anyio.to_thread, "run_sync", inline),
        mock.patch.object(httpx._client, "HTTPTransport", transport),
        mock.patch.object(shala_central.arrivals, "MAX_ITEMS", sizes.page),
        mock.patch.object(shala_agent.sync, "MAX_OFFERS", sizes.offers),
        mock.patch.object(shala_agent.sync, "PART", sizes.part),
        mock.patch.object(shala_agent.sync, "SMALL_PART", max(1, sizes.part // 4)),
        mock.patch.object(shala_agent.segment, "MAX_ENTRIES", sizes.entries),
        mock.patch.object(shala_agent.records, "AT_ONCE", sizes.at_once),
        mock.patch.object(shala_agent.state, "AT_ONCE", sizes.at_once),
        # Put in place by `running`; here only so that they are put back.
        mock.patch.object(shala_agent.store, "TYPES", shala_agent.store.TYPES),
        mock.patch.object(shala_agent.records, "TYPES", shala_agent.records.TYPES),
        mock.patch.object(shala_agent.record_types, "TYPES", shala_agent.record_types.TYPES),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def _install(process: Process) -> None:
    """Have the software of a process know what its version knows."""
    shala_agent.store.TYPES = process.types
    shala_agent.records.TYPES = process.types
    shala_agent.record_types.TYPES = process.types


_looks: dict[Path, sqlite3.Connection] = {}


def look(path: Path) -> sqlite3.Connection:
    """Return a connection by which a database is read from outside of every process."""
    if path not in _looks:
        _looks[path] = _connect(path, isolation_level=None)
    return _looks[path]


def version(path: Path) -> tuple[Path, int]:
    """Return what is another one whenever a database has changed."""
    return path, int(look(path).execute("PRAGMA data_version").fetchone()[0])


def stop_looking() -> None:
    """Close what was looked at."""
    for connection in _looks.values():
        connection.close()
    _looks.clear()
