"""Accounts: have the local platform know the students of the zone's other servers. Off unless configured.

What travels is who somebody is, never a password. So an account is only ever added, where neither its name
nor its number is taken here, and with a random password that nobody knows: the teacher sets one. Whether the
platform took them is seen in the next dump of its database, not in what its command says.
"""

from __future__ import annotations

import csv
import io
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

from shala_agent.catalogue import POSTGRES_DUMP
from shala_agent.checks import sql_dump_is_complete
from shala_agent.container import Container
from shala_agent.failure import AgentError
from shala_agent.ingest import users_of_dump
from shala_agent.reach import GNOWSYS, STAGING, Reach
from shala_agent.records import Records

PYTHON = "/usr/bin/python"
TIMEOUT = 300.0  # seconds
AT_ONCE = 500  # accounts in one run; the next one gives the next
FILE = "accounts.csv"
# As the platform writes them: "007" and other digits than ASCII's would pass for numbers that are free.
NUMBER = re.compile("[1-9][0-9]{0,9}")
USER = re.compile("[A-Za-z0-9@.+_-]{1,150}")


class Given(msgspec.Struct):
    """What was handed to the platform, and what cannot be, with the reason."""

    accounts: int = 0
    left_out: list[str] = []
    said: str = ""


def give_accounts(records: Records, container: Container, reach: Reach) -> Given:
    """Hand the accounts that are missing here to sync_users. Raises ContainerUnavailable, AgentError."""
    given = Given()
    names, numbers = _local_users(reach)
    rows = list(_missing(records, names, numbers, given))
    if not rows:
        return given
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    path = f"{STAGING}/{FILE}"
    with container.claimed("sync-users", 60.0):
        # Made before anything stands in it: container.put writes with the mode of other people's files.
        container.run(["sh", "-c", 'mkdir -p "$1" && chmod 700 "$1"', "sh", STAGING], timeout_seconds=30)
        container.put(STAGING, FILE, text.getvalue().encode())
        try:
            ran = container.run(
                [PYTHON, "manage.py", "sync_users", path], workdir=GNOWSYS, timeout_seconds=TIMEOUT
            )
        finally:
            container.run(["rm", "-f", path], timeout_seconds=30)
    given.accounts, given.said = len(rows), ran.said
    return given


def _local_users(reach: Reach) -> tuple[set[str], set[str]]:
    """Return names and numbers of the users that are here, by the last good dump. Raises AgentError."""
    try:
        dump: Path = reach.local(POSTGRES_DUMP)
        whole = not list(sql_dump_is_complete(dump))
    except FileNotFoundError:
        whole = False
    if not whole:
        raise AgentError("there is no whole dump that says which users are here (shala-agent collect)")
    users = list(users_of_dump(dump))
    if not users:
        raise AgentError("the dump names no users: an account might be given twice")
    return {user["username"] for user in users}, {user["id"] for user in users}


def _missing(
    records: Records, names: set[str], numbers: set[str], given: Given
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (user id, school code, user name, password, oid) as sync_users reads them."""
    number_of_rows = 0
    for record in records.records("account"):
        value = record.value or {}
        user, number = record.key, str(value.get("user_id", ""))
        if user in names:
            continue
        why = ""
        if not NUMBER.fullmatch(number):
            why = "its number is not known"
        elif number in numbers:
            why = "its number is taken here"
        elif not USER.fullmatch(user):
            why = "its name is none that the platform gives"
        if why:
            if len(given.left_out) < 20:
                given.left_out.append(f"{user}: {why}")
            continue
        numbers.add(number)
        yield number, str(value.get("school_code", "")), user, secrets.token_urlsafe(24), ""
        number_of_rows += 1
        if number_of_rows >= AT_ONCE:
            return
