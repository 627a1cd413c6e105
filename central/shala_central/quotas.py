"""Quotas: how much a device and a zone may leave at the centre, whatever has got hold of a school's key.

Who meets one is told so with 507 and comes later: nothing of it is lost, and what the centre has to give is
given all the same. `shala zone status` names who is near one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from shala_agent.segment import Segment
from shala_agent.store import TO_MEND

from shala_central.config import ZoneSettings
from shala_central.database import Database, Session
from shala_central.refusal import Refusal

_NEAR = 0.8  # of a quota: named in the status from then on


@dataclass(frozen=True, slots=True)
class Quotas:
    """The quotas of a configuration."""

    settings: ZoneSettings

    def require_room(self, database: Database) -> None:
        """Raise Refusal where the disk of the database is nearly full. PostgreSQL's is not for us to see."""
        if (
            database.folder is not None
            and shutil.disk_usage(database.folder).free < self.settings.min_free_bytes
        ):
            raise _full("the centre's disk is nearly full")

    def require_bytes(self, session: Session, device: bytes, zone: int, size: int) -> None:
        """Raise Refusal where so many bytes more are too many of a device, or of its zone."""
        ((of_device,),) = session.query("SELECT bytes FROM device WHERE id = ?", (device,))
        ((of_zone,),) = session.query("SELECT bytes FROM zone WHERE id = ?", (zone,))
        if of_device + size > self.settings.max_device_bytes:
            raise _full("this device has brought as much as it may (zones.max_device_bytes at the centre)")
        if of_zone + size > self.settings.max_zone_bytes:
            raise _full("this zone holds as much as it may (zones.max_zone_bytes at the centre)")

    def require_epoch(self, session: Session, zone: int, segment: Segment) -> None:
        """Raise Refusal where a segment begins one log too many: each is named when its device is revoked."""
        if session.query("SELECT 1 FROM segment WHERE zone = ? AND log = ? LIMIT 1", (zone, segment.log)):
            return
        ((logs,),) = session.query(
            'SELECT COUNT(DISTINCT log) FROM segment WHERE zone = ? AND "key" = ?', (zone, segment.header.key)
        )
        if logs >= self.settings.max_device_epochs:
            raise too_many_epochs(logs)

    def require_held(self, session: Session, device: bytes, zone: int) -> None:
        """Raise Refusal where a device, or its zone, has brought too much that nobody can apply (yet)."""
        held = _held(session, zone)
        if held.get(device, 0) > self.settings.max_device_held:
            raise _full(
                "this device has brought too many segments of devices that are unknown or revoked"
                " (zones.max_device_held at the centre)"
            )
        if sum(held.values()) > self.settings.max_zone_held:
            raise _full(
                "this zone holds too many segments of devices that are unknown or revoked"
                " (zones.max_zone_held at the centre)"
            )

    def near(self, session: Session, zone: int) -> Iterator[str]:
        """Yield what a zone and its devices have nearly used up."""
        settings = self.settings
        ((of_zone,),) = session.query("SELECT bytes FROM zone WHERE id = ?", (zone,))
        yield from _near("the zone: bytes", of_zone, settings.max_zone_bytes, "max_zone_bytes")
        held = _held(session, zone)
        yield from _near(
            "the zone: segments held", sum(held.values()), settings.max_zone_held, "max_zone_held"
        )
        rows = session.query("SELECT device, COUNT(*) FROM contact WHERE zone = ? GROUP BY device", (zone,))
        epochs = {bytes(device): int(number) for device, number in rows}
        for id_, name, brought in session.query(
            "SELECT id, name, bytes FROM device WHERE zone = ? ORDER BY name, id", (zone,)
        ):
            yield from _near(f"{name}: bytes", brought, settings.max_device_bytes, "max_device_bytes")
            yield from _near(
                f"{name}: segments held", held.get(id_, 0), settings.max_device_held, "max_device_held"
            )
            yield from _near(
                f"{name}: epochs", epochs.get(id_, 0), settings.max_device_epochs, "max_device_epochs"
            )

    def disk(self, database: Database) -> str:
        """Return what is to be said of the disk, "" where there is room."""
        if database.folder is None:
            return ""
        free = shutil.disk_usage(database.folder).free
        if free * _NEAR >= self.settings.min_free_bytes:
            return ""
        return (
            f"disk: {free:,} bytes are free in {database.folder}; below {self.settings.min_free_bytes:,}"
            " nothing is taken (zones.min_free_bytes)"
        )


def too_many_epochs(number: int) -> Refusal:
    """Return the refusal of one epoch more than a device may begin."""
    return _full(
        f"this device has begun {number} epochs, as if it were copied or set back again and again: give it a"
        " new key (shala device create --replace)"
    )


def _full(text: str) -> Refusal:
    return Refusal(507, text, headers={"Retry-After": "3600"})


def _held(session: Session, zone: int) -> dict[bytes, int]:
    """Return how many segments that cannot be applied each device has brought."""
    rows = session.query(
        "SELECT a.device, COUNT(*) FROM segment s JOIN arrival a ON a.id = s.id"  # noqa: S608 - constants
        f" WHERE s.zone = ? AND held IS NOT NULL AND NOT {TO_MEND} GROUP BY a.device",
        (zone,),
    )
    return {bytes(device or b""): int(number) for device, number in rows}


def _near(what: str, used: int, quota: int, setting: str) -> Iterator[str]:
    if used >= quota * _NEAR:
        yield f"{what}: {used:,} of {quota:,} (zones.{setting})"
