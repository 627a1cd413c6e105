"""One round on the lab fleet, seen by the operator and by the reader of the archive.

Runs after `molecule converge -s fleet` (site.yml, collect.yml, pull.yml), by `molecule verify -s fleet`.
The order matters: first the archive is read, then the round is repeated, then zones are synced, then a server is
wrecked and restored, last one is stopped.
"""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import shutil
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


# -- the zones ------------------------------------------------------------

HILL, LAKE, FAR = SERVERS  # the first two are of one zone


def on(server: str, *command: str, stdin: bytes = b"") -> bytes:
    done = run("docker", "exec", "-i", f"shala-lab-{server}", *command, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def progress_at(server: str) -> dict[tuple[str, str], Any]:
    """Return what a server knows of students' progress: by the server that it comes from and its key."""
    rows = on(server, "shala-agent", "records", "export", "--type", "progress", "--format", "json")
    found = [json.loads(line) for line in rows.splitlines()]
    return {(row["server"], row["key"]): row["value"] for row in found}


def test_nothing_of_the_tokens_stands_in_a_log() -> None:
    for machine, command in ((HILL, "shala-agent', 'enrol"), ("centre-1", "shala', 'device', 'create")):
        logged = on(machine, "journalctl", "--no-pager").decode()
        assert "Invoked with" in logged  # what Ansible ran without a secret
        assert command not in logged


@pytest.fixture(scope="module")
def learnt() -> set[tuple[str, str]]:
    """A day of lessons on one server, and one sync.yml: what is new there."""
    before = progress_at(HILL)
    on(HILL, "docker", "exec", "gstudio", "standin", "next-day", "1")
    on(HILL, "shala-agent", "derive", "progress")
    code, said, _ = play("sync")
    assert code == 0, said[-4000:]
    assert re.search(r"^Zone mz-aizawl: 2 of 2 in sync$", said, re.MULTILINE), said[-3000:]
    assert re.search(r"^Zone rj-jaipur: 1 of 1 in sync$", said, re.MULTILINE), said[-3000:]
    after = progress_at(HILL)
    new = {name for name, value in after.items() if name[0] == HILL and before.get(name) != value}
    assert new
    return new


def test_schools_are_told_where_the_centre_is_now_and_not_only_when_they_enrol() -> None:
    url = json.loads(on("centre-1", "cat", "/etc/shala/zones.json"))["url"]
    for server in SERVERS:
        assert f'url = "{url}"\n' in on(server, "cat", "/etc/shala/agent.toml").decode()


def test_a_students_new_progress_is_on_the_other_server_of_her_zone_after_one_sync(
    learnt: set[tuple[str, str]],
) -> None:
    here, there = progress_at(HILL), progress_at(LAKE)
    assert {key: there.get(key) for key in learnt} == {key: here[key] for key in learnt}


def test_it_is_not_on_a_server_of_another_zone(learnt: set[tuple[str, str]]) -> None:
    assert {server for server, _ in progress_at(FAR)} == {FAR}


def test_the_centre_knows_where_it_is(learnt: set[tuple[str, str]]) -> None:
    _, key = next(iter(learnt))
    said = json.loads(at_the_centre("shala", "zone", "record", "progress", key, "--json"))["records"]
    # A student of the other zone may have the same name.
    assert [one["versions"][0]["author"] for one in said if one["zone"] == "mz-aizawl"] == [HILL]


def test_the_teachers_page_shows_it_in_a_browser(learnt: set[tuple[str, str]], tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    assert browser, "chromium is missing: lab/bootstrap.sh test-tools installs it"
    page = tmp_path / "progress.html"
    page.write_bytes(on(LAKE, "cat", "/var/lib/shala/progress.html"))
    done = run(
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path}/profile", "--dump-dom", page.as_uri(),
    )  # fmt: skip
    text = html.unescape(re.sub(r"<[^>]+>", " ", done.stdout.decode()))
    assert "Progress in zone mz-aizawl" in text, done.stderr.decode()[-2000:]
    here = progress_at(HILL)
    for server, key in learnt:
        student, _, _ = key.partition("/")
        assert student in text
        assert here[server, key]["unit_name"] in text
    assert HILL in text


def test_syncing_again_moves_no_record_and_is_one_small_request(learnt: set[tuple[str, str]]) -> None:
    on(LAKE, "shala-agent", "sync", "--json")
    again = json.loads(on(LAKE, "shala-agent", "sync", "--json"))["sync"]
    assert (again["records_up"], again["records_down"], again["requests"]) == (0, 0, 1)
    assert again["bytes_up"] + again["bytes_down"] <= 1024


WRITE_MUCH = b"""
import random
from pathlib import Path
from shala_agent.config import read_config
from shala_agent.records import Change
from shala_agent.zone import changing, device_of
config = read_config(Path("/etc/shala/agent.toml"))
with changing(config, "test") as records:
    noise = [Change("account", f"noise{n}", {"note": random.randbytes(6000).hex()}) for n in range(300)]
    records.write(noise, 1000)
    records.cut(device_of(config).key)
    print(records.unsent().bytes)
"""
SLOW = 100_000  # bytes per second
PART = 256 << 10  # what one request carries at most (docs/protocol.md): what a cut may cost


@pytest.fixture
def slow(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server on a slow line."""
    server = str(request.param)
    file = "/etc/shala/agent.toml"
    on(server, "sed", "-i.before", f"s/^bytes_per_second = 0$/bytes_per_second = {SLOW}/", file)
    yield server
    on(server, "mv", f"{file}.before", file)


def line_of(server: str) -> int:
    """Return how many bytes have gone over a server's line, both ways."""
    counts = run(
        "docker", "exec", f"shala-lab-{server}", "sh", "-c", "cat /sys/class/net/eth*/statistics/?x_bytes"
    )
    return sum(map(int, counts.stdout.split()))


def cut_and_resumed(server: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take a server off the network in the middle of its sync; return what that run and the next one said."""
    command = ("docker", "exec", f"shala-lab-{server}", "shala-agent", "sync", "--json", "--without-ingest")
    inspect = '{{(index .NetworkSettings.Networks "shala-lab").IPAddress}}'
    address = run("docker", "inspect", "-f", inspect, f"shala-lab-{server}").stdout.decode().strip()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as syncing:
        before, deadline = line_of(server), time.monotonic() + 120
        while line_of(server) < before + 3 * PART and time.monotonic() < deadline:
            time.sleep(0.2)
        assert syncing.poll() is None, "it was done before it could be cut"
        run("docker", "network", "disconnect", "shala-lab", f"shala-lab-{server}")
        try:
            out, _ = syncing.communicate(timeout=240)
        finally:
            run("docker", "network", "connect", "--ip", address, "shala-lab", f"shala-lab-{server}")
    cut = json.loads(out)["sync"]
    assert cut["outcome"] in {"partly", "silent"}, cut
    return cut, json.loads(on(server, *command[3:]))["sync"]


@pytest.mark.parametrize("slow", [HILL], indirect=True)
def test_an_upload_that_lost_the_network_goes_on_where_it_was(slow: str) -> None:
    size = int(on(slow, "/opt/shala/agent/current/bin/python", "-", stdin=WRITE_MUCH))
    cut, resumed = cut_and_resumed(slow)
    assert resumed["outcome"] == "done"
    assert cut["bytes_up"] > PART
    assert resumed["bytes_up"] < size - cut["bytes_up"] + PART + 20_000  # and the headers


@pytest.mark.parametrize("slow", [LAKE], indirect=True)
def test_a_download_that_lost_the_network_goes_on_at_its_byte(slow: str) -> None:
    cut, resumed = cut_and_resumed(slow)
    assert resumed["outcome"] == "done"
    size = cut["lag_before"]["bytes_down"]
    assert cut["bytes_down"] > PART
    assert resumed["bytes_down"] < size - cut["bytes_down"] + 20_000


# -- the restore drill ------------------------------------------------------------

WRECK = """
import pymongo
server = pymongo.MongoClient('127.0.0.1', 27017)
for name in server.list_database_names():
    name == 'admin' or server.drop_database(name)
"""
CODE = "/home/core/code/gstudio/gnowsys-ndf/gnowsys_ndf"


def wreck(server: str) -> None:
    """Lose a school's databases and media, and put nonsense into its settings."""
    drop = b"DROP DATABASE gstudio_psql WITH (FORCE);"
    on(
        server,
        "docker",
        "exec",
        "-i",
        "gstudio",
        "su",
        "postgres",
        "-c",
        "cd /; psql -qX -d postgres",
        stdin=drop,
    )
    on(server, "docker", "exec", "gstudio", "python", "-c", WRECK)
    on(
        server,
        "rm",
        "-r",
        "/home/core/data/media",
        "/home/core/data/rcs-repo",
        "/home/core/data/gstudio_tools_logs",
    )
    on(server, "sh", "-c", "rm -r /home/core/assesment-datastore/*")
    on(server, "sh", "-c", f"echo DEBUG=True > {CODE}/local_settings.py")


def restorable(server: str) -> dict[bytes, bytes]:
    """Return {path: sha256} of what can go back, of the collection that the archive shows."""
    names = json.loads(on(server, "shala-agent", "restore", "--list", "--json"))["items"]
    assert set(names) > {"db", "postgres-dump", "media", "rcs-repo", "local_settings.py"}
    lines = (line.split(b"  ", 1) for line in manifest(server))
    return {path: digest for digest, path in lines if path.decode().split("/")[2] in names}


def test_a_server_that_lost_its_data_gets_all_of_it_back_from_the_archive() -> None:
    server = FAR
    for name in ("collect", "pull"):
        code, said, _ = play(name, "--limit", f"centre,{server}")
        assert code == 0, said[-4000:]
    before = restorable(server)
    wreck(server)
    code, said, _ = play("restore", "-e", f"restore_server={server}", "--check")
    assert code == 0, said[-4000:]
    assert "media" in re.findall(r"^(\S+) +would be restored", said, re.MULTILINE), said[-3000:]
    code, said, _ = play("restore", "-e", f"restore_server={server}")
    assert code == 0, said[-4000:]
    assert {"db", "media", "postgres-dump"} <= set(re.findall(r"^(\S+) +ok ", said, re.MULTILINE)), said[
        -3000:
    ]
    assert "cannot log in until a teacher sets a new password" in said
    for machine in (server, "centre-1"):
        assert on(machine, "sh", "-c", "ls -d /var/tmp/shala-restore.* 2>/dev/null || true") == b""
    for name in ("collect", "pull"):
        code, said, _ = play(name, "--limit", f"centre,{server}")
        assert code == 0, said[-4000:]
    assert restorable(server) == before


def test_a_server_with_data_is_not_overwritten_unless_told_so() -> None:
    before = on(FAR, "sha256sum", f"{CODE}/local_settings.py")
    code, said, _ = play("restore", "-e", f"restore_server={HILL}", "-e", f"restore_onto={FAR}")
    assert code == 2, said[-4000:]
    assert "this server has data" in said
    assert on(FAR, "sha256sum", f"{CODE}/local_settings.py") == before


def test_another_servers_collection_does_not_change_who_a_server_is() -> None:
    settings = on(FAR, "cat", f"{CODE}/server_settings.py")
    chosen = {
        "restore_server": HILL,
        "restore_onto": FAR,
        "restore_yes": True,
        "restore_items": ["server_settings.py"],
    }
    code, said, _ = play("restore", "-e", json.dumps(chosen))
    assert code == 0, said[-4000:]
    assert f"left as it is: the collection is of {HILL}, this server is {FAR} and stays so" in said, said[
        -4000:
    ]
    assert on(FAR, "cat", f"{CODE}/server_settings.py") == settings


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
    code, said, _ = play("sync")
    assert code == 3, said[-4000:]
    assert re.search(rf"^{stopped} .* ?offline ", said, re.MULTILINE), said[-2000:]
    assert re.search(r"^Zone mz-aizawl: 2 of 2 in sync$", said, re.MULTILINE), said[-2000:]
    # What the same commands cost when only the living are asked.
    living = ",".join(("centre", *(server for server in SERVERS if server != stopped)))
    code, said, pull_alone = play("pull", "--limit", living)
    assert code == 0, said[-4000:]
    _, _, status_alone = play("status", "--limit", living)
    assert seconds < pull_alone + 15, f"{seconds:.1f} s with it, {pull_alone:.1f} s without"
    assert status_seconds < status_alone + 15, f"{status_seconds:.1f} s with it, {status_alone:.1f} s without"
