"""The LEVEL 4 items: where each one is, how it is read, how it is checked, and which step makes it.

Data, no deeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shala_agent import checks
from shala_agent.reach import DATA, DATASTORE, GNOWSYS, STAGING

# Ways of reading a file while the platform may be writing it.
PLAIN = "plain"  # read again when it changed meanwhile
JSON = "json"  # read again until it parses: tools truncate and rewrite it (facts/gstudio.md 4)
LOG = "log"  # only up to its last whole line
FRESH = "fresh"  # made anew under a new name: left for the next time while it is still being written

# What becomes of an item whose step failed: the previous collection's copy, or what there is, labelled.
CARRY = "carry"
LABEL = "label"

# Given the staged file, its path inside the item and its digest, yield what is wrong.
Check = Callable[[Path, str, str], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Item:
    """One LEVEL 4 entry of platform gstudio; `parts` are (LEVEL 5 folder or "", path in the container)."""

    name: str
    parts: tuple[tuple[str, str], ...]
    check: Check
    check_id: str
    reading: str = PLAIN
    step: str = ""
    when_step_failed: str = LABEL
    # Names of the top folder that are taken; empty means all.
    only: tuple[str, ...] = ()
    # Names in its folder without which it is not whole.
    required: tuple[str, ...] = ()
    # Files that are never changed under their name: the mirror may hold a link to them.
    written_once: bool = False


def check_nothing(_file: Path, _relative: str, _sha256: str) -> Iterator[str]:
    """Any content will do."""
    yield from ()


def check_databases(file: Path, relative: str, _sha256: str) -> Iterator[str]:
    """Dumped collections walk to their end, their metadata parse."""
    if relative.endswith(".bson"):
        yield from checks.bson_is_whole(file)
    elif relative.endswith(".json"):
        yield from checks.json_parses(file)


def check_qbank(file: Path, relative: str, sha256: str) -> Iterator[str]:
    """What the MIT script leaves: dumps, the packed archive, and a CSV that is often only a header."""
    if relative == "qbank_data.tar.gz":
        yield from checks.tar_gz_reads(file, ("mongo-dump", "student-activities"))
    elif relative.endswith("pg_dump_all.sql"):
        yield from checks.sql_dump_is_complete(file)
    elif relative == "student-activities/activity-data.csv":
        whole = list(checks.csv_is_whole(file, checks.VISITS_COLUMNS, further=True, rectangular=False))
        yield from whole or checks.csv_has_rows(file)
    else:
        yield from check_databases(file, relative, sha256)


def check_progress(file: Path, relative: str, _sha256: str) -> Iterator[str]:
    """Progress CSVs have the 49 fixed columns, then one per activity."""
    if relative.endswith(".csv"):
        yield from checks.csv_is_whole(file, checks.PROGRESS_COLUMNS, further=True)


def check_activity(file: Path, relative: str, _sha256: str) -> Iterator[str]:
    """Activity timestamps have nine columns."""
    if relative.endswith(".csv"):
        yield from checks.csv_is_whole(file, checks.ACTIVITY_COLUMNS)


def _check_media(_file: Path, relative: str, sha256: str) -> Iterator[str]:
    yield from checks.media_name_is_sha256(relative, sha256)


def _check_sql(file: Path, relative: str, _sha256: str) -> Iterator[str]:
    if relative.endswith(".sql"):
        yield from checks.sql_dump_is_complete(file)


def _check_heartbeat(file: Path, relative: str, _sha256: str) -> Iterator[str]:
    if relative.endswith(".log"):
        yield from checks.heartbeat_is_complete(file)


def _check_tool_log(file: Path, relative: str, _sha256: str) -> Iterator[str]:
    if relative.endswith(".json"):
        yield from checks.json_parses(file)


def _check_not_empty(file: Path, _relative: str, _sha256: str) -> Iterator[str]:
    yield from checks.is_not_empty(file)


PROGRESS_FOLDER = f"{DATA}/gstudio-exported-users-analytics-csvs"
ACTIVITY_FOLDER = f"{DATA}/activity-timestamp-csvs"
QBANK_FOLDER = f"{DATA}/qbank"
POSTGRES_DUMP = f"{DATA}/postgres-dump/pg_dump_all.sql"
HEARTBEAT_FOLDER = f"{DATA}/system-heartbeat"
DUMPED_DATABASES = f"{STAGING}/db"

GIT_LOG = "git-commit.log"  # the one item that is made while collecting


def _item(name: str, check: Check, *, version: int = 1, **more: object) -> Item:
    """An item that lies in /data under its own name, unless `parts` says otherwise; `version` grows with its
    check.
    """
    parts = more.pop("parts", (("", f"{DATA}/{name}"),))
    return Item(name=name, parts=parts, check=check, check_id=f"{name}/{version}", **more)  # type: ignore[arg-type]


# The small and irreplaceable first, the large last.
GSTUDIO_ITEMS = (
    _item("server_settings.py", _check_not_empty, parts=(("", f"{GNOWSYS}/gnowsys_ndf/server_settings.py"),)),
    _item("local_settings.py", _check_not_empty, parts=(("", f"{GNOWSYS}/gnowsys_ndf/local_settings.py"),)),
    _item("system-heartbeat", _check_heartbeat, reading=FRESH, step="heartbeat"),
    _item(
        "postgres-dump", _check_sql, step="postgres-dump", when_step_failed=CARRY, only=("pg_dump_all.sql",)
    ),
    _item(
        "db",
        check_databases,
        parts=(("", DUMPED_DATABASES),),
        step="mongo-dump",
        when_step_failed=CARRY,
        required=("gstudio-mongodb",),
    ),
    _item("gstudio-exported-users-analytics-csvs", check_progress, reading=FRESH, step="progress"),
    _item("activity-timestamp-csvs", check_activity, reading=FRESH, step="activity-timestamps"),
    _item("qbank", check_qbank, step="assessments", when_step_failed=CARRY),
    _item("gstudio_tools_logs", _check_tool_log, reading=JSON),
    _item(GIT_LOG, _check_not_empty, parts=(), when_step_failed=CARRY),
    _item("gstudio-logs", check_nothing, reading=LOG),
    _item("nginx-logs", check_nothing, reading=LOG),
    _item(
        "assessment-media",
        check_nothing,
        parts=(
            ("repository", f"{DATASTORE}/repository"),
            ("studentResponseFiles", f"{DATASTORE}/studentResponseFiles"),
        ),
        written_once=True,
    ),
    _item("rcs-repo", check_nothing),
    _item("media", _check_media, written_once=True),
)
