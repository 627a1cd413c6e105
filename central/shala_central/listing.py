"""Lists of files as they lie on the disk: FILES of a collection, and the changes from one to the next.

The format is that of shala_agent.manifest. Here lists are compared and put together as lines: of a day on
which ten of a million files changed, ten lines are taken apart. Nothing here holds a list in memory.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shala_agent.manifest import (
    Change,
    File,
    Gone,
    ManifestError,
    compose_all,
    read_changes,
    sort_key,
    write_line,
)

BUFFER = 1 << 18  # bytes read at once
MAX_LINE = 1 << 16  # bytes of a line that is held in memory; a longer one is none

Pair = tuple[File | None, File | None]


def lines_of(path: Path) -> Iterator[bytes]:
    """Yield the lines of a list on the disk."""
    with path.open("rb", buffering=BUFFER) as lines:
        while line := lines.readline(MAX_LINE):
            yield line


def readable(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a list that are lines of files and in order: of one that a disk has damaged."""
    last = ""
    for line in lines:
        with contextlib.suppress(ManifestError):
            key = sort_key(file_of(line).path)
            if key > last:
                last = key
                yield line


def file_of(line: bytes) -> File:
    """Return the file of one line. Raises ManifestError if it is none."""
    change = next(read_changes([line]), None)
    if not isinstance(change, File):
        raise ManifestError("a line is not that of a file")
    return change


def path_of(line: bytes) -> bytes:
    """Return the path of one line, fast; of a list that was checked."""
    return line.split(b" ", 4)[4][:-1]


def differing(old: Iterable[bytes], new: Iterable[bytes]) -> Iterator[Pair]:
    """Yield (old file, new file) wherever two lists differ, in order; None where one has no such file."""
    olds, news = iter(old), iter(new)
    one, other = next(olds, None), next(news, None)
    while one is not None or other is not None:
        if one == other:
            one, other = next(olds, None), next(news, None)
            continue
        before = file_of(one) if one is not None else None
        after = file_of(other) if other is not None else None
        if after is None or (before is not None and sort_key(before.path) < sort_key(after.path)):
            yield before, None
            one = next(olds, None)
        elif before is None or sort_key(after.path) < sort_key(before.path):
            yield None, after
            other = next(news, None)
        else:
            yield before, after
            one, other = next(olds, None), next(news, None)


def common(one: Iterable[bytes], other: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines that stand in both lists."""
    ones, others = iter(one), iter(other)
    a, b = next(ones, None), next(others, None)
    while a is not None and b is not None:
        if a == b:
            yield a
            a, b = next(ones, None), next(others, None)
            continue
        here, there = (path_of(line).replace(b"/", b"\x01") for line in (a, b))
        if here <= there:
            a = next(ones, None)
        if there <= here:
            b = next(others, None)


def changes_between(old: Iterable[bytes], new: Iterable[bytes]) -> Iterator[Change]:
    """Yield what changed from one list to another."""
    for before, after in differing(old, new):
        if after is not None:
            yield after
        elif before is not None:
            yield Gone(before.path)


def fold(old: Iterable[bytes], chain: Sequence[Iterable[bytes]]) -> Iterator[bytes]:
    """Yield the lines of a list after the lists of changes of a chain, oldest first. Raises ManifestError."""
    changes = iter(compose_all([read_changes(lines) for lines in chain]))
    change = next(changes, None)
    key = _key(change)
    for line in old:
        if key is None:
            yield line
            continue
        here = path_of(line).replace(b"/", b"\x01")
        while key is not None and key < here:
            if isinstance(change, File):
                yield write_line(change)
            change = next(changes, None)
            key = _key(change)
        if key != here:
            yield line
    while change is not None:
        if isinstance(change, File):
            yield write_line(change)
        change = next(changes, None)


def select(lines: Iterable[bytes], prefixes: Sequence[str], *, inside: bool) -> Iterator[bytes]:
    """Yield the lines below any of the prefixes (`data/gstudio/db`), or with `inside` False all others."""
    starts = tuple(f"{prefix}/".encode() for prefix in prefixes)
    wholes = {prefix.encode() for prefix in prefixes}
    for line in lines:
        path = path_of(line)
        if (path.startswith(starts) or path in wholes) == inside:
            yield line


def merged(one: Iterable[bytes], other: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of two lists that have no path in common, in order."""
    for before, after in differing(one, other):
        file = before or after
        if file is not None:
            yield write_line(file)


def lines_in(raw: bytes) -> Iterator[bytes]:
    """Yield the lines of a list in memory."""
    return iter(io.BytesIO(raw))


def _key(change: Change | None) -> bytes | None:
    return sort_key(change.path).encode() if change is not None else None
