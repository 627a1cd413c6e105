"""Model: every logical write whose local commit returned, and what its author had seen of the record.

A write is known again by the number in its clock field `at`, which every segment carries and nobody believes,
and by its value: who moves writes anew what a record has become, with the clock field that it had.
What must be there in the end follows from the writes, from who was cut off where, and from which disks were
destroyed with something on them that was nowhere else; nothing here uses the product's merging.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import zstandard
from shala_agent.segment import Entry, read_segment

from simulator.machine import look

Name = tuple[str, str]
POISON = "poison"  # the key of entries that are wrong in another way than that they cannot be decoded
NUMBERS = 100_000  # of writes in one run at most; `at` is the clock times this, plus the number


class Id(NamedTuple):
    """One logical write."""

    zone: str
    type: str
    key: str
    at: int
    value: str | None


@dataclass(frozen=True)
class Write:
    """A write with what it came to on the author's server, and the writes that it replaced there."""

    id: Id
    parents: frozenset[Id]


class Copy(NamedTuple):
    """Where a write is in a log."""

    id: Id
    key: bytes
    log: bytes
    counter: int
    segment: bytes


class Held(NamedTuple):
    """A segment as the model reads it."""

    zone: str
    key: bytes
    log: bytes
    first: int
    last: int
    previous: bytes
    copies: tuple[Copy, ...]


class Said(NamedTuple):
    """What the centre has said of a device in a zone. Of a revocation: where each of its logs ended."""

    kind: str
    zone: str
    key: bytes
    generation: int
    cut_offs: dict[bytes, int]
    heads: dict[bytes, set[bytes]]
    name: Name = ("", "")  # of the record that is to be forgotten
    forgotten: frozenset[tuple[bytes, int]] = frozenset()  # segment and counter


@dataclass
class Member:
    """A device of a zone, as all that was said of it has it."""

    enrolled: int = 0  # the greatest generation of an enrolment
    revoked: int = 0
    cut_offs: dict[bytes, int] = field(default_factory=dict)
    heads: dict[bytes, set[bytes]] = field(default_factory=dict)

    @property
    def lives(self) -> bool:
        return self.enrolled > self.revoked


@dataclass
class Model:
    """All writes of a run."""

    writes: dict[Id, Write] = field(default_factory=dict)
    excused: set[Id] = field(default_factory=set)  # were only on a disk that was destroyed
    copied: set[Id] = field(default_factory=set)  # were in no segment that counts when their disk was copied
    said: dict[bytes, Said] = field(default_factory=dict)  # by the statement's id, in order
    _segments: dict[bytes, Held] = field(default_factory=dict)

    @property
    def redacted(self) -> set[tuple[str, str, str]]:
        """Zone, type and key of the records that are to be forgotten."""
        return {(one.zone, *one.name) for one in self.said.values() if one.kind == "redact"}

    @property
    def forgotten(self) -> set[tuple[bytes, int]]:
        """Segment and counter of what is to be forgotten."""
        return {pair for one in self.said.values() for pair in one.forgotten}

    def member(self, zone: str, key: bytes) -> Member:
        """Return what all that was said of a device comes to."""
        member = Member()
        for one in self.said.values():
            if (one.zone, one.key) != (zone, key):
                continue
            if one.kind == "enrol":
                member.enrolled = max(member.enrolled, one.generation)
            elif one.kind == "revoke":
                member.revoked = max(member.revoked, one.generation)
                for log, counter in one.cut_offs.items():
                    member.cut_offs[log] = min(counter, member.cut_offs.get(log, counter))
                    member.heads.setdefault(log, set()).update(one.heads[log])
        return member

    def limit(self, zone: str, key: bytes, log: bytes, segment: bytes) -> int | None:
        """Return up to which counter what is in a segment counts, None for all of it."""
        member = self.member(zone, key)
        if not member.enrolled:
            return 0
        if log not in member.cut_offs:
            return None if member.lives else 0
        todo = list(member.heads[log])
        while todo:
            id_ = todo.pop()
            if id_ == segment:
                return member.cut_offs[log]
            if id_ in self._segments:
                todo.append(self._segments[id_].previous)
        return 0

    def counts(self, copy: Copy) -> bool:
        """Return whether a copy counts, as far as who wrote it goes."""
        limit = self.limit(copy.id.zone, copy.key, copy.log, copy.segment)
        return limit is None or copy.counter <= limit

    def ends(self, there: dict[bytes, Held], key: bytes) -> tuple[dict[bytes, int], dict[bytes, set[bytes]]]:
        """Return what a revocation says that is made where these segments are: of each log of the device its
        greatest counter, and the segments that no other one continues.
        """
        mine = {
            id_: held
            for id_, held in there.items()
            if held.key == key and self.limit(held.zone, key, held.log, id_) != 0
        }
        mine = {
            id_: held
            for id_, held in mine.items()
            if (limit := self.limit(held.zone, key, held.log, id_)) is None or limit >= held.first
        }
        cut_offs: dict[bytes, int] = {}
        heads: dict[bytes, set[bytes]] = {}
        continued = {held.previous for held in mine.values()}
        for id_, held in mine.items():
            cut_offs[held.log] = max(held.last, cut_offs.get(held.log, 0))
            if id_ not in continued:
                heads.setdefault(held.log, set()).add(id_)
        return cut_offs, heads

    def past(self, ids: Iterable[Id]) -> set[Id]:
        """Return what the authors of some writes had seen of their records."""
        seen: set[Id] = set()
        todo = [parent for id_ in ids if id_ in self.writes for parent in self.writes[id_].parents]
        while todo:
            id_ = todo.pop()
            if id_ not in seen:
                seen.add(id_)
                todo += self.writes[id_].parents if id_ in self.writes else ()
        return seen

    def newest(self, ids: Iterable[Id]) -> dict[Name, set[Id]]:
        """Return per record those of some writes that none of them has replaced."""
        ids = set(ids)
        seen = self.past(ids)
        found: dict[Name, set[Id]] = {}
        for id_ in ids - seen:
            found.setdefault((id_.type, id_.key), set()).add(id_)
        return found

    def held(self, id_: bytes, data: Callable[[], bytes]) -> Held:
        """Return what a segment holds; it is read once, before anything of it may be redacted."""
        found = self._segments.get(id_)
        if found is None:
            segment = read_segment(data())
            header = segment.header
            copies = tuple(_copies(header.zone, header.key, segment.log, segment.numbered(), id_))
            found = Held(
                header.zone, header.key, segment.log, header.first, header.last, header.previous, copies
            )
            self._segments[id_] = found
        return found

    def segments(self, path: Path, zone: str = "") -> dict[bytes, Held]:
        """Return the segments in a database, by id."""
        found = {}
        db = look(path)
        query = "SELECT s.id, z.name FROM segment s JOIN zone z ON z.id = s.zone"
        for id_, name in db.execute(query).fetchall():
            if not zone or name == zone:
                found[id_] = self.held(id_, lambda id_=id_: _data(db, id_))  # type: ignore[misc]
        return found

    def on_disk(self, path: Path) -> set[Id]:
        """Return the writes in the segments of a database, and in its tail."""
        found = {copy.id for held in self.segments(path).values() for copy in held.copies}
        return found | {copy.id for copy in tail(path)}


def tail(path: Path) -> list[Copy]:
    """Return what a school has written and not cut."""
    db = look(path)
    meta = dict(db.execute("SELECT name, value FROM meta WHERE name IN ('zone', 'key')").fetchall())
    rows = db.execute('SELECT "first", entries FROM tail ORDER BY "first"').fetchall()
    found: list[Copy] = []
    for first, packed in rows:
        entries = msgspec.msgpack.decode(zstandard.decompress(packed), type=list[bytes])
        found += _copies(meta["zone"], bytes(meta["key"]), b"", enumerate(entries, first))
    return found


def _data(db: Any, id_: bytes) -> bytes:
    return bytes(db.execute("SELECT data FROM segment WHERE id = ?", (id_,)).fetchone()[0])


def _copies(
    zone: str, key: bytes, log: bytes, entries: Iterable[tuple[int, bytes]], segment: bytes = b""
) -> Iterator[Copy]:
    for counter, raw in entries:
        try:
            entry = msgspec.msgpack.decode(raw, type=Entry)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if entry.key == POISON:
            continue
        yield Copy(Id(zone, entry.type, entry.key, entry.at, entry.value), key, log, counter, segment)


class Sibling(NamedTuple):
    """An entry that counts, as a table has it."""

    log: bytes
    counter: int
    depth: int
    at: int
    schema: int
    value: str | None


@dataclass(frozen=True)
class Row:
    """A record as a table has it."""

    siblings: tuple[Sibling, ...]
    seen: tuple[tuple[bytes, int], ...]
    claims: str
    value: str | None
    conflict: bool
    waits: str | None


def state(path: Path, zone: str, types: Iterable[str]) -> dict[Name, Row]:
    """Return all that a database says of the records of a zone."""
    known = set(types)
    query = (
        "SELECT r.type, r.key, r.value, l.log, r.counter, r.depth, r.at, r.schema, r.rest, r.conflict, r.waits"
        " FROM record r JOIN log l ON l.id = r.log JOIN zone z ON z.id = r.zone WHERE z.name = ?"
    )
    found = {}
    db = look(path)
    for type_, key, value, log, counter, depth, at, schema, rest, conflict, waits in db.execute(
        query, (zone,)
    ):
        if type_ not in known:
            continue
        siblings, seen, claims = [Sibling(log, counter, depth, at, schema, value)], {log: counter}, {}
        if rest is not None:
            seen, listed, claims = msgspec.msgpack.decode(rest)
            siblings = [Sibling(*one[:6]) for one in listed]
        counts = tuple(sorted(seen.items())), repr(sorted(claims.items()))
        found[type_, key] = Row(tuple(siblings), *counts, value, bool(conflict), waits)
    return found


def joined(values: Iterable[str]) -> dict[str, Any]:
    """Return the greatest of every field."""
    found: dict[str, Any] = {}
    for value in values:
        for name, number in json.loads(value).items():
            found[name] = max(number, found.get(name, number))
    return found
