"""The fault switches: a file under /faults turns one on, its content sets it, its removal turns it off."""

from __future__ import annotations

import errno
import os
import signal
import time
from datetime import datetime, timedelta
from pathlib import Path

from .school import IST

FOLDER = Path(os.environ.get("GSTUDIO_STANDIN_FAULTS", "/faults"))
PIECES = 8  # a slow file grows in this many steps


def setting(name: str) -> str | None:
    """Return the content of a switch that is on (may be empty), None for one that is off."""
    try:
        return (FOLDER / name).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def number(name: str, default: float) -> float | None:
    """Return a switch's number: `default` when the file holds none, None when the switch is off."""
    text = setting(name)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return default


def now() -> datetime:
    """Return the time in India, or what the switch clock-wrong makes of it (seconds to add, or a date)."""
    clock = datetime.now(IST)
    wrong = setting("clock-wrong")
    if wrong is None:
        return clock
    try:
        return clock + timedelta(seconds=float(wrong or 86_400 * 365))
    except ValueError:
        return datetime.fromisoformat(wrong).replace(tzinfo=IST)


def slowness(switch: str) -> float:
    """Return the seconds a file takes: GSTUDIO_STANDIN_SLOW and, when on, the switch (2 s if empty)."""
    return float(os.environ.get("GSTUDIO_STANDIN_SLOW") or 0) + (number(switch, 2) or 0)


def write_in_place(
    path: Path, content: bytes, switch: str = "export-slow", die_at: float | None = None
) -> None:
    """Write as the originals do: under the final name, truncated first, growing slowly, never synced.

    With `die_at` (0..1) the process kills itself when that part is written.
    Raises OSError when the disk is "full".
    """
    seconds = slowness(switch)
    room = number("disk-full", 1000)
    with path.open("wb", buffering=0) as file:
        time.sleep(seconds / 4)
        step = max(1, -(-len(content) // PIECES))
        written = 0
        for start in range(0, len(content), step):
            piece = content[start : start + step]
            if room is not None and written + len(piece) > room:
                file.write(piece[: max(0, int(room) - written)])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            file.write(piece)
            written += len(piece)
            if die_at is not None and written >= len(content) * die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(seconds * 3 / 4 / PIECES)
