"""The two exports of gStudio: progress CSVs and activity timestamps. Pure: documents in, bytes out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from .course import slugify

PROGRESS_COLUMNS = (
    "server_id",
    "school_name",
    "school_code",
    "module_name",
    "unit_name",
    "username",
    "user_id",
    "first_name",
    "last_name",
    "roll_no",
    "grade",
    "enrollment_status",
    "buddy_userids",
    "buddy_usernames",
    "total_lessons",
    "lessons_visited",
    "percentage_lessons_visited",
    "total_activities",
    "activities_visited",
    "percentage_activities_visited",
    "total_quizitems",
    "visited_quizitems",
    "attempted_quizitems",
    "unattempted_quizitems",
    "correct_attempted_quizitems",
    "notapplicable_quizitems",
    "incorrect_attempted_quizitems",
    "user_files",
    "total_files_viewed_by_user",
    "other_viewing_my_files",
    "unique_users_commented_on_user_files",
    "total_rating_rcvd_on_files",
    "commented_on_others_files",
    "cmts_on_user_files",
    "total_cmnts_by_user",
    "user_notes",
    "others_reading_my_notes",
    "cmts_on_user_notes",
    "cmnts_rcvd_by_user",
    "total_notes_read_by_user",
    "commented_on_others_notes",
    "total_rating_rcvd_on_notes",
    "correct_attempted_assessments",
    "unattempted_assessments",
    "visited_assessments",
    "notapplicable_assessments",
    "incorrect_attempted_assessments",
    "attempted_assessments",
    "total_assessment_items",
)
TIMESTAMP_COLUMNS = (
    "Unit",
    "Lesson",
    "Activity",
    "Language",
    "VisitedOn",
    "OutTime",
    "OutAction",
    "TimeSpentInSeconds",
    "Buddies",
)


def minute(when: datetime) -> str:
    """Return the time part of a CSV's name, e.g. 20180814-17h33m: the next run in that minute overwrites."""
    return when.strftime("%Y%m%d-%Hh%Mm")


def progress_name(server_name: str, unit_slug: str, when: datetime) -> str:
    """Return the name of a unit's progress CSV."""
    return f"{server_name}-{unit_slug}-{minute(when)}.csv"


def timestamps_name(server_id: str, username: str, when: datetime) -> str:
    """Return the name of a user's activity timestamps (without the school code: so does the original)."""
    return f"{server_id}-{username}-activity-visits-{minute(when)}.csv"


def python2_list(values: Iterable[str]) -> str:
    """Return the repr of a list of unicode strings under Python 2."""
    return "[" + ", ".join(f"u'{value}'" for value in values) + "]"


def table(rows: Iterable[Sequence[object]]) -> bytes:
    """Return rows as Python 2's csv writes them: UTF-8, CRLF."""
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def progress_columns(activities: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the header of a unit's CSV: 49 fixed columns and one for each activity."""
    return [*PROGRESS_COLUMNS, *(f"{one['name']} [{one['_id']}]" for one in activities)]


def progress_row(
    school: tuple[str, str, str],
    unit: Mapping[str, Any],
    lessons: int,
    activities: Sequence[Mapping[str, Any]],
    user: Sequence[str],
    counter: Mapping[str, Any],
) -> list[object]:
    """Return a row; `school` is (server id, name, code), `user` (id, username, first name, last name)."""
    visited = counter["visited_nodes"]
    seen = [one for one in activities if str(one["_id"]) in visited]
    seen_lessons = len({str(one["lesson"]) for one in seen})
    quiz = counter["quiz"]
    total_quiz = len(activities)
    attempted = min(total_quiz, quiz["attempted"])
    correct = min(attempted, quiz["correct"])
    files = counter["file"]["created"]
    fixed: dict[str, object] = {
        "server_id": school[0],
        "school_name": school[1],
        "school_code": school[2],
        "module_name": python2_list([unit["module"]]),
        "unit_name": unit["name"],
        "username": user[1],
        "user_id": user[0],
        "first_name": user[2],
        "last_name": user[3],
        "roll_no": int(user[0]) % 1000,
        "grade": 8 + int(user[0]) % 2,
        "enrollment_status": "Yes",
        "buddy_userids": "[]",
        "buddy_usernames": "[]",
        "total_lessons": lessons,
        "lessons_visited": seen_lessons,
        "percentage_lessons_visited": round(100 * seen_lessons / max(1, lessons), 2),
        "total_activities": len(activities),
        "activities_visited": len(seen),
        "percentage_activities_visited": round(100 * len(seen) / max(1, len(activities)), 2),
        "total_quizitems": total_quiz,
        "visited_quizitems": attempted,
        "attempted_quizitems": attempted,
        "unattempted_quizitems": total_quiz - attempted,
        "correct_attempted_quizitems": correct,
        "incorrect_attempted_quizitems": attempted - correct,
        "user_files": files,
        "total_files_viewed_by_user": counter["page"]["visits"],
    }
    return [
        *(fixed.get(column, 0) for column in PROGRESS_COLUMNS),
        *(visited.get(str(one["_id"]), 0) for one in activities),
    ]


def timestamp_rows(visits: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[list[object]]:
    """Return one user's rows; `visits` are Benchmarks documents by time, `names` those of nodes by id."""
    rows: list[list[object]] = []
    for number, visit in enumerate(visits):
        _, unit, _, _, lesson, activity, _ = visit["calling_url"].split("/")
        left: datetime = visit["last_update"] + timedelta(seconds=float(visit["time_taken"]))
        last = number + 1 == len(visits)
        rows.append(
            [
                *(slugify(names.get(one, "")) for one in (unit, lesson, activity)),
                visit["locale"],
                _moment(visit["last_update"]),
                "NA" if last else _moment(left),
                "NA" if last else ("Another activity", "Course home", "Logout")[number % 3],
                "NA" if last else float(visit["time_taken"]),
                python2_list(visit["buddies"]) if visit["buddies"] else "NA",
            ]
        )
    return rows


def _moment(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S.%f")
