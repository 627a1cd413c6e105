"""Pull: fetch the newest sealed collection of many school servers, check it, commit it. One server never
holds another.

For each server: probe, HEAD, tag files, the files that the centre lacks, comparison with the manifest both
ways, commit. Cut anywhere, it leaves the archive as it was and goes on from there the next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from shala_central.archive import Archive, Committed, PullRecord
from shala_central.bag import (
    MAX_HEAD,
    MAX_TAG_FILE,
    TAG_FILES,
    Bag,
    BagRefused,
    Head,
    count_items,
    read_bag,
    read_head,
)
from shala_central.config import CentralConfig
from shala_central.failure import CentralError
from shala_central.fleet import Server
from shala_central.probe import Target, probe
from shala_central.staging import Plan, check, prepare
from shala_central.transport import Transfer, TransferFailed, Transport, missing_programs, require_rsync

Result = Literal["committed", "unchanged", "offline", "quarantined", "failed"]
GOOD: tuple[Result, ...] = ("committed", "unchanged")

# The school may seal a new collection, and drop the one being fetched, while we fetch: so often we start
# over.
ATTEMPTS = 2
RESERVE = 64 << 20  # bytes left free on the archive's disk


class ServerResult(msgspec.Struct):
    """What became of one server."""

    name: str
    state: str
    zone: str
    result: Result = "failed"
    reason: str = ""
    sequence: int | None = None
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
    """The school sealed anew while we fetched."""


async def pull(
    servers: Sequence[Server],
    config: CentralConfig,
    watcher: Watcher | None = None,
    *,
    accept_reset: bool = False,
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
    archive = Archive(Path(config.archive.root))
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
                await _ServerPull(server, config, archive, watcher, folder, result, accept_reset).run()
        watcher.done(result)
        return result

    try:
        return list(await asyncio.gather(*(one(server) for server in servers)))
    finally:
        shutil.rmtree(workdir, ignore_errors=True)


def exit_code(results: Sequence[ServerResult]) -> int:
    """Return 0 if every server is up to date, 3 if some are, 1 if none is."""
    good = sum(result.result in GOOD for result in results)
    if good == len(results):
        return 0
    return 3 if good else 1


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
    ) -> None:
        self.server = server
        self.config = config
        self.archive = archive
        self.watcher = watcher
        self.workdir = workdir
        self.result = result
        self.accept_reset = accept_reset
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
                    folder = self.archive.quarantine(name, result.sequence, refused, self.tag_files)
                    result.result = "quarantined"
                    result.reason = f"{refused} (kept in {folder})"
        except TransferFailed as error:
            result.reason = str(error)
        except TimeoutError:
            result.reason = f"not finished within {minutes} minutes; the next run goes on from here"
        except CentralError as error:
            result.reason = str(error)
        except OSError as error:
            result.reason = f"{error.filename or 'the archive'}: {error.strerror or error}"
        finally:
            result.seconds = round(time.monotonic() - self.started, 3)

    async def _locked(self, lock: int) -> None:
        await asyncio.to_thread(self.archive.recover, self.server.name)
        transport = Transport(self.server, self.config.pull, self.workdir, lock)
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return await self._once(transport)
                except _SourceChanged:
                    if attempt == ATTEMPTS:
                        raise TransferFailed(
                            "sealed a new collection while this one was fetched (run again)"
                        ) from None
        finally:
            with contextlib.suppress(OSError):
                await transport.close()

    async def _once(self, transport: Transport) -> None:
        server, result = self.server, self.result
        self.tag_files = {}
        self.watcher.step(server.name, "asking")
        head = await self._head(transport)
        result.sequence = head.sequence
        committed = await asyncio.to_thread(self.archive.committed, server.name)
        if committed is not None and committed.pull.manifest_sha256 == head.manifest_sha256:
            self._unchanged(committed)
            return
        self._require_progress(head, committed)

        folder = f"collections/{head.sequence:08d}"
        tags = await self._fetch_small(transport, folder, TAG_FILES, MAX_TAG_FILE)
        if not tags:
            await self._require_same_head(transport, head)
            raise TransferFailed(f"its HEAD names collection {head.sequence}, which it does not have")
        self.tag_files |= tags
        bag = await asyncio.to_thread(read_bag, tags, head, server, self.config.limits)
        plan = await self._prepare(bag, committed)
        staged = self.archive.staging(server.name) / "data"
        if plan.wanted:
            self.watcher.step(server.name, "fetching")
            needed = max(0, bag.payload_bytes - plan.present_bytes)
            self._require_space(needed)
            self._count(
                await transport.fetch(
                    f"{folder}/data",
                    plan.wanted,
                    staged,
                    max_file=needed,
                    max_total=needed,
                    basis=committed.tree if committed is not None and committed.tree.is_dir() else None,
                    progress=lambda done, total: self.watcher.moved(server.name, done, total),
                )
            )
        self.watcher.step(server.name, "checking")
        try:
            await asyncio.to_thread(check, staged, bag.manifest, plan, bag.payload_bytes)
        except BagRefused:
            await self._require_same_head(transport, head)
            raise
        await asyncio.shield(asyncio.to_thread(self._commit, bag))
        result.result = "committed"

    async def _head(self, transport: Transport) -> Head:
        files = await self._fetch_small(transport, ".", ("HEAD",), MAX_HEAD)
        if "HEAD" not in files:
            raise TransferFailed(
                "has not sealed a collection yet (shala-agent status on the server says why)"
            )
        self.tag_files = files
        return read_head(files["HEAD"], self.server)

    async def _require_same_head(self, transport: Transport, head: Head) -> None:
        """Raise _SourceChanged if what looks wrong is only that the school has sealed anew meanwhile."""
        files = await self._fetch_small(transport, ".", ("HEAD",), MAX_HEAD)
        if "HEAD" in files and files["HEAD"] != self.tag_files.get("HEAD") and head.sequence:
            raise _SourceChanged

    async def _fetch_small(
        self, transport: Transport, folder: str, names: Sequence[str], limit: int
    ) -> dict[str, bytes]:
        """Fetch files into a folder that nobody else sees and return the content of those that came."""
        with tempfile.TemporaryDirectory(dir=self.archive.staging(self.server.name), prefix="tags-") as place:
            fetched = await transport.fetch(folder, names, Path(place), max_file=limit, max_total=limit)
            self._count(fetched, payload=False)
            found: dict[str, bytes] = {}
            for name in names:
                path = Path(place, name)
                if path.is_symlink() or not path.is_file():
                    continue
                if path.stat().st_size > limit:
                    raise BagRefused([f"{name} is larger than {limit} bytes"])
                found[name] = path.read_bytes()
            return found

    async def _prepare(self, bag: Bag, committed: Committed | None) -> Plan:
        self.watcher.step(self.server.name, "comparing")
        staged = self.archive.staging(self.server.name) / "data"
        return await asyncio.to_thread(_prepare, staged, bag, committed)

    def _require_progress(self, head: Head, committed: Committed | None) -> None:
        """A school's numbers only go up. Where they do not, a disk was restored, re-installed or copied."""
        if committed is None or self.accept_reset or head.sequence > committed.pull.sequence:
            return
        reason = (
            f"its collection is number {head.sequence}, but {committed.pull.sequence} is committed already:"
            " was the server re-installed, restored or copied? If it is the right one:"
            f" shala pull --accept-reset {self.server.name}"
        )
        raise BagRefused([reason])

    def _require_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.archive.root).free
        if needed + RESERVE > free:
            raise CentralError(
                f"the archive's disk has {free >> 20} MiB free,"
                f" up to {(needed + RESERVE) >> 20} MiB are needed"
            )

    def _commit(self, bag: Bag) -> None:
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
            files=len(bag.manifest),
            bytes_received=result.bytes_received,
            files_received=result.files_received,
            seconds=round(time.monotonic() - self.started, 3),
            address=self.server.address,
        )
        self.archive.commit(self.server.name, bag, self.tag_files, record)

    def _unchanged(self, committed: Committed) -> None:
        self.result.result = "unchanged"
        self.result.bytes = committed.pull.bytes
        self.result.items = count_items(committed.collection())

    def _count(self, transfer: Transfer, *, payload: bool = True) -> None:
        """Add up what moved: all bytes; of files only those of the payload."""
        self.result.bytes_received += transfer.bytes_received
        if payload:
            self.result.files_received += transfer.files_received


def _prepare(staged: Path, bag: Bag, committed: Committed | None) -> Plan:
    """Read the committed manifest and compare, off the event loop."""
    old = committed.manifest() if committed is not None else {}
    return prepare(staged, bag.manifest, committed.tree if committed is not None else None, old)
