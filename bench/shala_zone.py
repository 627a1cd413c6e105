"""shala as a zone: `shala serve` and devices that run `shala-agent sync`, as they are installed.

All that the benchmark knows of their command lines and configurations is here and in shala_device.py.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from daemon import Daemon
from link import Relay, free_port
from shala_school import INSTALLED, PYTHON
from zone import Cost, Way, environment, file_bytes, measured, run

ZONE = "bench"
_DEVICE = str(Path(__file__).with_name("shala_device.py"))


class ShalaZone:
    """Centre and devices, each with its files in a folder of its own."""

    name = "shala"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers: dict[str, int] = {}
        port = free_port()
        centre = self._place("")
        centre.mkdir()
        # One worker, as the peer's; the limit of requests is for devices that go wrong.
        self._config("").write_text(
            f'format = 1\n[zones]\ndatabase = "sqlite:///{centre}/zones.sqlite"\n'
            f'key_file = "{folder}/zones.key"\nlisten = "127.0.0.1:{port}"\nworkers = 1\n'
            "requests_per_second = 10000\n"
        )
        self._shala("org", "create", ZONE)
        self._shala("zone", "create", ZONE, "--org", ZONE)
        command = [*PYTHON, "-m", "shala_central", "serve"]
        self._server = Daemon(command, self._env(""), port, folder / "server.log")
        self._relay = Relay(port)

    def add(self, device: str) -> None:
        """Enrol a device by a token."""
        self._numbers[device] = len(self._numbers) + 1
        name, place = f"{2_000_000 + self._numbers[device]}-mz{self._numbers[device]}", self._place(device)
        place.mkdir()
        # The bench has no platform: the paths of its data lead nowhere.
        self._config(device).write_text(
            'format = 1\n[container]\nname = "shala-bench-none"\n[paths]\n'
            f'state = "{place}"\nspool = "{self._folder}/spool-{device}"\nspool_group = ""\n'
            f'data = "{self._folder}/data"\ncode = "{self._folder}/code"\n'
            f'assessments = "{self._folder}/assessments"\n'
            f'[identity]\nserver_name = "{name}"\n'
            f'[sync]\nenabled = true\nurl = "http://127.0.0.1:{self._relay.port}"\n'
            f'page = "{self._folder}/{device}.html"\n'
        )
        token = self._folder / f"{device}.token"
        self._shala("device", "create", "--zone", ZONE, "--name", name, "--token-file", str(token))
        self._agent(device, "enrol", "--token-file", str(token))

    def write(self, device: str, records: int, seed: int, students: int) -> float:
        """Write visits into the record store, as the agent does with what it derives."""
        command = [*PYTHON, _DEVICE, "write", str(self._config(device)), str(records), str(seed)]
        usage = run([*command, str(students)], self._env(device))
        return usage.ru_utime + usage.ru_stime

    def sync(self, device: str, way: Way) -> Cost:
        """Sync: ours goes both ways at once, whatever there is to do."""
        command = [*PYTHON, "-m", "shala_agent.cli", "sync", "--json", "--without-ingest"]
        return measured(command, self._env(device), self._server, self._relay)

    def crowd(self, devices: int, there: int) -> None:
        """Let other devices be enrolled, each with a record of its own; everybody has them all."""
        command = [*PYTHON, _DEVICE, "crowd", str(self._config("")), ZONE, str(devices), str(there)]
        run(command, self._env(""))
        for device in self._numbers:
            self.sync(device, "both")

    def count(self, device: str) -> int:
        """Count visits."""
        said: list[bytes] = []
        run([*PYTHON, _DEVICE, "count", str(self._config(device))], self._env(device), said)
        return int(json.loads(said[0])["records"])

    def disk(self, device: str) -> int:
        """Return the size of a database, its log written back."""
        place = self._place(device)
        for path in place.glob("*.sqlite"):
            db = sqlite3.connect(path)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            db.close()
        return file_bytes(place)

    def close(self) -> None:
        """End the server."""
        self._relay.stop()
        self._server.stop()

    def _shala(self, *arguments: str) -> None:
        run([*PYTHON, "-m", "shala_central", *arguments], self._env(""))

    def _agent(self, device: str, *arguments: str) -> None:
        run([*PYTHON, "-m", "shala_agent.cli", *arguments], self._env(device))

    def _env(self, device: str) -> dict[str, str]:
        variable = "SHALA_AGENT_CONFIG" if device else "SHALA_CENTRAL_CONFIG"
        return {**environment(), **INSTALLED, variable: str(self._config(device))}

    def _config(self, device: str) -> Path:
        return self._folder / f"{device or 'centre'}.toml"

    def _place(self, device: str) -> Path:
        return self._folder / (device or "centre")
