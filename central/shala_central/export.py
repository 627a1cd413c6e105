"""Export: a selection of the archive as one tar file, for whoever works elsewhere.

For each server a BagIt bag (RFC 8493), named after it, with the manifest of what was selected; names, times
and permissions are those that the school sealed. `tar -x` and `sha256sum -c manifest-sha256.txt` are all that
is needed to use it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import zstandard
from shala_agent.collection import BAGIT, Collection, tag_manifest
from shala_agent.manifest import File, bagit_lines

from shala_central.archive import Archive
from shala_central.ciphertext import Identities, decrypt
from shala_central.failure import CentralError, UsageError
from shala_central.history import Version
from shala_central.listing import file_of, select
from shala_central.objects import READ_BYTES, ObjectDamaged
from shala_central.records import RecordDamaged
from shala_central.versions import files_of, record_of

MAX_TOLD = 5  # servers in one line


class Exported(msgspec.Struct, frozen=True):
    """What an export holds; `failed` are the servers that were left out as damaged: {server: why}."""

    path: str
    servers: list[str]
    files: int
    bytes: int
    failed: dict[str, str]


class _Damaged(CentralError):
    """Something of a server is damaged: its bag would not be whole."""


def export(
    archive: Archive,
    versions: Sequence[Version],
    items: Sequence[str],
    target: Path,
    identities: Identities = (),
) -> Exported:
    """Write collections, or items of them, to a tar file, packed with zstd if its name ends in .zst.

    What is encrypted is an age file there, and plain with the researcher's `identities`. A server of which
    something is damaged is left out whole. Raises UsageError if the file is there already or nothing was
    selected, CentralError if no server is left.
    """
    if not target.name.endswith((".tar", ".tar.zst")):
        raise UsageError(f"{target} cannot be written (name a file that ends in .tar, or in .tar.zst)")
    _require_new(target)
    # A name of its own, for its owner alone: another run may write to the same file.
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    unfinished = Path(name)
    servers: list[str] = []
    failed: dict[str, str] = {}
    files = size = 0
    try:
        with _opened(descriptor, packed=target.suffix == ".zst") as tar:
            for version in versions:
                # In a file of its own first: a tar cannot take back what was damaged.
                with tempfile.TemporaryFile(dir=target.parent) as bag:
                    try:
                        count, total = _add(bag, archive, version, items, identities)
                    except (_Damaged, RecordDamaged) as damaged:
                        failed[version.server] = str(damaged)
                        continue
                    bag.seek(0)
                    shutil.copyfileobj(bag, tar, READ_BYTES)
                if count:
                    servers.append(version.server)
                files, size = files + count, size + total
        if failed and not files:
            others = [f"and {len(failed) - MAX_TOLD} other servers"] if len(failed) > MAX_TOLD else []
            raise CentralError("; ".join([*list(failed.values())[:MAX_TOLD], *others]))
        if not files:
            raise UsageError(
                f"no chosen server has {' or '.join(items)} (shala archive tree --depth 4 shows items)"
            )
        _require_new(target)
        unfinished.rename(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return Exported(str(target), servers, files, size, failed)


def _require_new(target: Path) -> None:
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already (name a file that does not)")
    if not target.parent.is_dir():
        raise UsageError(f"{target} cannot be written: {target.parent} is no folder (make it first)")


@contextlib.contextmanager
def _opened(descriptor: int, *, packed: bool) -> Iterator[IO[bytes]]:
    with open(descriptor, "wb") as plain:
        stream: Any = zstandard.ZstdCompressor(3).stream_writer(plain, closefd=False) if packed else plain
        yield stream
        stream.write(bytes(tarfile.RECORDSIZE))  # the end of a tar
        if packed:
            stream.close()
        plain.flush()
        os.fsync(plain.fileno())


def _add(
    bag: IO[bytes],
    archive: Archive,
    version: Version,
    items: Sequence[str],
    identities: Identities,
) -> tuple[int, int]:
    """Write one server's bag, as it stands in a tar; return the files and bytes of its payload.

    Raises _Damaged and RecordDamaged: then it is not whole.
    """
    files = size = 0
    lines: list[bytes] = []
    chosen = _lines(archive, version, items)
    for line in chosen if identities else archive.objects.ciphertexts.lines(version.server, chosen):
        file = file_of(line)
        _add_file(bag, archive, version, file, identities)
        lines += bagit_lines([file])
        files, size = files + 1, size + file.size
    if not files:
        return 0, 0
    record = record_of(archive, version)
    collection = msgspec.json.decode(record["collection.json"], type=Collection)
    listed = b"".join(lines)
    info = (
        f"Source-Organization: {_line(collection.school_name) or collection.school_code}\n"
        f"External-Identifier: {version.server}\nBagging-Date: {_line(collection.sealed[:10])}\n"
        f"Bag-Software-Agent: shala-agent {_line(collection.agent_version)}\nPayload-Oxum: {size}.{files}\n"
        f"Shala-Sequence: {version.sequence}\nShala-Selection: {' '.join(items) or 'all'}\n"
    )
    tags = {
        "bagit.txt": BAGIT,
        "bag-info.txt": info.encode(),
        "collection.json": record["collection.json"],
        "manifest-sha256.txt": listed,
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in tags.items()}
    for name, content in {**tags, "tagmanifest-sha256.txt": tag_manifest(digests)}.items():
        entry = tarfile.TarInfo(f"{version.server}/{name}")
        entry.size, entry.mode = len(content), 0o640
        with _entry(bag, entry):
            bag.write(content)
    return files, size


@contextlib.contextmanager
def _entry(bag: IO[bytes], entry: tarfile.TarInfo) -> Iterator[None]:
    """Write the head of an entry of a tar, what the block writes, and zeros to the end of its last block."""
    bag.write(entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
    yield
    bag.write(bytes(-entry.size % tarfile.BLOCKSIZE))


def _line(text: str) -> str:
    """Return a stranger's words as they may stand in one line."""
    return " ".join(text.split())


def _lines(archive: Archive, version: Version, items: Sequence[str]) -> Iterator[bytes]:
    lines = files_of(archive, version)
    if not items:
        return lines
    return select(lines, [f"data/{item.strip('/')}" for item in items], inside=True)


def _add_file(bag: IO[bytes], archive: Archive, version: Version, file: File, identities: Identities) -> None:
    stored = archive.objects.ciphertexts.as_stored(version.server, file) if identities else file
    entry = tarfile.TarInfo(f"{version.server}/{file.path}")
    entry.size, entry.mode, entry.mtime = file.size, file.mode & 0o777, file.mtime_ns // 1_000_000_000
    path = stored.path.removeprefix("data/")
    with _entry(bag, entry):
        begin = bag.tell()
        try:
            if stored is file:
                archive.objects.copy(version.server, path, stored.sha256, bag)
            else:
                with tempfile.TemporaryFile() as content:
                    archive.objects.copy(version.server, path, stored.sha256, content)
                    content.seek(0)
                    decrypt(content, bag, file, identities)
        except ObjectDamaged as damaged:
            raise _Damaged(f"{file.path} of {version.server}: {damaged} (shala archive repair)") from None
        if bag.tell() - begin != file.size:
            raise _Damaged(
                f"{file.path} of {version.server} is not as long as its list says (shala archive repair)"
            )
