"""The archive: `<year>/<state>/<server name>/<platform>/<item>` in plain read-only files, and the records
behind it.

Below the root stand the years that researchers read, and `.shala`: staging (unfinished), collections (one
record per committed collection), quarantine (what was refused, with reasons) and locks. A tree becomes
visible by one exchange of names; a crash before it changes nothing, a crash after it is finished by the next
run of that server.

Here is where things lie, who may change them now, and what readers see of a server. What is done with them is
in modules of their own, whose functions take the Archive: commit, versions, quarantine, retention and others.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import re
import shlex
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from shala_agent.collection import Collection

from shala_central.bag import FILES
from shala_central.ciphertext import Ciphertexts, item_of
from shala_central.config import ArchiveSettings
from shala_central.copies import BEFORE, FOLDER, RECORDS
from shala_central.failure import CentralError, UsageError, as_owner, refused, user_name
from shala_central.fleet import SERVER_NAME
from shala_central.history import History, HistoryError
from shala_central.listing import lines_of
from shala_central.objects import Objects
from shala_central.publish import make_folders, require_exchange, write_file
from shala_central.reading import to_read
from shala_central.records import (
    ENCRYPTED,
    PullRecord,
    RecordDamaged,
    chosen_in,
    folders_of,
    has_pull,
    published_in,
    read_collection,
    read_pull,
    what_is_left,
)
from shala_central.remote import Bucket, Remote
from shala_central.spare import Spare

SHARED_ITEMS = "shared.json"  # the items that were shared when content came
NO_TREE = 0  # no inode has this number
YEAR = re.compile(r"[0-9]{4}")


class Current(msgspec.Struct, frozen=True):
    """current.json: the record of the newest collection of a server."""

    record: str
    format: int = 1


class Intent(msgspec.Struct, frozen=True):
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
        return lines_of(chosen_in(self.record))

    def view(self) -> Iterator[bytes]:
        """Yield the lines of the list of what is published: what is encrypted as it is kept."""
        return lines_of(published_in(self.record))

    def encrypted(self) -> list[str]:
        """Return the items (`gstudio/postgres-dump`) of which something is published as age files."""
        return sorted({item_of(path.removeprefix("data/")) for path in self.encrypted_paths()})

    def encrypted_paths(self) -> frozenset[str]:
        """Return the paths, as in FILES, of what is published as age files."""
        with contextlib.suppress(FileNotFoundError):
            return frozenset((self.record / ENCRYPTED).read_text().splitlines())
        return frozenset()

    def collection(self) -> Collection:
        """Return what the school said about it. Raises RecordDamaged."""
        return read_collection(self.record)


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

        Raises CentralError if they cannot be made or folders cannot be exchanged, or as require_own.
        """
        self.require_own()
        try:
            for folder in ("staging", "collections", "objects", "spare", "quarantine", "locks"):
                make_folders(self.hidden / folder)
            # What is to be encrypted lies there in plain, until it has come whole.
            staging = self.hidden / "staging"
            staging.chmod(0o700 | (staging.stat().st_mode & stat.S_ISGID))
            require_exchange(self.hidden / "staging")
            self._note_shared()
            remote = self.objects.remote
            if self.objects.on_demand and remote is not None and not remote.is_known() and self.servers():
                # Otherwise every school would be asked for everything again.
                raise CentralError(
                    f"what is in {remote.bucket} is not known here (shala archive objects --reindex;"
                    " where content is still on this disk: --upload)"
                )
        except PermissionError:
            if not self.root.exists():
                me = user_name(os.geteuid())
                way = shlex.join(["sudo", "install", "-d", "-o", me, "-m", "0750", str(self.root)])
                why = f"is not there, and {me} may not make it"
                raise CentralError(f"{self.root} {why} (run: {way})") from None
            raise CentralError(refused(self.root)) from None
        except OSError as error:
            raise CentralError(f"the archive {self.root} cannot be written: {error.strerror}") from None

    def require_own(self) -> None:
        """Raise CentralError if the archive is somebody else's: what root writes there, its owner could not
        replace.
        """
        try:
            owner = self.root.stat().st_uid
        except FileNotFoundError:
            return
        if owner != os.geteuid():
            raise CentralError(f"{self.root} belongs to {user_name(owner)} (run: {as_owner(self.root)})")

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
        self._require_same_shared()

    def _note_shared(self) -> None:
        """Note which items are shared, where that is not known yet. Raises as _require_same_shared."""
        with self.turn(".shared"):  # pulls that start together write the same file
            self._require_same_shared()
            if self._shared_before() != self.objects.shared_items:
                write_file(self.hidden / SHARED_ITEMS, msgspec.json.encode(self.objects.shared_items))

    def _require_same_shared(self) -> None:
        """Raise UsageError where other items are shared now than when content came.

        It would be looked for in other places: not found, fetched again, and pruned where it is.
        """
        before, now = self._shared_before(), self.objects.shared_items
        if before not in (None, now) and any(self.objects.pools()):
            raise UsageError(
                f"archive.shared_items is {', '.join(now) or 'empty'}, but of what is in {self.root} it was"
                f" {', '.join(before or []) or 'empty'} (set it back: that would not be found any more)"
            )

    def _shared_before(self) -> list[str] | None:
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
            return msgspec.json.decode((self.hidden / SHARED_ITEMS).read_bytes(), type=list[str])
        return None

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait until nobody else holds a lock of the whole archive, and hold it while the block runs."""
        descriptor = self._locked(name, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)

    def _locked(self, name: str, how: int) -> int:
        """Return the descriptor that holds a lock until it is closed. Raises BlockingIOError with LOCK_NB."""
        descriptor = os.open(self.hidden / "locks" / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, how)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @contextlib.contextmanager
    def in_use(self, *, alone: bool = False) -> Iterator[None]:
        """Keep objects from being removed while the block runs; `alone` keeps everybody else out.

        Raises CentralError if that cannot be had now.
        """
        try:
            descriptor = self._locked(".objects", (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            others = "a pull, or a command that adds to it" if alone else "shala archive prune, or a repair"
            raise CentralError(f"{others}, is at work in {self.root} (try again when it has ended)") from None
        try:
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def history(self) -> Iterator[History]:
        """Open the history of all servers while the block runs. Raises HistoryError."""
        with contextlib.closing(History(to_read(self.hidden / "history.sqlite"))) as history:
            yield history

    # -- one server ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[int | None]:
        """Hold the lock of a server and yield its descriptor; yield None if another run holds it."""
        _require_name(name)
        try:
            descriptor = self._locked(name, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the lock of a server while the block runs. Raises CentralError if another run holds it."""
        with self.lock(name) as lock:
            if lock is None:
                raise CentralError(f"{name} is being pulled (try again when that has ended)")
            yield

    def staging(self, name: str) -> Path:
        """Return the staging folder of a server; `data` in it is the tree to be."""
        _require_name(name)
        folder = self.hidden / "staging" / name
        folder.mkdir(mode=0o750, exist_ok=True)
        return folder

    def spare(self, name: str) -> Spare:
        """Return the spare tree of a server."""
        return Spare(self.hidden / "spare" / name)

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
        if folders_of(folder) and not self.is_at_work(name):
            raise _damaged_record(name, f"{folder} does not say which is the newest (current.json)")
        if (folder / "current.json").exists():
            raise _damaged_record(name, f"what {folder / 'current.json'} names is gone")
        return None

    def require_committed(self, name: str) -> Committed:
        """Return what is published of a server. Raises UsageError if nothing is, RecordDamaged."""
        committed = self.committed(name)
        if committed is None and (gone := self.damaged_record(name)):
            raise RecordDamaged(gone)
        if committed is None:
            raise UsageError(f"nothing of '{name}' is in the archive (shala archive tree shows what is)")
        return committed

    def _record_in_view(self, name: str, folder: Path) -> Path:
        """Return the record of what readers see, also where a run was cut just after the exchange.

        Who may not look into staging, as a mere reader, is given the last record that was put in its place.
        """
        staging = self.hidden / "staging" / name
        with contextlib.suppress(FileNotFoundError, PermissionError, msgspec.MsgspecError):
            intent = msgspec.json.decode((staging / "commit.json").read_bytes(), type=Intent)
            if inode_of(self.tree_of(intent.year, intent.state, name)) == intent.inode:
                moved = folder / intent.record
                return moved if moved.is_dir() else staging / "record"
        try:
            current = msgspec.json.decode((folder / "current.json").read_bytes(), type=Current)
        except msgspec.MsgspecError as error:
            raise RecordDamaged(f"{folder / 'current.json'} cannot be read: {error}") from None
        return folder / current.record

    def is_readable(self, name: str) -> bool:
        """Return whether something of a server is published and its record tells what."""
        try:
            return self.committed(name) is not None
        except RecordDamaged:
            return False

    def is_in_view(self, committed: Committed) -> bool:
        """Return whether what is committed can be had as the configuration wants it."""
        return self.objects.on_demand or committed.tree.is_dir()

    def last_known(self, name: str) -> PullRecord | None:
        """Return how the newest collection of a server came, as far as a damaged record still tells.

        It is what a school's next collection is held against. The history is asked only where there is no
        record: after a server was installed anew its numbers begin again, and earlier ones are higher.
        """
        with contextlib.suppress(RecordDamaged):
            if (committed := self.committed(name)) is not None and has_pull(committed.record):
                return committed.pull
        folder = self.hidden / "collections" / name
        records = folders_of(folder)
        with contextlib.suppress(FileNotFoundError, RecordDamaged):
            newest = self._record_in_view(name, folder)
            records = [newest] if newest.is_dir() else records
        left = [what_is_left(record, "") for record in records]
        earlier: list[PullRecord] = []
        with contextlib.suppress(HistoryError), self.history() as history:
            for version in history.versions(name)[-1:]:
                earlier.append(msgspec.json.decode(history.record(version)["pull.json"], type=PullRecord))
        if not (known := left or earlier):
            return None
        last = max(known, key=lambda pull: (pull.year, pull.sequence))
        key = next((pull.public_key for pull in (last, *left, *earlier) if pull.public_key), "")
        return msgspec.structs.replace(last, public_key=key)

    def copied_records(self, name: str) -> list[Path]:
        """Return the records of a server in the nightly copies, the newest copy first."""
        copies = (self.hidden / FOLDER / f"{RECORDS}{end}" for end in ("", BEFORE))
        return [record for copy in copies for record in folders_of(copy / name)]

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
        return sorted(filter(self.is_readable, names), key=by_number)

    def known(self) -> list[str]:
        """Return the names of all servers of which there is any trace: a record, a tree or a history."""
        names = {path.name for path in (self.hidden / "collections").iterdir()}
        names |= {path.name for path in self.root.glob("[0-9][0-9][0-9][0-9]/*/*")}
        with contextlib.suppress(HistoryError), self.history() as history:
            names |= history.servers()
        return sorted(filter(SERVER_NAME.fullmatch, names), key=by_number)

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
        if committed is not None or self.is_at_work(name) or not (is_known or name in self.known()):
            return ""
        return str(_damaged_record(name, "it is gone"))

    def is_at_work(self, name: str) -> bool:
        """Return whether a commit of a server has begun and is not done, as far as this user may look."""
        with contextlib.suppress(PermissionError):
            return (self.hidden / "staging" / name / "commit.json").exists()
        return False


def by_number(name: str) -> tuple[str, int, str]:
    """Sort servers by the number of their id."""
    match = re.fullmatch(r"[0-9]{7,8}-([a-z]+)([0-9]{1,9})", name)
    return (match[1], int(match[2]), name) if match else (name, 0, name)


def _damaged_record(name: str, why: str) -> RecordDamaged:
    return RecordDamaged(
        f"the record of {name} is damaged: {why} (shala archive repair {name}; what that leaves: --from ROOT,"
        f" where there is another copy of the archive, or shala pull --again {name})"
    )


def _require_name(name: str) -> None:
    """Raise UsageError for what could lead out of the archive."""
    if not SERVER_NAME.fullmatch(name):
        raise UsageError(f"'{name}' is not a server name (<school code>-<server id>)")


def inode_of(path: Path) -> int:
    """Return the number of a file or folder on its disk, one that none has where it is not there."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return -1


def stamp() -> str:
    """Return the time as part of a name that no other file has."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
