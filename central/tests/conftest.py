"""The world of the centre's tests: a school with a sealed spool, its sshd, a centre that pulls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from central_school import School, tree_of
from shala_central.archive import Archive
from shala_central.config import read_config
from shala_central.fleet import read_fleet
from shala_central.pull import ServerResult, pull
from zone_world import Device, Postgres, ZoneCentre

# How long an example takes says what else this machine was doing.
settings.register_profile("shala", deadline=None)
settings.load_profile("shala")

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass
class Centre:
    """A centre: configuration, fleet and archive in a folder of its own."""

    folder: Path
    user: str = "root"
    settings: str = ""
    archive_settings: str = ""
    schools: list[School] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "archive"

    @property
    def archive(self) -> Archive:
        return Archive(self.root, read_config(self.config).archive.shared_items)

    @property
    def config(self) -> Path:
        path = self.folder / "central.toml"
        path.write_text(
            f'format = 1\nfleet = "{self.folder}/fleet.json"\n[archive]\nroot = "{self.root}"\n{self.archive_settings}'
            f'[pull]\nuser = "{self.user}"\nidentity_file = "{self.folder}/key"\n'
            f'known_hosts = "{self.folder}/known_hosts"\nconnect_timeout_seconds = 2\n{self.settings}'
        )
        fleet = {"format": 1, "servers": [school.entry() for school in self.schools]}
        (self.folder / "fleet.json").write_text(json.dumps(fleet))
        return path

    def shala(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command line as an operator does, in a process of its own."""
        command = [*self.command(*arguments)]
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=self.environment(),
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "shala_central", *arguments]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "SHALA_CENTRAL_CONFIG": str(self.config)}

    def pull(self, *arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
        """Pull, return the exit code and the results by server name."""
        done = self.shala("pull", "--json", *arguments)
        assert done.stdout, done.stderr
        return done.returncode, {server["name"]: server for server in json.loads(done.stdout)["servers"]}

    def pull_here(self, *, again: bool = False) -> ServerResult:
        """Pull the only school in this process, where steps can be interfered with; return the result."""
        config = read_config(self.config)
        (result,) = asyncio.run(pull(read_fleet(Path(config.fleet)), config, again=again))
        return result

    def published(self, school: School, year: int | None = None) -> dict[str, bytes]:
        """Return {path: content} of what readers see of a school."""
        tree = self.root / str(year or school.year) / school.state / school.name
        return tree_of(tree)


@pytest.fixture
def school(tmp_path: Path) -> School:
    spool = tmp_path / "spool-mz17"
    spool.mkdir()
    return School(spool)


@pytest.fixture
def another_school(tmp_path: Path) -> Callable[..., School]:
    """Make further schools; each is offline until it is put on the network."""

    def make(name: str, zone: str = "") -> School:
        spool = tmp_path / f"spool-{name}"
        spool.mkdir()
        return School(spool, name=name, state=name.partition("-")[2][:2], zone=zone, port=free_port())

    return make


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An archive in which all schools share their media."""
    archive = Archive(tmp_path / "archive", ("gstudio/media",))
    archive.open()
    return archive


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    folder = tmp_path / "centre"
    folder.mkdir()
    return Centre(folder)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The centre's key and the host key of every school server, made once."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("host", "centre"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    return folder


@pytest.fixture
def online(centre: Centre, keys: Path, tmp_path: Path) -> Iterator[Callable[[School], School]]:
    """Put a school server on the network: a real sshd whose only key may run `rrsync -ro` on its spool."""
    assert SSHD, "sshd is missing: lab/bootstrap.sh test-tools installs it"
    assert shutil.which("rrsync"), "rrsync is missing: lab/bootstrap.sh test-tools installs it"
    Path("/run/sshd").mkdir(exist_ok=True)
    shutil.copy(keys / "centre", centre.folder / "key")
    started: list[subprocess.Popen[bytes]] = []

    def start(school: School) -> School:
        school.port = free_port()
        folder = tmp_path / f"sshd-{school.name}-{school.port}"
        folder.mkdir()
        public = (keys / "centre.pub").read_text().strip()
        keyfile = folder / "authorized_keys"
        keyfile.write_text(f'restrict,command="/usr/bin/rrsync -ro {school.spool}" {public}\n')
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {school.port}\nHostKey {keys / 'host'}\nPidFile none\n"
            f"AuthorizedKeysFile {keyfile}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "PermitRootLogin forced-commands-only\nLogLevel ERROR\n"
        )
        log = (folder / "log").open("wb")
        started.append(subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log))
        host_key = (keys / "host.pub").read_text().split(" ", 2)
        with (centre.folder / "known_hosts").open("a") as known:
            known.write(f"[127.0.0.1]:{school.port} {host_key[0]} {host_key[1].strip()}\n")
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", school.port), 1):
                break
            time.sleep(0.05)
        if school not in centre.schools:
            centre.schools.append(school)
        return school

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=10)


# -- zone sync -----------------------------------------------------------------------------------------------


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what runs a server of zones, so that a quick check can leave it out."""
    if "zone_centre" in getattr(item, "fixturenames", ()):
        item.add_marker("http")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL, started once."""
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def zone_centre(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ZoneCentre]:
    """A centre with the zones mz and rj on either database; its server runs once it is started."""
    folder = tmp_path / "zones"
    folder.mkdir()
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        centre = ZoneCentre(folder, server.url(), server)
    else:
        centre = ZoneCentre(folder, f"sqlite:///{folder}/zones.sqlite")
    centre.make_zone("mz", "rj")
    yield centre
    centre.stop()


@pytest.fixture
def served(zone_centre: ZoneCentre) -> ZoneCentre:
    """The same, its server running."""
    zone_centre.start()
    return zone_centre


@pytest.fixture
def join(zone_centre: ZoneCentre, tmp_path: Path) -> Callable[..., Device]:
    """Make school servers and enrol them in a zone of the served centre."""

    def make(name: str = "2031017-mz17", zone: str = "mz") -> Device:
        device = Device(name, tmp_path / f"device-{name}", zone_centre)
        assert device.enrol(zone_centre.token(zone)).status == 200
        return device

    return make
