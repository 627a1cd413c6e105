"""Records: the record store of a school server. One SQLite file: its own changes, the segments of its zone,
and the records that they come to.

A change is applied and noted in the tail in one transaction; `cut` makes signed segments of the tail. What a
device has not yet cut was seen by nobody.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import sqlite3
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import zstandard
from nacl.signing import SigningKey

from shala_agent import disk, write_ahead
from shala_agent.device import device_id
from shala_agent.failure import AgentError
from shala_agent.membership import decode_statement, statement_id
from shala_agent.merge import (
    Name,
    State,
    Value,
    Vector,
    is_claimed,
    is_conflict,
    next_value,
    shown,
    written,
)
from shala_agent.record_types import TYPES, types_digest
from shala_agent.segment import (
    MAX_CONTEXT,
    MAX_DEPTH,
    NONE,
    Entry,
    Segment,
    decode_entry,
    encode_entry,
    log_id,
    make_segment,
    read_segment,
    runs,
)
from shala_agent.state import Record
from shala_agent.store import DAMAGED, HOLLOW, TO_MEND, WHOLE, Store

VERSION = 2
# Changes in one transaction: a page of the index is written once for all its changes of one transaction; with
# 4,000 of them writing costs a fifth less than with 1,000, and takes some MB (bench/sync.py).
AT_ONCE = 2000
CACHE = 8192  # KiB: the pages of the index that one transaction changes, so that none is written twice

# What is known of a segment and the centre: the column at_centre.
# _RECEIVED: it gave a receipt; _LISTED: it has named the segment since, so that our cursor vouches for it.
_LACKING, _RECEIVED, _REFUSED, _LISTED = range(4)
# The column `ours` of a segment that this server has cut: what a revocation cuts off of it is to be written
# anew, or was.
_CUT_HERE, _WRITTEN_ANEW = 1, 2
# Of what was written anew and is held everywhere nobody has any use.
_UNSENT = "zone = ? AND at_centre = 0 AND (ours < 2 OR held IS NULL)"
_TO_MEND = f"zone = ? AND {TO_MEND} AND id NOT IN (SELECT id FROM left_out)"  # noqa: S608 - constants
_TELL = (
    "INSERT INTO told (source, type, key, digest) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (source, type, key) DO UPDATE SET digest = excluded.digest"
)

_SCHEMA = f"""
BEGIN;
PRAGMA user_version = {VERSION};
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE zone (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, centre BLOB NOT NULL);
CREATE TABLE log (id INTEGER PRIMARY KEY, log BLOB UNIQUE NOT NULL);
CREATE TABLE fork (zone INTEGER, log BLOB, PRIMARY KEY (zone, log)) WITHOUT ROWID;
CREATE TABLE statement (id BLOB PRIMARY KEY, zone INTEGER, kind TEXT, "key" BLOB, segment BLOB, data BLOB,
  at_centre INTEGER NOT NULL DEFAULT 1);
CREATE INDEX statement_key ON statement (zone, "key");
CREATE INDEX statement_segment ON statement (zone, segment) WHERE segment IS NOT NULL;
CREATE INDEX statement_unheard ON statement (zone) WHERE at_centre = 0;
CREATE TABLE segment (id BLOB PRIMARY KEY, zone INTEGER, "key" BLOB, epoch INTEGER, log BLOB, "first" INTEGER,
  "last" INTEGER, previous BLOB, size INTEGER, held TEXT, at_centre INTEGER NOT NULL DEFAULT 0,
  ours INTEGER NOT NULL DEFAULT 0, data BLOB);
CREATE INDEX segment_key ON segment (zone, "key");
CREATE INDEX segment_log ON segment (zone, log, "first");
CREATE INDEX segment_offer ON segment (zone) WHERE at_centre = 0;
CREATE INDEX segment_received ON segment (zone) WHERE at_centre = 1;
CREATE INDEX segment_ours ON segment (zone) WHERE ours = 1;
CREATE TABLE record (zone INTEGER, type TEXT, key TEXT, value TEXT, log INTEGER, counter INTEGER,
  depth INTEGER, at INTEGER, schema INTEGER, rest BLOB, conflict INTEGER, waits TEXT,
  PRIMARY KEY (zone, type, key));
CREATE INDEX record_waits ON record (zone, waits) WHERE waits IS NOT NULL;
CREATE INDEX record_conflict ON record (zone) WHERE conflict = 1;
CREATE TABLE quarantine (zone INTEGER, log INTEGER, counter INTEGER, reason TEXT, entry BLOB,
  PRIMARY KEY (zone, log, counter)) WITHOUT ROWID;
CREATE TABLE tail ("first" INTEGER PRIMARY KEY, entries BLOB NOT NULL);
CREATE TABLE left_out (id BLOB PRIMARY KEY, size INTEGER, asked INTEGER, reason TEXT) WITHOUT ROWID;
CREATE TABLE told (source TEXT, type TEXT, key TEXT, digest BLOB,
  PRIMARY KEY (source, type, key)) WITHOUT ROWID;
COMMIT;
"""


DISK_WAY_OUT = "is the disk full or read-only?: free some space, then run this again"
MALFORMED = "database disk image is malformed"  # as SQLite says it
_NO_TEXT = "Could not decode to UTF-8"  # what sqlite3 says then goes on with the text
_TAIL_LEVEL = 1  # of zstd: what is cut soon after need not be small, but leaves its place in the file behind
_tail_decoder = msgspec.msgpack.Decoder(list[bytes])


class RecordsDamaged(AgentError):
    """The record store cannot be used."""


class RecordsUnavailable(AgentError):
    """The record store cannot be opened on this disk as it is; the file may be whole."""


@contextlib.contextmanager
def naming(path: Path, *, opening: bool = False) -> Iterator[None]:
    """Name the file, and the way out, where SQLite or what reads its columns says that it cannot be used,
    whenever it does. Nothing of what is in it is said: the words go to the centre. Whatever is wrong at its
    `opening` is wrong with the file: there it is another program's, too.
    """
    try:
        yield
    except (msgspec.DecodeError, zstandard.ZstdError):
        raise _damaged(path, MALFORMED) from None
    except sqlite3.DatabaseError as error:
        if _NO_TEXT in str(error):
            raise _damaged(path, MALFORMED) from None
        if disk.is_at_fault(error):
            raise RecordsUnavailable(f"{path}: {error} ({DISK_WAY_OUT})") from None
        if "is locked" in str(error):
            raise RecordsUnavailable(f"{path}: {error} (wait for it, then run this again)") from None
        if not opening and type(error) is not sqlite3.DatabaseError:  # a mistake of ours is no damage
            raise
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, reason: str) -> RecordsDamaged:
    return RecordsDamaged(
        f"{path}: {reason} (update shala; if the file is damaged, move it away, then shala-agent enrol"
        " --url CENTRE: the zone's records come again, one's own are heard anew)"
    )


class Change(NamedTuple):
    """What a source says of a record: its value, or None for a delete; `at` where that was not just now."""

    type: str
    key: str
    value: Value | None
    at: int | None = None


class Offer(NamedTuple):
    """A segment that the centre is not known to have."""

    id: bytes
    size: int


class LeftOut(NamedTuple):
    """A segment that the centre named and that could not be had."""

    id: bytes
    size: int


class Unsent(NamedTuple):
    """What the centre is not known to have: entries and bytes."""

    entries: int
    bytes: int


class _Sqlite:
    """shala_agent.state.Database over sqlite3."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        return self._db.execute(sql, parameters).fetchall()

    def many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        self._db.executemany(sql, rows)


class Records:
    """The record store in the file `path`. One process writes at a time: the caller holds a lock, or says
    that it will `only_read`.
    """

    def __init__(self, path: Path, *, only_read: bool = False) -> None:
        with naming(path, opening=True):
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                path.touch(mode=0o600)  # names of children are in it
                self._db = _opened(path)
            except OSError as error:
                if not disk.is_at_fault(error):
                    raise
                raise RecordsUnavailable(f"{path}: {error.strerror} ({DISK_WAY_OUT})") from None
        self._database = _Sqlite(self._db)
        self._store: Store | None = None
        if not only_read:
            self._follow_types()

    def check(self) -> None:
        """Read every page of the file, records and tail as who needs them does. Raises RecordsDamaged, or
        what `naming` names; takes a while.
        """
        ((said,),) = self._database.query("PRAGMA quick_check(1)")
        if said != "ok":
            raise sqlite3.DatabaseError(f"{MALFORMED}: {' '.join(said.split())}")
        self._require_store().tables.check()
        for _ in self._tail_entries():
            pass

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
                self._database,
                number,
                name,
                bytes(centre),
                bytes(self._meta("key") or b""),
                self._tail,
                self._note_remade,
                self._forget_told,
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

    @property
    def log(self) -> bytes:
        """The log id of the own changes."""
        return self._own_log()

    def size(self) -> int:
        """Return a number that grows with every segment and statement that is kept."""
        query = (
            "SELECT (SELECT coalesce(max(rowid), 0) FROM segment)"
            " + (SELECT coalesce(max(rowid), 0) FROM statement)"
        )
        return int(self._database.query(query)[0][0])

    @property
    def version(self) -> str:
        """Return what is another one whenever records may have changed."""
        return f"{self.epoch}/{self.counter}/{self.size()}/{int(self._meta('remade') or 0)}"

    def enrol(self, zone: str, centre: bytes, key: bytes, statements: Iterable[bytes] = ()) -> None:
        """Become a device of a zone. Into another one than before goes all that this server wrote."""
        with self._transaction():
            before = self.store
            if before is None or before.name != zone:
                self._move(before, zone, centre, key, statements)
            else:
                # First: by them it knows what of its logs was cut off, and names that as nobody else does.
                self._state(statements)
                if before.own != key:
                    self._renew(None, key)
            # What was refused may have been so for want of this enrolment.
            self._database.query("UPDATE segment SET at_centre = ? WHERE at_centre = ?", (_LACKING, _REFUSED))
            if before is not None:
                # Maybe because the centre was restored from a backup: it hears all that it said.
                self.doubt_statements()
            self._write_anew()

    # -- own changes -----------------------------------------------------------------------------------------

    def write(self, changes: Iterable[Change], at: int, source: str = "") -> int:
        """Note what a source says, at the wall-clock second `at`; return how many records that changed.

        What is known already is no change, so a source may be read again and again. A source with a name
        is heard only where it says something else than the last time: of a record that several servers
        write, each would otherwise put its own word back for ever.
        """
        changed = 0
        for page in _pages(changes):
            with self._transaction():
                changed += self._write(self._untold(source, page) if source else page, at)
        return changed

    def told(self, source: str, type_: str, key: str) -> bytes | None:
        """Return the digest of what a source said last of a record, None where it said nothing."""
        rows = self._database.query(
            "SELECT digest FROM told WHERE source = ? AND type = ? AND key = ?", (source, type_, key)
        )
        return bytes(rows[0][0]) if rows else None

    def set_told(self, source: str, type_: str, key: str, digest: bytes) -> None:
        """Note what a source said."""
        self._database.query(_TELL, (source, type_, key, digest))

    def forget_told(self, source: str, type_: str, but: Container[str]) -> None:
        """Forget of what a source spoke, but for these keys: a key may be a child's name."""
        rows = self._database.query("SELECT key FROM told WHERE source = ? AND type = ?", (source, type_))
        if gone := [(source, type_, key) for (key,) in rows if key not in but]:
            with self._transaction():
                self._database.many("DELETE FROM told WHERE source = ? AND type = ? AND key = ?", gone)

    def note(self, source: str, change: Change) -> None:
        """Note what a source says, and write nothing: it is heard once it says something else."""
        self.set_told(source, change.type, change.key, _digest(change))

    def cut(self, key: SigningKey) -> int:
        """Make segments of the own changes since the last time; return how many segments. Nothing is cut with
        another key than this server was enrolled with: it comes along when that one is enrolled.
        """
        store = self._require_store()
        number = 0
        if bytes(key.verify_key) != store.own:
            return number
        with self._transaction():
            previous = self._newest_own()
            for first, entries in runs(self._tail_entries()):
                segment = make_segment(key, store.name, self.epoch, first, previous, entries)
                # First, so that the segment takes the place on the disk that its entries leave. Where some of
                # a row are in the next segment, they are at hand already.
                self._database.query('DELETE FROM tail WHERE "first" <= ?', (segment.header.last,))
                store.keep(segment)
                self._database.query("UPDATE segment SET ours = ? WHERE id = ?", (_CUT_HERE, segment.id))
                previous = segment.id
                number += 1
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
            self._forget_left_out([segment.id])
            if from_centre and not store.is_to_mend(segment.id):
                self.set_received([segment.id])
        return accepted.standing

    def renew(self) -> None:
        """Go on in a new epoch: somebody else may be counting in the old one. Nothing written is lost."""
        with self._transaction():
            self._renew(None)

    def state(self, statements: Iterable[bytes], *, from_centre: bool = False) -> int:
        """Keep statements of the centre; return how many are new. One that came in another way is one that
        the centre may have forgotten. Raises StatementRefused.
        """
        with self._transaction():
            if new := self._state(statements):
                if not from_centre:
                    rows = [(id_,) for id_ in new]
                    self._database.many("UPDATE statement SET at_centre = 0 WHERE id = ?", rows)
                self._write_anew()
            return len(new)

    def offers(self, limit: int) -> list[Offer]:
        """Return segments that the centre is not known to have, the oldest first."""
        store = self._require_store()
        rows = self._database.query(
            f"SELECT id, size FROM segment WHERE {_UNSENT} AND {WHOLE} ORDER BY rowid LIMIT ?",  # noqa: S608 - constants
            (store.zone, limit),
        )
        return [Offer(bytes(id_), size) for id_, size in rows]

    def offer(self, id_: bytes) -> Offer | None:
        """Return a segment as it is offered, None if it is not here, or not whole."""
        query = f"SELECT id, size FROM segment WHERE id = ? AND zone = ? AND {WHOLE}"  # noqa: S608 - constants
        rows = self._database.query(query, (id_, self._require_store().zone))
        return Offer(bytes(rows[0][0]), rows[0][1]) if rows else None

    def unsent(self) -> Unsent:
        """Return what the centre is not known to have, without what is not cut yet."""
        rows = self._database.query(
            'SELECT coalesce(sum("last" - "first" + 1), 0), coalesce(sum(size), 0) FROM segment'  # noqa: S608 - constants
            f" WHERE {_UNSENT}",
            (self._require_store().zone,),
        )
        return Unsent(int(rows[0][0]), int(rows[0][1]))

    def uncut(self) -> int:
        """Return how many own changes are in no segment yet."""
        first = self._database.query('SELECT min("first") FROM tail')[0][0]
        return 0 if first is None else self.counter - int(first) + 1

    def set_at_centre(self, ids: Iterable[bytes]) -> None:
        """Note that the centre says that it has these segments."""
        self._set_standing(_LISTED, ids)

    def set_received(self, ids: Iterable[bytes]) -> None:
        """Note that the centre gave a receipt for these segments."""
        self._set_standing(_RECEIVED, ids)

    def received(self) -> list[bytes]:
        """Return the segments that the centre gave a receipt for, and has not named in its list yet."""
        rows = self._database.query(
            "SELECT id FROM segment WHERE zone = ? AND at_centre = 1", (self._require_store().zone,)
        )
        return [bytes(id_) for (id_,) in rows]

    def offer_again(self, ids: Iterable[bytes]) -> None:
        """Offer segments again, though there was a receipt."""
        self._set_standing(_LACKING, ids)

    def set_refused(self, ids: Iterable[bytes]) -> None:
        """Note that the centre will not have these segments: they are not offered again until it is asked
        anew for everything.
        """
        self._set_standing(_REFUSED, ids)

    def offer_all(self) -> None:
        """Forget what the centre has: it has lost its memory, or is another one."""
        self._database.query("UPDATE segment SET at_centre = ?", (_LACKING,))

    def doubt_statements(self) -> None:
        """Forget which statements the centre knows, until its list names them."""
        self._database.query("UPDATE statement SET at_centre = 0")

    def unheard(self, limit: int, size: int) -> list[bytes]:
        """Return statements that the centre has forgotten: so many at most, of so many bytes together
        where it is more than one. Also those of zones in which this server was before: maybe nobody else has
        heard them and still talks to it.
        """
        rows = self._database.query(
            "SELECT data FROM statement WHERE at_centre = 0"
            " AND zone IN (SELECT id FROM zone WHERE centre = ?) ORDER BY rowid LIMIT ?",
            (self._require_store().centre, limit),
        )
        found: list[bytes] = []
        for (data,) in rows:
            size -= len(data)
            if size < 0 and found:
                break
            found.append(bytes(data))
        return found

    def own_enrolment(self) -> bytes | None:
        """Return the statement by which this server belongs to its zone, None if by all that it knows it does
        not.
        """
        store = self._require_store()
        member = store.member(store.own)
        query = 'SELECT data FROM statement WHERE zone = ? AND "key" = ?'
        for (data,) in self._database.query(query, (store.zone, store.own)) if member.lives else ():
            said = decode_statement(bytes(data))
            if said.kind == "enrol" and said.generation == member.enrolled:
                return bytes(data)
        return None

    def set_heard(self, ids: Iterable[bytes]) -> None:
        """Note that the centre has these statements."""
        with self._transaction():
            self._database.many("UPDATE statement SET at_centre = 1 WHERE id = ?", [(id_,) for id_ in ids])

    # -- what could not be had -------------------------------------------------------------------------------

    def leave_out(self, id_: bytes, size: int, asked: int, reason: str) -> None:
        """Note that a segment could not be had at a time by this server's clock."""
        self._database.query(
            "INSERT INTO left_out (id, size, asked, reason) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET size = excluded.size, asked = excluded.asked,"
            " reason = excluded.reason",
            (id_, size, asked, reason),
        )

    def forget_left_out(self) -> None:
        """Forget what could not be had: the list is read from its beginning, and names what is there."""
        self._database.query("DELETE FROM left_out")

    def left_out(self) -> int:
        """Return how many segments could not be had, or are damaged here, or have entries left out."""
        query = f"SELECT (SELECT count(*) FROM left_out) + (SELECT count(*) FROM segment WHERE {_TO_MEND})"  # noqa: S608 - constants
        return int(self._database.query(query, (self._zone,))[0][0])

    def doubted(self, limit: int) -> list[bytes]:
        """Return the ids of segments that could not be had, those first that were asked for last."""
        rows = self._database.query("SELECT id FROM left_out ORDER BY asked DESC, id LIMIT ?", (limit,))
        return [bytes(id_) for (id_,) in rows]

    def damaged(self) -> int:
        """Return how many segments of its zone are damaged on the disk here, and not mended yet."""
        return self._held_for(DAMAGED)

    def hollow(self) -> int:
        """Return how many segments of its zone lack entries that nobody has ordered to be forgotten."""
        return self._held_for(HOLLOW)

    def _held_for(self, reason: str) -> int:
        query = "SELECT count(*) FROM segment WHERE zone = ? AND held = ?"
        return int(self._database.query(query, (self._zone, reason))[0][0])

    def read(self, id_: bytes) -> Segment | None:
        """Return a segment, None if it is not here or damaged: it is not offered then, but asked for."""
        with self._transaction():
            store = self._require_store()
            with store.together():
                return store.read(id_)

    def to_ask_again(self, clock: int, after: int, limit: int) -> list[LeftOut]:
        """Return what is to be asked for again: all after an update, else so many of what was asked for
        longer ago than so many seconds, in whichever way the clock has jumped.
        """
        rows = self._database.query(
            "SELECT id, size FROM left_out WHERE asked = 0 UNION ALL"  # noqa: S608 - constants
            f" SELECT id, size FROM segment WHERE {_TO_MEND} UNION ALL"
            " SELECT * FROM (SELECT id, size FROM left_out WHERE asked <> 0 AND abs(? - asked) > ?"
            " ORDER BY asked LIMIT ?)",
            (self._zone, clock, after, limit),
        )
        return [LeftOut(bytes(id_), int(size)) for id_, size in rows]

    def ask_anew(self) -> None:
        """Try again what one side refused: one of them is another shala now."""
        with self._transaction():
            self._database.query("UPDATE segment SET at_centre = ? WHERE at_centre = ?", (_LACKING, _REFUSED))
            self._database.query("UPDATE left_out SET asked = 0")

    # -- what a client of the centre keeps -------------------------------------------------------------------

    def kept(self, name: str) -> Any:
        """Return a number or text kept under a name, None where there is none."""
        return self._meta(f"kept {name}")

    def keep(self, **values: int | str) -> None:
        """Keep numbers or texts under names; on the disk when this returns."""
        with self._transaction():
            for name, value in values.items():
                self._set_meta(f"kept {name}", value)

    # -- records ---------------------------------------------------------------------------------------------

    def record(self, type_: str, key: str) -> Record | None:
        """Return one record."""
        return self._require_store().tables.record(type_, key)

    def records(self, type_: str = "", *, everything: bool = False, user: str = "") -> Iterator[Record]:
        """Yield the records of a type, or all; of one user, or of all."""
        return self._require_store().tables.records(type_, everything=everything, user=user)

    def authors(self) -> dict[bytes, str]:
        """Return the server name behind each log id that records name as their author."""
        store = self._require_store()
        keys = {**store.authors(), self._own_log(): store.own}
        return {log: store.member(key).name or device_id(key.hex())[:12] for log, key in keys.items()}

    # -- within ----------------------------------------------------------------------------------------------

    def _follow_types(self) -> None:
        """Make the records anew if they were made by a shala that knew other types."""
        digest = types_digest()
        if self._meta("types") != digest:
            with self._transaction():
                if (store := self.store) is not None:
                    store.rebuild()
                self._set_meta("types", digest)

    def _note_remade(self) -> None:
        self._set_meta("remade", int(self._meta("remade") or 0) + 1)

    def _set_standing(self, standing: int, ids: Iterable[bytes]) -> None:
        rows = [(standing, id_) for id_ in ids]
        within = self._db.in_transaction
        with contextlib.nullcontext() if within or not rows else self._transaction():
            self._database.many("UPDATE segment SET at_centre = ? WHERE id = ?", rows)

    def _forget_told(self, names: set[tuple[str, str]]) -> None:
        """Keep no name of what is to be forgotten; a source that goes on to say it is heard again."""
        self._database.many("DELETE FROM told WHERE type = ? AND key = ?", sorted(names))

    def _untold(self, source: str, changes: Sequence[Change]) -> list[Change]:
        """Return what a source has not said before, and note that it has now."""
        new = []
        for change in _last_of_each(changes).values():
            digest = _digest(change)
            if self.told(source, change.type, change.key) != digest:
                self.set_told(source, change.type, change.key, digest)
                new.append(change)
        return new

    def _write(self, changes: Sequence[Change], at: int, *, settles: bool = True) -> int:
        """Write changes. Who `settles` has looked at what others say: what he says goes before it, also where
        one of them says it already.
        """
        store = self._require_store()
        log, counter = self._own_log(), self.counter
        states = store.tables.states({(change.type, change.key) for change in changes})
        entries: list[tuple[int, bytes]] = []
        for change in _last_of_each(changes).values():
            state = states.get((change.type, change.key))
            if not settles and state is not None and _is_said(change, state):
                continue
            entry = _entry_of(change, state, log, at if change.at is None else change.at)
            if entry is not None:
                counter += 1
                entries.append((counter, encode_entry(entry)))
        if entries:
            store.tables.apply(log, entries, states=states)
            self._add_to_tail(entries)
            self._set_meta("counter", counter)
        return len(entries)

    def _move(
        self, before: Store | None, zone: str, centre: bytes, key: bytes, statements: Iterable[bytes]
    ) -> None:
        """Become a device of another zone, and write there anew what was written here."""
        self._database.query(
            "INSERT INTO zone (name, centre) VALUES (?, ?) ON CONFLICT (name) DO UPDATE"
            " SET centre = excluded.centre",
            (zone, centre),
        )
        logs = self._own_logs(before) if before is not None else set()
        self._set_meta("zone", zone)
        # Its changes are in the records that are written anew below; its counters are those of the old log.
        self._database.query("DELETE FROM tail")
        # The list of the other zone begins elsewhere.
        self._database.query("DELETE FROM left_out")
        # A centre that both zones are of is where it was; another one's records do not go there.
        url = "kept url" if before is not None and before.centre == centre else ""
        self._database.query(
            "DELETE FROM meta WHERE name LIKE 'kept %' AND name NOT IN ('kept number', ?)", (url,)
        )
        self._begin_epoch()
        self._set_meta("key", key)
        self._store = None
        # Who comes back has only what is in segments: the rest is among the values that are written now; what
        # was cut off there is older than those, and comes first.
        store = self._require_store()
        with store.together():
            self._state(statements)
            store.stale = True
        self._write_anew()
        if before is not None:
            said = before.tables.written_by(logs)
            for page in _pages(Change(one.type, one.key, one.value, one.at) for one in said):
                self._write(page, at=0, settles=False)
        self._forget_what_is_not_here()
        self._forget_left_zones()

    def _forget_what_is_not_here(self) -> None:
        """Have sources say again what the other zone has not been told. What is here was heard: of a record
        that several servers write an old word would go before what others have said since.
        """
        self._database.query(
            "DELETE FROM told WHERE NOT EXISTS (SELECT 1 FROM record r WHERE r.zone = ?"
            " AND r.type = told.type AND r.key = told.key AND r.value IS NOT NULL)",
            (self._require_store().zone,),
        )

    def _forget_left_zones(self) -> None:
        """Forget what others wrote in zones that this server has left: it is of children whom nobody here
        needs to know, and no redaction there would reach it. Who comes back gets it again, but for what the
        centre is not known to have; that stays, as does what this server wrote.
        """
        zone = (self._require_store().zone,)
        self._database.query("DELETE FROM record WHERE zone <> ?", zone)
        self._database.query("DELETE FROM quarantine WHERE zone <> ?", zone)
        self._database.query(
            "DELETE FROM segment WHERE zone <> ? AND ours = 0 AND at_centre IN (?, ?)",
            (*zone, _RECEIVED, _LISTED),
        )

    def _own_logs(self, store: Store) -> set[bytes]:
        """Return all logs of a zone that are this server's, whatever its epoch or key was."""
        rows = self._database.query('SELECT DISTINCT "key" FROM segment WHERE ours > 0')
        keys = {store.own, *(bytes(key) for (key,) in rows)}
        return {self._own_log(), *(log for log, key in store.authors().items() if key in keys)}

    def _state(self, statements: Iterable[bytes]) -> list[bytes]:
        """Keep statements; return the ids of those that are new."""
        store = self._require_store()
        with store.together():
            new = {statement_id(data): one for data in statements if (one := store.state(data)) is not None}
        # What they order to be forgotten may be all that was asked for.
        self._forget_left_out([bytes.fromhex(one.segment) for one in new.values() if one.segment])
        return list(new)

    def _forget_left_out(self, ids: Iterable[bytes]) -> None:
        """Ask no more for those of some segments that are here as they should be."""
        rows = [(id_,) for id_ in ids]
        query = f"DELETE FROM left_out WHERE id IN (SELECT id FROM segment WHERE id = ? AND {WHOLE})"  # noqa: S608 - constants
        self._database.many(query, rows)

    def _write_anew(self) -> None:
        """Write anew, in a log that counts, what of this server's logs was cut off by a revocation: of a key
        that it had before, or of its own, if it was enrolled again since.
        """
        store = self._require_store()
        member = store.member(store.own)
        # Also who is not taken in again goes on in a log of which nothing was cut off.
        if self._own_log() in member.cut_offs:
            self._renew(None)
            store = self._require_store()
        if not member.lives:
            return
        # The newest first: what it has seen is not written again.
        for id_ in self._cut_off(store):
            if (segment := store.read(id_)) is None:
                continue
            limit = store.limit(segment.header.key, segment.log, id_)
            label, seen = store.named_by_author(segment.log, id_)
            lost: dict[Name, tuple[int, Entry]] = {}
            for counter, raw in segment.numbered():
                if limit is not None and counter > limit:
                    entry = decode_entry(raw)
                    lost[entry.type, entry.key] = (counter, entry)
            self._append(store, label, seen, lost)
            self._database.query("UPDATE segment SET ours = ? WHERE id = ?", (_WRITTEN_ANEW, id_))

    def _append(
        self, store: Store, label: bytes, seen: Vector, lost: Mapping[Name, tuple[int, Entry]]
    ) -> None:
        """Append entries of an older log, with their counters there, to the own one, but for those that
        somebody has seen who went on from there: also this server, in all that it wrote in its own one.
        """
        states, counter, entries = store.tables.states(lost), self.counter, []
        own = self._own_log()
        for name, (before, entry) in lost.items():
            state = states.get(name)
            if state is None or not (own in state.seen or is_claimed(state, label, before)):
                counter += 1
                entries.append((counter, encode_entry(_with_context(entry, {**seen, label: before}))))
        if entries:
            store.tables.apply(own, entries, store.clip, states)
            self._add_to_tail(entries)
            self._set_meta("counter", counter)

    def _cut_off(self, store: Store) -> list[bytes]:
        """Return the segments cut here of which something does not count, the newest first."""
        rows = self._database.query(
            'SELECT id, "key", log, "last" FROM segment WHERE zone = ? AND ours = 1 ORDER BY rowid DESC',
            (store.zone,),
        )
        return [
            bytes(id_)
            for id_, key, log, last in rows
            if (limit := store.limit(bytes(key), bytes(log), bytes(id_))) is not None and limit < last
        ]

    def _renew(self, foreign: Segment | None, key: bytes = b"") -> None:
        """Begin a new epoch, with a new key if one is given. `foreign` is a segment of the old one that
        somebody else has cut.
        """
        store, log = self._require_store(), self._own_log()
        newest = self._newest_own()
        base = self.counter - len(tail := list(self._tail_entries()))
        self._database.query("DELETE FROM tail")
        self._begin_epoch()
        former = store.own
        if key:
            self._set_meta("key", key)
            self._store = None
            store = self._require_store()
        with store.together():
            if key:
                store.judge(former)  # it is no more the own one
            if foreign is not None:
                store.accept(foreign)
            # What was written in the old epoch and not cut has seen all that was, on our branch of it.
            label, before = store.named_by_author(log, newest)
            seen = {**before, label: base} if base else {}
            entries = [
                (number, encode_entry(_with_context(decode_entry(entry), seen)))
                for number, (_, entry) in enumerate(tail, 1)
            ]
            self._add_to_tail(entries)
            self._set_meta("counter", len(entries))
            if entries:
                store.stale = True  # they were applied as the old epoch's

    def _tail_entries(self) -> Iterator[tuple[int, bytes]]:
        """Yield the entries of the tail, of which one row is held; a row whose first was yielded may go."""
        first = 0
        while rows := self._database.query(
            'SELECT "first", entries FROM tail WHERE "first" > ? ORDER BY "first" LIMIT 1', (first,)
        ):
            ((first, packed),) = rows
            yield from enumerate(_tail_decoder.decode(zstandard.decompress(packed)), first)

    def _add_to_tail(self, entries: Sequence[tuple[int, bytes]]) -> None:
        if entries:
            packed = zstandard.compress(msgspec.msgpack.encode([entry for _, entry in entries]), _TAIL_LEVEL)
            self._database.query('INSERT INTO tail ("first", entries) VALUES (?, ?)', (entries[0][0], packed))

    def _tail(self) -> tuple[bytes, list[tuple[int, bytes]]] | None:
        return (self._own_log(), tail) if (tail := list(self._tail_entries())) else None

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

    @property
    def _zone(self) -> int | None:
        return self.store.zone if self.store is not None else None

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
        if value is None and known.policy == "latest" and state is not None and is_conflict(state, "latest"):
            value = current  # whoever says what is shown settles what others say
    if value is None and (change.value is not None or current is None):
        return None
    depth, context = 1, None
    if state is not None:
        depth = min(MAX_DEPTH, 1 + max((one.depth for one in state.siblings), default=0))
        # Nothing that is only claimed: who repeats a lie makes it true. What lives comes first.
        first = {one.log: one.counter for one in state.siblings}
        seen = {name: counter for name, counter in {**first, **state.seen}.items() if name != log}
        context = _bounded(seen) or None
    return Entry(change.type, change.key, known.schema, depth, at, value, context)


def _is_said(change: Change, state: State) -> bool:
    """Return whether one of those whose word counts says already what a change does."""
    new, policy = change.value, TYPES[change.type].policy
    return new is not None and any(
        one.value is not None and next_value(one.value, new, policy) is None for one in state.siblings
    )


def _digest(change: Change) -> bytes:
    said = b"" if change.value is None else written(change.value).encode()
    return hashlib.blake2b(said, digest_size=12).digest()


def _with_context(entry: Entry, seen: dict[bytes, int]) -> Entry:
    """Return an entry that has seen more."""
    context = entry.context or {}
    return msgspec.structs.replace(entry, context=_bounded({**seen, **context, **seen}) or None)


def _bounded(context: dict[bytes, int]) -> dict[bytes, int]:
    """Return a context that others read."""
    return dict(islice(context.items(), MAX_CONTEXT))


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
        write_ahead.switch(db, path)
        db.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut
        db.execute("PRAGMA secure_delete = ON")  # what is to be forgotten is nowhere in the file
        db.execute(f"PRAGMA cache_size = -{CACHE}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"is of version {version}, this shala knows {VERSION}")
        if not version:
            db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db
