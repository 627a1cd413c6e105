"""Rows: what proves that a row of the archive's tables is what was written.

SQLite sees whether a file is a database, and not whether a bit in one of its rows has changed. So each row of
the history, of what is packed and of what is encrypted has a sum of its other columns. NULL is one that an
older shala has written.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

Row = dict[str, Any]
# The tables in history.sqlite, cold.sqlite and encrypted.sqlite.
COLLECTION, PACKED, ENCRYPTED = "collection", "cold", "content"
VERSIONS = {COLLECTION: 2, PACKED: 2, ENCRYPTED: 2}
KEYS = {COLLECTION: ("id",), PACKED: ("pool", "sha256"), ENCRYPTED: ("server", "item", "sha256")}
# An id is only an order, and set by SQLite; a height is only a hint, and changes.
_NOT_IN_SUM = {"id", "height", "sum"}
_BYTES = 8
_AT_ONCE = 1000  # rows whose sums are written together: nobody else writes meanwhile
_MAX_NAMED = 3


def sum_of(*values: object) -> bytes:
    """Return the sum of what a row holds, in the order of the columns."""
    return hashlib.blake2b(msgspec.msgpack.encode(values), digest_size=_BYTES).digest()


def sum_of_row(row: Row) -> bytes:
    """Return what the sum of a row should be; b"" where a text is none any more."""
    try:
        return sum_of(*(value for name, value in row.items() if name not in _NOT_IN_SUM))
    except UnicodeEncodeError:
        return b""


def is_whole(row: Row) -> bool:
    """Return whether a row is what was written; one without a sum is believed if it can be read."""
    if row.get("sum") is not None:
        return bool(row["sum"] == sum_of_row(row))
    if "record" not in row:
        return True
    from shala_central.history import is_readable  # which stands on this module

    return is_readable(row["record"], row["changes"])


def read(db: sqlite3.Connection, where: str = "", *values: object) -> Iterator[Row]:
    """Yield rows of the table with sums that a database has, if it has one."""
    if not (table := table_in(db)):
        return
    cursor = db.execute(f"SELECT * FROM {table} {where}", values)  # noqa: S608
    names = [column[0] for column in cursor.description]
    for row in cursor:
        yield dict(zip(names, row, strict=True))


def table_in(db: sqlite3.Connection) -> str:
    """Return which table with sums a database has, or ""."""
    names = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return next((table for table in VERSIONS if table in names), "")


def problem_in(db: sqlite3.Connection) -> str:
    """Return how many rows of a database are not what was written, and the first of them, or ""."""
    db.text_factory = text
    names, count = [], 0
    for row in read(db):
        if not is_whole(row):
            count += 1
            names += [name_of(row)] if count <= _MAX_NAMED else []
    if not count:
        return ""
    more = f" and {count - _MAX_NAMED} more" if count > _MAX_NAMED else ""
    return f"{count} {'row is' if count == 1 else 'rows are'} not what was written ({', '.join(names)}{more})"


def name_of(row: Row) -> str:
    """Return what a row is called; what it says may be damaged."""
    if "record" in row:
        return f"collection {_shown(row['sequence'])} of {_shown(row['server'])}"
    table = PACKED if "pool" in row else ENCRYPTED
    return "/".join(_shown(row[column]) for column in KEYS[table])


def add_column(db: sqlite3.Connection) -> None:
    """Have the table of an older shala the column for the sums, in the transaction that then writes."""
    table = table_in(db)
    if not table or _has_sums(db, table):
        return
    if not db.in_transaction:
        db.execute("BEGIN IMMEDIATE")
    if not _has_sums(db, table):  # somebody else may just have added it
        db.execute(f"ALTER TABLE {table} ADD COLUMN sum BLOB")
        # An older shala would change rows and leave their sums.
        db.execute(f"PRAGMA user_version = {VERSIONS[table]}")


def seal(path: Path) -> None:
    """Write the sums of the rows that an older shala has written: as they are now, but for damaged ones."""
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as db:
        if not (table := table_in(db)):
            return
        db.text_factory = text
        db.execute("PRAGMA secure_delete = ON")
        with db:
            add_column(db)
        key = ", ".join(KEYS[table])
        todo = db.execute(f"SELECT {key} FROM {table} WHERE sum IS NULL").fetchall()  # noqa: S608
        here = " AND ".join(f"{column} = ?" for column in KEYS[table])
        for first in range(0, len(todo), _AT_ONCE):
            with db:
                db.execute("BEGIN IMMEDIATE")
                for values in todo[first : first + _AT_ONCE]:
                    for row in filter(is_whole, list(read(db, f"WHERE sum IS NULL AND {here}", *values))):
                        db.execute(
                            f"UPDATE {table} SET sum = ? WHERE {here}",  # noqa: S608
                            (sum_of_row(row), *values),
                        )


def _has_sums(db: sqlite3.Connection, table: str) -> bool:
    return any(column[1] == "sum" for column in db.execute(f"PRAGMA table_info({table})"))


def text(raw: bytes) -> str:
    """Read also a text of which a bit has changed (sqlite3's text_factory)."""
    return raw.decode(errors="surrogateescape")


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return str(value) if str(value).isprintable() else ascii(value)
