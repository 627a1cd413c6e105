"""Publishing: put a finished folder in the place of the old one so that a reader sees either the old or the
new, whole.

Knows nothing of collections; only of folders on one Linux file system.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import tempfile
from pathlib import Path

from shala_central.failure import CentralError

RENAME_EXCHANGE = 2
AT_FDCWD = -100
FILE_MODE = 0o440
FOLDER_MODE = 0o550
# The folder that is exchanged itself: a folder can only be moved to another parent by those who may write
# into it.
TOP_MODE = 0o750

_libc = ctypes.CDLL(None, use_errno=True)


def publish(finished: Path, place: Path) -> None:
    """Given a finished folder and a place, make the folder appear there in one step.

    What stood there before stands where `finished` was. Everything is on the disk before the step is taken,
    the step itself when this returns.
    """
    make_folders(place.parent)
    sync_file_system(finished)
    if place.exists():
        exchange(finished, place)
    else:
        finished.rename(place)
    sync_folder(place.parent)
    sync_folder(finished.parent)


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step. Raises CentralError where the file system cannot."""
    result = _libc.renameat2(
        AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), ctypes.c_uint(RENAME_EXCHANGE)
    )
    if result == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise CentralError(
            f"the file system of {other.parent} cannot exchange two folders in one step"
            " (put the archive on ext4, xfs or btrfs)"
        )
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def require_exchange(folder: Path) -> None:
    """Raise CentralError unless folders below this one can be exchanged:
    to be told before anything is fetched.
    """
    with tempfile.TemporaryDirectory(prefix="exchange-", dir=folder) as name:
        one, other = Path(name, "one"), Path(name, "other")
        one.mkdir()
        other.mkdir()
        exchange(one, other)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, each of them on the disk before the next."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=TOP_MODE)
    sync_folder(folder.parent)


def remove_tree(tree: Path) -> None:
    """Remove a tree whose folders may be read-only. Files in it may be hard links that live on elsewhere."""
    try:
        seen = tree.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(seen.st_mode):
        _remove_folder(os.fsencode(tree))
    else:
        tree.unlink()


def _remove_folder(folder: bytes) -> None:
    # Bytes and plain calls: a school has thousands of folders, and all of them go at every commit.
    os.chmod(folder, 0o700)  # noqa: PTH101
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _remove_folder(entry.path)
            else:
                os.unlink(entry.path)  # noqa: PTH108
    os.rmdir(folder)  # noqa: PTH106


def sync_file_system(path: Path) -> None:
    """Wait until everything written to the file system of `path` is on the disk:
    one call instead of one per file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
