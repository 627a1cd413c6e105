"""Kinds: what a file of an item must be like, by one word that the catalogue and an operator use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shala_agent import checks

# Given the staged file, its path inside the item and its digest, yield what is wrong.
Check = Callable[[Path, str, str], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One way of looking at files; `version` grows with its check, so that all are looked at again."""

    word: str
    about: str
    check: Check
    version: int = 1
    # Whether fewer rows in a CSV than in the last one of its name say something.
    counts_rows: bool = False

    @property
    def id(self) -> str:
        """What a finding in the cache belongs to."""
        return f"{self.word}/{self.version}"


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


def check_nodes(file: Path, relative: str, _sha256: str) -> Iterator[str]:
    """Nodes are JSON, their histories RCS."""
    if relative.endswith(".json"):
        yield from checks.json_parses(file)
    elif relative.endswith(",v"):
        yield from checks.rcs_is_whole(file)


def check_progress(file: Path, relative: str, _sha256: str) -> Iterator[str]:
    """Progress CSVs have the 49 fixed columns, then one per activity; a unit without users has no file."""
    if relative.endswith(".csv"):
        whole = list(checks.csv_is_whole(file, checks.PROGRESS_COLUMNS, further=True))
        yield from whole or checks.csv_has_rows(file)


def check_activity(file: Path, relative: str, _sha256: str) -> Iterator[str]:
    """Activity timestamps have nine columns; a user without visits has only the header."""
    if relative.endswith(".csv"):
        yield from checks.csv_is_whole(file, checks.ACTIVITY_COLUMNS)


def check_accounts(file: Path, relative: str, _sha256: str) -> Iterator[str]:
    """A dump of the cluster that ends with its trailer and holds roles and users."""
    if relative.endswith(".sql"):
        yield from checks.sql_dump_is_complete(file)
        yield from checks.sql_dump_holds_accounts(file)


def csv_kind(columns: Sequence[str]) -> Kind:
    """Return the kind of CSVs that begin with these columns (none: whatever their header says)."""

    def check(file: Path, relative: str, _sha256: str) -> Iterator[str]:
        if relative.endswith(".csv"):
            yield from checks.csv_is_whole(file, columns, further=True)

    word = "csv" + (f"-{hashlib.sha256(repr(list(columns)).encode()).hexdigest()[:8]}" if columns else "")
    return Kind(word, "UTF-8, CRLF to the end, rectangular", check, counts_rows=True)


def _ending(suffix: str, look: Callable[[Path], Iterator[str]]) -> Check:
    def check(file: Path, relative: str, _sha256: str) -> Iterator[str]:
        if relative.endswith(suffix):
            yield from look(file)

    return check


def _each(look: Callable[[Path], Iterator[str]]) -> Check:
    def check(file: Path, _relative: str, _sha256: str) -> Iterator[str]:
        yield from look(file)

    return check


def _check_media(_file: Path, relative: str, sha256: str) -> Iterator[str]:
    yield from checks.media_name_is_sha256(relative, sha256)


ANY = Kind("any", "nothing is asked of it", check_nothing)

KINDS = {
    kind.word: kind
    for kind in (
        ANY,
        Kind("not-empty", "not empty", _each(checks.is_not_empty)),
        Kind("json", "*.json parse", _ending(".json", checks.json_parses)),
        csv_kind(()),
        Kind("sql", "*.sql end with pg_dumpall's trailer", _ending(".sql", checks.sql_dump_is_complete)),
        Kind("tar.gz", "*.tar.gz read to their end", _ending(".tar.gz", checks.tar_gz_reads)),
        Kind("databases", "BSON walks to its end, metadata parse", check_databases),
        Kind(
            "heartbeat",
            "all sections, and the closing line of our own",
            _ending(".log", checks.heartbeat_is_complete),
        ),
        Kind("settings", "parses as Python, and is never run", _each(checks.settings_parse)),
        Kind("media", "the name is the sha256 of the content", _check_media),
        Kind(
            "git-log",
            "what four commands say of each repository",
            _each(checks.git_log_is_complete),
        ),
        Kind("nodes", "*.json parse, *,v begin and end as RCS histories do", check_nodes, version=2),
        Kind("accounts", "trailer, roles and users", check_accounts),
        Kind(
            "progress-csv",
            "49 fixed columns, CRLF to the end, rectangular, UTF-8, at least one row",
            check_progress,
            version=2,
            counts_rows=True,
        ),
        Kind(
            "activity-csv",
            "nine columns, CRLF to the end, rectangular, UTF-8",
            check_activity,
            counts_rows=True,
        ),
        Kind(
            "qbank",
            "BSON walks, the archive reads to its end and has its folders, the dump has its trailer,"
            " activity-data.csv has rows",
            check_qbank,
            version=2,
        ),
    )
}
# What an operator's row may name.
WORDS = ("any", "not-empty", "json", "csv", "sql", "tar.gz", "databases", "settings")
