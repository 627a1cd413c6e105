"""Faults: what the archive shows when processes die, disks fill and bits flip, and how it comes back.

SHALA_FAULTS=100 kills at a hundred points instead of twelve; SHALA_FAULTS_SEED repeats a run that failed.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from central_school import received
from shala_central import commit as commit_module
from shala_central import pull as pull_module
from shala_central.pull import ServerResult
from shala_central.verify import verify
from shala_central.versions import pulls_of

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(1800 if os.environ.get("SHALA_FAULTS") else 300)]

POINTS = int(os.environ.get("SHALA_FAULTS", "12"))
SEED = int(os.environ.get("SHALA_FAULTS_SEED", "2031017"))
DAY_1 = {
    "gstudio/db/nodes.bson": b"nodes" * 1000,
    "gstudio/media/a/picture": b"picture" * 50,
    "gstudio/media/a/song": b"song",
    "gstudio/nginx-logs/access.log": b"GET / 200\n" * 500,
}
DAY_2 = {**DAY_1, "gstudio/db/nodes.bson": b"other" * 1000, "gstudio/media/b": b"new"}


# -- what must be true whatever happened ---------------------------------------------------------------------


def assert_sound(centre, school, *sealed: dict[str, bytes]) -> None:
    """The tree is one of these collections, nothing of it is damaged, every object is what its name says."""
    assert centre.published(school) in sealed, "a mixture of collections is published"
    if centre.archive.committed(school.name) is not None:
        assert verify(centre.archive, school.name) == []
    for pool in centre.archive.objects.pools():
        for digest, place in centre.archive.objects.stored(pool):
            assert hashlib.sha256(place.read_bytes()).hexdigest() == digest, place


def assert_finished(centre, school, sealed: dict[str, bytes], sequences: list[int]) -> None:
    """The newest collection is published, nothing unfinished is left, the log holds each collection once."""
    assert_sound(centre, school, sealed)
    assert list(centre.archive.staging(school.name).iterdir()) == []
    assert [record.sequence for record in pulls_of(centre.archive, school.name)] == sequences


def pulled(centre) -> ServerResult:
    """Pull until no orphan of a killed run holds the lock any more; return the result."""
    for _ in range(100):
        result: ServerResult = centre.pull_here()
        if "another pull" not in result.reason:
            break
        time.sleep(0.1)
    return result


def until(happens: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


# -- processes -----------------------------------------------------------------------------------------------


def children() -> dict[int, list[int]]:
    """Return the children of every process."""
    found: dict[int, list[int]] = collections.defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[parent].append(int(folder.name))
    return found


def below(process: int) -> list[int]:
    """Return all processes below a process."""
    tree, found = children(), [process]
    for one in found:
        found += tree.get(one, [])
    return found[1:]


def rsyncs_of(process: int) -> list[int]:
    """Return the rsync processes that a puller has started."""
    names = {one: name_of(one) for one in below(process)}
    return [one for one, name in names.items() if name == "rsync"]


def sessions_of(school) -> list[int]:
    """Return the sessions of a school's sshd."""
    mark = f"sshd-{school.name}-{school.port}/sshd_config".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "cmdline").read_bytes():
                return children().get(int(folder.name), [])
    raise AssertionError("the school has no sshd")


def name_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


# -- kill -9 -------------------------------------------------------------------------------------------------


class Staged:
    """What can be seen of a running pull from outside, in its staging folder."""

    def __init__(self, centre, school) -> None:
        self.folder = centre.root / ".shala/staging" / school.name
        self.tree = centre.root / str(school.year) / school.state / school.name

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def has_content(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any((self.folder / "data").iterdir())
        return False

    def is_exchanged(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            intent = json.loads((self.folder / "commit.json").read_bytes())
            return bool(intent["inode"] == self.tree.stat().st_ino)
        return False

    def moment(self, process: subprocess.Popen[bytes]) -> str:
        """Name the moment that a pull is at."""
        if process.poll() is not None:
            return "after it"
        if self.is_exchanged():
            return "after the exchange"
        if self.has("commit.json"):
            return "exchange"
        if self.has("record"):
            return "assembly"
        if self.has_content():
            return "payload" if rsyncs_of(process.pid) else "check"
        return "lists" if self.has("received/HEAD") else "asking"


def the_day_after(before: dict[str, bytes], day: int, rng: random.Random) -> dict[str, bytes]:
    """Return a collection of which some files changed, some are new, some gone, and the big one is another."""
    files = dict(before)
    for path in rng.sample(sorted(files), len(files) // 4):
        del files[path]
    for path in rng.sample(sorted(files), len(files) // 4):
        files[path] = rng.randbytes(rng.randrange(2000))
    for number in range(8):
        item = rng.choice(["db", "media", "media/deep/er", "nginx-logs"])
        files[f"gstudio/{item}/{day}-{number}"] = rng.randbytes(rng.randrange(5000))
    return {
        **files,
        "gstudio/db/big.bson": rng.randbytes(2_000_000),
        "gstudio/local_settings.py": b"%d" % day,
    }


def test_a_pull_killed_at_any_point_hurts_nothing_and_the_next_one_commits(centre, school, online, capsys):
    rng = random.Random(SEED)
    staged = Staged(centre, school)
    # From which sign on the delay counts, and how long it is at most: most of a pull is transfer, but the
    # short moments matter more.
    signs: list[tuple[Callable[[], bool], float]] = [
        (lambda: True, 1.0),
        (lambda: staged.has("received"), 0.6),
        (lambda: staged.has("received/HEAD"), 0.3),
        (staged.has_content, 1.2),
        (lambda: staged.has("record"), 0.03),
        (lambda: staged.has("commit.json"), 0.03),
    ]
    online(school)
    before: dict[str, bytes] = {}
    landed: collections.Counter[str] = collections.Counter()
    for day in range(1, POINTS + 1):
        sealed = the_day_after(before, day, rng)
        school.seal(sealed)
        sign, longest = signs[day % len(signs)]
        delay, victim = rng.uniform(0, longest), rng.choice(["puller", "rsync", "session"])
        if longest < 0.1:
            victim = "puller"  # nobody else has a part in the commit
        moment = "?"
        try:
            centre.settings = "bandwidth_kbps = 16000\n"
            process = subprocess.Popen(
                centre.command("pull"),
                env=centre.environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            until(lambda: sign() or process.poll() is not None)  # noqa: B023 - of this round
            time.sleep(delay)
            process.send_signal(signal.SIGSTOP)  # looking takes longer than some moments
            moment = staged.moment(process)
            others = {"rsync": rsyncs_of(process.pid), "session": sessions_of(school)}.get(victim, [])
            for one in others[:1] if victim == "rsync" else others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            process.send_signal(signal.SIGCONT if others else signal.SIGKILL)
            process.communicate(timeout=60)
            assert_sound(centre, school, before, sealed)
            centre.settings = ""
            result = pulled(centre)
            assert result.result in ("committed", "unchanged"), result
            assert_finished(centre, school, sealed, list(range(1, day + 1)))
        except BaseException:
            with capsys.disabled():
                sys.stderr.write(f"\nSHALA_FAULTS_SEED={SEED}, point {day}: {victim} killed {moment}\n")
            raise
        landed[moment] += 1
        before = sealed
    with capsys.disabled():
        counts = ", ".join(f"{moment} {times}" for moment, times in landed.most_common())
        sys.stderr.write(f"\nkilled at: {counts}\n")
    assert len(landed) >= min(4, POINTS), f"the kills fell only at {landed}"


# -- a full disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(centre) -> Iterator[Callable[[int], None]]:
    """An archive on a disk of 96 MB, and a way to leave only so many bytes free on it; 0 frees it again."""
    centre.root.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "shala-test", str(centre.root)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    ballast = centre.root / "ballast"

    def leave(free: int) -> None:
        ballast.unlink(missing_ok=True)
        if free:
            size = shutil.disk_usage(centre.root).free - free
            descriptor = os.open(ballast, os.O_CREAT | os.O_WRONLY)
            os.posix_fallocate(descriptor, 0, size)
            os.close(descriptor)

    yield leave
    subprocess.run(["umount", str(centre.root)], check=True)


BIG = {**DAY_2, "gstudio/db/big.bson": random.Random(5).randbytes(8_000_000)}


def test_a_collection_that_does_not_fit_is_told_in_one_line(centre, school, online, small_disk):
    online(school).seal(DAY_1)
    centre.pull()
    school.seal(BIG)
    small_disk(66 << 20)
    done = centre.shala("pull")
    (line,) = [line for line in done.stdout.splitlines() if school.name in line and "disk" in line]
    assert re.search("the archive's disk has 6[0-9] MiB free, up to 71 MiB are needed", line)
    assert_sound(centre, school, DAY_1)
    small_disk(0)
    assert pulled(centre).result == "committed"
    assert_finished(centre, school, BIG, [1, 2])


@pytest.mark.parametrize("step", ["_require_space", "_commit", "recording"])
def test_a_disk_that_fills_up_during_a_pull_hurts_nothing(
    centre, school, online, small_disk, monkeypatch, step
):
    online(school).seal(DAY_1)
    centre.pull()
    school.seal(BIG)
    owner, name = {"recording": (commit_module, "_finish")}.get(step, (pull_module._ServerPull, step))
    original = getattr(owner, name)

    def fill_and_go_on(*arguments: object) -> object:
        small_disk(4 << 20 if step == "_require_space" else 1)
        return None if step == "_require_space" else original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fill_and_go_on)
        result = centre.pull_here()
    assert result.result == "failed"
    assert "No space left on device" in result.reason
    assert "\n" not in result.reason
    assert centre.published(school) == (BIG if step == "recording" else DAY_1)
    small_disk(0)
    assert_sound(centre, school, BIG if step == "recording" else DAY_1)
    assert pulled(centre).result == ("unchanged" if step == "recording" else "committed")
    assert_finished(centre, school, BIG, [1, 2])


@contextlib.contextmanager
def least_free_on(root: Path) -> Iterator[list[int]]:
    """Tell how many bytes were free at least while the block ran."""
    seen, over = [shutil.disk_usage(root).free], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            seen[0] = min(seen[0], shutil.disk_usage(root).free)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield seen
    over.set()
    watcher.join()


@pytest.mark.parametrize("lists", ["changes ahead", "a chain of changes", "files"])
def test_no_list_of_a_hostile_school_takes_the_room_that_is_kept_free(
    centre, school, online, small_disk, lists
):
    online(school).seal(DAY_1)
    centre.pull()
    bag = school.seal(DAY_2)
    (school.spool / f"changes/{school.sequence:08d}.txt").unlink()
    if lists == "files":
        endless = [bag / "files.txt"]
    else:
        school.sequence += 0 if lists == "changes ahead" else 50
        endless = [school.spool / f"changes/{number:08d}.txt" for number in range(2, school.sequence + 3)]
        school.write_tags(bag, school.tag_files(DAY_2))
    for path in endless:
        with path.open("wb") as sparse:  # zeros travel compressed
            sparse.truncate(20 << 20)
    small_disk(80 << 20)
    with least_free_on(centre.root) as least:
        _, results = centre.pull()
    assert results[school.name]["result"] == ("failed" if lists == "files" else "committed"), results
    if lists == "files":
        assert "the archive's disk has" in results[school.name]["reason"]
    assert least[0] >= pull_module.RESERVE
    assert not (centre.archive.staging(school.name) / "received").exists()
    small_disk(0)
    (school.spool / f"changes/{school.sequence:08d}.txt").unlink(missing_ok=True)
    school.seal(DAY_2)
    assert pulled(centre).result == "committed"
    assert_sound(centre, school, DAY_2)


@pytest.mark.parametrize("size", [200_000, 3_000_000], ids=["in the table", "in a file"])
def test_a_disk_that_is_full_while_old_content_is_packed_costs_one_line(centre, school, small_disk, size):
    archive = centre.archive
    archive.open()
    days = [{"gstudio/db/a": random.Random(number).randbytes(size).hex().encode()} for number in range(3)]
    for number, files in enumerate(days, 1):
        school.sequence = number
        received(archive, school, files)
    small_disk(180 << 10)
    done = centre.shala("archive", "prune")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"shala: \S+/(cold\.sqlite|[0-9a-f]{64}\.cold): [^\n]+ \([^\n]+\)\n", done.stderr)
    assert centre.shala("archive", "verify", "--deep").returncode == 0
    small_disk(0)
    assert centre.shala("archive", "prune").returncode == 0
    assert centre.shala("archive", "verify", "--deep").returncode == 0
    assert json.loads(centre.shala("archive", "objects", "--json").stdout)["places"]["packed_objects"] == 2


def test_a_disk_without_inodes_hurts_nothing(centre, school, online, small_disk):
    online(school).seal(DAY_1)
    centre.pull()
    day_2 = {**DAY_1, **{f"gstudio/db/{n}": b"%d" % n for n in range(100)}}
    school.seal(day_2)
    used = os.statvfs(centre.root)
    inodes = f"remount,nr_inodes={used.f_files - used.f_ffree + 60}"
    subprocess.run(["mount", "-o", inodes, str(centre.root)], check=True)
    result = pulled(centre)
    assert result.result == "failed"
    assert "No space left on device" in result.reason
    assert centre.published(school) == DAY_1
    subprocess.run(["mount", "-o", "remount,nr_inodes=10000", str(centre.root)], check=True)
    assert pulled(centre).result == "committed"
    assert_finished(centre, school, day_2, [1, 2])


# -- several at once -----------------------------------------------------------------------------------------


def test_of_two_pulls_of_one_server_one_commits_and_the_other_says_why_not(centre, school, online):
    files = {**DAY_1, "gstudio/db/big.bson": random.Random(1).randbytes(2_000_000)}
    online(school).seal(files)
    centre.settings = "bandwidth_kbps = 8000\n"
    first = subprocess.Popen(
        centre.command("pull", "--json"), env=centre.environment(), stdout=subprocess.PIPE
    )
    until(Staged(centre, school).has_content)
    code, results = centre.pull()
    assert (code, results[school.name]["result"]) == (1, "failed")
    assert "another pull of this server is running" in results[school.name]["reason"]
    output, _ = first.communicate(timeout=60)
    assert json.loads(output)["servers"][0]["result"] == "committed"
    assert_finished(centre, school, files, [1])


def test_pulls_that_start_together_commit_once(centre, school, online):
    online(school).seal(DAY_1)
    pulls = [
        subprocess.Popen(centre.command("pull", "--json"), env=centre.environment(), stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    results = [json.loads(one.communicate(timeout=60)[0])["servers"][0] for one in pulls]
    assert [result["result"] for result in results].count("committed") == 1
    for result in results:
        assert result["result"] in ("committed", "unchanged") or "another pull" in result["reason"], result
    assert_finished(centre, school, DAY_1, [1])


# A reader as a researcher's script is: it opens the folder once and reads everything through it.
READER = """
import hashlib, json, os, sys, time
place, expected, ready, stop = sys.argv[1:]
expected = json.load(open(expected))
days, whole, cut, mixtures = set(), 0, 0, []

def read(name, folder):
    with open(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
        return file.read()

def fail(error):
    raise error

def look():
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        day = read("gstudio/db/day", folder).decode()
        days.add(day)
        found = {}
        for path, _, names, inner in os.fwalk(".", dir_fd=folder, onerror=fail):
            for name in names:
                found[os.path.normpath(f"{path}/{name}")] = hashlib.sha256(read(name, inner)).hexdigest()
        wrong = {p: d for p, d in found.items() if expected[day].get(p) != d}
        # What is not published any more is being removed: there files may lack, but none may be another's.
        still = os.fstat(folder).st_ino == os.stat(place).st_ino
        if wrong or (still and found != expected[day]):
            mixtures.append([day, sorted(wrong or expected[day].keys() ^ found.keys())])
        return still
    finally:
        os.close(folder)

while not os.path.exists(stop):
    try:
        if look():
            whole += 1
        else:
            cut += 1
    except FileNotFoundError:
        cut += 1
    open(ready, "w").close()
print(json.dumps({"days": len(days), "whole": whole, "cut": cut, "mixtures": mixtures}))
"""


def test_a_reader_never_sees_a_mixture_of_two_collections(centre, school, tmp_path):
    def collection(day: int) -> dict[str, bytes]:
        files = {
            f"gstudio/media/{n % 5}/{n}": b"%d of %d" % (n, day if n % 2 else 0)
            for n in range(60)
            if (n + day) % 3
        }
        return {**files, "gstudio/db/day": b"%d" % day}

    days = {day: collection(day) for day in range(1, 41)}
    expected = {
        day: {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
        for day, files in days.items()
    }
    (tmp_path / "expected").write_text(json.dumps(expected))
    archive = centre.archive
    archive.open()
    school.items = {"db": "ok", "media": "ok"}
    school.sequence = 1
    received(archive, school, days[1])
    ready, stop = tmp_path / "ready", tmp_path / "stop"
    tree = archive.tree_of(school.year, school.state, school.name)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(tree), str(tmp_path / "expected"), str(ready), str(stop)],
        stdout=subprocess.PIPE,
    )
    try:
        until(ready.exists)
        for day in list(days)[1:]:
            school.sequence = day
            received(archive, school, days[day], f"2026-01-01T04:00:{day:02d}+00:00")
    finally:
        stop.touch()
        output, _ = reader.communicate(timeout=30)
    seen = json.loads(output)
    assert seen["mixtures"] == []
    assert seen["whole"] > 20, seen
    assert seen["days"] > 10, seen


# -- flipped bits --------------------------------------------------------------------------------------------


def flip(path: Path, place: int = 0, bit: int = 1) -> None:
    """Flip a bit as a failing disk does: size and times stay as they are."""
    seen = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0] ^ bit
        file.seek(place)
        file.write(bytes([byte]))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def damage_told(centre, school) -> str:
    """Return what `archive verify` says; that something is damaged is its exit code."""
    done = centre.shala("archive", "verify", school.name)
    assert done.returncode == 1, done.stdout
    return done.stdout + done.stderr


def test_a_bit_that_flipped_in_the_tree_is_named_and_mended_by_the_school(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    flip(centre.root / "2026/mz" / school.name / "gstudio/db/nodes.bson", 2000)
    assert "gstudio/db/nodes.bson" in damage_told(centre, school)
    result = centre.pull_here(again=True)
    assert (result.result, result.files_received) == ("committed", 1)
    assert_finished(centre, school, DAY_1, [1])


# In the digest, in the line's form, in a line's end: what can be read wrongly, and what cannot be read.
@pytest.mark.parametrize(
    "place, bit, newer",
    [(0, 1, False), (64, 4, False), (-1, 2, True)],
    ids=["digest", "form", "end, and a newer collection is there"],
)
def test_a_bit_that_flipped_in_a_record_is_named_and_mended_by_the_school(
    centre, school, online, place, bit, newer
):
    online(school).seal(DAY_1)
    centre.pull()
    record = centre.archive.committed(school.name).record / "files.txt"
    flip(record, place % record.stat().st_size, bit)
    assert "files.txt" in damage_told(centre, school)
    if newer:
        school.seal(DAY_2)
    result = centre.pull_here(again=True)
    assert (result.result, result.reason) == ("committed", "")
    assert_sound(centre, school, DAY_2 if newer else DAY_1)
    assert list(centre.archive.staging(school.name).iterdir()) == []


def test_a_damaged_record_does_not_stop_the_days_that_follow(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    flip(centre.archive.committed(school.name).record / "files.txt", 64, 4)
    school.seal(DAY_2)
    result = pulled(centre)
    assert (result.result, result.reason) == ("committed", "")
    assert_sound(centre, school, DAY_2)


def test_a_bit_that_flipped_in_an_earlier_year_is_named_and_mended_by_the_school(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    school.year = 2027
    school.seal(DAY_2)
    centre.pull()
    flip(centre.root / "2026/mz" / school.name / "gstudio/media/a/song")
    said = damage_told(centre, school)
    assert "2026: gstudio/media/a/song" in said
    assert centre.pull_here(again=True).result == "committed"
    assert_finished(centre, school, DAY_2, [1, 2])
    assert centre.published(school, 2026) == DAY_1


def test_damage_that_no_school_can_mend_stays_named(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    school.year = 2027
    school.seal(DAY_2)
    centre.pull()
    flip(centre.root / "2026/mz" / school.name / "gstudio/db/nodes.bson")
    assert centre.pull_here(again=True).result == "committed"
    assert "2026: gstudio/db/nodes.bson" in damage_told(centre, school)
    assert centre.published(school, 2027) == DAY_2


def test_asking_again_of_a_school_that_never_came_fetches_everything(centre, school, online):
    online(school).seal(DAY_1)
    assert centre.pull_here(again=True).result == "committed"
    assert_finished(centre, school, DAY_1, [1])


# -- servers that are not what they were ---------------------------------------------------------------------


def test_a_clock_that_is_years_ahead_is_refused_and_mended_by_the_next_collection(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    school.year = 2099
    school.seal(DAY_2)
    _, results = centre.pull()
    assert results[school.name]["result"] == "quarantined"
    assert "the year 2099 is not between 2016 and" in results[school.name]["reason"]
    assert sorted(path.name for path in centre.root.iterdir()) == [".shala", "2026"]
    school.year = 2026
    assert_sound(centre, school, DAY_1)
    school.seal(DAY_2)
    assert pulled(centre).result == "committed"
    assert_finished(centre, school, DAY_2, [1, 3])


def test_a_server_that_was_renamed_in_the_fleet_alone_is_refused(centre, school, online, another_school):
    online(school).seal(DAY_1)
    centre.pull()
    renamed = another_school("2031018-mz18")
    renamed.port = school.port
    centre.schools = [renamed]
    known = centre.folder / "known_hosts"
    assert f"[127.0.0.1]:{school.port} " in known.read_text()
    _, results = centre.pull()
    assert results[renamed.name]["result"] == "quarantined"
    assert "2031018-mz18 was asked, but it says that it is '2031017-mz17'" in results[renamed.name]["reason"]
    assert not (centre.root / "2026/mz" / renamed.name).exists()
    assert_sound(centre, school, DAY_1)


def test_two_servers_of_one_name_do_not_overwrite_each_other(centre, school, online, tmp_path):
    online(school).seal(DAY_1)
    school.seal(DAY_2)
    centre.pull()
    first_port, first_spool = school.port, school.spool
    school.spool, school.sequence = tmp_path / "spool-of-the-other", 0
    school.spool.mkdir()
    online(school).seal({"gstudio/db/of the other": b"other"})
    _, results = centre.pull()
    assert results[school.name]["result"] == "quarantined"
    assert "was the server re-installed, restored or copied?" in results[school.name]["reason"]
    assert_sound(centre, school, DAY_2)
    school.port, school.spool = first_port, first_spool
    assert pulled(centre).result == "unchanged"


def test_a_name_that_stands_twice_in_the_fleet_is_refused_before_anything(centre, school, online):
    online(school).seal(DAY_1)
    centre.schools.append(school)
    done = centre.shala("pull")
    assert done.returncode in (1, 2)
    assert school.name in done.stderr.splitlines()[-1]
    assert not (centre.root / "2026").exists()
