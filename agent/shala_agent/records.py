"""Records: the record store of a school server. One SQLite file: its own changes, the segments of its zone, and
the records that they come to.

A change is applied and noted in the tail in one transaction; `cut` makes signed segments of the tail. What a
device has not yet cut was seen by nobody.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from nacl.signing import SigningKey

from shala_agent.failure import AgentError
from shala_agent.haves import Ranges
from shala_agent.merge import Name, State, Value, next_value, shown
from shala_agent.record_types import TYPES
from shala_agent.segment import (
    NONE,
    Entry,
    Segment,
    encode_entry,
    log_id,
    make_segment,
    read_segment,
    runs,
)
from shala_agent.state import Record
from shala_agent.store import Store

VERSION = 1
AT_ONCE = 1000  # changes in one transaction

_SCHEMA = f"""
BEGIN;
PRAGMA user_version = {VERSION};
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE zone (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, centre BLOB NOT NULL);
CREATE TABLE log (id INTEGER PRIMARY KEY, log BLOB UNIQUE NOT NULL);
CREATE TABLE fork (zone INTEGER, log BLOB, PRIMARY KEY (zone, log)) WITHOUT ROWID;
CREATE TABLE statement (id BLOB PRIMARY KEY, zone INTEGER, kind TEXT, "key" BLOB, segment BLOB, data BLOB);
CREATE INDEX statement_key ON statement (zone, "key");
CREATE INDEX statement_segment ON statement (zone, segment) WHERE segment IS NOT NULL;
CREATE TABLE segment (id BLOB PRIMARY KEY, zone INTEGER, "key" BLOB, epoch INTEGER, log BLOB, "first" INTEGER,
  "last" INTEGER, previous BLOB, size INTEGER, held TEXT, at_centre INTEGER NOT NULL DEFAULT 0, data BLOB);
CREATE INDEX segment_log ON segment (zone, log, "first");
CREATE INDEX segment_offer ON segment (zone) WHERE at_centre = 0;
CREATE TABLE record (zone INTEGER, type TEXT, key TEXT, value TEXT, log INTEGER, counter INTEGER, depth INTEGER,
  at INTEGER, schema INTEGER, rest BLOB, conflict INTEGER, waits TEXT,
  PRIMARY KEY (zone, type, key)) WITHOUT ROWID;
CREATE INDEX record_waits ON record (zone, waits) WHERE waits IS NOT NULL;
CREATE INDEX record_conflict ON record (zone) WHERE conflict = 1;
CREATE TABLE quarantine (zone INTEGER, log INTEGER, counter INTEGER, reason TEXT, entry BLOB,
  PRIMARY KEY (zone, log, counter)) WITHOUT ROWID;
CREATE TABLE tail (counter INTEGER PRIMARY KEY, entry BLOB NOT NULL);
COMMIT;
"""


class RecordsDamaged(AgentError):
    """The record store cannot be used."""


class Change(NamedTuple):
    """What a source says of a record: its value, or None for a delete."""

    type: str
    key: str
    value: Value | None


class Offer(NamedTuple):
    """A segment that the centre is not known to have."""

    id: bytes
    size: int


class _Sqlite:
    """shala_agent.state.Database over sqlite3."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        return self._db.execute(sql, parameters).fetchall()

    def many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        self._db.executemany(sql, rows)


class Records:
    """The record store in the file `path`. One process writes at a time: the caller holds a lock."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._db = _opened(path)
        except sqlite3.DatabaseError as error:
            raise RecordsDamaged(
                f"{path}: {error} (move it away: the zone's records come again with the next sync)"
            ) from None
        self._database = _Sqlite(self._db)
        self._store: Store | None = None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # -- who we are ------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store | None:
        """The zone that this server belongs to, None before it is enrolled."""
        if self._store is None and (name := self._meta("zone")) is not None:
            ((number, centre),) = self._database.query("SELECT id, centre FROM zone WHERE name = ?", (name,))
            self._store = Store(
                self._database, number, name, bytes(centre), bytes(self._meta("key") or b""), self._tail
            )
        return self._store

    @property
    def epoch(self) -> int:
        """The epoch in which own changes are counted; made at random, so that no other copy has the same."""
        return int(self._meta("epoch") or 0)

    @property
    def counter(self) -> int:
        """The counter of the newest own change; 0 before the first."""
        return int(self._meta("counter") or 0)

    def enrol(self, zone: str, centre: bytes, key: bytes, statements: Iterable[bytes] = ()) -> None:
        """Become a device of a zone. In another one than before the own records are written anew."""
        with self._transaction():
            before = self.store
            if before is None or before.name != zone:
                self._database.query(
                    "INSERT INTO zone (name, centre) VALUES (?, ?) ON CONFLICT (name) DO UPDATE"
                    " SET centre = excluded.centre",
                    (zone, centre),
                )
                self._set_meta("zone", zone)
                own = [] if before is None else list(self._own_values(before, log_id(key, self.epoch)))
                self._begin_epoch()
                self._set_meta("key", key)
                self._store = None
                if before is not None:
                    self._write(own, at=0)
            self._set_meta("key", key)
            if self.store is not None:
                for statement in statements:
                    self.store.state(statement)

    # -- own changes -----------------------------------------------------------------------------------------

    def write(self, changes: Iterable[Change], at: int) -> int:
        """Note what a source says, at the wall-clock second `at`; return how many records that changed.

        What is known already is no change, so a source may be read again and again.
        """
        changed = 0
        for page in _pages(changes):
            with self._transaction():
                changed += self._write(page, at)
        return changed

    def cut(self, key: SigningKey) -> int:
        """Make segments of the own changes since the last time; return how many segments."""
        store = self._require_store()
        number = 0
        with self._transaction():
            previous = self._newest_own()
            for first, entries in runs(self._tail_entries()):
                segment = make_segment(key, store.name, self.epoch, first, previous, entries)
                store.keep(segment)
                previous = segment.id
                number += 1
            self._database.query("DELETE FROM tail")
        return number

    # -- others' changes -------------------------------------------------------------------------------------

    def accept(self, data: bytes, *, from_centre: bool) -> str:
        """Verify a segment, keep it and apply it; return its standing. Raises SegmentRefused."""
        segment = read_segment(data)
        with self._transaction():
            store = self._require_store()
            if segment.log == self._own_log() and not store.has(segment.id):
                # Ours, and we do not know it: this is a copy of a disk, or an older state of one.
                self._renew(segment)
                return "applied"
            accepted = store.accept(segment)
            if from_centre:
                self.set_at_centre([segment.id])
        return accepted.standing

    def renew(self) -> None:
        """Go on in a new epoch: somebody else may be counting in the old one. Nothing written is lost."""
        with self._transaction():
            self._renew(None)

    def state(self, statements: Iterable[bytes]) -> int:
        """Keep statements of the centre; return how many are new. Raises StatementRefused."""
        with self._transaction():
            store = self._require_store()
            return sum(store.state(statement) is not None for statement in statements)

    def offers(self, limit: int) -> list[Offer]:
        """Return segments that the centre is not known to have, the oldest first."""
        store = self._require_store()
        rows = self._database.query(
            "SELECT id, size FROM segment WHERE zone = ? AND at_centre = 0 ORDER BY rowid LIMIT ?",
            (store.zone, limit),
        )
        return [Offer(bytes(id_), size) for id_, size in rows]

    def set_at_centre(self, ids: Iterable[bytes]) -> None:
        """Note that the centre has these segments on its disk."""
        self._database.many("UPDATE segment SET at_centre = 1 WHERE id = ?", [(id_,) for id_ in ids])

    def haves(self, log: bytes | None = None) -> Ranges:
        """Return which counters of a log (the own one) are in segments here."""
        store = self._require_store()
        return store.haves(log or self._own_log())

    # -- records ---------------------------------------------------------------------------------------------

    def record(self, type_: str, key: str) -> Record | None:
        """Return one record."""
        return self._require_store().tables.record(type_, key)

    def records(self, type_: str = "", *, everything: bool = False) -> Iterator[Record]:
        """Yield the records of a type, or all."""
        return self._require_store().tables.records(type_, everything=everything)

    # -- within ----------------------------------------------------------------------------------------------

    def _write(self, changes: Sequence[Change], at: int) -> int:
        store = self._require_store()
        log, counter = self._own_log(), self.counter
        states = store.tables.states({(change.type, change.key) for change in changes})
        entries: list[tuple[int, bytes]] = []
        for change in _last_of_each(changes).values():
            state = states.get((change.type, change.key))
            entry = _entry_of(change, state, log, at)
            if entry is not None:
                counter += 1
                entries.append((counter, encode_entry(entry)))
        if entries:
            store.tables.apply(log, entries)
            self._database.many("INSERT INTO tail (counter, entry) VALUES (?, ?)", entries)
            self._set_meta("counter", counter)
        return len(entries)

    def _own_values(self, store: Store, log: bytes) -> Iterator[Change]:
        for record in store.tables.records(everything=True):
            if record.log == log:
                yield Change(record.type, record.key, record.value)

    def _renew(self, foreign: Segment | None) -> None:
        """Begin a new epoch. `foreign` is a segment of the old one that somebody else has cut."""
        store, log = self._require_store(), self._own_log()
        newest = self._newest_own()
        base = self.counter - len(tail := self._tail_entries())
        self._database.query("DELETE FROM tail")
        self._begin_epoch()
        if foreign is not None:
            store.accept(foreign)
        # What was written in the old epoch and not cut has seen all that was, on our branch of it.
        seen = {store.label(log, newest): base} if base else {}
        entries = [
            (number, encode_entry(_with_context(entry, seen))) for number, (_, entry) in enumerate(tail, 1)
        ]
        self._database.many("INSERT INTO tail (counter, entry) VALUES (?, ?)", entries)
        self._set_meta("counter", len(entries))
        store.rebuild()

    def _tail_entries(self) -> list[tuple[int, bytes]]:
        rows = self._database.query("SELECT counter, entry FROM tail ORDER BY counter")
        return [(int(counter), bytes(entry)) for counter, entry in rows]

    def _tail(self) -> tuple[bytes, list[tuple[int, bytes]]] | None:
        return (self._own_log(), tail) if (tail := self._tail_entries()) else None

    def _begin_epoch(self) -> None:
        self._set_meta("epoch", secrets.randbits(53))
        self._set_meta("counter", 0)

    def _own_log(self) -> bytes:
        key = self._meta("key")
        if key is None:
            raise RecordsDamaged("this server is not enrolled in a zone (shala-agent enrol)")
        return log_id(bytes(key), self.epoch)

    def _newest_own(self) -> bytes:
        rows = self._database.query(
            'SELECT id FROM segment WHERE log = ? ORDER BY "first" DESC LIMIT 1', (self._own_log(),)
        )
        return bytes(rows[0][0]) if rows else NONE

    def _require_store(self) -> Store:
        if self.store is None:
            raise RecordsDamaged("this server is not enrolled in a zone (shala-agent enrol)")
        return self.store

    def _meta(self, name: str) -> Any:
        rows = self._database.query("SELECT value FROM meta WHERE name = ?", (name,))
        return rows[0][0] if rows else None

    def _set_meta(self, name: str, value: object) -> None:
        self._database.query(
            "INSERT INTO meta (name, value) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._store = None  # what it remembers may not be so
            raise


def _entry_of(change: Change, state: State | None, log: bytes, at: int) -> Entry | None:
    """Return the entry that a change makes, None if it says nothing new."""
    known = TYPES[change.type]
    current = shown(state, known.policy) if state is not None else None
    value = None
    if change.value is not None:
        value = next_value(current, change.value, known.policy)
    if value is None and (change.value is not None or current is None):
        return None
    depth, context = 1, None
    if state is not None:
        depth += max(one.depth for one in state.siblings)
        context = {name: counter for name, counter in state.seen.items() if name != log} or None
    return Entry(change.type, change.key, known.schema, depth, at, value, context)


def _with_context(raw: bytes, seen: dict[bytes, int]) -> Entry:
    """Return an entry that has seen more."""
    entry = msgspec.msgpack.decode(raw, type=Entry)
    return msgspec.structs.replace(entry, context={**(entry.context or {}), **seen} or None)


def _last_of_each(changes: Iterable[Change]) -> dict[Name, Change]:
    return {(change.type, change.key): change for change in changes}


def _pages(changes: Iterable[Change]) -> Iterator[list[Change]]:
    page: list[Change] = []
    for change in changes:
        page.append(change)
        if len(page) >= AT_ONCE:
            yield page
            page = []
    if page:
        yield page


def _opened(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"is of version {version}, this shala knows {VERSION}")
        if not version:
            db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db
