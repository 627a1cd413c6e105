"""Databases go back: what is there is dumped aside first, then replaced, then looked at and counted.

An exit code of psql or mongorestore is never believed, and neither is what it says of success.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from shala_agent import checks, durable
from shala_agent.catalogue import OWN_POSTGRES_DUMP, PYTHON
from shala_agent.container import Container, Execution
from shala_agent.databases import dump_postgres, live_counts, take_the_place
from shala_agent.failure import AgentError
from shala_agent.ingest import users_of_dump
from shala_agent.outcome import FAILED, Result, counted, failed, judged
from shala_agent.reach import GNOWSYS, Reach

NO_PASSWORD = b"!"  # what shala_agent.privacy puts in the place of a hash
# Accounts that every installation is born with (facts/gstudio.md 1.3); nobody of the school.
_FACTORY = re.compile(r"administrator|(.*[-_])?(sp|cc)\d*")
# In which collections documents appear only when somebody learns.
_LEARNING = {"gstudio-mongodb": ("Benchmarks", "Counters"), "assessment": ("AssessmentTaken",)}
SERVERS_OWN = ("admin", "local", "config")  # databases of MongoDB itself: never of a collection

_CLUSTERS_OWN = ("postgres", "template0", "template1")  # the like of PostgreSQL

_AS_POSTGRES = "su postgres -s /bin/sh -c"
_PSQL = "psql -Xq -d postgres"
_COPY = re.compile(rb"COPY (\S+) \((.*)\) FROM stdin;")
_CREATES = re.compile(rb'CREATE DATABASE "?([^ ";]+)')
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
_ERROR = re.compile(r"(?:ERROR|FATAL|PANIC):.*")
# What a new installation has as well: the dump makes them all.
_EXPECTED = re.compile(r'ERROR:\s+(role|schema|language|extension) ".*" already exists')


def keep_postgres(container: Container, reach: Reach, target: str, timeout_seconds: float) -> Path:
    """Dump all of PostgreSQL to a new file of the data volume; the caller syncs.

    Raises AgentError where that is not whole.
    """
    ran = container.run(
        ["sh", "-c", f'umask 077 && cd / && {_AS_POSTGRES} pg_dumpall > "$1"', "sh", target],
        timeout_seconds=timeout_seconds,
    )
    try:
        dump = reach.local(target)
        broken = next(checks.sql_dump_is_complete(dump), "")
    except FileNotFoundError:
        broken = "was not written"
    if broken:
        raise AgentError(
            "what is in PostgreSQL could not be kept aside, nothing of it was changed:"
            f" the dump {broken}: {_why(ran)}"
        )
    return dump


def keep_mongo(
    container: Container, reach: Reach, database: str, folder: str, timeout_seconds: float
) -> None:
    """Dump a database to a new folder of the data volume, if it holds anything; the caller syncs.

    Raises AgentError where the dump holds less than the database.
    """
    live = (live_counts(container, [database]) or {}).get(database)
    if live is not None and not any(live.values()):
        return
    script = 'umask 077 && mongodump --host 127.0.0.1 --port 27017 -d "$1" -o "$2"'
    ran = container.run(["sh", "-c", script, "sh", database, folder], timeout_seconds=timeout_seconds)
    try:
        kept = _counts(reach.local(f"{folder}/{database}"))
        lacking = [name for name, count in (live or {}).items() if kept.get(name, 0) < count]
        problem = f"the dump of {', '.join(lacking)} is not whole" if lacking else ""
    except (FileNotFoundError, checks.BsonBroken) as error:
        problem = str(error)
    if problem or live is None or ran.timed_out or ran.exit_code != 0:
        raise AgentError(
            f"what is in the database {database} could not be kept aside, nothing of it was changed:"
            f" {problem or _why(ran)}"
        )


def school_users(dump: Path) -> int:
    """Return how many users a dump holds besides those that every installation is born with."""
    names = (user["username"] for user in users_of_dump(dump, ("username",)))
    return sum(_FACTORY.fullmatch(name) is None for name in names)


def learning(container: Container) -> int | None:
    """Return how many documents tell of what students did here; None when the databases cannot be asked."""
    live = live_counts(container, list(_LEARNING))
    if live is None:
        return None
    return sum(live[database].get(name, 0) for database, names in _LEARNING.items() for name in names)


def restore_postgres(
    container: Container, reach: Reach, staged: str, timeout_seconds: float, former: Sequence[Path] = ()
) -> Result:
    """Put a dump of pg_dumpall back: the databases that it makes are replaced, others stay.

    `staged` lies on the data volume and becomes the last good dump. Who has a password in a `former` dump,
    and none in this one, keeps it. Raises ContainerUnavailable.
    """
    dump = reach.local(staged)
    _carry_passwords(dump, former)
    names = sorted(set(databases_of(dump)))
    if odd := [name for name in names if not _NAME.fullmatch(name) or name in _CLUSTERS_OWN]:
        return failed(f"the dump makes a database {odd[0][:80]!r}, a name that is none of the platform's")
    if not names:
        return failed("the dump makes no database: there is nothing to restore")
    for name in names:
        ran = container.run(
            ["sh", "-c", f"cd / && printf '%s' \"$1\" | {_AS_POSTGRES} '{_PSQL} -v ON_ERROR_STOP=1'",
             "sh", _DROP.format(name=name)],
            timeout_seconds=timeout_seconds,
        )  # fmt: skip
        if ran.exit_code != 0:
            return failed(f"the database {name} could not be replaced: {_why(ran)}")
    ran = container.run(
        ["sh", "-c", f'cd / && {_AS_POSTGRES} "PGOPTIONS=\'-c lc_messages=C\' {_PSQL}" < "$1" > /dev/null',
         "sh", staged],
        timeout_seconds=timeout_seconds,
    )  # fmt: skip
    errors = [line for line in _ERROR.findall(ran.stderr) if not _EXPECTED.match(line)]
    if errors or ran.timed_out or ran.exit_code != 0:
        met = f"{counted(len(errors), 'error')}: {errors[0][:200]}" if errors else _why(ran)
        return failed(f"psql did not restore all of the dump: {met}")
    users = list(users_of_dump(dump, ("username", "password")))
    lost = sum(user["password"] == NO_PASSWORD.decode() for user in users)
    # From now on it is the measure of what is dumped: fewer users than before are right.
    _become(reach, staged, OWN_POSTGRES_DUMP)
    again = dump_postgres(container, reach, timeout_seconds)
    there = int(again.detail.get("users", 0))
    if again.outcome == FAILED or there < len(users):
        why = again.reasons[0] if again.outcome == FAILED else f"{there} users are there"
        return failed(f"{len(users)} users are in the dump; looked at afterwards: {why}")
    notes = [f"{counted(len(users), 'user')} in {', '.join(names)}"]
    if lost:
        notes.append(
            f"{counted(lost, 'user')} cannot log in until a teacher sets a new password: a collection holds"
            f" no password hashes (docker exec -it -w {GNOWSYS} {container.name} {PYTHON} manage.py"
            " changepassword USER)"
        )
    return judged([], notes, {"users": there, "without_password": lost})


def restore_mongo_database(
    container: Container, reach: Reach, database: str, staged: str, timeout_seconds: float
) -> Result:
    """Put the dump of one database back: the collections that it holds are replaced, others stay.

    `staged` lies on the data volume and becomes the last good dump. Raises ContainerUnavailable.
    """
    expected = _counts(reach.local(staged))
    # mongorestore does so too; where it does nothing, as many documents as before would pass for its own.
    ran = container.run([PYTHON, "-c", _EMPTY, database, *expected], timeout_seconds=timeout_seconds)
    if ran.exit_code != 0:
        return failed(f"the collections of {database} could not be replaced: {_why(ran)}")
    ran = container.run(
        ["mongorestore", "--host", "127.0.0.1", "--port", "27017", "--drop", "--maintainInsertionOrder",
         "-d", database, staged],
        timeout_seconds=timeout_seconds,
    )  # fmt: skip
    live = (live_counts(container, [database]) or {}).get(database)
    if live is None:
        return failed(f"{database} cannot be counted after mongorestore: {_why(ran)}")
    # More is what was there before, or comes from somebody who is at work: neither is what was collected.
    other = [
        f"{database}.{name} holds {counted(live.get(name, 0), 'document')}, its dump {count}"
        + (" (nobody may be at work meanwhile: run this again)" if live.get(name, 0) > count else "")
        for name, count in sorted(expected.items())
        if live.get(name, 0) != count
    ]
    if other or ran.timed_out or ran.exit_code != 0:
        return failed(*other, f"mongorestore: {_why(ran)}")
    durable.sync_filesystem(reach.local(staged))
    if problem := take_the_place(container, staged, database):
        return failed(problem)
    others = sorted(name for name, count in live.items() if count and name not in expected)
    notes = [f"{database} holds besides what was not in the collection: {', '.join(others)}"]
    return judged([], notes if others else [], {"documents": sum(expected.values())})


def databases_of(dump: Path) -> Iterator[str]:
    """Yield the names of the databases that a dump of the cluster makes."""
    in_rows = False
    with dump.open("rb") as lines:
        for line in lines:
            if in_rows:
                in_rows = line.rstrip(b"\r\n") != b"\\."
            elif line.startswith(b"COPY ") and line.rstrip().endswith(b"FROM stdin;"):
                in_rows = True
            elif made := _CREATES.match(line):
                yield made[1].decode("utf-8", "replace")


# Nobody connects to a database that is about to go; where that is cut, the next run drops it.
_DROP = """UPDATE pg_database SET datallowconn = false WHERE datname = '{name}';
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}';
DROP DATABASE IF EXISTS "{name}";
"""


def _carry_passwords(dump: Path, former: Sequence[Path]) -> None:
    """Give the users of a dump that have no password there the one that a former dump has for their names."""
    known: dict[bytes, bytes] = {}
    for file in former:
        with file.open("rb") as lines:
            for line, columns in _with_columns(lines):
                row = _account(line, columns)
                if row and not row["password"].startswith(NO_PASSWORD):
                    known[row["username"]] = row["password"]
    part = dump.with_name(f"{durable.TEMPORARY}{dump.name}.part")
    part.touch(mode=0o600)
    with dump.open("rb") as lines, part.open("wb") as carried:
        for line, columns in _with_columns(lines):
            row = _account(line, columns)
            if row and row["password"] == NO_PASSWORD and row["username"] in known:
                row["password"] = known[row["username"]]
                line = b"\t".join(row.values()) + b"\n"  # noqa: PLW2901 - it is this line, with a password
            carried.write(line)
    part.replace(dump)


def _with_columns(lines: Iterable[bytes]) -> Iterator[tuple[bytes, list[str]]]:
    """Yield each line of a dump, and for the rows of auth_user their columns."""
    columns: list[str] = []
    in_rows = False
    for line in lines:
        if in_rows:
            in_rows = line.rstrip(b"\r\n") != b"\\."
            yield line, columns if in_rows else []
            continue
        if begins := _COPY.match(line):
            in_rows, is_account = True, begins[1].rpartition(b".")[2] == b"auth_user"
            columns = begins[2].decode("ascii", "replace").split(", ") if is_account else []
        yield line, []


def _account(line: bytes, columns: Sequence[str]) -> dict[str, bytes]:
    """Return a row of auth_user as it is written, {} for what is none."""
    fields = line.rstrip(b"\n").split(b"\t")
    whole = len(fields) == len(columns) and {"username", "password"} <= set(columns)
    return dict(zip(columns, fields, strict=True)) if whole else {}


# For Python 2.7 with PyMongo 2.8, as in the platform's image, and for newer ones.
_EMPTY = """import sys, pymongo
database = pymongo.MongoClient('127.0.0.1', 27017)[sys.argv[1]]
for name in sys.argv[2:]:
    database.drop_collection(name)
"""


def _become(reach: Reach, source: str, target: str) -> None:
    there, final = reach.host(source), reach.host(target)
    assert there is not None and final is not None  # noqa: S101, PT018 - both lie on the data volume
    final.parent.mkdir(exist_ok=True, mode=0o700)
    durable.sync(there)
    durable.rename(there, final)


def _counts(folder: Path) -> Mapping[str, int]:
    """Return the documents of each collection of a dump. Raises FileNotFoundError, BsonBroken."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.name} was not dumped")
    files = (file for file in folder.glob("*.bson") if not file.name.startswith("system."))
    return {file.stem: checks.count_bson(file) for file in files}


def _why(ran: Execution) -> str:
    return f"cut after {ran.seconds:.0f} s" if ran.timed_out else ran.said
