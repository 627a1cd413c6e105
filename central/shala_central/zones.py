"""Zones: organizations, their zones and the devices in them, as the centre knows them.

What a device may do follows from the statements that the centre has signed (shala_agent.membership); the rows
of the table `device` say the same for lists and for the door of the server.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from nacl.signing import SigningKey
from shala_agent.haves import Ranges
from shala_agent.membership import FORMAT, Statement, sign_statement
from shala_agent.segment import Entry, read_segment
from shala_agent.store import Store

from shala_central import arrivals
from shala_central.centre_key import centre_key
from shala_central.config import ZoneSettings
from shala_central.database import Database, Session
from shala_central.failure import UsageError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SERVER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEVICE_COLUMNS = (
    "d.id, d.key, d.zone, z.name, d.name, d.enrolled, d.revoked, d.reason, d.contact, d.software, d.epoch,"
    " d.counter, d.place, d.wanted"
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


class Zones:
    """The database of zones together with the key that speaks for them."""

    def __init__(self, database: Database, key: SigningKey, url: str) -> None:
        self.database = database
        self.key = key
        self.url = url

    @classmethod
    def open(cls, settings: ZoneSettings) -> Zones:
        """Open (and make, or upgrade) what a configuration names. Raises CentralError."""
        database = Database(settings.database).open()
        with database.reading() as session:
            known = _meta(session, "centre")
        key = centre_key(Path(settings.key_file), known)
        if known is None:
            with database.writing() as session:
                _set_meta(session, "centre", bytes(key.verify_key))
                _set_meta(session, "session", secrets.token_bytes(32))
        return cls(database, key, settings.url)

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
        """Make a device one of a zone. It is in no other one: the caller has revoked it there."""
        self.say(session, zone, "enrol", key, name=name)
        session.query(
            'INSERT INTO device (id, "key", zone, name, enrolled) VALUES (?, ?, ?, ?, ?)'
            " ON CONFLICT (id) DO UPDATE SET zone = excluded.zone, name = excluded.name,"
            " enrolled = excluded.enrolled, revoked = NULL, reason = '', place = 0, wanted = 0",
            (device_id, key, zone.id, name, now()),
        )

    def revoke(self, session: Session, device: Device, reason: str) -> None:
        """Cut a device off. What the centre has of its logs by now goes on to count, nothing after that."""
        zone = self.zone(session, device.zone_name)
        session.lock_zone(zone.id)
        cut_offs = {log.hex(): haves.greatest for log, haves in self.logs(session, zone, device.key).items()}
        self.say(session, zone, "revoke", device.key, name=device.name, cut_offs=cut_offs, reason=reason)
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

    def redact(self, session: Session, zone: Zone, type_: str, key: str, reason: str) -> int:
        """Have every entry of a record forgotten for good, everywhere; return how many there are here."""
        session.lock_zone(zone.id)
        session.forget_for_good()
        number = 0
        ids = session.query("SELECT id FROM segment WHERE zone = ? ORDER BY id", (zone.id,))
        for (id_,) in ids:
            rows = session.query("SELECT data FROM segment WHERE id = ?", (id_,))
            segment = read_segment(bytes(rows[0][0]))
            counters = [counter for counter, raw in segment.numbered() if names_of(raw) == (type_, key)]
            if counters:
                number += len(counters)
                session.query("DELETE FROM part WHERE segment = ?", (segment.id,))
                self.say(
                    session,
                    zone,
                    "redact",
                    segment.header.key,
                    reason=reason,
                    segment=segment.id,
                    counters=counters,
                )
        return number

    # -- statements ------------------------------------------------------------------------------------------

    def store(self, session: Session, zone_id: int, zone_name: str) -> Store:
        """Return the store of a zone, good for this transaction only: it remembers things."""
        return Store(session, zone_id, zone_name, self.public_key)

    def say(
        self,
        session: Session,
        zone: Zone,
        kind: str,
        key: bytes,
        *,
        name: str = "",
        reason: str = "",
        cut_offs: dict[str, int] | None = None,
        segment: bytes = b"",
        counters: list[int] | None = None,
    ) -> bytes:
        """Sign a statement about a device, do what follows, and give it its place; return its bytes."""
        session.lock_zone(zone.id)
        store = self.store(session, zone.id, zone.name)
        member = store.member(key)
        statement = Statement(
            format=FORMAT,
            kind=kind,  # type: ignore[arg-type] # checked by whoever reads it
            zone=zone.name,
            key=key.hex(),
            name=name,
            generation=max(member.enrolled, member.revoked) + 1,
            cut_offs=cut_offs or {},
            reason=reason,
            segment=segment.hex(),
            counters=counters or [],
        )
        data = sign_statement(self.key, statement)
        if store.state(data) is not None:
            arrivals.append(session, zone.id, "statement", statement_id(data))
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
        entry = msgspec.msgpack.decode(raw, type=Entry)
    except msgspec.MsgspecError:
        return "", ""
    return entry.type, entry.key


def statement_id(data: bytes) -> bytes:
    """Return the id of a statement."""
    return hashlib.sha256(data[64:]).digest()


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
