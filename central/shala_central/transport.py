"""The transport: rsync over one ssh connection to one school server, with a sender that is not trusted.

Only what is asked for by name is received (rsync checks the sender's list against it), into a folder that was
made for it; no shell is involved, nothing the sender says reaches an argument. Files that were cut keep what
has arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from shala_central.bag import PARTIAL_DIR
from shala_central.config import PullSettings
from shala_central.failure import CentralError
from shala_central.fleet import Server

OLDEST_RSYNC = (3, 5, 0)  # fixes 33 security issues, some reachable by a hostile sender (facts/collect.md 1)
MEMORY_LIMIT = 4 << 30  # bytes of address space for one rsync: about ten times what a million names take
STALL_GRACE = 2.0  # seconds in which rsync itself, if it can, gives up first
TAIL_SECONDS = 1.0  # in which the last words of an rsync that has ended arrive
POLL_SECONDS = 0.05
OPENING_POLL_SECONDS = 0.01
SLOW_TO_OPEN = 1.5  # seconds: ssh needs about eight round trips, so one takes 0.2 or more
SLACK = 1 << 20  # bytes that a transfer may exceed what was announced: rsync rounds

# Exit codes of rsync(1): 23 and 24 are "some files could not be sent"; verification says which.
PARTIAL_TRANSFER = (23, 24)
# A broken pipe is only how this side hears that the other has ended.
OWN_TROUBLE = re.compile(
    r"^rsync: \[(receiver|generator)\] (?!write error: Broken pipe)", re.MULTILINE | re.IGNORECASE
)

# What ssh says at length -> what it means here, and what to do.
KNOWN_ERRORS = (
    (
        "HOST IDENTIFICATION HAS CHANGED",
        "its host key has changed (re-installed, or another machine? playbooks/central.yml renews the keys)",
    ),
    (
        "Host key verification failed",
        "its host key is not known yet (playbooks/central.yml gathers the keys)",
    ),
    ("Permission denied", "it does not accept the centre's key (playbooks/provision.yml puts it there)"),
)

Progress = Callable[[int, int], None]


class TransferFailed(Exception):
    """The connection or rsync failed; what has arrived is kept. The text is for a person."""


@dataclass(slots=True)
class Transfer:
    """What one fetch moved."""

    bytes_received: int = 0
    files_received: int = 0


def require_rsync(program: str) -> None:
    """Raise CentralError unless the rsync of this machine is new enough to face a hostile sender."""
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        raise CentralError(f"'{program}' cannot be run (install rsync 3.5.0 or newer)") from None
    found = re.search(r"version v?([0-9]+)\.([0-9]+)\.([0-9]+)", said)
    if found is None or tuple(int(part) for part in found.groups()) < OLDEST_RSYNC:
        version = ".".join(found.groups()) if found else "of unknown version"
        raise CentralError(
            f"rsync {version} is too old to receive from servers that are not trusted:"
            " 3.5.0 or newer is needed (on Debian 12: apt-get update && apt-get install rsync)"
        )


@dataclass(frozen=True, slots=True)
class _Purpose:
    """What one rsync is started for, but for the names."""

    folder: str
    destination: Path
    basis: Path | None
    only_new: bool


class Transport:
    """One ssh connection to one server. `workdir` is private to it and short enough for a control socket."""

    def __init__(self, server: Server, settings: PullSettings, workdir: Path, lock_fd: int) -> None:
        self.server = server
        self.settings = settings
        self.workdir = workdir
        self.lock_fd = lock_fd
        self.ssh_config = workdir / "ssh_config"
        self.ssh_config.write_text(_ssh_config(server, settings, workdir))
        self._master: asyncio.subprocess.Process | None = None
        self._master_words = bytearray()
        self._opened: float | None = None  # seconds that it took to open the connection
        self._waiting: _Waiting | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._master_tail: asyncio.Task[None] | None = None

    async def fetch(
        self,
        folder: str,
        names: Iterable[str],
        destination: Path,
        *,
        max_file: int,
        max_total: int,
        basis: Path | None = None,
        progress: Progress | None = None,
        only_new: bool = False,
        until: Callable[[], bool] | None = None,
        moved: Callable[[Transfer], None] | None = None,
    ) -> None:
        """Given a folder of the spool and names below it, receive those files into `destination`.

        `basis` is a folder with older versions under the same names, of which only the differences travel.
        With `only_new` a file that stands there already with the same size and time is left as it is.
        Returns as soon as `until` says that all is there: rsync's goodbyes, three round trips, go on beside
        what is done next (see `settle`). `moved` is told at rsync's end what it has moved.
        Raises TransferFailed. Files that the sender does not have are simply not there afterwards.
        """
        await self._connect()
        purpose = _Purpose(folder, destination, basis, only_new)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.purpose == purpose and waiting.session.lives():
            session = waiting.session
            try:
                await waiting.ask(names, max_file)
            except BaseException:
                await session.end()
                raise
        else:
            if waiting is not None:
                await waiting.give_up()
            list_file = self.workdir / "names"
            list_file.write_bytes(_list_of(names))
            session = await self._start(purpose, list_file, max_file)
        running = asyncio.create_task(session.run(max_total, progress, moved, self._master_words))
        self._running.add(running)
        try:
            while not await _is_done(running, POLL_SECONDS):
                if until is not None and until():
                    return
        except asyncio.CancelledError:
            for one in self._running:  # those that were not waited for, too
                one.cancel()
            await self.settle()
            raise
        self._running.discard(running)
        running.result()

    async def stand_by(self, folder: str, destination: Path, basis: Path | None) -> None:
        """Start the next fetch before its names are known, where a round trip is long: saves three of them.

        To be run beside the fetch that opens the connection; ends with it at the latest.
        """
        while self._opened is None:
            await asyncio.sleep(POLL_SECONDS)
        if self._opened < SLOW_TO_OPEN:
            return
        purpose = _Purpose(folder, destination, basis, only_new=False)
        names = self.workdir / "names-to-come"
        names.unlink(missing_ok=True)
        os.mkfifo(names, 0o600)
        # Open for reading, too: opening does not wait for rsync, nor rsync for us.
        pipe = os.open(names, os.O_RDWR | os.O_CLOEXEC)
        try:
            session = await self._start(purpose, names, max_file=None)
        except BaseException:
            os.close(pipe)
            raise
        self._waiting = _Waiting(purpose, session, pipe)

    async def settle(self) -> None:
        """Wait until every rsync has ended; what was wanted of it is there, so its words no longer matter."""
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()

    async def _start(self, purpose: _Purpose, list_file: Path, max_file: int | None) -> _Session:
        process = await asyncio.create_subprocess_exec(
            *self._command(purpose, list_file, max_file),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": str(self.workdir)},
            # An rsync that outlives us keeps the lock, so that no second one writes beside it.
            pass_fds=(self.lock_fd,),
            start_new_session=True,
        )
        return _Session(process, self.settings.stall_seconds)

    async def close(self) -> None:
        """End what still runs, and the ssh connection that the fetches shared."""
        if self._waiting is not None:
            await self._waiting.give_up()
        for running in self._running:
            running.cancel()
        await self.settle()
        if self._master_tail is not None:
            self._master_tail.cancel()
        if self._master is not None:
            await _end(self._master)

    async def _connect(self) -> None:
        """Open the ssh connection that all fetches share. Raises TransferFailed.

        It ends with this process, however that ends: nothing more is sent then for nobody.
        """
        if self._master is not None:
            return
        began = time.monotonic()
        self._master = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *("ssh", "-F", str(self.ssh_config), "-M", "-N", "--", self.server.name),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._master_tail = asyncio.create_task(_tail(self._master.stderr, self._master_words))
        while not (self.workdir / "control").exists():
            await asyncio.sleep(OPENING_POLL_SECONDS)
            if self._master.returncode is not None:
                await asyncio.wait([self._master_tail], timeout=TAIL_SECONDS)
                raise TransferFailed(
                    _reason(self._master.returncode, self._master_words.decode("utf-8", "replace"))
                )
            if time.monotonic() - began > self.settings.stall_seconds + STALL_GRACE:
                raise TransferFailed(f"has sent nothing for {self.settings.stall_seconds} seconds")
        self._opened = time.monotonic() - began

    def _command(self, purpose: _Purpose, list_file: Path, max_file: int | None) -> list[str]:
        settings = self.settings
        command = [
            # Bounds that hold whatever the sender does: size of a file (nothing is written before it is
            # known), memory.
            *(
                "prlimit",
                f"--fsize={'0:' if max_file is None else max_file + SLACK}",
                f"--as={MEMORY_LIMIT}",
                "--",
            ),
            # When this process dies, rsync is told, and keeps what has arrived.
            *("setpriv", "--pdeathsig", "TERM", "--"),
            settings.rsync,
            *("--times", "--perms", "--chmod=D0750,F0640"),
            *("--no-links", "--no-devices", "--no-specials", "--no-owner", "--no-group"),
            *("--from0", f"--files-from={list_file}", "--no-implied-dirs"),
            # What is asked for is known to be new: size and time must not make rsync believe otherwise.
            *(() if purpose.only_new else ("--ignore-times",)),
            *("--partial", f"--partial-dir={PARTIAL_DIR}"),
            *("--compress", "--compress-choice=zstd"),
            f"--timeout={settings.stall_seconds}",
            *("--info=progress2,stats2", "--no-human-readable", "--outbuf=L"),
            *(() if max_file is None else (f"--max-size={max_file + SLACK}",)),
            f"--rsh=ssh -F {self.ssh_config}",
        ]
        if settings.bandwidth_kbps:
            command.append(f"--bwlimit={max(1, settings.bandwidth_kbps * 1000 // 8 // 1024)}k")
        if purpose.basis is not None:
            command.append(f"--link-dest={purpose.basis}")
        return [*command, "--", f"{self.server.name}:{purpose.folder}/", f"{purpose.destination}/"]


class _Session:
    """One running rsync."""

    def __init__(self, process: asyncio.subprocess.Process, stall_seconds: int) -> None:
        self.process = process
        self._stall_seconds = stall_seconds
        self._words = bytearray()
        self._tail = asyncio.create_task(_tail(process.stderr, self._words))

    def lives(self) -> bool:
        """Return whether it has not ended yet."""
        return self.process.returncode is None

    async def end(self) -> None:
        """End it now."""
        self._tail.cancel()
        await _end(self.process)

    async def run(
        self,
        max_total: int,
        progress: Progress | None,
        moved: Callable[[Transfer], None] | None,
        words_of_ssh: bytearray,
    ) -> None:
        """Follow it to its end, with an eye on how much it receives and on whether it still moves."""
        transfer, stalled = Transfer(), asyncio.Event()
        watch = asyncio.create_task(_stall(self.process, self._stall_seconds + STALL_GRACE, stalled))
        try:
            excess = await _follow(self.process.stdout, transfer, max_total, progress, self.process)
            code = await _ended(self.process)
            # ssh's master may hold the other end for as long as the sender likes.
            await asyncio.wait([self._tail], timeout=TAIL_SECONDS)
        finally:
            watch.cancel()
            await self.end()
        if stalled.is_set():
            raise TransferFailed(f"has sent nothing for {self._stall_seconds} seconds")
        errors = (words_of_ssh + self._words).decode("utf-8", "replace")
        if excess:
            raise TransferFailed(f"sent more than the {max_total} bytes it had announced")
        # 23 is also what this side's own troubles end with: no inodes left, a folder of somebody else.
        if code != 0 and (code not in PARTIAL_TRANSFER or OWN_TROUBLE.search(errors)):
            raise TransferFailed(_reason(code, errors))
        if moved is not None:
            moved(transfer)


class _Waiting:
    """An rsync that waits for the names of what it is to fetch."""

    def __init__(self, purpose: _Purpose, session: _Session, pipe: int) -> None:
        self.purpose = purpose
        self.session = session
        self._pipe = pipe

    async def ask(self, names: Iterable[str], max_file: int) -> None:
        """Set the bound of what it may write, and tell it the names."""
        limit = max_file + SLACK
        with contextlib.suppress(ProcessLookupError):  # its end is noticed by who follows it
            resource.prlimit(self.session.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        await asyncio.to_thread(self._tell, _list_of(names))

    def _tell(self, names: bytes) -> None:
        os.set_blocking(self._pipe, False)
        try:
            while names and self.session.lives():
                try:
                    names = names[os.write(self._pipe, names) :]
                except BlockingIOError:
                    time.sleep(POLL_SECONDS)
        finally:
            os.close(self._pipe)

    async def give_up(self) -> None:
        """End it: nothing is to be fetched."""
        os.close(self._pipe)
        await self.session.end()


def _list_of(names: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(name) + b"\0" for name in names)


async def _is_done(task: asyncio.Task[None], seconds: float) -> bool:
    done, _ = await asyncio.wait([task], timeout=seconds)
    return bool(done)


def _ssh_config(server: Server, settings: PullSettings, workdir: Path) -> str:
    """Return an ssh configuration for exactly one host.

    Name and address were checked when the fleet was read.
    """
    return "\n".join(
        [
            f"Host {server.name}",
            f"  HostName {server.address}",
            f"  Port {server.port}",
            f"  User {settings.user}",
            f'  IdentityFile "{settings.identity_file}"',
            "  IdentitiesOnly yes",
            "  IdentityAgent none",
            f'  UserKnownHostsFile "{settings.known_hosts}"',
            "  StrictHostKeyChecking yes",
            "  UpdateHostKeys no",
            "  BatchMode yes",
            *([f"  KexAlgorithms ^{settings.key_exchange}"] if settings.key_exchange else []),
            "  PreferredAuthentications publickey",
            f"  ConnectTimeout {settings.connect_timeout_seconds}",
            "  ServerAliveInterval 15",
            "  ServerAliveCountMax 4",
            "  ForwardAgent no",
            "  ForwardX11 no",
            "  RequestTTY no",
            "  PermitLocalCommand no",
            "  LogLevel ERROR",
            # The master is started by itself; who does not find it must not make another.
            "  ControlMaster no",
            f'  ControlPath "{workdir}/control"',
            "",
        ]
    )


async def _follow(
    stream: asyncio.StreamReader | None,
    transfer: Transfer,
    max_total: int,
    progress: Progress | None,
    process: asyncio.subprocess.Process,
) -> bool:
    """Read rsync's running count and closing figures;
    stop it and return True when it receives more than announced.
    """
    assert stream is not None  # noqa: S101 - it was asked for as a pipe
    rest = ""
    while chunk := await stream.read(4096):
        *lines, rest = re.split(r"[\r\n]", rest + chunk.decode("ascii", "replace"))
        rest = rest[-4096:]
        for line in lines:
            if count := re.match(r"\s*([0-9]+)\s+[0-9]+%", line):
                moved = int(count[1])
                if progress is not None:
                    progress(moved, max_total)
                if moved > max_total + SLACK:
                    await _end(process)
                    return True
            elif figure := re.match(r"Total bytes received: ([0-9]+)", line):
                transfer.bytes_received = int(figure[1])
            elif figure := re.match(r"Number of regular files transferred: ([0-9]+)", line):
                transfer.files_received = int(figure[1])
    return False


async def _tail(stream: asyncio.StreamReader | None, kept: bytearray) -> None:
    """Keep the last lines of a stream; what a sender writes there must not fill our memory."""
    assert stream is not None  # noqa: S101 - it was asked for as a pipe
    is_cut = False
    while chunk := await stream.read(4096):
        kept += chunk
        is_cut = is_cut or len(kept) > 4096
        del kept[:-4096]
    if is_cut:  # within a line, most likely
        del kept[: kept.find(b"\n") + 1]


async def _stall(process: asyncio.subprocess.Process, seconds: float, stalled: asyncio.Event) -> None:
    """When rsync has neither read nor written anything for so long, say so and end it.

    Its own --timeout does not hold before the greeting is over, nor while it waits for ssh to end.
    """
    moved, since = _moved(process.pid), time.monotonic()
    while time.monotonic() - since < seconds:
        await asyncio.sleep(min(1.0, seconds / 4))
        if (now := _moved(process.pid)) != moved:
            moved, since = now, time.monotonic()
    stalled.set()
    await _end(process)


def _moved(process: int) -> int:
    """Return how many bytes rsync has read and written so far, its receiver too, but not its ssh."""
    total = 0
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        for one in (str(process), *children):
            if one == str(process) or Path(f"/proc/{one}/comm").read_text() != "ssh\n":
                counts = Path(f"/proc/{one}/io").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in counts[:2])
    except OSError:
        return time.monotonic_ns()  # it is just ending
    return total


async def _end(process: asyncio.subprocess.Process) -> None:
    """End rsync, or ssh: politely, so that partial files are kept, then for certain."""
    if process.returncode is not None:
        return
    for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await _ended(process)
                return


async def _ended(process: asyncio.subprocess.Process) -> int:
    """Return the exit code of a process. Its own wait() would wait for whoever holds its pipes, too."""
    while process.returncode is None:
        await asyncio.sleep(0.005)
    return process.returncode


def _reason(code: int, errors: str) -> str:
    """Return one line about a failed rsync:
    the first line of ssh's or rsync's own words that says something.
    """
    for sign, meaning in KNOWN_ERRORS:
        if sign in errors:
            return meaning
    lines = [_printable(line) for line in errors.splitlines() if line.strip()]
    for line in lines:
        if not line.startswith("rsync error:") and "connection unexpectedly closed" not in line:
            return f"{line[:300]} (rsync exit code {code})"
    if lines:
        return f"{lines[-1][:300]} (rsync exit code {code})"
    return f"rsync ended with exit code {code}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text.strip())


def missing_programs() -> list[str]:
    """Return the programs that a pull needs and this machine lacks."""
    return [name for name in ("ssh", "prlimit", "setpriv") if shutil.which(name) is None]
