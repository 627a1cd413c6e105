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
from shala_central.copies import connect, is_damage, made, structure_problem_of
from shala_central.history import History, HistoryError
from shala_central.rows import Row

_LAST = 2**63 - 1  # the greatest id that SQLite knows
_Source = tuple[str, sqlite3.Connection]  # when a copy was made, and the copy


class MendedRows(msgspec.Struct):
    """The rows that were put back, when the newest copy of which was made, the rows that are left, and those
    that were given up.
    """

    back: list[Row] = msgspec.field(default_factory=list)
    copied: str = ""
    left: list[Row] = msgspec.field(default_factory=list)
    given_up: list[Row] = msgspec.field(default_factory=list)


def mend_rows(table: Path, copies: Sequence[Path], *, give_up: bool = False) -> MendedRows:
    """Take each damaged row out of the newest copy that has it whole, and make the indexes anew.

    With `give_up` the rows that no copy has whole are removed. The copies are only read.

    Raises sqlite3.DatabaseError; then nothing has changed.
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
            sources = _sources(copies if damaged else (), opened)
            found: list[list[Row]] = []
            for row in damaged:
                copied, taken = _taken(db, sources, row)
                if taken:
                    done.copied = max(done.copied, copied)
                    found.append(taken)
                elif give_up:
                    done.given_up.append(row)
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
                _merge(History.within(db, table), done, merged)
    return done


def lost_rows(table: Path, copies: Sequence[Path]) -> list[Row] | None:
    """Return the damaged rows of a table where that is all that is wrong, and no copy has one of them whole.

    None where `repair` has something to mend. Raises CentralError as problem_of.
    """
    if structure_problem_of(table):
        return None
    try:
        with contextlib.closing(connect(table)) as db, contextlib.ExitStack() as opened:
            db.text_factory = rows.text
            damaged = [row for row in rows.read(db) if not rows.is_whole(row)]
            sources = _sources(copies, opened)
            if any(_taken(db, sources, row)[1] for row in damaged):
                return None
            return damaged if db.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok" else None
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return None
        raise


def _sources(copies: Sequence[Path], opened: contextlib.ExitStack) -> list[_Source]:
    """Open the copies that are tables. Nothing is written beside them: one may be on another's disk."""
    found = []
    for copy in copies:
        with contextlib.suppress(sqlite3.DatabaseError):
            uri = f"{copy.resolve().as_uri()}?mode=ro&immutable=1"
            source = opened.enter_context(contextlib.closing(sqlite3.connect(uri, uri=True)))
            source.text_factory = rows.text
            if source.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok":
                found.append((made(copy), source))
    return found


def _taken(db: sqlite3.Connection, sources: Sequence[_Source], row: Row) -> tuple[str, list[Row]]:
    """Return when the newest copy was made that has a damaged row whole, and what stands there."""
    for copied, source in sources:
        if taken := _as_it_was(db, source, row):
            return copied, taken
    return "", []


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


def _merge(history: History, done: MendedRows, merged: set[int]) -> None:
    """Merge again what was merged before: the contents that it alone needs may be gone."""
    versions = [one for name in {row["server"] for row in done.back} for one in history.versions(name)]
    for version in versions:
        if version.id in merged:
            with contextlib.suppress(HistoryError):  # the one before is damaged, and is left
                history.merge(version)
    done.back = [row for row in done.back if row["id"] not in merged]
