"""Database dumps: PostgreSQL whole, MongoDB database by database.

A dump replaces the last good one only when it is whole.

The dumps are made beside the last good ones, on the data volume, walked to their ends, and renamed. What lies
under the final names is therefore always whole, however a run was cut.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shala_agent import checks, durable
from shala_agent.catalogue import DUMPED_DATABASES, LARGEST_DROP, OWN_POSTGRES_DUMP, POSTGRES_DUMP, PYTHON
from shala_agent.container import Container, Execution
from shala_agent.failure import AgentError
from shala_agent.outcome import FAILED, SUSPECT, Result, failed, judged
from shala_agent.reach import STAGING, Reach

READY_WAIT = 180  # seconds a database may take after the container's start (facts/gstudio.md 1.1)
SHRUNK = 0.5  # of the users, or of a database's documents, that the last good dump had: fewer is not believed
READY_POLL = 5  # seconds between two questions
_DONE = re.compile(r"done dumping `?([^`\s]+?)`? \((\d+) documents?\)")
# What is dumped is the agent's alone: names of children, hashes of passwords.
_CLOSED = f"umask 077 && mkdir -p {STAGING} && chmod 700 {STAGING} && "
_POSTGRES = 'mkdir -p "$1" && cd / && su postgres -s /bin/sh -c pg_dumpall > "$2"'
_PARTS = f"{STAGING}/db.part"  # as repair_dumps knows it
_MONGODUMP = (
    'rm -rf "$1/$2" && mkdir -p "$1" "$3" && exec mongodump --host 127.0.0.1 --port 27017 -d "$2" -o "$1"'
)
# A copy, never a link: the platform and its people write over it in place. As its own dump it is that of
# postgres, who is to restore from it (facts/gstudio.md 3).
_PUT_BESIDE = """mkdir -p "${2%/*}"
if [ ! "$1" -ef "$2" ] && cmp -s "$1" "$2"; then exit; fi
umask 077; rm -f "$3"; cp "$1" "$3" || exit
chown postgres "$3" 2>/dev/null
mv -f "$3" "$2"
"""
# For Python 2.7 with PyMongo 2.8, as in the platform's image, and for newer ones.
_COUNT = """import sys, pymongo
server = pymongo.MongoClient('127.0.0.1', 27017)
for database in sys.argv[1:]:
    one = server[database]
    names = one.list_collection_names if hasattr(type(one), 'list_collection_names') else one.collection_names
    for name in names():
        if not name.startswith('system.'):
            all = one[name]
            count = all.count_documents({}) if hasattr(type(all), 'count_documents') else all.count()
            print('%d %s %s' % (count, database, name))
print('counted')"""
_COUNTED = re.compile(r"(?m)^(\d+) (\S+) (\S+)$")
# pg_dump writes a random word here each time; a dump that differs in nothing else is no new dump.
_RANDOM_LINES = (b"\\restrict ", b"\\unrestrict ")


def dump_postgres(container: Container, reach: Reach, timeout_seconds: float) -> Result:
    """Dump all of PostgreSQL to pg_dump_all.sql. On any doubt the last good dump stays.

    The dump lies where no script of the platform comes; where the platform keeps its own, it is put too.
    The caller has claimed the container. Raises ContainerUnavailable.
    """
    folder, _, name = OWN_POSTGRES_DUMP.rpartition("/")
    part = f"{folder}/{durable.TEMPORARY}{name}.part"
    ran = container.run(
        [
            "sh",
            "-c",
            _CLOSED + _POSTGRES,
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
    users, before = checks.count_users(dump), _users_before(reach)
    if users < before * SHRUNK:
        _remove(container, reach, part)
        return failed(
            f"the dump holds {users} users, the last good one {before}: that one is kept"
            f" (was the container made anew? If the users are right, move {OWN_POSTGRES_DUMP} away)"
        )
    findings = [f"the dump {finding}" for finding in checks.sql_dump_holds_accounts(dump)]
    if checks.dropped(users, before, LARGEST_DROP):
        findings.append(f"the dump holds {users} users, the last good one {before}")
    detail: dict[str, Any] = {"bytes": dump.stat().st_size, "users": users}
    notes = []
    if _equal_dumps(dump, reach, OWN_POSTGRES_DUMP):
        _remove(container, reach, part)
        notes.append("the same as the last one")
    else:
        _replace(container, reach, part, OWN_POSTGRES_DUMP)
    notes += _put_beside(container, OWN_POSTGRES_DUMP, POSTGRES_DUMP)
    return judged(findings, notes, detail)


def dump_mongo_database(
    container: Container,
    reach: Reach,
    database: str,
    timeout_seconds: float,
    live: Mapping[str, int] | None = None,
) -> Result:
    """Dump one MongoDB database into the staging folder, walk every collection, then let it replace the last
    good dump.

    mongodump is awaited to its end. `live` is what the database said of its collections before (live_counts);
    the dump must hold no less. `detail` holds {"documents": {collection: count}}. Raises
    ContainerUnavailable.
    """
    parts = _PARTS
    final = f"{DUMPED_DATABASES}/{database}"
    ran = container.run(
        [
            "sh", "-c",
            _CLOSED + _MONGODUMP,
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
    if live is not None:
        # What is broken has been named; of the rest it is said how much is lost.
        whole = {name: count for name, count in live.items() if name in counts or not findings}
        findings = _fewer_than_live(counts, whole, container, database) + findings
    held = _documents_in(reach, final)
    now, before = sum(counts.values()), sum(held.values())
    if not findings and now < before * SHRUNK:
        findings.append(
            f"{database} holds {now} documents, the last good dump {before}: that one is kept"
            f" (if it is right, move {final} away)"
        )
    doubts = [
        f"{collection} holds {counts.get(collection, 0)} documents, the last good dump {had}"
        for collection, had in sorted(held.items())
        if checks.dropped(counts.get(collection, 0), had, LARGEST_DROP)
    ]
    if findings:
        container.run(["rm", "-rf", made], timeout_seconds=60)
        return failed(*findings)
    _sync(folder)
    if problem := take_the_place(container, made, database):
        return failed(problem)
    return judged(doubts, None, {"documents": counts})


def take_the_place(container: Container, made: str, database: str) -> str:
    """Let a folder of the data volume replace the last good dump of a database; return "" or what is wrong.

    Cut anywhere, repair_dumps has the one or the other in its place.
    """
    final, old = f"{DUMPED_DATABASES}/{database}", f"{_PARTS}/{database}.old"
    aside = 'mkdir -p "${2%/*}" "${3%/*}" && rm -rf "$3" && { [ ! -e "$2" ] || mv "$2" "$3"; }'
    script = f'{aside} && mv "$1" "$2" && rm -rf "$3"'
    ran = container.run(["sh", "-c", script, "sh", made, final, old], timeout_seconds=60)
    return "" if ran.exit_code == 0 else f"the dump could not be put into place: {ran.said}"


def live_counts(container: Container, databases: Sequence[str]) -> dict[str, dict[str, int]] | None:
    """Return how many documents the server itself says each database's collections hold; None when it cannot
    be asked. Raises ContainerUnavailable.
    """
    ran = container.run([PYTHON, "-c", _COUNT, *databases], timeout_seconds=300)
    if ran.exit_code != 0 or "counted\n" not in ran.stdout:
        return None
    counts: dict[str, dict[str, int]] = {database: {} for database in databases}
    for count, database, name in _COUNTED.findall(ran.stdout):
        counts.setdefault(database, {})[name] = int(count)
    return counts


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
    dump_one: Callable[[str, Mapping[str, int] | None], Result],
) -> Result:
    """Dump every database by `dump_one` and sum up: failed when none could be dumped, else suspect for those
    that were not.
    """
    findings: list[str] = []
    live = live_counts(container, databases)
    notes = ["the documents could not be counted in the database itself"] if live is None else []
    documents: dict[str, object] = {}
    done = 0
    for database in databases:
        result = dump_one(database, live.get(database) if live is not None else None)
        if result.outcome in (FAILED, SUSPECT):
            findings += [f"{database}: {reason}" for reason in result.reasons]
        else:
            notes += [f"{database}: {reason}" for reason in result.reasons]
        if "documents" in result.detail:
            done += 1
            documents[database] = result.detail["documents"]
    if not done:
        return failed(*(findings or ["no database holds anything"]))
    return judged(findings, notes, {"documents": documents})


def _documents_in(reach: Reach, final: str) -> dict[str, int]:
    """Return how many documents the last good dump of a database holds, by collection."""
    try:
        return {file.stem: checks.count_bson(file) for file in reach.local(final).glob("*.bson")}
    except (FileNotFoundError, checks.BsonBroken):
        return {}


def _fewer_than_live(
    counts: Mapping[str, int], live: Mapping[str, int], container: Container, database: str
) -> list[str]:
    """Name collections of which the dump has fewer documents than the database, before it and after it."""
    fewer = {name: count for name, count in live.items() if counts.get(name, 0) < count}
    if not fewer:
        return []
    after = (live_counts(container, [database]) or {}).get(database, {})
    return [
        f"{name}.bson holds {counts.get(name, 0)} documents, the database {after[name]}"
        for name in sorted(fewer)
        if counts.get(name, 0) < after.get(name, 0)
    ]


def _users_before(reach: Reach) -> int:
    """Return how many users our last good dump holds, or the platform's where we have made none yet."""
    for path in (OWN_POSTGRES_DUMP, POSTGRES_DUMP):
        try:
            return checks.count_users(reach.local(path))
        except FileNotFoundError:
            continue
    return 0


def _put_beside(container: Container, own: str, shared: str) -> list[str]:
    """Put a copy of our own dump where the platform looks for one; return a note when that did not do."""
    part = shared.replace("pg_dump_all", f"{durable.TEMPORARY}pg_dump_all")
    ran = container.run(["sh", "-c", _PUT_BESIDE, "sh", own, shared, part], timeout_seconds=60)
    return [] if ran.exit_code == 0 else [f"{shared} is not the newest: {ran.said}"]


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
