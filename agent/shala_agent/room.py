"""Room: how much the spool may take, so that the agent never fills the platform's disk.

A quota on what the spool holds, and a floor under what is free on its disk. What is given up when it is short
is decided by who asks, here it is only measured.
"""

from __future__ import annotations

import os
from pathlib import Path

from shala_agent.config import SpoolConfig
from shala_agent.failure import AgentError

ACKNOWLEDGED = "acknowledged"  # mark of the ledger: the newest collection that the centre says it has
MB = 1_000_000
UNMEASURED = 64 * MB  # what may be written before the disk is asked again: others write on it too
BLOCK = 4096  # bytes that the smallest file takes


class NoRoom(AgentError):
    """A file does not fit; the text says by which limit, and the way out."""


class Room:
    """What may be written below the folder `root`."""

    def __init__(self, root: Path, config: SpoolConfig) -> None:
        self._root = root
        self._quota = config.quota_mb * MB
        self._floor = config.min_free_mb * MB
        # Only where there is a quota: it means to look at every file.
        self._used = bytes_of(root) if self._quota else 0
        self._spare = 0  # bytes that may be written without asking the disk

    def lacks(self, size: int, given_up: int = 0, beside: int = 0) -> str:
        """Return what stands against so many more bytes, if others are given up for them, and so many lie on
        the same disk for a while; "" if nothing.
        """
        if self._quota and self._used - given_up + size > self._quota:
            return (
                f"finds no room: the spool may hold {self._quota // MB} MB and holds {self._used // MB}"
                " (raise spool.quota_mb, or have the centre pull)"
            )
        if size + beside <= self._spare:
            return ""
        free = free_at(self._root)
        self._spare = min(free - self._floor, max(UNMEASURED, size + beside))
        return self._below_floor(free, size + beside - given_up)

    def lacks_at(self, folder: Path, size: int) -> str:
        """Return what stands against so many bytes on the disk of another folder; "" if nothing."""
        return self._below_floor(free_at(folder), size)

    def _below_floor(self, free: int, size: int) -> str:
        if free - size >= self._floor:
            return ""
        return (
            f"finds no room: {free // MB} MB are free and {self._floor // MB} stay so"
            " (free some space, or lower spool.min_free_mb)"
        )

    def add(self, size: int) -> None:
        """Count what was written, or, less than nothing, what was removed."""
        self._used += size
        if size > 0:
            self._spare -= max(size, BLOCK)


def free_at(path: Path) -> int:
    """Return how many bytes are free for a folder, that is there or not yet."""
    while not path.is_dir():
        path = path.parent
    seen = os.statvfs(path)
    return seen.f_bavail * seen.f_frsize


def bytes_of(root: Path) -> int:
    """Return what a folder takes on its disk; links to files of others take nothing."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            total += room_of(f"{folder}/{name}")
    return total


def room_of(path: str) -> int:
    """Return what would be free if a file were removed."""
    try:
        seen = os.lstat(path)
    except OSError:
        return 0
    return seen.st_blocks * 512 if seen.st_nlink == 1 else 0
