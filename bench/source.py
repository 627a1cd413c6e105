"""A generated school, as the benchmarks of collecting and archiving give it to every tool."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SEEDS = ("mz17", "mz8", "rj12", "rj31", "ct5", "ct9", "tg40", "tg71")
SETTLE = 2.2  # seconds: a file changed later than this before it is read may change again in the same tick


class Source:
    """One generated school; everything below `root` is what every tool is given."""

    def __init__(self, work: Path, seed: str, scale: float) -> None:
        self.root = work / "source" / seed
        self.seed = seed
        self._standin("generate", "--root", str(self.data), "--seed", seed, "--scale", str(scale))
        self._complete()

    @property
    def data(self) -> Path:
        """What is mounted as /data in the container."""
        return self.root / "data"

    def next_day(self) -> None:
        """Let a school day pass."""
        shutil.move(self.root.with_name(f"{self.seed}.db"), self.data / "db")
        self._standin("next-day", "1", "--root", str(self.data))
        self._complete()

    def _complete(self) -> None:
        """Dump the databases as the chain does, and put the live ones, which nobody copies, out of sight."""
        dump = self.data / ".shala/db"
        shutil.rmtree(dump, ignore_errors=True)
        self._standin("bson", "--root", str(self.data), "--out", str(dump))
        shutil.move(self.data / "db", self.root.with_name(f"{self.seed}.db"))
        accounts = self.data / ".shala/postgres-dump"
        shutil.rmtree(accounts, ignore_errors=True)
        shutil.move(self.data / "postgres-dump", accounts)
        settings = self.root / "code/gstudio/gnowsys-ndf/gnowsys_ndf"
        settings.mkdir(parents=True, exist_ok=True)
        for name in ("server_settings.py", "local_settings.py"):
            shutil.copy2(self.data / name, settings / name)

    @staticmethod
    def _standin(*arguments: str) -> None:
        folder = Path(__file__).parent.parent / "molecule/images/gstudio"
        subprocess.run(
            [sys.executable, "-m", "standin", *arguments], cwd=folder, check=True, capture_output=True
        )


def environment() -> dict[str, str]:
    """Return this environment, with modules compiled once as an installation does."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def allocated(folder: Path, *beside: Path) -> int:
    """Return the bytes that a folder takes on its disk, hard links once, and without what it shares with
    those beside it.
    """
    command = ["du", "-s", "--block-size=1", *map(str, beside), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1].split()[0])
