"""Ingest: turn what the platform derived into records. Only files that pass the agent's own content checks
are heard, the newest of each kind that does; a row that will not do is named, counted and left out.

Reading the same again changes nothing: a file is remembered, and so is what it said of each record. Nothing
here keeps more than one row of a file, and a page of records, in memory.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from shala_agent import durable
from shala_agent.bson import DocumentUnreadable, documents
from shala_agent.catalogue import (
    ACTIVITY_FOLDER,
    DUMPED_DATABASES,
    POSTGRES_DUMP,
    PROGRESS_FOLDER,
    QBANK_FOLDER,
)
from shala_agent.checks import MAX_FIELD, PROGRESS_COLUMNS
from shala_agent.failure import AgentError
from shala_agent.identity import Identity
from shala_agent.kinds import check_activity, check_databases, check_progress, check_qbank
from shala_agent.merge import Value
from shala_agent.reach import DATA, Reach, Stat
from shala_agent.record_types import MAX_VALUE_FIELDS
from shala_agent.records import Change, Records

MAX_NAMED = 20  # bad rows and files that are named; the rest is counted
MAX_TEXT = 4000  # characters of one field of a record
SQL_LINE = 1 << 16  # characters; a row of auth_user has some hundred

# What is text although it may look like a number, and what is about the person or the school.
_TEXTS = frozenset(
    PROGRESS_COLUMNS[: PROGRESS_COLUMNS.index("total_lessons")]
) - {"user_id"}  # fmt: skip
_AMOUNTS = frozenset(PROGRESS_COLUMNS) - _TEXTS
_PROGRESS_NAME = re.compile(r"(\d{7,8}|[^-]*)-([a-z]+\d+)-(.*)-(\d{8}-\d\dh\d\dm)\.csv")
_ACTIVITY_NAME = re.compile(r"([a-z]+\d+)-(.+)-activity-visits-(\d{8}-\d\dh\d\dm)\.csv")
_USER = re.compile(r"[\w.@+-]{1,150}")
_HOME = re.compile(r"-([a-z]+[1-9]\d*)$")
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,20})?")
_NOTHING = ("", "NA", "N/A", "None")  # for an amount that the platform does not know
_UNUSABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_OPEN = ("OutTime", "OutAction", "TimeSpentInSeconds")  # of a visit that has not ended

# What is added up over the units of a module.
_SUMS = (
    "total_lessons", "lessons_visited", "total_activities", "activities_visited", "total_quizitems",
    "attempted_quizitems", "correct_attempted_quizitems", "total_assessment_items", "attempted_assessments",
    "correct_attempted_assessments",
)  # fmt: skip


class Heard(msgspec.Struct):
    """What one ingest did: how many records changed by type, and what was left out and why."""

    changed: dict[str, int] = {}
    files: int = 0
    rows_skipped: int = 0
    skipped: list[str] = []  # named: the first of them


@dataclass(slots=True)
class _Ingest:
    records: Records
    reach: Reach
    identity: Identity
    at: int
    heard: Heard = field(default_factory=Heard)


def ingest(records: Records, reach: Reach, identity: Identity) -> Heard:
    """Hear everything that this server has derived, accounts first; return what changed."""
    work = _Ingest(records, reach, identity, int(time.time()))
    for product in (_accounts_of_dump, _progress, _activity, _assessments, _days, _courses):
        try:
            product(work)
        except (AgentError, OSError, ValueError, csv.Error) as error:
            # One product that cannot be read holds up no other.
            _skip_file(work, f"{product.__name__.strip('_').replace('_', ' ')}: {error}")
    return work.heard


# -- accounts ------------------------------------------------------------------------------------------------


def _accounts_of_dump(work: _Ingest) -> None:
    """Hear the users of the PostgreSQL dump; passwords and mail addresses are not even looked at."""
    folder, _, name = POSTGRES_DUMP.rpartition("/")
    for path in _new_file(work, "dump", folder, name, lambda path: check_sql(path, name)):
        _hear(work, "dump", _accounts(work, "dump", users_of_dump(path), name))


def check_sql(path: Path, name: str) -> Iterator[str]:
    """Yield what is wrong with a dump."""
    from shala_agent.checks import sql_dump_is_complete

    yield from (f"{name} {finding}" for finding in sql_dump_is_complete(path))


def users_of_dump(
    path: Path, wanted: Sequence[str] = ("id", "username", "first_name", "last_name")
) -> Iterator[dict[str, str]]:
    """Yield these columns of each row of auth_user."""
    columns: list[str] = []
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        while line := file.readline(SQL_LINE):
            if not columns:
                begins = re.match(r"COPY (?:public\.)?auth_user \((.*?)\) FROM stdin;", line)
                columns = begins[1].split(", ") if begins else []
            elif line.startswith("\\."):
                return
            else:
                row = dict(zip(columns, line.rstrip("\n").split("\t"), strict=False))
                yield {one: _unescaped(row.get(one, "")) for one in wanted}


def _accounts(work: _Ingest, source: str, users: Iterable[Mapping[str, str]], file: str) -> Iterator[Change]:
    for user in users:
        name = user["username"]
        if not _USER.fullmatch(name):
            _skip(work, f"{file}: '{name[:80]}' is no user name")
            continue
        home = _HOME.search(name)
        ours = home is not None and home[1] == work.identity.server_id
        known = None if ours else work.records.record("account", name)
        # A name that ends in another server's id is that one's to speak of, unless nobody has yet.
        if home is not None and known is not None:
            continue
        value: Value = {"username": name}
        if _NUMBER.fullmatch(user["id"]):
            value["user_id"] = _plain(user["id"])
        value |= {one: user[one] for one in ("first_name", "last_name") if user.get(one)}
        if ours:
            value |= {"server_id": work.identity.server_id, "school_code": work.identity.school_code}
        change = Change("account", name, value)
        # Everybody's, as `administrator`, or only given to this platform (accounts.py): this server has its
        # own word to say of what others wrote once its own row changes.
        others = known is not None and known.log != work.records.log
        if others and work.records.told(source, "account", name) is None:
            work.records.note(source, change)
        yield change


# -- progress ------------------------------------------------------------------------------------------------


def _progress(work: _Ingest) -> None:
    """Hear the newest whole CSV of each unit."""
    units: dict[str, list[tuple[str, str]]] = {}
    listing = _listing(work, PROGRESS_FOLDER)
    work.records.forget_told("progress", "file", listing)
    for name in listing:
        if (parts := _PROGRESS_NAME.fullmatch(name)) is not None:
            units.setdefault(parts[3], []).append((parts[4], name))
    for unit, files in sorted(units.items()):
        for path in _newest_whole(work, "progress", PROGRESS_FOLDER, files, check_progress):
            _hear(work, "progress", _progress_accounts(work, path))
            _hear(work, "progress", _progress_rows(work, path, unit))
    _name_others(work, PROGRESS_FOLDER, _PROGRESS_NAME)


def _progress_accounts(work: _Ingest, path: Path) -> Iterator[Change]:
    users = (
        {"id": row["user_id"], **{one: row[one] for one in ("username", "first_name", "last_name")}}
        for row in _rows(path)
        if _USER.fullmatch(row["username"])  # the others are named once, with their progress
    )
    # The dump knows all of them and more: here only those that it does not have.
    known = work.records.told
    for change in _accounts(work, "progress", users, path.name):
        if known("dump", "account", change.key) is None:
            yield change


def _progress_rows(work: _Ingest, path: Path, unit: str) -> Iterator[Change]:
    for number, row in enumerate(_rows(path), 2):
        user = row["username"]
        if not _USER.fullmatch(user):
            _skip(work, f"{path.name} row {number}: '{user[:80]}' is no user name")
            continue
        key = f"{user}/{unit or _slug(row['unit_name'])}"
        if len(row) > MAX_VALUE_FIELDS or len(key) > 500 or _UNUSABLE.search(key):
            _skip(work, f"{path.name} row {number}: {len(row)} columns, or a name that will not do")
            continue
        value = {name: _field(name, text) for name, text in row.items()}
        for name in [name for name, said in value.items() if not _is_amount(name, said)]:
            said = str(value.pop(name))[:40]
            _skip(work, f"{path.name} row {number}: {name} = '{said}' is no number, and left out")
        yield Change("progress", key, value)


def _is_amount(name: str, value: object) -> bool:
    """Return whether a column of amounts has a number, or says that there is none; any other one may do."""
    return name not in _AMOUNTS or not isinstance(value, str) or value in _NOTHING


# -- visits --------------------------------------------------------------------------------------------------


def _activity(work: _Ingest) -> None:
    """Hear the newest whole CSV of each user."""
    users: dict[str, list[tuple[str, str]]] = {}
    listing = _listing(work, ACTIVITY_FOLDER)
    work.records.forget_told("activity", "file", listing)  # such a file is named after its user
    for name in listing:
        if (parts := _ACTIVITY_NAME.fullmatch(name)) is not None:
            users.setdefault(parts[2], []).append((parts[3], name))
    for user, files in sorted(users.items()):
        if not _USER.fullmatch(user):
            _skip(work, f"{files[0][1]}: '{user[:80]}' is no user name")
            continue
        for path in _newest_whole(work, "activity", ACTIVITY_FOLDER, files, check_activity):
            _hear(work, "activity", _visits(work, path, user))
    _name_others(work, ACTIVITY_FOLDER, _ACTIVITY_NAME)


def _visits(work: _Ingest, path: Path, user: str) -> Iterator[Change]:
    for row in _rows(path):
        said = {"server_id": work.identity.server_id, **row}
        key = _visit_key(user, said)
        if any(said.get(name, "NA") != "NA" for name in _OPEN):
            # The last visit of a CSV has no end yet; the next CSV knows it. That is one visit, not two.
            still_open = _visit_key(user, {**said, **dict.fromkeys(_OPEN, "NA")})
            before = work.records.record("activity", still_open)
            if before is not None and before.value is not None:
                yield Change("activity", still_open, None)
        value = {name: _field(name, text) for name, text in said.items() if text != "NA"}
        yield Change("activity", key, value)


def _visit_key(user: str, row: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(msgspec.json.encode(sorted(row.items())), digest_size=12)
    return f"{user}/{digest.hexdigest()}"


# -- assessments ---------------------------------------------------------------------------------------------


def _assessments(work: _Ingest) -> None:
    """Hear who took which assessment, from our own dump of the question bank."""
    folder, name = f"{DUMPED_DATABASES}/assessment", "AssessmentTaken.bson"
    for path in _new_file(work, "assessment", folder, name, lambda path: check_databases(path, name, "")):
        _hear(work, "assessment", _taken(work, path))


def _taken(work: _Ingest, path: Path) -> Iterator[Change]:
    for number, document in enumerate(documents(path), 1):
        if isinstance(document, DocumentUnreadable):
            _skip(work, f"{path.name} document {number}: {document}")
            continue
        id_, user = document.get("_id"), _name_in(document.get("takingAgentId"))
        if not isinstance(id_, str) or not re.fullmatch("[0-9a-f]{24}", id_) or not _USER.fullmatch(user):
            _skip(work, f"{path.name} document {number}: it does not say who took it")
            continue
        value = {
            "offered": _name_in(document.get("assessmentOfferedId")),
            "started": document.get("actualStartTime"),
            "completed": document.get("completionTime"),
            "score": document.get("score"),
            "server_id": work.identity.server_id,
        }
        plain = {name: one for name, one in value.items() if isinstance(one, str | int | float) and one != ""}
        yield Change("assessment", f"{user}/{id_}", plain)


def _days(work: _Ingest) -> None:
    """Hear the tool activity by day that the MIT script leaves; on real servers it is often only a header."""
    folder, name = f"{QBANK_FOLDER}/student-activities", "activity-data.csv"

    def check(path: Path) -> Iterator[str]:
        return check_qbank(path, f"student-activities/{name}", "")

    for path in _new_file(work, "days", folder, name, check, quiet=True):
        _hear(work, "days", _day_rows(work, path))


def _day_rows(work: _Ingest, path: Path) -> Iterator[Change]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows, None)
        for number, row in enumerate(rows, 2):
            if not row or not _USER.fullmatch(row[0]):
                _skip(work, f"{path.name} row {number}: it names no user")
                continue
            for start in range(2, len(row) - 4, 5):
                date, stamps, spent, viewed, times = row[start : start + 5]
                if re.fullmatch(r"\d{4}-\d\d-\d\d", date):
                    value = {
                        "date": date, "total_timestamps": _plain(stamps), "timespent": spent,
                        "activities_viewed": _plain(viewed), "timestamps": times[:MAX_TEXT],
                        "server_id": work.identity.server_id,
                    }  # fmt: skip
                    yield Change("assessment", f"{row[0]}/{work.identity.server_id}/{date}", value)


# -- courses -------------------------------------------------------------------------------------------------


def _courses(work: _Ingest) -> None:
    """Add up the units of each module, over all servers of the zone, for whoever is at home here and for
    those who have been here.
    """
    records = work.records
    if records.kept("courses") == records.version:
        return
    _hear(work, "", _course_rows(work))
    records.keep(courses=records.version)


def _course_rows(work: _Ingest) -> Iterator[Change]:
    user, modules, ours = "", dict[str, dict[str, Any]](), False
    for record in work.records.records("progress"):
        name = record.key.partition("/")[0]
        if name != user:
            if ours:
                yield from _course_changes(user, modules)
            home = _HOME.search(name)
            user, modules, ours = name, {}, home is not None and home[1] == work.identity.server_id
        ours = ours or record.log == work.records.log
        value = record.value or {}
        module = _module(value.get("module_name"))
        sums = modules.setdefault(module, {"module_name": module, "units": 0, **dict.fromkeys(_SUMS, 0)})
        sums["units"] += 1
        for one in _SUMS:
            amount = value.get(one)
            sums[one] += amount if isinstance(amount, int | float) else 0
    if ours:
        yield from _course_changes(user, modules)


def _course_changes(user: str, modules: Mapping[str, Value]) -> Iterator[Change]:
    for module, sums in modules.items():
        yield Change("course_progress", f"{user}/{_slug(module)}", dict(sums))


def _module(said: object) -> str:
    """Given [u'Ecosystem'], a list as Python 2 writes it, return its first name."""
    found = re.search(r"u?(['\"])(.*?)\1", said) if isinstance(said, str) else None
    return found[2] if found else str(said or "")


# -- files and rows ------------------------------------------------------------------------------------------


def _new_file(
    work: _Ingest,
    source: str,
    folder: str,
    name: str,
    check: Callable[[Path], Iterator[str]],
    *,
    quiet: bool = False,
) -> Iterator[Path]:
    """Yield a file that is whole and was not heard as it is; remember it when the caller comes back."""
    seen = _listing(work, folder).get(name)
    if seen is None:
        if (host := work.reach.host(f"{folder}/{name}")) is not None and os.path.lexists(host):
            _skip_file(work, f"{name} is no plain file")
        return
    if work.records.told(source, "file", name) == _sign(seen):
        return
    with suppress(FileNotFoundError):
        path = work.reach.local(f"{folder}/{name}")
        if findings := list(check(path)):
            if not quiet:
                _skip_file(work, f"{name}: {findings[0]}")
            return
        before = work.heard.rows_skipped
        yield path
        _remember(work, source, name, seen, before)


def _newest_whole(
    work: _Ingest,
    source: str,
    folder: str,
    files: Iterable[tuple[str, str]],
    check: Callable[[Path, str, str], Iterator[str]],
) -> Iterator[Path]:
    """Yield the newest file that is whole, unless it was heard; others give way to the one before."""
    listing = _listing(work, folder)
    for _, name in sorted(files, reverse=True):
        seen = listing.get(name)
        if seen is None:
            continue
        if work.records.told(source, "file", name) == _sign(seen):
            return
        try:
            path = work.reach.local(f"{folder}/{name}")
            findings = list(check(path, name, ""))
        except FileNotFoundError:
            continue
        if findings:
            _skip_file(work, f"{name} {findings[0]}")
            continue
        before = work.heard.rows_skipped
        yield path
        _remember(work, source, name, seen, before)
        return


def _remember(work: _Ingest, source: str, name: str, seen: Stat, skipped_before: int) -> None:
    """Remember a file that was heard. One with rows that were left out is read again, so that these are named
    until it is mended; what was said already is no change.
    """
    work.heard.files += 1
    if work.heard.rows_skipped == skipped_before:
        work.records.set_told(source, "file", name, _sign(seen))


def _name_others(work: _Ingest, folder: str, named: re.Pattern[str]) -> None:
    """Name what lies in a folder of CSVs and is heard by nobody; it is not opened, a FIFO would wait."""
    host = work.reach.host(folder)
    if host is None or not host.is_dir():
        return
    with os.scandir(host) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if entry.name.startswith(durable.TEMPORARY):
                continue
            if not entry.is_file(follow_symlinks=False):
                what = "is a folder" if entry.is_dir(follow_symlinks=False) else "is no plain file"
                _skip_file(work, f"{host.name}/{entry.name} {what}")
            elif entry.name.endswith(".csv") and not named.fullmatch(entry.name):
                _skip_file(work, f"{host.name}/{entry.name} is not named as the platform names its CSVs")


def _listing(work: _Ingest, folder: str) -> dict[str, Stat]:
    """Return the files of a folder; the container is not asked for what its volume on the host would hold."""
    data, host = work.reach.host(DATA), work.reach.host(folder)
    if data is not None and host is not None and data.is_dir() and not os.path.lexists(host):
        return {}
    return work.reach.listing(folder)


def _sign(seen: Stat) -> bytes:
    size, changed, _ = seen
    return f"{size} {changed}".encode()


def _rows(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        header = [name[:MAX_TEXT] for name in next(rows, [])]
        for row in rows:
            yield {name: text[:MAX_TEXT] for name, text in zip(header, row, strict=False)}


def _hear(work: _Ingest, source: str, changes: Iterable[Change]) -> None:
    """Write changes; `changed` counts by type what came of them."""
    types: dict[str, int] = work.heard.changed
    last = ""

    def counted() -> Iterator[Change]:
        nonlocal last
        for change in changes:
            last = change.type
            yield change

    number = work.records.write(counted(), work.at, source)
    if number:
        types[last] = types.get(last, 0) + number


def _skip(work: _Ingest, what: str) -> None:
    work.heard.rows_skipped += 1
    _skip_file(work, what)


def _skip_file(work: _Ingest, what: str) -> None:
    if len(work.heard.skipped) < MAX_NAMED:
        shown = _UNUSABLE.sub("?", what)
        work.heard.skipped.append(shown.encode("utf-8", "backslashreplace").decode())


def _field(name: str, text: str) -> Any:
    return text if name in _TEXTS else _plain(text)


def _plain(text: str) -> Any:
    """Return a number where a text is one."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return text
    return float(text) if found[1] else int(text)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text.lower()).strip("-")[:200] or "none"


def _name_in(said: object) -> str:
    """Given an id such as authentication.Agent%3Agreen-apple-mz17%40..., return the part between."""
    if not isinstance(said, str):
        return ""
    found = re.search(r"%3A(.*?)%40", said)
    return found[1] if found else said


def _unescaped(text: str) -> str:
    r"""Return a field of COPY's text format; \N is nothing."""
    if text == "\\N":
        return ""
    return re.sub(r"\\(.)", lambda found: {"t": "\t", "n": "\n", "r": "\r"}.get(found[1], found[1]), text)
