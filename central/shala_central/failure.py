"""What the centre says when it cannot go on: one line for a person, always with a way out."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shlex
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
    return f"{path} is not for {user_name(os.geteuid())} to use (run: {as_owner(path)})"


def user_name(uid: int) -> str:
    """Return the name of a user, the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
