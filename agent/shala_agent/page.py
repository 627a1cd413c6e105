"""The page for the teacher: each student's units and progress across the servers of the zone, in one file.

It needs no network and no JavaScript, escapes all that it shows, and is replaced whole. It is written student
by student: its size is not this program's.
"""

from __future__ import annotations

import datetime
import errno
import html
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from shala_agent import durable
from shala_agent.records import Records
from shala_agent.state import Record

# Letters that turn the direction of what follows would let a name change the line that it stands in.
_TURNS = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00-\x1f\x7f-\x9f]")
_STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; color: #1a1a1a;
  background: #fff }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem }
caption { text-align: left; font-weight: bold; padding: .3rem 0 }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #bbb; vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
summary { cursor: pointer; padding: .4rem 0 }
summary:focus-visible, .far:focus-visible { outline: 3px solid #1d4ed8 }
.far { overflow-x: auto }
@media print { details { break-inside: avoid } }
"""


def write_page(records: Records, path: Path, mode: int = 0o640) -> None:
    """Write the page of the server's zone; readers see the old one until the new one is whole."""
    if not path.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "there is no such folder (make it, or correct sync.page)", str(path.parent)
        )
    if path.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "that is a folder (remove it, or have sync.page name a file)", str(path)
        )
    part = path.with_name(f"{durable.TEMPORARY}{path.name}.part")
    # Never through a link that lies there, never readable by more than it will be.
    with suppress(FileNotFoundError):
        part.unlink()
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            for piece in page_of(records):
                file.write(piece)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        durable.rename(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def page_of(records: Records) -> Iterator[str]:
    """Yield the page in pieces."""
    zone = records.store.name if records.store is not None else ""
    authors = records.authors()
    made = datetime.datetime.now().astimezone()
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Progress in zone {shown(zone)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>Progress in zone {shown(zone)}</h1>\n"
        f"<p>Made on {made:%Y-%m-%d at %H:%M}, when something new had come. Each line says which server it"
        " comes from, and the day by that server&#39;s own clock.</p>\n"
    )
    yield from _servers(records, authors)
    yield "<h2>Students</h2>\n"
    students = 0
    for user, rows in groupby(records.records("progress"), key=lambda one: one.key.partition("/")[0]):
        students += 1
        yield from _student(records, user, list(rows), authors)
    if not students:
        yield "<p>No progress has arrived yet.</p>\n"
    yield "</main>\n</body>\n</html>\n"


def shown(text: object) -> str:
    """Return anything as text that is safe to stand in the page."""
    return html.escape(_TURNS.sub("", str(text)))


def day(at: int) -> str:
    """Return the day of a time that a server's clock gave."""
    try:
        return f"{datetime.datetime.fromtimestamp(at, datetime.timezone.utc):%Y-%m-%d}"
    except (ValueError, OverflowError, OSError):
        return "unknown day"


def percent(value: Mapping[str, Any], done: str, of: str) -> str:
    """Return "3 of 12" for two counts of a progress row."""
    return f"{value.get(done, 0)} of {value.get(of, 0)}"


def name_of(records: Records, user: str) -> str:
    """Return the name of a student, as far as her account tells it."""
    account = records.record("account", user)
    value = account.value if account is not None and account.value is not None else {}
    return " ".join(str(value[one]) for one in ("first_name", "last_name") if value.get(one))


def unit_of(record: Record) -> str:
    """Return the name of a progress record's unit."""
    value = record.value or {}
    return str(value.get("unit_name") or record.key.partition("/")[2])


def by_number(record: Record) -> list[tuple[str, int]]:
    """Return what progress records are sorted by so that Unit 2 comes before Unit 10."""
    pairs = re.findall(r"(\D*)(\d{0,15})", unit_of(record))
    return [(word, int(number or 0)) for word, number in pairs]


def _servers(records: Records, authors: Mapping[bytes, str]) -> Iterator[str]:
    newest: dict[str, tuple[int, int]] = {}
    for record in records.records("progress"):
        server = authors.get(record.log, "unknown server")
        number, at = newest.get(server, (0, record.at))
        newest[server] = number + 1, max(at, record.at)
    yield '<table>\n<caption>Servers of the zone</caption>\n<thead><tr><th scope="col">Server</th>'
    yield '<th scope="col" class="number">Units of students</th>'
    yield '<th scope="col">Newest progress</th></tr></thead>\n<tbody>\n'
    for server in sorted({*newest, *authors.values()}):
        number, at = newest.get(server, (0, 0))
        when = day(at) if number else "nothing yet"
        yield f'<tr><th scope="row">{shown(server)}</th>'
        yield f'<td class="number">{number}</td><td>{when}</td></tr>\n'
    yield "</tbody>\n</table>\n"


def _student(
    records: Records, user: str, rows: Iterable[Record], authors: Mapping[bytes, str]
) -> Iterator[str]:
    rows = sorted(rows, key=by_number)
    name = name_of(records, user)
    label = f"{shown(name)} ({shown(user)})" if name else shown(user)
    yield f"<details>\n<summary>{label}: {len(rows)} {'unit' if len(rows) == 1 else 'units'}</summary>\n"
    yield f'<div class="far" tabindex="0" role="region" aria-label="Units of {shown(user)}">\n<table>\n'
    yield f"<caption>Units of {label}</caption>\n<thead><tr>"
    for column in ("Unit", "Lessons", "Activities", "Quiz: right of tried", "Server", "Day"):
        yield f'<th scope="col">{column}</th>'
    yield "</tr></thead>\n<tbody>\n"
    for record in rows:
        value = record.value or {}
        cells = (
            percent(value, "lessons_visited", "total_lessons"),
            percent(value, "activities_visited", "total_activities"),
            percent(value, "correct_attempted_quizitems", "attempted_quizitems"),
            authors.get(record.log, "unknown server"),
            day(record.at),
        )
        yield f'<tr><th scope="row">{shown(unit_of(record))}</th>'
        yield "".join(f"<td>{shown(cell)}</td>" for cell in cells) + "</tr>\n"
    yield "</tbody>\n</table>\n</div>\n</details>\n"
