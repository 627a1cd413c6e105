"""Recall: the centre's own statements, brought back by the devices that heard them, after the centre was
restored from a backup that is older. Only what it has signed itself is taken in.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Sequence
from operator import attrgetter

from shala_agent.membership import (
    Member,
    Statement,
    StatementRefused,
    read_statement,
    statement_id,
)

from shala_central import arrivals
from shala_central.database import Session
from shala_central.zones import Zones, now

_AT_ONCE = 500  # statements in one query
_log = logging.getLogger("uvicorn.error")


def enrolment(zones: Zones, device: bytes, text: str) -> Statement | None:
    """Return the centre's own word that a device belongs to a zone, None if this is another one."""
    found = _ours(_data(text), zones.public_key)
    if found is None or (said := found[1]).kind != "enrol" or said.device != device.hex():
        return None
    return said


def hear(zones: Zones, statements: Sequence[str]) -> None:
    """Take in the centre's own statements that are not known here, and do what follows from them.

    What is heard anew was said after the backup to which the centre went back.
    """
    new = _unknown(zones, statements)
    if not new:
        return
    with zones.database.writing() as session:
        names = {said.zone for _, said in new}
        zones_of = sorted((one for one in zones.zones(session) if one.name in names), key=attrgetter("id"))
        for zone in zones_of:
            session.lock_zone(zone.id)
        if any(said.kind == "redact" for _, said in new):
            session.forget_for_good()
        spoken_of: dict[bytes, int] = {}  # by key: the zone of a new enrolment, 0 without one
        for zone in zones_of:
            store = zones.store(session, zone.id, zone.name)
            with store.together():
                for data, said in new:
                    if said.zone != zone.name or store.state(data) is None:
                        continue
                    arrivals.append(session, zone.id, "statement", statement_id(data))
                    key = bytes.fromhex(said.key)
                    if said.kind == "redact":
                        session.query("DELETE FROM part WHERE segment = ?", (bytes.fromhex(said.segment),))
                    elif said.kind == "enrol":
                        spoken_of[key] = zone.id
                    else:
                        spoken_of.setdefault(key, 0)
        for key, enrolled_in in spoken_of.items():  # only now: what was said in between holds no longer
            _note(zones, session, enrolled_in, key)
        if spoken_of:
            _give_names_back(zones, session)


def _unknown(zones: Zones, statements: Sequence[str]) -> list[tuple[bytes, Statement]]:
    """Return those statements of this centre that are not known here. Only reads: it holds up nobody."""
    by_id = {statement_id(data): data for data in map(_data, statements)}
    with zones.database.reading() as session:
        for start in range(0, len(by_id), _AT_ONCE):
            some = list(by_id)[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            rows = session.query(f"SELECT id FROM statement WHERE id IN ({marks})", some)  # noqa: S608 - marks
            for (id_,) in rows:
                del by_id[bytes(id_)]
    found = (_ours(data, zones.public_key) for data in by_id.values())
    return [one for one in found if one is not None]


def _data(text: str) -> bytes:
    """Return what a text holds in base64; nothing, which is no statement, where it does not."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def _ours(data: bytes, centre: bytes) -> tuple[bytes, Statement] | None:
    """Return a statement that is signed by this centre, None for anything else."""
    try:
        return data, read_statement(data, centre)[1]
    except StatementRefused:
        return None


def _note(zones: Zones, session: Session, enrolled_in: int, key: bytes) -> None:
    """Have the list of devices say what all statements of all zones do: it may have moved away and back.

    `enrolled_in` is the zone of an enrolment that was not known here, 0 where there is none.
    """
    members = _members(zones, session, key)
    id_ = hashlib.sha256(key).digest()
    rows = session.query("SELECT zone, revoked FROM device WHERE id = ?", (id_,))
    ours = int(rows[0][0]) if rows else 0
    living = [zone for zone, member in members.items() if member.lives]
    if not living:
        session.query(
            "UPDATE device SET revoked = ?, reason = ? WHERE id = ? AND revoked IS NULL",
            (now(), members[ours if ours in members else next(iter(members))].reason, id_),
        )
        return
    # Where it was enrolled last; what was said before generations were counted over all zones may tie.
    zone = max(living, key=lambda one: (members[one].enrolled, one == enrolled_in, one == ours))
    if not rows or rows[0][1] is not None:
        _log.warning("device %s is taken in again by this centre's own word", id_.hex()[:12])
    if zone != ours:  # what it said while it was taken for one of another zone was said of this one
        session.query("DELETE FROM contact WHERE device = ? AND zone = ?", (id_, ours))
        session.query("UPDATE device SET place = 0, named = 0, wanted = 0, left_out = 0 WHERE id = ?", (id_,))
    session.query(
        'INSERT INTO device (id, "key", zone, name, enrolled) VALUES (?, ?, ?, ?, ?)'
        " ON CONFLICT (id) DO UPDATE SET zone = excluded.zone, name = excluded.name, revoked = NULL,"
        " reason = ''",
        (id_, key, zone, _name(session, members[zone].name, id_), now()),
    )


def _name(session: Session, name: str, id_: bytes) -> str:
    """Return the name of a living device, another one while somebody else has it."""
    taken = session.query("SELECT 1 FROM device WHERE name = ? AND revoked IS NULL AND id <> ?", (name, id_))
    return f"{name[:50]}~{id_.hex()[:12]}" if taken else name


def _give_names_back(zones: Zones, session: Session) -> None:
    """Call those by their names whose names were another's when they were heard of."""
    rows = session.query(
        "SELECT d.id, d.key, d.zone, z.name FROM device d JOIN zone z ON z.id = d.zone"
        " WHERE d.name LIKE ? AND d.revoked IS NULL",
        ("%~%",),
    )
    for id_, key, zone, zone_name in rows:
        name = zones.store(session, int(zone), zone_name).member(bytes(key)).name
        session.query("UPDATE device SET name = ? WHERE id = ?", (_name(session, name, bytes(id_)), id_))


def _members(zones: Zones, session: Session, key: bytes) -> dict[int, Member]:
    """Return what each zone that has heard of a device knows of it."""
    rows = session.query(
        'SELECT DISTINCT z.id, z.name FROM statement s JOIN zone z ON z.id = s.zone WHERE s."key" = ?'
        " ORDER BY z.id",
        (key,),
    )
    return {int(zone): zones.store(session, int(zone), name).member(key) for zone, name in rows}
