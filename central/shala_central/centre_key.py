"""The centre's own key: all statements of all zones are verified by it, so it is made once, for good."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from nacl.signing import SigningKey
from shala_agent import durable

from shala_central.failure import CentralError, UsageError, refused
from shala_central.ownership import make_file, make_folder

_SEED = 32  # bytes of an Ed25519 private key (RFC 8032)


class KeyProblem(CentralError):
    """The centre's key cannot be used."""


def centre_key(path: Path, known: bytes | None) -> SigningKey:
    """Return the key in the file `path`; it is made when it is not there and no other one is `known`.

    `known` is the public key that the zones of the database were made with. Raises KeyProblem.
    """
    try:
        if known is None and not path.exists():
            _make(path)
        seed = path.read_bytes()
    except FileNotFoundError:
        raise KeyProblem(
            f"{path} is gone (restore it from a backup: no device believes another key)"
        ) from None
    except PermissionError:
        raise UsageError(refused(path)) from None
    if len(seed) != _SEED:
        raise KeyProblem(f"{path} is not a key of {_SEED} bytes (restore it from a backup)")
    key = SigningKey(seed)
    if known not in (None, bytes(key.verify_key)):
        raise KeyProblem(
            f"{path} is not the key that this database's zones were made with (restore that one)"
        )
    return key


def _make(path: Path) -> None:
    """Make a key file of mode 0600, or leave the one that somebody else makes at the same moment."""
    make_folder(path.parent)
    temporary = path.with_name(f"{durable.TEMPORARY}{path.name}.{secrets.token_hex(8)}")
    try:
        make_file(temporary, bytes(SigningKey.generate()))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        durable.sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
