"""Sketch: whether an item is as it was when all of its files were known and sealed, at one lstat a file.

A walk opens every folder and compares every file with what is known of it; where nothing has changed, that is
most of what a run does. A sketch holds an item's folders in the order of its walk, the names in each of them,
and how they were. A folder whose times and inode are the same has the same names in it: a file that is made,
removed or renamed gives its folder another time. Of the mirror only the folders are looked at: a file that it
has lost is noticed, one whose bytes went bad is found when it is read again (shala_agent.reread).

A sketch may be thrown away at any time. It has a header, and counts, once it is settled by the run that drew
it: when what it was drawn from is sealed and in its place.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shala_agent.walk import Entry

# Tables of another form need another VERSION in shala_agent.seen.
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS sketch (item TEXT PRIMARY KEY, header BLOB) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS stretch (item TEXT, number INTEGER, part INTEGER, folder TEXT,
    entered INTEGER, names TEXT, signs INTEGER, mirror_ns INTEGER,
    PRIMARY KEY (item, number)) WITHOUT ROWID""",
)
RACY_NS = 2_000_000_000  # what changed less than this before it was read may change again in the same tick
PAGE = 100  # stretches that are read or written at once
LONGEST = 250  # names of one stretch

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# A file's or a folder's size (of a folder 0), mtime, ctime and inode.
_Signs = tuple[int, int, int, int]


def prepare(db: sqlite3.Connection) -> None:
    """Make the tables where they are not there."""
    for statement in _SCHEMA:
        db.execute(statement)


class Part(msgspec.Struct, frozen=True):
    """A folder that an item was taken from, and its place in the mirror: a path with a slash at its end, and
    what the names of files have there at their ends.
    """

    root: str
    mirror: str
    suffix: str


class Header(msgspec.Struct, frozen=True):
    """What an item came to when it was drawn, and what that depended on besides its files."""

    form: str  # how it was taken: in another way it may come to something else
    parts: list[Part]
    files: int
    size: int  # bytes
    reasons: list[str]
    read_days: tuple[int, int]  # of the calendar: when its files were read, the first and the last


@dataclass(slots=True)
class Sketch:
    """The sketch of an item as it is drawn beside a walk; `without_ctime` where a link that is made to a file
    must not count.
    """

    _sketches: Sketches
    _item: str
    without_ctime: bool
    _given_up: bool = False
    _parts: list[Part] = field(default_factory=list)
    _days: tuple[int, int] = (1 << 40, 0)
    # The stretch that is being drawn: one folder, or what is in it after a folder of its own.
    _number: int = 0
    _folder: str = ""
    _entered: bool = False
    _mirror_ns: int = 0
    _names: list[str] = field(default_factory=list)
    _signs: list[_Signs] = field(default_factory=list)

    def begin(self) -> None:
        """Begin to draw: in the place of the sketch that there is."""
        self._sketches.erase(self._item)

    def take(self, part: Part) -> None:
        """Go on with a part of the item."""
        self._end_stretch()
        self._parts.append(part)

    def enter(self, folder: str, seen: os.stat_result) -> None:
        """Note a folder as it was before its names were read; its path is "" or has a slash at its end."""
        self._end_stretch()
        self._folder, self._entered = folder, True
        # Before it is looked whether the mirror holds the files: what it loses after that is another time.
        self._mirror_ns = _time_of(self._parts[-1].mirror + folder)
        self._signs.append((0, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino))
        if time.time_ns() - seen.st_ctime_ns <= RACY_NS or not _is_text(folder):
            self.give_up()

    def add(self, entry: Entry, read_day: int | None) -> None:
        """Note a file that is sealed as it is now, or will be, and when it was read; None: it is not."""
        if read_day is None or self._given_up:
            self._given_up = True
            return
        relative, _, name, seen = entry
        folder = relative[: -len(name)]
        if folder != self._folder or len(self._names) == LONGEST:
            self._end_stretch()
            self._folder = folder
        self._names.append(name)
        ctime_ns = 0 if self.without_ctime else seen.st_ctime_ns
        self._signs.append((seen.st_size, seen.st_mtime_ns, ctime_ns, seen.st_ino))
        first, last = self._days
        self._days = min(first, read_day), max(last, read_day)

    def give_up(self) -> None:
        """Keep nothing of it: something is not at rest, or has to be said each time."""
        self._given_up = True

    def finish(self, form: str, files: int, size: int, reasons: Sequence[str]) -> None:
        """Keep it until it is settled."""
        self._end_stretch()
        if self._given_up or not self._parts:
            self._sketches.erase(self._item)
        else:
            header = Header(form, self._parts, files, size, list(reasons), self._days)
            self._sketches.keep(self._item, header)

    def _end_stretch(self) -> None:
        if self._signs and not self._given_up:
            names = "/".join(self._names)
            part = len(self._parts) - 1
            self._sketches.write(
                (
                    self._item, self._number, part, self._folder, self._entered,
                    names, _sum(self._signs), self._mirror_ns,
                )
            )  # fmt: skip
            self._number += 1
        self._entered, self._mirror_ns = False, 0
        self._names.clear()
        self._signs.clear()


class Sketches:
    """The sketches of all items, in the database of what was seen and in its transactions."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._buffer: list[tuple[object, ...]] = []
        self._drawn: dict[str, Header] = {}  # by this run

    # -- drawing ---------------------------------------------------------------------------------------------

    def write(self, stretch: tuple[object, ...]) -> None:
        """Write a stretch of an item: its row of the table."""
        self._buffer.append(stretch)
        if len(self._buffer) >= PAGE:
            self._flush()

    def keep(self, item: str, header: Header) -> None:
        """Take the header of an item whose stretches are written."""
        self._flush()
        self._drawn[item] = header

    def erase(self, item: str) -> None:
        """Remove the sketch of an item."""
        self._buffer.clear()  # one item is drawn at a time
        if self._db.execute("SELECT 1 FROM stretch WHERE item = ? LIMIT 1", (item,)).fetchone():
            self._db.execute("DELETE FROM stretch WHERE item = ?", (item,))
            self._db.execute("DELETE FROM sketch WHERE item = ?", (item,))

    def clear(self) -> None:
        """Remove all sketches."""
        for table in ("stretch", "sketch"):
            self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - constants

    def settle(self) -> None:
        """Have the sketches that were drawn count: what they show is in the mirror now."""
        for item, header in self._drawn.items():
            if self._is_in_mirror(item, header):
                self._db.execute("INSERT INTO sketch VALUES (?, ?)", (item, msgspec.json.encode(header)))
        self._drawn.clear()

    def _is_in_mirror(self, item: str, header: Header) -> bool:
        """Note the times that the new collection gave to folders of the mirror; return whether it has in them
        what was drawn: it may have lost some of it meanwhile.
        """
        changed: set[tuple[int, str]] = set()
        for page in self._pages(item, "number, part, folder, entered, names, mirror_ns"):
            times: list[tuple[int, str, int]] = []
            for number, part, folder, entered, names, before in page:
                place, suffix = header.parts[part].mirror + folder, header.parts[part].suffix
                if entered:  # what comes now is of this folder or of one above it
                    changed = {one for one in changed if one[0] == part and folder.startswith(one[1])}
                if entered and (now := _time_of(place)) != before:
                    times.append((now, item, number))
                    changed.add((part, folder))
                if (part, folder) in changed and not all(
                    os.path.lexists(f"{place}{name}{suffix}") for name in _names_in(names)
                ):
                    return False
            self._db.executemany("UPDATE stretch SET mirror_ns = ? WHERE item = ? AND number = ?", times)
        return True

    # -- comparing -------------------------------------------------------------------------------------------

    def header(self, item: str) -> Header | None:
        """Return what the sketch of an item says of it as a whole, None when there is none."""
        row = self._db.execute("SELECT header FROM sketch WHERE item = ?", (item,)).fetchone()
        try:
            return msgspec.json.decode(row[0], type=Header) if row else None
        except msgspec.MsgspecError:  # of another version
            return None

    def is_like(self, item: str, header: Header, *, without_ctime: bool) -> bool:
        """Return whether the folders and files of an item, and its folders in the mirror, are as drawn."""
        roots: list[int] = []
        try:
            for part in header.parts:
                roots.append(os.open(part.root, _FOLDER))
            places = [(root, part.mirror) for root, part in zip(roots, header.parts, strict=True)]
            return all(
                _is_like(page, places, without_ctime)
                for page in self._pages(item, "number, part, folder, entered, names, signs, mirror_ns")
            )
        except OSError:  # something is gone
            return False
        finally:
            for root in roots:
                os.close(root)

    # -- the database ----------------------------------------------------------------------------------------

    def _pages(self, item: str, columns: str) -> Iterator[list[tuple[Any, ...]]]:
        """Yield some stretches of an item at a time, in their order; `number` is the first column."""
        last = -1
        query = f"SELECT {columns} FROM stretch WHERE item = ? AND number > ? ORDER BY number LIMIT ?"  # noqa: S608
        while page := self._db.execute(query, (item, last, PAGE)).fetchall():
            yield page
            last = page[-1][0]

    def _flush(self) -> None:
        if self._buffer:
            self._db.executemany("INSERT INTO stretch VALUES (?, ?, ?, ?, ?, ?, ?, ?)", self._buffer)
            self._buffer.clear()


def _is_like(page: Sequence[tuple[Any, ...]], places: Sequence[tuple[int, str]], without_ctime: bool) -> bool:
    """Return whether some stretches are as drawn, given each part's open folder and its path in the mirror.

    Files are looked at by their paths: where a link or another folder has come into the way, a folder that
    was looked at before has another inode. Raises OSError where something is gone.
    """
    stat = os.stat
    for _, part, folder, entered, names, signs, mirror_ns in page:
        root, mirror = places[part]
        found: list[_Signs] = []
        if entered:
            if _time_of(mirror + folder) != mirror_ns:
                return False
            seen = stat(folder, dir_fd=root, follow_symlinks=False) if folder else os.fstat(root)
            found.append((0, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino))
        for name in _names_in(names):
            seen = stat(folder + name, dir_fd=root, follow_symlinks=False)
            ctime_ns = 0 if without_ctime else seen.st_ctime_ns
            found.append((seen.st_size, seen.st_mtime_ns, ctime_ns, seen.st_ino))
        if _sum(found) != signs:
            return False
    return True


def _is_text(name: str) -> bool:
    """Return whether a name can be written down: what is no UTF-8 has halves of characters in it."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _names_in(names: str) -> list[str]:
    return names.split("/") if names else []


def _time_of(folder: str) -> int:
    """Return when a folder of the mirror last got or lost a name; 0 when there is none."""
    try:
        return os.lstat(folder).st_mtime_ns
    except OSError:
        return 0


def _sum(signs: Iterable[_Signs]) -> int:
    """Return one number for all: 64 bits, and of whole numbers the same in every process."""
    return hash(tuple(signs))
