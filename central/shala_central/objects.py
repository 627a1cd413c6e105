"""The object store: every content once, whichever server and year it came from, below the published trees.

    objects/shared/ab/<sha256>            of items that are the same everywhere: any server may refer to them
    objects/<server name>/ab/<sha256>     of all other items: only the server that sent them may

A file of a published tree is a hard link to its object. That a server names a digest never gives it what
another one sent: it must have sent the content itself, or the policy says that the item is shared. What
stands under such a name is on the disk, whole: it was moved there after it was checked and synced.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from shala_central.publish import FILE_MODE, make_folders

SHARED = "shared"
READ_BYTES = 1 << 20


class Objects:
    """The objects below one folder; `shared_items` are paths below a server's folder, e.g. gstudio/media."""

    def __init__(self, root: Path, shared_items: Sequence[str]) -> None:
        self.root = root
        self._bytes_root = os.fsencode(root)
        self._shared = tuple(f"{item.rstrip('/')}/" for item in shared_items)
        self._shared_bytes = tuple(item.encode() for item in self._shared)

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
        if place.exists() and digest_of(place) == sha256:
            source.unlink()
            return
        try:
            source.rename(place)
        except FileNotFoundError:
            make_folders(place.parent)
            source.rename(place)

    def is_shared(self, path: str) -> bool:
        """Return whether the policy lets every server refer to what others have sent for such a path."""
        return path.startswith(self._shared)

    def pools(self) -> Iterator[str]:
        """Yield the names of the pools: shared, and the servers."""
        if self.root.is_dir():
            yield from sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())

    def stored(self, pool: str, bucket: str = "") -> Iterator[tuple[str, Path]]:
        """Yield (sha256, place) of every object of a pool, or of those in one bucket (`ab`), in no order."""
        folder = self.root / pool
        for prefix in os.listdir(folder):  # noqa: PTH208
            if bucket and prefix != bucket:
                continue
            for name in os.listdir(folder / prefix):  # noqa: PTH208
                if not name.startswith("."):
                    yield name, folder / prefix / name


def digest_of(path: Path | str) -> str:
    """Return the sha256 of a plain file, never through a link. A file that cannot be read raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()


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
