"""A server that a benchmark starts, and what it costs: CPU and memory of all its processes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from link import TICKS

_START = 60.0  # seconds that a server has to listen


class Daemon:
    """A server on a port of loopback. What it says goes to the file `log`."""

    def __init__(self, command: Sequence[str], env: dict[str, str], port: int, log: Path) -> None:
        self.port = port
        with log.open("ab") as said:
            self._process = subprocess.Popen(command, env=env, stdout=said, stderr=said)
        until = time.monotonic() + _START
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.05)
        self.stop()
        raise SystemExit(f"{' '.join(command)} does not listen:\n{log.read_text()[-2000:]}")

    def cpu_seconds(self) -> float:
        """Return user and system time of all its processes, also of those that have ended."""
        ticks = 0
        for pid in self._processes():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))
        return ticks / TICKS

    def forget_peak(self) -> None:
        """Measure the peak from here on."""
        for pid in self._processes():
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_mb(self) -> float:
        """Return the greatest memory of any of its processes since `forget_peak`."""
        return max((peak_mb(pid) for pid in self._processes()), default=0.0)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _processes(self) -> Iterator[int]:
        waiting = [self._process.pid]
        while waiting:
            pid = waiting.pop()
            yield pid
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    waiting.extend(map(int, children.read_text().split()))


def peak_mb(pid: int | str = "self") -> float:
    """Return the greatest resident memory of a process."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0
