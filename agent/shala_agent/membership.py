"""Membership: which devices belong to a zone, by the centre's signed statements and nobody's word else.

A statement enrols a device or revokes it; it is never changed, and what a set of them comes to does not
depend on their order, so they travel on any carrier like segments (docs/protocol.md, section 4). A revocation
names the counter up to which each of the device's logs still counts, and the segments in which it ended then:
who has got hold of the key can write nothing below the counter either.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from shala_agent.device import device_id

MAX_STATEMENT = 1 << 20  # bytes; a revocation lists logs of one device
FORMAT = 1
_SIGNED = b"shala statement 1\n"
_SIGNATURE = 64

Hex64 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
LogHex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class StatementRefused(Exception):
    """The bytes are no statement of this centre. The text is for a person."""


class Statement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the centre says of a device, or of single entries that it wrote. The greater generation is the
    later word.
    """

    format: Annotated[int, msgspec.Meta(ge=1)]
    kind: Literal["enrol", "revoke", "redact"]
    zone: Annotated[str, msgspec.Meta(max_length=64)]
    key: Hex64  # the device's public key
    name: Annotated[str, msgspec.Meta(max_length=64)] = ""  # server name, to be shown
    generation: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
    cut_offs: dict[LogHex, Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]] = {}
    # Of these logs only the segments with these ids count, and those that they continue.
    heads: dict[LogHex, list[Hex64]] = {}
    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""
    # Of a redaction: the segment, and the counters of what is to be forgotten for good.
    segment: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    counters: Annotated[list[int], msgspec.Meta(max_length=4096)] = []

    @property
    def device(self) -> str:
        """The device id."""
        return device_id(self.key)


def sign_statement(key: SigningKey, statement: Statement) -> bytes:
    """Return the bytes of a statement: 64 bytes of signature, then its JSON."""
    raw = msgspec.json.encode(statement)
    return key.sign(_SIGNED + raw).signature + raw


def read_statement(data: bytes, centre: bytes) -> tuple[bytes, Statement]:
    """Given the bytes of a statement and the centre's public key, return (id, statement).

    Raises StatementRefused.
    """
    if not _SIGNATURE < len(data) <= MAX_STATEMENT:
        raise StatementRefused("it is cut, or far too long")
    signature, raw = data[:_SIGNATURE], data[_SIGNATURE:]
    try:
        VerifyKey(centre).verify(_SIGNED + raw, signature)
    except (BadSignatureError, ValueError):
        raise StatementRefused("it is not signed by this centre") from None
    try:
        statement = msgspec.json.decode(raw, type=Statement)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise StatementRefused(f"it is not readable: {error}") from None
    if statement.format != FORMAT:
        raise StatementRefused(
            f"it is of format {statement.format}, this shala reads {FORMAT} (update shala)"
        )
    return hashlib.sha256(raw).digest(), statement


def statement_id(data: bytes) -> bytes:
    """Return the id of a statement."""
    return hashlib.sha256(data[_SIGNATURE:]).digest()


def decode_statement(data: bytes) -> Statement:
    """Return a statement whose signature was verified when it came."""
    return msgspec.json.decode(data[_SIGNATURE:], type=Statement)


@dataclass(slots=True)
class Member:
    """One device of a zone, as the statements about it have it."""

    name: str = ""
    enrolled: int = 0  # generation of its newest enrolment; 0 where there is none
    revoked: int = 0
    reason: str = ""
    cut_offs: dict[bytes, int] = field(default_factory=dict)
    heads: dict[bytes, set[bytes]] = field(default_factory=dict)

    @property
    def lives(self) -> bool:
        """Return whether it may write now. In doubt it may not."""
        return self.enrolled > self.revoked

    def add(self, statement: Statement) -> None:
        """Take a statement about this device into account; the order does not matter."""
        if statement.kind == "enrol":
            self.enrolled, self.name = max((self.enrolled, self.name), (statement.generation, statement.name))
        elif statement.kind == "revoke":
            self.revoked, self.reason = max(
                (self.revoked, self.reason), (statement.generation, statement.reason)
            )
            for log, counter in statement.cut_offs.items():
                name = bytes.fromhex(log)
                self.cut_offs[name] = min(counter, self.cut_offs.get(name, counter))
            for log, ids in statement.heads.items():
                self.heads.setdefault(bytes.fromhex(log), set()).update(map(bytes.fromhex, ids))

    def limit(self, log: bytes) -> int | None:
        """Return the greatest counter of a log that counts, None where all do; 0 where none does."""
        if not self.enrolled:
            return 0
        if (cut_off := self.cut_offs.get(log)) is not None:
            return cut_off
        return None if self.lives else 0
