"""The two sides of shala as the benchmarks run them: the agent's command line and the centre's."""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from pathlib import Path

# As installed from wheels: found on the path, without the hooks of a development environment.
ROOT = Path(__file__).parent.parent
PYTHON = [sys.executable, "-S"]
INSTALLED = {
    "PYTHONPATH": ":".join([str(ROOT / "agent"), str(ROOT / "central"), sysconfig.get_path("purelib")])
}


class ShalaSchool:
    """The agent of one school; `source` holds data/ and code/ as they are mounted into the container.

    There is no container: what the agent gathers from it lies in the source already, and the one item that
    only it can give is reported as failed. `command` seals without ever asking the Docker engine, `collect`
    is what an operator types.
    """

    def __init__(self, folder: Path, source: Path, server_id: str) -> None:
        folder.mkdir(parents=True)
        settings = (source / "code/gstudio/gnowsys-ndf/gnowsys_ndf/server_settings.py").read_text()
        code = re.search(r"""_SECONDARY\s*=\s*["'](\d+)""", settings)
        if code is None:
            raise SystemExit("the generated server_settings.py names no school code")
        self.name = f"{code[1]}-{server_id}"
        self.folder, self.spool = folder, folder / "spool"
        config = folder / "agent.toml"
        config.write_text(
            'format = 1\n[container]\nname = "shala-bench-none"\n[paths]\n'
            f'state = "{folder}/state"\nspool = "{self.spool}"\nspool_group = ""\n'
            f'data = "{source}/data"\ncode = "{source}/code"\n'
            f'assessments = "{source}/data/assessment-media"\n'
            f'[identity]\nserver_name = "{self.name}"\n'
        )
        self.env = dict(INSTALLED)
        self.command = [*PYTHON, str(Path(__file__).with_name("seal.py")), str(config)]
        agent = [*PYTHON, "-m", "shala_agent.cli", "--config", str(config)]
        self.collect = [*agent, "collect", "--without-dumps"]


class ShalaCentre:
    """A centre with an archive of its own."""

    def __init__(self, folder: Path, key: Path, host_key: str) -> None:
        folder.mkdir(parents=True)
        self.archive = folder / "archive"
        self._folder, self._host_key = folder, host_key
        self._fleet: dict[str, dict[str, object]] = {}
        self._changed = True
        (folder / "central.toml").write_text(
            f'format = 1\nfleet = "{folder}/fleet.json"\n[archive]\nroot = "{self.archive}"\n'
            f'[pull]\nuser = "root"\nidentity_file = "{key}"\nknown_hosts = "{folder}/known_hosts"\n'
            "stall_seconds = 600\n[limits]\nmax_files = 2000000\n"
        )
        self.env = {**INSTALLED, "SHALA_CENTRAL_CONFIG": str(folder / "central.toml")}

    def add(self, school: ShalaSchool, port: int) -> None:
        """Let the centre know under which port a school is reached."""
        self.add_named(school.name, port)

    def add_named(self, name: str, port: int) -> None:
        """Let the centre know a server that need not be there."""
        self._fleet[name] = {
            "name": name,
            "state": re.sub(r".*-([a-z]+)\d+", r"\1", name),
            "zone": "",
            "address": "127.0.0.1",
            "port": port,
        }
        with (self._folder / "known_hosts").open("a") as known:
            known.write(f"[127.0.0.1]:{port} {self._host_key}\n")
        self._changed = True

    @property
    def program(self) -> list[str]:
        """The command line, with the fleet as it is now."""
        if self._changed:
            fleet = {"format": 1, "servers": list(self._fleet.values())}
            (self._folder / "fleet.json").write_text(json.dumps(fleet))
            self._changed = False
        return [*PYTHON, "-m", "shala_central"]

    def command(self, *names: str) -> list[str]:
        """Return the command that pulls from schools, all of them by default."""
        return [*self.program, "pull", "--json", *names]

    def compact(self) -> list[list[str]]:
        """Return the commands of the weekly timer."""
        return [[*self.program, "archive", "prune", "--json"]]
