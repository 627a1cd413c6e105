"""Store: all that is known of one zone - statements, segments, and the records that they come to.

Used by every server and by the centre, over whatever database they have. The caller holds the transaction:
what one call changes is committed as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from shala_agent.fork import Branches, Link, branches, is_fork
from shala_agent.membership import Member, Statement, decode_statement, read_statement
from shala_agent.merge import Vector
from shala_agent.record_types import NEEDED, TYPES
from shala_agent.segment import (
    NONE,
    EntryUnreadable,
    Segment,
    SegmentRefused,
    branch_id,
    decode_entry,
    read_segment,
    redact,
)
from shala_agent.state import Database, Tables

Standing = Literal["known", "applied", "held"]
# Why a segment does not count whose bytes are no longer those that came; they may come again.
DAMAGED = "its bytes are damaged on the disk here"
# Whoever carries a segment can leave entries out of it, and id and signature are right all the same. It does
# not count until the centre's word for that is here, or the entries are.
HOLLOW = "entries of it are gone that nobody has ordered to be forgotten"
# Of the table of segments: those that count for nothing, and are not passed on, until their bytes come again.
TO_MEND = f"held IN ('{DAMAGED}', '{HOLLOW}')"
WHOLE = f"(held IS NULL OR NOT {TO_MEND})"


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a segment: known before, applied, or held (kept, not believed yet) with the reason."""

    standing: Standing
    reason: str = ""


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
    remade: Callable[[], None] = lambda: None  # told whenever records change without anything new having come
    forgotten: Callable[[set[tuple[str, str]]], None] = lambda _names: None  # told type and key of records
    tables: Tables = field(init=False)
    stale: bool = False  # the records must be made anew before the caller's transaction ends
    _within: bool = False
    _members: dict[bytes, Member] = field(default_factory=dict)
    _forks: set[bytes] | None = None  # the logs that have forked, once somebody has asked
    _branches: dict[bytes, Branches] = field(default_factory=dict)  # of those that were looked at
    _below: dict[bytes, set[bytes]] = field(default_factory=dict)  # of logs that were cut off at heads
    # Of the same, as `_cut_from` has it of what it has met: else a long chain is walked once for each of it.
    _begins: dict[bytes, dict[bytes, tuple[bytes, Link | None]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tables = Tables(self.database, self.zone, TYPES, NEEDED)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make the records anew at the end of the block if they must be, once for all that is done in it."""
        if self._within:
            yield
            return
        self._within = True
        try:
            yield
            if self.stale:
                self.rebuild()
        finally:
            self._within = False

    # -- segments --------------------------------------------------------------------------------------------

    def accept(self, segment: Segment) -> Accepted:
        """Keep a verified segment and apply what of it counts. Raises SegmentRefused for another zone's."""
        header = segment.header
        if header.zone != self.name:
            raise SegmentRefused(f"it is of the zone '{header.zone}', this is '{self.name}'")
        if self.has(segment.id):
            if self.is_to_mend(segment.id):
                self._mend(segment)
            return Accepted("known")
        segment = self._redacted(segment)
        limit = self.limit(header.key, segment.log, segment.id)
        reason = "" if limit is None or limit >= header.first else self._why_held(header.key)
        reason = HOLLOW if self._is_hollow(segment) else reason
        self._insert(segment, reason)
        below = self._below.get(segment.log)
        with self.together():
            # What is not believed disputes nothing.
            if not reason:
                self._count_in(segment)
            # Also by one that is held (yet): what came before it was not known to be below a head.
            if below is not None and segment.id in below and self._descend(below, header.previous):
                self.judge(header.key)
        if reason:
            return Accepted("held", reason)
        return Accepted("applied")

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

    def read(self, id_: bytes) -> Segment | None:
        """Return a segment. One that is damaged, or of which more is gone than was ordered, is noted as such,
        and counts no more: the others do.
        """
        segment = self._readable(id_)
        if segment is not None and self._is_hollow(segment):
            self._hold_to_mend(id_, HOLLOW)
            return None
        return segment

    def is_to_mend(self, id_: bytes) -> bool:
        """Return whether the bytes of a segment were found to be damaged, or too few."""
        return bool(self.database.query(f"SELECT 1 FROM segment WHERE id = ? AND {TO_MEND}", (id_,)))  # noqa: S608 - constants

    def lacks(self, id_: bytes) -> bool:
        """Return whether a segment is not here, or to be mended."""
        return not self.database.query(f"SELECT 1 FROM segment WHERE id = ? AND {WHOLE}", (id_,))  # noqa: S608 - constants

    def is_hurt(self, id_: bytes) -> bool:
        """Return whether what is here of a segment is damaged or too little, without noting it."""
        if (data := self.data(id_)) is None:
            return False
        try:
            return self._is_hollow(read_segment(data))
        except SegmentRefused:
            return True

    def authors(self) -> dict[bytes, bytes]:
        """Return which public key writes under each log id by which records name their author."""
        query = 'SELECT DISTINCT log, "key" FROM segment WHERE zone = ?'
        found = {bytes(log): bytes(key) for log, key in self.database.query(query, (self.zone,))}
        for log in self._forked():
            branches_of_it = {branch for branch in self._apart(log).branch.values() if branch is not None}
            found |= {branch_id(log, branch): found[log] for branch in branches_of_it if log in found}
        apart = {self._named(self.own, log, id_)[0] for id_, log in self._own_apart()}
        return found | dict.fromkeys(apart, self.own)

    def to_be_forgotten(self, id_: bytes) -> set[int]:
        """Return the counters of those entries of a segment that the centre wants forgotten."""
        rows = self.database.query(
            "SELECT data FROM statement WHERE zone = ? AND segment = ?", (self.zone, id_)
        )
        return {number for (data,) in rows for number in decode_statement(bytes(data)).counters}

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
        for log in statement.heads:
            self._below.pop(bytes.fromhex(log), None)
            self._begins.pop(bytes.fromhex(log), None)
        with self.together():
            if statement.kind == "redact":
                self._redact(bytes.fromhex(statement.segment))
            else:
                self.judge(key)
        return statement

    def judge(self, key: bytes) -> None:
        """Apply or hold the segments of a device after something new was said of it."""
        with self.together():
            for id_, log, first, last, is_held in self._segments_of(key):
                limit = self.limit(key, log, id_)
                if limit is not None and limit < first:
                    if not is_held:
                        self._hold(id_, log, self._why_held(key))
                elif is_held:
                    self._release(id_)
                elif limit is not None and limit < last:
                    self.stale = True  # some of it was applied that counts no more
            if key == self.own and self._own_apart():
                self.stale = True  # some of it has another name now

    def limit(self, key: bytes, log: bytes, id_: bytes) -> int | None:
        """Return the greatest counter of a device's log that counts in one segment of it, None where all do;
        0 where none does.
        """
        member = self.member(key)
        # Who does not belong to the zone goes on to see at least what it writes itself.
        if key == self.own and not member.lives:
            return None
        limit = member.limit(log)
        if limit is not None and log in member.heads and id_ not in self._below_heads(log, member):
            return 0
        return limit

    # -- the records, made anew ------------------------------------------------------------------------------

    def rebuild(self, progress: Callable[[int], None] | None = None) -> None:
        """Make the records anew from the segments: after a fork, a revocation, an update of the types."""
        self.stale = False
        self.remade()
        self.tables.clear()
        for number, id_ in enumerate(self._applied_ids(), 1):
            if (segment := self.read(id_)) is not None:
                self._apply(segment)
            if progress is not None:
                progress(number)
        if self.stale:  # one was damaged: without it a fork may be none
            self.rebuild(progress)
            return
        if (tail := self.tail()) is not None:
            self.tables.apply(*tail, self.clip)

    # -- within ----------------------------------------------------------------------------------------------

    def _apply(self, segment: Segment) -> None:
        header = segment.header
        limit = self.limit(header.key, segment.log, segment.id)
        entries: Iterable[tuple[int, bytes]] = segment.numbered()
        if limit is not None:
            entries = ((counter, entry) for counter, entry in entries if counter <= limit)
        label, seen = self._named(header.key, segment.log, segment.id)
        self.tables.apply(label, entries, self.clip, seen=seen)

    def _named(self, key: bytes, log: bytes, id_: bytes) -> tuple[bytes, Vector]:
        """Return by which log id the records name a segment, and what it has seen of its log besides.

        What was cut off of this server itself goes on to count here while it does not belong to the zone, but
        not as what others have of that log.
        """
        if key == self.own and not self.member(key).lives:
            return self.named_by_author(log, id_)
        return self.label(log, id_), self.seen_before(log, id_)

    def _own_apart(self) -> list[tuple[bytes, bytes]]:
        """Return id and log of the own segments that were cut off and go on to count here."""
        member = self.member(self.own)
        if member.lives:
            return []
        return [
            (id_, log)
            for id_, log, *_ in self._segments_of(self.own)
            if log in member.heads and id_ not in self._below_heads(log, member)
        ]

    def _below_heads(self, log: bytes, member: Member) -> set[bytes]:
        """Return the ids of the segments of a cut-off log that count: the ends that it had, and what they are
        known to continue.
        """
        if (found := self._below.get(log)) is None:
            found = self._below[log] = set()
            for head in member.heads[log]:
                self._descend(found, head)
        return found

    def _descend(self, found: set[bytes], id_: bytes) -> bool:
        """Add a segment's id and those of all that it continues; return whether one of them is here."""
        is_here = False
        while id_ != NONE and id_ not in found:
            found.add(id_)
            rows = self.database.query(
                "SELECT previous FROM segment WHERE id = ? AND zone = ?", (id_, self.zone)
            )
            if not rows:
                break
            is_here, id_ = True, bytes(rows[0][0])
        return is_here

    def label(self, log: bytes, id_: bytes) -> bytes:
        """Return the log id by which the records name a segment: its branch's, where the log has forked."""
        branch = self._apart(log).branch.get(id_) if log in self._forked() else None
        return log if branch is None else branch_id(log, branch)

    def seen_before(self, log: bytes, id_: bytes) -> Vector:
        """Return what a segment of a branch has seen of the trunk and of the branches that it continues."""
        found = self._apart(log) if log in self._forked() else None
        branch = found.branch.get(id_) if found is not None else None
        if found is None or branch is None:
            return {}
        return {
            log if before is None else branch_id(log, before): counter
            for before, counter in found.seen[branch].items()
            if counter
        }

    def named_by_author(self, log: bytes, id_: bytes) -> tuple[bytes, Vector]:
        """Return by which log id the author of a segment names it, who also has what counts for nobody, and
        what he has seen of its log besides.

        What a revocation has cut off is a branch of its own: under the name of the log it would be taken for
        what others have of that.
        """
        begin, before = self._cut_from(log, id_)
        if begin is None:
            return self.label(log, id_), self.seen_before(log, id_)
        if before is None:
            return branch_id(log, begin), {}
        seen = {**self.seen_before(log, before.id), self.label(log, before.id): before.last}
        return branch_id(log, begin), seen

    def _cut_from(self, log: bytes, id_: bytes) -> tuple[bytes | None, Link | None]:
        """Return the first segment that a revocation has cut off of the chain that ends with one, None where
        that counts, and the segment before it, if it is here.
        """
        known = self._begins.setdefault(log, {})
        met: list[bytes] = []
        before: Link | None = None
        query = 'SELECT id, "first", "last", previous, "key" FROM segment WHERE id = ? AND zone = ?'
        while id_ not in known and (rows := self.database.query(query, (id_, self.zone))):
            *row, key = rows[0]
            link, member = _link(row), self.member(bytes(key))
            if log not in member.heads or id_ in self._below_heads(log, member):
                before = link
                break
            met.append(id_)
            id_ = link.previous
        if not met:
            return known.get(id_, (None, before))
        found = known.get(id_, (met[-1], before))
        known.update(dict.fromkeys(met, found))
        return found

    def clip(self, context: Vector) -> Vector:
        """Forget what a context says of a forked log beyond the dispute: which branch is meant is unknown."""
        forked = self._forked().intersection(context)
        if not forked:
            return context
        kept = dict(context)
        for log in forked:
            if (disputed := self._apart(log).disputed) is not None:
                kept[log] = min(kept[log], disputed - 1)
        return kept

    def _insert(self, segment: Segment, reason: str) -> None:
        header = segment.header
        self._begins.pop(segment.log, None)  # it may be what was missing of a chain
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

    def _why_held(self, key: bytes) -> str:
        member = self.member(key)
        if not member.enrolled:
            return "its device is not known in this zone (yet)"
        if member.lives:
            return "its device was revoked before it came, and writes it anew"
        return f"its device is revoked{': ' if member.reason else ''}{member.reason}"

    def _count_in(self, segment: Segment) -> None:
        """Apply a segment that has just become one of those that count. Where it makes a fork, or another one
        of a fork, others are named by other labels than they were applied with: all is to be made anew.
        """
        log = segment.log
        if log not in self._forked():
            if not self._is_forked(segment):
                self._apply(segment)
                return
            self.database.query("INSERT INTO fork (zone, log) VALUES (?, ?)", (self.zone, log))
            self._forked().add(log)
            self._branches.pop(log, None)
            self.stale = True
            return
        links = self._links(log)
        others = [link for link in links if link.id != segment.id]
        before = self._branches.get(log) or branches(others)
        after = self._branches[log] = branches(links)
        if _names_alike(before, after, others):
            self._apply(segment)
        else:
            self.stale = True

    def _forked(self) -> set[bytes]:
        if self._forks is None:
            rows = self.database.query("SELECT log FROM fork WHERE zone = ?", (self.zone,))
            self._forks = {bytes(log) for (log,) in rows}
        return self._forks

    def _apart(self, log: bytes) -> Branches:
        """Return how a log that has forked is taken apart."""
        if (found := self._branches.get(log)) is None:
            found = self._branches[log] = branches(self._links(log))
        return found

    def _is_forked(self, segment: Segment) -> bool:
        """Return whether a segment that was just inserted disputes another one."""
        header = segment.header
        rows = self.database.query(
            'SELECT id, "first", "last", previous FROM segment'
            ' WHERE zone = ? AND log = ? AND "first" <= ? AND "last" >= ? AND held IS NULL',
            (self.zone, segment.log, header.last + 1, header.first - 1),
        )
        return is_fork(Link(segment.id, header.first, header.last, header.previous), map(_link, rows))

    def _links(self, log: bytes) -> Sequence[Link]:
        rows = self.database.query(
            'SELECT id, "first", "last", previous FROM segment WHERE zone = ? AND log = ? AND held IS NULL',
            (self.zone, log),
        )
        return [_link(row) for row in rows]

    def _redact(self, id_: bytes) -> None:
        """Forget entries of a segment for good, if it is here."""
        if (whole := self._readable(id_)) is None:
            return
        if whole != (rest := self._redacted(whole)):
            self.database.query(
                "UPDATE segment SET data = ?, size = ? WHERE id = ?", (rest.data, len(rest.data), id_)
            )
            self.forgotten(set(_names(whole, self.to_be_forgotten(id_))))
            self.stale = True
        if self.is_to_mend(id_) and not self._is_hollow(rest):
            why = self._why_held(rest.header.key)  # until it is judged, and where a cut-off stands against it
            self.database.query("UPDATE segment SET held = ? WHERE id = ?", (why, id_))
            self.judge(rest.header.key)

    def _redacted(self, segment: Segment) -> Segment:
        """Return a segment without what the centre wants forgotten."""
        counters = self.to_be_forgotten(segment.id)
        return redact(segment, counters) if counters else segment

    def _release(self, id_: bytes) -> None:
        if (segment := self.read(id_)) is not None:
            self.database.query("UPDATE segment SET held = NULL WHERE id = ?", (id_,))
            self._count_in(segment)

    def _mend(self, segment: Segment) -> None:
        """Put the bytes of a segment in the place of damaged or too few ones."""
        whole = self._redacted(segment)
        if self._is_hollow(whole):
            return
        self.remade()
        reason = self._why_held(segment.header.key)
        self.database.query(
            "UPDATE segment SET data = ?, size = ?, held = ? WHERE id = ?",
            (whole.data, len(whole.data), reason, segment.id),
        )
        self.judge(segment.header.key)

    def _readable(self, id_: bytes) -> Segment | None:
        """Return a segment with what is there of it."""
        if (data := self.data(id_)) is None:
            return None
        try:
            return read_segment(data)
        except SegmentRefused:
            self._hold_to_mend(id_, DAMAGED)
            return None

    def _is_hollow(self, segment: Segment) -> bool:
        """Return whether entries of a segment are gone that nobody has ordered to be forgotten."""
        if None not in segment.entries:
            return False
        gone = {number for number, entry in enumerate(segment.entries, segment.header.first) if entry is None}
        return not gone <= self.to_be_forgotten(segment.id)

    def _hold_to_mend(self, id_: bytes, reason: str) -> None:
        ((log, held),) = self.database.query("SELECT log, held FROM segment WHERE id = ?", (id_,))
        if held != reason:
            self._hold(id_, bytes(log), reason)

    def _hold(self, id_: bytes, log: bytes, reason: str) -> None:
        self.database.query("UPDATE segment SET held = ? WHERE id = ?", (reason, id_))
        self._branches.pop(log, None)
        self.stale = True

    def _segments_of(self, key: bytes) -> list[tuple[bytes, bytes, int, int, bool]]:
        rows = self.database.query(
            'SELECT id, log, "first", "last", held FROM segment WHERE zone = ? AND "key" = ?'
            ' ORDER BY log, "first"',
            (self.zone, key),
        )
        return [
            (bytes(id_), bytes(log), int(first), int(last), held is not None)
            for id_, log, first, last, held in rows
        ]

    def _applied_ids(self) -> Iterator[bytes]:
        last = b""
        while rows := self.database.query(
            "SELECT id FROM segment WHERE zone = ? AND held IS NULL AND id > ? ORDER BY id LIMIT 500",
            (self.zone, last),
        ):
            for (id_,) in rows:
                yield bytes(id_)
            last = bytes(rows[-1][0])


def _names(segment: Segment, counters: set[int]) -> Iterator[tuple[str, str]]:
    """Yield type and key of the records that some entries of a segment are of."""
    for counter, raw in segment.numbered():
        if counter in counters:
            with suppress(EntryUnreadable):
                entry = decode_entry(raw)
                yield entry.type, entry.key


def _link(row: Sequence[object]) -> Link:
    id_, first, last, previous = row
    return Link(bytes(id_), int(first), int(last), bytes(previous))  # type: ignore[call-overload]


def _names_alike(before: Branches, after: Branches, links: Iterable[Link]) -> bool:
    """Return whether the entries of these segments are applied alike, the log taken apart in either way."""
    if before.disputed != after.disputed:
        return False
    names = {link.id: before.branch[link.id] for link in links}
    return all(
        after.branch[id_] == name and (name is None or after.seen[name] == before.seen[name])
        for id_, name in names.items()
    )
