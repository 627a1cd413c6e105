"""Wire: what server and centre say to each other over HTTP, and how a request is signed.

    POST /v1/enrol           EnrolRequest -> EnrolAnswer
    POST /v1/sync            SyncRequest -> SyncAnswer; opens a session
    PUT  /v1/segments/<id>   the bytes of a segment from `Shala-Offset` on -> Receipt
    GET  /v1/segments/<id>   its bytes, `Range: bytes=n-` resumes
    GET  /v1/health

Bodies are JSON but for segments. Every request but the first and the last is signed by the device: the
header `Shala-Device` is its id, `Shala-Signature` the base64 Ed25519 signature of `signed_text`. POST
/v1/sync can not be replayed, because its number only goes up; the requests of a session carry the token of
its answer, good for an hour, and repeating one of them changes nothing (docs/protocol.md, section 6).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Annotated

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from shala_agent.segment import MAX_SEGMENT

FORMAT = 1
MAX_REQUEST = 1 << 20  # bytes of a JSON body
MAX_OFFERS = 2000  # segments offered in one request
MAX_ITEMS = 1000  # segments and statements named in one answer
MAX_STATEMENTS = 1000  # that a device sends at once
MAX_DOUBTED = 5

DEVICE_HEADER = "Shala-Device"
SIGNATURE_HEADER = "Shala-Signature"
SESSION_HEADER = "Shala-Session"
OFFSET_HEADER = "Shala-Offset"  # of PUT: at which byte of the segment the body begins
SIZE_HEADER = "Shala-Size"  # of PUT: how many bytes the segment has

Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
Epoch = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]  # as in the header of a segment
Name = Annotated[str, msgspec.Meta(max_length=64)]


class SignatureRefused(Exception):
    """A request is not signed by the device that it names."""


class Offer(msgspec.Struct, array_like=True, frozen=True):
    """A segment that the centre may lack."""

    id: Hex
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEGMENT)]


class Cursor(msgspec.Struct, array_like=True, frozen=True):
    """Up to which place of the zone's list of arrivals a server has everything. `digest` is that of the list
    up to there: another one tells that the centre was restored from a backup.
    """

    place: Count = 0
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")] = "0" * 16


class SyncRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Opens a session. `number` is greater than in any request before; `nonce` the last one received."""

    format: Annotated[int, msgspec.Meta(ge=1)] = FORMAT
    epoch: Epoch
    counter: Count  # of the newest change that was cut
    number: Annotated[int, msgspec.Meta(ge=1, le=(1 << 53) - 1)]
    nonce: Annotated[str, msgspec.Meta(max_length=32)] = ""
    cursor: Cursor = Cursor()
    offers: Annotated[list[Offer], msgspec.Meta(max_length=MAX_OFFERS)] = []
    # The centre's own word, in base64, which it has forgotten: it was restored from a backup.
    statements: Annotated[list[str], msgspec.Meta(max_length=MAX_STATEMENTS)] = []
    left_out: Count = 0  # segments behind the cursor that could not be had, or are damaged here
    # Of these some: the centre looks at its own bytes of them.
    doubted: Annotated[list[Hex], msgspec.Meta(max_length=MAX_DOUBTED)] = []
    software: Annotated[str, msgspec.Meta(max_length=32)] = ""


class Wanted(msgspec.Struct, array_like=True, frozen=True):
    """A segment that the centre wants, from this byte on: one that was offered, or one that its disk has
    hurt.
    """

    id: Hex
    offset: Count


class Item(msgspec.Struct, array_like=True, frozen=True):
    """A segment of the zone in the order of arrival; `statement`, in base64, if it is the centre's word."""

    place: Count
    id: Hex
    size: Count
    statement: str = ""


class SyncAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the centre lacks, what is new in the zone since the cursor, and where to go on.

    `fork`: somebody else has spoken as this device in this epoch; nothing else is in the answer, and the
    device goes on in a new epoch. `restart`: the cursor is none of this centre's list: the device offers all
    that it has again, and reads the list from its beginning.
    """

    format: int = FORMAT
    nonce: str = ""
    session: str = ""
    zone: Annotated[str, msgspec.Meta(max_length=64)] = ""  # where the device is by what is known here
    number: Count = 0  # of a fork: the greatest request number that the centre has seen of this device
    fork: bool = False
    restart: bool = False
    wanted: list[Wanted] = []
    items: list[Item] = []
    cursor: Cursor | None = None  # after the items; None where nothing is new
    more: bool = False
    software: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Receipt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of an uploaded part: how many bytes the centre has on its disk, and whether the segment is
    whole and kept. `refused` says why it never will be.
    """

    offset: Count
    whole: bool = False
    refused: str = ""


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Asks to become a device of the zone that the one-time token stands for. Also the request file that is
    carried offline, then without a token. `signature` is of `enrol_text`, by the key.
    """

    format: Annotated[int, msgspec.Meta(ge=1)] = FORMAT
    key: Hex
    name: Name
    token: Annotated[str, msgspec.Meta(max_length=64)] = ""
    signature: Annotated[str, msgspec.Meta(max_length=100)]


class EnrolAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Also the approval file that is carried offline."""

    format: int = FORMAT
    zone: Name
    centre: Hex  # its public key, by which all statements are verified
    url: str  # "" where the centre does not know its own
    statements: list[str]  # base64
    # Of the device that it is for. A file has the statements of the whole zone, and would do for any of it.
    key: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""


class Problem(msgspec.Struct, frozen=True):
    """Why a request was refused, for a person."""

    error: str


def signed_text(method: str, path: str, session: str, offset: int, body: bytes) -> bytes:
    """Return what a request's signature is of."""
    digest = hashlib.sha256(body).hexdigest()
    return f"shala request 1\n{method} {path}\n{session}\n{offset}\n{digest}\n".encode()


def enrol_text(key: str, name: str, token: str) -> bytes:
    """Return what an enrolment's signature is of."""
    return f"shala enrol 1\n{key}\n{name}\n{token}\n".encode()


def sign(key: SigningKey, text: bytes) -> str:
    """Return a signature as a header carries it."""
    return base64.b64encode(key.sign(text).signature).decode()


def verify(key: bytes, text: bytes, signature: str) -> None:
    """Raise SignatureRefused unless `signature` is the key's of the text."""
    try:
        VerifyKey(key).verify(text, base64.b64decode(signature, validate=True))
    except (BadSignatureError, ValueError, binascii.Error):
        raise SignatureRefused("the request is not signed by its device") from None
