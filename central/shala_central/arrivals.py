"""Arrivals: the list of all segments and statements of a zone, in the order in which they came here.

Each has a place, and the list up to it a digest. A device's cursor names both: what it lacks is found in the
same time whatever the size of the zone, and a centre that was restored from a backup is told at once.
"""

from __future__ import annotations

import base64
import hashlib

from shala_agent.wire import MAX_ITEMS, Cursor, Item

from shala_central.database import Session

START = bytes(8)  # the digest of the empty list
MAX_STATEMENTS = 512 << 10  # bytes of statements in one answer; a revocation may be large


def append(session: Session, zone: int, kind: str, id_: bytes, device: bytes | None = None) -> None:
    """Give a statement, or a segment that a device has brought, the next place. The zone is locked."""
    place, before = newest(session, zone)
    digest = hashlib.sha256(before + id_).digest()[:8]
    session.query(
        "INSERT INTO arrival (zone, place, digest, kind, id, device) VALUES (?, ?, ?, ?, ?, ?)",
        (zone, place + 1, digest, kind, id_, device),
    )
    session.query("UPDATE zone SET place = ?, digest = ? WHERE id = ?", (place + 1, digest, zone))


def newest(session: Session, zone: int) -> tuple[int, bytes]:
    """Return place and digest of the end of the list."""
    ((place, digest),) = session.query("SELECT place, digest FROM zone WHERE id = ?", (zone,))
    return int(place), bytes(digest)


def is_ours(session: Session, zone: int, cursor: Cursor) -> bool:
    """Return whether a cursor is of this list. After a restored backup it may be of one that is lost."""
    if cursor.place == 0:
        return cursor.digest == START.hex()
    rows = session.query("SELECT digest FROM arrival WHERE zone = ? AND place = ?", (zone, cursor.place))
    return bool(rows) and bytes(rows[0][0]).hex() == cursor.digest


def since(session: Session, zone: int, place: int) -> tuple[list[Item], Cursor | None, bool]:
    """Return what came after a place, the cursor after that (None if nothing did), and if there is more."""
    rows = session.query(
        "SELECT a.place, a.digest, a.id, s.size, t.data FROM arrival a"
        " LEFT JOIN segment s ON s.id = a.id LEFT JOIN statement t ON t.id = a.id"
        " WHERE a.zone = ? AND a.place > ? ORDER BY a.place LIMIT ?",
        (zone, place, MAX_ITEMS),
    )
    items: list[Item] = []
    cursor, room = None, MAX_STATEMENTS
    for number, digest, id_, size, statement in rows:
        if statement is not None and (room := room - len(statement)) < 0 and items:
            break
        items.append(_item(number, id_, size, statement))
        cursor = Cursor(number, bytes(digest).hex())
    more = cursor is not None and cursor.place < newest(session, zone)[0]
    return items, cursor, more


def place(session: Session, id_: bytes) -> int:
    """Return the place of a segment or statement that is here."""
    ((found,),) = session.query("SELECT place FROM arrival WHERE id = ?", (id_,))
    return int(found)


def _item(place: int, id_: bytes, size: int | None, statement: bytes | None) -> Item:
    if statement is None:
        return Item(place, bytes(id_).hex(), size or 0)
    return Item(place, bytes(id_).hex(), len(statement), base64.b64encode(statement).decode())
