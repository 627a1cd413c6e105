"""Enrolment: how this server becomes a device of a zone, online by a one-time token, or by two files that are
carried. The private key never leaves the server, a token never stands in a command line.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
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
APPROVE = "there: shala device approve REQUEST --zone ZONE --output APPROVAL"
REQUEST = "shala-agent enrol --request FILE, to be carried to the centre"
MAX_APPROVAL = 16 << 20  # bytes; the statements of a whole zone


class EnrolmentRefused(AgentError):
    """This server did not become a device of a zone; the text says why."""


class Enrolled(msgspec.Struct):
    """What `shala-agent enrol --json` prints."""

    zone: str
    url: str
    device: str
    statements: int
    centre: str  # the fingerprint of its key
    format: int = 1


def read_token(text: str, source: str) -> str:
    """Given what stands in the file `source` or comes on stdin ("-"), return the token.

    Raises UsageError; never shows it.
    """
    token = text.strip()
    if not token or len(token) > MAX_TOKEN or not token.isprintable() or " " in token:
        where = "stdin" if source == "-" else source
        raise UsageError(
            f"{where}: this is no token"
            f" (one line of up to {MAX_TOKEN} characters; shala device create makes one)"
        )
    return token


def check_url(url: str) -> None:
    """Raise UsageError unless records may go to an address; "" leaves it to the configuration."""
    from shala_agent.config import SyncConfig, without_password

    try:
        msgspec.convert({"url": url}, SyncConfig)
    except msgspec.ValidationError:
        raise UsageError(
            f"'{without_password(url)}' is no address of a centre (such as https://centre.example.org)"
        ) from None


def fingerprint(centre: bytes) -> str:
    """Return what two persons compare to know that they mean the same centre, given its public key."""
    digits = hashlib.sha256(centre).hexdigest()[:32]
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


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
    """Write the request that is carried to the centre. It holds nothing secret. Raises UsageError."""
    content = msgspec.json.format(msgspec.json.encode(make_request(key, name)), indent=1) + b"\n"
    try:
        durable.write(path, content, 0o644)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror} (name a file in a folder that is there)"
        ) from None


def enter_by_approval(records: Records, key: SigningKey, path: Path, url: str = "") -> Enrolled:
    """Become a device by the approval that came back; `url` goes before its address. Raises UsageError."""
    try:
        answer = _read_approval(path, bytes(key.verify_key).hex())
        return _enter(records, key, answer, url or answer.url)
    except EnrolmentRefused as error:
        raise UsageError(f"{path}: {error}") from None


def _read_approval(path: Path, public: str) -> EnrolAnswer:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_APPROVAL + 1)
    except OSError as error:
        raise EnrolmentRefused(f"cannot be read: {error.strerror} ({APPROVE})") from None
    if len(raw) > MAX_APPROVAL:
        raise EnrolmentRefused(f"this is no approval: it has more than {MAX_APPROVAL} bytes ({APPROVE})")
    try:
        answer = msgspec.json.decode(raw, type=EnrolAnswer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EnrolmentRefused(f"this is no approval: {error} ({APPROVE})") from None
    if answer.key not in ("", public):
        raise EnrolmentRefused(f"this is another device's approval (for a new one: {REQUEST})")
    try:
        check_url(answer.url)
    except UsageError as error:
        # Nobody has signed it: what it names is where names of children go.
        raise EnrolmentRefused(f"field url: {error}") from None
    return answer


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
            f"the approval does not take this server into zone {answer.zone} (for a new one: {REQUEST})"
        )
    records.enrol(answer.zone, centre, public, statements)
    if url:
        records.keep(url=url)
    from shala_agent.device import device_id

    url = str(records.kept("url") or "")
    return Enrolled(answer.zone, url, device_id(public.hex()), len(statements), fingerprint(centre))


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
