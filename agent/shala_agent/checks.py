"""Content checks: decide whether a file is whole, by looking at it and never at an exit code.

Every check yields findings in plain words and nothing when the file is whole. Sources: facts/gstudio.md 2 and
4.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from shala_agent.outcome import counted

SQL_TRAILER = b"-- PostgreSQL database cluster dump complete"
# Since the releases of 2018 pg_dump names the schema; the platform's script still looks for the second form.
USERS_TABLE = (b"COPY public.auth_user (", b"COPY auth_user (")
GIT_COMMANDS = ("status", "diff", "log -5", "branch")
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

MAX_JSON = 4 * 1024 * 1024  # bytes, of which the parser makes twenty times as many; a real tool log has 50 KB
MAX_SETTINGS = 256 * 1024  # bytes, of which the parser makes five hundred times as many
MAX_HEARTBEAT = 4 * 1024 * 1024  # bytes; a real one has 20 KB
MAX_BSON_DOCUMENT = 64 * 1024 * 1024  # bytes; MongoDB allows 16 MB, and its own files a little more
_LENGTH = struct.Struct("<i").unpack_from  # of a BSON document, at its beginning
_MEDIA = re.compile(r"([0-9a-f])/([0-9a-f])/([0-9a-f])/([0-9a-f]{61})(\.[^/]*)?")

BLOCK = 1 << 18  # bytes that are read at once
MAX_FIELD = 1 << 20  # bytes of one field of a CSV
STAMP = re.compile(r"-(\d{8}-\d\dh\d\dm)(?=\.csv$)")  # what tells one run's CSV from the next one's
EMPTY = "is empty"
CUT = "does not end with a line end (CRLF): it was cut"
MAX_LINE = 1 << 20  # bytes of one line: a damaged file may have no line end in gigabytes


UNREAD = ": not read"  # ends a finding that says nothing about the content


def is_fault(finding: str) -> bool:
    """Return whether a finding says that a file is not whole, and not that nobody has looked."""
    return not finding.endswith(UNREAD)


class BsonBroken(Exception):
    """A BSON file does not consist of whole documents; the text says where it breaks."""


def sql_dump_is_complete(dump: Path) -> Iterator[str]:
    """Yield a finding unless the dump ends with the trailer that pg_dumpall writes last."""
    size = dump.stat().st_size
    with dump.open("rb") as file:
        file.seek(max(0, size - 4096))
        if SQL_TRAILER not in file.read():
            yield "is empty" if not size else "ends before the dump-complete trailer"


def sql_dump_holds_accounts(dump: Path) -> Iterator[str]:
    """Yield findings unless a dump of the cluster makes roles, and has the table of users with rows."""
    with dump.open("rb") as file:
        if not any(line.startswith((b"CREATE ROLE ", b"ALTER ROLE ")) for line in _lines(file)):
            yield "makes no roles: it is no dump of the whole cluster"
    if not count_users(dump):
        yield "has no users: the table auth_user is empty, or not there"


def settings_parse(path: Path) -> Iterator[str]:
    """Yield a finding unless a settings file parses. It is never run.

    Python 2's own statements are let pass: then only what no Python takes is found (a quote in a name).
    """
    import ast
    import io
    import tokenize

    if path.stat().st_size > MAX_SETTINGS:
        yield f"is larger than {MAX_SETTINGS} bytes: it was damaged"
        return
    raw = path.read_bytes()
    if not raw.strip():
        yield "is empty"
        return
    if b"\0" in raw:
        yield "holds zero bytes: it was damaged"
        return
    try:
        source = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        yield f"is not UTF-8 (byte {error.start})"
        return
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        try:
            for token in tokenize.generate_tokens(io.StringIO(source).readline):
                if token.type == tokenize.ERRORTOKEN and token.string.strip() not in ("", "?", "$", "!"):
                    yield f"line {token.start[0]} is no Python: a quote too many, or too few"
                    return
        except (tokenize.TokenError, SyntaxError, ValueError) as error:
            yield f"is no Python: {error.args[0]} (was it cut?)"


def git_log_is_complete(path: Path) -> Iterator[str]:
    """Yield a finding unless each repository in the log has all four commands."""
    text = path.read_text(encoding="utf-8", errors="replace")
    repositories = text.split("\n# /")[1:]
    if not repositories:
        yield "names no repository"
    for repository in repositories:
        missing = [name for name in GIT_COMMANDS if f"## git {name}" not in repository]
        if missing:
            yield f"/{repository.splitlines()[0]} lacks git {', git '.join(missing)}"


def csv_is_whole(
    path: Path, columns: Sequence[str], *, further: bool = False, rectangular: bool = True
) -> Iterator[str]:
    """Yield findings unless the CSV has the columns (`further` may follow), whole rows and a CRLF end."""
    import csv

    csv.field_size_limit(MAX_FIELD)
    size = path.stat().st_size
    if not size:
        yield EMPTY
        return
    with path.open("rb") as file:
        file.seek(max(0, size - 2))
        if file.read() != b"\r\n":
            yield CUT
    if rectangular and _is_plainly_whole(path, columns, further):
        return
    try:
        with path.open(encoding="utf-8", newline="") as text:
            rows = csv.reader(csv_lines(text), strict=True)
            yield from _rows_are_whole(rows, columns, further, rectangular)
    except UnicodeDecodeError as error:
        yield f"is not UTF-8 (byte {error.start} of a block)"
    except csv.Error as error:
        yield f"is not a CSV: {error}"


def csv_lines(text: TextIO) -> Iterator[str]:
    """Yield the lines of a CSV for its reader. Raises csv.Error for one that is longer than any is."""
    import csv

    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise csv.Error(f"it has a line longer than {MAX_LINE} bytes")
        yield line


def csv_has_rows(path: Path) -> Iterator[str]:
    """Yield a finding when nothing follows the header."""
    with path.open("rb") as file:
        file.readline(MAX_LINE)
        if not file.readline(MAX_LINE).strip():
            yield "holds only its header"


def count_rows(path: Path) -> int:
    """Return how many rows a whole CSV has below its header."""
    import csv

    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8", newline="") as text:
        return max(0, sum(1 for _ in csv.reader(csv_lines(text))) - 1)


def count_users(dump: Path) -> int:
    """Return how many rows the table auth_user has in a dump; 0 when it has none."""
    rows, inside = 0, False
    with dump.open("rb") as file:
        for line in _lines(file):
            if inside and line.startswith(b"\\."):
                break
            rows += inside
            inside = inside or line.startswith(USERS_TABLE)
    return rows


def dropped(now: int, before: int, largest_drop: int) -> bool:
    """Return whether there is less than before by more than `largest_drop` percent."""
    return now * 100 < before * (100 - largest_drop)


def count_bson(path: Path) -> int:
    """Return how many documents a BSON file holds, by walking their frames to the end. Raises BsonBroken."""
    size = path.stat().st_size
    count = position = 0
    with path.open("rb", buffering=0) as file:
        while position < size:
            block = os.pread(file.fileno(), BLOCK, position)
            documents, length = _whole_documents(block)
            if not documents:  # it is broken, or larger than a block
                length = _length_of_document(file.fileno(), block, position, size, count)
                documents = 1
            position += length
            count += documents
    return count


def _whole_documents(block: bytes) -> tuple[int, int]:
    """Return how many whole documents a block begins with, and their bytes together."""
    count = position = 0
    last = len(block)
    while position + 4 <= last:
        length = _LENGTH(block, position)[0]
        end = position + length
        if length < 5 or end > last or block[end - 1]:
            break
        position = end
        count += 1
    return count, position


def _length_of_document(descriptor: int, block: bytes, position: int, size: int, before: int) -> int:
    """Return the length of the document that a block at `position` begins with. Raises BsonBroken."""
    if len(block) < 4:
        raise BsonBroken(f"is cut in the length of document {before + 1} (byte {position})")
    length: int = _LENGTH(block)[0]
    if not 5 <= length <= MAX_BSON_DOCUMENT:
        raise BsonBroken(f"has no document at byte {position} (length {length})")
    if position + length > size:
        raise BsonBroken(
            f"is cut inside document {before + 1} ({position + length - size} bytes are missing)"
        )
    if os.pread(descriptor, 1, position + length - 1) != b"\0":
        raise BsonBroken(f"has a document without an end at byte {position}")
    return length


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
        yield f"is larger than {MAX_JSON} bytes{UNREAD}"
    else:
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            yield f"is not JSON: {error}"


def rcs_is_whole(path: Path) -> Iterator[str]:
    """Yield a finding unless a history (`,v`) has its beginning and the end of its last text."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(max(0, size - 2))
        tail = file.read()
    if not size:
        yield "is empty"
    elif head != b"head" or tail != b"@\n":
        yield "is no whole RCS history: it was damaged or cut"


def tar_gz_reads(path: Path, expected: Sequence[str] = ()) -> Iterator[str]:
    """Yield findings unless the archive reads to its end and holds something below each expected folder."""
    import tarfile
    import zlib

    missing = set(expected)
    try:
        with tarfile.open(path, "r|gz", bufsize=BLOCK) as archive:
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
        yield f"is larger than {MAX_HEARTBEAT} bytes{UNREAD}"
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


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines, one that is longer than any is in pieces."""
    return iter(lambda: file.readline(MAX_LINE), b"")


def _is_plainly_whole(path: Path, columns: Sequence[str], further: bool) -> bool:
    """Return whether a CSV without quotes is whole; False says nothing, then the parser decides.

    Counting the commas of a block of lines is many times cheaper than parsing, and most files hold no quote.
    """
    commas, rest = -1, b""
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            block, end, rest = (rest + block).rpartition(b"\r\n")
            lines = block.split(b"\r\n")
            if not end or b"" in lines or b'"' in block or b"\0" in block:
                return False
            if not block.count(b"\r") == block.count(b"\n") == len(lines) - 1:
                return False
            try:
                text = block.decode("utf-8")
            except UnicodeDecodeError:
                return False
            if commas < 0:
                shown = [name.removeprefix("\ufeff") for name in text.partition("\r\n")[0].split(",")]
                if shown[: len(columns)] != list(columns) or (len(shown) > len(columns) and not further):
                    return False
                commas = len(shown) - 1
            if {line.count(b",") for line in lines} != {commas}:
                return False
    return commas >= 0 and not rest


def _rows_are_whole(
    rows: Iterator[list[str]], columns: Sequence[str], further: bool, rectangular: bool
) -> Iterator[str]:
    header = next(rows, [])
    if not any(header):
        yield "has no header"
        return
    shown = [name.removeprefix("\ufeff") for name in header]
    if shown[: len(columns)] != list(columns) or (len(shown) > len(columns) and not further):
        yield f"has other columns than expected ({','.join(shown[:4])}...)"
        return
    ragged, first = 0, 0  # all are read, to find what is no CSV
    for number, row in enumerate(rows, 2):
        if rectangular and len(row) != len(header):
            ragged, first = ragged + 1, first or number
    if ragged:
        rows_cut = counted(ragged, "row")
        yield f"has {rows_cut} with another number of fields than the header (first: row {first})"
