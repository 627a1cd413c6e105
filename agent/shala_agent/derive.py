"""Derivations: have the platform make its derived data, and decide by what it made whether it did.

Success is new files, their content and the words on stdout; the exit codes of these scripts say 0 whatever
happened (facts/gstudio.md 2). The caller has claimed the container.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from shala_agent import checks
from shala_agent.container import Container, Execution
from shala_agent.failure import UsageError
from shala_agent.items import (
    ACTIVITY_FOLDER,
    DUMPED_DATABASES,
    PROGRESS_FOLDER,
    QBANK_FOLDER,
    check_activity,
    check_progress,
    check_qbank,
)
from shala_agent.outcome import Result, counted, failed, judged
from shala_agent.reach import CODE, GNOWSYS, Reach, Stat

ALL_USERS_SCRIPT = f"{CODE}/gstudio/doc/deployer/get_all_users_activity_timestamp_csvs.py"
ASSESSMENTS = f"{CODE}/qbank-gstudio-scripts/single_school_get_MIT_activity_data"
PYTHON = "/usr/bin/python"

Watch = Callable[[str], None]

_VISITS = "Total activity-player visits"
_USER = re.compile(r"[A-Za-z0-9@+_][A-Za-z0-9@.+_-]{0,63}")
_CREATED = re.compile(r"^\s*-\s*(NOT )?CREATED:\s*(\d+)", re.MULTILINE)


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
    new = [
        name for name in _new(before, reach.listing(ACTIVITY_FOLDER)) if f"-{user}-activity-visits-" in name
    ]
    if _VISITS not in ran.stdout or not new:
        return failed(
            f"no CSV was made for '{user}': {_why(ran)}",
            *_broken(reach, ACTIVITY_FOLDER, new, check_activity),
        )
    return judged(_broken(reach, ACTIVITY_FOLDER, new, check_activity), None, {"files": new})


def derive_activity_of_all(
    container: Container,
    reach: Reach,
    timeout_seconds: float,
    before_count: int = 0,
    watch: Watch | None = None,
) -> Result:
    """Make the activity timestamps of all users. `before_count` is how many files the last whole run made."""
    before = reach.listing(ACTIVITY_FOLDER)
    users = 0

    def count(line: str) -> None:
        nonlocal users
        users += line.count(_VISITS)
        if watch is not None and _VISITS in line:
            watch(f"{users} users")

    script = f"echo \"execfile('{ALL_USERS_SCRIPT}')\" | {PYTHON} manage.py shell"
    ran = container.run(["sh", "-c", script], workdir=GNOWSYS, timeout_seconds=timeout_seconds, watch=count)
    new = _new(before, reach.listing(ACTIVITY_FOLDER))
    findings = _broken(reach, ACTIVITY_FOLDER, new, check_activity)
    cut = ran.timed_out or "Traceback" in ran.stderr + ran.stdout
    if cut or not users:
        findings.insert(0, f"it broke off after {counted(users, 'user')}: {_why(ran)}")
    if not new:
        return failed(*(findings or ["no CSV was made"]))
    if len(new) != users and not cut:
        findings.append(f"users done: {users}, but CSVs that are new: {len(new)}")
    if len(new) < before_count:
        findings.append(f"{counted(len(new), 'CSV')}, the last time it were {before_count}")
    return judged(findings, None, {"count": len(new)})


def derive_progress(
    container: Container,
    reach: Reach,
    timeout_seconds: float,
    before_count: int = 0,
    watch: Watch | None = None,
) -> Result:
    """Make the progress CSVs of all units. `before_count` is how many files the last whole run made."""
    before = reach.listing(PROGRESS_FOLDER)

    def position(line: str) -> None:
        if watch is not None and (match := re.search(r"\[\s*\d+ / \d+\s*\]", line)):
            watch(match[0])

    ran = container.run(
        [PYTHON, "manage.py", "export_users_analytics"],
        workdir=GNOWSYS,
        timeout_seconds=timeout_seconds,
        watch=position,
    )
    new = _new(before, reach.listing(PROGRESS_FOLDER))
    findings = _broken(reach, PROGRESS_FOLDER, new, check_progress)
    counts = {
        "not created" if match[1] else "created": int(match[2]) for match in _CREATED.finditer(ran.stdout)
    }
    if ran.timed_out or "RESULT OF CSV EXPORT" not in ran.stdout or "created" not in counts:
        findings.insert(0, f"it broke off after {counted(len(new), 'CSV')}: {_why(ran)}")
        return failed(*findings)
    if not new:
        return failed(*findings, "no CSV was made")
    if len(new) != counts["created"]:
        findings.append(f"it says that it created {counted(counts['created'], 'CSV')}, but new: {len(new)}")
    if len(new) < before_count:
        findings.append(f"{counted(len(new), 'CSV')}, the last time it were {before_count}")
    return judged(findings, None, {"count": len(new)})


def derive_assessments(container: Container, reach: Reach, timeout_seconds: float) -> Result:
    """Have the MIT script dump the assessments, and compare what it packed with our own dump of the same
    databases.
    """
    before = reach.listing(QBANK_FOLDER)
    ran = container.run(
        [PYTHON, "single_school_get_MIT_activity_data.py"],
        workdir=ASSESSMENTS,
        timeout_seconds=timeout_seconds,
    )
    after = reach.listing(QBANK_FOLDER)
    if ran.timed_out or "Traceback" in ran.stdout + ran.stderr or "Done!" not in ran.stdout:
        return failed(f"the script broke off: {_why(ran)}")
    archive = "qbank_data.tar.gz"
    if archive not in after or after[archive] == before.get(archive):
        return failed(f"no new {archive} was made: {_why(ran)}")
    root = reach.local(QBANK_FOLDER)
    findings = []
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            relative = path.relative_to(root).as_posix()
            findings += [f"{relative} {finding}" for finding in check_qbank(path, relative, "")]
    findings += _fewer_than_own_dump(root / "mongo-dump", reach)
    return judged(findings, None, {"bytes": after[archive][0]})


def _fewer_than_own_dump(dumped: Path, reach: Reach) -> list[str]:
    """Name collections of which the script dumped fewer documents than our own mongodump did just before."""
    try:
        own = reach.local(DUMPED_DATABASES)
    except FileNotFoundError:
        return []
    if not dumped.is_dir():
        return ["it left no mongo-dump"]
    findings = []
    for database in sorted(path.name for path in dumped.iterdir() if path.is_dir()):
        for file in sorted((own / database).glob("*.bson")):
            try:
                expected = checks.count_bson(file)
                theirs = dumped / database / file.name
                count = checks.count_bson(theirs) if theirs.is_file() else 0
            except checks.BsonBroken:
                continue  # said already
            if count < expected:
                findings.append(
                    f"mongo-dump/{database}/{file.name} has {count} of {expected} documents (db has them all)"
                )
    return findings


def _new(before: dict[str, Stat], after: dict[str, Stat]) -> list[str]:
    """Return the names that are new or whose files changed (a second run in one minute overwrites the
    first).
    """
    return sorted(name for name, seen in after.items() if before.get(name) != seen)


def _broken(
    reach: Reach, folder: str, names: list[str], check: Callable[[Path, str, str], object]
) -> list[str]:
    findings: list[str] = []
    for name in names:
        found = check(reach.local(f"{folder}/{name}"), name, "")
        findings += [f"{name} {finding}" for finding in found]  # type: ignore[attr-defined]
    return findings


def _why(ran: Execution) -> str:
    return f"cut after {ran.seconds:.0f} s" if ran.timed_out else ran.said
