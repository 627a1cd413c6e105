"""Mending: put right what is damaged of a server's record and its trees, of what else is there of it.

Nothing is fetched here: objects that are damaged are dropped, so that the next pull asks for them again.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from shala_agent.manifest import ManifestError

from shala_central.archive import Archive, Committed, Current, inode_of
from shala_central.bag import BagRefused
from shala_central.failure import CentralError
from shala_central.listing import file_of, lines_of, merged, readable, select
from shala_central.objects import digest_of, holds, link
from shala_central.publish import make_folders, remove_tree, sync_file_system, sync_folder, write_file
from shala_central.records import (
    ENCRYPTED,
    LISTS,
    PUBLISHED,
    PULL,
    PULL_DIGEST,
    SEALED,
    VIEW,
    PullRecord,
    RecordDamaged,
    chosen_in,
    digests_of_lists,
    flaws,
    folders_of,
    has_pull,
    has_sealed_list,
    has_view,
    pull_files,
    read_pull,
    what_is_left,
)
from shala_central.remote import in_parallel
from shala_central.verify import differences
from shala_central.versions import files_of, newest_of_years, versions_of, view_of
from shala_central.view import write_published

logger = logging.getLogger(__name__)


def mend_record(archive: Archive, name: str, others: Sequence[Path] = ()) -> bool:
    """Mend the record of a server from other records of its newest collection; return if it is whole.

    `others` are folders of such records, of a second copy. What they give is believed when all files of
    one fit each other. A pull.json that no other has is made anew where nothing was held back. With the
    lock held.
    """
    folder = archive.hidden / "collections" / name
    if not archive.is_readable(name):
        _mend_unreadable(archive, name, folder, others)
    if not archive.is_readable(name):
        return False
    committed = archive.require_committed(name)
    record, pull = committed.record, committed.pull
    bad = {flaw.name for flaw in flaws(record)}
    if VIEW in bad and mend_view(archive, name, committed):
        bad.discard(VIEW)
    if VIEW not in bad and bad & {ENCRYPTED, PUBLISHED} and _mend_published(archive, name, committed):
        bad -= {ENCRYPTED, PUBLISHED}
    good = (other for other in others if bad and not flaws(other))
    left = pull if has_pull(record) else what_is_left(record, pull.state)
    for other in (other for other in good if _may_be_of(left, read_pull(other))):
        # What one damaged file hides of another is mended with it. A list and its digest belong together:
        # readers see what they saw in the copy.
        _copy_files(other, record, [*SEALED, *((*LISTS, PULL, PULL_DIGEST) if bad & {*LISTS, PULL} else ())])
        break
    return not flaws(record)


def _mend_unreadable(archive: Archive, name: str, folder: Path, others: Sequence[Path]) -> None:
    """Make a record readable whose pull.json, or all of which, is lost."""
    records = folders_of(folder)
    if len(records) > 1:
        return  # nothing says which is the newest
    with archive.history() as history:
        versions = history.versions(name)
    here = records[0] if records else None
    for other in (other for other in others if not flaws(other)):
        pull = read_pull(other)
        if here is not None:
            fits = _may_be_of(what_is_left(here, pull.state), pull)
        else:  # not one that was followed by others: those would be lost with it
            fits = all(version.pulled < pull.pulled for version in versions)
        if fits:
            make_folders(folder)
            place = here or folder / other.name
            place.mkdir(mode=0o750, exist_ok=True)
            _copy_files(other, place, (*SEALED, *LISTS, PULL, PULL_DIGEST))
            break
    else:
        tree = next(archive.root.glob(f"[0-9][0-9][0-9][0-9]/*/{name}"), None)
        if here is None or tree is None or (here / VIEW).exists():
            return
        if {flaw.name for flaw in flaws(here)} - {PULL}:
            return
        pull = what_is_left(here, tree.parent.name)
        (here / PULL_DIGEST).unlink(missing_ok=True)  # cut before the new one is there, there is none
        for file, content in pull_files(pull).items():
            write_file(here / file, content)
    mend_pointer(archive, name)


def _may_be_of(left: PullRecord, pull: PullRecord) -> bool:
    """Return whether what is left of a damaged record may be of the same collection as a whole one."""
    same = (left.year, left.sequence) == (pull.year, pull.sequence)
    return same and left.manifest_sha256 in ("", pull.manifest_sha256)


def mend_pointer(archive: Archive, name: str) -> None:
    """Write current.json anew where it is damaged or gone, and only one whole record is there."""
    folder = archive.hidden / "collections" / name
    records = folders_of(folder)
    if len(records) != 1 or archive.is_readable(name) or archive.is_at_work(name) or flaws(records[0]):
        return
    write_file(folder / "current.json", msgspec.json.encode(Current(records[0].name)) + b"\n")
    logger.warning("current.json of %s was damaged or gone, and is made anew", name)


def mend_view(archive: Archive, name: str, committed: Committed) -> bool:
    """Return whether the list of what is in view is whole, if need be made anew of what it was made of.

    Its digest tells whether it came to the same again. Call with the lock held.
    """
    if has_view(committed.record):
        return True
    held, kept = committed.pull.held, {version.handle: version for version in versions_of(archive, name)}
    if not has_sealed_list(committed.record) or not kept.keys() >= set(held.values()):
        return False
    made = archive.staging(name) / VIEW
    lines = select(committed.files(), [f"data/{item}" for item in held], inside=False)
    for item, handle in held.items():
        lines = merged(lines, select(files_of(archive, kept[handle]), [f"data/{item}"], inside=True))
    try:
        with made.open("wb") as view:
            view.writelines(lines)
    except (RecordDamaged, ManifestError):
        made.unlink()
        return False
    if digest_of(made) != committed.pull.view_sha256:
        made.unlink()
        return False
    sync_file_system(made.parent)
    made.rename(committed.record / VIEW)
    sync_folder(committed.record)
    return True


def _mend_published(archive: Archive, name: str, committed: Committed) -> bool:
    """Return whether the list of what is published could be made anew of the one of what is in view."""
    made = archive.staging(name) / "published"
    remove_tree(made)
    made.mkdir(mode=0o750)
    with contextlib.suppress(ManifestError, BagRefused):
        write_published(archive, name, made, chosen_in(committed.record))
    wanted = msgspec.structs.asdict(committed.pull)
    said = digests_of_lists(made)
    if mended := all(said[LISTS[file]] == wanted[LISTS[file]] for file in (ENCRYPTED, PUBLISHED)):
        _copy_files(made, committed.record, (ENCRYPTED, PUBLISHED))
    remove_tree(made)
    return mended


def _copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Put files of one record in the place of another's, each whole or not at all."""
    for name in names:
        if not (source / name).is_file():
            if name in (*LISTS, PULL_DIGEST):  # its digest is copied, too: that there is none
                (target / name).unlink(missing_ok=True)
            continue
        staged = target.parent / f".{name}.part"  # what is left of one that was cut is no part of a record
        shutil.copyfile(source / name, staged)
        sync_file_system(target)
        staged.replace(target / name)
    sync_folder(target)


def strays(archive: Archive, name: str) -> list[str]:
    """Return the paths of the newest tree that are not the objects of the list of what is in view.

    Those that are missing, that another file stands in the place of, or that belong to no collection; of
    what is a link to its object nothing is read. None where there is no tree.
    """
    committed = archive.require_committed(name)
    if archive.objects.on_demand:
        return []
    found = [damage.path for damage in differences(committed.tree, committed.view(), share=0)]
    told = set(found)
    for file in map(file_of, committed.view()):
        path = file.path.removeprefix("data/")
        place = archive.objects.find(name, path, file.sha256)
        if path in told or (place is not None and inode_of(place) == inode_of(committed.tree / path)):
            continue
        if not holds(committed.tree / path, file.sha256):
            found.append(path)
    return found


def mend_earlier_years(archive: Archive, name: str) -> list[str]:
    """Put objects in the place of files of earlier years that are damaged or gone; return which.

    An object that was fetched again is another file than the one that such a tree links to. Call with the
    lock held.
    """
    mended: list[str] = []
    committed = archive.require_committed(name)
    for year, version in newest_of_years(archive, name).items():
        tree = archive.tree_of(year, committed.pull.state, name)
        if year == committed.pull.year or not tree.is_dir():
            continue
        try:
            for _line in view_of(archive, version):  # whether it is the right one is known at its end
                pass
        except CentralError as damage:
            logger.warning("the tree of %s of %s stays as it is: %s", year, name, damage)
            continue
        for file in map(file_of, view_of(archive, version)):
            path = file.path.removeprefix("data/")
            place = archive.objects.find(name, path, file.sha256, file.size)
            if place is None or inode_of(place) == inode_of(tree / path):
                continue
            if not holds(tree / path, file.sha256) and holds(place, file.sha256):
                _replace(archive, name, place, tree / path)
                mended.append(f"{year}: {path}")
    return mended


def _replace(archive: Archive, name: str, place: Path, target: Path) -> None:
    staged = archive.staging(name) / "mended"
    staged.unlink(missing_ok=True)
    link(place, staged)
    mode = stat.S_IMODE(target.parent.stat().st_mode)
    target.parent.chmod(mode | stat.S_IWUSR)
    try:
        staged.rename(target)
    finally:
        target.parent.chmod(mode)


def drop_damaged(archive: Archive, name: str, received: Path | None = None) -> int:
    """Remove the objects of the newest collection that are not what they should be; return how many.

    They are fetched again by the next pull that looks. `received` is the list of files that the school
    has now: of a damaged record it is the only one. Call with the lock held.
    """
    dropped = 0
    committed = archive.committed(name) if archive.is_readable(name) else None
    lists: list[Iterator[bytes]] = []
    if committed is not None:
        lists = [kept(archive, committed), committed.view()]
    elif received is not None:
        lists = [archive.objects.ciphertexts.lines(name, lines_of(received))]
    for lines in lists:
        for file in map(file_of, readable(lines)):
            place = archive.objects.find(name, file.path.removeprefix("data/"), file.sha256)
            if place is not None and not holds(place, file.sha256):
                place.unlink()
                dropped += 1
    if committed is not None and archive.objects.on_demand:
        dropped += _drop_damaged_remote(archive, committed)
    return dropped


def _drop_damaged_remote(archive: Archive, committed: Committed) -> int:
    """Doubt what is damaged in the bucket, reading each content once; return how many."""
    remote = archive.objects.remote
    if remote is None:
        return 0
    contents = {
        (archive.objects.pool_of(committed.name, file.path.removeprefix("data/")), file.sha256)
        for lines in (kept(archive, committed), committed.view())
        for file in map(file_of, lines)
    }

    def is_damaged(content: tuple[str, str]) -> tuple[str, str] | None:
        return content if remote.has(*content) and remote.problem(*content) else None

    damaged = [content for content in in_parallel(is_damaged, contents) if content is not None]
    for content in damaged:
        remote.doubt(*content)
    return len(damaged)


def kept(archive: Archive, committed: Committed) -> Iterator[bytes]:
    """Yield the lines of a collection as its files are kept, of a list that a disk may have damaged."""
    ciphertexts = archive.objects.ciphertexts
    if not ciphertexts.items(committed.name):
        return committed.files()
    return ciphertexts.lines(committed.name, readable(committed.files()))
