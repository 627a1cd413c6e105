"""A server of a zone without its platform: records, a key, and a way to the centre."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from little_centre import LittleCentre
from nacl.signing import SigningKey
from shala_agent.centre import Centre
from shala_agent.records import Change, Records
from shala_agent.sync import SyncResult, sync


@dataclass
class Server:
    """One server: its folder, its key, its records."""

    root: Path
    name: str
    key: SigningKey
    records: Records
    centre: LittleCentre

    @property
    def parts(self) -> Path:
        return self.root / "parts"

    def line(self, **more) -> Centre:
        return Centre(self.centre.url, self.key, connect_seconds=2.0, **more)

    def sync(self, *, upload_only: bool = False, **more) -> SyncResult:
        return sync(self.records, self.line(**more), self.parts, upload_only=upload_only)

    def learn(self, user: str, *units: str, visited: int = 1, at: int = 1000) -> None:
        """Have a student and her progress."""
        changes = [Change("account", user, {"username": user})]
        changes += [
            Change("progress", f"{user}/{unit}", {"unit_name": unit, "lessons_visited": visited})
            for unit in units
        ]
        self.records.write(changes, at)

    def says(self) -> dict[str, object]:
        """Return what its records say."""
        return {f"{one.type}/{one.key}": one.value for one in self.records.records()}

    def reopen(self) -> None:
        self.records.close()
        self.records = Records(self.root / "records.sqlite")

    def backup(self, to: Path) -> None:
        self.records.close()
        shutil.copytree(self.root, to)
        self.records = Records(self.root / "records.sqlite")


def server_in(root: Path, name: str, centre: LittleCentre, *, enrolled: bool = True) -> Server:
    """Return a server with an empty record store."""
    key = SigningKey.generate()
    made = Server(root, name, key, Records(root / "records.sqlite"), centre)
    if enrolled:
        statements = centre.enrol(bytes(key.verify_key), name)
        made.records.enrol(centre.zone, bytes(centre.key.verify_key), bytes(key.verify_key), statements)
    return made
