"""Heartbeat history: the readings of the last months in one SQLite file, and what they look like in one line
each.

Nothing depends on it: it is made anew when it is damaged. The order is that of writing, as clocks jump.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from shala_agent.outcome import counted

if TYPE_CHECKING:
    from shala_agent.heartbeat import Heartbeat

KEPT = 3000  # readings: four months of a server that is always on, some MB

_BARS = "▁▂▃▄▅▆▇█"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS heartbeats (id INTEGER PRIMARY KEY AUTOINCREMENT, document BLOB NOT NULL)"
)


def keep(path: Path, document: bytes) -> None:
    """Add one reading and forget the oldest. Raises sqlite3.Error when the disk does not take it."""
    try:
        _keep(path, document)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # a full disk, which is no damage
            raise
        for suffix in ("", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        _keep(path, document)


def newest(path: Path, number: int) -> list[bytes]:
    """Return so many readings, the oldest of them first; none when there is no history."""
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as db:
            rows = db.execute(
                "SELECT document FROM heartbeats ORDER BY id DESC LIMIT ?", (number,)
            ).fetchall()
    except sqlite3.DatabaseError:
        return []
    return [bytes(document) for (document,) in reversed(rows)]


def sparkline(values: Sequence[float], span: float = 0.0) -> str:
    """Return one bar for each value; the scale goes from the least to the greatest, and over `span` at least:
    what hardly moves is to look so.
    """
    if not values:
        return ""
    least, greatest = min(values), max(values)
    if greatest - least < span:
        # The middle is a bar, not the border of two.
        least = (least + greatest) / 2 - span * 3 / 7
        greatest = least + span
    if least == greatest:
        return _BARS[3] * len(values)
    step = (greatest - least) / (len(_BARS) - 1)
    return "".join(_BARS[round((value - least) / step)] for value in values)


def shown(beats: Sequence[Heartbeat]) -> list[str]:
    """Return the lines that a person reads of some heartbeats, the oldest of them first."""
    if not beats:
        return ["No heartbeat is kept yet (shala-agent heartbeat)."]
    last = beats[-1]
    boots = len({beat.boot_id or beat.taken for beat in beats})
    up = [beat.container == "running" for beat in beats]
    ill = sum(beat.container_health == "unhealthy" for beat in beats)
    name, number = last.server_name or "unidentified server", counted(len(beats), "heartbeat")
    bars, unhealthy = "".join("█" if one else "·" for one in up), f", unhealthy in {ill}" if ill else ""
    return [
        f"{name}: {number}, {beats[0].taken} to {last.taken}, {counted(boots, 'boot')}",
        _line("disk free", "GB", [beat.disk_free / 1e9 for beat in beats], last.disk_total / 1e9),
        _line("memory free", "GB", [beat.memory_available / 1e9 for beat in beats], last.memory_total / 1e9),
        _line("load", "", [beat.load[0] if beat.load else 0.0 for beat in beats]),
        _line("time up", "min", [beat.uptime_seconds / 60 for beat in beats]),
        f"{'container':<12}{bars}  running in {sum(up)} of {len(up)}{unhealthy}",
    ]


def _line(title: str, unit: str, values: list[float], whole: float = 0.0) -> str:
    said = f"{values[-1]:.1f} {unit}".strip()
    of = f" of {whole:.1f}" if whole else ""
    ends = f"least {min(values):.1f}, most {max(values):.1f}"
    return f"{title:<12}{sparkline(values, whole / 10 or 1)}  {said}{of} ({ends})"


def _keep(path: Path, document: bytes) -> None:
    with closing(sqlite3.connect(path, timeout=30)) as db, db:
        db.execute("PRAGMA synchronous = FULL")
        db.execute(_SCHEMA)
        last = db.execute("INSERT INTO heartbeats (document) VALUES (?)", (document,)).lastrowid
        db.execute("DELETE FROM heartbeats WHERE id <= ?", (int(last or 0) - KEPT,))
