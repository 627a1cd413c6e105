"""Write-ahead log: how a SQLite file is switched to it, and made, when several open it at once."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 30.0  # that a turn is waited for: whoever can read the folder can keep it for ever


def switch(db: sqlite3.Connection, path: Path) -> None:
    """Have the database at `path` keep a write-ahead log: the first thing that a connection does.

    Two that switch a new file together are told "database is locked" at once, whatever their timeout is.
    """
    if not _keeps_one(db):
        with in_turn(path.parent):
            db.execute("PRAGMA journal_mode = WAL")


def _keeps_one(db: sqlite3.Connection) -> bool:
    try:
        return bool(db.execute("PRAGMA journal_mode").fetchone()[0] == "wal")
    except sqlite3.OperationalError:
        return False  # somebody switches it just now; what else is wrong the switch says


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Keep all others out who want the same of this folder, until the block ends. The kernel frees it.

    After `SECONDS` it goes on without: SQLite keeps the file whole then too, and may say that it is locked.
    """
    # Of the folder and no file in it: closing the database's own would take SQLite's locks off it.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + SECONDS
        while not _has_turn(descriptor) and time.monotonic() < until:
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _has_turn(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
