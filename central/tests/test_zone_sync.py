"""Servers of a zone and their centre, both real, over real HTTP: what one learns is on every other.

The faults are those that Morango was measured to have (facts/sync.md 3.3): nothing lost, nothing twice, all
the same in the end, and told to the operator.
"""

from __future__ import annotations

import hashlib
import json
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
from shala_agent import sync as sync_module
from shala_agent.centre import Centre, CentreSilent
from shala_agent.enrol import enrol_online
from shala_agent.failure import AgentError
from shala_agent.membership import Statement, sign_statement
from shala_agent.records import Change, Records
from shala_agent.segment import NONE, Entry, SegmentRefused, encode_entry, make_segment, read_segment, redact
from shala_agent.sync import SyncResult, sync
from shala_central.zone_status import zone_status
from zone_world import Device, ZoneCentre

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
def served(zone_centre: ZoneCentre, request: pytest.FixtureRequest) -> ZoneCentre:
    """The centre, running; for the faults as operators run it: `shala serve`, two workers."""
    if request.function.__name__.startswith("test_fault_"):
        zone_centre.start_workers(2)
    else:
        zone_centre.start()
    return zone_centre


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


def hurt(centre: ZoneCentre, id_: bytes) -> None:
    """Flip a bit of a segment on the disk of the centre."""
    ((data,),) = centre.query("SELECT data FROM segment WHERE id = ?", id_)
    centre.query(
        "UPDATE segment SET data = ? WHERE id = ?", bytes([*data[:-9], data[-9] ^ 1, *data[-8:]]), id_
    )


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


def full(centre: ZoneCentre, **quotas: int) -> None:
    """Go on with other quotas."""
    centre.stop()
    centre.quotas = quotas
    centre.start()


@pytest.mark.parametrize("quota", ["max_device_bytes", "max_zone_bytes"])
def test_a_device_that_has_brought_all_that_it_may_comes_later_and_loses_nothing(server, served, quota):
    here, there = server("mz17"), server("mz8")
    there.learn(1, 10, "b")
    there.sync()
    ((brought,),) = served.query("SELECT bytes FROM zone WHERE name = 'mz'")
    full(served, **{quota: brought + 10})
    here.learn(1, 100, "a")
    done = here.sync()
    assert (done.outcome, quota in done.reason, done.records_up) == ("partly", True, 0)
    assert done.records_down == 11  # it hears of others all the same
    assert (done.refused, done.lag_after.entries) == ([], 101)
    full(served)
    assert (here.sync().outcome, here.sync().records_up) == ("done", 0)
    there.sync()
    assert there.all() == here.all()


def test_segments_of_a_device_that_nobody_knows_do_not_hold_up_ones_own(server, served, tmp_path):
    here, there = server("mz17"), server("mz8")
    key = SigningKey.generate()
    stranger = Server(tmp_path / "mz9", served, key, Records(tmp_path / "mz9.sqlite"))
    with served.zones() as zones:  # enrolled at a centre that has lost it since
        public = bytes(key.verify_key)
        said = Statement(format=1, kind="enrol", zone="mz", key=public.hex(), name="mz9", generation=1)
        stranger.records.enrol("mz", zones.public_key, public, [sign_statement(zones.key, said)])
    for number in range(3):
        stranger.learn(number, 1, "s")
        stranger.records.cut(key)
    for offer in stranger.records.offers(10):
        here.records.accept(stranger.records.store.data(offer.id), from_centre=False)
    here.learn(1, 10, "a")
    full(served, max_device_held=2)
    done = here.sync()
    assert (done.outcome, "max_device_held" in done.reason) == ("partly", True)
    assert served.query("SELECT COUNT(*) FROM segment WHERE held IS NOT NULL")[0][0] == 2
    there.sync()
    assert len(there.visits()) == 10
    full(served)
    here.sync()
    assert served.query("SELECT COUNT(*) FROM segment WHERE held IS NOT NULL")[0][0] == 3


def test_a_disk_that_is_nearly_full_takes_nothing_and_gives_all(server, served):
    here, there = server("mz17"), server("mz8")
    there.learn(1, 10, "b")
    there.sync()
    full(served, min_free_bytes=1 << 60)
    here.learn(1, 10, "a")
    done = here.sync()
    if served.postgres is not None:
        assert done.outcome == "done"  # the disk is another machine's
        return
    assert (done.outcome, "disk is nearly full" in done.reason) == ("partly", True)
    assert (done.records_up, done.records_down) == (0, 11)
    assert "nothing is taken" in served.shala("zone", "status").stdout
    full(served)
    assert here.sync().records_up == 11


def test_a_device_that_is_set_back_for_ever_is_told_what_to_do_and_loses_nothing(server, served):
    here = server("mz17")
    full(served, max_device_epochs=3)
    for number in range(5):
        here.learn(number, 1, "a")
        done = here.sync()
        here.records.renew()
    assert (done.outcome, "--replace" in done.reason) == ("silent", True)
    assert served.query("SELECT COUNT(*) FROM contact")[0][0] == 3
    assert "epochs: 3 of 3" in served.shala("zone", "status", "mz").stdout
    full(served)
    assert here.sync().outcome == "done"
    assert served.query("SELECT COUNT(*) FROM record")[0][0] == 6


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


def test_a_server_with_a_new_key_loses_nothing_that_it_had_not_sent(server, served):
    here, there = server("mz17"), server("mz8")
    here.learn(0, 10, "sent")
    here.sync()
    here.learn(0, 10, "cut")
    here.records.cut(here.key)
    here.learn(10, 10, "noted")
    here.key = SigningKey.generate()
    assert "shala-agent enrol" in here.sync().reason
    enrol_online(here.records, here.line(), "mz17", served.token("mz", "mz17", replaces=True))
    assert here.sync().outcome == "done"
    there.sync()
    assert len(there.visits()) == 30
    assert there.all() == here.all()


@pytest.mark.parametrize("named", ["", "mz17"])
def test_a_token_from_before_its_revocation_lets_no_stolen_server_in(server, served, named):
    left = served.token("mz")  # made before, and never used
    if named:
        served.query("UPDATE token SET name = ? WHERE used IS NULL", named)
    served.query("UPDATE token SET created = created - 60")
    here = server("mz17")
    assert served.shala("device", "revoke", "mz17", "--reason", "stolen").returncode == 0
    for key in (here.key, SigningKey.generate()):
        thief = Server(here.folder / bytes(key).hex()[:4], served, key, Records(here.folder / "thief.sqlite"))
        with pytest.raises(AgentError, match="older than the revocation"):
            enrol_online(thief.records, thief.line(), "mz17", left)


def test_a_device_that_was_revoked_by_mistake_goes_on_when_it_is_enrolled_again(server, served):
    here, there = server("mz17"), server("mz8")
    here.learn(0, 10, "before")
    here.sync()
    here.learn(0, 10, "meanwhile")
    here.records.cut(here.key)
    assert served.shala("device", "revoke", "mz17", "--reason", "a mistake").returncode == 0
    assert here.sync().outcome == "refused"
    enrol_online(here.records, here.line(), "mz17", served.token("mz"))
    assert here.sync().outcome == "done"
    there.sync()
    assert len(there.visits()) == 20
    assert there.all() == here.all()


def test_a_server_that_moves_takes_its_records_along_and_leaves_what_it_had_sent(server, served):
    here, there, elsewhere = server("mz17"), server("mz8"), server("rj12", "rj")
    here.learn(0, 10, "sent")
    here.sync()
    here.records.renew()
    here.learn(0, 10, "not-sent")
    assert served.shala("device", "move", "mz17", "--zone", "rj").returncode == 0
    enrol_online(here.records, here.line(), "mz17", "")
    here.sync()
    elsewhere.sync()
    there.sync()
    assert (len(elsewhere.visits()), len(there.visits())) == (20, 10)
    assert elsewhere.all() == here.all()


def move(served: ZoneCentre, server: Server, zone: str) -> None:
    assert served.shala("device", "move", "mz17", "--zone", zone).returncode == 0
    enrol_online(server.records, server.line(), "mz17", "")


def ids(server: Server) -> set[bytes]:
    """Return the segments on the disk of a server, whatever their zone is."""
    with sqlite3.connect(server.folder / "records.sqlite") as db:
        return {bytes(id_) for (id_,) in db.execute("SELECT id FROM segment")}


def test_a_server_that_moves_forgets_what_others_wrote_in_the_zone_that_it_leaves(server, served):
    here, there = server("mz17"), server("mz8")
    there.learn(0, 10, "of-mz8")
    here.learn(0, 10, "of-mz17")
    for one in (there, here, there, here):
        one.sync()
    rows = served.query('SELECT id FROM segment WHERE "key" = ?', bytes(here.key.verify_key))
    own = {bytes(id_) for (id_,) in rows}
    assert own < ids(here)
    move(served, here, "rj")
    assert ids(here) == own
    with sqlite3.connect(here.folder / "records.sqlite") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    found = (here.folder / "records.sqlite").read_bytes()
    assert (b"of-mz17" in found, b"of-mz8" in found) == (True, False)


def test_a_server_that_moves_keeps_what_its_centre_is_not_known_to_have(server, served):
    here, there = server("mz17"), server("mz8")
    here.sync()
    there.learn(0, 10, "on-a-disk")
    there.records.cut(there.key)
    (offer,) = there.records.offers(9)
    carried = there.records.read(offer.id)
    here.records.accept(carried.data, from_centre=False)
    move(served, here, "rj")
    here.sync()
    assert ids(here) == {offer.id}
    move(served, here, "mz")
    here.sync()
    assert len(here.visits()) == 10


def test_a_server_that_moves_and_comes_back_has_everything_again(server, served):
    here, there = server("mz17"), server("mz8")
    there.learn(0, 10, "of-mz8")
    here.learn(0, 10, "of-mz17")
    for one in (there, here, there, here):
        one.sync()
    for zone in ("rj", "mz"):
        move(served, here, zone)
        here.sync()
    there.sync()
    assert len(here.visits()) == 20
    assert there.all() == here.all()
    assert not any(record.conflict for record in here.records.records())


def test_a_server_that_moved_begins_with_an_empty_store_and_gets_the_records_of_its_zone(server, served):
    """As docs/privacy.md says, where nothing of the former zone is to stay."""
    here, elsewhere = server("mz17"), server("rj12", "rj")
    here.learn(0, 10, "a")
    here.sync()
    move(served, here, "rj")
    here.sync()
    here.records.close()
    (here.folder / "records.sqlite").rename(here.folder / "aside.sqlite")
    here.records = Records(here.folder / "records.sqlite")
    enrol_online(here.records, here.line(), "mz17", "")
    here.learn(0, 12, "a")  # its sources say again what they said, and something new
    for one in (here, elsewhere):
        one.sync()
    assert elsewhere.all() == here.all()
    assert here.visits() == sorted(f"zo/a-{n}" for n in range(12))
    assert not any(record.conflict for record in here.records.records())


def test_a_server_that_was_moved_by_mistake_before_its_first_sync_is_let_in_when_it_is_moved_back(
    server, served
):
    here, there = server("mz17"), server("mz8")
    here.learn(0, 10, "a")
    assert served.shala("device", "move", "mz17", "--zone", "rj").returncode == 0
    assert "has this server in the zone 'rj', this is 'mz'" in here.sync().reason
    assert served.shala("device", "move", "mz17", "--zone", "mz").returncode == 0
    enrol_online(here.records, here.line(), "mz17", "")
    here.sync()
    there.sync()
    assert there.visits() == here.visits()


def test_what_a_restored_centre_has_forgotten_to_have_said_its_devices_tell_it(server, served):
    here, there = server("mz17"), server("mz8")
    here.learn(0, 10, "a")
    for one in (here, there):
        one.sync()
    backup = served.backup()
    late = server("mz9")
    late.learn(0, 10, "late")
    late.sync()
    assert served.shala("device", "revoke", "mz8", "--reason", "stolen").returncode == 0
    for visit in ("zo/a-3", "zo/late-3"):
        assert served.shala("zone", "redact", "mz", "activity", visit, "--yes").returncode == 0
    here.sync()
    served.restore(backup)
    assert here.sync().outcome == "done"
    assert "stolen" in there.sync().reason
    assert late.sync().outcome == "done"
    assert len(late.visits()) == 18
    assert late.all() == here.all()
    for _ in range(2):
        here.sync()
    assert here.sync().requests == 1


def test_a_restored_centre_that_others_tell_of_a_revocation_hears_of_the_device_that_it_was_taken_back(
    server, served
):
    here, there = server("mz17"), server("mz8")
    for one in (here, there):
        one.sync()
    backup = served.backup()
    assert served.shala("device", "revoke", "mz17", "--reason", "stolen").returncode == 0
    there.sync()
    enrol_online(here.records, here.line(), "mz17", served.token("mz"))
    here.learn(0, 10, "a")
    served.restore(backup)
    there.sync()
    assert here.sync().outcome == "done"
    there.sync()
    assert there.all() == here.all()


def test_a_restored_centre_that_has_forgotten_a_device_takes_it_in_by_its_own_word(server, served):
    here = server("mz17")
    here.learn(0, 10, "a")
    here.sync()
    backup = served.backup()
    late = server("mz9")
    late.learn(0, 10, "late")
    late.sync()
    served.restore(backup)
    assert late.sync().outcome == "done"
    here.sync()
    assert late.all() == here.all()
    assert "mz9" in told(served)


def test_a_restored_centre_does_not_take_in_a_forgotten_device_that_was_revoked(server, served):
    here = server("mz17")
    backup = served.backup()
    late = server("mz9")
    late.sync()
    here.sync()
    assert served.shala("device", "revoke", "mz9", "--reason", "stolen").returncode == 0
    here.sync()
    served.restore(backup)
    here.sync()
    assert "403" in late.sync().reason


def test_a_restored_centre_does_not_read_a_device_the_zone_that_it_has_left(server, served):
    moved, left = server("mz17"), server("mz8")
    for one in (moved, left):
        one.sync()
    backup = served.backup()
    assert served.shala("device", "move", "mz17", "--zone", "rj").returncode == 0
    enrol_online(moved.records, moved.line(), "mz17", "")
    moved.learn(0, 10, "a")
    moved.sync()
    served.restore(backup)
    left.learn(0, 10, "left")
    left.sync()
    done = moved.sync()
    assert (done.outcome, done.reason, done.segments_down, done.refused) == ("done", "", 0, [])
    assert {visit for visit in moved.visits() if "left" in visit} == set()
    assert served.query("SELECT z.name FROM device d JOIN zone z ON z.id = d.zone WHERE d.name = 'mz17'") == [
        ("rj",)
    ]


def test_what_was_moved_away_is_whole_although_the_disk_of_the_centre_has_hurt_it(server, served):
    here, there = server("mz17"), server("mz8")
    for first in (0, 10):
        here.learn(first, 10, "a")
        here.sync()
    there.sync()
    ids = [bytes(id_) for (id_,) in served.query('SELECT id FROM segment ORDER BY "first"')]
    hurt(served, ids[-1])
    with served.zones() as zones:
        with zones.database.reading() as session:
            zone = zones.zone(session, "mz")
        assert zones.look_through(zone) == 1
    assert served.shala("device", "revoke", "mz17", "--reason", "moved").returncode == 0
    for _ in range(2):
        there.sync()
    assert len(there.visits()) == 20
    assert "damaged on the disk" not in told(served)


def test_what_is_known_to_be_damaged_is_not_sent(server, served):
    here = server("mz17")
    here.learn(0, 10, "a")
    here.sync()
    ((id_,),) = served.query("SELECT id FROM segment")
    hurt(served, bytes(id_))
    with served.zones() as zones:
        with zones.database.reading() as session:
            zone = zones.zone(session, "mz")
        zones.look_through(zone)
    new = server("mz9")
    assert [one.reason for one in new.sync().refused if "404" in one.reason]


def test_a_segment_that_stays_damaged_has_the_records_made_anew_once(server, served):
    here = server("mz17")
    here.learn(0, 10, "a")
    here.sync()
    ((id_,),) = served.query("SELECT id FROM segment")
    new = server("mz9")
    hurt(served, bytes(id_))
    for _ in range(3):
        new.sync()
    served.query("INSERT INTO record (zone, type, key, log, counter, depth, at, schema, conflict)"
        " SELECT id, 'activity', 'mark', 1, 1, 1, 1, 1, 0 FROM zone WHERE name = 'mz'")  # fmt: skip
    new.sync()
    assert served.query("SELECT 1 FROM record WHERE key = 'mark'")


def test_a_changed_disk_gets_its_name_back_when_the_old_one_is_heard_to_be_revoked(server, served):
    old, other = server("mz17"), server("mz8")
    for one in (old, other):
        one.sync()
    backup = served.backup()
    new = server("mz9")
    new.records, new.key = Records(new.folder / "new.sqlite"), SigningKey.generate()
    enrol_online(new.records, new.line(), "mz17", served.token("mz", "mz17", replaces=True))
    other.sync()
    served.restore(backup)
    assert new.sync().outcome == "done"
    other.sync()
    names = "SELECT name FROM device WHERE id = ?"
    assert served.query(names, hashlib.sha256(bytes(new.key.verify_key)).digest()) == [("mz17",)]


def test_nobody_is_taken_in_by_a_word_that_speaks_of_another(server, served):
    here, stranger = server("mz17"), server("mz9")
    word = here.records.own_enrolment()
    served.query("DELETE FROM device WHERE name = 'mz9'")
    stranger.records.own_enrolment = lambda: word
    assert "not enrolled" in stranger.sync().reason


@pytest.mark.parametrize("first", ["mz8", "rj12"])
def test_a_restored_centre_lets_in_a_device_that_had_moved_away_and_back(server, served, first):
    moved, others = server("mz17", "rj"), {"mz8": server("mz8"), "rj12": server("rj12", "rj")}
    for one in (moved, *others.values()):
        one.sync()
    backup = served.backup()
    for zone in ("mz", "rj"):
        assert served.shala("device", "move", "mz17", "--zone", zone).returncode == 0
        enrol_online(moved.records, moved.line(), "mz17", "")
        for one in (moved, *others.values()):
            one.sync()
    served.restore(backup)
    others.pop(first).sync()
    for one in (*others.values(), moved):
        assert one.sync().outcome == "done"


def test_a_restored_centre_hears_of_a_revocation_from_who_has_moved_away_since(server, served):
    witness, thief = server("mz17"), server("mz8")
    backup = served.backup()
    assert served.shala("device", "revoke", "mz8", "--reason", "stolen").returncode == 0
    witness.sync()
    served.restore(backup)
    assert served.shala("device", "move", "mz17", "--zone", "rj").returncode == 0
    enrol_online(witness.records, witness.line(), "mz17", "")
    assert witness.sync().outcome == "done"
    assert "stolen" in thief.sync().reason
    assert witness.sync().requests == 1


def test_what_a_carrier_has_left_out_of_a_segment_comes_from_the_centre(server, served):
    here, there = server("mz17"), server("mz8")
    here.learn(0, 10, "a")
    here.sync()
    ((data,),) = served.query("SELECT data FROM segment")
    there.records.accept(redact(read_segment(bytes(data)), [3, 4]).data, from_centre=False)
    assert there.sync().outcome == "done"
    assert there.all() == here.all()
    assert there.sync().requests == 1


def _carried(here: Device, there: Device, *left_out: int) -> bytes:
    """Bring what is new of one server to another, entries left out; return it whole."""
    here.records.cut(here.key)
    (offer,) = here.records.offers(9)
    segment = here.records.read(offer.id)
    assert segment is not None
    there.records.accept(redact(segment, left_out).data, from_centre=False)
    return segment.data


def test_what_a_carrier_has_left_out_comes_as_soon_as_its_author_has_synced(server, served):
    here, there = server("mz17"), server("mz8")
    here.learn(0, 10, "a")
    _carried(here, there, 3, 4)
    assert there.sync().outcome == "partly"
    here.sync()
    assert there.sync().outcome == "done"
    assert there.all() == here.all()
    assert there.sync().requests == 1


def test_what_the_centre_did_not_have_when_it_was_asked_is_offered_when_it_is_whole(server, served):
    here, there = server("mz17"), server("mz8")
    here.learn(0, 10, "a")
    whole = _carried(here, there, 3, 4)
    assert there.sync().outcome == "partly"
    there.records.accept(whole, from_centre=False)
    assert there.sync().segments_up == 1
    assert served.query("SELECT count(*) FROM segment") == [(1,)]


def test_what_entries_were_left_out_of_at_the_centre_comes_back_from_its_author(server, served, monkeypatch):
    monkeypatch.setattr("shala_agent.sync.ASK_AGAIN", -1)  # instead of a day
    here, there = server("mz17"), server("mz8")
    here.learn(0, 10, "a")
    here.sync()
    ((id_, data),) = served.query("SELECT id, data FROM segment")
    gaps = redact(read_segment(bytes(data)), [3]).data
    served.query("UPDATE segment SET data = ? WHERE id = ?", gaps, bytes(id_))
    with served.zones() as zones:
        with zones.database.reading() as session:
            zone = zones.zone(session, "mz")
        assert zones.look_through(zone) == 1
    assert there.sync().outcome == "partly"
    here.learn(10, 11, "b")
    here.sync()
    assert served.query("SELECT count(*) FROM segment WHERE held IS NULL") == [(2,)]
    assert there.sync().outcome == "done"
    assert there.visits() == here.visits()


def test_what_was_forgotten_only_until_a_backup_was_restored_comes_back_to_all(server, served):
    here, there = server("mz17"), server("mz8")
    here.learn(0, 10, "a")
    here.sync()
    backup = served.backup()
    assert served.shala("zone", "redact", "mz", "activity", "zo/a-3", "--yes").returncode == 0
    broken = Broken(f"http://127.0.0.1:{served.port}", there.key, at="get")
    ((id_, data),) = served.query("SELECT id, data FROM segment")
    there.records.accept(bytes(data), from_centre=True)  # and the line breaks before it hears why
    assert there.records.offer(bytes(id_)) is None
    served.restore(backup)
    assert sync(there.records, broken, there.folder / "parts").outcome == "partly"
    assert there.sync().outcome == "done"
    assert there.visits() == here.visits()


def test_what_the_disk_of_the_centre_has_hurt_comes_back_from_whoever_has_it(server, served, monkeypatch):
    monkeypatch.setattr("shala_agent.sync.ASK_AGAIN", -1)  # instead of a day
    here, there = server("mz17"), server("mz8")
    here.learn(0, 10, "a")
    for one in (here, there):
        one.sync()
    ((id_,),) = served.query("SELECT id FROM segment")
    hurt(served, bytes(id_))
    new = server("mz9")
    assert new.sync().outcome == "partly"
    new.sync()  # and tells the centre of it
    assert "damaged on the disk" in told(served)
    done = there.sync()
    assert (done.outcome, done.segments_up, there.sync().requests) == ("done", 1, 1)
    assert "damaged on the disk" not in told(served)
    here.learn(10, 1, "a")
    here.sync()
    assert new.sync().outcome == "done"
    assert new.all() == here.all()
    assert new.sync().requests == 1


def test_what_is_forgotten_is_in_no_file_of_the_centre_when_the_operator_is_told_so(server, served):
    here, mark = server("mz17"), "Zuanzualkimi"
    for name in (mark, f"{mark} Sailo"):  # the record has been another one before
        here.records.write([Change("account", "zk", {"first_name": name * 3})], at=1)
        here.sync()
    if served.postgres is not None:
        pytest.skip("its VACUUM sees to it in its time")
    assert any(mark.encode() in path.read_bytes() for path in served.folder.iterdir())
    assert served.shala("zone", "redact", "mz", "account", "zk", "--yes").returncode == 0
    assert [path.name for path in served.folder.iterdir() if mark.encode() in path.read_bytes()] == []


def test_a_source_that_goes_on_to_name_who_was_forgotten_is_heard_again_and_no_name_is_kept_till_then(
    server, served
):
    here, says = server("mz17"), [Change("account", "zk", {"first_name": "Zuanzualkimi"})]
    here.records.write(says, at=1, source="users")
    here.sync()
    assert served.shala("zone", "redact", "mz", "account", "zk", "--yes").returncode == 0
    here.sync()
    assert here.records.told("users", "account", "zk") is None
    here.records.write([*says, Change("progress", "zk/x", {"n": 1})], at=2, source="users")
    assert [(one.type, one.waits) for one in here.records.records()] == [
        ("account", None),
        ("progress", None),
    ]


@dataclass
class Broken(Centre):
    """A line that breaks after one kind of request has come through."""

    at: str = ""

    def open(self, request):
        return self._cut("open", super().open(request))

    def put(self, id_, size, offset, part):
        return self._cut("put", super().put(id_, size, offset, part))

    def get(self, id_, offset):
        return self._cut("get", super().get(id_, offset))

    def _cut(self, what, answer):
        if what == self.at:
            raise CentreSilent("the line broke")
        return answer


def test_what_the_centre_did_not_want_is_offered_again_when_it_has_gone_back_to_a_backup(server, served):
    here, there = server("mz17"), server("mz8")
    backup = served.backup()
    there.learn(1, 5, "b")
    there.sync()
    here.learn(1, 5, "a")
    for at in ("put", "get", "open"):
        if at == "open":  # the answer that says so is lost
            served.restore(backup)
        broken = Broken(f"http://127.0.0.1:{served.port}", here.key, at=at)
        assert sync(here.records, broken, here.folder / "parts").outcome in ("partly", "silent")
    here.sync()
    there.sync()
    here.sync()
    assert there.all() == here.all()
    assert len(there.visits()) == 10


def test_what_came_before_a_cut_is_given_to_a_centre_that_has_gone_back_to_before_it(
    server, served, monkeypatch
):
    here, there = server("mz17"), server("mz8")
    for one in (here, there, there, here):
        one.sync()
    backup = served.backup()
    for first, author in ((1, "a"), (100, "b")):
        here.learn(first, 10, author)
        here.sync()
    fetch, pieces = sync_module._Run._fetch, iter([True])

    def cut(run, id_: str, size: int) -> None:
        if not next(pieces, False):
            raise CentreSilent("the line is cut")
        fetch(run, id_, size)

    with monkeypatch.context() as patch:
        patch.setattr(sync_module._Run, "_fetch", cut)
        there.sync()
    assert len(there.visits()) == 10
    served.restore(backup)
    there.sync()
    third = server("mz9")
    third.sync()
    assert third.visits() == there.visits()


def test_who_only_uploads_to_a_centre_that_has_gone_back_to_a_backup_gives_it_what_it_lacks(server, served):
    here, there = server("mz17"), server("mz8")
    here.learn(1, 5, "a")
    for one in (here, there, here):
        one.sync()
    backup = served.backup()
    here.learn(10, 5, "b")
    for one in (here, there, here):
        one.sync()
    served.restore(backup)
    result = sync(here.records, here.line(), here.folder / "parts", upload_only=True)
    assert (result.outcome, result.records_up) == ("done", 5)
    third = server("mz9")
    third.sync()
    assert third.visits() == here.visits()


def test_the_centre_tells_who_has_passed_what_he_could_not_have(server, served, monkeypatch):
    here, there = server("mz17"), server("mz8")
    here.learn(1, 3, "a")
    here.sync()

    def nothing(_run, _id: bytes, _path: Path) -> None:
        raise SegmentRefused("it is cut")

    with monkeypatch.context() as patch:
        patch.setattr(sync_module._Run, "_get", nothing)
        assert there.sync().outcome == "partly"
    there.sync()
    status = json.loads(served.shala("zone", "status", "mz", "--json").stdout)
    lags = {lag["name"]: lag["left_out"] for lag in status["zones"][0]["devices"]}
    assert lags == {"mz17": 0, "mz8": 1}


def test_after_both_passes_of_a_sync_nobody_is_behind_and_after_the_first_who_has_to_fetch(server, served):
    here, there = server("mz17"), server("mz8")
    here.learn(1, 3, "a")

    def behind() -> str:
        return served.shala("zone", "status", "mz").stdout.splitlines()[-1].partition(".")[0]

    for one in (here, there):
        sync(one.records, one.line(), one.folder / "parts", upload_only=True)
    assert behind() == "1 of 2 devices behind"
    for one in (here, there):
        one.sync()
    assert behind() == "0 of 2 devices behind, 1 to confirm with the next sync what is there"


def test_who_only_uploads_has_still_to_be_told_of_a_redaction(server, served):
    here, there = server("mz17"), server("mz8")
    here.learn(1, 1, "a")
    for one in (here, there):
        one.sync()

    def told() -> list[int]:
        found = json.loads(served.shala("zone", "status", "mz", "--json").stdout)["zones"][0]["devices"]
        return [lag["to_be_told"] for lag in found]

    assert served.shala("zone", "redact", "mz", "activity", "zo/a-1", "--yes").returncode == 0
    sync(there.records, there.line(), there.folder / "parts", upload_only=True)
    assert (told(), len(there.visits())) == ([1, 1], 1)
    there.sync()
    there.sync()
    assert (told(), len(there.visits())) == ([1, 0], 0)


def test_an_entry_nested_without_bottom_ends_nobodys_sync(server, join):
    evil, hill, lake = join("evil"), server("mz17"), server("mz8")
    evil.open()
    plain = encode_entry(Entry("account", "x", 1, 1, 1, "{}"))
    first, previous = 1, NONE
    for depth in (40, 900, 960, 3000):
        entry = b"\x98" + plain[1:] + b"\x91" * depth + b"\x00"
        segment = make_segment(evil.key, "mz", evil.records.epoch, first, previous, [entry])
        assert evil.put(segment.data).status == 200
        first, previous = first + 1, segment.id
    hill.learn(1, 3, "a")
    assert [one.sync().outcome for one in (hill, lake)] == ["done", "done"]
    assert lake.visits() == hill.visits()


def lie(evil: Device, victim: Server, depth: int) -> None:
    """Say to have seen what another one has not written yet."""
    evil.open()
    entry = Entry("account", "zo", 1, depth, 0, '{"first_name":"evil"}', {victim.records.log: 1 << 52})
    evil.put(make_segment(evil.key, "mz", evil.records.epoch, 1, NONE, [encode_entry(entry)]).data)


def test_nobody_undoes_what_another_one_has_yet_to_write(server, join):
    evil, victim, other = join("evil"), server("mz17"), server("mz8")
    victim.records.write([Change("account", "zo", {"first_name": "one"})], at=1)
    victim.sync()
    lie(evil, victim, depth=2)
    victim.sync()
    victim.records.write([Change("account", "zo", {"first_name": "two"})], at=5)
    for one in (victim, other):
        one.sync()
        found = one.records.record("account", "zo")
        assert (found.value, found.conflict) == ({"first_name": "two"}, False)


def test_who_goes_on_from_a_lie_does_not_repeat_it(server, join):
    evil, victim, other = join("evil"), server("mz17"), server("mz8")
    victim.sync()
    lie(evil, victim, depth=1)
    other.sync()
    other.records.write([Change("account", "zo", {"first_name": "other"})], at=5)
    other.sync()
    victim.sync()
    victim.records.write([Change("account", "zo", {"first_name": "two"})], at=5)
    for one in (victim, other):
        one.sync()
        assert one.records.record("account", "zo").value == {"first_name": "two"}
