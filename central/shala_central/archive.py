"""The archive: `<year>/<state>/<server name>/<platform>/<item>` in plain read-only files, and the records
behind it.

Below the root stand the years that researchers read, and `.shala`: staging (unfinished), collections (one
record per committed collection), quarantine (what was refused, with reasons) and locks. A tree becomes
visible by one exchange of names; a crash before it changes nothing, a crash after it is finished by the next
run of that server.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import logging
import os
import random
import re
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from shala_agent.collection import Collection
from shala_agent.manifest import File, Gone, ManifestError, sort_key
from shala_agent.outcome import FAILED, SUSPECT

from shala_central.assembly import MAX_LOST, ObjectsLost, assemble
from shala_central.bag import FILES, PLATFORMS, Bag, BagRefused, Broken, survey
from shala_central.ciphertext import SUFFIX, Ciphertexts, Identities, decrypt, item_of
from shala_central.config import ArchiveSettings, Limits
from shala_central.failure import CentralError, UsageError, as_owner, refused, user_name
from shala_central.fleet import SERVER_NAME
from shala_central.history import History, HistoryError, Version, superfluous
from shala_central.listing import (
    changes_between,
    differing,
    file_of,
    lines_in,
    lines_of,
    merged,
    path_of,
    readable,
    select,
)
from shala_central.objects import SHARED, ObjectDamaged, Objects, digest_of, link
from shala_central.publish import (
    make_folders,
    publish,
    remove_tree,
    require_exchange,
    sync_file_system,
    sync_folder,
    write_file,
)
from shala_central.records import (
    ENCRYPTED,
    PUBLISHED,
    RECORD_FILES,
    SEALED,
    VIEW,
    PullRecord,
    RecordDamaged,
    flaws,
    folders_of,
    has_published_list,
    has_sealed_list,
    read_collection,
    read_pull,
    what_is_left,
)
from shala_central.remote import Bucket, Remote, in_parallel
from shala_central.spare import Spare

logger = logging.getLogger(__name__)
MAX_NAME = 255  # bytes of a file's name
BEFORE = "before.txt"  # in staging: the list of the tree that is being exchanged
NO_TREE = 0  # no inode has this number
UNFINISHED_SECONDS = 60 * 86400  # a pull that was cut, and not gone on with for longer, is given up
QUARANTINED = 5  # refused collections of one server that stay to be looked at: the newest ones
# A record was believed once; what is asked now is only whether it is the same.
NO_LIMITS = Limits(max_files=1 << 40, max_bytes=1 << 60, case_collisions="allow")
YEAR = re.compile(r"[0-9]{4}")


class _Current(msgspec.Struct, frozen=True):
    record: str
    format: int = 1


class _Intent(msgspec.Struct, frozen=True):
    """Written before the exchange: enough to tell afterwards whether it took place, and to finish.

    Without a tree (on demand) there is no exchange: the intent itself is the step, and `inode` NO_TREE.
    """

    year: int
    state: str
    inode: int
    record: str
    format: int = 2


class Committed(msgspec.Struct, frozen=True):
    """The collection of a server that readers see now."""

    name: str
    record: Path
    pull: PullRecord
    tree: Path

    def files(self) -> Iterator[bytes]:
        """Yield the lines of FILES of the collection."""
        return lines_of(self.record / FILES)

    def chosen(self) -> Iterator[bytes]:
        """Yield the lines of the list of what is in view, as the school sealed it."""
        return lines_of(_chosen_in(self.record))

    def view(self) -> Iterator[bytes]:
        """Yield the lines of the list of what is published: what is encrypted as it is kept."""
        return lines_of(_view_in(self.record))

    def encrypted(self) -> list[str]:
        """Return the items (`gstudio/postgres-dump`) of which something is published as age files."""
        with contextlib.suppress(FileNotFoundError):
            paths = (self.record / ENCRYPTED).read_text().splitlines()
            return sorted({item_of(path.removeprefix("data/")) for path in paths})
        return []

    def collection(self) -> Collection:
        """Return what the school said about it. Raises RecordDamaged."""
        return read_collection(self.record)


class Release(msgspec.Struct, frozen=True):
    """The operator's word on a collection that was refused: which rules it may break, who said so and when.

    `folder` is its place in quarantine, "" where it never came there.
    """

    server_name: str
    sequence: int | None
    broken: list[Broken]
    by: str
    at: str
    how: str
    folder: str = ""
    format: int = 1


class Damage(msgspec.Struct, frozen=True):
    """One file of the published tree that is not what was committed.

    Of a content that is known by its digest alone, `concerns` are the first files that need it.
    """

    path: str
    problem: str
    concerns: list[str] = msgspec.field(default_factory=list)


class Difference(msgspec.Struct, frozen=True):
    """One file that differs between two collections: + new, - gone, * changed; its size in bytes."""

    sign: str
    path: str
    bytes: int


class Pruned(msgspec.Struct, frozen=True):
    """What pruning forgot and removed, and the room that became free by it and by packing, in bytes."""

    versions: list[Version]
    objects: int
    bytes: int
    packed: int


class _Swept(msgspec.Struct):
    """What a sweep has done so far."""

    objects: int = 0
    bytes: int = 0
    packed: int = 0


class Entry(msgspec.Struct, frozen=True):
    """One line of the tree: `level` 0 is a year, 4 an item; sizes and counts are of everything below."""

    path: str
    level: int
    name: str
    bytes: int
    files: int


class Archive:
    """The archive below one root."""

    def __init__(
        self,
        root: Path,
        shared_items: Sequence[str] = (),
        bucket: Bucket | None = None,
        *,
        on_demand: bool = False,
        recipients: Sequence[str] = (),
        sensitive_items: Sequence[str] = (),
    ) -> None:
        self.root = root
        self.hidden = root / ".shala"
        remote = Remote(bucket, self.hidden / "remote.sqlite") if bucket is not None else None
        ciphertexts = Ciphertexts(self.hidden / "encrypted.sqlite", recipients, sensitive_items)
        self.objects = Objects(
            self.hidden / "objects", shared_items, remote, on_demand=on_demand, ciphertexts=ciphertexts
        )

    @classmethod
    def of(cls, settings: ArchiveSettings) -> Archive:
        """Return the archive that a configuration names, with its bucket if it has one."""
        name, prefix = settings.bucket
        bucket = Bucket(
            name,
            prefix,
            settings.objects_endpoint,
            settings.objects_region,
            Path(settings.objects_credentials),
        )
        return cls(
            Path(settings.root),
            settings.shared_items,
            bucket if name else None,
            on_demand=settings.view == "on-demand",
            recipients=settings.recipients,
            sensitive_items=settings.sensitive_items,
        )

    def open(self) -> None:
        """Make the folders of the archive.

        Raises CentralError if they cannot be made or folders cannot be exchanged, or if the archive is
        somebody else's: what root writes there, its owner could not replace.
        """
        try:
            owner = self.root.stat().st_uid
        except FileNotFoundError:
            owner = os.geteuid()
        if owner != os.geteuid():
            raise CentralError(f"{self.root} belongs to {user_name(owner)} (run: {as_owner(self.root)})")
        try:
            for folder in ("staging", "collections", "objects", "spare", "quarantine", "locks"):
                make_folders(self.hidden / folder)
            # What is to be encrypted lies there in plain, until it has come whole.
            staging = self.hidden / "staging"
            staging.chmod(0o700 | (staging.stat().st_mode & stat.S_ISGID))
            require_exchange(self.hidden / "staging")
            remote = self.objects.remote
            if self.objects.on_demand and remote is not None and not remote.is_known() and self.servers():
                # Otherwise every school would be asked for everything again.
                raise CentralError(
                    f"what is in {remote.bucket} is not known here (shala archive objects --reindex;"
                    " where content is still on this disk: --upload)"
                )
        except PermissionError:
            raise CentralError(refused(self.root)) from None
        except OSError as error:
            raise CentralError(f"the archive {self.root} cannot be written: {error.strerror}") from None

    def require(self) -> None:
        """Raise UsageError unless there is an archive to look at, CentralError where this user may not."""
        try:
            found = self.hidden.is_dir()
        except PermissionError:
            found = True
        if found and not os.access(self.hidden, os.R_OK | os.X_OK, effective_ids=True):
            raise CentralError(refused(self.hidden))
        if not found:
            raise UsageError(
                f"{self.root} is not an archive yet (shala pull makes it; --config names another one)"
            )

    @contextlib.contextmanager
    def in_use(self, *, alone: bool = False) -> Iterator[None]:
        """Keep objects from being removed while the block runs; `alone` keeps everybody else out.

        Raises CentralError if that cannot be had now.
        """
        path = self.hidden / "locks" / ".objects"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                other = "a pull" if alone else "shala archive prune"
                raise CentralError(
                    f"{other} is at work in {self.root} (try again when it has ended)"
                ) from None
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def history(self) -> Iterator[History]:
        """Open the history of all servers while the block runs. Raises HistoryError."""
        with contextlib.closing(History(self.hidden / "history.sqlite")) as history:
            yield history

    # -- one server ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[int | None]:
        """Hold the lock of a server and yield its descriptor; yield None if another run holds it."""
        _require_name(name)
        descriptor = os.open(self.hidden / "locks" / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """Keep pulls and pruning away from a server while the block runs, what was cut before it finished.

        Raises CentralError if that cannot be had now.
        """
        with self.lock(name) as lock, self.in_use():
            if lock is None:
                raise CentralError(f"{name} is being pulled (try again when that has ended)")
            self.recover(name)
            yield

    def staging(self, name: str) -> Path:
        """Return the staging folder of a server; `data` in it is the tree to be."""
        _require_name(name)
        folder = self.hidden / "staging" / name
        folder.mkdir(mode=0o750, exist_ok=True)
        return folder

    def tree_of(self, year: int, state: str, name: str) -> Path:
        """Return the LEVEL 2 folder of a server in a year."""
        return self.root / f"{year:04d}" / state / name

    def committed(self, name: str) -> Committed | None:
        """Return what is published of a server, or None if nothing is. Raises RecordDamaged."""
        if not SERVER_NAME.fullmatch(name):
            return None
        folder = self.hidden / "collections" / name
        for _ in range(3):  # a commit moves the record while we look
            try:
                record = self._record_in_view(name, folder)
                pull = read_pull(record)
            except FileNotFoundError:
                continue
            except (OSError, msgspec.MsgspecError, RecordDamaged) as error:
                raise _damaged_record(name, str(error)) from None
            return Committed(name, record, pull, self.tree_of(pull.year, pull.state, name))
        if folders_of(folder) and not (self.hidden / "staging" / name / "commit.json").exists():
            raise _damaged_record(name, f"{folder} does not say which is the newest (current.json)")
        if (folder / "current.json").exists():
            raise _damaged_record(name, f"what {folder / 'current.json'} names is gone")
        return None

    def _record_in_view(self, name: str, folder: Path) -> Path:
        """Return the record of what readers see, also where a run was cut just after the exchange."""
        staging = self.hidden / "staging" / name
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
            intent = msgspec.json.decode((staging / "commit.json").read_bytes(), type=_Intent)
            if _inode(self.tree_of(intent.year, intent.state, name)) == intent.inode:
                moved = folder / intent.record
                return moved if moved.is_dir() else staging / "record"
        try:
            current = msgspec.json.decode((folder / "current.json").read_bytes(), type=_Current)
        except msgspec.MsgspecError as error:
            raise RecordDamaged(f"{folder / 'current.json'} cannot be read: {error}") from None
        return folder / current.record

    def is_readable(self, name: str) -> bool:
        """Return whether something of a server is published and its record tells what."""
        try:
            return self.committed(name) is not None
        except RecordDamaged:
            return False

    def last_known(self, name: str) -> PullRecord | None:
        """Return how the newest collection of a server came, as far as a damaged record still tells.

        It is what a school's next collection is held against.
        """
        with contextlib.suppress(RecordDamaged):
            if (committed := self.committed(name)) is not None:
                return committed.pull
        left = [what_is_left(record, "") for record in folders_of(self.hidden / "collections" / name)]
        with contextlib.suppress(HistoryError), self.history() as history:
            for version in history.versions(name)[-1:]:
                left.append(msgspec.json.decode(history.record(version)["pull.json"], type=PullRecord))
        if not left:
            return None
        newest = max(left, key=lambda pull: (pull.year, pull.sequence))
        key = next((pull.public_key for pull in (newest, *left) if pull.public_key), "")
        return msgspec.structs.replace(newest, public_key=key)

    def is_whole(self, record: Path) -> bool:
        """Return whether every file of a record is the one that was committed."""
        return not flaws(record)

    @staticmethod
    def lists_are_whole(record: Path) -> bool:
        """Return whether the lists of a record are those that the school sealed and that were published."""
        return has_sealed_list(record) and has_published_list(record)

    def knows(self, name: str) -> bool:
        """Return whether there is any trace of a server: a record, an earlier collection, content, a tree."""
        if not SERVER_NAME.fullmatch(name):
            return False
        traces = (self.hidden / "collections" / name, self.objects.root / name)
        if any(trace.is_dir() for trace in traces) or any(self.root.glob(f"[0-9][0-9][0-9][0-9]/*/{name}")):
            return True
        if not (self.hidden / "history.sqlite").exists():  # who only asks makes none
            return False
        with self.history() as history:
            return name in history.servers()

    def servers(self) -> list[str]:
        """Return the names of all servers with a committed collection whose record can be read."""
        folder = self.hidden / "collections"
        names = (path.parent.name for path in folder.glob("*/current.json"))
        return sorted(filter(self.is_readable, names), key=_by_number)

    def known(self) -> list[str]:
        """Return the names of all servers of which there is any trace: a record, a tree or a history."""
        names = {path.name for path in (self.hidden / "collections").iterdir()}
        names |= {path.name for path in self.root.glob("[0-9][0-9][0-9][0-9]/*/*")}
        with contextlib.suppress(HistoryError), self.history() as history:
            names |= history.servers()
        return sorted(filter(SERVER_NAME.fullmatch, names), key=_by_number)

    def damaged(self) -> dict[str, str]:
        """Return why nothing can be told of servers of which there is a trace: {name: the reason}."""
        found = {name: self.damaged_record(name, is_known=True) for name in self.known()}
        return {name: reason for name, reason in found.items() if reason}

    def damaged_record(self, name: str, *, is_known: bool = False) -> str:
        """Return why nothing can be told of a server although there is a trace of it, or ""."""
        try:
            committed = self.committed(name)
        except RecordDamaged as damaged:
            return str(damaged)
        if committed is not None or self._is_at_work(name) or not (is_known or name in self.known()):
            return ""
        return str(_damaged_record(name, "it is gone"))

    def _is_at_work(self, name: str) -> bool:
        """Return whether a commit of a server has begun and is not done."""
        return (self.hidden / "staging" / name / "commit.json").exists()

    def records(self, name: str) -> list[PullRecord]:
        """Return how each collection of a server that is kept was pulled, oldest first."""
        with self.history() as history:
            earlier = [history.record(version)["pull.json"] for version in history.versions(name)]
        records = [msgspec.json.decode(raw, type=PullRecord) for raw in earlier]
        committed = self.committed(name)
        return [*records, committed.pull] if committed is not None else records

    def quarantined(self, name: str) -> list[dict[str, object]]:
        """Return what is in quarantine of a server, each with its folder and reasons, oldest first."""
        found: list[dict[str, object]] = []
        if not SERVER_NAME.fullmatch(name):
            return found
        # By the time in their names, not by the number that the school gave.
        found_here = (self.hidden / "quarantine").glob(f"{name}-*/reason.json")
        for path in sorted(found_here, key=lambda path: path.parent.name.rpartition("-")[2]):
            with contextlib.suppress(msgspec.MsgspecError, OSError):
                reason = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
                if reason.get("server_name") == name:
                    released = (path.parent / "released").exists()
                    found.append({"folder": str(path.parent), "released": released, **reason})
        return found

    def quarantine_counts(self) -> dict[str, int]:
        """Return how many refused collections each server has in quarantine."""
        counts: dict[str, int] = {}
        for entry in os.scandir(self.hidden / "quarantine"):
            if match := re.fullmatch(r"(.+)-[0-9]{8}-[0-9TZ.]+", entry.name):
                counts[match[1]] = counts.get(match[1], 0) + 1
        return counts

    # -- commit ----------------------------------------------------------------------------------------------

    def recover(self, name: str) -> None:
        """Finish or forget what an earlier run of this server left behind. Call with the lock held."""
        staging = self.staging(name)
        intent_file = staging / "commit.json"
        with contextlib.suppress(FileNotFoundError):
            try:
                intent = msgspec.json.decode(intent_file.read_bytes(), type=_Intent)
            except msgspec.MsgspecError:
                intent = None
            if intent is not None and intent.inode in (
                NO_TREE,
                _inode(self.tree_of(intent.year, intent.state, name)),
            ):
                self._finish(name, intent)
            else:
                remove_tree(staging / "record")
                intent_file.unlink()
        for left in staging.iterdir():
            if left.name not in ("data", "commit.json"):
                remove_tree(left)
        self._mend_pointer(name)

    def mend_record(self, name: str, others: Sequence[Path] = ()) -> bool:
        """Mend the record of a server from other records of its newest collection; return if it is whole.

        `others` are folders of such records, of a second copy. What they give is believed when all files of
        one fit each other. A pull.json that no other has is made anew where nothing was held back. With the
        lock held.
        """
        folder = self.hidden / "collections" / name
        if not self.is_readable(name):
            self._mend_unreadable(name, folder, others)
        if not self.is_readable(name):
            return False
        committed = self._require(name)
        record, pull = committed.record, committed.pull
        bad = {flaw.name for flaw in flaws(record)}
        if VIEW in bad and self.mend_view(name, committed):
            bad.discard(VIEW)
        good = (other for other in others if bad and not flaws(other))
        for other in (other for other in good if read_pull(other).is_of_same_collection(pull)):
            wanted = list(SEALED)  # what one damaged file hides of another is mended with it
            if VIEW in bad:
                # A list and its digest belong together: readers see what they saw in the copy.
                wanted += [file for file in (VIEW, ENCRYPTED, "pull.json") if (other / file).exists()]
            _copy_files(other, record, wanted)
            break
        return not flaws(record)

    def _mend_unreadable(self, name: str, folder: Path, others: Sequence[Path]) -> None:
        """Make a record readable whose pull.json, or all of which, is lost."""
        records = folders_of(folder)
        if len(records) > 1:
            return  # nothing says which is the newest
        with self.history() as history:
            versions = history.versions(name)
        here = records[0] if records else None
        for other in (other for other in others if not flaws(other)):
            pull = read_pull(other)
            if here is not None:
                left = what_is_left(here, pull.state)
                fits = (left.year, left.sequence) == (pull.year, pull.sequence) and left.manifest_sha256 in (
                    "",
                    pull.manifest_sha256,
                )
            else:  # not one that was followed by others: those would be lost with it
                fits = all(version.pulled < pull.pulled for version in versions)
            if fits:
                make_folders(folder)
                place = here or folder / other.name
                place.mkdir(mode=0o750, exist_ok=True)
                names = (*SEALED, VIEW, ENCRYPTED, "pull.json")
                _copy_files(other, place, [file for file in names if (other / file).exists()])
                break
        else:
            tree = next(self.root.glob(f"[0-9][0-9][0-9][0-9]/*/{name}"), None)
            if here is None or tree is None or (here / VIEW).exists():
                return
            if {flaw.name for flaw in flaws(here)} - {"pull.json"}:
                return
            pull = what_is_left(here, tree.parent.name)
            write_file(here / "pull.json", msgspec.json.encode(pull) + b"\n")
        self._mend_pointer(name)

    def _mend_pointer(self, name: str) -> None:
        """Write current.json anew where it is damaged or gone, and only one whole record is there."""
        folder = self.hidden / "collections" / name
        records = folders_of(folder)
        if len(records) != 1 or self.is_readable(name) or self._is_at_work(name) or flaws(records[0]):
            return
        write_file(folder / "current.json", msgspec.json.encode(_Current(records[0].name)) + b"\n")
        logger.warning("current.json of %s was damaged or gone, and is made anew", name)

    def commit(self, name: str, bag: Bag, received: Path, pull: PullRecord, *, fresh: bool = False) -> None:
        """Publish a collection whose content is among the objects, and write its record. With the lock held.

        `received` is the folder with its HEAD, FILES and small tag files. Suspect items leave the last good
        ones in view, and the same collection once more leaves in view what the operator chose. Raises
        ObjectsLost if content is not there; then nothing has changed. A `fresh` tree is made of objects
        alone.
        """
        record = self.staging(name) / "record"
        remove_tree(record)
        record.mkdir(mode=0o750)
        for file in received.iterdir():
            if file.is_file():
                (record / file.name).hardlink_to(file)
        previous = self.committed(name) if self.is_readable(name) else None
        if previous is None and any(
            (left / VIEW).exists() for left in folders_of(self.hidden / "collections" / name)
        ):
            logger.warning(
                "what was held back of %s is not known any more: readers see what has come now", name
            )
        known = previous is None or self.mend_view(name, previous)
        if previous is not None and (previous.pull.year, previous.pull.state) != (pull.year, pull.state):
            previous = None  # another tree: there is nothing in it to be replaced
        held = _held(previous, bag.collection, pull)
        if held and not known:
            logger.warning(
                "what was held back of %s is not known any more: readers see what is suspect", name
            )
            held = {}
        if previous is not None and held:
            _write_view(record, lines_of(received / FILES), readable(previous.chosen()), held)
        pull = msgspec.structs.replace(pull, held=held)
        if previous is not None and previous.pull.is_of_same_collection(pull):
            pull = msgspec.structs.replace(pull, accepted=previous.pull.accepted)
        self._publish(name, record, pull, fresh=fresh)
        self._close_release(name)

    def _close_release(self, name: str) -> None:
        """Remove what the operator let in from quarantine: it is let in once."""
        committed = self.committed(name)
        head = (committed.record / "HEAD").read_bytes() if committed is not None else b""
        for entry in self.quarantined(name):
            folder = Path(str(entry["folder"]))
            with contextlib.suppress(FileNotFoundError):
                if (folder / "HEAD").read_bytes() == head:
                    remove_tree(folder)

    def accept(self, name: str, items: Sequence[str] = ()) -> list[str]:
        """Let suspect items of the newest collection replace the last good ones in view; return which.

        Without `items` all of them. Raises UsageError for one that is not held back, ObjectsLost.
        """
        self._require(name)
        with self.changing(name):
            committed = self._require(name)
            held = committed.pull.held
            for item in items:
                if item not in held:
                    known = ", ".join(sorted(held)) or "none"
                    raise UsageError(f"'{item}' of {name} is not held back (held are: {known})")
            accepted = sorted(items or held)
            if not accepted:
                return []
            record = self._copy_record(name, committed)
            still = {item: number for item, number in held.items() if item not in accepted}
            if still:
                _write_view(record, committed.files(), committed.chosen(), still)
            taken = sorted({*committed.pull.accepted, *accepted})
            pull = msgspec.structs.replace(committed.pull, held=still, accepted=taken)
            self._publish_kept(name, record, pull)
            return accepted

    def restore(self, name: str, version: Version, items: Sequence[str] = ()) -> list[str]:
        """Let readers see an earlier collection, or items of it, until the next good one; return which items.

        Raises UsageError for an item that it does not have, ObjectsLost.
        """
        with self.changing(name):
            committed = self._require(name)
            collection = msgspec.json.decode(self.record(version)["collection.json"], type=Collection)
            there = [f"{item.platform}/{item.name}" for item in collection.items if item.files]
            for item in items:
                if item not in there:
                    which = f"collection {version.sequence} of {name}"
                    raise UsageError(f"{which} has no item '{item}' (has: {', '.join(there)})")
            chosen = list(items) or there
            record = self._copy_record(name, committed)
            prefixes = [f"data/{item}" for item in chosen]
            others = select(committed.chosen(), prefixes, inside=False)
            with (record / VIEW).open("wb") as view:
                view.writelines(merged(others, select(self.files(version), prefixes, inside=True)))
            held = {item: number for item, number in committed.pull.held.items() if item not in chosen}
            if version.id:
                held |= dict.fromkeys(chosen, version.sequence)
            self._publish_kept(name, record, msgspec.structs.replace(committed.pull, held=held))
            return chosen

    def _publish_kept(self, name: str, record: Path, pull: PullRecord) -> None:
        try:
            self._publish(name, record, pull)
        except ObjectsLost as lost:
            raise CentralError(
                f"{lost} of {name} (shala archive repair {name}, or shala pull --again {name})"
            ) from None

    def relink(self, name: str) -> None:
        """Publish what is published once more, of the objects as they are now. With the lock held."""
        if not self.objects.on_demand:
            with contextlib.suppress(ObjectsLost):
                self.republish(name)

    def strays(self, name: str) -> list[str]:
        """Return the paths of the newest tree that are not the objects of the list of what is in view.

        Those that are missing, that another file stands in the place of, or that belong to no collection; of
        what is a link to its object nothing is read. None where there is no tree.
        """
        committed = self._require(name)
        if self.objects.on_demand:
            return []
        found = [damage.path for damage in _differences(committed.tree, committed.view(), share=0)]
        told = set(found)
        for file in map(file_of, committed.view()):
            path = file.path.removeprefix("data/")
            place = self.objects.find(name, path, file.sha256)
            if path in told or (place is not None and _inode(place) == _inode(committed.tree / path)):
                continue
            if not _holds(committed.tree / path, file.sha256):
                found.append(path)
        return found

    def republish(self, name: str) -> None:
        """Publish what is in view once more, as it is kept now. With the lock held. Raises ObjectsLost."""
        committed = self._require(name)
        record = self._copy_record(name, committed)
        if (committed.record / VIEW).is_file():
            (record / VIEW).hardlink_to(committed.record / VIEW)
        self._publish(name, record, committed.pull, fresh=True)

    def republish_year(self, version: Version) -> None:
        """Publish the tree of an earlier year once more, as its content is kept now, in one step.

        `version` is the collection that it shows. With the lock held; it may be cut at any moment and is then
        to be repeated. Raises ObjectsLost.
        """
        name, state = version.server, self._require(version.server).pull.state
        record = self.staging(name) / "record"
        remove_tree(record)
        record.mkdir(mode=0o750)
        with self.history() as history:
            with (record / VIEW).open("wb") as view:
                view.writelines(self._chosen(version, history.record(version)))
            published = self._write_published(name, record, record / VIEW)
            tree, place = self.staging(name) / "tree", self.tree_of(version.year, state, name)
            if place.is_dir():
                assemble(tree, published, self.objects, name)
                publish(tree, place)
            history.mark(version, ENCRYPTED, (record / ENCRYPTED).read_bytes())
        remove_tree(tree)
        remove_tree(record)

    def mend_view(self, name: str, committed: Committed) -> bool:
        """Return whether the list of what is published is whole, if need be made anew of what it was made of.

        Its digest tells whether it came to the same again. Call with the lock held.
        """
        if has_published_list(committed.record):
            return True
        held, kept = committed.pull.held, {version.sequence: version for version in self.versions(name)}
        if not has_sealed_list(committed.record) or not kept.keys() >= set(held.values()):
            return False
        made = self.staging(name) / VIEW
        lines = select(committed.files(), [f"data/{item}" for item in held], inside=False)
        for item, number in held.items():
            lines = merged(lines, select(self.files(kept[number]), [f"data/{item}"], inside=True))
        with made.open("wb") as view:
            view.writelines(lines)
        if digest_of(made) != committed.pull.view_sha256:
            made.unlink()
            return False
        sync_file_system(made.parent)
        made.rename(committed.record / VIEW)
        sync_folder(committed.record)
        return True

    def _copy_record(self, name: str, committed: Committed) -> Path:
        """Begin a record of the same collection with another view. Raises CentralError for a damaged one."""
        if not self.lists_are_whole(committed.record):
            raise CentralError(
                f"the record of {name} in {committed.record} is damaged (shala pull --again {name})"
            )
        record = self.staging(name) / "record"
        remove_tree(record)
        record.mkdir(mode=0o750)
        for file in committed.record.iterdir():
            if file.name not in (VIEW, ENCRYPTED, PUBLISHED, "pull.json"):
                (record / file.name).hardlink_to(file)
        return record

    def _publish(self, name: str, record: Path, pull: PullRecord, *, fresh: bool = False) -> None:
        """Assemble what a record in staging lists, and put it in its place in one step.

        A `fresh` tree is made of objects alone: the one that stands there is not believed.
        """
        staging = self.staging(name)
        tree = staging / "tree"
        files, view = record / FILES, record / VIEW
        pull = msgspec.structs.replace(pull, view_sha256=digest_of(view) if view.is_file() else "")
        (record / "pull.json").write_bytes(msgspec.json.encode(pull) + b"\n")
        lists = (files, view) if view.is_file() else (files,)
        published = self._write_published(name, record, lists[-1])
        stored = self.objects.ciphertexts.lines
        # Before the record names it: what a bucket is to have is there for good.
        for listed in lists if self.objects.remote is not None else ():
            self.objects.send(self.objects.local(name, stored(name, lines_of(listed))))
        try:
            if self.objects.on_demand:
                for listed in lists:
                    self._require_content(name, stored(name, lines_of(listed)))
                self._spare(name).drop()  # of a time when there was a tree
                inode = NO_TREE
            else:
                self._assemble(name, tree, published, fresh=fresh)
                inode = tree.stat().st_ino
        except ObjectsLost as lost:
            # Under the names that the school knows: it is asked for them.
            raise ObjectsLost(
                [self.objects.ciphertexts.as_sealed(name, file) for file in lost.files]
            ) from None
        before = self.committed(name) if self.is_readable(name) else None
        same_tree = before is not None and (before.pull.year, before.pull.state) == (pull.year, pull.state)
        if (
            before is not None
            and same_tree
            and not fresh
            and inode != NO_TREE
            and self.is_whole(before.record)
        ):
            # What the exchange leaves in the place of the tree is then known, and can be used again.
            (staging / BEFORE).unlink(missing_ok=True)
            (staging / BEFORE).hardlink_to(_view_in(before.record))
        intent = _Intent(pull.year, pull.state, inode, self._record_name(name, pull))
        # The intent says that the record is whole.
        sync_file_system(staging)
        write_file(staging / "commit.json", msgspec.json.encode(intent))
        if inode != NO_TREE:
            publish(tree, self.tree_of(pull.year, pull.state, name))
        self._finish(name, intent)

    def _write_published(self, name: str, record: Path, chosen: Path) -> Path:
        """Given the list of what is to be in view, return the list of what is published: age files too.

        Raises BagRefused where an age file's name is taken or too long.
        """
        ciphertexts = self.objects.ciphertexts
        if not ciphertexts.items(name):
            return chosen
        published, encrypted = record / PUBLISHED, record / ENCRYPTED
        with published.open("wb") as lines, encrypted.open("wb") as paths:
            lines.writelines(_without_clashes(ciphertexts.lines(name, lines_of(chosen), paths=paths)))
        if encrypted.stat().st_size:
            return published
        published.unlink()
        encrypted.unlink()
        return chosen

    def _assemble(self, name: str, tree: Path, files: Path, *, fresh: bool) -> None:
        """Make a tree; what is not on this disk comes out of the bucket, where it is there."""
        spare = self._spare(name)
        if fresh:
            spare.drop()
        usable = spare.take()
        brought: set[str] = set()
        while True:
            try:
                assemble(tree, files, self.objects, name, spare if usable else None)
            except FileNotFoundError:
                if not usable:
                    raise
                logger.warning("the spare tree of %s is not what it should be: all folders are made", name)
            except ObjectsLost as lost:

                def back(file: File) -> bool:
                    pool = self.objects.pool_of(name, file.path.removeprefix("data/"))
                    return self.objects.bring_back(pool, file.sha256)

                # Once each: what comes with another size than is listed would be asked for without end.
                again = [file for file in lost.files if file.path not in brought]
                brought.update(file.path for file in again)
                if self.objects.remote is None or not any(list(in_parallel(back, again))):
                    raise
            else:
                break
            finally:
                # Taken apart by now: it is good for one attempt.
                usable = False
                spare.drop()

    def _spare(self, name: str) -> Spare:
        return Spare(self.hidden / "spare" / name)

    def _require_content(self, name: str, lines: Iterable[bytes]) -> None:
        """Raise ObjectsLost unless every content of a list is in the bucket, or packed on this disk."""
        lost: list[File] = []
        for line in lines:
            file = file_of(line)
            path = file.path.removeprefix("data/")
            if not self.objects.has_remote(name, path, file.sha256, file.size) and not self.objects.cold.has(
                self.objects.pool_of(name, path), file.sha256
            ):
                lost.append(file)
                if len(lost) >= MAX_LOST:
                    break
        if lost:
            raise ObjectsLost(lost)

    def is_in_view(self, committed: Committed) -> bool:
        """Return whether what is committed can be had as the configuration wants it."""
        return self.objects.on_demand or committed.tree.is_dir()

    def _record_name(self, name: str, pull: PullRecord) -> str:
        """Return a name for a record that no other one has: the same collection may be published twice."""
        record = f"{pull.year:04d}-{pull.sequence:08d}"
        taken = (self.hidden / "collections" / name / record).exists()
        return f"{record}-{_stamp()}" if taken else record

    def _finish(self, name: str, intent: _Intent) -> None:
        """Do what follows the exchange; every step may be repeated."""
        staging = self.staging(name)
        history = self.hidden / "collections" / name
        make_folders(history)
        if (staging / "record").is_dir():
            (staging / "record").rename(history / intent.record)
            sync_folder(history)
        write_file(history / "current.json", msgspec.json.encode(_Current(intent.record)) + b"\n")
        self._remember(name, history / intent.record)
        stale = self.tree_of(intent.year, intent.state, name)
        if intent.inode == NO_TREE and stale.is_dir():
            stale.rename(staging / "tree")
        if (staging / "tree").exists():
            if (staging / BEFORE).exists():
                now = _view_in(history / intent.record)
                try:
                    self._spare(name).keep(staging / "tree", staging / BEFORE, now)
                except ManifestError:
                    self._spare(name).drop()
            else:
                (staging / "tree").rename(staging / f"old-{_stamp()}")
        for left in staging.iterdir():
            if left.name != "commit.json":
                remove_tree(left)
        (staging / "commit.json").unlink()

    def _remember(self, name: str, newest: Path) -> None:
        """Move the records of all collections but the newest into the history."""
        for record in newest.parent.iterdir():
            if record == newest or not record.is_dir():
                continue
            if _same_collection(record, newest):
                # Once more, because its tree was lost or an item was accepted.
                remove_tree(record)
                continue
            self.remember(name, record, newest)
            # Otherwise an earlier run was cut while it removed what is remembered.
            remove_tree(record)

    def remember(self, name: str, record: Path, newest: Path) -> None:
        """Put the collection of a record into the history, as the way back from the newest record."""
        names = [file.name for file in record.iterdir()]
        if all(file in names for file in RECORD_FILES):
            names = [file for file in names if file not in (FILES, PUBLISHED)]
            files = {file: (record / file).read_bytes() for file in names}
            old = lines_of(record / FILES)
            # Of a list that a disk has damaged stays what can be read.
            old = old if has_sealed_list(record) else readable(old)
            back = changes_between(lines_of(newest / FILES), old)
            pull = _pull_of(record, read_pull(newest).state)
            files["pull.json"] = msgspec.json.encode(pull) + b"\n"
            if VIEW in files and not has_published_list(record):
                files[VIEW] = b"".join(readable(lines_in(files[VIEW])))
                pull = msgspec.structs.replace(pull, view_sha256=hashlib.sha256(files[VIEW]).hexdigest())
                files["pull.json"] = msgspec.json.encode(pull) + b"\n"
            with self.history() as history:
                history.add(name, pull.pulled, files, back)

    def quarantine(
        self, name: str, sequence: int | None, refused: BagRefused, tag_files: Mapping[str, bytes]
    ) -> Path:
        """Keep what was refused, with its reasons; damaged payload files are moved there out of staging.

        A collection that was refused before for the same reasons is not kept twice.
        """
        digest = hash_of(tag_files)
        times = 1
        for earlier in self.quarantined(name):
            if earlier.get("digest") == digest and earlier.get("reasons") == refused.reasons:
                times += int(str(earlier.get("times", 1)))
                remove_tree(Path(str(earlier["folder"])))
        folder = self.hidden / "quarantine" / f"{name}-{sequence or 0:08d}-{_stamp()}"
        folder.mkdir(mode=0o750)
        for file, content in tag_files.items():
            write_file(folder / file, content)
        data = self.staging(name) / "data"
        for number, path in enumerate(refused.paths):
            source = data / path
            # Paths of a refused manifest are a stranger's words: only what is a plain file inside staging is
            # moved.
            if ".." in path.split("/") or path.startswith("/") or not _is_file_below(data, source):
                continue
            if self.objects.ciphertexts.is_sensitive(path):
                source.unlink()
                continue
            source.rename(folder / f"file-{number:04d}")
        reason = {
            "format": 1,
            "server_name": name,
            "sequence": sequence,
            "at": _now(),
            "times": times,
            "digest": digest,
            "reasons": refused.reasons,
            "paths": refused.paths,
            "broken": refused.broken,
        }
        write_file(folder / "reason.json", msgspec.json.format(msgspec.json.encode(reason), indent=1) + b"\n")
        for earlier in self.quarantined(name)[:-QUARANTINED]:
            remove_tree(Path(str(earlier["folder"])))
        return folder

    def release(self, name: str) -> Release:
        """Let the newest refused collection of a server in, the next time it is asked for.

        Only what it was refused for is lifted, and only for it; returns what that is. Raises UsageError if
        there is none, or if it is not a rule that stands against it.
        """
        found = self.quarantined(name)
        if not found:
            raise UsageError(f"nothing of '{name}' is in quarantine (shala archive quarantine list)")
        newest = found[-1]
        broken = msgspec.convert(newest.get("broken") or [], list[Broken])
        if not broken:
            reasons = newest.get("reasons")
            first = reasons[0] if isinstance(reasons, list) and reasons else "it is not whole"
            raise UsageError(
                f"the collection of {name} cannot be let in: {first} (shala pull {name} asks again)"
            )
        folder = Path(str(newest["folder"]))
        sequence = msgspec.convert(newest.get("sequence"), int | None)
        release = self.note_release(name, sequence, broken, "shala archive quarantine release", folder.name)
        write_file(folder / "released", msgspec.json.encode(release) + b"\n")
        return release

    def note_release(
        self, name: str, sequence: int | None, broken: Sequence[Broken], how: str, folder: str = ""
    ) -> Release:
        """Write down for good which rules the operator has lifted for which collection."""
        release = Release(name, sequence, list(broken), _operator(), _now(), how, folder)
        place = self.hidden / "releases"
        make_folders(place)
        raw = msgspec.json.format(msgspec.json.encode(release), indent=1) + b"\n"
        write_file(place / f"{name}-{_stamp()}.json", raw)
        return release

    def releases(self, name: str) -> list[Release]:
        """Return which rules were ever lifted for collections of a server, oldest first."""
        if not SERVER_NAME.fullmatch(name):
            return []
        found: list[Release] = []
        for place in sorted((self.hidden / "releases").glob(f"{name}-*.json")):
            try:
                found.append(msgspec.json.decode(place.read_bytes(), type=Release))
            except msgspec.MsgspecError as error:
                logger.warning("%s is damaged: %s", place, error)
        return found

    def lifted(self, name: str, head: bytes) -> list[Broken]:
        """Return the rules that the operator has lifted for the collection with this HEAD."""
        lifted: list[Broken] = []
        for entry in self.quarantined(name):
            folder = Path(str(entry["folder"]))
            with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
                release = msgspec.json.decode((folder / "released").read_bytes(), type=Release)
                if (folder / "HEAD").read_bytes() == head:
                    lifted += release.broken
        return lifted

    def discard(self, name: str) -> int:
        """Remove what is in quarantine of a server; return how many refused collections that was."""
        found = self.quarantined(name)
        for entry in found:
            remove_tree(Path(str(entry["folder"])))
        return len(found)

    # -- earlier collections --------------------------------------------------------------------------------

    def versions(self, name: str) -> list[Version]:
        """Return every collection of a server that is kept, oldest first; the newest has the id 0.

        Raises UsageError if there is none.
        """
        newest = self.newest(name)
        with self.history() as history:
            return [*history.versions(name), newest]

    def newest(self, name: str) -> Version:
        """Return the newest collection of a server. Raises UsageError if there is none."""
        pull = self._require(name).pull
        return Version(0, name, pull.pulled, pull.year, pull.sequence, pull.files, pull.bytes)

    def version(self, name: str, wanted: int | str | None) -> Version:
        """Return one kept collection: by its number, by its handle `2@2026-11-21T15:38`, or None: the newest.

        Raises UsageError if there is none, or more than one of that number.
        """
        newest = self.newest(name)
        if wanted is None:
            return newest
        try:
            versions = self.versions(name)
        except HistoryError:
            if str(wanted) == str(newest.sequence):  # as far as is known
                return newest
            raise
        number, _, pulled = str(wanted).partition("@")
        found = [v for v in versions if str(v.sequence) == number and v.pulled.startswith(pulled)]
        if len(found) == 1:
            return found[0]
        names = handles(versions)
        if found:
            which = ", ".join(names[version] for version in found)
            raise UsageError(
                f"{name} has {len(found)} collections {wanted}: it was installed anew (name one: {which})"
            )
        kept = ", ".join(names[version] for version in versions[-10:])
        raise UsageError(f"{name} has no collection {wanted} (kept are: {kept}; shala archive log {name})")

    def files(self, version: Version) -> Iterator[bytes]:
        """Yield the lines of FILES of a kept collection."""
        newest = self._require(version.server).files()
        if version.id == 0:
            yield from newest
            return
        with self.history() as history:
            yield from history.files(version, newest)

    def view(self, version: Version) -> Iterator[bytes]:
        """Yield the lines of the list of what was published of a kept collection.

        Raises CentralError if it is damaged.
        """
        if version.id == 0:
            yield from self._published_list(self._require(version.server))
            return
        with self.history() as history:
            record = history.record(version)
        lines = self._chosen(version, record)
        if ENCRYPTED not in record:
            yield from lines
            return
        only = set(record[ENCRYPTED].splitlines())
        yield from self.objects.ciphertexts.lines(version.server, lines, only)

    def _chosen(self, version: Version, record: Mapping[str, bytes]) -> Iterator[bytes]:
        """Yield the lines of the list of what was in view of an earlier collection, as it was sealed.

        Raises CentralError if it is damaged.
        """
        view = _view_of(version, record)
        return lines_in(view) if view is not None else self.files(version)

    @staticmethod
    def _published_list(committed: Committed) -> Iterator[bytes]:
        if not has_published_list(committed.record):
            raise _damaged_view(committed.name)
        return committed.view()

    def diff(self, old: Version, new: Version) -> list[Difference]:
        """Return which files differ in content between two kept collections, in the order of manifests."""
        differences: list[Difference] = []
        for before, after in differing(self.files(old), self.files(new)):
            if after is None and before is not None:
                differences.append(Difference("-", before.path.removeprefix("data/"), before.size))
            elif after is not None and before is None:
                differences.append(Difference("+", after.path.removeprefix("data/"), after.size))
            elif before is not None and after is not None and before.sha256 != after.sha256:
                differences.append(Difference("*", after.path.removeprefix("data/"), after.size))
        return differences

    def record(self, version: Version) -> dict[str, bytes]:
        """Return the small files of the record of a kept collection, by name."""
        if version.id:
            with self.history() as history:
                return history.record(version)
        record = self._require(version.server).record
        large = (FILES, VIEW, PUBLISHED)
        return {file.name: file.read_bytes() for file in record.iterdir() if file.name not in large}

    def checkout(
        self, version: Version, destination: Path, below: str = "", identities: Identities = ()
    ) -> tuple[int, int]:
        """Write a collection, or what is below a path of it, to a new folder; return (files, bytes).

        Content, times and permissions are those that the school sealed; what is encrypted is an age file, and
        with the researcher's `identities` plain. Raises UsageError if the destination is there already,
        CentralError for content that is damaged or gone, or encrypted to somebody else.
        """
        if os.path.lexists(destination):
            raise UsageError(f"{destination} exists already (name a folder that does not)")
        # What was fetched from a bucket counts for the next try, if that is for the same.
        what = zlib.crc32(f"{version.server} {version.pulled} {below}{' plain' * bool(identities)}".encode())
        unfinished = destination.with_name(f".{destination.name}.{what:08x}.part")
        # A decrypted file counts for nothing: only its age file could be compared.
        resumes = self.objects.on_demand and not identities
        if not resumes:
            remove_tree(unfinished)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir(mode=0o700, exist_ok=True)
        unfinished.chmod(0o700)  # children's data: who may read it is the operator's decision
        files = size = 0
        chosen = (
            file
            for file in map(file_of, self.files(version))
            if not below
            or file.path in (f"data/{below}", f"data/{below.removesuffix(SUFFIX)}")
            or file.path.startswith(f"data/{below}/")
        )

        any_encrypted = bool(self.objects.ciphertexts.items(version.server))

        def write(file: File) -> int:
            stored = self.objects.ciphertexts.as_stored(version.server, file) if any_encrypted else file
            path = stored.path.removeprefix("data/")
            (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
            self._copy_out(version, path, stored, unfinished / path)
            if stored is file or not identities:
                return stored.size
            _decrypt(unfinished / path, file, identities)
            return file.size

        try:
            for written in in_parallel(write, chosen) if self.objects.on_demand else map(write, chosen):
                files, size = files + 1, size + written
            if not files:
                raise UsageError(
                    f"collection {version.sequence} of {version.server} holds nothing at '{below}'"
                )
            unfinished.rename(destination)
        except BaseException as failed:
            if not resumes or isinstance(failed, OSError | UsageError):
                remove_tree(unfinished)
            else:
                logger.warning("what was fetched stays in %s for the next try", unfinished)
            raise
        return files, size

    def prune(self, keep_days: int, keep_months: int, *, pretend: bool = False) -> Pruned:
        """Forget the collections that the policy lets go, remove what none needs any more, pack what is cold.

        It may be cut at any moment. Raises CentralError while somebody pulls.
        """
        now = datetime.datetime.now(datetime.UTC)
        gone: list[Version] = []
        shared: set[str] = set()
        shared_bases: dict[str, str] = {}
        counts = _Swept()
        with self.in_use(alone=True), self.history() as history:
            if not pretend:
                self._recover_all()
            left_alone = self._unclear(history)
            for name in self.servers():
                if name in left_alone:
                    continue
                year = self._require(name).pull.year
                superfluous_ones = superfluous(history.versions(name), now, keep_days, keep_months, year)
                gone += superfluous_ones
                if not pretend:
                    history.forget(superfluous_ones)
                own: set[str] = set()
                try:
                    for file in self.needed(name, history):
                        to_all = self.objects.is_shared(file.path.removeprefix("data/"))
                        (shared if to_all else own).add(file.sha256)
                except CentralError as damaged:
                    logger.warning("%s", damaged)
                    left_alone.add(name)
                    continue
                bases, bases_of_all = self._bases(name, history)
                shared_bases |= bases_of_all
                if not pretend:
                    self.objects.ciphertexts.keep(name, own)
                self._sweep(name, own, bases, counts, pretend=pretend)
            for pool in self._abandoned(left_alone, pretend=pretend):
                self._sweep(pool, set(), {}, counts, pretend=pretend)
                if not pretend:
                    remove_tree(self.objects.root / pool)
                    (self.hidden / "abandoned" / pool).unlink()
            for name in sorted(left_alone):
                logger.warning("%s is left alone: its record is not whole, or its pull not done", name)
            if not left_alone:
                # What is shared may be needed by any server, and so only goes when all are clear.
                self._sweep(SHARED, shared, shared_bases, counts, pretend=pretend)
        return Pruned(gone, counts.objects, counts.bytes, counts.packed)

    def _abandoned(self, left_alone: set[str], *, pretend: bool) -> list[str]:
        """Return the pools of servers that have had no record, no pull and no tree for UNFINISHED_SECONDS.

        Not at once: records may be lost by accident, and brought back from a copy.
        """
        remote, marks = self.objects.remote, self.hidden / "abandoned"
        pools = {*self.objects.pools(), *(remote.pools() if remote is not None else ())}
        named = {*left_alone, *self.servers()}
        due: list[str] = []
        for pool in sorted(filter(SERVER_NAME.fullmatch, pools)):
            mark = marks / pool
            if pool in named or any(self.root.glob(f"[0-9][0-9][0-9][0-9]/*/{pool}")):
                if not pretend:
                    mark.unlink(missing_ok=True)
                continue
            if not pretend and not mark.exists():
                make_folders(marks)
                mark.touch()
            since = mark.stat().st_mtime if mark.exists() else time.time()
            if time.time() - since >= UNFINISHED_SECONDS:
                due.append(pool)
                continue
            day = datetime.datetime.fromtimestamp(since + UNFINISHED_SECONDS, datetime.UTC).date()
            logger.warning("%s has content and no record: it goes on %s (or bring back .shala)", pool, day)
        return due

    def _recover_all(self) -> None:
        """Finish the commits that were cut: until then nothing says what they need."""
        for staging in (self.hidden / "staging").iterdir():
            if (staging / "commit.json").exists():
                with self.lock(staging.name) as lock:
                    if lock is not None:
                        self.recover(staging.name)

    def _unclear(self, history: History) -> set[str]:
        """Return the servers of which nobody can say now what they need.

        Those with a record that is lost or damaged, a commit that is not finished, or a pull that goes on.
        """
        kept = {path.name for path in (self.hidden / "collections").iterdir()} | history.servers()
        kept.update(self.known())
        unclear = kept - set(self.servers())
        for name in set(self.servers()):
            committed = self.committed(name)
            if committed is None or not self.is_whole(committed.record):
                unclear.add(name)
            elif (committed.record / ENCRYPTED).exists() and not self.objects.ciphertexts.items(name):
                unclear.add(name)  # the table is lost: nothing says which age files are needed
        for staging in (self.hidden / "staging").iterdir():
            data = staging / "data"
            fetching = data.is_dir() and time.time() - data.stat().st_mtime < UNFINISHED_SECONDS
            if fetching or (staging / "commit.json").exists():
                unclear.add(staging.name)
        return unclear

    def _bases(self, name: str, history: History) -> tuple[dict[str, str], dict[str, str]]:
        """Return {sha256: that of the same file in the collection after}, of private and of shared files."""
        versions = history.versions(name)
        ways = [list(history.changes(version)) for version in versions]
        changed = {change.path.encode() for way in ways for change in way}
        newer = {
            file.path: file.sha256
            for file in (file_of(line) for line in self._require(name).files() if path_of(line) in changed)
        }
        own: dict[str, str] = {}
        to_all: dict[str, str] = {}
        for way in reversed(ways):
            for change in way:
                if isinstance(change, Gone):
                    newer.pop(change.path, None)
                    continue
                if (base := newer.get(change.path)) not in (None, change.sha256):
                    shared = self.objects.is_shared(change.path.removeprefix("data/"))
                    (to_all if shared else own).setdefault(change.sha256, str(base))
                newer[change.path] = change.sha256
        return own, to_all

    def needed(self, name: str, history: History) -> Iterator[File]:
        """Yield every file, as it is kept, that a server's collections need or what is published of them.

        Raises CentralError where a list of what was published is damaged: nobody knows what it named.
        """
        ciphertexts = self.objects.ciphertexts
        if not ciphertexts.items(name):
            yield from self.sealed(name, history)
            return
        yield from map(file_of, self._published_list(self._require(name)))
        for file in self.sealed(name, history):
            yield ciphertexts.as_stored(name, file)

    def sealed(self, name: str, history: History) -> Iterator[File]:
        """Yield every file of a server's collections as the school sealed it, some of them more than once."""
        committed = self._require(name)
        self._published_list(committed)
        for lines in (committed.files(), committed.chosen()):
            yield from map(file_of, lines)
        yield from history.digests(name)
        for version in history.versions(name):
            if (view := _view_of(version, history.record(version))) is not None:
                yield from map(file_of, lines_in(view))

    def _sweep(
        self, pool: str, needed: set[str], bases: Mapping[str, str], counts: _Swept, *, pretend: bool
    ) -> None:
        """Remove what a pool holds in vain, and pack what no published tree links to."""
        cold = self.objects.cold
        cold.needed_for({pool: needed})
        for digest, place in self.objects.stored(pool):
            if digest not in needed:
                seen = place.stat()
                counts.objects += 1
                # What a published tree still links to takes its room there.
                counts.bytes += seen.st_size if seen.st_nlink == 1 else 0
                if not pretend:
                    place.unlink()
        vain = {digest: size for digest, size in cold.stored(pool) if digest not in needed}
        counts.objects += len(vain)
        counts.bytes += sum(vain.values())
        if not pretend:
            cold.remove(pool, vain)
        # Packing wants room itself: only after all else of the pool is gone.
        if not pretend and not self.objects.on_demand:
            for digest, place in self.objects.stored(pool):
                # Ciphertext can be made no smaller, and nothing is known of what is in it.
                if place.stat().st_nlink == 1 and not self.objects.ciphertexts.is_ciphertext(pool, digest):
                    counts.packed += cold.pack(pool, digest, place, bases.get(digest), self.objects.plain)
        if self.objects.remote is not None:
            swept = self.objects.remote.sweep(pool, needed, pretend=pretend)
            if self.objects.on_demand:  # otherwise the same objects were counted on this disk
                counts.objects += swept.objects
                counts.bytes += swept.bytes

    def _copy_out(self, version: Version, path: str, file: File, target: Path) -> None:
        try:
            if target.exists():
                target.chmod(0o600)  # of a run that was cut
            self.objects.fetch(version.server, path, file.sha256, target)
            target.chmod(file.mode & 0o777)
            os.utime(target, ns=(file.mtime_ns, file.mtime_ns))
        except ObjectDamaged as damaged:
            raise CentralError(f"{path} of {version.server}: {damaged} (shala archive repair)") from None

    def _require(self, name: str) -> Committed:
        committed = self.committed(name)
        if committed is None:
            raise UsageError(f"nothing of '{name}' is in the archive (shala archive tree shows what is)")
        return committed

    # -- looking ---------------------------------------------------------------------------------------------

    def verify(self, name: str, share: float = 1.0) -> list[Damage]:
        """Read every published file of a server, of earlier years too; return what is damaged.

        With a `share` below 1 only so many of them are read, others each time; all are looked for.

        Raises UsageError if nothing of the server is published.
        """
        while True:
            try:
                committed = self._require(name)
            except RecordDamaged as damaged:
                return [Damage("the record", _without_name(str(damaged), name))]
            except UsageError:
                if name not in self.known() or self._is_at_work(name):
                    raise
                return [Damage("the record", "is gone")]
            damage = self._damage(committed, share)
            # A collection that was committed meanwhile explains every difference.
            if self.is_readable(name) and self.committed(name) == committed:
                return sorted(damage, key=lambda item: item.path)

    def drop_damaged(self, name: str, received: Path | None = None) -> int:
        """Remove the objects of the newest collection that are not what they should be; return how many.

        They are fetched again by the next pull that looks. `received` is the list of files that the school
        has now: of a damaged record it is the only one. Call with the lock held.
        """
        dropped = 0
        committed = self.committed(name) if self.is_readable(name) else None
        lists: list[Iterator[bytes]] = []
        if committed is not None:
            lists = [self._kept(committed), committed.view()]
        elif received is not None:
            lists = [self.objects.ciphertexts.lines(name, lines_of(received))]
        for lines in lists:
            for file in map(file_of, readable(lines)):
                place = self.objects.find(name, file.path.removeprefix("data/"), file.sha256)
                if place is not None and digest_of(place) != file.sha256:
                    place.unlink()
                    dropped += 1
        if committed is not None and self.objects.on_demand:
            dropped += self._drop_damaged_remote(committed)
        return dropped

    def _drop_damaged_remote(self, committed: Committed) -> int:
        """Remove what is damaged from the bucket, reading each content once; return how many."""
        remote = self.objects.remote
        if remote is None:
            return 0
        contents = {
            (self.objects.pool_of(committed.name, file.path.removeprefix("data/")), file.sha256)
            for lines in (self._kept(committed), committed.view())
            for file in map(file_of, lines)
        }

        def is_damaged(content: tuple[str, str]) -> tuple[str, str] | None:
            return content if remote.has(*content) and remote.problem(*content) else None

        damaged = [content for content in in_parallel(is_damaged, contents) if content is not None]
        for content in damaged:
            remote.forget(*content)
        return len(damaged)

    def _kept(self, committed: Committed) -> Iterator[bytes]:
        """Yield the lines of a collection as its files are kept, of a list that a disk may have damaged."""
        ciphertexts = self.objects.ciphertexts
        if not ciphertexts.items(committed.name):
            return committed.files()
        return ciphertexts.lines(committed.name, readable(committed.files()))

    def mend_earlier_years(self, name: str) -> list[str]:
        """Put objects in the place of files of earlier years that are damaged or gone; return which.

        An object that was fetched again is another file than the one that such a tree links to. Call with the
        lock held.
        """
        mended: list[str] = []
        committed = self._require(name)
        for year, version in {version.year: version for version in self.versions(name)}.items():
            tree = self.tree_of(year, committed.pull.state, name)
            if year == committed.pull.year or not tree.is_dir():
                continue
            for file in map(file_of, self.view(version)):
                path = file.path.removeprefix("data/")
                place = self.objects.find(name, path, file.sha256, file.size)
                if place is None or _inode(place) == _inode(tree / path):
                    continue
                if not _holds(tree / path, file.sha256) and _holds(place, file.sha256):
                    self._replace(name, place, tree / path)
                    mended.append(f"{year}: {path}")
        return mended

    def _replace(self, name: str, place: Path, target: Path) -> None:
        staged = self.staging(name) / "mended"
        staged.unlink(missing_ok=True)
        link(place, staged)
        mode = stat.S_IMODE(target.parent.stat().st_mode)
        target.parent.chmod(mode | stat.S_IWUSR)
        try:
            staged.rename(target)
        finally:
            target.parent.chmod(mode)

    def _damage(self, committed: Committed, share: float) -> list[Damage]:
        damage = [Damage(flaw.name, flaw.problem) for flaw in flaws(committed.record)]
        told = {item.path for item in damage}
        try:
            if not told and survey(committed.files(), NO_LIMITS).manifest_sha256 != (
                committed.pull.manifest_sha256
            ):
                damage.append(Damage(FILES, "of the record is not the one that was committed"))
            # What a damaged list names says nothing of the files.
            if not told & {FILES, VIEW, "pull.json"}:
                if self.objects.on_demand:
                    damage += self._content_damage(committed, share)
                else:
                    damage += _differences(committed.tree, committed.view(), share)
        except (CentralError, ManifestError, BagRefused, OSError) as error:
            damage.append(_unreadable(committed, error))
        try:
            damage += self._damage_of_earlier_years(committed, share)
        except HistoryError:
            pass  # it is of all servers, and told once (shala_central.backup)
        except (CentralError, ManifestError, OSError) as error:
            damage.append(_unreadable(committed, error))
        return damage

    def _damage_of_earlier_years(self, committed: Committed, share: float) -> list[Damage]:
        damage: list[Damage] = []
        newest_of_year = {version.year: version for version in self.versions(committed.name)}
        for year, version in newest_of_year.items():
            tree = self.tree_of(year, committed.pull.state, committed.name)
            if year != committed.pull.year and tree.is_dir():
                damage += [
                    Damage(f"{year}: {d.path}", d.problem)
                    for d in _differences(tree, self.view(version), share)
                ]
        return damage

    def _content_damage(self, committed: Committed, share: float) -> list[Damage]:
        """Return what is damaged of what is in view, where there is no tree."""

        def look(file: File) -> Damage | None:
            path = file.path.removeprefix("data/")
            skipped = share < 1 and random.random() >= share  # noqa: S311
            if skipped and self.objects.has_remote(committed.name, path, file.sha256):
                return None
            problem = self.objects.problem(committed.name, file)
            return Damage(path, problem) if problem else None

        found = in_parallel(look, map(file_of, committed.view()))
        return [damage for damage in found if damage is not None]

    def tree(self, below: str = "", depth: int = 4) -> list[Entry]:
        """Return the tree below a path, each folder before what is in it, down to LEVEL `depth`, with sizes.

        Raises UsageError if the path is not in the archive.
        """
        if self.objects.on_demand:
            return self._listed_tree(below.strip("/"), depth)
        parts = [part for part in below.split("/") if part not in ("", ".")]
        if ".." in parts or any(part.startswith(".") for part in parts):
            raise UsageError(f"'{below}' is not a path of the archive (e.g. 2026/mz/2031017-mz17)")
        start = self.root.joinpath(*parts)
        if not os.path.lexists(start):
            raise UsageError(f"'{below}' is not in the archive (shala archive tree --depth 2 shows what is)")
        entries: list[Entry] = []
        level = len(parts) - 1
        if level >= 0:
            self._entry(start, "/".join(parts), level, max(depth, level), entries)
        else:
            years = (path for path in self.root.iterdir() if YEAR.fullmatch(path.name) and path.is_dir())
            for year in sorted(years):
                self._entry(year, year.name, 0, depth, entries)
        return entries

    def _listed_tree(self, below: str, depth: int) -> list[Entry]:
        """Return the tree that the records list: on demand, there is none on the disk."""
        top = len(below.split("/")) - 1 if below else 0
        sums: dict[tuple[str, ...], list[int]] = {}
        for name in self.servers():
            committed = self._require(name)
            newest_of_year = {version.year: version for version in self.versions(name)}
            for year, version in newest_of_year.items():
                place = (f"{year:04d}", committed.pull.state, name)
                whole = "/".join(place)
                if below and not f"{whole}/".startswith(f"{below}/") and not below.startswith(f"{whole}/"):
                    continue
                for file in map(file_of, self.view(version)):
                    parts = (*place, *file.path.split("/")[1:])
                    if below and not f"{'/'.join(parts)}/".startswith(f"{below}/"):
                        continue
                    for level in range(top, min(max(depth, top) + 1, len(parts))):
                        entry = sums.setdefault(parts[: level + 1], [0, 0])
                        entry[0] += file.size
                        entry[1] += 1
        if below and not sums:
            raise UsageError(f"'{below}' is not in the archive (shala archive tree --depth 2 shows what is)")
        return [
            Entry("/".join(parts), len(parts) - 1, parts[-1], *sums[parts])
            for parts in sorted(sums, key=lambda parts: [_order(Path(part)) for part in parts])
        ]

    def _entry(self, path: Path, shown: str, level: int, depth: int, entries: list[Entry]) -> tuple[int, int]:
        """Append the entry of a path and of those below it; return its bytes and files."""
        place = len(entries)
        if path.is_symlink() or not path.is_dir():
            size, files = path.lstat().st_size, 1
        elif level >= depth:
            size, files = _weigh(path)
        else:
            entries.append(Entry(shown, level, path.name, 0, 0))
            size = files = 0
            for child in sorted(path.iterdir(), key=_order):
                child_size, child_files = self._entry(
                    child, f"{shown}/{child.name}", level + 1, depth, entries
                )
                size, files = size + child_size, files + child_files
            entries.pop(place)
        if level <= depth:
            entries.insert(place, Entry(shown, level, path.name, size, files))
        return size, files


def handles(versions: Sequence[Version]) -> dict[Version, str]:
    """Return what each collection of one server is called: its number, and its time where that is not enough.

    After a server was installed anew its numbers begin again.
    """
    names: dict[Version, str] = {}
    for version in versions:
        times = [v.pulled for v in versions if v.sequence == version.sequence]
        for length in (
            0,
            16,
            19,
            len(version.pulled),
        ):  # characters of ISO 8601: to the minute, to the second
            time_shown = version.pulled[:length]
            if sum(pulled.startswith(time_shown) for pulled in times) == 1:
                break
        names[version] = f"{version.sequence}{'@' if time_shown else ''}{time_shown}"
    return names


def _unreadable(committed: Committed, error: Exception) -> Damage:
    """Say what could not be read of a server, and why."""
    if isinstance(error, OSError):
        place = Path(os.fsdecode(error.filename or committed.tree))
        if place.is_relative_to(committed.tree):
            place = place.relative_to(committed.tree)
        return Damage(str(place), f"cannot be read: {error.strerror}")
    return Damage("the record", _without_name(str(error), committed.name))


def _without_name(text: str, name: str) -> str:
    return text.removeprefix(f"the record of {name} ")


def hash_of(tag_files: Mapping[str, bytes]) -> str:
    """Return one digest over tag files, to tell whether the same thing came again."""
    digest = hashlib.sha256()
    for name in sorted(tag_files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(tag_files[name]).digest())
    return digest.hexdigest()


def _weigh(folder: Path) -> tuple[int, int]:
    """Return bytes and number of the files below a folder."""
    size = files = 0
    folders = [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    size += entry.stat(follow_symlinks=False).st_size
                    files += 1
    return size, files


def _order(path: Path) -> tuple[int, str, int, str]:
    """Sort platforms in their order, servers by the number of their id, everything else by name."""
    platform = PLATFORMS.index(path.name) if path.name in PLATFORMS else len(PLATFORMS)
    return platform, *_by_number(path.name)


def _by_number(name: str) -> tuple[str, int, str]:
    match = re.fullmatch(r"[0-9]{7,8}-([a-z]+)([0-9]{1,9})", name)
    return (match[1], int(match[2]), name) if match else (name, 0, name)


def _chosen_in(record: Path) -> Path:
    """Return the list of what is in view by a record, as the school sealed it."""
    view = record / VIEW
    return view if view.is_file() else record / FILES


def _view_of(version: Version, record: Mapping[str, bytes]) -> bytes | None:
    """Return VIEW of the record of an earlier collection, None where there is none. Raises CentralError."""
    view = record.get(VIEW)
    wanted = msgspec.json.decode(record["pull.json"], type=PullRecord).view_sha256
    if wanted and hashlib.sha256(view or b"").hexdigest() != wanted:
        raise _damaged_view(f"collection {version.sequence} of {version.server}")
    return view


def _damaged_view(whose: str) -> CentralError:
    return CentralError(f"{VIEW} in the record of {whose} is damaged (shala archive repair)")


def _view_in(record: Path) -> Path:
    """Return the list of what is published by a record."""
    published = record / PUBLISHED
    return published if published.is_file() else _chosen_in(record)


def _without_clashes(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a list whose order is right. Raises BagRefused where two cannot both be there."""
    last = b"\0"
    for line in lines:
        path = path_of(line)
        name = path[5:].decode()
        if path == last or path.startswith(last + b"/"):
            raise BagRefused([f"'{name}' has a name that an encrypted file has here (*{SUFFIX})"], [name])
        if path.endswith(SUFFIX.encode()) and len(path.rpartition(b"/")[2]) > MAX_NAME:
            raise BagRefused(
                [f"'{name}' has a name that is too long to be that of an encrypted file"], [name]
            )
        last = path
        yield line


def _held(previous: Committed | None, collection: Collection, pull: PullRecord) -> dict[str, int]:
    """Return which items leave an earlier one in view: {platform/item: its collection}.

    Those that are suspect now; and what is held already, or was restored, until a good one comes.
    """
    held: dict[str, int] = {}
    if previous is None:
        return held
    if previous.pull.is_of_same_collection(pull):
        return previous.pull.held
    try:
        before = previous.collection()
    except RecordDamaged:
        before = None
    for item in collection.items:
        key = f"{item.platform}/{item.name}"
        last = before.item(item.platform, item.name) if before is not None else None
        if item.outcome in (SUSPECT, FAILED) and key in previous.pull.held:
            held[key] = previous.pull.held[key]
        elif item.outcome != SUSPECT or last is None or not last.files:
            continue
        elif last.outcome != SUSPECT or key in previous.pull.accepted:
            held[key] = last.carried_from or previous.pull.sequence
    return held


def _write_view(
    record: Path, files: Iterator[bytes], before: Iterator[bytes], held: Mapping[str, int]
) -> None:
    """Write the list of what is to be published: the collection, with the held items as they were."""
    prefixes = [f"data/{item}" for item in held]
    with (record / VIEW).open("wb") as view:
        view.writelines(merged(select(files, prefixes, inside=False), select(before, prefixes, inside=True)))


def _differences(tree: Path, lines: Iterable[bytes], share: float = 1.0) -> list[Damage]:
    """Return how a tree differs from a list of files, reading every file of it."""
    damage: list[Damage] = []
    closed: list[str] = []  # folders that cannot be read: nothing is said of what is in them

    def note(folder: str, error: OSError) -> None:
        closed.append(folder)
        damage.append(Damage(folder or ".", f"cannot be read: {error.strerror} (a folder)"))

    found = _walk(tree, note)
    here = next(found, None)
    for line in lines:
        file = file_of(line)
        key = sort_key(file.path)
        while here is not None and sort_key(f"data/{here}") < key:
            damage.append(Damage(here, "does not belong to the collection"))
            here = next(found, None)
        path = file.path.removeprefix("data/")
        if here != path:
            if not any(path.startswith(folder) for folder in closed):
                damage.append(Damage(path, "is missing"))
            continue
        here = next(found, None)
        try:
            if not stat.S_ISREG((tree / path).lstat().st_mode):
                damage.append(Damage(path, "is not a plain file"))
            elif (tree / path).lstat().st_size != file.size:
                damage.append(Damage(path, "has another size"))
            elif (share >= 1 or random.random() < share) and digest_of(tree / path) != file.sha256:  # noqa: S311
                damage.append(Damage(path, "has changed (sha256 differs)"))
        except OSError as error:
            damage.append(Damage(path, f"cannot be read: {error.strerror}"))
    while here is not None:
        damage.append(Damage(here, "does not belong to the collection"))
        here = next(found, None)
    return damage


def _walk(tree: Path, unreadable: Callable[[str, OSError], None], prefix: str = "") -> Iterator[str]:
    """Yield the paths of everything below a tree that is not a folder, in the order of manifests.

    A folder that cannot be read is told (`gstudio/db/`), and left out.
    """
    try:
        entries = sorted(os.scandir(tree / prefix), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        unreadable(prefix, error)
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(tree, unreadable, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}"


def _same_collection(record: Path, other: Path) -> bool:
    """Return whether two records are of the same collection, as far as they can be read."""
    newest = read_pull(other)
    pull = _pull_of(record, newest.state)
    if not pull.manifest_sha256:  # its name is all that is left
        return (pull.year, pull.sequence) == (newest.year, newest.sequence)
    return pull.is_of_same_collection(newest)


def _pull_of(record: Path, state: str) -> PullRecord:
    """Return how the collection of a record came; of one that a disk has damaged what is left of it."""
    try:
        return read_pull(record)
    except (FileNotFoundError, RecordDamaged):
        return what_is_left(record, state)


def _copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Put files of one record in the place of another's, each whole or not at all."""
    for name in names:
        if not (source / name).is_file():
            continue
        staged = target / f".{name}.part"
        shutil.copyfile(source / name, staged)
        sync_file_system(target)
        staged.replace(target / name)
    sync_folder(target)


def _damaged_record(name: str, why: str) -> RecordDamaged:
    return RecordDamaged(
        f"the record of {name} is damaged: {why} (shala archive repair {name} --from ROOT, where there is"
        f" another copy of the archive; or shala pull --again {name})"
    )


def _holds(path: Path, sha256: str) -> bool:
    try:
        return digest_of(path) == sha256
    except OSError:
        return False


def _require_name(name: str) -> None:
    """Raise UsageError for what could lead out of the archive."""
    if not SERVER_NAME.fullmatch(name):
        raise UsageError(f"'{name}' is not a server name (<school code>-<server id>)")


def _operator() -> str:
    """Return who runs this command, also behind sudo."""
    user, behind = user_name(os.geteuid()), os.environ.get("SUDO_USER", "")
    return f"{behind} (as {user})" if behind else user


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return -1


def _decrypt(stored: Path, file: File, identities: Identities) -> None:
    """Put the content of an age file in its place, under the name, time and permissions of the school's."""
    target = stored.with_name(stored.name.removesuffix(SUFFIX))
    target.unlink(missing_ok=True)  # of a run that was cut
    stored.chmod(0o600)
    with stored.open("rb") as source, target.open("xb") as plain:
        os.fchmod(plain.fileno(), 0o600)
        decrypt(source, plain, file, identities)
    target.chmod(file.mode & 0o777)
    os.utime(target, ns=(file.mtime_ns, file.mtime_ns))
    stored.unlink()


def _is_file_below(folder: Path, path: Path) -> bool:
    try:
        inside = path.parent.resolve().is_relative_to(folder.resolve())
        return inside and stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def _stamp() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
