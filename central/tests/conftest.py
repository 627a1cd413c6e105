"""The world of the centre's tests: a school with a sealed spool, its sshd, a centre that pulls."""

from __future__ import annotations

import contextlib
import hashlib
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
from shala_agent.manifest import (
    File,
    ManifestError,
    bagit_lines,
    changes_between,
    read_files,
    sort_key,
    write_line,
)
from shala_central.archive import Archive
from shala_central.bag import TAG_FILES

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class School:
    """A school server as the centre sees it: a spool with sealed collections."""

    spool: Path
    name: str = "2031017-mz17"
    state: str = "mz"
    zone: str = "mz-aizawl"
    year: int = 2026
    sequence: int = 0
    items: dict[str, str] = field(
        default_factory=lambda: {"db": "ok", "media": "ok", "nginx-logs": "suspect"}
    )
    port: int = 0

    def collection(self, **changes: object) -> dict[str, object]:
        code, _, server_id = self.name.partition("-")
        return {
            "format": 1,
            "server_name": self.name,
            "state": self.state,
            "school_code": code,
            "server_id": server_id,
            "school_name": "St. Peter's H/S",
            "sequence": self.sequence,
            "year": self.year,
            "started": "2026-11-21T04:00:00+00:00",
            "sealed": "2026-11-21T04:05:00+00:00",
            "agent_version": "0.1.0",
            "previous_manifest_sha256": None,
            "container": {"image": "gstudio:lab", "image_id": "sha256:0"},
            "items": [
                {
                    "platform": "gstudio",
                    "name": name,
                    "outcome": outcome,
                    "reasons": [],
                    "files": 1,
                    "bytes": 1,
                    "seconds": 0.1,
                    "carried_from": None,
                }
                for name, outcome in self.items.items()
            ],
            "a_field_of_tomorrow": True,
            **changes,
        }

    def tag_files(self, files: dict[str, bytes], **changes: object) -> dict[str, bytes]:
        """Return the tag files of a bag with these payload files (paths without data/)."""
        listed = [
            File(f"data/{path}", sha256(content), len(content), 1_700_000_000 * 10**9, 0o644)
            for path, content in files.items()
        ]
        return self.tag_files_of(listed, **changes)

    def tag_files_of(self, listed: list[File], **changes: object) -> dict[str, bytes]:
        """Return the tag files of a bag whose manifest says this, whatever it is."""
        listed = sorted(listed, key=lambda file: sort_key(file.path))
        size = sum(file.size for file in listed)
        tags = {
            "bagit.txt": b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n",
            "bag-info.txt": f"Source-Organization: {self.name}\nPayload-Oxum: {size}.{len(listed)}\n".encode(),
            "collection.json": json.dumps(self.collection(**changes)).encode(),
            "files.txt": b"".join(map(write_line, listed)),
            "manifest-sha256.txt": b"".join(bagit_lines(listed)),
        }
        return sealed(tags)

    def resealed(self, tags: dict[str, bytes]) -> dict[str, bytes]:
        """Return changed tag files with the tag manifest that fits them again."""
        return sealed(tags)

    def seal(self, files: dict[str, bytes], **changes: object) -> Path:
        """Seal a collection into the spool; unchanged files stay as they are in the mirror."""
        self.sequence += 1
        bag = self.spool / "bag"
        for path, content in files.items():
            target = bag / "data" / path
            if target.is_dir():
                shutil.rmtree(target)
            for above in (*target.parents,):
                if above.is_file():
                    above.unlink()
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_file() or target.read_bytes() != content:
                target.write_bytes(content)
                os.utime(target, (1_700_000_000, 1_700_000_000))
        for target in (bag / "data").rglob("*"):
            if target.is_file() and str(target.relative_to(bag / "data")) not in files:
                target.unlink()
        self.write_tags(bag, self.tag_files(files, **changes))
        return bag

    def write_tags(self, bag: Path, tags: dict[str, bytes]) -> None:
        """Write the tag files of a bag, the list of what changed in it, and HEAD."""
        old = (bag / "files.txt").read_bytes().splitlines(keepends=True) if self.sequence > 1 else []
        for name, content in tags.items():
            (bag / name).write_bytes(content)
        (self.spool / "changes").mkdir(exist_ok=True)
        new = read_files(tags["files.txt"].splitlines(keepends=True))
        with contextlib.suppress(ManifestError):
            lines = list(map(write_line, changes_between(read_files(old), new)))
            (self.spool / f"changes/{self.sequence:08d}.txt").write_bytes(b"".join(lines))
        self.write_head(tags)

    def write_head(self, tags: dict[str, bytes] | None = None, **changes: object) -> None:
        """Write the HEAD of these tag files, by default of those in the mirror."""
        tags = tags or {name: (self.spool / "bag" / name).read_bytes() for name in TAG_FILES}
        head = {
            "format": 2,
            "server_name": self.name,
            "sequence": self.sequence,
            "year": self.year,
            "manifest_sha256": sha256(tags["manifest-sha256.txt"]),
            "files_sha256": sha256(tags["files.txt"]),
            "tag_manifest_sha256": sha256(tags["tagmanifest-sha256.txt"]),
            **changes,
        }
        (self.spool / "HEAD").write_text(json.dumps(head))

    def entry(self) -> dict[str, object]:
        """Return this school's line of fleet.json."""
        return {
            "name": self.name,
            "state": self.state,
            "zone": self.zone,
            "address": "127.0.0.1",
            "port": self.port,
        }


def sealed(tags: dict[str, bytes]) -> dict[str, bytes]:
    """Return tag files with the tag manifest that fits them."""
    lines = "".join(
        f"{sha256(tags[name])}  {name}\n" for name in TAG_FILES if name in tags and "tagman" not in name
    )
    return {**tags, "tagmanifest-sha256.txt": lines.encode()}


@dataclass
class Centre:
    """A centre: configuration, fleet and archive in a folder of its own."""

    folder: Path
    user: str = "root"
    settings: str = ""
    schools: list[School] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "archive"

    @property
    def archive(self) -> Archive:
        return Archive(self.root)

    @property
    def config(self) -> Path:
        path = self.folder / "central.toml"
        path.write_text(
            f'format = 1\nfleet = "{self.folder}/fleet.json"\n[archive]\nroot = "{self.root}"\n'
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

    def published(self, school: School, year: int | None = None) -> dict[str, bytes]:
        """Return {path: content} of what readers see of a school."""
        tree = self.root / str(year or school.year) / school.state / school.name
        return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


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
