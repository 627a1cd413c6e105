"""Assembly: make the folder that is to be published out of objects, from a list of files.

Every file becomes a hard link; folders are made read-only as they are left. Nothing here grows with the list.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from shala_agent.manifest import File

from shala_central.listing import file_of
from shala_central.objects import Objects, link
from shala_central.publish import FOLDER_MODE, TOP_MODE, remove_tree

MAX_LOST = 20_000  # objects that are gone or damaged and are asked for again at once


class ObjectsLost(Exception):
    """Objects that should be there are gone or have another size; `files` must be fetched again."""

    def __init__(self, files: list[File]) -> None:
        super().__init__(f"{len(files)} objects are lost")
        self.files = files


def assemble(tree: Path, lines: Iterable[bytes], objects: Objects, server: str) -> None:
    """Given a checked list of files, make `tree` of their objects. Raises ObjectsLost with all that lack."""
    remove_tree(tree)
    tree.mkdir(mode=TOP_MODE)
    tree.chmod(TOP_MODE | (tree.parent.stat().st_mode & stat.S_ISGID))
    top = os.fsencode(tree)
    closed = FOLDER_MODE | (tree.stat().st_mode & stat.S_ISGID)
    lost: list[File] = []
    folders: list[bytes] = []  # the open ones, each inside the one before
    current = b""
    for line in lines:
        sha256, size, _time, _mode, path = line.split(b" ", 4)
        path = path[5:-1]  # without data/ and the line's end
        folder = path.rpartition(b"/")[0]
        if folder != current:
            _enter(top, folder, folders, closed)
            current = folder
        place, target = objects.place(server, path, sha256), b"%b/%b" % (top, path)
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
    _enter(top, b"", folders, closed)
    if lost:
        raise ObjectsLost(lost)


def _enter(top: bytes, folder: bytes, folders: list[bytes], closed: int) -> None:
    """Close the open folders that `folder` is not in, and open those that lead to it."""
    while folders and folder != folders[-1] and not folder.startswith(folders[-1] + b"/"):
        os.chmod(b"%b/%b" % (top, folders.pop()), closed)  # noqa: PTH101 - there may be a million
    done = len(folders[-1]) + 1 if folders else 0
    while done <= len(folder) and folder:
        end = folder.find(b"/", done)
        inner = folder if end < 0 else folder[:end]
        if not folders or folders[-1] != inner:
            os.mkdir(b"%b/%b" % (top, inner), TOP_MODE)  # noqa: PTH102
            folders.append(inner)
        if end < 0:
            return
        done = end + 1
