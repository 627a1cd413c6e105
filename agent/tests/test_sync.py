from __future__ import annotations

import base64
import hashlib
import itertools
import random
import socket
import subprocess
import threading
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from little_centre import LittleCentre, served
from nacl.signing import SigningKey
from shala_agent import sync as sync_module
from shala_agent import wire
from shala_agent.bandwidth import Bandwidth, rate_now
from shala_agent.centre import CentreSilent, SessionOver
from shala_agent.config import SyncConfig, WindowConfig
from shala_agent.membership import Statement, sign_statement
from shala_agent.records import Change, Records
from shala_agent.segment import read_segment, redact
from shala_agent.store import HOLLOW
from shala_agent.sync import Refused, SyncResult, last_sync, together
from zone_school import Server, server_in

NOISE = random.Random(7)

pytestmark = pytest.mark.http


@pytest.fixture
def hill(tmp_path: Path, centre: LittleCentre) -> Server:
    return server_in(tmp_path / "hill", "2031017-mz17", centre)


def much(server: Server, entries: int = 40) -> None:
    """Write what does not compress: half a megabyte in one segment."""
    noise = [Change("account", f"user{n}", {"note": NOISE.randbytes(6000).hex()}) for n in range(entries)]
    server.records.write(noise, 1000)


def test_what_one_server_writes_another_one_reads(hill: Server, lake: Server):
    hill.learn("green-apple-mz17", "unit0", "unit1", visited=3)
    up = hill.sync()
    down = lake.sync()
    assert lake.says() == hill.says()
    assert (up.outcome, up.records_up, up.lag_before.entries, up.lag_after.entries) == ("done", 3, 3, 0)
    assert (down.outcome, down.records_down, down.segments_down) == ("done", 3, 1)


def test_nothing_new_is_one_request_of_less_than_a_kilobyte(hill: Server, lake: Server, centre: LittleCentre):
    hill.learn("green-apple-mz17", "unit0")
    for server in (hill, lake, hill, lake):
        server.sync()
    centre.requests.clear()
    centre.received = centre.sent = 0
    result = hill.sync()
    assert [method for method, _, _ in centre.requests] == ["POST"]
    assert centre.received + centre.sent < 1000
    assert (result.requests, result.bytes_up, result.bytes_down) == (1, centre.received, centre.sent)


def test_a_segment_that_is_redacted_between_the_list_and_its_request_is_fetched_once(
    hill: Server, lake: Server, centre: LittleCentre
):
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    id_ = centre.arrivals[-1][0]
    whole = read_segment(centre.store.data(bytes.fromhex(id_)))
    centre.lies_about[id_] = redact(whole, [2]).data
    cut = lake.sync()
    assert cut.refused == [Refused(id_, "down", HOLLOW)]
    order = Statement(
        format=1, kind="redact", zone=centre.zone, key=whole.header.key.hex(), generation=1, segment=id_,
        counters=[2],
    )  # fmt: skip
    centre.hear(sign_statement(centre.key, order))
    done = lake.sync()
    assert (done.outcome, list(lake.says())) == ("done", ["account/green-apple-mz17"])
    assert [name for method, name, _ in centre.requests if method == "GET"] == [id_]


def test_a_hundred_new_records_cost_two_requests(hill: Server, centre: LittleCentre):
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    hill.learn("green-apple-mz17", *(f"unit{n}" for n in range(1, 101)))
    result = hill.sync()
    assert result.requests == 2
    assert result.bytes_up + result.bytes_down < 16_000


def test_an_upload_that_was_cut_goes_on_at_its_byte(hill: Server, centre: LittleCentre):
    much(hill)
    centre.cut_upload_after = 100_000
    cut = hill.sync()
    assert cut.outcome == "silent"
    assert cut.lag_after.entries == 40
    centre.requests.clear()
    hill.reopen()
    assert hill.sync().outcome == "done"
    offsets = [offset for method, _, offset in centre.requests if method == "PUT"]
    assert offsets[0] == 100_000
    assert centre.store.tables.database.query('SELECT sum("last" - "first" + 1) FROM segment')[0][0] == 40


def test_on_a_line_that_breaks_again_and_again_parts_get_smaller_until_they_fit(
    hill: Server, centre: LittleCentre
):
    much(hill)
    sizes = []
    for _ in range(3):
        hill.reopen()
        hill.sync(bandwidth=Bandwidth(lambda: 30_000), remaining=iter_time(0.5))
        sizes.append(hill.records.kept("part"))
    assert sizes == [64 << 10, 16 << 10, 16 << 10]
    hill.sync(bandwidth=Bandwidth(lambda: 30_000), remaining=iter_time(1.5))
    assert sum(len(part) for part in centre.parts.values()) >= 16 << 10


def iter_time(seconds: float):
    """Return what says how much is left of some seconds from now."""
    ends = time.monotonic() + seconds
    return lambda: ends - time.monotonic()


def test_a_download_that_was_cut_goes_on_at_its_byte(hill: Server, lake: Server, centre: LittleCentre):
    much(hill)
    hill.sync()
    centre.cut_download_after = 150_000
    assert lake.sync().outcome in ("silent", "partly")
    lake.reopen()
    centre.requests.clear()
    assert lake.sync().outcome == "done"
    assert [offset for method, _, offset in centre.requests if method == "GET"] == [150_000]
    assert lake.says() == hill.says()
    assert list(lake.parts.iterdir()) == []


def test_who_only_uploads_leaves_what_is_new_for_later_and_what_came_in_part_where_it_is(
    hill: Server, lake: Server, centre: LittleCentre
):
    much(hill)
    hill.sync()
    centre.cut_download_after = 150_000
    lake.sync()
    lake.learn("red-kite-mz18", "unit0")
    lake.reopen()
    sent = lake.sync(upload_only=True)
    assert (sent.outcome, sent.records_up, sent.records_down) == ("done", 2, 0)
    assert (sent.lag_after.entries, sent.lag_after.segments_down) == (0, 1)
    lake.reopen()
    centre.requests.clear()
    assert lake.sync().outcome == "done"
    assert [offset for method, _, offset in centre.requests if method == "GET"] == [150_000]
    assert lake.says().keys() >= hill.says().keys()


def test_a_part_that_a_power_cut_has_hurt_is_fetched_anew(hill: Server, lake: Server, centre: LittleCentre):
    much(hill)
    hill.sync()
    centre.cut_download_after = 150_000
    lake.sync()
    (part,) = lake.parts.iterdir()
    part.write_bytes(bytes(150_000))
    result = lake.sync()
    assert result.outcome == "done"
    assert lake.says() == hill.says()


def test_a_part_that_is_longer_than_the_segment_is_fetched_anew(
    hill: Server, lake: Server, centre: LittleCentre
):
    much(hill)
    hill.sync()
    centre.cut_download_after = 150_000
    lake.sync()
    (part,) = lake.parts.iterdir()
    part.write_bytes(bytes(3_000_000))
    assert lake.sync().outcome == "done"
    assert lake.says() == hill.says()


def test_a_bad_segment_is_named_and_holds_up_no_other(hill: Server, lake: Server, centre: LittleCentre):
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    hill.learn("blue-bat-mz17", "unit0")
    hill.sync()
    first = next(id_ for id_, size, _ in centre.arrivals if size)
    whole = centre.store.data(bytes.fromhex(first))
    centre.lies_about[first] = whole[:-3] + b"xxx"
    result = lake.sync()
    assert result.outcome == "partly"
    assert [refused.id for refused in result.refused] == [first]
    assert "account/blue-bat-mz17" in lake.says()
    # It costs nothing until something else is fetched, and is asked for again on another day.
    assert lake.sync().requests == 1


def hurt(server: Server, number: int = 0) -> None:
    """Flip a bit in a segment on the disk of a server, and have its records made anew when it is opened."""
    database = server.records.store.database
    rows = database.query("SELECT id, data FROM segment ORDER BY rowid")
    bad = bytearray(rows[number][1])
    bad[-10] ^= 1
    database.query("UPDATE segment SET data = ? WHERE id = ?", (bytes(bad), rows[number][0]))
    database.query("UPDATE meta SET value = x'00' WHERE name = 'types'")


def test_a_segment_that_the_disk_has_hurt_comes_again(hill: Server, lake: Server, centre: LittleCentre):
    for user in ("green-apple-mz17", "blue-bat-mz17"):
        hill.learn(user, "unit0")
        hill.sync()
    for server in (lake, hill):
        server.sync()
        epoch = server.records.epoch
        hurt(server)
        server.reopen()
        assert "account/green-apple-mz17" not in server.says()
        assert "account/blue-bat-mz17" in server.says()
        assert server.records.damaged() == 1
        assert server.sync().outcome == "done"
        assert "account/green-apple-mz17" in server.says()
        assert (server.records.damaged(), server.records.epoch) == (0, epoch)


def test_what_is_made_of_the_records_hears_of_a_hurt_segment_and_of_a_mended_one(hill: Server, lake: Server):
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    lake.sync()
    versions = [lake.records.version]
    hurt(lake)
    lake.reopen()
    versions.append(lake.records.version)
    lake.sync()
    versions.append(lake.records.version)
    assert len(set(versions)) == 3


def test_of_two_talks_in_one_round_each_names_what_was_refused():
    one, both, other = (Refused(letter, "up", "not ours") for letter in "abc")
    joined = together(SyncResult(refused=[one, both]), SyncResult(refused=[both, other]))
    assert joined.refused == [one, both, other]


def test_a_hurt_segment_that_nobody_else_has_is_named_and_holds_up_nothing(hill: Server, lake: Server):
    for user in ("green-apple-mz17", "blue-bat-mz17"):
        hill.learn(user, "unit0")
        hill.records.cut(hill.key)
    hurt(hill)
    result = hill.sync()
    assert (result.outcome, result.records_up) == ("partly", 2)
    assert "damaged on the disk here" in result.refused[0].reason
    hill.learn("red-kite-mz17", "unit0")
    hill.reopen()
    assert hill.sync().records_up == 2
    lake.sync()
    assert {"account/blue-bat-mz17", "account/red-kite-mz17"} <= set(lake.says())
    assert hill.records.damaged() == 1


def test_what_could_not_be_had_is_asked_for_again_on_another_day(
    hill: Server, lake: Server, centre: LittleCentre, monkeypatch
):
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    first = next(id_ for id_, size, _ in centre.arrivals if size)
    centre.lies_about[first] = b"nothing"
    lake.sync()
    centre.lies_about.clear()
    later = time.time() + 2 * 86_400
    monkeypatch.setattr(sync_module.time, "time", lambda: later)
    lake.learn("red-kite-mz18", "unit0")
    assert lake.sync().outcome == "done"
    assert "progress/green-apple-mz17/unit0" in lake.says()


def test_another_segment_than_was_asked_for_is_not_taken(hill: Server, lake: Server, centre: LittleCentre):
    for user in ("green-apple-mz17", "blue-bat-mz17"):
        hill.learn(user, "unit0")
        hill.sync()
    first, second = (id_ for id_, size, _ in centre.arrivals if size)
    centre.lies_about[first] = centre.store.data(bytes.fromhex(second))
    result = lake.sync()
    assert "another segment came" in result.refused[0].reason


def test_a_forged_statement_is_named_and_the_rest_goes_on(hill: Server, lake: Server, centre: LittleCentre):
    centre.say_wrongly()
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    result = lake.sync()
    assert "not signed by this centre" in result.refused[0].reason
    assert lake.says() == hill.says()


def test_a_statement_that_was_refused_is_never_passed(hill: Server, lake: Server, centre: LittleCentre):
    centre.page = 2
    forged = centre.say_wrongly()
    place = len(centre.arrivals)
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    for _ in range(2):
        result = lake.sync()
        assert [refused.id for refused in result.refused] == [forged]
        assert result.outcome == "partly"
        assert lake.records.kept("cursor_place") == place - 1
    assert lake.says() == hill.says()


def test_a_list_that_is_not_what_its_digest_says_is_read_again(
    hill: Server, lake: Server, centre: LittleCentre
):
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    centre.list_digest = "f" * 16
    result = lake.sync()
    assert "not what its digest says" in result.refused[0].reason
    assert lake.says() == hill.says()
    centre.list_digest = ""
    assert lake.sync().outcome == "done"
    assert lake.records.kept("cursor_place") == len(centre.arrivals)
    assert lake.sync().requests == 1


def test_what_a_damaged_list_has_named_is_not_asked_for_when_the_whole_one_does_not_name_it(
    hill: Server, lake: Server, centre: LittleCentre
):
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    right = centre.arrivals[-1]
    centre.arrivals[-1] = ("0" * 64, *right[1:])
    assert lake.sync().outcome == "partly"
    centre.arrivals[-1] = right
    assert lake.sync().outcome == "done"
    assert lake.says() == hill.says()


def test_a_list_with_a_hole_is_not_believed(hill: Server, lake: Server, centre: LittleCentre):
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    centre.garbage = msgspec.json.encode(
        wire.SyncAnswer(
            nonce="n", session="x", items=[wire.Item(9, "0" * 64, 5)], cursor=wire.Cursor(9, "0" * 16)
        )
    )
    assert "does not go on from ours" in lake.sync().reason


def test_a_segment_that_the_centre_refuses_is_named_and_not_sent_for_ever(hill: Server, centre: LittleCentre):
    hill.learn("green-apple-mz17", "unit0")
    hill.records.cut(hill.key)
    (bad,) = hill.records.offers(1)
    hill.learn("blue-bat-mz17", "unit0")
    centre.refuses[bad.id.hex()] = "for a test"
    result = hill.sync()
    assert [refused.reason for refused in result.refused] == ["for a test"]
    assert result.segments_up == 1
    assert hill.sync().requests == 1


def test_what_an_older_centre_refused_is_sent_to_a_newer_one(
    hill: Server, lake: Server, centre: LittleCentre
):
    hill.learn("green-apple-mz17", "unit0")
    hill.records.cut(hill.key)
    (bad,) = hill.records.offers(1)
    centre.refuses[bad.id.hex()] = "it is of format 2, this shala reads 1"
    hill.sync()
    centre.refuses.clear()
    assert hill.sync().requests == 1
    centre.software = "shala 2"
    assert hill.sync().segments_up == 1
    lake.sync()
    assert lake.says() == hill.says()


def test_however_much_could_not_be_had_is_asked_for_after_an_update(
    hill: Server, lake: Server, centre: LittleCentre, monkeypatch
):
    for number in range(210):
        hill.learn(f"user{number}-mz17")
        hill.records.cut(hill.key)
    for offer in hill.records.offers(1000):
        centre.take(hill.records.store.data(offer.id))
        centre.lies_about[offer.id.hex()] = b"nothing"
    assert "210 segments" in lake.sync().reason
    centre.lies_about.clear()
    assert lake.sync().requests == 1
    monkeypatch.setattr(sync_module, "__version__", "0.2.0")
    assert lake.sync().outcome == "done"
    assert len(lake.says()) == 210


def test_what_a_restored_centre_has_forgotten_to_have_said_it_hears_from_its_devices(
    hill: Server, lake: Server, centre: LittleCentre
):
    hill.learn("green-apple-mz17", "unit0")
    for server in (hill, lake):
        server.sync()
    before, gone = list(centre.statements[:2]), server_in(lake.root.parent / "gone", "3", centre)
    revoked = Statement(
        format=1, kind="revoke", zone=centre.zone, key=bytes(gone.key.verify_key).hex(), generation=2
    )
    centre.hear(sign_statement(centre.key, revoked))
    for server in (hill, lake):
        server.sync()
    centre.forget()
    for data in before:
        centre.hear(data)
    assert hill.sync().restarts == 1
    member = centre.store.member(bytes(gone.key.verify_key))
    assert (member.enrolled, member.revoked) == (1, 2)
    assert [len(server.sync().refused) for server in (lake, hill)] == [0, 0]
    assert hill.sync().requests == 1


def test_a_centre_that_was_restored_hears_what_a_carrier_has_brought_of_it(
    hill: Server, centre: LittleCentre
):
    hill.sync()
    lost = Statement(format=1, kind="revoke", zone=centre.zone, key="ab" * 32, generation=2)
    hill.records.state([sign_statement(centre.key, lost)])
    assert hill.sync().outcome == "done"
    assert centre.store.member(bytes.fromhex("ab" * 32)).revoked == 2
    assert hill.sync().requests == 1


def test_a_centre_that_was_restored_before_a_server_was_taken_in_again_hears_why(
    hill: Server, centre: LittleCentre
):
    hill.sync()
    key = bytes(hill.key.verify_key)
    said = [
        Statement(format=1, kind=kind, zone=centre.zone, key=key.hex(), generation=number)
        for number, kind in ((2, "revoke"), (3, "enrol"))
    ]
    words = [sign_statement(centre.key, one) for one in said]
    hill.records.enrol(centre.zone, bytes(centre.key.verify_key), key, words)
    assert hill.sync().outcome == "done"
    assert (centre.store.member(key).revoked, centre.store.member(key).enrolled) == (2, 3)


def test_who_only_uploads_tells_a_restored_centre_what_it_has_forgotten_and_then_uploads(
    hill: Server, lake: Server, centre: LittleCentre
):
    hill.sync()
    before = list(centre.statements)
    own = next(data for data in before if bytes(hill.key.verify_key).hex().encode() in data)
    centre.forget()
    centre.hear(own)
    hill.learn("green-apple-mz17", "unit0")
    result = hill.sync(upload_only=True)
    assert (result.restarts, result.records_up) == (1, 2)
    assert sorted(centre.statements) == sorted(before)


def test_a_statement_of_any_size_is_told_to_a_centre_that_has_forgotten_it(
    hill: Server, centre: LittleCentre
):
    heads = {f"{n:032x}": ["ab" * 32] for n in range(2500)}
    key = bytes(SigningKey.generate().verify_key).hex()
    said = Statement(
        format=1, kind="revoke", zone=centre.zone, key=key, generation=1, heads=heads,
        cut_offs=dict.fromkeys(heads, 1),
    )  # fmt: skip
    data = sign_statement(centre.key, said)
    assert len(data) > sync_module.STATEMENTS_AT_ONCE
    hill.records.state([data])
    hill.records.doubt_statements()
    hill.sync()
    hill.sync()
    assert centre.store.member(bytes.fromhex(key)).revoked == 1


def test_a_centre_that_was_made_anew_is_given_everything_again(
    hill: Server, lake: Server, centre: LittleCentre
):
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    lake.learn("red-kite-mz18", "unit0")
    for server in (lake, hill, lake):
        server.sync()
    centre.forget()
    for server in (hill, lake):
        centre.enrol(bytes(server.key.verify_key), server.name)
    results = [server.sync() for server in (hill, lake, hill)]
    assert results[0].restarts == 1
    assert hill.says() == lake.says()
    assert {"account/green-apple-mz17", "account/red-kite-mz18"} <= set(hill.says())


def test_what_a_centre_that_was_made_anew_does_not_name_is_not_asked_for_any_more(
    hill: Server, lake: Server, centre: LittleCentre
):
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    centre.lies_about[centre.arrivals[-1][0]] = b"nothing"
    assert lake.sync().outcome == "partly"
    statements = list(centre.statements)
    centre.forget()
    for data in statements:
        centre.hear(data)
    result = lake.sync()
    assert (result.restarts, result.outcome) == (1, "done")


@pytest.mark.parametrize("cursor_is_kept", [True, False])
def test_what_a_centre_has_lost_after_its_receipt_is_given_again(
    hill: Server, centre: LittleCentre, cursor_is_kept: bool
):
    centre.enrol(bytes(hill.key.verify_key), hill.name, generation=2)
    hill.sync()
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    if not cursor_is_kept:  # its list has named it since, and was a damaged one
        centre.list_digest = "f" * 16
        hill.sync()
        centre.list_digest = ""
    # Its backup was made between the two: the cursor is still one of its own.
    statements = list(centre.statements)
    centre.forget()
    for data in statements:
        centre.store.state(data)
        centre.arrive(hashlib.sha256(data[64:]).digest(), 0, base64.b64encode(data).decode())
    result = hill.sync()
    assert result.restarts == 0
    assert centre.store.has(hill.records._newest_own())
    assert hill.sync().requests == 1


def test_a_restored_backup_is_noticed_and_neither_side_is_lost(
    hill: Server, lake: Server, tmp_path: Path, centre: LittleCentre
):
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    hill.backup(tmp_path / "copy")
    hill.learn("green-apple-mz17", "unit1")
    hill.sync()
    copy = Server(tmp_path / "copy", hill.name, hill.key, Records(tmp_path / "copy/records.sqlite"), centre)
    copy.learn("green-apple-mz17", "unit2")
    result = copy.sync()
    assert result.forks == 1
    assert result.outcome == "done"
    for server in (hill, lake):
        server.sync()
    assert {f"progress/green-apple-mz17/unit{n}" for n in range(3)} <= set(lake.says())
    assert hill.says() == lake.says() == copy.says()


def test_a_session_that_has_expired_is_opened_anew(hill: Server, centre: LittleCentre):
    much(hill)
    centre.session_expires = True
    result = hill.sync()
    assert result.outcome == "done"
    assert len([method for method, _, _ in centre.requests if method == "POST"]) == 2


def test_a_centre_that_has_no_time_is_asked_again_after_a_while(hill: Server, centre: LittleCentre):
    hill.learn("green-apple-mz17", "unit0")
    centre.busy = 1
    began = time.monotonic()
    assert hill.sync().outcome == "done"
    assert time.monotonic() - began >= 1
    hill.learn("green-apple-mz17", "unit1")
    centre.busy = 1
    assert hill.sync(remaining=iter_time(0.9)).reason == "the time for sync is over"


def test_only_a_centre_with_a_certificate_of_the_known_authority_is_spoken_to(tmp_path: Path):
    pem = tmp_path / "centre.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", pem, "-out", tmp_path / "ca.pem", "-days", "2", "-subj", "/CN=shala lab",
            "-addext", "subjectAltName=IP:127.0.0.1",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    pem.write_bytes(pem.read_bytes() + (tmp_path / "ca.pem").read_bytes())
    with served(LittleCentre(), pem) as centre:
        server = server_in(tmp_path / "hill", "2031017-mz17", centre)
        server.learn("green-apple-mz17", "unit0")
        refused = server.sync()
        assert refused.outcome == "refused"
        assert "set sync.ca_file" in refused.reason
        assert server.sync(ca_file=str(tmp_path / "ca.pem")).outcome == "done"


def test_long_lists_come_in_pages(hill: Server, lake: Server, centre: LittleCentre):
    centre.page = 2
    for n in range(9):
        hill.learn(f"user{n}-mz17", "unit0")
        hill.records.cut(hill.key)
    assert hill.sync().segments_up == 9
    assert lake.sync().segments_down == 9
    assert lake.sync().requests == 1


def test_nobody_there_is_said_in_one_line_and_nothing_is_lost(hill: Server, centre: LittleCentre):
    hill.learn("green-apple-mz17", "unit0")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        centre.url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        result = hill.sync()
    assert result.outcome == "silent"
    assert "does not answer" in result.reason
    assert "\n" not in result.reason
    assert result.lag_after.entries == 2
    assert last_sync(hill.records) == result


@pytest.mark.parametrize("name", ["shala..example", "a" * 64, "xn--a", "[::1::]"])
def test_what_is_no_name_of_a_host_is_said_in_one_line(hill: Server, centre: LittleCentre, name: str):
    centre.url = f"https://{name}"
    result = hill.sync()
    assert result.outcome == "refused"
    assert f"https://{name} is no address of a centre: " in result.reason


@pytest.mark.parametrize("name", ["shala_centre.invalid", "[::1]", "[::ffff:127.0.0.1]"])
def test_a_name_with_underscores_and_an_address_of_ipv6_are_asked(
    hill: Server, centre: LittleCentre, name: str
):
    centre.url = f"https://{name}:1"
    assert hill.sync().reason.startswith(f"https://{name}:1 does not answer: ")


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>please log in</html>",
        b"{}",
        b'{"status": "ok"}',
        b"{}{",
        b'{"items": [[1, "../../etc", 3]]}',
        b'{"nonce": "\xff"}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_centre_is_not_believed(hill: Server, centre: LittleCentre, answer: bytes):
    centre.garbage = answer
    result = hill.sync()
    assert result.outcome == "refused"
    assert "no shala centre" in result.reason


def test_a_session_that_would_smuggle_a_header_is_refused(hill: Server, centre: LittleCentre):
    centre.garbage = msgspec.json.encode({"nonce": "n", "session": "x\r\nHost: elsewhere"})
    assert "cannot be one" in hill.sync().reason


def test_a_centre_that_promises_more_and_gives_nothing_is_left(hill: Server, centre: LittleCentre):
    centre.garbage = b'{"nonce": "n", "session": "x", "more": true}'
    assert hill.sync().outcome == "refused"
    assert len(centre.requests) == 1


@pytest.mark.parametrize(
    "status, outcome", [(500, "silent"), (429, "silent"), (403, "refused"), (302, "refused")]
)
def test_refusals_are_told_from_trouble(hill: Server, centre: LittleCentre, status: int, outcome: str):
    centre.status = status
    assert hill.sync().outcome == outcome


def test_the_deadline_ends_a_run_and_the_next_one_goes_on(hill: Server, centre: LittleCentre):
    much(hill)
    slow = Bandwidth(lambda: 100_000)
    began = time.monotonic()
    result = hill.sync(bandwidth=slow, remaining=iter_time(1.0))
    assert result.outcome == "partly"
    assert time.monotonic() < began + 2
    assert hill.sync().outcome == "done"


def test_the_limit_is_kept(hill: Server, lake: Server):
    much(hill)
    began = time.monotonic()
    result = hill.sync(bandwidth=Bandwidth(lambda: 200_000))
    assert result.bytes_up / 200_000 - 1.2 < time.monotonic() - began
    began = time.monotonic()
    lake.sync(bandwidth=Bandwidth(lambda: 200_000))
    assert result.bytes_up / 200_000 - 1.2 < time.monotonic() - began


@given(st.integers(1, 10_000), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 20_000)), max_size=40))
def test_no_more_than_the_rate_and_one_burst_ever_goes(rate: int, steps: list[tuple[int, int]]):
    clock = [0.0]
    bucket = Bandwidth(lambda: rate, lambda: clock[0])
    sent = 0
    for rest, size in steps:
        clock[0] += rest / 1000
        # What was taken before has gone by now; a rest of the line is worth one burst at most.
        assert sent <= rate * (clock[0] + 1.0) + 1e-6 * (1 + sent)
        clock[0] += bucket.take(size)
        sent += size


def test_windows_of_the_day_have_their_own_limits_also_over_midnight():
    config = SyncConfig(
        bytes_per_second=50_000,
        windows=[
            WindowConfig(begin="08:00", until="15:30", bytes_per_second=4000),
            WindowConfig(begin="22:00", until="05:00", closed=True),
        ],
    )
    limits = {hour: rate_now(config, hour * 60) for hour in (0, 4, 5, 7, 8, 15, 16, 22, 23)}
    assert limits == {
        0: None,
        4: None,
        5: 50_000,
        7: 50_000,
        8: 4000,
        15: 4000,
        16: 50_000,
        22: None,
        23: None,
    }


def test_a_thousand_offers_that_the_centre_has_cost_one_request(hill: Server, centre: LittleCentre):
    for n in range(20):
        hill.learn(f"user{n}-mz17", "unit0")
        hill.records.cut(hill.key)
    hill.sync()
    hill.records.offer_all()
    assert hill.sync().requests == 1
    assert hill.records.unsent() == (0, 0)


def test_two_servers_that_sync_at_once_do_not_hinder_each_other(hill: Server, lake: Server):
    hill.learn("green-apple-mz17", "unit0")
    lake.learn("red-kite-mz18", "unit0")
    outcomes: list[str] = []

    def one(server: Server) -> None:
        server.records = Records(server.root / "records.sqlite")
        outcomes.append(server.sync().outcome)

    threads = [threading.Thread(target=one, args=(server,)) for server in (hill, lake)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["done", "done"]


def interrupted(monkeypatch, error: type[Exception], every: int) -> None:
    """Have every so manieth download end with an error before it begins."""
    real, number = sync_module._Run._fetch, itertools.count(1)

    def fetch(run, id_: str, size: int) -> None:
        if next(number) % every == 0:
            raise error("for a test")
        real(run, id_, size)

    monkeypatch.setattr(sync_module._Run, "_fetch", fetch)


def test_a_page_of_the_list_that_was_cut_goes_on_where_it_was(
    hill: Server, lake: Server, centre: LittleCentre, monkeypatch
):
    for number in range(9):
        hill.learn(f"user{number}-mz17")
        hill.sync()
    interrupted(monkeypatch, CentreSilent, 4)
    assert lake.sync().segments_down == 3
    statements = sum(1 for _, size, _ in centre.arrivals if not size)
    assert lake.records.kept("cursor_place") == statements + 3
    lake.sync()
    lake.sync()
    assert lake.says() == hill.says()
    assert lake.sync().requests == 1


def test_what_was_listed_and_is_wrong_is_not_passed_by_a_cut(
    hill: Server, lake: Server, centre: LittleCentre, monkeypatch
):
    hill.learn("green-apple-mz17", "unit0")
    hill.sync()
    hill.learn("blue-bat-mz17", "unit0")
    hill.sync()
    centre.list_digest = "f" * 16
    interrupted(monkeypatch, CentreSilent, 2)
    lake.sync()
    assert lake.records.kept("cursor_place") is None


def test_sessions_that_expire_while_segments_come_end_nothing(hill: Server, lake: Server, monkeypatch):
    for number in range(9):
        hill.learn(f"user{number}-mz17")
        hill.sync()
    interrupted(monkeypatch, SessionOver, 2)
    assert lake.sync().outcome == "done"
    assert lake.says() == hill.says()


def test_a_centre_that_forgets_every_session_at_once_is_left(hill: Server, lake: Server, monkeypatch):
    hill.learn("green-apple-mz17")
    hill.sync()
    interrupted(monkeypatch, SessionOver, 1)
    assert lake.sync().outcome == "refused"
