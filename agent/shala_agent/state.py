"""State: the records of a zone as tables, kept up with every segment that arrives. Used by server and centre.

What the tables hold is a pure function of the set of segments (shala_agent.merge): they can be made anew from
them at any time. Written in the SQL that SQLite and PostgreSQL share, with `?` for a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from shala_agent.merge import (
    EMPTY,
    Name,
    RecordType,
    Sibling,
    State,
    Value,
    Vector,
    add,
    is_conflict,
    parsed,
    shown,
)
from shala_agent.segment import Entry

AT_ONCE = 500  # keys in one query

_COLUMNS = "type, key, value, log, counter, depth, at, schema, rest, conflict, waits"
_FIND = "SELECT {columns} FROM record WHERE zone = ? AND type = ? AND key IN ({marks})"
_PUT = (
    f"INSERT INTO record (zone, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
    " ON CONFLICT (zone, type, key) DO UPDATE SET value = excluded.value, log = excluded.log,"
    " counter = excluded.counter, depth = excluded.depth, at = excluded.at, schema = excluded.schema,"
    " rest = excluded.rest, conflict = excluded.conflict, waits = excluded.waits"
)
_QUARANTINE = (
    "INSERT INTO quarantine (zone, log, counter, reason, entry) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (zone, log, counter) DO NOTHING"
)


class Database(Protocol):
    """What both SQLite and SQLAlchemy's connections can do for us, inside a transaction of the caller."""

    def query(self, sql: str, parameters: Sequence[object] = ()) -> Sequence[Sequence[Any]]:
        """Run one statement and return its rows, if it has any."""

    def many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """Run a statement once for each row of parameters."""


class _Rest(msgspec.Struct, array_like=True):
    """What a record's row holds only when more than one entry counts."""

    seen: dict[bytes, int]
    siblings: list[Sibling]


@dataclass(slots=True)
class Applied:
    """What came of some entries: how many were applied, are of unknown types, and could not be believed."""

    applied: int = 0
    unknown: int = 0
    quarantined: int = 0
    redacted: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it is shown."""

    type: str
    key: str
    value: Value | None
    log: bytes
    counter: int
    at: int
    schema: int
    conflict: bool
    waits: str | None
    siblings: tuple[Sibling, ...] = ()


@dataclass(slots=True)
class _Row:
    state: State
    waits: str | None = None
    is_new: bool = True
    changed: bool = False


_rest_encoder = msgspec.msgpack.Encoder()
_rest_decoder = msgspec.msgpack.Decoder(_Rest)
_entry_decoder = msgspec.msgpack.Decoder(Entry)
# Types and keys are names: what no terminal, no CSV and no database can hold has no place in one.
_UNUSABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def _no_clip(context: Vector) -> Vector:
    return context


@dataclass(slots=True)
class Tables:
    """The records of one zone in a database. `types` are the known ones, by name."""

    database: Database
    zone: int
    types: Mapping[str, RecordType]
    needed: frozenset[str]
    _logs: dict[bytes, int] = field(default_factory=dict)
    _log_names: dict[int, bytes] = field(default_factory=dict)

    def apply(
        self,
        log: bytes,
        entries: Iterable[tuple[int, bytes]],
        clip: Callable[[Vector], Vector] = _no_clip,
    ) -> Applied:
        """Apply (counter, bytes) of entries of one log, in any order, any number of times.

        One that cannot be believed is quarantined alone. `clip` forgets of a context what no longer is true:
        counters of a log that has forked since.
        """
        result = Applied()
        named: dict[Name, list[tuple[int, Entry]]] = {}
        refused: list[tuple[int, str, bytes]] = []
        for counter, raw in entries:
            try:
                entry = _entry_decoder.decode(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                refused.append((counter, f"is not readable: {error}", raw))
                continue
            known = self.types.get(entry.type)
            if known is None:
                result.unknown += 1
                continue
            if reason := _problem(entry, known):
                refused.append((counter, reason, raw))
                continue
            named.setdefault((entry.type, entry.key), []).append((counter, entry))
            result.applied += 1
        if refused:
            number = self.log_number(log)
            rows = [(self.zone, number, counter, reason, raw) for counter, reason, raw in refused]
            self.database.many(_QUARANTINE, rows)
            result.quarantined = len(refused)
        self._merge(log, named, clip)
        return result

    def states(self, names: Iterable[Name]) -> dict[Name, State]:
        """Return the states of those records that are there."""
        return {name: row.state for name, row in self._find(names).items()}

    def clear(self) -> None:
        """Forget all records, to make them anew from the segments."""
        for table in ("record", "quarantine"):
            self.database.query(f"DELETE FROM {table} WHERE zone = ?", (self.zone,))  # noqa: S608 - constants

    def log_number(self, log: bytes) -> int:
        """Return the number by which the tables name a log; a log that is not known gets one."""
        if (number := self._logs.get(log)) is not None:
            return number
        rows = self.database.query("SELECT id FROM log WHERE log = ?", (log,))
        if not rows:
            self.database.query("INSERT INTO log (log) VALUES (?) ON CONFLICT (log) DO NOTHING", (log,))
            rows = self.database.query("SELECT id FROM log WHERE log = ?", (log,))
        number = self._logs[log] = int(rows[0][0])
        return number

    def record(self, type_: str, key: str) -> Record | None:
        """Return one record with all its siblings, None if it was never there."""
        row = self._find([(type_, key)]).get((type_, key))
        if row is None:
            return None
        policy = self.types[type_].policy
        first, value = row.state.siblings[0], shown(row.state, policy)
        return Record(
            type_,
            key,
            None if value is None else parsed(value),
            first.log,
            first.counter,
            first.at,
            first.schema,
            is_conflict(row.state, policy),
            row.waits,
            row.state.siblings,
        )

    def records(self, type_: str = "", *, everything: bool = False, user: str = "") -> Iterator[Record]:
        """Yield the records of a type (or all) in the order of keys, without deleted and waiting ones unless
        `everything` is wanted; only those of a user where one is named. May be cut short; holds a page at a
        time.
        """
        last = ("", "")
        hidden = "" if everything else " AND value IS NOT NULL AND waits IS NULL"
        only = " AND type = ?" if type_ else ""
        only += " AND key >= ? AND key < ?" if user else ""
        # The letter after the slash: all keys that begin with "<user>/" lie before it.
        bounds = (f"{user}/", f"{user}0") if user else ()
        query = (
            f"SELECT {_COLUMNS} FROM record WHERE zone = ? AND (type, key) > (?, ?){only}{hidden}"  # noqa: S608 - constants
            " ORDER BY type, key LIMIT ?"
        )
        while True:
            parameters = (self.zone, *last, *((type_,) if type_ else ()), *bounds, AT_ONCE)
            rows = self.database.query(query, parameters)
            for row in rows:
                value = None if row[2] is None else parsed(row[2])
                log = self._log_name(row[3])
                yield Record(row[0], row[1], value, log, row[4], row[6], row[7], bool(row[9]), row[10])
            if len(rows) < AT_ONCE:
                return
            last = (rows[-1][0], rows[-1][1])

    # -- merging ---------------------------------------------------------------------------------------------

    def _merge(
        self, log: bytes, named: Mapping[Name, Sequence[tuple[int, Entry]]], clip: Callable[[Vector], Vector]
    ) -> None:
        found = self._find(named)
        for name, entries in named.items():
            row = found.get(name)
            if row is None:
                row = found[name] = _Row(EMPTY)
            else:
                row.is_new = False
            for counter, entry in entries:
                sibling = Sibling(log, counter, entry.depth, entry.at, entry.schema, entry.value)
                context = clip(entry.context) if entry.context else {}
                state = add(row.state, sibling, context)
                row.changed = row.changed or state is not row.state
                row.state = state
        changed = {name: row for name, row in found.items() if row.changed}
        self._set_waits(changed)
        number = self.log_number(log) if changed else 0
        rows = [self._encoded(name, row, log, number) for name, row in changed.items()]
        if rows:
            self.database.many(_PUT, rows)
        self._wake(name for name, row in changed.items() if row.is_new)

    def _set_waits(self, rows: Mapping[Name, _Row]) -> None:
        """Note for each row which record it waits for, if that is not there."""
        needed: dict[Name, list[_Row]] = {}
        for (type_, key), row in rows.items():
            known = self.types[type_]
            row.waits = None
            if known.needs is not None:
                name = known.needs(key)
                needed.setdefault(name, []).append(row)
                row.waits = f"{name[0]}/{name[1]}"
        there = self._existing([name for name in needed if name not in rows])
        for name, waiting in needed.items():
            if name in rows or name in there:
                for row in waiting:
                    row.waits = None

    def _wake(self, names: Iterable[Name]) -> None:
        """Show the records that waited for these."""
        parents = [f"{type_}/{key}" for type_, key in names if self._is_needed(type_)]
        for some in _pages(parents):
            marks = _marks(some)
            self.database.query(
                f"UPDATE record SET waits = NULL WHERE zone = ? AND waits IN ({marks})",  # noqa: S608 - marks
                (self.zone, *some),
            )

    def _is_needed(self, type_: str) -> bool:
        return type_ in self.needed

    def _existing(self, names: Sequence[Name]) -> set[Name]:
        found: set[Name] = set()
        for type_, keys in _by_type(names).items():
            for some in _pages(keys):
                query = _FIND.format(columns="key", marks=_marks(some))
                found |= {(type_, row[0]) for row in self.database.query(query, (self.zone, type_, *some))}
        return found

    def _find(self, names: Iterable[Name]) -> dict[Name, _Row]:
        found: dict[Name, _Row] = {}
        for type_, keys in _by_type(names).items():
            for some in _pages(keys):
                query = _FIND.format(columns=_COLUMNS, marks=_marks(some))
                for row in self.database.query(query, (self.zone, type_, *some)):
                    found[type_, row[1]] = _Row(self._decoded(row), row[10])
        return found

    def _encoded(self, name: Name, row: _Row, log: bytes, number: int) -> tuple[object, ...]:
        type_, key = name
        state, policy = row.state, self.types[type_].policy
        first = state.siblings[0]
        simple = (
            len(state.siblings) == 1 and len(state.seen) == 1 and state.seen.get(first.log) == first.counter
        )
        value = first.value if len(state.siblings) == 1 else shown(state, policy)
        return (
            self.zone,
            type_,
            key,
            value,
            number if first.log == log else self.log_number(first.log),
            first.counter,
            first.depth,
            first.at,
            first.schema,
            None if simple else _rest_encoder.encode(_Rest(dict(state.seen), list(state.siblings))),
            0 if simple else int(is_conflict(state, policy)),
            row.waits,
        )

    def _decoded(self, row: Sequence[Any]) -> State:
        _type, _key, value, number, counter, depth, at, schema, rest, _conflict, _waits = row
        if rest is not None:
            kept = _rest_decoder.decode(rest)
            return State(tuple(kept.siblings), kept.seen)
        log = self._log_name(number)
        return State((Sibling(log, counter, depth, at, schema, value),), {log: counter})

    def _log_name(self, number: int) -> bytes:
        if (log := self._log_names.get(number)) is None:
            ((found,),) = self.database.query("SELECT log FROM log WHERE id = ?", (number,))
            log = self._log_names[number] = bytes(found)
        return log


def _problem(entry: Entry, known: RecordType) -> str:
    """Return why an entry of a known type cannot be believed, or ""."""
    if _UNUSABLE.search(entry.key):
        return "its key holds control characters"
    if entry.value is None:
        return ""
    try:
        value = parsed(entry.value)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        return f"its value is not readable: {error}"
    return known.problem(entry.key, value) if known.problem is not None else ""


def _by_type(names: Iterable[Name]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for type_, key in names:
        grouped.setdefault(type_, []).append(key)
    return grouped


def _pages(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), AT_ONCE):
        yield keys[start : start + AT_ONCE]


def _marks(keys: Sequence[str]) -> str:
    return ", ".join("?" * len(keys))
