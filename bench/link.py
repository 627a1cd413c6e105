"""A link between two machines, on loopback: a relay that counts every byte and can be slow, and an sshd."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from typing import NamedTuple

_REQUEST = b" HTTP/1.1\r\n"  # the end of a request's first line; a body is compressed, or short JSON
TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Return a TCP port that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Sshd:
    """An OpenSSH server of its own; `keys` are lines of authorized_keys."""

    def __init__(self, folder: Path, host_key: Path, keys: list[str]) -> None:
        folder.mkdir(parents=True)
        self.port = free_port()
        (folder / "authorized_keys").write_text("".join(f"{key}\n" for key in keys))
        config = folder / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {host_key}\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nPermitRootLogin yes\nLogLevel ERROR\nSubsystem sftp internal-sftp\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        program = shutil.which("sshd", path="/usr/sbin:/sbin") or "sshd"
        # Forced commands run in the user's shell: /bin/sh, as roles/agent sets it, and nobody's .bashrc.
        passwd = folder / "passwd"
        passwd.write_text(re.sub(r"(?m)^(root:.*):[^:]*$", r"\1:/bin/sh", Path("/etc/passwd").read_text()))
        plain_shell = f"mount --bind {passwd} /etc/passwd && exec {program} -D -f {config}"
        self._process = subprocess.Popen(
            # A benchmark that is killed leaves no server behind.
            ["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "sh", "-c", plain_shell],
            stderr=subprocess.DEVNULL,
        )
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        self.stop()
        sys.exit(f"{program} does not answer on port {self.port}: try {program} -t -f {config}")

    def cpu_seconds(self) -> float:
        """Return what all ended sessions have cost; waits until none is open."""
        pid = self._process.pid
        for _ in range(300):
            if not Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                break
            time.sleep(0.05)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / TICKS

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)


class Carried(NamedTuple):
    """What a relay has forwarded: bytes to the target and back, and HTTP requests among the former."""

    up: int
    down: int
    requests: int

    def since(self, before: Carried) -> Carried:
        """Return what has passed after `before`."""
        return Carried(self.up - before.up, self.down - before.down, self.requests - before.requests)


class Relay:
    """Forwards a port to another, in a process of its own.

    `rate` is in bytes per second and direction (0 = unlimited), `delay` in seconds and direction.
    """

    def __init__(self, target: int, rate: int = 0, delay: float = 0.0) -> None:
        self.port = free_port()
        self._count: SynchronizedArray[int] = multiprocessing.Array("q", 3)  # as in Carried
        context = multiprocessing.get_context("fork")
        self._process = context.Process(
            target=_relay, args=(self.port, target, rate, delay, self._count), daemon=True
        )
        self._process.start()
        time.sleep(0.3)

    def carried(self) -> int:
        """Return how many bytes have passed, in both directions together."""
        return sum(self._count[:2])

    def counted(self) -> Carried:
        """Return what has passed, in each direction."""
        return Carried(*self._count[:])

    def stop(self) -> None:
        """End it, and with it all that is connected."""
        self._process.terminate()
        self._process.join(10)


def _relay(port: int, target: int, rate: int, delay: float, count: SynchronizedArray[int]) -> None:
    asyncio.run(_Line(target, rate, delay, count).serve(port))


class _Line:
    def __init__(self, target: int, rate: int, delay: float, count: SynchronizedArray[int]) -> None:
        self._target, self._rate, self._delay, self._count = target, rate, delay, count
        self._free = [0.0, 0.0]  # when each direction has sent what it was given

    async def serve(self, port: int) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", port)
        async with server:
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(
            self._carry(0, reader, there_writer), self._carry(1, there_reader, writer), return_exceptions=True
        )

    async def _carry(self, way: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A slow line holds what is on its way, and little more.
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64 if self._delay or not self._rate else 2)
        delivery = asyncio.create_task(self._deliver(way, queue, writer))
        with contextlib.suppress(OSError):
            while chunk := await reader.read(16384):
                now = time.monotonic()
                sent = max(now, self._free[way]) + (len(chunk) / self._rate if self._rate else 0)
                self._free[way] = sent
                await queue.put((sent + self._delay, chunk))
        await queue.put((0, b""))
        await delivery

    async def _deliver(
        self, way: int, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        end = b""
        with contextlib.suppress(OSError):
            while True:
                due, chunk = await queue.get()
                if not chunk:
                    break
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                writer.write(chunk)
                await writer.drain()
                with self._count.get_lock():
                    self._count[way] += len(chunk)
                    if way == 0:
                        self._count[2] += (end + chunk).count(_REQUEST)
                end = chunk[1 - len(_REQUEST) :]
        writer.close()
