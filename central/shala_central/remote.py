"""Remote: keep objects in a bucket of S3-compatible storage, under the names that they have on the disk.

    <prefix>/<pool>/ab/<sha256>                   a content of less than PART bytes
    <prefix>/<pool>/ab/<sha256>/00001-of-00005    the parts of a larger one, PART bytes each but the last

The parts of a large content are objects of their own, composed when they are read, and not parts of S3's
multi-part upload: obstore does not hand out the upload's id, so an upload that was cut could only be begun
again; here the bucket itself says which parts it has, whoever sent them, and none is ever sent twice. No
upload is left open, either, that costs money and that nobody sees. A part appears whole or not at all, and
all names say how many there must be, so a listing tells which contents are whole.

What is whole in the bucket is known from a file beside the archive, remote.sqlite, which a listing can make
anew: asking for a million objects costs no request.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import msgspec

from shala_central.failure import CentralError, UsageError
from shala_central.table_file import TableFile

if TYPE_CHECKING:
    from obstore.store import S3Store

PART = 8 << 20  # bytes: less is sent in one request, more in parts of so many
AT_ONCE = 8  # contents that are sent or fetched at the same time; each holds at most one part in memory
TRIES = 5  # for one request, with a pause that doubles
FIRST_PAUSE = 0.2  # seconds
REQUEST_SECONDS = 300  # for one part: 28 kB/s are enough
BATCH = 500  # contents that are written down as sent at once
VERSION = 1
_KEY = re.compile(r"([^/]+)/([0-9a-f]{2})/(\2[0-9a-f]{62})(?:/([0-9]{5,})-of-([0-9]{5,}))?")
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS object (pool TEXT, sha256 BLOB, size INTEGER, whole INTEGER,
  PRIMARY KEY (pool, sha256)) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""
_WAY = "remove it, then: shala archive objects --reindex"
CUT, WHOLE, DOUBTED = 0, 1, 2  # what is known of a content: an upload is unfinished, or it is not believed
_ADD = "INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?)"
_MARK = "UPDATE object SET whole = ? WHERE pool = ? AND sha256 = ?"

T = TypeVar("T")
R = TypeVar("R")


class RemoteFailed(CentralError):
    """The bucket cannot be used; one line says which and what to do."""


class RemoteDamaged(Exception):
    """A content is not in the bucket, or is not what its name says."""


class LocalDamaged(CentralError):
    """What was to be sent is not what its name says."""


class Bucket(msgspec.Struct, frozen=True):
    """Where a bucket is and who may use it; the credentials are a file, read when they are first needed."""

    name: str
    prefix: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    credentials: Path = Path("/etc/shala/s3.toml")

    def __str__(self) -> str:
        """Return it as messages name it."""
        path = f"{self.name}/{self.prefix}".rstrip("/")
        return f"s3://{path}{f' at {self.endpoint}' if self.endpoint else ''}"


class Local(msgspec.Struct, frozen=True):
    """An object on this disk."""

    pool: str
    sha256: str
    size: int
    place: Path


class Sent(msgspec.Struct):
    """What was sent by a run; what was there already does not count."""

    objects: int = 0
    bytes: int = 0


class Kept(msgspec.Struct, frozen=True):
    """How much is in the bucket; `unfinished` uploads were cut."""

    objects: int
    bytes: int
    unfinished: int


class _Credentials(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    access_key_id: str
    secret_access_key: str


class Remote:
    """The objects in a bucket; `index` is the file that says which are there."""

    def __init__(self, bucket: Bucket, index: Path) -> None:
        self.bucket = bucket
        self._index = TableFile(index, _SCHEMA, RemoteFailed, _WAY)
        self._lock = threading.Lock()
        # Loaded with a bucket only: most archives have none, and it is large.
        import obstore
        from obstore import exceptions

        self._s3, self._errors = obstore, exceptions
        self._opened: S3Store | None = None

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    # -- what is there ---------------------------------------------------------------------------------------

    def has(self, pool: str, sha256: str) -> bool:
        """Return whether a content is in the bucket, as far as is known here."""
        return self._state(pool, sha256) == WHOLE

    def _state(self, pool: str, sha256: str) -> int:
        query = "SELECT whole FROM object WHERE pool = ? AND sha256 = ?"
        rows = self._index.ask(query, pool, bytes.fromhex(sha256))
        return int(rows[0][0]) if rows else CUT

    def size(self, pool: str, sha256: str) -> int:
        """Return the size of a content that is there. Raises RemoteDamaged if it is not."""
        row = self._index.ask(
            "SELECT size FROM object WHERE whole = ? AND pool = ? AND sha256 = ?",
            *(WHOLE, pool, bytes.fromhex(sha256)),
        )
        if not row:
            raise RemoteDamaged(f"{pool}/{sha256[:2]}/{sha256} is not in {self.bucket}")
        return int(row[0][0])

    def is_known(self) -> bool:
        """Return whether there is an index: made by the first upload, or of a listing."""
        return self._index.path.exists()

    def listed(self, pool: str, share: str) -> Iterator[tuple[str, int, str]]:
        """Yield (sha256, bytes, problem) of what is known here of a share (`ab`) of a pool.

        The problem is what a listing shows: gone, or of another size; "" where it is there. Raises
        RemoteFailed.
        """
        first = bytes.fromhex(share)
        query = "SELECT sha256, size FROM object WHERE whole = ? AND pool = ? AND sha256 BETWEEN ? AND ?"
        rows = self._index.ask(query, WHOLE, pool, first, first + b"\xff" * 31)
        there = dict(self._list(f"{pool}/{share}")) if rows else {}
        for digest, size in rows:
            sha256 = digest.hex()
            keys = _keys(pool, sha256, size)
            sizes = [min(PART, size - number * PART) for number in range(len(keys))]
            if [there.get(key) for key in keys] == sizes:
                yield sha256, size, ""
            elif self.has(pool, sha256):  # otherwise pruning has removed it meanwhile
                gone = sum(key not in there for key in keys)
                parts = (
                    f"{gone} of its {len(keys)} parts {'is' if gone == 1 else 'are'} gone"
                    if len(keys) > 1
                    else "is gone"
                )
                yield sha256, size, parts if gone else "has another size than was sent"

    def kept(self) -> Kept:
        """Return how much is in the bucket, as far as is known here."""
        query = "SELECT count(*), coalesce(sum(size), 0) FROM object WHERE whole = ?"
        if not self.is_known():
            return Kept(0, 0, 0)
        count, size = self._index.ask(query, WHOLE)[0]
        unfinished = self._index.ask(query, CUT)[0][0]
        return Kept(int(count), int(size), int(unfinished))

    def reindex(self) -> Kept:
        """Make the index anew from a listing of the bucket; objects must not be added meanwhile."""
        single: list[tuple[str, bytes, int, int]] = []
        parted: dict[tuple[str, str], dict[str, int]] = {}
        for key, size in self._list():
            if match := _KEY.fullmatch(key):
                pool, sha256 = match[1], match[3]
                if match[4] is None:
                    single.append((pool, bytes.fromhex(sha256), size, WHOLE))
                else:
                    parted.setdefault((pool, sha256), {})[key] = size
        with self._index.written() as db:
            # A listing says of nothing that it is whole.
            doubted = db.execute("SELECT pool, sha256 FROM object WHERE whole = ?", (DOUBTED,)).fetchall()
            db.execute("DELETE FROM object")
            db.executemany(_ADD, single)
            db.executemany(_MARK, [(DOUBTED, pool, sha256) for pool, sha256 in doubted])
            for (pool, sha256), sizes in parted.items():
                db.execute(_ADD, (pool, bytes.fromhex(sha256), *_composed(sizes)))
        return self.kept()

    # -- sending ---------------------------------------------------------------------------------------------

    def put(self, place: Path, pool: str, sha256: str) -> int:
        """Send one file, unless it is there; return the bytes that were sent."""
        return self.upload([Local(pool, sha256, place.stat().st_size, place)]).bytes

    def upload(
        self,
        objects: Iterable[Local],
        done: Callable[[Local], None] = lambda _: None,
        damaged: Callable[[LocalDamaged], None] | None = None,
    ) -> Sent:
        """Send what is not in the bucket, many at once; call `done` for each that is there for good.

        What is sent is read and compared with its name. Raises RemoteFailed, and LocalDamaged unless
        `damaged` is called with it; what was sent by then is not sent again.
        """
        sent = Sent()
        finished: list[Local] = []

        def send(item: Local) -> tuple[Local, int | None]:
            try:
                return self._send(item)
            except LocalDamaged as found:
                if damaged is None:
                    raise
                damaged(found)
                return item, None

        def write_down() -> None:
            with self._index.written() as db:
                db.executemany(_ADD, [(o.pool, bytes.fromhex(o.sha256), o.size, WHOLE) for o in finished])
            for item in finished:
                done(item)
            finished.clear()

        try:
            for item, size in in_parallel(send, objects):
                if size is None:
                    continue
                finished.append(item)
                sent.bytes += size
                sent.objects += size > 0
                if len(finished) >= BATCH:
                    write_down()
        finally:
            write_down()
        return sent

    def _send(self, item: Local) -> tuple[Local, int]:
        if self.has(item.pool, item.sha256):
            return item, 0
        try:
            return item, self._send_parts(item) if item.size >= PART else self._send_whole(item)
        except FileNotFoundError:
            # Another server's commit was faster: it sent the shared content and removed it here.
            if self.has(item.pool, item.sha256):
                return item, 0
            raise

    def _send_whole(self, item: Local) -> int:
        content = item.place.read_bytes()
        if hashlib.sha256(content).hexdigest() != item.sha256:
            raise _local_damage(item)
        self._put(_keys(item.pool, item.sha256, item.size)[0], content)
        return len(content)

    def _send_parts(self, item: Local) -> int:
        with item.place.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != item.sha256:
                raise _local_damage(item)
            if self._state(item.pool, item.sha256) == DOUBTED:
                # It stays so until all is sent anew.
                there = {}
            else:
                with self._index.written() as db:  # so that pruning finds it if this is never finished
                    db.execute(_ADD, (item.pool, bytes.fromhex(item.sha256), item.size, CUT))
                there = dict(self._list(_name(item.pool, item.sha256)))
            sent = 0
            for number, key in enumerate(_keys(item.pool, item.sha256, item.size)):
                length = min(PART, item.size - number * PART)
                if there.get(key) != length:
                    file.seek(number * PART)
                    self._put(key, file.read(length))
                    sent += length
        return sent

    def _put(self, key: str, content: bytes) -> None:
        self._tried(lambda: self._s3.put(self._store(), key, content, use_multipart=False))

    # -- fetching --------------------------------------------------------------------------------------------

    def read(self, pool: str, sha256: str, start: int = 0) -> Iterator[bytes]:
        """Yield a content from a byte on; the caller compares its digest.

        A connection that is cut is made again, from the byte where it was. Raises RemoteDamaged.
        """
        size = self.size(pool, sha256)
        for number, key in enumerate(_keys(pool, sha256, size)):
            begin, end = number * PART if size >= PART else 0, min(size, (number + 1) * PART)
            if end > start:
                yield from self._read_object(key, max(start - begin, 0), end - begin)

    def copy(self, pool: str, sha256: str, target: IO[bytes]) -> None:
        """Write a content to an open file, checked on the way. Raises RemoteDamaged, RemoteFailed."""
        digest = hashlib.sha256()
        for chunk in self.read(pool, sha256):
            digest.update(chunk)
            target.write(chunk)
        if digest.hexdigest() != sha256:
            raise self._damage(pool, sha256)

    def get(self, pool: str, sha256: str, target: Path) -> int:
        """Fetch a content into a file, from where an earlier run was cut; return the bytes that came.

        Raises RemoteDamaged, and then there is no file.
        """
        digest = hashlib.sha256()
        start = came = 0
        with target.open("ab+") as file:
            file.seek(0)
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                start += len(chunk)
            for received in self.read(pool, sha256, start):
                digest.update(received)
                file.write(received)
                came += len(received)
        if digest.hexdigest() == sha256:
            return came
        target.unlink()
        # What the earlier run left may be what is wrong.
        if start:
            return came + self.get(pool, sha256, target)
        raise self._damage(pool, sha256)

    def problem(self, pool: str, sha256: str) -> str:
        """Read a content and return why it is not as it should be, or "". Raises RemoteFailed."""
        try:
            with Path(os.devnull).open("wb") as nowhere:
                self.copy(pool, sha256, nowhere)
        except RemoteDamaged as damaged:
            return str(damaged)
        return ""

    def _read_object(self, key: str, start: int, end: int) -> Iterator[bytes]:
        failures = 0
        while start < end:
            try:
                found = self._s3.get(self._store(), key, options={"range": (start, end)})
                before = start
                for chunk in found.stream(min_chunk_size=1 << 20):
                    start += len(chunk)
                    failures = 0
                    yield bytes(chunk)
                if start == before:
                    raise RemoteDamaged(f"{key} in {self.bucket} is shorter than it was")
            except FileNotFoundError:
                raise RemoteDamaged(f"{key} is gone from {self.bucket}") from None
            except self._errors.BaseError as error:
                if "status code: 416" in str(error):
                    raise RemoteDamaged(f"{key} in {self.bucket} is shorter than it was") from None
                failures += 1
                self._pause(failures, error)

    def doubt(self, pool: str, sha256: str) -> None:
        """Do not count on a content any more: it is damaged. What is there stays until it is sent anew."""
        with self._index.written() as db:
            db.execute(_MARK, (DOUBTED, pool, bytes.fromhex(sha256)))

    # -- removing --------------------------------------------------------------------------------------------

    def forget(self, pool: str, sha256: str) -> None:
        """Remove a content."""
        with contextlib.suppress(RemoteDamaged):
            self._remove([(pool, bytes.fromhex(sha256), self.size(pool, sha256))])

    def pools(self) -> set[str]:
        """Return the names of the pools of which something is in the bucket."""
        return {row[0] for row in self._index.ask("SELECT DISTINCT pool FROM object")}

    def sweep(self, pool: str, needed: set[str], *, pretend: bool = False) -> Sent:
        """Remove what a pool holds in vain, uploads that were cut too; return how much that is.

        Only what is known here to be of this archive: another one may share the bucket.
        """
        vain = [
            (pool, digest, size)
            for digest, size, whole in self._index.ask(
                "SELECT sha256, size, whole FROM object WHERE pool = ?", pool
            )
            if whole == CUT or digest.hex() not in needed
        ]
        for number in range(0, 0 if pretend else len(vain), BATCH):
            self._remove(vain[number : number + BATCH])
        return Sent(len(vain), sum(size for _, _, size in vain))

    def _remove(self, objects: list[tuple[str, bytes, int]]) -> None:
        # First from the index: what it does not name may still be there, but never the reverse.
        with self._index.written() as db:
            db.executemany(_MARK, [(CUT, *o[:2]) for o in objects])
        keys = [key for pool, digest, size in objects for key in _keys(pool, digest.hex(), size)]
        self._tried(lambda: self._s3.delete(self._store(), keys))
        with self._index.written() as db:
            db.executemany("DELETE FROM object WHERE pool = ? AND sha256 = ?", [o[:2] for o in objects])

    # -- requests --------------------------------------------------------------------------------------------

    def _list(self, below: str = "") -> Iterator[tuple[str, int]]:
        """Yield (key, size) of what is in the bucket below a folder."""
        try:
            for page in self._s3.list(self._store(), prefix=below or None, chunk_size=1000):
                yield from ((entry["path"], entry["size"]) for entry in page)
        except self._errors.BaseError as error:
            raise self._failure(error) from None

    def _tried(self, request: Callable[[], R]) -> R:
        failures = 0
        while True:
            try:
                return request()
            except (self._errors.BaseError, FileNotFoundError) as error:
                failures += 1
                self._pause(failures, error)

    def _pause(self, failures: int, error: Exception) -> None:
        """Wait before the next try. Raises RemoteFailed if there is none."""
        hopeless = self._is_refusal(error) or isinstance(error, FileNotFoundError)
        if failures >= TRIES or hopeless or re.search(r"status code: 40[0-7]", str(error)):
            raise self._failure(error) from None
        time.sleep(FIRST_PAUSE * 2 ** (failures - 1))

    def _is_refusal(self, error: Exception) -> bool:
        return isinstance(error, (self._errors.PermissionDeniedError, self._errors.UnauthenticatedError))

    def _failure(self, error: Exception) -> RemoteFailed:
        text = str(error)
        if self._is_refusal(error):
            return RemoteFailed(
                f"{self.bucket} refuses us (are the keys in {self.bucket.credentials} right?)"
            )
        if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text:
            return RemoteFailed(f"{self.bucket} does not exist (make it; archive.objects_url names it)")
        code = re.search(r"<Code>(\w+)</Code>", text)
        reason = code[1] if code else text.partition("\n")[0].rpartition(" - ")[2][:120]
        return RemoteFailed(f"{self.bucket} cannot be reached: {reason} (run again; it goes on from there)")

    def _damage(self, pool: str, sha256: str) -> RemoteDamaged:
        return RemoteDamaged(f"{pool}/{sha256[:2]}/{sha256} in {self.bucket} has changed (sha256 differs)")

    def _store(self) -> S3Store:
        with self._lock:
            if self._opened is None:
                keys = read_credentials(self.bucket.credentials)
                self._opened = self._s3.store.S3Store(
                    self.bucket.name,
                    prefix=self.bucket.prefix or None,
                    config={
                        **({"endpoint": self.bucket.endpoint} if self.bucket.endpoint else {}),
                        "region": self.bucket.region,
                        "access_key_id": keys.access_key_id,
                        "secret_access_key": keys.secret_access_key,
                        "virtual_hosted_style_request": False,
                        # The server compares what came with it.
                        "checksum_algorithm": "SHA256",
                    },
                    client_options={
                        "allow_http": self.bucket.endpoint.startswith("http://"),
                        "timeout": f"{REQUEST_SECONDS}s",
                        "connect_timeout": "10s",
                    },
                    # Tries are counted here, where a download can go on from where it was.
                    retry_config={"max_retries": 0, "retry_timeout": datetime.timedelta(seconds=1)},
                )
            return self._opened


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield the results for items, in their order, a few worked on at once and none far ahead.

    The first failure ends it; what was not begun by then never is.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 4 * AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def read_credentials(path: Path) -> _Credentials:
    """Read the keys of a bucket from a file that nobody else may read. Raises UsageError."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise UsageError(f"{path} can be read by others (chmod 600 {path})")
            return msgspec.toml.decode(file.read(), type=_Credentials)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror} (a file with access_key_id and secret_access_key)"
        ) from None
    except (msgspec.MsgspecError, ValueError):
        # Not what the parser says: it may quote the file.
        raise UsageError(f"{path} must hold access_key_id and secret_access_key, and nothing else") from None


def _name(pool: str, sha256: str) -> str:
    return f"{pool}/{sha256[:2]}/{sha256}"


def _keys(pool: str, sha256: str, size: int) -> list[str]:
    """Return the keys of a content of so many bytes."""
    name = _name(pool, sha256)
    if size < PART:
        return [name]
    count = -(-size // PART)
    return [f"{name}/{number:05d}-of-{count:05d}" for number in range(1, count + 1)]


def _composed(sizes: Mapping[str, int]) -> tuple[int, int]:
    """Given the parts that are there with their sizes, return (bytes of the whole, whether all are there)."""
    key, last = max(sizes.items())
    name, _, part = key.rpartition("/")
    number, count = map(int, part.split("-of-"))
    size = (count - 1) * PART + (last if number == count else PART)
    wanted = [f"{name}/{number:05d}-of-{count:05d}" for number in range(1, count + 1)]
    whole = sizes.keys() == set(wanted) and all(sizes[key] == PART for key in wanted[:-1])
    return size, int(whole)


def _local_damage(item: Local) -> LocalDamaged:
    return LocalDamaged(f"{item.place} has changed and was not sent (shala archive repair)")
