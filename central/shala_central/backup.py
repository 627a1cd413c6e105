"""Backup: copies of the archive's tables in `.shala/backup`, made every night, put back where one is damaged.

A table is copied as a whole (SQLite's own way, also while others write) and read through before it takes
the place of the copy before. Beside the history's copy stand copies of the records that were the newest
then: each earlier collection is a way back from the one after it. Copies on this disk are none against its
loss.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from shala_central.archive import Archive, inode_of
from shala_central.cold import ColdDamaged
from shala_central.copies import (
    BEFORE,
    COLD,
    FOLDER,
    HISTORY,
    RECORDS,
    TABLES,
    connect,
    copies_of,
    damage_of,
    damaged,
    is_damage,
    made,
    problem_of,
    structure_problem_of,
)
from shala_central.failure import CentralError, UsageError
from shala_central.history import History, HistoryError
from shala_central.objects import digest_of, holds
from shala_central.publish import make_folders, remove_tree, sync_file_system, sync_folder
from shala_central.records import (
    PULL,
    PullRecord,
    RecordDamaged,
    flaws,
    folders_of,
    has_sealed_list,
    is_whole,
    read_pull,
)
from shala_central.remote import Remote
from shala_central.row_mending import lost_rows, mend_rows
from shala_central.rows import name_of, seal
from shala_central.verify import Damage
from shala_central.versions import files_of, remember, versions_of

# Of this one no copy is put back: what prune has removed from the bucket since would be believed to be there.
REMOTE = "remote.sqlite"
# One run copies or puts back at a time: the names of what is not finished are the same.
_TURN = ".backup"


class PutBack(msgspec.Struct, frozen=True):
    """A table that was damaged. `copied` is when the copy was made that stands in its place, "" without one.

    `lost` says what is not in it. The index of a bucket is made anew instead: `listed`. Where rows alone are
    damaged, so many `rows` are put back, and `left` are damaged still, or `given_up`; None where all of it
    is put back.
    """

    name: str
    problem: str
    copied: str
    lost: list[str]
    listed: bool = False
    rows: int | None = None
    left: int = 0
    given_up: int = 0

    @property
    def is_good(self) -> bool:
        """Return whether the table is one again."""
        return self.listed or (not self.left and (self.rows is not None or bool(self.copied)))


def back_up(archive: Archive, *, keep_packed: bool = True) -> list[Damage]:
    """Copy every table and record that is whole; return those that are not, whose copies stay as they are.

    A table with rows that no copy has whole is copied all the same: they are all that the copies lack.

    Without `keep_packed` the new copy of what is packed is the only one: it is to hold in plain nothing of
    what was taken out of the table.
    """
    folder = archive.hidden / FOLDER
    make_folders(folder)
    damage = []
    with archive.turn(_TURN):
        for name in TABLES:
            table = archive.hidden / name
            try:
                if problem := damage_of(table):
                    damage.append(Damage(name, problem))
                    if not lost_rows(table, copies_of(table)):
                        continue
                if table.exists():
                    seal(table)
                    damage += _copy(archive, folder, name, is_good=not problem)
                    if name == COLD and not keep_packed:
                        (folder / f"{name}{BEFORE}").unlink(missing_ok=True)
            except CentralError as error:
                damage.append(Damage(name, f"is not copied: {error}"))
            except (sqlite3.Error, OSError) as error:
                _unlink(folder / f"{name}.part")
                damage.append(Damage(name, f"cannot be copied to {folder}: {error}"))
    return damage


def damaged_tables(archive: Archive) -> list[Damage]:
    """Return which tables are damaged, or gone although there is a copy; each is read through.

    Raises CentralError where that cannot be done now.
    """
    found = [Damage(name, problem) for name, problem in damaged(archive.hidden).items()]
    index = archive.hidden / REMOTE
    if archive.objects.remote is not None and index.exists() and (problem := problem_of(index)):
        way = "shala archive repair makes it anew, of a listing of the bucket"
        found.append(Damage(REMOTE, f"{problem} ({way})"))
    return found


def put_back(archive: Archive, second: Path | None = None, *, give_up: bool = False) -> list[PutBack]:
    """Put the newest good copy in the place of each damaged table, which is kept beside the copies.

    Of a table of which rows alone are damaged those alone are put back, also those that only a `second` copy
    of the archive has, by its root. With `give_up` those that no copy has are removed, and the earlier
    collections that cannot be read without them.

    Whoever has the archive open must open it again.

    Raises CentralError while somebody pulls, or where a table cannot be read or written now.
    """
    if not damaged_tables(archive):
        return []
    answers = []
    with archive.turn(_TURN), archive.in_use(alone=True):
        for item in damaged_tables(archive):
            table = archive.hidden / item.path
            if item.path == REMOTE:
                answers.append(_list_anew(archive, table, item.problem))
                continue
            copies = [*copies_of(table), *_copies_in(second, item.path)]
            if mended := _put_rows_back(archive, table, item.problem, copies, give_up=give_up):
                answers.append(mended)
                continue
            # Rows that are damaged in it too are put back out of the others.
            copy = next((copy for copy in copies_of(table) if not structure_problem_of(copy)), None)
            if copy is None:
                answers.append(PutBack(item.path, item.problem, "", ["there is no good copy of it"]))
                continue
            answers.append(_put_table_back(archive, table, item.problem, copy, copies, give_up=give_up))
    return answers


def _copies_in(second: Path | None, name: str) -> list[Path]:
    """Return where the tables of a second copy of the archive stand, and the copies of them there."""
    if second is None:
        return []
    hidden = second / ".shala"
    return [path for path in (hidden / name, *copies_of(hidden / name)) if path.is_file()]


def _put_rows_back(
    archive: Archive, table: Path, problem: str, copies: Sequence[Path], *, give_up: bool
) -> PutBack | None:
    """Put damaged rows back, and make the indexes anew; return None where that is not what is damaged."""
    if structure_problem_of(table) or not problem_of(table):
        return None
    try:
        done = mend_rows(table, copies, give_up=give_up)
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return None
        raise CentralError(
            f"{table} is not put back: {error} (free some space, then shala archive repair)"
        ) from None
    lost = [f"{name_of(row)}: no copy has it whole" for row in done.left]
    lost += [f"{name_of(row)}: given up, no copy has it whole" for row in done.given_up]
    if table.name == HISTORY:
        touched = {row["server"] for row in [*done.back, *done.left, *done.given_up]}
        known = set(archive.servers())
        # One whose name is damaged is of a server that nobody can tell.
        names = touched & known if touched <= known or not done.given_up else known
        with contextlib.suppress(HistoryError):  # a row that is left may stop all reading
            lost += [line for name in sorted(names) for line in _untold(archive, name, give_up=give_up)]
    elif table.name == COLD:
        for row in done.back:
            try:
                archive.objects.cold.read(row["pool"], row["sha256"].hex(), archive.objects.plain)
            except ColdDamaged as damage:
                lost.append(str(damage))
    return PutBack(
        *(table.name, problem, done.copied, lost),
        rows=len(done.back),
        left=len(done.left),
        given_up=len(done.given_up),
    )


def _put_table_back(
    archive: Archive, table: Path, problem: str, copy: Path, copies: Sequence[Path], *, give_up: bool
) -> PutBack:
    """Put a copy in the place of a table, and rows that are damaged in it too, out of the others."""
    answer = PutBack(table.name, problem, made(copy), _put_back(archive, table, copy))
    rows = _put_rows_back(archive, table, problem, copies, give_up=give_up)
    lost = [*answer.lost, *(rows.lost if rows is not None else ())]
    if table.name == HISTORY:
        with contextlib.suppress(HistoryError):  # as above
            lost += [line for name in archive.servers() for line in _untold(archive, name, give_up=give_up)]
    answer = msgspec.structs.replace(answer, lost=list(dict.fromkeys(lost)))
    if rows is None:
        return answer
    return msgspec.structs.replace(answer, left=rows.left, given_up=rows.given_up)


def _list_anew(archive: Archive, index: Path, problem: str) -> PutBack:
    """Make the index of the bucket anew, of a listing."""
    remote, part = archive.objects.remote, index.with_name(f".{REMOTE}.part")
    if remote is None:
        return PutBack(REMOTE, problem, "", ["there is no bucket to list"])
    make_folders(archive.hidden / FOLDER)
    _unlink(part)
    try:
        with contextlib.closing(Remote(remote.bucket, part)) as anew:
            anew.reindex()
    except CentralError as failed:
        return PutBack(REMOTE, problem, "", [str(failed)])
    _exchange(index, part, archive.hidden / FOLDER)
    return PutBack(REMOTE, problem, "", [], listed=True)


def _put_back(archive: Archive, table: Path, copy: Path) -> list[str]:
    """Put a copy in the place of a table; return what is not in it. Raises CentralError."""
    since = f"since {made(copy)[:16]}"
    part = table.with_name(f".{table.name}.part")
    try:
        _unlink(part)
        shutil.copyfile(copy, part)
        part.chmod(0o640)
        # Before it is in its place: once it is, the next pull goes on from what it says.
        lost = _mend_history(archive, part, since) if table.name == HISTORY else []
        if part.with_name(f"{part.name}-wal").exists():  # what was added is in it still: it found no room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with part.open("rb") as file:
            os.fsync(file.fileno())
        _exchange(table, part, copy.parent)
    except (OSError, HistoryError) as error:
        _unlink(part)
        why = error.strerror if isinstance(error, OSError) else error
        raise CentralError(
            f"{table} is not put back: {why} (free some space, then shala archive repair)"
        ) from None
    if table.name == HISTORY:
        return lost
    what = "packed" if table.name == COLD else "encrypted"
    return [f"what was {what} {since}: shala archive verify --deep names what is damaged by that"]


def _copy(archive: Archive, folder: Path, name: str, *, is_good: bool) -> list[Damage]:
    """Copy a table, with the history the records; return those that are damaged."""
    damage: list[Damage] = []
    part, place = folder / f"{name}.part", folder / name
    _unlink(part)
    if name == HISTORY:  # before: a collection that is in both is in the table
        damage = _copy_records(archive, folder)
    with (
        contextlib.closing(connect(archive.hidden / name)) as source,
        contextlib.closing(sqlite3.connect(part)) as target,
    ):
        source.backup(target)
    if problem := problem_of(part) if is_good else structure_problem_of(part):
        raise OSError(0, f"the copy {problem}")
    sync_file_system(folder)
    if name == HISTORY:
        if (folder / RECORDS).is_dir():
            remove_tree(folder / f"{RECORDS}{BEFORE}")
            (folder / RECORDS).rename(folder / f"{RECORDS}{BEFORE}")
        (folder / f"{RECORDS}.part").rename(folder / RECORDS)
    if place.exists():
        place.replace(folder / f"{name}{BEFORE}")
    part.replace(place)
    sync_folder(folder)
    return damage


def _copy_records(archive: Archive, folder: Path) -> list[Damage]:
    """Keep the records that are the newest now; return those that are damaged or gone."""
    part = folder / f"{RECORDS}.part"
    remove_tree(part)
    part.mkdir(mode=0o750)
    damage = []
    for name in archive.known():
        if problem := _copy_record(archive, name, part / name):
            damage.append(Damage(f"the record of {name}", problem))
    return damage


def _copy_record(archive: Archive, name: str, target: Path) -> str:
    """Keep the newest record of a server in a folder; return what is wrong with it, or "".

    Of one that is not whole that stays which was kept before: it may be the only good one.
    """
    before = archive.copied_records(name)
    while True:
        try:
            committed = archive.require_committed(name)
        except RecordDamaged as damaged:
            problem = str(damaged).removeprefix(f"the record of {name} ")
            break
        except UsageError:  # its first one is being committed
            problem = ""
            break
        found = flaws(committed.record)
        if not found:
            with contextlib.suppress(FileNotFoundError):
                _duplicate(committed.record, before, target / committed.record.name)
        # Unless a commit took it away while we looked.
        if archive.is_readable(name) and archive.committed(name) == committed:
            if not found:
                return ""
            problem = f"is damaged: {found[0].name} {found[0].problem} (shala archive repair {name})"
            break
        remove_tree(target)
    if before:
        kept = next(filter(is_whole, before), before[0])
        _link(kept, target / kept.name)
    return problem


def _duplicate(record: Path, before: Sequence[Path], target: Path) -> None:
    """Copy a record; one of which a good copy is there takes no room once more."""
    for copy in before:
        is_own = copy.name == record.name and inode_of(copy / PULL) != inode_of(record / PULL)
        # pull.json tells when the collection came, and by their digests what else is there.
        if is_own and holds(copy / PULL, digest_of(record / PULL)) and is_whole(copy):
            _link(copy, target)
            return
    target.mkdir(mode=0o750, parents=True)
    for file in record.iterdir():
        shutil.copy2(file, target / file.name)


def _link(record: Path, target: Path) -> None:
    target.mkdir(mode=0o750, parents=True)
    for file in record.iterdir():
        (target / file.name).hardlink_to(file)


def _exchange(table: Path, part: Path, aside: Path) -> None:
    """Put a good table in the place of a damaged one, which is kept as `<name>.damaged` in a folder.

    Cut anywhere, the table is the damaged one, or gone, or the good one: never one of them with the log of
    the other.
    """
    # First the table itself: while it is gone nobody makes it anew, and its log is read into nothing.
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            table.with_name(f"{table.name}{end}").replace(aside / f"{table.name}.damaged{end}")
            sync_folder(table.parent)
    part.replace(table)
    sync_folder(table.parent)


def _mend_history(archive: Archive, table: Path, since: str) -> list[str]:
    """Put what was newest when the copies were made into a copy of the history; say what lacks.

    Without it the ways back would begin at collections that nobody knows any more.
    """
    with contextlib.closing(History(table)) as history:
        return [line for name in archive.servers() for line in _mend_server(archive, name, history, since)]


def _mend_server(archive: Archive, name: str, history: History, since: str) -> Iterator[str]:
    committed = archive.committed(name)
    if committed is None:
        return
    records = _records_of(archive, name)
    same = [record for pull, record in records if pull.is_of_same_collection(committed.pull)]
    newest = committed.record if has_sealed_list(committed.record) else next(iter(same), None)
    if newest is None:
        yield f"{name}: its collections {since}, and the way back to those before: its record is damaged"
        return
    rows = history.versions(name)
    found = [
        (pull, record)
        for pull, record in records
        if record not in same and all(row.pulled < pull.pulled for row in rows)
    ]
    for record, after in itertools.pairwise([*(record for _, record in found), newest]):
        remember(history, name, record, after)
    if found:
        pull = found[-1][0]
        between = committed.pull.sequence - pull.sequence - 1
        if between > 0:
            yield f"{name}: up to {between} collections between {pull.sequence} and the newest, {since}"


def _records_of(archive: Archive, name: str) -> list[tuple[PullRecord, Path]]:
    """Return the records beside the copies of the history, oldest first, each collection once.

    Those of both copies: a power cut may have left the new records beside the old copy. Also what a commit
    that was cut has left to be remembered.
    """
    found: dict[tuple[str, int, int], tuple[PullRecord, Path]] = {}
    for record in (*archive.copied_records(name), *folders_of(archive.hidden / "collections" / name)):
        if not flaws(record):
            pull = read_pull(record)
            found.setdefault((pull.manifest_sha256, pull.year, pull.sequence), (pull, record))
    return sorted(found.values(), key=lambda one: one[0].pulled)


def _untold(archive: Archive, name: str, *, give_up: bool) -> Iterator[str]:
    """Say which earlier collections have a list that does not come to what the school sealed; with `give_up`
    they are forgotten, if the list that all of them begin at is whole.
    """
    wrong = []
    for version in versions_of(archive, name)[:-1]:
        try:
            for _line in files_of(archive, version):
                pass
        except CentralError:
            wrong.append(version)
    if not wrong:
        return
    numbers = ", ".join(str(version.sequence) for version in wrong)
    if give_up and has_sealed_list(archive.require_committed(name).record):
        with archive.history() as history:
            history.forget(wrong)
        yield f"{name}: collections {numbers} are given up: their lists are not those that the school sealed"
    else:
        yield f"{name}: the lists of collections {numbers} are not those that the school sealed any more"


def _unlink(path: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
        path.with_name(f"{path.name}{end}").unlink(missing_ok=True)
