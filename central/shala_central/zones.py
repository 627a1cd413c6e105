"""Zones: organizations, their zones and the devices in them, as the centre knows them.

What a device may do follows from the statements that the centre has signed (shala_agent.membership); the rows
of the table `device` say the same for lists and for the door of the server.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey
from shala_agent.membership import FORMAT, Statement, decode_statement, sign_statement, statement_id
from shala_agent.record_types import types_digest
from shala_agent.segment import EntryUnreadable, Segment, SegmentRefused, decode_entry, read_segment
from shala_agent.store import TO_MEND

from shala_central import arrivals
from shala_central.centre_key import centre_key
from shala_central.config import ZoneSettings
from shala_central.database import Database, Session, sqlite_file
from shala_central.failure import CentralError, UsageError
from shala_central.haves import Ranges
from shala_central.quotas import Quotas
from shala_central.remake import CLEARING, FIRST_STEP, STEP, CentralStore

MAX_ENDS = 1_500  # of logs in one revocation: some 230 KiB
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SERVER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEVICE_COLUMNS = (
    "d.id, d.key, d.zone, z.name, d.name, d.enrolled, d.revoked, d.reason, d.contact, d.software, d.epoch,"
    " d.counter, d.place, d.wanted, d.left_out, d.named"
)


@dataclass(frozen=True, slots=True)
class Zone:
    """A group of devices that share records."""

    id: int
    name: str
    organization: str


@dataclass(frozen=True, slots=True)
class Device:
    """A server as a party of sync. What it said of itself is as of its last contact."""

    id: bytes
    key: bytes
    zone: int
    zone_name: str
    name: str
    enrolled: int
    revoked: int | None
    reason: str
    contact: int | None
    software: str
    epoch: int | None
    counter: int
    place: int
    wanted: int
    left_out: int
    named: int


class Zones:
    """The database of zones together with the key that speaks for them."""

    def __init__(self, database: Database, key: SigningKey, settings: ZoneSettings) -> None:
        self.database = database
        self.key = key
        self.url = settings.url
        self.quotas = Quotas(settings)
        self._remade = 0  # the zone of the last step

    @classmethod
    def open(cls, settings: ZoneSettings, *, make: bool = True, anew: bool = False) -> Zones:
        """Open (make if it may be, or upgrade) what a configuration names; `anew`: also where the centre has
        had one. Raises CentralError.
        """
        if make and not anew:
            _require_no_lost_one(settings)
        database = Database(settings.database, make=make).open()
        with database.reading() as session:
            known = _meta(session, "centre")
        key = centre_key(Path(settings.key_file), known)
        if known is None:
            with database.writing() as session:
                _set_meta(session, "centre", bytes(key.verify_key))
                _set_meta(session, "session", secrets.token_bytes(32))
        zones = cls(database, key, settings)
        zones._follow_types()
        return zones

    def _follow_types(self) -> None:
        """Make the records anew if they were made by a shala that knew other types."""
        digest = types_digest()
        with self.database.reading() as session:
            if _meta(session, "types") == digest:
                return
        with self.database.writing() as session:
            if _meta(session, "types") != digest:  # or another worker was here first
                session.query("UPDATE zone SET remade = ?", (CLEARING,))
                session.query("DELETE FROM meta WHERE name = 'types'")
                _set_meta(session, "types", digest)
        self.remake_for(FIRST_STEP)

    @property
    def public_key(self) -> bytes:
        """By which statements are verified."""
        return bytes(self.key.verify_key)

    # -- organizations and zones -----------------------------------------------------------------------------

    def create_organization(self, session: Session, name: str) -> None:
        """Make an organization. Raises UsageError."""
        _check_name(name, "an organization")
        if session.query("SELECT 1 FROM organization WHERE name = ?", (name,)):
            raise UsageError(f"there is an organization '{name}' already (shala org list)")
        session.query("INSERT INTO organization (name, created) VALUES (?, ?)", (name, now()))

    def require_organization(self, session: Session, name: str) -> int:
        """Return the number of an organization. Raises UsageError."""
        rows = session.query("SELECT id FROM organization WHERE name = ?", (name,))
        if not rows:
            raise UsageError(f"there is no organization '{name}' (shala org list; shala org create NAME)")
        return int(rows[0][0])

    def create_zone(self, session: Session, name: str, organization: str) -> None:
        """Make a zone of an organization. Raises UsageError."""
        _check_name(name, "a zone")
        owner = self.require_organization(session, organization)
        if session.query("SELECT 1 FROM zone WHERE name = ?", (name,)):
            raise UsageError(f"there is a zone '{name}' already (shala zone list)")
        session.query(
            "INSERT INTO zone (name, centre, organization, created, digest) VALUES (?, ?, ?, ?, ?)",
            (name, self.public_key, owner, now(), arrivals.START),
        )

    def zones(self, session: Session) -> list[Zone]:
        """Return all zones by name."""
        rows = session.query(
            "SELECT z.id, z.name, o.name FROM zone z JOIN organization o ON o.id = z.organization"
            " ORDER BY z.name"
        )
        return [Zone(*row) for row in rows]

    def zone(self, session: Session, name: str) -> Zone:
        """Return a zone. Raises UsageError."""
        for found in self.zones(session):
            if found.name == name:
                return found
        raise UsageError(f"there is no zone '{name}' (shala zone list)")

    # -- devices ---------------------------------------------------------------------------------------------

    def devices(self, session: Session, zone: Zone | None = None) -> list[Device]:
        """Return the devices of a zone, or all, by name; the living one before those that were revoked."""
        only, parameters = (" WHERE d.zone = ?", (zone.id,)) if zone else ("", ())
        rows = session.query(
            f"SELECT {_DEVICE_COLUMNS} FROM device d JOIN zone z ON z.id = d.zone{only}"  # noqa: S608 - constants
            " ORDER BY z.name, d.name, d.revoked IS NOT NULL, d.id",
            parameters,
        )
        return [_device(row) for row in rows]

    def device(self, session: Session, id_: bytes) -> Device | None:
        """Return the device with this id."""
        rows = session.query(
            f"SELECT {_DEVICE_COLUMNS} FROM device d JOIN zone z ON z.id = d.zone WHERE d.id = ?",  # noqa: S608 - constants
            (id_,),
        )
        return _device(rows[0]) if rows else None

    def find_device(self, session: Session, name: str) -> Device:
        """Return a device by its server name or the beginning of its id. Raises UsageError."""
        found = [one for one in self.devices(session) if name in (one.name, one.id.hex())]
        if not found and len(name) >= 8:
            found = [one for one in self.devices(session) if one.id.hex().startswith(name)]
        living = [one for one in found if one.revoked is None]
        if len(living or found) == 1:
            return (living or found)[0]
        if not found:
            raise UsageError(f"there is no device '{name}' (shala device list)")
        raise UsageError(f"'{name}' is more than one device: say which by its id (shala device list)")

    def enrol(self, session: Session, zone: Zone, key: bytes, device_id: bytes, name: str) -> None:
        """Make a device one of a zone. It is in no other one: the caller has revoked it there.

        Raises UsageError if somebody else has put it in another one since the caller looked.
        """
        self.say(session, self.store(session, zone.id, zone.name), "enrol", key, name=name)
        rows = session.query(
            'INSERT INTO device (id, "key", zone, name, enrolled) VALUES (?, ?, ?, ?, ?)'
            " ON CONFLICT (id) DO UPDATE SET zone = excluded.zone, name = excluded.name,"
            " enrolled = excluded.enrolled, revoked = NULL, reason = '', place = 0, wanted = 0,"
            " left_out = 0, named = 0 WHERE device.revoked IS NOT NULL OR device.zone = excluded.zone"
            " RETURNING id",
            (device_id, key, zone.id, name, now()),
        )
        if not rows:
            raise UsageError(f"'{name}' has just been enrolled in another zone (shala device show {name})")

    def revoke(self, session: Session, device: Device, reason: str) -> None:
        """Cut a device off. What counts of it by now goes on to count, nothing that is written later."""
        zone = self.zone(session, device.zone_name)
        session.lock_zone(zone.id)
        store = self.store(session, zone.id, zone.name)
        ends = list(_ends(session, store, device.key))
        with store.together():
            for some in [ends[start : start + MAX_ENDS] for start in range(0, len(ends), MAX_ENDS)] or [[]]:
                heads: dict[str, list[str]] = {}
                for log, _, id_ in some:
                    heads.setdefault(log.hex(), []).append(id_.hex())
                self.say(
                    session,
                    store,
                    "revoke",
                    device.key,
                    name=device.name,
                    cut_offs={log.hex(): last for log, last, _ in some},
                    heads=heads,
                    reason=reason,
                )
        session.query("UPDATE device SET revoked = ?, reason = ? WHERE id = ?", (now(), reason, device.id))
        session.query("DELETE FROM part WHERE device = ?", (device.id,))

    def logs(self, session: Session, zone: Zone, key: bytes) -> dict[bytes, Ranges]:
        """Return what the centre has of each log of a device."""
        rows = session.query(
            'SELECT log, "first", "last" FROM segment WHERE zone = ? AND "key" = ? ORDER BY log, "first"',
            (zone.id, key),
        )
        found: dict[bytes, Ranges] = {}
        for log, first, last in rows:
            found.setdefault(bytes(log), Ranges()).add(int(first), int(last))
        return found

    def look_through(self, zone: Zone) -> int:
        """Read all segments of a zone; return how many the disk has hurt. They are noted as such, and asked
        for.
        """
        hurt, last = 0, b""
        while True:
            with self.database.reading() as session:
                rows = session.query(
                    "SELECT id FROM segment WHERE zone = ? AND id > ? ORDER BY id LIMIT 100", (zone.id, last)
                )
                ids = [bytes(id_) for (id_,) in rows]
                store = self.store(session, zone.id, zone.name)
                found = [id_ for id_ in ids if store.is_hurt(id_)]
            if not ids:
                return hurt
            self.note_hurt(zone.id, zone.name, found)
            hurt, last = hurt + len(found), ids[-1]

    def note_hurt(self, zone: int, name: str, ids: Sequence[bytes]) -> None:
        """Note which segments of a zone are damaged: they count no more, and are asked for."""
        if not ids:
            return
        with self.database.writing() as session:
            session.lock_zone(zone)
            store = self.store(session, zone, name)
            with store.together():
                for id_ in ids:
                    store.read(id_)

    def records_of_user(self, session: Session, zone: Zone, user: str) -> list[tuple[str, str]]:
        """Return type and key of the records of a zone that name a user: deleted and waiting ones as well."""
        rows = session.query(
            "SELECT type, key FROM record WHERE zone = ? AND key >= ? AND key < ? ORDER BY type, key",
            (zone.id, user, f"{user}0"),  # the sign after the slash
        )
        return [(type_, key) for type_, key in rows if names_user(type_, key, user)]

    def has_entries(
        self, session: Session, zone: Zone, type_: str, key: str, *, dependents: bool = False
    ) -> bool:
        """Return whether a redaction would find anything; it might where a segment is damaged."""
        query = "SELECT 1 FROM record WHERE zone = ? AND type = ? AND key = ?"
        if session.query(query, (zone.id, type_, key)):
            return True
        # What is held back, or of a type that is not known here, is in no record.
        ids = session.query("SELECT id FROM segment WHERE zone = ? ORDER BY id", (zone.id,))
        for (id_,) in ids:
            rows = session.query("SELECT data FROM segment WHERE id = ?", (id_,))
            try:
                if _counters_of(read_segment(bytes(rows[0][0])), type_, key, dependents=dependents):
                    return True
            except SegmentRefused:
                return True
        return False

    def redact(
        self, session: Session, zone: Zone, type_: str, key: str, reason: str, *, dependents: bool = False
    ) -> int:
        """Have every entry of a record forgotten for good, everywhere; return how many there are here.

        `dependents`: and of every other record that names the user whose account it is, also where it is
        held back or of a type that is not known here.
        """
        session.lock_zone(zone.id)
        session.forget_for_good()
        number, store = 0, self.store(session, zone.id, zone.name)
        ids = session.query("SELECT id FROM segment WHERE zone = ? ORDER BY id", (zone.id,))
        gone = [(type_, key), *(self.records_of_user(session, zone, key) if dependents else ())]
        session.many(
            "DELETE FROM record WHERE zone = ? AND type = ? AND key = ?", [(zone.id, *name) for name in gone]
        )
        with store.together():
            for (id_,) in ids:
                rows = session.query("SELECT data FROM segment WHERE id = ?", (id_,))
                try:
                    segment = read_segment(bytes(rows[0][0]))
                except SegmentRefused as error:
                    raise CentralError(
                        f"segment {bytes(id_).hex()} is damaged, nothing was forgotten: {error}"
                        " (restore a backup of the database first)"
                    ) from None
                counters = _counters_of(segment, type_, key, dependents=dependents)
                if counters:
                    number += len(counters)
                    session.query("DELETE FROM part WHERE segment = ?", (segment.id,))
                    author = segment.header.key
                    self.say(
                        session, store, "redact", author, reason=reason, segment=segment.id, counters=counters
                    )
        return number

    # -- statements ------------------------------------------------------------------------------------------

    def store(self, session: Session, zone_id: int, zone_name: str) -> CentralStore:
        """Return the store of a zone, good for this transaction only: it remembers things."""
        return CentralStore(session, zone_id, zone_name, self.public_key)

    def remake_step(self) -> bool:
        """Go on a step with making records anew, where that is to be done; return whether it was."""
        with self.database.reading() as session:
            rows = session.query(  # in turns: one that never gets done holds up nobody
                "SELECT id, name FROM zone WHERE remade IS NOT NULL ORDER BY id <= ?, id LIMIT 1",
                (self._remade,),
            )
        for id_, name in rows:
            self._remade = id_
            with self.database.writing() as session:
                session.lock_zone(id_)
                self.store(session, id_, name).go_on(STEP)
        return bool(rows)

    def remake_for(self, seconds: float) -> None:
        """Go on with making records anew until all are, or for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.remake_step():
            pass

    def say(
        self,
        session: Session,
        store: CentralStore,
        kind: str,
        key: bytes,
        *,
        name: str = "",
        reason: str = "",
        cut_offs: dict[str, int] | None = None,
        heads: dict[str, list[str]] | None = None,
        segment: bytes = b"",
        counters: list[int] | None = None,
    ) -> bytes:
        """Sign a statement about a device, do what follows, and give it its place; return its bytes."""
        session.lock_zone(store.zone)
        member = store.member(key)
        newest = max(member.enrolled, member.revoked)
        if kind != "redact":  # which says nothing of who belongs to the zone
            newest = max(newest, _newest_generation(session, key))
        statement = Statement(
            format=FORMAT,
            kind=kind,  # type: ignore[arg-type] # checked by whoever reads it
            zone=store.name,
            key=key.hex(),
            name=name,
            generation=newest + 1,
            cut_offs=cut_offs or {},
            heads=heads or {},
            reason=reason,
            segment=segment.hex(),
            counters=counters or [],
        )
        data = sign_statement(self.key, statement)
        if store.state(data) is not None:
            arrivals.append(session, store.zone, "statement", statement_id(data))
        return data


def check_server_name(name: str) -> None:
    """Raise UsageError unless a device may be called so."""
    if not _SERVER_NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name of a server (letters, digits, '.', '_', '-', at most 64; e.g. 2031017-mz17)"
        )


def now() -> int:
    """Return the centre's time in seconds."""
    return int(time.time())


def session_key(session: Session) -> bytes:
    """Return the key of the session tokens; all workers share it."""
    return _meta(session, "session") or b""


def names_of(raw: bytes) -> tuple[str, str]:
    """Return type and key of the record that an entry is of; empty for one that cannot be read."""
    try:
        entry = decode_entry(raw)
    except EntryUnreadable:
        return "", ""
    return entry.type, entry.key


def names_user(type_: str, key: str, user: str) -> bool:
    """Return whether a record is a user's: her account, or one of another type whose key begins with her."""
    return key == user if type_ == "account" else key.partition("/")[0] == user


def _require_no_lost_one(settings: ZoneSettings) -> None:
    """Raise UsageError where a centre that has its key already would make its database: by a slip of the pen,
    or beside a disk that is not mounted, an empty centre would be served.
    """
    # The key is made after the database: who sees it looks for that only then.
    path, has_key = sqlite_file(settings.database), os.path.lexists(settings.key_file)
    if path is not None and has_key and not _holds_anything(path):
        raise UsageError(
            f"no database at {path}, and {settings.key_file} is the key of one (correct zones.database, mount"
            " its disk, or put a backup there; to begin anew with this key: shala org create NAME"
            " --new-database)"
        )


def _holds_anything(path: Path) -> bool:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # what is in the way is said when it is opened
    return found.st_size > 0 or not stat.S_ISREG(found.st_mode)


def _counters_of(segment: Segment, type_: str, key: str, *, dependents: bool) -> list[int]:
    """Return which entries of a segment are of a record, or with `dependents` of the user whose it is."""
    return [
        counter
        for counter, raw in segment.numbered()
        if (name := names_of(raw)) == (type_, key) or (dependents and names_user(*name, key))
    ]


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be the name of {what} (small letters, digits, '.', '_' and '-', at most 64)"
        )


def _meta(session: Session, name: str) -> bytes | None:
    rows = session.query("SELECT value FROM meta WHERE name = ?", (name,))
    return bytes(rows[0][0]) if rows else None


def _set_meta(session: Session, name: str, value: bytes) -> None:
    session.query("INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", (name, value))


def _device(row: Sequence[Any]) -> Device:
    id_, key, *rest = row
    return Device(bytes(id_), bytes(key), *rest)


def _newest_generation(session: Session, key: bytes) -> int:
    """Return the greatest generation in which any zone has heard of a device."""
    said = session.query(  # zone after zone, by the index: without CROSS SQLite reads all that there is
        'SELECT s.data FROM zone z CROSS JOIN statement s WHERE s.zone = z.id AND s."key" = ?'
        " AND s.kind <> 'redact'",
        (key,),
    )
    return max((decode_statement(bytes(data)).generation for (data,) in said), default=0)


def _ends(session: Session, store: CentralStore, key: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield (log, its greatest counter, id) of those that count and that none of them continues.

    What the disk has hurt counts as well: it comes again, and a cut-off is never taken back.
    """
    rows = [
        (bytes(log), bytes(id_), int(last), bytes(previous))
        for log, id_, first, last, previous, held in session.query(
            'SELECT log, id, "first", "last", previous, held FROM segment'  # noqa: S608 - constants
            f' WHERE zone = ? AND "key" = ? AND (held IS NULL OR {TO_MEND}) ORDER BY log, id',
            (store.zone, key),
        )
        if held is None or (limit := store.limit(key, bytes(log), bytes(id_))) is None or limit >= first
    ]
    greatest: dict[bytes, int] = {}
    for log, _, last, _ in rows:
        greatest[log] = max(last, greatest.get(log, 0))
    continued = {previous for *_, previous in rows}
    for log, id_, _, _ in rows:
        if id_ not in continued:
            yield log, greatest[log], id_
