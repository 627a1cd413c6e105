"""What was seen: which file had which content when it was last read, so that an unchanged file is not read
again.

Four tables in one SQLite file that may be thrown away at any time: `seen` (source files: size, mtime, inode
-> digest and findings), `sealed` (the files of the newest sealed collection), `staged` (files copied for the
next one and known to be on the disk), `plan` (what the next collection consists of). Memory stays flat
however many files there are.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER,
  inode INTEGER, check_id TEXT, sha256 TEXT, findings TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sealed (path TEXT PRIMARY KEY, sha256 TEXT, size INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS staged (path TEXT PRIMARY KEY, sha256 TEXT, size INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS base (sequence INTEGER, manifest_sha256 TEXT);
CREATE TEMP TABLE plan (path TEXT PRIMARY KEY, sha256 TEXT, size INTEGER, origin TEXT) WITHOUT ROWID;
"""

SEALED = "sealed"
STAGED = "staged"


@dataclass(frozen=True, slots=True)
class Sight:
    """What a file held when it was read: its digest, and what its check found."""

    sha256: str
    findings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """One file of the next collection; `origin` says where its bytes are: `sealed` or `staged`."""

    path: str
    sha256: str
    size: int
    origin: str


class Seen:
    """The cache in the file `path`.

    Nothing in it is needed for correctness: it is made anew when it is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._db = _opened(path)
        except sqlite3.DatabaseError:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._db = _opened(path)

    def close(self) -> None:
        """Close the file; what was not committed is lost."""
        self._db.close()

    def commit(self) -> None:
        """Keep what was noted. Call it only when the staged files are on the disk."""
        self._db.commit()

    def sight(self, path: str, stat: os.stat_result, check_id: str) -> Sight | None:
        """Return what the file held, if it is still the one that was read and checked in this way."""
        row = self._db.execute(
            "SELECT sha256, findings FROM seen"
            " WHERE path = ? AND size = ? AND mtime_ns = ? AND ctime_ns = ? AND inode = ? AND check_id = ?",
            (path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, check_id),
        ).fetchone()
        return Sight(row[0], tuple(row[1].split("\n")) if row[1] else ()) if row else None

    def findings(self, path: str, sha256: str, check_id: str) -> tuple[str, ...] | None:
        """Return what the check found in this content at this path, if it was checked before."""
        row = self._db.execute(
            "SELECT findings FROM seen WHERE path = ? AND sha256 = ? AND check_id = ?",
            (path, sha256, check_id),
        ).fetchone()
        return (tuple(row[0].split("\n")) if row[0] else ()) if row else None

    def remember(self, path: str, stat: os.stat_result, check_id: str, sight: Sight) -> None:
        """Note what a file held."""
        times = (stat.st_mtime_ns, stat.st_ctime_ns)
        self._db.execute(
            "INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (path, stat.st_size, *times, stat.st_ino, check_id, sight.sha256, "\n".join(sight.findings)),
        )

    def base(self) -> tuple[int, str] | None:
        """Return (sequence, manifest digest) of the collection that `sealed` describes."""
        row = self._db.execute("SELECT sequence, manifest_sha256 FROM base").fetchone()
        return (int(row[0]), str(row[1])) if row else None

    def set_base(self, sequence: int, manifest_sha256: str, files: Iterable[tuple[str, str, int]]) -> None:
        """Make `sealed` describe a collection: (path, sha256, size) of all its payload files."""
        self._db.commit()
        with self._db:
            for statement in ("DELETE FROM sealed", "DELETE FROM staged", "DELETE FROM base"):
                self._db.execute(statement)
            self._db.executemany("INSERT INTO sealed VALUES (?, ?, ?)", files)
            self._db.execute("INSERT INTO base VALUES (?, ?)", (sequence, manifest_sha256))

    def set_base_to_plan(self, sequence: int, manifest_sha256: str) -> None:
        """Make `sealed` describe the collection that was just made of the plan."""
        self._db.commit()
        with self._db:
            for statement in ("DELETE FROM sealed", "DELETE FROM staged", "DELETE FROM base"):
                self._db.execute(statement)
            self._db.execute("INSERT INTO sealed SELECT path, sha256, size FROM plan")
            self._db.execute("INSERT INTO base VALUES (?, ?)", (sequence, manifest_sha256))

    def clear_base(self) -> None:
        """Forget the sealed collection and all that was staged on top of it."""
        self.set_base(0, "", ())

    def sealed(self, path: str) -> tuple[str, int] | None:
        """Return (sha256, size) of a file in the newest sealed collection."""
        row = self._db.execute("SELECT sha256, size FROM sealed WHERE path = ?", (path,)).fetchone()
        return (row[0], row[1]) if row else None

    def staged(self, path: str) -> tuple[str, int] | None:
        """Return (sha256, size) of a file that an earlier, cut attempt has staged."""
        row = self._db.execute("SELECT sha256, size FROM staged WHERE path = ?", (path,)).fetchone()
        return (row[0], row[1]) if row else None

    def stage(self, path: str, sha256: str, size: int) -> None:
        """Note that a file is staged."""
        self._db.execute("INSERT OR REPLACE INTO staged VALUES (?, ?, ?)", (path, sha256, size))

    def unstage(self, path: str) -> None:
        """Note that a file is staged no more."""
        self._db.execute("DELETE FROM staged WHERE path = ?", (path,))

    def clear_plan(self) -> None:
        """Begin a new plan."""
        self._db.execute("DELETE FROM plan")

    def plan(self, path: str, sha256: str, size: int, origin: str) -> None:
        """Make a file part of the next collection."""
        self._db.execute("INSERT OR REPLACE INTO plan VALUES (?, ?, ?, ?)", (path, sha256, size, origin))

    def plan_sealed(self, item: str) -> int:
        """Plan an item as it is in the newest sealed collection, instead of what was planned; return its
        files.
        """
        bounds = (item, item + "/", item + "0")  # '0' follows '/'
        self._db.execute("DELETE FROM plan WHERE path = ? OR (path > ? AND path < ?)", bounds)
        return self._db.execute(
            "INSERT INTO plan SELECT path, sha256, size, 'sealed' FROM sealed"
            " WHERE path = ? OR (path > ? AND path < ?)",
            bounds,
        ).rowcount

    def unplan(self, item: str) -> None:
        """Take an item out of the plan."""
        self._db.execute(
            "DELETE FROM plan WHERE path = ? OR (path > ? AND path < ?)", (item, item + "/", item + "0")
        )

    def size_of(self, item: str) -> tuple[int, int]:
        """Return (files, bytes) that are planned for an item."""
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM plan WHERE path = ? OR (path > ? AND path < ?)",
            (item, item + "/", item + "0"),
        ).fetchone()
        return int(row[0]), int(row[1])

    def planned(self) -> Iterator[Planned]:
        """Yield the plan in the order of its paths."""
        for row in self._db.execute("SELECT path, sha256, size, origin FROM plan ORDER BY path"):
            yield Planned(*row)

    def is_planned_staged(self, path: str) -> bool:
        """Return whether the plan takes this path from what is staged."""
        query = "SELECT 1 FROM plan WHERE path = ? AND origin = 'staged'"
        return self._db.execute(query, (path,)).fetchone() is not None


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = sqlite3.connect(path, timeout=30)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # NORMAL: a power cut may take back the last commits; that only means reading some files once more.
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA temp_store = FILE")
        db.execute("PRAGMA cache_size = -4096")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db
