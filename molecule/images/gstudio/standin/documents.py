"""The documents of the gStudio and qbank databases, as a pure function of school, sizes and day."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

import bson
from bson import ObjectId

from .chance import COURSE, Oid, oid, prose, stream
from .course import CREATED, Unit, units
from .people import User, factory_users, school_users
from .school import INSTALL_DAY, School, Sizes, instant

GSTUDIO = "gstudio-mongodb"
QBANK = (
    "assessment",
    "assessment_authoring",
    "hierarchy",
    "id",
    "logging",
    "relationship",
    "repository",
    "resource",
)
Document = dict[str, Any]
Databases = dict[str, dict[str, list[Document]]]


@dataclass(frozen=True)
class Visit:
    """One visit of a user to an activity."""

    user: User
    unit: Unit
    activity: int
    day: int
    when: datetime  # wall clock of India, stored as if it were UTC
    seconds: float
    correct: bool
    buddies: tuple[str, ...]


def _wall(epoch: int, microseconds: int = 0) -> datetime:
    """Return India's wall clock without a zone: that is how gStudio stores its times."""
    clock = datetime.fromtimestamp(epoch, timezone.utc) + timedelta(hours=5, minutes=30)
    return clock.replace(tzinfo=None, microsecond=microseconds)


def learners(school: School, sizes: Sizes, day: int) -> list[User]:
    """Return who uses the server: its own users and the shared sp100 ones, without the administrator."""
    return school_users(school, sizes, day) + factory_users()[1:]


@lru_cache(maxsize=64)
def visits_of_day(school: School, sizes: Sizes, day: int) -> list[Visit]:
    """Return the visits of one school day (1, 2, ...), or all of those before, for day 0."""
    people = learners(school, sizes, day)
    course = units(sizes.units)[:-1]  # nobody has opened the last unit: it gets no CSV
    rng = stream(school.server_id, "visits", day)
    count = (
        len(people) * sizes.visits_per_user if day == 0 else max(3, len(people) * sizes.visits_per_user // 50)
    )
    span = instant(0) - int(INSTALL_DAY.timestamp()) - 86_400
    visits = []
    for _ in range(count):
        user = rng.choice(people)
        start = instant(0) - 3600 - rng.randrange(span) if day == 0 else instant(day, rng.randrange(4 * 3600))
        buddies = (rng.choice(people).username,) if rng.random() < 0.2 else ()
        visits.append(
            Visit(
                user,
                rng.choice(course),
                rng.randrange(9),
                day,
                _wall(start, rng.randrange(1000) * 1000),
                round(rng.uniform(4, 900), 3),
                rng.random() < 0.6,
                tuple(name for name in buddies if name != user.username),
            )
        )
    return sorted(visits, key=lambda visit: (visit.when, visit.user.id))


@lru_cache(maxsize=4)
def visits_until(school: School, sizes: Sizes, day: int) -> list[Visit]:
    """Return all visits up to and with that day."""
    return [visit for past in range(day + 1) for visit in visits_of_day(school, sizes, past)]


def nodes_count(sizes: Sizes) -> int:
    """Return how many of the nodes on day 0 are the course's, alike in every school: four in five."""
    return sizes.nodes * 4 // 5


def node_count_on(sizes: Sizes, day: int) -> int:
    """Return the number of nodes on a day: 30 new ones a day at scale 1, never less than one."""
    return sizes.nodes + day * max(1, round(30 * sizes.scale))


def node(school: School, sizes: Sizes, index: int, edits: int = 0) -> Document:
    """Return node number `index` after so many edits. The first four fifths belong to the course."""
    shared = index < nodes_count(sizes)
    seed = COURSE if shared else school.server_id
    rng = stream(seed, "node", index)
    when = CREATED + 500_000 + index * 61 if shared else int(INSTALL_DAY.timestamp()) + index * 61
    if index >= sizes.nodes:
        when = instant(1 + (index - sizes.nodes) // max(1, round(30 * sizes.scale)), index % 3000)
    name = prose(rng, 3)[:-1]
    return {
        "_id": oid(seed, "node", index, when=when),
        "_type": "GSystem",
        "name": name,
        "altnames": name.lower(),
        "content": f"<p>{prose(rng, rng.randrange(60, 700))}</p>",
        "created_at": _wall(when),
        "created_by": 1,
        "last_update": _wall(when + edits * 86_400),
        "modified_by": 1,
        "contributors": [1],
        "language": ["en", "English"],
        "member_of": [oid("type", "Page", when=CREATED)],
        "group_set": [units(4)[index % 4].id],
        "status": "PUBLISHED",
        "rating": [],
        "snapshot": {},
        "tags": [rng.choice(("story", "game", "quiz")), f"edit {edits}"],
        "url": f"page/{index}",
    }


def edited_nodes(school: School, sizes: Sizes, day: int) -> list[int]:
    """Return the nodes edited on a day: one in a hundred, never less than one."""
    rng = stream(school.server_id, "edits", day)
    existing = node_count_on(sizes, day - 1)
    return sorted(rng.sample(range(existing), max(1, existing // 100)))


def edits_until(school: School, sizes: Sizes, day: int) -> dict[int, int]:
    """Return how often each node was edited up to and with that day; a third of them once before day 0."""
    rng = stream(COURSE, "early edits")
    edits = {index: 1 for index in range(sizes.nodes) if rng.random() < 0.33}
    for past in range(1, day + 1):
        for index in edited_nodes(school, sizes, past):
            edits[index] = edits.get(index, 0) + 1
    return edits


def node_text(document: Document) -> str:
    """Return the JSON that rcs-repo holds for a node."""
    return json.dumps(document, sort_keys=True, indent=4, default=str)


def _benchmark(visit: Visit, number: int) -> Document:
    lesson, activity = visit.unit.activities[visit.activity]
    return {
        "_id": oid("visit", visit.user.username, visit.day, number, when=int(visit.when.timestamp())),
        "_type": "Benchmark",
        "name": "activity_player",
        "user": visit.user.username,
        "action": "activity_player",
        "calling_url": f"/{visit.unit.id}/course/activity_player/{lesson.id}/{activity.id}/",
        "group": visit.unit.id,
        "parameters": "4",
        "has_data": {"POST": False, "GET": False},
        "session_key": oid("session", visit.user.username, visit.when.date(), when=0)[:24].swapcase()
        + "abcdefgh",
        "time_taken": f"{visit.seconds:.3f}",
        "last_update": visit.when,
        "locale": "en",
        "buddies": list(visit.buddies),
    }


def benchmarks(visits: list[Visit]) -> list[Document]:
    """Return one Benchmarks document for each visit."""
    return [_benchmark(visit, number) for number, visit in enumerate(visits)]


def counters(visits: list[Visit]) -> list[Document]:
    """Return one Counters document for each user and unit that a visit joins."""
    found: dict[tuple[int, Oid], Document] = {}
    for visit in visits:
        key = (visit.user.id, visit.unit.id)
        document = found.get(key)
        if document is None:
            document = found[key] = {
                "_id": oid("counter", *key, when=int(INSTALL_DAY.timestamp())),
                "_type": "Counter",
                "user_id": visit.user.id,
                "auth_id": oid("author", visit.user.id, when=CREATED),
                "group_id": visit.unit.id,
                "enrolled": True,
                "is_group_member": True,
                "visited_nodes": {},
                "page": {"visits": 0},
                "file": {"created": 0, "visits_gained": 0, "visits_on_others_files": 0, "comments_gained": 0},
                "quiz": {"attempted": 0, "correct": 0, "incorrect": 0},
                "group_points": 0,
            }
        activity = visit.unit.activities[visit.activity][1]
        visited = document["visited_nodes"]
        visited[activity.id] = visited.get(activity.id, 0) + 1
        document["page"]["visits"] += 1
        document["last_update"] = visit.when
        quiz = document["quiz"]
        quiz["attempted"] += 1
        quiz["correct" if visit.correct else "incorrect"] += 1
        if visit.seconds > 800:
            document["file"]["created"] += 1
        document["group_points"] += 5
    return list(found.values())


def gstudio(
    school: School, sizes: Sizes, media: list[tuple[str, int]], day: int = 0
) -> dict[str, list[Document]]:
    """Return the collections of the gStudio database; `media` lists (relative path, size) of the files."""
    visits = visits_until(school, sizes, day)
    edits = edits_until(school, sizes, day)
    course = units(sizes.units)
    groups: list[Document] = [
        {
            "_id": unit.id,
            "_type": "Group",
            "name": unit.name,
            "module": unit.module,
            "status": "PUBLISHED",
            "created_at": _wall(CREATED),
            "group_type": "PUBLIC",
            "language": ["en", "English"],
            "collection_set": [lesson.id for lesson in unit.lessons],
            "order": number,
        }
        for number, unit in enumerate(course)
    ]
    parts: list[Document] = []
    for unit in course:
        parts += [
            {"_id": part.id, "_type": "GSystem", "name": part.name, "kind": "lesson"} for part in unit.lessons
        ]
        parts += [
            {"_id": part.id, "_type": "GSystem", "name": part.name, "kind": "activity", "lesson": lesson.id}
            for lesson, part in unit.activities
        ]
    pages = [node(school, sizes, i, edits.get(i, 0)) for i in range(node_count_on(sizes, day))]
    return {
        "Nodes": groups + parts + pages,
        "Triples": [
            {
                "_id": oid("triple", page["_id"], when=CREATED),
                "_type": "GAttribute",
                "subject": page["_id"],
                "attribute_type": oid("type", "time", when=CREATED),
                "object_value": index,
                "status": "PUBLISHED",
            }
            for index, page in enumerate(pages[::2])
        ],
        "Benchmarks": benchmarks(visits),
        "Counters": counters(visits),
        "Filehives": [
            {
                "_id": oid("filehive", path, when=CREATED),
                "_type": "Filehive",
                "relurl": path,
                "length": size,
                "filename": path.replace("/", ""),
                "mime_type": "application/octet-stream",
                "first_uploader": 1,
            }
            for path, size in media
        ],
        "Buddies": [
            {
                "_id": oid("buddies", number, visit.user.username, visit.day, when=CREATED),
                "_type": "Buddy",
                "loggedin_userid": visit.user.id,
                "session_key": f"{number:032x}",
                "starts_at": visit.when,
                "buddy_in_out": {name: [{"in": visit.when, "out": None}] for name in visit.buddies},
            }
            for number, visit in enumerate(visits)
            if visit.buddies
        ],
        "analytics_collection": [
            {
                "_id": oid("analytics", number, school.server_id, when=CREATED),
                "user": visit.user.username,
                "timestamp": visit.when,
                "action": {"phrase": "viewed an activity"},
            }
            for number, visit in enumerate(visits[:40])
        ],
    }


def _osid(kind: str, identifier: str) -> str:
    return f"{kind}%3A{identifier}%40ODL.MIT.EDU"


def qbank(school: School, sizes: Sizes, day: int = 0) -> Databases:
    """Return the eight databases of qbank."""
    bank = oid("bank", when=CREATED)
    items = [oid("item", number, when=CREATED) for number in range(max(6, sizes.asset_files // 2))]
    assets = [oid("asset", number, when=CREATED) for number in range(sizes.asset_files)]
    visits = [visit for visit in visits_until(school, sizes, day) if visit.activity % 3 == 0]
    taken = [oid("taken", visit.user.id, number, when=CREATED) for number, visit in enumerate(visits)]
    course = units(sizes.units)

    def named(kind: str, ids: list[Oid]) -> list[Document]:
        return [
            {
                "_id": one,
                "displayName": {"text": f"{kind} {number}", "languageTypeId": "639-2%3AENG%40ISO"},
                "genusTypeId": _osid("default", "DEFAULT"),
                "assignedBankIds": [_osid("assessment.Bank", bank)],
            }
            for number, one in enumerate(ids)
        ]

    offered = [oid("offered", unit.id, when=CREATED) for unit in course]
    return {
        "assessment": {
            "Assessment": named("Assessment", [oid("assessment", unit.id, when=CREATED) for unit in course]),
            "AssessmentOffered": named("Offered", offered),
            "AssessmentSection": [
                {
                    "_id": oid("section", one, when=CREATED),
                    "assessmentTakenId": _osid("assessment.AssessmentTaken", one),
                    "questions": [
                        {"itemId": _osid("assessment.Item", item), "responses": [None]} for item in items[:3]
                    ],
                }
                for one in taken
            ],
            "AssessmentTaken": [
                {
                    "_id": one,
                    "takingAgentId": _osid("authentication.Agent", visit.user.username),
                    "actualStartTime": visit.when,
                    "completionTime": visit.when + timedelta(seconds=visit.seconds),
                    "assessmentOfferedId": _osid(
                        "assessment.AssessmentOffered", offered[course.index(visit.unit)]
                    ),
                }
                for one, visit in zip(taken, visits, strict=True)
            ],
            "Bank": named("Bank", [bank]),
            "Item": named("Item", items),
        },
        "assessment_authoring": {
            "AssessmentPart": named("Part", [oid("part", unit.id, when=CREATED) for unit in course]),
            "Bank": named("Bank", [bank]),
        },
        "hierarchy": {"Hierarchy": named("Hierarchy", [oid("hierarchy", n, when=CREATED) for n in range(2)])},
        "id": {
            kind: [{"_id": oid(kind, n, when=CREATED), "aliasIds": [f"{kind}{n}"]} for n in range(count)]
            for kind, count in (
                ("assessmentIds", len(taken)),
                ("hierarchyIds", 2),
                ("repositoryIds", len(assets)),
                ("resourceIds", 3),
            )
        },
        "logging": {
            "Log": named("Log", [oid("log", when=CREATED)]),
            "LogEntry": [
                {
                    "_id": oid("entry", one, when=CREATED),
                    "timestamp": visit.when,
                    "agentId": visit.user.username,
                    "text": {"text": '{"action": "tool event"}'},
                }
                for one, visit in zip(taken, visits, strict=True)
            ],
        },
        "relationship": {
            "Family": named("Family", [oid("family", when=CREATED)]),
            "Relationship": named("Relationship", [oid("relationship", n, when=CREATED) for n in range(6)]),
        },
        "repository": {
            "Asset": named("Asset", assets),
            "Repository": named("Repository", [oid("repo", when=CREATED)]),
        },
        "resource": {
            "Bin": named("Bin", [oid("bin", when=CREATED)]),
            "Resource": named("Resource", [oid("resource", n, when=CREATED) for n in range(3)]),
        },
    }


def databases(school: School, sizes: Sizes, media: list[tuple[str, int]], day: int = 0) -> Databases:
    """Return everything that answers on port 27017."""
    return {GSTUDIO: gstudio(school, sizes, media, day), **qbank(school, sizes, day)}


def with_object_ids(value: Any) -> Any:
    """Return the value with every Oid made a real ObjectId."""
    if isinstance(value, Oid):
        return ObjectId(value)
    if isinstance(value, dict):
        return {str(key): with_object_ids(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_object_ids(inner) for inner in value]
    return value


def bson_files(collections: dict[str, list[Document]], database: str) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, bytes) of a mongodump of one database."""
    for name, documents in collections.items():
        yield f"{name}.bson", b"".join(bson.encode(with_object_ids(one)) for one in documents)
        yield f"{name}.metadata.json", metadata(database, name)


def metadata(database: str, collection: str) -> bytes:
    """Return the metadata.json that mongodump 3.2 writes beside a collection."""
    index = {"v": 1, "key": {"_id": 1}, "name": "_id_", "ns": f"{database}.{collection}"}
    return json.dumps({"options": {}, "indexes": [index]}, separators=(",", ":")).encode()
