"""Heartbeat: one timed reading of the server, made by the agent itself, for people (a log) and for `status`
(JSON).

Unlike the platform's own script it says whose it is, works with the container down, and is whole or not
there.
"""

from __future__ import annotations

import datetime
import os
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from shala_agent import checks, durable, heartbeat_history
from shala_agent.catalogue import HEARTBEAT_FOLDER
from shala_agent.config import Config
from shala_agent.container import Container, ContainerState
from shala_agent.failure import AgentError
from shala_agent.identity import Identity
from shala_agent.ledger import now
from shala_agent.lock import held
from shala_agent.outcome import Result, failed, judged
from shala_agent.reach import LinkRefused, Reach

HISTORY = "history.sqlite"
TIMEOUT = 60  # seconds for one command; du of a full disk is the slow one
WRITING = 30  # seconds that another heartbeat may take to write its log on a slow disk


class Heartbeat(msgspec.Struct, kw_only=True):
    """What `status` and the centre read; sizes in bytes."""

    format: int = 1
    taken: str
    server_name: str
    server_id: str
    school_code: str
    school_name: str
    addresses: list[str]
    memory_total: int = 0
    memory_available: int = 0
    disk_total: int = 0
    disk_free: int = 0
    uptime_seconds: float = 0.0
    load: list[float] = msgspec.field(default_factory=list)
    container: str = ""
    container_health: str = ""
    boot_id: str = ""  # the kernel's: another one is another boot, whatever the clock says


def take_heartbeat(
    config: Config, container: Container, reach: Reach, identity: Identity | None, why: str = ""
) -> Result:
    """Write one heartbeat.

    A server without an identity has one too; then `why` says what is wrong with it.
    """
    state = container.state()
    beat = _read(config, identity, state)
    findings = [why] if why else []
    if state.problem:
        findings.append(state.problem)
    text = _log(beat, _sections(config, beat, state, why))
    folder = Path(config.paths.state) / "heartbeat"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    document = msgspec.json.encode(beat)
    durable.write(folder / "latest.json", document + b"\n")
    try:
        heartbeat_history.keep(folder / HISTORY, document)
    except sqlite3.Error as error:
        findings.append(f"the history of heartbeats could not be written: {error}")
    name = f"system-heartbeat-{datetime.datetime.now().astimezone():%Y%m%d-%H%M%S}.log"
    try:
        _place(container, reach, Path(config.paths.state) / "locks", name, text.encode("utf-8", "replace"))
    except (OSError, AgentError) as error:
        return failed(*findings, f"{name} could not be written: {error}")
    return judged(findings, None, {"file": name})


def latest(config: Config) -> Heartbeat | None:
    """Return the last heartbeat, or None when there was none."""
    try:
        return msgspec.json.decode(
            (Path(config.paths.state) / "heartbeat/latest.json").read_bytes(), type=Heartbeat
        )
    except (OSError, msgspec.MsgspecError):
        return None


def newest(config: Config, number: int) -> list[Heartbeat]:
    """Return so many of the last heartbeats, the oldest of them first."""
    path = Path(config.paths.state) / "heartbeat" / HISTORY
    found: list[Heartbeat] = []
    for document in heartbeat_history.newest(path, number):
        with suppress(msgspec.MsgspecError):
            found.append(msgspec.json.decode(document, type=Heartbeat))
    return found


def _place(container: Container, reach: Reach, locks: Path, name: str, content: bytes) -> None:
    folder = reach.host(HEARTBEAT_FOLDER)
    if folder is not None and folder.parent.is_dir():
        with held(locks / "heartbeat.lock", "heartbeat", WRITING), _folder(folder) as place:
            # Of a run that was cut: each has a name of its own, no other write would replace it.
            for part in place.glob(f"{durable.TEMPORARY}*.part"):
                part.unlink(missing_ok=True)
            durable.write(place / name, content)
        return
    with container.claimed("heartbeat"):
        container.run(["mkdir", "-p", HEARTBEAT_FOLDER], timeout_seconds=20)
        temporary = f"{durable.TEMPORARY}{name}.part"
        container.put(HEARTBEAT_FOLDER, temporary, content)
        moved = container.run(
            ["mv", f"{HEARTBEAT_FOLDER}/{temporary}", f"{HEARTBEAT_FOLDER}/{name}"], timeout_seconds=20
        )
        if moved.exit_code != 0:
            raise AgentError(moved.said)


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """Yield a folder that the platform may have put a link in the place of, but not as long as it is held."""
    path.mkdir(exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        raise LinkRefused(f"{path} is a link: root does not follow what the container made") from None
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _read(config: Config, identity: Identity | None, state: ContainerState) -> Heartbeat:
    memory = {}
    for line in _text("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if value.split():
            memory[name] = int(value.split()[0]) * 1024
    place = Path(config.paths.data)
    while not place.is_dir():
        place = place.parent
    disk = shutil.disk_usage(place)
    uptime = _text("/proc/uptime").split()
    return Heartbeat(
        taken=now(),
        server_name=identity.server_name if identity else "",
        server_id=identity.server_id if identity else "",
        school_code=identity.school_code if identity else "",
        school_name=identity.school_name if identity else "",
        addresses=_addresses(),
        memory_total=memory.get("MemTotal", 0),
        memory_available=memory.get("MemAvailable", 0),
        disk_total=disk.total,
        disk_free=disk.free,
        uptime_seconds=float(uptime[0]) if uptime else 0.0,
        load=[float(part) for part in _text("/proc/loadavg").split()[:3]],
        container=state.status,
        container_health=state.health,
        boot_id=_text("/proc/sys/kernel/random/boot_id").strip(),
    )


def _sections(config: Config, beat: Heartbeat, state: ContainerState, why: str) -> list[tuple[str, str]]:
    data = sorted(path for path in Path(config.paths.data).glob("*") if not path.is_symlink())
    return [
        ("server id", beat.server_id or f"unknown: {why}"),
        ("school id", beat.school_code or "unknown"),
        ("school name", beat.school_name or "unknown"),
        ("host name", socket.gethostname()),
        ("internal ip", " ".join(beat.addresses) or "none"),
        ("external ip", "none (the agent never asks the internet)"),
        ("container", f"{state.name}: {state.problem or 'running'} {state.health}".strip()),
        ("container image", f"{state.image} {state.image_id}".strip() or "unknown"),
        ("free -h", _said("free", "-h")),
        ("df -h", _said("df", "-h")),
        ("du -hs of data", _said("du", "-hs", *map(str, data)) if data else "no data folder"),
        ("uptime", _said("uptime")),
        # Without the arguments: passwords stand in some.
        ("ps", _said("ps", "-eo", "pid,user,pcpu,pmem,rss,etime,comm")),
    ]


def _log(beat: Heartbeat, sections: list[tuple[str, str]]) -> str:
    parts = [f"{checks.HEARTBEAT_BEGIN} 1, {beat.server_name or 'unidentified server'}, {beat.taken}"]
    parts += [f"## {title}\n{text}" for title, text in sections]
    return "\n\n".join([*parts, checks.HEARTBEAT_END]) + "\n"


def _addresses() -> list[str]:
    """Return the machine's own addresses but loopback and those of the engine's bridges."""
    said = _said("ip", "-json", "address", "show", "up")
    try:
        interfaces = msgspec.json.decode(said)
        return [
            address["local"]
            for interface in interfaces
            if not interface["ifname"].startswith(("lo", "docker", "br-", "veth"))
            for address in interface.get("addr_info", ())
            if address.get("scope") == "global"
        ]
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        return [word for word in _said("hostname", "-I").split() if word[:1].isdigit()]


def _said(*command: str) -> str:
    """Return what a command of this machine says; what hinders it is said in its place."""
    try:
        ran = subprocess.run(
            command,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
            env=_ENVIRONMENT,
        )
    except FileNotFoundError:
        return f"{command[0]} is not installed here"
    except (subprocess.TimeoutExpired, OSError):
        return f"{command[0]} took longer than {TIMEOUT} s"
    return ran.stdout.decode("utf-8", "replace").strip()


_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
