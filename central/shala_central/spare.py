"""The spare tree: the one that readers have left, kept so that its folders need not be made anew.

To make five thousand folders costs more than all else in a commit (1.6 of 2.5 CPU seconds, on ext4). So the
tree that was exchanged stays aside until the next commit, without the files that have changed; a folder that
is the same in the next one moves there as a whole. One that has changed in any way is never touched: who
still reads the old tree misses files, and never sees a mixture.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from shala_central.listing import BUFFER, common, differing, lines_of
from shala_central.publish import make_folders, remove_tree, sync_file_system


class Spare:
    """The spare tree of one server, in `folder`: `tree`, and `files.txt` that lists what is in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tree = folder / "tree"
        self.files = folder / "taken.txt"

    def take(self) -> bool:
        """Return whether there is one, and make it ours: a run that is cut leaves none to be believed."""
        listed = self._folder / "files.txt"
        if self.tree.is_dir() and listed.is_file():
            listed.rename(self.files)
            return True
        self.drop()
        return False

    def keep(self, retired: Path, before: Path, now: Path) -> None:
        """Given a tree that was exchanged, its list and that of the one in its place, keep what is common."""
        self.drop()
        make_folders(self._folder)
        for old, _new in differing(lines_of(before), lines_of(now)):
            if old is not None:
                _unlink(retired, retired / old.path.removeprefix("data/"))
        retired.rename(self.tree)
        unfinished = self._folder / "files.part"
        with unfinished.open("wb", buffering=BUFFER) as files:
            files.writelines(common(lines_of(before), lines_of(now)))
        # The list is believed: nothing that it does not name may come back after a power cut.
        sync_file_system(self._folder)
        unfinished.rename(self._folder / "files.txt")

    def drop(self) -> None:
        """Remove it."""
        remove_tree(self._folder)


def _unlink(tree: Path, path: Path) -> None:
    """Remove a file, and the folders above it that are empty then: none may come back with one that moves."""
    with contextlib.suppress(FileNotFoundError):
        os.chmod(path.parent, 0o700)  # noqa: PTH101
        path.unlink()
    folder = path.parent
    with contextlib.suppress(OSError):  # it is not empty
        while folder != tree:
            os.chmod(folder.parent, 0o700)  # noqa: PTH101
            folder.rmdir()
            folder = folder.parent
