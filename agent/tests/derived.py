"""What gStudio derives, in its own form: columns, CRLF, Python 2's lists, NA (facts/gstudio.md 2)."""

from __future__ import annotations

import csv
import io
import struct
from collections.abc import Sequence

from agent_school import School
from shala_agent.checks import ACTIVITY_COLUMNS, PROGRESS_COLUMNS, SQL_TRAILER

PROGRESS = "data/gstudio-exported-users-analytics-csvs"
ACTIVITY = "data/activity-timestamp-csvs"
HASH = "pbkdf2_sha256$12000$abcdefghijkl$c2VjcmV0"


def table(rows: Sequence[Sequence[object]]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def progress_row(user: str, unit: str = "Unit 0", **fields: object) -> list[object]:
    said: dict[str, object] = {
        "server_id": "mz17",
        "school_name": "Hill School",
        "school_code": "2031017",
        "module_name": "[u'English Beginner']",
        "unit_name": unit,
        "username": user,
        "user_id": 17995,
        "first_name": "Lari",
        "last_name": "Mota",
        "roll_no": "007",
        "grade": 8,
        "enrollment_status": "Yes",
        "buddy_userids": "[]",
        "buddy_usernames": "[]",
        "total_lessons": 4,
        "lessons_visited": 1,
        "percentage_lessons_visited": 25.0,
        **fields,
    }
    return [*(said.get(column, 0) for column in PROGRESS_COLUMNS), 2]


def progress(school: School, rows: Sequence[Sequence[object]], unit: str = "eb-unit0", when: str = "17h33m"):
    header = [*PROGRESS_COLUMNS, "Quiz [5a5a5a5a5a5a5a5a5a5a5a5a]"]
    return school.write(f"{PROGRESS}/2031017-mz17-{unit}-20180814-{when}.csv", table([header, *rows]))


def visit(started: str, left: str = "NA") -> list[object]:
    ended = [left, "Logout", 12.5] if left != "NA" else ["NA", "NA", "NA"]
    return ["eb-unit0", "lesson-1", "quiz", "en", started, *ended, "[u'black-rhino-mz17']"]


def visits(school: School, user: str, rows: Sequence[Sequence[object]], when: str = "17h37m"):
    name = f"mz17-{user}-activity-visits-20180814-{when}.csv"
    return school.write(f"{ACTIVITY}/{name}", table([ACTIVITY_COLUMNS, *rows]))


def dump(school: School, users: Sequence[tuple[int, str, str, str]]):
    rows = "".join(
        f"{number}\t{HASH}\t2018-12-01 10:00:00+05:30\tf\t{name}\t{first}\t{last}\t{name}@example.org\tf\tt\t"
        "2018-08-14 10:00:00+05:30\n"
        for number, name, first, last in users
    )
    text = (
        "CREATE ROLE glab;\nCOPY public.auth_user (id, password, last_login, is_superuser, username,"
        " first_name, last_name, email, is_staff, is_active, date_joined) FROM stdin;\n"
        f"{rows}\\.\n"
    )
    return school.write("data/postgres-dump/pg_dump_all.sql", text.encode() + SQL_TRAILER + b"\n")


def taken(school: School, *documents: bytes):
    return school.write("data/.shala/db/assessment/AssessmentTaken.bson", b"".join(documents))


def assessment(id_: str, user: str, started: int = 1_544_762_400_000) -> bytes:
    agent = f"authentication.Agent%3A{user}%40ODL.MIT.EDU"
    offered = f"assessment.AssessmentOffered%3A{'5b' * 12}%40ODL.MIT.EDU"
    return document(
        b"\x07_id\0" + bytes.fromhex(id_),
        text("takingAgentId", agent),
        text("assessmentOfferedId", offered),
        b"\x09actualStartTime\0" + struct.pack("<q", started),
        b"\x0acompletionTime\0",
        b"\x01score\0" + struct.pack("<d", 0.5),
    )


def text(name: str, value: str) -> bytes:
    raw = value.encode() + b"\0"
    return b"\x02" + name.encode() + b"\0" + struct.pack("<i", len(raw)) + raw


def document(*fields: bytes) -> bytes:
    body = b"".join(fields) + b"\0"
    return struct.pack("<i", len(body) + 4) + body
