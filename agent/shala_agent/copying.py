"""Copying: one reading of one file, hashed on the way, into the next collection, in the form of its policy.

A file is opened without following a link; nothing is written where the mirror has the same bytes already, and
where the file system can share blocks they are shared.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from shala_agent.catalogue import LOG
from shala_agent.gathering import Spot
from shala_agent.kinds import check_nothing
from shala_agent.manifest import File
from shala_agent.spool import Spool
from shala_agent.walk import Entry

CHUNK = 1 << 18  # bytes: what is hashed and written while it is still in the processor's cache
STILL_WRITTEN = 120  # seconds: a file younger than this may have a writer
FICLONE = 0x40049409  # of linux/fs.h: two files share their blocks until one of them is written to


class NotTaken(Exception):
    """Something in a tree that is left out; the text says what and why."""


class Copy:
    """One reading of one source file, into the bag, hashed on the way."""

    def __init__(
        self,
        spool: Spool,
        spot: Spot,
        entry: Entry,
        scratch: Path,
        *,
        make_room: Callable[[Spot, int], None],
        make_plain_room: Callable[[Spot, int], None],
    ) -> None:
        self._spool, self._spot, self._entry, self._scratch = spool, spot, entry, scratch
        self._make_room, self._make_plain_room = make_room, make_plain_room
        self._item = spot.gathering.item
        self._treated = self._item.policy.treats(spot.inside)
        self.stat = entry.stat
        self.sha256 = ""
        self.size = 0
        self.cut = False
        self.target: str | None = None  # None: the sealed collection has these bytes at this path already

    def take(self) -> bool:
        """Read the file once; return whether it stood still meanwhile (for a log: always)."""
        source = os.open(
            self._entry.name,
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            dir_fd=self._entry.folder,
        )
        try:
            self.stat = os.fstat(source)
            if not stat.S_ISREG(self.stat.st_mode):
                raise NotTaken("is no plain file: it was left out")
            limit = self._limit(source)
            sealed, path = self._spot.sealed, self._spot.path
            expected = self.stat.st_size if limit is None else limit
            if self._treated:
                self._make_plain_room(self._spot, expected)
                self.target = str(self._scratch / "file")
                self.sha256, self.size = self._copy_plain(source, limit)
                return self._item.reading == LOG or _unchanged(self.stat, os.fstat(source))
            if sealed is not None and sealed.size == expected:
                # Probably the same bytes under a new time (a dump): reading is cheaper than writing.
                self.sha256, self.size = read_through(source, None, limit)
                if self.sha256 == sealed.sha256:
                    return True
                os.lseek(source, 0, os.SEEK_SET)
            if self._item.written_once and self._may_be_shared() and age(self.stat) > STILL_WRITTEN:
                self.target = self._spool.link_file(path, source)
                if self.target is not None:
                    self.sha256, self.size = read_through(source, None, None)
                    return _unchanged(self.stat, os.fstat(source))
            self._make_room(self._spot, expected)
            descriptor, self.target = self._spool.new_file(path)
            try:
                if limit is None and _cloned(source, descriptor):
                    self.sha256, self.size = read_through(descriptor, None, None)
                else:
                    self.sha256, self.size = read_through(source, descriptor, limit)
                os.utime(descriptor, ns=(self.stat.st_mtime_ns, self.stat.st_mtime_ns))
            finally:
                os.close(descriptor)
            after = os.fstat(source)
        finally:
            os.close(source)
        if self._item.reading == LOG:
            return True
        return _unchanged(self.stat, after)

    def is_same(self) -> bool:
        """Return whether what was read is what the file held when it was sealed."""
        before = self._spot.source_sealed()
        return before is not None and before[1] == self.sha256

    def goes_on(self) -> bool:
        """Return whether what was read begins with all that is sealed."""
        before = self._spot.source_sealed()
        if before is None or self.target is None or not 0 < before[0] < self.size:
            return False
        with Path(self.target).open("rb", buffering=0) as taken:
            return read_through(taken.fileno(), None, before[0])[0] == before[1]

    def give_form(self) -> str | None:
        """Put a file that the policy treats into the bag, and return the digest it had before; else None.

        Raises NotTreated. What has the same content as the last time stays as it is sealed.
        """
        if not self._treated or self.target is None:
            return None
        plain, plain_sha256, policy = Path(self.target), self.sha256, self._item.policy
        known, sealed = self._spot.known, self._spot.sealed
        try:
            if (
                sealed is not None
                and known is not None
                and known.sha256 == sealed.sha256
                and (known.plain_sha256, known.check_id) == (plain_sha256, self._item.check_id)
            ):
                self.target, self.sha256, self.size = None, sealed.sha256, sealed.size
                return plain_sha256
            self._make_room(self._spot, self.size)
            sealed = self._spot.sealed
            descriptor, self.target = self._spool.new_file(self._spot.path)
            with os.fdopen(descriptor, "wb") as formed:
                policy.treat(plain, self._spot.inside, formed, self._scratch / "formed")
                formed.flush()
                os.utime(formed.fileno(), ns=(self.stat.st_mtime_ns, self.stat.st_mtime_ns))
            with Path(self.target).open("rb", buffering=0) as formed_again:
                self.sha256, self.size = read_through(formed_again.fileno(), None, None)
        finally:
            plain.unlink(missing_ok=True)
        if sealed is not None and sealed.sha256 == self.sha256:
            self._spool.drop(self._spot.path)
            self.target = None
        return plain_sha256

    def file(self) -> File:
        """Return the file that was taken, as the manifest lists it."""
        mode = stat.S_IMODE(self.stat.st_mode) & 0o777
        return File(self._spot.path, self.sha256, self.size, self.stat.st_mtime_ns, mode)

    def findings(self) -> tuple[str, ...]:
        """Return what the item's check finds in the bytes that were taken."""
        known, item = self._spot.known, self._item
        if item.kind.check is check_nothing:
            return ()
        if known is not None and (found := known.found(self.sha256, item.check_id)) is not None:
            return found
        taken = Path(self.target) if self.target else self._spool.bag / self._spot.path
        return tuple(f.replace("\n", " ") for f in item.kind.check(taken, self._spot.inside, self.sha256))

    def _copy_plain(self, source: int, limit: int | None) -> tuple[str, int]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._scratch / "file", flags, 0o600)
        try:
            return read_through(source, descriptor, limit)
        finally:
            os.close(descriptor)

    def _may_be_shared(self) -> bool:
        """Return whether the mirror may hold the very file: who pulls must be able to read it, and only its
        owner to write it.
        """
        return bool(self.stat.st_mode & stat.S_IROTH) and not self.stat.st_mode & 0o6022

    def _limit(self, source: int) -> int | None:
        """Return how many bytes of a log to take: to its last line end while somebody may be writing it."""
        size = self.stat.st_size
        if self._item.reading != LOG or not size or self._entry.name.endswith((".gz", ".bz2", ".xz")):
            return None
        tail = os.pread(source, min(size, 1 << 16), max(0, size - (1 << 16)))
        whole = tail.rfind(b"\n") + 1
        if whole == len(tail) or not whole or age(self.stat) > STILL_WRITTEN:
            return size
        self.cut = True
        return size - len(tail) + whole


def age(seen: os.stat_result) -> float:
    """Return how long ago a file was written, in seconds.

    A little in the future counts as now; more than a day is another clock, of which nothing follows.
    """
    seconds = time.time() - seen.st_mtime
    return max(0.0, seconds) if seconds > -86400 else float("inf")


def _unchanged(before: os.stat_result, after: os.stat_result) -> bool:
    return (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def read_through(source: int, target: int | None, limit: int | None) -> tuple[str, int]:
    """Read from `source` to its end or `limit`, writing to `target` if given; return (sha256, size)."""
    digest = hashlib.sha256()
    size = 0
    while limit is None or size < limit:
        chunk = os.read(source, CHUNK if limit is None else min(CHUNK, limit - size))
        if not chunk:
            break
        digest.update(chunk)
        size += len(chunk)
        if target is not None:
            written = os.write(target, chunk)
            while written < len(chunk):
                written += os.write(target, memoryview(chunk)[written:])
    return digest.hexdigest(), size


def _cloned(source: int, target: int) -> bool:
    """Make an empty file share the blocks of another, where the file system can; return whether it does."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:
        if os.fstat(target).st_size:  # a clone that was cut short
            os.ftruncate(target, 0)
        return False
    return True
