"""The tree that readers see: what is in the archive, year by year down to items, with sizes."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from shala_central.archive import YEAR, Archive, by_number
from shala_central.bag import PLATFORMS
from shala_central.failure import UsageError
from shala_central.listing import file_of
from shala_central.versions import newest_of_years, view_of


class Entry(msgspec.Struct, frozen=True):
    """One line of the tree: `level` 0 is a year, 4 an item; sizes and counts are of everything below."""

    path: str
    level: int
    name: str
    bytes: int
    files: int


def list_tree(archive: Archive, below: str = "", depth: int = 4) -> list[Entry]:
    """Return the tree below a path, each folder before what is in it, down to LEVEL `depth`, with sizes.

    Raises UsageError if the path is not in the archive.
    """
    if archive.objects.on_demand:
        return _list_records(archive, below.strip("/"), depth)
    parts = [part for part in below.split("/") if part not in ("", ".")]
    if ".." in parts or any(part.startswith(".") for part in parts):
        raise UsageError(f"'{below}' is not a path of the archive (e.g. 2026/mz/2031017-mz17)")
    start = archive.root.joinpath(*parts)
    if not os.path.lexists(start):
        raise UsageError(f"'{below}' is not in the archive (shala archive tree --depth 2 shows what is)")
    entries: list[Entry] = []
    level = len(parts) - 1
    if level >= 0:
        _append(start, "/".join(parts), level, max(depth, level), entries)
    else:
        years = (path for path in archive.root.iterdir() if YEAR.fullmatch(path.name) and path.is_dir())
        for year in sorted(years):
            _append(year, year.name, 0, depth, entries)
    return entries


def _list_records(archive: Archive, below: str, depth: int) -> list[Entry]:
    """Return the tree that the records list: on demand, there is none on the disk."""
    top = len(below.split("/")) - 1 if below else 0
    sums: dict[tuple[str, ...], list[int]] = {}
    for name in archive.servers():
        committed = archive.require_committed(name)
        for year, version in newest_of_years(archive, name).items():
            place = (f"{year:04d}", committed.pull.state, name)
            whole = "/".join(place)
            if below and not f"{whole}/".startswith(f"{below}/") and not below.startswith(f"{whole}/"):
                continue
            for file in map(file_of, view_of(archive, version)):
                parts = (*place, *file.path.split("/")[1:])
                if below and not f"{'/'.join(parts)}/".startswith(f"{below}/"):
                    continue
                for level in range(top, min(max(depth, top) + 1, len(parts))):
                    entry = sums.setdefault(parts[: level + 1], [0, 0])
                    entry[0] += file.size
                    entry[1] += 1
    if below and not sums:
        raise UsageError(f"'{below}' is not in the archive (shala archive tree --depth 2 shows what is)")
    return [
        Entry("/".join(parts), len(parts) - 1, parts[-1], *sums[parts])
        for parts in sorted(sums, key=lambda parts: [_order(Path(part)) for part in parts])
    ]


def _append(path: Path, shown: str, level: int, depth: int, entries: list[Entry]) -> tuple[int, int]:
    """Append the entry of a path and of those below it; return its bytes and files."""
    place = len(entries)
    if path.is_symlink() or not path.is_dir():
        size, files = path.lstat().st_size, 1
    elif level >= depth:
        size, files = _weigh(path)
    else:
        entries.append(Entry(shown, level, path.name, 0, 0))
        size = files = 0
        for child in sorted(path.iterdir(), key=_order):
            child_size, child_files = _append(child, f"{shown}/{child.name}", level + 1, depth, entries)
            size, files = size + child_size, files + child_files
        entries.pop(place)
    if level <= depth:
        entries.insert(place, Entry(shown, level, path.name, size, files))
    return size, files


def _weigh(folder: Path) -> tuple[int, int]:
    """Return bytes and number of the files below a folder."""
    size = files = 0
    folders = [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    size += entry.stat(follow_symlinks=False).st_size
                    files += 1
    return size, files


def _order(path: Path) -> tuple[int, str, int, str]:
    """Sort platforms in their order, servers by the number of their id, everything else by name."""
    platform = PLATFORMS.index(path.name) if path.name in PLATFORMS else len(PLATFORMS)
    return platform, *by_number(path.name)
