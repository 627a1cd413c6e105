"""What the assessment export does: delete, dump, export, pack, and print "Done!" whatever happened."""

from __future__ import annotations

import re
import shutil
import subprocess
import traceback
from datetime import datetime
from pathlib import Path

import bson

from . import exports, faults
from .documents import QBANK
from .tree import activity_csv, pack


def run(output_dir: str, host: str, port: int) -> None:
    """Export all qbank data below output_dir. Never raises, never fails."""
    try:
        _export(Path(output_dir) / "qbank", host, port)
    except Exception:
        traceback.print_exc()
    print("Done!", flush=True)


def _export(target: Path, host: str, port: int) -> None:
    shutil.rmtree(target, ignore_errors=True)
    (target / "student-activities").mkdir(parents=True)
    print(f"Export all qbank data as {target}/qbank_data.tar.gz", flush=True)
    for database in QBANK:
        command = ["mongodump", "--host", host, "--port", str(port), "-d", database]
        subprocess.run([*command, "-o", str(target / "mongo-dump")], check=False)
    made = Path("/var/lib/postgresql/pg_dump_all.sql")
    subprocess.run(["sudo", "su", "-", "postgres"], input=b"pg_dumpall > pg_dump_all.sql;\n", check=False)
    shutil.move(made, target / "pg_dump_all.sql")
    content = _activities(target)
    faults.write_in_place(target / "student-activities/activity-data.csv", content)
    pack(target, target / "qbank_data.tar.gz", ("mongo-dump", "student-activities"))


def _activities(target: Path) -> bytes:
    """Return activity-data.csv; the fault header-only-activity-data is how it looks on all real servers."""
    if faults.setting("header-only-activity-data") is not None:
        return exports.table([("Username", "UserID")])
    text = (target / "pg_dump_all.sql").read_text(encoding="utf-8")
    block = re.search(r"^COPY (?:public\.)?auth_user \((.*?)\) FROM stdin;\n(.*?)^\\\.$", text, re.M | re.S)
    if block is None:
        return exports.table([("Username", "UserID")])
    columns = block[1].split(", ")
    rows = [dict(zip(columns, line.split("\t"), strict=True)) for line in block[2].splitlines()]
    ids = {row["username"]: int(row["id"]) for row in rows}
    found: dict[str, dict[str, list[tuple[datetime, float]]]] = {}
    for taken in bson.decode_all((target / "mongo-dump/assessment/AssessmentTaken.bson").read_bytes()):
        name = taken["takingAgentId"].split("%3A")[1].split("%40")[0]
        start = taken["actualStartTime"]
        spent = (taken["completionTime"] - start).total_seconds()
        found.setdefault(name, {}).setdefault(f"{start:%Y-%m-%d}", []).append((start, spent))
    people = [
        (
            name,
            ids[name],
            [
                (date, [start for start, _ in one], sum(spent for _, spent in one), len(one))
                for date, one in sorted(found[name].items())
            ],
        )
        for name in sorted(found)
        if name in ids
    ]
    return activity_csv(people)
