"""Uploads: segments on their way to the centre. Parts are kept in the database until a segment is whole, so
an upload goes on with any worker and in any later session; a whole one is verified before all else.
"""

from __future__ import annotations

from shala_agent.segment import MAX_SEGMENT, Segment, SegmentRefused, read_segment
from shala_agent.store import WHOLE
from shala_agent.wire import Receipt

from shala_central import arrivals
from shala_central.database import Session
from shala_central.refusal import Refusal
from shala_central.zones import Device, Zones, now

MAX_PART = 256 << 10  # bytes of one body
MAX_OPEN = 4  # segments of one device that are here in part: bounds what a device can leave behind


def open_parts(session: Session, device: bytes) -> dict[tuple[bytes, int], int]:
    """Return how many bytes are here of the segments that are here in part, by id and size of the whole."""
    rows = session.query(
        "SELECT segment, size, SUM(LENGTH(data)) FROM part WHERE device = ? GROUP BY segment, size", (device,)
    )
    return {(bytes(segment), int(size)): int(there) for segment, size, there in rows}


def take(  # noqa: PLR0917 - the parts of one request
    zones: Zones, device: Device, id_: bytes, offset: int, size: int, body: bytes
) -> Receipt:
    """Keep a part of a segment, or the whole, verified and applied; the receipt tells what is on the disk.

    Raises Refusal.
    """
    if not 0 < size <= MAX_SEGMENT:
        raise Refusal(413, f"a segment has 1 to {MAX_SEGMENT} bytes, not {size}")
    if not body or offset + len(body) > size:
        raise Refusal(422, f"{len(body)} bytes at {offset} are no part of {size} bytes")
    with zones.database.reading() as session:
        if _is_here(session, device, id_):
            return Receipt(offset=size, whole=True)
        zones.quotas.require_bytes(session, device.id, device.zone, size)
        there = open_parts(session, device.id).get((id_, size), 0)
        whole = offset == there and offset + len(body) == size
        before = _beginning(session, device, id_, size) if whole else b""
    zones.quotas.require_room(zones.database)
    if offset != there:
        raise _wrong_offset(there)
    if not whole:
        _keep_part(zones, device, id_, offset, size, body)
        return Receipt(offset=offset + len(body))
    try:
        segment = read_segment(before + body)
        if segment.id != id_:
            raise SegmentRefused("its id is another one")
        _require_content(zones, device, segment)
        _keep(zones, device, segment)
    except SegmentRefused as error:
        with zones.database.writing() as session:
            _forget(session, device, id_)
        raise Refusal(
            422, f"segment refused: {error}", receipt=Receipt(offset=0, refused=str(error))
        ) from None
    return Receipt(offset=size, whole=True)


def _keep(zones: Zones, device: Device, segment: Segment) -> None:
    """Keep a verified segment, apply it and give it its place, all at once or not at all."""
    with zones.database.writing() as session:
        session.lock_zone(device.zone)
        require_membership(zones, session, device)
        zones.quotas.require_epoch(session, device.zone, segment)
        accepted = zones.store(session, device.zone, device.zone_name).accept(segment)
        if accepted.standing != "known":
            arrivals.append(session, device.zone, "segment", segment.id, device.id)
            size = len(segment.data)
            session.query(
                "UPDATE device SET bytes = bytes + ?,"
                " wanted = CASE WHEN wanted > ? THEN wanted - ? ELSE 0 END WHERE id = ?",
                (size, size, size, device.id),
            )
            session.query("UPDATE zone SET bytes = bytes + ? WHERE id = ?", (size, device.zone))
        if accepted.standing == "held":
            zones.quotas.require_held(session, device.id, device.zone)
        _forget(session, device, segment.id)


def _require_content(zones: Zones, device: Device, segment: Segment) -> None:
    """Raise Refusal where entries of a segment are gone that nobody has ordered to be forgotten: id and
    signature are right all the same, and what its author has to give would never be wanted any more.
    """
    if None not in segment.entries:
        return
    with zones.database.reading() as session:
        ordered = zones.store(session, device.zone, device.zone_name).to_be_forgotten(segment.id)
    numbers = range(segment.header.first, segment.header.last + 1)
    if any(
        entry is None and number not in ordered
        for number, entry in zip(numbers, segment.entries, strict=True)
    ):
        with zones.database.writing() as session:
            _forget(session, device, segment.id)
        # Not for ever: after a backup was restored, the order may be on its way back here.
        raise Refusal(
            409, "entries of it are gone that nobody has ordered to be forgotten", receipt=Receipt(offset=0)
        )


def require_membership(zones: Zones, session: Session, device: Device) -> None:
    """Raise Refusal where a device is revoked, or was moved since its request was let in."""
    current = zones.device(session, device.id)
    if current is None or current.zone != device.zone:
        raise Refusal(403, "this device was moved")
    require_living(current)


def require_living(device: Device) -> None:
    """Raise Refusal for a device that is revoked."""
    if device.revoked is not None:
        raise Refusal(403, f"this device is revoked{': ' if device.reason else ''}{device.reason}")


def _keep_part(  # noqa: PLR0917 - the parts of one request
    zones: Zones, device: Device, id_: bytes, offset: int, size: int, body: bytes
) -> None:
    with zones.database.writing() as session:
        session.lock_device(device.id)
        if (there := open_parts(session, device.id).get((id_, size), 0)) != offset:
            raise _wrong_offset(there)
        if offset == 0:
            _make_room(session, device, id_)
        session.query(
            'INSERT INTO part (device, segment, "first", size, at, data) VALUES (?, ?, ?, ?, ?, ?)',
            (device.id, id_, offset, size, now(), body),
        )


def _make_room(session: Session, device: Device, id_: bytes) -> None:
    """Begin a segment (anew), and forget what was begun longest ago."""
    _forget(session, device, id_)
    rows = session.query(
        "SELECT segment FROM part WHERE device = ? GROUP BY segment ORDER BY MAX(at) DESC, segment",
        (device.id,),
    )
    for (other,) in rows[MAX_OPEN - 1 :]:
        _forget(session, device, other)


def _beginning(session: Session, device: Device, id_: bytes, size: int) -> bytes:
    """Return what is here of a segment that is said to have `size` bytes."""
    rows = session.query(
        'SELECT data FROM part WHERE device = ? AND segment = ? AND size = ? ORDER BY "first"',
        (device.id, id_, size),
    )
    return b"".join(bytes(data) for (data,) in rows)


def _forget(session: Session, device: Device, id_: bytes) -> None:
    session.query("DELETE FROM part WHERE device = ? AND segment = ?", (device.id, id_))


def _is_here(session: Session, device: Device, id_: bytes) -> bool:
    query = f"SELECT 1 FROM segment WHERE id = ? AND zone = ? AND {WHOLE}"  # noqa: S608 - constants
    return bool(session.query(query, (id_, device.zone)))


def _wrong_offset(there: int) -> Refusal:
    return Refusal(409, f"the centre has {there} bytes of it", receipt=Receipt(offset=there))
