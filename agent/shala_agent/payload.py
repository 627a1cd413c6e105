"""Payload: a collection as the centre hands it out again, looked at before anything of it is used.

A bag, as `shala archive export` packs it, or the folder of a checkout. What a bag's manifest says of a file
is held against its content. Only plain files are taken, through folders and never through a link.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shala_agent.collection import Collection, ItemResult, read_collection
from shala_agent.failure import AgentError, UsageError
from shala_agent.kinds import Kind
from shala_agent.privacy import SEALED
from shala_agent.walk import walk

PLATFORMS = ("gstudio", "unplatform")
CHUNK = 1 << 20
MANIFEST = "manifest-sha256.txt"


class Damaged(AgentError):
    """Something of a payload is not what was collected; the text names the file."""


@dataclass(frozen=True, slots=True)
class Payload:
    """The folder that holds <platform>/<item>, and what a bag says besides."""

    root: Path
    manifest: Path | None
    collection: Collection | None

    def items(self) -> list[tuple[str, str]]:
        """Return (platform, name) of the items that are in it."""
        found = []
        for platform in PLATFORMS:
            folder = self.root / platform
            if folder.is_dir() and not folder.is_symlink():
                found += [(platform, name) for name in sorted(one.name for one in folder.iterdir())]
        return found

    def result(self, platform: str, name: str) -> ItemResult | None:
        """Return what the collection says of an item, None where there is no word of it."""
        return self.collection.item(platform, name) if self.collection is not None else None

    def place(self, platform: str, name: str) -> Path:
        """Return where an item lies."""
        return self.root / platform / name

    def files(self, platform: str, name: str, kind: Kind, *, must_be_whole: bool) -> dict[str, str]:
        """Return {path inside the item, "" for itself: sha256} of an item. Raises Damaged.

        A file that its check finds broken was so at the school where the manifest has it; then it passes,
        unless it `must_be_whole`.
        """
        place = self.place(platform, name)
        expected = self._expected(f"data/{platform}/{name}")
        found: dict[str, str] = {}
        for file in plain_files(place):
            shown = f"{platform}/{name}{f'/{file.relative}' if file.relative else ''}"
            with file.opened() as descriptor:
                digest = sha256_of(descriptor)
            found[file.relative] = digest
            if expected is not None and expected.pop(file.relative, None) != digest:
                raise Damaged(f"{shown} is not what was collected: its sha256 is not that of {MANIFEST}")
            if must_be_whole or expected is None:
                for why in kind.check(place / file.relative, file.relative or name, digest):
                    raise Damaged(f"{shown} {why}")
        if expected:
            raise Damaged(f"{platform}/{name}/{min(expected)} is missing, {MANIFEST} has it")
        if not found:
            raise Damaged(f"{platform}/{name} holds no file")
        return found

    def _expected(self, prefix: str) -> dict[str, str] | None:
        """Return what the manifest says of an item, None where there is none."""
        if self.manifest is None:
            return None
        expected: dict[str, str] = {}
        try:
            with self.manifest.open(encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    digest, _, path = line.rstrip("\n").partition("  ")
                    if path == prefix or path.startswith(f"{prefix}/"):
                        expected[path[len(prefix) + 1 :]] = digest
        except UnicodeDecodeError as error:
            raise Damaged(f"{self.manifest} is damaged: {error.reason} (export it again)") from None
        return expected


@dataclass(frozen=True, slots=True)
class PlainFile:
    """A file of an item: opened by `name` in the open folder `folder`, or by its whole path."""

    relative: str
    path: Path
    folder: int | None = None

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Open it, if it is a plain file. Raises Damaged, OSError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        name = self.path if self.folder is None else self.path.name
        descriptor = os.open(name, flags, dir_fd=self.folder)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Damaged(f"{self.path} is no plain file")
            yield descriptor
        finally:
            os.close(descriptor)


def read_payload(folder: Path) -> Payload:
    """Return what lies in a folder. Raises UsageError where that is no collection."""
    root = folder / "data" if (folder / "bagit.txt").is_file() else folder
    payload = Payload(root, None, None)
    if root.is_symlink() or not payload.items():
        raise UsageError(
            f"{folder} holds no collection: no item lies in a folder {PLATFORMS[0]} in it (shala archive"
            " checkout makes one, and shala archive export, unpacked)"
        )
    manifest, said = folder / MANIFEST, folder / "collection.json"
    if root != folder and not manifest.is_file():
        raise UsageError(f"{folder} is a bag without its {MANIFEST} (export it again)")
    try:
        collection = read_collection(said.read_bytes()) if said.is_file() else None
    except msgspec.MsgspecError as error:
        raise UsageError(f"{said} cannot be read: {error} (export it again)") from None
    return Payload(root, manifest if manifest.is_file() else None, collection)


def plain_files(place: Path) -> Iterator[PlainFile]:
    """Yield the files of an item, in the order of manifests. Raises Damaged for what is none."""
    if not place.is_symlink() and place.is_file():
        yield PlainFile("", place)
        return
    if place.is_symlink() or not place.is_dir():
        raise Damaged(f"{place} is a link or a special file")
    notes: list[str] = []

    def unread(path: str, error: OSError) -> None:
        raise Damaged(f"{place / path} cannot be read: {error.strerror}")

    for entry in walk(place, notes, unread):
        yield PlainFile(entry.relative, place / entry.relative, entry.folder)
    if notes:
        raise Damaged(f"{place}: {notes[0]}")


def is_sealed(files: Mapping[str, str], name: str) -> str:
    """Return the path of a file of an item that only the owner of a key can open, "" if there is none."""
    return next((path or name for path in files if (path or name).endswith(SEALED)), "")


def sha256_of(descriptor: int) -> str:
    """Return the digest of what is left of an open file."""
    digest = hashlib.sha256()
    while chunk := os.read(descriptor, CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
