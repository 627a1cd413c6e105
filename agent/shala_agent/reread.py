"""Reread: unchanged files are read again from time to time, some in each collection, with the mirror's copies
of them: an old disk changes bytes and tells nobody.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass

from shala_agent.config import CollectConfig
from shala_agent.seen import Known
from shala_agent.walk import Entry

CHUNK = 1 << 18  # bytes
CHANGED = "changed although its size and times did not: the disk may be failing"
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Reading:
    """Whether a file and the mirror's copy of it still hold what they held."""

    source: bool
    mirror: bool


class Reread:
    """Which files are to be read again in this collection."""

    def __init__(self, config: CollectConfig) -> None:
        self.today = int(time.time() // DAY)
        # A day yet to come was noted by a clock that had jumped.
        self._fresh = range(self.today - config.reread_days + 1, self.today + 1)
        self._left = config.reread_mb * 1_000_000 if config.reread_days else 0

    def is_due(self, read_day: int | None) -> bool:
        """Return whether what seems unchanged, and was last read on this day, is to be read in this run."""
        return self._left > 0 and read_day not in self._fresh

    def read(self, entry: Entry, known: Known, mirror: str) -> Reading | None:
        """Read both; None when the file is just being changed, or is gone."""
        try:
            source = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=entry.folder)
        except FileNotFoundError:
            return None
        try:
            held = self._digest(source)
            seen = os.fstat(source)
        finally:
            os.close(source)
        if (seen.st_size, seen.st_mtime_ns) != (known.size, known.mtime_ns):
            return None
        whole = held == (known.plain_sha256 or known.sha256)
        copy = os.open(mirror, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            there = os.fstat(copy)
            if (there.st_dev, there.st_ino) == (seen.st_dev, seen.st_ino):  # one file by two names
                return Reading(whole, whole)
            return Reading(whole, self._digest(copy) == known.sealed_sha256)
        finally:
            os.close(copy)

    def _digest(self, descriptor: int) -> str:
        """Read from the disk and not from memory, and leave memory to the platform."""
        digest = hashlib.sha256()
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := os.read(descriptor, CHUNK):
            digest.update(chunk)
            self._left -= len(chunk)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return digest.hexdigest()
