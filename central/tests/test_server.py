"""The server of zone sync over real HTTP on loopback, on SQLite and on PostgreSQL."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import msgspec
import pytest
from nacl.signing import SigningKey
from shala_agent import membership, wire
from shala_agent.segment import Entry, Segment, encode_entry, make_segment, read_segment, redact
from shala_central import arrivals, server, sessions
from shala_central import zones as zones_module
from zone_world import NONE, Device, account, progress, request, whole_of


def chain(device: Device, number: int) -> list[bytes]:
    """Return so many segments that follow one another."""
    made, previous = [], NONE
    for first in range(1, number + 1):
        made.append(whole_of(device, first, previous, noise=2000))
        previous = read_segment(made[-1]).id
    return made


def entry_of(data: bytes) -> Entry:
    (raw,) = read_segment(data).entries
    return msgspec.msgpack.decode(raw, type=Entry)


def kept(centre) -> int:
    return centre.query("SELECT COUNT(*) FROM segment")[0][0]


# -- the whole flow ------------------------------------------------------------------------------------------


def test_what_one_server_wrote_is_on_the_other_of_its_zone(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.write(account("zo"), progress("zo", 7))
    aizawl.sync()
    lunglei.sync()
    assert (
        lunglei.values()
        == aizawl.values()
        == {
            ("account", "zo"): {"first_name": "Zo"},
            ("progress", "zo/geometry"): {"visited": 7},
        }
    )


def test_another_zone_sees_nothing_of_it(served, join):
    aizawl, jaipur = join("2031017-mz17"), join("1031001-rj1", "rj")
    aizawl.write(account("zo"))
    aizawl.sync()
    jaipur.sync()
    (data,) = [bytes(row[0]) for row in served.query("SELECT data FROM segment")]
    assert jaipur.values() == {}
    assert jaipur.get(read_segment(data).id.hex()).status == 404


def test_a_sync_without_news_is_one_small_request(served, join):
    aizawl = join()
    aizawl.write(account("zo"))
    aizawl.sync()
    aizawl.sync()
    said = aizawl.open()
    assert (said.wanted, said.items, said.more, said.cursor) == ([], [], False, None)
    answer = aizawl.send("POST", "/v1/sync", msgspec.json.encode(aizawl.sync_request()))
    sent = len(msgspec.json.encode(aizawl.sync_request()))
    assert len(answer.body) + sent < 400


def test_the_centre_applies_what_it_relays(served, join):
    aizawl = join()
    aizawl.write(account("zo"))
    aizawl.sync()
    with served.zones() as zones, zones.database.reading() as session:
        zone = zones.zone(session, "mz")
        record = zones.store(session, zone.id, "mz").tables.record("account", "zo")
    assert record is not None
    assert record.value == {"first_name": "Zo"}


def test_types_that_the_centre_does_not_know_are_relayed(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    entry = encode_entry(Entry("hologram", "zo/1", 9, 1, 0, '{"beam":1}'))
    segment = make_segment(aizawl.key, "mz", aizawl.records.epoch, 1, NONE, [entry])
    aizawl.open()
    assert aizawl.put(segment.data).read(wire.Receipt).whole
    lunglei.sync()
    assert lunglei.get(segment.id.hex()).body == segment.data


def test_an_answer_names_at_most_a_thousand_items_and_says_that_there_is_more(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    lunglei.sync()
    with served.zones() as zones, zones.database.writing() as session:
        zone = zones.zone(session, "mz")
        for number in range(1005):
            arrivals.append(session, zone.id, "segment", number.to_bytes(32))
    first = lunglei.open()
    assert (len(first.items), first.more) == (1000, True)
    lunglei.cursor = first.cursor
    second = lunglei.open()
    assert (len(second.items), second.more) == (5, False)
    assert aizawl.open().more


# -- who speaks ----------------------------------------------------------------------------------------------


def test_a_replayed_request_learns_nothing(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    lunglei.write(account("zo"))
    lunglei.sync()
    body = msgspec.json.encode(aizawl.sync_request())
    first = aizawl.send("POST", "/v1/sync", body).read(wire.SyncAnswer)
    assert first.items
    at_once = aizawl.send("POST", "/v1/sync", body)
    assert at_once.json == {"nonce": first.nonce, "restart": True}
    aizawl.open()
    later = aizawl.send("POST", "/v1/sync", body)
    assert later.json == {"fork": True, "number": 2}


@pytest.mark.parametrize("what", ["another key", "another body", "another path", "no signature", "no device"])
def test_a_request_that_its_device_has_not_signed_is_refused(served, join, what):
    aizawl = join()
    body = msgspec.json.encode(aizawl.sync_request())
    text = wire.signed_text("POST", "/v1/enrol" if what == "another path" else "/v1/sync", "", 0, body)
    key = SigningKey.generate() if what == "another key" else aizawl.key
    headers = {wire.DEVICE_HEADER: aizawl.id, wire.SIGNATURE_HEADER: wire.sign(key, text)}
    if what.startswith("no "):
        del headers[wire.SIGNATURE_HEADER if what == "no signature" else wire.DEVICE_HEADER]
    answer = request(served.port, "POST", "/v1/sync", body + b" " * (what == "another body"), headers)
    assert answer.status == 401
    assert answer.json["error"]


def test_a_device_that_is_not_enrolled_is_refused(served, tmp_path):
    stranger = Device("2031017-mz17", tmp_path / "stranger", served)
    request_ = wire.SyncRequest(epoch=1, counter=0, number=1)
    answer = stranger.send("POST", "/v1/sync", msgspec.json.encode(request_))
    assert answer.status == 403
    assert "shala device create" in answer.json["error"]


def test_the_session_of_one_device_is_of_no_use_to_another(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.open()
    lunglei.session = aizawl.session
    assert lunglei.put(whole_of(lunglei)).status == 401
    assert kept(served) == 0


def test_a_session_ends_after_an_hour(served, join, monkeypatch):
    aizawl = join()
    aizawl.open()
    at = sessions.now()
    monkeypatch.setattr(sessions, "now", lambda: at + 3599)
    assert aizawl.put(whole_of(aizawl)).status == 200
    monkeypatch.setattr(sessions, "now", lambda: at + 3601)
    assert aizawl.put(whole_of(aizawl)).status == 401


def test_a_revoked_device_is_refused_and_what_it_sent_before_counts(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.write(account("zo"))
    aizawl.sync()
    aizawl.open()
    assert served.shala("device", "revoke", aizawl.name, "--reason", "stolen").returncode == 0
    answer = aizawl.put(whole_of(aizawl, 2))
    assert (answer.status, "stolen" in answer.json["error"]) == (403, True)
    assert aizawl.send("POST", "/v1/sync", msgspec.json.encode(aizawl.sync_request())).status == 403
    lunglei.sync()
    assert lunglei.values() == {("account", "zo"): {"first_name": "Zo"}}


def test_what_a_revoked_device_wrote_later_is_kept_but_does_not_count(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.write(account("zo"))
    aizawl.sync()
    served.shala("device", "revoke", aizawl.name)
    aizawl.write(account("late"))
    *_, late = aizawl.segments()
    lunglei.open()
    assert lunglei.put(late).read(wire.Receipt).whole  # a neighbour relays it in good faith
    lunglei.sync()
    assert ("account", "late") not in lunglei.values()
    assert served.query("SELECT held FROM segment WHERE held IS NOT NULL")


def test_what_a_thief_signs_below_the_cut_off_of_a_revoked_device_does_not_count(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.open()
    honest = chain(aizawl, 3)
    for data in honest:
        aizawl.put(data)
    served.shala("device", "revoke", aizawl.name)
    lunglei.open()
    for data in chain(aizawl, 3):
        assert lunglei.put(data).read(wire.Receipt).whole
    assert served.query("SELECT COUNT(*) FROM segment WHERE held IS NOT NULL")[0][0] == 3
    lunglei.sync()
    values = {value["first_name"] for value in lunglei.values().values()}
    assert len(values) == 3
    assert values == {msgspec.json.decode(entry_of(data).value)["first_name"] for data in honest}
    assert not served.query("SELECT 1 FROM fork")


def test_a_device_of_many_logs_is_revoked_in_several_statements(served, join, monkeypatch):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.open()
    for epoch in range(7):
        entry = encode_entry(Entry("account", f"user{epoch}", 1, 1, 0, "{}"))
        aizawl.put(make_segment(aizawl.key, "mz", epoch, 1, NONE, [entry]).data)
    monkeypatch.setattr(zones_module, "MAX_ENDS", 3)
    monkeypatch.setattr(membership, "MAX_STATEMENT", 1000)
    assert served.shala("device", "revoke", aizawl.name).returncode == 0
    assert served.query("SELECT COUNT(*) FROM statement WHERE kind = 'revoke'")[0][0] == 3
    lunglei.sync()
    assert len(lunglei.values()) == 7
    assert served.query("SELECT COUNT(*) FROM record")[0][0] == 7
    lunglei.open()
    entry = encode_entry(Entry("account", "late", 1, 1, 0, "{}"))
    lunglei.put(make_segment(aizawl.key, "mz", 99, 1, NONE, [entry]).data)
    assert served.query("SELECT COUNT(*) FROM segment WHERE held IS NOT NULL")[0][0] == 1


def test_a_revocation_with_as_many_ends_as_one_may_name_is_no_larger_than_a_statement():
    logs = [f"{number:032x}" for number in range(zones_module.MAX_ENDS)]
    largest = membership.Statement(
        format=1,
        kind="revoke",
        zone="z" * 64,
        key="ab" * 32,
        generation=1 << 31,
        cut_offs=dict.fromkeys(logs, (1 << 53) - 1),
        heads={log: ["ab" * 32] for log in logs},
        reason="\U0001f600" * 500,
    )
    assert len(membership.sign_statement(SigningKey.generate(), largest)) < arrivals.MAX_STATEMENTS


def test_a_device_that_runs_wild_is_told_to_wait(zone_centre, join, monkeypatch):
    settings = msgspec.structs.replace(zone_centre.settings, requests_per_second=1)
    monkeypatch.setattr(type(zone_centre), "settings", settings)
    zone_centre.start()
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    answers = [aizawl.send("POST", "/v1/sync", b"{}").status for _ in range(20)]
    assert answers.count(429) >= 5
    assert lunglei.open().session


# -- copies and backups --------------------------------------------------------------------------------------


def copy_of(device: Device, folder: Path) -> Device:
    """Return a second server from a copy of a server's disk."""
    device.records.close()
    shutil.copytree(device.folder, folder)
    twin = Device(device.name, folder, device.centre, device.key, device.number, device.nonce, device.cursor)
    twin.session = device.session
    device.records = type(device.records)(device.folder / "records.sqlite")
    return twin


def test_two_servers_with_one_key_are_told_apart_and_keep_all_their_records(served, join, tmp_path):
    first = join()
    first.write(account("zo"))
    first.sync()
    second = copy_of(first, tmp_path / "twin")
    first.write(account("first"))
    first.sync()
    second.write(account("second"))
    assert second.sync().fork
    for device in (first, second, first):
        device.sync()
    assert (
        set(first.values())
        == set(second.values())
        == {("account", name) for name in ("zo", "first", "second")}
    )


def test_a_copy_that_shows_a_stale_nonce_is_a_fork(served, join, tmp_path):
    first = join()
    first.open()
    second = copy_of(first, tmp_path / "twin")
    first.open()
    first.open()
    second.number = first.number  # the copy has tried in vain as often as the other one has synced
    assert second.open().fork


def test_a_copy_that_has_tried_in_vain_more_often_than_the_other_one_has_synced_is_a_fork(
    served, join, tmp_path
):
    first = join()
    first.sync()
    second = copy_of(first, tmp_path / "twin")
    for _ in range(3):
        first.open()
    second.number += 50
    assert second.sync().fork
    assert "enrol that one" in served.shala("zone", "status", "mz").stdout


def test_a_request_that_comes_twice_is_no_fork_and_one_that_is_like_it_is(served, join):
    aizawl = join()
    aizawl.sync()
    aizawl.open()
    request = aizawl.sync_request()
    twice = [aizawl.send("POST", "/v1/sync", msgspec.json.encode(request)) for _ in range(2)]
    assert [answer.read(wire.SyncAnswer).restart for answer in twice] == [False, True]
    assert len({answer.read(wire.SyncAnswer).nonce for answer in twice}) == 1
    assert "spoke in its name" not in served.shala("zone", "status", "mz").stdout
    other = msgspec.structs.replace(request, counter=request.counter + 1)
    answer = aizawl.send("POST", "/v1/sync", msgspec.json.encode(other)).read(wire.SyncAnswer)
    assert answer.fork
    assert "spoke in its name" in served.shala("zone", "status", "mz").stdout


def test_answers_that_got_lost_are_no_fork(served, join):
    aizawl = join()
    for _ in range(4):
        before = aizawl.nonce
        assert not aizawl.open().fork
        aizawl.nonce = before  # the answer never came
    assert not aizawl.open().fork


def test_a_server_restored_from_a_backup_is_a_fork_by_what_the_centre_has(served, join, tmp_path):
    aizawl = join()
    aizawl.write(account("zo"))
    aizawl.sync()
    restored = copy_of(aizawl, tmp_path / "backup")
    aizawl.write(account("lost"), account("lost too"))
    aizawl.sync()
    restored.number += 50  # it has tried in vain often, so its number tells nothing
    restored.write(account("new"))
    assert restored.sync().fork
    restored.sync()
    assert {key for _, key in restored.values()} == {"zo", "lost", "lost too", "new"}


def test_a_restored_server_that_nobody_noticed_loses_nothing_either(served, join, tmp_path):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.write(account("zo"))
    aizawl.sync()
    restored = copy_of(aizawl, tmp_path / "backup")
    aizawl.write(account("lost"))
    aizawl.sync()
    restored.number += 50
    restored.write(account("new"))
    assert not restored.sync().fork  # it has written as much as it had lost
    for device in (restored, lunglei):
        device.sync()
        assert {key for _, key in device.values()} == {"zo", "lost", "new"}
    assert "its log was continued twice" in served.shala("zone", "status", "mz").stdout


def test_a_centre_restored_from_a_backup_gets_back_what_it_lost(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.write(account("before"))
    aizawl.sync()
    lunglei.sync()
    backup = served.backup()
    aizawl.write(account("after"))
    aizawl.sync()
    served.restore(backup)
    assert not aizawl.sync().fork  # it shows a nonce that the centre has given and forgotten
    lunglei.sync()
    assert {key for _, key in lunglei.values()} == {"before", "after"}
    assert "spoke in its name" not in served.shala("zone", "status", "mz").stdout


def test_what_was_uploaded_after_the_backup_in_a_session_from_before_it_comes_again(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.write(account("zo"))
    (data,) = aizawl.segments()
    aizawl.open()
    backup = served.backup()
    assert aizawl.put(data).read(wire.Receipt).whole
    served.restore(backup)
    aizawl.sync()
    lunglei.sync()
    assert lunglei.values() == {("account", "zo"): {"first_name": "Zo"}}


# -- uploads -------------------------------------------------------------------------------------------------


def test_an_upload_goes_on_in_the_middle_of_a_segment_after_a_restart(served, join):
    aizawl = join()
    data = whole_of(aizawl, noise=90_000)
    id_ = read_segment(data).id.hex()
    aizawl.open()
    assert aizawl.put(data, 0, 40_000).read(wire.Receipt) == wire.Receipt(offset=40_000)
    served.stop()
    served.start()
    assert aizawl.open([wire.Offer(id_, len(data))]).wanted == [wire.Wanted(id_, 40_000)]
    assert aizawl.put(data, 40_000).read(wire.Receipt) == wire.Receipt(offset=len(data), whole=True)
    assert served.query("SELECT COUNT(*) FROM part")[0][0] == 0


def test_a_part_at_the_wrong_place_is_answered_with_the_right_one(served, join):
    aizawl = join()
    data = whole_of(aizawl, noise=1000)
    aizawl.open()
    aizawl.put(data, 0, 400)
    for offset in (0, 300, 500):
        answer = aizawl.put(data, offset, 700)
        assert (answer.status, answer.json["offset"]) == (409, 400)
    assert aizawl.put(data, 400).read(wire.Receipt).whole


def test_a_part_of_another_size_begins_anew(served, join):
    aizawl = join()
    data = whole_of(aizawl, noise=1000)
    id_ = read_segment(data).id.hex()
    aizawl.open()
    aizawl.put(data + b"x", 0, 400, id_=id_)
    assert aizawl.open([wire.Offer(id_, len(data))]).wanted == [wire.Wanted(id_, 0)]
    assert aizawl.put(data, 400).json["offset"] == 0
    assert aizawl.put(data).read(wire.Receipt).whole


def test_only_a_few_beginnings_of_one_device_are_kept(served, join):
    aizawl = join()
    aizawl.open()
    for number in range(1, 8):
        aizawl.put(whole_of(aizawl, number, noise=500), 0, 200)
    assert served.query("SELECT COUNT(*) FROM part")[0][0] == 4


def test_the_same_segment_again_changes_nothing(served, join):
    aizawl = join()
    data = whole_of(aizawl)
    aizawl.open()
    receipts = [aizawl.put(data).read(wire.Receipt) for _ in range(3)]
    assert all(receipt.whole for receipt in receipts)
    assert kept(served) == 1
    assert served.query("SELECT COUNT(*) FROM arrival WHERE kind = 'segment'")[0][0] == 1


@pytest.mark.parametrize("place", ["magic", "header", "signature", "body", "cut", "longer", "other id"])
def test_a_damaged_segment_is_refused_for_good_and_leaves_nothing(served, join, place):
    aizawl = join()
    data = bytearray(whole_of(aizawl, noise=300))
    id_ = read_segment(bytes(data)).id.hex()
    where = {"magic": 0, "header": 30, "signature": 13 + int.from_bytes(data[9:13], "little"), "body": -50}
    if place in where:
        data[where[place]] ^= 1
    elif place == "cut":
        del data[-1]
    elif place == "longer":
        data += b"x"
    else:
        id_ = "ab" * 32
    aizawl.open()
    answer = aizawl.put(bytes(data), id_=id_)
    assert answer.status == 422
    assert answer.json["refused"]
    aizawl.put(bytes(data), 0, 200, id_=id_)
    assert aizawl.put(bytes(data), 200, id_=id_).status == 422
    assert kept(served) == 0
    assert served.query("SELECT COUNT(*) FROM part")[0][0] == 0


def test_a_segment_of_another_zone_is_refused(served, join):
    aizawl = join()
    aizawl.open()
    answer = aizawl.put(whole_of(aizawl, zone="rj"))
    assert answer.status == 422
    assert "of the zone 'rj'" in answer.json["refused"]
    assert kept(served) == 0


def test_a_segment_of_an_unknown_author_is_held_and_counts_once_he_is_enrolled(served, join, tmp_path):
    aizawl, author = join(), Device("2031019-mz19", tmp_path / "author", served)
    data = make_segment(
        author.key, "mz", 5, 1, NONE, [encode_entry(Entry("account", "zo", 1, 1, 0, '{"first_name":"Zo"}'))]
    ).data
    aizawl.open()
    assert aizawl.put(data).read(wire.Receipt).whole
    aizawl.sync()
    assert aizawl.values() == {}
    assert author.enrol(served.token("mz")).status == 200
    aizawl.sync()
    assert aizawl.values() == {("account", "zo"): {"first_name": "Zo"}}
    assert served.query("SELECT COUNT(*) FROM record")[0][0] == 1


def test_a_device_begins_only_so_many_logs(zone_centre, join):
    zone_centre.quotas = {"max_device_epochs": 3}
    zone_centre.start()
    aizawl = join()
    aizawl.open()
    entry = encode_entry(Entry("account", "zo", 1, 1, 0, "{}"))

    def begin(epoch: int, first: int = 1) -> int:
        return aizawl.put(make_segment(aizawl.key, "mz", epoch, first, NONE, [entry]).data).status

    assert [begin(epoch) for epoch in range(5)] == [200, 200, 200, 507, 507]
    assert begin(0, first=2) == 200
    assert kept(zone_centre) == 4


def test_one_bad_entry_is_quarantined_alone(served, join):
    aizawl = join()
    entries = [
        encode_entry(Entry("account", "zo", 1, 1, 0, "{}")),
        b"\xc1",
        encode_entry(Entry("account", "ma", 1, 1, 0, "[]")),
    ]
    aizawl.open()
    assert (
        aizawl.put(make_segment(aizawl.key, "mz", aizawl.records.epoch, 1, NONE, entries).data).status == 200
    )
    assert served.query("SELECT COUNT(*) FROM record")[0][0] == 1
    assert served.query("SELECT counter FROM quarantine ORDER BY counter") == [(2,), (3,)]


def test_two_servers_upload_at_once_to_two_workers_and_every_arrival_has_its_place(zone_centre, join):
    zone_centre.start_workers(2)
    devices = [join(f"20310{number}-mz{number}") for number in (17, 18, 19)]
    for device in devices:
        device.open()
    failures = []

    def upload(device: Device, segments: list[bytes]) -> None:
        for data in segments:
            receipt = device.put(data)
            if receipt.status != 200 or not receipt.json["whole"]:
                failures.append(receipt)

    threads = [threading.Thread(target=upload, args=(one, chain(one, 8))) for one in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    places = [row[0] for row in zone_centre.query("SELECT place FROM arrival ORDER BY place")]
    assert places == list(range(1, 3 + 24 + 1))
    devices[0].sync()
    assert len(devices[0].values()) == 8
    assert not zone_centre.query("SELECT 1 FROM fork")


def test_a_receipt_outlives_the_death_of_the_server(zone_centre, join):
    zone_centre.start_workers(1)
    aizawl = join()
    data = whole_of(aizawl, noise=5000)
    aizawl.open()
    aizawl.put(data, 0, 3000)
    os.kill(zone_centre._process.pid, signal.SIGKILL)
    zone_centre._process.wait()
    zone_centre.start_workers(1)
    assert aizawl.put(data, 3000).read(wire.Receipt).whole
    os.kill(zone_centre._process.pid, signal.SIGKILL)
    zone_centre._process.wait()
    assert kept(zone_centre) == 1


@pytest.mark.parametrize("zone_centre", ["sqlite"], indirect=True)
def test_the_workers_of_a_server_that_was_killed_end_too(zone_centre):
    zone_centre.start_workers(2)
    os.kill(zone_centre._process.pid, signal.SIGKILL)
    zone_centre._process.wait()
    for _ in range(200):
        try:
            request(zone_centre.port, "GET", "/v1/health")
        except ConnectionRefusedError:
            return
        except OSError:
            pass  # one is just ending
        time.sleep(0.1)
    raise AssertionError("a worker serves on")


# -- downloads -----------------------------------------------------------------------------------------------


def test_a_download_goes_on_where_it_was_cut(served, join):
    aizawl = join()
    data = whole_of(aizawl, noise=5000)
    id_ = read_segment(data).id.hex()
    aizawl.open()
    aizawl.put(data)
    rest = aizawl.get(id_, Range="bytes=4000-")
    assert (rest.status, rest.body) == (206, data[4000:])
    assert rest.headers["content-range"] == f"bytes 4000-{len(data) - 1}/{len(data)}"
    assert aizawl.get(id_, Range=f"bytes={len(data)}-").status == 416
    assert aizawl.get(id_, Range="bytes=10-19").body == data[10:20]
    for odd in ("bytes=-5", "bytes=9-3", "items=1-2", "bytes=1-2,4-5"):
        assert aizawl.get(id_, Range=odd).body == data


def test_a_redacted_entry_is_gone_from_the_centre_and_from_every_server(served, join):
    aizawl, lunglei = join("2031017-mz17"), join("2031018-mz18")
    aizawl.write(account("child", "a name that nobody may know"), account("zo"))
    aizawl.sync()
    lunglei.sync()
    done = served.shala("zone", "redact", "mz", "account", "child", "--reason", "the parents ask", "--yes")
    assert done.returncode == 0, done.stderr
    for device in (aizawl, lunglei):
        device.sync()
        assert set(device.values()) == {("account", "zo")}
    (item,) = [one for one in _everything(lunglei) if not one.statement]
    fresh = lunglei.get(item.id).body
    assert len(fresh) == item.size
    assert [entry is None for entry in read_segment(fresh).entries] == [True, False]


def two_entries(device: Device) -> Segment:
    entries = [encode_entry(Entry("account", user, 1, 1, 0, "{}")) for user in ("zo", "ma")]
    return make_segment(device.key, "mz", device.records.epoch, 1, NONE, entries)


def test_a_relay_cannot_have_entries_forgotten_by_leaving_them_out(served, join):
    author, relay = join("2031017-mz17"), join("2031018-mz18")
    segment = two_entries(author)
    hollow = redact(segment, [1, 2]).data
    for device in (author, relay):
        device.open()
    for _ in range(2):
        answer = relay.put(hollow)
        assert (answer.status, answer.json["offset"]) == (409, 0)
    relay.put(hollow, 0, 50)
    assert relay.put(hollow, 50).status == 409
    assert served.query("SELECT COUNT(*) FROM part")[0][0] == 0
    assert author.put(segment.data).read(wire.Receipt).whole
    assert served.query("SELECT COUNT(*) FROM record")[0][0] == 2


def test_a_relay_brings_what_is_left_of_a_redacted_segment(served, join):
    author, relay = join("2031017-mz17"), join("2031018-mz18")
    segment = two_entries(author)
    with served.zones() as zones, zones.database.writing() as session:
        store = zones.store(session, zones.zone(session, "mz").id, "mz")
        zones.say(session, store, "redact", segment.header.key, segment=segment.id, counters=[2])
    relay.open()
    assert relay.put(redact(segment, [1, 2]).data).status == 409
    assert relay.put(redact(segment, [2]).data).read(wire.Receipt).whole
    assert served.query("SELECT key FROM record") == [("zo",)]


def _everything(device: Device) -> list[wire.Item]:
    device.cursor = wire.Cursor()
    return device.open().items


# -- enrolment -----------------------------------------------------------------------------------------------


def test_a_token_is_good_once_but_a_lost_answer_may_be_asked_for_again(served, join, tmp_path):
    token = served.token("mz")
    aizawl, other = (Device(name, tmp_path / name, served) for name in ("2031017-mz17", "2031018-mz18"))
    assert [aizawl.enrol(token).status for _ in range(2)] == [200, 200]
    answer = other.enrol(token)
    assert (answer.status, "used already" in answer.json["error"]) == (403, True)
    assert len(served.query("SELECT 1 FROM statement")) == 1


def test_an_expired_an_unknown_and_another_servers_token_admit_nobody(served, tmp_path):
    aizawl = Device("2031017-mz17", tmp_path / "aizawl", served)
    expired = served.token("mz")
    served.query("UPDATE token SET expires = 1")
    for token, reason in ((expired, "expired"), ("ab" * 24, "not known"), ("", "names no token")):
        answer = aizawl.enrol(token)
        assert (answer.status, reason in answer.json["error"]) == (403, True)
    answer = aizawl.enrol(served.token("mz", "2031018-mz18"))
    assert (answer.status, "for the server '2031018-mz18'" in answer.json["error"]) == (403, True)
    assert served.query("SELECT COUNT(*) FROM device")[0][0] == 0


def test_an_enrolment_that_is_not_signed_by_its_key_is_refused(served, tmp_path):
    aizawl = Device("2031017-mz17", tmp_path / "aizawl", served)
    forged = msgspec.structs.replace(aizawl.enrol_request(served.token("mz")), key="ab" * 32)
    assert request(served.port, "POST", "/v1/enrol", msgspec.json.encode(forged)).status == 422


def test_a_stranger_does_not_wait_for_the_writers_nor_hold_them_up(served, tmp_path):
    aizawl = Device("2031017-mz17", tmp_path / "aizawl", served)
    with served.zones() as zones, zones.database.writing() as session:
        session.query("UPDATE zone SET created = created")
        session.query("UPDATE token SET created = created")
        assert [aizawl.enrol(token).status for token in ("ab" * 24, "")] == [403, 403]


def test_a_device_that_is_enrolled_asks_again_without_waiting_for_the_writers(served, join):
    aizawl = join()
    with served.zones() as zones, zones.database.writing() as session:
        session.query("UPDATE zone SET created = created")
        assert aizawl.enrol().status == 200


def test_an_address_that_tries_tokens_is_told_to_wait(zone_centre, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "STRANGERS_PER_SECOND", 0.1)
    zone_centre.start()
    aizawl = Device("2031017-mz17", tmp_path / "aizawl", zone_centre)
    answers = [aizawl.enrol("ab" * 24) for _ in range(2)]
    assert [answer.status for answer in answers] == [403, 429]
    assert int(answers[1].headers["retry-after"])


def test_an_enrolment_is_refused_when_it_is_longer_than_one_can_be(served):
    long = b'{"key":"' + b" " * (4 << 10)
    assert request(served.port, "POST", "/v1/enrol", long).status == 413


def test_a_server_with_a_new_disk_replaces_the_old_device_and_the_old_records_stay(served, join, tmp_path):
    old = join("2031017-mz17")
    old.write(account("zo"))
    old.sync()
    new = Device("2031017-mz17", tmp_path / "new-disk", served)
    answer = new.enrol(served.token("mz"))
    assert (answer.status, "--replace" in answer.json["error"]) == (403, True)
    assert new.enrol(served.token("mz", "2031017-mz17", replaces=True)).status == 200
    new.sync()
    assert new.values() == {("account", "zo"): {"first_name": "Zo"}}
    assert old.send("POST", "/v1/sync", msgspec.json.encode(old.sync_request())).status == 403


def test_who_replaces_a_device_is_told_at_once_what_of_it_was_cut_off(served, join, tmp_path):
    join("2031017-mz17")
    join("2031018-mz18")
    new = Device("2031017-mz17", tmp_path / "new-key", served)
    answer = new.enrol(served.token("mz", "2031017-mz17", replaces=True))
    told = [membership.decode_statement(base64.b64decode(one)) for one in answer.json["statements"]]
    assert [one.kind for one in told] == ["enrol", "revoke", "enrol"]
    assert told[0].key == told[1].key != told[2].key == new.key.verify_key.encode().hex()


def test_a_device_that_was_enrolled_anew_goes_on_in_a_new_epoch(served, join):
    aizawl = join()
    aizawl.write(account("zo"))
    aizawl.sync()
    served.shala("device", "revoke", aizawl.name)
    epoch = aizawl.records.epoch
    assert aizawl.enrol(served.token("mz")).status == 200
    assert aizawl.records.epoch != epoch
    aizawl.write(account("again"))
    assert not aizawl.sync().fork
    lunglei = join("2031018-mz18")
    lunglei.sync()
    assert set(lunglei.values()) == {("account", "zo"), ("account", "again")}


def test_a_device_that_moves_leaves_its_records_and_takes_a_copy_of_its_own(served, join):
    aizawl, lunglei, jaipur = join("2031017-mz17"), join("2031018-mz18"), join("1031001-rj1", "rj")
    aizawl.write(account("zo"))
    aizawl.sync()
    assert served.shala("device", "move", aizawl.name, "--zone", "rj").returncode == 0
    refused = aizawl.send("POST", "/v1/sync", msgspec.json.encode(aizawl.sync_request()))
    assert (refused.status, "moved to the zone 'rj'" in refused.json["error"]) == (403, True)
    assert aizawl.enrol().status == 200
    aizawl.nonce = ""
    aizawl.sync()
    lunglei.sync()
    jaipur.sync()
    assert set(lunglei.values()) == set(jaipur.values()) == {("account", "zo")}


# -- malformed input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"epoch":1,"counter":0}',
        b'{"epoch":-1,"counter":0,"number":1}',
        b'{"epoch":1e400,"counter":0,"number":1}',
        b'{"epoch":1,"counter":0,"number":9007199254740992}',
        b'{"epoch":9223372036854775808,"counter":0,"number":1}',
        b'{"epoch":1,"counter":0,"number":1,"nonce":"\\u0000"}',
        b'{"epoch":1,"counter":0,"number":1,"software":"\\ud800"}',
        b'{"epoch":1,"counter":0,"number":1,"format":2}',
        b'{"epoch":1,"counter":0,"number":1,"cursor":[5,"zz"]}',
        b'{"epoch":1,"counter":0,"number":1,"offers":[["x",1]]}',
    ],
)
def test_a_malformed_request_is_refused_and_nothing_is_noted(served, join, body):
    aizawl = join()
    answer = aizawl.send("POST", "/v1/sync", body)
    assert answer.status == 422
    assert answer.json["error"]
    assert served.query("SELECT COUNT(*) FROM contact")[0][0] == 0


def test_too_much_is_refused_before_it_is_read(served, join):
    aizawl = join()
    large = {"Content-Length": str(wire.MAX_REQUEST + 1)}
    assert aizawl.send("POST", "/v1/sync", b"{", **large).status == 413
    assert aizawl.send("POST", "/v1/enrol", b"{", **large).status == 413
    aizawl.open()
    path = f"/v1/segments/{'ab' * 32}"
    headers = {"Shala-Offset": "0", "Shala-Size": "300000", "Content-Length": "300000"}
    assert aizawl.send("PUT", path, b"x", session=aizawl.session, **headers).status == 413
    headers = {"Shala-Offset": "0", "Shala-Size": str(1 << 40)}
    assert aizawl.send("PUT", path, b"x", session=aizawl.session, **headers).status == 413


@pytest.mark.parametrize("id_", ["x", "AB" * 32, "ab" * 31, "..%2f..%2fetc", "ab" * 32 + "'--"])
def test_a_path_that_names_no_segment_is_refused(served, join, id_):
    aizawl = join()
    aizawl.open()
    assert aizawl.get(id_).status in {401, 404, 422}
    assert request(served.port, "GET", f"/v1/segments/{id_}").status in {401, 404}


@pytest.mark.parametrize(
    "headers", [{}, {"Shala-Offset": "-1", "Shala-Size": "5"}, {"Shala-Offset": "0", "Shala-Size": "٣"}]
)
def test_sizes_that_are_no_numbers_are_refused(served, join, headers):
    aizawl = join()
    aizawl.open()
    path = f"/v1/segments/{'ab' * 32}"
    named = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    assert aizawl.send("PUT", path, b"x", session=aizawl.session, **named).status == 422


def test_other_paths_and_methods_are_refused_in_the_same_form(served):
    assert request(served.port, "GET", "/v1/nothing").json["error"] == "not found"
    assert request(served.port, "DELETE", "/v1/sync").json["error"] == "method not allowed"


def test_health_tells_that_server_and_database_work(served):
    assert request(served.port, "GET", "/v1/health").json == {"status": "ok"}
