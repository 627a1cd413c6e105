"""Reading: the tables of an archive for who may read them, and write nothing beside them.

SQLite writes beside a table that it only reads. A researcher of the archive's group may not, nor anybody on a
disk that is mounted read-only: they are given a copy in a temporary folder that is theirs alone. So is who
reads the packed contents of a second copy of the archive, with a log beside them (shala_central.cold).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from shala_central.failure import CentralError, UsageError, refused

TRIES, SECONDS = 10, 0.2  # to copy a table that is written meanwhile
Seen = tuple[tuple[int, int, int], ...]
_copies: dict[Path, tuple[Seen, Path, tempfile.TemporaryDirectory[str]]] = {}


def only_reads(table: Path) -> bool:
    """Return whether a table is there and this user may not write it, or nothing beside it."""
    return os.path.lexists(table) and not all(
        os.access(place, os.W_OK, effective_ids=True) for place in (table, table.parent)
    )


def to_read(table: Path) -> Path:
    """Return the table itself, or where this user only reads a copy of it. Raises as copied."""
    return copied(table) if only_reads(table) else table


def copied(table: Path) -> Path:
    """Return a copy of a table, as it was at one moment; it is there until this process ends.

    Raises UsageError for one that may not be read, CentralError for one that is written all the time, and
    where there is no room for it.
    """
    for _ in range(TRIES):
        seen = seen_of(table)
        if table in _copies and _copies[table][0] == seen:
            return _copies[table][1]
        # Its log belongs to it: the newest rows are there.
        try:
            folder = tempfile.TemporaryDirectory(prefix="shala-read-")
            for file in filter(Path.exists, _files(table)):
                shutil.copyfile(file, Path(folder.name, file.name))
        except OSError as error:
            if not os.access(table, os.R_OK, effective_ids=True):
                raise UsageError(refused(table)) from None
            raise CentralError(
                f"{table} is read in a copy, and {tempfile.gettempdir()} does not take it: {error.strerror}"
                " (make room there, or set TMPDIR)"
            ) from None
        if seen_of(table) == seen:
            _copies[table] = (seen, Path(folder.name, table.name), folder)
            return _copies[table][1]
        time.sleep(SECONDS)
    raise CentralError(f"{table} is being written (try again when the pull has ended)")


def _files(table: Path) -> tuple[Path, Path]:
    return table, table.with_name(f"{table.name}-wal")


def seen_of(table: Path) -> Seen:
    """Return what changes when somebody writes a table."""
    found = []
    for file in _files(table):
        with contextlib.suppress(FileNotFoundError):
            stat = file.stat()
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)
