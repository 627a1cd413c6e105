"""The object store: every content once, whichever server and year it came from, below the published trees.

    objects/shared/ab/<sha256>            of items that are the same everywhere: any server may refer to them
    objects/<server name>/ab/<sha256>     of all other items: only the server that sent them may

A file of a published tree is a hard link to its object. That a server names a digest never gives it what
another one sent: it must have sent the content itself, or the policy says that the item is shared. What
stands under such a name is on the disk, whole: it was moved there after it was checked and synced.

A bucket (shala_central.remote) may be a second place, or the only one in the end: on demand, what was sent
there is removed here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from shala_agent.manifest import File

from shala_central.ciphertext import SUFFIX, Ciphertexts
from shala_central.cold import PATCHABLE, Cold, ColdDamaged
from shala_central.copies import COLD
from shala_central.publish import FILE_MODE, make_folders, remove_tree, sync_file_system, sync_folder
from shala_central.reading import only_reads
from shala_central.remote import Local, LocalDamaged, Remote, RemoteDamaged, Sent

SHARED = "shared"
SHA256 = 64  # digits
READ_BYTES = 1 << 20


class ObjectDamaged(Exception):
    """A content is gone, or is not what its name says."""


class Objects:
    """The objects below one folder; `shared_items` are paths below a server's folder, e.g. gstudio/media."""

    def __init__(
        self,
        root: Path,
        shared_items: Sequence[str],
        remote: Remote | None = None,
        *,
        on_demand: bool = False,
        read_only: bool = False,
        ciphertexts: Ciphertexts | None = None,
    ) -> None:
        self.root = root
        self.ciphertexts = ciphertexts or Ciphertexts(root.parent / "encrypted.sqlite")
        self.remote = remote
        self.on_demand = on_demand and remote is not None
        self.cold = Cold(root, read_only=read_only or only_reads(root.parent / COLD))
        self._bytes_root = os.fsencode(root)
        self._shared = tuple(f"{item.rstrip('/')}/" for item in shared_items)
        self._shared_bytes = tuple(item.encode() for item in self._shared)

    @property
    def shared_items(self) -> list[str]:
        """Return the items that any server may refer to, in order."""
        return sorted({item.rstrip("/") for item in self._shared})

    def of_copy(self, root: Path) -> Objects:
        """Return the objects of another copy of the archive, of which nothing but reading is asked."""
        return Objects(root, self._shared, read_only=True, ciphertexts=self.ciphertexts)

    def place(self, server: str, path: bytes, sha256: bytes) -> bytes:
        """Return where the content of a server's file stands, if it is there: a path, as bytes.

        What the policy shares stands among the shared, everything else among the server's own.
        """
        pool = b"shared" if path.startswith(self._shared_bytes) else server.encode()
        return b"%b/%b/%b/%b" % (self._bytes_root, pool, sha256[:2], sha256)

    def find(self, server: str, path: str, sha256: str, size: int | None = None) -> Path | None:
        """Return the object that this server may use for a file at this path, or None if it must send it.

        With `size` only one of so many bytes: another one is damaged.
        """
        place = self.place(server, path.encode(), sha256.encode())
        try:
            seen = os.lstat(place)
        except FileNotFoundError:
            return None
        return Path(os.fsdecode(place)) if size in (None, seen.st_size) else None

    def add(self, source: Path, server: str, path: str, sha256: str) -> None:
        """Move a file whose content was checked and is on the disk to its place; a good one there stays."""
        place = Path(os.fsdecode(self.place(server, path.encode(), sha256.encode())))
        source.chmod(FILE_MODE)
        if holds(place, sha256):
            source.unlink()
            return
        try:
            source.rename(place)
        except FileNotFoundError:
            make_folders(place.parent)
            source.rename(place)

    def add_encrypted(self, server: str, contents: Sequence[tuple[File, Path]], work: Path) -> None:
        """Keep the contents of files, each read from a place, as age files; `work` is a folder for this."""
        remove_tree(work)
        work.mkdir(mode=0o700)
        done = [
            self.ciphertexts.encrypt(file, place, work / str(number))
            for number, (file, place) in enumerate(contents)
        ]
        # On the disk before it has its name, the name before the table leads to it.
        sync_file_system(work)
        for one in done:
            self.add(one.place, server, one.file.path.removeprefix("data/") + SUFFIX, one.sha256)
        sync_file_system(work)
        self.ciphertexts.add(server, done)
        remove_tree(work)

    def has(self, server: str, file: File) -> bool:
        """Return whether a file's content is an object here, or in the bucket."""
        what = (server, file.path.removeprefix("data/"), file.sha256, file.size)
        return self.find(*what) is not None or self.has_remote(*what)

    def has_remote(self, server: str, path: str, sha256: str, size: int | None = None) -> bool:
        """Return whether a content (of that `size`) is known to be in the bucket, if there is one."""
        pool = self.pool_of(server, path)
        if self.remote is None or not self.remote.has(pool, sha256):
            return False
        return size is None or self.remote.size(pool, sha256) == size

    def send(self, objects: Iterable[Local], damaged: Callable[[LocalDamaged], None] | None = None) -> Sent:
        """Send objects to the bucket; on demand, remove them here when they are there for good.

        Raises RemoteFailed, and LocalDamaged unless `damaged` is called with it.
        """
        if self.remote is None:
            return Sent()
        return self.remote.upload(objects, self._let_go if self.on_demand else lambda _: None, damaged)

    @staticmethod
    def _let_go(item: Local) -> None:
        item.place.unlink(missing_ok=True)

    def local(self, server: str, lines: Iterable[bytes]) -> Iterator[Local]:
        """Given a list of files, yield the objects of it that are on this disk and may have to be sent."""
        for line in lines:
            sha256, size, _time, _mode, path = line.split(b" ", 4)
            place = self.place(server, path[5:-1], sha256)
            try:
                if os.lstat(place).st_size != int(size):
                    continue  # damaged: whoever assembles says so
            except FileNotFoundError:
                continue
            pool = self.pool_of(server, os.fsdecode(path[5:-1]))
            if self.on_demand or (self.remote is not None and not self.remote.has(pool, sha256.decode())):
                yield Local(pool, sha256.decode(), int(size), Path(os.fsdecode(place)))

    def bring_back(self, pool: str, sha256: str) -> bool:
        """Make an object of what is in the bucket; return whether it was there. Raises RemoteFailed."""
        if self.remote is None or not self.remote.has(pool, sha256):
            return False
        place = self.root / pool / sha256[:2] / sha256
        make_folders(place.parent)
        unfinished = place.with_name(f".{sha256}.part")
        try:
            self.remote.get(pool, sha256, unfinished)
        except RemoteDamaged:
            return False
        with unfinished.open("rb") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            os.fsync(file.fileno())
        unfinished.replace(place)
        return True

    def pool_of(self, server: str, path: str) -> str:
        """Return the name of the pool in which the content of a server's file stands."""
        return SHARED if self.is_shared(path) else server

    def plain(self, pool: str, sha256: str) -> bytes | None:
        """Return a content that others may be packed against, if it is there and not packed itself.

        What is in the bucket alone comes into memory, and never onto the disk.
        """
        place = self.root / pool / sha256[:2] / sha256
        if place.is_file():
            try:
                return place.read_bytes() if place.stat().st_size <= PATCHABLE else None
            except OSError:  # of the disk; it may be packed, too
                return None
        if self.remote is None or not self.remote.has(pool, sha256):
            return None
        content = io.BytesIO()
        with contextlib.suppress(RemoteDamaged):
            if self.remote.size(pool, sha256) <= PATCHABLE:
                self.remote.copy(pool, sha256, content)
                return content.getvalue()
        return None

    def thaw(self, server: str, path: str, sha256: str) -> bool:
        """Make a plain object of a content that is packed; return whether it was. Raises ColdDamaged."""
        pool = self.pool_of(server, path)
        if not self.cold.has(pool, sha256):
            return False
        content = self.cold.read(pool, sha256, self.plain)
        place = self.root / pool / sha256[:2] / sha256
        make_folders(place.parent)
        # A name of its own: two pulls may want the same content.
        descriptor, unfinished = tempfile.mkstemp(prefix=f".{sha256}.", dir=place.parent)
        with open(descriptor, "wb") as file:  # noqa: PTH123
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), FILE_MODE)
            os.fsync(file.fileno())
        Path(unfinished).rename(place)
        sync_folder(place.parent)
        self.cold.remove(pool, [sha256])
        return True

    def copy(self, server: str, path: str, sha256: str, target: IO[bytes]) -> None:
        """Write a content to an open file, checked on the way. Raises ObjectDamaged."""
        place = self.find(server, path, sha256)
        try:
            if place is None and self.remote is not None and self.has_remote(server, path, sha256):
                self.remote.copy(self.pool_of(server, path), sha256, target)
                return
            if place is None:
                target.write(self.cold.read(self.pool_of(server, path), sha256, self.plain))
                return
            digest = hashlib.sha256()
            with place.open("rb") as source:
                while chunk := source.read(READ_BYTES):
                    digest.update(chunk)
                    target.write(chunk)
        except (ColdDamaged, RemoteDamaged) as damaged:
            raise ObjectDamaged(str(damaged)) from None
        if digest.hexdigest() != sha256:
            raise ObjectDamaged(f"{place} has changed (sha256 differs)")

    def fetch(self, server: str, path: str, sha256: str, target: Path) -> None:
        """Write a content to a file; one out of the bucket goes on where an earlier run was cut.

        Raises ObjectDamaged.
        """
        place = self.find(server, path, sha256)
        if self.remote is None or place is not None or not self.has_remote(server, path, sha256):
            target.unlink(missing_ok=True)
            with target.open("xb") as file:
                self.copy(server, path, sha256, file)
            return
        try:
            self.remote.get(self.pool_of(server, path), sha256, target)
        except RemoteDamaged as damaged:
            raise ObjectDamaged(str(damaged)) from None

    def readable(self, server: str, file: File, spare: Path) -> Path | None:
        """Return where a whole content can be read: its object, or `spare` that it was brought to."""
        path = file.path.removeprefix("data/")
        place = self.find(server, path, file.sha256, file.size)
        if place is not None:
            return place if holds(place, file.sha256) else None
        if not self.has_remote(server, path, file.sha256) and not self.cold.has(
            self.pool_of(server, path), file.sha256
        ):
            return None
        try:
            self.fetch(server, path, file.sha256, spare)
        except ObjectDamaged:
            return None
        return spare

    def problem(self, server: str, file: File) -> str:
        """Return why a content that is needed cannot be had as it should be, or "".

        Raises FileNotFoundError where its object goes away meanwhile, PermissionError where it is shut.
        """
        path = file.path.removeprefix("data/")
        place = self.find(server, path, file.sha256)
        if place is not None:
            try:
                whole = place.stat().st_size == file.size and digest_of(place) == file.sha256
            except (FileNotFoundError, PermissionError):
                raise
            except OSError as error:
                return f"cannot be read: {error.strerror} (its object)"
            return "" if whole else "has changed (sha256 of its object differs)"
        pool = self.pool_of(server, path)
        if self.on_demand and self.remote is not None and self.remote.has(pool, file.sha256):
            return self.remote.problem(pool, file.sha256)
        if not self.cold.has(pool, file.sha256):
            return "is gone (its object is not there)"
        try:
            self.cold.read(pool, file.sha256, self.plain)
        except ColdDamaged as damaged:
            return str(damaged)
        return ""

    def is_shared(self, path: str) -> bool:
        """Return whether the policy lets every server refer to what others have sent for such a path."""
        return path.startswith(self._shared)

    def pools(self) -> Iterator[str]:
        """Yield the names of the pools: shared, and the servers."""
        there = (
            {entry.name for entry in os.scandir(self.root) if entry.is_dir()} if self.root.is_dir() else set()
        )
        yield from sorted(there | self.cold.pools())

    def stored(self, pool: str, bucket: str = "") -> Iterator[tuple[str, Path]]:
        """Yield (sha256, place) of every object of a pool, or of those in one bucket (`ab`), in no order."""
        folder = self.root / pool
        if not folder.is_dir():
            return
        for prefix in os.listdir(folder):  # noqa: PTH208
            if bucket and prefix != bucket:
                continue
            for name in os.listdir(folder / prefix):  # noqa: PTH208
                if len(name) == SHA256:
                    yield name, folder / prefix / name


def digest_of(path: Path | str) -> str:
    """Return the sha256 of a plain file, never through a link. A file that cannot be read raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()


def holds(path: Path, sha256: str) -> bool:
    """Return whether a plain file is there, can be read, and has this digest.

    Raises PermissionError: what is shut is not damaged.
    """
    try:
        return digest_of(path) == sha256
    except PermissionError:
        raise
    except OSError:
        return False


def link(place: Path, target: Path) -> None:
    """Make `target` a hard link to an object.

    An object that has as many links as the file system allows is renewed: the old inode lives on in trees.
    """
    try:
        target.hardlink_to(place)
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        _renew(place)
        target.hardlink_to(place)


def _renew(place: Path) -> None:
    temporary = place.with_name(f".{place.name}.new")
    temporary.unlink(missing_ok=True)
    with place.open("rb") as source, temporary.open("wb") as copy:
        while chunk := source.read(READ_BYTES):
            copy.write(chunk)
        seen = os.fstat(source.fileno())
        os.fchmod(copy.fileno(), FILE_MODE)
        copy.flush()
        os.utime(copy.fileno(), ns=(seen.st_mtime_ns, seen.st_mtime_ns))
        os.fsync(copy.fileno())
    temporary.replace(place)
