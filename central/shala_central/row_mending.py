"""Row mending: put back single rows of a table that are not what was written, and nothing else.

What was written since a copy was made stays: the copy gives the damaged rows alone.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from shala_central import rows
from shala_central.copies import connect, made, structure_problem_of
from shala_central.history import History
from shala_central.rows import Row

_LAST = 2**63 - 1  # the greatest id that SQLite knows


class MendedRows(msgspec.Struct):
    """The rows that were put back, when the newest copy of which was made, and the rows that are left."""

    back: list[Row] = msgspec.field(default_factory=list)
    copied: str = ""
    left: list[Row] = msgspec.field(default_factory=list)


def mend_rows(table: Path, copies: Sequence[Path]) -> MendedRows:
    """Take each damaged row out of the newest copy that has it whole, and make the indexes anew.

    Raises sqlite3.DatabaseError, and CentralError as problem_of; then nothing has changed.
    """
    done, merged = MendedRows(), set[int]()
    with contextlib.closing(connect(table)) as db, contextlib.ExitStack() as opened:
        db.text_factory = rows.text
        db.execute("PRAGMA secure_delete = ON")
        with db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("REINDEX")  # an entry that does not lead to its row would stop what follows
            rows.add_column(db)
            damaged = [row for row in rows.read(db) if not rows.is_whole(row)]
            whole = [copy for copy in copies if not structure_problem_of(copy)] if damaged else []
            sources = [(made(copy), opened.enter_context(_opened(copy))) for copy in whole]
            found: list[list[Row]] = []
            for row in damaged:
                for copied, source in sources:
                    if taken := _as_it_was(db, source, row):
                        done.copied = max(done.copied, copied)
                        found.append(taken)
                        break
                else:
                    done.left.append(row)
                    continue
                _delete(db, row)
            for row in (row for taken in found for row in taken):
                if _insert(db, row):
                    done.back.append(row)
                    if row.get("id") not in {None, *(one.get("id") for one in damaged)}:
                        merged.add(row["id"])
    if merged:
        _merge(table, done, merged)
    return done


def _opened(copy: Path) -> contextlib.closing[sqlite3.Connection]:
    source = connect(copy)
    source.text_factory = rows.text
    return contextlib.closing(source)


def _as_it_was(db: sqlite3.Connection, source: sqlite3.Connection, row: Row) -> list[Row]:
    """Return what stands in a copy in the place of a damaged row, [] if it has none, or not whole."""
    own = next((one for one in _candidates(source, row) if rows.is_whole(one)), None)
    if own is None or "record" not in row:
        return [own] if own is not None else []
    # What was merged into this row since the copy belongs to the way back again.
    good = (one["id"] for one in rows.read(db, "WHERE id > ? ORDER BY id", row["id"]) if _is_of(one, own))
    chain = list(
        rows.read(
            source,
            "NOT INDEXED WHERE server = ? AND id >= ? AND id < ? ORDER BY id",
            *(own["server"], row["id"], next(good, _LAST)),
        )
    )
    return chain if all(map(rows.is_whole, chain)) else []


def _is_of(row: Row, own: Row) -> bool:
    return bool(row["server"] == own["server"]) and rows.is_whole(row)


def _candidates(source: sqlite3.Connection, row: Row) -> Iterator[Row]:
    """Yield the rows of a copy that may be a damaged one as it was: a bit of its name may have changed."""
    if "record" in row:  # an id may have been given away anew
        for one in rows.read(source, "WHERE id = ?", row["id"]):
            same = (one["server"], one["pulled"]) == (row["server"], row["pulled"])
            if same or rows.sum_of_row(one) == row["sum"]:
                yield one
        return
    key = rows.KEYS[rows.table_in(source)]
    with contextlib.suppress(UnicodeEncodeError):
        here = " AND ".join(f"{column} = ?" for column in key)
        yield from rows.read(source, f"WHERE {here}", *(row[column] for column in key))
    yield from (one for one in rows.read(source) if rows.sum_of_row(one) == row["sum"])


def _delete(db: sqlite3.Connection, row: Row) -> None:
    table = rows.table_in(db)
    # As bytes: a text of which a bit has changed may be none any more.
    here = " AND ".join(f"CAST({column} AS BLOB) IS CAST(? AS BLOB)" for column in rows.KEYS[table])
    values = (row[column] for column in rows.KEYS[table])
    found = [one.encode(errors="surrogateescape") if isinstance(one, str) else one for one in values]
    db.execute(f"DELETE FROM {table} WHERE {here}", found)  # noqa: S608


def _insert(db: sqlite3.Connection, row: Row) -> bool:
    """Insert a row of a copy unless it is there; return whether it was not."""
    row["sum"] = rows.sum_of_row(row)
    marks = ", ".join("?" * len(row))
    query = f"INSERT OR IGNORE INTO {rows.table_in(db)} ({', '.join(row)}) VALUES ({marks})"  # noqa: S608
    return db.execute(query, tuple(row.values())).rowcount > 0


def _merge(table: Path, done: MendedRows, merged: set[int]) -> None:
    """Merge again what was merged before: the contents that it alone needs may be gone."""
    with contextlib.closing(History(table)) as history:
        for server in {row["server"] for row in done.back}:
            history.forget([version for version in history.versions(server) if version.id in merged])
    done.back = [row for row in done.back if row["id"] not in merged]
