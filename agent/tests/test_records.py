"""Records: what several copies of one disk write comes to the same on all of them."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from shala_agent.membership import Statement, sign_statement
from shala_agent.records import Change, Records, RecordsUnavailable
from shala_agent.segment import MAX_DEPTH, NONE, Entry, encode_entry, log_id, make_segment

CENTRE = SigningKey(bytes(32))
KEY = SigningKey(bytes(range(32)))


@pytest.fixture
def records(tmp_path: Path) -> Records:
    made = Records(tmp_path / "records.sqlite")
    enrolled = Statement(
        format=1, kind="enrol", zone="mz", key=bytes(KEY.verify_key).hex(), name="mz17", generation=1
    )
    made.enrol("mz", bytes(CENTRE.verify_key), bytes(KEY.verify_key), [sign_statement(CENTRE, enrolled)])
    return made


def copied(records: Records, path: Path) -> Records:
    """Return what stands on a copy of the disk."""
    (source,) = [row[2] for row in records.store.database.query("PRAGMA database_list") if row[1] == "main"]
    with sqlite3.connect(source) as db:
        db.execute("VACUUM INTO ?", (str(path),))
    return Records(path)


def exchange(*all_of_them: Records) -> None:
    """Let everybody have everything."""
    for _ in range(2):
        pool = []
        for one in all_of_them:
            one.cut(KEY)
            pool += [one.store.data(offer.id) for offer in one.offers(1000)]
        for one in all_of_them:
            for data in pool:
                one.accept(data, from_centre=False)


def test_what_one_copy_of_a_disk_deletes_stays_deleted(records, tmp_path):
    records.write([Change("account", "zo", {"first_name": "Zo"})], at=1)
    records.cut(KEY)
    clone = copied(records, tmp_path / "clone.sqlite")
    records.write([Change("account", "zo", None)], at=2)
    clone.write([Change("account", "mary", {"first_name": "Mary"})], at=2)
    exchange(records, clone)
    for one in (records, clone):
        assert [record.key for record in one.records("account")] == ["mary"]
        assert not one.record("account", "zo").conflict


def test_what_one_copy_of_a_disk_changes_is_no_conflict_with_what_it_had_before(records, tmp_path):
    records.write([Change("account", "zo", {"first_name": "Zo"})], at=1)
    records.cut(KEY)
    clone = copied(records, tmp_path / "clone.sqlite")
    records.write([Change("account", "zo", {"first_name": "Zodin"})], at=2)
    clone.write([Change("account", "mary", {})], at=2)
    exchange(records, clone)
    for one in (records, clone):
        record = one.record("account", "zo")
        assert (record.value, len(record.siblings)) == ({"first_name": "Zodin"}, 1)


def test_a_copy_of_a_copy_loses_no_side_of_a_conflict(records, tmp_path):
    records.write([Change("account", f"user{n}", {}) for n in range(7)], at=1)
    records.cut(KEY)
    third = copied(records, tmp_path / "third.sqlite")
    records.write([Change("account", f"more{n}", {}) for n in range(3)], at=1)
    records.cut(KEY)
    second = copied(records, tmp_path / "second.sqlite")
    for name, one in (("first", records), ("second", second), ("third", third)):
        one.write([Change("account", "zo", {"first_name": name})], at=2)
    exchange(records, second, third)
    for one in (records, second, third):
        found = one.record("account", "zo")
        assert sorted(sibling.value for sibling in found.siblings) == [
            '{"first_name":"first"}',
            '{"first_name":"second"}',
            '{"first_name":"third"}',
        ]
    assert list(records.records(everything=True)) == list(third.records(everything=True))


def enrolled(key: SigningKey, generation: int = 1, kind: str = "enrol", **more) -> bytes:
    said = Statement(
        format=1, kind=kind, zone="mz", key=bytes(key.verify_key).hex(), generation=generation, **more
    )
    return sign_statement(CENTRE, said)


def state_of(records: Records, key: str) -> object:
    """Return all that is known of an account, with what its entries have seen."""
    return records.store.tables.states([("account", key)])


def two_sides(other: SigningKey) -> list[bytes]:
    """Return the first segments of two copies of one disk."""
    entries = [encode_entry(Entry("account", name, 1, 1, 0, "{}")) for name in ("zo", "mary")]
    return [make_segment(other, "mz", 1, 1, NONE, [entry]).data for entry in entries]


def test_a_mention_of_a_log_that_has_forked_replaces_nothing_of_which_the_side_is_not_known(records):
    other, third = SigningKey(b"o" * 32), SigningKey(b"t" * 32)
    records.state([enrolled(other), enrolled(third)])
    # What came between is not here yet, so nobody knows whether this is the third entry that was meant.
    far = make_segment(
        other, "mz", 1, 3, b"p" * 32, [encode_entry(Entry("account", "kim", 1, 1, 0, '{"a":1}'))]
    )
    seen = Entry("account", "kim", 1, 2, 0, '{"b":1}', {far.log: 3})
    after = make_segment(third, "mz", 1, 1, NONE, [encode_entry(seen)])
    for data in (*two_sides(other), far.data, after.data):
        records.accept(data, from_centre=True)
    assert [one.value for one in records.record("account", "kim").siblings] == ['{"b":1}', '{"a":1}']


def test_what_is_not_cut_yet_has_seen_no_more_of_a_log_that_forks_than_what_is(records, tmp_path):
    other = SigningKey(b"o" * 32)
    observer = copied(records, tmp_path / "observer.sqlite")
    one, two = two_sides(other)
    records.state([enrolled(other)])
    records.accept(one, from_centre=True)
    records.write([Change("account", "zo", {"first_name": "Zo"})], at=1)
    records.accept(two, from_centre=True)
    records.cut(KEY)
    observer.enrol("mz", bytes(CENTRE.verify_key), bytes(SigningKey.generate().verify_key))
    observer.state([enrolled(other)])
    for data in (one, two, *(records.store.data(offer.id) for offer in records.offers(10))):
        observer.accept(data, from_centre=True)
    assert state_of(records, "zo") == state_of(observer, "zo")


def test_what_is_written_anew_has_seen_no_more_of_a_forked_log_than_others_make_of_it(records, tmp_path):
    other = SigningKey(b"o" * 32)
    one, two = two_sides(other)
    records.state([enrolled(other)])
    records.accept(one, from_centre=True)
    records.write([Change("account", "zo", {"first_name": "Zo"})], at=1)
    records.accept(two, from_centre=True)
    records.cut(KEY)
    # It was cut off before the centre had anything of it, and is taken in again.
    records.state([enrolled(KEY, 2, "revoke", cut_offs={records.log.hex(): 0})])
    records.state([enrolled(KEY, 3)])
    before = state_of(records, "zo")
    with records._transaction():
        records.store.rebuild()
    assert state_of(records, "zo") == before


@pytest.mark.parametrize("depth", [33, 995, 100_000])
def test_a_value_without_bottom_is_quarantined_alone_on_every_server(records, depth):
    other = SigningKey(b"o" * 32)
    enrolled = Statement(
        format=1, kind="enrol", zone="mz", key=bytes(other.verify_key).hex(), name="mz8", generation=1
    )
    records.state([sign_statement(CENTRE, enrolled)])
    values = ['{"a":' + "[" * depth + "]" * depth + "}", '{"first_name":"Zo"}']
    entries = [encode_entry(Entry("account", f"user{n}", 1, 1, 0, value)) for n, value in enumerate(values)]
    records.accept(make_segment(other, "mz", 1, 1, NONE, entries).data, from_centre=True)
    assert [record.key for record in records.records("account")] == ["user1"]
    ((reason,),) = records.store.database.query("SELECT reason FROM quarantine")
    assert "nested" in reason


def taken_in(records: Records, key: SigningKey) -> SigningKey:
    """Have another device in the zone; return its key."""
    said = Statement(format=1, kind="enrol", zone="mz", key=bytes(key.verify_key).hex(), generation=1)
    records.state([sign_statement(CENTRE, said)])
    return key


def test_a_record_that_a_thousand_epochs_have_written_can_still_be_changed_for_others(records, tmp_path):
    other = taken_in(records, SigningKey(b"o" * 32))
    for epoch in range(1003):
        entry = encode_entry(Entry("account", "zo", 1, 1, 0, '{"first_name":"Zo"}'))
        records.accept(make_segment(other, "mz", epoch, 1, NONE, [entry]).data, from_centre=True)
    records.write([Change("account", "zo", {"first_name": "Zodin"})], at=1)
    records.cut(KEY)
    assert not records.store.database.query("SELECT reason FROM quarantine")
    assert len(records.record("account", "zo").siblings) == 4
    records.write([Change("account", "zo", {"first_name": "Zodini"})], at=1)
    assert len(records.record("account", "zo").siblings) == 1


def test_where_everybody_claims_to_have_seen_everybody_else_the_record_is_deleted(records):
    keys = [taken_in(records, SigningKey(bytes([n]) * 32)) for n in range(3)]
    for n, key in enumerate(keys):
        seen = {log_id(bytes(keys[(n + 1) % 3].verify_key), 1): 1}
        entry = encode_entry(Entry("account", "zo", 1, 1, 0, "{}", seen))
        records.accept(make_segment(key, "mz", 1, 1, NONE, [entry]).data, from_centre=True)
    assert [(one.value, one.siblings) for one in [records.record("account", "zo")]] == [(None, ())]
    assert records.write([Change("account", "zo", {"first_name": "Zo"})], at=1) == 1
    assert records.record("account", "zo").value == {"first_name": "Zo"}


def test_a_record_at_its_greatest_depth_can_still_be_changed(records):
    other = SigningKey(b"o" * 32)
    enrolled = Statement(
        format=1, kind="enrol", zone="mz", key=bytes(other.verify_key).hex(), name="mz8", generation=1
    )
    records.state([sign_statement(CENTRE, enrolled)])
    entry = encode_entry(Entry("account", "zo", 1, MAX_DEPTH, 0, '{"first_name":"frozen"}'))
    records.accept(make_segment(other, "mz", 1, 1, NONE, [entry]).data, from_centre=True)
    assert records.write([Change("account", "zo", {"first_name": "Zo"})], at=1) == 1
    assert records.record("account", "zo").value == {"first_name": "Zo"}


@pytest.mark.parametrize(
    "centre, url", [(CENTRE, "https://centre.example.org"), (SigningKey.generate(), None)]
)
def test_the_address_of_a_centre_is_kept_in_another_zone_of_that_centre_only(records, centre, url):
    records.keep(url="https://centre.example.org")
    records.enrol("lunglei", bytes(centre.verify_key), bytes(KEY.verify_key))
    assert records.kept("url") == url


@pytest.mark.parametrize(
    "said", ["disk I/O error", "database or disk is full", "attempt to write a readonly database"]
)
def test_a_disk_that_is_full_or_read_only_is_no_reason_to_move_the_records_away(tmp_path, monkeypatch, said):
    def refuse(*_):
        raise sqlite3.OperationalError(said)

    monkeypatch.setattr("shala_agent.write_ahead.switch", refuse)
    with pytest.raises(RecordsUnavailable) as raised:
        Records(tmp_path / "records.sqlite")
    assert str(raised.value) == (
        f"{tmp_path}/records.sqlite: {said}"
        " (is the disk full or read-only?: free some space, then run this again)"
    )


def test_a_read_only_folder_gets_the_same_hint(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(RecordsUnavailable, match=r"Read-only file system \(is the disk full or read-only"):
        Records(tmp_path / "records.sqlite")
