"""Encryption: encrypt what is in the archive in plain of items that are sensitive by now, in history too.

What comes later is encrypted as it comes (shala_central.staging). Here each server goes through three steps:
all its sensitive contents are encrypted, its trees are published anew, the plain contents are removed. It may
be cut at any moment; the next run does what is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from shala_agent.manifest import File, write_line

from shala_central.archive import Archive
from shala_central.assembly import ObjectsLost
from shala_central.bag import BagRefused
from shala_central.ciphertext import SUFFIX, Encrypted, item_of
from shala_central.commit import changing, recover, republish, republish_year
from shala_central.failure import CentralError
from shala_central.history import History
from shala_central.listing import file_of
from shala_central.objects import Objects, holds
from shala_central.publish import remove_tree
from shala_central.versions import files_needed, files_sealed, newest_of_years, view_of

GROUP_FILES = 500  # encrypted one after the other, then written down together
GROUP_BYTES = 256 << 20  # a group takes this much room more, or that of one larger file


class Hidden(msgspec.Struct):
    """What was encrypted of a server: contents and bytes, plain contents removed, paths that are left."""

    name: str
    objects: int = 0
    bytes: int = 0
    removed: int = 0
    left: list[str] = msgspec.field(default_factory=list)


def encrypt(archive: Archive, name: str) -> Hidden:
    """Encrypt all contents of a server's sensitive items that are still in plain.

    Content that is damaged or gone is left, and with it the tree that shows it. Raises CentralError while the
    server is pulled, and where its record is damaged.
    """
    done = Hidden(name)
    with changing(archive, name), archive.history() as history:
        if damaged := archive.damaged_record(name):
            raise CentralError(damaged)
        for group in _groups(archive, name, history, done):
            _encrypt(archive, name, group, done)
        # To be removed here, they must be there.
        kept = (write_line(file) for file in files_needed(archive, name, history))
        archive.objects.send(archive.objects.local(name, kept))
        _republish(archive, name, done)
        done.removed = _remove_plain(archive, name, history)
        recover(archive, name)
    return done


def relearn(archive: Archive, name: str) -> list[str]:
    """Complete the table of age files from the record of a server's newest collection; return the paths.

    A table that was put back is of last night: what came since stands in the record as it was sealed and as
    it was published. With the lock held, the record being whole.
    """
    committed, ciphertexts = archive.committed(name), archive.objects.ciphertexts
    paths = committed.encrypted_paths() if committed is not None else frozenset()
    if committed is None or not paths:
        return []
    sealed = {file.path: file for file in map(file_of, committed.chosen()) if file.path in paths}
    found: list[Encrypted] = []
    for stored in map(file_of, committed.view()):
        file = sealed.get(stored.path.removesuffix(SUFFIX))
        if file is None or ciphertexts.as_stored(name, file) is not file:
            continue
        if archive.objects.has(name, stored):
            found.append(Encrypted(file, Path(), stored.sha256, stored.size))
    ciphertexts.add(name, found)
    return [one.file.path.removeprefix("data/") + SUFFIX for one in found]


def _groups(archive: Archive, name: str, history: History, done: Hidden) -> Iterator[list[File]]:
    """Yield the files of sensitive items whose content is not encrypted yet, each content of an item once."""
    ciphertexts, objects = archive.objects.ciphertexts, archive.objects
    seen: set[tuple[str, str]] = set()
    group: list[File] = []
    for file in files_sealed(archive, name, history):
        path = file.path.removeprefix("data/")
        if not ciphertexts.is_sensitive(path) or (key := (item_of(path), file.sha256)) in seen:
            continue
        seen.add(key)
        stored = ciphertexts.as_stored(name, file)
        if stored is not file and objects.has(name, stored):
            continue
        group.append(file)
        if len(group) >= GROUP_FILES or sum(one.size for one in group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def _encrypt(archive: Archive, name: str, group: list[File], done: Hidden) -> None:
    staging = archive.staging(name)
    spare = staging / "plain"
    remove_tree(spare)
    spare.mkdir(mode=0o700)
    contents: list[tuple[File, Path]] = []
    for file in group:
        place = archive.objects.readable(name, file, spare / str(len(contents)))
        if place is None:
            done.left.append(file.path.removeprefix("data/"))
        else:
            contents.append((file, place))
    archive.objects.add_encrypted(name, contents, staging / "encrypted")
    remove_tree(spare)
    done.objects += len(contents)
    done.bytes += sum(file.size for file, _ in contents)


def _republish(archive: Archive, name: str, done: Hidden) -> None:
    """Publish each tree anew in which something stands in plain that is kept encrypted."""
    for version in newest_of_years(archive, name).values():
        view = map(file_of, view_of(archive, version))
        if all(archive.objects.ciphertexts.as_stored(name, file) is file for file in view):
            continue
        try:
            if version.id:
                republish_year(archive, version)
            else:
                republish(archive, name)
        except ObjectsLost as lost:
            done.left += [f"{version.year}: {file.path.removeprefix('data/')}" for file in lost.files]
        except BagRefused as refused:
            raise CentralError(f"{name}: {refused} (take its item out of archive.sensitive_items)") from None


def _remove_plain(archive: Archive, name: str, history: History) -> int:
    """Remove the plain contents that are kept encrypted and that nothing else needs; return how many."""
    objects = archive.objects
    needed = {file.sha256 for file in files_needed(archive, name, history)}
    for version in newest_of_years(archive, name).values():
        needed.update(file.sha256 for file in map(file_of, view_of(archive, version)))
    vain = {sha256 for sha256, _ in objects.ciphertexts.contents(name)} - needed
    _unpack_what_stands_on(archive, name, vain, needed)
    for sha256, stored in objects.ciphertexts.contents(name):
        if not _is_whole(objects, name, stored):
            vain.discard(sha256)  # the plain content is the better one
    removed = 0
    for sha256 in vain:
        if (place := objects.find(name, "", sha256)) is not None:
            place.unlink()
        in_bucket = objects.remote is not None and objects.remote.has(name, sha256)
        if objects.remote is not None and in_bucket:
            objects.remote.forget(name, sha256)
        packed = objects.cold.has(name, sha256)
        if packed:
            objects.cold.remove(name, [sha256])
        removed += place is not None or in_bucket or packed
    objects.cold.settle()
    return removed


def _is_whole(objects: Objects, name: str, stored: str) -> bool:
    """Return whether an age file can be had, as far as is known without a request."""
    if (place := objects.find(name, "", stored)) is not None:
        return holds(place, stored)
    return objects.has_remote(name, "", stored)


def _unpack_what_stands_on(archive: Archive, name: str, vain: set[str], needed: set[str]) -> None:
    """Unpack what is packed against contents that are to go: the same content may be in another item too."""
    cold = archive.objects.cold
    with_bases = {name: set(needed)}
    cold.needed_for(with_bases)
    if (with_bases[name] - needed) & vain:
        for sha256 in needed:
            archive.objects.thaw(name, "", sha256)
