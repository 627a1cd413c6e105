"""The container's first process: starts what a school server runs, plays its faults, stops when told."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

from . import documents, faults, live, tree
from .places import CLUSTER, DATA, DATASTORE, POSTGRES, STATE
from .school import Sizes, school_of

STORE = STATE / "mongo"
ACCOUNTS_FILLED = STATE / "accounts-filled"
SECONDS_TO_STOP = 4.0
SECONDS_TO_START = 120.0  # of a database, after a kill, on a machine that has other work


class Stopped(Exception):
    """The container was told to stop."""


def serve() -> int:
    """Start everything, look after it, and return 0 when told to stop."""

    def stop(number: int, frame: object) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    services = Services()
    try:
        services.start()
        services.look_after()
    except Stopped:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        services.stop()
    return 0


def _start_postgres() -> subprocess.Popen[bytes]:
    folder = Path("/var/run/postgresql")
    folder.mkdir(exist_ok=True)
    shutil.chown(folder, "postgres", "postgres")
    # Of a container that was killed: the numbers of processes begin anew in it, and somebody's psql may have
    # that of the server before. PostgreSQL would take it for that server, and end.
    for stale in (CLUSTER / "postmaster.pid", *folder.glob(".s.PGSQL.*")):
        stale.unlink(missing_ok=True)
    # Not through runuser: it would stay between us and the signals.
    return subprocess.Popen(
        [POSTGRES / "postgres", "-D", CLUSTER],
        user="postgres",
        group="postgres",
        extra_groups=["ssl-cert"],
        cwd="/",
    )


def say(text: str) -> None:
    """Tell what is being done, on stderr."""
    print(f"standin: {text}", file=sys.stderr, flush=True)


def _environment_int(name: str) -> int | None:
    text = os.environ.get(name)
    return int(text) if text else None


class Services:
    """PostgreSQL, port 27017, nginx, optionally cron, and the restless files of /data/db."""

    def __init__(self) -> None:
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.quiet = threading.Event()
        self.mongod_at = time.monotonic() + (faults.number("mongod-delay", 60) or 0)

    def start(self) -> None:
        """Make the data where there are none, then start the services; nginx is the last to answer."""
        for folder in ("nginx-logs", "gstudio-logs", "postgres-dump", "media"):
            (DATA / folder).mkdir(parents=True, exist_ok=True)
        self._generate()
        here = tree.open_tree(DATA, DATASTORE)
        self._postgres()
        if "postgres" in self.running:
            _fill_accounts(here)
        self._fill_store(here)
        self._mongod()
        if self.mongod_at <= time.monotonic():
            _answers(27017)
        for folder in ("client", "proxy", "fastcgi", "uwsgi", "scgi"):
            Path(f"/var/lib/nginx/{folder}").mkdir(parents=True, exist_ok=True)
        self.running["nginx"] = subprocess.Popen(["nginx", "-g", "daemon off;"])
        if os.environ.get("GSTUDIO_STANDIN_CRON"):
            subprocess.run(["crontab", "/home/docker/code/confs/mycron"], check=True)
            self.running["cron"] = subprocess.Popen(["cron", "-f"])
        threading.Thread(target=self._restless_files, daemon=True).start()
        threading.Thread(target=self._rewrite_tool_logs, daemon=True).start()
        say("ready")

    def look_after(self) -> None:
        """Until told to stop: collect dead processes, play the switches, restart what died."""
        while True:
            self._bury()
            self._postgres()
            self._mongod()
            if self.running["nginx"].poll() is not None:
                self.running["nginx"] = subprocess.Popen(["nginx", "-g", "daemon off;"])
            time.sleep(0.5)

    def stop(self) -> None:
        """Ask all to end, at once; what has not ended within four seconds is killed."""
        self.quiet.set()
        for name, process in self.running.items():
            process.send_signal(
                {"postgres": signal.SIGINT, "mongod": signal.SIGKILL}.get(name, signal.SIGTERM)
            )
        end = time.monotonic() + SECONDS_TO_STOP
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
            if process.poll() is None:
                process.kill()

    def _bury(self) -> None:
        """Reap the orphans of docker exec, which become ours, without taking our own services' exit codes."""
        ours = {process.pid: process for process in self.running.values()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in ours:
                ours[pid].returncode = os.waitstatus_to_exitcode(status)

    def _generate(self) -> None:
        sizes = Sizes.of(
            float(os.environ.get("GSTUDIO_STANDIN_SCALE") or 0.01),
            users=_environment_int("GSTUDIO_STANDIN_USERS"),
            units=_environment_int("GSTUDIO_STANDIN_UNITS"),
            media_files=_environment_int("GSTUDIO_STANDIN_MEDIA_FILES"),
            media_bytes=_environment_int("GSTUDIO_STANDIN_MEDIA_BYTES"),
        )
        school = school_of(os.environ.get("GSTUDIO_STANDIN_SEED") or None)
        tree.generate(tree.Tree(DATA, DATASTORE, school, sizes), say)

    def _postgres(self) -> None:
        """Keep PostgreSQL running, unless the switch postgres-down is on."""
        process = self.running.get("postgres")
        if faults.setting("postgres-down") is not None:
            if process is not None:
                process.send_signal(signal.SIGQUIT)
                process.wait()
                del self.running["postgres"]
            return
        if process is not None and process.poll() is None:
            return
        end = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < end:
            if process is None or process.poll() is not None:
                process = self.running["postgres"] = _start_postgres()
            if subprocess.run([POSTGRES / "pg_isready", "-q", "-U", "postgres"], check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise RuntimeError("PostgreSQL does not answer")

    def _fill_store(self, here: tree.Tree) -> None:
        """Give port 27017 its documents once, on another port: whoever reaches 27017 finds all of them."""
        if (STORE / "filled").exists():
            return
        shutil.rmtree(STORE, ignore_errors=True)
        STORE.mkdir(parents=True)
        process = _store_server(27117)
        try:
            _answers(27117)
            media = tree.media_index(here.school, here.sizes, here.day)
            live.load_documents(documents.databases(here.school, here.sizes, media, here.day), 27117)
        finally:
            process.kill()
            process.wait()
        (STORE / "filled").touch()

    def _mongod(self) -> None:
        """Keep port 27017 answering, unless it is delayed (mongod-delay) or switched off (mongod-down)."""
        process = self.running.get("mongod")
        if faults.setting("mongod-down") is not None:
            if process is not None:
                process.kill()
                process.wait()
                del self.running["mongod"]
            return
        if time.monotonic() < self.mongod_at or (process is not None and process.poll() is None):
            return
        self.running["mongod"] = _store_server(27017)

    def _restless_files(self) -> None:
        """Hold the files of /data/db open and change them, as a database does."""
        held: list[BinaryIO] = []
        for name in tree.COLLECTION_FILES:
            with contextlib.suppress(OSError):
                held.append((DATA / tree.collection_file(name)).open("r+b", buffering=0))
        with contextlib.suppress(OSError):
            (DATA / "db/mongod.lock").write_text(f"{os.getpid()}\n")
        checkpoint = int(time.time())
        while held and not self.quiet.wait(5):
            checkpoint += 1
            with contextlib.suppress(OSError):
                file = held[checkpoint % len(held)]
                file.seek(0)
                file.write(checkpoint.to_bytes(8, "little"))
                turtle = DATA / "db/WiredTiger.turtle"
                turtle.with_suffix(".turtle.set").write_bytes(tree.turtle(checkpoint))
                turtle.with_suffix(".turtle.set").rename(turtle)

    def _rewrite_tool_logs(self) -> None:
        """With the switch tool-log-rewriting on: truncate each tool log and write it anew, without end."""
        while not self.quiet.wait(0.2):
            if faults.setting("tool-log-rewriting") is None:
                continue
            for path in sorted((DATA / "gstudio_tools_logs").rglob("*.json")):
                with contextlib.suppress(OSError, ValueError):
                    events = json.loads(path.read_text())
                    text = json.dumps(events)
                    with path.open("w") as file:
                        file.flush()
                        time.sleep(0.02)
                        file.write(text[: len(text) // 2])
                        file.flush()
                        time.sleep(0.02)
                        file.write(text[len(text) // 2 :])


def _fill_accounts(here: tree.Tree) -> None:
    """Add the school's users once in the life of /data: a new container on old volumes has lost them."""
    if not ACCOUNTS_FILLED.exists():
        live.load_users(here.users())
        ACCOUNTS_FILLED.touch()


def _store_server(port: int) -> subprocess.Popen[bytes]:
    pid = Path(f"/run/mongod-{port}.pid")
    pid.unlink(missing_ok=True)  # of a container that was killed: another process may have that number now
    command = ["--host", "127.0.0.1", "-p", str(port), "--data-dir", str(STORE), "--log-file", "/dev/null"]
    return subprocess.Popen(
        [sys.executable, "-m", "nx_27017.nx_27017", *command, "--pid-file", str(pid)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def _answers(port: int, seconds: float = SECONDS_TO_START) -> None:
    """Wait until something listens there. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing answers on port {port}")
