"""Derivations: have the platform make its derived data, and decide by what it made whether it did.

Success is new files, their content and the words on stdout; the exit codes of these scripts say 0 whatever
happened (facts/gstudio.md 2). The platform's own cron may run the same scripts: they are waited for, before
and after. The caller has claimed the container.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from shala_agent import checks
from shala_agent.catalogue import (
    ACTIVITY_FOLDER,
    DUMPED_DATABASES,
    OWN_POSTGRES_DUMP,
    PYTHON,
    Derivation,
)
from shala_agent.container import Container, Execution
from shala_agent.failure import UsageError
from shala_agent.kinds import KINDS
from shala_agent.outcome import Result, counted, failed, judged
from shala_agent.reach import GNOWSYS, Reach, Stat
from shala_agent.walk import walk
from shala_agent.writers import wait_until_idle

PATIENCE = 900.0  # seconds for the platform's own run of the same script; a real one takes up to 17 minutes
MAX_ROWS = 5000  # CSVs of one run whose rows are counted; a real one has 31

Watch = Callable[[str], None]

_VISITS = "Total activity-player visits"
_USER = re.compile(r"[A-Za-z0-9@+_][A-Za-z0-9@.+_-]{0,63}")
_POSITION = re.compile(r"\[\s*\d+ / \d+\s*\]")
MAX_SKEW = 86400  # seconds between the time in a file's name and the file's own: time zones explain half


def derive_activity_of_user(container: Container, reach: Reach, user: str, timeout_seconds: float) -> Result:
    """Make the activity timestamps of one user.

    Raises UsageError for what cannot be a user, ContainerUnavailable.
    """
    if not _USER.fullmatch(user):
        raise UsageError(f"'{user}' cannot be a user's name (such as green-apple-mz17)")
    before = reach.listing(ACTIVITY_FOLDER)
    ran = container.run(
        [PYTHON, "manage.py", "activity_timestamp", user], workdir=GNOWSYS, timeout_seconds=timeout_seconds
    )
    if "No User found" in ran.stdout:
        return failed(f"the platform has no user '{user}'")
    after = reach.listing(ACTIVITY_FOLDER)
    new = [name for name in _new(before, after) if f"-{user}-activity-visits-" in name]
    kind = KINDS["activity-csv"]
    broken = [
        f"{name} {finding}"
        for name in new
        for finding in kind.check(reach.local(f"{ACTIVITY_FOLDER}/{name}"), name, "")
    ]
    if _VISITS not in ran.stdout or not new:
        return failed(f"no CSV was made for '{user}': {_why(ran)}", *broken)
    return judged(broken, None, {"files": new})


def derive(
    container: Container,
    reach: Reach,
    derivation: Derivation,
    timeout_seconds: float,
    *,
    last_good: Mapping[str, object] | None = None,
    watch: Watch | None = None,
) -> Result:
    """Run one derivation of the catalogue. `last_good` is the detail of its last whole run.

    `detail` holds {"count": files, "rows": {file without its date: rows}}. Raises ContainerUnavailable.
    """
    until = time.monotonic() + timeout_seconds
    if busy := wait_until_idle(container, derivation.writers, min(PATIENCE, timeout_seconds / 2)):
        return failed(f"{busy}: nothing was started beside it, the next run tries again")
    before = _tree(reach, derivation.output)
    progress = _Progress(derivation, watch)
    ran = container.run(
        list(derivation.command),
        workdir=derivation.workdir,
        timeout_seconds=max(1.0, until - time.monotonic()),
        watch=progress.line,
    )
    # Another run that began meanwhile writes into the same folder: only what both have finished is looked at.
    busy = wait_until_idle(container, derivation.writers, min(PATIENCE, until - time.monotonic()))
    after = _tree(reach, derivation.output)
    new = _new({} if derivation.whole_folder else before, after)
    said, broke_off = _claims(derivation, ran)
    findings, rows = _looked_at(reach, derivation, new)
    if broke_off:
        findings.insert(0, f"it broke off after {counted(len(new), 'file')}: {_why(ran)}")
    if busy:
        findings.append(f"{busy}, and writes into the same folder")
    for name in derivation.makes:
        if name not in after or after[name] == before.get(name):
            return failed(f"no new {name} was made: {_why(ran)}", *findings)
    if not new:
        return failed(*(findings or [f"no file was made: {_why(ran)}"]))
    if broke_off and derivation.done:
        return failed(*findings)
    notes = []
    if said is not None and len(new) < said and not broke_off:
        findings.append(f"it says that it made {counted(said, 'file')}, but new: {len(new)}")
    elif said is not None and len(new) > said:
        notes.append(f"beside it another run made {counted(len(new) - said, 'file')}")
    findings += _less_than(last_good or {}, len(new), rows, derivation)
    if derivation.own_dump:
        findings += _less_than_own_dump(reach, derivation)
    return judged(findings, notes, {"count": len(new), "rows": rows})


class _Progress:
    """Tells a terminal how far a run is, by what it writes."""

    def __init__(self, derivation: Derivation, watch: Watch | None) -> None:
        self._says = re.compile(derivation.says) if derivation.says else None
        self._watch = watch
        self._done = 0

    def line(self, line: str) -> None:
        if self._watch is None:
            return
        if match := _POSITION.search(line):
            self._watch(match[0])
        elif self._says is not None and not self._says.groups and self._says.search(line):
            self._done += 1
            self._watch(f"{self._done} done")


def _claims(derivation: Derivation, ran: Execution) -> tuple[int | None, bool]:
    """Return how many files the run says it made (None: it does not say), and whether it broke off."""
    broke_off = (
        ran.timed_out
        or "Traceback (most recent call last)" in ran.stderr + ran.stdout
        or (bool(derivation.done) and re.search(derivation.done, ran.stdout) is None)
    )
    if not derivation.says:
        return None, broke_off
    expression = re.compile(derivation.says)
    found = expression.findall(ran.stdout)
    if not expression.groups:
        return len(found), broke_off or not found
    firsts = [one if isinstance(one, str) else one[0] for one in found]
    numbers = [first for first in firsts if first.isdigit()]
    return (int(numbers[-1]), broke_off) if numbers else (None, True)


def _looked_at(reach: Reach, derivation: Derivation, names: list[str]) -> tuple[list[str], dict[str, int]]:
    """Return what is wrong with new files, and how many rows the whole ones have."""
    findings: list[str] = []
    rows: dict[str, int] = {}
    root = _folder(reach, derivation.output)
    for name in names:
        if root is None:
            break
        path = root / name
        found = list(derivation.kind.check(path, name, ""))
        findings += [f"{name} {finding}" for finding in [*found, *_wrong_clock(name, path)]]
        if derivation.kind.counts_rows and name.endswith(".csv") and not found and len(rows) < MAX_ROWS:
            key = checks.STAMP.sub("", name)
            rows[key] = max(rows.get(key, 0), checks.count_rows(path))
    return findings, rows


def _wrong_clock(name: str, path: Path) -> Iterator[str]:
    """Say when a file is named for another time than that at which it was written."""
    match = checks.STAMP.search(name)
    if match is None:
        return
    try:
        named = datetime.datetime.strptime(match[1], "%Y%m%d-%Hh%Mm").replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        yield "has no time in its name that there is"
        return
    if abs(named.timestamp() - path.stat().st_mtime) > MAX_SKEW:
        yield "is named for another day than it was written on: the platform's clock is wrong"


def _less_than(
    last_good: Mapping[str, object], count: int, rows: dict[str, int], derivation: Derivation
) -> list[str]:
    """Name what there is less of than in the last whole run, by more than the catalogue lets pass."""
    findings = []
    before, drop = last_good.get("count"), derivation.largest_drop
    way_out = f"if that is right: largest_drop of derivations.{derivation.name}"
    if isinstance(before, int) and checks.dropped(count, before, drop):
        findings.append(f"{counted(count, 'file')}, the last good run made {before} ({way_out})")
    earlier = last_good.get("rows")
    for name, had in sorted(earlier.items()) if isinstance(earlier, dict) else ():
        if isinstance(had, int) and name in rows and checks.dropped(rows[name], had, drop):
            findings.append(f"{name}: {counted(rows[name], 'row')}, the last good one had {had} ({way_out})")
    return findings


def _less_than_own_dump(reach: Reach, derivation: Derivation) -> list[str]:
    """Name what the script dumped less of than our own dumps, made just before, and which is the whole one.

    The script leaves mongodump at its first "done dumping", and does not find the users in a dump that says
    `COPY public.auth_user` (facts/gstudio.md 2.4).
    """
    findings = []
    root = _folder(reach, derivation.output)
    if root is None or not (root / derivation.own_dump).is_dir():
        return [f"it left no {derivation.own_dump}; complete is the item db"]
    own = _folder(reach, DUMPED_DATABASES)
    for database in sorted(path.name for path in own.iterdir() if path.is_dir()) if own else ():
        if database == "gstudio-mongodb":  # which the script never dumps
            continue
        for file in sorted((own / database).glob("*.bson")):  # type: ignore[operator]
            theirs = root / derivation.own_dump / database / file.name
            try:
                expected = checks.count_bson(file)
                count = checks.count_bson(theirs) if theirs.is_file() else 0
            except checks.BsonBroken:
                continue  # said already
            if count < expected:
                findings.append(
                    f"{derivation.own_dump}/{database}/{file.name} has {count} of {expected} documents:"
                    " the script's dump is incomplete, complete is the item db"
                )
    return findings + _users_overlooked(reach, root)


def _users_overlooked(reach: Reach, root: Path) -> list[str]:
    dump, table = root / "pg_dump_all.sql", root / "student-activities/activity-data.csv"
    findings = []
    users = checks.count_users(dump) if dump.is_file() and not dump.is_symlink() else 0
    if users and table.is_file() and list(checks.csv_has_rows(table)):
        findings.append(
            f"its activity-data.csv has no row although its dump has {counted(users, 'user')}: the script"
            " looks for 'COPY auth_user', pg_dump writes 'COPY public.auth_user'; complete are the items"
            " db and postgres-dump"
        )
    try:
        own = checks.count_users(reach.local(OWN_POSTGRES_DUMP))
    except FileNotFoundError:
        own = 0
    if users < own:
        findings.append(
            f"pg_dump_all.sql has {users} of {counted(own, 'user')}: complete is the item postgres-dump"
        )
    return findings


def _folder(reach: Reach, path: str) -> Path | None:
    try:
        root = reach.local(path)
    except FileNotFoundError:
        return None
    return root if root.is_dir() and not root.is_symlink() else None


def _tree(reach: Reach, folder: str) -> dict[str, Stat]:
    """Return {path: (size, mtime, inode)} of the plain files below a folder."""
    root = _folder(reach, folder)
    if root is None:
        return {}
    fetched = root != reach.host(folder)  # then each look has other inodes
    return {
        entry.relative: (entry.stat.st_size, entry.stat.st_mtime_ns, 0 if fetched else entry.stat.st_ino)
        for entry in walk(root, [], lambda _path, _error: None)
    }


def _new(before: dict[str, Stat], after: dict[str, Stat]) -> list[str]:
    """Return the names that are new or whose files changed (a second run in one minute overwrites the
    first).
    """
    return sorted(name for name, seen in after.items() if before.get(name) != seen)


def _why(ran: Execution) -> str:
    return f"cut after {ran.seconds:.0f} s" if ran.timed_out else ran.said
