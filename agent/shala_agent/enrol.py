"""Enrolment: how this server becomes a device of a zone, online by a one-time token, or by two files that are
carried. The private key never leaves the server, a token never stands in a command line.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from nacl.signing import SigningKey

from shala_agent import durable
from shala_agent.failure import AgentError, UsageError
from shala_agent.membership import StatementRefused, read_statement
from shala_agent.records import Records
from shala_agent.wire import FORMAT, EnrolAnswer, EnrolRequest, enrol_text, sign

if TYPE_CHECKING:
    from shala_agent.centre import Centre

MAX_TOKEN = 64  # characters
MAX_APPROVAL = 16 << 20  # bytes; the statements of a whole zone


class EnrolmentRefused(AgentError):
    """This server did not become a device of a zone; the text says why."""


class Enrolled(msgspec.Struct):
    """What `shala-agent enrol --json` prints."""

    zone: str
    url: str
    device: str
    statements: int
    format: int = 1


def read_token(text: str) -> str:
    """Given what stands in a file or comes on stdin, return the token. Raises UsageError; never shows it."""
    token = text.strip()
    if not token or len(token) > MAX_TOKEN or not token.isprintable() or " " in token:
        raise UsageError(
            f"this is no token (one line of up to {MAX_TOKEN} characters; shala device create makes one)"
        )
    return token


def make_request(key: SigningKey, name: str, token: str = "") -> EnrolRequest:
    """Return a signed request for a server of this name; without a token it is one to be carried."""
    public = bytes(key.verify_key).hex()
    signature = sign(key, enrol_text(public, name, token))
    return EnrolRequest(key=public, name=name, token=token, signature=signature)


def enrol_online(records: Records, centre: Centre, name: str, token: str) -> Enrolled:
    """Become a device by a one-time token. Raises EnrolmentRefused, CentreSilent, CentreRefuses."""
    try:
        answer = centre.enrol(make_request(centre.key, name, token))
    finally:
        centre.close()
    # The address that worked is kept, whatever the centre calls itself.
    return _enter(records, centre.key, answer, centre.url)


def write_request(path: Path, key: SigningKey, name: str) -> None:
    """Write the request that is carried to the centre. It holds nothing secret."""
    durable.write(
        path, msgspec.json.format(msgspec.json.encode(make_request(key, name)), indent=1) + b"\n", 0o644
    )


def enter_by_approval(records: Records, key: SigningKey, path: Path) -> Enrolled:
    """Become a device by the approval that came back. Raises EnrolmentRefused."""
    with path.open("rb") as file:
        raw = file.read(MAX_APPROVAL + 1)
    if len(raw) > MAX_APPROVAL:
        raise EnrolmentRefused(f"{path} has more than {MAX_APPROVAL} bytes: it is no approval")
    try:
        answer = msgspec.json.decode(raw, type=EnrolAnswer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EnrolmentRefused(f"{path} is no approval: {error} (shala device create --request)") from None
    return _enter(records, key, answer, answer.url)


def _enter(records: Records, key: SigningKey, answer: EnrolAnswer, url: str) -> Enrolled:
    if answer.format != FORMAT:
        raise EnrolmentRefused(
            f"the approval is of format {answer.format}, this shala reads {FORMAT} (update it)"
        )
    centre, public = bytes.fromhex(answer.centre), bytes(key.verify_key)
    before = records.store
    if before is not None and before.name == answer.zone and before.centre != centre:
        raise EnrolmentRefused(
            f"zone {answer.zone} is spoken for by another centre than the one this server knows"
            " (ask whoever runs the centre; if it was really made anew, move records.sqlite away)"
        )
    statements = [_data(text) for text in answer.statements]
    if not any(_takes_in(data, centre, answer.zone, public) for data in statements):
        raise EnrolmentRefused(
            f"the approval does not take this server into zone {answer.zone}"
            " (is it another server's? shala-agent enrol --request writes a new request)"
        )
    records.enrol(answer.zone, centre, public, statements)
    records.keep(url=url)
    from shala_agent.device import device_id

    return Enrolled(answer.zone, url, device_id(public.hex()), len(statements))


def _takes_in(data: bytes, centre: bytes, zone: str, public: bytes) -> bool:
    try:
        _, statement = read_statement(data, centre)
    except StatementRefused as error:
        raise EnrolmentRefused(f"a statement of the approval: {error}") from None
    return (statement.kind, statement.zone, statement.key) == ("enrol", zone, public.hex())


def _data(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise EnrolmentRefused("a statement of the approval is not readable") from None
