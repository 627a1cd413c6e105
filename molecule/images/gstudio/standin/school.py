"""Which school this is, and how much data it has."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from .places import SETTINGS

IST = timezone(timedelta(hours=5, minutes=30))
INSTALL_DAY = datetime(2018, 8, 14, 10, 0, tzinfo=IST)  # day of the school's first start
DAY_ZERO = datetime(2018, 12, 14, 10, 0, tzinfo=IST)  # what `generate` makes is the state on this morning
STATE_NUMBER = {"ct": 1, "mz": 2, "rj": 3, "tg": 4}


def instant(day: int, seconds: float = 0) -> int:
    """Return the epoch second `seconds` after ten in the morning of school day `day` (0: DAY_ZERO)."""
    return int((DAY_ZERO + timedelta(days=day, seconds=seconds)).timestamp())


@dataclass(frozen=True)
class School:
    """The identity that a server's server_settings.py gives."""

    server_id: str
    school_code: str
    name: str

    @property
    def server_name(self) -> str:
        """`<school code>-<server id>`: whatever the settings hold, nothing is checked here."""
        return f"{self.school_code}-{self.server_id}"

    @property
    def first_user_id(self) -> int:
        """User ids are unique in the whole fleet: each server has a range of its own."""
        match = re.fullmatch(r"([a-z]{2})(\d+)", self.server_id)
        if not match:
            return 900_000
        return STATE_NUMBER.get(match[1], 5) * 1_000_000 + int(match[2]) * 1000


def read_settings(path: Path) -> School:
    """Given server_settings.py, run it as gStudio does: a syntax error silently leaves all values empty."""
    found: dict[str, object] = {}
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), found)
    except Exception:
        found = {}
    return School(
        str(found.get("GSTUDIO_INSTITUTE_ID", "")),
        str(found.get("GSTUDIO_INSTITUTE_ID_SECONDARY", "")),
        str(found.get("GSTUDIO_INSTITUTE_NAME", "")),
    )


def school_of(seed: str | None, code: str | None = None, name: str | None = None) -> School:
    """Return the school that was asked for, else the one in the settings."""
    found = read_settings(SETTINGS)
    if seed is None:
        seed = found.server_id or "sp100"
        code, name = code or found.school_code, name or found.name
    return School(seed, code or "2030000", name or f"School {seed}")


@dataclass(frozen=True)
class Sizes:
    """How much there is of everything. Scale 1 makes about 300 MB, for benchmarks; the lab uses 0.01."""

    scale: float
    users: int
    units: int
    nodes: int
    media_files: int
    media_bytes: int
    asset_files: int
    asset_bytes: int
    response_files: int
    response_bytes: int
    runs: int
    heartbeats: int
    log_lines: int
    database_pages: int
    visits_per_user: int

    @classmethod
    def of(cls, scale: float, **given: int | None) -> Sizes:
        """Return the sizes of a scale; keyword arguments that are not None override single ones."""
        root = math.sqrt(scale)

        def linear(at_one: int, least: int) -> int:
            return max(least, round(at_one * scale))

        sizes: dict[str, int] = {
            "users": max(12, round(120 * root)),
            "units": min(31, max(4, round(31 * root))),
            "nodes": linear(4000, 48),
            "media_files": linear(3000, 24),
            "media_bytes": linear(150_000_000, 400_000),
            "asset_files": linear(400, 8),
            "asset_bytes": linear(40_000_000, 100_000),
            "response_files": linear(600, 10),
            "response_bytes": linear(30_000_000, 100_000),
            "runs": linear(40, 2),
            "heartbeats": linear(40, 3),
            "log_lines": linear(80_000, 300),
            "database_pages": linear(6_000, 90),
            "visits_per_user": max(12, round(160 * root)),
        }
        sizes.update({key: value for key, value in given.items() if value is not None})
        return cls(scale=scale, **sizes)

    def as_dict(self) -> dict[str, float]:
        """Return all sizes by name, for the state file."""
        return asdict(self)
