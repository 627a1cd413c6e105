"""The manifest of a collection: one line per file, and the changes from one collection to the next.

Text, one line per file, in the order of `sort_key`: a folder's content stands together, so that everything
here works on streams and needs no more memory for a million files than for one:

    <sha256> <bytes> <mtime in ns> <permissions, octal> <path below the bag>
    -<path>                                             only among changes: the file is gone

A changed or new file stands among changes as its new line. BagIt's manifest-sha256.txt is made of the same
files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import msgspec

_LINE = re.compile(r"([0-9a-f]{64}) ([0-9]{1,18}) (-?[0-9]{1,19}) (0[0-7]{3}) (.+)", re.DOTALL)


class ManifestError(Exception):
    """A manifest is not one; the text names the line."""


class File(msgspec.Struct, frozen=True, gc=False):
    """One file of a collection. `size` in bytes, `mtime_ns` since 1970, `mode` the permission bits."""

    path: str
    sha256: str
    size: int
    mtime_ns: int
    mode: int


class Gone(msgspec.Struct, frozen=True, gc=False):
    """Among changes: there is no file at this path any more."""

    path: str


Change = File | Gone


def sort_key(path: str) -> str:
    """Return what manifests are sorted by: paths, with a folder's content together.

    No path of a manifest holds control characters, so this is one order of whole names.
    """
    return path.replace("/", "\x01")


def path_of(key: str) -> str:
    """Return the path that has this sort key."""
    return key.replace("\x01", "/")


def key_range(path: str) -> tuple[str, str]:
    """Return the sort key of a path, and the first one after it and all below it."""
    key = sort_key(path)
    return key, key + "\x02"


def write_line(change: Change) -> bytes:
    """Return the line of a file, or of one that is gone."""
    if isinstance(change, Gone):
        return f"-{change.path}\n".encode()
    return f"{change.sha256} {change.size} {change.mtime_ns} {change.mode:04o} {change.path}\n".encode()


def read_files(lines: Iterable[bytes]) -> Iterator[File]:
    """Yield the files of a manifest, given its lines.

    Raises ManifestError for a line that is none, or is out of order or there twice.
    """
    for change in read_changes(lines):
        if isinstance(change, Gone):
            raise ManifestError(f"'{change.path}' is marked as gone, which only changes may do")
        yield change


def read_changes(lines: Iterable[bytes]) -> Iterator[Change]:
    """Yield the changes of a list of changes, given its lines. Raises ManifestError."""
    last = ""
    for number, raw in enumerate(lines, 1):
        change = _parse(raw, number)
        key = sort_key(change.path)
        if key <= last:
            raise ManifestError(f"line {number}: '{change.path}' is out of order or there twice")
        last = key
        yield change


def compose(first: Iterable[Change], second: Iterable[Change]) -> Iterator[Change]:
    """Yield the changes that do what `first` and then `second` do."""
    for before, after in _side_by_side(first, second):
        change = before if after is None else after
        assert change is not None  # noqa: S101 - one of them is there
        yield change


def compose_all(lists: Sequence[Iterable[Change]]) -> Iterable[Change]:
    """Return the changes that do what all lists do, one after the other.

    Two and two, so that a thousand lists stand only ten deep.
    """
    while len(lists) > 1:
        pairs = [lists[i : i + 2] for i in range(0, len(lists), 2)]
        lists = [compose(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return lists[0] if lists else ()


def bagit_lines(files: Iterable[File]) -> Iterator[bytes]:
    """Yield the lines of manifest-sha256.txt (RFC 8493, 2.1.3)."""
    for file in files:
        yield f"{file.sha256}  {file.path}\n".encode()


def _parse(raw: bytes, number: int) -> Change:
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ManifestError(f"line {number} is not UTF-8") from None
    if not line.endswith("\n"):
        raise ManifestError(f"line {number} is cut")
    line = line[:-1]
    if line.startswith("-") and len(line) > 1:
        return Gone(line[1:])
    match = _LINE.fullmatch(line)
    if match is None:
        raise ManifestError(f"line {number} is not a line of a manifest")
    return File(match[5], match[1], int(match[2]), int(match[3]), int(match[4], 8))


def _side_by_side(
    left: Iterable[Change], right: Iterable[Change]
) -> Iterator[tuple[Change | None, Change | None]]:
    """Yield what both say of each path, in order; None where one says nothing."""
    lefts, rights = iter(left), iter(right)
    one, other = next(lefts, None), next(rights, None)
    while one is not None or other is not None:
        a = sort_key(one.path) if one is not None else None
        b = sort_key(other.path) if other is not None else None
        if b is None or (a is not None and a < b):
            yield one, None
            one = next(lefts, None)
        elif a is None or b < a:
            yield None, other
            other = next(rights, None)
        else:
            yield one, other
            one, other = next(lefts, None), next(rights, None)
