"""The agent against the stand-in of the platform, in a real container.

Needs a Docker engine and the image gstudio:lab.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import bagit
import msgspec
import pytest
from shala_agent.chain import Chain, Passage
from shala_agent.config import read_config
from shala_agent.container import Container, ContainerUnavailable
from shala_agent.databases import wait_for
from shala_agent.reach import CODE, DATASTORE

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

IMAGE = "gstudio:lab"


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


class Platform:
    """One running stand-in, its folders on the host, and the agent's configuration for it."""

    def __init__(self, root: Path, name: str = "shala-agent-test") -> None:
        self.root = root
        self.name = f"{name}-{os.getpid()}"
        self.config_path = root / "agent.toml"

    def start(self, *options: str) -> None:
        self.begin(*options)
        self.ready()

    def begin(self, *options: str, faults: Mapping[str, str] | None = None) -> None:
        """Start it with more options of `docker run`, and with faults that are there from its first moment."""
        for folder in ("data", "code", "assessments", "faults"):
            (self.root / folder).mkdir()
        for fault, content in (faults or {}).items():
            self.fault(fault, content)
        seed = docker("create", IMAGE)
        docker("cp", f"{seed}:{CODE}/.", str(self.root / "code"))
        docker("rm", seed)
        settings = self.root / "code/gstudio/gnowsys-ndf/gnowsys_ndf/server_settings.py"
        settings.write_text(
            "GSTUDIO_INSTITUTE_ID ='mz17'\nGSTUDIO_INSTITUTE_ID_SECONDARY ='2031017'\n"
            "GSTUDIO_INSTITUTE_NAME ='Hill School'\n"
        )
        volumes = {"data": "/data", "code": CODE, "assessments": DATASTORE, "faults": "/faults"}
        mounts = [word for host, inside in volumes.items() for word in ("-v", f"{self.root / host}:{inside}")]
        docker("run", "-d", "--name", self.name, *mounts, *options, IMAGE)
        self.config_path.write_text(
            f'format = 1\n[container]\nname = "{self.name}"\n[paths]\nstate = "{self.root}/state"\n'
            f'spool = "{self.root}/spool"\nspool_group = ""\ndata = "{self.root}/data"\n'
            f'code = "{self.root}/code"\n'
            f'assessments = "{self.root}/assessments"\n[identity]\nserver_name = "2031017-mz17"\n'
        )

    def ready(self) -> None:
        with self.container.claimed("test", 60):
            assert wait_for(self.container, "postgres", 120) == ""
            assert wait_for(self.container, "mongo", 120) == ""
        for _ in range(120):
            probe = ["docker", "exec", self.name, "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/80"]
            if subprocess.run(probe, check=False, capture_output=True).returncode == 0:
                return
            time.sleep(0.5)
        raise AssertionError("the stand-in's nginx does not answer")

    @property
    def container(self) -> Container:
        return Container(self.name, self.root / "state/locks")

    def do(self, deed: Callable[[Chain], Passage], **paths: str) -> Passage:
        from shala_agent.ledger import Ledger

        config = read_config(self.config_path)
        config = msgspec.structs.replace(config, paths=msgspec.structs.replace(config.paths, **paths))
        with closing(Ledger(self.root / "state/ledger.sqlite")) as ledger:
            return deed(Chain(config, ledger))

    def fault(self, name: str, content: str = "") -> Path:
        file = self.root / "faults" / name
        file.write_text(content)
        return file

    def processes(self) -> str:
        return docker("top", self.name)


def require_image() -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode
    ):
        (pytest.fail if os.environ.get("SHALA_NO_SKIP") else pytest.skip)(
            f"there is no engine with the image {IMAGE} (make images)"
        )


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    require_image()
    with tempfile.TemporaryDirectory(prefix="shala-agent-") as folder:
        made = Platform(Path(folder))
        try:
            made.start()
            yield made
        finally:
            subprocess.run(["docker", "rm", "-f", made.name], capture_output=True, check=False)


@pytest.fixture(autouse=True)
def no_faults(platform: Platform) -> Iterator[None]:
    yield
    for fault in (platform.root / "faults").iterdir():
        fault.unlink()


def outcome(passage: Passage) -> tuple[str, str]:
    (_, result), *_ = passage.steps
    return result.outcome, " | ".join(result.reasons)


def test_the_whole_chain_collects_everything_whole(platform):
    passage = platform.do(lambda chain: chain.run())
    assert {name: result.outcome for name, result in passage.steps} == {
        name: "ok" for name, _ in passage.steps
    }
    assert passage.exit_code == 0
    items = {item.name: item for item in passage.collected.collection.items}
    assert {item.outcome for item in items.values()} == {"ok"}
    assert all(item.files for item in items.values())
    bag = platform.root / "spool/bag"
    assert bagit.Bag(str(bag)).validate()
    dump = (bag / "data/gstudio/postgres-dump/pg_dump_all.sql").read_text()
    assert "auth_user" in dump
    log = (bag / "data/gstudio/git-commit.log").read_text()
    assert log.count("## git log -5") == 3
    assert log.count("commit ") >= 3
    assert len(list((bag / "data/gstudio/db").iterdir())) == 9
    dumped = [path for path in (platform.root / "data/.shala").rglob("*") if path.is_file()]
    assert {path.name: oct(path.stat().st_mode & 0o77) for path in dumped if path.stat().st_mode & 0o77} == {}
    assert (platform.root / "data/.shala").stat().st_mode & 0o777 == 0o700
    assert not list(bag.rglob(".shala-*"))


def test_a_second_collection_moves_only_what_is_new(platform):
    before = platform.do(lambda chain: chain.by_hand(("postgres-dump", "mongo-dump", "collect")))
    dumped = platform.root / "spool/bag/data/gstudio/db"
    inodes = {path: path.stat().st_ino for path in dumped.rglob("*.bson")}
    assert inodes
    again = platform.do(lambda chain: chain.by_hand(("postgres-dump", "mongo-dump", "collect")))
    assert before.collected.head.sequence >= 1
    assert {item.outcome for item in again.collected.collection.items} == {"ok"}
    assert {path: path.stat().st_ino for path in dumped.rglob("*.bson")} == inodes


def test_one_users_activity_is_derived_and_an_unknown_user_fails(platform):
    csvs = sorted((platform.root / "data/activity-timestamp-csvs").glob("mz17-*-activity-visits-*.csv"))
    user = csvs[-1].name.removeprefix("mz17-").partition("-activity-visits-")[0]
    time.sleep(1)
    assert outcome(platform.do(lambda chain: chain.by_hand((), user=user)))[0] == "ok"
    word, reason = outcome(platform.do(lambda chain: chain.by_hand((), user="no-such-mz17")))
    assert word == "failed"
    assert "no user 'no-such-mz17'" in reason


def test_postgres_down_keeps_the_last_good_dump(platform, monkeypatch):
    monkeypatch.setattr("shala_agent.databases.READY_WAIT", 1)
    monkeypatch.setattr("shala_agent.databases.wait_for", lambda *_: "")
    dump = platform.root / "data/postgres-dump/pg_dump_all.sql"
    before = dump.read_bytes()
    fault = platform.fault("postgres-down")
    time.sleep(3)
    word, reason = outcome(platform.do(lambda chain: chain.by_hand(("postgres-dump",))))
    assert word == "failed"
    assert "last good one is kept" in reason
    assert dump.read_bytes() == before
    assert not list(dump.parent.glob(".shala-*"))
    fault.unlink()
    time.sleep(3)
    platform.ready()
    assert outcome(platform.do(lambda chain: chain.by_hand(("postgres-dump",))))[0] == "ok"


@pytest.mark.parametrize("how", ["", "cut"])
def test_a_partial_mongodump_never_replaces_the_good_one(platform, how):
    folder = platform.root / "data/.shala/db/gstudio-mongodb"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    platform.fault("partial-mongodump", how)
    word, reason = outcome(platform.do(lambda chain: chain.by_hand(("mongo-dump",))))
    assert word in ("failed", "suspect")
    assert "bson" in reason
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_export_that_dies_half_way_is_not_called_ok(platform):
    platform.fault("die-after", "1")
    word, reason = outcome(platform.do(lambda chain: chain.by_hand(("progress",))))
    assert word == "failed"
    assert "broke off" in reason


def test_a_zero_byte_csv_is_found_although_it_counts_as_created(platform):
    platform.fault("zero-byte-csv", "1")
    word, reason = outcome(platform.do(lambda chain: chain.by_hand(("progress",))))
    assert word == "suspect"
    assert "is empty" in reason


def test_one_failing_user_is_noticed_behind_exit_code_zero(platform):
    csvs = sorted((platform.root / "data/activity-timestamp-csvs").glob("mz17-*-activity-visits-*.csv"))
    user = csvs[len(csvs) // 2].name.removeprefix("mz17-").partition("-activity-visits-")[0]
    platform.fault("failing-user", user)
    word, reason = outcome(platform.do(lambda chain: chain.by_hand(("activity-timestamps",))))
    assert word in ("suspect", "failed")
    assert "broke off" in reason


def test_the_header_only_activity_data_is_found_and_said(platform):
    platform.fault("header-only-activity-data")
    word, reason = outcome(platform.do(lambda chain: chain.by_hand(("assessments",))))
    assert word == "suspect"
    assert "activity-data.csv holds only its header" in reason


def test_the_scripts_incomplete_dump_is_compared_with_our_own(platform):
    assert outcome(platform.do(lambda chain: chain.by_hand(("mongo-dump",))))[0] == "ok"
    platform.fault("partial-mongodump")
    word, reason = outcome(platform.do(lambda chain: chain.by_hand(("assessments",))))
    assert word == "suspect"
    assert "documents: the script's dump is incomplete, complete is the item db" in reason


def test_what_overruns_is_ended_inside_the_container(platform):
    with platform.container.claimed("test"):
        ran = platform.container.run(["sleep", "1234"], timeout_seconds=1)
    assert ran.timed_out
    assert "sleep 1234" not in platform.processes()


def test_streams_come_apart_and_whole(platform):
    with platform.container.claimed("test"):
        lines = []
        ran = platform.container.run(
            ["sh", "-c", "seq 20000; echo problem >&2; exit 7"], timeout_seconds=30, watch=lines.append
        )
    assert lines == [str(number) for number in range(1, 20001)]
    assert (ran.exit_code, ran.stderr, ran.timed_out) == (7, "problem\n", False)
    assert "\r" not in ran.stdout


def test_a_killed_agents_command_is_ended_by_the_next_run(platform):
    script = (
        "import sys; from pathlib import Path; from shala_agent.container import Container\n"
        f"c = Container({platform.name!r}, Path({str(platform.root / 'state/locks')!r}))\n"
        "with c.claimed('test'):\n    print('go', flush=True); c.run(['sleep', '4321'], timeout_seconds=600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    time.sleep(1.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "sleep 4321" in platform.processes()
    with platform.container.claimed("test"):
        pass
    assert "sleep 4321" not in platform.processes()


def test_sigterm_stops_the_chain_cleanly_and_the_next_run_resumes(platform):
    platform.fault("export-slow", "3")
    environment = {**os.environ, "SHALA_AGENT_CONFIG": str(platform.config_path)}
    command = [sys.executable, "-m", "shala_agent.cli", "run"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("mongo-dump:"):
            break
    time.sleep(3)
    process.terminate()
    assert process.wait(60) == 3
    assert "the next run goes on here" in process.stderr.read()
    time.sleep(1)
    assert "manage.py" not in platform.processes()
    (platform.root / "faults/export-slow").unlink()
    passage = platform.do(lambda chain: chain.run())
    assert passage.resumed
    assert passage.exit_code == 0


def test_a_paused_and_a_stopped_container_are_named_with_the_way_out(platform):
    docker("pause", platform.name)
    try:
        way_out = f"is paused.*docker unpause {platform.name}"
        with pytest.raises(ContainerUnavailable, match=way_out), platform.container.claimed("test"):
            pass
        passage = platform.do(lambda chain: chain.by_hand(("progress",)))
        assert passage.exit_code == 1
    finally:
        docker("unpause", platform.name)
    missing = Container("shala-agent-test-none", platform.root / "state/locks")
    with pytest.raises(ContainerUnavailable, match="is missing"), missing.claimed("test"):
        pass


def test_a_container_that_dies_under_a_command_is_named(platform):
    script = f"sleep 1.5; docker kill {platform.name}"
    killer = subprocess.Popen(["sh", "-c", script], stdout=subprocess.DEVNULL)
    try:
        with pytest.raises(ContainerUnavailable, match="exited"), platform.container.claimed("test"):
            platform.container.run(["sleep", "30"], timeout_seconds=60)
    finally:
        killer.wait()
        docker("start", platform.name)
        platform.ready()


def test_what_is_not_on_the_host_is_read_through_the_container(platform):
    nowhere = str(platform.root / "nowhere")
    spool, state = str(platform.root / "spool-2"), str(platform.root / "state-2")
    passage = platform.do(
        lambda chain: chain.by_hand(("postgres-dump", "mongo-dump", "progress", "collect")),
        data=nowhere,
        code=nowhere,
        assessments=nowhere,
        spool=spool,
        state=state,
    )
    progress = dict(passage.steps)["progress"]
    assert (progress.outcome, progress.reasons) == ("ok", [])  # none of the earlier files counts as new
    outcomes = {item.name: (item.outcome, item.reasons) for item in passage.collected.collection.items}
    for name in ("db", "postgres-dump", "media", "rcs-repo", "assessment-media", "server_settings.py"):
        assert outcomes[name][0] == "ok", outcomes[name]
    assert bagit.Bag(f"{spool}/bag").validate()
