"""The restore drill on the stand-in: collect, wreck, restore, and collect the same again.

Needs a Docker engine and the image gstudio:lab.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shala_agent.catalogue import ITEMS
from shala_agent.config import read_config
from shala_agent.failure import AgentError
from shala_agent.payload import Damaged
from shala_agent.restore import Restored, restore
from shala_agent.restore_note import Note, forget_note, half_done, write_note
from test_container import Platform, docker, no_faults, platform  # noqa: F401 - fixtures
from test_restore import Bag

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

RESTORABLE = {item.name for item in ITEMS if item.restore}
DUMP_AND_COLLECT = ("postgres-dump", "mongo-dump", "collect")
SETTINGS = "code/gstudio/gnowsys-ndf/gnowsys_ndf"
DROP_MONGO = (
    "import pymongo, sys\nserver = pymongo.MongoClient('127.0.0.1', 27017)\n"
    "for name in server.list_database_names():\n    name == 'admin' or server.drop_database(name)"
)
WRECKS = ("data/media", "data/rcs-repo", "data/gstudio_tools_logs", "assessments/repository")


@pytest.fixture(scope="module")
def archived(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A collection of the platform, as the centre hands it out: a bag."""
    passage = platform.do(lambda chain: chain.run())
    assert passage.exit_code == 0, [(name, result.reasons) for name, result in passage.steps]
    bag = tmp_path_factory.mktemp("archived") / "2031017-mz17"
    shutil.copytree(platform.root / "spool/bag", bag)
    return bag


@pytest.fixture
def whole(platform: Platform, archived: Path) -> Platform:  # noqa: F811
    """The platform with all that was collected, whatever an earlier test has left."""
    if not (platform.root / "data/media").exists():
        restored(platform, archived, yes=True)
    return platform


@pytest.fixture
def wrecked(platform: Platform, archived: Path) -> Platform:  # noqa: F811
    """The platform without its databases and media, and with settings that somebody has changed."""
    wreck(platform)
    return platform


def wreck(platform: Platform) -> None:  # noqa: F811
    as_postgres = ["docker", "exec", "-i", platform.name, "su", "postgres", "-c"]
    drop = b"DROP DATABASE IF EXISTS gstudio_psql WITH (FORCE);"
    subprocess.run([*as_postgres, "cd / && psql -qX -d postgres"], input=drop, check=True)
    docker("exec", platform.name, "python", "-c", DROP_MONGO)
    for folder in WRECKS:
        shutil.rmtree(platform.root / folder, ignore_errors=True)
    (platform.root / SETTINGS / "local_settings.py").write_text("DEBUG = True\n")
    (platform.root / SETTINGS / "server_settings.py").write_text("GSTUDIO_INSTITUTE_ID = 'sp100'\n")


def restored(platform: Platform, folder: Path, *names: str, yes: bool = False) -> Restored:  # noqa: F811
    return restore(read_config(platform.config_path), folder, names, yes=yes, wait_seconds=60)


def content(bag: Path) -> dict[str, str]:
    """Return {path: sha256} of what can go back, by the manifest of a bag."""
    lines = (bag / "manifest-sha256.txt").read_text().splitlines()
    pairs = (line.split("  ", 1) for line in lines)
    return {path: digest for digest, path in pairs if path.split("/")[2] in RESTORABLE}


def collected_again(platform: Platform) -> dict[str, str]:  # noqa: F811
    passage = platform.do(lambda chain: chain.by_hand(DUMP_AND_COLLECT))
    assert {name: result.outcome for name, result in passage.steps}["mongo-dump"] == "ok"
    assert passage.collected is not None
    items = {item.name: (item.outcome, item.reasons) for item in passage.collected.collection.items}
    assert {name: items[name] for name in RESTORABLE if items[name][0] != "ok"} == {}
    return content(platform.root / "spool/bag")


def test_a_wrecked_server_is_as_it_was_collected(wrecked: Platform, archived: Path) -> None:
    done = restored(wrecked, archived)
    assert {name for name, result in done.items if result.outcome == "ok"} == RESTORABLE, done.items
    assert done.exit_code == 0
    before = content(archived)
    assert {path.split("/")[2] for path in before} == RESTORABLE
    assert collected_again(wrecked) == before
    # Who has a password is not in a collection: that is said.
    accounts = dict(done.items)["postgres-dump"]
    assert "cannot log in until a teacher sets a new password" in " ".join(accounts.reasons)
    former = Path(done.kept) / "files/local_settings.py/local_settings.py"
    assert former.read_text() == "DEBUG = True\n"
    assert not (wrecked.root / "data/.shala/restore").exists()


def test_one_item_alone_comes_back(wrecked: Platform, archived: Path) -> None:
    done = restored(wrecked, archived, "gstudio/media")
    assert [name for name, _ in done.items] == ["media"]
    assert sum(path.is_file() for path in (wrecked.root / "data/media").rglob("*")) > 0
    assert not (wrecked.root / "data/rcs-repo").exists()


def test_a_damaged_file_is_refused_before_anything_is_changed(
    wrecked: Platform, archived: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(archived, damaged)
    victim = next(iter(sorted((damaged / "data/gstudio/media").rglob("*.*"))))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    with pytest.raises(Damaged, match=victim.name[:20]):
        restored(wrecked, damaged, yes=True)
    assert not (wrecked.root / "data/media").exists()
    assert (wrecked.root / SETTINGS / "local_settings.py").read_text() == "DEBUG = True\n"
    assert not (wrecked.root / "state/restore.json").exists()


def test_a_server_with_data_is_left_alone_unless_told_so(whole: Platform, archived: Path) -> None:
    local = whole.root / SETTINGS / "local_settings.py"
    local.write_text("DEBUG = 'of today'\n")
    with pytest.raises(AgentError, match=r"this server has data: \d+ users of a school.*--yes"):
        restored(whole, archived)
    assert local.read_text() == "DEBUG = 'of today'\n"
    done = restored(whole, archived, yes=True)
    assert done.exit_code == 0, done.items
    kept = Path(done.kept)
    assert b"COPY public.auth_user" in (kept / "pg_dump_all.sql").read_bytes()
    assert (kept / "db/gstudio-mongodb/Nodes.bson").stat().st_size > 0
    assert kept.stat().st_mode & 0o077 == 0
    assert content(archived) == collected_again(whole)


def test_what_another_server_had_does_not_change_who_this_one_is(whole: Platform, archived: Path) -> None:
    text = whole.config_path.read_text()
    settings = whole.root / SETTINGS / "server_settings.py"
    before = settings.read_text()
    try:
        whole.config_path.write_text(text.replace("2031017-mz17", "2031018-mz18"))
        done = restored(whole, archived, "server_settings.py", "local_settings.py", yes=True)
    finally:
        whole.config_path.write_text(text)
    assert {name: result.outcome for name, result in done.items} == {
        "server_settings.py": "skipped",
        "local_settings.py": "ok",
    }
    assert settings.read_text() == before


def test_what_is_refused_by_itself_leaves_nothing_open(whole: Platform, tmp_path: Path) -> None:
    bag = Bag(tmp_path / "bag")
    bag.put("rcs-repo/Nodes/a.json")
    bag.put("local_settings.py.age")
    done = restored(whole, bag.folder, yes=True)
    assert {name: result.outcome for name, result in done.items} == {
        "local_settings.py.age": "failed",
        "rcs-repo": "ok",
    }
    assert done.exit_code == 3
    assert not (whole.root / "state/restore.json").exists()
    (whole.root / "data/rcs-repo/Nodes/a.json").unlink()


def test_another_restore_does_not_make_a_half_restored_database_whole(
    whole: Platform, tmp_path: Path
) -> None:
    state = whole.root / "state"
    write_note(state, Note("of another", "/data/.shala/before-restore/then", ["db/assessment"]))
    bag = Bag(tmp_path / "bag")
    bag.put("local_settings.py", (whole.root / SETTINGS / "local_settings.py").read_bytes())
    assert restored(whole, bag.folder, yes=True).exit_code == 0
    assert "a restore of db/assessment was cut" in half_done(state)
    forget_note(state)


# After which line of a run, and up to how many seconds later: in PostgreSQL, in MongoDB, in the files.
INSTANTS = (*[("server_settings.py: ", 3.0)] * 3, *[("postgres-dump: ", 8.0)] * 4, ("db: ", 0.2))


def test_killed_anywhere_and_run_again_it_brings_everything_back(wrecked: Platform, archived: Path) -> None:
    chance = random.Random(9)
    command = [sys.executable, "-m", "shala_agent.cli", "restore", str(archived), "--wait", "1"]
    environment = {**os.environ, "SHALA_AGENT_CONFIG": str(wrecked.config_path)}
    wrecked.fault("dump-slow", "0.3")
    code, killed = -signal.SIGKILL, 0
    for line, seconds in INSTANTS:
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            next((said for said in process.stderr if said.startswith(line)), None)
            time.sleep(chance.uniform(0.0, seconds))
            process.send_signal(signal.SIGKILL)
        code = process.returncode
        if code != -signal.SIGKILL:
            break
        killed += 1
    assert killed >= 4
    if code == -signal.SIGKILL:
        last = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        code = last.returncode
    assert code == 0
    assert collected_again(wrecked) == content(archived)
    assert "mongorestore" not in wrecked.processes()
    assert not (wrecked.root / "state/restore.json").exists()
    assert not (wrecked.root / "data/.shala/restore").exists()
