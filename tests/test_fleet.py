"""One round on the lab fleet, seen by the operator and by the reader of the archive.

Runs after `molecule converge -s fleet` (site.yml, collect.yml, pull.yml), by `molecule verify -s fleet`.
The order matters: first the archive is read, then the round is repeated, last a server is stopped.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bson
import pytest

pytestmark = pytest.mark.fleet

ROOT = Path(__file__).resolve().parent.parent
CENTRE = "shala-lab-centre-1"
SERVERS = ("2031017-mz17", "2031008-mz8", "3080101-rj1")
ARCHIVE = "/srv/shala/archive"

# facts/hierarchy.md, with the two derived items that the seed's tree does not list.
LEVEL_4 = {
    "db", "media", "rcs-repo", "postgres-dump", "system-heartbeat", "gstudio-exported-users-analytics-csvs",
    "gstudio_tools_logs", "gstudio-logs", "local_settings.py", "server_settings.py", "git-commit.log",
    "assessment-media", "nginx-logs", "activity-timestamp-csvs", "qbank",
}  # fmt: skip
DATABASES = {
    "gstudio-mongodb", "assessment", "assessment_authoring", "hierarchy", "id", "logging", "relationship",
    "repository", "resource",
}  # fmt: skip
# facts/gstudio.md 2.1 and 2.3
ACTIVITY_COLUMNS = [
    "Unit", "Lesson", "Activity", "Language", "VisitedOn", "OutTime", "OutAction", "TimeSpentInSeconds",
    "Buddies",
]  # fmt: skip
PROGRESS_COLUMNS_FIRST = [
    "server_id",
    "school_name",
    "school_code",
    "module_name",
    "unit_name",
    "username",
    "user_id",
]
PROGRESS_FIXED = 49


def run(*command: str, stdin: bytes = b"", timeout: float = 300) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False)


def at_the_centre(*command: str) -> bytes:
    done = run("docker", "exec", "-u", "shala", CENTRE, *command)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def play(name: str, *arguments: str) -> tuple[int, str, float]:
    """Run a playbook as the operator does; return exit code, what it printed, seconds."""
    started = time.monotonic()
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", f"playbooks/{name}.yml", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_INVENTORY": str(ROOT / "inventories/lab"),
            # Molecule forces colours on what it runs; the figures are read here.
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_NOCOLOR": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
        check=False,
    )
    return done.returncode, done.stdout, time.monotonic() - started


def shown(server: str) -> dict[str, Any]:
    """Return what the archive knows of a server."""
    answer: dict[str, Any] = json.loads(at_the_centre("shala", "archive", "show", server, "--json"))
    return answer


def files_of(server: str, item: str) -> dict[str, bytes]:
    """Return the files of one LEVEL 4 item in the archive, by path below gstudio/."""
    tree = shown(server)["tree"]
    packed = at_the_centre("tar", "-C", f"{tree}/gstudio", "-cf", "-", item)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def rows_of(text: bytes) -> list[list[str]]:
    assert text.endswith(b"\r\n"), "the last line is cut"
    return list(csv.reader(io.StringIO(text.decode("utf-8"), newline="")))


# -- the archive ------------------------------------------------------------


@pytest.mark.parametrize("server", SERVERS)
def test_every_level_4_item_is_in_the_archive_and_whole(server: str) -> None:
    answer = shown(server)
    state = re.fullmatch(r"[0-9]+-([a-z]+)[0-9]+", server)[1]  # type: ignore[index]
    assert re.fullmatch(rf"{ARCHIVE}/20[0-9]{{2}}/{state}/{server}", answer["tree"])
    items = {item["name"]: item for item in answer["collection"]["items"] if item["platform"] == "gstudio"}
    assert set(items) >= LEVEL_4
    assert {name: item["reasons"] for name, item in items.items() if item["outcome"] != "ok"} == {}
    assert {name for name in LEVEL_4 if items[name]["files"] == 0} == set()
    on_disk = set(at_the_centre("ls", f"{answer['tree']}/gstudio").decode().split())
    assert on_disk >= LEVEL_4
    below = at_the_centre("ls", f"{answer['tree']}/gstudio/assessment-media").decode().split()
    assert {"repository", "studentResponseFiles"} <= set(below)


def test_every_published_file_is_what_its_manifest_says() -> None:
    answer = json.loads(at_the_centre("shala", "archive", "verify", "--json"))
    assert {server["name"]: server["damage"] for server in answer["servers"]} == {
        server: [] for server in SERVERS
    }


@pytest.mark.parametrize("server", SERVERS)
def test_the_sql_dump_restores_into_a_fresh_postgresql_and_holds_the_users(server: str) -> None:
    count = "select count(*) from auth_user"
    there = run(
        "docker", "exec", f"shala-lab-{server}", "docker", "exec", "gstudio",
        "su", "postgres", "-c", f"cd /; psql -At -d gstudio_psql -c '{count}'",
    )  # fmt: skip
    users = int(there.stdout)
    assert users > 0
    dump = files_of(server, "postgres-dump")["postgres-dump/pg_dump_all.sql"]
    script = (
        "set -e; pg_createcluster 15 fresh --port 6543 --start >/dev/null; cd /;"
        " su postgres -c 'psql -q -p 6543 -d postgres -f -' > /dev/null 2> /tmp/errors;"
        f" su postgres -c \"psql -At -p 6543 -d gstudio_psql -c '{count}'\";"
        " cat /tmp/errors"
    )
    restored = run(
        "docker", "run", "--rm", "-i", "--network", "none", "--entrypoint", "bash",
        "gstudio:lab", "-c", script, stdin=dump,
    )  # fmt: skip
    said = restored.stdout.decode().splitlines()
    assert restored.returncode == 0, restored.stderr.decode()
    # A fresh cluster has the role postgres already; nothing else may go wrong.
    assert [line for line in said[1:] if 'role "postgres" already exists' not in line] == []
    assert int(said[0]) == users


@pytest.mark.parametrize("server", SERVERS)
def test_the_bson_files_decode(server: str) -> None:
    files = files_of(server, "db")
    assert {name.split("/")[1] for name in files} >= DATABASES
    documents = 0
    for name, content in files.items():
        if name.endswith(".bson"):
            documents += len(bson.decode_all(content))
            assert name.removesuffix(".bson") + ".metadata.json" in files
    assert documents > 0


@pytest.mark.parametrize("server", SERVERS)
def test_the_csvs_have_their_columns_and_are_whole(server: str) -> None:
    code, _, server_id = server.partition("-")
    progress = files_of(server, "gstudio-exported-users-analytics-csvs")
    assert progress
    for name, content in progress.items():
        header, *rows = rows_of(content)
        assert Path(name).name.startswith(f"{server}-")
        assert header[: len(PROGRESS_COLUMNS_FIRST)] == PROGRESS_COLUMNS_FIRST
        assert len(header) >= PROGRESS_FIXED
        assert rows
        assert {len(row) for row in rows} == {len(header)}
        assert {(row[0], row[2]) for row in rows} == {(server_id, code)}
    visits = files_of(server, "activity-timestamp-csvs")
    assert visits
    for content in visits.values():
        header, *rows = rows_of(content)
        assert header == ACTIVITY_COLUMNS
        assert {len(row) for row in rows} <= {len(header)}
    activity = files_of(server, "qbank")["qbank/student-activities/activity-data.csv"]
    assert rows_of(activity)[0][:2] == ["Username", "UserID"]


@pytest.mark.parametrize("server", SERVERS)
def test_media_and_recordings_take_no_room_twice_on_the_school(server: str) -> None:
    folders = [f"/var/spool/shala/bag/data/gstudio/{item}" for item in ("media", "assessment-media")]
    links = run(
        "docker", "exec", f"shala-lab-{server}", "find", *folders, "-type", "f", "-printf", "%n\\n"
    )  # fmt: skip
    assert links.returncode == 0, links.stderr.decode()
    assert {int(count) for count in links.stdout.split()} == {2}


# -- the round again ------------------------------------------------------------


def test_provisioning_again_changes_nothing() -> None:
    code, said, _ = play("site")
    assert code == 0, said[-4000:]
    recap = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", said, re.MULTILINE)
    changes = {host: int(changed) for host, changed in recap if host != "localhost"}
    assert changes == dict.fromkeys((*SERVERS, "centre-1"), 0)


def test_pulling_again_moves_nothing() -> None:
    code, said, _ = play("pull")
    assert code == 0, said[-4000:]
    for server in SERVERS:
        assert re.search(rf"^{server} .* unchanged ", said, re.MULTILINE), said[-2000:]


def test_the_next_collection_moves_only_what_has_changed() -> None:
    before = {server: manifest(server) for server in SERVERS}
    code, said, _ = play("collect")
    assert code == 0, said[-4000:]
    answers = json.loads(at_the_centre("shala", "pull", "--json"))["servers"]
    for answer in answers:
        server = answer["name"]
        assert answer["result"] == "committed", answer
        changed = manifest(server) - before[server]
        # Beside the payload travel HEAD and the bag's own files, which are not in the manifest.
        assert answer["files_received"] <= len(changed) + 8, (server, len(changed))
        assert len(changed) < len(before[server]) / 2


def test_a_school_day_later_the_archive_shows_the_new_and_still_has_the_old() -> None:
    server = SERVERS[0]
    before, old = manifest(server), shown(server)["collection"]["sequence"]
    day = run(
        "docker", "exec", f"shala-lab-{server}", "docker", "exec", "gstudio", "standin", "next-day", "1"
    )
    assert day.returncode == 0, day.stderr.decode()
    for name in ("collect", "pull"):
        code, said, _ = play(name, "--limit", f"centre,{server}")
        assert code == 0, said[-4000:]
    new = shown(server)["collection"]["sequence"]
    assert manifest(server) != before
    logged = json.loads(at_the_centre("shala", "archive", "log", server, "--json"))["collections"]
    assert [entry["sequence"] for entry in logged][:2] == [new, old]
    changes = json.loads(at_the_centre("shala", "archive", "diff", server, str(old), "--json"))["changes"]
    assert {"gstudio/media", "gstudio/db"} <= {"/".join(change["path"].split("/")[:2]) for change in changes}
    at_the_centre("shala", "archive", "checkout", server, str(old), "/tmp/of-the-day-before")
    out = at_the_centre("sh", "-c", "cd /tmp/of-the-day-before && find . -type f -exec sha256sum {} +")
    taken_out = {line.replace(b"  ./", b"  data/", 1) for line in out.splitlines()}
    at_the_centre("rm", "-r", "/tmp/of-the-day-before")
    assert taken_out == before


def manifest(server: str) -> set[bytes]:
    """Return the lines of the manifest of the collection that the archive shows."""
    collection = shown(server)["collection"]
    folder = f"{ARCHIVE}/.shala/collections/{server}/{collection['year']}-{collection['sequence']:08d}"
    fields = [line.split(b" ", 4) for line in at_the_centre("cat", f"{folder}/files.txt").splitlines()]
    return {digest + b"  " + path for digest, _size, _time, _mode, path in fields}


# -- a server that is off ------------------------------------------------------------


@pytest.fixture
def stopped() -> Iterator[str]:
    """One server is switched off while the test runs; afterwards it answers again."""
    server = SERVERS[2]
    run("docker", "stop", f"shala-lab-{server}", timeout=120)
    yield server
    run("docker", "start", f"shala-lab-{server}", timeout=120)
    for _ in range(60):
        if run("docker", "exec", f"shala-lab-{server}", "systemctl", "is-active", "ssh").returncode == 0:
            return
        time.sleep(1)
    pytest.fail(f"{server} does not come back")


def test_a_server_that_is_off_is_named_and_holds_nobody_up(stopped: str) -> None:
    code, said, seconds = play("pull")
    assert code == 3, said[-4000:]
    assert re.search(rf"^{stopped} .* offline ", said, re.MULTILINE), said[-2000:]
    assert re.search(rf"^Left: {stopped}\. ", said, re.MULTILINE), said[-2000:]
    code, said, status_seconds = play("status")
    assert code == 0, said[-4000:]
    assert re.search(rf"^{stopped} .* offline ", said, re.MULTILINE), said[-2000:]
    # What the same commands cost when only the living are asked.
    living = ",".join(("centre", *(server for server in SERVERS if server != stopped)))
    code, said, pull_alone = play("pull", "--limit", living)
    assert code == 0, said[-4000:]
    _, _, status_alone = play("status", "--limit", living)
    assert seconds < pull_alone + 15
    assert status_seconds < status_alone + 15
