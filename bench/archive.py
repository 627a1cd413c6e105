"""Collecting and archiving against the peers, on the stand-in's generated schools: make bench NAME=archive.

Every tool sees the same source, over its own ssh connection through a relay that counts every byte (both
ways, ssh included). CPU is user + system of both sides: the client, its children, and the sshd it talks to;
for shala also the sealing at the school. Progress goes to stderr, one JSON line per figure to stdout.

    python bench/archive.py --scale 0.1 --parts days,slow
"""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import datetime
import hashlib
import json
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
from link import Relay, Sshd, free_port
from peers import Borg, Peer, Restic, RsyncFuzzy, RsyncLinks
from shala_agent.collection import (
    BAGIT,
    Collection,
    Head,
    ItemResult,
    bag_info,
    tag_manifest,
    write_collection,
)
from shala_agent.device import SIGNATURE, Device
from shala_agent.manifest import File, write_line
from shala_central.archive import Archive
from shala_central.bag import FILES, GSTUDIO_ITEMS, MANIFEST, TAG_MANIFEST, Survey, survey
from shala_central.listing import changes_between, lines_in
from shala_central.records import PullRecord
from shala_central.verify import NO_LIMITS
from shala_school import ShalaCentre, ShalaSchool
from source import SEEDS, SETTLE, Source, allocated, environment

PARTS = ("days", "schools", "slow", "resume", "history", "million")


@dataclasses.dataclass
class Cost:
    """What one run of a tool took."""

    cpu: float
    wall: float
    wire: int
    rss_mb: float


def measured(commands: Sequence[Sequence[str]], sshd: Sshd, relay: Relay, env: dict[str, str]) -> Cost:
    """Run commands one after the other and return what they cost on both sides."""
    cpu, wire, began = sshd.cpu_seconds(), relay.carried(), time.monotonic()
    used, peak = 0.0, 0.0
    for command in commands:
        usage = run(command, env)
        used += usage.ru_utime + usage.ru_stime
        peak = max(peak, usage.ru_maxrss / 1024)
    wall = time.monotonic() - began
    return Cost(used + sshd.cpu_seconds() - cpu, wall, relay.carried() - wire, peak)


def run(command: Sequence[str], env: dict[str, str], good: Sequence[int] = (0, 3)) -> resource.struct_rusage:
    """Run a command and return what it and its children used; SystemExit with its words if it fails."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env={**environment(), **env}, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in good:
            said.seek(0)
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{said.read().decode()[-2000:]}")
    return usage


def figure(name: str, unit: str, n: int, ours: float, peer: float | None = None, peer_name: str = "") -> None:
    """Print one figure."""
    line = {
        "name": f"archive.{name}",
        "ours": round(ours, 3),
        "peer": round(peer, 3) if peer is not None else None,
        "peer_name": peer_name or None,
        "ratio": round(ours / peer, 3) if peer else None,
        "unit": unit,
        "n": n,
    }
    print(json.dumps(line), flush=True)


def say(text: str) -> None:
    """Tell how far the benchmark is."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def told(who: str, what: str, cost: Cost) -> Cost:
    """Tell what a run cost."""
    say(
        f"{who:<12} {what:<12} {cost.cpu:6.2f} CPU s {cost.wall:7.2f} s"
        f" {cost.wire:>12,} B {cost.rss_mb:6.0f} MB"
    )
    return cost


class Bench:
    """The work folder, the keys, and everything that was started."""

    def __init__(self, scale: float) -> None:
        self.work = Path(tempfile.mkdtemp(prefix="shala-bench-", dir=os.environ.get("BENCH_DIR")))
        atexit.register(self.close)
        self.scale = scale
        self._stop: list[Callable[[], None]] = []
        for name in ("host", "key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.work / name)]
            subprocess.run(command, check=True)
        self.public = (self.work / "key.pub").read_text().strip()
        self.host_public = " ".join((self.work / "host.pub").read_text().split()[:2])

    def sshd(self, forced: str = "") -> Sshd:
        """Start an sshd whose only key may run `forced`, or anything."""
        line = f'restrict,command="{forced}" {self.public}' if forced else self.public
        made = Sshd(self.work / f"sshd-{free_port()}", self.work / "host", [line])
        self._stop.append(made.stop)
        return made

    def relay(self, sshd: Sshd, rate: int = 0, delay: float = 0.0) -> Relay:
        """Start a relay before an sshd."""
        made = Relay(sshd.port, rate, delay)
        self._stop.append(made.stop)
        return made

    def school(self, source: Source, name: str) -> tuple[ShalaSchool, Sshd]:
        """Make an agent's side for a source, and the sshd that lets the centre read its spool."""
        school = ShalaSchool(self.work / "schools" / name, source.root, source.seed)
        return school, self.sshd(f"/usr/bin/rrsync -ro {school.spool}")

    def centre(self, name: str) -> ShalaCentre:
        """Make a centre with an empty archive."""
        return ShalaCentre(self.work / "centres" / name, self.work / "key", self.host_public)

    def peer(self, kind: type[Peer], source: Source, relay: Relay, name: str, store: str = "") -> Peer:
        """Make a peer's side for a source, with a repository of its own or a shared one."""
        folder = self.work / "peers" / (store or name)
        return kind(folder, source.root, self.work, self.host_public, relay.port, name)

    def close(self) -> None:
        """End what was started and remove what was written."""
        while self._stop:
            self._stop.pop()()
        if not self.work.exists():
            return
        subprocess.run(["chmod", "-R", "u+rwX", str(self.work)], check=False)
        shutil.rmtree(self.work, ignore_errors=True)


def days(bench: Bench) -> None:
    """First, no change, next day: one school, all tools side by side."""
    say(f"a school at scale {bench.scale}")
    source = Source(bench.work, SEEDS[0], bench.scale)
    n = sum(len(files) for _, _, files in os.walk(source.root))
    school, school_sshd = bench.school(source, "days")
    centre, school_relay = bench.centre("days"), bench.relay(school_sshd)
    centre.add(school, school_relay.port)
    sshd = bench.sshd()
    relay = bench.relay(sshd)
    peers = [bench.peer(kind, source, relay, kind.name) for kind in (Restic, Borg, RsyncFuzzy, RsyncLinks)]
    peers = [peer for peer in peers if peer.available()]
    for peer in peers:
        for command in peer.prepare():
            run(command, peer.env)
    for what in ("first", "nochange", "nextday", "nextday 2", "nextday 3", "nochange 2"):
        if what.startswith("nextday"):
            source.next_day()
        time.sleep(SETTLE)
        sealing = measured([school.command], school_sshd, school_relay, school.env)
        pulling = measured([centre.command()], school_sshd, school_relay, centre.env)
        told("agent", what, sealing)
        told("centre", what, pulling)
        costs = {
            peer.name: told(peer.name, what, measured(peer.backup(), sshd, relay, peer.env)) for peer in peers
        }
        if what in ("first", "nochange 2", "nextday 3"):
            _days_figures(what.partition(" ")[0], n, sealing, pulling, costs)


def _days_figures(what: str, n: int, sealing: Cost, pulling: Cost, costs: dict[str, Cost]) -> None:
    restic, fuzzy = costs.get("restic sftp"), costs["rsync -zyy"]
    figure(f"{what}.cpu_s", "s", n, sealing.cpu + pulling.cpu, restic and restic.cpu, "restic sftp")
    figure(f"{what}.school.cpu_s", "s", n, sealing.cpu)
    figure(f"{what}.wall_s", "s", n, sealing.wall + pulling.wall, restic and restic.wall, "restic sftp")
    figure(f"{what}.wire_bytes", "B", n, pulling.wire, fuzzy.wire, "rsync -zyy")
    figure(f"{what}.agent.peak_rss_mb", "MB", n, sealing.rss_mb, restic and restic.rss_mb, "restic sftp")
    figure(f"{what}.centre.peak_rss_mb", "MB", n, pulling.rss_mb, restic and restic.rss_mb, "restic sftp")


def schools(bench: Bench, day_count: int) -> None:
    """A second school on the wire; eight schools over ten days on the disk."""
    sources = []
    for seed in SEEDS:
        say(f"school {seed} at scale {bench.scale}")
        sources.append(Source(bench.work, seed, bench.scale))
    time.sleep(SETTLE)
    centre = bench.centre("schools")
    sshd = bench.sshd()
    relay = bench.relay(sshd)
    restics = [bench.peer(Restic, source, relay, source.seed, "restic") for source in sources]
    if restics[0].available():
        for command in restics[0].prepare():
            run(command, restics[0].env)
    pairs = []
    known: set[str] = set()
    for number, source in enumerate(sources):
        school, school_sshd = bench.school(source, source.seed)
        school_relay = bench.relay(school_sshd)
        centre.add(school, school_relay.port)
        run(school.command, school.env)
        if number == 1:
            _second_school(bench, source, centre, school, school_sshd, school_relay, known)
        else:
            cost = measured([centre.command(school.name)], school_sshd, school_relay, centre.env)
            told(source.seed, "first", cost)
        if number == 0:
            known = {digest(path) for path in files_below(source.root)}
        pairs.append((school, school_sshd, school_relay, restics[number]))
        for command in restics[number].backup() if restics[number].available() else ():
            run(command, restics[number].env)
    ours, theirs = allocated(centre.archive), allocated(bench.work / "peers/restic")
    say(f"after the first collections: archive {ours:,} B, restic {theirs:,} B")
    _nothing_new(pairs, centre, sshd)
    for day in range(day_count):
        for source in sources:
            source.next_day()
        time.sleep(SETTLE)
        for school, _, _, restic in pairs:
            run(school.command, school.env)
            for command in restic.backup() if restic.available() else ():
                run(command, restic.env)
        run(centre.command(), centre.env)
        say(
            f"day {day + 1}: archive +{allocated(centre.archive) - ours:,} B,"
            f" restic +{allocated(bench.work / 'peers/restic') - theirs:,} B"
        )
    for command in centre.compact():
        usage = run(command, centre.env)
        say(f"{' '.join(command[2:])}: {usage.ru_utime + usage.ru_stime:.1f} CPU s")
    grown, restic_grown = allocated(centre.archive) - ours, allocated(bench.work / "peers/restic") - theirs
    figure("stored_bytes", "B", day_count * len(sources), grown, restic_grown, "restic, one repository")


def _nothing_new(
    pairs: Sequence[tuple[ShalaSchool, Sshd, Relay, Peer]], centre: ShalaCentre, restic_sshd: Sshd
) -> None:
    """No school has anything new: one run of the centre for all of them, as its timer makes it."""
    ours, rival = 0.0, -restic_sshd.cpu_seconds()
    for school, _, _, restic in pairs:
        ours += _cpu(run(school.command, school.env))
        for command in restic.backup() if restic.available() else ():
            rival += _cpu(run(command, restic.env))
    rival += restic_sshd.cpu_seconds()
    before = sum(sshd.cpu_seconds() for _, sshd, _, _ in pairs)
    wire = sum(relay.carried() for _, _, relay, _ in pairs)
    ours += _cpu(run(centre.command(), centre.env))
    ours += sum(sshd.cpu_seconds() for _, sshd, _, _ in pairs) - before
    wire = sum(relay.carried() for _, _, relay, _ in pairs) - wire
    number = len(pairs)
    say(f"no change at {number} schools: {ours / number:.2f} CPU s each, restic {rival / number:.2f}")
    figure(
        "nochange.fleet.cpu_s",
        "s",
        number,
        ours / number,
        rival / number if pairs[0][3].available() else None,
        "restic sftp",
    )
    figure("nochange.fleet.wire_bytes", "B", number, wire / number)


def _cpu(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def _second_school(
    bench: Bench,
    source: Source,
    centre: ShalaCentre,
    school: ShalaSchool,
    sshd: Sshd,
    relay: Relay,
    known: set[str],
) -> None:
    """What a further school costs against rsync of only those files whose content no earlier one had."""
    cost = told(source.seed, "second", measured([centre.command(school.name)], sshd, relay, centre.env))
    new = [path.relative_to(source.root) for path in files_below(source.root) if digest(path) not in known]
    names = bench.work / "second.names"
    names.write_bytes(b"".join(os.fsencode(name) + b"\0" for name in new))
    plain = bench.sshd()
    plain_relay = bench.relay(plain)
    peer = bench.peer(RsyncFuzzy, source, plain_relay, "second")
    for command in peer.prepare():
        run(command, peer.env)
    only = [[*command[:-2], "--from0", f"--files-from={names}", *command[-2:]] for command in peer.backup()]
    rival = told("rsync -zyy", "second", measured(only, plain, plain_relay, peer.env))
    figure("second_school.wire_bytes", "B", len(new), cost.wire, rival.wire, "rsync -zyy of the new files")


def slow(bench: Bench) -> None:
    """Next day over 250 kB/s and a round trip of 600 ms; the first collection goes over a fast one."""
    say(f"a slow link, scale {bench.scale}")
    source = Source(bench.work / "slow", SEEDS[0], bench.scale)
    school, school_sshd = bench.school(source, "slow")
    centre, sshd = bench.centre("slow"), bench.sshd()
    fast, slow_relay = bench.relay(school_sshd), bench.relay(school_sshd, 250_000, 0.3)
    peer = bench.peer(RsyncFuzzy, source, bench.relay(sshd), "slow")
    time.sleep(SETTLE)
    centre.add(school, fast.port)
    run(school.command, school.env)
    run(centre.command(), centre.env)
    for command in [*peer.prepare(), *peer.backup()]:
        run(command, peer.env)
    source.next_day()
    time.sleep(SETTLE)
    run(school.command, school.env)
    centre.add(school, slow_relay.port)
    rival_relay = bench.relay(sshd, 250_000, 0.3)
    peer.connect(rival_relay.port)
    ours = told("centre", "slow day", measured([centre.command()], school_sshd, slow_relay, centre.env))
    rival = told(peer.name, "slow day", measured(peer.backup(), sshd, rival_relay, peer.env))
    figure("slowlink.nextday.wall_s", "s", 1, ours.wall, rival.wall, peer.name)
    ours = told("centre", "slow same", measured([centre.command()], school_sshd, slow_relay, centre.env))
    rival = told(peer.name, "slow same", measured(peer.backup(), sshd, rival_relay, peer.env))
    figure("slowlink.nochange.wall_s", "s", 1, ours.wall, rival.wall, peer.name)


def resume(bench: Bench) -> None:
    """A first pull, killed when half of it has come, and done again: what is sent twice."""
    scale = min(bench.scale, 0.3)
    say(f"an interrupted pull, scale {scale}")
    source = Source(bench.work / "resume", SEEDS[0], scale)
    school, school_sshd = bench.school(source, "resume")
    run(school.command, school.env)
    whole = bench.centre("resume-whole")
    relay = bench.relay(school_sshd, 3_000_000)
    whole.add(school, relay.port)
    clean = told("centre", "uncut", measured([whole.command()], school_sshd, relay, whole.env)).wire
    cut = bench.centre("resume-cut")
    cut.add(school, relay.port)
    before = relay.carried()
    process = subprocess.Popen(
        cut.command(), env={**environment(), **cut.env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and relay.carried() - before < clean / 2:
        time.sleep(0.02)
    process.kill()
    process.wait()
    time.sleep(SETTLE)  # in which rsync puts away what it has
    told("centre", "resumed", measured([cut.command()], school_sshd, relay, cut.env))
    sent = relay.carried() - before
    figure("resume.resent_percent", "%", clean, max(0.0, (sent - clean) / clean * 100))


def history(bench: Bench, servers: int = 1000, collections: int = 400) -> None:
    """Many collections of many servers: what status, log and diff take, what one without news adds."""
    say(f"{servers} servers x {collections} collections")
    centre = bench.centre("history")
    archive = Archive(centre.archive)
    archive.open()
    names = [f"{2_000_000 + number}-mz{number}" for number in range(1, servers + 1)]
    start = datetime.datetime(2025, 10, 1, tzinfo=datetime.UTC)
    lines = [
        write_line(File(f"data/gstudio/rcs-repo/{n:05d}.json", f"{n:064x}", n, n, 0o644)) for n in range(5000)
    ]
    files, before, newest = b"".join(lines), b"", {}
    device = Device(bench.work / "history-device.key")
    taken = []
    path = archive.hidden / "history.sqlite"
    with archive.history() as kept:
        for number in range(1, collections + 1):
            beat = f"data/gstudio/system-heartbeat/{number:05d}.log"
            after = files + write_line(
                File(beat, hashlib.sha256(beat.encode()).hexdigest(), 4000, number, 0o644)
            )
            pulled = (start + datetime.timedelta(days=number)).isoformat()
            record = _record(names[0], number, pulled, survey(lines_in(after), NO_LIMITS), device)
            if before:
                kept.add(names[0], taken[-1], newest, changes_between(lines_in(after), lines_in(before)))
            taken.append(pulled)
            before, newest = after, record
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("VACUUM")
        one = path.stat().st_size
        figure("history.bytes_per_quiet_collection", "B", collections, one / (collections - 1))
        with db:
            columns = "pulled, year, sequence, files, bytes, record, changes"
            for name in names[1:]:
                db.execute(
                    f"INSERT INTO collection (server, {columns}) SELECT ?, {columns} FROM collection"
                    " WHERE server = ? ORDER BY id",
                    (name, names[0]),
                )
    whole = survey(lines_in(before), NO_LIMITS)
    for name in names:
        folder = archive.hidden / "collections" / name / f"2026-{collections:08d}"
        folder.mkdir(parents=True)
        record = _record(name, collections, taken[-1], whole, device)
        for file, content in {**record, "files.txt": before}.items():
            (folder / file).write_bytes(content)
        (folder.parent / "current.json").write_text(json.dumps({"record": folder.name}))
        centre.add_named(name, 1)
    for what, command in {
        "status": ["status"],
        "log": ["log", names[servers // 2]],
        "diff": ["diff", names[servers // 2], "1"],
    }.items():
        began = time.monotonic()
        run([*centre.program, "archive", *command, "--json"], centre.env)
        figure(f"history.{what}.wall_s", "s", servers * collections, time.monotonic() - began)


def _record(name: str, sequence: int, pulled: str, files: Survey, device: Device) -> dict[str, bytes]:
    """Return the small files of a record: those that the agent seals, and that of the pull."""
    chance = random.Random(f"{name} {sequence}")
    code, _, server_id = name.partition("-")
    collection = Collection(
        server_name=name,
        state="mz",
        school_code=code,
        server_id=server_id,
        school_name="School",
        sequence=sequence,
        year=2026,
        started=pulled,
        sealed=pulled,
        device=device.id,
        previous_manifest_sha256=hashlib.sha256(f"{sequence - 1}".encode()).hexdigest(),
        items=[
            ItemResult(
                platform="gstudio",
                name=item,
                outcome="ok",
                files=chance.randrange(10_000),
                bytes=chance.randrange(10**9),
                seconds=chance.randrange(10_000) / 1000,
                since=f"2026-0{chance.randint(1, 9)}-{chance.randint(10, 28)}T07:41:32.118254+00:00",
            )
            for item in GSTUDIO_ITEMS
        ],
    )
    tags = {
        "bagit.txt": BAGIT,
        "bag-info.txt": bag_info(collection, files.bytes, files.files),
        "collection.json": write_collection(collection),
    }
    digests = {tag: hashlib.sha256(content).hexdigest() for tag, content in tags.items()}
    listed = tag_manifest(digests | {MANIFEST: files.manifest_sha256, FILES: files.files_sha256})
    head = Head(
        server_name=name,
        sequence=sequence,
        year=2026,
        manifest_sha256=files.manifest_sha256,
        files_sha256=files.files_sha256,
        tag_manifest_sha256=hashlib.sha256(listed).hexdigest(),
    )
    pull = PullRecord(
        *(pulled, 2026, "mz", sequence, files.manifest_sha256, files.bytes, files.files, 10**4, 1, 2.0),
        device=device.id,
        public_key=device.public_key,
    )
    return tags | {
        TAG_MANIFEST: listed,
        SIGNATURE: device.sign_collection(listed),
        "HEAD": msgspec.json.encode(head),
        "pull.json": msgspec.json.encode(pull),
    }


def million(bench: Bench, files: int) -> None:
    """So many small files: memory at both ends, first and on a day when little changed."""
    say(f"{files:,} files")
    source = Source(bench.work / "million", SEEDS[0], 0.01)
    chance = random.Random(1)
    for _ in range(files):
        content = b'"%s"' % chance.randbytes(12).hex().encode()  # as JSON, which is looked at
        name = hashlib.sha256(content).hexdigest()
        folder = source.data / "rcs-repo/Nodes" / name[0] / name[1] / name[2]
        if not folder.is_dir():
            folder.mkdir(parents=True)
        (folder / f"{name[3:27]}.json").write_bytes(content)
    school, school_sshd = bench.school(source, "million")
    centre, relay = bench.centre("million"), bench.relay(school_sshd)
    centre.add(school, relay.port)
    time.sleep(SETTLE)
    peaks = {"agent": 0.0, "centre": 0.0}
    for what in ("first", "nochange", "nextday"):
        if what == "nextday":
            source.next_day()
            time.sleep(SETTLE)
        cost = told("agent", what, measured([school.command], school_sshd, relay, school.env))
        peaks["agent"] = max(peaks["agent"], cost.rss_mb)
        cost = told("centre", what, measured([centre.command()], school_sshd, relay, centre.env))
        peaks["centre"] = max(peaks["centre"], cost.rss_mb)
        if what != "first":
            figure(f"{what}.million.wire_bytes", "B", files, cost.wire)
    figure("peak_rss_mb", "MB", files, peaks["centre"])
    figure("agent.peak_rss_mb", "MB", files, peaks["agent"])


def files_below(root: Path) -> list[Path]:
    """Return the files of a source."""
    return [Path(folder, name) for folder, _, names in os.walk(root) for name in names]


def digest(path: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="size of a school; 1 is about 360 MB")
    parser.add_argument("--days", type=int, default=10, help="of growth")
    parser.add_argument("--files", type=int, default=1_000_000, help="for the measurement of memory")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma separated")
    options = parser.parse_args()
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))} (there are {', '.join(PARTS)})")
    deeds = {
        "days": days,
        "schools": lambda bench: schools(bench, options.days),
        "slow": slow,
        "resume": resume,
        "history": history,
        "million": lambda bench: million(bench, options.files),
    }
    for part in options.parts.split(","):
        bench = Bench(options.scale)
        try:
            deeds[part](bench)
        finally:
            bench.close()


if __name__ == "__main__":
    main()
