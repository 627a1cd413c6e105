"""Moving: say where the objects of an archive are, and bring what is only on this disk to its bucket."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from shala_central.archive import YEAR, Archive
from shala_central.commit import recover
from shala_central.failure import CentralError, UsageError
from shala_central.objects import Objects
from shala_central.publish import remove_tree
from shala_central.remote import Kept, Local, Remote
from shala_central.versions import files_needed


class Places(msgspec.Struct, frozen=True):
    """Where objects are: plain and packed ones on this disk, and those in the bucket, "" without one.

    `only` are those of the packed ones that the bucket does not have.
    """

    local_objects: int
    local_bytes: int
    packed_objects: int
    packed_bytes: int
    only_objects: int
    only_bytes: int
    bucket: str
    remote: Kept | None


class Uploaded(msgspec.Struct, frozen=True):
    """What was sent, and what was left here that should be in the bucket, with the reasons."""

    objects: int
    bytes: int
    left: list[str]


def places(archive: Archive) -> Places:
    """Return where the objects of an archive are."""
    objects, remote = archive.objects, archive.objects.remote
    plain = [item.size for item in _plain(objects)]
    packed = [size for _, _, size in _packed(objects)]
    only = only_packed_here(archive)
    bucket = str(remote.bucket) if remote is not None else ""
    kept = remote.kept() if remote is not None else None
    return Places(len(plain), sum(plain), len(packed), sum(packed), *only, bucket, kept)


def only_packed_here(archive: Archive) -> tuple[int, int]:
    """Return (objects, bytes) of what is packed on this disk and not in the bucket; (0, 0) without one.

    It is not sent: a page against a newer version would be the whole database again in the bucket.
    """
    remote = archive.objects.remote
    if remote is None:
        return 0, 0
    sizes = [size for pool, sha256, size in _packed(archive.objects) if not remote.has(pool, sha256)]
    return len(sizes), sum(sizes)


def upload(archive: Archive) -> Uploaded:
    """Send every plain object that is only on this disk; on demand, none that is in the bucket stays here.

    What is packed stays as it is. It may be cut at any moment. A content that is damaged, and the tree of a
    server whose content is not whole, stay and are named. Raises UsageError without a bucket, RemoteFailed.
    """
    remote = _bucket(archive)
    on_demand = archive.objects.on_demand
    left: list[str] = []
    with archive.in_use():
        todo = (
            item for item in _plain(archive.objects) if on_demand or not remote.has(item.pool, item.sha256)
        )
        sent = archive.objects.send(todo, lambda damaged: left.append(str(damaged)))
        if on_demand:
            for name in archive.servers():
                try:
                    _unpublish(archive, name)
                except CentralError as error:
                    left.append(str(error))
            left += archive.damaged().values()
    return Uploaded(sent.objects, sent.bytes, left)


def reindex(archive: Archive) -> Kept:
    """List the bucket and note what is in it. Raises UsageError without a bucket, RemoteFailed."""
    remote = _bucket(archive)
    with archive.in_use(alone=True):
        return remote.reindex()


def _bucket(archive: Archive) -> Remote:
    if archive.objects.remote is None:
        raise UsageError("the archive has no bucket (archive.objects_url in the configuration names it)")
    return archive.objects.remote


def _unpublish(archive: Archive, name: str) -> None:
    """Remove the trees of a server, when everything that its collections need can be had without them."""
    with archive.lock(name) as lock, archive.history() as history:
        if lock is None:
            raise CentralError(f"{name} is being pulled (try again when that has ended)")
        recover(archive, name)
        for file in files_needed(archive, name, history):
            path = file.path.removeprefix("data/")
            pool = archive.objects.pool_of(name, path)
            if not archive.objects.has_remote(name, path, file.sha256) and not archive.objects.cold.has(
                pool, file.sha256
            ):
                raise CentralError(
                    f"{path} of {name} is not in the bucket; its tree stays (shala archive repair)"
                )
        # Its links would keep the room that is to be free.
        remove_tree(archive.hidden / "spare" / name)
        for year in archive.root.iterdir():
            if YEAR.fullmatch(year.name):
                for tree in year.glob(f"*/{name}"):
                    left = archive.staging(name) / f"old-{year.name}"
                    remove_tree(left)
                    tree.rename(left)
                    remove_tree(left)


def _packed(objects: Objects) -> Iterator[tuple[str, str, int]]:
    """Yield (pool, sha256, bytes that it takes) of every packed content."""
    for pool in objects.pools():
        for sha256, size in objects.cold.stored(pool):
            yield pool, sha256, size


def _plain(objects: Objects) -> Iterator[Local]:
    for pool in objects.pools():
        for sha256, place in objects.stored(pool):
            yield Local(pool, sha256, place.stat().st_size, place)
