"""Cold content: what only earlier collections need, packed; against the newer version where that pays.

One SQLite file beside the objects holds small packed contents themselves, and says of larger ones, which lie
in `<sha256>.cold`, what they were packed against. Everything is packed on the disk before the plain object is
removed, and its digest is checked whenever it is unpacked. A content is at most CHAIN unpackings away.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from shala_agent import write_ahead

from shala_central import rows
from shala_central.copies import COLD, connect, copies_of, is_damage, lost
from shala_central.failure import CentralError
from shala_central.publish import sync_folder
from shala_central.reading import Seen, copied, seen_of

VERSION = rows.VERSIONS[rows.PACKED]  # in the first one rows had no sums
CHAIN = 16  # so many newer versions may have to be unpacked to come to an old one
DEEPEST = 4 * CHAIN
IN_TABLE = 256 << 10  # bytes: what is packed to less lies in the table and takes no block of its own
PATCHABLE = 512 << 20  # bytes: both versions are in memory together
SMALLEST = 8  # bytes that zstd wants of what it packs against
LEVEL = 9
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS cold (pool TEXT, sha256 BLOB, size INTEGER, base BLOB, height INTEGER, packed BLOB,
  sum BLOB, PRIMARY KEY (pool, sha256)) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""

Plain = Callable[[str, str], bytes | None]  # (pool, sha256) -> a content that is not packed, if there is one


class ColdDamaged(CentralError):
    """A packed content cannot be unpacked, or is not what it should be."""


class ColdFailed(CentralError):
    """The table, or the disk that it lies on, cannot be used; of the contents it says nothing."""


class Cold:
    """The packed contents of all pools; `root` is the folder of the objects.

    With `read_only` nothing is ever written beside it: it may be a copy on a disk that is mounted so.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self._root = root
        self._path = root.parent / COLD
        if read_only and lost(self._path):
            self._path = copies_of(self._path)[0]  # only the tables of its backup were copied
        self._read_only = read_only
        self._seen: Seen = ()  # what was opened to be read only
        self._db: sqlite3.Connection | None = None

    def has(self, pool: str, sha256: str) -> bool:
        """Return whether a content is here, packed."""
        return self._row(pool, sha256) is not None

    def read(self, pool: str, sha256: str, plain: Plain, depth: int = 0) -> bytes:
        """Return a content. Raises ColdDamaged."""
        if depth > DEEPEST:
            raise ColdDamaged(f"{pool}/{sha256[:2]}/{sha256} stands on itself")
        row = self._row(pool, sha256)
        if row is None:
            raise ColdDamaged(f"{pool}/{sha256[:2]}/{sha256} is not in the archive any more")
        base, packed = row
        try:
            raw = packed if packed is not None else self._file(pool, sha256).read_bytes()
            prefix = self._content(pool, base.hex(), plain, depth + 1) if base else None
            content = _unpacked(raw, prefix)
        except (OSError, ValueError) as error:
            raise ColdDamaged(f"{pool}/{sha256[:2]}/{sha256} cannot be unpacked: {error}") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ColdDamaged(f"{pool}/{sha256[:2]}/{sha256} has changed (sha256 differs)")
        return content

    def pack(self, pool: str, sha256: str, place: Path, base: str | None, plain: Plain) -> int:
        """Pack a plain object, against `base` where that pays, and remove it; return the bytes that are free.

        What cannot be made smaller stays as it is.
        """
        size = place.stat().st_size
        content = place.read_bytes() if size <= PATCHABLE else None
        if content is None or hashlib.sha256(content).hexdigest() != sha256:
            return 0  # too large to hold, or damaged: that is for verify to tell
        height = self._height(pool, sha256)
        prefix = None
        if base is not None and height < CHAIN and not self._stands_on(pool, base, sha256):
            with contextlib.suppress(ColdDamaged, OSError):
                prefix = self._content(pool, base, plain)
        packed = _packed(content, None)
        if prefix is not None and SMALLEST <= len(prefix) <= PATCHABLE:
            patch = _packed(content, prefix)
            packed, base = (patch, base) if len(patch) < len(packed) * 0.9 else (packed, None)
        else:
            base = None
        if len(packed) > size * 0.95:
            return 0
        self._keep(pool, sha256, packed, base, size, height)
        place.unlink()
        return size - len(packed)

    def needed_for(self, needed: Mapping[str, set[str]]) -> None:
        """Add to {pool: digests} those that others of it are packed against."""
        for pool, wanted in needed.items():
            bases = dict(
                self._query("SELECT sha256, base FROM cold WHERE pool = ? AND base IS NOT NULL", pool)
            )
            todo = list(wanted)
            while todo:
                base = bases.get(bytes.fromhex(todo.pop()))
                if base is not None and base.hex() not in wanted:
                    wanted.add(base.hex())
                    todo.append(base.hex())

    def stored(self, pool: str, bucket: str = "") -> Iterator[tuple[str, int]]:
        """Yield (sha256, bytes that it takes) of every packed content of a pool, or of one bucket (`ab`)."""
        query = "SELECT sha256, coalesce(length(packed), -1) FROM cold WHERE pool = ?"
        for digest, size in self._query(query, pool):
            sha256 = digest.hex()
            if sha256.startswith(bucket):
                yield sha256, size if size >= 0 else _size_of(self._file(pool, sha256))

    def remove(self, pool: str, digests: Iterable[str]) -> None:
        """Remove packed contents."""
        for sha256 in digests:
            with self._written() as db:
                db.execute("DELETE FROM cold WHERE pool = ? AND sha256 = ?", (pool, bytes.fromhex(sha256)))
            self._file(pool, sha256).unlink(missing_ok=True)

    def settle(self) -> None:
        """Empty SQLite's own log: it may still hold pages with what was removed."""
        if self._path.exists():
            with self._written() as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def pools(self) -> set[str]:
        """Return the names of the pools of which something is packed."""
        return {row[0] for row in self._query("SELECT DISTINCT pool FROM cold")}

    def _stands_on(self, pool: str, base: str, sha256: str) -> bool:
        """Return whether a base is, or is packed against, a content; also where the way there is too long.

        Two schools, or two files, may have the same contents in the other order.
        """
        for _ in range(DEEPEST):
            if base == sha256:
                return True
            row = self._row(pool, base)
            if row is None or row[0] is None:
                return False
            base = row[0].hex()
        return True

    def _content(self, pool: str, sha256: str, plain: Plain, depth: int = 0) -> bytes:
        content = plain(pool, sha256)
        return content if content is not None else self.read(pool, sha256, plain, depth)

    def _keep(  # noqa: PLR0917 - a row
        self, pool: str, sha256: str, packed: bytes, base: str | None, size: int, height: int
    ) -> None:
        in_table = len(packed) <= IN_TABLE
        if not in_table:
            _write(self._file(pool, sha256), packed)
        key = (pool, bytes.fromhex(sha256), size, bytes.fromhex(base) if base else None)
        content = packed if in_table else None
        with self._written() as db:
            rows.add_column(db)
            db.execute(
                "INSERT OR REPLACE INTO cold (pool, sha256, size, base, height, packed, sum)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*key, height, content, rows.sum_of(*key, content)),
            )
            if base:
                # A base may be plain now; when it is packed itself, it knows how many stand on it.
                db.execute(
                    "UPDATE cold SET height = max(height, ?) WHERE pool = ? AND sha256 = ?",
                    (height + 1, pool, bytes.fromhex(base)),
                )

    def _height(self, pool: str, sha256: str) -> int:
        """Return how many packed contents stand one on the other above this one."""
        found = self._query(
            "SELECT max(height) + 1 FROM cold WHERE pool = ? AND base = ?", pool, bytes.fromhex(sha256)
        )
        return int(found[0][0] or 0) if found else 0

    def _row(self, pool: str, sha256: str) -> tuple[bytes | None, bytes | None] | None:
        query = "SELECT base, packed FROM cold WHERE pool = ? AND sha256 = ?"
        found = self._query(query, pool, bytes.fromhex(sha256))
        if not found and self._is_outdated():
            found = self._query(query, pool, bytes.fromhex(sha256))
        return found[0] if found else None

    def _query(self, query: str, *values: object) -> list[tuple]:  # type: ignore[type-arg]
        if self._db is None and not self._path.exists():
            self._require()
            return []
        try:
            try:
                return self._opened().execute(query, values).fetchall()
            except sqlite3.DatabaseError:
                if not self._is_outdated():
                    raise
                return self._opened().execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from None
        except OSError as error:
            raise ColdFailed(f"{self._path}: {error.strerror}") from None

    @contextlib.contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        """Open one transaction on the table."""
        try:
            with self._opened() as db:
                yield db
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from None

    def _failure(self, error: sqlite3.DatabaseError) -> ColdFailed:
        # Of these only a file that is none any more is worth bringing an older one back.
        full = not is_damage(error)
        back = "shala archive repair puts back the copy of last night"
        way = "is the disk full, or another run at work?" if full else back
        return ColdFailed(f"{self._path}: {error} ({way})")

    def _require(self) -> None:
        """Raise ColdFailed if the table is gone: it is not made anew then."""
        if gone := lost(self._path):
            raise ColdFailed(gone)

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            self._require()
        if self._db is None and self._read_only:
            self._db = self._opened_to_read()
        if self._db is None:
            # Threads of one pull take turns: each statement is whole, and SQLite locks.
            db = connect(self._path, threads=True)
            try:
                write_ahead.switch(db, self._path)
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA secure_delete = ON")  # what is removed may have to be nowhere in plain
                found = db.execute("PRAGMA user_version").fetchone()[0]
                if not 0 <= found <= VERSION:
                    raise ColdFailed(
                        f"{self._path} is of version {found}, this shala reads {VERSION} (update the centre)"
                    )
                if not found:
                    db.executescript(_SCHEMA)
                db.execute("CREATE INDEX IF NOT EXISTS by_base ON cold (pool, base) WHERE base IS NOT NULL")
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def _is_outdated(self) -> bool:
        """Return whether somebody has written the table since it was opened to be read only: SQLite does not
        look, and takes it for damaged. Who asks next opens it anew.
        """
        if self._db is None or not self._read_only or self._seen == seen_of(self._path):
            return False
        self._db.close()
        self._db = None
        return True

    def _opened_to_read(self) -> sqlite3.Connection:
        """Open the table so that nothing is written, not even SQLite's own files beside it."""
        self._seen = seen_of(self._path)
        path = self._path.resolve()
        log = path.with_name(f"{path.name}-wal")
        if log.is_file() and log.stat().st_size:
            # Copied from an archive at work: the newest rows are in the log, which only a writer can read.
            try:
                return sqlite3.connect(copied(path))
            except CentralError as error:
                raise ColdFailed(str(error)) from None
        return sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)

    def _file(self, pool: str, sha256: str) -> Path:
        return self._root / pool / sha256[:2] / f"{sha256}.cold"


def _write(place: Path, packed: bytes) -> None:
    """Write a packed content to a file of its own. Raises ColdFailed, and then nothing of it is left."""
    unfinished = place.with_suffix(".part")
    try:
        with unfinished.open("wb") as file:
            file.write(packed)
            file.flush()
            os.fchmod(file.fileno(), 0o440)
            os.fsync(file.fileno())
        unfinished.rename(place)
        sync_folder(place.parent)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ColdFailed(f"{place}: {error.strerror} (free some space; the next prune goes on)") from None


def _packed(content: bytes, prefix: bytes | None) -> bytes:
    from backports import zstd  # loaded where it is needed: a pull seldom opens a packed content

    both = len(content) + len(prefix or b"")
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: LEVEL,
        zstd.CompressionParameter.window_log: min(30, max(10, both.bit_length())),
        zstd.CompressionParameter.enable_long_distance_matching: 1,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    if prefix is None:
        return zstd.compress(content, options=options)
    return zstd.compress(content, options=options, zstd_dict=zstd.ZstdDict(prefix, is_raw=True).as_prefix)


def _unpacked(raw: bytes, prefix: bytes | None) -> bytes:
    """Unpack a content. Raises ValueError if it was not packed, or not against this prefix."""
    from backports import zstd

    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 30}
    given = None if prefix is None else zstd.ZstdDict(prefix, is_raw=True).as_prefix
    try:
        return zstd.decompress(raw, options=options, zstd_dict=given)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from None


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
