"""The next school day: what changes in a server's files from one morning to the next."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from . import documents
from . import tree as files
from .chance import stream
from .school import IST, instant
from .tree import PAGE, Tree


def next_day(tree: Tree) -> None:
    """Change the tree as one school day does, and count the day."""
    tree.day += 1
    touched = {tree.root}
    before = _times(tree)
    rng = stream(tree.seed, "day", tree.day)
    _nodes(tree)
    _media(tree)
    files.write_responses(tree, tree.day)
    _database_files(tree)
    files.write_postgres_dump(tree)
    for run in range(max(1, round(5 * tree.sizes.scale))):  # about 160 new CSVs a day at scale 1
        files.write_progress_run(tree, datetime.fromtimestamp(instant(tree.day, 15_000 + 3600 * run), IST))
    logs = files.tool_logs(tree)
    for app, user_id in rng.sample(logs, max(1, len(logs) // 10)):
        content = files.tool_log(tree, app, user_id, tree.day)
        name = f"gstudio_tools_logs/{app}/{user_id}-{app}.json"
        tree.put(name, content, instant(tree.day, 9500))
    _web_logs(tree)
    for number in range(max(1, round(8 * tree.sizes.scale))):
        files.write_heartbeat(tree, instant(tree.day, 60 + 3600 * number), number)
    files.write_qbank(tree)
    _responses_copy(tree)
    files.save_state(tree, done=True)
    touched |= {folder for folder, when in _times(tree).items() if before.get(folder) != when}
    for folder in touched:
        os.utime(folder, (instant(tree.day), instant(tree.day)))


def _times(tree: Tree) -> dict[Path, int]:
    tops = {tree.root, tree.datastore}
    return {Path(folder): os.stat(folder).st_mtime_ns for top in tops for folder, _, _ in os.walk(top)}


def _nodes(tree: Tree) -> None:
    edits = documents.edits_until(tree.school, tree.sizes, tree.day)
    for index in documents.edited_nodes(tree.school, tree.sizes, tree.day):
        files.write_node(tree, index, edits[index], instant(tree.day, index % 9000))
    for index in range(
        documents.node_count_on(tree.sizes, tree.day - 1), documents.node_count_on(tree.sizes, tree.day)
    ):
        files.write_node(tree, index, 0, instant(tree.day, index % 9000))


def _media(tree: Tree) -> None:
    for path, content, when in files.media_files(tree.school, tree.sizes, tree.day):
        if when >= instant(tree.day):
            tree.put(f"media/{path}", content, when)


def _database_files(tree: Tree) -> None:
    """One page in a hundred is rewritten in place, some are appended, and a journal file is added."""
    for name in files.COLLECTION_FILES:
        path = tree.root / files.collection_file(name)
        rng = stream(tree.seed, "pages", name, tree.day)
        with path.open("r+b") as file:
            count = file.seek(0, os.SEEK_END) // PAGE
            for number in rng.sample(range(count), max(1, count // 100)):
                file.seek(number * PAGE)
                file.write(files.database_page(tree.seed, name, number, "day", tree.day))
            file.seek(0, os.SEEK_END)
            for number in range(max(1, count // 200)):
                file.write(files.database_page(tree.seed, name, "appended", tree.day, number))
        os.utime(path, (instant(tree.day, 14_000),) * 2)
    tree.put("db/WiredTiger.turtle", files.turtle(tree.day), instant(tree.day, 14_000))
    name = f"db/journal/WiredTigerLog.{tree.day + 1:010d}"
    tree.put(name, files.journal(tree, tree.day), instant(tree.day, 14_000))


def _web_logs(tree: Tree) -> None:
    """Rotation: the log becomes .old. The new one is written in its place, since nginx may hold it open."""
    log = tree.root / "nginx-logs/school.server.org.access.log"
    tree.put(log.with_name(log.name + ".old"), log.read_bytes(), instant(tree.day - 1, 15_000))
    tree.put(log, files.access_log(tree, tree.day, tree.sizes.log_lines // 2), instant(tree.day, 15_000))


def _responses_copy(tree: Tree) -> None:
    """backup.sh's copy of the students' files, where the datastore is a volume of its own."""
    copy = tree.root / "assessment-media/studentResponseFiles"
    source = tree.datastore / "studentResponseFiles"
    if copy == source or not copy.is_dir():
        return
    for file in sorted(source.rglob("*.wav")):
        target = copy / file.relative_to(source)
        if not target.exists():
            tree.put(target, file.read_bytes(), int(file.stat().st_mtime))
