"""The history of every server: each collection that was ever committed, as the way back from the one after.

One SQLite file. The newest collection of a server is not in it: its record lies in plain files beside the
archive (shala_central.archive). A row holds what changes to the collection after it lead back to this one, so
that the newest is always at hand, and an old one costs the changes since. A day on which nothing but the
heartbeat changed costs about a kilobyte: a record is packed beside what all of them have in common
(record-shape-1.txt), so that only what is its own takes room. Rows are read by that file: it never changes.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import io
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import zstandard
from shala_agent import write_ahead
from shala_agent.manifest import Change, File, ManifestError, compose_all, read_changes, write_line

from shala_central import rows
from shala_central.copies import connect, is_damage, lost
from shala_central.failure import CentralError
from shala_central.listing import fold

# In the first one records were packed by themselves, and rows had no sums; rows of both kinds are read.
VERSION = rows.VERSIONS[rows.COLLECTION]
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS collection (
  id INTEGER PRIMARY KEY, server TEXT NOT NULL, pulled TEXT NOT NULL, year INTEGER NOT NULL,
  sequence INTEGER NOT NULL, files INTEGER NOT NULL, bytes INTEGER NOT NULL,
  record BLOB NOT NULL, changes BLOB NOT NULL, sum BLOB, UNIQUE (server, pulled));
PRAGMA user_version = {VERSION};
"""
_TO_VERSION = f"PRAGMA user_version = {VERSION}"
_MEND = "shala archive repair puts back the copy of last night"
_SHAPED = b"\x01"  # before a record that was packed beside the shape; no zstd frame begins so


class HistoryError(CentralError):
    """The history cannot be read; the text says why."""


class RowDamaged(HistoryError):
    """A collection in the history is not what was written; the others are."""


class Version(msgspec.Struct, frozen=True):
    """One earlier collection of a server. `pulled` is when it was committed, ISO 8601 in UTC."""

    id: int
    server: str
    pulled: str
    year: int
    sequence: int
    files: int
    bytes: int

    @property
    def handle(self) -> str:
        """Return its number and time: a server that was installed anew has used the number alone twice."""
        return f"{self.sequence}@{self.pulled}"


class History:
    """The history in one file, which is made when it never was there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if gone := lost(path):
            raise HistoryError(gone)
        try:
            self._db = connect(path)
        except sqlite3.OperationalError as error:
            raise HistoryError(_reason(path, error)) from None
        try:
            write_ahead.switch(self._db, path)
            self._db.execute("PRAGMA synchronous = FULL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if not 0 <= found <= VERSION:
                raise HistoryError(
                    f"{path} is of version {found}, this shala reads {VERSION} (update the centre)"
                )
            if not found:  # who only reads writes nothing: the disk may be full
                self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise HistoryError(_reason(path, error)) from None
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def within(cls, db: sqlite3.Connection, path: Path) -> History:
        """Return the history that somebody has open, at work in a transaction of his own."""
        history = cls.__new__(cls)
        history._path, history._db = path, db
        return history

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add(self, server: str, pulled: str, record: dict[str, bytes], changes: Iterable[Change]) -> None:
        """Add what was the newest collection until now: the files of its record, and the way back to it.

        Adding it twice is adding it once.
        """
        pull = msgspec.json.decode(record["pull.json"])
        row = (
            *(server, pulled, pull["year"], pull["sequence"], pull["files"], pull["bytes"]),
            _packed_record(record),
            _packed_changes(changes),
        )
        with self._written():
            self._db.execute(
                "INSERT OR IGNORE INTO collection"
                " (server, pulled, year, sequence, files, bytes, record, changes, sum)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, rows.sum_of(*row)),
            )
            self._db.execute(_TO_VERSION)

    def _ask(self, query: str, *values: object) -> list[tuple]:  # type: ignore[type-arg]
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise HistoryError(_reason(self._path, error)) from None

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            with self._db:
                rows.add_column(self._db)
                yield
        except sqlite3.DatabaseError as error:
            raise HistoryError(_reason(self._path, error)) from None

    def versions(self, server: str) -> list[Version]:
        """Return the earlier collections of a server, oldest first."""
        found = self._ask(
            "SELECT id, server, pulled, year, sequence, files, bytes FROM collection"
            " WHERE server = ? ORDER BY id",
            server,
        )
        return [Version(*row) for row in found]

    def servers(self) -> set[str]:
        """Return the names of the servers that have earlier collections."""
        return {row[0] for row in self._ask("SELECT DISTINCT server FROM collection")}

    def record(self, version: Version) -> dict[str, bytes]:
        """Return the files of the record of an earlier collection, by name."""
        found = self._rows("WHERE id = ?", version.id)
        if not found:
            raise HistoryError(f"collection {version.sequence} of {version.server} is not kept any more")
        return _read_record(found[0]["record"])

    def mark(self, version: Version, name: str, content: bytes) -> None:
        """Put a file into the record of an earlier collection, or replace it."""
        with self._written():
            record = {**self.record(version), name: content}
            self._replace(version.id, record=_packed_record(record))
            self._db.execute(_TO_VERSION)

    def _replace(self, number: int, **columns: bytes) -> None:
        """Replace what a row holds, in the transaction that goes on. Raises HistoryError if it is damaged."""
        (row,) = self._rows("WHERE id = ?", number)  # whole: else a new sum would say that it is
        row |= columns
        row["sum"] = rows.sum_of_row(row)
        self._db.execute(
            "UPDATE collection SET record = ?, changes = ?, sum = ? WHERE id = ?",
            (row["record"], row["changes"], row["sum"], number),
        )

    def _rows(self, where: str, *values: object) -> list[rows.Row]:
        """Return rows. Raises RowDamaged at one that is not what was written: it may well be unpacked."""
        try:
            found = list(rows.read(self._db, where, *values))
        except sqlite3.DatabaseError as error:
            raise HistoryError(_reason(self._path, error)) from None
        for row in found:
            if not rows.is_whole(row):
                raise RowDamaged(f"{self._path}: {rows.name_of(row)} is damaged ({_MEND})")
        return found

    def files(self, version: Version, newest: Iterable[bytes]) -> Iterator[bytes]:
        """Given the list of files of the newest collection, yield the lines of that of an earlier one."""
        found = self._rows("WHERE server = ? AND id >= ? ORDER BY id DESC", version.server, version.id)
        return fold(newest, [io.BytesIO(_unpacked(row["changes"])) for row in found])

    def changes(self, version: Version) -> Iterator[Change]:
        """Yield what leads from the collection after an earlier one back to it."""
        found = self._rows("WHERE id = ?", version.id)
        return _read(_unpacked(found[0]["changes"])) if found else iter(())

    def months(self) -> dict[str, dict[str, int]]:
        """Return {server: {YYYY-MM: how many of its earlier collections were pulled in it}}."""
        found: dict[str, dict[str, int]] = {}
        counted = self._ask(
            "SELECT server, substr(pulled, 1, 7) AS month, count(*) FROM collection GROUP BY server, month"
        )
        for server, month, count in counted:
            found.setdefault(server, {})[month] = count
        return found

    def digests(self, server: str) -> Iterator[File]:
        """Yield every file that an earlier collection of a server needs and the newest may not have."""
        for row in self._rows("WHERE server = ?", server):
            for change in _read(_unpacked(row["changes"])):
                if isinstance(change, File):
                    yield change

    def forget(self, versions: Sequence[Version]) -> None:
        """Remove collections; those before them stay as they are."""
        for version in versions:
            with self._written():
                self.merge(version)

    def merge(self, version: Version) -> None:
        """Merge a collection into the one before, in the transaction that goes on."""
        older = self._rows("WHERE server = ? AND id < ? ORDER BY id DESC LIMIT 1", version.server, version.id)
        if older and (found := self._rows("WHERE id = ?", version.id)):
            lists = [_unpacked(row["changes"]) for row in (*found, *older)]
            both = b"".join(map(write_line, _put_together(lists)))
            self._replace(older[0]["id"], changes=_packed(both))
        self._db.execute("DELETE FROM collection WHERE id = ?", (version.id,))


def superfluous(
    versions: Sequence[Version],
    now: datetime.datetime,
    keep_days: int,
    keep_months: int,
    current_year: int | None = None,
) -> list[Version]:
    """Return what a policy lets go.

    All of the last `keep_days` days stay, of the last `keep_months` months the newest of each month, and
    before that the newest of each year; and always the one that the tree of an earlier year shows.
    """
    kept: set[str] = set()
    years = {current_year}
    gone: list[Version] = []
    for version in sorted(versions, key=lambda v: v.id, reverse=True):
        pulled = datetime.datetime.fromisoformat(version.pulled)
        months = (now.year - pulled.year) * 12 + now.month - pulled.month
        if current_year is not None and version.year not in years:
            years.add(version.year)
            continue
        if now - pulled <= datetime.timedelta(days=keep_days):
            continue
        period = f"{pulled:%Y-%m}" if months <= keep_months else f"{pulled:%Y}"
        if period in kept:
            gone.append(version)
        kept.add(period)
    return gone


def _put_together(lists: Sequence[bytes]) -> Iterable[Change]:
    return compose_all([_read(lines) for lines in lists])


def _read(lines: bytes) -> Iterator[Change]:
    return read_changes(io.BytesIO(lines))


def _unpacked(packed: bytes, shape: zstandard.ZstdCompressionDict | None = None) -> bytes:
    """Unpack what a row holds. Raises ValueError."""
    try:
        return zstandard.ZstdDecompressor(dict_data=shape).decompressobj().decompress(packed)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def _read_record(packed: bytes) -> dict[str, bytes]:
    """Unpack a record. Raises ValueError."""
    raw = _unpacked(packed[1:], _shape()) if packed.startswith(_SHAPED) else _unpacked(packed)
    return msgspec.msgpack.decode(raw, type=dict[str, bytes])


def is_readable(record: bytes, changes: bytes) -> bool:
    """Return whether what a row holds can be unpacked and read, as far as it is needed."""
    try:
        msgspec.json.decode(_read_record(record)["pull.json"])
        for _change in _read(_unpacked(changes)):
            pass
    except (ValueError, TypeError, AttributeError, KeyError, ManifestError):  # it may hold none of bytes
        return False
    return True


# A day's changes have some kilobytes: the tables of a high level are made no larger than that is worth.
_LEVEL = zstandard.ZstdCompressionParameters.from_level(12, window_log=19, chain_log=16, hash_log=16)


def _packed_changes(changes: Iterable[Change]) -> bytes:
    """Pack as the changes come: there may be a million."""
    packer = zstandard.ZstdCompressor(compression_params=_LEVEL).compressobj()
    packed = b"".join(packer.compress(write_line(change)) for change in changes)
    return packed + packer.flush()


def _reason(path: Path, error: sqlite3.DatabaseError) -> str:
    # Of these only a file that is none any more is worth bringing an older one back.
    if not is_damage(error):
        return f"{path}: {error} (is the disk full, or the file somebody else's?)"
    return f"{path}: {error} ({_MEND})"


def _packed(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(compression_params=_LEVEL).compress(raw)


def _packed_record(record: dict[str, bytes]) -> bytes:
    packer = zstandard.ZstdCompressor(compression_params=_LEVEL, dict_data=_shape())
    return _SHAPED + packer.compress(msgspec.msgpack.encode(record))


@functools.cache
def _shape() -> zstandard.ZstdCompressionDict:
    """Return what records have in common: an empty one of 2026, and never another one."""
    raw = Path(__file__).with_name("record-shape-1.txt").read_bytes()
    return zstandard.ZstdCompressionDict(raw, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
