"""What was seen: which file had which content when it was last read, so that an unchanged file is not read
again.

One SQLite file that may be thrown away at any time. `known` has a row per file, in the order of manifests:
how its source was when it was read (size, times, inode -> digest and findings) and what the newest sealed
collection holds of it; either may be missing. `staged` (files copied for the next collection and known to be
on the disk) and `gone` are what the next collection changes: nothing is written for a file that stays as it
is. Memory stays flat however many files there are.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shala_agent import sketch, write_ahead
from shala_agent.manifest import Change, File, Gone, key_range, path_of, sort_key

VERSION = 5  # of the tables; a cache of another version is made anew
PAGE = 1000  # rows that are read at once; no query stays open while something is written
BUFFER = 500  # rows that are written at once

_SCHEMA = f"""
BEGIN;
PRAGMA user_version = {VERSION};
CREATE TABLE known (key TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER,
  check_id TEXT, sha256 TEXT, findings TEXT, plain_sha256 TEXT, read_day INTEGER,
  sealed_sha256 TEXT, sealed_size INTEGER, sealed_mtime_ns INTEGER, sealed_mode INTEGER) WITHOUT ROWID;
CREATE TABLE staged (key TEXT PRIMARY KEY, sha256 TEXT, size INTEGER, mtime_ns INTEGER, mode INTEGER,
  taken INTEGER) WITHOUT ROWID;
CREATE TABLE base (sequence INTEGER, manifest_sha256 TEXT);
COMMIT;
"""
# `lost`: sealed, but not in the mirror any more; carrying an item cannot bring it back.
_GONE = "CREATE TEMP TABLE gone (key TEXT PRIMARY KEY, lost INTEGER) WITHOUT ROWID"
_SEAL = (
    "INSERT INTO known (key, sealed_sha256, sealed_size, sealed_mtime_ns, sealed_mode) {rows}"
    " ON CONFLICT (key) DO UPDATE SET sealed_sha256 = excluded.sealed_sha256,"
    " sealed_size = excluded.sealed_size, sealed_mtime_ns = excluded.sealed_mtime_ns,"
    " sealed_mode = excluded.sealed_mode"
)
_REMEMBER = (
    "INSERT INTO known (key, size, mtime_ns, ctime_ns, inode, check_id, sha256, findings,"
    " plain_sha256, read_day) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (key) DO UPDATE SET size = excluded.size,"
    " mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns, inode = excluded.inode,"
    " check_id = excluded.check_id, sha256 = excluded.sha256, findings = excluded.findings,"
    " plain_sha256 = excluded.plain_sha256, read_day = excluded.read_day"
)
_PLANNED = (
    "SELECT key, sealed_sha256, sealed_size, sealed_mtime_ns, sealed_mode FROM known"
    " WHERE sealed_sha256 IS NOT NULL"
    " AND NOT EXISTS (SELECT 1 FROM gone WHERE gone.key = known.key)"
    " AND NOT EXISTS (SELECT 1 FROM staged WHERE staged.key = known.key AND taken)"
    " UNION ALL SELECT key, sha256, size, mtime_ns, mode FROM staged WHERE taken ORDER BY key"
)


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


class Known(NamedTuple):
    """What is known of a file: how it was when it was read, and what the newest sealed collection holds."""

    key: str
    size: int | None
    mtime_ns: int | None
    ctime_ns: int | None
    inode: int | None
    check_id: str | None
    sha256: str | None
    findings: str | None  # one per line
    plain_sha256: str | None  # of the source, where the policy gave it another form: `sha256` is of that
    read_day: int | None  # of the calendar, by this server's clock
    sealed_sha256: str | None
    sealed_size: int
    sealed_mtime_ns: int
    sealed_mode: int

    @property
    def sealed(self) -> File | None:
        """The file of the newest sealed collection."""
        if self.sealed_sha256 is None:
            return None
        return File(
            path_of(self.key), self.sealed_sha256, self.sealed_size, self.sealed_mtime_ns, self.sealed_mode
        )

    def sight(self, signs: Signs, check_id: str) -> Sight | None:
        """Return what the file held, if it is still the one that was read and checked in this way."""
        if self.sha256 is None or (*self[1:5], self.check_id) != (*signs, check_id):
            return None
        return Sight(self.sha256, _lines(self.findings))

    def found(self, sha256: str, check_id: str) -> tuple[str, ...] | None:
        """Return what the check found in this content, if it was checked before."""
        source = self.plain_sha256 or self.sha256
        return _lines(self.findings) if (source, self.check_id) == (sha256, check_id) else None


class Seen:
    """The cache in the file `path`.

    Nothing in it is needed for correctness: it is made anew when it is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._db = _opened(path)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            remove(path)
            self._db = _opened(path)
        self.sketches = sketch.Sketches(self._db)
        self._any_staged = self._is_there("SELECT 1 FROM staged")
        self._sights: list[tuple[object, ...]] = []
        self._stages: list[tuple[object, ...]] = []
        self._goners: list[tuple[str, bool]] = []

    def close(self) -> None:
        """Close the file; what was not committed is lost."""
        self._db.close()

    def commit(self) -> None:
        """Keep what was noted. Call it only when the staged files are on the disk."""
        self._flush()
        self._db.commit()

    # -- what is known ---------------------------------------------------------------------------------------

    def known(self, item: str) -> Iterator[Known]:
        """Yield what is known below the path `item` and of itself, in the order of manifests."""
        start, end = key_range(item)
        while rows := self._db.execute(
            "SELECT * FROM known WHERE key >= ? AND key < ? ORDER BY key LIMIT ?", (start, end, PAGE)
        ).fetchall():
            yield from map(Known._make, rows)
            if len(rows) < PAGE:
                return
            start = rows[-1][0] + "\x01"  # no key lies between

    def remember(
        self, path: str, signs: Signs, check_id: str, sight: Sight, plain_sha256: str | None = None
    ) -> None:
        """Note what a file held; with `plain_sha256`, what it held before it was given another form."""
        findings = "\n".join(sight.findings)
        day = int(time.time() // 86_400)
        self._sights.append((sort_key(path), *signs, check_id, sight.sha256, findings, plain_sha256, day))
        self._flush_full(self._sights)

    def forget(self, key: str) -> None:
        """Note that there is no such source file any more."""
        self._db.execute("DELETE FROM known WHERE key = ? AND sealed_sha256 IS NULL", (key,))

    # -- the newest sealed collection ------------------------------------------------------------------------

    def base(self) -> tuple[int, str] | None:
        """Return (sequence, manifest digest) of the collection that is sealed in here."""
        row = self._db.execute("SELECT sequence, manifest_sha256 FROM base").fetchone()
        return (int(row[0]), str(row[1])) if row else None

    def set_base(self, sequence: int, manifest_sha256: str, files: Iterable[File]) -> None:
        """Make another collection the sealed one, given its files."""
        self.commit()
        with self._db:
            self.sketches.clear()
            self._db.execute("DELETE FROM known WHERE sha256 IS NULL")
            self._db.execute("UPDATE known SET sealed_sha256 = NULL WHERE sealed_sha256 IS NOT NULL")
            self._db.executemany(_SEAL.format(rows="VALUES (?, ?, ?, ?, ?)"), map(_row, files))
            self._set_base(sequence, manifest_sha256)

    def set_base_to_plan(self, sequence: int, manifest_sha256: str) -> None:
        """Make the collection that was just planned the sealed one."""
        self.commit()
        staged = "SELECT key, sha256, size, mtime_ns, mode FROM staged WHERE taken"
        with self._db:
            self._db.execute(_SEAL.format(rows=staged))
            self._db.execute(
                "DELETE FROM known WHERE key IN (SELECT key FROM gone WHERE NOT EXISTS"
                " (SELECT 1 FROM staged WHERE staged.key = gone.key AND taken))"
            )
            self._set_base(sequence, manifest_sha256)

    def clear_base(self) -> None:
        """Forget the sealed collection and all that was staged on top of it."""
        self.set_base(0, "", ())

    # -- the next collection ---------------------------------------------------------------------------------

    def staged(self, path: str) -> File | None:
        """Return a file that an earlier, cut attempt has staged."""
        if not self._any_staged:
            return None
        self._flush()
        row = self._db.execute("SELECT * FROM staged WHERE key = ?", (sort_key(path),)).fetchone()
        return _file(row) if row else None

    def stage(self, file: File) -> None:
        """Have the next collection take a file that is staged, whatever is sealed at its path."""
        self._stages.append((*_row(file), True))
        self._flush_full(self._stages)

    def unstage(self, path: str) -> None:
        """Note that a file is staged no more."""
        self._flush()
        self._db.execute("DELETE FROM staged WHERE key = ?", (sort_key(path),))

    def all_staged(self) -> Iterator[File]:
        """Yield every file that is noted as staged; they may be unstaged on the way."""
        return self._all_staged("TRUE")

    def untaken(self) -> Iterator[File]:
        """Yield the staged files that the next collection does not take; they may be unstaged on the way."""
        return self._all_staged("NOT taken")

    def lose(self, key: str, *, lost: bool = False) -> None:
        """Leave a sealed file out of the next collection, unless a staged one takes its place; `lost` when
        the mirror has it no more.
        """
        self._goners.append((key, lost))
        self._flush_full(self._goners)

    def find(self, key: str) -> None:
        """Leave a sealed file in the next collection after all."""
        self._flush()
        self._db.execute("DELETE FROM gone WHERE key = ?", (key,))

    def missing(self, item: str) -> Iterator[Known]:
        """Yield what is sealed below the path `item` and of itself, at hand and not planned; each may be
        found or lost on the way.
        """
        start, end = key_range(item)
        while True:
            self._flush()
            rows = self._db.execute(
                "SELECT known.* FROM known JOIN gone ON gone.key = known.key"
                " WHERE known.key >= ? AND known.key < ? AND sealed_sha256 IS NOT NULL AND NOT lost"
                " AND NOT EXISTS (SELECT 1 FROM staged WHERE staged.key = known.key AND taken)"
                " ORDER BY known.key LIMIT ?",
                (start, end, PAGE),
            ).fetchall()
            yield from map(Known._make, rows)
            if len(rows) < PAGE:
                return
            start = rows[-1][0] + "\x01"  # no key lies between

    def is_in_the_way(self, path: str) -> bool:
        """Return whether the next collection has a file below a path, or one where it needs a folder."""
        self._flush()
        folders = path.split("/")
        bounds = [key_range(path)]
        for depth in range(1, len(folders)):
            above = sort_key("/".join(folders[:depth]))
            bounds.append((above, above + "\x01"))
        return any(
            self._db.execute(
                "SELECT EXISTS (SELECT 1 FROM staged WHERE taken AND key >= ? AND key < ?)"
                " OR EXISTS (SELECT 1 FROM known WHERE key >= ? AND key < ? AND sealed_sha256 IS NOT NULL"
                " AND NOT EXISTS (SELECT 1 FROM gone WHERE gone.key = known.key))",
                one * 2,
            ).fetchone()[0]
            for one in bounds
        )

    def clear_plan(self) -> None:
        """Begin the next collection: as it stands, it is the sealed one."""
        self._flush()
        self._db.execute("DELETE FROM gone")
        self._any_staged = self._is_there("SELECT 1 FROM staged")
        if self._any_staged:
            self._db.execute("UPDATE staged SET taken = 0")

    def plan_sealed(self, item: str) -> tuple[int, int]:
        """Plan all below the path `item` as it is sealed, and return (files, bytes)."""
        self._flush()
        bounds = key_range(item)
        self._db.execute("UPDATE staged SET taken = 0 WHERE key >= ? AND key < ? AND taken", bounds)
        self._db.execute("DELETE FROM gone WHERE key >= ? AND key < ? AND NOT lost", bounds)
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(sealed_size), 0) FROM known WHERE key >= ? AND key < ?"
            " AND sealed_sha256 IS NOT NULL AND NOT EXISTS (SELECT 1 FROM gone WHERE gone.key = known.key)",
            bounds,
        ).fetchone()
        return int(row[0]), int(row[1])

    def plan_only(self, items: Iterable[str]) -> None:
        """Leave out of the next collection what is sealed and belongs to none of the items."""
        self._flush()
        start = ""
        query = (
            "INSERT OR IGNORE INTO gone SELECT key, 0 FROM known"
            " WHERE key >= ? AND key < ? AND sealed_sha256 IS NOT NULL"
        )
        for first, after in sorted(map(key_range, items)):
            self._db.execute(query, (start, first))
            start = after
        self._db.execute(query, (start, "\U0010ffff"))

    def is_changed(self) -> bool:
        """Return whether the next collection differs from the sealed one."""
        self._flush()
        return self._is_there("SELECT 1 FROM staged WHERE taken") or self._is_there("SELECT 1 FROM gone")

    def planned(self) -> Iterator[tuple[str, str, int, int, int]]:
        """Return (key, sha256, size, mtime_ns, mode) of each file of the next collection, in the order of
        manifests.
        """
        self._flush()
        return self._db.execute(_PLANNED)

    def planned_changes(self) -> Iterator[Change]:
        """Yield how the next collection differs from the sealed one, in the order of manifests."""
        self._flush()
        query = (
            "SELECT key, sha256, size, mtime_ns, mode FROM staged WHERE taken"
            " UNION ALL SELECT key, NULL, 0, 0, 0 FROM gone"
            " WHERE NOT EXISTS (SELECT 1 FROM staged WHERE staged.key = gone.key AND taken) ORDER BY key"
        )
        for row in self._db.execute(query):
            yield Gone(path_of(row[0])) if row[1] is None else _file(row)

    # -- the database ----------------------------------------------------------------------------------------

    def _set_base(self, sequence: int, manifest_sha256: str) -> None:
        for table in ("staged", "gone", "base"):
            self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - constants
        self._db.execute("INSERT INTO base VALUES (?, ?)", (sequence, manifest_sha256))
        self._any_staged = False

    def _all_staged(self, which: str) -> Iterator[File]:
        self._flush()
        last = ""
        query = f"SELECT * FROM staged WHERE {which} AND key > ? ORDER BY key LIMIT ?"  # noqa: S608 - constants
        while rows := self._db.execute(query, (last, PAGE)).fetchall():
            yield from map(_file, rows)
            last = rows[-1][0]

    def _flush_full(self, buffer: list[Any]) -> None:
        if len(buffer) >= BUFFER:
            self._flush()

    def _flush(self) -> None:
        for query, buffer in (
            (_REMEMBER, self._sights),
            ("INSERT OR REPLACE INTO staged VALUES (?, ?, ?, ?, ?, ?)", self._stages),
            ("INSERT OR REPLACE INTO gone VALUES (?, ?)", self._goners),
        ):
            if buffer:
                self._db.executemany(query, buffer)
                buffer.clear()

    def _is_there(self, query: str) -> bool:
        return self._db.execute(f"{query} LIMIT 1").fetchone() is not None


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error says that the file is broken, and not that the disk is full or read-only."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


def remove(path: Path) -> None:
    """Throw a cache away."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _row(file: File) -> tuple[str, str, int, int, int]:
    return sort_key(file.path), file.sha256, file.size, file.mtime_ns, file.mode


def _file(row: tuple[Any, ...]) -> File:
    return File(path_of(row[0]), *row[1:5])


def _lines(findings: str | None) -> tuple[str, ...]:
    return tuple(findings.split("\n")) if findings else ()


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = sqlite3.connect(path, timeout=30)
    try:
        write_ahead.switch(db, path)
        # NORMAL: a power cut may take back the last commits; that only means reading some files once more.
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA temp_store = FILE")
        db.execute("PRAGMA cache_size = -4096")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError("of another version")
        if not version:
            db.executescript(_SCHEMA)
        sketch.prepare(db)
        db.execute(_GONE)
    except BaseException:
        db.close()
        raise
    return db
