"""Collecting on a school server against the peers, side by side: make bench NAME=collect

Ours is `shala-agent collect --without-dumps`, a fresh process as an operator starts it: imports, walk,
reading, checks, hashing, mirror, manifests, signature. There is no container: the engine, if there is one,
says so, and the log of git is reported as failed. The peers copy the same tree into a store on the same
disk.

first: into an empty store; nochange: again; nextday: after the generator's next school day. Medians, the
tools taking turns; everything lies in the page cache. CPU is user + system of all processes of a tool,
memory the most that they held together, written what they gave the kernel to write, kept what the store
grew by on its disk.

    python bench/collect.py --scale 0.1 --parts days
    python bench/collect.py --parts many --files 1000000

"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from peers import Local, LocalBorg, LocalRestic, LocalRsync
from shala_school import ShalaSchool
from source import SEEDS, SETTLE, Source, allocated, environment

PARTS = ("days", "many")
OURS = "shala-agent"
LOOK = 0.02  # seconds between two looks at the memory
MB = 1_000_000
MEMORY_MB = 100  # what the agent is to stay under, whatever the school holds
# Of the best peer's CPU, what the agent is to stay under.
CPU_AIMS = {"nextday": 1.0, "nochange": 0.5}


@dataclass(frozen=True)
class Cost:
    """What one run of a tool took."""

    cpu: float
    wall: float
    rss_mb: float
    written: float
    kept: float


class Ours:
    """The agent of the school, as a tool among the peers."""

    name = OURS

    def __init__(self, store: Path, source: Source) -> None:
        self.school = ShalaSchool(store, source.root, source.seed)
        self.store, self.source, self.env = store, source.root, self.school.env

    def prepare(self) -> list[list[str]]:
        """Nothing is to be made first."""
        return []

    def backup(self) -> list[str]:
        """Gather and seal."""
        return self.school.collect

    def holds(self) -> tuple[int, int]:
        """Return how many bytes and files the newest collection holds."""
        info = (self.school.spool / "bag/bag-info.txt").read_text()
        size, count = re.findall(r"(?m)^Payload-Oxum: (\d+)\.(\d+)$", info)[0]
        return int(size), int(count)


Tool = Ours | Local
Costs = dict[str, Cost]  # by the name of the tool


class Memory:
    """The most that a process and its children held together, or one of them alone.

    Together what they share counts once (PSS); alone it counts whole, whoever else has it (RSS).
    """

    def __init__(self, pid: int) -> None:
        self.peak_mb = 0.0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> float:
        """Return the peak in MB; the processes have ended."""
        self._ended.set()
        self._thread.join()
        return self.peak_mb

    def _watch(self) -> None:
        while not self._ended.wait(LOOK):
            held = list(map(_held, _tree(self._pid)))
            most = max(sum(pss for _, pss in held), *(rss for rss, _ in held))
            self.peak_mb = max(self.peak_mb, most / MB)


def _tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, children.read_text().split())
    return found


def _held(pid: int) -> tuple[int, int]:
    """Return the RSS and PSS of a process in bytes; of one that has ended, nothing."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.search(r"(?m)^Rss: +(\d+) kB\nPss: +(\d+) kB", text)
        if found:
            return int(found[1]) * 1024, int(found[2]) * 1024
    return 0, 0


def run(command: Sequence[str], env: dict[str, str]) -> tuple[resource.struct_rusage, float]:
    """Run a command; return what it and its children used, and held together. SystemExit if it fails."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env={**environment(), **env}, stdout=said, stderr=said)
        memory = Memory(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        peak = memory.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in (0, 3):
            said.seek(0)
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{said.read().decode()[-2000:]}")
    return usage, peak


def measured(tool: Tool) -> Cost:
    """Let a tool bring the source to its store."""
    before = allocated(tool.store, tool.source)
    command = tool.backup()
    os.sync()  # what another has left to write is not to be waited for
    began = time.monotonic()
    usage, peak = run(command, tool.env)
    wall = time.monotonic() - began
    kept = allocated(tool.store, tool.source) - before
    return Cost(usage.ru_utime + usage.ru_stime, wall, peak, usage.ru_oublock * 512, kept)


class Rounds:
    """What the same work took, some times over."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._costs: dict[str, list[Cost]] = {}

    def turn(self, tools: Sequence[Tool]) -> None:
        """Let every tool do it once, another one beginning each time."""
        shift = len(next(iter(self._costs.values()), [])) % len(tools)
        time.sleep(SETTLE)
        for tool in [*tools[shift:], *tools[:shift]]:
            cost = measured(tool)
            self._costs.setdefault(tool.name, []).append(cost)
            say(
                f"{self.what:<9}{tool.name:<18}{cost.cpu:6.2f} CPU s {cost.wall:6.2f} s {cost.rss_mb:5.0f} MB"
            )

    def medians(self) -> Costs:
        """Return the median of each figure, and of memory the most."""
        return {
            name: Cost(
                statistics.median(cost.cpu for cost in costs),
                statistics.median(cost.wall for cost in costs),
                max(cost.rss_mb for cost in costs),
                statistics.median(cost.written for cost in costs),
                statistics.median(cost.kept for cost in costs),
            )
            for name, costs in self._costs.items()
        }


class Bench:
    """The work folder."""

    def __init__(self) -> None:
        self.work = Path(tempfile.mkdtemp(prefix="shala-bench-", dir=os.environ.get("BENCH_DIR")))
        atexit.register(self.close)
        self._count = 0

    def tools(self, source: Source) -> list[Tool]:
        """Return all tools, each with an empty store."""
        self._count += 1
        stores = self.work / f"stores-{self._count}"
        tools: list[Tool] = [Ours(stores / OURS, source)]
        for kind in (LocalRsync, LocalRestic, LocalBorg):
            if kind.available():
                tools.append(kind(stores / kind.name.split()[0], source.root))
        for tool in tools:
            for command in tool.prepare():
                run(command, tool.env)
        return tools

    def close(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.work, ignore_errors=True)


def days(bench: Bench, scale: float, rounds: int) -> None:
    """A school of the generator: first, no change, next day."""
    say(f"a school at scale {scale}")
    source = Source(bench.work, SEEDS[0], scale)
    first, nochange, nextday = Rounds("first"), Rounds("nochange"), Rounds("nextday")
    for _ in range(3):
        tools = bench.tools(source)
        first.turn(tools)
    compare_holdings(tools, source)
    for _ in range(rounds):
        nochange.turn(tools)
    for _ in range(rounds):
        source.next_day()
        nextday.turn(tools)
    n = len(files_below(source.root))
    costs = {it.what: it.medians() for it in (first, nochange, nextday)}
    for what, of in costs.items():
        figures(what, n, of)
    peak = figure("peak_rss_mb", "MB", n, {name: _peak(costs, name) for name in costs["first"]})
    table(costs)
    aims(costs, peak, n)


def many(bench: Bench, files: int) -> None:
    """A school with so many small files more: what must not grow is the memory."""
    say(f"{files:,} small files more")
    source = Source(bench.work / "many", SEEDS[0], 0.01)
    chance = random.Random(1)
    for _ in range(files):
        content = chance.randbytes(24)
        name = hashlib.sha256(content).hexdigest()
        folder = source.data / "rcs-repo/Nodes" / name[0] / name[1] / name[2]
        if not folder.is_dir():
            folder.mkdir(parents=True)
        (folder / f"{name[3:27]}.json").write_bytes(b'"%s"' % content.hex().encode())
    tools = bench.tools(source)
    costs = {}
    for what in ("first", "nochange", "nextday"):
        if what == "nextday":
            source.next_day()
        once = Rounds(what)
        once.turn(tools)
        costs[what] = once.medians()
    compare_holdings(tools, source)
    n = len(files_below(source.root))
    for what, of in costs.items():
        figure(f"many.{what}.cpu_s", "s", n, {name: cost.cpu for name, cost in of.items()})
    peak = figure("many.peak_rss_mb", "MB", n, {name: _peak(costs, name) for name in costs["first"]})
    table(costs)
    aims(costs, peak, n)


def compare_holdings(tools: Sequence[Tool], source: Source) -> None:
    """Tell what the agent took of what all were given."""
    given = files_below(source.root)
    size, count = next(tool.holds() for tool in tools if isinstance(tool, Ours))
    say(
        f"given: {len(given):,} files, {sum(path.lstat().st_size for path in given):,} B;"
        f" the agent's items: {count:,} files, {size:,} B"
    )


def files_below(root: Path) -> list[Path]:
    """Return the files of a source."""
    return [Path(folder, name) for folder, _, names in os.walk(root) for name in names]


def _peak(costs: dict[str, Costs], name: str) -> float:
    return max(of[name].rss_mb for of in costs.values())


def figures(what: str, n: int, costs: Costs) -> None:
    """Print the figures of one work."""
    for name, unit, value in _VALUES:
        figure(f"{what}.{name}", unit, n, {tool: value(cost) for tool, cost in costs.items()})


_VALUES: tuple[tuple[str, str, Callable[[Cost], float]], ...] = (
    ("cpu_s", "s", lambda cost: cost.cpu),
    ("wall_s", "s", lambda cost: cost.wall),
    ("rss_mb", "MB", lambda cost: cost.rss_mb),
    ("written_bytes", "B", lambda cost: cost.written),
    ("kept_bytes", "B", lambda cost: cost.kept),
)


def figure(name: str, unit: str, n: int, values: dict[str, float]) -> float:
    """Print ours beside the best peer's, and return it."""
    ours = values[OURS]
    best = min((tool for tool in values if tool != OURS), key=values.__getitem__)
    line = {
        "name": f"collect.{name}",
        "ours": round(ours, 3),
        "peer": round(values[best], 3),
        "peer_name": best,
        "ratio": round(ours / values[best], 3) if values[best] else None,
        "unit": unit,
        "n": n,
    }
    print(json.dumps(line), flush=True)
    return ours


def table(costs: dict[str, Costs]) -> None:
    """Show all tools side by side."""
    rule = f"{'':<28}{'CPU s':>8}{'wall s':>8}{'peak MB':>9}{'written MB':>12}{'kept MB':>9}"
    rows = [rule]
    for what, of in costs.items():
        for tool, cost in of.items():
            rows.append(
                f"{what:<10}{tool:<18}{cost.cpu:8.2f}{cost.wall:8.2f}{cost.rss_mb:9.0f}"
                f"{cost.written / MB:12.1f}{cost.kept / MB:9.1f}"
            )
    print("\n".join(rows), file=sys.stderr, flush=True)


def aims(costs: dict[str, Costs], peak_mb: float, n: int) -> None:
    """Say of each aim whether it is reached."""
    for what, of in costs.items():
        best, peer = min((cost.cpu, tool) for tool, cost in of.items() if tool != OURS)
        found, share = of[OURS].cpu / best, CPU_AIMS.get(what)
        of_peer = f"{found:.2f} of {peer}'s"
        if share is None:
            say(f"no aim: {what} CPU: {of_peer}")
        else:
            verdict(f"{what} CPU at most {share:g} of the best peer's", of_peer, reached=found <= share)
    verdict(
        f"peak memory under {MEMORY_MB} MB", f"{peak_mb:.0f} MB at {n:,} files", reached=peak_mb < MEMORY_MB
    )


def verdict(aim: str, found: str, *, reached: bool) -> None:
    """Print whether an aim is reached."""
    say(f"aim: {aim}: {found}: {'reached' if reached else 'NOT reached'}")


def say(text: str) -> None:
    """Tell how far the benchmark is."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="size of a school; 1 is about 360 MB")
    parser.add_argument("--rounds", type=int, default=5, help="of no change, and next days")
    parser.add_argument("--files", type=int, default=200_000, help="for the measurement of memory")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma separated")
    options = parser.parse_args()
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))} (there are {', '.join(PARTS)})")
    deeds = {
        "days": lambda bench: days(bench, options.scale, options.rounds),
        "many": lambda bench: many(bench, options.files),
    }
    for part in options.parts.split(","):
        bench = Bench()
        try:
            deeds[part](bench)
        finally:
            bench.close()


if __name__ == "__main__":
    main()
