"""The platform's container: docker exec, and copying out of it.

Never a TTY; always an inner `timeout`, because killing a client leaves the process running inside; stdout and
stderr apart; output bounded; one user at a time. What an exit code says is returned and never believed.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from shala_agent.failure import AgentError
from shala_agent.lock import held

if TYPE_CHECKING:
    import tarfile

    import docker

KILL_AFTER = 10  # seconds between TERM and KILL of what overruns
GRACE = 30  # seconds that the engine may take beyond the inner timeout (a paused container never answers)
SILENCE = 20  # seconds without a word after which it is asked whether the container can still speak
SETTLE = 3  # seconds in which the engine must have noticed that a container ended
KEPT_OUTPUT = 256 * 1024  # bytes kept of each stream: the first and the last half
ENGINE_TIMEOUT = 60  # seconds for one request to the engine
PID_FILES = "/tmp/.shala-exec."  # noqa: S108  in the container, where only root writes

# $0 is the pid file, the arguments those of timeout. By the pid the next run ends what a killed agent left.
# The lesson comes first: it is behind others for the processor and, where the container has ionice, for the
# disk; not idle, as a school that always reads would then never deliver. Each program becomes the next one.
_WRAPPER = """low="nice -n 19"; command -v ionice >/dev/null 2>&1 && low="$low ionice -t -c 2 -n 7"
$low timeout -k "$@" & echo $! > "$0"; wait $!; code=$?; rm -f "$0"; exit $code"""
_STOP_ALL = f"""for file in {PID_FILES}*; do
  [ -f "$file" ] || continue
  pid=$(cat "$file"); [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = timeout ] && kill -TERM "$pid"
  count=0
  while [ $count -lt 120 ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = timeout ]; do
    sleep 0.1; count=$((count+1))
  done
  rm -f "$file"
done"""

_WAY_OUT = {
    "missing": "playbooks/provision.yml makes it",
    "created": "start it: docker start {name}",
    "exited": "start it: docker start {name}",
    "dead": "remove it and run playbooks/provision.yml",
    "paused": "docker unpause {name}",
    "restarting": "it keeps failing at its start; see: docker logs --tail 50 {name}",
    "removing": "wait, then run playbooks/provision.yml",
    "no engine": "start Docker: systemctl start docker",
}


class ContainerUnavailable(AgentError):
    """The container is not there to be used; the text says in which state it is and what to do."""


class FetchRefused(AgentError):
    """What came out of the container is not what may be written here."""


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What the engine says about the container; `status` is the engine's word, `missing` or `no engine`."""

    name: str
    status: str
    id: str = ""
    health: str = ""
    image: str = ""
    image_id: str = ""
    started: str = ""
    restarts: int = 0
    detail: str = ""

    @property
    def problem(self) -> str:
        """What is wrong and what to do, or "" when it runs."""
        if self.status == "running":
            return ""
        way_out = _WAY_OUT.get(self.status, "see: docker inspect {name}").format(name=self.name)
        what = (
            "no Docker engine answers"
            if self.status == "no engine"
            else f"container {self.name} is {self.status}"
        )
        return f"{what}{f': {self.detail}' if self.detail else ''} ({way_out})"


@dataclass(frozen=True, slots=True)
class Execution:
    """What one command in the container did. `exit_code` is None when the engine lost sight of it."""

    exit_code: int | None
    stdout: str
    stderr: str
    timed_out: bool
    seconds: float

    @property
    def said(self) -> str:
        """The last line that was written, for a message."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return lines[-1].strip()[:200] if lines else "it said nothing"


class Container:
    """The container called `name`; `locks` is the folder of the lock files."""

    def __init__(self, name: str, locks: Path) -> None:
        self.name = name
        self._locks = locks
        self._api: docker.APIClient | None = None

    def state(self) -> ContainerState:
        """Return what state the container is in.

        Never raises for a container or an engine that is not there.
        """
        import docker.errors
        import requests.exceptions

        try:
            seen: Mapping[str, Any] = self._engine().inspect_container(self.name)
        except docker.errors.NotFound:
            return ContainerState(self.name, "missing")
        except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
            self._api = None
            return ContainerState(self.name, "no engine", detail=_short(error))
        state = seen["State"]
        status = (
            "paused" if state.get("Paused") else "restarting" if state.get("Restarting") else state["Status"]
        )
        return ContainerState(
            self.name,
            status,
            id=seen["Id"],
            health=(state.get("Health") or {}).get("Status", ""),
            image=seen["Config"].get("Image", ""),
            image_id=seen.get("Image", ""),
            started=state.get("StartedAt", ""),
            restarts=seen.get("RestartCount", 0),
            detail=state.get("Error", ""),
        )

    @contextmanager
    def claimed(self, purpose: str, wait_seconds: float = 0.0) -> Iterator[None]:
        """Be the only agent in the container while the block runs; end first what a killed agent left running
        there.

        Raises Busy when somebody else is in it, ContainerUnavailable when it does not run.
        """
        with held(self._locks / f"{self.name}.lock", purpose, wait_seconds):
            if problem := self.state().problem:
                raise ContainerUnavailable(problem)
            self._stop_all()
            yield

    def run(
        self,
        command: Sequence[str],
        *,
        timeout_seconds: float,
        workdir: str = "/",
        environment: Mapping[str, str] | None = None,
        watch: Callable[[str], None] | None = None,
    ) -> Execution:
        """Run a command in the container to its end, at most `timeout_seconds`, and return what it did.

        `watch` is called with every line of stdout as it comes. When this is interrupted, so is the command.
        Raises ContainerUnavailable when it could not be started or its container went away.
        """
        import docker.errors
        import requests.exceptions

        started = time.monotonic()
        # Never less than was asked for: what a deadline cuts must be seen to be cut by it.
        seconds = max(1, math.ceil(timeout_seconds))
        wrapped = [
            "sh",
            "-c",
            _WRAPPER,
            PID_FILES + os.urandom(6).hex(),
            str(KILL_AFTER),
            str(seconds),
            *command,
        ]
        out, err = _Kept(), _Kept()
        lines = _Lines(watch)
        overran = False
        try:
            engine = self._engine()
            created = engine.exec_create(
                self.name,
                wrapped,
                tty=False,
                stdin=False,
                workdir=workdir,
                environment=dict(environment or {}),
            )
            identifier = str(created["Id"])
            stream = engine.exec_start(identifier, tty=False, socket=True)
            try:
                deadline = started + seconds + KILL_AFTER + GRACE
                for kind, chunk in _frames(stream, deadline, lambda: bool(self.state().problem)):
                    (err if kind == 2 else out).add(chunk)
                    if kind == 1:
                        lines.add(chunk)
            except TimeoutError:
                overran = True
            except BaseException:
                with suppress(Exception):
                    self._stop_all()
                raise
            finally:
                _close(stream)
            code = engine.exec_inspect(identifier).get("ExitCode")
        except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
            problem = self.state().problem or f"container {self.name}: {_short(error)}"
            raise ContainerUnavailable(problem) from None
        lines.end()
        exit_code = int(code) if code is not None else None
        # 137, or no code at all, is also what is left of a command whose container was killed.
        elapsed = time.monotonic() - started
        if (overran or exit_code in (None, 137)) and (problem := self._settled_problem()):
            raise ContainerUnavailable(problem)
        # 124 is what timeout answers; 137 when it had to kill.
        timed_out = overran or exit_code == 124 or (exit_code == 137 and elapsed >= seconds)
        return Execution(exit_code, out.text(), err.text(), timed_out, elapsed)

    def fetch(self, path: str, destination: Path, max_bytes: int) -> None:
        """Copy a file or folder out of the container to `destination`, which must not exist yet.

        Only plain files and folders are written. Raises FileNotFoundError when there is no such path,
        FetchRefused for names that climb or too many bytes, ContainerUnavailable.
        """
        import tarfile

        import docker.errors
        import requests.exceptions

        try:
            chunks, _ = self._engine().get_archive(self.name, path)
            with tarfile.open(fileobj=_Stream(chunks), mode="r|") as archive:
                _unpack(archive, destination, max_bytes)
        except docker.errors.NotFound as error:
            if self.state().status == "missing":
                raise ContainerUnavailable(self.state().problem) from None
            raise FileNotFoundError(f"{path} is not in container {self.name}") from error
        except tarfile.TarError as error:
            raise FetchRefused(f"{path} came out of container {self.name} broken: {_short(error)}") from None
        except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
            problem = self.state().problem or f"container {self.name}: {_short(error)}"
            raise ContainerUnavailable(problem) from None

    def put(self, folder: str, name: str, content: bytes) -> None:
        """Write a small file into an existing folder of the container. Raises ContainerUnavailable."""
        import tarfile

        import docker.errors
        import requests.exceptions

        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(content), 0o640, int(time.time())
            archive.addfile(member, io.BytesIO(content))
        try:
            self._engine().put_archive(self.name, folder, packed.getvalue())
        except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
            raise ContainerUnavailable(
                self.state().problem or f"container {self.name}: {_short(error)}"
            ) from None

    def _settled_problem(self) -> str:
        """Return what is wrong with the container, or "".

        The engine reports the end of a command some moments before that of the container it died with.
        """
        deadline = time.monotonic() + SETTLE
        while not (problem := self.state().problem) and time.monotonic() < deadline:
            time.sleep(0.2)
        return problem

    def _stop_all(self) -> None:
        """End every command of ours that still runs in the container, and wait for it."""
        self._engine().exec_start(self._engine().exec_create(self.name, ["sh", "-c", _STOP_ALL])["Id"])

    def _engine(self) -> docker.APIClient:
        if self._api is None:
            import docker

            self._api = docker.APIClient(
                base_url=os.environ.get("DOCKER_HOST") or None, version="auto", timeout=ENGINE_TIMEOUT
            )
        return self._api


class _Kept:
    """The first and the last part of a stream."""

    def __init__(self) -> None:
        self._first = bytearray()
        self._last = bytearray()
        self._dropped = 0

    def add(self, chunk: bytes) -> None:
        room = KEPT_OUTPUT // 2 - len(self._first)
        self._first += chunk[:room] if room > 0 else b""
        self._last += chunk[max(room, 0) :]
        if len(self._last) > KEPT_OUTPUT:
            surplus = len(self._last) - KEPT_OUTPUT // 2
            self._dropped += surplus
            del self._last[:surplus]

    def text(self) -> str:
        gap = f"\n[{self._dropped} bytes left out]\n".encode() if self._dropped else b""
        return bytes(self._first + gap + self._last).decode("utf-8", "replace")


class _Lines:
    """Calls `watch` with each line of a stream that comes in pieces."""

    def __init__(self, watch: Callable[[str], None] | None) -> None:
        self._watch = watch
        self._rest = b""

    def add(self, chunk: bytes) -> None:
        if self._watch is None:
            return
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        self._rest = self._rest[-65536:]
        for line in whole:
            self._watch(line.decode("utf-8", "replace"))

    def end(self) -> None:
        if self._watch is not None and self._rest:
            self._watch(self._rest.decode("utf-8", "replace"))


class _Stream(io.RawIOBase):
    """The chunks of an iterator as something to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _frames(stream: Any, deadline: float, is_lost: Callable[[], bool]) -> Iterator[tuple[int, bytes]]:
    """Yield (1 stdout | 2 stderr, bytes) of a hijacked connection.

    Raises TimeoutError at the deadline, or when it is silent and `is_lost`: a paused container stays silent.
    """
    import select
    import struct

    buffer = _early_bytes(stream)
    poller = select.poll()
    poller.register(stream.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    heard = time.monotonic()
    while True:
        while len(buffer) >= 8:
            kind, size = struct.unpack(">BxxxL", buffer[:8])
            if len(buffer) < 8 + size:
                break
            yield kind, buffer[8 : 8 + size]
            buffer = buffer[8 + size :]
        if time.monotonic() > deadline:
            raise TimeoutError
        if not poller.poll(500):
            if time.monotonic() - heard > SILENCE:
                if is_lost():
                    raise TimeoutError
                heard = time.monotonic()
            continue
        heard = time.monotonic()
        chunk = os.read(stream.fileno(), 65536)
        if not chunk:
            return
        buffer += chunk


def _early_bytes(stream: Any) -> bytes:
    """Return output that came in one packet with the response's header and so lies in its reader's buffer."""
    try:
        reader = stream._response.raw._fp.fp
        connection = reader.raw._sock
    except AttributeError:
        return b""
    connection.settimeout(0)
    early = reader.peek()
    taken = reader.read1(len(early)) if early else b""
    connection.settimeout(None)
    return bytes(taken or b"")


def _close(stream: Any) -> None:
    with suppress(Exception):
        stream.close()
    with suppress(Exception):
        stream._response.close()


def _unpack(archive: tarfile.TarFile, destination: Path, max_bytes: int) -> None:
    """Write the plain files and folders of a tar stream; its first path component becomes `destination`."""
    total = 0
    times: list[tuple[Path, int]] = []
    for member in archive:
        parts = PurePosixPath(member.name).parts
        if member.name.startswith("/") or ".." in parts:
            raise FetchRefused(f"{member.name!r} climbs out of its folder: nothing of it was taken")
        target = destination.joinpath(*parts[1:])
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True, mode=0o700)
        elif member.isreg():
            total += member.size
            if total > max_bytes:
                raise FetchRefused(f"more than {max_bytes} bytes came out of the container")
            content = archive.extractfile(member)
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
                while content is not None and (chunk := content.read(1 << 20)):
                    file.write(chunk)
            times.append((target, int(member.mtime)))
    for target, mtime in times:
        os.utime(target, (mtime, mtime))


def _short(error: BaseException) -> str:
    explanation = getattr(error, "explanation", None)
    return " ".join(str(explanation or error).split())[:200]
