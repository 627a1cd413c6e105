"""The spool: sealed collections, and HEAD that names the newest. A collection appears whole or not at all.

Order of writing, each on the disk before the next: payload and tag files in `.assembling` -> rename into
`collections` -> HEAD. A kill between the last two leaves a whole collection that the next run adopts.
"""

from __future__ import annotations

import grp
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from shala_agent import durable
from shala_agent.collection import (
    BAGIT,
    Collection,
    Head,
    bag_info,
    read_collection,
    tag_manifest,
    write_collection,
)
from shala_agent.failure import AgentError
from shala_agent.seen import STAGED, Seen

MANIFEST = "manifest-sha256.txt"
FOLDER_MODE = 0o750
FILE_MODE = 0o640


class Spool:
    """The spool in the folder `root`, readable for `group` (a name, or "" for nobody else)."""

    def __init__(self, root: Path, group: str = "") -> None:
        self.root = root
        self.collections = root / "collections"
        self.assembling = root / ".assembling"
        self.bag = self.assembling / "bag"
        self._removing = root / ".removing"
        try:
            self._gid = grp.getgrnam(group).gr_gid if group else None
        except KeyError:
            raise AgentError(
                f"there is no group '{group}' (playbooks/provision.yml makes it; paths.spool_group)"
            ) from None

    def prepare(self, seen: Seen) -> None:
        """Remove what a cut run left, adopt what it sealed, make `seen` describe the newest collection."""
        for folder in (self.root, self.collections):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(FOLDER_MODE)
            self._give(folder)
        durable.remove(self._removing)
        for name in os.listdir(self.root):  # noqa: PTH208  names are wanted
            if name.startswith(durable.TEMPORARY):
                durable.remove(self.root / name)
        self._adopt()
        head = self.head()
        base = seen.base()
        if head is None:
            if base != (0, ""):
                seen.clear_base()
        elif base != (head.sequence, head.manifest_sha256):
            seen.set_base(head.sequence, head.manifest_sha256, self.files(head.sequence))
        self._clean_staging(seen)

    def head(self) -> Head | None:
        """Return what HEAD says, or None when nothing was ever sealed (or its collection is gone)."""
        try:
            head = msgspec.json.decode((self.root / "HEAD").read_bytes(), type=Head)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return head if (self.folder(head.sequence) / MANIFEST).is_file() else None

    def folder(self, sequence: int) -> Path:
        """Return where the collection of that sequence is."""
        return self.collections / f"{sequence:08d}"

    def sequences(self) -> list[int]:
        """Return the sequences of the collections that are there, ascending."""
        with suppress(FileNotFoundError):
            names = os.listdir(self.collections)  # noqa: PTH208
            return sorted(int(name) for name in names if re.fullmatch(r"[0-9]{8}", name))
        return []

    def collection(self, sequence: int) -> Collection:
        """Return collection.json of a sealed collection. Raises OSError, msgspec.MsgspecError."""
        return read_collection((self.folder(sequence) / "collection.json").read_bytes())

    def files(self, sequence: int) -> Iterator[tuple[str, str, int]]:
        """Yield (path, sha256, size) of the payload of a sealed collection; what is missing on the disk is
        left out.
        """
        folder = self.folder(sequence)
        with (folder / MANIFEST).open(encoding="utf-8") as manifest:
            for line in manifest:
                sha256, _, path = line.rstrip("\n").partition("  ")
                with suppress(FileNotFoundError):
                    yield path, sha256, (folder / path).lstat().st_size

    def new_file(self, path: str) -> tuple[int, Path]:
        """Return an open descriptor and the place for a payload file of the next collection."""
        target = self.bag / path
        self._make_folder(target.parent)
        target.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(target, flags, 0o600)
        os.fchmod(descriptor, FILE_MODE)
        if self._gid is not None:
            os.fchown(descriptor, -1, self._gid)
        return descriptor, target

    def write_manifest(self, seen: Seen) -> tuple[str, int, int]:
        """Write the manifest of the plan; return (its sha256, payload bytes, payload files)."""
        self._make_folder(self.bag)
        digest = hashlib.sha256()
        size = count = 0
        descriptor, _ = self.new_file(MANIFEST)
        with os.fdopen(descriptor, "wb") as manifest:
            for file in seen.planned():
                line = f"{file.sha256}  {file.path}\n".encode()
                digest.update(line)
                manifest.write(line)
                size += file.size
                count += 1
        return digest.hexdigest(), size, count

    def seal(self, seen: Seen, collection: Collection, manifest_sha256: str, size: int, count: int) -> Head:
        """Complete the bag (links to what did not change), make it durable, rename it into place and move
        HEAD.
        """
        previous = self.head()
        for file in seen.planned():
            if file.origin == STAGED:
                continue
            if previous is None:
                raise AgentError(f"{file.path} is planned from a collection that is gone (run collect again)")
            target = self.bag / file.path
            self._make_folder(target.parent)
            target.unlink(missing_ok=True)
            target.hardlink_to(self.folder(previous.sequence) / file.path)
        tags = {
            "bagit.txt": BAGIT,
            "bag-info.txt": bag_info(collection, size, count),
            "collection.json": write_collection(collection),
        }
        for name, content in tags.items():
            self._write(name, content)
        tags[MANIFEST] = (self.bag / MANIFEST).read_bytes()
        self._write("tagmanifest-sha256.txt", tag_manifest(tags))
        durable.sync_filesystem(self.root)
        target = self.folder(collection.sequence)
        durable.rename(self.bag, target)
        head = Head(
            server_name=collection.server_name,
            sequence=collection.sequence,
            year=collection.year,
            manifest_sha256=manifest_sha256,
        )
        self._write_head(head)
        seen.set_base_to_plan(head.sequence, head.manifest_sha256)
        return head

    def discard(self) -> None:
        """Remove what was assembled."""
        durable.remove(self.assembling)

    def prune(self, keep: int) -> list[int]:
        """Remove the oldest collections beyond `keep`, never the one that HEAD names; return what went."""
        head = self.head()
        gone = [
            sequence for sequence in self.sequences()[:-keep] if head is None or sequence != head.sequence
        ]
        for sequence in gone:
            self._removing.mkdir(mode=0o700, exist_ok=True)
            self.folder(sequence).rename(self._removing / f"{sequence:08d}")
        durable.remove(self._removing)
        return gone

    def _adopt(self) -> None:
        """Let HEAD name the newest whole collection; remove a newer one that is not whole."""
        head = self.head()
        for sequence in reversed(self.sequences()):
            if head is not None and sequence <= head.sequence:
                return
            folder = self.folder(sequence)
            if _tags_agree(folder):
                collection = self.collection(sequence)
                digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
                self._write_head(
                    Head(
                        server_name=collection.server_name,
                        sequence=sequence,
                        year=collection.year,
                        manifest_sha256=digest,
                    )
                )
                return
            durable.remove(folder)

    def _clean_staging(self, seen: Seen) -> None:
        """Keep of `.assembling` what is known to be whole and on the disk; remove the rest."""
        if not self.bag.is_dir():
            self.discard()
            return
        for folder, _, names in os.walk(self.bag, topdown=False):
            for name in names:
                path = Path(folder, name)
                relative = path.relative_to(self.bag).as_posix()
                known = seen.staged(relative)
                if known is None or path.lstat().st_size != known[1] or path.lstat().st_nlink != 1:
                    path.unlink()
                    seen.unstage(relative)

    def remove_unplanned(self, seen: Seen) -> None:
        """Remove staged files that the plan does not take."""
        for folder, _, names in os.walk(self.bag / "data", topdown=False):
            for name in names:
                path = Path(folder, name)
                relative = path.relative_to(self.bag).as_posix()
                if not seen.is_planned_staged(relative):
                    path.unlink()
                    seen.unstage(relative)
            with suppress(OSError):
                Path(folder).rmdir()  # only when it is empty

    def _write_head(self, head: Head) -> None:
        durable.write(self.root / "HEAD", msgspec.json.encode(head) + b"\n", FILE_MODE, self._gid)

    def _write(self, name: str, content: bytes) -> None:
        descriptor, _ = self.new_file(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(mode=FOLDER_MODE)
        folder.chmod(FOLDER_MODE)
        self._give(folder)

    def _give(self, path: Path) -> None:
        if self._gid is not None:
            os.chown(path, -1, self._gid)


def _tags_agree(folder: Path) -> bool:
    """Return whether the tag files of a bag are those that its tag manifest lists."""
    try:
        listed = (folder / "tagmanifest-sha256.txt").read_text(encoding="utf-8").splitlines()
        names = {line[66:]: line[:64] for line in listed}
        return MANIFEST in names and all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
            for name, digest in names.items()
        )
    except (OSError, UnicodeDecodeError):
        return False
