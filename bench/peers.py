"""The peers of the agent and the archive: rsync, restic and borg, as their manuals say, installed for the
benches alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

INSTALLED = Path(__file__).parent.parent / "build/peers"
PACKAGES = ("restic", "borgbackup", "python3-msgpack", "python3-packaging", "python3-pkg-resources")


class Peer:
    """One tool that brings `source` to the other side of an ssh connection."""

    name = ""

    def __init__(self, store: Path, source: Path, keys: Path, host_key: str, port: int, host: str) -> None:
        self.store, self.source = store, source
        self.env: dict[str, str] = {}
        self._keys, self._host_key, self._host = keys, host_key, host.replace(" ", "-")
        self._ssh = store.parent / f"ssh-{self._host}-{type(self).__name__}"
        store.mkdir(parents=True, exist_ok=True)
        self.connect(port)

    def connect(self, port: int) -> None:
        """Use another port from now on."""
        known = self._ssh.with_suffix(".hosts")
        known.write_text(f"[127.0.0.1]:{port} {self._host_key}\n")
        self._ssh.write_text(
            f"Host {self._host}\n HostName 127.0.0.1\n Port {port}\n User root\n"
            f" IdentityFile {self._keys}/key\n IdentitiesOnly yes\n"
            f" UserKnownHostsFile {known}\n StrictHostKeyChecking yes\n LogLevel ERROR\n"
        )

    def available(self) -> bool:
        """Return whether the tool can be run here."""
        return True

    def prepare(self) -> list[list[str]]:
        """Return the commands that make an empty store."""
        return []

    def backup(self) -> list[list[str]]:
        """Return the commands that bring the source to the store as it is now."""
        raise NotImplementedError


class RsyncFuzzy(Peer):
    """A plain copy that is brought up to date, compressed, with similar files as a basis."""

    name = "rsync -zyy"

    def backup(self) -> list[list[str]]:
        """The centre pulls."""
        command = ["rsync", "-a", "-zyy", "--delete-after", f"--rsh=ssh -F {self._ssh}"]
        return [[*command, f"{self._host}:{self.source}/", f"{self.store}/"]]


class RsyncLinks(Peer):
    """A new folder a day, unchanged files being links into the one before; not compressed."""

    name = "rsync links"

    def backup(self) -> list[list[str]]:
        """The centre pulls into the next folder."""
        before = sorted(path.name for path in self.store.iterdir())
        command = ["rsync", "-a", f"--rsh=ssh -F {self._ssh}"]
        if before:
            command.append(f"--link-dest={self.store / before[-1]}")
        return [[*command, f"{self._host}:{self.source}/", f"{self.store}/{len(before):04d}/"]]


class Restic(Peer):
    """Restic on the school, its repository at the centre over sftp."""

    name = "restic sftp"

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        install()
        self.env = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(self._ssh.with_suffix(".cache"))}
        self._program = str(INSTALLED / "usr/bin/restic")
        self._options = ["-q", "-r", f"sftp:{self._host}:{self.store}", "-o"]
        self._options.append(f"sftp.command=ssh -F {self._ssh} {self._host} -s sftp")

    def available(self) -> bool:
        """Return whether it could be installed."""
        return Path(self._program).exists()

    def prepare(self) -> list[list[str]]:
        """Make the repository."""
        return [[self._program, *self._options, "init"]]

    def backup(self) -> list[list[str]]:
        """The school pushes."""
        return [[self._program, *self._options, "backup", str(self.source)]]


class Borg(Peer):
    """Borg on the school, its repository at the centre over ssh."""

    name = "borg ssh"

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        install()
        self._program = INSTALLED / "borg"
        folder = self._ssh.with_suffix(".borg")
        self.env = {
            "BORG_PASSPHRASE": "bench",
            "BORG_BASE_DIR": str(folder),
            "BORG_RSH": f"ssh -F {self._ssh}",
            "BORG_REMOTE_PATH": str(self._program),
            "BORG_REPO": f"ssh://{self._host}{self.store}/repository",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        self._count = 0

    def available(self) -> bool:
        """Return whether it could be installed."""
        return self._program.exists()

    def prepare(self) -> list[list[str]]:
        """Make the repository."""
        return [[str(self._program), "init", "--encryption=repokey-blake2"]]

    def backup(self) -> list[list[str]]:
        """The school pushes."""
        self._count += 1
        return [[str(self._program), "create", "--compression=zstd,3", f"::{self._count}", str(self.source)]]


class Local:
    """One tool that brings `source` into a store on the same machine."""

    name = ""
    program = Path("/usr/bin/rsync")

    def __init__(self, store: Path, source: Path) -> None:
        self.store, self.source = store, source
        self.env: dict[str, str] = {}
        store.mkdir(parents=True)

    @classmethod
    def available(cls) -> bool:
        """Return whether the tool can be run here."""
        install()
        return cls.program.exists()

    def prepare(self) -> list[list[str]]:
        """Return the commands that make an empty store."""
        return []

    def backup(self) -> list[str]:
        """Return the command that brings the source to the store as it is now."""
        raise NotImplementedError


class LocalRsync(Local):
    """A new folder a day, unchanged files being links into the one before."""

    name = "rsync --link-dest"

    def backup(self) -> list[str]:
        """Into the next folder."""
        before = sorted(path.name for path in self.store.iterdir())
        links = [f"--link-dest={self.store / before[-1]}"] if before else []
        return [str(self.program), "-a", *links, f"{self.source}/", f"{self.store}/{len(before):04d}/"]


class LocalRestic(Local):
    """Restic, with what it does by default."""

    name = "restic backup"
    program = INSTALLED / "usr/bin/restic"

    def __init__(self, store: Path, source: Path) -> None:
        super().__init__(store, source)
        self.env = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": f"{store}/cache"}
        self._repository = [str(self.program), "-q", "-r", f"{store}/repository"]

    def prepare(self) -> list[list[str]]:
        """Make the repository."""
        return [[*self._repository, "init"]]

    def backup(self) -> list[str]:
        """Into the next snapshot."""
        return [*self._repository, "backup", str(self.source)]


class LocalBorg(Local):
    """Borg, with what it does by default, and without the encryption that it leaves to choose."""

    name = "borg create"
    program = INSTALLED / "borg"

    def __init__(self, store: Path, source: Path) -> None:
        super().__init__(store, source)
        self.env = {
            "BORG_BASE_DIR": f"{store}/base",
            "BORG_REPO": f"{store}/repository",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        self._count = 0

    def prepare(self) -> list[list[str]]:
        """Make the repository."""
        return [[str(self.program), "init", "--encryption=none"]]

    def backup(self) -> list[str]:
        """Into the next archive."""
        self._count += 1
        return [str(self.program), "create", f"::{self._count}", str(self.source)]


def install() -> None:
    """Unpack the peers' Debian packages into build/peers, where nothing else looks."""
    if (INSTALLED / "borg").exists() or (INSTALLED / "failed").exists():
        return
    shutil.rmtree(INSTALLED, ignore_errors=True)
    INSTALLED.mkdir(parents=True)
    done = subprocess.run(
        ["apt-get", "download", "-q", *PACKAGES], cwd=INSTALLED, capture_output=True, text=True, check=False
    )
    if done.returncode:
        (INSTALLED / "failed").write_text(done.stderr)
        print(f"bench: restic and borg could not be had: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return
    for package in INSTALLED.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(INSTALLED)], check=True)
    borg = INSTALLED / "borg"
    libraries = INSTALLED / "usr/lib/python3/dist-packages"
    borg.write_text(
        f'#!/bin/sh\nPYTHONPATH={libraries} exec /usr/bin/python3 {INSTALLED}/usr/bin/borg "$@"\n'
    )
    os.chmod(borg, 0o755)  # noqa: PTH101
