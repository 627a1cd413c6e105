"""Collect: gather all LEVEL 4 items into a new bag and seal it.

An unchanged file is neither read nor copied: what is known of it is read beside the walk, and it stays in the
mirror as it is. Links, devices and
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
from typing import TYPE_CHECKING

import msgspec

from shala_agent import durable, items
from shala_agent.collection import Collection, ContainerImage, Head, ItemResult
from shala_agent.config import Config
from shala_agent.device import FILE, Device
from shala_agent.failure import AgentError
from shala_agent.gitlog import write_git_log
from shala_agent.identity import Identity, IdentityRefused, read_identity
from shala_agent.items import FRESH, JSON, LOG, Item
from shala_agent.ledger import Ledger, now
from shala_agent.manifest import File, key_range, path_of
from shala_agent.outcome import FAILED, OK, SKIPPED, SUSPECT, Result, shortened
from shala_agent.reach import SETTINGS, Reach
from shala_agent.seen import Known, Seen, Sight, Signs
from shala_agent.spool import Spool
from shala_agent.walk import Entry, walk

if TYPE_CHECKING:
    from shala_agent.container import Container

CHUNK = 1 << 18  # bytes: what is hashed and written while it is still in the processor's cache
TRIES = 5  # readings of a file that changes under our hands
PAUSE = 0.1  # seconds before the second reading; each further one waits longer
RACY_NS = 2_000_000_000  # a file changed less than this before it was read may change again in the same tick
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


class _Beside:
    """What is known of an item, read beside the walk of its files: both are in the order of manifests."""

    def __init__(self, seen: Seen, item: str) -> None:
        self._seen = seen
        self._rows = seen.known(item)
        self._next = next(self._rows, None)

    def at(self, key: str) -> Known | None:
        """Return what is known of a file; what lies before it is there no more."""
        row = self._next
        while row is not None and row.key < key:
            self._pass(row)
            row = self._next = next(self._rows, None)
        if row is None or row.key != key:
            return None
        self._next = next(self._rows, None)
        return row

    def below(self, path: str) -> Iterator[Known]:
        """Yield what is known of a path and all below it; what lies before is there no more."""
        first, after = key_range(path)
        row = self.at(first)
        if row is not None:
            yield row
        while (row := self._next) is not None and row.key < after:
            self._next = next(self._rows, None)
            yield row

    def finish(self) -> None:
        """Note that nothing more is there."""
        while self._next is not None:
            self._pass(self._next)
            self._next = next(self._rows, None)

    def _pass(self, row: Known) -> None:
        if row.sealed_sha256 is None:
            self._seen.forget(row.key)
        else:
            self._seen.lose(row.key)


@dataclass(slots=True)
class _Gathering:
    """What is known so far about an item that is being gathered."""

    item: Item
    prefix: str
    beside: _Beside
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    found: bool = False
    files: int = 0
    size: int = 0
    lost: int = 0  # files that were to be carried on, and that the mirror has no more
    tops: set[str] = field(default_factory=set)  # what its folder holds, where the item requires something

    def shown(self, path: str) -> str:
        """Return by what name a file of the item is spoken of."""
        return path[len(self.prefix) + 1 :] or self.item.name

    def count(self, path: str, size: int) -> None:
        """Count a file of the next collection."""
        self.files += 1
        self.size += size
        if self.item.required:
            self.tops.add(path[len(self.prefix) + 1 :].partition("/")[0])


@dataclass(slots=True)
class _Spot:
    """One path of the next collection: what is sealed there and still at hand, and whether it is planned."""

    gathering: _Gathering
    path: str
    shown: str
    known: Known | None
    sealed: File | None
    planned: bool = False

    def keep(self) -> bool:
        """Plan what is sealed, if it is at hand; return whether it is."""
        if self.sealed is not None and not self.planned:
            self.planned = True
            self.gathering.count(self.path, self.sealed.size)
        return self.sealed is not None


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
        self._seen.plan_only(f"data/{result.platform}/{result.name}" for result in results)
        self._checkpoint()
        self._spool.remove_unplanned(self._seen)
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
            items=results,
        )
        if not any(result.files for result in results):
            self._spool.discard()
            raise AgentError(
                "there was nothing to collect: " + (results[0].reasons or ["no item was found"])[0]
            )
        if (
            self._head is not None
            and not self._seen.is_changed()
            and self._head.year == collection.year
            and _outcomes(previous) == _outcomes(collection)
        ):
            self._seen.commit()
            self._spool.discard()
            collection.sequence = self._head.sequence
            return Collected(False, self._head, collection)
        totals = self._spool.write_manifest(self._seen)
        image = self._container.state()
        collection.container = ContainerImage(image=image.image, image_id=image.image_id)
        collection.sealed = now()
        self._ledger.set_mark("sequence", collection.sequence)
        device = Device(Path(self._config.paths.state) / FILE)
        collection.device = device.id
        head = self._spool.seal(self._seen, collection, totals, device)
        self._spool.prune(self._config.collect.changes_kept)
        return Collected(True, head, collection)

    def _gather(self, item: Item, platform: str) -> ItemResult:
        """Take one item, or its previous copy; never raises but for a full disk."""
        began = time.monotonic()
        prefix = f"data/{platform}/{item.name}"
        gathering = _Gathering(item, prefix, _Beside(self._seen, prefix))
        step = self._ledger.last(item.step) if item.step else None
        try:
            if item.name == items.GIT_LOG and platform == "gstudio":
                self._take_git_log(gathering)
            for folder, source in sorted(item.parts):
                self._take_part(gathering, folder, source)
            gathering.beside.finish()
        except (OSError, AgentError, RecursionError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _HOPELESS:
                raise
            outcome, carried = self._keep_previous(gathering), self._carried_from(platform, item.name)
            reasons = [_said(error)]
        else:
            outcome, carried, reasons = self._judge(gathering, platform, step.outcome if step else None)
            if step is not None and step.outcome in (FAILED, SUSPECT):
                reasons += [f"{item.step}: {reason}" for reason in step.reasons]
        if gathering.lost:
            reasons = [f"the mirror has lost files that are to be carried on: {gathering.lost}", *reasons]
        return ItemResult(
            platform=platform,
            name=item.name,
            outcome=outcome,
            reasons=shortened(reasons),
            files=gathering.files,
            bytes=gathering.size,
            seconds=round(time.monotonic() - began, 3),
            carried_from=carried if gathering.files else None,
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
        if not gathering.files and in_previous is not None:
            self._keep_previous(gathering)
            return FAILED, in_previous, ["it held files at the previous collection and holds none now"]
        if not gathering.files:
            return (FAILED if step == FAILED else SKIPPED), None, ["the server has no file of it"]
        lacking = [name for name in item.required if name not in gathering.tops]
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
            only = gathering.item.only
            base = f"{gathering.prefix}/{folder}/" if folder else f"{gathering.prefix}/"
            for entry in walk(root, gathering.notes, unread):
                if not only or entry.relative in only:
                    self._take(gathering, entry, base + entry.relative)

    def _unread(self, gathering: _Gathering, folder: str, below: str, error: OSError) -> None:
        """Note a folder that cannot be read, and keep what the previous collection has of it."""
        path = "/".join(part for part in (gathering.prefix, folder, below.rstrip("/")) if part)
        gathering.findings.append(f"{below or 'its folder'} could not be read: {error.strerror}")
        for known in gathering.beside.below(path):
            if self._goes_on(gathering, known):
                gathering.count(path_of(known.key), known.sealed_size)

    def _take_file(self, gathering: _Gathering, path: Path, relative: str) -> None:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            entry = Entry(
                path.name, parent, path.name, os.stat(path.name, dir_fd=parent, follow_symlinks=False)
            )
            self._take(gathering, entry, f"{gathering.prefix}/{relative}" if relative else gathering.prefix)
        finally:
            os.close(parent)

    def _take(self, gathering: _Gathering, entry: Entry, path: str) -> None:
        """Plan one file: as it is sealed or staged already when it is unchanged, else by reading it."""
        item = gathering.item
        # Such a name would have the key of another path; it is refused below.
        known = gathering.beside.at(path.replace("/", "\x01")) if "\x01" not in path else None
        if (
            known is not None
            and _is_as_sealed(known, item, entry.stat)
            and self._spool.holds(path, known.sealed_size, known.sealed_mtime_ns)
        ):
            gathering.count(path, known.sealed_size)
            if known.findings:
                shown = gathering.shown(path)
                gathering.findings += [f"{shown} {finding}" for finding in known.findings.split("\n")]
            self._report(item.name, 1, known.sealed_size)
            return
        spot = _Spot(gathering, path, gathering.shown(path), known, self._at_hand(known))
        try:
            self._take_changed(spot, entry)
        finally:
            if known is not None and known.sealed_sha256 is not None:
                if spot.sealed is None:
                    self._seen.lose(known.key, lost=True)
                elif not spot.planned:
                    self._seen.lose(known.key)

    def _take_changed(self, spot: _Spot, entry: Entry) -> None:
        gathering, path, shown = spot.gathering, spot.path, spot.shown
        try:
            if _UNWRITABLE.search(path) or path != path.rstrip():
                raise _Refused(
                    "has a name that no manifest can hold (control characters, a blank at its end): left out"
                )
            path.encode("utf-8")
            sight = self._unread_again(spot, entry) or self._read(spot, entry)
            if sight is not None:
                gathering.findings += [f"{shown} {finding}" for finding in sight.findings]
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
            spot.keep()

    def _at_hand(self, known: Known | None) -> File | None:
        """Return the file of the mirror, if it is really there: an old disk loses some."""
        file = known.sealed if known is not None else None
        if file is None or not self._spool.holds(file.path, file.size, file.mtime_ns):
            return None
        return file

    def _unread_again(self, spot: _Spot, entry: Entry) -> Sight | None:
        """Plan a file whose content is known without reading it, and return what it holds; None when its
        content is not known, or its bytes are not at hand.
        """
        item = spot.gathering.item
        sight = spot.known.sight(_signs(item, entry.stat), item.check_id) if spot.known else None
        if sight is None:
            return None
        if spot.sealed is not None and spot.sealed.sha256 == sight.sha256:
            spot.keep()
            return sight
        staged = self._seen.staged(spot.path)
        if staged is None or staged.sha256 != sight.sha256:
            return None
        self._plan_staged(spot, staged)
        return sight

    def _read(self, spot: _Spot, entry: Entry) -> Sight | None:
        """Read a file until its content can be believed; return what it holds, or None when it is left for
        later.
        """
        try:
            return self._read_until_steady(spot, entry)
        except Exception:
            self._drop(spot.path)
            raise

    def _read_until_steady(self, spot: _Spot, entry: Entry) -> Sight | None:
        gathering, shown = spot.gathering, spot.shown
        item = gathering.item
        for attempt in range(1, TRIES + 1):
            copy = _Copy(self._spool, spot, entry)
            steady = copy.take()
            findings = copy.findings()
            torn = not steady or (item.reading == JSON and findings)
            if not torn or attempt == TRIES:
                break
            self._drop(spot.path)
            time.sleep(PAUSE * attempt)
        if item.reading == FRESH and (findings or not steady) and _age(copy.stat) < STILL_WRITTEN:
            self._drop(spot.path)
            spot.keep()
            gathering.notes.append(f"{shown} is still being written: it will be taken the next time")
            return None
        if item.reading == JSON and findings and spot.keep():
            self._drop(spot.path)
            gathering.findings.append(f"{shown} {findings[0]}; the copy of the previous collection is kept")
            return None
        if not steady:
            findings = (*findings, "changed whenever it was read")
        if copy.cut:
            gathering.notes.append(f"{shown} was being written: it is cut at its last whole line")
        sight = Sight(copy.sha256, findings)
        if steady and not copy.cut and time.time_ns() - copy.stat.st_ctime_ns > RACY_NS:
            self._seen.remember(spot.path, _signs(item, copy.stat), item.check_id, sight)
        if copy.target is None:
            spot.keep()
        else:
            self._plan_staged(spot, copy.file())
            self._copied_files += 1
            self._copied_bytes += copy.size
            if self._copied_files >= CHECKPOINT_FILES or self._copied_bytes >= CHECKPOINT_BYTES:
                self._checkpoint()
        return sight

    def _plan_staged(self, spot: _Spot, file: File) -> None:
        self._seen.stage(file)
        spot.planned = True
        spot.gathering.count(file.path, file.size)

    def _drop(self, path: str) -> None:
        """Take back what was written of a file."""
        self._spool.drop(path)
        self._seen.unstage(path)

    def _checkpoint(self) -> None:
        """Put what was staged on the disk, then note it: in this order, so that the note is always true."""
        if self._copied_files:
            durable.sync_filesystem(self._spool.root)
        self._seen.commit()
        self._copied_files = self._copied_bytes = 0

    def _goes_on(self, gathering: _Gathering, known: Known) -> bool:
        """Return whether what is sealed of a file is carried on; what the mirror has lost is left out."""
        if known.sealed_sha256 is None:
            return False
        if self._spool.holds(path_of(known.key), known.sealed_size, known.sealed_mtime_ns):
            return True
        self._seen.lose(known.key, lost=True)
        gathering.lost += 1
        return False

    def _keep_previous(self, gathering: _Gathering) -> str:
        gathering.lost = 0
        for known in self._seen.known(gathering.prefix):
            self._goes_on(gathering, known)
        gathering.files, gathering.size = self._seen.plan_sealed(gathering.prefix)
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

    def __init__(self, spool: Spool, spot: _Spot, entry: Entry) -> None:
        self._spool, self._spot, self._entry = spool, spot, entry
        self._item = spot.gathering.item
        self.stat = entry.stat
        self.sha256 = ""
        self.size = 0
        self.cut = False
        self.target: str | None = None  # None: the sealed collection has these bytes at this path already

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
            sealed, path = self._spot.sealed, self._spot.path
            expected = self.stat.st_size if limit is None else limit
            if sealed is not None and sealed.size == expected:
                # Probably the same bytes under a new time (a dump): reading is cheaper than writing.
                self.sha256, self.size = _copy(source, None, limit)
                if self.sha256 == sealed.sha256:
                    return True
                os.lseek(source, 0, os.SEEK_SET)
            if self._item.written_once and self._may_be_shared() and _age(self.stat) > STILL_WRITTEN:
                self.target = self._spool.link_file(path, source)
                if self.target is not None:
                    self.sha256, self.size = _copy(source, None, None)
                    return _unchanged(self.stat, os.fstat(source))
            descriptor, self.target = self._spool.new_file(path)
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
        return File(self._spot.path, self.sha256, self.size, self.stat.st_mtime_ns, mode)

    def findings(self) -> tuple[str, ...]:
        """Return what the item's check finds in the bytes that were taken."""
        known, item = self._spot.known, self._item
        if item.check is items.check_nothing:
            return ()
        if known is not None and (found := known.found(self.sha256, item.check_id)) is not None:
            return found
        taken = Path(self.target) if self.target else self._spool.bag / self._spot.path
        return tuple(f.replace("\n", " ") for f in item.check(taken, self._spot.shown, self.sha256))

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


def _is_as_sealed(known: Known, item: Item, seen: os.stat_result) -> bool:
    """Return whether a file is the one that was read, and what it held is sealed. As Known.sight has it."""
    _, size, mtime_ns, ctime_ns, inode, check_id, sha256, _, sealed_sha256, _, _, _ = known
    return (
        sha256 is not None
        and sha256 == sealed_sha256
        and mtime_ns == seen.st_mtime_ns
        and size == seen.st_size
        and inode == seen.st_ino
        and ctime_ns == (0 if item.written_once else seen.st_ctime_ns)
        and check_id == item.check_id
    )


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
            written = os.write(target, chunk)
            while written < len(chunk):
                written += os.write(target, memoryview(chunk)[written:])
    return digest.hexdigest(), size


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
