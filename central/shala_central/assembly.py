"""Assembly: make the folder that is to be published out of objects, from a list of files.

Every file becomes a hard link; folders are made read-only as they are left. Nothing here grows with the list.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from shala_agent.manifest import File

from shala_central.listing import differing, file_of, lines_of
from shala_central.objects import Objects, link
from shala_central.publish import FOLDER_MODE, TOP_MODE, remove_tree
from shala_central.remote import in_parallel
from shala_central.spare import Spare

logger = logging.getLogger(__name__)
MAX_LOST = 20_000  # objects that are gone or damaged and are asked for again at once


class ObjectsLost(Exception):
    """Objects that should be there are gone or have another size; `files` must be fetched again."""

    def __init__(self, files: list[File]) -> None:
        super().__init__("1 object is lost" if len(files) == 1 else f"{len(files)} objects are lost")
        self.files = files


def assemble(tree: Path, files: Path, objects: Objects, server: str, spare: Spare | None = None) -> None:
    """Given a checked list of files, make `tree` of their objects, and of folders of a spare tree that fit.

    Raises ObjectsLost with all that lack.
    """
    remove_tree(tree)
    tree.mkdir(mode=TOP_MODE)
    tree.chmod(TOP_MODE | (tree.parent.stat().st_mode & stat.S_ISGID))
    new = _Tree(tree)
    moving = _Moving(spare, files) if spare is not None else None
    lost: list[File] = []
    for line in lines_of(files):
        sha256, size, _time, _mode, path = line.split(b" ", 4)
        path = path[5:-1]  # without data/ and the line's end
        if moving is not None and moving.takes(path, new):
            continue
        new.enter(path.rpartition(b"/")[0])
        place, target = objects.place(server, path, sha256), b"%b/%b" % (new.top, path)
        try:
            whole = os.lstat(place).st_size == int(size)
            if whole:
                os.link(place, target, follow_symlinks=False)
        except FileNotFoundError:
            whole = False
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            link(Path(os.fsdecode(place)), Path(os.fsdecode(target)))
        if not whole and objects.thaw(server, os.fsdecode(path), sha256.decode()):
            os.link(place, target, follow_symlinks=False)
        elif not whole:
            lost.append(file_of(line))
            if len(lost) >= MAX_LOST:
                raise ObjectsLost(lost)
    new.enter(b"")
    if lost:
        raise ObjectsLost(lost)


def assemble_of_spare(
    tree: Path, files: Path, objects: Objects, server: str, spare: Spare, *, fresh: bool = False
) -> None:
    """Make a tree of the spare one as far as it fits, and of objects; those of the bucket are brought back.

    A `fresh` tree is made of objects alone. Raises ObjectsLost with what is nowhere.
    """
    if fresh:
        spare.drop()
    usable = spare.take()
    brought: set[str] = set()
    while True:
        try:
            assemble(tree, files, objects, server, spare if usable else None)
        except FileNotFoundError:
            if not usable:
                raise
            logger.warning("the spare tree of %s is not what it should be: all folders are made", server)
        except ObjectsLost as lost:

            def back(file: File) -> bool:
                pool = objects.pool_of(server, file.path.removeprefix("data/"))
                return objects.bring_back(pool, file.sha256)

            # Once each: what comes with another size than is listed would be asked for without end.
            again = [file for file in lost.files if file.path not in brought]
            brought.update(file.path for file in again)
            if objects.remote is None or not any(list(in_parallel(back, again))):
                raise
        else:
            break
        finally:
            # Taken apart by now: it is good for one attempt.
            usable = False
            spare.drop()


def require_content(objects: Objects, server: str, lines: Iterable[bytes]) -> None:
    """Raise ObjectsLost unless every content of a list is in the bucket, or packed on this disk."""
    lost: list[File] = []
    for line in lines:
        file = file_of(line)
        path = file.path.removeprefix("data/")
        if not objects.has_remote(server, path, file.sha256, file.size) and not objects.cold.has(
            objects.pool_of(server, path), file.sha256
        ):
            lost.append(file)
            if len(lost) >= MAX_LOST:
                break
    if lost:
        raise ObjectsLost(lost)


class _Tree:
    """The tree to be: its folders are made as they are entered, and made read-only as they are left."""

    def __init__(self, tree: Path) -> None:
        self.top = os.fsencode(tree)
        self.closed = FOLDER_MODE | (tree.stat().st_mode & stat.S_ISGID)
        self._folders: list[bytes] = []  # the open ones, each inside the one before
        self._current = b""

    def enter(self, folder: bytes) -> None:
        """Close the open folders that `folder` is not in, and open those that lead to it."""
        if folder == self._current:
            return
        self._current = folder
        folders = self._folders
        while folders and folder != folders[-1] and not folder.startswith(folders[-1] + b"/"):
            os.chmod(b"%b/%b" % (self.top, folders.pop()), self.closed)  # noqa: PTH101 - maybe a million
        for inner in _ways_to(folder):
            if not folders or len(inner) > len(folders[-1]):
                os.mkdir(b"%b/%b" % (self.top, inner), TOP_MODE)  # noqa: PTH102
                folders.append(inner)


class _Moving:
    """Folders of a spare tree whose whole content is the same in the new list: they are moved, not made."""

    def __init__(self, spare: Spare, files: Path) -> None:
        self._top = os.fsencode(spare.tree)
        self._changed: set[bytes] = set()  # folders with a difference anywhere below them
        for before, after in differing(lines_of(spare.files), lines_of(files)):
            path = (after or before or _NOTHING).path.removeprefix("data/").encode()
            self._changed.update(_ways_to(path.rpartition(b"/")[0]))
        self._taken = b"/"
        self._opened = b""

    def takes(self, path: bytes, new: _Tree) -> bool:
        """Return whether a file comes with a folder that is moved, and move it when it is the first."""
        if path.startswith(self._taken):
            return True
        folder = next((way for way in _ways_to(path.rpartition(b"/")[0]) if way not in self._changed), None)
        if folder is None:
            return False
        parent = folder.rpartition(b"/")[0]
        new.enter(parent)
        source, target = b"%b/%b" % (self._top, folder), b"%b/%b" % (new.top, folder)
        if parent != self._opened:
            os.chmod(b"%b/%b" % (self._top, parent), 0o700)  # noqa: PTH101
            self._opened = parent
        # A folder that is moved to another parent must be writable itself.
        os.chmod(source, 0o700)  # noqa: PTH101
        os.rename(source, target)  # noqa: PTH104
        os.chmod(target, new.closed)  # noqa: PTH101
        self._taken = folder + b"/"
        return True


_NOTHING = File("", "", 0, 0, 0)


def _ways_to(folder: bytes) -> Iterator[bytes]:
    """Yield the folders that lead to one, and itself, from the top."""
    end = folder.find(b"/")
    while end > 0:
        yield folder[:end]
        end = folder.find(b"/", end + 1)
    if folder:
        yield folder
