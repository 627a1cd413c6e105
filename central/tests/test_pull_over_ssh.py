"""Pulls over a real sshd, rrsync and rsync on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import pyrage
import pytest
from shala_central import transport
from shala_central.pull import _ServerPull
from shala_central.quarantine import in_quarantine
from shala_central.verify import verify
from shala_central.versions import pulls_of

pytestmark = pytest.mark.ssh

DAY_1 = {
    "gstudio/db/gstudio-mongodb/Nodes.bson": b"nodes" * 1000,
    "gstudio/media/a/b/c/picture of a cat.jpg": bytes(range(256)) * 100,
    "gstudio/media/a/b/c/नमस्ते.txt": b"hello",
    "gstudio/nginx-logs/access.log": b"GET / 200\n" * 500,
    "gstudio/local_settings.py": b"GSTUDIO = 1\n",
}


def test_a_first_pull_publishes_what_the_school_sealed(centre, school, online):
    online(school).seal(DAY_1)
    code, results = centre.pull()
    result = results[school.name]
    assert (code, result["result"], result["reason"]) == (0, "committed", "")
    assert result["files_received"] == len(DAY_1)
    assert result["bytes"] == sum(map(len, DAY_1.values()))
    assert result["items"] == {"ok": 2, "suspect": 1, "failed": 0, "missing": 12}
    assert centre.published(school) == DAY_1


def test_what_is_published_is_read_only_and_nothing_else_stands_there(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    tree = centre.root / "2026" / "mz" / school.name
    assert [path.name for path in tree.iterdir()] == ["gstudio"]
    for path in tree.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o222 == 0, path
    assert not list(centre.archive.staging(school.name).iterdir())


def test_an_unchanged_school_costs_one_small_answer(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    code, results = centre.pull()
    result = results[school.name]
    assert (code, result["result"], result["files_received"]) == (0, "unchanged", 0)
    assert result["bytes_received"] < 1000
    assert result["items"]["ok"] == 2


def test_the_second_day_moves_only_what_has_changed(centre, school, online):
    big = random.Random(1).randbytes(2_000_000)
    online(school).seal({**DAY_1, "gstudio/db/big.bson": big})
    centre.pull()
    picture = centre.root / "2026/mz" / school.name / "gstudio/media/a/b/c/picture of a cat.jpg"
    inode = picture.stat().st_ino
    day_2 = {
        **DAY_1,
        "gstudio/db/big.bson": big[:1_000_000] + b"one page" + big[1_000_008:],
        "gstudio/media/new": b"new",
    }
    del day_2["gstudio/local_settings.py"]
    school.seal(day_2)
    code, results = centre.pull()
    result = results[school.name]
    assert (code, result["result"]) == (0, "committed")
    assert result["files_received"] == 2
    assert result["bytes_received"] < 100_000, "only the difference of the big file travels"
    assert centre.published(school) == day_2
    assert picture.stat().st_ino == inode, "an unchanged file is the same file"


def test_a_changed_file_with_the_old_size_and_time_is_fetched(centre, school, online):
    online(school).seal({**DAY_1, "gstudio/db/x": b"old"})
    centre.pull()
    times = [(school.spool / "bag/data/gstudio/db/x").stat().st_mtime_ns]
    bag = school.seal({**DAY_1, "gstudio/db/x": b"new"})
    assert [(bag / "data/gstudio/db/x").stat().st_mtime_ns] == times
    centre.pull()
    assert centre.published(school)["gstudio/db/x"] == b"new"


def test_after_many_days_only_what_changed_travels_not_the_list_of_all_files(centre, school, online):
    files = {f"gstudio/rcs-repo/{number:04d}.json": str(number).encode() for number in range(2000)}
    online(school).seal(files)
    centre.pull()
    for day in range(6):
        files |= {"gstudio/nginx-logs/access.log": b"GET /" * day, f"gstudio/db/{day}": b"x"}
        school.seal(files)
    _, results = centre.pull()
    assert results[school.name]["result"] == "committed"
    assert results[school.name]["bytes_received"] < 10_000
    assert centre.published(school) == files


def test_what_one_school_has_sent_does_not_travel_from_another(centre, school, online, another_school):
    lesson = random.Random(2).randbytes(300_000)
    centre.archive_settings = 'shared_items = ["gstudio/media"]\n'
    online(school).seal({"gstudio/media/lesson": lesson, "gstudio/db/a": lesson[:100_000]})
    other = online(another_school("2031008-mz8", zone="mz-aizawl"))
    other.seal(
        {"gstudio/media/the same": lesson, "gstudio/db/a": lesson[:100_000], "gstudio/db/b": lesson[:100_000]}
    )
    centre.pull(school.name)
    _, results = centre.pull(other.name)
    # A database is never taken from another school, but from one's own other file.
    assert results[other.name]["files_received"] == 1
    assert 100_000 < results[other.name]["bytes_received"] < 120_000
    assert centre.published(other)["gstudio/media/the same"] == lesson
    assert centre.published(other)["gstudio/db/b"] == lesson[:100_000]
    code, results = centre.pull()
    assert (code, results[other.name]["result"]) == (0, "unchanged")


def test_earlier_collections_are_listed_compared_and_taken_out_again(centre, school, online, tmp_path):
    online(school).seal(DAY_1)
    centre.pull()
    school.seal({**DAY_1, "gstudio/db/new": b"new"})
    centre.pull()
    said = centre.shala("archive", "log", school.name).stdout
    assert [line.split()[0] for line in said.splitlines()[2:4]] == ["2", "1"]
    assert "+ gstudio/db/new  3 B" in centre.shala("archive", "diff", school.name, "1").stdout
    assert "0 new, 1 gone, 0 changed" in centre.shala("archive", "diff", school.name, "2", "1").stdout
    done = centre.shala("archive", "checkout", school.name, "1", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    out = {
        str(p.relative_to(tmp_path / "out")): p.read_bytes()
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    }
    assert out == DAY_1
    assert "gone: 0 collections, 0 objects;" in centre.shala("archive", "prune").stdout
    for wrong in (("checkout", school.name, "9", "/tmp/x"), ("log", "nobody"), ("diff", school.name, "one")):
        done = centre.shala("archive", *wrong)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()[-1]) > 20


def test_changes_that_are_lost_or_wrong_cost_bytes_only(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    for content in (None, b"nonsense\n", b""):
        files = {**DAY_1, "gstudio/db/day": repr(content).encode()}
        school.seal(files)
        changes = school.spool / f"changes/{school.sequence:08d}.txt"
        changes.unlink() if content is None else changes.write_bytes(content)
        _, results = centre.pull()
        assert results[school.name]["result"] == "committed"
        assert centre.published(school) == files


def test_a_school_that_is_just_sealing_is_left_for_later(centre, school, online):
    online(school).seal(DAY_1)
    (school.spool / "NEXT").write_text("{}")
    code, results = centre.pull()
    assert (code, results[school.name]["result"]) == (1, "failed")
    assert "was sealing a new collection" in results[school.name]["reason"]
    (school.spool / "NEXT").unlink()
    code, results = centre.pull()
    assert (code, results[school.name]["result"]) == (0, "committed")


def test_a_new_year_stands_beside_the_old_one(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    school.year = 2027
    school.seal({**DAY_1, "gstudio/media/new": b"new"})
    _, results = centre.pull()
    assert results[school.name]["files_received"] == 1
    assert centre.published(school, 2026) == DAY_1
    assert centre.published(school, 2027)["gstudio/media/new"] == b"new"


def test_a_killed_pull_goes_on_where_it_was(centre, school, online):
    rng = random.Random(2)
    files = {f"gstudio/media/{n}": rng.randbytes(400_000) for n in range(8)}
    online(school).seal(files)
    centre.settings = "bandwidth_kbps = 8000\n"  # 1 MB/s: 3.2 s for all
    process = subprocess.Popen(
        centre.command("pull"), env=centre.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    staged = centre.root / ".shala/staging" / school.name / "data"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(list(staged.rglob("*")) if staged.exists() else []) < 6:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (centre.root / "2026").exists(), "nothing half is visible"
    centre.settings = ""
    for _ in range(50):  # the orphaned rsync is told to end, and keeps the lock until it has
        code, results = centre.pull()
        if "another pull" not in str(results[school.name]["reason"]):
            break
        time.sleep(0.1)
    result = results[school.name]
    assert (code, result["result"]) == (0, "committed"), result
    assert 0 < result["files_received"] < len(files), "whole files are not fetched again"
    assert centre.published(school) == files
    assert not list(Path("/tmp").glob(f"shala-pull-{process.pid}-*")), "the next run tidies up"


def test_a_pull_of_secrets_that_is_killed_again_and_again_shows_none_and_fetches_none_twice(
    centre, school, online
):
    researcher = pyrage.x25519.Identity.generate()
    centre.archive_settings = f'recipients = ["{researcher.to_public()}"]\n'
    secrets = {
        f"gstudio/postgres-dump/{n:02}.sql": b"a secret" + random.Random(n).randbytes(99_992)
        for n in range(40)
    }
    school.items["postgres-dump"] = "ok"
    online(school).seal({**DAY_1, **secrets})
    centre.settings = "bandwidth_kbps = 16000\n"
    for tenths in range(4, 24, 2):
        process = subprocess.Popen(
            centre.command("pull"), env=centre.environment(), stderr=subprocess.DEVNULL
        )
        time.sleep(tenths / 10)
        process.kill()
        process.wait()
        in_clear = {
            path for path in centre.root.rglob("*") if path.is_file() and b"a secret" in path.read_bytes()
        }
        assert all(path.is_relative_to(centre.root / ".shala/staging") for path in in_clear)
    for _ in range(50):  # the orphaned rsync is told to end, and keeps the lock until it has
        code, results = centre.pull()
        if "another pull" not in str(results[school.name]["reason"]):
            break
        time.sleep(0.1)
    assert code == 0, results
    published = centre.published(school)
    assert {path for path in published if path.endswith(".age")} == {f"{path}.age" for path in secrets}
    assert all(pyrage.decrypt(published[f"{path}.age"], [researcher]) == secrets[path] for path in secrets)
    assert not [
        path for path in centre.root.rglob("*") if path.is_file() and b"a secret" in path.read_bytes()
    ]
    assert centre.shala("archive", "verify", "--deep").returncode == 0
    school.seal({**DAY_1, **secrets, "gstudio/postgres-dump/07.sql": b"a secret of the next day"})
    _, results = centre.pull()
    assert results[school.name]["files_received"] == 1


def test_the_first_part_of_a_big_file_is_not_fetched_again(centre, school, online):
    files = {"gstudio/db/big.bson": random.Random(3).randbytes(6_000_000)}
    online(school).seal(files)
    centre.settings = "bandwidth_kbps = 16000\n"
    process = subprocess.Popen(
        centre.command("pull"), env=centre.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    staged = centre.root / ".shala/staging" / school.name / "data"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not any(
        path.is_file() and path.stat().st_size > 2_000_000 for path in staged.rglob("*")
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert b"goes on from there" in errors
    assert process.returncode == 1
    centre.settings = ""
    code, results = centre.pull()
    assert code == 0, results
    assert results[school.name]["bytes_received"] < 4_500_000
    assert centre.published(school) == files


def test_what_a_cut_pull_has_left_of_an_older_version_does_not_stand_in_for_the_new_one(
    centre, school, online
):
    online(school).seal(DAY_1)
    centre.archive.open()
    for path in DAY_1:
        place = centre.archive.staging(school.name) / "data" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"of another day")
    code, results = centre.pull()
    assert (code, results[school.name]["result"]) == (0, "committed")
    assert centre.published(school) == DAY_1


def test_a_bit_that_flipped_in_a_tag_file_of_the_record_is_no_fault_of_the_school(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    tag_file = centre.archive.committed(school.name).record / "bag-info.txt"
    seen, content = tag_file.stat(), bytearray(tag_file.read_bytes())
    content[0] ^= 1
    tag_file.chmod(0o640)
    tag_file.write_bytes(content)
    os.utime(tag_file, ns=(seen.st_mtime_ns, seen.st_mtime_ns))
    school.seal({**DAY_1, "gstudio/local_settings.py": b"GSTUDIO = 2\n"})
    code, results = centre.pull()
    assert (code, results[school.name]["result"]) == (0, "committed")
    assert verify(centre.archive, school.name) == []


def test_a_corrupted_file_is_quarantined_and_the_next_run_mends_it(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    day_2 = {**DAY_1, "gstudio/db/new": b"right", "gstudio/db/other": b"other"}
    bag = school.seal(day_2)
    (bag / "data/gstudio/db/new").write_bytes(b"wrong")
    code, results = centre.pull()
    result = results[school.name]
    assert (code, result["result"]) == (1, "quarantined")
    assert "'gstudio/db/new' is not what the manifest says" in result["reason"]
    assert centre.published(school) == DAY_1, "the good one stays"
    kept = in_quarantine(centre.archive, school.name)
    assert len(kept) == 1
    assert kept[0]["paths"] == ["gstudio/db/new"]

    centre.pull()
    kept = in_quarantine(centre.archive, school.name)
    assert (len(kept), kept[0]["times"]) == (1, 2), "the same refusal is not kept twice"

    (bag / "data/gstudio/db/new").write_bytes(b"right")
    code, results = centre.pull()
    assert (code, results[school.name]["files_received"]) == (0, 1)
    assert centre.published(school) == day_2


def test_a_missing_file_is_named(centre, school, online):
    bag = online(school).seal(DAY_1)
    (bag / "data/gstudio/local_settings.py").unlink()
    _, results = centre.pull()
    assert results[school.name]["result"] == "quarantined"
    assert "'gstudio/local_settings.py' is listed but was not sent" in results[school.name]["reason"]


def test_a_link_in_place_of_a_file_brings_nothing(centre, school, online):
    bag = online(school).seal(DAY_1)
    (bag / "data/gstudio/local_settings.py").unlink()
    (bag / "data/gstudio/local_settings.py").symlink_to("/etc/passwd")
    _, results = centre.pull()
    assert results[school.name]["result"] == "quarantined"
    assert not (centre.root / "2026").exists()


@pytest.mark.parametrize("files", [1, 40], ids=["one big file", "many files"])
def test_a_server_that_sends_more_than_it_announced_is_stopped(centre, school, online, files):
    payload = {f"gstudio/db/{n}": os.urandom(12_000_000 // files) for n in range(files)}
    bag = online(school).seal(payload)
    tags = school.tag_files(payload)
    tags["bag-info.txt"] = f"Payload-Oxum: 700000.{files}\n".encode()
    school.write_tags(bag, school.resealed(tags))
    code, results = centre.pull()
    assert (code, results[school.name]["result"] in ("failed", "quarantined")) == (1, True)
    assert not (centre.root / "2026").exists()
    staged = (centre.root / ".shala" / "staging" / school.name).rglob("*")
    assert sum(path.stat().st_size for path in staged if path.is_file()) < 6_000_000


def test_a_server_with_anothers_identity_is_quarantined(centre, school, online):
    online(school).seal(DAY_1, server_name="2031008-mz8", school_code="2031008", server_id="mz8")
    code, results = centre.pull()
    result = results[school.name]
    assert (code, result["result"]) == (1, "quarantined")
    assert "collection.json says server_name '2031008-mz8', expected was '2031017-mz17'" in result["reason"]
    assert not (centre.root / "2026").exists()


def test_a_head_with_anothers_name_is_quarantined(centre, school, online):
    online(school).seal(DAY_1)
    school.write_head(server_name="2031008-mz8", manifest_sha256="0" * 64)
    _, results = centre.pull()
    assert "it says that it is '2031008-mz8'" in results[school.name]["reason"]
    assert results[school.name]["result"] == "quarantined"


def test_a_number_that_goes_back_waits_for_the_operators_word(centre, school, online):
    online(school).seal(DAY_1)
    school.seal({**DAY_1, "gstudio/media/x": b"x"})
    centre.pull()
    school.sequence = 0
    shutil.rmtree(school.spool / "bag")
    shutil.rmtree(school.spool / "changes")
    school.seal({"gstudio/db/fresh": b"fresh"})
    _, results = centre.pull()
    assert results[school.name]["result"] == "quarantined"
    assert f"shala pull --accept-reset {school.name}" in results[school.name]["reason"]
    code, _ = centre.pull("--accept-reset", school.name)
    assert code == 0
    assert centre.published(school) == {"gstudio/db/fresh": b"fresh"}


def test_a_clock_that_has_fallen_back_replaces_no_finished_year(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    school.year = 2018
    school.seal({"gstudio/db/a": b"of today"})
    _, results = centre.pull()
    assert results[school.name]["result"] == "quarantined"
    assert "has the server's clock fallen back?" in results[school.name]["reason"]
    assert centre.published(school, 2026) == DAY_1


def test_a_tree_that_is_gone_is_published_again_without_moving_a_byte(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    (centre.root / "2026/mz" / school.name).rename(centre.root / "away")
    _, results = centre.pull()
    assert (results[school.name]["result"], results[school.name]["files_received"]) == ("committed", 0)
    assert centre.published(school) == DAY_1
    assert len(pulls_of(centre.archive, school.name)) == 1


def test_a_number_of_millions_costs_nothing(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    school.sequence = 99_999_998
    school.seal({**DAY_1, "gstudio/db/new": b"new"})
    code, results = centre.pull()
    assert (code, results[school.name]["sequence"]) == (0, 99_999_999)


def test_a_damaged_record_of_one_server_is_made_anew_and_no_end_for_the_others(
    centre, school, online, another_school
):
    online(school).seal(DAY_1)
    other = online(another_school("2031008-mz8", zone="mz-aizawl"))
    other.seal(DAY_1)
    centre.pull()
    record = centre.archive.committed(school.name).record
    (record / "collection.json").write_text("{")
    assert verify(centre.archive, school.name) != []
    code, results = centre.pull()
    assert (code, results[other.name]["result"]) == (0, "unchanged")
    assert verify(centre.archive, school.name) == []
    assert centre.published(school) == DAY_1


def test_an_offline_server_is_named_and_holds_nobody(centre, school, online, another_school):
    online(school).seal(DAY_1)
    silent = another_school("3080101-rj1", zone="rj-jaipur")
    centre.schools.append(silent)
    code, results = centre.pull()
    assert code == 3
    assert results[school.name]["result"] == "committed"
    assert (results[silent.name]["result"], results[silent.name]["reason"]) == (
        "offline",
        "connection refused",
    )
    done = centre.shala("pull")
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1].startswith(
        "0 committed, 1 unchanged; left: 1 offline. Again: shala pull 3080101-rj1"
    )
    code, results = centre.pull("--limit", "state_rj")
    assert (code, list(results)) == (3, [silent.name])


def test_a_server_that_falls_silent_after_its_banner_holds_nobody(centre, school, online, another_school):
    online(school).seal(DAY_1)
    silent = another_school("3080101-rj1", zone="rj-jaipur")
    centre.schools.insert(0, silent)
    centre.settings = "stall_seconds = 5\nparallel = 1\n"
    with socket.create_server(("127.0.0.1", silent.port)) as server:
        clients = []

        def greet() -> None:
            while True:
                try:
                    clients.append(server.accept()[0])
                except OSError:
                    return
                clients[-1].sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")

        threading.Thread(target=greet, daemon=True).start()
        started = time.monotonic()
        code, results = centre.pull()
        took = time.monotonic() - started
    assert (code, results[silent.name]["result"]) == (3, "failed")
    assert results[school.name]["result"] == "committed"
    assert took < 20, results


def test_a_server_with_another_host_key_is_not_believed(centre, school, online, keys):
    online(school).seal(DAY_1)
    other = (keys / "centre.pub").read_text().split(" ", 2)
    (centre.folder / "known_hosts").write_text(f"[127.0.0.1]:{school.port} {other[0]} {other[1]}\n")
    code, results = centre.pull()
    assert (code, results[school.name]["result"]) == (1, "failed")
    assert "host key" in results[school.name]["reason"].lower()


def test_a_server_that_has_sealed_nothing_says_so(centre, school, online):
    online(school)
    _, results = centre.pull()
    assert results[school.name]["result"] == "failed"
    assert "has not sealed a collection yet" in results[school.name]["reason"]


def test_many_schools_come_in_one_run(centre, online, another_school):
    for number in range(1, 6):
        school = another_school(f"20310{number:02d}-mz{number}")
        online(school).seal({**DAY_1, "gstudio/db/own": bytes([number])})
    code, results = centre.pull()
    assert code == 0, results
    for number, one in enumerate(centre.schools, 1):
        assert centre.published(one)["gstudio/db/own"] == bytes([number])
    tree = centre.shala("archive", "tree")
    assert "2031005-mz5" in tree.stdout
    assert centre.shala("archive", "verify").returncode == 0


def test_an_old_rsync_is_refused_in_one_line(centre, school, online, tmp_path):
    old = tmp_path / "rsync"
    old.write_text("#!/bin/sh\necho 'rsync  version 3.2.7  protocol version 31'\n")
    old.chmod(0o755)
    centre.settings = f'rsync = "{old}"\n'
    online(school).seal(DAY_1)
    done = centre.shala("pull")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("shala: rsync 3.2.7 is too old")


@pytest.fixture
def long_round_trips(monkeypatch):
    """A centre that takes every link for a slow one; returns what was asked of an rsync that stood by."""
    asked = []

    async def noted(waiting, names, max_file):
        names = list(names)
        asked.append(len(names))
        return await ask(waiting, names, max_file)

    async def slowly(self, *arguments):
        head = await ask_head(self, *arguments)
        await asyncio.sleep(0.5)
        return head

    ask, ask_head = transport._Waiting.ask, _ServerPull._ask
    monkeypatch.setattr(_ServerPull, "_ask", slowly)
    monkeypatch.setattr(transport, "SLOW_TO_OPEN", 0.0)
    monkeypatch.setattr(transport._Waiting, "ask", noted)
    return asked


def test_where_a_round_trip_is_long_the_second_rsync_stands_by(centre, school, online, long_round_trips):
    online(school).seal(DAY_1)
    centre.pull_here()
    files = {
        **DAY_1,
        **{f"gstudio/db/{'x' * 150}{n}": b"%d" % n for n in range(1000)},
    }  # more than a pipe holds
    school.seal(files)
    result = centre.pull_here()
    assert (result.result, result.files_received) == ("committed", 1000)
    assert centre.published(school) == files
    assert long_round_trips[-1] == 1000


def test_an_rsync_that_died_standing_by_is_replaced(centre, school, online, long_round_trips, monkeypatch):
    online(school).seal(DAY_1)
    centre.pull_here()
    before = len(long_round_trips)
    changed = {**DAY_1, "gstudio/nginx-logs/access.log": b"GET /new 200\n"}
    school.seal(changed)
    stand_by = transport.Transport.stand_by

    async def killed(self, *arguments):
        await stand_by(self, *arguments)
        os.killpg(self._waiting.session.process.pid, signal.SIGKILL)
        while self._waiting.session.lives():
            await asyncio.sleep(0.01)

    monkeypatch.setattr(transport.Transport, "stand_by", killed)
    assert centre.pull_here().result == "committed"
    assert centre.published(school) == changed
    assert len(long_round_trips) == before


def test_an_rsync_that_stood_by_in_vain_is_not_left_behind(centre, school, online, long_round_trips):
    online(school).seal(DAY_1)
    centre.pull_here()
    before = len(long_round_trips)
    assert centre.pull_here().result == "unchanged"
    assert len(long_round_trips) == before
    left = subprocess.run(["pgrep", "-f", f"rsync.*{centre.root}"], capture_output=True, check=False)
    assert left.stdout == b""


def test_no_ssh_connection_is_left_behind(centre, school, online):
    online(school).seal(DAY_1)
    pull = subprocess.Popen(centre.command("pull"), env=centre.environment(), stdout=subprocess.DEVNULL)
    assert pull.wait(60) == 0
    found = subprocess.run(
        ["pgrep", "-f", f"/tmp/shala-pull-{pull.pid}-"], capture_output=True, text=True, check=False
    )
    assert found.stdout == ""


def test_show_tells_items_history_and_quarantine(centre, school, online):
    online(school).seal(DAY_1)
    centre.pull()
    bag = school.seal({**DAY_1, "gstudio/db/x": b"x"})
    (bag / "data/gstudio/db/x").write_bytes(b"y")
    centre.pull()
    shown = centre.shala("archive", "show", school.name).stdout
    assert "St. Peter's H/S" in shown
    assert "nginx-logs" in shown
    assert "sha256 differs" in shown
    machine = json.loads(centre.shala("archive", "show", school.name, "--json").stdout)
    assert machine["collection"]["sequence"] == 1
    assert len(machine["quarantine"]) == 1
