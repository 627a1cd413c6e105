"""Checkout: write a kept collection, as the school sealed it, to a folder outside the archive."""

from __future__ import annotations

import logging
import os
import zlib
from pathlib import Path

from shala_agent.manifest import File

from shala_central.archive import Archive
from shala_central.ciphertext import SUFFIX, Identities, decrypt
from shala_central.failure import CentralError, UsageError
from shala_central.history import Version
from shala_central.listing import file_of
from shala_central.objects import ObjectDamaged
from shala_central.publish import remove_tree
from shala_central.remote import in_parallel
from shala_central.versions import files_of

logger = logging.getLogger(__name__)


def checkout(
    archive: Archive, version: Version, destination: Path, below: str = "", identities: Identities = ()
) -> tuple[int, int]:
    """Write a collection, or what is below a path of it, to a new folder; return (files, bytes).

    Content, times and permissions are those that the school sealed; what is encrypted is an age file, and
    with the researcher's `identities` plain. Raises UsageError if the destination is there already,
    CentralError for content that is damaged or gone, or encrypted to somebody else.
    """
    if os.path.lexists(destination):
        raise UsageError(f"{destination} exists already (name a folder that does not)")
    # What was fetched from a bucket counts for the next try, if that is for the same.
    what = zlib.crc32(f"{version.server} {version.pulled} {below}{' plain' * bool(identities)}".encode())
    unfinished = destination.with_name(f".{destination.name}.{what:08x}.part")
    # A decrypted file counts for nothing: only its age file could be compared.
    resumes = archive.objects.on_demand and not identities
    if not resumes:
        remove_tree(unfinished)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.mkdir(mode=0o700, exist_ok=True)
    unfinished.chmod(0o700)  # children's data: who may read it is the operator's decision
    files = size = 0
    chosen = (
        file
        for file in map(file_of, files_of(archive, version))
        if not below
        or file.path in (f"data/{below}", f"data/{below.removesuffix(SUFFIX)}")
        or file.path.startswith(f"data/{below}/")
    )

    any_encrypted = bool(archive.objects.ciphertexts.items(version.server))

    def write(file: File) -> int:
        stored = archive.objects.ciphertexts.as_stored(version.server, file) if any_encrypted else file
        path = stored.path.removeprefix("data/")
        (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
        _copy_out(archive, version, path, stored, unfinished / path)
        if stored is file or not identities:
            return stored.size
        _decrypt(unfinished / path, file, identities)
        return file.size

    try:
        for written in in_parallel(write, chosen) if archive.objects.on_demand else map(write, chosen):
            files, size = files + 1, size + written
        if not files:
            raise UsageError(f"collection {version.sequence} of {version.server} holds nothing at '{below}'")
        unfinished.rename(destination)
    except BaseException as failed:
        if not resumes or isinstance(failed, OSError | UsageError):
            remove_tree(unfinished)
        else:
            logger.warning("what was fetched stays in %s for the next try", unfinished)
        raise
    return files, size


def _copy_out(archive: Archive, version: Version, path: str, file: File, target: Path) -> None:
    try:
        if target.exists():
            target.chmod(0o600)  # of a run that was cut
        archive.objects.fetch(version.server, path, file.sha256, target)
        target.chmod(file.mode & 0o777)
        os.utime(target, ns=(file.mtime_ns, file.mtime_ns))
    except ObjectDamaged as damaged:
        raise CentralError(f"{path} of {version.server}: {damaged} (shala archive repair)") from None


def _decrypt(stored: Path, file: File, identities: Identities) -> None:
    """Put the content of an age file in its place, under the name, time and permissions of the school's."""
    target = stored.with_name(stored.name.removesuffix(SUFFIX))
    target.unlink(missing_ok=True)  # of a run that was cut
    stored.chmod(0o600)
    with stored.open("rb") as source, target.open("xb") as plain:
        os.fchmod(plain.fileno(), 0o600)
        decrypt(source, plain, file, identities)
    target.chmod(file.mode & 0o777)
    os.utime(target, ns=(file.mtime_ns, file.mtime_ns))
    stored.unlink()
