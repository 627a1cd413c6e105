"""Ownership: what root makes in the folder of the service is the service's, as if it had made that itself."""

from __future__ import annotations

import os
from pathlib import Path


def make_file(path: Path, content: bytes = b"") -> None:
    """Make a file of mode 0600 that belongs to whom its folder belongs to. Raises FileExistsError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Make a folder that only its owner enters, and those above it that are not there. Each belongs to whom
    the one above it belongs to.
    """
    for folder in reversed((path, *path.parents)):
        if folder.is_dir():
            continue
        try:
            folder.mkdir(mode=0o700 if folder == path else 0o755)
        except FileExistsError:
            if not folder.is_dir():
                raise
            continue  # somebody else makes it just now
        if os.geteuid() == 0:
            _give_to_owner_above(folder)


def _give_to_owner_above(folder: Path) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    above = os.open(folder.parent, flags)
    try:
        owner = os.fstat(above)
        made = os.open(folder.name, flags | os.O_NOFOLLOW, dir_fd=above)  # never what a link leads to
        try:
            os.fchown(made, owner.st_uid, owner.st_gid)
        finally:
            os.close(made)
    finally:
        os.close(above)
