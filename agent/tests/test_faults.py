"""Every fault switch of the stand-in: what the platform makes under it is never called ok.

Needs a Docker engine and the image gstudio:lab.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from injected import Tally
from shala_agent import writers
from shala_agent.chain import Chain
from test_container import Platform, docker, no_faults, outcome, platform  # noqa: F401 - fixtures

pytestmark = [pytest.mark.faults, pytest.mark.docker, pytest.mark.timeout(900)]

README = Path(__file__).resolve().parents[2] / "molecule/images/gstudio/README.md"
PROGRESS = "gstudio-exported-users-analytics-csvs"

# switch, its content, the step, what the reasons say
FAULTS = [
    ("postgres-down", "", "postgres-dump", "does not answer"),
    ("postgres-down", "", "progress", "only its header"),
    ("mongod-down", "", "mongo-dump", "does not answer"),
    ("mongod-down", "", "activity-timestamps", "broke off|no file"),
    ("export-slow", "20", "progress", "cut after"),
    ("dump-slow", "20", "mongo-dump", "cut after"),
    ("die-after", "1", "progress", "broke off"),
    ("zero-byte-csv", "1", "progress", "is empty"),
    ("failing-user", "*", "activity-timestamps", "broke off"),
    ("header-only-activity-data", "", "assessments", "looks for 'COPY auth_user'.*complete are the items"),
    ("partial-mongodump", "", "mongo-dump", "holds .* documents, the database"),
    ("partial-mongodump", "cut", "mongo-dump", "cut inside"),
    ("partial-mongodump", "", "assessments", "complete is the item db"),
    ("partial-mongodump", "cut", "assessments", "cut inside"),
    ("disk-full", "1000", "progress", "was cut|broke off"),
    ("disk-full", "100", "activity-timestamps", "was cut|broke off"),
    ("disk-full", "1000", "mongo-dump", "No space left"),
    ("disk-full", "1000", "assessments", "broke off|no new|cut inside"),
    ("clock-wrong", "", "progress", "clock is wrong"),
    ("clock-wrong", "2016-01-01", "activity-timestamps", "clock is wrong"),
]
# Switches with a test of their own below.
APART = {"mongod-delay", "tool-log-rewriting"}


@pytest.fixture(scope="module")
def collected(platform: Platform) -> Platform:  # noqa: F811
    """A platform that was collected whole, so that there is a last good one of everything."""
    passage = platform.do(lambda chain: chain.run())
    assert passage.exit_code == 0, [(name, result.reasons) for name, result in passage.steps]
    return platform


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shala_agent.databases.wait_for.__defaults__", (1.0,))


def a_user(platform: Platform) -> str:  # noqa: F811
    csvs = sorted((platform.root / "data/activity-timestamp-csvs").glob("mz17-*-activity-visits-*.csv"))
    return csvs[len(csvs) // 2].name.removeprefix("mz17-").partition("-activity-visits-")[0]


def test_every_switch_of_the_stand_in_is_tried():
    table = README.read_text().partition("## Faults")[2].partition("\n## ")[0]
    switches = set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE))
    assert len(switches) > 10
    assert switches == {name for name, *_ in FAULTS} | APART


@pytest.mark.parametrize("name, content, step, reason", FAULTS)
def test_what_is_made_under_a_fault_is_never_called_ok(
    collected: Platform, tally: Tally, monkeypatch, name, content, step, reason
):
    if name in ("export-slow", "dump-slow"):
        monkeypatch.setattr(Chain, "_seconds", lambda *_: 6.0)
    dumps = {
        path: path.read_bytes() for path in (collected.root / "data/.shala").rglob("*") if path.is_file()
    }
    collected.fault(name, a_user(collected) if content == "*" else content)
    if name in ("postgres-down", "mongod-down"):
        time.sleep(3)
    try:
        word, reasons = outcome(collected.do(lambda chain: chain.by_hand((step,))))
    finally:
        (collected.root / "faults" / name).unlink()
        if name in ("postgres-down", "mongod-down"):
            time.sleep(2)
            collected.ready()
    with tally.injected("switches") as injection:
        # The step has met what the switch does to the platform, and not something else.
        injection.hit = re.search(reason, reasons) is not None
        injection.saw = f"called {word}"
        assert word in ("suspect", "failed"), reasons
        assert injection.hit, reasons
        # Nothing good is replaced by something worse.
        assert {path: path.read_bytes() for path in dumps} == dumps


def test_a_mongodb_that_takes_long_to_start_is_waited_for_and_not_dumped_half(
    collected: Platform, monkeypatch
):
    collected.fault("mongod-delay", "40")
    docker("restart", "-t", "5", collected.name)
    word, reasons = outcome(collected.do(lambda chain: chain.by_hand(("mongo-dump",))))
    assert word == "failed"
    assert "MongoDB: it does not answer" in reasons
    monkeypatch.setattr("shala_agent.databases.wait_for.__defaults__", (180.0,))
    assert outcome(collected.do(lambda chain: chain.by_hand(("mongo-dump",))))[0] == "ok"
    collected.ready()


def test_tool_logs_that_are_rewritten_without_end_are_whole_or_named(collected: Platform):
    collected.fault("tool-log-rewriting")
    time.sleep(1)
    passage = collected.do(lambda chain: chain.by_hand(("collect",)))
    item = passage.collected.collection.item("gstudio", "gstudio_tools_logs")
    bag = collected.root / "spool/bag/data/gstudio/gstudio_tools_logs"
    for path in bag.rglob("*.json"):
        if item.outcome == "ok":
            json.loads(path.read_bytes())
    assert item.files
    assert item.outcome == "ok" or item.reasons


def test_the_platforms_own_export_is_not_gathered_half_and_not_joined(collected: Platform, monkeypatch):
    monkeypatch.setattr(writers, "POLL", 0.5)
    folder = collected.root / "data" / PROGRESS
    before = {path.name for path in folder.iterdir()}
    collected.fault("export-slow", "6")
    docker("exec", "-d", collected.name, "bash", "/home/docker/code/scripts/analytics.sh")
    for _ in range(60):
        if {path.name for path in folder.iterdir()} - before:
            break
        time.sleep(0.5)
    half = {path.name for path in folder.iterdir()} - before
    assert half
    passage = collected.do(lambda chain: chain.by_hand(("collect",)))
    item = passage.collected.collection.item("gstudio", PROGRESS)
    assert any("still being written" in reason for reason in item.reasons), item.reasons
    bag = collected.root / "spool/bag/data/gstudio" / PROGRESS
    assert not half & {path.name for path in bag.iterdir()}
    collected.fault("export-slow", "0")
    word, reasons = outcome(collected.do(lambda chain: chain.by_hand(("progress",))))
    assert word == "ok", reasons
    collected.do(lambda chain: chain.by_hand(("collect",)))
    new = [path for path in bag.iterdir() if path.name not in before]
    assert new
    for path in new:
        header, *rows = csv.reader(path.open(newline="", encoding="utf-8"))
        assert rows
        assert {len(row) for row in rows} == {len(header)}


@pytest.fixture
def mit_script(collected: Platform) -> Iterator[None]:
    """The MIT script as the platform's cron runs it, slowly."""
    collected.fault("dump-slow", "3")
    folder = "/home/docker/code/qbank-gstudio-scripts/single_school_get_MIT_activity_data"
    script = f"cd {folder} && exec /usr/bin/python single_school_get_MIT_activity_data.py"
    process = subprocess.Popen(
        ["docker", "exec", collected.name, "sh", "-c", script],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(4)
    yield
    collected.fault("dump-slow", "0")
    process.wait(300)


def test_the_last_good_assessments_stay_while_the_platform_makes_new_ones(collected: Platform, mit_script):
    bag = collected.root / "spool/bag/data/gstudio/qbank"
    before = {path: path.read_bytes() for path in bag.rglob("*") if path.is_file()}
    passage = collected.do(lambda chain: chain.by_hand(("collect",)))
    item = passage.collected.collection.item("gstudio", "qbank")
    assert item.outcome == "failed"
    assert "single_school_get_MIT_activity_data.py' was writing it" in item.reasons[0]
    assert {path: path.read_bytes() for path in bag.rglob("*") if path.is_file()} == before


def test_a_failed_dump_that_backup_sh_moves_over_ours_is_not_collected(collected: Platform):
    shared = collected.root / "data/postgres-dump/pg_dump_all.sql"
    assert outcome(collected.do(lambda chain: chain.by_hand(("postgres-dump",))))[0] == "ok"
    assert shared.stat().st_size > 1000
    collected.fault("postgres-down")
    time.sleep(3)
    environment = ["-e", "GSTUDIO_STANDIN_BACKUP_SLEEP=0"]
    docker("exec", *environment, collected.name, "bash", "/home/docker/code/scripts/backup.sh")
    assert shared.stat().st_size == 0
    item = collected.do(lambda chain: chain.by_hand(("collect",))).collected.collection.item(
        "gstudio", "postgres-dump"
    )
    assert (item.outcome, item.reasons) == ("ok", [])
    (collected.root / "faults/postgres-down").unlink()
    time.sleep(2)
    collected.ready()


def test_a_command_that_the_operator_adds_is_derived_checked_and_collected(collected: Platform):
    table = collected.root / "catalogue.toml"
    line = "mkdir -p /data/h5p; printf 'user,score\\\\r\\\\na,1\\\\r\\\\n' > /data/h5p/scores-$(date +%s).csv; echo made 1"
    table.write_text(
        f"""format = 1
[derivations.h5p]
command = ["sh", "-c", "{line}"]
output = "/data/h5p"
says = "made (\\\\d+)"
check = "csv"
columns = ["user", "score"]
[items.h5p]
source = "/data/h5p"
check = "csv"
columns = ["user", "score"]
reading = "fresh"
made_by = "h5p"
"""
    )
    text = collected.config_path.read_text()
    collected.config_path.write_text(text.replace("[paths]\n", f'[paths]\ncatalogue = "{table}"\n'))
    try:
        passage = collected.do(lambda chain: chain.by_hand(("h5p", "collect")))
        assert dict(passage.steps)["h5p"].outcome == "ok", dict(passage.steps)["h5p"].reasons
        item = passage.collected.collection.item("gstudio", "h5p")
        assert (item.outcome, item.files) == ("ok", 1), item.reasons
        table.write_text(table.read_text().replace("a,1", "a,1,ragged"))
        word, reasons = outcome(collected.do(lambda chain: chain.by_hand(("h5p",))))
        assert word == "suspect"
        assert "another number of fields" in reasons
    finally:
        collected.config_path.write_text(text)
