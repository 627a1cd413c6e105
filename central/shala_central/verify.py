"""Verifying: read what is published of a server again, and say how it differs from what was committed."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
from shala_agent.manifest import File, ManifestError, sort_key

from shala_central.archive import Archive, Committed
from shala_central.bag import FILES, BagRefused, survey
from shala_central.config import Limits
from shala_central.failure import CentralError, unreadable
from shala_central.history import HistoryError
from shala_central.listing import file_of
from shala_central.objects import digest_of
from shala_central.records import PULL, VIEW, RecordDamaged, flaws
from shala_central.remote import in_parallel
from shala_central.versions import NotRemembered, newest_of_years, view_of

# A record was believed once; what is asked now is only whether it is the same.
NO_LIMITS = Limits(max_files=1 << 40, max_bytes=1 << 60, case_collisions="allow")


class Damage(msgspec.Struct, frozen=True):
    """One file of the published tree that is not what was committed.

    Of a content that is known by its digest alone, `concerns` are the first files that need it. What is of
    an `earlier` collection alone, the school cannot send again.
    """

    path: str
    problem: str
    concerns: list[str] = msgspec.field(default_factory=list)
    earlier: bool = False

    @property
    def is_shut(self) -> bool:
        """Return whether only permissions are known to be in the way."""
        return os.strerror(errno.EACCES) in self.problem


def verify(archive: Archive, name: str, share: float = 1.0) -> list[Damage]:
    """Read every published file of a server, of earlier years too; return what is damaged.

    With a `share` below 1 only so many of them are read, others each time; all are looked for.

    Raises UsageError if nothing of the server is published.
    """
    while True:
        try:
            committed = archive.require_committed(name)
        except RecordDamaged as damaged:
            return [Damage("the record", _without_name(str(damaged), name))]
        damage = _damage(archive, committed, share)
        # A collection that was committed meanwhile explains every difference.
        if archive.is_readable(name) and archive.committed(name) == committed:
            return sorted(damage, key=lambda item: item.path)


def _damage(archive: Archive, committed: Committed, share: float) -> list[Damage]:
    damage = [Damage(flaw.name, flaw.problem) for flaw in flaws(committed.record)]
    told = {item.path for item in damage}
    try:
        if not told and survey(committed.files(), NO_LIMITS).manifest_sha256 != (
            committed.pull.manifest_sha256
        ):
            damage.append(Damage(FILES, "of the record is not the one that was committed"))
        # What a damaged list names says nothing of the files.
        if not told & {FILES, VIEW, PULL}:
            if archive.objects.on_demand:
                damage += _content_damage(archive, committed, share)
            else:
                damage += differences(committed.tree, committed.view(), share)
            damage = [_with_age(item, committed.pull.held) for item in damage]
    except (CentralError, ManifestError, BagRefused, OSError) as error:
        damage.append(_unreadable(committed, error))
    try:
        if PULL not in told:  # by it the year of the newest is known
            damage += _damage_of_earlier_years(archive, committed, share)
    except (HistoryError, NotRemembered):
        pass  # of all servers, and told once (shala_central.backup); or it says nothing of the files
    except (CentralError, ManifestError, OSError) as error:
        damage.append(_unreadable(committed, error))
    return damage


def _damage_of_earlier_years(archive: Archive, committed: Committed, share: float) -> list[Damage]:
    damage: list[Damage] = []
    for year, version in newest_of_years(archive, committed.name).items():
        tree = archive.tree_of(year, committed.pull.state, committed.name)
        if year != committed.pull.year and tree.is_dir():
            damage += [
                Damage(f"{year}: {d.path}", d.problem, earlier=True)
                for d in differences(tree, view_of(archive, version), share)
            ]
    return damage


def _with_age(item: Damage, held: Iterable[str]) -> Damage:
    """Return damage in view, marked where it is of an item of which an earlier collection is in view."""
    earlier = any(f"{item.path}/".startswith(f"{name}/") for name in held)
    return msgspec.structs.replace(item, earlier=True) if earlier else item


def _content_damage(archive: Archive, committed: Committed, share: float) -> list[Damage]:
    """Return what is damaged of what is in view, where there is no tree."""

    def look(file: File) -> Damage | None:
        path = file.path.removeprefix("data/")
        skipped = share < 1 and random.random() >= share  # noqa: S311
        if skipped and archive.objects.has_remote(committed.name, path, file.sha256):
            return None
        problem = archive.objects.problem(committed.name, file)
        return Damage(path, problem) if problem else None

    found = in_parallel(look, map(file_of, committed.view()))
    return [damage for damage in found if damage is not None]


def differences(tree: Path, lines: Iterable[bytes], share: float = 1.0) -> list[Damage]:
    """Return how a tree differs from a list of files, reading every file of it."""
    damage: list[Damage] = []
    closed: list[str] = []  # folders that cannot be read: nothing is said of what is in them

    def note(folder: str, error: OSError) -> None:
        closed.append(folder)
        damage.append(Damage(folder or ".", f"{unreadable(tree / folder, error)} (a folder)"))

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
            damage.append(Damage(path, unreadable(tree / path, error)))
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


def _unreadable(committed: Committed, error: Exception) -> Damage:
    """Say what could not be read of a server, and why."""
    if isinstance(error, OSError):
        place = Path(os.fsdecode(error.filename or committed.tree))
        if place.is_relative_to(committed.tree):
            place = place.relative_to(committed.tree)
        return Damage(str(place), unreadable(committed.tree / place, error))
    return Damage("the record", _without_name(str(error), committed.name))


def _without_name(text: str, name: str) -> str:
    return text.removeprefix(f"the record of {name} ")
