"""Durable files: what is written here is whole after a power cut, or not there at all."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".shala-"  # begins the name of every temporary file; such names never enter a collection


def write(path: Path, content: bytes, mode: int = 0o640, group: int | None = None) -> None:
    """Replace `path` by `content`: temporary file beside it, of this call alone, fsync, rename, fsync of the
    folder. Raises OSError that names `path`.
    """
    try:
        _write(path, content, mode, group)
    except OSError as error:
        # Nobody has heard of the temporary file.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


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
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    try:
        path.rmdir()
    except OSError:  # something is in it
        import shutil

        shutil.rmtree(path)


def empty_folder(path: Path, mode: int = 0o700) -> Path:
    """Return `path` as a folder with nothing in it."""
    remove(path)
    path.mkdir(parents=True, mode=mode)
    return path


def _write(path: Path, content: bytes, mode: int, group: int | None) -> None:
    _sweep(path)
    temporary, descriptor = _temporary(path)
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


def _temporary(path: Path) -> tuple[Path, int]:
    """Make a temporary file beside `path`, locked as long as it is written."""
    while True:
        temporary = path.with_name(f"{TEMPORARY}{path.name}.{os.urandom(4).hex()}.part")
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # swept away before it was locked


def _sweep(path: Path) -> None:
    """Remove what writers of `path` that were killed have left: temporary files that nobody holds."""
    begin = f"{TEMPORARY}{path.name}."
    for name in os.listdir(path.parent):  # noqa: PTH208 - names alone
        if not (name.startswith(begin) and name.endswith(".part")):
            continue
        with suppress(OSError):
            descriptor = os.open(
                path.parent / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            )
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path.parent / name)  # noqa: PTH108
            finally:
                os.close(descriptor)
