"""Morango as a zone: its server behind gunicorn, its devices; installed from PyPI for the bench alone."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

from daemon import Daemon
from link import Relay, free_port
from zone import Cost, Way, file_bytes, measured, run

VERSION = "0.8.15"
PACKAGES = (f"morango=={VERSION}", "gunicorn")
_HERE = Path(__file__).parent
_INSTALLED = _HERE.parent / "build/peers/morango"
_PYTHON = _INSTALLED / "bin/python"
_WAYS = {"push": "push", "pull": "pull", "both": "pull,push"}  # Kolibri pulls first


class MorangoZone:
    """Server and devices, each with an SQLite file in a folder of its own. `sleeps`: as it is shipped."""

    name = f"morango {VERSION}"

    def __init__(self, folder: Path, *, sleeps: bool) -> None:
        self._folder, self._sleeps = folder, sleeps
        self._zone = ""
        self._zone = str(self._run("", "zone")["zone"])
        port = free_port()
        command = [str(_PYTHON), "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "1"]
        command += ["--threads", "4", "--timeout", "600", "morango_peer.wsgi:application"]
        self._server = Daemon(command, self._env(""), port, folder / "server.log")
        self._relay = Relay(port)

    def add(self, device: str) -> None:
        """Make a device whose certificate the server has signed."""
        given = self._folder / f"{device}.json"
        given.write_text(json.dumps(self._run("", "certificate")))
        self._run(device, "join", str(given))

    def write(self, device: str, records: int, seed: int, students: int) -> float:
        """Let Django insert visits."""
        arguments = ["write", str(records), "--seed", str(seed), "--students", str(students)]
        usage = run(self._command(*arguments), self._env(device))
        return usage.ru_utime + usage.ru_stime

    def sync(self, device: str, way: Way) -> Cost:
        """Push, pull, or both."""
        command = self._command("sync", f"http://127.0.0.1:{self._relay.port}/", _WAYS[way])
        if not self._sleeps:
            command.append("--no-sleep")
        return measured(command, self._env(device), self._server, self._relay)

    def crowd(self, devices: int, there: int) -> None:
        """Let the server and each device know of device ids that have written before."""
        for place in sorted(path.parent.name for path in self._folder.glob("*/db.sqlite3")):
            self._run("" if place == "server" else place, "crowd", str(devices), str(there))

    def count(self, device: str) -> int:
        """Count visits."""
        return int(str(self._run(device, "count")["records"]))

    def disk(self, device: str) -> int:
        """Return the size of a database, its log written back."""
        path = self._database(device)
        db = sqlite3.connect(path)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        return file_bytes(path.parent)

    def close(self) -> None:
        """End the server."""
        self._relay.stop()
        self._server.stop()

    def _command(self, *arguments: str) -> list[str]:
        return [str(_PYTHON), "-m", "morango_peer.device", *arguments]

    def _run(self, device: str, *arguments: str) -> dict[str, object]:
        said: list[bytes] = []
        run(self._command(*arguments), self._env(device), said)
        answer: dict[str, object] = json.loads(said[0])
        return answer

    def _env(self, device: str) -> dict[str, str]:
        path = self._database(device)
        path.parent.mkdir(exist_ok=True)
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(_HERE),
            "DJANGO_SETTINGS_MODULE": "morango_peer.settings",
            "PEER_DATABASE": str(path),
            "PEER_ZONE": self._zone,
        }

    def _database(self, device: str) -> Path:
        return self._folder / (device or "server") / "db.sqlite3"


def install() -> bool:
    """Install Morango into build/peers, where nothing else looks; return whether it is there."""
    if (_INSTALLED / "bin/gunicorn").exists():
        return True
    python = (
        shutil.which("python3.11") or sys.executable
    )  # Django 3.2 is for 3.6 to 3.10, and works with 3.11
    commands = (
        [python, "-m", "venv", str(_INSTALLED)],
        [str(_PYTHON), "-m", "pip", "install", "-q", *PACKAGES],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(_INSTALLED, ignore_errors=True)
            print(f"bench: morango could not be had: {done.stderr.strip()[-300:]}", file=sys.stderr)
            return False
    return True
