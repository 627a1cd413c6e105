"""The files of /data and of the assessment datastore: one seed always gives the same bytes and times."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from . import documents, exports, revisions, sql
from .chance import COURSE, oid, prose, stream
from .course import CREATED, units
from .people import User, factory_users, school_users
from .school import INSTALL_DAY, IST, School, Sizes, instant

PAGE = 4096
EXTENSIONS = ("png", "jpg", "mp3", "mp4", "pdf", "svg", "webm", "html")
# Sizes of media files as parts of the mean; their own mean is 1.
SHAPE = (0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.5, 2.5)
TOOLS = (
    "ages_puzzle",
    "coins_puzzle",
    "factorisation",
    "Food_sharing_tool",
    "policesquad",
    "Ice-cubes-in-lemonade",
    "AstRoamer_Element_Hunt_Activity",
    "ratio_patterns",
)
PAGES = ("home", "static/css", "media", "course")
STATUSES = (200, 200, 200, 304, 404)
COLLECTION_FILES = ("collection-0", "collection-2", "collection-4", "index-1", "index-3")


@dataclass
class Tree:
    """One server's files: `root` is its /data, `datastore` holds repository and studentResponseFiles."""

    root: Path
    datastore: Path
    school: School
    sizes: Sizes
    day: int = 0

    @property
    def seed(self) -> str:
        """What all that is this school's own hangs on."""
        return self.school.server_id

    def put(self, path: Path | str, content: bytes, when: int) -> Path:
        """Write a file whose time is `when`."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        os.utime(target, (when, when))
        return target

    def users(self) -> list[User]:
        """Return all users of the server today."""
        return factory_users() + school_users(self.school, self.sizes, self.day)


def hashfs_path(content: bytes, extension: str) -> str:
    """Return the path under media: three one-digit folders, then the other 61 digits of the sha256."""
    digest = hashlib.sha256(content).hexdigest()
    return f"{digest[0]}/{digest[1]}/{digest[2]}/{digest[3:]}.{extension}"


def media_files(school: School, sizes: Sizes, day: int = 0) -> Iterator[tuple[str, bytes, int]]:
    """Yield (path, content, time) of the media on a day: the course's, then the school's own (under 1 %)."""
    mean = sizes.media_bytes / sizes.media_files
    for number in range(sizes.media_files):
        rng = stream(COURSE, "media", number)
        content = rng.randbytes(max(64, int(mean * SHAPE[number % len(SHAPE)])))
        yield hashfs_path(content, rng.choice(EXTENSIONS)), content, CREATED + number
    own = max(1, sizes.media_files // 1000)
    for past in range(day + 1):
        count = own if past == 0 else max(1, round(7 * sizes.scale))
        for number in range(count):
            rng = stream(school.server_id, "media", past, number)
            size = sizes.media_bytes // 250 // own if past == 0 else 40_000
            content = rng.randbytes(max(64, min(int(mean), size)))
            yield (
                hashfs_path(content, rng.choice(EXTENSIONS)),
                content,
                instant(past - 1 if past == 0 else past, number),
            )


def media_index(school: School, sizes: Sizes, day: int = 0) -> list[tuple[str, int]]:
    """Return (path, size) of the media, for the Filehives collection."""
    return [(path, len(content)) for path, content, _ in media_files(school, sizes, day)]


def write_media(tree: Tree) -> None:
    """Media in HashFS layout, and one folder that is not hashed."""
    for path, content, when in media_files(tree.school, tree.sizes):
        tree.put(f"media/{path}", content, when)
    tree.put("media/help_videos/how_to_log_in.webm", stream(COURSE, "help").randbytes(2000), CREATED)


def node_path(identifier: str) -> str:
    """Return where rcs-repo keeps a node: digits -1, -2 and -4 of its id make the folders."""
    return f"rcs-repo/Nodes/{identifier[-1]}/{identifier[-2]}/{identifier[-4]}/{identifier}.json"


def write_node(tree: Tree, index: int, edits: int, when: int) -> None:
    """One node with its whole history, from nothing to `edits` edits."""
    page = documents.node(tree.school, tree.sizes, index)
    text = documents.node_text(page)
    first = int(page["created_at"].timestamp())
    archive = revisions.first_revision(
        text, first, "This document (Page) is created by administrator", "node"
    )
    for edit in range(1, edits + 1):
        new = documents.node_text(documents.node(tree.school, tree.sizes, index, edit))
        moment = when if edit == edits else first + edit * 86_400
        archive = revisions.next_revision(
            archive, text, new, moment, "This document is modified by administrator"
        )
        text = new
    tree.put(node_path(page["_id"]), text.encode(), when)
    tree.put(node_path(page["_id"]) + ",v", archive.encode(), when)


def write_rcs_repo(tree: Tree) -> None:
    """Nodes as JSON and as RCS archives."""
    edits = documents.edits_until(tree.school, tree.sizes, 0)
    for index in range(tree.sizes.nodes):
        # The course's nodes have the same times everywhere: they came with the image.
        write_node(tree, index, edits.get(index, 0), CREATED + 86_400 * 100 + index)


def database_page(*names: object) -> bytes:
    """Return one page of a database file: half of it compresses away."""
    rng = stream(*names)
    return rng.randbytes(PAGE // 2) + prose(rng, 40).encode().ljust(PAGE // 2, b"\0")


def collection_file(name: str) -> str:
    """Return the WiredTiger name of a collection's or index's file, the same on every server."""
    return f"db/{name}-{stream(COURSE, 'wt', name).randrange(10**17, 10**18)}.wt"


def write_db(tree: Tree) -> None:
    """The dbPath of MongoDB: files named as WiredTiger's. The stand-in's real store is db/.standin."""
    when = instant(0, -3600)
    pages = max(2, tree.sizes.database_pages // len(COLLECTION_FILES))
    for name in COLLECTION_FILES:
        tree.put(
            collection_file(name), b"".join(database_page(tree.seed, name, n) for n in range(pages)), when
        )
    for name, size in (
        ("_mdb_catalog.wt", 4),
        ("sizeStorer.wt", 4),
        ("WiredTiger.wt", 8),
        ("WiredTigerLAS.wt", 1),
    ):
        tree.put(f"db/{name}", b"".join(database_page(tree.seed, name, n) for n in range(size)), when)
    tree.put("db/WiredTiger", b"WiredTiger\nWiredTiger 2.7.1: (stand-in)\n", int(INSTALL_DAY.timestamp()))
    tree.put("db/WiredTiger.lock", b"WiredTiger lock file\n", int(INSTALL_DAY.timestamp()))
    tree.put("db/WiredTiger.turtle", turtle(0), when)
    tree.put("db/storage.bson", stream(COURSE, "storage").randbytes(95), int(INSTALL_DAY.timestamp()))
    tree.put("db/mongod.lock", b"", when)
    tree.put("db/journal/WiredTigerLog.0000000001", journal(tree, 0), when)
    tree.put(
        "db/diagnostic.data/metrics.2018-12-14T04-30-00Z-00000",
        stream(tree.seed, "ftdc").randbytes(6000),
        when,
    )


def turtle(checkpoint: int) -> bytes:
    """Return the text of WiredTiger.turtle after a checkpoint."""
    version = "WiredTiger version string\nWiredTiger 2.7.1: (stand-in)\n"
    return f"{version}WiredTiger.wt\ncheckpoint={checkpoint}\n".encode()


def journal(tree: Tree, day: int) -> bytes:
    """Return one journal file."""
    return b"".join(
        database_page(tree.seed, "journal", day, n) for n in range(max(2, tree.sizes.database_pages // 100))
    )


def write_postgres_dump(tree: Tree) -> None:
    """The last pg_dumpall of backup.sh, and the factory's."""
    tree.put("postgres-dump/pg_dump_all.sql", sql.dump(tree.users()).encode(), instant(tree.day, -600))
    if tree.day == 0:
        tree.put("pg_dump_all.sql", sql.dump(factory_users()).encode(), CREATED)
        tree.put("drop_database.sql", b"drop database gstudio_psql;\n", CREATED)


def write_heartbeat(tree: Tree, when: int, number: int) -> None:
    """One heartbeat as system-heartbeat.sh writes it: no ids in it, and no internal address."""
    moment = datetime.fromtimestamp(when, IST)
    rng = stream(tree.seed, "heartbeat", when, number)
    processes = "".join(
        f"root {pid:8d}  0.{rng.randrange(9)}  1.{rng.randrange(9)}"
        f" {rng.randrange(10**6):7d} {rng.randrange(10**5):6d} ?"
        f"        S    09:{rng.randrange(10, 60)}   0:0{rng.randrange(9)} {name}\n"
        for pid, name in enumerate(
            ("bash initialize.sh", "mongod", "nginx", "uwsgi", "postgres", "celery") * 8, 20
        )
    )
    text = (
        f"clixserver.tiss.edu\n\n\n"
        f"Mem: total 7.7G used {rng.randrange(20, 60) / 10}G free {rng.randrange(10, 40) / 10}G\n"
        f"Filesystem Size Used Avail Use% Mounted on\n/dev/sda9 908G {rng.randrange(56, 60)}G 810G 7% /data\n"
        "404M\t/data/db\n17G\t/data/media\n4002\n9641\n"
        f" {moment:%H:%M:%S} up {rng.randrange(2, 70)} min,  0 users,"
        f"  load average: 0.{rng.randrange(99):02d}, 0.4{rng.randrange(9)}, 0.21\n"
        "USER       PID %CPU %MEM    VSZ   RSS TTY      STAT START   TIME COMMAND\n" + processes
    )
    tree.put(f"system-heartbeat/system-heartbeat-{moment:%Y%m%d-%H%M%S}.log", text.encode(), when)


def write_heartbeats(tree: Tree) -> None:
    """The heartbeats since the install day; one in twenty-five was cut by a power failure."""
    span = instant(0) - int(INSTALL_DAY.timestamp()) - 7200
    for number in range(tree.sizes.heartbeats):
        when = int(INSTALL_DAY.timestamp()) + 3600 + span * number // tree.sizes.heartbeats
        write_heartbeat(tree, when, number)


def write_progress_run(tree: Tree, moment: datetime) -> None:
    """One run of export_users_analytics, as of that moment."""
    visits = documents.visits_until(tree.school, tree.sizes, tree.day)
    limit = moment.replace(tzinfo=None)
    counters = documents.counters([visit for visit in visits if visit.when <= limit])
    people = {user.id: user for user in tree.users()}
    school = (tree.school.server_id, tree.school.name, tree.school.school_code)
    by_unit: dict[str, list[documents.Document]] = {}
    for counter in counters:
        by_unit.setdefault(counter["group_id"], []).append(counter)
    for number, unit in enumerate(units(tree.sizes.units)):
        activities = [
            {"_id": activity.id, "name": activity.name, "lesson": lesson.id}
            for lesson, activity in unit.activities
        ]
        rows = [
            exports.progress_row(
                school,
                {"module": unit.module, "name": unit.name},
                len(unit.lessons),
                activities,
                (str(user.id), user.username, user.first_name, user.last_name),
                counter,
            )
            for counter in sorted(by_unit.get(unit.id, []), key=lambda one: int(one["user_id"]))
            if (user := people.get(counter["user_id"]))
        ]
        if rows:
            when = moment + timedelta(seconds=9 * number)
            name = exports.progress_name(tree.school.server_name, unit.slug, when)
            content = exports.table([exports.progress_columns(activities), *rows])
            tree.put(f"gstudio-exported-users-analytics-csvs/{name}", content, int(when.timestamp()))


def write_progress_csvs(tree: Tree) -> None:
    """All runs so far; the files only ever pile up."""
    span = (instant(0) - int(INSTALL_DAY.timestamp())) // (tree.sizes.runs + 1)
    for number in range(tree.sizes.runs):
        write_progress_run(tree, INSTALL_DAY + timedelta(seconds=span * (number + 1)))


def write_activity_timestamps(tree: Tree) -> None:
    """The one run of the all-users script that real schools have, soon after the install day."""
    course = units(tree.sizes.units)
    names = {str(unit.id): unit.name for unit in course}
    for unit in course:
        names.update({str(part.id): part.name for pair in unit.activities for part in pair})
    early = documents.visits_until(tree.school, tree.sizes, tree.day)
    limit = INSTALL_DAY.replace(tzinfo=None) + timedelta(days=20)
    for number, user in enumerate(
        documents.learners(tree.school, tree.sizes, 0)[: 40 if tree.sizes.users > 40 else 8]
    ):
        mine = [visit for visit in early if visit.user.id == user.id and visit.when < limit]
        when = INSTALL_DAY + timedelta(days=20, seconds=number * 5)
        content = exports.table(
            [exports.TIMESTAMP_COLUMNS, *exports.timestamp_rows(documents.benchmarks(mine), names)]
        )
        name = exports.timestamps_name(tree.school.server_id, user.username, when)
        tree.put(f"activity-timestamp-csvs/{name}", content, int(when.timestamp()))


def tool_log(tree: Tree, app: str, user_id: int, day: int) -> bytes:
    """Return the JSON list of a tool's events for a user, up to a day."""
    events = []
    for past in range(day + 1):
        rng = stream(tree.seed, "tool", app, user_id, past)
        for _ in range(rng.randrange(2, 6)):
            created = datetime.fromtimestamp(instant(past, rng.randrange(9000)), IST)
            date = f"{created.year}-{created.month}-{created.day}"
            stamp = f"{date} {created.hour}:{created.minute}:{created.second}"
            events.append(
                {
                    "appName": app,
                    "userId": str(user_id),
                    "language": "en",
                    "buddyIds": [],
                    "sessionId": None if user_id == 0 else f"{rng.getrandbits(128):032x}",
                    "appData": [
                        {"level": rng.randrange(1, 9), "correct": rng.random() < 0.5, "note": prose(rng, 9)}
                    ],
                    "createdAt": stamp,
                }
            )
    return json.dumps(events).encode()


def tool_logs(tree: Tree) -> list[tuple[str, int]]:
    """Return (tool, user id) of the logs there are; user 0 is who was not logged in."""
    people = [user.id for user in school_users(tree.school, tree.sizes)]
    pairs = [(app, people[n % len(people)]) for n, app in enumerate(TOOLS * max(2, len(people) // 10))]
    return [("policesquad", 0), *dict.fromkeys(pairs)]


def write_tool_logs(tree: Tree) -> None:
    """A JSON list for each tool and user."""
    for number, (app, user_id) in enumerate(tool_logs(tree)):
        name = f"gstudio_tools_logs/{app}/{user_id}-{app}.json"
        tree.put(name, tool_log(tree, app, user_id, 0), instant(0, -5000 + number))


def write_gstudio_logs(tree: Tree) -> None:
    """What the scripts say about their runs."""
    lines = "".join(
        f"######### Script ran on : {INSTALL_DAY + timedelta(days=n):%c} #########\n\n"
        for n in range(tree.sizes.runs)
    )
    tree.put("gstudio-logs/export_users_analytics.log", lines.encode(), instant(0, -4000))
    tree.put("gstudio-logs/patch-r6.log", b"patch r6 applied\n", int(INSTALL_DAY.timestamp()))
    tree.put("gstudio-logs/sync_users.log", b"users added: all\n", int(INSTALL_DAY.timestamp()))


def access_log(tree: Tree, day: int, lines: int) -> bytes:
    """Return one day's lines of nginx's access log."""
    rng = stream(tree.seed, "access", day)
    out = io.StringIO()
    for number in range(lines):
        moment = datetime.fromtimestamp(instant(day, number * 14_400 / lines), IST)
        out.write(
            f"192.168.1.{rng.randrange(2, 60)} - - [{moment:%d/%b/%Y:%H:%M:%S %z}] "
            f'"GET /{rng.choice(PAGES)}/{rng.getrandbits(48):012x} HTTP/1.1" '
            f'{rng.choice(STATUSES)} {rng.randrange(200, 90_000)} "-" "Mozilla/5.0 (X11; Linux)"\n'
        )
    return out.getvalue().encode()


def write_nginx_logs(tree: Tree) -> None:
    """Logs of the web server, with one rotation behind them."""
    lines = tree.sizes.log_lines
    yesterday = access_log(tree, -1, lines)
    tree.put("nginx-logs/school.server.org.access.log.old", yesterday, instant(-1, 15_000))
    tree.put(
        "nginx-logs/school.server.org.access.log-20181212.gz",
        gzip.compress(access_log(tree, -2, lines), mtime=0),
        instant(-2, 15_000),
    )
    tree.put("nginx-logs/school.server.org.access.log", access_log(tree, 0, lines // 2), instant(0, -60))
    tree.put("nginx-logs/school.server.org.error.log", b"", int(INSTALL_DAY.timestamp()))
    tree.put("nginx-logs/access.log", access_log(tree, -3, lines // 20), instant(-1))
    tree.put("nginx-logs/error.log", b"", int(INSTALL_DAY.timestamp()))


def activity_table(visits: list[documents.Visit]) -> bytes:
    """Return activity-data.csv: a row for each active user, five columns for each of their dates."""
    people: dict[str, dict[str, list[documents.Visit]]] = {}
    for visit in visits:
        people.setdefault(visit.user.username, {}).setdefault(f"{visit.when:%Y-%m-%d}", []).append(visit)
    ids = {visit.user.username: visit.user.id for visit in visits}
    return activity_csv(
        [
            (
                name,
                ids[name],
                [
                    (date, [visit.when for visit in group], sum(visit.seconds for visit in group), len(group))
                    for date, group in sorted(people[name].items())
                ],
            )
            for name in sorted(people)
        ]
    )


def activity_csv(people: list[tuple[str, int, list[tuple[str, list[datetime], float, int]]]]) -> bytes:
    """Given (username, id, [(date, times, seconds, activities)]), return the table, padded at the right."""
    groups = max((len(dates) for _, _, dates in people), default=0)
    header = ["Username", "UserID"] + [
        "Date (YYYY-MM-DD)", "Total Timestamps", "Total Timespent (HH:MM:SS.microsec)", "Activities Viewed",
        "Activity Timestamps",
    ] * groups  # fmt: skip
    rows: list[list[object]] = []
    for name, user_id, dates in people:
        row: list[object] = [name, user_id]
        for date, times, seconds, viewed in dates:
            stamps = "; ".join(f"{one:%H:%M:%S}" for one in times)
            row += [date, len(times), str(timedelta(seconds=round(seconds, 3))), viewed, stamps]
        rows.append(row + [""] * (len(header) - len(row)))
    return exports.table([header, *rows])


def pack(folder: Path, target: Path, names: tuple[str, ...], when: int | None = None) -> None:
    """Write folder's `names` as tar.gz; with `when`, the same bytes every time."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = member.mtime if when is None else when
        return member

    with (
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=when) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name in names:
            tar.add(folder / name, name, filter=plain)


def write_qbank(tree: Tree) -> None:
    """What the last run of the MIT script left behind."""
    when = instant(tree.day, -1800)
    shutil.rmtree(tree.root / "qbank", ignore_errors=True)
    for database, collections in documents.qbank(tree.school, tree.sizes, tree.day).items():
        for name, content in documents.bson_files(collections, database):
            tree.put(f"qbank/mongo-dump/{database}/{name}", content, when)
    visits = documents.visits_until(tree.school, tree.sizes, tree.day)
    tree.put("qbank/student-activities/activity-data.csv", activity_table(visits), when)
    tree.put("qbank/pg_dump_all.sql", sql.dump(tree.users()).encode(), when)
    # tarfile lists folders sorted, so the members' order is fixed too.
    target = tree.root / "qbank/qbank_data.tar.gz"
    pack(tree.root / "qbank", target, ("mongo-dump", "student-activities"), when)
    os.utime(target, (when, when))


def write_settings_copies(tree: Tree) -> None:
    """backup.sh's copies of the two settings files; these are what it found on its last run."""
    text = (
        f"GSTUDIO_INSTITUTE_ID ={tree.school.server_id!r}\n"
        f"GSTUDIO_INSTITUTE_ID_SECONDARY ={tree.school.school_code!r}\n"
        f"GSTUDIO_INSTITUTE_NAME ={tree.school.name!r}\n"
    )
    tree.put("server_settings.py", text.encode(), int(INSTALL_DAY.timestamp()))
    tree.put("local_settings.py", b"DEBUG = False\nLANGUAGE_CODE = 'en'\n", int(INSTALL_DAY.timestamp()))


def write_repository(tree: Tree) -> None:
    """The media of assessments, the same in every school."""
    mean = tree.sizes.asset_bytes / tree.sizes.asset_files
    for number in range(tree.sizes.asset_files):
        rng = stream(COURSE, "asset", number)
        identifier = oid("asset", number, when=CREATED)
        name = f"repository/AssetContent/{identifier}.{rng.choice(('mp3', 'png', 'json'))}"
        tree.put(tree.datastore / name, rng.randbytes(int(mean * SHAPE[number % 8])), CREATED + number)


def write_responses(tree: Tree, day: int = 0) -> None:
    """Recordings and pictures by students: all before day 0, or those of one day."""
    mean = tree.sizes.response_bytes // tree.sizes.response_files
    count = tree.sizes.response_files if day == 0 else max(2, round(40 * tree.sizes.scale))
    for number in range(count):
        rng = stream(tree.seed, "response", day, number)
        when = instant(day, number * 20) if day else int(INSTALL_DAY.timestamp()) + 86_400 + number * 977
        folder = oid("bank", number % 5, when=CREATED)
        name = f"studentResponseFiles/{folder}/{oid(tree.seed, 'response', day, number, when=when)}.wav"
        tree.put(tree.datastore / name, rng.randbytes(int(mean * SHAPE[number % 8])), when)


PARTS: dict[str, Callable[[Tree], None]] = {
    "media": write_media,
    "rcs-repo": write_rcs_repo,
    "db": write_db,
    "postgres-dump": write_postgres_dump,
    "system-heartbeat": write_heartbeats,
    "gstudio-exported-users-analytics-csvs": write_progress_csvs,
    "activity-timestamp-csvs": write_activity_timestamps,
    "gstudio_tools_logs": write_tool_logs,
    "gstudio-logs": write_gstudio_logs,
    "nginx-logs": write_nginx_logs,
    "qbank": write_qbank,
}


def _empty(folder: Path) -> bool:
    return not folder.is_dir() or not any(one.name != ".standin" for one in folder.iterdir())


def generate(tree: Tree, say: Callable[[str], None] = lambda text: None) -> bool:
    """Write every part that is missing; return whether this was the first (or a cut) generation.

    A part that holds anything already is left alone, unless an earlier generation was cut in the middle.
    """
    state_path = tree.root / "db/.standin/state.json"
    state = read_state(tree.root)
    again = state is not None and not state["done"]
    if state is not None and not again:
        return False
    first = again or all(_empty(tree.root / name) for name in ("media", "rcs-repo"))
    save_state(tree, done=False)
    for name, write in PARTS.items():
        if again or _empty(tree.root / name):
            say(f"making {name}")
            write(tree)
    for name, write_store in (("repository", write_repository), ("studentResponseFiles", write_responses)):
        if again or _empty(tree.datastore / name):
            say(f"making {name}")
            write_store(tree)
    copy = tree.root / "assessment-media/studentResponseFiles"
    if tree.datastore != tree.root / "assessment-media" and _empty(copy):
        shutil.copytree(tree.datastore / "studentResponseFiles", copy, dirs_exist_ok=True)
    if not (tree.root / "server_settings.py").exists():
        write_settings_copies(tree)
    save_state(tree, done=True)
    for top in {tree.root, tree.datastore}:
        _settle_folders(top, instant(0))
    os.utime(state_path, (instant(0), instant(0)))
    return first


def _settle_folders(top: Path, when: int) -> None:
    """Folders get a time of their own too, or two runs would differ in it."""
    for folder, _, _ in os.walk(top, topdown=False):
        os.utime(folder, (when, when))


def read_state(root: Path) -> dict[str, object] | None:
    """Return what an earlier generation wrote down, None if there was none."""
    try:
        state: dict[str, object] = json.loads((root / "db/.standin/state.json").read_text())
    except (OSError, ValueError):
        return None
    return state


def save_state(tree: Tree, done: bool) -> None:
    """Write down which school, sizes and day the files are of."""
    state = {
        "done": done,
        "day": tree.day,
        "school": [tree.school.server_id, tree.school.school_code, tree.school.name],
        "sizes": tree.sizes.as_dict(),
    }
    tree.put("db/.standin/state.json", json.dumps(state, indent=1).encode(), instant(tree.day))


def open_tree(root: Path, datastore: Path) -> Tree:
    """Return the tree that was generated there. Raises FileNotFoundError if there is none."""
    state = read_state(root)
    if state is None:
        raise FileNotFoundError(f"{root} holds no generated data (run: standin generate --root {root})")
    school, sizes = state["school"], state["sizes"]
    assert isinstance(school, list)
    assert isinstance(sizes, dict)
    assert isinstance(state["day"], int)
    return Tree(root, datastore, School(*school), Sizes(**sizes), state["day"])
