"""Exchange: what a device is answered that opens a session: which segments the centre wants of it, and what
has arrived in the zone since its cursor. Segments go by as they are; nothing here looks into one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence, Set

from shala_agent.store import TO_MEND, WHOLE
from shala_agent.wire import FORMAT, Offer, SyncAnswer, SyncRequest, Wanted

from shala_central import __version__, arrivals, recall
from shala_central.database import Session
from shala_central.refusal import Refusal
from shala_central.sessions import dispute, new_nonce, new_token, speaks_for_another, take_number
from shala_central.uploads import open_parts, require_living, require_membership
from shala_central.zones import Device, Zones, now

_AT_ONCE = 500  # segments in one query
MENDED_AT_ONCE = 20  # damaged segments that are asked for in one answer


def answer(zones: Zones, device: Device, request: SyncRequest, session_key: bytes) -> SyncAnswer:
    """Return the answer to a request that opens a session. Raises Refusal."""
    if request.format != FORMAT:
        raise Refusal(422, f"the request is of format {request.format}, this centre speaks {FORMAT}")
    if not (request.nonce + request.software).isprintable():
        raise Refusal(422, "nonce or software hold control characters")
    nonce = new_nonce(session_key, device.id, request)
    if request.statements:
        recall.hear(zones, request.statements)
        with zones.database.reading() as session:  # it may have been taken in again, or elsewhere
            device = zones.device(session, device.id) or device
    require_living(device)
    if request.doubted:
        _doubt(zones, device, set(request.doubted))
    with zones.database.writing() as session:
        session.lock_device(device.id)
        require_membership(zones, session, device)
        is_ours = arrivals.is_ours(session, device.zone, request.cursor)
        standing = take_number(
            session,
            session_key,
            device,
            request,
            nonce,
            knows_the_list=is_ours,
            max_epochs=zones.quotas.settings.max_device_epochs,
        )
        if standing.forked is not None:
            return SyncAnswer(fork=True, number=standing.forked)
        if standing.repeated:
            return SyncAnswer(nonce=nonce, restart=True)
        store = zones.store(session, device.zone, device.zone_name)
        if speaks_for_another(store, device, request):
            dispute(session, device, request.epoch)
            return SyncAnswer(fork=True, number=request.number)
        is_ours = is_ours and not standing.forgotten
        place = request.cursor.place if is_ours else 0
        wanted, size = _wanted(session, device, request.offers)
        wanted += _to_mend(session, device.zone, {one.id for one in wanted})
        items, cursor, more = arrivals.since(session, device.zone, place)
        _note(session, device, request, place, size)
    return SyncAnswer(
        nonce=nonce,
        zone=device.zone_name,
        session=new_token(session_key, device.id),
        restart=not is_ours,
        wanted=wanted,
        items=items,
        cursor=cursor,
        more=more,
        software=f"shala {__version__}",
    )


def _wanted(session: Session, device: Device, offers: Sequence[Offer]) -> tuple[list[Wanted], int]:
    """Return which of the offered segments are not here, from which byte on, and how many bytes that is."""
    if not offers:
        return [], 0
    here = set(_here(session, device.zone, [bytes.fromhex(offer.id) for offer in offers]))
    lacking = {offer.id: offer.size for offer in offers if bytes.fromhex(offer.id) not in here}
    parts = open_parts(session, device.id)
    wanted = [Wanted(id_, parts.get((bytes.fromhex(id_), size), 0)) for id_, size in lacking.items()]
    return wanted, sum(lacking.values()) - sum(one.offset for one in wanted)


def _here(session: Session, zone: int, ids: Sequence[bytes]) -> Iterator[bytes]:
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        marks = ", ".join("?" * len(some))
        rows = session.query(
            f"SELECT id FROM segment WHERE zone = ? AND {WHOLE} AND id IN ({marks})",  # noqa: S608 - marks
            (zone, *some),
        )
        yield from (bytes(id_) for (id_,) in rows)


def _doubt(zones: Zones, device: Device, ids: Set[str]) -> None:
    """Look at the bytes of segments that a device could not use: what is damaged is noted, and asked for."""
    doubted = [bytes.fromhex(id_) for id_ in ids]
    with zones.database.reading() as session:
        whole = _here(session, device.zone, doubted)  # for all that is known
        store = zones.store(session, device.zone, device.zone_name)
        hurt = [id_ for id_ in whole if store.is_hurt(id_)]
    zones.note_hurt(device.zone, device.zone_name, hurt)


def _to_mend(session: Session, zone: int, named: Set[str]) -> list[Wanted]:
    """Return what the disk here has hurt, each time others of it: whoever has it brings it."""
    query = f"SELECT id FROM segment WHERE zone = ? AND {TO_MEND} ORDER BY id < ?, id LIMIT ?"  # noqa: S608 - constants
    rows = session.query(query, (zone, secrets.token_bytes(32), MENDED_AT_ONCE))
    return [Wanted(id_, 0) for id_ in (bytes(id_).hex() for (id_,) in rows) if id_ not in named]


def sent(zones: Zones, device: Device, id_: bytes) -> None:
    """Note that a device is sent a segment, if it is the last one that it lacks: all but its word that it got
    them. Not for each one: that would be a write to the disk for every segment that is fetched.
    """
    with zones.database.reading() as session:
        place = arrivals.place(session, id_)
        others = session.query(
            "SELECT 1 FROM arrival a JOIN segment s ON s.id = a.id"
            ' WHERE a.zone = ? AND a.place > ? AND s."key" <> ? LIMIT 1',
            (device.zone, place, device.key),
        )
    if not others and 0 <= device.named < place:
        with zones.database.writing() as session:
            session.query(
                "UPDATE device SET named = ? WHERE id = ? AND named >= 0 AND named < ?",
                (place, device.id, place),
            )


def _note(session: Session, device: Device, request: SyncRequest, place: int, wanted: int) -> None:
    """Remember what a device says of itself, for `shala zone status`."""
    session.query(
        # Who comes back from before what it was sent did not get that, and may not get it again.
        "UPDATE device SET named = CASE WHEN ? < abs(named) THEN -abs(named) ELSE ? END,"
        " contact = ?, software = ?, epoch = ?, counter = ?, place = ?, wanted = ?, left_out = ?"
        " WHERE id = ?",
        (
            place,
            place,
            now(),
            request.software,
            request.epoch,
            request.counter,
            place,
            max(0, wanted),
            request.left_out,
            device.id,
        ),
    )
