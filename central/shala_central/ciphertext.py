"""Ciphertext: the age files among the objects, in which the content of sensitive items is kept.

Content is encrypted to the researchers' public keys when it comes; the centre has no key that opens it again.
An age file is an object like any other, under the digest of its own bytes: who checks, mends, uploads, links
or exports objects need not know what it is. One SQLite table beside the objects leads there from the digest
that the school sealed. A row is written when its object is on the disk under its name, and only then does the
plain content go: what is cut leaves an object that prune removes, or one whose plain content is still there.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
from shala_agent.manifest import File, sort_key, write_line

from shala_central import rows
from shala_central.failure import CentralError, UsageError
from shala_central.listing import file_of, path_of
from shala_central.table_file import TableFile

SUFFIX = ".age"
VERSION = rows.VERSIONS[rows.ENCRYPTED]  # in the first one rows had no sums
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS content (server TEXT, item TEXT, sha256 BLOB, size INTEGER, stored BLOB,
  stored_size INTEGER, sum BLOB, PRIMARY KEY (server, item, sha256)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_stored ON content (server, stored);
PRAGMA user_version = {VERSION};
"""
_WAY = "shala archive repair puts back the copy of last night"

Identities = Sequence[Any]  # of pyrage


class AgeFailed(CentralError):
    """What age says when it cannot go on: no key fits, or an age file is damaged."""


class Encrypted(msgspec.Struct, frozen=True):
    """A content that was encrypted: `file` as the school sealed it, the age file with its digest and size."""

    file: File
    place: Path
    sha256: str
    size: int


class Ciphertexts:
    """What is encrypted of all servers; `path` is the table, which is made when it is first needed.

    New content of `items` (`postgres-dump`, or of one platform `gstudio/postgres-dump`) is to be encrypted to
    `recipients`; without recipients none is.
    """

    def __init__(self, path: Path, recipients: Sequence[str] = (), items: Collection[str] = ()) -> None:
        self._table = TableFile(path, _SCHEMA, CentralError, _WAY)
        self._recipients = tuple(recipients)
        self._items = frozenset(items)

    def is_sensitive(self, path: str) -> bool:
        """Return whether new content of a server's file (`gstudio/db/...`) is to be encrypted."""
        if not self._recipients:
            return False
        item = item_of(path)
        return item in self._items or item.partition("/")[2] in self._items

    # -- what is encrypted -----------------------------------------------------------------------------------

    def items(self, server: str) -> list[str]:
        """Return the items of a server (`gstudio/postgres-dump`) of which some content is encrypted."""
        return [
            row[0] for row in self._table.ask("SELECT DISTINCT item FROM content WHERE server = ?", server)
        ]

    def as_stored(self, server: str, file: File) -> File:
        """Given a file as the school sealed it, return it as it is kept: itself where it is not encrypted."""
        found = self._table.ask(
            "SELECT stored, stored_size FROM content WHERE server = ? AND item = ? AND sha256 = ?",
            *(server, item_of(file.path.removeprefix("data/")), bytes.fromhex(file.sha256)),
        )
        if not found:
            return file
        return File(file.path + SUFFIX, found[0][0].hex(), found[0][1], file.mtime_ns, file.mode)

    def as_sealed(self, server: str, file: File) -> File:
        """Given a file as it is kept, return it as the school sealed it: what `as_stored` was given."""
        found = self._table.ask(
            "SELECT sha256, size FROM content WHERE server = ? AND stored = ? AND item = ?",
            *(
                server,
                bytes.fromhex(file.sha256),
                item_of(file.path.removeprefix("data/").removesuffix(SUFFIX)),
            ),
        )
        if not found:
            return file
        path = file.path.removesuffix(SUFFIX)
        return File(path, found[0][0].hex(), found[0][1], file.mtime_ns, file.mode)

    def lines(
        self,
        server: str,
        lines: Iterable[bytes],
        only: Collection[bytes] | None = None,
        paths: IO[bytes] | None = None,
    ) -> Iterator[bytes]:
        """Given a list of files as a school sealed them, yield the lines of it as they are kept, in order.

        With `only` no other paths than these count as encrypted; those that do are written to `paths`.
        """
        inside = [f"data/{item}".encode() for item in self.items(server)]
        if not inside:
            yield from lines
            return
        starts = tuple(item + b"/" for item in inside)
        # The longer name may come after those of files that followed.
        waiting: list[tuple[bytes, bytes]] = []
        for line in lines:
            path = path_of(line)
            key = path.replace(b"/", b"\x01")
            while waiting and waiting[0][0] <= key:
                yield heapq.heappop(waiting)[1]
            if (path.startswith(starts) or path in inside) and (only is None or path in only):
                file = file_of(line)
                if (stored := self.as_stored(server, file)) is not file:
                    heapq.heappush(waiting, (sort_key(stored.path).encode(), write_line(stored)))
                    if paths is not None:
                        paths.write(path + b"\n")
                    continue
            yield line
        while waiting:
            yield heapq.heappop(waiting)[1]

    def is_ciphertext(self, pool: str, sha256: str) -> bool:
        """Return whether an object of a pool is an age file."""
        query = "SELECT 1 FROM content WHERE server = ? AND stored = ? LIMIT 1"
        return bool(self._table.ask(query, pool, bytes.fromhex(sha256)))

    def contents(self, server: str) -> Iterator[tuple[str, str]]:
        """Yield (digest that the school sealed, that of the age file) of all that is encrypted."""
        for sealed, stored in self._table.ask("SELECT sha256, stored FROM content WHERE server = ?", server):
            yield sealed.hex(), stored.hex()

    # -- change ----------------------------------------------------------------------------------------------

    def encrypt(self, file: File, source: Path, target: Path) -> Encrypted:
        """Write the content of a file, read from `source`, to a new age file, in pieces.

        Raises CentralError if it is not what the school sealed: nobody here could find out later.
        """
        with _opened(source) as plain, target.open("wb") as stored:
            reading, writing = _Hashing(plain), _Hashing(stored)
            recipients = [_age().x25519.Recipient.from_str(key) for key in self._recipients]
            _piped(_age().encrypt_io, reading, writing, recipients)
        if reading.sha256 != file.sha256:
            target.unlink()
            raise CentralError(f"{source} has changed and was not encrypted (is the archive's disk failing?)")
        os.utime(target, ns=(file.mtime_ns, file.mtime_ns))
        return Encrypted(file, target, writing.sha256, writing.size)

    def add(self, server: str, contents: Iterable[Encrypted]) -> None:
        """Write down where encrypted contents are; their objects are on the disk."""
        found = [
            (
                *(server, item_of(done.file.path.removeprefix("data/")), bytes.fromhex(done.file.sha256)),
                *(done.file.size, bytes.fromhex(done.sha256), done.size),
            )
            for done in contents
        ]
        with self._table.written() as db:
            rows.add_column(db)
            db.executemany(
                "INSERT OR REPLACE INTO content (server, item, sha256, size, stored, stored_size, sum)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(*row, rows.sum_of(*row)) for row in found],
            )

    def forget(self, server: str, file: File) -> None:
        """Forget the age file of a content: it is lost, and the content has come again, to stay plain."""
        if self.as_stored(server, file) is not file:
            item = item_of(file.path.removeprefix("data/"))
            with self._table.written() as db:
                db.execute(
                    "DELETE FROM content WHERE server = ? AND item = ? AND sha256 = ?",
                    (server, item, bytes.fromhex(file.sha256)),
                )

    def keep(self, server: str, needed: Collection[str]) -> None:
        """Forget of a server the age files that are not needed."""
        vain = [
            row
            for row in self._table.ask("SELECT server, stored FROM content WHERE server = ?", server)
            if row[1].hex() not in needed
        ]
        if vain:
            with self._table.written() as db:
                db.executemany("DELETE FROM content WHERE server = ? AND stored = ?", vain)


def item_of(path: str) -> str:
    """Return the item that a server's file is of, with its platform: `gstudio/db` of `gstudio/db/x/y`."""
    return "/".join(path.split("/", 2)[:2])


def recipient_problem(recipient: str) -> str:
    """Return why a recipient is none, or ""; what may be a secret is not quoted."""
    if recipient.upper().startswith("AGE-SECRET-KEY-"):
        return "is a secret key, which must never be here (write its public key, age1...; make a new one)"
    try:
        _age().x25519.Recipient.from_str(recipient)
    except _age().RecipientError:
        return f"'{recipient}' is not an age recipient (a public key, age1..., as age-keygen prints it)"
    return ""


def read_identities(path: Path) -> Identities:
    """Return the secret keys in an age identity file that nobody else may read. Raises UsageError."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise UsageError(f"{path} can be read by others (chmod 600 {path})")
            lines = file.read().decode("utf-8", "replace").splitlines()
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        identities = [_age().x25519.Identity.from_str(key) for key in keys]
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror} (the file that age-keygen wrote)"
        ) from None
    except _age().IdentityError:
        identities = []  # not what was said about it: that may quote the file
    if not identities:
        raise UsageError(
            f"{path} is not an age identity file (the one that age-keygen wrote, without passphrase)"
        )
    return identities


def decrypt(source: IO[bytes], target: IO[bytes], file: File, identities: Identities) -> None:
    """Write the content of an age file to an open file. Raises CentralError if it is not what was sealed."""
    path = file.path.removeprefix("data/")
    reading, writing = _Hashing(source), _Hashing(target)
    try:
        _piped(_age().decrypt_io, reading, writing, identities)
    except AgeFailed as error:
        raise CentralError(
            f"{path} cannot be decrypted: {error} (it was encrypted to the archive.recipients of its day)"
        ) from None
    if writing.sha256 != file.sha256:
        raise CentralError(f"{path} is not what the school sealed (sha256 differs once it is decrypted)")


class _Hashing:
    """An open file of which everything that is read or written is counted; it keeps the failure it met."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self, size: int = -1) -> bytes:
        try:
            return self._counted(self._file.read(size))
        except OSError as error:
            self.failure = error
            raise

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(self._counted(content))
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def _counted(self, content: bytes) -> bytes:
        self._digest.update(content)
        self.size += len(content)
        return content


def _piped(function: Any, source: _Hashing, target: _Hashing, keys: Sequence[Any]) -> None:
    """Let age read and write; a disk's own failure comes out as it is, not as age tells of it.

    Raises AgeFailed for all else: pyrage calls some of it an OSError.
    """
    try:
        function(source, target, keys)
    except (_age().EncryptError, _age().DecryptError, OSError) as error:
        if (failure := source.failure or target.failure) is not None:
            raise failure from None
        raise AgeFailed(str(error)) from None


def _opened(path: Path) -> IO[bytes]:
    return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")  # noqa: PTH123


def _age() -> Any:
    """Return pyrage, loaded where it is first needed: most runs have nothing to encrypt."""
    import pyrage  # type: ignore[import-untyped]

    return pyrage
