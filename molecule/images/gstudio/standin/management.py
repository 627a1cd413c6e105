"""The commands of gStudio's manage.py, with their markers, file names and worthless exit codes."""

from __future__ import annotations

import builtins
import code
import csv
import re
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from . import exports, faults, live, people, sql
from .course import slugify
from .documents import GSTUDIO
from .people import User
from .places import DATA, SETTINGS
from .school import IST, School, read_settings

TIMESTAMPS = DATA / "activity-timestamp-csvs"
PROGRESS = DATA / "gstudio-exported-users-analytics-csvs"
EXPORT_LOG = DATA / "gstudio-logs/export_users_analytics.log"


def settings() -> School:
    """Return the identity as gStudio sees it now."""
    return read_settings(SETTINGS)


def database() -> Any:
    """Return the gStudio database on port 27017."""
    return live.client()[GSTUDIO]


def usernames_of_counters() -> list[str]:
    """Return the usernames that have Counters, which the all-users script takes for all users."""
    ids = set(database().Counters.distinct("user_id"))
    return [row[1] for row in live.accounts() if int(row[0]) in ids]


def activity_timestamp(arguments: list[str]) -> None:
    """Write one user's activity timestamps; without a name, ask for names on stdin for ever."""
    if arguments:
        _timestamps(arguments[0])
        return
    while True:
        _timestamps(input("\n\tPlease enter username: "))


def _timestamps(username: str) -> None:
    started = time.monotonic()
    if faults.setting("failing-user") == username:
        raise AttributeError("'NoneType' object has no attribute 'name'")
    if username not in {row[1] for row in live.accounts()}:
        print(f"No User found with {username}")
        return
    store = database()
    pattern = {"$regex": f"^{re.escape(username)}$", "$options": "i"}
    visits = sorted(store.Benchmarks.find({"user": pattern}), key=lambda one: one["last_update"])
    print(f"Total activity-player visits: {len(visits)}")
    names = {str(one["_id"]): one["name"] for one in store.Nodes.find() if "name" in one}
    content = exports.table([exports.TIMESTAMP_COLUMNS, *exports.timestamp_rows(visits, names)])
    TIMESTAMPS.mkdir(parents=True, exist_ok=True)
    name = exports.timestamps_name(settings().server_id, username, faults.now())
    faults.write_in_place(TIMESTAMPS / name, content)
    print(f"Time Required to process: {(time.monotonic() - started) / 60} Minutes", flush=True)


def export_users_analytics(arguments: list[str]) -> None:
    """Write a progress CSV for each unit that somebody has opened."""
    EXPORT_LOG.parent.mkdir(parents=True, exist_ok=True)
    PROGRESS.mkdir(parents=True, exist_ok=True)
    die_after, zero = faults.number("die-after", 1), faults.number("zero-byte-csv", 1)
    store, school = database(), settings()
    identity = (school.server_id, school.name, school.school_code)
    with EXPORT_LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n######### Script ran on : {faults.now():%c} #########\n\n")
        nodes = list(store.Nodes.find())
        units = sorted((one for one in nodes if one["_type"] == "Group"), key=lambda one: one["order"])
        found = list(store.Counters.find())
        try:
            accounts = {int(row[0]): row for row in live.accounts()}
        except live.DatabaseError as error:  # each user fails on its own in the original: the log alone tells
            log.write(f"{error}\n")
            accounts = {}
        created = left_out = 0
        for number, unit in enumerate(units, start=1):
            print(f"[ {number} / {len(units)} ]", flush=True)
            counters = sorted(
                (one for one in found if one["group_id"] == unit["_id"]), key=lambda one: one["user_id"]
            )
            if not counters:
                left_out += 1
                continue
            lessons = unit["collection_set"]
            activities = [one for one in nodes if one.get("kind") == "activity" and one["lesson"] in lessons]
            rows = []
            for counter in counters:
                account = accounts.get(counter["user_id"])
                if account is None:
                    log.write(f"\nError in user {counter['user_id']}: User matching query does not exist.\n")
                    continue
                rows.append(exports.progress_row(identity, unit, len(lessons), activities, account, counter))
            content = exports.table([exports.progress_columns(activities), *rows])
            name = exports.progress_name(school.server_name, slugify(unit["name"]), faults.now())
            if zero is not None and created + 1 == int(zero):
                content = b""
            doomed = die_after is not None and created == int(die_after)
            faults.write_in_place(PROGRESS / name, content, die_at=0.5 if doomed else None)
            created += 1
    print(
        f"\nRESULT OF CSV EXPORT:\n\t- CREATED: {created}\n\t- NOT CREATED: {left_out}\n{'=' * 100}",
        flush=True,
    )


def sync_users(arguments: list[str]) -> None:
    """Add the users of a CSV without header: user_id, school_code, username, password, oid."""
    if not arguments:
        print("Please provide csv file path")
        return
    joined = datetime.now(IST)
    users = []
    with Path(arguments[0]).open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            if len(row) >= 4 and row[0].strip().isdigit():
                name = row[2].strip()
                users.append(User(int(row[0]), name, people.stored_password(name), "", "", joined, joined))
    if users:
        live.psql(sql.upsert(users))
    print(f"Users processed: {len(users)}")


def collectstatic(arguments: list[str]) -> None:
    """Say what Django's collectstatic says."""
    target = Path("/static")
    target.mkdir(exist_ok=True)
    (target / "stand-in.css").write_text("body { margin: 0 }\n", encoding="utf-8")
    print("\n1 static file copied to '/static'.")


def shell(arguments: list[str]) -> None:
    """Read Python from stdin as `manage.py shell` does on a pipe: tracebacks on stderr, exit code 0."""
    code.interact(local={"__name__": "__console__", "__doc__": None, "execfile": execfile})


def execfile(path: str) -> None:
    """Run a file in the caller's namespace, as Python 2 did."""
    frame = sys._getframe(1)
    exec(compile(Path(path).read_text(encoding="utf-8"), path, "exec"), frame.f_globals, frame.f_locals)


def execute_from_command_line(arguments: list[str]) -> None:
    """Run one command given as for manage.py; what it raises goes on to the caller."""
    name = arguments[1] if len(arguments) > 1 else "help"
    command = COMMANDS.get(name)
    if command is None:
        print(f"Unknown command: {name!r}\nType 'manage.py help' for usage.", file=sys.stderr)
        raise SystemExit(1)
    command(arguments[2:])


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "activity_timestamp": activity_timestamp,
    "export_users_analytics": export_users_analytics,
    "sync_users": sync_users,
    "collectstatic": collectstatic,
    "shell": shell,
}


def run() -> None:
    """Run as manage.py."""
    builtins.execfile = execfile  # type: ignore[attr-defined]
    try:
        execute_from_command_line(sys.argv)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
