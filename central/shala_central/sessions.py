"""Sessions: who speaks. A session's token is a MAC, so that any worker knows it and none has to remember it;
what is remembered of a device is the number of its last request and the nonces by which a copy of it shows.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass

import msgspec
from shala_agent.segment import log_id
from shala_agent.store import Store
from shala_agent.wire import SyncRequest

from shala_central.database import Session
from shala_central.quotas import too_many_epochs
from shala_central.refusal import Refusal
from shala_central.zones import Device, now

LIFETIME = 3600  # seconds
_SKEW = 60  # seconds by which the clocks of two machines with workers may differ
_TOKEN = struct.Struct(">Q8s16s")
_SIGNED = b"shala session 1\n"
_NONCE = b"shala nonce 1\n"
_ISSUED = b"shala nonce of a number 1\n"
_LOOKED_BACK = 1000  # requests that a centre may have forgotten of one device


def new_token(key: bytes, device: bytes) -> str:
    """Return the token of a new session."""
    issued, salt = now(), secrets.token_bytes(8)
    raw = _TOKEN.pack(issued, salt, _mac(key, device, issued, salt))
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def new_nonce(key: bytes, device: bytes, request: SyncRequest) -> str:
    """Return the nonce that a request is given: the same one for the same request again. Its end tells a
    centre that has forgotten it which number it was given at.
    """
    text = _NONCE + device + msgspec.json.encode(request)
    first = hashlib.blake2b(text, key=key, digest_size=8).hexdigest()
    return first + _issued(key, device, request.epoch, request.number)


def _issued(key: bytes, device: bytes, epoch: int, number: int) -> str:
    text = _ISSUED + device + struct.pack(">QQ", epoch, number)
    return hashlib.blake2b(text, key=key, digest_size=4).hexdigest()


def check_token(key: bytes, device: bytes, token: str) -> None:
    """Raise Refusal unless `token` is one of a session of this device that goes on."""
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        issued, salt, mac = _TOKEN.unpack(raw)
    except (ValueError, struct.error, binascii.Error):
        raise Refusal(401, "there is no such session (POST /v1/sync opens one)") from None
    if not hmac.compare_digest(mac, _mac(key, device, issued, salt)):
        raise Refusal(401, "there is no such session (POST /v1/sync opens one)")
    if not -_SKEW <= now() - issued < LIFETIME:
        raise Refusal(401, "the session is over (POST /v1/sync opens another one)")


@dataclass(frozen=True, slots=True)
class Standing:
    """What number and nonce tell. `forked`: the greatest number seen, where somebody else speaks as
    this device, too, or a request was replayed. `forgotten`: the centre has given a nonce that it does not
    know, so it was restored from a backup, and may lack what the device believes to be there. `repeated`: the
    very last request came once more; what was answered to it is not known any more.
    """

    forked: int | None = None
    forgotten: bool = False
    repeated: bool = False


def take_number(
    session: Session,
    key: bytes,
    device: Device,
    request: SyncRequest,
    nonce: str,
    *,
    knows_the_list: bool,
    max_epochs: int,
) -> Standing:
    """Note that a device opens a session, and that it is given `nonce` (docs/protocol.md, section 6).
    `key` is that of all nonces; `knows_the_list`: its cursor is one of ours, so that not the centre is what
    has been restored.

    Raises Refusal where the device counts for another zone in this epoch, or has begun too many.
    """
    rows = session.query(
        'SELECT epoch, zone, "number", shown, given FROM contact WHERE device = ?', (device.id,)
    )
    known = {""} | {text for row in rows for text in row[3:]}
    for epoch, zone, number, shown, given in rows:
        if epoch != request.epoch:
            continue
        # Where nothing of an epoch ever came, it counts for the zone that the device is in: one that was
        # moved and moved back meanwhile knows of no other zone, and begins no other epoch.
        if zone != device.zone and _has_any(session, zone, log_id(device.key, epoch)):
            raise Refusal(403, f"this device was moved to the zone '{device.zone_name}' (shala-agent enrol)")
        if (request.number, nonce) == (number, given):
            return Standing(repeated=True)
        must_know = knows_the_list or request.number == number + 1
        is_unknown = request.nonce not in (shown, given)
        if is_unknown and _is_forgotten(key, device, request, number):
            continue
        if request.number <= number or (must_know and is_unknown):
            dispute(session, device, request.epoch)
            return Standing(forked=int(number))
    if len(rows) >= max_epochs and all(row[0] != request.epoch for row in rows):
        raise too_many_epochs(len(rows))
    session.query(
        'INSERT INTO contact (device, epoch, zone, "number", shown, given) VALUES (?, ?, ?, ?, ?, ?)'
        ' ON CONFLICT (device, epoch) DO UPDATE SET zone = excluded.zone, "number" = excluded."number",'
        " shown = excluded.shown, given = excluded.given",
        (device.id, request.epoch, device.zone, request.number, request.nonce, nonce),
    )
    return Standing(forgotten=request.nonce not in known)


def _is_forgotten(key: bytes, device: Device, request: SyncRequest, number: int) -> bool:
    """Return whether a request shows a nonce that was given after the greatest number known of its epoch."""
    numbers = range(number + 1, min(request.number, number + 1 + _LOOKED_BACK))
    return any(request.nonce.endswith(_issued(key, device.id, request.epoch, one)) for one in numbers)


def _has_any(session: Session, zone: int, log: bytes) -> bool:
    rows = session.query("SELECT 1 FROM segment WHERE zone = ? AND log = ? LIMIT 1", (zone, log))
    return bool(rows)


def speaks_for_another(store: Store, device: Device, request: SyncRequest) -> bool:
    """Return whether the epoch is not the device's to go on in: the centre has more of it than the device has
    written (a restored backup), or it was cut off in it before it was enrolled anew.
    """
    log = log_id(device.key, request.epoch)
    if log in store.member(device.key).cut_offs:
        return True
    newest = store.database.query(
        'SELECT "last" FROM segment WHERE zone = ? AND log = ? ORDER BY "first" DESC LIMIT 1',
        (store.zone, log),
    )
    return bool(newest) and int(newest[0][0]) > request.counter


def dispute(session: Session, device: Device, epoch: int) -> None:
    """Note that somebody else spoke as this device."""
    session.query("UPDATE contact SET disputed = ? WHERE device = ? AND epoch = ?", (now(), device.id, epoch))


def _mac(key: bytes, device: bytes, issued: int, salt: bytes) -> bytes:
    text = _SIGNED + device + struct.pack(">Q", issued) + salt
    return hashlib.blake2b(text, key=key, digest_size=16).digest()
