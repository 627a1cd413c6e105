"""Exchange: what a device is answered that opens a session: which segments the centre wants of it, and what
has arrived in the zone since its cursor. Segments go by as they are; nothing here looks into one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

from shala_agent.wire import FORMAT, Offer, SyncAnswer, SyncRequest, Wanted

from shala_central import arrivals
from shala_central.database import Session
from shala_central.refusal import Refusal
from shala_central.sessions import dispute, new_token, speaks_for_another, take_number
from shala_central.uploads import open_parts, require_membership
from shala_central.zones import Device, Zones, now

_AT_ONCE = 500  # segments in one query


def answer(zones: Zones, device: Device, request: SyncRequest, session_key: bytes) -> SyncAnswer:
    """Return the answer to a request that opens a session. Raises Refusal."""
    if request.format != FORMAT:
        raise Refusal(422, f"the request is of format {request.format}, this centre speaks {FORMAT}")
    if not (request.nonce + request.software).isprintable():
        raise Refusal(422, "nonce or software hold control characters")
    nonce = secrets.token_hex(8)
    with zones.database.writing() as session:
        session.lock_device(device.id)
        require_membership(zones, session, device)
        standing = take_number(session, device, request, nonce)
        if standing.forked is not None:
            return SyncAnswer(fork=True, number=standing.forked)
        store = zones.store(session, device.zone, device.zone_name)
        if speaks_for_another(store, device, request):
            dispute(session, device, request.epoch)
            return SyncAnswer(fork=True, number=request.number)
        is_ours = not standing.forgotten and arrivals.is_ours(session, device.zone, request.cursor)
        place = request.cursor.place if is_ours else 0
        wanted, size = _wanted(session, device, request.offers)
        _note(session, device, request, place, size)
        items, cursor, more = arrivals.since(session, device.zone, place)
    return SyncAnswer(
        nonce=nonce,
        session=new_token(session_key, device.id),
        restart=not is_ours,
        wanted=wanted,
        items=items,
        cursor=cursor,
        more=more,
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
            f"SELECT id FROM segment WHERE zone = ? AND id IN ({marks})",  # noqa: S608 - marks
            (zone, *some),
        )
        yield from (bytes(id_) for (id_,) in rows)


def _note(session: Session, device: Device, request: SyncRequest, place: int, wanted: int) -> None:
    """Remember what a device says of itself, for `shala zone status`."""
    session.query(
        "UPDATE device SET contact = ?, software = ?, epoch = ?, counter = ?, place = ?, wanted = ?"
        " WHERE id = ?",
        (now(), request.software, request.epoch, request.counter, place, max(0, wanted), device.id),
    )
