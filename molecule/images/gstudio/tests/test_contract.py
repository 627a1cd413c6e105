"""The built image, run: the contract of facts/gstudio.md section 6.2, and every fault switch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import bson
import pytest

pytestmark = pytest.mark.docker

IMAGE = os.environ.get("GSTUDIO_STANDIN_IMAGE", "gstudio:lab")
NAME = "shala-standin-smoke"
PROJECT = "/home/docker/code/gstudio/gnowsys-ndf"
SCRIPTS = "/home/docker/code/qbank-gstudio-scripts/single_school_get_MIT_activity_data"
ALL_USERS = "/home/docker/code/gstudio/doc/deployer/get_all_users_activity_timestamp_csvs.py"
Done = subprocess.CompletedProcess[str]


def docker(*arguments: str, stdin: str = "") -> Done:
    return subprocess.run(
        ["docker", *arguments], input=stdin, capture_output=True, text=True, timeout=120, check=False
    )


class Server:
    """A running stand-in whose volumes are folders of this machine."""

    def __init__(self, home: Path) -> None:
        self.home, self.data = home, home / "data"
        for folder in ("data", "code", "faults", "assesment-datastore"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        docker("rm", "-f", NAME)
        docker("create", "--name", NAME, IMAGE)
        docker("cp", f"{NAME}:/home/docker/code/.", str(home / "code"))
        docker("rm", NAME)
        settings = home / "code/gstudio/gnowsys-ndf/gnowsys_ndf/server_settings.py"
        settings.write_text(
            "GSTUDIO_INSTITUTE_ID ='mz17'\n"
            "GSTUDIO_INSTITUTE_ID_SECONDARY ='2031017'\n"
            "GSTUDIO_INSTITUTE_NAME ='One'\n"
        )

    def start(self) -> None:
        """Make the container anew on the same volumes and wait until all three services answer."""
        docker("rm", "-f", NAME)
        volumes = {
            "data": "/data",
            "code": "/home/docker/code",
            "faults": "/faults",
            "assesment-datastore": f"{PROJECT}/qbank-lite/webapps/CLIx/datastore",
        }
        mounts = [part for host, inside in volumes.items() for part in ("-v", f"{self.home / host}:{inside}")]
        started = docker("run", "-d", "--name", NAME, "--hostname", "clixserver.tiss.edu", *mounts, IMAGE)
        assert started.returncode == 0, started.stderr
        self.wait()

    def wait(self, seconds: float = 40) -> None:
        end = time.monotonic() + seconds
        while not (self.psql("SELECT 1") == "1" and self.mongo_answers() and self.web_answers()):
            assert time.monotonic() < end, docker("logs", "--tail", "20", NAME).stderr
            time.sleep(0.3)

    def run(self, *command: str, stdin: str = "", cwd: str = PROJECT) -> Done:
        return docker("exec", "-i", "-w", cwd, NAME, *command, stdin=stdin)

    def manage(self, *arguments: str, stdin: str = "") -> Done:
        return self.run("python", "manage.py", *arguments, stdin=stdin)

    def psql(self, query: str) -> str:
        return self.run(
            "sudo", "-u", "postgres", "psql", "-qAt", "gstudio_psql", "-c", query, cwd="/"
        ).stdout.strip()

    def mongo_answers(self) -> bool:
        return self.run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/27017").returncode == 0

    def web_answers(self) -> bool:
        command = r'exec 3<>/dev/tcp/127.0.0.1/80; printf "GET / HTTP/1.0\r\n\r\n" >&3; head -n 1 <&3'
        return " 200 " in self.run("bash", "-c", command).stdout

    def files(self, folder: str) -> set[Path]:
        return set((self.data / folder).rglob("*"))

    def fault(self, name: str, content: str = "") -> None:
        (self.home / "faults" / name).write_text(content)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if shutil.which("docker") is None or docker("image", "inspect", IMAGE).returncode:
        (pytest.fail if os.environ.get("SHALA_NO_SKIP") else pytest.skip)(f"there is no image {IMAGE}")
    server = Server(tmp_path_factory.mktemp("core"))
    server.start()
    yield server
    docker("rm", "-f", NAME)


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    yield running
    for switch in (running.home / "faults").iterdir():
        switch.unlink()
    running.wait()


def test_it_has_the_names_and_the_clock_of_the_real_one(server: Server) -> None:
    assert server.run("hostname").stdout.strip() == "clixserver.tiss.edu"
    assert server.run("date", "+%Z").stdout.strip() == "IST"
    assert docker("inspect", "-f", "{{.Config.WorkingDir}}", NAME).stdout.strip() == "/home/docker/code"
    for program in (
        "/usr/bin/python",
        "timeout",
        "sudo",
        "pg_dumpall",
        "mongodump",
        "rlog",
        "git",
        "rsync",
        "crontab",
    ):
        assert server.run("sh", "-c", f"command -v {program}").returncode == 0, program
    assert server.run("ls", "/data/db").stdout.count(".wt") > 5
    held = server.run("sh", "-c", "ls -l /proc/1/fd").stdout
    assert "/data/db/collection-0-" in held


def test_the_progress_export_ends_with_its_marker(server: Server) -> None:
    before = server.files("gstudio-exported-users-analytics-csvs")
    done = server.manage("export_users_analytics")
    assert done.returncode == 0
    assert "[ 1 / 4 ]" in done.stdout
    assert done.stdout.endswith(f"RESULT OF CSV EXPORT:\n\t- CREATED: 3\n\t- NOT CREATED: 1\n{'=' * 100}\n")
    new = server.files("gstudio-exported-users-analytics-csvs") - before
    assert {path.name.split("-unit")[0] for path in new} == {
        "2031017-mz17-eb",
        "2031017-mz17-ee",
        "2031017-mz17-gr",
    }
    assert all(path.read_bytes().endswith(b"\r\n") for path in new)
    assert (
        "######### Script ran on :" in (server.data / "gstudio-logs/export_users_analytics.log").read_text()
    )


def test_activity_timestamps_of_one_user(server: Server) -> None:
    before = server.files("activity-timestamp-csvs")
    done = server.manage("activity_timestamp", "green-apple-sp100")
    assert done.returncode == 0
    assert "Total activity-player visits: " in done.stdout
    assert "Time Required to process: " in done.stdout
    (new,) = server.files("activity-timestamp-csvs") - before
    assert new.name.startswith("mz17-green-apple-sp100-activity-visits-20")
    unknown = server.manage("activity_timestamp", "nobody")
    assert (unknown.returncode, unknown.stdout) == (0, "No User found with nobody\n")
    assert "EOFError" in server.manage("activity_timestamp").stderr


def test_activity_timestamps_of_all_users_and_the_shell_that_always_succeeds(server: Server) -> None:
    done = server.manage("shell", stdin=f"execfile('{ALL_USERS}')\n")
    assert done.returncode == 0
    assert done.stdout.count("Time Required to process") > 15
    relative = server.manage("shell", stdin="execfile('../doc/deployer/no_such_file.py')\n")
    assert relative.returncode == 0
    assert "Traceback" in relative.stderr
    server.fault("failing-user", "green-apple-sp100")
    cut = server.manage("shell", stdin=f"execfile('{ALL_USERS}')\n")
    assert cut.returncode == 0
    assert "AttributeError" in cut.stderr


def test_the_assessment_export_is_done_whatever_happened(server: Server) -> None:
    script = ("python", "single_school_get_MIT_activity_data.py")
    done = server.run(*script, cwd=SCRIPTS)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Done!")
    assert "done dumping assessment.AssessmentTaken (" in done.stderr
    with tarfile.open(server.data / "qbank/qbank_data.tar.gz") as tar:
        assert {name.split("/")[0] for name in tar.getnames()} == {"mongo-dump", "student-activities"}
    table = server.data / "qbank/student-activities/activity-data.csv"
    assert table.read_bytes().startswith(b"Username,UserID,Date (YYYY-MM-DD),Total Timestamps,")
    assert len(table.read_text().splitlines()) > 5
    server.fault("header-only-activity-data")
    server.run(*script, cwd=SCRIPTS)
    assert table.read_bytes() == b"Username,UserID\r\n"
    server.fault("mongod-down")
    time.sleep(1.5)
    failed = server.run(*script, cwd=SCRIPTS)
    assert (failed.returncode, failed.stdout.splitlines()[-1]) == (0, "Done!")


def test_mongodump_writes_real_bson(server: Server) -> None:
    done = server.run(
        "mongodump", "--host", "127.0.0.1", "--port", "27017", "-d", "gstudio-mongodb", "-o", "/data/dump"
    )
    assert done.returncode == 0, done.stderr
    folder = server.data / "dump/gstudio-mongodb"
    assert {"Nodes", "Triples", "Benchmarks", "Counters", "Filehives", "Buddies"} <= {
        p.stem for p in folder.glob("*.bson")
    }
    found = bson.decode_all((folder / "Benchmarks.bson").read_bytes())
    assert f"done dumping gstudio-mongodb.Benchmarks ({len(found)} documents)" in done.stderr
    assert (
        json.loads((folder / "Nodes.metadata.json").read_text())["indexes"][0]["ns"]
        == "gstudio-mongodb.Nodes"
    )
    server.fault("partial-mongodump")
    partly = server.run("mongodump", "--db", "gstudio-mongodb", "--out", "/data/dump")
    assert partly.returncode == 0
    assert partly.stderr.count("done dumping") == 1
    assert len(bson.decode_all((folder / "Nodes.bson").read_bytes())) < len(found)
    server.fault("partial-mongodump", "cut")
    server.run("mongodump", "--db", "gstudio-mongodb", "--out", "/data/dump")
    with pytest.raises(bson.InvalidBSON):
        bson.decode_all((folder / "Nodes.bson").read_bytes())


def test_mongorestore_puts_a_dump_back_byte_by_byte(server: Server) -> None:
    dump = ("mongodump", "-d", "repository", "-o")
    server.run(*dump, "/data/first")
    names = [path.stem for path in (server.data / "first/repository").glob("*.bson")]
    drop = "import pymongo; pymongo.MongoClient('127.0.0.1', 27017).drop_database('repository')"
    assert server.run("python", "-c", drop).returncode == 0
    into = (
        "mongorestore",
        "--drop",
        "--maintainInsertionOrder",
        "-d",
        "repository",
        "/data/first/repository",
    )
    done = server.run(*into)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finished restoring repository.") == len(names) > 0
    server.run(*into)
    server.run(*dump, "/data/second")
    for path in (server.data / "first/repository").iterdir():
        assert (server.data / "second/repository" / path.name).read_bytes() == path.read_bytes()
    cut = server.data / f"first/repository/{names[0]}.bson"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert server.run(*into).returncode == 1


def test_the_export_can_be_cut_emptied_slowed_and_starved(server: Server) -> None:
    folder = "gstudio-exported-users-analytics-csvs"

    def export(switch: str, content: str = "") -> tuple[Done, list[int]]:
        for path in server.files(folder):
            path.unlink()
        server.fault(switch, content)
        done = server.manage("export_users_analytics")
        (server.home / "faults" / switch).unlink()
        return done, sorted(path.stat().st_size for path in server.files(folder))

    done, whole = export("nothing")
    assert len(whole) == 3
    done, sizes = export("die-after", "1")
    assert done.returncode == 137
    assert len(sizes) == 2
    assert "RESULT" not in done.stdout
    done, sizes = export("zero-byte-csv", "2")
    assert (done.returncode, sizes[0], len(sizes)) == (0, 0, 3)
    assert "CREATED: 3" in done.stdout
    done, sizes = export("disk-full", "700")
    assert "No space left on device" in done.stderr
    assert sizes == [700]
    begun = time.monotonic()
    export("export-slow", "1")
    assert time.monotonic() - begun > 3


def test_a_killed_client_leaves_a_half_written_csv_growing(server: Server) -> None:
    server.fault("export-slow", "4")
    before = server.files("gstudio-exported-users-analytics-csvs")
    client = subprocess.Popen(
        ["docker", "exec", "-w", PROJECT, NAME, "python", "manage.py", "export_users_analytics"]
    )
    time.sleep(3)
    client.kill()
    client.wait()
    assert "export_users_analytics" in docker("top", NAME).stdout
    server.run("pkill", "-9", "-f", "manage.py export_users_analytics")
    (half,) = server.files("gstudio-exported-users-analytics-csvs") - before or {None}
    assert half is None or half.stat().st_size < 4000


def test_postgres_can_be_down_and_the_dump_is_then_empty(server: Server) -> None:
    server.fault("postgres-down")
    time.sleep(2)
    server.run("sudo", "su", "-", "postgres", stdin="pg_dumpall > pg_dump_all.sql;\n")
    assert server.run("stat", "-c", "%s", "/var/lib/postgresql/pg_dump_all.sql").stdout.strip() == "0"
    done = server.manage("export_users_analytics")
    assert (done.returncode, "CREATED: 3" in done.stdout) == (0, True)  # headers only, and it says nothing
    (server.home / "faults/postgres-down").unlink()
    server.wait()
    server.run("sudo", "su", "-", "postgres", stdin="pg_dumpall > pg_dump_all.sql;\n")
    dump = server.run("cat", "/var/lib/postgresql/pg_dump_all.sql").stdout
    assert "COPY public.auth_user (id, password, last_login, is_superuser, username, first_name" in dump
    assert "-- PostgreSQL database cluster dump complete" in dump


def test_tool_logs_are_caught_torn_while_they_are_rewritten(server: Server) -> None:
    (log,) = (server.data / "gstudio_tools_logs/policesquad").glob("0-*.json")
    json.loads(log.read_text())
    server.fault("tool-log-rewriting")
    end, torn = time.monotonic() + 20, 0
    while time.monotonic() < end and not torn:
        try:
            json.loads(log.read_text())
        except ValueError:
            torn += 1
    assert torn


def test_the_clock_can_be_wrong(server: Server) -> None:
    server.fault("clock-wrong", "2000-01-01T00:00:00")
    before = server.files("activity-timestamp-csvs")
    server.manage("activity_timestamp", "blue-bat-sp100")
    (new,) = server.files("activity-timestamp-csvs") - before
    assert "-20000101-00h00m" in new.name


def test_a_school_day_reaches_files_and_databases(server: Server) -> None:
    query = "SELECT max(last_login) FROM auth_user"
    login = server.psql(query)
    done = server.run("standin", "next-day", "3")
    assert done.returncode == 0, done.stderr
    assert server.psql(query) > login
    server.run("mongodump", "-d", "gstudio-mongodb", "-o", "/tmp/later")
    size = server.run("stat", "-c", "%s", "/tmp/later/gstudio-mongodb/Benchmarks.bson").stdout
    assert int(size) > (server.data / "dump/gstudio-mongodb/Benchmarks.bson").stat().st_size


def test_archives_are_what_the_real_ci_writes(server: Server) -> None:
    docker("cp", str(Path(__file__).with_name("compare_with_ci.py")), f"{NAME}:/tmp/")
    server.run("mkdir", "-p", "/tmp/ci")
    done = server.run("python", "/tmp/compare_with_ci.py", "/tmp/ci")
    assert done.returncode == 0, done.stdout
    archives = [
        str(path).replace(str(server.data), "/data")
        for path in server.files("rcs-repo")
        if path.suffix == ".json,v"
    ]
    assert server.run("rlog", "-h", *archives).returncode == 0
    newest = server.run("co", "-q", "-p", archives[0]).stdout
    assert newest == (server.data / archives[0].removeprefix("/data/").removesuffix(",v")).read_text()


def test_the_three_repositories_answer_the_four_commands(server: Server) -> None:
    for repository in ("", "gstudio", "gstudio/gnowsys-ndf/qbank-lite"):
        for command in (["status"], ["diff"], ["log", "-5"], ["branch"]):
            done = server.run("git", *command, cwd=f"/home/docker/code/{repository}")
            assert done.returncode == 0, done.stderr
    assert (
        "server_settings.py" in server.run("git", "status", "--short", cwd="/home/docker/code/gstudio").stdout
    )


def test_the_scripts_of_the_hourly_jobs_run(server: Server) -> None:
    server.run("env", "GSTUDIO_STANDIN_BACKUP_SLEEP=0", "/home/docker/code/scripts/backup.sh")
    server.run("/home/docker/code/scripts/system-heartbeat.sh")
    year = server.run("date", "+%Y").stdout.strip()
    thin = server.run("ls", f"/backups/syncthing/{year}/mz/2031017-mz17/gstudio").stdout.split()
    assert {"gstudio-exported-users-analytics-csvs", "qbank", "git-commit-details.log"} <= set(thin)
    newest = max((server.data / "system-heartbeat").iterdir(), key=lambda path: path.name)
    assert "clixserver.tiss.edu" in newest.read_text()
    assert "mz17" not in newest.read_text().split("USER")[0]


def test_it_stops_quickly_and_a_container_made_anew_has_lost_the_users(server: Server) -> None:
    (server.home / "data/users.csv").write_text("123,2031017,new-student-mz17,secret,0\n")
    server.manage("sync_users", "/data/users.csv")
    assert int(server.psql("SELECT count(*) FROM auth_user")) > 20
    begun = time.monotonic()
    docker("stop", NAME)
    assert time.monotonic() - begun < 5
    docker("start", NAME)
    server.wait()
    assert server.psql("SELECT id FROM auth_user WHERE username = 'new-student-mz17'") == "123"
    before = {path: path.stat().st_mtime_ns for path in server.files("media")}
    server.start()
    assert server.psql("SELECT count(*) FROM auth_user") == "10"
    assert {path: path.stat().st_mtime_ns for path in server.files("media")} == before
    assert server.run("mongodump", "-d", "assessment", "-o", "/tmp/d").stderr.count("done dumping") == 6


def test_mongod_can_be_late(server: Server) -> None:
    server.fault("mongod-delay", "6")
    begun = time.monotonic()
    server.start()
    assert time.monotonic() - begun > 6
