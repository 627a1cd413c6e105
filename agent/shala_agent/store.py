"""Store: all that is known of one zone - statements, segments, and the records that they come to.

Used by every server and by the centre, over whatever database they have. The caller holds the transaction:
what one call changes is committed as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from shala_agent.fork import Branches, Link, branches, is_fork
from shala_agent.haves import Ranges
from shala_agent.membership import Member, Statement, decode_statement, read_statement
from shala_agent.merge import Vector
from shala_agent.record_types import NEEDED, TYPES
from shala_agent.segment import Header, Segment, SegmentRefused, branch_id, read_segment, redact
from shala_agent.state import Applied, Database, Tables

Standing = Literal["known", "applied", "held"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a segment: known before, applied, or held (kept, not believed yet) with the reason."""

    standing: Standing
    reason: str = ""
    applied: Applied = field(default_factory=Applied)
    fork: bool = False


@dataclass(slots=True)
class Store:
    """One zone in a database. `zone` is its number there, `name` what segments call it."""

    database: Database
    zone: int
    name: str
    centre: bytes  # the public key of the centre that this zone belongs to
    # What a server has written and not yet cut: (log, entries) to be applied after all segments.
    own: bytes = b""  # the public key of this server, whose word counts here in any case
    tail: Callable[[], tuple[bytes, list[tuple[int, bytes]]] | None] = lambda: None
    tables: Tables = field(init=False)
    _members: dict[bytes, Member] = field(default_factory=dict)
    _branches: dict[bytes, Branches] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tables = Tables(self.database, self.zone, TYPES, NEEDED)
        for (log,) in self.database.query("SELECT log FROM fork WHERE zone = ?", (self.zone,)):
            self._branches[bytes(log)] = branches(self._links(bytes(log)))

    # -- segments --------------------------------------------------------------------------------------------

    def accept(self, segment: Segment) -> Accepted:
        """Keep a verified segment and apply what of it counts. Raises SegmentRefused for another zone's."""
        header = segment.header
        if header.zone != self.name:
            raise SegmentRefused(f"it is of the zone '{header.zone}', this is '{self.name}'")
        if self.has(segment.id):
            return Accepted("known")
        segment = self._redacted(segment)
        limit = self._limit(header.key, segment.log)
        reason = "" if limit is None or limit >= header.first else self._why_held(header)
        self._insert(segment, reason)
        fork = self._is_forked(segment)
        if fork:
            self._take_apart(segment.log)
            if not reason:
                return Accepted("applied", fork=True)
        if reason:
            return Accepted("held", reason, fork=fork)
        return Accepted("applied", applied=self._apply(segment))

    def keep(self, segment: Segment) -> None:
        """Keep a segment that was just cut; its entries were applied when they were written."""
        self._insert(segment, "")

    def has(self, id_: bytes) -> bool:
        """Return whether a segment is there."""
        return bool(self.database.query("SELECT 1 FROM segment WHERE id = ?", (id_,)))

    def data(self, id_: bytes) -> bytes | None:
        """Return the bytes of a segment."""
        rows = self.database.query("SELECT data FROM segment WHERE id = ? AND zone = ?", (id_, self.zone))
        return bytes(rows[0][0]) if rows else None

    def haves(self, log: bytes) -> Ranges:
        """Return which counters of a log are there."""
        rows = self.database.query(
            'SELECT "first", "last" FROM segment WHERE zone = ? AND log = ? ORDER BY "first"',
            (self.zone, log),
        )
        return Ranges((int(first), int(last)) for first, last in rows)

    def authors(self) -> dict[bytes, bytes]:
        """Return which public key writes under each log id by which records name their author."""
        query = 'SELECT DISTINCT log, "key" FROM segment WHERE zone = ?'
        found = {bytes(log): bytes(key) for log, key in self.database.query(query, (self.zone,))}
        for log, forked in self._branches.items():
            branches_of_it = {branch for branch in forked.branch.values() if branch is not None}
            found |= {branch_id(log, branch): found[log] for branch in branches_of_it if log in found}
        return found

    # -- statements ------------------------------------------------------------------------------------------

    def member(self, key: bytes) -> Member:
        """Return what is known of the device with this public key."""
        if (member := self._members.get(key)) is None:
            member = self._members[key] = Member()
            rows = self.database.query(
                'SELECT data FROM statement WHERE zone = ? AND "key" = ?', (self.zone, key)
            )
            for (data,) in rows:
                member.add(decode_statement(bytes(data)))
        return member

    def state(self, data: bytes) -> Statement | None:
        """Keep a statement and do what follows from it; return it, or None if it was known.

        Raises StatementRefused.
        """
        id_, statement = read_statement(data, self.centre)
        if statement.zone != self.name or self.database.query("SELECT 1 FROM statement WHERE id = ?", (id_,)):
            return None
        key = bytes.fromhex(statement.key)
        self.database.query(
            'INSERT INTO statement (id, zone, kind, "key", segment, data) VALUES (?, ?, ?, ?, ?, ?)',
            (id_, self.zone, statement.kind, key, bytes.fromhex(statement.segment) or None, data),
        )
        self.member(key).add(statement)
        if statement.kind == "redact":
            self._redact(bytes.fromhex(statement.segment))
        elif statement.kind == "revoke":
            self._judge_again(key)
            self.rebuild()
        else:
            self._release(key)
        return statement

    # -- the records, made anew ------------------------------------------------------------------------------

    def rebuild(self, progress: Callable[[int], None] | None = None) -> None:
        """Make the records anew from the segments: after a fork, a revocation, an update of the types."""
        self.tables.clear()
        for number, id_ in enumerate(self._applied_ids(), 1):
            data = self.data(id_)
            if data is not None:
                self._apply(read_segment(data))
            if progress is not None:
                progress(number)
        if (tail := self.tail()) is not None:
            self.tables.apply(*tail)

    # -- within ----------------------------------------------------------------------------------------------

    def _apply(self, segment: Segment) -> Applied:
        header = segment.header
        limit = self._limit(header.key, segment.log)
        entries: Iterable[tuple[int, bytes]] = segment.numbered()
        if limit is not None:
            entries = ((counter, entry) for counter, entry in entries if counter <= limit)
        done = self.tables.apply(self.label(segment.log, segment.id), entries, self._clip)
        done.redacted = sum(entry is None for entry in segment.entries)
        return done

    def _limit(self, key: bytes, log: bytes) -> int | None:
        return None if key == self.own else self.member(key).limit(log)

    def label(self, log: bytes, id_: bytes) -> bytes:
        """Return the log id by which the records name a segment: its branch's, where the log has forked."""
        found = self._branches.get(log)
        branch = found.branch.get(id_) if found is not None else None
        return log if branch is None else branch_id(log, branch)

    def _clip(self, context: Vector) -> Vector:
        """Forget what a context says of a forked log beyond the dispute: which branch is meant is unknown."""
        if self._branches.keys().isdisjoint(context):
            return context
        kept = dict(context)
        for log, found in self._branches.items():
            if log in kept and found.disputed is not None:
                kept[log] = min(kept[log], found.disputed - 1)
        return kept

    def _insert(self, segment: Segment, reason: str) -> None:
        header = segment.header
        self.database.query(
            'INSERT INTO segment (id, zone, "key", epoch, log, "first", "last", previous, size, held, data)'
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                segment.id,
                self.zone,
                header.key,
                header.epoch,
                segment.log,
                header.first,
                header.last,
                header.previous,
                len(segment.data),
                reason or None,
                segment.data,
            ),
        )

    def _why_held(self, header: Header) -> str:
        member = self.member(header.key)
        if not member.enrolled:
            return "its device is not known in this zone (yet)"
        return f"its device is revoked{': ' if member.reason else ''}{member.reason}"

    def _is_forked(self, segment: Segment) -> bool:
        """Return whether a segment that was just inserted is part of a log with a dispute."""
        if segment.log in self._branches:
            return True
        header = segment.header
        rows = self.database.query(
            'SELECT id, "first", "last", previous FROM segment'
            ' WHERE zone = ? AND log = ? AND "first" <= ? AND "last" >= ?',
            (self.zone, segment.log, header.last + 1, header.first - 1),
        )
        return is_fork(Link(segment.id, header.first, header.last, header.previous), map(_link, rows))

    def _take_apart(self, log: bytes) -> None:
        if log not in self._branches:
            self.database.query("INSERT INTO fork (zone, log) VALUES (?, ?)", (self.zone, log))
        self._branches[log] = branches(self._links(log))
        self.rebuild()

    def _links(self, log: bytes) -> Sequence[Link]:
        rows = self.database.query(
            'SELECT id, "first", "last", previous FROM segment WHERE zone = ? AND log = ?', (self.zone, log)
        )
        return [_link(row) for row in rows]

    def _redact(self, id_: bytes) -> None:
        """Forget entries of a segment for good, if it is here."""
        data = self.data(id_)
        if data is not None and (whole := read_segment(data)) != (rest := self._redacted(whole)):
            self.database.query(
                "UPDATE segment SET data = ?, size = ? WHERE id = ?", (rest.data, len(rest.data), id_)
            )
            self.rebuild()

    def _redacted(self, segment: Segment) -> Segment:
        """Return a segment without what the centre wants forgotten."""
        rows = self.database.query(
            "SELECT data FROM statement WHERE zone = ? AND segment = ?", (self.zone, segment.id)
        )
        counters = [number for (data,) in rows for number in decode_statement(bytes(data)).counters]
        return redact(segment, counters) if counters else segment

    def _release(self, key: bytes) -> None:
        """Apply the segments of a device that were held until it is known."""
        for id_, log, first in self._segments_of(key, "IS NOT NULL"):
            limit = self._limit(key, log)
            if limit is None or limit >= first:
                self.database.query("UPDATE segment SET held = NULL WHERE id = ?", (id_,))
                data = self.data(id_)
                if data is not None:
                    self._apply(read_segment(data))

    def _judge_again(self, key: bytes) -> None:
        """Hold what of a revoked device lies beyond its cut-offs."""
        member = self.member(key)
        for id_, log, first in self._segments_of(key, "IS NULL"):
            limit = self._limit(key, log)
            if limit is not None and limit < first:
                reason = f"its device is revoked{': ' if member.reason else ''}{member.reason}"
                self.database.query("UPDATE segment SET held = ? WHERE id = ?", (reason, id_))

    def _segments_of(
        self, key: bytes, held: Literal["IS NULL", "IS NOT NULL"]
    ) -> list[tuple[bytes, bytes, int]]:
        rows = self.database.query(
            f'SELECT id, log, "first" FROM segment WHERE zone = ? AND "key" = ? AND held {held}'  # noqa: S608 - constants
            ' ORDER BY log, "first"',
            (self.zone, key),
        )
        return [(bytes(id_), bytes(log), int(first)) for id_, log, first in rows]

    def _applied_ids(self) -> Iterator[bytes]:
        last = b""
        while rows := self.database.query(
            "SELECT id FROM segment WHERE zone = ? AND held IS NULL AND id > ? ORDER BY id LIMIT 500",
            (self.zone, last),
        ):
            for (id_,) in rows:
                yield bytes(id_)
            last = bytes(rows[-1][0])


def _link(row: Sequence[object]) -> Link:
    id_, first, last, previous = row
    return Link(bytes(id_), int(first), int(last), bytes(previous))  # type: ignore[call-overload]
