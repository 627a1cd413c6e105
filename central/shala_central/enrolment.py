"""Enrolment: how a device becomes one of a zone, by a one-time token or by files that are carried, how it
moves to another one, and how a server goes on after its disk was changed.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shala_agent.device import device_id
from shala_agent.wire import FORMAT, EnrolAnswer, EnrolRequest, SignatureRefused, enrol_text, verify

from shala_central.database import Session
from shala_central.failure import UsageError
from shala_central.refusal import Refusal
from shala_central.zones import Device, Zone, Zones, check_server_name, now

DAY = 86400
_MIN_ID = 8  # digits of a token's id: fewer are soon another one's, too


@dataclass(frozen=True, slots=True)
class Token:
    """A token that can still be used, by what is known of it: never itself."""

    id: str  # its digest in hexadecimal digits
    zone: str
    name: str
    replaces: bool
    created: int
    expires: int


def create_token(session: Session, zone: Zone, name: str, days: int, *, replaces: bool) -> str:
    """Return a new one-time token for a zone; only its digest is kept. Raises UsageError."""
    if name:
        check_server_name(name)
        _require_not_elsewhere(session, zone, name)
        if not replaces and _holder(session, name, b""):
            raise UsageError(
                f"'{name}' is enrolled already (was its disk changed? --replace revokes the old device then)"
            )
    elif replaces:
        raise UsageError("--replace needs --name")
    token = secrets.token_hex(24)  # never begins with a "-"
    made = now()
    session.query(
        "INSERT INTO token (digest, zone, name, replaces, created, expires) VALUES (?, ?, ?, ?, ?, ?)",
        (_digest(token), zone.id, name, replaces, made, made + days * DAY),
    )
    return token


def open_tokens(session: Session, zone: Zone | None = None) -> list[Token]:
    """Return the tokens, of one zone or all, that are neither used nor expired."""
    only, parameters = (" AND t.zone = ?", (zone.id,)) if zone else ("", ())
    rows = session.query(
        "SELECT t.digest, z.name, t.name, t.replaces, t.created, t.expires FROM token t"  # noqa: S608 - constants
        f" JOIN zone z ON z.id = t.zone WHERE t.used IS NULL AND t.expires >= ?{only}"
        " ORDER BY z.name, t.name, t.created, t.digest",
        (now(), *parameters),
    )
    return [
        Token(bytes(digest).hex(), zone_name, name, bool(replaces), created, expires)
        for digest, zone_name, name, replaces, created, expires in rows
    ]


def revoke_token(session: Session, id_: str) -> Token:
    """Forget an open token, given the beginning of its id: nobody enrols with it. Raises UsageError."""
    found = [token for token in open_tokens(session) if token.id.startswith(id_)]
    # What was given is not repeated: it may be the token itself.
    if len(id_) < _MIN_ID:
        raise UsageError(f"at least {_MIN_ID} digits of a token's id are needed (shala device token list)")
    if len(found) > 1:
        raise UsageError(
            "more than one open token has such an id (shala device token list --json has all of it)"
        )
    if not found:
        raise UsageError("no open token has this id (shala device token list)")
    gone = "DELETE FROM token WHERE digest = ? AND used IS NULL RETURNING digest"
    if not session.query(gone, (bytes.fromhex(found[0].id),)):
        raise UsageError("the token was used just now (shala device list)")
    return found[0]


def enrolled(zones: Zones, session: Session, request: EnrolRequest, url: str) -> EnrolAnswer | None:
    """Return the answer to a device that is enrolled and names no token; None where the token is one of ours.

    Only reads: a stranger holds up nobody. Raises Refusal.
    """
    try:
        check_request(request)
    except UsageError as error:
        raise Refusal(422, str(error)) from None
    if request.token:
        if not session.query("SELECT 1 FROM token WHERE digest = ?", (_digest(request.token),)):
            raise Refusal(403, "the token is not known here (shala device create makes one)")
        return None
    known = zones.device(session, bytes.fromhex(device_id(request.key)))
    if known is None:
        raise Refusal(
            403,
            "this device is not enrolled, and names no token (shala device create makes one, with --replace"
            " where device.key was lost or the disk changed; then shala-agent enrol --token-file FILE)",
        )
    if known.revoked is not None:
        raise Refusal(
            403,
            f"this device is revoked{': ' if known.reason else ''}{known.reason}"
            f" ({enrol_anew(known.zone_name, known.name)}, then here: shala-agent enrol --token-file FILE)",
        )
    return _answer(zones, session, _zone_of(known), known.key, url, everything=False)


def enrol_by_token(zones: Zones, session: Session, request: EnrolRequest, url: str) -> EnrolAnswer:
    """Enrol the device that asks, whose request was looked at. The same device may ask again: an answer can
    get lost. Raises Refusal.
    """
    key = bytes.fromhex(request.key)
    id_ = bytes.fromhex(device_id(request.key))
    found = session.query(
        "SELECT z.name, t.name, t.replaces, t.created, t.expires, t.device FROM token t"  # noqa: S608 - constants
        " JOIN zone z ON z.id = t.zone"
        f" WHERE t.digest = ?{session.locking_only('t')}",
        (_digest(request.token),),
    )
    if not found:
        raise Refusal(403, "the token is not known here (shala device create makes one)")
    known = zones.device(session, id_)  # only now: whoever used the token at the same moment is done
    zone_name, name, replaces, created, expires, used_by = found[0]
    zone = zones.zone(session, zone_name)
    if used_by is not None:
        if known is None or bytes(used_by) != known.id or known.revoked is not None or known.zone != zone.id:
            raise Refusal(403, "the token was used already (shala device create makes another one)")
        return _answer(zones, session, zone, key, url, everything=False)
    if expires < now():
        raise Refusal(403, "the token has expired (shala device create makes another one)")
    query = "SELECT 1 FROM device WHERE (name = ? OR id = ?) AND revoked > ?"
    if session.query(query, (request.name, id_, created)):  # whoever has stolen it may have the token, too
        raise Refusal(403, "the token is older than the revocation of this server (shala device create)")
    if name and name != request.name:
        raise Refusal(403, f"the token is for the server '{name}', this is '{request.name}'")
    try:
        if _elsewhere(session, zone, request.name, id_):
            # Not in which one: who has a token for any server would learn where each of them lives.
            raise Refusal(403, "this server is in another zone (at the centre: shala device list)")
        _admit(zones, session, zone, key, request.name, known, replaces=bool(replaces))
    except UsageError as error:
        raise Refusal(403, str(error)) from None
    session.query(
        "UPDATE token SET used = ?, device = ? WHERE digest = ?",
        (now(), hashlib.sha256(key).digest(), _digest(request.token)),
    )
    return _answer(zones, session, zone, key, url, everything=False)


def approve(
    zones: Zones, session: Session, zone: Zone, request: EnrolRequest, *, replaces: bool
) -> EnrolAnswer:
    """Enrol the device whose request was carried here; return what is carried back. Raises UsageError."""
    check_request(request)
    key = bytes.fromhex(request.key)
    known = zones.device(session, hashlib.sha256(key).digest())
    _require_not_elsewhere(session, zone, request.name, hashlib.sha256(key).digest())
    if known is None or known.revoked is not None:
        again = "shala device approve ... --replace"
        _admit(zones, session, zone, key, request.name, known, replaces=replaces, again=again)
    return _answer(zones, session, zone, key, zones.url, everything=True)


def move(zones: Zones, session: Session, device: Device, zone: Zone) -> EnrolAnswer:
    """Take a device out of its zone into another one; return the approval for it. Raises UsageError."""
    if device.revoked is not None:
        raise UsageError(f"'{device.name}' is revoked ({enrol_anew(zone.name, device.name)})")
    if device.zone == zone.id:
        raise UsageError(
            f"'{device.name}' is in the zone '{zone.name}' already (shala zone show {zone.name})"
        )
    _admit(zones, session, zone, device.key, device.name, device, replaces=False)
    return _answer(zones, session, zone, device.key, zones.url, everything=True)


def enrol_anew(zone: str, name: str) -> str:
    """Return how a server comes back that was revoked."""
    return f"to enrol it anew: shala device create --zone {zone} --name {name}"


def check_request(request: EnrolRequest) -> None:
    """Raise UsageError unless a request is of this format, names a server, and is signed by its key."""
    if request.format != FORMAT:
        raise UsageError(
            f"the request is of format {request.format}, this shala reads {FORMAT} (update shala)"
        )
    check_server_name(request.name)
    try:
        text = enrol_text(request.key, request.name, request.token)
        verify(bytes.fromhex(request.key), text, request.signature)
    except SignatureRefused:
        raise UsageError("the request is not signed by the key that it names") from None


def _admit(  # noqa: PLR0917 - all of them, three times
    zones: Zones,
    session: Session,
    zone: Zone,
    key: bytes,
    name: str,
    known: Device | None,
    *,
    replaces: bool,
    again: str = "shala device create --replace",
) -> None:
    id_ = hashlib.sha256(key).digest()
    holders = [zones.device(session, other) for other in _holder(session, name, id_)]
    for lock in sorted({zone.id, *(one.zone for one in (known, *holders) if one is not None)}):
        session.lock_zone(lock)
    for other in _holder(session, name, id_):
        if not replaces:
            raise UsageError(f"the name '{name}' is another device's (was the disk changed? {again})")
        holder = zones.device(session, other)
        if holder is not None:
            zones.revoke(session, holder, "replaced by another device of this name")
    if known is not None and known.revoked is None and known.zone != zone.id:
        zones.revoke(session, known, f"moved to the zone {zone.name}")
    zones.enrol(session, zone, key, id_, name)


def _require_not_elsewhere(session: Session, zone: Zone, name: str, id_: bytes = b"") -> None:
    """Raise UsageError if a server of this name, or with this key, lives in another zone: it is moved there
    by whoever means it, and never by a slip.
    """
    for known_as, other in _elsewhere(session, zone, name, id_):
        raise UsageError(
            f"'{known_as}' is in the zone '{other}' (at the centre: shala device move {known_as}"
            f" --zone {zone.name}; or, if that one is gone: shala device revoke {known_as})"
        )


def _elsewhere(session: Session, zone: Zone, name: str, id_: bytes) -> Sequence[Sequence[Any]]:
    """Return (name, zone) of the living servers of a name or a key that are in another zone."""
    return session.query(
        "SELECT d.name, z.name FROM device d JOIN zone z ON z.id = d.zone"
        " WHERE (d.name = ? OR d.id = ?) AND d.revoked IS NULL AND d.zone <> ? ORDER BY d.name",
        (name, id_, zone.id),
    )


def _holder(session: Session, name: str, id_: bytes) -> list[bytes]:
    """Return the living devices of a name, without this one."""
    rows = session.query("SELECT id FROM device WHERE name = ? AND revoked IS NULL AND id <> ?", (name, id_))
    return [bytes(row[0]) for row in rows]


def _answer(
    zones: Zones, session: Session, zone: Zone, key: bytes, url: str, *, everything: bool
) -> EnrolAnswer:
    """Return what a device needs to know: online the statements about it and about those that had its name
    before, by which it knows what of its logs was cut off (the next sync has the others); in a file all.
    """
    only = ""
    parameters: tuple[object, ...] = (zone.id,)
    if not everything:
        only = (
            ' AND s."key" IN (SELECT "key" FROM device WHERE name = (SELECT name FROM device WHERE id = ?))'
        )
        parameters += (hashlib.sha256(key).digest(),)
    rows = session.query(
        "SELECT s.data FROM statement s JOIN arrival a ON a.id = s.id"  # noqa: S608 - constants
        f" WHERE s.zone = ?{only} ORDER BY a.place",
        parameters,
    )
    statements = [base64.b64encode(bytes(data)).decode() for (data,) in rows]
    centre = zones.public_key.hex()
    return EnrolAnswer(zone=zone.name, centre=centre, url=url, statements=statements, key=key.hex())


def _zone_of(device: Device) -> Zone:
    return Zone(device.zone, device.zone_name, "")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
