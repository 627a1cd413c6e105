"""The spool: one mirror of the newest sealed collection, and what changed from each collection to the next.

    HEAD                  which collection the mirror holds
    bag/                  the mirror: a BagIt bag
    changes/00000007.txt  what collection 7 changed in the mirror (shala_agent.manifest)
    NEXT                  only while collection 8 is being put into the mirror: whoever reads comes back later

Order of writing, each on the disk before the next: files, tag files and changes of the new collection in
`.assembling` -> NEXT -> the mirror, file by file -> HEAD -> NEXT is removed. A kill before NEXT leaves the
old collection; after it, the next run goes on with putting the new one in its place.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, TypeVar

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
from shala_agent.device import SIGNATURE, Device
from shala_agent.failure import AgentError
from shala_agent.manifest import (
    Change,
    File,
    Gone,
    ManifestError,
    path_of,
    read_changes,
    read_files,
    write_line,
)
from shala_agent.room import room_of
from shala_agent.seen import Seen

MANIFEST = "manifest-sha256.txt"
FILES = "files.txt"  # the manifest with sizes, times and permissions, in the order of shala_agent.manifest
TAG_MANIFEST = "tagmanifest-sha256.txt"
TAG_FILES = ("bagit.txt", "bag-info.txt", "collection.json", MANIFEST, FILES, TAG_MANIFEST)
CHANGES_BYTES = 64 << 20  # bytes: more than that of old changes is not kept, however few collections they are
FOLDER_MODE = 0o750
FILE_MODE = 0o640


Row = TypeVar("Row")


class MirrorDamaged(AgentError):
    """The mirror lacks files of the collection that it was just given; the text says what becomes of it."""


class Totals(msgspec.Struct, frozen=True):
    """What the next collection comes to: digests of MANIFEST and FILES, bytes and files of its payload."""

    manifest_sha256: str
    files_sha256: str
    size: int
    count: int


class Spool:
    """The spool in the folder `root`, readable for `group` (a name, or "" for nobody else)."""

    def __init__(self, root: Path, group: str = "") -> None:
        self.root = root
        self.bag = root / "bag"
        self.changes = root / "changes"
        self.assembling = root / ".assembling"
        self._staged = self.assembling / "bag"
        # As text: a Path per file would cost more than what is done with the file.
        self._bag_prefix = f"{self.bag}/"
        self._staged_prefix = f"{self._staged}/"
        self._made = ""  # the folder that was made last
        try:
            self._gid = _gid(group) if group else None
        except KeyError:
            raise AgentError(
                f"there is no group '{group}' (playbooks/provision.yml makes it; paths.spool_group)"
            ) from None

    # -- what is sealed --------------------------------------------------------------------------------------

    def head(self) -> Head | None:
        """Return what HEAD says, or None when nothing was ever sealed (or its collection is gone)."""
        return self._read_head("HEAD") if (self.bag / MANIFEST).is_file() else None

    def collection(self) -> Collection:
        """Return collection.json of the mirror. Raises OSError, msgspec.MsgspecError."""
        return read_collection((self.bag / "collection.json").read_bytes())

    def files(self) -> Iterator[File]:
        """Yield the files of the mirror; what is missing on the disk is left out. Raises ManifestError."""
        with (self.bag / FILES).open("rb") as lines:
            for file in read_files(lines):
                if self.holds(file.path, file.size, file.mtime_ns):
                    yield file

    def sequences(self) -> list[int]:
        """Return the sequences of the collections whose changes are there, ascending."""
        with suppress(FileNotFoundError):
            names = os.listdir(self.changes)  # noqa: PTH208
            return sorted(int(name[:8]) for name in names if re.fullmatch(r"[0-9]{8}\.txt", name))
        return []

    # -- the next collection ---------------------------------------------------------------------------------

    def prepare(self, seen: Seen) -> None:
        """Finish what a cut run sealed, remove what it left else, make `seen` describe the mirror."""
        for folder in (self.root, self.changes, self.bag):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(FOLDER_MODE)
            self._give(folder)
        for name in os.listdir(self.root):  # noqa: PTH208  names are wanted
            if name.startswith(durable.TEMPORARY):
                durable.remove(self.root / name)
        self._finish()
        head = self.head() or self._adopt()
        base = seen.base()
        if head is None:
            if base != (0, ""):
                seen.clear_base()
        elif base != (head.sequence, head.manifest_sha256):
            try:
                seen.set_base(head.sequence, head.manifest_sha256, self.files())
            except (OSError, ManifestError):
                seen.clear_base()
        self._clean_staging(seen)

    def new_file(self, path: str) -> tuple[int, str]:
        """Return a descriptor to write and read again, and the place, for a file of the next collection."""
        target = self._place(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(target, flags, 0o600)
        except FileExistsError:
            os.unlink(target)  # noqa: PTH108
            descriptor = os.open(target, flags, 0o600)
        os.fchmod(descriptor, FILE_MODE)
        if self._gid is not None:
            os.fchown(descriptor, -1, self._gid)
        return descriptor, target

    def link_file(self, path: str, source: int) -> str | None:
        """Make a file of the next collection a hard link to an open one, and return its place.

        Returns None where that cannot be: another file system or mount, or as many links as there may be.
        """
        target = self._place(path)
        for _ in range(2):
            try:
                # With a src_dir_fd, which an absolute path does not need, Python calls linkat, which can
                # follow.
                os.link(f"/proc/self/fd/{source}", target, src_dir_fd=source, follow_symlinks=True)
            except FileExistsError:
                os.unlink(target)  # noqa: PTH108
            except OSError:
                return None
            else:
                return target
        return None

    def drop(self, path: str) -> int:
        """Take back a file of the next collection, and the folders that it leaves empty; return its room."""
        target = f"{self._staged_prefix}{path}"
        freed = room_of(target)
        with suppress(FileNotFoundError):
            os.unlink(target)  # noqa: PTH108
        self._made = ""
        with suppress(OSError):
            while (target := os.path.dirname(target)) != self._staged_prefix[:-1]:  # noqa: PTH120
                os.rmdir(target)  # noqa: PTH106  only when it is empty
        return freed

    def write_manifest(self, seen: Seen) -> Totals:
        """Write both manifests of the plan, and return what it comes to."""
        self._make_folder(str(self._staged))
        digest, files_digest = hashlib.sha256(), hashlib.sha256()
        size = count = 0
        with self._open(MANIFEST) as manifest, self._open(FILES) as files:
            for page in _pages(seen.planned()):
                # Of all keys at once: that is cheaper than of each.
                lines = path_of("".join([f"{row[1]}  {row[0]}\n" for row in page])).encode()
                digest.update(lines)
                manifest.write(lines)
                # As shala_agent.manifest.write_line has it.
                page_lines = [f"{s} {b} {t} {mode:04o} {key}\n" for key, s, b, t, mode in page]
                lines = path_of("".join(page_lines)).encode()
                files_digest.update(lines)
                files.write(lines)
                size += sum([row[2] for row in page])
                count += len(page)
        return Totals(digest.hexdigest(), files_digest.hexdigest(), size, count)

    def seal(self, seen: Seen, collection: Collection, totals: Totals, device: Device) -> Head:
        """Complete the next collection, sign it, make it durable, and put it into the mirror."""
        tags = {
            "bagit.txt": BAGIT,
            "bag-info.txt": bag_info(collection, totals.size, totals.count),
            "collection.json": write_collection(collection),
        }
        for name, content in tags.items():
            self._write(name, content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in tags.items()}
        digests |= {MANIFEST: totals.manifest_sha256, FILES: totals.files_sha256}
        tag_list = tag_manifest(digests)
        self._write(TAG_MANIFEST, tag_list)
        self._write(SIGNATURE, device.sign_collection(tag_list))
        self._write_changes(seen.planned_changes())
        durable.sync_filesystem(self.root)
        head = Head(
            server_name=collection.server_name,
            sequence=collection.sequence,
            year=collection.year,
            manifest_sha256=totals.manifest_sha256,
            files_sha256=totals.files_sha256,
            tag_manifest_sha256=hashlib.sha256(tag_list).hexdigest(),
        )
        self._write_head("NEXT", head)
        lost = self._finish()
        if self.head() != head:
            raise MirrorDamaged(
                f"{self.assembling}: the new collection was lost before it was in its place:"
                " the next run gathers everything anew"
            )
        seen.set_base_to_plan(head.sequence, head.manifest_sha256)
        if lost:
            raise MirrorDamaged(f"{lost} was lost before it was in its place: the next run takes it again")
        return head

    def discard(self) -> None:
        """Remove what was assembled, unless it is just being put into the mirror."""
        if not (self.root / "NEXT").exists():
            durable.remove(self.assembling)
            self._made = ""

    def holds(self, path: str, size: int, mtime_ns: int) -> bool:
        """Return whether the mirror has a file as it was put there, by size and time."""
        try:
            seen = os.lstat(self._bag_prefix + path)
        except OSError:
            return False
        return seen.st_mtime_ns == mtime_ns and seen.st_size == size and stat.S_ISREG(seen.st_mode)

    def damaged(self) -> Iterator[str]:
        """Yield the files of the mirror that are not as they were put there, by size and time."""
        with (self.bag / FILES).open("rb") as lines:
            for file in read_files(lines):
                if not self.holds(file.path, file.size, file.mtime_ns):
                    yield file.path

    def prune(self, keep: int) -> None:
        """Remove the oldest changes beyond the newest `keep` collections and CHANGES_BYTES."""
        size = 0
        for number, sequence in enumerate(reversed(self.sequences())):
            changes = self._changes_of(sequence)
            size += changes.stat().st_size
            if number and (number >= keep or size > CHANGES_BYTES):
                changes.unlink()

    def in_mirror(self, path: str) -> str:
        """Return where the mirror has a file, or would have it."""
        return self._bag_prefix + path

    def give_up(self, path: str) -> None:
        """Remove a file from the mirror for want of room; only of a collection that the centre has."""
        os.unlink(self._bag_prefix + path)  # noqa: PTH108

    def give_up_changes(self, sequence: int) -> int:
        """Remove the list of what a collection changed, and return the room that it took."""
        changes = self._changes_of(sequence)
        freed = room_of(str(changes))
        changes.unlink()
        return freed

    def remove_unplanned(self, seen: Seen) -> None:
        """Remove staged files that the plan does not take."""
        for file in seen.untaken():
            self.drop(file.path)
            seen.unstage(file.path)

    # -- putting it in its place -----------------------------------------------------------------------------

    def _finish(self) -> str:
        """Put the collection that NEXT names into the mirror, and return a file that it lacks, or "".

        Every step may be repeated. What was lost is taken again by the next run; without its lists there is
        no collection.
        """
        head = self._read_head("NEXT")
        if head is None:
            (self.root / "NEXT").unlink(missing_ok=True)
            return ""
        changes, lost = self.assembling / "changes.txt", ""
        if changes.is_file():
            try:
                lost = self._apply(changes)
            except ManifestError:
                self._start_over()
                return ""
            for name in (*TAG_FILES, SIGNATURE):
                with suppress(FileNotFoundError):
                    (self._staged / name).rename(self.bag / name)
            if not self._lists(head):
                self._start_over()
                return ""
            durable.sync_filesystem(self.root)
            self._write_head("HEAD", head)
            durable.rename(changes, self._changes_of(head.sequence))
        elif self._read_head("HEAD") != head:
            self._start_over()
            return ""
        (self.root / "NEXT").unlink()
        durable.sync(self.root)
        self.discard()
        return lost

    def _lists(self, head: Head) -> bool:
        """Return whether the mirror has the lists of a collection; their content is looked at when read."""
        try:
            listed = _digest(self.bag / TAG_MANIFEST)
        except OSError:
            return False
        return listed == head.tag_manifest_sha256 and all((self.bag / name).is_file() for name in TAG_FILES)

    def _apply(self, changes: Path) -> str:
        # First what is gone: a file may give its name to a folder, or a folder to a file.
        for path in _gone(changes):
            target = self._bag_prefix + path
            with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
                os.unlink(target)  # noqa: PTH108
            self._remove_empty(Path(target).parent)
        staged = self._staged_prefix + "data"
        if os.path.isdir(staged):  # noqa: PTH112
            self._move(staged, self._bag_prefix + "data")
        lost = ""
        with changes.open("rb") as lines:
            for change in read_changes(lines):
                # In its place, now or since the run that was cut, or lost.
                if isinstance(change, File) and _size_of(self._bag_prefix + change.path) != change.size:
                    lost = lost or change.path
        return lost

    def _move(self, source: str, target: str) -> None:
        """Move a staged folder into the mirror: whole where the mirror has none of that name."""
        stack = [(source, target)]
        while stack:
            source, target = stack.pop()
            if not os.path.lexists(target):
                self._make_folder(os.path.dirname(target))  # noqa: PTH120
                os.rename(source, target)  # noqa: PTH104
                continue
            with os.scandir(source) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append((entry.path, f"{target}/{entry.name}"))
                    else:
                        os.rename(entry.path, f"{target}/{entry.name}")  # noqa: PTH104

    def _start_over(self) -> None:
        """Give up a mirror that is neither the old collection nor the new one."""
        for name in ("HEAD", "NEXT"):
            (self.root / name).unlink(missing_ok=True)
        durable.empty_folder(self.bag, FOLDER_MODE)
        self._give(self.bag)
        self.discard()

    def _remove_empty(self, folder: Path) -> None:
        """Remove a folder of the mirror, and those above it, as far as they are empty."""
        while folder != self.bag:
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass  # since the run that was cut; the one above may still be there
            except OSError:
                return
            folder = folder.parent

    def _adopt(self) -> Head | None:
        """Write the HEAD that is lost anew from a mirror that is whole; remove one that is not."""
        try:
            listed = (self.bag / TAG_MANIFEST).read_bytes()
            digests = {line[66:]: line[:64] for line in listed.decode("utf-8").splitlines()}
            whole = all(_digest(self.bag / name) == digest for name, digest in digests.items())
            if not whole or not {MANIFEST, FILES, "collection.json"} <= digests.keys():
                raise FileNotFoundError
            collection = self.collection()
        except (OSError, UnicodeDecodeError, msgspec.MsgspecError):
            durable.empty_folder(self.bag, FOLDER_MODE)
            self._give(self.bag)
            return None
        head = Head(
            server_name=collection.server_name,
            sequence=collection.sequence,
            year=collection.year,
            manifest_sha256=digests[MANIFEST],
            files_sha256=digests[FILES],
            tag_manifest_sha256=hashlib.sha256(listed).hexdigest(),
        )
        self._write_head("HEAD", head)
        return head

    def _clean_staging(self, seen: Seen) -> None:
        """Keep of `.assembling` what is known to be whole and on the disk; remove the rest."""
        for file in seen.all_staged():
            if _size_of(self._staged_prefix + file.path) != file.size:
                seen.unstage(file.path)
        if not self._staged.is_dir():
            self.discard()
            return
        for folder, _, names in os.walk(self._staged, topdown=False):
            for name in names:
                path = f"{folder}/{name}"
                if seen.staged(path.removeprefix(self._staged_prefix)) is None:
                    os.unlink(path)  # noqa: PTH108
            with suppress(OSError):
                os.rmdir(folder)  # noqa: PTH106  only when it is empty

    # -- files and folders -----------------------------------------------------------------------------------

    def _changes_of(self, sequence: int) -> Path:
        return self.changes / f"{sequence:08d}.txt"

    def _write_changes(self, changes: Iterable[Change]) -> None:
        target = self.assembling / "changes.txt"
        target.unlink(missing_ok=True)
        with target.open("wb") as lines:
            os.fchmod(lines.fileno(), FILE_MODE)
            if self._gid is not None:
                os.fchown(lines.fileno(), -1, self._gid)
            lines.writelines(map(write_line, changes))

    def _read_head(self, name: str) -> Head | None:
        try:
            return msgspec.json.decode((self.root / name).read_bytes(), type=Head)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def _write_head(self, name: str, head: Head) -> None:
        durable.write(self.root / name, msgspec.json.encode(head) + b"\n", FILE_MODE, self._gid)

    def _write(self, name: str, content: bytes) -> None:
        with self._open(name) as file:
            file.write(content)

    def _open(self, name: str) -> IO[bytes]:
        return os.fdopen(self.new_file(name)[0], "wb")

    def _place(self, path: str) -> str:
        target = f"{self._staged_prefix}{path}"
        self._make_folder(os.path.dirname(target))  # noqa: PTH120
        return target

    def _make_folder(self, folder: str) -> None:
        if folder == self._made:
            return
        if not os.path.isdir(folder):  # noqa: PTH112
            self._make_folder(os.path.dirname(folder))  # noqa: PTH120
            os.mkdir(folder, FOLDER_MODE)  # noqa: PTH102
            os.chmod(folder, FOLDER_MODE)  # noqa: PTH101
            self._give(folder)
        self._made = folder

    def _give(self, path: str | Path) -> None:
        if self._gid is not None:
            os.chown(path, -1, self._gid)


def _size_of(path: str) -> int:
    """Return the size of a plain file, -1 if there is none."""
    try:
        seen = os.lstat(path)
    except OSError:
        return -1
    return seen.st_size if stat.S_ISREG(seen.st_mode) else -1


def _gid(group: str) -> int:
    """Return the number of a group. Raises KeyError."""
    import grp

    return grp.getgrnam(group).gr_gid


def _pages(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield the rows some at a time: a line is written in less time than one call of write takes."""
    rows = iter(rows)
    while page := list(islice(rows, 1000)):
        yield page


def _gone(changes: Path) -> Iterator[str]:
    with changes.open("rb") as lines:
        for change in read_changes(lines):
            if isinstance(change, Gone):
                yield change.path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
