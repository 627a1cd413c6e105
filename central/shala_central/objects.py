"""The object store: every content once, whichever server and year it came from, below the published trees.

    objects/shared/ab/<sha256>            of items that are the same everywhere: any server may refer to them
    objects/<server name>/ab/<sha256>     of all other items: only the server that sent them may

A file of a published tree is a hard link to its object. That a server names a digest never gives it what
another one sent: it must have sent the content itself, or the policy says that the item is shared.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from shala_central.publish import FILE_MODE, make_folders
from shala_central.staging import digest_of

SHARED = "shared"


class Objects:
    """The objects below one folder; `shared_items` are paths below a server's folder, e.g. gstudio/media."""

    def __init__(self, root: Path, shared_items: Sequence[str]) -> None:
        self.root = root
        self._shared = tuple(f"{item.rstrip('/')}/" for item in shared_items)

    def find(self, server: str, path: str, sha256: str) -> Path | None:
        """Return the object that this server may use for a file at this path, or None if it must send it."""
        for pool in (SHARED, server) if self.is_shared(path) else (server,):
            place = self._place(pool, sha256)
            if place.is_file():
                return place
        return None

    def add(self, source: Path, server: str, path: str, sha256: str) -> None:
        """Make a file whose content was checked an object.

        It becomes a link to one that is there already, unless that one is damaged: then it takes its place.
        """
        place = self._place(SHARED if self.is_shared(path) else server, sha256)
        source.chmod(FILE_MODE)
        try:
            place.hardlink_to(source)
        except FileNotFoundError:
            make_folders(place.parent)
            place.hardlink_to(source)
        except FileExistsError:
            if place.samefile(source):
                return
            # Rare: two pulls at once, or an object that could not be used.
            if digest_of(place) == sha256:
                link(place, source)
            else:
                link(source, place)

    def is_shared(self, path: str) -> bool:
        """Return whether the policy lets every server refer to what others have sent for such a path."""
        return path.startswith(self._shared)

    def pools(self) -> Iterator[str]:
        """Yield the names of the pools: shared, and the servers."""
        if self.root.is_dir():
            yield from sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())

    def stored(self, pool: str) -> Iterator[tuple[str, Path]]:
        """Yield (sha256, place) of every object of a pool, in no order."""
        folder = self.root / pool
        for prefix in os.listdir(folder):  # noqa: PTH208
            for name in os.listdir(folder / prefix):  # noqa: PTH208
                if not name.startswith("."):
                    yield name, folder / prefix / name

    def _place(self, pool: str, sha256: str) -> Path:
        return self.root / pool / sha256[:2] / sha256


def link(place: Path, target: Path) -> None:
    """Make `target` a hard link to an object, replacing what is there.

    An object that has as many links as the file system allows is renewed: the old inode lives on in trees.
    """
    temporary = target.with_name(f".shala-{hashlib.sha256(os.fsencode(target.name)).hexdigest()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(place)
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        _renew(place)
        temporary.hardlink_to(place)
    temporary.replace(target)


def _renew(place: Path) -> None:
    temporary = place.with_name(f".{place.name}.new")
    temporary.unlink(missing_ok=True)
    with place.open("rb") as source, temporary.open("wb") as copy:
        while chunk := source.read(1 << 20):
            copy.write(chunk)
        seen = os.fstat(source.fileno())
        os.fchmod(copy.fileno(), FILE_MODE)
        copy.flush()
        os.utime(copy.fileno(), ns=(seen.st_mtime_ns, seen.st_mtime_ns))
        os.fsync(copy.fileno())
    temporary.replace(place)
