"""Walk: the plain files of a tree, in the order of manifests, through folder descriptors and never through a
link.

Names of one folder in their order, a folder's content in the place of its name: that is the order of
`shala_agent.manifest.sort_key`, so that a walk and a manifest can be read side by side.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

from shala_agent import durable

MAX_DEPTH = 50  # folders; the deepest of a real school has 9

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Unread = Callable[[str, OSError], None]
Entered = Callable[[str, os.stat_result], None]


class Entry(NamedTuple):
    """A plain file of a tree: open it by `name` in `folder`, never by its path."""

    relative: str
    folder: int
    name: str
    stat: os.stat_result


class _Level(NamedTuple):
    """An open folder whose names are partly walked."""

    folder: int
    prefix: str
    names: Iterator[str]
    folders: set[str]


def walk(
    root: Path, notes: list[str], unread: Unread, suffix: str = "", entered: Entered | None = None
) -> Iterator[Entry]:
    """Yield the plain files of a tree; `unread` hears of what cannot be read, in its place in the order, and
    `entered` of each folder, as it was before its names were read.

    With a `suffix` the order is that of the files with it at their names' ends.
    An entry's folder is open only until the next entry is asked for.
    """
    stack: list[_Level] = []
    try:
        _enter(stack, os.open(root, _FOLDER), "", notes, unread, suffix=suffix, entered=entered)
        while stack:
            below = yield from _files(stack[-1], notes, unread)
            if below is None:
                os.close(stack.pop().folder)
            else:
                _enter(stack, below[0], below[1], notes, unread, suffix=suffix, entered=entered)
    finally:
        for level in stack:
            os.close(level.folder)


def _enter(
    stack: list[_Level],
    folder: int,
    prefix: str,
    notes: list[str],
    unread: Unread,
    *,
    suffix: str,
    entered: Entered | None,
) -> None:
    """Put an open folder on the stack, or close it and say why it is left out."""
    names: list[str] = []
    folders: set[str] = set()
    try:
        if entered is not None:
            entered(prefix, os.fstat(folder))
        # Names only: a folder of a million files is a list of a million of them.
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
    except OSError as error:
        os.close(folder)
        unread(prefix, error)
        return
    except BaseException:
        os.close(folder)
        raise
    if len(stack) > MAX_DEPTH:
        os.close(folder)
        notes.append(f"{prefix!r} is more than {MAX_DEPTH} folders deep: it was left out")
        return
    if suffix:
        names.sort(key=lambda name: name if name in folders else name + suffix)
    else:
        names.sort()
    stack.append(_Level(folder, prefix, iter(names), folders))


def _files(level: _Level, notes: list[str], unread: Unread) -> Generator[Entry, None, tuple[int, str] | None]:
    """Yield the files of a folder up to its next folder; return that one, opened, or None at the end."""
    folder, prefix, names, folders = level
    lstat, is_file, temporary = os.stat, stat.S_ISREG, durable.TEMPORARY
    for name in names:
        if name.startswith(temporary):
            continue
        try:
            if name in folders:
                return os.open(name, _FOLDER, dir_fd=folder), f"{prefix}{name}/"
            seen = lstat(name, dir_fd=folder, follow_symlinks=False)
            if is_file(seen.st_mode):
                yield Entry(prefix + name, folder, name, seen)
            elif stat.S_ISDIR(seen.st_mode):  # since its folder was read
                return os.open(name, _FOLDER, dir_fd=folder), f"{prefix}{name}/"
            else:
                notes.append(f"{prefix}{name!r} is a link or a special file: it was left out")
        except FileNotFoundError:
            continue  # deleted meanwhile
        except OSError as error:
            unread(f"{prefix}{name}", error)
    return None
