"""The device: the key pair by which a server is known, and what it signs.

Made once, on the server itself; the private key never leaves it. The centre remembers the public one with the
first collection that it signed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from shala_agent import durable
from shala_agent.failure import AgentError
from shala_agent.write_ahead import in_turn

if TYPE_CHECKING:
    from nacl.signing import SigningKey

FILE = "device.key"  # in the agent's state folder
SIGNATURE = "signature.json"
# What is signed begins with what it is: no signature can be passed off as one of another kind of thing.
_COLLECTION = b"shala collection 1\n"
_SEED = 32  # bytes of an Ed25519 private key (RFC 8032)


class SignatureWrong(Exception):
    """A signature is none, or not of what it stands beside."""


class Signature(msgspec.Struct):
    """signature.json: who signed the tag manifest, and with it the whole collection. All in hexadecimal."""

    device: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    public_key: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    signature: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{128}$")]
    format: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1


class Device:
    """The key pair in the file `path`, which is made when it is not there."""

    def __init__(self, path: Path) -> None:
        from nacl.signing import SigningKey

        try:
            seed = path.read_bytes()
        except FileNotFoundError:
            seed = _new_seed(path)
        if len(seed) != _SEED:
            raise AgentError(
                f"{path} is not a key of {_SEED} bytes (move it away: the server becomes a new device)"
            )
        self._key = SigningKey(seed)

    @property
    def key(self) -> SigningKey:
        """The key pair itself, for segments and requests of zone sync."""
        return self._key

    @property
    def id(self) -> str:
        """The device id."""
        return device_id(self.public_key)

    @property
    def public_key(self) -> str:
        """The public key, hexadecimal."""
        return bytes(self._key.verify_key).hex()

    def sign_collection(self, tag_manifest: bytes) -> bytes:
        """Given the tag manifest of a collection, return its signature.json."""
        signature = Signature(
            device=self.id,
            public_key=self.public_key,
            signature=self._key.sign(_COLLECTION + tag_manifest).signature.hex(),
        )
        return msgspec.json.encode(signature) + b"\n"


def _new_seed(path: Path) -> bytes:
    """Make the key, and return it: the one that is there, if somebody else has made it meanwhile."""
    from nacl.signing import SigningKey

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with in_turn(path.parent):
        if not path.exists():
            durable.write(path, bytes(SigningKey.generate()), mode=0o600)
        return path.read_bytes()


def device_id(public_key: str) -> str:
    """Return the device id of a public key: its sha256. Both are hexadecimal."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()


def signer_of(raw: bytes, tag_manifest: bytes) -> str:
    """Given signature.json and the tag manifest beside it, return the public key of who signed.

    Raises SignatureWrong.
    """
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    try:
        said = msgspec.json.decode(raw, type=Signature)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise SignatureWrong(f"is not readable: {error}") from None
    if said.device != device_id(said.public_key):
        raise SignatureWrong("names a device that does not belong to its key")
    try:
        key = VerifyKey(bytes.fromhex(said.public_key))
        key.verify(_COLLECTION + tag_manifest, bytes.fromhex(said.signature))
    except (BadSignatureError, ValueError):
        raise SignatureWrong("is not a signature of this collection") from None
    return said.public_key
