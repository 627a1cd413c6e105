"""Content checks: decide whether a file is whole, by looking at it and never at an exit code.

Every check yields findings in plain words and nothing when the file is whole. Sources: facts/gstudio.md 2 and
4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from shala_agent.outcome import counted

SQL_TRAILER = b"-- PostgreSQL database cluster dump complete"
ACTIVITY_COLUMNS = [
    "Unit",
    "Lesson",
    "Activity",
    "Language",
    "VisitedOn",
    "OutTime",
    "OutAction",
    "TimeSpentInSeconds",
    "Buddies",
]
_PROGRESS = (
    "server_id,school_name,school_code,module_name,unit_name,username,user_id,first_name,last_name,roll_no,grade,"
    "enrollment_status,buddy_userids,buddy_usernames,total_lessons,lessons_visited,percentage_lessons_visited,"
    "total_activities,activities_visited,percentage_activities_visited,total_quizitems,visited_quizitems,"
    "attempted_quizitems,unattempted_quizitems,correct_attempted_quizitems,notapplicable_quizitems,"
    "incorrect_attempted_quizitems,user_files,total_files_viewed_by_user,other_viewing_my_files,"
    "unique_users_commented_on_user_files,total_rating_rcvd_on_files,commented_on_others_files,cmts_on_user_files,"
    "total_cmnts_by_user,user_notes,others_reading_my_notes,cmts_on_user_notes,cmnts_rcvd_by_user,"
    "total_notes_read_by_user,commented_on_others_notes,total_rating_rcvd_on_notes,correct_attempted_assessments,"
    "unattempted_assessments,visited_assessments,notapplicable_assessments,incorrect_attempted_assessments,"
    "attempted_assessments,total_assessment_items"
)
PROGRESS_COLUMNS = _PROGRESS.split(",")
VISITS_COLUMNS = ["Username", "UserID"]

HEARTBEAT_BEGIN = "shala heartbeat"
HEARTBEAT_END = "end of heartbeat"
# What each part of a heartbeat must show, whoever wrote it: free, df, uptime, ps.
HEARTBEAT_SIGNS = (
    ("Mem:", "free -h"),
    ("Filesystem", "df -h"),
    ("load average", "uptime"),
    ("PID", "ps aux"),
)

MAX_JSON = 32 * 1024 * 1024  # bytes, of which the parser makes ten times as many; a real tool log has 50 KB
MAX_HEARTBEAT = 4 * 1024 * 1024  # bytes; a real one has 20 KB
MAX_BSON_DOCUMENT = 64 * 1024 * 1024  # bytes; MongoDB allows 16 MB, and its own files a little more
_MEDIA = re.compile(r"([0-9a-f])/([0-9a-f])/([0-9a-f])/([0-9a-f]{61})(\.[^/]*)?")

BLOCK = 1 << 18  # bytes that are read at once
MAX_FIELD = 1 << 27  # bytes of one field of a CSV


class BsonBroken(Exception):
    """A BSON file does not consist of whole documents; the text says where it breaks."""


def sql_dump_is_complete(dump: Path) -> Iterator[str]:
    """Yield a finding unless the dump ends with the trailer that pg_dumpall writes last."""
    size = dump.stat().st_size
    with dump.open("rb") as file:
        file.seek(max(0, size - 4096))
        if SQL_TRAILER not in file.read():
            yield "is empty" if not size else "ends before the dump-complete trailer"


def csv_is_whole(
    path: Path, columns: Sequence[str], *, further: bool = False, rectangular: bool = True
) -> Iterator[str]:
    """Yield findings unless the CSV has the columns (`further` may follow), whole rows and a CRLF end."""
    import csv

    csv.field_size_limit(MAX_FIELD)
    size = path.stat().st_size
    if not size:
        yield "is empty"
        return
    with path.open("rb") as file:
        file.seek(max(0, size - 2))
        if file.read() != b"\r\n":
            yield "does not end with a line end (CRLF): it was cut"
    if rectangular and _is_plainly_whole(path, columns, further):
        return
    try:
        with path.open(encoding="utf-8", newline="") as text:
            yield from _rows_are_whole(csv.reader(text, strict=True), columns, further, rectangular)
    except UnicodeDecodeError as error:
        yield f"is not UTF-8 (byte {error.start} of a block)"
    except csv.Error as error:
        yield f"is not a CSV: {error}"


def csv_has_rows(path: Path) -> Iterator[str]:
    """Yield a finding when nothing follows the header."""
    with path.open("rb") as file:
        file.readline()
        if not file.readline().strip():
            yield "holds only its header"


def count_bson(path: Path) -> int:
    """Return how many documents a BSON file holds, by walking their frames to the end. Raises BsonBroken."""
    size = path.stat().st_size
    count = position = begin = 0
    block = b""  # of the file, at `begin`
    with path.open("rb", buffering=0) as file:
        while position < size:
            if position + 4 > begin + len(block):
                block, begin = os.pread(file.fileno(), BLOCK, position), position
            if len(block) - (position - begin) < 4:
                raise BsonBroken(f"is cut in the length of document {count + 1} (byte {position})")
            length = int.from_bytes(block[position - begin : position - begin + 4], "little", signed=True)
            if not 5 <= length <= MAX_BSON_DOCUMENT:
                raise BsonBroken(f"has no document at byte {position} (length {length})")
            if position + length > size:
                raise BsonBroken(
                    f"is cut inside document {count + 1} ({position + length - size} bytes are missing)"
                )
            end = position + length - 1
            inside = end < begin + len(block)
            if block[end - begin] if inside else os.pread(file.fileno(), 1, end) != b"\0":
                raise BsonBroken(f"has a document without an end at byte {position}")
            position += length
            count += 1
    return count


def bson_is_whole(path: Path) -> Iterator[str]:
    """Yield a finding unless the file walks from document to document to its very end."""
    try:
        count_bson(path)
    except BsonBroken as error:
        yield str(error)


def json_parses(path: Path) -> Iterator[str]:
    """Yield a finding unless the file is one JSON text."""
    import json

    size = path.stat().st_size
    if not size:
        yield "is empty"
    elif size > MAX_JSON:
        yield f"is larger than {MAX_JSON} bytes: not read"
    else:
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            yield f"is not JSON: {error}"


def tar_gz_reads(path: Path, expected: Sequence[str] = ()) -> Iterator[str]:
    """Yield findings unless the archive reads to its end and holds something below each expected folder."""
    import tarfile
    import zlib

    missing = set(expected)
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                missing -= {name for name in missing if f"/{name}/" in f"/{member.name.removeprefix('./')}/"}
                if member.isreg():
                    content = archive.extractfile(member)
                    while content is not None and content.read(1 << 20):
                        pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        yield f"does not read to its end: {error}"
        return
    for name in sorted(missing):
        yield f"holds nothing below {name}/"


def heartbeat_is_complete(path: Path) -> Iterator[str]:
    """Yield findings unless all parts of a heartbeat are there, and the closing line where it is our own."""
    with path.open("rb") as file:
        text = file.read(MAX_HEARTBEAT + 1).decode("utf-8", "replace")
    if len(text) > MAX_HEARTBEAT:
        yield f"is larger than {MAX_HEARTBEAT} bytes: not read"
        return
    if not text.strip():
        yield "is empty"
        return
    missing = [name for sign, name in HEARTBEAT_SIGNS if sign not in text]
    if missing:
        yield f"has no {', '.join(missing)}"
    if text.startswith(HEARTBEAT_BEGIN) and not text.rstrip().endswith(HEARTBEAT_END):
        yield "was cut before its end"


def media_name_is_sha256(relative: str, sha256: str) -> Iterator[str]:
    """Yield a finding when the path promises a digest (h/h/h/<61 hex>.ext) and the content has another."""
    match = _MEDIA.fullmatch(relative)
    if match is not None and "".join(match.groups()[:4]) != sha256:
        yield "is not what its name promises (the name is the sha256 of the content)"


def is_not_empty(path: Path) -> Iterator[str]:
    """Yield a finding when there is nothing in the file."""
    if not path.stat().st_size:
        yield "is empty"


def _is_plainly_whole(path: Path, columns: Sequence[str], further: bool) -> bool:
    """Return whether a CSV without quotes is whole; False says nothing, then the parser decides.

    Counting commas is several times cheaper than parsing, and most files hold no quote.
    """
    commas = -1
    with path.open("rb") as file:
        for line in file:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                return False
            if b'"' in line or b"\0" in line or not line.endswith(b"\r\n") or line.count(b"\r") > 1:
                return False
            if commas < 0:
                shown = [name.removeprefix("\ufeff") for name in text[:-2].split(",")]
                if shown[: len(columns)] != list(columns) or (len(shown) > len(columns) and not further):
                    return False
                commas = len(shown) - 1
            elif line.count(b",") != commas or len(line) <= 2 or len(line) > MAX_FIELD:
                return False
    return commas >= 0


def _rows_are_whole(
    rows: Iterator[list[str]], columns: Sequence[str], further: bool, rectangular: bool
) -> Iterator[str]:
    header = next(rows, [])
    shown = [name.removeprefix("\ufeff") for name in header]
    if shown[: len(columns)] != list(columns) or (len(shown) > len(columns) and not further):
        yield f"has other columns than expected ({','.join(shown[:4])}...)"
        return
    if not rectangular:
        return
    ragged = [number for number, row in enumerate(rows, 2) if len(row) != len(header)]
    if ragged:
        rows_cut = counted(len(ragged), "row")
        yield f"has {rows_cut} with another number of fields than the header (first: row {ragged[0]})"
