"""Backup: copies of the archive's tables in `.shala/backup`, made every night, put back where one is damaged.

A table is copied as a whole (SQLite's own way, also while others write) and read through before it takes
the place of the copy before. Beside the history's copy stand the records that were the newest then, as hard
links: each earlier collection is a way back from the one after it. Copies on this disk are none against its
loss.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
from shala_agent.manifest import ManifestError

from shala_central.archive import Archive, Damage
from shala_central.bag import Head
from shala_central.failure import CentralError
from shala_central.history import HistoryError, Version
from shala_central.publish import make_folders, remove_tree, sync_file_system, sync_folder
from shala_central.records import HEAD, flaws, folders_of, read_pull

HISTORY = "history.sqlite"
TABLES = (HISTORY, "cold.sqlite", "encrypted.sqlite")
# Never empty once they hold something: prune keeps the newest of each year.
NEVER_EMPTY = (HISTORY, "encrypted.sqlite")
RECORDS = "records"
BEFORE = ".1"  # the copy before the last good one


class PutBack(msgspec.Struct, frozen=True):
    """A table that was damaged. `copied` is when the copy was made that stands in its place, "" without one.

    `lost` says what is not in it.
    """

    name: str
    problem: str
    copied: str
    lost: list[str]


def back_up(archive: Archive) -> list[Damage]:
    """Copy every table that is whole; return those that are not, whose copies stay as they are."""
    folder = archive.hidden / "backup"
    make_folders(folder)
    damage = damaged_tables(archive)
    bad = {item.path for item in damage}
    for name in TABLES:
        if name in bad or not (archive.hidden / name).exists():
            continue
        try:
            _copy(archive, folder, name)
        except (sqlite3.Error, OSError) as error:
            damage.append(Damage(name, f"cannot be copied to {folder}: {error}"))
    return damage


def damaged_tables(archive: Archive) -> list[Damage]:
    """Return which tables are damaged, or gone although there is a copy; each is read through."""
    found = []
    for name in TABLES:
        copies = [copy for copy in _copies(archive, name) if copy.exists()]
        path = archive.hidden / name
        problem = _problem(path) if path.exists() else "is gone" if copies else ""
        if not problem and name in NEVER_EMPTY and copies and not _has_rows(path) and _has_rows(copies[0]):
            problem = "is empty"
        if problem:
            ways = f"shala archive repair puts back the copy of {_made(copies[0])[:16]}" if copies else ""
            found.append(Damage(name, f"{problem} ({ways or 'there is no copy of it in .shala/backup'})"))
    return found


def put_back(archive: Archive) -> list[PutBack]:
    """Put the newest good copy in the place of each damaged table, which is kept beside the copies.

    Raises CentralError while somebody pulls.
    """
    damaged = damaged_tables(archive)
    if not damaged:
        return []
    answers = []
    with archive.in_use(alone=True):
        for item in damaged:
            copy = next((copy for copy in _copies(archive, item.path) if not _problem(copy)), None)
            if copy is None:
                answers.append(PutBack(item.path, item.problem, "", ["there is no good copy of it"]))
                continue
            _exchange(archive.hidden / item.path, copy)
            lost = _lost(archive, copy)
            answers.append(PutBack(item.path, item.problem, _made(copy), lost))
    return answers


def _copies(archive: Archive, name: str) -> list[Path]:
    folder = archive.hidden / "backup"
    return [folder / name, folder / f"{name}{BEFORE}"]


def _copy(archive: Archive, folder: Path, name: str) -> None:
    part, place = folder / f"{name}.part", folder / name
    _unlink(part)
    if name == HISTORY:  # before: a collection that is in both is in the table
        _link_records(archive, folder)
    with (
        contextlib.closing(sqlite3.connect(archive.hidden / name, timeout=60)) as source,
        contextlib.closing(sqlite3.connect(part)) as target,
    ):
        source.backup(target)
    if problem := _problem(part):
        _unlink(part)
        raise OSError(0, f"the copy {problem}")
    sync_file_system(folder)
    if name == HISTORY:
        if (folder / RECORDS).is_dir():
            remove_tree(folder / f"{RECORDS}{BEFORE}")
            (folder / RECORDS).rename(folder / f"{RECORDS}{BEFORE}")
        (folder / f"{RECORDS}.part").rename(folder / RECORDS)
    if place.exists() and name != "cold.sqlite":  # it may be large: one is enough
        place.replace(folder / f"{name}{BEFORE}")
    part.replace(place)
    sync_folder(folder)


def _link_records(archive: Archive, folder: Path) -> None:
    """Keep the records that are the newest now, which are whole, as hard links."""
    part = folder / f"{RECORDS}.part"
    remove_tree(part)
    part.mkdir(mode=0o750)
    for name in archive.servers():
        with contextlib.suppress(FileNotFoundError, CentralError):  # a commit takes it away while we look
            committed = archive.committed(name)
            if committed is None or flaws(committed.record):
                continue
            target = part / name / committed.record.name
            target.mkdir(mode=0o750, parents=True)
            for file in committed.record.iterdir():
                (target / file.name).hardlink_to(file)


def _exchange(path: Path, copy: Path) -> None:
    """Put a copy in the place of a table; what stood there is kept as `<name>.damaged` in the backup."""
    aside = copy.with_name(f"{path.name}.damaged")
    if path.exists():
        shutil.move(path, aside)
    for left in ("-wal", "-shm"):  # of the damaged one: they would be read into the good one
        path.with_name(f"{path.name}{left}").unlink(missing_ok=True)
    part = path.with_name(f".{path.name}.part")
    shutil.copyfile(copy, part)
    part.chmod(0o640)
    sync_file_system(path.parent)
    part.replace(path)
    sync_folder(path.parent)


def _lost(archive: Archive, copy: Path) -> list[str]:
    since = f"since {_made(copy)[:16]}"
    if not copy.name.startswith(HISTORY):
        what = "packed" if copy.name.startswith("cold") else "encrypted"
        return [f"what was {what} {since}: shala archive verify --deep names what is damaged by that"]
    records = copy.with_name(RECORDS + copy.name.removeprefix(HISTORY))
    names = archive.servers()
    return [line for name in names for line in _mend_history(archive, name, records / name, since)]


def _mend_history(archive: Archive, name: str, records: Path, since: str) -> Iterator[str]:
    """Put what was the newest collection of a server when the copy was made into it; say what lacks.

    Without it the ways back would begin at a collection that nobody knows any more.
    """
    committed = archive.committed(name)
    if committed is None:
        return
    with archive.history() as history:
        rows = history.versions(name)
    for record in folders_of(records):
        pull = read_pull(record) if not flaws(record) else None
        if pull is None or pull.is_of_same_collection(committed.pull):
            continue
        if all(row.pulled < pull.pulled for row in rows):
            archive.remember(name, record, committed.record)
            between = committed.pull.sequence - pull.sequence - 1
            if between > 0:
                yield f"{name}: up to {between} collections between {pull.sequence} and the newest, {since}"
    if wrong := _untold(archive, name):
        numbers = ", ".join(str(version.sequence) for version in wrong)
        yield f"{name}: the lists of collections {numbers} are not those that the school sealed any more"


def _untold(archive: Archive, name: str) -> list[Version]:
    """Return the earlier collections whose list does not come to what the school sealed."""
    found = []
    for version in archive.versions(name)[:-1]:
        try:
            head = msgspec.json.decode(archive.record(version)[HEAD], type=Head)
            digest = hashlib.sha256()
            for line in archive.files(version):
                digest.update(line)
        except (ManifestError, HistoryError):
            found.append(version)
        else:
            if digest.hexdigest() != head.files_sha256:
                found.append(version)
    return found


def _problem(path: Path) -> str:
    """Return why a table is none any more, or ""; reads all of it."""
    if not path.exists():
        return "is gone"
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as table:
            answer = table.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError as error:
        return f"cannot be opened: {error}"
    except sqlite3.DatabaseError as error:
        return f"is damaged: {error}"
    return "" if answer == "ok" else f"is damaged: {answer}".replace("\n", " ")


def _has_rows(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as table:
            names = [row[0] for row in table.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return any(table.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone() for name in names)  # noqa: S608
    except sqlite3.DatabaseError:
        return False


def _unlink(path: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
        path.with_name(f"{path.name}{end}").unlink(missing_ok=True)


def _made(copy: Path) -> str:
    return datetime.datetime.fromtimestamp(copy.stat().st_mtime, datetime.UTC).isoformat(timespec="seconds")
