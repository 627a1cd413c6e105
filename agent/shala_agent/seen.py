"""What was seen: which file had which content when it was last read, so that an unchanged file is not read
again.

Four tables in one SQLite file that may be thrown away at any time: `seen` (source files: size, mtime, inode
-> digest and findings), `sealed` (the files of the newest sealed collection), `staged` (files copied for the
next one and known to be on the disk), `plan` (what the next collection consists of). Memory stays flat
however many files there are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from shala_agent.manifest import Change, File, changes_between

VERSION = 2  # of the tables; a cache of another version is made anew
_FILE = "path TEXT PRIMARY KEY, sha256 TEXT, size INTEGER, mtime_ns INTEGER, mode INTEGER"
_SCHEMA = f"""
PRAGMA user_version = {VERSION};
CREATE TABLE IF NOT EXISTS seen (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER,
  inode INTEGER, check_id TEXT, sha256 TEXT, findings TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sealed ({_FILE}) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS staged ({_FILE}) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS base (sequence INTEGER, manifest_sha256 TEXT);
CREATE TEMP TABLE plan ({_FILE}, origin TEXT) WITHOUT ROWID;
"""
# The order of manifests, see shala_agent.manifest.sort_key.
_IN_ORDER = "ORDER BY replace(path, '/', char(1))"

SEALED = "sealed"
STAGED = "staged"


class Signs(NamedTuple):
    """By what a source file is known again."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Sight:
    """What a file held when it was read: its digest, and what its check found."""

    sha256: str
    findings: tuple[str, ...]


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

    def sight(self, path: str, signs: Signs, check_id: str) -> Sight | None:
        """Return what the file held, if it is still the one that was read and checked in this way."""
        row = self._db.execute(
            "SELECT sha256, findings FROM seen"
            " WHERE path = ? AND size = ? AND mtime_ns = ? AND ctime_ns = ? AND inode = ? AND check_id = ?",
            (path, *signs, check_id),
        ).fetchone()
        return Sight(row[0], tuple(row[1].split("\n")) if row[1] else ()) if row else None

    def findings(self, path: str, sha256: str, check_id: str) -> tuple[str, ...] | None:
        """Return what the check found in this content at this path, if it was checked before."""
        row = self._db.execute(
            "SELECT findings FROM seen WHERE path = ? AND sha256 = ? AND check_id = ?",
            (path, sha256, check_id),
        ).fetchone()
        return (tuple(row[0].split("\n")) if row[0] else ()) if row else None

    def remember(self, path: str, signs: Signs, check_id: str, sight: Sight) -> None:
        """Note what a file held."""
        self._db.execute(
            "INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (path, *signs, check_id, sight.sha256, "\n".join(sight.findings)),
        )

    def base(self) -> tuple[int, str] | None:
        """Return (sequence, manifest digest) of the collection that `sealed` describes."""
        row = self._db.execute("SELECT sequence, manifest_sha256 FROM base").fetchone()
        return (int(row[0]), str(row[1])) if row else None

    def set_base(self, sequence: int, manifest_sha256: str, files: Iterable[File]) -> None:
        """Make `sealed` describe a collection, given its files."""
        self._db.commit()
        with self._db:
            for statement in ("DELETE FROM sealed", "DELETE FROM staged", "DELETE FROM base"):
                self._db.execute(statement)
            self._db.executemany(
                "INSERT INTO sealed VALUES (?, ?, ?, ?, ?)", map(msgspec.structs.astuple, files)
            )
            self._db.execute("INSERT INTO base VALUES (?, ?)", (sequence, manifest_sha256))

    def set_base_to_plan(self, sequence: int, manifest_sha256: str) -> None:
        """Make `sealed` describe the collection that was just made of the plan."""
        self._db.commit()
        with self._db:
            for statement in ("DELETE FROM sealed", "DELETE FROM staged", "DELETE FROM base"):
                self._db.execute(statement)
            self._db.execute("INSERT INTO sealed SELECT path, sha256, size, mtime_ns, mode FROM plan")
            self._db.execute("INSERT INTO base VALUES (?, ?)", (sequence, manifest_sha256))

    def clear_base(self) -> None:
        """Forget the sealed collection and all that was staged on top of it."""
        self.set_base(0, "", ())

    def sealed(self, path: str) -> File | None:
        """Return a file of the newest sealed collection."""
        return self._file("SELECT * FROM sealed WHERE path = ?", path)

    def unseal(self, path: str) -> None:
        """Forget that the newest sealed collection has a file."""
        self._db.execute("DELETE FROM sealed WHERE path = ?", (path,))

    def staged(self, path: str) -> File | None:
        """Return a file that an earlier, cut attempt has staged."""
        return self._file("SELECT * FROM staged WHERE path = ?", path)

    def stage(self, file: File) -> None:
        """Note that a file is staged."""
        self._db.execute(
            "INSERT OR REPLACE INTO staged VALUES (?, ?, ?, ?, ?)", msgspec.structs.astuple(file)
        )

    def unstage(self, path: str) -> None:
        """Note that a file is staged no more."""
        self._db.execute("DELETE FROM staged WHERE path = ?", (path,))

    def all_staged(self) -> list[File]:
        """Return every file that is noted as staged."""
        return [File(*row) for row in self._db.execute("SELECT * FROM staged")]

    def clear_plan(self) -> None:
        """Begin a new plan."""
        self._db.execute("DELETE FROM plan")

    def plan(self, file: File, origin: str) -> None:
        """Make a file part of the next collection; its bytes are `sealed` or `staged`, says `origin`."""
        self._db.execute(
            "INSERT OR REPLACE INTO plan VALUES (?, ?, ?, ?, ?, ?)", (*msgspec.structs.astuple(file), origin)
        )

    def plan_sealed(self, item: str) -> int:
        """Plan an item as it is in the newest sealed collection, instead of what was planned; return its
        files.
        """
        bounds = (item, item + "/", item + "0")  # '0' follows '/'
        self._db.execute("DELETE FROM plan WHERE path = ? OR (path > ? AND path < ?)", bounds)
        return self._db.execute(
            "INSERT INTO plan SELECT *, 'sealed' FROM sealed WHERE path = ? OR (path > ? AND path < ?)",
            bounds,
        ).rowcount

    def size_of(self, item: str) -> tuple[int, int]:
        """Return (files, bytes) that are planned for an item."""
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM plan WHERE path = ? OR (path > ? AND path < ?)",
            (item, item + "/", item + "0"),
        ).fetchone()
        return int(row[0]), int(row[1])

    def planned(self) -> Iterator[File]:
        """Yield the plan in the order of manifests."""
        query = f"SELECT path, sha256, size, mtime_ns, mode FROM plan {_IN_ORDER}"  # noqa: S608 - constants
        for row in self._db.execute(query):
            yield File(*row)

    def planned_changes(self) -> Iterator[Change]:
        """Yield how the plan differs from the newest sealed collection, in the order of manifests."""
        sealed = self._db.execute(f"SELECT * FROM sealed {_IN_ORDER}")  # noqa: S608 - constants
        return changes_between((File(*row) for row in sealed), self.planned())

    def is_planned_staged(self, path: str) -> bool:
        """Return whether the plan takes this path from what is staged."""
        query = "SELECT 1 FROM plan WHERE path = ? AND origin = 'staged'"
        return self._db.execute(query, (path,)).fetchone() is not None

    def _file(self, query: str, path: str) -> File | None:
        row = self._db.execute(query, (path,)).fetchone()
        return File(*row) if row else None


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = sqlite3.connect(path, timeout=30)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # NORMAL: a power cut may take back the last commits; that only means reading some files once more.
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA temp_store = FILE")
        db.execute("PRAGMA cache_size = -4096")
        if db.execute("PRAGMA user_version").fetchone()[0] not in (0, VERSION):
            raise sqlite3.DatabaseError("of another version")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db
