"""Collect: gather all LEVEL 4 items into a new bag and seal it.

An unchanged file is neither read nor copied: it becomes a link into the previous bag. Links, devices and
sockets never enter; every file is opened without following a link. One broken item never stops the others: it
keeps the previous collection's copy and says so. Nothing new means that nothing is sealed.
"""

from __future__ import annotations

import datetime
import errno
import functools
import hashlib
import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from shala_agent import durable, items
from shala_agent.collection import Collection, ContainerImage, Head, ItemResult
from shala_agent.config import Config
from shala_agent.container import Container
from shala_agent.failure import AgentError
from shala_agent.gitlog import write_git_log
from shala_agent.identity import Identity, IdentityRefused, read_identity
from shala_agent.items import FRESH, JSON, LOG, Item
from shala_agent.ledger import Ledger, now
from shala_agent.manifest import File
from shala_agent.outcome import FAILED, OK, SKIPPED, SUSPECT, Result, shortened
from shala_agent.reach import SETTINGS, Reach
from shala_agent.seen import SEALED, STAGED, Seen, Sight, Signs
from shala_agent.spool import Spool

CHUNK = 1 << 20  # bytes
TRIES = 5  # readings of a file that changes under our hands
PAUSE = 0.1  # seconds before the second reading; each further one waits longer
RACY_NS = 2_000_000_000  # a file changed less than this before it was read may change again in the same tick
MAX_DEPTH = 50  # folders; the deepest of a real school has 9
STILL_WRITTEN = 120  # seconds: a file younger than this may have a writer
CHECKPOINT_FILES = 2000  # after so many copies or
CHECKPOINT_BYTES = 256 << 20  # so many bytes what was staged is put on the disk and survives a cut
FIRST_YEAR = 2026  # of this agent: a clock before it is wrong

_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]|%(0[AaDd]|25)")
_HOPELESS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)

Report = Callable[[str, int, int], None]  # (item, files, bytes): progress, for a terminal


@dataclass(frozen=True, slots=True)
class Collected:
    """What came of collecting: `head` is the newest collection, `sealed` whether it is new."""

    sealed: bool
    head: Head | None
    collection: Collection

    @property
    def result(self) -> Result:
        """The outcome as a step of the chain."""
        bad = [i for i in self.collection.items if i.outcome in (FAILED, SUSPECT)]
        reasons = [f"{i.platform}/{i.name} {i.outcome}: {'; '.join(i.reasons[:2])}" for i in bad]
        # What was gathered is sealed whole whatever single items lack: the step itself has not failed.
        outcome = SUSPECT if bad else OK
        sequence = self.head.sequence if self.head else 0
        return Result(outcome, shortened(reasons), {"sealed": self.sealed, "sequence": sequence})


@dataclass(slots=True)
class _Gathering:
    """What is known so far about an item that is being gathered."""

    item: Item
    prefix: str
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    found: bool = False


@dataclass(frozen=True, slots=True)
class _Entry:
    """A plain file of a tree: open it by `name` in `folder`, never by its path."""

    relative: str
    folder: int
    name: str
    stat: os.stat_result


class _Refused(Exception):
    """Something in a tree that is left out; the text says what and why."""


def identify(config: Config, reach: Reach) -> Identity:
    """Return who this server is, by its settings.

    Raises IdentityRefused, also when the inventory says otherwise.
    """
    try:
        path = reach.local(SETTINGS)
    except FileNotFoundError:
        host = reach.host(SETTINGS)
        raise IdentityRefused(
            f"{host} does not exist, nor in the container (run playbooks/provision.yml)"
        ) from None
    try:
        source = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise IdentityRefused(f"{path} is not UTF-8 (run playbooks/provision.yml)") from None
    identity = read_identity(source, str(path), config.identity.states, config.identity.aliases)
    expected = config.identity.server_name
    if expected and identity.server_name != expected:
        raise IdentityRefused(
            f"{path} says {identity.server_name}, the inventory says {expected}"
            " (correct the schools list or the settings, then run playbooks/provision.yml)"
        )
    return identity


def collect(
    config: Config, container: Container, reach: Reach, ledger: Ledger, report: Report | None = None
) -> Collected:
    """Gather everything, and seal it when anything changed. The caller holds the chain's lock.

    Raises IdentityRefused, and AgentError when the disk is full or read-only; then nothing has changed.
    """
    identity = identify(config, reach)
    spool = Spool(Path(config.paths.spool), config.paths.spool_group)
    with closing(Seen(Path(config.paths.state) / "seen.sqlite")) as seen:
        try:
            spool.prepare(seen)
            return _Collector(config, container, reach, ledger, spool, seen, report or (lambda *_: None)).run(
                identity
            )
        except sqlite3.Error as error:
            raise AgentError(
                f"{config.paths.state}: {error} (disk full? free some space; the next run goes on)"
            ) from None
        except OSError as error:
            if error.errno in _HOPELESS:
                with suppress(OSError):
                    spool.discard()
                raise AgentError(
                    f"{config.paths.spool}: {error.strerror} (free some space; the next run goes on)"
                ) from None
            raise
        finally:
            reach.forget()


@dataclass(slots=True)
class _Collector:
    _config: Config
    _container: Container
    _reach: Reach
    _ledger: Ledger
    _spool: Spool
    _seen: Seen
    _report: Report
    _head: Head | None = None
    _previous: Collection | None = None
    _copied_files: int = 0
    _copied_bytes: int = 0

    def run(self, identity: Identity) -> Collected:
        started = now()
        self._head = self._spool.head()
        previous = self._previous = self._read_previous()
        if previous is not None and previous.server_name != identity.server_name:
            raise IdentityRefused(
                f"this server was {previous.server_name} and is now {identity.server_name}: nothing is taken"
                f" (if it was set up anew, move the folder {self._spool.root} away)"
            )
        self._seen.clear_plan()
        results = [self._gather(item, "gstudio") for item in items.GSTUDIO_ITEMS]
        results += [self._gather(item, "unplatform") for item in self._unplatform_items()]
        self._checkpoint()
        self._spool.remove_unplanned(self._seen)
        totals = self._spool.write_manifest(self._seen)
        image = self._container.state()
        last = max(self._ledger.mark("sequence"), self._head.sequence if self._head else 0)
        collection = Collection(
            server_name=identity.server_name,
            state=identity.state,
            school_code=identity.school_code,
            server_id=identity.server_id,
            school_name=identity.school_name,
            sequence=last + 1,
            year=self._year(),
            started=started,
            sealed=now(),
            previous_manifest_sha256=self._head.manifest_sha256 if self._head else None,
            container=ContainerImage(image=image.image, image_id=image.image_id),
            items=results,
        )
        if totals.count == 0:
            self._spool.discard()
            raise AgentError(
                "there was nothing to collect: " + (results[0].reasons or ["no item was found"])[0]
            )
        if (
            self._head is not None
            and totals.manifest_sha256 == self._head.manifest_sha256
            and self._head.year == collection.year
            and _outcomes(previous) == _outcomes(collection)
        ):
            self._seen.commit()
            self._spool.discard()
            collection.sequence = self._head.sequence
            return Collected(False, self._head, collection)
        self._ledger.set_mark("sequence", collection.sequence)
        head = self._spool.seal(self._seen, collection, totals)
        self._spool.prune(self._config.collect.changes_kept)
        return Collected(True, head, collection)

    def _gather(self, item: Item, platform: str) -> ItemResult:
        """Take one item, or its previous copy; never raises but for a full disk."""
        began = time.monotonic()
        gathering = _Gathering(item, f"data/{platform}/{item.name}")
        step = self._ledger.last(item.step) if item.step else None
        try:
            if item.name == items.GIT_LOG and platform == "gstudio":
                self._take_git_log(gathering)
            for folder, source in item.parts:
                self._take_part(gathering, folder, source)
        except (OSError, AgentError, RecursionError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _HOPELESS:
                raise
            outcome, carried = self._keep_previous(gathering), self._carried_from(platform, item.name)
            reasons = [_said(error)]
        else:
            outcome, carried, reasons = self._judge(gathering, platform, step.outcome if step else None)
            if step is not None and step.outcome in (FAILED, SUSPECT):
                reasons += [f"{item.step}: {reason}" for reason in step.reasons]
        files, size = self._seen.size_of(gathering.prefix)
        return ItemResult(
            platform=platform,
            name=item.name,
            outcome=outcome,
            reasons=shortened(reasons),
            files=files,
            bytes=size,
            seconds=round(time.monotonic() - began, 3),
            carried_from=carried,
        )

    def _judge(  # noqa: PLR0911 - one case after the other
        self, gathering: _Gathering, platform: str, step: str | None
    ) -> tuple[str, int | None, list[str]]:
        """Decide the outcome of an item that could be read, given how the step that makes it last ended."""
        item = gathering.item
        in_previous = self._carried_from(platform, item.name)
        if not gathering.found:
            if in_previous is not None:
                self._keep_previous(gathering)
                return FAILED, in_previous, ["it was there at the previous collection and is gone"]
            return (FAILED if step == FAILED else SKIPPED), None, ["the server has none of it"]
        if step == FAILED and item.when_step_failed == items.CARRY and in_previous is not None:
            self._keep_previous(gathering)
            return FAILED, in_previous, ["it could not be made anew, the last good copy is kept"]
        files, _ = self._seen.size_of(gathering.prefix)
        if not files and in_previous is not None:
            self._keep_previous(gathering)
            return FAILED, in_previous, ["it held files at the previous collection and holds none now"]
        if not files:
            return (FAILED if step == FAILED else SKIPPED), None, ["the server has no file of it"]
        lacking = [name for name in item.required if not self._seen.size_of(f"{gathering.prefix}/{name}")[0]]
        gathering.findings += [f"{name} is missing" for name in lacking]
        carry = item.when_step_failed == items.CARRY and self._was_good(platform, item.name)
        if gathering.findings and carry:
            self._keep_previous(gathering)
            return FAILED, in_previous, shortened([*gathering.findings, "the last good copy is kept"])
        suspect = bool(gathering.findings) or step in (FAILED, SUSPECT)
        return (SUSPECT if suspect else OK), None, shortened([*gathering.findings, *gathering.notes])

    def _take_git_log(self, gathering: _Gathering) -> None:
        made = Path(self._config.paths.state) / "made" / items.GIT_LOG
        result = write_git_log(self._container, made)
        if result.outcome == FAILED:
            raise AgentError("; ".join(result.reasons))
        gathering.findings += result.reasons
        gathering.found = True
        self._take_file(gathering, made, "")

    def _take_part(self, gathering: _Gathering, folder: str, source: str) -> None:
        try:
            root = self._reach.local(source) if gathering.prefix.startswith("data/gstudio/") else Path(source)
            seen = root.lstat()
        except FileNotFoundError:
            if folder:
                gathering.notes.append(f"the server has no {folder}")
            return
        if stat.S_ISREG(seen.st_mode):
            gathering.found = True
            self._take_file(gathering, root, folder)
        elif not stat.S_ISDIR(seen.st_mode):
            raise AgentError(f"{root} is neither a file nor a folder: it was not followed")
        else:
            gathering.found = True
            unread = functools.partial(self._unread, gathering, folder)
            for entry in _walk(root, gathering.notes, unread):
                name = f"{folder}/{entry.relative}" if folder else entry.relative
                if gathering.item.only and entry.relative not in gathering.item.only:
                    continue
                self._take(gathering, entry, name)

    def _unread(self, gathering: _Gathering, folder: str, below: str, error: OSError) -> None:
        """Note a folder that cannot be read, and keep what the previous collection has of it."""
        path = "/".join(part for part in (gathering.prefix, folder, below.rstrip("/")) if part)
        gathering.findings.append(f"{below or 'its folder'} could not be read: {error.strerror}")
        self._seen.plan_sealed(path)

    def _take_file(self, gathering: _Gathering, path: Path, relative: str) -> None:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            entry = _Entry(
                path.name, parent, path.name, os.stat(path.name, dir_fd=parent, follow_symlinks=False)
            )
            self._take(gathering, entry, relative)
        finally:
            os.close(parent)

    def _take(self, gathering: _Gathering, entry: _Entry, relative: str) -> None:
        """Plan one file: as it is sealed or staged already when it is unchanged, else by reading it."""
        path = f"{gathering.prefix}/{relative}" if relative else gathering.prefix
        shown = relative or gathering.item.name
        try:
            if _UNWRITABLE.search(path) or path != path.rstrip():
                raise _Refused(
                    "has a name that no manifest can hold (control characters, a blank at its end): left out"
                )
            path.encode("utf-8")
            known = self._seen.sight(path, _signs(gathering.item, entry.stat), gathering.item.check_id)
            if known is None or not self._plan_known(path, known.sha256):
                known = self._read(gathering, entry, path, shown)
            if known is not None:
                gathering.findings += [f"{shown} {finding}" for finding in known.findings]
                self._report(gathering.item.name, 1, entry.stat.st_size)
        except _Refused as refusal:
            gathering.findings.append(f"{shown!r} {refusal}")
        except UnicodeEncodeError:
            gathering.findings.append(f"{os.fsencode(shown)!r} has a name that is not UTF-8: it was left out")
        except FileNotFoundError:
            pass  # deleted since its folder was read
        except OSError as error:
            if error.errno in _HOPELESS:
                raise
            gathering.findings.append(f"{shown} could not be read: {error.strerror}")
            self._plan_sealed(path)

    def _plan_known(self, path: str, sha256: str) -> bool:
        """Plan a file whose digest is known without reading it; return whether its bytes are at hand."""
        for origin, at_hand in ((SEALED, self._sealed(path)), (STAGED, self._seen.staged(path))):
            if at_hand is not None and at_hand.sha256 == sha256:
                self._seen.plan(at_hand, origin)
                return True
        return False

    def _sealed(self, path: str) -> File | None:
        """Return a file of the mirror that is really there: an old disk loses some."""
        file = self._seen.sealed(path)
        if file is not None and not self._spool.holds(file):
            self._seen.unseal(path)
            return None
        return file

    def _plan_sealed(self, path: str) -> bool:
        at_hand = self._sealed(path)
        if at_hand is not None:
            self._seen.plan(at_hand, SEALED)
        return at_hand is not None

    def _read(self, gathering: _Gathering, entry: _Entry, path: str, shown: str) -> Sight | None:
        """Read a file until its content can be believed; return what it holds, or None when it is left for
        later.
        """
        item = gathering.item
        for attempt in range(1, TRIES + 1):
            last = attempt == TRIES
            copy = _Copy(self, item, entry, path, shown)
            steady = copy.take()
            findings = copy.findings()
            if item.reading == JSON and findings and not last:
                time.sleep(PAUSE * attempt)
                continue
            if not steady and not last:
                time.sleep(PAUSE * attempt)
                continue
            break
        if item.reading == FRESH and (findings or not steady) and _age(copy.stat) < STILL_WRITTEN:
            copy.drop()
            self._plan_sealed(path)
            gathering.notes.append(f"{shown} is still being written: it will be taken the next time")
            return None
        if item.reading == JSON and findings:
            copy.drop()
            if self._plan_sealed(path):
                gathering.findings.append(
                    f"{shown} {findings[0]}; the copy of the previous collection is kept"
                )
                return None
            copy.take()
        if not steady:
            findings = (*findings, "changed whenever it was read")
        if copy.cut:
            gathering.notes.append(f"{shown} was being written: it is cut at its last whole line")
        sight = Sight(copy.sha256, findings)
        if steady and not copy.cut and time.time_ns() - copy.stat.st_ctime_ns > RACY_NS:
            self._seen.remember(path, _signs(item, copy.stat), item.check_id, sight)
        if copy.target is None:
            self._plan_sealed(path)
        else:
            self._staged(copy.file())
        return sight

    def _staged(self, file: File) -> None:
        self._seen.plan(file, STAGED)
        self._seen.stage(file)
        self._copied_files += 1
        self._copied_bytes += file.size
        if self._copied_files >= CHECKPOINT_FILES or self._copied_bytes >= CHECKPOINT_BYTES:
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Put what was staged on the disk, then note it: in this order, so that the note is always true."""
        if self._copied_files:
            durable.sync_filesystem(self._spool.root)
        self._seen.commit()
        self._copied_files = self._copied_bytes = 0

    def _keep_previous(self, gathering: _Gathering) -> str:
        self._seen.plan_sealed(gathering.prefix)
        return FAILED

    def _carried_from(self, platform: str, name: str) -> int | None:
        """Return the sequence whose copy of the item the previous collection holds, or None when it holds
        none.
        """
        before = self._previous.item(platform, name) if self._previous else None
        if self._previous is None or before is None or not before.files:
            return None
        return before.carried_from or self._previous.sequence

    def _was_good(self, platform: str, name: str) -> bool:
        """Return whether the previous collection holds a good copy of an item, its own or a carried one."""
        before = self._previous.item(platform, name) if self._previous else None
        if before is None or not before.files:
            return False
        return before.outcome == OK or before.carried_from is not None

    def _read_previous(self) -> Collection | None:
        if self._head is None:
            return None
        try:
            return self._spool.collection()
        except (OSError, msgspec.MsgspecError):
            return None

    def _unplatform_items(self) -> Iterator[Item]:
        """Yield an item for each entry of the unplatform folder, and for those that are gone since the last
        time.
        """
        root = self._config.paths.unplatform
        if not root:
            return
        names: set[str] = set()
        if Path(root).is_dir():
            names = {
                e.name
                for e in os.scandir(root)
                if e.is_file(follow_symlinks=False) or e.is_dir(follow_symlinks=False)
            }
        if self._previous is not None:
            names |= {i.name for i in self._previous.items if i.platform == "unplatform" and i.files}
        for name in sorted(names):
            if not name.startswith(durable.TEMPORARY) and not _UNWRITABLE.search(name) and _is_utf8(name):
                check_id = f"unplatform/{name}/1"
                yield Item(name, (("", f"{root}/{name}"),), items.check_nothing, check_id)

    def _year(self) -> int:
        """LEVEL 0. A clock that has fallen back, or far ahead, gives the year of the previous collection."""
        year = datetime.datetime.now().astimezone().year
        before = self._previous.year if self._previous else None
        if year < (before or FIRST_YEAR):
            return before or FIRST_YEAR
        # A school may be off for years; a clock that jumped ahead by decades says nothing.
        return before if before is not None and year > before + 10 else year


class _Copy:
    """One reading of one source file, into the bag, hashed on the way."""

    def __init__(self, collector: _Collector, item: Item, entry: _Entry, path: str, shown: str) -> None:
        self._collector = collector
        self._spool, self._seen = collector._spool, collector._seen
        self._item, self._entry, self._path, self._shown = item, entry, path, shown
        self.stat = entry.stat
        self.sha256 = ""
        self.size = 0
        self.cut = False
        self.target: Path | None = None  # None: the sealed collection has these bytes at this path already

    def take(self) -> bool:
        """Read the file once; return whether it stood still meanwhile (for a log: always)."""
        source = os.open(
            self._entry.name,
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            dir_fd=self._entry.folder,
        )
        try:
            self.stat = os.fstat(source)
            if not stat.S_ISREG(self.stat.st_mode):
                raise _Refused("is no plain file: it was left out")
            limit = self._limit(source)
            sealed = self._collector._sealed(self._path)
            expected = self.stat.st_size if limit is None else limit
            if sealed is not None and sealed.size == expected:
                # Probably the same bytes under a new time (a dump): reading is cheaper than writing.
                self.sha256, self.size = _copy(source, None, limit)
                if self.sha256 == sealed.sha256:
                    self.drop()
                    return True
                os.lseek(source, 0, os.SEEK_SET)
            if self._item.written_once and self._may_be_shared() and _age(self.stat) > STILL_WRITTEN:
                self.target = self._spool.link_file(self._path, source)
                if self.target is not None:
                    self.sha256, self.size = _copy(source, None, None)
                    return _unchanged(self.stat, os.fstat(source))
            descriptor, self.target = self._spool.new_file(self._path)
            try:
                self.sha256, self.size = _copy(source, descriptor, limit)
                os.utime(descriptor, ns=(self.stat.st_mtime_ns, self.stat.st_mtime_ns))
            finally:
                os.close(descriptor)
            after = os.fstat(source)
        finally:
            os.close(source)
        if self._item.reading == LOG:
            return True
        return _unchanged(self.stat, after)

    def file(self) -> File:
        """Return the file that was taken, as the manifest lists it."""
        mode = stat.S_IMODE(self.stat.st_mode) & 0o777
        return File(self._path, self.sha256, self.size, self.stat.st_mtime_ns, mode)

    def findings(self) -> tuple[str, ...]:
        """Return what the item's check finds in the bytes that were taken."""
        if (known := self._seen.findings(self._path, self.sha256, self._item.check_id)) is not None:
            return known
        taken = self.target or self._spool.bag / self._path
        return tuple(f.replace("\n", " ") for f in self._item.check(taken, self._shown, self.sha256))

    def drop(self) -> None:
        """Take back what was written."""
        if self.target is not None:
            self.target.unlink(missing_ok=True)
            self._seen.unstage(self._path)
            self.target = None

    def _may_be_shared(self) -> bool:
        """Return whether the mirror may hold the very file: who pulls must be able to read it, and only its
        owner to write it.
        """
        return bool(self.stat.st_mode & stat.S_IROTH) and not self.stat.st_mode & 0o6022

    def _limit(self, source: int) -> int | None:
        """Return how many bytes of a log to take: to its last line end while somebody may be writing it."""
        size = self.stat.st_size
        if self._item.reading != LOG or not size or self._entry.name.endswith((".gz", ".bz2", ".xz")):
            return None
        tail = os.pread(source, min(size, 1 << 16), max(0, size - (1 << 16)))
        whole = tail.rfind(b"\n") + 1
        if whole == len(tail) or not whole or _age(self.stat) > STILL_WRITTEN:
            return size
        self.cut = True
        return size - len(tail) + whole


def _outcomes(collection: Collection | None) -> list[tuple[str, str, str]]:
    return [(i.platform, i.name, i.outcome) for i in collection.items] if collection else []


def _signs(item: Item, seen: os.stat_result) -> Signs:
    """Return by what a file is known again. Our own links move the ctime of what is written once."""
    return Signs(seen.st_size, seen.st_mtime_ns, 0 if item.written_once else seen.st_ctime_ns, seen.st_ino)


def _unchanged(before: os.stat_result, after: os.stat_result) -> bool:
    return (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def _copy(source: int, target: int | None, limit: int | None) -> tuple[str, int]:
    """Read from `source` to its end or `limit`, writing to `target` if given; return (sha256, size)."""
    digest = hashlib.sha256()
    size = 0
    while limit is None or size < limit:
        chunk = os.read(source, CHUNK if limit is None else min(CHUNK, limit - size))
        if not chunk:
            break
        digest.update(chunk)
        size += len(chunk)
        if target is not None:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(target, rest) :]
    return digest.hexdigest(), size


def _walk(root: Path, notes: list[str], unread: Callable[[str, OSError], None]) -> Iterator[_Entry]:
    """Yield the plain files of a tree in a stable order, through folder descriptors and never through a
    link.
    """
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    yield from _walk_folder(top, "", notes, unread)


def _walk_folder(
    folder: int, prefix: str, notes: list[str], unread: Callable[[str, OSError], None]
) -> Iterator[_Entry]:
    """Walk one open folder and close it; `unread` hears of folders below that cannot be read."""
    try:
        try:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError as error:
            unread(prefix, error)
            return
        if prefix.count("/") > MAX_DEPTH:
            notes.append(f"{prefix!r} is more than {MAX_DEPTH} folders deep: it was left out")
            return
        for name in names:
            if name.startswith(durable.TEMPORARY):
                continue
            try:
                seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISREG(seen.st_mode):
                    yield _Entry(prefix + name, folder, name, seen)
                elif stat.S_ISDIR(seen.st_mode):
                    below = os.open(
                        name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder
                    )
                    yield from _walk_folder(below, f"{prefix}{name}/", notes, unread)
                else:
                    notes.append(f"{prefix}{name!r} is a link or a special file: it was left out")
            except FileNotFoundError:
                continue  # deleted meanwhile
            except OSError as error:
                unread(f"{prefix}{name}", error)
    finally:
        os.close(folder)


def _age(seen: os.stat_result) -> float:
    """Return how long ago a file was written, in seconds.

    A little in the future counts as now; more than a day is another clock, of which nothing follows.
    """
    age = time.time() - seen.st_mtime
    return max(0.0, age) if age > -86400 else float("inf")


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return str(error) or type(error).__name__
