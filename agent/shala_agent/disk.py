"""Disk: whether it is the disk that does not do what was asked of it."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path


def is_at_fault(error: Exception) -> bool:
    """Return whether an error is of a disk that is full, read-only or dying, and not of what a file holds."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    said = str(error)
    return isinstance(error, sqlite3.OperationalError) and any(
        one in said for one in ("disk I/O error", "disk is full", "readonly", "unable to open")
    )


def is_read_only(folder: Path) -> bool:
    """Return whether the disk of a folder, that is there or not yet, is mounted read-only."""
    while not folder.is_dir():
        folder = folder.parent
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
