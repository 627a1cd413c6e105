"""Records made anew from the segments at the centre: in steps, beside everything else, and to the end."""

from __future__ import annotations

import time

import pytest
from shala_agent import wire
from shala_central import remake, server, zones
from shala_central.remake import CentralStore
from test_server import chain
from zone_world import Device, account, whole_of


@pytest.fixture
def slow(zone_centre, monkeypatch):
    """A centre that applies one segment in a step, and takes none but those that a test asks for."""
    monkeypatch.setattr(remake, "FIRST_STEP", 0)
    monkeypatch.setattr(remake, "READERS_WAIT", 0)
    monkeypatch.setattr(zones, "STEP", 0)
    monkeypatch.setattr(server, "IDLE", 3600)
    zone_centre.start()
    return zone_centre


def records(centre) -> int:
    return centre.query("SELECT COUNT(*) FROM record WHERE value IS NOT NULL")[0][0]


def finish(centre) -> int:
    """Make all records anew; return in how many steps."""
    steps = 0
    with centre.zones() as opened:
        while opened.remake_step():
            steps += 1
    return steps


def forget(centre, user: str) -> None:
    assert centre.shala("zone", "redact", "mz", "account", user, "--yes").returncode == 0


def test_others_write_while_a_zones_records_are_made_anew(slow, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.open()
    for data in chain(aizawl, 6):
        aizawl.put(data)
    forget(slow, "user3")
    assert records(slow) <= 1
    assert "are being made anew" in slow.shala("zone", "status", "mz").stdout
    lunglei.open()
    assert lunglei.put(whole_of(lunglei, 9)).read(wire.Receipt).whole
    assert records(slow) <= 2
    assert finish(slow) >= 5
    assert records(slow) == 6
    assert "anew" not in slow.shala("zone", "status", "mz").stdout


def test_what_is_to_be_forgotten_is_not_seen_until_all_has_been_made_anew(slow, join, monkeypatch):
    aizawl = join()
    aizawl.write(account("zo"), account("ma"))
    aizawl.sync()
    monkeypatch.setattr(CentralStore, "go_on", lambda _store, _seconds: True)
    forget(slow, "zo")
    assert [key for (key,) in slow.query("SELECT key FROM record")] == ["ma"]


def test_nobody_waits_while_all_that_a_new_device_had_sent_by_others_is_applied(slow, join, tmp_path):
    relay, author = join("2031017-mz17"), Device("2031018-mz18", tmp_path / "author", slow)
    relay.open()
    for data in chain(author, 5):
        assert relay.put(data).read(wire.Receipt).whole
    assert author.enrol(slow.token("mz")).status == 200
    assert records(slow) < 5
    assert not slow.query("SELECT 1 FROM segment WHERE held IS NOT NULL")
    finish(slow)
    assert records(slow) == 5


def test_what_was_begun_is_finished_by_the_server_that_is_started_next(slow, join, monkeypatch):
    aizawl = join()
    aizawl.open()
    for data in chain(aizawl, 4):
        aizawl.put(data)
    forget(slow, "user2")
    slow.stop()
    monkeypatch.setattr(server, "PAUSE", 0.01)
    slow.start()
    end = time.monotonic() + 30
    while records(slow) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    assert records(slow) == 3


def test_who_wants_to_read_the_records_makes_them_anew_himself(slow, join, monkeypatch):
    aizawl = join()
    aizawl.open()
    for data in chain(aizawl, 4):
        aizawl.put(data)
    slow.query("DELETE FROM record")
    slow.query("UPDATE zone SET remade = ?", remake.CLEARING)
    assert slow.shala("zone", "record", "account", "user4").returncode == 2
    monkeypatch.setattr(remake, "READERS_WAIT", 30)
    assert slow.shala("zone", "record", "account", "user4").returncode == 0


def test_a_second_reason_begins_anew(slow, join):
    aizawl = join()
    aizawl.open()
    for data in chain(aizawl, 5):
        aizawl.put(data)
    forget(slow, "user2")
    with slow.zones() as opened:
        opened.remake_step()
    forget(slow, "user4")
    finish(slow)
    left = {key for (key,) in slow.query("SELECT key FROM record WHERE value IS NOT NULL")}
    assert left == {"user1", "user3", "user5"}


def test_a_segment_that_the_disk_has_hurt_keeps_no_other_one_from_counting(slow, join):
    aizawl = join()
    aizawl.open()
    for data in chain(aizawl, 4):
        aizawl.put(data)
    slow.query('UPDATE segment SET data = ? WHERE "first" = 3', b"x" * 100)
    slow.query("UPDATE zone SET remade = ?", remake.CLEARING)
    finish(slow)
    assert records(slow) == 3


def test_a_record_of_many_segments_is_forgotten_in_one_go(served, join, monkeypatch):
    aizawl = join()
    for number in range(5):
        aizawl.write(account("zo", f"Zo {number}"), account(f"other{number}"))
        aizawl.sync()
    passes = []
    rebuild = CentralStore.rebuild
    monkeypatch.setattr(CentralStore, "rebuild", lambda store: (passes.append(1), rebuild(store)))
    forget(served, "zo")
    assert served.query("SELECT COUNT(*) FROM statement WHERE kind = 'redact'")[0][0] == 5
    assert len(passes) == 1
    assert records(served) == 5
