"""What the centre says when it cannot go on: one line for a person, always with a way out."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shlex
import stat
import sys
from pathlib import Path


class CentralError(Exception):
    """Something that stops a command; the text is shown after `shala: `."""


class UsageError(CentralError):
    """The operator asked for something that does not exist or does not fit together (exit code 2)."""


def as_owner(path: Path) -> str:
    """Return how the command that was called is run as the user that a path, or the one above, belongs to."""
    owner = "shala"
    for place in (path, *path.parents):
        with contextlib.suppress(OSError, KeyError):
            seen = place.stat()
            # What root has given to a group is for the user of that name: /etc/shala is.
            owner = user_name(seen.st_uid) if seen.st_uid else grp.getgrgid(seen.st_gid).gr_name
            break
    return shlex.join(["sudo", "-u", owner, "shala", *sys.argv[1:]])


def refused(path: Path) -> str:
    """Return the line for a file or folder that this user may not use."""
    if (shut := shut_by_owner(path)) is not None:
        return f"{shut} is {user_name(os.geteuid())}'s, but its permissions shut it ({opened(shut)})"
    return f"{path} is not for {user_name(os.geteuid())} to use (run: {as_owner(path)})"


def unreadable(path: Path, error: OSError) -> str:
    """Return why a file or folder is not read, and the way out where only its permissions are in the way."""
    shut = shut_by_owner(path) if isinstance(error, PermissionError) else None
    return f"cannot be read: {error.strerror}{f' ({opened(shut)})' if shut is not None else ''}"


def shut_by_owner(path: Path) -> Path | None:
    """Return which of a path and the folders above it this user owns and may not use all the same, if any."""
    for place in reversed((path, *path.parents)):
        try:
            seen = place.stat()
        except OSError:
            break
        wanted = os.R_OK | os.X_OK if stat.S_ISDIR(seen.st_mode) else os.R_OK
        if seen.st_uid == os.geteuid() and not os.access(place, wanted, effective_ids=True):
            return place
    return None


def opened(shut: Path) -> str:
    """Return the command by which its owner may use a file or folder again."""
    return shlex.join(["chmod", "u+rX", str(shut)])


def user_name(uid: int) -> str:
    """Return the name of a user, the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
