"""Copies: where the copies of the archive's tables stand, and which table is damaged or gone.

A table that is gone is never made anew in silence where there is a copy of it: an empty one would pass for
what the archive knows, and content be removed on its word.
"""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
from collections.abc import Callable
from pathlib import Path

from shala_central import rows
from shala_central.failure import CentralError

HISTORY, COLD, ENCRYPTED = "history.sqlite", "cold.sqlite", "encrypted.sqlite"
TABLES = (HISTORY, COLD, ENCRYPTED)
# Never empty once they hold something: prune keeps the newest of each year. What is packed may all be
# unpacked again.
NEVER_EMPTY = (HISTORY, ENCRYPTED)
FOLDER = "backup"
RECORDS = "records"  # beside the copy of the history: the newest record of each server
BEFORE = ".1"  # the copy before the last good one
_WAY_OF_ROWS = "shala archive repair puts back what a copy has whole, --give-up forgets what none has"
BUSY_SECONDS = 60  # to wait for another process that writes a table
# These say nothing of the table: somebody else is at work in it, or the disk or a permission is in the way.
_IN_THE_WAY = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_IOERR,
)
_UNREADABLE = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)


def copies_of(table: Path) -> list[Path]:
    """Return the copies of a table that are there, the newest first; nothing says that they are whole."""
    folder = table.parent / FOLDER
    return [path for end in ("", BEFORE) if (path := folder / f"{table.name}{end}").exists()]


def lost(table: Path) -> str:
    """Return why a table must not be made anew, and what brings it back; "" if it is there or never was."""
    return "" if _is_there(table) or not copies_of(table) else f"{table} is gone ({_way(table)})"


def connect(table: Path, *, threads: bool = False) -> sqlite3.Connection:
    """Open a table, which is made where it never was; by `threads` that take turns."""
    # One that was there a moment ago is not made, either: it may be put back just now.
    mode = "rw" if _is_there(table) else "rwc"
    uri = f"{table.resolve().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, check_same_thread=not threads)


def damaged(hidden: Path) -> dict[str, str]:
    """Return {name: the problem} of the tables that are damaged, or gone although there is a copy.

    Each is read through. Raises CentralError where that cannot be done now.
    """
    found = {name: damage_of(hidden / name) for name in TABLES}
    return {name: problem for name, problem in found.items() if problem}


def damage_of(table: Path) -> str:
    """Return why a table is none any more and what brings it back, or "". Raises CentralError as damaged."""
    copies = copies_of(table)
    problem = problem_of(table) if _is_there(table) or copies else ""
    if problem and not structure_problem_of(table):
        return f"{problem} ({_WAY_OF_ROWS})"
    if not problem and table.name in NEVER_EMPTY and copies and _has_rows(copies[0]) and not _has_rows(table):
        problem = "is empty"
    return f"{problem} ({_way(table)})" if problem else ""


def problem_of(table: Path) -> str:
    """Return why a file is no table any more, or which rows are not what was written, or ""; reads all of it.

    Raises CentralError where that cannot be done now.
    """
    return _problem_of(table, lambda db: _flaw(db, "quick") or rows.problem_in(db) or _flaw(db, "integrity"))


def structure_problem_of(table: Path) -> str:
    """Return why a file is no table any more, or ""; of what is in its rows it says nothing.

    Raises CentralError as problem_of.
    """
    return _problem_of(table, lambda db: _flaw(db, "quick"))


def _problem_of(table: Path, look: Callable[[sqlite3.Connection], str]) -> str:
    if not _is_there(table):
        return "is gone"
    try:
        with contextlib.closing(connect(table)) as opened:
            problem = look(opened)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise CentralError(
                f"{table} cannot be looked at now: {error} (is another run at work in it, or the disk full?)"
            ) from None
        problem = str(error)
    return f"is damaged: {problem}" if problem else ""


def _flaw(db: sqlite3.Connection, check: str) -> str:
    """Return what SQLite finds: `quick` looks at the structure alone, `integrity` at the indexes too."""
    answer = db.execute(f"PRAGMA {check}_check(1)").fetchone()[0]
    return "" if answer == "ok" else str(answer).replace("\n", " ")


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Return whether what SQLite says is that the table itself is none any more."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code in _UNREADABLE or code & 0xFF not in _IN_THE_WAY


def _has_rows(table: Path) -> bool:
    """Return whether anything is in a table; of a damaged one that cannot be told, and is not."""
    if not _is_there(table):  # to look would make it
        return False
    try:
        with contextlib.closing(connect(table)) as opened:
            names = [row[0] for row in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return any(opened.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone() for name in names)  # noqa: S608
    except sqlite3.DatabaseError:
        return False


def made(copy: Path) -> str:
    """Return when a copy was made, ISO 8601 in UTC."""
    return datetime.datetime.fromtimestamp(copy.stat().st_mtime, datetime.UTC).isoformat(timespec="seconds")


def _is_there(table: Path) -> bool:
    try:
        return table.stat().st_size > 0  # a file without bytes is a table without rows to SQLite
    except FileNotFoundError:
        return False


def _way(table: Path) -> str:
    if copies := copies_of(table):
        return f"shala archive repair puts back the copy of {made(copies[0])[:16]}"
    return "there is no copy of it in .shala/backup: bring one there, or move the file away and lose it"
