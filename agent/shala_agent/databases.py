"""Database dumps: PostgreSQL whole, MongoDB database by database.

A dump replaces the last good one only when it is whole.

The dumps are made beside the last good ones, on the data volume, walked to their ends, and renamed. What lies
under the final names is therefore always whole, however a run was cut.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shala_agent import checks, durable
from shala_agent.container import Container, Execution
from shala_agent.failure import AgentError
from shala_agent.items import DUMPED_DATABASES, POSTGRES_DUMP
from shala_agent.outcome import FAILED, OK, Result, failed, judged
from shala_agent.reach import STAGING, Reach

READY_WAIT = 180  # seconds a database may take after the container's start (facts/gstudio.md 1.1)
SHRUNK = 0.5  # of the users, or of a database's documents, that the last good dump had: fewer is not believed
READY_POLL = 5  # seconds between two questions
_DONE = re.compile(r"done dumping `?([^`\s]+?)`? \((\d+) documents?\)")
_MONGODUMP = (
    'rm -rf "$1/$2" && mkdir -p "$1" "$3" && exec mongodump --host 127.0.0.1 --port 27017 -d "$2" -o "$1"'
)
# pg_dump writes a random word here each time; a dump that differs in nothing else is no new dump.
_RANDOM_LINES = (b"\\restrict ", b"\\unrestrict ")


def dump_postgres(container: Container, reach: Reach, timeout_seconds: float) -> Result:
    """Dump all of PostgreSQL to pg_dump_all.sql. On any doubt the last good dump stays.

    The caller has claimed the container. Raises ContainerUnavailable.
    """
    folder, _, name = POSTGRES_DUMP.rpartition("/")
    part = f"{folder}/{durable.TEMPORARY}{name}.part"
    ran = container.run(
        [
            "sh",
            "-c",
            'mkdir -p "$1" && cd / && su postgres -s /bin/sh -c pg_dumpall > "$2"',
            "sh",
            folder,
            part,
        ],
        timeout_seconds=timeout_seconds,
    )
    try:
        dump = reach.local(part)
        findings = list(checks.sql_dump_is_complete(dump))
    except FileNotFoundError:
        return failed(f"pg_dumpall wrote nothing: {_why(ran)}")
    if findings:
        _remove(container, reach, part)
        return failed(f"the dump {findings[0]}, the last good one is kept: {_why(ran)}")
    users, before = _users_in(dump), _users_in(_last_dump(reach))
    if users < before * SHRUNK:
        _remove(container, reach, part)
        return failed(
            f"the dump holds {users} users, the last good one {before}: that one is kept"
            f" (was the container made anew? If the users are right, move {POSTGRES_DUMP} away)"
        )
    detail: dict[str, Any] = {"bytes": dump.stat().st_size, "users": users}
    if _equal_dumps(dump, reach, POSTGRES_DUMP):
        _remove(container, reach, part)
        return judged([], ["the same as the last one"], detail)
    _replace(container, reach, part, POSTGRES_DUMP)
    return judged([], None, detail)


def dump_mongo_database(container: Container, reach: Reach, database: str, timeout_seconds: float) -> Result:
    """Dump one MongoDB database into the staging folder, walk every collection, then let it replace the last
    good dump.

    mongodump is awaited to its end. `detail` holds {"documents": {collection: count}}. Raises
    ContainerUnavailable.
    """
    parts = f"{STAGING}/db.part"
    final = f"{DUMPED_DATABASES}/{database}"
    ran = container.run(
        [
            "sh", "-c",
            _MONGODUMP,
            "sh", parts, database, DUMPED_DATABASES,
        ],
        timeout_seconds=timeout_seconds,
    )  # fmt: skip
    made = f"{parts}/{database}"
    said = {name: int(count) for name, count in _DONE.findall(ran.stderr + ran.stdout)}
    try:
        folder = reach.local(made)
        counts, findings = _walk_dump(folder, database, said)
    except FileNotFoundError:
        counts, findings = {}, []
    if not counts and not findings:
        if ran.exit_code == 0 and not ran.timed_out:
            # A database that does not exist is dumped as nothing, without an error.
            known = bool(reach.listing(final))
            return (
                failed("it holds no collections any more, the last good dump is kept") if known else _absent()
            )
        return failed(f"mongodump made nothing: {_why(ran)}")
    if ran.timed_out or ran.exit_code != 0:
        findings.insert(0, f"mongodump did not end well: {_why(ran)}")
    held, now = _documents_in(reach, final), sum(counts.values())
    if not findings and now < held * SHRUNK:
        findings.append(
            f"{database} holds {now} documents, the last good dump {held}: that one is kept"
            f" (if it is right, move {final} away)"
        )
    if findings:
        container.run(["rm", "-rf", made], timeout_seconds=60)
        return failed(*findings)
    _sync(folder)
    old = f"{parts}/{database}.old"
    ran = container.run(
        [
            "sh",
            "-c",
            'rm -rf "$3"; { [ ! -e "$2" ] || mv "$2" "$3"; } && mv "$1" "$2" && rm -rf "$3"',
            "sh",
            made,
            final,
            old,
        ],
        timeout_seconds=60,
    )
    if ran.exit_code != 0:
        return failed(f"the dump could not be put into place: {ran.said}")
    return judged([], None, {"documents": counts})


def repair_dumps(container: Container) -> None:
    """Put back a last good dump that a cut run had moved aside, and remove half-made ones.

    Raises ContainerUnavailable.
    """
    script = """cd "$1" 2>/dev/null || exit 0
for old in db.part/*.old; do
  [ -d "$old" ] || continue
  name=$(basename "$old" .old)
  if [ -d "db/$name" ]; then rm -rf "$old"; else mv "$old" "db/$name"; fi
done
rm -rf db.part"""
    container.run(["sh", "-c", script, "sh", STAGING], timeout_seconds=120)


def wait_for(container: Container, database: str, wait_seconds: float = READY_WAIT) -> str:
    """Wait until `postgres` or `mongo` answers; return "" or what is wrong with it.

    Raises ContainerUnavailable.
    """
    probe = {
        "postgres": ["sh", "-c", "cd / && su postgres -s /bin/sh -c \"psql -qAtc 'select 1'\""],
        "mongo": ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/27017"],
    }[database]
    give_up = time.monotonic() + wait_seconds
    while True:
        ran = container.run(probe, timeout_seconds=20)
        if ran.exit_code == 0:
            return ""
        if time.monotonic() + READY_POLL > give_up:
            return f"it does not answer: {_why(ran)}"
        time.sleep(READY_POLL)


def dump_mongo(
    container: Container,
    reach: Reach,
    databases: list[str],
    dump_one: Callable[[str], Result],
) -> Result:
    """Dump every database by `dump_one` and sum up: failed when none could be dumped, else suspect for those
    that were not.
    """
    findings: list[str] = []
    notes: list[str] = []
    documents: dict[str, object] = {}
    done = 0
    for database in databases:
        result = dump_one(database)
        if result.outcome == FAILED:
            findings += [f"{database}: {reason}" for reason in result.reasons]
        else:
            notes += [f"{database}: {reason}" for reason in result.reasons]
        if result.outcome == OK and "documents" in result.detail:
            done += 1
            documents[database] = result.detail["documents"]
    if not done:
        return failed(*(findings or ["no database holds anything"]))
    return judged(findings, notes, {"documents": documents})


def _documents_in(reach: Reach, final: str) -> int:
    """Return how many documents the last good dump of a database holds; 0 when there is none."""
    count = 0
    try:
        for file in reach.local(final).glob("*.bson"):
            count += checks.count_bson(file)
    except (FileNotFoundError, checks.BsonBroken):
        return 0
    return count


def _last_dump(reach: Reach) -> Path | None:
    try:
        return reach.local(POSTGRES_DUMP)
    except FileNotFoundError:
        return None


def _users_in(dump: Path | None) -> int:
    """Return how many rows the table auth_user has in a dump; 0 when it has none, or there is no dump."""
    if dump is None:
        return 0
    rows, inside = 0, False
    with dump.open("rb") as lines:
        for line in lines:
            if inside and line.startswith(b"\\."):
                break
            rows += inside
            inside = inside or line.startswith((b"COPY public.auth_user ", b"COPY auth_user "))
    return rows


def _absent() -> Result:
    return Result("skipped", ["the server has no such database"])


def _walk_dump(folder: Path, database: str, said: dict[str, int]) -> tuple[dict[str, int], list[str]]:
    """Return documents per collection by walking the files, and what contradicts what mongodump said."""
    counts: dict[str, int] = {}
    findings: list[str] = []
    for file in sorted(folder.glob("*.bson")):
        try:
            counts[file.stem] = checks.count_bson(file)
        except checks.BsonBroken as error:
            findings.append(f"{file.name} {error}")
    for name, count in said.items():
        collection = name.removeprefix(f"{database}.")
        if collection not in counts:
            if not any(finding.startswith(f"{collection}.bson ") for finding in findings):
                findings.append(f"{collection}.bson is missing, mongodump said {count} documents")
        elif counts[collection] != count:
            findings.append(f"{collection}.bson holds {counts[collection]} documents, mongodump said {count}")
    # mongodump says "done" for each collection; one without it was still being written.
    silent = [collection for collection in counts if f"{database}.{collection}" not in said]
    findings += [f"{collection}.bson was never said to be done" for collection in silent]
    return counts, findings


def _equal_dumps(new: Path, reach: Reach, last: str) -> bool:
    try:
        before = reach.local(last)
        with new.open("rb") as left, before.open("rb") as right:
            while True:
                pair = left.readline(), right.readline()
                if pair[0] != pair[1] and not all(line.startswith(_RANDOM_LINES) for line in pair):
                    return False
                if not pair[0]:
                    return True
    except FileNotFoundError:
        return False


def _replace(container: Container, reach: Reach, part: str, final: str) -> None:
    host = reach.host(part)
    target = reach.host(final)
    if host is not None and target is not None and host.exists():
        durable.sync(host)
        durable.rename(host, target)
    else:
        moved = container.run(["sh", "-c", 'sync; mv -f "$1" "$2"', "sh", part, final], timeout_seconds=120)
        if moved.exit_code != 0:
            raise AgentError(f"the dump could not be put into place: {moved.said}")


def _remove(container: Container, reach: Reach, path: str) -> None:
    host = reach.host(path)
    if host is not None and host.exists():
        host.unlink()
    else:
        container.run(["rm", "-f", path], timeout_seconds=60)


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        if file.is_file() and not file.is_symlink():
            durable.sync(file)
    durable.sync(folder)


def _why(ran: Execution) -> str:
    return f"cut after {ran.seconds:.0f} s" if ran.timed_out else ran.said
