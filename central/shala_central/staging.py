"""Staging: the folder in which one server's next tree is put together, and the comparison with its manifest.

Survives being cut at any moment: the next run keeps every file that is whole and every part of one that is
not. Nothing here is visible to a reader of the archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shala_central.bag import PARTIAL_DIR, BagRefused
from shala_central.publish import remove_tree

READ_BYTES = 1 << 20

# Given a path of the manifest and its sha256, return a file with that content which the server may use.
Find = Callable[[str, str], Path | None]


@dataclass(slots=True)
class Plan:
    """What must be fetched (`wanted`), what is there already, and how many bytes the latter has."""

    wanted: list[str] = field(default_factory=list)
    present: dict[str, int] = field(default_factory=dict)
    # Files whose content comes with another wanted one: {path: that path}.
    copies: dict[str, str] = field(default_factory=dict)

    @property
    def present_bytes(self) -> int:
        """Bytes of the files that need not be fetched."""
        return sum(self.present.values())


def prepare(
    tree: Path,
    manifest: Mapping[str, str],
    published: Path | None,
    committed: Mapping[str, str],
    sizes: Mapping[str, int],
    *,
    find: Find = lambda _path, _digest: None,
) -> Plan:
    """Given a staging tree (maybe of an earlier run), a manifest and what is published, return the rest.

    Files that the committed manifest proves unchanged become hard links to the published ones; they are not
    read again unless their size is another. So do files of which `find` knows an object. What an earlier run
    left is kept when its digest is right, used as a basis when it is not.
    """
    _clear(tree, manifest)
    plan = Plan()
    made: set[str] = set()
    coming: dict[str, str] = {}
    for path, digest in manifest.items():
        staged = f"{tree}/{path}"
        old = f"{published}/{path}" if published is not None and committed.get(path) == digest else None
        size = _usable(staged, old, digest)
        if size is not None and size != sizes[path]:
            os.unlink(staged)  # noqa: PTH108 - a link to what somebody has damaged
            size = None
        if size is None and old is not None:
            size = _link(old, staged, sizes[path], made)
        if size is None and (known := find(path, digest)) is not None:
            size = _link(known, staged, sizes[path], made)
        if size is None and (first := coming.setdefault(digest, path)) != path:
            plan.copies[path] = first
        elif size is None:
            plan.wanted.append(path)
        else:
            plan.present[path] = size
    return plan


def check(tree: Path, manifest: Mapping[str, str], plan: Plan, sizes: Mapping[str, int]) -> None:
    """Compare a staging tree with its manifest, both ways, reading every file that was fetched.

    Raises BagRefused naming each file that is missing, too many, or not what the manifest says.
    """
    _make_copies(tree, plan)
    reasons: list[str] = []
    paths: list[str] = []
    found: dict[str, int] = {}
    for path, status in _walk(tree):
        if f"/{PARTIAL_DIR}/" in f"/{path}":
            continue
        if not stat.S_ISREG(status.st_mode):
            reasons.append(f"'{path}' is not a plain file")
            paths.append(path)
        elif path not in manifest:
            reasons.append(f"'{path}' was sent without being listed")
            paths.append(path)
        else:
            found[path] = status.st_size
    for path in plan.wanted:
        if path not in found:
            reasons.append(f"'{path}' is listed but was not sent")
        elif found[path] != sizes[path] or digest_of(tree / path) != manifest[path]:
            reasons.append(f"'{path}' is not what the manifest says (sha256 differs)")
            paths.append(path)
    for path in plan.present:
        if path not in found:
            reasons.append(f"'{path}' is no longer in the staging folder")
    if reasons:
        raise BagRefused(reasons, paths)
    _remove_partials(tree)


def _make_copies(tree: Path, plan: Plan) -> None:
    """Make the files whose content came with another one."""
    for path, first in plan.copies.items():
        with contextlib.suppress(FileNotFoundError):  # it was not sent, which is said of `first`
            (tree / path).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            (tree / path).unlink(missing_ok=True)
            (tree / path).hardlink_to(tree / first)


def digest_of(path: Path | str) -> str:
    """Return the sha256 of a file. A file that cannot be read raises OSError."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clear(tree: Path, manifest: Mapping[str, str]) -> None:
    """Remove what no manifest line asks for;
    keep parts of files that are still wanted; make folders writable again.
    """
    tree.mkdir(mode=0o750, parents=True, exist_ok=True)
    folders = [str(tree)]
    while folders:
        folder = folders.pop()
        os.chmod(folder, 0o750)  # noqa: PTH101, S103
        for entry in list(os.scandir(folder)):
            path = os.path.relpath(entry.path, tree)
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
                continue
            parent, name = os.path.split(path)
            if os.path.basename(parent) == PARTIAL_DIR:  # noqa: PTH119
                path = os.path.join(os.path.dirname(parent), name)  # noqa: PTH118, PTH120
            if path not in manifest or not entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)  # noqa: PTH108
    for folder, _folders, _files in os.walk(tree, topdown=False):
        if folder != str(tree) and not os.listdir(folder):  # noqa: PTH208
            os.rmdir(folder)  # noqa: PTH106


def _usable(staged: str, old: str | None, digest: str) -> int | None:
    """Return the size of a staged file that is right already, otherwise None;
    what must not be written is removed.
    """
    try:
        status = os.lstat(staged)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    if stat.S_ISDIR(status.st_mode):
        remove_tree(Path(staged))
        return None
    if old is not None:
        try:
            if os.path.samestat(status, os.lstat(old)):
                return status.st_size
        except OSError:
            pass
    if digest_of(staged) == digest:
        return status.st_size
    if status.st_nlink > 1:
        # A link to a published file is no basis to write on, whatever rsync promises.
        os.unlink(staged)  # noqa: PTH108
    return None


def _link(known: str | Path, staged: str, size: int, made: set[str]) -> int | None:
    """Make a hard link to a file that is known to have the content and return its size;

    None if it is not there any more, or has another size. `made` are the folders that are there.
    """
    folder = os.path.dirname(staged)  # noqa: PTH120 - strings throughout: there may be a million
    if folder not in made:
        os.makedirs(folder, mode=0o750, exist_ok=True)  # noqa: PTH103
        made.add(folder)
    try:
        status = os.lstat(known)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            return None
        os.link(known, staged, follow_symlinks=False)
    except OSError:
        # Gone, or it has as many links as the file system allows: fetch it again.
        return None
    return status.st_size


def _walk(tree: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path, lstat) of everything below a tree that is not a folder."""
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(f"{tree}/{folder}") as entries:
            for entry in entries:
                path = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{path}/")
                else:
                    yield path, entry.stat(follow_symlinks=False)


def _remove_partials(tree: Path) -> None:
    for folder, folders, _files in os.walk(tree):
        if PARTIAL_DIR in folders:
            folders.remove(PARTIAL_DIR)
            remove_tree(Path(folder, PARTIAL_DIR))
