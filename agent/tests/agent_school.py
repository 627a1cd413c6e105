"""A school on a temporary folder: the host's side of a server, with or without its container."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from shala_agent.checks import ACTIVITY_COLUMNS, PROGRESS_COLUMNS, SQL_TRAILER
from shala_agent.collect import Collected, collect
from shala_agent.config import Config, read_config
from shala_agent.container import Container, ContainerState, ContainerUnavailable, Execution
from shala_agent.ledger import Ledger
from shala_agent.reach import Reach
from shala_agent.spool import Spool

EARLIER = 1_700_000_000  # files of a school at rest are older than any writer


class QuietContainer(Container):
    """A container whose commands say nothing but what git would say."""

    up = True
    processes = ""  # one line for each: seconds since the boot, stat, command line
    answer = "## git status\nOn branch main\n## git diff\n## git log -5\n## git branch\n"

    def state(self) -> ContainerState:
        return ContainerState(
            self.name, "running" if self.up else "exited", image="gstudio:test", image_id="sha256:1"
        )

    def run(
        self,
        command: Sequence[str],
        *,
        timeout_seconds: float,
        workdir: str = "/",
        environment: Mapping[str, str] | None = None,
        watch: Callable[[str], None] | None = None,
    ) -> Execution:
        if not self.up:
            raise ContainerUnavailable(self.state().problem)
        answer = f"{self.processes}|end\n" if "/proc/uptime" in command[-1] else self.answer
        return Execution(0, answer, "", False, 0.0)

    def fetch(self, path: str, destination: Path, max_bytes: int) -> None:
        raise FileNotFoundError(path)

    def _stop_all(self) -> None:
        """Nothing runs in it."""


@dataclass
class School:
    """The folders of one server."""

    root: Path
    config: Config
    config_path: Path
    container: QuietContainer

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def spool(self) -> Spool:
        return Spool(self.root / "spool")

    @property
    def settings(self) -> Path:
        return self.root / "code/gstudio/gnowsys-ndf/gnowsys_ndf/server_settings.py"

    def reach(self) -> Reach:
        return Reach(self.config.paths, self.container, self.root / "state/fetched")

    def ledger(self) -> Ledger:
        return Ledger(self.root / "state/ledger.sqlite")

    def collect(self) -> Collected:
        with closing(self.ledger()) as ledger:
            return collect(self.config, self.container, self.reach(), ledger)

    def bag(self) -> Path:
        return self.spool.bag

    def write(self, path: str, content: bytes | str, age: float = 0) -> Path:
        """Write a file below the school; `age` 0 means long ago."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        if not age:
            os.utime(file, (EARLIER, EARLIER))
        return file


def bson(count: int) -> bytes:
    """Return `count` documents {"n": int32}."""
    return b"".join(struct.pack("<i", 12) + b"\x10n\0" + struct.pack("<i", n) + b"\0" for n in range(count))


def csv(columns: Sequence[str], rows: int = 2) -> bytes:
    """Return a whole CSV."""
    return "".join(",".join(line) + "\r\n" for line in [columns, *([["x"] * len(columns)] * rows)]).encode()


def sql(users: int = 3) -> bytes:
    """Return a whole dump of the cluster."""
    rows = "".join(f"{n}\tpbkdf2_sha256$1$a$c2VjcmV0\tuser-{n}\n" for n in range(users))
    head = "CREATE ROLE glab;\nALTER ROLE glab WITH LOGIN PASSWORD 'md5abc';\n"
    table = f"COPY public.auth_user (id, password, username) FROM stdin;\n{rows}\\.\n"
    return (head + table).encode() + SQL_TRAILER + b"\n"


def rcs(text: str = "{}") -> bytes:
    """Return a history with one version."""
    return f"head\t1.1;\n\n1.1\nlog\n@first\n@\ntext\n@{text}@\n".encode()


def fill(school: School) -> None:
    """Give the school every LEVEL 4 item, whole."""
    settings = (
        "GSTUDIO_INSTITUTE_ID = 'mz17'\n"
        "GSTUDIO_INSTITUTE_ID_SECONDARY = '2031017'\n"
        "GSTUDIO_INSTITUTE_NAME = 'Hill School'\n"
    )
    school.write(str(school.settings.relative_to(school.root)), settings)
    school.write("code/gstudio/gnowsys-ndf/gnowsys_ndf/local_settings.py", "DEBUG = False\n")
    beat = "host\n\nMem: 7G\nFilesystem\nload average: 0\nPID USER\n"
    school.write("data/system-heartbeat/system-heartbeat-20180814-120100.log", beat)
    school.write("data/postgres-dump/pg_dump_all.sql", sql())
    school.write("data/.shala/db/gstudio-mongodb/Nodes.bson", bson(5))
    school.write("data/.shala/db/gstudio-mongodb/Nodes.metadata.json", "{}")
    progress = "2031017-mz17-eb-unit0-20180814-17h33m.csv"
    school.write(
        f"data/gstudio-exported-users-analytics-csvs/{progress}", csv([*PROGRESS_COLUMNS, "Quiz [5a]"])
    )
    school.write(
        "data/activity-timestamp-csvs/mz17-blue-bat-mz17-activity-visits-20180814-17h37m.csv",
        csv(ACTIVITY_COLUMNS),
    )
    school.write("data/qbank/student-activities/activity-data.csv", b"Username,UserID\r\nblue-bat-mz17,7\r\n")
    school.write("data/gstudio_tools_logs/policesquad/7-policesquad.json", "[]")
    school.write("data/gstudio-logs/export_users_analytics.log", "ran\n")
    school.write("data/nginx-logs/access.log", "GET /\n")
    school.write("data/rcs-repo/Nodes/a/b/c/x.json,v", rcs())
    for content in (b"song", b"picture"):
        digest = hashlib.sha256(content).hexdigest()
        school.write(f"data/media/{digest[0]}/{digest[1]}/{digest[2]}/{digest[3:]}.ogg", content)
    school.write("assessments/repository/AssetContent/q.png", b"png")
    school.write("assessments/studentResponseFiles/a.wav", b"wav")


def school_in(root: Path, name: str = "shala-agent-none", server_name: str = "2031017-mz17") -> School:
    """Return a school with every item in a folder, its container quiet."""
    config_path = root / "agent.toml"
    config_path.write_text(
        f"""format = 1
[container]
name = "{name}"
[paths]
state = "{root}/state"
spool = "{root}/spool"
spool_group = ""
data = "{root}/data"
code = "{root}/code"
assessments = "{root}/assessments"
[identity]
server_name = "{server_name}"
"""
    )
    made = School(root, read_config(config_path), config_path, QuietContainer(name, root / "state/locks"))
    fill(made)
    return made
