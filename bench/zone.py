"""A zone of a central server and devices, as shala and its peer both have one, and what a sync costs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from daemon import Daemon
from link import Relay

Way = Literal["push", "pull", "both"]


@dataclass(frozen=True)
class Cost:
    """What one sync took. The client's process is measured from its start to its end."""

    client_cpu: float
    server_cpu: float
    wall: float
    up: int
    down: int
    requests: int
    client_mb: float
    server_mb: float

    @property
    def cpu(self) -> float:
        """Seconds of both sides."""
        return self.client_cpu + self.server_cpu

    @property
    def wire(self) -> int:
        """Bytes both ways."""
        return self.up + self.down


class Zone(Protocol):
    """A central server that runs, and devices that sync with it. Devices have short names: a, b."""

    name: str

    def add(self, device: str) -> None:
        """Make a device and enrol it."""

    def write(self, device: str, records: int, seed: int, students: int) -> float:
        """Let visits come into being at a device; return the CPU seconds that it took."""

    def sync(self, device: str, way: Way) -> Cost:
        """Let a device sync, in a process of its own."""

    def crowd(self, devices: int, there: int) -> None:
        """Let the zone have so many devices more than are `there`; everybody has synced with them."""

    def count(self, device: str) -> int:
        """Return how many visits a device has."""

    def disk(self, device: str) -> int:
        """Return the bytes on the disk of a device, of the central server for ""."""

    def close(self) -> None:
        """End what was started."""


def measured(command: Sequence[str], env: dict[str, str], server: Daemon, relay: Relay) -> Cost:
    """Run a client against a server behind a relay, and return what it cost. SystemExit if it fails."""
    server.forget_peak()
    before, cpu, began = relay.counted(), server.cpu_seconds(), time.monotonic()
    usage = run(command, env)
    wall = time.monotonic() - began
    _until_quiet(server)
    carried = relay.counted().since(before)
    return Cost(
        usage.ru_utime + usage.ru_stime,
        server.cpu_seconds() - cpu,
        wall,
        carried.up,
        carried.down,
        carried.requests,
        usage.ru_maxrss / 1024,
        server.peak_mb(),
    )


def run(
    command: Sequence[str], env: dict[str, str], said: list[bytes] | None = None
) -> resource.struct_rusage:
    """Run a command and return what it used; its output is added to `said`. SystemExit if it fails."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            words = (errors.read() + output.read()).decode()[-2000:]
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{words}")
        if said is not None:
            said.append(output.read())
    return usage


def environment() -> dict[str, str]:
    """Return this environment, with modules compiled once as an installation does."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def file_bytes(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _until_quiet(server: Daemon) -> None:
    """Wait for what a server still does after its last answer: that is part of the cost."""
    before = -1.0
    while (now := server.cpu_seconds()) != before:
        before = now
        time.sleep(0.2)
