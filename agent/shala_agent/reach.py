"""Reach: how the agent gets at a path of the container, on the host where it is mounted, else through the
engine.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from shala_agent import durable
from shala_agent.config import PathsConfig
from shala_agent.failure import AgentError

if TYPE_CHECKING:
    from shala_agent.container import Container

# Paths in the container (facts/gstudio.md 1.2).
DATA = "/data"
CODE = "/home/docker/code"
GNOWSYS = f"{CODE}/gstudio/gnowsys-ndf"
SETTINGS = f"{GNOWSYS}/gnowsys_ndf/server_settings.py"
DATASTORE = f"{GNOWSYS}/qbank-lite/webapps/CLIx/datastore"
STAGING = f"{DATA}/.shala"  # our own dumps, beside the platform's data and in none of its items

MAX_FETCH = 50_000_000_000  # bytes; the largest school seen holds 20 GB (facts/gstudio.md 5)

Stat = tuple[int, int, int]


class LinkRefused(AgentError):
    """A folder of the platform is a link, which might lead anywhere on the host."""


class Reach:
    """The container's paths as local ones.

    `scratch` holds what had to be fetched; it is emptied by `forget`.
    """

    def __init__(self, paths: PathsConfig, container: Container, scratch: Path) -> None:
        self._container = container
        self._scratch = scratch
        # The longest first: the datastore is mounted inside the code.
        self._mounts = ((DATASTORE, paths.assessments), (CODE, paths.code), (DATA, paths.data))

    def host(self, path: str) -> Path | None:
        """Return where the path is on the host, or None when it lies on no volume. It need not exist."""
        for mount, folder in self._mounts:
            if path == mount or path.startswith(mount + "/"):
                place = Path(folder)
                for part in PurePosixPath(path[len(mount) :].lstrip("/")).parts:
                    if place != Path(folder) and place.is_symlink():
                        raise LinkRefused(f"{place} is a link: root does not follow what the container made")
                    place /= part
                return place
        return None

    def local(self, path: str) -> Path:
        """Return a local path with the content: the host's own, or a fetched copy.

        Raises FileNotFoundError when it is in neither place, and what Container.fetch raises.
        """
        host = self.host(path)
        if host is not None and os.path.lexists(host):
            return host
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        copy = self._scratch / path.strip("/").replace("/", "!")
        durable.remove(copy)
        self._container.fetch(path, copy, MAX_FETCH)
        return copy

    def listing(self, folder: str) -> dict[str, Stat]:
        """Return {name: (size, mtime, inode)} of the plain files in a folder; empty when there is no such
        folder.
        """
        host = self.host(folder)
        if host is None or not host.is_dir():
            try:
                host = self.local(folder)
            except FileNotFoundError:
                return {}
        files: dict[str, Stat] = {}
        with os.scandir(host) as entries:
            for entry in entries:
                seen = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(seen.st_mode):
                    files[entry.name] = (seen.st_size, seen.st_mtime_ns, seen.st_ino)
        return files

    def forget(self) -> None:
        """Remove what was fetched."""
        durable.remove(self._scratch)
