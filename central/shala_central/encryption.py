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
from shala_central.ciphertext import item_of
from shala_central.failure import CentralError
from shala_central.history import History
from shala_central.listing import file_of
from shala_central.objects import digest_of
from shala_central.publish import remove_tree

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
    server is pulled.
    """
    done = Hidden(name)
    with archive.changing(name), archive.history() as history:
        for group in _groups(archive, name, history, done):
            _encrypt(archive, name, group, done)
        # To be removed here, they must be there.
        kept = (write_line(file) for file in archive.needed(name, history))
        archive.objects.send(archive.objects.local(name, kept))
        _republish(archive, name, done)
        done.removed = _remove_plain(archive, name, history)
        archive.recover(name)
    return done


def _groups(archive: Archive, name: str, history: History, done: Hidden) -> Iterator[list[File]]:
    """Yield the files of sensitive items whose content is not encrypted yet, each content of an item once."""
    ciphertexts, objects = archive.objects.ciphertexts, archive.objects
    seen: set[tuple[str, str]] = set()
    group: list[File] = []
    for file in archive.sealed(name, history):
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
    newest_of_year = {version.year: version for version in archive.versions(name)}
    for version in newest_of_year.values():
        view = map(file_of, archive.view(version))
        if all(archive.objects.ciphertexts.as_stored(name, file) is file for file in view):
            continue
        try:
            if version.id:
                archive.republish_year(version)
            else:
                archive.republish(name)
        except ObjectsLost as lost:
            done.left += [f"{version.year}: {file.path.removeprefix('data/')}" for file in lost.files]
        except BagRefused as refused:
            raise CentralError(f"{name}: {refused} (take its item out of archive.sensitive_items)") from None


def _remove_plain(archive: Archive, name: str, history: History) -> int:
    """Remove the plain contents that are kept encrypted and that nothing else needs; return how many."""
    objects = archive.objects
    needed = {file.sha256 for file in archive.needed(name, history)}
    for version in {version.year: version for version in archive.versions(name)}.values():
        needed.update(file.sha256 for file in map(file_of, archive.view(version)))
    vain = {sha256 for sha256, _ in objects.ciphertexts.contents(name)} - needed
    _unpack_what_stands_on(archive, name, vain, needed)
    for sha256, stored in objects.ciphertexts.contents(name):
        place = objects.find(name, "", stored)
        if place is not None and digest_of(place) != stored:
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
    return removed


def _unpack_what_stands_on(archive: Archive, name: str, vain: set[str], needed: set[str]) -> None:
    """Unpack what is packed against contents that are to go: the same content may be in another item too."""
    cold = archive.objects.cold
    with_bases = {name: set(needed)}
    cold.needed_for(with_bases)
    if (with_bases[name] - needed) & vain:
        for sha256 in needed:
            archive.objects.thaw(name, "", sha256)
