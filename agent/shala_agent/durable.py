"""Durable files: what is written here is whole after a power cut, or not there at all."""

from __future__ import annotations

import os
from pathlib import Path

TEMPORARY = ".shala-"  # begins the name of every temporary file; such names never enter a collection


def write(path: Path, content: bytes, mode: int = 0o640, group: int | None = None) -> None:
    """Replace `path` by `content`: temporary file beside it, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}.part")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if group is not None:
                os.fchown(file.fileno(), -1, group)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Have the file or folder written to the disk before anything else is said about it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(path: Path) -> None:
    """Have everything on the file system of `path` written: cheaper than one fsync for each of many files."""
    import ctypes

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    except AttributeError:  # a C library without it
        os.sync()
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename within one file system and have both folders written."""
    source.rename(target)
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def remove(path: Path) -> None:
    """Remove a file or a whole folder; that it is not there is fine. A link is removed, never followed."""
    if path.is_dir() and not path.is_symlink():
        import shutil

        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def empty_folder(path: Path, mode: int = 0o700) -> Path:
    """Return `path` as a folder with nothing in it."""
    remove(path)
    path.mkdir(parents=True, mode=mode)
    return path
