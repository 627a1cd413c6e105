"""Zone sync against Morango, on the same records: make bench NAME=sync.

Both run as their users run them: a central server over SQLite, a fresh process of a device for each sync,
loopback HTTP through a relay that counts bytes and requests. CPU is user + system of both sides, from the
start of a client's process to its end: Morango loads Django in it, shala its own libraries. As it is shipped
Morango's client sleeps after every chunk; it is measured so, and with these sleeps cut to 10 ms.
Progress goes to stderr, one JSON line per figure to stdout. See zone.py, shala_zone.py, morango_zone.py.

    python bench/sync.py --records 10000 --parts zone,alone
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path

import morango_zone
from shala_school import INSTALLED, PYTHON
from shala_zone import ShalaZone
from visits import raw_bytes, visits
from zone import Cost, Way, Zone, environment, run

PARTS = ("zone", "alone")
NEW = 100  # records, of the sync of an ordinary hour
CROWDS = (500, 1500)  # devices, one after the other: 500 and 2,000
PEER = f"morango {morango_zone.VERSION}"


class Pass:
    """Everything that was measured of one zone, by what was done."""

    def __init__(self, zone: Zone, records: int) -> None:
        self.zone, self.records = zone, records
        self.students = max(1, records // 100)
        self.costs: dict[str, Cost] = {}
        self.disk = 0
        self.written = 0.0

    def first(self) -> None:
        """A first push, and a first pull by another device."""
        self.zone.add("a")
        self.zone.add("b")
        self.written = self.zone.write("a", self.records, 1, self.students)
        self._sync("push", "a", "push")
        self._sync("pull", "b", "pull")
        self._check(self.records)
        self.disk = max(self.zone.disk(place) for place in ("a", "b"))

    def again(self) -> None:
        """Syncs of which most have little or nothing to do."""
        self._sync("settled", "a", "both")
        self._sync("noop", "a", "both")
        self.zone.write("a", NEW, 2, self.students)
        self._sync("plus100", "a", "push")
        self._sync("plus100 pull", "b", "pull")
        self._check(self.records + NEW)

    def crowded(self) -> None:
        """Nothing to do, in a zone of many devices."""
        self._sync("settled", "a", "both")
        there = 0
        for more in CROWDS:
            self.zone.crowd(more, there)
            there += more
            self._sync(f"noop {there}", "a", "both")

    def written_and_pushed(self) -> float:
        """Return the records per CPU second of writing and of the first push together."""
        return self.records / (self.written + self.costs["push"].cpu)

    def disk_ratio(self) -> float:
        """Return the bytes on a device's disk for each byte of a visit."""
        some = list(visits(1000, of=self.students))
        return self.disk / self.records / (sum(map(raw_bytes, some)) / len(some))

    def peak(self, side: Callable[[Cost], float]) -> float:
        """Return the greatest memory of a side in the first syncs."""
        return max(side(self.costs[what]) for what in ("push", "pull"))

    def _sync(self, what: str, device: str, way: Way) -> None:
        self.costs[what] = cost = self.zone.sync(device, way)
        say(
            f"{self.zone.name:<15} {what:<13} {cost.client_cpu:7.2f} + {cost.server_cpu:6.2f} CPU s"
            f" {cost.wall:7.2f} s {cost.up:>11,} B up {cost.down:>11,} B down {cost.requests:>4} requests"
            f" {cost.client_mb:4.0f} + {cost.server_mb:4.0f} MB"
        )

    def _check(self, records: int) -> None:
        if (there := self.zone.count("b")) != records:
            sys.exit(f"{self.zone.name}: {there} of {records} records have come to the other device")


CPU: Callable[[Cost], float] = attrgetter("cpu")
WALL: Callable[[Cost], float] = attrgetter("wall")
WIRE: Callable[[Cost], float] = attrgetter("wire")
REQUESTS: Callable[[Cost], float] = attrgetter("requests")


def of(what: str, value: Callable[[Cost], float]) -> Callable[[Pass], float]:
    """Return what gives a value of the cost of one sync of a pass."""
    return lambda done: value(done.costs[what])


class Bench:
    """The work folder, and everything that was started."""

    def __init__(self) -> None:
        self.work = Path(tempfile.mkdtemp(prefix="shala-bench-", dir=os.environ.get("BENCH_DIR")))
        self._zones: list[Zone] = []
        atexit.register(self.close)

    def measure(self, make: Callable[[Path], Zone], records: int, *, whole: bool) -> Pass:
        """Measure a zone; `whole`: also what comes after the first syncs."""
        folder = self.folder()
        zone = make(folder)
        self._zones.append(zone)
        done = Pass(zone, records)
        done.first()
        if whole:
            done.again()
            done.crowded()
        self._zones.pop().close()
        shutil.rmtree(folder)
        return done

    def folder(self) -> Path:
        """Make an empty folder."""
        return Path(tempfile.mkdtemp(dir=self.work))

    def close(self) -> None:
        """End what was started and remove what was written."""
        while self._zones:
            self._zones.pop().close()
        shutil.rmtree(self.work, ignore_errors=True)


def zone(bench: Bench, numbers: Sequence[int]) -> None:
    """Ours and Morango on the same records."""
    there = morango_zone.install()
    for number in numbers:
        whole = number == max(numbers)
        ours = bench.measure(ShalaZone, number, whole=whole)
        shipped = quick = None
        if there:
            quick = bench.measure(_without_sleeps, number, whole=whole)
            shipped = bench.measure(_as_shipped, number, whole=False)
        _first_figures(number, ours, quick, shipped)
        if whole:
            _later_figures(number, ours, quick)


def _as_shipped(folder: Path) -> Zone:
    return morango_zone.MorangoZone(folder, sleeps=True)


def _without_sleeps(folder: Path) -> Zone:
    return morango_zone.MorangoZone(folder, sleeps=False)


def _first_figures(n: int, ours: Pass, quick: Pass | None, shipped: Pass | None) -> None:
    for what in ("push", "pull"):
        compare(f"{what}.records_per_cpu_s", "1/s", n, ours, quick, of(what, lambda cost: n / cost.cpu))
        compare(f"{what}.wall_s", "s", n, ours, shipped, of(what, WALL), ", as shipped")
        compare(f"{what}.nosleep.wall_s", "s", n, ours, quick, of(what, WALL), ", without sleeps")
        compare(f"{what}.bytes_per_record", "B", n, ours, quick, of(what, lambda cost: cost.wire / n))
    # Morango's save() leaves all the work to the sync, ours has merged and encoded already: both together.
    compare("write_and_push.records_per_cpu_s", "1/s", n, ours, quick, Pass.written_and_pushed)
    compare("peak_rss_mb", "MB", n, ours, quick, lambda done: done.peak(attrgetter("client_mb")))
    compare("server.peak_rss_mb", "MB", n, ours, quick, lambda done: done.peak(attrgetter("server_mb")))
    compare("disk_ratio", "", n, ours, quick, Pass.disk_ratio)


def _later_figures(n: int, ours: Pass, quick: Pass | None) -> None:
    for what, more in {"noop": "", "noop 500": "_500_devices", "noop 2000": "_2000_devices"}.items():
        compare(f"noop.bytes{more}", "B", n, ours, quick, of(what, WIRE))
        compare(f"noop.requests{more}", "", n, ours, quick, of(what, REQUESTS))
    compare("noop.cpu_s", "s", n, ours, quick, of("noop", CPU))
    for what, name in {"plus100": "plus100", "plus100 pull": "plus100.pull"}.items():
        compare(f"{name}.requests", "", NEW, ours, quick, of(what, REQUESTS))
        compare(f"{name}.bytes", "B", NEW, ours, quick, of(what, WIRE))


def alone(bench: Bench, numbers: Sequence[int], most: int) -> None:
    """The record store without a network; memory up to `most` records."""
    for number in sorted({*numbers, most}):
        folder = bench.folder()
        author = _store_alone("write", str(folder), str(number))
        reader = _store_alone("accept", str(folder))
        shutil.rmtree(folder)
        each = {name: author[name] / number * 1e6 for name in ("write", "cut")}
        each["accept"] = reader["accept"] / number * 1e6
        grown = {
            "write": author["peak_mb"] - author["base_mb"],
            "accept": reader["peak_mb"] - reader["base_mb"],
        }
        say(
            f"{number:,} records: {', '.join(f'{name} {time:.1f} us' for name, time in each.items())} each;"
            f" memory {author['base_mb']:.0f} MB and {grown['write']:.0f} to write, {grown['accept']:.0f} to"
            f" accept; disk {author['disk'] / number:.0f} and {reader['disk'] / number:.0f} B each"
        )
        for name, time in each.items():
            figure(f"alone.{name}.us_per_record", "us", number, time)
        figure("alone.bytes_per_record", "B", number, author["wire"] / number)
        for name, mb in grown.items():
            figure(f"alone.{name}.rss_over_base_mb", "MB", number, mb)


def _store_alone(*arguments: str) -> dict[str, float]:
    said: list[bytes] = []
    program = str(Path(__file__).with_name("store_alone.py"))
    run([*PYTHON, program, *arguments], {**environment(), **INSTALLED}, said)
    answer: dict[str, float] = json.loads(said[0])
    return answer


def compare(
    name: str,
    unit: str,
    n: int,
    ours: Pass,
    rival: Pass | None,
    value: Callable[[Pass], float],
    how: str = "",
) -> None:
    """Print a figure of ours beside Morango's."""
    figure(name, unit, n, value(ours), None if rival is None else value(rival), PEER + how)


def figure(name: str, unit: str, n: int, ours: float, peer: float | None = None, peer_name: str = "") -> None:
    """Print one figure."""
    line = {
        "name": f"sync.{name}",
        "ours": round(ours, 3),
        "peer": round(peer, 3) if peer is not None else None,
        "peer_name": peer_name if peer is not None else None,
        "ratio": round(ours / peer, 4) if peer else None,
        "unit": unit,
        "n": n,
    }
    print(json.dumps(line), flush=True)


def say(text: str) -> None:
    """Tell how far the benchmark is."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", default="10000,50000", help="how many, comma separated")
    parser.add_argument("--most", type=int, default=500_000, help="records, for the measurement of memory")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma separated")
    options = parser.parse_args()
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))} (there are {', '.join(PARTS)})")
    numbers = [int(number) for number in options.records.split(",")]
    deeds = {
        "zone": lambda bench: zone(bench, numbers),
        "alone": lambda bench: alone(bench, numbers, options.most),
    }
    for part in options.parts.split(","):
        bench = Bench()
        try:
            deeds[part](bench)
        finally:
            bench.close()


if __name__ == "__main__":
    main()
