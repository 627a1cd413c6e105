"""Zone status: how far each device is behind, what is in dispute, and where a record is. Only reads."""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

from shala_agent.merge import Value, parsed
from shala_agent.segment import log_id
from shala_agent.store import Store

from shala_central import arrivals
from shala_central.database import Session
from shala_central.zones import Device, Zone, Zones, now

# What was deleted is not shown whether its account is there or not.
_WAITING = "zone = ? AND waits IS NOT NULL AND value IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Lag:
    """What a device and the centre still lack of each other, as of the device's last contact."""

    name: str
    device: str
    revoked: bool
    contact: int | None
    age_seconds: int | None
    counter: int  # changes that it is known to have cut, in all its epochs
    held: int  # of those, how many are here
    up_entries: int
    up_bytes: int
    down_entries: int
    down_bytes: int
    named_entries: int  # of what is to go down, what it was sent: it confirms that when it comes again
    named_bytes: int
    left_out: int  # segments that it passed and could not have
    to_be_told: int  # revocations and redactions of which it has not said that it has them

    @property
    def is_behind(self) -> bool:
        """Return whether something has still to travel."""
        return bool(self.up_entries or self.up_bytes or self.down_entries or self.left_out)

    @property
    def is_to_confirm(self) -> bool:
        """Return whether it lacks nothing but to say that it got what it was sent."""
        others = self.up_entries or self.up_bytes or self.left_out
        return self.down_entries == self.named_entries > 0 and not others


@dataclass(slots=True)
class ZoneStatus:
    """One zone."""

    zone: str
    organization: str
    devices: list[Lag] = field(default_factory=list)
    segments: int = 0
    records: int = 0
    conflicts: list[str] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)  # by the record that they wait for
    quarantined: list[str] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)  # segments, by the reason
    forks: list[str] = field(default_factory=list)
    quotas: list[str] = field(default_factory=list)  # what is nearly used up
    more: dict[str, int] = field(default_factory=dict)  # of which list how many are not named
    remaking: bool = False  # the records are being made anew: not all are there


@dataclass(frozen=True, slots=True)
class Version:
    """One sibling of a record: who wrote it, as which of his changes, and who has it."""

    author: str
    counter: int
    at: int
    value: Value | None
    at_servers: list[str]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is."""

    zone: str
    type: str
    key: str
    value: Value | None
    conflict: bool
    waits: str | None
    versions: list[Version]
    missing_at: list[str]  # living devices that lack one of the versions, as far as known


def zone_status(zones: Zones, session: Session, zone: Zone, *, shown: int) -> ZoneStatus:
    """Return how a zone is; of what may be many at most `shown` are named."""
    status = ZoneStatus(zone.name, zone.organization)
    devices = zones.devices(session, zone)
    down = _since(session, zone, devices, {device.id: device.place for device in devices})
    new = _since(session, zone, devices, {device.id: max(device.place, device.named) for device in devices})
    untold = to_be_told(session, zone, devices)
    status.devices = [
        _lag(
            zones,
            session,
            zone,
            device,
            down.get(device.id, (0, 0)),
            new.get(device.id, (0, 0)),
            untold.get(device.id, 0),
        )
        for device in devices
    ]
    names = _Names(zones, session, zone)
    ((status.records,),) = session.query(
        "SELECT COUNT(*) FROM record WHERE zone = ? AND value IS NOT NULL AND waits IS NULL", (zone.id,)
    )
    ((status.segments,),) = session.query("SELECT COUNT(*) FROM segment WHERE zone = ?", (zone.id,))
    status.conflicts = [
        f"{type_} {key}"
        for type_, key in session.query(
            "SELECT type, key FROM record WHERE zone = ? AND conflict = 1 ORDER BY type, key LIMIT ?",
            (zone.id, shown),
        )
    ]
    status.waiting = _counts(
        session,
        f"SELECT waits, COUNT(*) FROM record WHERE {_WAITING} GROUP BY waits ORDER BY waits LIMIT ?",  # noqa: S608
        zone,
        shown,
    )
    status.held = _counts(
        session,
        "SELECT held, COUNT(*) FROM segment WHERE zone = ? AND held IS NOT NULL GROUP BY held"
        " ORDER BY held LIMIT ?",
        zone,
        shown,
    )
    status.quarantined = [
        f"{names.author(bytes(log))}, entry {counter}: {reason}"
        for log, counter, reason in session.query(
            "SELECT l.log, q.counter, q.reason FROM quarantine q JOIN log l ON l.id = q.log"
            " WHERE q.zone = ? ORDER BY q.log, q.counter LIMIT ?",
            (zone.id, shown),
        )
    ]
    for name, shown_here, sql in (
        ("conflicts", status.conflicts, "COUNT(*) FROM record WHERE zone = ? AND conflict = 1"),
        ("waiting", status.waiting, f"COUNT(DISTINCT waits) FROM record WHERE {_WAITING}"),
        ("held", status.held, "COUNT(DISTINCT held) FROM segment WHERE zone = ?"),
        ("quarantined", status.quarantined, "COUNT(*) FROM quarantine WHERE zone = ?"),
    ):
        if len(shown_here) == shown:
            ((number,),) = session.query(f"SELECT {sql}", (zone.id,))
            status.more[name] = int(number) - shown
    status.forks = list(_forks(session, zone, names))
    ((remade,),) = session.query("SELECT remade FROM zone WHERE id = ?", (zone.id,))
    status.remaking = remade is not None
    status.quotas = list(zones.quotas.near(session, zone.id))
    return status


def to_be_told(session: Session, zone: Zone, devices: list[Device]) -> dict[bytes, int]:
    """Return of how many revocations and redactions each living device has not said yet that it has them, if
    there are any. What it was sent it may have lost with the line: only its cursor says what it has.
    """
    rows = session.query(
        "SELECT a.place FROM statement s JOIN arrival a ON a.id = s.id"
        " WHERE s.zone = ? AND s.kind <> 'enrol' ORDER BY a.place",
        (zone.id,),
    )
    places = [int(place) for (place,) in rows]
    left = {one.id: len(places) - bisect(places, one.place) for one in devices if one.revoked is None}
    return {id_: number for id_, number in left.items() if number}


def place_of(zones: Zones, session: Session, zone: Zone, type_: str, key: str) -> Place | None:
    """Return where a record of a zone is, None if it was never there."""
    store = zones.store(session, zone.id, zone.name)
    found = store.tables.record(type_, key) if type_ in store.tables.types else None
    if found is None:
        return None
    names = _Names(zones, session, zone)
    devices = [device for device in zones.devices(session, zone) if device.revoked is None]
    versions = []
    for one in found.siblings:
        segment = names.segment_of(one.log, one.counter)
        there = [device.name for device in devices if _has(session, device, segment)]
        value = None if one.value is None else parsed(one.value)
        versions.append(Version(names.author(one.log), one.counter, one.at, value, there))
    missing = [
        device.name for device in devices if any(device.name not in one.at_servers for one in versions)
    ]
    return Place(zone.name, type_, key, found.value, found.conflict, found.waits, versions, missing)


class _Names:
    """Finds out whose a log is, branches of forked logs as well."""

    def __init__(self, zones: Zones, session: Session, zone: Zone) -> None:
        self._session, self._zone = session, zone
        self._store: Store = zones.store(session, zone.id, zone.name)
        self._branches = {
            self._store.label(bytes(log), bytes(id_)): (bytes(log), bytes(id_))
            for log, id_ in session.query(
                "SELECT s.log, s.id FROM segment s JOIN fork f ON f.zone = s.zone AND f.log = s.log"
                ' WHERE s.zone = ? ORDER BY s."first" DESC',
                (zone.id,),
            )
        }

    def author(self, log: bytes) -> str:
        """Return the name of the device that wrote a log."""
        trunk = self._branches.get(log, (log, b""))[0]
        rows = self._session.query(
            'SELECT "key" FROM segment WHERE zone = ? AND log = ? LIMIT 1', (self._zone.id, trunk)
        )
        if not rows:
            return f"log {log.hex()}"
        key = bytes(rows[0][0])
        return self._store.member(key).name or f"device {hashlib.sha256(key).hexdigest()[:12]}"

    def segment_of(self, log: bytes, counter: int) -> tuple[bytes, bytes] | None:
        """Return id and author's key of the segment that holds an entry."""
        trunk = self._branches.get(log, (log, b""))[0]
        rows = self._session.query(
            'SELECT id, "key" FROM segment WHERE zone = ? AND log = ? AND "first" <= ? AND "last" >= ?',
            (self._zone.id, trunk, counter, counter),
        )
        for id_, key in rows:
            if self._store.label(trunk, bytes(id_)) == log:
                return bytes(id_), bytes(key)
        return None


def _has(session: Session, device: Device, segment: tuple[bytes, bytes] | None) -> bool:
    """Return whether a device is known to have a segment: as its author, or by its cursor."""
    if segment is None:
        return False
    id_, key = segment
    return key == device.key or arrivals.place(session, id_) <= device.place


def _since(
    session: Session, zone: Zone, devices: list[Device], places: dict[bytes, int]
) -> dict[bytes, tuple[int, int]]:
    """Return, by living device, how many entries and bytes of others have come since its own place.

    From the end of the list to its beginning, once for all of them.
    """
    living = sorted((device for device in devices if device.revoked is None), key=lambda one: places[one.id])
    if not living:
        return {}
    rows = session.query(
        'SELECT a.place, s."key", s."last" - s."first" + 1, s.size FROM arrival a'
        " JOIN segment s ON s.id = a.id WHERE a.zone = ? AND a.place > ? ORDER BY a.place",
        (zone.id, places[living[0].id]),
    )
    found, entries, size = {}, 0, 0
    own: dict[bytes, tuple[int, int]] = {}
    left = len(rows)
    for device in reversed(living):
        while left and rows[left - 1][0] > places[device.id]:
            left -= 1
            _, key, more_entries, more_size = rows[left]
            entries, size = entries + more_entries, size + more_size
            own_entries, own_size = own.get(bytes(key), (0, 0))
            own[bytes(key)] = (own_entries + more_entries, own_size + more_size)
        own_entries, own_size = own.get(device.key, (0, 0))
        found[device.id] = (entries - own_entries, size - own_size)
    return found


def _lag(  # noqa: PLR0917 - of one device
    zones: Zones,
    session: Session,
    zone: Zone,
    device: Device,
    down: tuple[int, int],
    new: tuple[int, int],
    untold: int,
) -> Lag:
    logs = zones.logs(session, zone, device.key)
    here = logs.get(log_id(device.key, device.epoch)) if device.epoch is not None else None
    missing = device.counter if here is None else sum(b - a + 1 for a, b in here.missing(device.counter))
    held = sum(map(len, logs.values()))
    return Lag(
        name=device.name,
        device=device.id.hex(),
        revoked=device.revoked is not None,
        contact=device.contact,
        age_seconds=None if device.contact is None else max(0, now() - device.contact),
        counter=held + missing,
        held=held,
        up_entries=missing,
        up_bytes=device.wanted,
        down_entries=down[0],
        down_bytes=down[1],
        named_entries=down[0] - new[0],
        named_bytes=down[1] - new[1],
        left_out=device.left_out,
        to_be_told=untold,
    )


def _counts(session: Session, sql: str, zone: Zone, shown: int) -> dict[str, int]:
    return {str(name): int(number) for name, number in session.query(sql, (zone.id, shown))}


def _forks(session: Session, zone: Zone, names: _Names) -> Iterator[str]:
    for (log,) in session.query("SELECT log FROM fork WHERE zone = ? ORDER BY log", (zone.id,)):
        yield (
            f"{names.author(bytes(log))}: its log was continued twice (a copied disk or a restored backup)."
            " Both sides' records are kept and it counts anew by itself; if two servers run from one disk"
            " image, remove the device key on the copy and enrol that one: shala device create"
        )
    disputed = session.query(
        "SELECT d.name FROM contact c JOIN device d ON d.id = c.device"
        " WHERE c.zone = ? AND c.disputed IS NOT NULL GROUP BY d.name ORDER BY d.name",
        (zone.id,),
    )
    for (name,) in disputed:
        yield (
            f"{name}: somebody else spoke in its name, or it was set back (a copied disk, a restored backup)."
            " It goes on in a new epoch by itself; if there is a copy, enrol that one: shala device create"
        )
