"""State: the records of a zone as tables, kept up with every segment that arrives. Used by server and centre.

What the tables hold is a pure function of the set of segments (shala_agent.merge): they can be made anew from
them at any time. Written in the SQL that SQLite and PostgreSQL share, with `?` for a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from shala_agent.merge import (
    EMPTY,
    Claim,
    Name,
    RecordType,
    Sibling,
    State,
    Value,
    Vector,
    is_conflict,
    merged,
    parsed,
    shown,
    winner,
)
from shala_agent.segment import Entry, EntryUnreadable, decode_entry

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
    siblings: tuple[Sibling, ...]
    claims: dict[bytes, tuple[Claim, ...]] = {}


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


_rest_encoder = msgspec.msgpack.Encoder()
_rest_decoder = msgspec.msgpack.Decoder(_Rest)
# Types and keys are names: what no terminal, no CSV and no database can hold has no place in one.
_BRACKET = re.compile(r"[\[\]{}]")
MAX_NESTING = 32
_UNUSABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


_NOTHING: Vector = {}


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
        states: Mapping[Name, State] | None = None,
        seen: Vector = _NOTHING,
    ) -> None:
        """Apply (counter, bytes) of entries of one log, in any order, any number of times.

        One that cannot be believed is quarantined alone. `clip` forgets of a context what no longer is true:
        counters of a log that has forked since. `states` are those of the entries' records, where the caller
        has just looked them up. `seen` is what all entries have seen: where they branch off, what was before.
        """
        named: dict[Name, list[tuple[int, Entry]]] = {}
        refused: list[tuple[int, str, bytes]] = []
        for counter, raw in entries:
            try:
                entry = decode_entry(raw)
            except EntryUnreadable as error:
                refused.append((counter, f"is not readable: {error}", raw))
                continue
            known = self.types.get(entry.type)
            if known is None:
                continue
            if reason := _problem(entry, known):
                refused.append((counter, reason, raw))
                continue
            named.setdefault((entry.type, entry.key), []).append((counter, entry))
        if refused:
            number = self.log_number(log)
            rows = [(self.zone, number, counter, reason, raw) for counter, reason, raw in refused]
            self.database.many(_QUARANTINE, rows)
        self._merge(log, named, clip, self._find(named) if states is None else states, seen)

    def states(self, names: Iterable[Name]) -> dict[Name, State]:
        """Return the states of those records that are there."""
        return self._find(names)

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
        row = next(self._rows(_COLUMNS, [(type_, key)]), None)
        if row is None:
            return None
        state, policy = self._decoded(row), self.types[type_].policy
        return _record(row, state, winner(state), shown(state, policy), is_conflict(state, policy))

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

    def check(self) -> None:
        """Read all that is kept of each record. Raises what the decoders do where it is damaged."""
        names = [(one.type, one.key) for one in self.records(everything=True)]
        for start in range(0, len(names), AT_ONCE):
            self._find(names[start : start + AT_ONCE])

    def written_by(self, logs: Collection[bytes]) -> Iterator[Record]:
        """Yield the records that some logs have written at some time: as they are shown, but in a conflict
        what these logs say of it.
        """
        last = ("", "")
        query = (
            f"SELECT {_COLUMNS} FROM record WHERE zone = ? AND (type, key) > (?, ?)"  # noqa: S608 - constants
            " ORDER BY type, key LIMIT ?"
        )
        while rows := self.database.query(query, (self.zone, *last, AT_ONCE)):
            for row in rows:
                state, policy = self._decoded(row), self.types[row[0]].policy
                if not (state.seen.keys() | state.claims.keys()).isdisjoint(logs):
                    said = next((one for one in state.siblings if one.log in logs), winner(state))
                    value = shown(state, policy) if policy in ("max", "union") else said.value
                    yield _record(row, state, said, value, is_conflict(state, policy))
            last = (rows[-1][0], rows[-1][1])

    # -- merging ---------------------------------------------------------------------------------------------

    def _merge(
        self,
        log: bytes,
        named: Mapping[Name, Sequence[tuple[int, Entry]]],
        clip: Callable[[Vector], Vector],
        states: Mapping[Name, State],
        seen: Vector,
    ) -> None:
        changed: dict[Name, State] = {}
        for name, entries in named.items():
            before = states.get(name, EMPTY)
            siblings = []
            for counter, entry in entries:
                context = clip(entry.context) if entry.context else _NOTHING
                sibling = Sibling(log, counter, entry.depth, entry.at, entry.schema, entry.value)
                siblings.append((sibling, {**context, **seen} if seen else context))
            state = merged(before, siblings)
            if state is not before:
                changed[name] = state
        if not changed:
            return
        waits, number = self._waits(changed), self.log_number(log)
        self.database.many(
            _PUT,
            [self._encoded(name, state, log, number, waits.get(name)) for name, state in changed.items()],
        )
        self._wake(
            f"{name[0]}/{name[1]}" for name in changed if name[0] in self.needed and name not in states
        )

    def _waits(self, names: Collection[Name]) -> dict[Name, str]:
        """Return for which record these wait, for those where that is not there."""
        needed: dict[Name, list[Name]] = {}
        for name in names:
            needs = self.types[name[0]].needs
            if needs is not None:
                needed.setdefault(needs(name[1]), []).append(name)
        elsewhere = [parent for parent in needed if parent not in names]
        there = {(row[0], row[1]) for row in self._rows("type, key", elsewhere)}
        return {
            name: f"{parent[0]}/{parent[1]}"
            for parent in elsewhere
            if parent not in there
            for name in needed[parent]
        }

    def _wake(self, parents: Iterable[str]) -> None:
        """Show the records that waited for these."""
        for some in _pages(list(parents)):
            marks = _marks(some)
            self.database.query(
                f"UPDATE record SET waits = NULL WHERE zone = ? AND waits IN ({marks})",  # noqa: S608 - marks
                (self.zone, *some),
            )

    def _find(self, names: Iterable[Name]) -> dict[Name, State]:
        return {(row[0], row[1]): self._decoded(row) for row in self._rows(_COLUMNS, names)}

    def _rows(self, columns: str, names: Iterable[Name]) -> Iterator[Sequence[Any]]:
        """Yield these columns of those records that are there."""
        for type_, keys in _by_type(names).items():
            for some in _pages(keys):
                query = _FIND.format(columns=columns, marks=_marks(some))
                yield from self.database.query(query, (self.zone, type_, *some))

    def _encoded(
        self, name: Name, state: State, log: bytes, number: int, waits: str | None
    ) -> tuple[object, ...]:
        type_, key = name
        first = winner(state)
        _log, counter, depth, at, schema, value, context = first
        rest, conflict = None, 0
        # Nearly all records are their newest entry, which has seen nothing but itself.
        if len(state.siblings) != 1 or len(state.seen) > 1 or context or state.claims:
            policy = self.types[type_].policy
            value = shown(state, policy)
            rest = _rest_encoder.encode(_Rest(dict(state.seen), state.siblings, dict(state.claims)))
            conflict = int(is_conflict(state, policy))
        if first.log != log:
            number = self.log_number(first.log)
        return (self.zone, type_, key, value, number, counter, depth, at, schema, rest, conflict, waits)

    def _decoded(self, row: Sequence[Any]) -> State:
        _type, _key, value, number, counter, depth, at, schema, rest, _conflict, _waits = row
        if rest is not None:
            kept = _rest_decoder.decode(rest)
            return State(kept.siblings, kept.seen, kept.claims)
        log = self._log_name(number)
        return State((Sibling(log, counter, depth, at, schema, value),), {log: counter})

    def _log_name(self, number: int) -> bytes:
        if (log := self._log_names.get(number)) is None:
            ((found,),) = self.database.query("SELECT log FROM log WHERE id = ?", (number,))
            log = self._log_names[number] = bytes(found)
        return log


def _record(row: Sequence[Any], state: State, said: Sibling, value: str | None, conflict: bool) -> Record:
    """Return a record with all its siblings; `said` is the one that counts."""
    return Record(
        row[0],
        row[1],
        None if value is None else parsed(value),
        said.log,
        said.counter,
        said.at,
        said.schema,
        conflict,
        row[10],
        state.siblings,
    )


def _problem(entry: Entry, known: RecordType) -> str:
    """Return why an entry of a known type cannot be believed, or ""."""
    if _UNUSABLE.search(entry.key):
        return "its key holds control characters"
    if entry.value is None:
        return ""
    if _nesting(entry.value) > MAX_NESTING:
        return f"its value is nested more than {MAX_NESTING} deep"
    try:
        value = parsed(entry.value)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        return f"its value is not readable: {error}"
    return known.problem(entry.key, value) if known.problem is not None else ""


def _nesting(text: str) -> int:
    """Return how deep a JSON text is nested, at most; brackets within its strings count too where there are
    many. The same on every server, whatever its stack allows.
    """
    if text.count("[") + text.count("{") <= MAX_NESTING:
        return 0
    depth = greatest = 0
    for bracket in _BRACKET.finditer(text):
        depth += 1 if bracket[0] in "[{" else -1
        greatest = max(greatest, depth)
    return greatest


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
