"""Pull: fetch the newest sealed collection of many school servers, check it, commit it. One server never
holds another.

For each server: probe, HEAD, tag files, the files that the centre lacks, comparison with the manifest both
ways, commit. Cut anywhere, it leaves the archive as it was and goes on from there the next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import msgspec
from shala_agent.device import device_id
from shala_agent.manifest import File

from shala_central.archive import Archive, Committed
from shala_central.assembly import ObjectsLost
from shala_central.bag import (
    FILES,
    MAX_CHAIN,
    MAX_FILES,
    MAX_HEAD,
    MAX_SMALL_TAG_FILE,
    NEEDED_TAG_FILES,
    SMALL_TAG_FILES,
    TAG_MANIFEST,
    Bag,
    BagRefused,
    Broken,
    Head,
    count_items,
    fold_files,
    read_bag,
    read_head,
)
from shala_central.commit import commit, recover
from shala_central.config import CentralConfig
from shala_central.failure import CentralError
from shala_central.fleet import Server
from shala_central.listing import BUFFER, lines_of
from shala_central.mending import drop_damaged, mend_earlier_years
from shala_central.probe import Target, probe
from shala_central.publish import remove_tree
from shala_central.quarantine import lifted_for, note_release, quarantine
from shala_central.records import PullRecord, RecordDamaged, is_whole, tag_files_are_whole
from shala_central.staging import Staging
from shala_central.transport import (
    SLACK,
    Transfer,
    TransferFailed,
    Transport,
    missing_programs,
    require_rsync,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")
Result = Literal["committed", "unchanged", "offline", "quarantined", "failed"]
GOOD: tuple[Result, ...] = ("committed", "unchanged")

# The school may seal a new collection, and drop the one being fetched, while we fetch: so often we start
# over.
ATTEMPTS = 2
RETRY_SECONDS = 2.0  # in which a school has put a new collection into its mirror, as a rule
ASKED_AHEAD = 3  # so many changes are asked for together with HEAD, to save a round trip
PAYLOAD = "bag/data"  # where it lies in a spool
RESERVE = 64 << 20  # bytes left free on the archive's disk
LEAST_LIST = 1 << 20  # bytes of a list that may come even then: those of some 7,000 files
SHORT = 12  # digits of a device id that a person compares
QUESTIONS = {
    "sequence": "was the server re-installed, restored or copied?",
    "year": "has the server's clock fallen back?",
    "device": "was the server re-installed, restored or copied?",
}


class ServerResult(msgspec.Struct):
    """What became of one server."""

    name: str
    state: str
    zone: str
    result: Result = "failed"
    reason: str = ""
    sequence: int | None = None
    manifest_sha256: str = ""  # of that collection: a school believes only who knows it
    items: dict[str, int] = msgspec.field(
        default_factory=lambda: {"ok": 0, "suspect": 0, "failed": 0, "missing": 0}
    )
    bytes: int = 0
    bytes_received: int = 0
    files_received: int = 0
    seconds: float = 0.0


class Watcher(Protocol):
    """Whoever wants to show how a pull goes."""

    def step(self, name: str, doing: str) -> None:
        """Tell what is being done with a server."""

    def moved(self, name: str, done: int, total: int) -> None:
        """Tell how many bytes of a server have come, of how many."""

    def done(self, result: ServerResult) -> None:
        """Tell what became of a server."""


class NoWatcher:
    """Shows nothing."""

    def step(self, name: str, doing: str) -> None:
        """Ignore."""

    def moved(self, name: str, done: int, total: int) -> None:
        """Ignore."""

    def done(self, result: ServerResult) -> None:
        """Ignore."""


class _SourceChanged(Exception):
    """The school sealed anew while we fetched, or is just doing so."""


async def pull(
    servers: Sequence[Server],
    config: CentralConfig,
    watcher: Watcher | None = None,
    *,
    accept_reset: bool = False,
    again: bool = False,
) -> list[ServerResult]:
    """Given servers and a configuration, pull all of them and return what became of each, in the same order.

    Raises CentralError when nothing at all can be pulled: no usable rsync, no archive, no key.
    """
    require_rsync(config.pull.rsync)
    if missing := missing_programs():
        raise CentralError(f"{' and '.join(missing)} not found (apt-get install openssh-client util-linux)")
    for path in (config.pull.identity_file, config.pull.known_hosts):
        if not os.access(path, os.R_OK):
            raise CentralError(
                f"{path} cannot be read (playbooks/central.yml makes it; run as the user it belongs to)"
            )
    archive = Archive.of(config.archive)
    archive.open()
    watcher = watcher or NoWatcher()
    offline = await probe(
        [Target(server.name, server.address, server.port) for server in servers],
        timeout=min(config.pull.connect_timeout_seconds, 5),
    )
    room = asyncio.Semaphore(config.pull.parallel)
    workdir = _workdir()

    async def one(server: Server) -> ServerResult:
        result = ServerResult(server.name, server.state, server.zone)
        if reason := offline[server.name]:
            result.result, result.reason = "offline", reason
        else:
            async with room:
                folder = Path(tempfile.mkdtemp(dir=workdir))
                await _ServerPull(server, config, archive, watcher, folder, result, accept_reset, again).run()
        watcher.done(result)
        return result

    try:
        with archive.in_use():
            return list(await asyncio.gather(*(one(server) for server in servers)))
    finally:
        shutil.rmtree(workdir, ignore_errors=True)


def exit_code(results: Sequence[ServerResult]) -> int:
    """Return 0 if every server is up to date, 1 if none is and something went wrong, otherwise 3.

    That nobody answers is nothing wrong: it is how schools are.
    """
    good = sum(result.result in GOOD for result in results)
    if good == len(results):
        return 0
    return 3 if good or all(result.result == "offline" for result in results) else 1


def _workdir() -> Path:
    """Make a private folder for ssh's files and remove those of runs that were killed.

    In /tmp, because the name of a control socket may have about 100 characters, however long the root is.
    """
    for left in Path("/tmp").glob("shala-pull-*-*"):  # noqa: S108 - made private by mkdtemp
        process = left.name.split("-")[2]
        with contextlib.suppress(OSError):
            if left.lstat().st_uid == os.geteuid() and not Path("/proc", process).exists():
                shutil.rmtree(left)
    return Path(tempfile.mkdtemp(prefix=f"shala-pull-{os.getpid()}-", dir="/tmp"))


class _ServerPull:
    """The pull of one server: fills in its result, raises nothing but cancellation."""

    def __init__(  # noqa: PLR0917 - all of them, once
        self,
        server: Server,
        config: CentralConfig,
        archive: Archive,
        watcher: Watcher,
        workdir: Path,
        result: ServerResult,
        accept_reset: bool,
        again: bool,
    ) -> None:
        self.server = server
        self.config = config
        self.archive = archive
        self.watcher = watcher
        self.workdir = workdir
        self.result = result
        self.accept_reset = accept_reset
        self.again = again
        self.lifted: Sequence[Broken] = ()
        self.payload_done = self.payload_total = 0
        self.started = time.monotonic()
        self.tag_files: dict[str, bytes] = {}

    async def run(self) -> None:
        """Pull with a deadline, turn whatever goes wrong into a result."""
        result, name = self.result, self.server.name
        minutes = self.config.pull.deadline_minutes
        try:
            with self.archive.lock(name) as lock:
                if lock is None:
                    result.reason = (
                        "another pull of this server is running (wait for it, or see: ps -C rsync)"
                    )
                    return
                try:
                    async with asyncio.timeout(minutes * 60 or None):
                        await self._locked(lock)
                except BagRefused as refused:
                    folder = quarantine(self.archive, name, result.sequence, refused, self.tag_files)
                    result.result = "quarantined"
                    result.reason = f"{refused} (kept in {folder})"
        except TransferFailed as error:
            result.reason = str(error)
        except TimeoutError:
            if result.result != "committed":
                result.reason = f"not finished within {minutes} minutes; the next run goes on from here"
        except CentralError as error:
            result.reason = str(error)
        except OSError as error:
            result.reason = f"{error.filename or 'the archive'}: {error.strerror or error}"
        except Exception as error:
            # One server must never be the end of the pull of all.
            logger.exception("the pull of %s ended unexpectedly", name)
            result.reason = f"unexpectedly: {type(error).__name__} (a defect of shala; the log says where)"
        finally:
            result.seconds = round(time.monotonic() - self.started, 3)

    async def _locked(self, lock: int) -> None:
        await _to_its_end(recover, self.archive, self.server.name)
        transport = Transport(self.server, self.config.pull, self.workdir, lock)
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return await self._once(transport)
                except _SourceChanged:
                    if attempt == ATTEMPTS:
                        raise TransferFailed(
                            "was sealing a new collection while this one was fetched (run again)"
                        ) from None
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            with contextlib.suppress(OSError):
                await transport.close()
            # What a school has sent in vain takes no room until it is asked again.
            for lists in ("received", "again"):
                remove_tree(self.archive.staging(self.server.name) / lists)

    async def _once(self, transport: Transport) -> None:
        server, result = self.server, self.result
        self.watcher.step(server.name, "asking")
        await transport.settle()
        committed = await asyncio.to_thread(self._committed)
        last = await asyncio.to_thread(self.archive.last_known, server.name)
        received = await _to_its_end(self._received_folder, committed)
        basis = committed.tree if committed is not None and committed.tree.is_dir() else None
        staged = self.archive.staging(server.name) / "data"
        next_one = asyncio.create_task(transport.stand_by(PAYLOAD, staged, basis))
        try:
            head = await self._ask(transport, received, committed)
        finally:
            next_one.cancel()
            await asyncio.wait([next_one])
        result.sequence, result.manifest_sha256 = head.sequence, head.manifest_sha256
        if committed is not None and self._is_published(committed, head) and not self.again:
            self._unchanged(committed)
            return
        self.lifted = await asyncio.to_thread(lifted_for, self.archive, server.name, self.tag_files["HEAD"])
        self._require_progress(head, last)
        # A record that a disk has damaged tells nothing of what is here.
        whole = committed
        if committed is not None and not await asyncio.to_thread(is_whole, committed.record):
            whole = None
        try:
            bag = await self._list_of_files(transport, received, head, whole)
        except BagRefused:
            await self._require_same_head(transport, received)
            raise
        self._require_device(bag, last)
        self.watcher.step(server.name, "comparing")
        if self.again:
            await _to_its_end(drop_damaged, self.archive, server.name, received / FILES)
        old = whole.files() if whole is not None and not self.again else ()
        staging = Staging(staged, self.archive.objects, server.name)
        missing = staging.missing(old, lines_of(received / FILES))
        await self._fetch(transport, staging, missing, basis, received)
        for _ in range(ATTEMPTS):
            await transport.settle()
            try:
                await _to_its_end(self._commit, bag, received)
            except ObjectsLost as lost:
                await self._fetch(transport, staging, iter(lost.files), None, received)
            else:
                if self.again:
                    await _to_its_end(mend_earlier_years, self.archive, server.name)
                return
        raise CentralError(
            "content that was fetched is gone again (is the archive's disk failing? see its log)"
        )

    def _committed(self) -> Committed | None:
        """Return what is committed; asked again, a damaged record counts as none and is made anew."""
        try:
            return self.archive.committed(self.server.name)
        except RecordDamaged:
            if not self.again:
                raise
            return None

    def _received_folder(self, committed: Committed | None) -> Path:
        """Make the folder for HEAD and the tag files; those of the last collection are the basis."""
        received = self.archive.staging(self.server.name) / "received"
        remove_tree(received)
        received.mkdir(mode=0o750)
        # Damaged ones would pass for what the school has: size and time are the same.
        if committed is not None and tag_files_are_whole(committed.record):
            (received / "bag").mkdir(mode=0o750)
            for name in NEEDED_TAG_FILES:
                (received / "bag" / name).hardlink_to(committed.record / name)
        return received

    async def _ask(self, transport: Transport, received: Path, committed: Committed | None) -> Head:
        """Fetch HEAD, the small tag files, and the changes of a few collections, and return HEAD."""
        known = committed.pull.sequence if committed is not None else None
        limit = self._list_limit(ASKED_AHEAD)
        ahead = range(known + 1, known + 1 + ASKED_AHEAD) if known is not None and limit else ()
        limits = {
            **dict.fromkeys(("HEAD", "NEXT"), MAX_HEAD),
            **{f"bag/{name}": MAX_SMALL_TAG_FILE for name in SMALL_TAG_FILES},
            **{_changes_of(sequence): limit for sequence in ahead},
        }
        arrived = functools.partial(_has_arrived, received, committed)
        await self._fetch_named(transport, ".", limits, received, only_new=True, until=arrived)
        if (received / "NEXT").exists():
            raise _SourceChanged
        if not (received / "HEAD").exists():
            raise TransferFailed(
                "has not sealed a collection yet (shala-agent status on the server says why)"
            )
        self.tag_files = {"HEAD": (received / "HEAD").read_bytes()}
        return read_head(self.tag_files["HEAD"], self.server)

    async def _list_of_files(
        self, transport: Transport, received: Path, head: Head, committed: Committed | None
    ) -> Bag:
        """Make FILES of the new collection, of what changed where that is known; believe the whole bag."""
        self.tag_files |= await asyncio.to_thread(_tag_files_in, received)
        known = committed.pull.sequence if committed is not None else head.sequence
        # The number is a stranger's word: nothing is made of it before it is bounded.
        since = range(known + 1, head.sequence + 1) if head.sequence - known <= MAX_CHAIN else range(0)
        names = [_changes_of(sequence) for sequence in since]
        lacking = [name for name in names if not (received / name).exists()]
        if lacking and (limit := self._list_limit(len(lacking))):
            await self._fetch_named(transport, ".", dict.fromkeys(lacking, limit), received)
        chain = [received / name for name in names]
        if committed is not None and chain and all(path.exists() for path in chain):
            folded = await _to_its_end(_fold, committed, chain, received / FILES, head.files_sha256)
        else:
            folded = False
        if not folded:
            limit = self._list_limit(1) or LEAST_LIST
            await self._fetch_named(transport, "bag", {FILES: limit}, received)
            if not (received / FILES).exists():
                if limit < MAX_FILES:  # a larger one may be there, and was not sent
                    free = shutil.disk_usage(self.archive.root).free >> 20
                    raise CentralError(
                        f"the archive's disk has {free} MiB free, too few for a list of files of more than"
                        f" {limit >> 20} MiB"
                    )
                raise BagRefused([f"{FILES} is missing"], [FILES])
        return await _to_its_end(
            read_bag, self.tag_files, lines_of(received / FILES), head, self.server, self.config.limits
        )

    async def _fetch(
        self,
        transport: Transport,
        staging: Staging,
        missing: Iterator[File],
        basis: Path | None,
        received: Path,
    ) -> None:
        """Fetch the content that is not in the archive, batch by batch, checking each."""
        batches = staging.batches(missing)
        while batch := await _to_its_end(next, batches, None):
            needed = sum(file.size for file in batch)
            self.payload_total += needed
            self.watcher.step(self.server.name, "fetching")
            self._require_space(staging.room_for(batch))
            names = [file.path.removeprefix("data/") for file in batch]
            await transport.fetch(
                PAYLOAD,
                names,
                staging.folder,
                max_file=max(file.size for file in batch),
                max_total=needed,
                basis=basis,
                progress=self._progress,
                until=_AllThere(staging.folder, names),
                moved=self._count,
            )
            self.payload_done += needed
            self.watcher.step(self.server.name, "checking")
            try:
                await _to_its_end(staging.take, batch)
            except BagRefused:
                await self._require_same_head(transport, received)
                raise

    def _progress(self, done: int, _total: int) -> None:
        self.watcher.moved(self.server.name, self.payload_done + done, self.payload_total)

    async def _require_same_head(self, transport: Transport, received: Path) -> None:
        """Raise _SourceChanged if what looks wrong is only that the school has sealed anew meanwhile."""
        again = received.with_name("again")
        remove_tree(again)
        again.mkdir(mode=0o750)
        await self._fetch_named(transport, ".", dict.fromkeys(("HEAD", "NEXT"), MAX_HEAD), again)
        head = again / "HEAD"
        if (again / "NEXT").exists() or (head.exists() and head.read_bytes() != self.tag_files.get("HEAD")):
            raise _SourceChanged

    async def _fetch_named(
        self,
        transport: Transport,
        folder: str,
        limits: Mapping[str, int],
        place: Path,
        *,
        only_new: bool = False,
        until: Callable[[], bool] | None = None,
    ) -> None:
        """Fetch files by name into a folder that nobody else sees; what the school has not is not there.

        `limits` are the names and how many bytes each may have. Raises BagRefused for one that has more, or
        is no plain file. With `only_new` what stands there already under the same size and time is kept.
        """
        total = sum(limits.values())
        await transport.fetch(
            folder,
            limits,
            place,
            max_file=max(limits.values()),
            max_total=total,
            only_new=only_new,
            until=until,
            moved=functools.partial(self._count, payload=False),
        )
        for name, limit in limits.items():
            try:
                seen = (place / name).lstat()
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(seen.st_mode) or seen.st_size > limit:
                remove_tree(place / name)
                raise BagRefused([f"{name} is no plain file of at most {limit} bytes"])

    def _require_progress(self, head: Head, before: PullRecord | None) -> None:
        """A school's numbers only go up. Where they do not, a disk was restored, re-installed or copied."""
        if before is None:
            return
        broken: list[Broken] = []
        if head.year < (year := before.year):
            fact = f"its collection is of {head.year}, but one of {year} is committed already"
            broken.append(Broken("year", fact))
        if head.sequence <= (last := before.sequence) and not self._same(before, head):
            fact = f"its collection is number {head.sequence}, but {last} is committed already"
            broken.append(Broken("sequence", fact))
        self._require_lifted(broken)

    def _require_device(self, bag: Bag, before: PullRecord | None) -> None:
        """A device that has signed once stays the one that signs, until the operator says otherwise."""
        known = before.public_key if before is not None else ""
        if not known or bag.public_key == known:
            return
        new = device_id(bag.public_key) if bag.public_key else ""
        said = f"is signed by another device than before, {new[:SHORT]}" if new else "is not signed any more"
        fact = f"its collection {said} (before: {device_id(known)[:SHORT]})"
        self._require_lifted([Broken("device", fact, new)])

    def _require_lifted(self, broken: Sequence[Broken]) -> None:
        """Raise BagRefused for the rules that the operator has not lifted for this very collection."""
        name = self.server.name
        standing = [one for one in broken if not any(one.is_lifted_by(other) for other in self.lifted)]
        if not standing:
            return
        if self.accept_reset:
            note_release(self.archive, name, self.result.sequence, standing, "shala pull --accept-reset")
            return
        way = f"If it is the right one: shala pull --accept-reset {name}"
        raise BagRefused([f"{one.fact}: {QUESTIONS[one.rule]} {way}" for one in standing], broken=standing)

    def _is_published(self, committed: Committed, head: Head) -> bool:
        return (
            self._same(committed.pull, head)
            and self.archive.is_in_view(committed)
            and _can_be_read(committed)
        )

    @staticmethod
    def _same(before: PullRecord, head: Head) -> bool:
        """Return whether a collection is the one before; of a damaged record the digest may be lost."""
        same = (before.year, before.sequence) == (head.year, head.sequence)
        return same and before.manifest_sha256 in ("", head.manifest_sha256)

    def _list_limit(self, count: int) -> int:
        """Return how many bytes each of so many lists may have now, 0 if too few to ask for them.

        The reserve stays free whatever is sent: half is for what they come to, which is written beside them,
        and each of the pulls that go on at once has its share.
        """
        room = shutil.disk_usage(self.archive.root).free - RESERVE
        limit = room // 2 // self.config.pull.parallel // count - SLACK
        return min(MAX_FILES, limit) if limit >= LEAST_LIST else 0

    def _require_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.archive.root).free
        if needed + RESERVE > free:
            raise CentralError(
                f"the archive's disk has {free >> 20} MiB free,"
                f" up to {(needed + RESERVE) >> 20} MiB are needed"
            )

    def _commit(self, bag: Bag, received: Path) -> None:
        result = self.result
        self.watcher.step(self.server.name, "committing")
        result.bytes = bag.payload_bytes
        result.items = count_items(bag.collection)
        record = PullRecord(
            pulled=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
            year=bag.head.year,
            state=self.server.state,
            sequence=bag.head.sequence,
            manifest_sha256=bag.head.manifest_sha256,
            bytes=bag.payload_bytes,
            files=bag.files,
            bytes_received=result.bytes_received,
            files_received=result.files_received,
            seconds=round(time.monotonic() - self.started, 3),
            address=self.server.address,
            public_key=bag.public_key,
            device=device_id(bag.public_key) if bag.public_key else "",
        )
        for name, content in self.tag_files.items():
            self._write_tag_file(received, name, content)
        commit(self.archive, self.server.name, bag, received, record, fresh=self.again)
        result.result = "committed"

    @staticmethod
    def _write_tag_file(received: Path, name: str, content: bytes) -> None:
        """Write what was checked, not what stands in the folder now; under the time by which it is known
        again the next time.
        """
        came = received / name if name == "HEAD" else received / "bag" / name
        with contextlib.suppress(FileNotFoundError):
            seen = came.lstat()
            came.unlink()  # a link to that of the last record, perhaps
            (received / name).write_bytes(content)
            os.utime(received / name, ns=(seen.st_mtime_ns, seen.st_mtime_ns))

    def _unchanged(self, committed: Committed) -> None:
        self.result.items = count_items(committed.collection())
        self.result.bytes = committed.pull.bytes
        self.result.result = "unchanged"

    def _count(self, transfer: Transfer, *, payload: bool = True) -> None:
        """Add up what moved: all bytes; of files only those of the payload."""
        self.result.bytes_received += transfer.bytes_received
        if payload:
            self.result.files_received += transfer.files_received


async def _to_its_end(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a thread; when cancelled, wait for it before giving up what it works on."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class _AllThere:
    """Tells whether all of some files stand in a folder; looks no more for those that it has seen."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names, self._seen = folder, names, 0

    def __call__(self) -> bool:
        while self._seen < len(self._names) and os.path.lexists(f"{self._folder}/{self._names[self._seen]}"):
            self._seen += 1
        return self._seen == len(self._names)


def _can_be_read(committed: Committed) -> bool:
    """Return whether the record tells what the school said; otherwise it is made anew."""
    try:
        committed.collection()
    except RecordDamaged:
        return False
    return True


def _has_arrived(received: Path, committed: Committed | None) -> bool:
    """Return whether all that was asked for together with HEAD has come, or is not needed.

    rsync sends in order: HEAD, NEXT, what is in bag/, the changes. Nobody's word is believed here: what is
    told too early is found to be wrong when it is read.
    """
    if committed is None:
        return False
    try:
        if (received / "HEAD").lstat().st_size > MAX_HEAD:
            return False
        head = msgspec.json.decode((received / "HEAD").read_bytes(), type=Head)
        if not (received / _changes_of(head.sequence)).exists():
            return False
        if (received / "bag" / TAG_MANIFEST).lstat().st_size > MAX_SMALL_TAG_FILE:
            return False
        tags = (received / "bag" / TAG_MANIFEST).read_bytes()
    except (OSError, msgspec.MsgspecError, RecursionError):
        return False
    ahead = head.sequence - committed.pull.sequence
    return hashlib.sha256(tags).hexdigest() == head.tag_manifest_sha256 and 0 < ahead <= ASKED_AHEAD


def _changes_of(sequence: int) -> str:
    return f"changes/{sequence:08d}.txt"


def _tag_files_in(received: Path) -> dict[str, bytes]:
    """Return the small tag files that have come."""
    found = {name: received / "bag" / name for name in SMALL_TAG_FILES}
    return {name: path.read_bytes() for name, path in found.items() if path.exists()}


def _fold(committed: Committed, chain: Sequence[Path], target: Path, wanted: str) -> bool:
    """Write FILES after the changes of a chain; return whether it comes to the wanted digest."""
    digest = hashlib.sha256()
    left = MAX_FILES
    try:
        with target.open("wb", buffering=BUFFER) as files:
            for line in fold_files(committed.files(), [lines_of(path) for path in chain]):
                digest.update(line)
                files.write(line)
                if (left := left - len(line)) < 0:
                    raise BagRefused([f"{FILES} would be larger than {MAX_FILES} bytes"], [FILES])
    except (OSError, BagRefused):
        target.unlink(missing_ok=True)
        return False
    if digest.hexdigest() != wanted:
        target.unlink()
        return False
    return True
