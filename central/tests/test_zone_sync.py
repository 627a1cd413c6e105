"""Servers of a zone and their centre, both real, over real HTTP: what one learns is on every other.

The faults are those that Morango was measured to have (facts/sync.md 3.3): nothing lost, nothing twice, all
the same in the end, and told to the operator.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from shala_agent.centre import Centre
from shala_agent.enrol import enrol_online
from shala_agent.records import Change, Records
from shala_agent.sync import SyncResult, sync
from shala_central.zone_status import zone_status
from zone_world import ZoneCentre

pytestmark = pytest.mark.timeout(120)


@dataclass
class Server:
    """A school server: its record store and key, and the production client."""

    folder: Path
    centre: ZoneCentre
    key: SigningKey
    records: Records

    def line(self) -> Centre:
        return Centre(f"http://127.0.0.1:{self.centre.port}", self.key, connect_seconds=5.0)

    def sync(self) -> SyncResult:
        return sync(self.records, self.line(), self.folder / "parts")

    def learn(self, first: int, count: int, author: str) -> None:
        """Have visits that nobody else has."""
        visits = [Change("activity", f"zo/{author}-{n}", {"n": n}) for n in range(first, first + count)]
        self.records.write([Change("account", "zo", {"first_name": "Zo"}), *visits], at=1)

    def visits(self) -> list[str]:
        return [record.key for record in self.records.records("activity")]

    def all(self) -> list[object]:
        return list(self.records.records(everything=True))

    def copy_to(self, folder: Path) -> None:
        """Copy the disk of the server as it is now."""
        folder.mkdir(parents=True)
        with sqlite3.connect(self.folder / "records.sqlite") as db:
            db.execute("VACUUM INTO ?", (str(folder / "records.sqlite"),))

    def on(self, folder: Path) -> Server:
        """Return the server that stands on a copy of the disk."""
        return Server(folder, self.centre, self.key, Records(folder / "records.sqlite"))


@pytest.fixture
def server(served: ZoneCentre, tmp_path: Path) -> Callable[..., Server]:
    def make(name: str, zone: str = "mz") -> Server:
        folder = tmp_path / name
        key = SigningKey.generate()
        made = Server(folder, served, key, Records(folder / "records.sqlite"))
        enrol_online(made.records, made.line(), name, served.token(zone))
        return made

    return make


def told(centre: ZoneCentre) -> str:
    """Return what the operator reads of zone mz."""
    with centre.zones() as zones, zones.database.reading() as session:
        return str(zone_status(zones, session, zones.zone(session, "mz"), shown=50))


def test_what_one_server_learns_is_on_every_other_of_its_zone_and_on_no_other(server):
    here, there, elsewhere = server("mz17"), server("mz8"), server("rj12", "rj")
    here.learn(1, 100, "a")
    assert here.sync().records_up == 101
    assert there.sync().records_down == 101
    assert there.all() == here.all()
    assert elsewhere.sync().records_down == 0
    assert elsewhere.all() == []


def test_when_nothing_is_new_one_request_of_less_than_a_kilobyte_is_all(server):
    here, there = server("mz17"), server("mz8")
    here.learn(1, 10, "a")
    for one in (here, there, here):
        one.sync()
    done = here.sync()
    assert (done.requests, done.outcome) == (1, "done")
    assert done.bytes_up + done.bytes_down <= 1024


def test_a_hundred_more_records_take_three_requests_and_sixteen_kilobytes(server):
    here, there = server("mz17"), server("mz8")
    here.learn(1, 1000, "a")
    for one in (here, there, here):
        one.sync()
    here.learn(5000, 100, "a")
    for done in (here.sync(), there.sync()):
        assert done.requests <= 3
        assert done.bytes_up + done.bytes_down <= 16 << 10


def test_fault_1_what_is_written_on_a_restored_backup_arrives(server, tmp_path, served):
    here, there = server("mz17"), server("mz8")
    here.learn(0, 25, "a")
    here.sync()
    here.copy_to(tmp_path / "backup")
    for n in range(1, 10):
        here.learn(25 * n, 25, "a")
        here.sync()
    here.records.close()
    restored = here.on(tmp_path / "backup")
    restored.learn(9000, 50, "a")
    assert restored.sync().forks == 1
    there.sync()
    restored.sync()
    wanted = sorted([f"zo/a-{n}" for n in range(250)] + [f"zo/a-{n}" for n in range(9000, 9050)])
    assert sorted(there.visits()) == sorted(restored.visits()) == wanted
    assert there.all() == restored.all()
    assert "epoch" in told(served) or "copy" in told(served)


def test_fault_2_two_disks_with_one_key_lose_nothing_and_are_reported(server, tmp_path, served):
    one, there = server("mz17"), server("mz8")
    one.learn(0, 10, "before")
    one.sync()
    one.copy_to(tmp_path / "clone")
    other = one.on(tmp_path / "clone")
    for n in range(3):
        for clone, name in ((one, "one"), (other, "other")):
            clone.learn(30 * n, 30, name)
            clone.sync()
    for party in (one, other, there, one, other, there):
        party.sync()
    assert len(there.visits()) == len(set(there.visits())) == 190
    assert one.all() == other.all() == there.all()
    assert "mz17" in told(served)


def test_fault_3_uploading_before_downloading_converges_and_sends_nothing_twice(server):
    servers = [server("mz17"), server("mz8")]
    for n in range(3):
        for number, one in enumerate(servers):
            one.learn(30 * n, 30, f"s{number}")
            assert one.sync().records_up <= 31
    for one in servers:
        one.sync()
    assert servers[0].all() == servers[1].all()
    assert len(servers[0].visits()) == 180
    assert [one.sync().records_up for one in servers] == [0, 0]


@pytest.mark.parametrize("first", [0, 1])
def test_fault_4_the_winner_of_a_conflict_does_not_hang_on_who_came_first(server, first):
    servers = [server("mz17"), server("mz8")]
    servers[0].records.write([Change("account", "zo", {"first_name": "before"})], at=0)
    for one in (*servers, *servers):
        one.sync()
    for number, one in enumerate(servers):
        one.records.write([Change("account", "zo", {"first_name": f"from {number}"})], at=9 - number)
    order = servers if first == 0 else servers[::-1]
    for one in (*order, *order):
        one.sync()
    records = [one.records.record("account", "zo") for one in servers]
    assert records[0] == records[1]
    assert {sibling.value for sibling in records[0].siblings} == {
        '{"first_name":"from 0"}',
        '{"first_name":"from 1"}',
    }
    # By the greater log id, which neither clock nor order has a hand in.
    assert records[0].log == max(sibling.log for sibling in records[0].siblings)


def _push(folder: Path, port: int, key: bytes) -> None:
    centre = Centre(f"http://127.0.0.1:{port}", SigningKey(key), connect_seconds=5.0)
    sync(Records(folder / "records.sqlite"), centre, folder / "parts")


def test_fault_5_after_a_kill_in_mid_push_only_what_is_missing_is_sent(server, served):
    here, there = server("mz17"), server("mz8")
    for n in range(6):  # six segments of some hundred kilobytes
        noise = [Change("activity", f"zo/{n}-{k}", {"x": os.urandom(500).hex()}) for k in range(300)]
        here.records.write([Change("account", "zo", {}), *noise], at=1)
        here.records.cut(here.key)
    whole = sum(offer.size for offer in here.records.offers(100))
    process = multiprocessing.get_context("spawn").Process(
        target=_push, args=(here.folder, served.port, bytes(here.key))
    )
    process.start()
    while served.query("SELECT count(*) FROM segment")[0][0] < 2:
        assert process.is_alive() or process.exitcode == 0
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = served.query("SELECT coalesce(sum(size), 0) FROM segment")[0][0]
    done = here.sync()
    assert done.outcome == "done"
    assert done.bytes_up <= whole - kept + 16_000
    there.sync()
    assert there.all() == here.all()
    assert served.query("SELECT count(*) FROM part")[0][0] == 0
