"""Collect: gather all LEVEL 4 items into a new bag and seal it.

An unchanged file is neither read nor copied: what is known of it is read beside the walk, and it stays in the
mirror as it is. An item that is as its sketch has it is not even walked (shala_agent.sketch). Links, devices
and sockets never enter; every file is opened without following a link. One broken item never stops the
others: it keeps the previous collection's copy and says so. Nothing new means that nothing is sealed.
"""

from __future__ import annotations

import datetime
import errno
import functools
import gc
import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shala_agent import __version__, checks, durable
from shala_agent.catalogue import CARRY, FRESH, GIT_LOG, JSON, LOG, Catalogue, Item
from shala_agent.collection import Collection, ContainerImage, Head, ItemResult
from shala_agent.config import Config
from shala_agent.copying import STILL_WRITTEN, Copy, NotTaken, age
from shala_agent.device import FILE, Device
from shala_agent.extension import read_catalogue
from shala_agent.failure import AgentError
from shala_agent.gathering import Beside, Gathering, ItemPart, Spot
from shala_agent.gitlog import write_git_log
from shala_agent.identity import Identity, IdentityRefused, read_identity
from shala_agent.ledger import Ledger, StepRecord, now
from shala_agent.manifest import File, path_of
from shala_agent.outcome import FAILED, OK, SKIPPED, SUSPECT, Result, counted, shortened
from shala_agent.privacy import NotTreated, Policy
from shala_agent.reach import SETTINGS, Reach
from shala_agent.reread import CHANGED, Reread
from shala_agent.room import ACKNOWLEDGED, NoRoom, Room, room_of
from shala_agent.seen import Known, Seen, Sight, Signs, is_damage
from shala_agent.seen import remove as remove_cache
from shala_agent.sketch import RACY_NS, Header, Part, Sketch
from shala_agent.spool import Spool
from shala_agent.walk import Entry, walk
from shala_agent.writers import SLACK, Writer, running

if TYPE_CHECKING:
    from shala_agent.container import Container

TRIES = 5  # readings of a file that changes under our hands
PAUSE = 0.1  # seconds before the second reading; each further one waits longer
CHECKPOINT_FILES = 2000  # after so many copies or
CHECKPOINT_BYTES = 256 << 20  # so many bytes what was staged is put on the disk and survives a cut
OVERWRITTEN = "is written once and has changed"
PLAIN = "plain"  # folder of the state: where a file waits for the form of its policy
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
    if path.stat().st_size > checks.MAX_SETTINGS:
        raise IdentityRefused(
            f"{path} is larger than {checks.MAX_SETTINGS} bytes: it was damaged (run playbooks/provision.yml)"
        )
    try:
        source = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise IdentityRefused(f"{path} is not UTF-8 (run playbooks/provision.yml)") from None
    identity = read_identity(source, str(path), config.identity.states, config.identity.aliases)
    expected = config.identity.server_name
    if expected and identity.server_name != expected:
        raise IdentityRefused(
            f"{path} says {identity.server_name}, the inventory says {expected} (identity.server_name of"
            " agent.toml; correct the schools list or the settings, then run playbooks/provision.yml)"
        )
    return identity


def collect(
    config: Config, container: Container, reach: Reach, ledger: Ledger, report: Report | None = None
) -> Collected:
    """Gather everything, and seal it when anything changed. The caller holds the chain's lock.

    Raises IdentityRefused, and AgentError when the disk is full or read-only; then nothing has changed.
    """
    gc.freeze()  # what was imported stays: looking through it again takes a twentieth of a quiet run
    catalogue = read_catalogue(config)
    identity = identify(config, reach)
    spool = Spool(Path(config.paths.spool), config.paths.spool_group)
    cache = Path(config.paths.state) / "seen.sqlite"
    try:
        with closing(Seen(cache)) as seen:
            spool.prepare(seen)
            collector = _Collector(
                config, catalogue, container, reach, ledger, spool, seen, report or (lambda *_: None),
                Room(spool.root, config.spool), Reread(config.collect),
            )  # fmt: skip
            return collector.run(identity)
    except sqlite3.Error as error:
        way_out = "disk full? free some space; the next run goes on"
        if is_damage(error):
            remove_cache(cache)
            way_out = f"{cache.name} is made anew by the next run"
        raise AgentError(f"{config.paths.state}: {error} ({way_out})") from None
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
        durable.remove(Path(config.paths.state) / PLAIN)


@dataclass(slots=True)
class _Collector:
    _config: Config
    _catalogue: Catalogue
    _container: Container
    _reach: Reach
    _ledger: Ledger
    _spool: Spool
    _seen: Seen
    _report: Report
    _room: Room
    _reread: Reread
    _head: Head | None = None
    _previous: Collection | None = None
    _writers: list[Writer] = field(default_factory=list)
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
        durable.empty_folder(self._scratch)
        self._writers = self._running(*(item.writers for item in self._catalogue.items))
        results = [self._gather(item, "gstudio") for item in self._catalogue.items]
        results += self._gathered_unplatform()
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
            self._settle()
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
        self._settle()
        self._spool.prune(self._config.collect.changes_kept)
        return Collected(True, head, collection)

    def _settle(self) -> None:
        """What was planned is in the mirror: what was drawn of it counts from now on."""
        self._seen.sketches.settle()
        self._seen.commit()

    @property
    def _scratch(self) -> Path:
        """Where a file lies before it has the form of its policy: for root alone."""
        return Path(self._config.paths.state) / PLAIN

    def _gather(self, item: Item, platform: str) -> ItemResult:
        """Take one item, or its previous copy; never raises but for a full disk."""
        began = time.monotonic()
        prefix = f"data/{platform}/{item.name}"
        sketch = Sketch(self._seen.sketches, prefix, item.written_once)
        gathering = Gathering(item, prefix, Beside(self._seen, prefix), sketch)
        before = self._previous.item(platform, item.name) if self._previous else None
        gathering.other_form = (before.policy if before else "") != item.policy.said
        gathering.before = None if gathering.other_form else before
        gathering.writers = [one for one in self._writers if one.command in item.writers]
        step = self._ledger.last(item.step) if item.step else None
        gathering.finished = _ended(step)
        try:
            outcome, carried, reasons = self._gathered(gathering, platform, step)
        except Exception as error:
            if _is_hopeless(error):
                raise
            outcome, carried = self._keep_previous(gathering), self._carried_from(gathering)
            reasons = [_said(error)]
        if gathering.lost:
            reasons = [f"the mirror has lost files that are to be carried on: {gathering.lost}", *reasons]
        good = outcome == OK
        return ItemResult(
            platform=platform,
            name=item.name,
            outcome=outcome,
            reasons=shortened(reasons),
            files=gathering.files,
            bytes=gathering.size,
            seconds=round(time.monotonic() - began, 3),
            carried_from=carried if gathering.files else None,
            policy=item.policy.said,
            good_files=gathering.files if good else before.good_files if before else None,
            good_bytes=gathering.size if good else before.good_bytes if before else None,
            since=(before.since if before and before.outcome == outcome else "") or now(),
        )

    def _gathered(
        self, gathering: Gathering, platform: str, step: StepRecord | None
    ) -> tuple[str, int | None, list[str]]:
        """Take an item as it is now; return (outcome, the collection it is carried from, reasons)."""
        item = gathering.item
        if not item.policy.take:
            gathering.beside.finish()
            return SKIPPED, None, ["left out by policy"]
        kept_whole = bool(item.writers) and item.when_step_failed == CARRY
        if kept_whole:
            self._refuse_written(gathering.writers)
        parts = list(self._parts(gathering))
        if (drawn := self._as_drawn(gathering, step, parts)) is not None:
            gathering.files, gathering.size = drawn.files, drawn.size
            self._report(item.name, drawn.files, drawn.size)
            return OK, None, drawn.reasons
        gathering.sketch.begin()
        if gathering.before is not None and gathering.before.outcome != OK:
            gathering.sketch.give_up()  # it may well be so again: a sketch of it would be drawn in vain
        if item.name == GIT_LOG and platform == "gstudio":
            self._take_git_log(gathering)
        taken: set[str] = set()
        for part in parts:
            self._take_part(gathering, part)
            taken.add(part.folder)
        for folder in sorted({folder for folder, _ in item.parts if folder} - taken):
            gathering.notes.append(f"the server has no {folder}")
        gathering.beside.finish()
        if kept_whole:  # what began since may have taken away half of it
            self._refuse_written(self._running(item.writers))
        if gathering.left_out:
            gathering.notes.append(f"left out by policy: {counted(gathering.left_out, 'file')}")
        if gathering.superseded:
            cut = counted(gathering.superseded, "file")
            gathering.notes.append(f"left out: {cut} not whole, of which a later export is")
        outcome, carried, reasons = self._judge(gathering, step.outcome if step else None)
        if step is not None and step.outcome in (FAILED, SUSPECT):
            reasons += [f"{item.step}: {reason}" for reason in step.reasons]
        if outcome != OK:
            gathering.sketch.give_up()
        gathering.sketch.finish(_form(item), gathering.files, gathering.size, reasons)
        return outcome, carried, reasons

    def _as_drawn(
        self, gathering: Gathering, step: StepRecord | None, parts: Sequence[ItemPart]
    ) -> Header | None:
        """Return what an item comes to that is as it was when it was last taken, None when it is to be
        looked at.
        """
        item, before, sketches = gathering.item, gathering.before, self._seen.sketches
        header = sketches.header(gathering.prefix)
        if (
            header is None
            or before is None
            or (before.outcome, before.files, before.bytes) != (OK, header.files, header.size)
            or gathering.writers
            or (step is not None and step.outcome in (FAILED, SUSPECT))
            or header.form != _form(item)
            or any(map(self._reread.is_due, header.read_days))
            or header.parts != [self._drawn_part(gathering, part) for part in parts]
        ):
            return None
        is_like = sketches.is_like(gathering.prefix, header, without_ctime=item.written_once)
        return header if is_like else None

    def _parts(self, gathering: Gathering) -> Iterator[ItemPart]:
        """Yield what the server has of an item."""
        had = None
        for folder, source in sorted(gathering.item.parts, key=lambda part: part[0]):
            if folder == had:
                continue
            in_container = gathering.prefix.startswith("data/gstudio/")
            try:
                root = self._reach.local(source) if in_container else Path(source)
                seen = root.lstat()
            except FileNotFoundError:
                continue
            had = folder
            yield ItemPart(folder, root, seen)

    def _judge(  # noqa: PLR0911 - one case after the other
        self, gathering: Gathering, step: str | None
    ) -> tuple[str, int | None, list[str]]:
        """Decide the outcome of an item that could be read, given how the step that makes it last ended."""
        item = gathering.item
        in_previous = self._carried_from(gathering)
        if not gathering.found:
            if in_previous is not None:
                self._keep_previous(gathering)
                return FAILED, in_previous, ["it was there at the previous collection and is gone"]
            return (FAILED if step == FAILED else SKIPPED), None, ["the server has none of it"]
        if step == FAILED and item.when_step_failed == CARRY and in_previous is not None:
            self._keep_previous(gathering)
            return FAILED, in_previous, ["it could not be made anew, the last good copy is kept"]
        if not gathering.files and in_previous is not None:
            self._keep_previous(gathering)
            return FAILED, in_previous, ["it held files at the previous collection and holds none now"]
        if not gathering.files:
            nothing = FAILED if step == FAILED or gathering.findings else SKIPPED
            return nothing, None, [*gathering.findings, "the server has no file of it", *gathering.notes]
        lacking = [name for name in item.required if name not in gathering.tops]
        gathering.findings += [f"{name} is missing" for name in lacking]
        carry = item.when_step_failed == CARRY and self._was_good(gathering)
        if gathering.findings and carry:
            self._keep_previous(gathering)
            return (
                FAILED,
                in_previous,
                shortened([*gathering.findings, "the last good copy is kept"], gathering.findings.unsaid),
            )
        less = list(self._less_than_good(gathering))
        if less and not self._is_acknowledged() and (kept := self._keep_missing(gathering)):
            less.append(f"{counted(kept, 'file')} that it has no more stay until the centre has them")
        gathering.findings += less
        suspect = bool(gathering.findings) or step in (FAILED, SUSPECT)
        return (
            (SUSPECT if suspect else OK),
            None,
            shortened(
                [*gathering.findings, *gathering.notes], gathering.findings.unsaid + gathering.notes.unsaid
            ),
        )

    def _less_than_good(self, gathering: Gathering) -> Iterator[str]:
        """Say when an item holds much less than when it was last ok."""
        item, before = gathering.item, gathering.before
        if before is None:
            return
        for now_has, had, thing in (
            (gathering.files, before.good_files, "file"),
            (gathering.size, before.good_bytes, "byte"),
        ):
            if had is not None and checks.dropped(now_has, had, item.largest_drop):
                yield (
                    f"it holds {counted(now_has, thing)}, the last good one held {had}"
                    f" (if that is right: largest_drop = 100 of items.{item.name} in"
                    f" {self._config.paths.catalogue})"
                )
                return

    def _running(self, *words: Sequence[str]) -> list[Writer]:
        """Return which of the platform's own programs are at work; in a container that is down, none."""
        try:
            return running(self._container, sorted({word for some in words for word in some}))
        except AgentError:
            return []

    def _refuse_written(self, writers: list[Writer]) -> None:
        if writers:
            raise AgentError(f"{writers[0]} was writing it: what is there is kept for now")

    def _take_git_log(self, gathering: Gathering) -> None:
        made = Path(self._config.paths.state) / "made" / GIT_LOG
        result = write_git_log(self._container, made)
        if result.outcome == FAILED:
            raise AgentError("; ".join(result.reasons))
        gathering.findings += result.reasons
        gathering.found = True
        suffix = gathering.item.policy.suffix
        self._take_file(gathering, made, f"{GIT_LOG}{suffix}" if suffix else "")

    def _drawn_part(self, gathering: Gathering, part: ItemPart) -> Part:
        place = self._spool.in_mirror(gathering.folder_of(part))
        return Part(str(part.root), place, gathering.item.policy.suffix)

    def _take_part(self, gathering: Gathering, part: ItemPart) -> None:
        """Take one part of an item."""
        folder, root, seen = part
        policy = gathering.item.policy
        gathering.found = True
        if stat.S_ISREG(seen.st_mode):
            # Sealed, the item is a folder: no other LEVEL 4 name may come of it.
            name = f"{gathering.item.name}{policy.suffix}" if policy.suffix and not folder else ""
            self._take_file(gathering, root, name or (f"{folder}{policy.suffix}" if folder else ""))
        elif not stat.S_ISDIR(seen.st_mode):
            raise AgentError(f"{root} is neither a file nor a folder: it was not followed")
        else:
            unread = functools.partial(self._unread, gathering, folder)
            only, leaves_out = gathering.item.only, policy.excluder()
            base = gathering.folder_of(part)
            gathering.sketch.take(self._drawn_part(gathering, part))
            for entry in walk(root, gathering.notes, unread, policy.suffix, gathering.sketch.enter):
                if only and entry.relative not in only:
                    continue
                if leaves_out(entry.relative):
                    gathering.left_out += 1
                else:
                    self._take(gathering, entry, f"{base}{entry.relative}{policy.suffix}")

    def _unread(self, gathering: Gathering, folder: str, below: str, error: OSError) -> None:
        """Note a folder that cannot be read, and keep what the previous collection has of it."""
        suffix = gathering.item.policy.suffix if below and not below.endswith("/") else ""
        path = "/".join(part for part in (gathering.prefix, folder, below.rstrip("/")) if part) + suffix
        gathering.findings.append(f"{below or 'its folder'} could not be read: {error.strerror}")
        for known in gathering.beside.below(path):
            if self._goes_on(gathering, known):
                gathering.count(path_of(known.key), known.sealed_size)

    def _take_file(self, gathering: Gathering, path: Path, relative: str) -> None:
        gathering.sketch.give_up()  # one file is as soon looked at
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            entry = Entry(
                path.name, parent, path.name, os.stat(path.name, dir_fd=parent, follow_symlinks=False)
            )
            self._take(gathering, entry, f"{gathering.prefix}/{relative}" if relative else gathering.prefix)
        finally:
            os.close(parent)

    def _take(self, gathering: Gathering, entry: Entry, path: str) -> None:
        """Plan one file: as it is sealed or staged already when it is unchanged, else by reading it."""
        item = gathering.item
        # Such a name would have the key of another path; it is refused below.
        known = gathering.beside.at(path.replace("/", "\x01")) if "\x01" not in path else None
        if (
            known is not None
            and known.findings
            and known.sealed_sha256 in (None, known.sha256)  # what is sealed of it is the half as well
            and (sight := known.sight(_signs(item, entry.stat), item.check_id)) is not None
            and self._is_superseded(gathering, entry, sight.findings)
        ):
            if known.sealed_sha256 is not None:
                self._seen.lose(known.key)
            return
        if (
            known is not None
            and _is_as_sealed(known, item, entry.stat)
            and self._spool.holds(path, known.sealed_size, known.sealed_mtime_ns)
        ):
            due = self._reread.is_due(known.read_day)
            if due and not self._is_still_whole(gathering, entry, path, known):
                return
            gathering.count(path, known.sealed_size)
            if due:
                gathering.sketch.give_up()  # the next run goes on with reading it
            gathering.sketch.add(entry, known.read_day)
            if known.findings:
                shown = gathering.shown(path)
                gathering.findings += [f"{shown} {finding}" for finding in known.findings.split("\n")]
            self._report(item.name, 1, known.sealed_size)
            return
        sealed = None if gathering.other_form else self._at_hand(known)
        self._take_anew(Spot(gathering, path, gathering.shown(path), known, sealed), entry)

    def _is_still_whole(self, gathering: Gathering, entry: Entry, path: str, known: Known) -> bool:
        """Read a file that seems unchanged, and its copy; return whether what is sealed of it stays.

        The worse never replaces the better: a source that has gone bad leaves the copy as it is.
        """
        try:
            found = self._reread.read(entry, known, self._spool.in_mirror(path))
        except OSError as error:
            gathering.findings.append(f"{gathering.shown(path)} could not be read again: {error.strerror}")
            return True
        if found is None:
            return True
        bad = () if found.source else (CHANGED,)
        if not found.mirror:
            gathering.notes.append(f"{gathering.shown(path)} had gone bad in the mirror: it was taken again")
            gathering.sketch.give_up()  # that is said once
            self._take_anew(Spot(gathering, path, gathering.shown(path), known, None, bad), entry)
            return False
        before = (known.findings or "").split("\n")
        if bad and CHANGED not in before:
            gathering.findings.append(f"{gathering.shown(path)} {CHANGED}")
        sight = Sight(str(known.sha256), (*(one for one in before if one not in ("", CHANGED)), *bad))
        signs = _signs(gathering.item, entry.stat)
        self._seen.remember(path, signs, gathering.item.check_id, sight, known.plain_sha256)
        return True

    def _take_anew(self, spot: Spot, entry: Entry) -> None:
        """Plan one file by reading it, unless its content is known and at hand."""
        known = spot.known
        try:
            self._take_changed(spot, entry)
            spot.gathering.sketch.add(entry, spot.read_day if spot.planned else None)
        finally:
            if known is not None and known.sealed_sha256 is not None:
                if spot.sealed is None:
                    self._seen.lose(known.key, lost=True)
                elif not spot.planned:
                    self._seen.lose(known.key)

    def _take_changed(self, spot: Spot, entry: Entry) -> None:
        gathering, path, shown = spot.gathering, spot.path, spot.shown
        try:
            if _UNWRITABLE.search(path) or path != path.rstrip():
                raise NotTaken(
                    "has a name that no manifest can hold (control characters, a blank at its end): left out"
                )
            path.encode("utf-8")
            if refused := gathering.item.policy.refuses(spot.inside):
                raise NotTaken(refused)
            sight = self._unread_again(spot, entry) or self._read(spot, entry)
            if sight is not None:
                gathering.findings += [f"{shown} {finding}" for finding in sight.findings]
                self._report(gathering.item.name, 1, entry.stat.st_size)
        except NotTaken as refusal:
            gathering.findings.append(f"{shown!r} {refusal}")
        except UnicodeEncodeError:
            gathering.findings.append(f"{os.fsencode(shown)!r} has a name that is not UTF-8: it was left out")
        except (NotTreated, NoRoom) as error:
            gathering.findings.append(f"{shown} {error}")
            spot.keep()
        except FileNotFoundError:
            pass  # deleted since its folder was read
        except Exception as error:
            if _is_hopeless(error):
                raise
            gathering.findings.append(f"{shown} could not be taken: {_why(error)}")
            spot.keep()

    def _make_room(self, spot: Spot, size: int) -> None:
        """Have room for so many bytes; what the centre has goes for it, the oldest first. Raises NoRoom."""
        self._fit(spot, size)
        self._room.add(size)

    def _make_plain_room(self, spot: Spot, size: int) -> None:
        """Have room for the copies of a file that lie beside the spool until it has its form."""
        copies = size * spot.gathering.item.policy.copies(spot.inside)
        if _on_one_disk(self._scratch, self._spool.root):
            self._fit(spot, size, copies)
        elif problem := self._room.lacks_at(self._scratch, copies):
            raise NoRoom(problem)

    def _fit(self, spot: Spot, size: int, beside: int = 0) -> None:
        if self._room.lacks(size, beside=beside):
            self._give_up(spot, size, beside)
        if problem := self._room.lacks(size, beside=beside):
            raise NoRoom(problem)

    def _give_up(self, spot: Spot, size: int, beside: int) -> None:
        """Remove what the centre has until so many bytes fit: lists of changes, then the file's own copy."""
        head, notes = self._head, spot.gathering.notes
        spot.gathering.sketch.give_up()  # what it gives up is said once
        acknowledged = self._ledger.mark(ACKNOWLEDGED)
        if head is None:
            return
        for sequence in self._spool.sequences():
            if sequence > acknowledged or sequence == head.sequence:
                break
            self._room.add(-self._spool.give_up_changes(sequence))
            notes.append(f"for want of room the list of collection {sequence} was removed")
            if not self._room.lacks(size, beside=beside):
                return
        freed = room_of(self._spool.in_mirror(spot.path))
        # Not in vain: what does not make room enough stays.
        if spot.sealed is None or head.sequence > acknowledged or self._room.lacks(size, freed, beside):
            return
        self._spool.give_up(spot.path)
        self._room.add(-freed)
        spot.sealed = None
        what = f"{spot.shown} of collection {head.sequence}, which the centre has,"
        notes.append(f"for want of room {what} was removed before the new one was taken")

    def _at_hand(self, known: Known | None) -> File | None:
        """Return the file of the mirror, if it is really there: an old disk loses some."""
        file = known.sealed if known is not None else None
        if file is None or not self._spool.holds(file.path, file.size, file.mtime_ns):
            return None
        return file

    def _unread_again(self, spot: Spot, entry: Entry) -> Sight | None:
        """Plan a file whose content is known without reading it, and return what it holds; None when its
        content is not known, or its bytes are not at hand.
        """
        item = spot.gathering.item
        sight = spot.known.sight(_signs(item, entry.stat), item.check_id) if spot.known else None
        if sight is None:
            return None
        spot.read_day = spot.known.read_day if spot.known else None
        if spot.sealed is not None and spot.sealed.sha256 == sight.sha256:
            spot.keep()
            return sight
        staged = self._seen.staged(spot.path)
        if staged is None or staged.sha256 != sight.sha256:
            return None
        self._plan_staged(spot, staged)
        return sight

    def _read(self, spot: Spot, entry: Entry) -> Sight | None:
        """Read a file until its content can be believed; return what it holds, or None when it is left for
        later.
        """
        spot.read_day = None  # what is known of it is not what is planned
        try:
            return self._read_until_steady(spot, entry)
        except Exception:
            self._drop(spot.path)
            raise

    def _read_until_steady(self, spot: Spot, entry: Entry) -> Sight | None:
        gathering, shown = spot.gathering, spot.shown
        item = gathering.item
        if _has_writer(gathering, entry.stat):
            spot.keep()
            gathering.notes.append(f"{shown} is still being written: it will be taken the next time")
            return None
        for attempt in range(1, TRIES + 1):
            copy = Copy(
                self._spool, spot, entry, self._scratch,
                make_room=self._make_room, make_plain_room=self._make_plain_room,
            )  # fmt: skip
            steady = copy.take()
            findings = copy.findings()
            # What is broken and at rest for long is not mended by waiting.
            broken = next(filter(checks.is_fault, findings), "")
            torn = not steady or (item.reading == JSON and broken and age(copy.stat) < STILL_WRITTEN)
            if not torn or attempt == TRIES:
                break
            self._drop(spot.path)
            time.sleep(PAUSE * attempt)
        if item.reading == FRESH and (findings or not steady) and age(copy.stat) < STILL_WRITTEN:
            self._drop(spot.path)
            spot.keep()
            gathering.notes.append(f"{shown} is still being written: it will be taken the next time")
            return None
        if self._is_worse(spot, copy, broken):
            self._drop(spot.path)
            return None
        if not steady:
            findings = (*findings, "changed whenever it was read")
        findings = (*findings, *spot.found)
        if copy.cut:
            gathering.notes.append(f"{shown} was being written: it is cut at its last whole line")
        plain_sha256 = copy.give_form()
        sight = Sight(copy.sha256, findings)
        if steady and not copy.cut and time.time_ns() - copy.stat.st_ctime_ns > RACY_NS:
            self._remember(spot, entry, copy.stat, sight, plain_sha256)
        if self._is_superseded(gathering, entry, findings):
            self._drop(spot.path)
            return None
        if copy.target is None:
            spot.keep()
        else:
            self._plan_staged(spot, copy.file())
            self._copied_files += 1
            self._copied_bytes += copy.size
            if self._copied_files >= CHECKPOINT_FILES or self._copied_bytes >= CHECKPOINT_BYTES:
                self._checkpoint()
        return sight

    def _remember(
        self, spot: Spot, entry: Entry, read: os.stat_result, sight: Sight, plain_sha256: str | None
    ) -> None:
        item = spot.gathering.item
        signs = _signs(item, read)
        self._seen.remember(spot.path, signs, item.check_id, sight, plain_sha256)
        if signs == _signs(item, entry.stat):
            spot.read_day = self._reread.today

    def _is_superseded(self, gathering: Gathering, entry: Entry, findings: Sequence[str]) -> bool:
        """Return whether a file that was cut needs not be taken: a later one of the same export holds it all.

        An export that a power cut ended leaves half a file, which stays for ever. What is not whole for
        another reason, or has no later one that is as large, is taken and named.
        """
        cut = bool(findings) and findings[0] in (checks.EMPTY, checks.CUT) and CHANGED not in findings
        if not cut or gathering.item.reading != FRESH or not checks.STAMP.search(entry.name):
            return False
        export = entry.relative.removesuffix(entry.name) + checks.STAMP.sub("", entry.name)
        if export not in gathering.newest_whole:
            gathering.newest_whole[export] = _newest_whole(gathering, entry)
        later, size = gathering.newest_whole[export]
        superseded = later > _exported_at(entry.name) and size >= entry.stat.st_size
        gathering.superseded += superseded
        if superseded:
            gathering.sketch.give_up()
        return superseded

    def _is_worse(self, spot: Spot, copy: Copy, broken: str) -> bool:
        """Return whether the copy of the previous collection stays instead of what was read, and say why."""
        overwritten = OVERWRITTEN if self._is_overwritten(spot, copy) else ""
        if overwritten and copy.size and self._is_acknowledged():
            spot.gathering.findings.append(f"{spot.shown} {overwritten}; the centre has the one before")
            overwritten = ""
        worse = broken if broken and self._was_whole(spot, copy) else overwritten
        if worse and spot.keep():
            kept = "the copy of the previous collection is kept"
            spot.gathering.findings.append(f"{spot.shown} {worse}; {kept}")
            return True
        if overwritten:  # said each time: perhaps nobody has what was in it
            spot.found = (*spot.found, f"{overwritten}, in the mirror too: what it held is lost here")
        return False

    def _was_whole(self, spot: Spot, copy: Copy) -> bool:
        """Return whether the mirror has another content of a file that was read, and a whole one."""
        known, sealed, item = spot.known, spot.sealed, spot.gathering.item
        if known is None or sealed is None or item.reading == LOG or copy.is_same():
            return False
        formed = item.policy.treats(spot.inside)
        is_told = known.sha256 == sealed.sha256 and CHANGED not in (known.findings or "")
        if is_told and (formed or known.check_id == item.check_id):
            return not known.findings
        # Its check can only look at what has no other form.
        mirror = Path(self._spool.in_mirror(spot.path))
        return formed or not any(item.kind.check(mirror, spot.inside, sealed.sha256))

    def _is_overwritten(self, spot: Spot, copy: Copy) -> bool:
        """Return whether a file that is written once has lost what it held, and that was whole."""
        if not spot.gathering.item.written_once or spot.source_sealed() is None:
            return False
        if copy.is_same() or copy.goes_on():
            return False
        return spot.sealed is None or self._was_whole(spot, copy)

    def _is_acknowledged(self) -> bool:
        """Return whether the centre has all that the mirror has."""
        return self._head is not None and self._head.sequence <= self._ledger.mark(ACKNOWLEDGED)

    def _plan_staged(self, spot: Spot, file: File) -> None:
        self._seen.stage(file)
        spot.planned = True
        spot.gathering.count(file.path, file.size)

    def _drop(self, path: str) -> None:
        """Take back what was written of a file."""
        self._room.add(-self._spool.drop(path))
        self._seen.unstage(path)

    def _checkpoint(self) -> None:
        """Put what was staged on the disk, then note it: in this order, so that the note is always true."""
        if self._copied_files:
            durable.sync_filesystem(self._spool.root)
        self._seen.commit()
        self._copied_files = self._copied_bytes = 0

    def _goes_on(self, gathering: Gathering, known: Known) -> bool:
        """Return whether what is sealed of a file is carried on; what the mirror has lost is left out."""
        if known.sealed_sha256 is None:
            return False
        if gathering.other_form or gathering.withholds(path_of(known.key)):
            self._seen.lose(known.key, lost=True)
            return False
        if self._spool.holds(path_of(known.key), known.sealed_size, known.sealed_mtime_ns):
            return True
        self._seen.lose(known.key, lost=True)
        gathering.lost += 1
        return False

    def _keep_missing(self, gathering: Gathering) -> int:
        """Plan what is sealed of the files that an item has no more; return how many these are."""
        kept = 0
        for known in self._seen.missing(gathering.prefix):
            path = path_of(known.key)
            if not self._seen.is_in_the_way(path) and self._goes_on(gathering, known):
                self._seen.find(known.key)
                gathering.count(path, known.sealed_size)
                kept += 1
        return kept

    def _keep_previous(self, gathering: Gathering) -> str:
        gathering.lost = 0
        for known in self._seen.known(gathering.prefix):
            self._goes_on(gathering, known)
        gathering.files, gathering.size = self._seen.plan_sealed(gathering.prefix)
        return FAILED

    def _carried_from(self, gathering: Gathering) -> int | None:
        """Return the sequence whose copy of the item the previous collection holds, or None when it holds
        none.
        """
        before = gathering.before
        if self._previous is None or before is None or not before.files:
            return None
        return before.carried_from or self._previous.sequence

    def _was_good(self, gathering: Gathering) -> bool:
        """Return whether the previous collection holds a good copy of an item, its own or a carried one."""
        before = gathering.before
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

    def _gathered_unplatform(self) -> list[ItemResult]:
        """Take an item for each entry of the unplatform folder, and for those that are gone since the last
        time.
        """
        root = self._config.paths.unplatform
        if not root:
            return []
        unread: list[ItemResult] = []
        names: set[str] = set()
        try:
            with os.scandir(root) as entries:
                names = {
                    e.name
                    for e in entries
                    if e.is_file(follow_symlinks=False) or e.is_dir(follow_symlinks=False)
                }
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            reason = f"{root} could not be read: {error.strerror}"
            unread = [ItemResult(platform="unplatform", name="unplatform", outcome=FAILED, reasons=[reason])]
        if self._previous is not None:
            names |= {i.name for i in self._previous.items if i.platform == "unplatform" and i.files}
        return [self._gather(item, "unplatform") for item in self._unplatform_items(root, names)] + unread

    def _unplatform_items(self, root: str, names: set[str]) -> Iterator[Item]:
        policy = Policy(exclude=self._catalogue.never)
        for name in sorted(names):
            plain = not name.startswith(durable.TEMPORARY) and not _UNWRITABLE.search(name) and _is_utf8(name)
            if plain and not policy.leaves_out(name):
                yield Item(name, "of unplatform", parts=(("", f"{root}/{name}"),), policy=policy)

    def _year(self) -> int:
        """LEVEL 0. A clock that has fallen back, or far ahead, gives the year of the previous collection."""
        year = datetime.datetime.now().astimezone().year
        if self._previous is None or self._head is None:
            return max(year, FIRST_YEAR)
        before = self._previous.year
        if year < FIRST_YEAR:
            return before
        # The centre takes none of years to come: what it does not have, a clock that was ahead has dated.
        if before > year + 1 and self._ledger.mark(ACKNOWLEDGED) < self._head.sequence:
            return year
        # A school may be off for years; a clock that jumped ahead by decades says nothing.
        return before if not before <= year <= before + 10 else year


def _form(item: Item) -> str:
    """Return how an item is taken, and by which version: with its files, all that it comes to depends on."""
    policy = item.policy
    way = (item.check_id, item.only, item.required, item.reading, item.written_once)
    return repr((__version__, *way, policy.exclude, policy.said))


def _outcomes(collection: Collection | None) -> list[tuple[str, ...]]:
    return [(i.platform, i.name, i.outcome, i.policy) for i in collection.items] if collection else []


def _ended(step: StepRecord | None) -> float:
    """Return when a step ended; the ledger cuts its times to whole seconds."""
    if step is None or step.ended is None:
        return float("-inf")
    return datetime.datetime.fromisoformat(step.ended.replace("Z", "+00:00")).timestamp() + 1


def _has_writer(gathering: Gathering, seen: os.stat_result) -> bool:
    """Return whether somebody may be at work on a file, though it stands still and parses.

    A young file of what is made anew is finished when the step that made it has ended since.
    """
    if any(seen.st_mtime >= writer.began - SLACK for writer in gathering.writers):
        return True
    if gathering.item.reading != FRESH or age(seen) >= STILL_WRITTEN:
        return False
    return seen.st_mtime > gathering.finished


def _newest_whole(gathering: Gathering, entry: Entry) -> tuple[str, int]:
    """Return when the newest file of an export that is whole was made, and its size."""
    export = checks.STAMP.sub("", entry.name)
    names = (name for name in os.listdir(entry.folder) if checks.STAMP.sub("", name) == export)  # noqa: PTH208
    for name in sorted(names, key=_exported_at, reverse=True):
        if made := _exported_at(name):
            size = _size_if_whole(gathering, entry.folder, name)
            if size is not None:
                return made, size
    return "", 0


def _size_if_whole(gathering: Gathering, folder: int, name: str) -> int | None:
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    try:
        seen = os.fstat(file)
        if not stat.S_ISREG(seen.st_mode) or _has_writer(gathering, seen):
            return None
        broken = any(gathering.item.kind.check(Path(f"/proc/self/fd/{file}"), name, ""))
        return None if broken else seen.st_size
    finally:
        os.close(file)


def _exported_at(name: str) -> str:
    """Return the time in the name of an export's file, "" for none or one of the future (a wrong clock)."""
    stamp = checks.STAMP.search(name)
    tomorrow = time.strftime("%Y%m%d-%Hh%Mm", time.localtime(time.time() + 86400))
    return stamp[1] if stamp and stamp[1] <= tomorrow else ""


def _signs(item: Item, seen: os.stat_result) -> Signs:
    """Return by what a file is known again. Our own links move the ctime of what is written once."""
    return Signs(seen.st_size, seen.st_mtime_ns, 0 if item.written_once else seen.st_ctime_ns, seen.st_ino)


def _is_as_sealed(known: Known, item: Item, seen: os.stat_result) -> bool:
    """Return whether a file is the one that was read, and what it held is sealed. As Known.sight has it."""
    _, size, mtime_ns, ctime_ns, inode, check_id, sha256, _, _, _, sealed_sha256, _, _, _ = known
    return (
        sha256 is not None
        and sha256 == sealed_sha256
        and mtime_ns == seen.st_mtime_ns
        and size == seen.st_size
        and inode == seen.st_ino
        and ctime_ns == (0 if item.written_once else seen.st_ctime_ns)
        and check_id == item.check_id
    )


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _on_one_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def _is_hopeless(error: Exception) -> bool:
    """Return whether an error is not of the file that was just looked at: nothing else would go better."""
    return isinstance(error, sqlite3.Error) or (isinstance(error, OSError) and error.errno in _HOPELESS)


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return str(error) if isinstance(error, AgentError) else _why(error)


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"
