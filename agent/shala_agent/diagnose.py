"""Diagnose: one archive with all that support needs to know of a server, and nothing about a person.

Nothing is copied that comes from the platform. Texts go through shala_agent.redaction, which lets through
only words of the agent's own. Whatever cannot be had is named.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import io
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from shala_agent import __version__
from shala_agent.chain import Chain
from shala_agent.config import Config
from shala_agent.doctor import examine
from shala_agent.extension import known_catalogue
from shala_agent.failure import UsageError
from shala_agent.heartbeat import newest
from shala_agent.kinds import KINDS
from shala_agent.ledger import Ledger
from shala_agent.redaction import Redaction, without_secrets
from shala_agent.status import Status, read_status

RUNS = 100  # of the ledger
BEATS = 500
JOURNAL_LINES = 3000
TIMEOUT = 20  # seconds for one program of the system
UNITS = ("shala-agent.timer", "shala-agent.service", "docker.service")
_UNIT_FIELDS = (
    "ActiveState,SubState,Result,UnitFileState,ExecMainStatus,ExecMainStartTimestamp,ExecMainExitTimestamp,"
    "NRestarts,MemoryPeak,CPUUsageNSec,NextElapseUSecRealtime,LastTriggerUSec"
)

Document = dict[str, Any] | list[Any]


class Unavailable(Exception):
    """A part that this server does not have; the text says why."""


@dataclass(slots=True)
class Diagnosis:
    """The archive, what is in it: (file, what it is, bytes), and what is not, with the reason; `broken` when
    that should be there.
    """

    path: Path
    parts: list[tuple[str, str, int]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    broken: bool = False


def diagnose(config: Config, ledger: Ledger, target: Path) -> Diagnosis:
    """Write the archive, readable for its owner alone.

    Raises UsageError when there is a file of that name or none can be made, OSError.
    """
    diagnosis = Diagnosis(target)
    status = read_status(config, ledger)
    beat = status.heartbeat
    ids = [beat.server_id, beat.school_code] if beat else []
    redaction = Redaction(config, status.server_name, *ids, *_names(config))
    contents: dict[str, bytes] = {}
    for name, about, deed in _parts(config, ledger, status, redaction):
        try:
            document = deed()
        except Unavailable as error:
            diagnosis.missing[name] = str(error)
        except Exception as error:
            diagnosis.broken = True
            diagnosis.missing[name] = f"{type(error).__name__}: {redaction.text(str(error))}"
        else:
            if name == "ledger.json" and ledger.problem:
                # What could be read of it is in the archive; that it is not all is said.
                diagnosis.broken = True
                diagnosis.missing["ledger.sqlite"] = redaction.text(ledger.problem)
            contents[name] = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
            diagnosis.parts.append((name, about, len(contents[name])))
    listed = [f"{name:<16}{size:>10} bytes  {about}" for name, about, size in diagnosis.parts]
    listed += [f"{name:<16} not there: {why}" for name, why in diagnosis.missing.items()]
    contents = {"CONTENTS.txt": "".join(f"{line}\n" for line in listed).encode(), **contents}
    _write(target, contents)
    return diagnosis


def _parts(
    config: Config, ledger: Ledger, status: Status, redaction: Redaction
) -> Iterator[tuple[str, str, Callable[[], Document]]]:
    chain, hidden = Chain(config, ledger), redaction.document
    yield "config.json", "the configuration, secrets masked", lambda: without_secrets(_plain(config))
    yield "catalogue.json", "items and derivations, their policy", lambda: hidden(_catalogue(config))
    yield "status.json", "what is done, due, suspect, failed", lambda: hidden(_plain(status))
    yield "doctor.json", "what is wrong here", lambda: hidden(_plain(list(examine(config, ledger))))
    yield "ledger.json", f"the last {RUNS} runs and their steps", lambda: hidden(_runs(ledger))
    yield "heartbeats.json", f"the last {BEATS} heartbeats", lambda: hidden(_plain(newest(config, BEATS)))
    yield "versions.json", "of the agent, of what it uses, of the system", _versions
    yield "disks.json", "size, room and mount of the folders", lambda: _disks(config)
    yield "container.json", "the platform's container", lambda: _container(chain, redaction)
    yield "units.json", "systemd's units", _units
    yield "journal.json", "the last lines of shala's units", lambda: _journal(redaction)


def _plain(document: object) -> Any:
    return msgspec.to_builtins(document)


def _names(config: Config) -> Iterator[str]:
    """Yield what the catalogue calls things: no name in it is of a person."""
    yield from (kind.id for kind in KINDS.values())
    rows, _ = known_catalogue(config)
    for item in rows.items:
        yield f"{item.name} gstudio/{item.name}"
    for row in rows.derivations:
        yield row.name


def _catalogue(config: Config) -> Document:
    rows, mistake = known_catalogue(config)
    return {
        "mistake": mistake,
        "items": [
            {
                "name": item.name, "check": item.kind.id, "reading": item.reading, "step": item.step,
                "policy": item.policy.said, "largest_drop": item.largest_drop,
            }
            for item in rows.items
        ],
        "derivations": [
            {
                "name": row.name, "check": row.kind.id, "every_hours": row.every_hours,
                "timeout_minutes": row.timeout_minutes,
            }
            for row in rows.derivations
        ],
    }  # fmt: skip


def _runs(ledger: Ledger) -> Document:
    return [{**_plain(run), "steps": _plain(ledger.steps(run.id))} for run in ledger.runs(RUNS)]


def _versions() -> Document:
    system = {}
    with suppress(OSError):
        system = platform.freedesktop_os_release()
    used = {}
    for package in ("click", "docker", "httpx", "msgspec", "pynacl", "pyrage", "rich", "zstandard"):
        with suppress(importlib.metadata.PackageNotFoundError):
            used[package] = importlib.metadata.version(package)
    return {
        "agent": __version__,
        "python": platform.python_version(),
        "system": system.get("PRETTY_NAME", ""),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": used,
    }


def _disks(config: Config) -> Document:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines()]
    found = {}
    for name in ("state", "spool", "data", "code", "assessments"):
        folder = getattr(config.paths, name)
        if not Path(folder).is_dir():
            found[name] = {"folder": folder, "there": False}
            continue
        seen, size = os.statvfs(folder), shutil.disk_usage(folder)
        real = f"{os.path.realpath(folder)}/"
        under = [m for m in mounts if real.startswith(f"{m[1].rstrip('/')}/")]
        mount = max(under, key=lambda m: len(m[1]), default=["", "", "", ""])
        found[name] = {
            "folder": folder, "there": True, "total": size.total, "free": size.free,
            "inodes": seen.f_files, "inodes_free": seen.f_ffree,
            "filesystem": mount[2], "read_only": "ro" in mount[3].split(","),
        }  # fmt: skip
    return found


def _container(chain: Chain, redaction: Redaction) -> Document:
    state = chain.container.state()
    return {
        "status": state.status, "health": state.health, "image": state.image, "image_id": state.image_id,
        "started": state.started, "restarts": state.restarts, "detail": redaction.text(state.detail),
        "problem": redaction.text(state.problem),
    }  # fmt: skip


def _units() -> Document:
    _need_systemd()
    shown = {}
    for unit in UNITS:
        lines = _said("systemctl", "show", unit, f"--property={_UNIT_FIELDS}").splitlines()
        shown[unit] = dict(line.split("=", 1) for line in lines if "=" in line)
    return shown


def _journal(redaction: Redaction) -> Document:
    _need_systemd()
    lines = _said(
        "journalctl", "--unit=shala-agent.service", "--unit=shala-agent.timer", f"--lines={JOURNAL_LINES}",
        "--output=json", "--output-fields=MESSAGE,PRIORITY,_BOOT_ID", "--no-pager", "--quiet",
    ).splitlines()  # fmt: skip
    entries = []
    for line in lines:
        entry = msgspec.json.decode(line)
        at = datetime.datetime.fromtimestamp(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, datetime.timezone.utc)
        entries.append(
            {
                "at": at.isoformat(timespec="seconds"),
                "boot": str(entry.get("_BOOT_ID", ""))[:8],
                "priority": str(entry.get("PRIORITY", "")),
                # One that is no text is a list of numbers.
                "message": redaction.text(entry["MESSAGE"]) if isinstance(entry.get("MESSAGE"), str) else "",
            }
        )
    return entries


def _need_systemd() -> None:
    if not Path("/run/systemd/system").is_dir():
        raise Unavailable("systemd does not run here")


def _said(*command: str) -> str:
    try:
        ran = subprocess.run(
            command, capture_output=True, timeout=TIMEOUT, check=False, stdin=subprocess.DEVNULL,
            env={"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} took longer than {TIMEOUT} s") from None
    if ran.returncode:
        raise Unavailable(f"{command[0]} ended with {ran.returncode}")
    return ran.stdout.decode("utf-8", "replace")


def _write(target: Path, contents: dict[str, bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(target, flags, 0o600)
    except FileExistsError:
        raise UsageError(f"{target} exists already (remove it, or give another --output)") from None
    except OSError as error:
        raise UsageError(
            f"{target} cannot be written: {error.strerror} (name a file in a folder that is there and yours)"
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for name, content in contents.items():
                    member = tarfile.TarInfo(f"shala-diagnose/{name}")
                    member.size, member.mode = len(content), 0o600
                    archive.addfile(member, io.BytesIO(content))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise
