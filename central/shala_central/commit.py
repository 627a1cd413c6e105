"""Commit: make what has come the collection that readers see, in one step; or another view of it.

First the record and the tree are made whole in staging, then an intent says which they are, then the tree is
exchanged. What follows may be repeated: a run that was cut is finished by the next one of that server.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from shala_agent.collection import Collection
from shala_agent.manifest import ManifestError

from shala_central.archive import NO_TREE, Archive, Committed, Current, Intent, inode_of, stamp
from shala_central.assembly import ObjectsLost, assemble, assemble_of_spare, require_content
from shala_central.bag import FILES, Bag
from shala_central.failure import CentralError, UsageError
from shala_central.history import Version
from shala_central.listing import lines_of, merged, readable, select
from shala_central.mending import mend_pointer, mend_record, mend_view
from shala_central.publish import (
    make_folders,
    publish,
    remove_tree,
    sync_file_system,
    sync_folder,
    write_file,
)
from shala_central.quarantine import close_release
from shala_central.records import (
    ENCRYPTED,
    PUBLISHED,
    PULL,
    PULL_DIGEST,
    VIEW,
    PullRecord,
    digests_of_lists,
    flaws,
    folders_of,
    has_pull,
    is_whole,
    lists_are_whole,
    published_in,
    pull_files,
    pull_of,
    read_pull,
)
from shala_central.versions import chosen_of, files_of, record_of, remember, versions_of
from shala_central.view import held_items, write_published, write_view

logger = logging.getLogger(__name__)
BEFORE = "before.txt"  # in staging: the list of the tree that is being exchanged


@contextlib.contextmanager
def changing(archive: Archive, name: str) -> Iterator[None]:
    """Keep pulls and pruning away from a server while the block runs, what was cut before it finished.

    Raises CentralError if that cannot be had now.
    """
    with archive.locked(name), archive.in_use():
        recover(archive, name)
        yield


def recover(archive: Archive, name: str) -> None:
    """Finish or forget what an earlier run of this server left behind. Call with the lock held."""
    staging = archive.staging(name)
    intent_file = staging / "commit.json"
    with contextlib.suppress(FileNotFoundError):
        try:
            intent = msgspec.json.decode(intent_file.read_bytes(), type=Intent)
        except msgspec.MsgspecError:
            intent = None
        if intent is not None and intent.inode in (
            NO_TREE,
            inode_of(archive.tree_of(intent.year, intent.state, name)),
        ):
            _finish(archive, name, intent)
        else:
            remove_tree(staging / "record")
            intent_file.unlink()
    for left in staging.iterdir():
        if left.name not in ("data", "commit.json"):
            remove_tree(left)
    mend_pointer(archive, name)


def commit(
    archive: Archive, name: str, bag: Bag, received: Path, pull: PullRecord, *, fresh: bool = False
) -> None:
    """Publish a collection whose content is among the objects, and write its record. With the lock held.

    `received` is the folder with its HEAD, FILES and small tag files. Suspect items leave the last good
    ones in view, and the same collection once more leaves in view what the operator chose. Raises
    ObjectsLost if content is not there; then nothing has changed. A `fresh` tree is made of objects
    alone.
    """
    record = archive.staging(name) / "record"
    remove_tree(record)
    record.mkdir(mode=0o750)
    for file in received.iterdir():
        if file.is_file():
            (record / file.name).hardlink_to(file)
    previous = _previous(archive, name, pull.state)
    if previous is None and any(
        (left / VIEW).exists() for left in folders_of(archive.hidden / "collections" / name)
    ):
        logger.warning("what was held back of %s is not known any more: readers see what has come now", name)
    known = previous is None or mend_view(archive, name, previous)
    if previous is not None and (previous.pull.year, previous.pull.state) != (pull.year, pull.state):
        previous = None  # another tree: there is nothing in it to be replaced
    held = held_items(previous, bag.collection, pull, lambda number: _handle(archive, name, number))
    if held and not known:
        logger.warning("what was held back of %s is not known any more: readers see what is suspect", name)
        held = {}
    if previous is not None and held:
        write_view(record, lines_of(received / FILES), readable(previous.chosen()), held)
    pull = msgspec.structs.replace(pull, held=held)
    if previous is not None and previous.pull.is_of_same_collection(pull):
        pull = msgspec.structs.replace(pull, accepted=previous.pull.accepted)
        if PULL not in {flaw.name for flaw in flaws(previous.record)}:
            pull = pull.received_before(previous.pull)
    _publish(archive, name, record, pull, fresh=fresh)
    close_release(archive, name)


def _previous(archive: Archive, name: str, state: str) -> Committed | None:
    """Return what is committed now, None where its record does not tell what was held back.

    What a damaged pull.json says would be whole again with the next record, and in the history.
    """
    if not archive.is_readable(name):
        return None
    committed = archive.require_committed(name)
    if has_pull(committed.record):
        return committed
    mend_record(archive, name, archive.copied_records(name))
    committed = archive.require_committed(name)
    if has_pull(committed.record):
        logger.warning("%s of %s was damaged, and is again as the nightly copy has it", PULL, name)
        return committed
    if (committed.record / VIEW).exists():
        return None
    return msgspec.structs.replace(committed, pull=pull_of(committed.record, state))


def accept(archive: Archive, name: str, items: Sequence[str] = ()) -> list[str]:
    """Let suspect items of the newest collection replace the last good ones in view; return which.

    Without `items` all of them. Raises UsageError for one that is not held back, ObjectsLost.
    """
    archive.require_committed(name)
    with changing(archive, name):
        committed = archive.require_committed(name)
        held = committed.pull.held
        for item in items:
            if item not in held:
                known = ", ".join(sorted(held)) or "none"
                raise UsageError(f"'{item}' of {name} is not held back (held are: {known})")
        accepted = sorted(items or held)
        if not accepted:
            return []
        record = _copy_record(archive, name, committed)
        still = {item: handle for item, handle in held.items() if item not in accepted}
        if still:
            write_view(record, committed.files(), committed.chosen(), still)
        taken = sorted({*committed.pull.accepted, *accepted})
        pull = msgspec.structs.replace(committed.pull, held=still, accepted=taken)
        _publish_kept(archive, name, record, pull)
        return accepted


def restore(archive: Archive, name: str, version: Version, items: Sequence[str] = ()) -> list[str]:
    """Let readers see an earlier collection, or items of it, until the next good one; return which items.

    Raises UsageError for an item that it does not have, ObjectsLost.
    """
    with changing(archive, name):
        committed = archive.require_committed(name)
        collection = msgspec.json.decode(record_of(archive, version)["collection.json"], type=Collection)
        there = [f"{item.platform}/{item.name}" for item in collection.items if item.files]
        for item in items:
            if item not in there:
                which = f"collection {version.sequence} of {name}"
                raise UsageError(f"{which} has no item '{item}' (has: {', '.join(there)})")
        chosen = list(items) or there
        record = _copy_record(archive, name, committed)
        prefixes = [f"data/{item}" for item in chosen]
        others = select(committed.chosen(), prefixes, inside=False)
        with (record / VIEW).open("wb") as view:
            view.writelines(merged(others, select(files_of(archive, version), prefixes, inside=True)))
        held = {item: handle for item, handle in committed.pull.held.items() if item not in chosen}
        if version.id:
            held |= dict.fromkeys(chosen, version.handle)
        _publish_kept(archive, name, record, msgspec.structs.replace(committed.pull, held=held))
        return chosen


def republish(archive: Archive, name: str) -> None:
    """Publish what is in view once more, as it is kept now. With the lock held. Raises ObjectsLost."""
    committed = archive.require_committed(name)
    record = _copy_record(archive, name, committed)
    if (committed.record / VIEW).is_file():
        (record / VIEW).hardlink_to(committed.record / VIEW)
    _publish(archive, name, record, committed.pull, fresh=True)


def republish_year(archive: Archive, version: Version) -> None:
    """Publish the tree of an earlier year once more, as its content is kept now, in one step.

    `version` is the collection that it shows. With the lock held; it may be cut at any moment and is then
    to be repeated. Raises ObjectsLost.
    """
    name, state = version.server, archive.require_committed(version.server).pull.state
    record = archive.staging(name) / "record"
    remove_tree(record)
    record.mkdir(mode=0o750)
    with archive.history() as history:
        with (record / VIEW).open("wb") as view:
            view.writelines(chosen_of(archive, version, history.record(version)))
        published = write_published(archive, name, record, record / VIEW)
        tree, place = archive.staging(name) / "tree", archive.tree_of(version.year, state, name)
        if place.is_dir():
            assemble(tree, published, archive.objects, name)
            publish(tree, place)
        history.mark(version, ENCRYPTED, (record / ENCRYPTED).read_bytes())
    remove_tree(tree)
    remove_tree(record)


def relink(archive: Archive, name: str) -> None:
    """Publish what is published once more, of the objects as they are now. With the lock held."""
    if not archive.objects.on_demand:
        with contextlib.suppress(ObjectsLost):
            republish(archive, name)


def _handle(archive: Archive, name: str, number: int) -> str:
    """Return the handle of the newest collection of a number, the number where none is kept."""
    found = [version.handle for version in versions_of(archive, name) if version.sequence == number]
    return found[-1] if found else str(number)


def _copy_record(archive: Archive, name: str, committed: Committed) -> Path:
    """Begin a record of the same collection with another view. Raises CentralError for a damaged one."""
    if not lists_are_whole(committed.record):
        raise CentralError(
            f"the record of {name} in {committed.record} is damaged (shala pull --again {name})"
        )
    record = archive.staging(name) / "record"
    remove_tree(record)
    record.mkdir(mode=0o750)
    for file in committed.record.iterdir():
        if file.name not in (VIEW, ENCRYPTED, PUBLISHED, PULL, PULL_DIGEST):
            (record / file.name).hardlink_to(file)
    return record


def _publish_kept(archive: Archive, name: str, record: Path, pull: PullRecord) -> None:
    try:
        _publish(archive, name, record, pull)
    except ObjectsLost as lost:
        raise CentralError(
            f"{lost} of {name} (shala archive repair {name}, or shala pull --again {name})"
        ) from None


def _publish(archive: Archive, name: str, record: Path, pull: PullRecord, *, fresh: bool = False) -> None:
    """Assemble what a record in staging lists, and put it in its place in one step.

    A `fresh` tree is made of objects alone: the one that stands there is not believed.
    """
    staging = archive.staging(name)
    tree = staging / "tree"
    files, view = record / FILES, record / VIEW
    lists = (files, view) if view.is_file() else (files,)
    published = write_published(archive, name, record, lists[-1])
    pull = msgspec.structs.replace(pull, **digests_of_lists(record))
    for file, content in pull_files(pull).items():
        (record / file).write_bytes(content)
    stored = archive.objects.ciphertexts.lines
    # Before the record names it: what a bucket is to have is there for good.
    for listed in lists if archive.objects.remote is not None else ():
        archive.objects.send(archive.objects.local(name, stored(name, lines_of(listed))))
    try:
        if archive.objects.on_demand:
            for listed in lists:
                require_content(archive.objects, name, stored(name, lines_of(listed)))
            archive.spare(name).drop()  # of a time when there was a tree
            inode = NO_TREE
        else:
            assemble_of_spare(tree, published, archive.objects, name, archive.spare(name), fresh=fresh)
            inode = tree.stat().st_ino
    except ObjectsLost as lost:
        # Under the names that the school knows: it is asked for them.
        raise ObjectsLost(
            [archive.objects.ciphertexts.as_sealed(name, file) for file in lost.files]
        ) from None
    before = archive.committed(name) if archive.is_readable(name) else None
    same_tree = before is not None and (before.pull.year, before.pull.state) == (pull.year, pull.state)
    if before is not None and same_tree and not fresh and inode != NO_TREE and is_whole(before.record):
        # What the exchange leaves in the place of the tree is then known, and can be used again.
        (staging / BEFORE).unlink(missing_ok=True)
        (staging / BEFORE).hardlink_to(published_in(before.record))
    intent = Intent(pull.year, pull.state, inode, _record_name(archive, name, pull))
    # The intent says that the record is whole.
    sync_file_system(staging)
    write_file(staging / "commit.json", msgspec.json.encode(intent))
    if inode != NO_TREE:
        publish(tree, archive.tree_of(pull.year, pull.state, name))
    _finish(archive, name, intent)


def _record_name(archive: Archive, name: str, pull: PullRecord) -> str:
    """Return a name for a record that no other one has: the same collection may be published twice."""
    record = f"{pull.year:04d}-{pull.sequence:08d}"
    taken = (archive.hidden / "collections" / name / record).exists()
    return f"{record}-{stamp()}" if taken else record


def _finish(archive: Archive, name: str, intent: Intent) -> None:
    """Do what follows the exchange; every step may be repeated."""
    staging = archive.staging(name)
    history = archive.hidden / "collections" / name
    make_folders(history)
    if (staging / "record").is_dir():
        (staging / "record").rename(history / intent.record)
        sync_folder(history)
    write_file(history / "current.json", msgspec.json.encode(Current(intent.record)) + b"\n")
    _remember(archive, name, history / intent.record)
    stale = archive.tree_of(intent.year, intent.state, name)
    if intent.inode == NO_TREE and stale.is_dir():
        stale.rename(staging / "tree")
    if (staging / "tree").exists():
        if (staging / BEFORE).exists():
            now = published_in(history / intent.record)
            try:
                archive.spare(name).keep(staging / "tree", staging / BEFORE, now)
            except ManifestError:
                archive.spare(name).drop()
        else:
            (staging / "tree").rename(staging / f"old-{stamp()}")
    for left in staging.iterdir():
        if left.name != "commit.json":
            remove_tree(left)
    (staging / "commit.json").unlink()


def _remember(archive: Archive, name: str, newest: Path) -> None:
    """Move the records of all collections but the newest into the history."""
    for record in newest.parent.iterdir():
        if record == newest or not record.is_dir():
            continue
        # Otherwise it is there once more, because its tree was lost or an item was accepted.
        if not (is_kept := _same_collection(record, newest)):
            with archive.history() as history:
                is_kept = remember(history, name, record, newest)
        if not is_kept:
            aside = archive.hidden / "damaged" / f"{name}-{record.name}-{stamp()}"
            make_folders(aside.parent)
            record.rename(aside)
            sync_folder(newest.parent)
            logger.warning(
                "the list of files of collection %s of %s was gone: it cannot be had any more, nor, as it"
                " was, one before it (what is left of its record: %s)",
                *(record.name, name, aside),
            )
            continue
        # Half a record would pass for a damaged one: it is never one under this name.
        left = archive.staging(name) / f"old-record-{stamp()}"
        record.rename(left)
        sync_folder(newest.parent)
        remove_tree(left)


def _same_collection(record: Path, other: Path) -> bool:
    """Return whether two records are of the same collection, as far as they can be read."""
    newest = read_pull(other)
    pull = pull_of(record, newest.state)
    if not pull.manifest_sha256:  # its name is all that is left
        return (pull.year, pull.sequence) == (newest.year, newest.sequence)
    return pull.is_of_same_collection(newest)
