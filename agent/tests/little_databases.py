"""Little databases of a school: in the place of PostgreSQL its users, in that of MongoDB counts of documents.

The container's commands are run on this machine, with the data volume where the school has it.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_school import QuietContainer, bson
from shala_agent.checks import SQL_TRAILER
from shala_agent.container import ContainerState, Execution

DATABASE = "gstudio-mongodb"


class Databases(QuietContainer):
    """A container with little databases; `mongorestore` puts back nothing where it is `idle`."""

    def __init__(self, root: Path) -> None:
        super().__init__("gstudio", root / "state/locks")
        self._data = root / "data"
        self._begin()
        self.deeds: list[str] = []
        self.idle = False
        self.broken = False
        self.started = ""
        self.at_work: dict[str, int] = {}  # what somebody adds while mongorestore runs

    def _begin(self) -> None:
        self.users: dict[str, str] = {}
        self.documents: dict[str, int] = {}

    def state(self) -> ContainerState:
        return dataclasses.replace(super().state(), started=self.started)

    def run(self, command: Sequence[str], **_: Any) -> Execution:
        here = [word.replace("/data/", f"{self._data}/") for word in command]
        text = " ".join(command)
        if command[0] == "mongorestore":
            self.deeds.append("mongorestore")
            if self.broken:
                return Execution(1, "", "it broke", False, 0.0)
            if not self.idle:
                self.documents |= {
                    file.stem: len(file.read_bytes()) // 12 + self.at_work.get(file.stem, 0)
                    for file in Path(here[-1]).glob("*.bson")
                }
        elif "mongodump" in text:
            self.deeds.append(f"kept in {Path(here[-1]).parent.name}")
            folder = Path(here[-1], here[-2])
            folder.mkdir(parents=True)
            for name, count in self.documents.items():
                written_in_two(folder / f"{name}.bson", bson(count))
        elif "drop_collection" in text:
            self.documents = {name: n for name, n in self.documents.items() if name not in command[4:]}
        elif "collection_names" in text:
            counts = "".join(f"{count} {DATABASE} {name}\n" for name, count in self.documents.items())
            return Execution(0, f"{counts}counted\n", "", False, 0.0)
        elif "pg_dumpall" in text:
            Path(here[-1]).parent.mkdir(parents=True, exist_ok=True)
            written_in_two(Path(here[-1]), dump(self.users))
        elif "DROP DATABASE" in text:
            self.users = {}
        elif "psql" in text:
            if command[-1].endswith(".sql"):
                self.deeds.append("psql")
                self.users = users_in(Path(here[-1]))
        elif "/dev/tcp" not in text:
            ran = subprocess.run(here, capture_output=True, text=True, check=False)
            return Execution(ran.returncode, ran.stdout, ran.stderr, False, 0.0)
        return Execution(0, "", "", False, 0.0)


class LastingDatabases(Databases):
    """The same in files: they outlive the process that changes them, and change one thing at a time."""

    def __init__(self, root: Path) -> None:
        self._kept = root / "databases"
        self._kept.mkdir(exist_ok=True)
        super().__init__(root)

    def _begin(self) -> None:
        """What is there stays."""

    @property
    def users(self) -> dict[str, str]:
        return self._held("users")

    @users.setter
    def users(self, users: dict[str, str]) -> None:
        self._put("users", users)

    @property
    def documents(self) -> dict[str, int]:
        return self._held("documents")

    @documents.setter
    def documents(self, documents: dict[str, int]) -> None:
        self._put("documents", documents)

    def _held(self, what: str) -> dict[str, Any]:
        file = self._kept / f"{what}.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def _put(self, what: str, new: dict[str, Any]) -> None:
        """Become what is new, one name after the other, as those who are cut in the middle find it."""
        there = self._held(what)
        for name in [*there, *new]:
            if there.get(name) != new.get(name):
                there = {
                    one: value for one, value in {**there, name: new.get(name)}.items() if value is not None
                }
                part = self._kept / "part"
                part.write_text(json.dumps(there))
                part.rename(self._kept / f"{what}.json")


def written_in_two(file: Path, content: bytes) -> None:
    """Write a file in two steps: whoever is killed between them leaves half of it."""
    half = len(content) // 2
    file.write_bytes(content[:half])
    with file.open("ab") as rest:
        rest.write(content[half:])


def dump(users: dict[str, str]) -> bytes:
    """Return a whole dump of a cluster with these users: {name: password}."""
    rows = "".join(f"{n}\t{password}\t{name}\n" for n, (name, password) in enumerate(users.items()))
    head = "CREATE ROLE glab;\nCREATE DATABASE gstudio_psql;\n"
    table = f"COPY public.auth_user (id, password, username) FROM stdin;\n{rows}\\.\n"
    return (head + table).encode() + SQL_TRAILER + b"\n"


def users_in(file: Path) -> dict[str, str]:
    rows = (line.split("\t") for line in file.read_text().splitlines() if line.count("\t") == 2)
    return {name: password for _, password, name in rows}
