"""Integrity: read content again and again, say what is damaged, mend it from a second copy."""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import logging
import math
import os
import random
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from shala_agent.manifest import File, ManifestError

from shala_central.archive import Archive
from shala_central.cold import ColdDamaged, ColdFailed
from shala_central.commit import changing, recover, relink
from shala_central.encryption import relearn
from shala_central.failure import CentralError, unreadable
from shala_central.history import HistoryError, RowDamaged
from shala_central.listing import file_of, readable
from shala_central.mending import kept, mend_earlier_years, mend_record, strays
from shala_central.objects import SHARED, ObjectDamaged, Objects, digest_of, holds
from shala_central.publish import sync_file_system, sync_folder, write_file
from shala_central.records import RecordDamaged, flaws, folders_of, is_whole, lists_are_whole
from shala_central.remote import Local, Remote, in_parallel
from shala_central.verify import Damage
from shala_central.versions import files_needed

logger = logging.getLogger(__name__)
MAX_CONCERNS = 3  # files that are named of one content: the first ones
SHARES = 256  # by the first two digits of a digest


class Scrubbed(msgspec.Struct):
    """What was read again, and of the bucket what was looked up by name and size (`listed`).

    `oldest` is when that which was read longest ago was, "" if some never was; `failed` why the bucket could
    not be asked.
    """

    objects: int = 0
    bytes: int = 0
    listed: int = 0
    damage: list[Damage] = msgspec.field(default_factory=list)
    oldest: str = ""
    failed: str = ""


class Repaired(msgspec.Struct, frozen=True):
    """What was mended of a server and what could not be: paths below its folder.

    `mended` are contents and files of the record that are good again, `put_back` files of the trees that were
    gone or others, and stand there again, `removed` such as belonged to no collection. `earlier` are those of
    `lost` that the newest collection does without: no school can send them again.
    """

    name: str
    mended: list[str]
    lost: list[str]
    put_back: list[str] = msgspec.field(default_factory=list)
    removed: list[str] = msgspec.field(default_factory=list)
    earlier: list[str] = msgspec.field(default_factory=list)


class Noted(msgspec.Struct, frozen=True):
    """What the last look found damaged of a server: when that was, how many files, and the first.

    `earlier` says that among it is what only earlier collections need.
    """

    at: str
    files: int
    first: str
    earlier: bool = False

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.first} ({self.files} damaged, seen {self.at[:10]})"


def note_damage(
    archive: Archive,
    found: Mapping[str, Sequence[Damage]],
    *,
    earlier: Container[str] = (),
    deep: bool = False,
) -> None:
    """Keep for `status` what was found damaged of servers; nothing found clears what was noted before.

    `earlier` are servers of which something is damaged that only earlier collections need: only a `deep`
    look, at all that is kept, clears that. Who may only read the archive cannot: then it stays as it was.
    """
    noted = noted_damage(archive)
    for name, damage in found.items():
        before = noted.get(name)
        stays = before is not None and before.earlier and not deep
        if damage:
            first = f"{damage[0].path} {damage[0].problem}"
            noted[name] = Noted(_now(), len(damage), first, stays or name in earlier)
        elif not stays:
            noted.pop(name, None)
    with contextlib.suppress(OSError):
        write_file(archive.hidden / "damaged.json", msgspec.json.encode(noted))


def noted_damage(archive: Archive) -> dict[str, Noted]:
    """Return what the last looks found damaged: {server: what}."""
    try:
        return msgspec.json.decode((archive.hidden / "damaged.json").read_bytes(), type=dict[str, Noted])
    except (OSError, msgspec.MsgspecError):
        return {}


class SecondCopy:
    """Another copy of an archive, by its root; nothing is ever written there."""

    def __init__(self, archive: Archive, root: Path) -> None:
        self._root = root
        self._objects = archive.objects.of_copy(root / ".shala" / "objects")
        self._told: set[str] = set()

    def fetch(self, name: str, file: File, target: Path) -> bool:
        """Write a content to a file: of the copy's objects, plain or packed, or of its trees.

        Returns whether it is there, as it should be.
        """
        path = file.path.removeprefix("data/")
        with self._trying(), target.open("wb") as staged:
            self._objects.copy(name, path, file.sha256, staged)
            return True
        for candidate in sorted(self._root.glob(f"[0-9][0-9][0-9][0-9]/*/{name}/{_literal(path)}")):
            with self._trying():
                shutil.copyfile(candidate, target)
                if digest_of(target) == file.sha256:
                    return True
        return False

    def records(self, name: str) -> list[Path]:
        """Return the records of a server's newest collections there; nothing says that they are whole."""
        return folders_of(self._root / ".shala" / "collections" / name)

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        """Pass over what the copy cannot give; that its table of packed contents is none is said once."""
        try:
            yield
        except ObjectDamaged:
            pass
        except ColdFailed as failed:
            if str(failed) not in self._told:
                logger.warning("of the second copy nothing packed can be used: %s", failed)
            self._told.add(str(failed))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # that is this disk
                raise


class _Readings(msgspec.Struct):
    """scrub.json: when each share was last read as a whole, ISO 8601 in UTC; on this disk, in the bucket.

    `damaged` are the contents of each share (`pool/ab/<sha256>`) that the bucket does not hold as it should.
    """

    buckets: dict[str, str] = msgspec.field(default_factory=dict)
    remote: dict[str, str] = msgspec.field(default_factory=dict)
    damaged: dict[str, list[str]] = msgspec.field(default_factory=dict)
    format: int = 1


def damaged_objects(archive: Archive, name: str, told: Sequence[Damage] = ()) -> list[Damage]:
    """Return what is damaged of all that a server's kept collections need, but for what is `told` already.

    `told` is of the tree, whose files are the objects of the list of what is in view.
    """
    damage: list[Damage] = []
    try:
        paths = {item.path for item in told}
        known = set()
        if paths and (committed := archive.committed(name)) is not None:
            view = map(file_of, readable(committed.view()))
            known = {file.sha256 for file in view if file.path.removeprefix("data/") in paths}
        found = [
            (path, problem, file)
            for path, problem, file in _damaged(archive, name)
            if file.sha256 not in known or path not in paths
        ]
        newest = _newest(archive, name) if found else set()
        damage += [Damage(path, problem, earlier=file.sha256 not in newest) for path, problem, file in found]
    except RecordDamaged:
        pass  # that is what is told of it
    except (HistoryError, ColdFailed):
        pass  # of all servers, and told once (shala_central.backup)
    except (CentralError, ManifestError) as error:
        if not told:
            damage.append(Damage("the record", str(error)))
    except PermissionError as error:
        place = Path(os.fsdecode(error.filename))
        damage.append(Damage(place.name, unreadable(place, error)))
    return damage


def scrub(archive: Archive, days: int, percent: float = 0) -> Scrubbed:
    """Read the share of all objects that has not been read for longest, so that all are within `days` days.

    Of what is in a bucket the same share is looked up by name and size, and so many percent of it are read
    back. It may be cut at any moment: a share counts when it was read whole. A bucket that does not answer
    is said, and stops nothing else.
    """
    readings = _readings(archive)
    done = Scrubbed()
    count = math.ceil(SHARES / days)
    for share in _longest_ago(readings.buckets)[:count]:
        _read_disk(archive.objects, share, done)
        readings.buckets[share] = _now()
        _write(archive, readings)
    times = [readings.buckets]
    if (remote := archive.objects.remote) is not None:
        times.append(readings.remote)
        try:
            for share in _longest_ago(readings.remote)[:count]:
                readings.damaged[share] = _read_bucket(remote, share, percent, done)
                readings.remote[share] = _now()
                _write(archive, readings)
        except CentralError as failed:
            done.failed = str(failed)
    if all(len(time) == SHARES for time in times):
        done.oldest = min(min(time.values()) for time in times)
    if done.damage:
        done.damage = _with_concerns(archive, done.damage)
    return done


def _with_concerns(archive: Archive, damage: Sequence[Damage]) -> list[Damage]:
    """Return damage of contents with the first files that need each; note it of their servers."""
    files: dict[tuple[str, str], list[str]] = {_content(item): [] for item in damage}
    pools = {pool for pool, _ in files}
    found: dict[str, list[Damage]] = {}
    earlier: set[str] = set()
    for name in archive.servers() if SHARED in pools else sorted(pools.intersection(archive.servers())):
        seen: set[tuple[str, str]] = set()
        with contextlib.suppress(CentralError, ManifestError), archive.history() as history:
            for file in files_needed(archive, name, history):
                path = file.path.removeprefix("data/")
                if (content := (archive.objects.pool_of(name, path), file.sha256)) not in files:
                    continue
                if content not in seen:
                    found.setdefault(name, []).append(Damage(path, "has changed or cannot be read"))
                    seen.add(content)
                if (where := f"{name} {path}") not in files[content] and len(files[content]) < MAX_CONCERNS:
                    files[content].append(where)
        if seen and not seen <= _in_view(archive, name):
            earlier.add(name)
    if found:
        note_damage(archive, found, earlier=earlier)
    return [msgspec.structs.replace(item, concerns=files[_content(item)]) for item in damage]


def _in_view(archive: Archive, name: str) -> set[tuple[str, str]]:
    """Return (pool, sha256) of all that readers see of a server; nothing where no list tells."""
    view: set[tuple[str, str]] = set()
    with contextlib.suppress(CentralError, ManifestError, OSError):
        if (committed := archive.committed(name)) is not None:
            for file in map(file_of, committed.view()):
                view.add((archive.objects.pool_of(name, file.path.removeprefix("data/")), file.sha256))
    return view


def _content(item: Damage) -> tuple[str, str]:
    """Return (pool, sha256) of a damage that was named by `_name`."""
    pool, _, digest = item.path.rpartition(": ")[2].split("/")
    return pool, digest


def _longest_ago(times: Mapping[str, str]) -> list[str]:
    return sorted((f"{number:02x}" for number in range(SHARES)), key=lambda share: times.get(share, ""))


def _read_disk(objects: Objects, share: str, done: Scrubbed) -> None:
    """Read a share of what is on this disk, plain and packed."""
    for pool in objects.pools():
        for digest, place in objects.stored(pool, share):
            try:
                whole = digest_of(place) == digest
                done.bytes += place.stat().st_size
            except FileNotFoundError:
                continue  # let go meanwhile, or packed: then it is read below
            except OSError as error:
                done.damage.append(Damage(_name(pool, digest), unreadable(place, error)))
                continue
            done.objects += 1
            if not whole:
                done.damage.append(Damage(_name(pool, digest), "has changed (sha256 differs)"))
        for digest, packed in objects.cold.stored(pool, share):
            done.objects, done.bytes = done.objects + 1, done.bytes + packed
            if problem := _packed_problem(objects, pool, digest):
                named = _name(pool, digest)
                done.damage.append(Damage(named, problem.removeprefix(f"{named} ")))


def _packed_problem(objects: Objects, pool: str, digest: str) -> str:
    """Return why a packed content is not as it should be, or "".

    Pruning packs what it stands on, and a pull unpacks it, while we read: so it is looked at twice.
    """
    problem = ""
    for _ in range(2):
        try:
            objects.cold.read(pool, digest, objects.plain)
        except ColdDamaged as damaged:
            problem = str(damaged)
        else:
            return ""
        if not objects.cold.has(pool, digest):
            return ""
    return problem


def _read_bucket(remote: Remote, share: str, percent: float, done: Scrubbed) -> list[str]:
    """Look up a share of what is in the bucket, and read some of it; return what is damaged.

    To read all of it back every month would cost more than to keep it: names and sizes cost one request for
    each pool.
    """
    damaged: list[str] = []

    def note(pool: str, digest: str, problem: str) -> None:
        damaged.append(_name(pool, digest))
        named, where = _name(pool, digest), f"in {remote.bucket} "
        told = problem.removeprefix(f"{named} ").removeprefix(where)
        done.damage.append(Damage(f"{remote.bucket}: {named}", told))

    for pool in sorted(remote.pools()):
        to_read: list[str] = []
        for digest, size, problem in remote.listed(pool, share):
            done.listed += 1
            if problem:
                note(pool, digest, problem)
            elif random.random() * 100 < percent:  # noqa: S311
                to_read.append(digest)
                done.objects, done.bytes = done.objects + 1, done.bytes + size
        problems = in_parallel(functools.partial(remote.problem, pool), to_read)
        for digest, problem in zip(to_read, problems, strict=True):
            if problem and remote.has(pool, digest):  # otherwise it was let go meanwhile
                note(pool, digest, problem)
    return damaged


def repair(archive: Archive, name: str, second: SecondCopy | None = None) -> Repaired:
    """Mend what is damaged of a server's kept collections from a second copy of the archive.

    Raises CentralError while the server is pulled.
    """
    mended: list[str] = []
    lost: list[str] = []
    contents: list[tuple[str, str]] = []  # (path, sha256) of what is lost
    before = _record_flaws(archive, name)
    with changing(archive, name):
        others = second.records(name) if second is not None else []
        others += archive.copied_records(name)  # as they were last night, and the night before
        if before and not mend_record(archive, name, others):
            left = _record_flaws(archive, name)
            told = ", ".join(sorted(left))
            lost.append(f"the record of its collection ({told})")
        mended += sorted(before - _record_flaws(archive, name))
        if not archive.is_readable(name):
            return Repaired(name, mended, lost)
        committed = archive.committed(name)
        if committed is None or not lists_are_whole(committed.record):
            return Repaired(name, mended, lost)
        if is_whole(committed.record):
            mended += [f"{path} in encrypted.sqlite" for path in relearn(archive, name)]
        for path, _problem, file in list(_damaged(archive, name)):
            if _brought_back(archive.objects, name, path, file.sha256):
                mended.append(path)
                continue
            staged = archive.staging(name) / "mended"
            if second is None or not second.fetch(name, file, staged):
                lost.append(path)
                contents.append((path, file.sha256))
                continue
            os.utime(staged, ns=(file.mtime_ns, file.mtime_ns))
            sync_file_system(archive.staging(name))
            archive.objects.add(staged, name, path, file.sha256)
            _drop_packed(archive.objects, archive.objects.pool_of(name, path), [file.sha256])
            _send_anew(archive, archive.objects.pool_of(name, path), file.sha256)
            mended.append(path)
        mended += _mend_bucket(archive, name)
        with contextlib.suppress(ColdFailed):  # that is told of the table
            for pool in (name, SHARED):
                packed = [digest for digest, _ in archive.objects.cold.stored(pool)]
                mended += _drop_packed(archive.objects, pool, packed)
        put_back = set(strays(archive, name))
        relink(archive, name)
        put_back -= set(strays(archive, name))
        removed = {path for path in put_back if not os.path.lexists(committed.tree / path)}
        earlier = mend_earlier_years(archive, name)
        recover(archive, name)
    if not lost and not _record_flaws(archive, name):
        note_damage(archive, {name: []}, deep=True)
    back = [*sorted(put_back.difference(mended, removed)), *earlier]
    newest = _newest(archive, name) if contents else set()
    unsendable = [path for path, sha256 in contents if sha256 not in newest]
    return Repaired(name, mended, lost, back, sorted(removed.difference(mended)), unsendable)


def _brought_back(objects: Objects, name: str, path: str, sha256: str) -> bool:
    """Make a good object of what the bucket has, or of what is packed; return whether there was any."""
    if not objects.on_demand and objects.bring_back(objects.pool_of(name, path), sha256):
        return True
    try:
        return objects.thaw(name, path, sha256)
    except ColdDamaged:
        return False


def _record_flaws(archive: Archive, name: str) -> set[str]:
    """Return which files of the record of a server are not as they should be."""
    try:
        committed = archive.committed(name)
    except RecordDamaged:
        folders = folders_of(archive.hidden / "collections" / name)
        found = {flaw.name for record in folders[:1] for flaw in flaws(record)}
        return found or {"current.json"}
    if committed is None:
        return {"all of it"} if name in archive.known() else set()
    return {flaw.name for flaw in flaws(committed.record)}


def _send_anew(archive: Archive, pool: str, sha256: str) -> bool:
    """Put a good object of this disk in the place of what the bucket has; return whether there is one here.

    Nothing is removed there: of a large content only one part may be damaged, and this may be cut.
    """
    remote, place = archive.objects.remote, archive.objects.root / pool / sha256[:2] / sha256
    if remote is None or not holds(place, sha256):
        return False
    remote.doubt(pool, sha256)
    archive.objects.send([Local(pool, sha256, place.stat().st_size, place)])
    return True


def _drop_packed(objects: Objects, pool: str, digests: Sequence[str]) -> list[str]:
    """Remove packed contents of which there is a good plain object too; return those that were damaged.

    Who reads takes the plain one, scrubbing reads both.
    """
    damaged = []
    for digest in digests:
        place = objects.root / pool / digest[:2] / digest
        if holds(place, digest):
            if _packed_problem(objects, pool, digest):
                damaged.append(f"{_name(pool, digest)}, packed")
            sync_folder(place.parent)
            objects.cold.remove(pool, [digest])
    return damaged


def _mend_bucket(archive: Archive, name: str) -> list[str]:
    """Send again what scrubbing has found damaged in the bucket, of a server's pool and the shared one."""
    readings = _readings(archive)
    mended: list[str] = []
    for share, names in readings.damaged.items():
        for content in names:
            pool, _, digest = content.split("/")
            if pool in (name, SHARED) and _send_anew(archive, pool, digest):
                mended.append(f"{content} in the bucket")
        readings.damaged[share] = [content for content in names if f"{content} in the bucket" not in mended]
    if mended:
        _write(archive, readings)
    return mended


def _damaged(archive: Archive, name: str) -> Iterator[tuple[str, str, File]]:
    """Yield (path, problem, file) for each content that is needed and not as it should be, once each.

    What a damaged row of the history would name comes last, and is not known: that is told of the table.
    """
    seen: set[tuple[bool, str]] = set()
    with archive.history() as history, contextlib.suppress(RowDamaged):
        for file in files_needed(archive, name, history):
            path = file.path.removeprefix("data/")
            key = (archive.objects.is_shared(path), file.sha256)
            if key in seen:
                continue
            seen.add(key)
            if problem := _problem(archive.objects, name, file):
                yield path, problem, file


def _newest(archive: Archive, name: str) -> set[str]:
    """Return the digests of what the newest collection of a server holds, as it is kept."""
    if (committed := archive.committed(name)) is None:
        return set()
    return {file.sha256 for file in map(file_of, readable(kept(archive, committed)))}


def _problem(objects: Objects, name: str, file: File) -> str:
    """Return why a content is not as it should be, or ""; pruning may pack it while we look."""
    problem = ""
    for _ in range(2):
        try:
            if not (problem := objects.problem(name, file)):
                return ""
        except FileNotFoundError:
            problem = "is gone (its object is not there)"
    return problem


def _readings(archive: Archive) -> _Readings:
    try:
        return msgspec.json.decode((archive.hidden / "scrub.json").read_bytes(), type=_Readings)
    except (FileNotFoundError, msgspec.MsgspecError):
        return _Readings()


def _write(archive: Archive, readings: _Readings) -> None:
    write_file(archive.hidden / "scrub.json", msgspec.json.encode(readings))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def _name(pool: str, digest: str) -> str:
    return f"{pool}/{digest[:2]}/{digest}"


def _literal(path: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)
