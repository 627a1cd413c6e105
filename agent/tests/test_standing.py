"""Standing: what this server wrote outlives its key, its revocation and its zone."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from shala_agent.membership import Statement, sign_statement
from shala_agent.record_types import TYPES
from shala_agent.records import Change, Records
from shala_agent.segment import (
    MAGIC,
    NONE,
    Entry,
    branch_id,
    encode_entry,
    log_id,
    make_segment,
    read_header,
    read_segment,
    redact,
)
from shala_agent.store import Store

CENTRE = SigningKey(bytes(32))
OLD, NEW, OTHER = (SigningKey(letter * 32) for letter in (b"o", b"n", b"x"))


def said(kind: str, key: SigningKey, generation: int, zone: str = "mz", **more) -> bytes:
    name = "mz17" if key is not OTHER else "mz8"
    return sign_statement(
        CENTRE,
        Statement(
            format=1,
            kind=kind,
            zone=zone,
            key=bytes(key.verify_key).hex(),
            name=name,
            generation=generation,
            **more,
        ),
    )


def enrolled(path: Path, key: SigningKey, zone: str = "mz") -> Records:
    made = Records(path)
    enrol(made, key, zone, said("enrol", key, 1, zone))
    return made


def enrol(records: Records, key: SigningKey, zone: str, *statements: bytes) -> None:
    records.enrol(zone, bytes(CENTRE.verify_key), bytes(key.verify_key), statements)


def account(user: str, **fields: str) -> Change:
    return Change("account", user, fields)


def segments(records: Records, key: SigningKey) -> list[bytes]:
    """Return all segments of its zone that a server has."""
    records.cut(key)
    store = records.store
    rows = store.database.query("SELECT data FROM segment WHERE zone = ? ORDER BY rowid", (store.zone,))
    return [bytes(data) for (data,) in rows]


def give(other: Records, *data: bytes) -> None:
    for one in data:
        other.accept(one, from_centre=True)


def says(records: Records) -> dict[str, object]:
    return {f"{one.type}/{one.key}": one.value for one in records.records()}


@pytest.fixture
def here(tmp_path: Path) -> Records:
    made = enrolled(tmp_path / "here.sqlite", OLD)
    made.state([said("enrol", OTHER, 1)])
    return made


@pytest.fixture
def there(tmp_path: Path) -> Records:
    made = enrolled(tmp_path / "there.sqlite", OTHER)
    made.state([said("enrol", OLD, 1)])
    return made


def test_what_was_not_uploaded_under_the_old_key_comes_under_the_new_one(here, there):
    here.write([account("zo", first_name="Zo"), account("kim", first_name="Kim")], at=1)
    give(there, *segments(here, OLD))
    log = here.log.hex()
    here.write([account("zo", first_name="Zodin"), account("mary", first_name="Mary")], at=2)
    here.cut(OLD)
    here.write([account("zo", first_name="Zodin", gender="f")], at=3)
    # The centre has only the first segment when the disk's new key replaces the old one.
    told = [said("revoke", OLD, 2, cut_offs={log: 2}), said("enrol", NEW, 1)]
    enrol(here, NEW, "mz", *told[1:])
    here.state(told[:1])
    there.state(told)
    give(there, *segments(here, NEW))
    assert says(there) == says(here)
    assert there.record("account", "zo").value == {"first_name": "Zodin", "gender": "f"}
    assert there.record("account", "mary").value == {"first_name": "Mary"}
    assert [record for record in there.records() if record.conflict] == []
    assert there.record("account", "mary").at == 2


def test_with_a_key_that_is_not_enrolled_yet_nothing_is_cut(here, there):
    here.write([account("zo")], at=1)
    assert here.cut(NEW) == 0
    enrol(here, NEW, "mz", said("enrol", NEW, 1))
    there.state([said("enrol", NEW, 1)])
    give(there, *segments(here, NEW))
    assert says(there) == says(here) == {"account/zo": {}}


def test_what_a_device_wrote_before_it_was_revoked_by_mistake_counts_when_it_is_enrolled_again(here, there):
    here.write([account("zo", first_name="Zo")], at=1)
    give(there, *segments(here, OLD))
    log = here.log.hex()
    here.write([account("zo", first_name="Zodin"), account("mary")], at=2)
    here.cut(OLD)
    here.write([account("kim")], at=3)
    told = [said("revoke", OLD, 2, cut_offs={log: 1}, reason="a mistake"), said("enrol", OLD, 3)]
    for one in (here, there):
        one.state(told)
    assert here.log.hex() != log
    give(there, *segments(here, OLD))
    assert says(there) == says(here)
    assert set(says(there)) == {"account/zo", "account/mary", "account/kim"}
    assert there.record("account", "zo").value == {"first_name": "Zodin"}


def test_what_does_not_count_elsewhere_does_not_count_on_its_own_server(here, there):
    here.write([account("zo", first_name="Zo")], at=1)
    here.cut(OLD)
    log = here.log.hex()
    here.write([account("zo", first_name="Zodin")], at=2)
    here.cut(OLD)
    here.state([said("revoke", OLD, 2, cut_offs={log: 1}), said("enrol", OLD, 3)])
    assert here.store.database.query('SELECT "first" FROM segment WHERE held IS NOT NULL') == [(2,)]
    assert here.record("account", "zo").log == here.log


def test_who_is_revoked_goes_on_to_see_what_it_writes(here):
    here.write([account("zo")], at=1)
    here.cut(OLD)
    here.state([said("revoke", OLD, 2)])
    assert set(says(here)) == {"account/zo"}


def test_what_others_went_on_from_is_not_put_beside_it_again(here, there):
    here.write([account("zo", first_name="Zo")], at=1)
    give(there, *segments(here, OLD))
    there.write([account("zo", first_name="Zodin")], at=2)
    give(here, *segments(there, OTHER))
    told = [said("revoke", OLD, 2, cut_offs={here.log.hex(): 0}), said("enrol", OLD, 3)]
    for one in (here, there):
        one.state(told)
    give(there, *segments(here, OLD))
    for one in (here, there):
        assert one.record("account", "zo").value == {"first_name": "Zodin"}
        assert not one.record("account", "zo").conflict


def test_into_another_zone_goes_all_that_the_school_wrote_in_whatever_epoch(here, there):
    here.write([account("zo", first_name="Zo"), Change("progress", "zo/unit", {"visited": 1})], at=7)
    here.cut(OLD)
    here.renew()
    here.write([account("mary")], at=8)
    give(there, *segments(here, OLD))
    there.write([account("kim"), Change("progress", "zo/unit", {"visited": 5})], at=9)
    give(here, *segments(there, OTHER))
    enrol(here, OLD, "rj", said("enrol", OLD, 1, "rj"))
    assert says(here) == {
        "account/zo": {"first_name": "Zo"},
        "account/mary": {},
        "progress/zo/unit": {"visited": 5},
    }
    assert [here.record("account", user).at for user in ("zo", "mary")] == [7, 8]


def test_a_school_that_loses_a_conflict_takes_its_own_word_along(here, there):
    for number in range(20):
        here.write([account(f"user{number}", first_name="here")], at=1)
        there.write([account(f"user{number}", first_name="there")], at=1)
    give(here, *segments(there, OTHER))
    enrol(here, OLD, "rj", said("enrol", OLD, 1, "rj"))
    assert {record.value["first_name"] for record in here.records()} == {"here"}


def test_who_comes_back_to_a_zone_says_there_what_was_not_cut_when_it_left(here, there):
    here.write([account("zo", first_name="Zo")], at=1)
    enrol(here, OLD, "rj", said("enrol", OLD, 1, "rj"))
    here.write([account("mary")], at=2)
    told = [said("revoke", OLD, 2), said("enrol", OLD, 3)]
    enrol(here, OLD, "mz", *told)
    there.state(told)
    give(there, *segments(here, OLD))
    assert says(there) == says(here) == {"account/zo": {"first_name": "Zo"}, "account/mary": {}}


@pytest.mark.parametrize("shown", ["here", "there"])
def test_who_comes_back_to_a_zone_settles_no_conflict_that_nobody_has_spoken_to(here, there, shown):
    for server, name in ((here, "here"), (there, "there")):
        for word in ("draft", name) if name == shown else (name,):
            server.write([account("zo", first_name=word)], at=1)
    (theirs,) = segments(there, OTHER)
    here.accept(theirs, from_centre=False)  # by a carrier: it stays when the zone is left
    give(there, *segments(here, OLD))
    enrol(here, OLD, "rj", said("enrol", OLD, 1, "rj"))
    told = [said("revoke", OLD, 2), said("enrol", OLD, 3)]
    enrol(here, OLD, "mz", *told)
    there.state(told)
    give(there, *segments(here, OLD))
    assert says(there) == says(here) == {"account/zo": {"first_name": shown}}
    assert here.record("account", "zo").conflict
    assert there.record("account", "zo").conflict


# -- when the records are made anew --------------------------------------------------------------------------


@pytest.fixture
def rebuilds(monkeypatch) -> list[str]:
    """Note whenever a store makes its records anew."""
    seen, real = [], Store.rebuild

    def rebuild(self, *arguments) -> None:
        seen.append(self.name)
        real(self, *arguments)

    monkeypatch.setattr(Store, "rebuild", rebuild)
    return seen


def copy_of(records: Records, path: Path) -> Records:
    (source,) = [row[2] for row in records.store.database.query("PRAGMA database_list") if row[1] == "main"]
    with sqlite3.connect(source) as db:
        db.execute("VACUUM INTO ?", (str(path),))
    return Records(path)


def test_of_a_forked_log_only_what_gives_others_another_name_makes_all_anew(here, there, tmp_path, rebuilds):
    here.write([account("zo")], at=1)
    here.cut(OLD)
    clone = copy_of(here, tmp_path / "clone.sqlite")
    for one, name in ((here, "one"), (clone, "other")):
        for number in range(5):
            one.write([account(f"{name}{number}")], at=2)
            one.cut(OLD)
    give(there, *segments(here, OLD))
    assert rebuilds == []
    give(there, *segments(clone, OLD))
    assert len(rebuilds) == 1
    assert len(says(there)) == 11
    before = list(there.records(everything=True))
    there.store.rebuild()
    assert list(there.records(everything=True)) == before


def test_statements_that_come_together_make_all_anew_once(here, there, rebuilds):
    for user in ("zo", "kim", "mary"):
        here.write([account(user)], at=1)
        here.cut(OLD)
    data = segments(here, OLD)
    give(there, *data)
    redactions = [
        said("redact", OLD, 1, segment=read_segment(one).id.hex(), counters=[number])
        for number, one in enumerate(data, 1)
    ]
    there.state(redactions)
    assert (says(there), len(rebuilds)) == ({}, 1)


@pytest.fixture
def restored(here, tmp_path) -> Records:
    """The disk of the one that is here, set back to what it was in the beginning."""
    return copy_of(here, tmp_path / "restored.sqlite")


def cut_off_at(log: bytes, counter: int, *heads: bytes) -> bytes:
    """Return a revocation by which of a log only these segments count, up to a counter."""
    ids = [read_segment(head).id.hex() for head in heads]
    return said("revoke", OLD, 2, cut_offs={log.hex(): counter}, heads={log.hex(): ids})


def test_who_goes_on_from_a_branch_that_was_cut_off_replaces_nothing_of_the_other_one(here, there, restored):
    here.write([account("zo", first_name="Zo"), account("kim")], at=1)
    (lost,) = segments(here, OLD)
    give(there, lost)
    restored.write([account("mary", first_name="Mary"), account("lal")], at=2)
    restored.cut(OLD)
    restored.write([account("mary", first_name="Maria"), account("zo", first_name="Zodin")], at=3)
    told = [cut_off_at(here.log, 2, lost), said("enrol", OLD, 3)]
    for server in (restored, there):
        server.state(told)
    give(restored, lost)
    give(there, *segments(restored, OLD))
    assert says(there) == says(restored)
    assert there.record("account", "mary").value == {"first_name": "Maria"}
    assert not there.record("account", "mary").conflict
    assert there.record("account", "zo").conflict  # nobody who wrote one of the two has seen the other


def test_who_gets_a_new_key_on_a_branch_that_was_cut_off_replaces_nothing_of_the_other_one(
    here, there, restored
):
    here.write([account("zo", first_name="Zo")], at=1)
    (lost,) = segments(here, OLD)
    give(there, lost)
    restored.write([account("mary", first_name="Mary")], at=2)
    restored.cut(OLD)
    restored.write([account("mary", first_name="Maria"), account("zo", first_name="Zodin")], at=3)
    told = [cut_off_at(here.log, 1, lost), said("enrol", NEW, 1)]
    enrol(restored, NEW, "mz", *told)
    there.state(told)
    give(restored, lost)
    give(there, *segments(restored, NEW))
    assert says(there) == says(restored)
    assert [one.key for one in there.records() if one.conflict] == ["zo"]
    assert there.record("account", "mary").value == {"first_name": "Maria"}


@pytest.mark.parametrize("known", [False, True])
def test_who_comes_back_to_a_branch_that_was_cut_off_replaces_nothing_of_the_other_one(
    here, there, restored, known
):
    here.write([account("zo", first_name="Zo")], at=1)
    (lost,) = segments(here, OLD)
    give(there, lost)
    restored.write([account("zo", first_name="Zodin"), account("mary"), account("kim")], at=2)
    restored.cut(OLD)
    told = [cut_off_at(here.log, 1, lost), said("enrol", OLD, 3)]
    if known:
        restored.state(told[:1])
    enrol(restored, OLD, "rj", said("enrol", OLD, 1, "rj"))
    restored.write([account("zo", first_name="Zodina"), Change("account", "kim", None)], at=3)
    enrol(restored, OLD, "mz", *told)
    there.state(told)
    give(restored, lost)
    give(there, *segments(restored, OLD))
    assert says(there) == says(restored)
    names = {one.value for one in there.record("account", "zo").siblings}
    assert names == {'{"first_name":"Zo"}', '{"first_name":"Zodina"}'}
    assert says(there).keys() == {"account/zo", "account/mary"}  # what was deleted in between stays so


def test_a_revoked_server_that_begins_a_new_epoch_goes_on_from_what_was_cut_off_of_it(here, there, restored):
    here.write([account("zo", first_name="Zo")], at=1)
    (lost,) = segments(here, OLD)
    give(there, lost)
    restored.write([account("zo", first_name="Zodin"), account("kim"), account("mary")], at=2)
    restored.cut(OLD)
    restored.write([account("zo", first_name="Zodina"), Change("account", "kim", None)], at=3)
    told = [cut_off_at(here.log, 1, lost), said("enrol", OLD, 3)]
    restored.state(told[:1])
    restored.renew()
    assert says(restored) == {"account/zo": {"first_name": "Zodina"}, "account/mary": {}}
    assert [one.key for one in restored.records() if one.conflict] == []
    assert {restored.authors()[one.log] for one in restored.records()} == {"mz17"}
    for server in (restored, there):
        server.state(told)
    give(restored, lost)
    give(there, *segments(restored, OLD))
    assert says(there) == says(restored)
    assert there.record("account", "zo").conflict  # also what it has written since replaces nothing of others
    assert says(there).keys() == {"account/zo", "account/mary"}


def test_a_server_that_moves_after_its_revocation_takes_along_what_was_cut_off(here, there, restored):
    here.write([account("zo", first_name="Zo")], at=1)
    (lost,) = segments(here, OLD)
    restored.write([account("mary")], at=2)
    restored.cut(OLD)
    restored.state([cut_off_at(here.log, 1, lost)])
    enrol(restored, OLD, "rj", said("enrol", OLD, 1, "rj"))
    assert says(restored) == {"account/mary": {}}


def test_what_was_cut_off_has_seen_what_counts_of_its_log(here, there):
    here.write([account("zo"), account("kim")], at=1)
    (head,) = segments(here, OLD)
    give(there, head)
    here.write([Change("account", "zo", None)], at=2)
    here.cut(OLD)
    id_, log = read_segment(head).id.hex(), here.log.hex()
    told = [said("revoke", OLD, 2, cut_offs={log: 2}, heads={log: [id_]}), said("enrol", OLD, 3)]
    for server in (here, there):
        server.state(told)
    give(there, *segments(here, OLD))
    assert set(says(there)) == set(says(here)) == {"account/kim"}


def test_who_comes_back_to_a_zone_brings_nothing_older_than_what_it_wrote_elsewhere(here, there):
    here.write([account("zo", first_name="Zo")], at=1)
    (head,) = segments(here, OLD)
    give(there, head)
    here.write([account("zo", first_name="Zodin")], at=2)
    here.cut(OLD)
    enrol(here, OLD, "rj", said("enrol", OLD, 1, "rj"))
    here.write([account("zo", first_name="Zodina")], at=3)
    id_, log = read_segment(head).id.hex(), read_segment(head).log.hex()
    told = [said("revoke", OLD, 2, cut_offs={log: 1}, heads={log: [id_]}), said("enrol", OLD, 3)]
    enrol(here, OLD, "mz", *told)
    there.state(told)
    give(there, *segments(here, OLD))
    assert there.record("account", "zo").value == {"first_name": "Zodina"}
    assert says(there) == says(here)


# -- entries that somebody has left out ----------------------------------------------------------------------


@pytest.fixture
def whole(here) -> bytes:
    """A segment of three accounts."""
    here.write([account("zo"), account("kim"), account("mary")], at=1)
    (data,) = segments(here, OLD)
    return data


def without(data: bytes, *counters: int) -> bytes:
    return redact(read_segment(data), counters).data


def test_of_what_a_carrier_has_left_entries_out_nothing_counts_until_they_come(here, there, whole):
    give(there, without(whole, 1, 2))
    assert (says(there), there.left_out(), there.offers(9)) == ({}, 1, [])
    give(there, without(whole, 2))
    assert (says(there), there.left_out()) == ({}, 1)
    give(there, whole)
    assert (says(there), there.left_out()) == (says(here), 0)


def test_what_lacks_entries_in_a_zone_that_this_server_has_left_is_asked_of_nobody_and_not_counted(
    there, whole
):
    there.accept(without(whole, 1, 2), from_centre=False)
    assert (there.hollow(), there.left_out()) == (1, 1)
    enrol(there, OTHER, "rj", said("enrol", OTHER, 1, "rj"))
    assert (there.hollow(), there.left_out()) == (0, 0)
    enrol(there, OTHER, "mz", said("enrol", OTHER, 2))
    assert (there.hollow(), there.left_out()) == (1, 1)


def test_what_is_gone_need_not_come_when_the_centre_has_ordered_it_to_be_forgotten(
    here, there, whole, rebuilds
):
    id_ = read_segment(whole).id.hex()
    give(there, without(whole, 1, 2))
    there.state([said("redact", OLD, 1, segment=id_, counters=[3])])
    there.state([said("enrol", OLD, 2), said("redact", OLD, 1, segment=id_, counters=[1])])
    assert (says(there), there.left_out(), len(rebuilds)) == ({}, 1, 1)
    give(there, whole)
    assert (set(says(there)), there.left_out()) == ({"account/kim"}, 0)
    there.store.rebuild()
    assert set(says(there)) == {"account/kim"}


def test_a_segment_with_gaps_is_offered_on_when_the_word_for_them_has_come(here, there, whole):
    segment = read_segment(whole)
    there.accept(without(whole, 2), from_centre=False)
    assert there.offer(segment.id) is None
    there.leave_out(segment.id, 1, 1, "404")
    there.state([said("redact", OLD, 1, segment=segment.id.hex(), counters=[2])])
    assert (set(says(there)), there.left_out()) == ({"account/zo", "account/mary"}, 0)
    assert [one.id for one in there.offers(9)] == [segment.id]


def test_a_segment_with_gaps_below_a_cut_off_is_passed_on_when_the_word_for_them_has_come(here, there, whole):
    segment = read_segment(whole)
    there.state([said("revoke", OLD, 2, cut_offs={segment.log.hex(): 0})])
    there.accept(without(whole, 2), from_centre=False)
    there.state([said("redact", OLD, 1, segment=segment.id.hex(), counters=[2])])
    assert (says(there), there.left_out()) == ({}, 0)
    assert [one.id for one in there.offers(9)] == [segment.id]


def test_the_revocation_of_a_device_whose_records_all_count_makes_nothing_anew(here, there, rebuilds):
    here.write([account("zo")], at=1)
    give(there, *segments(here, OLD))
    there.state([said("revoke", OLD, 2, cut_offs={here.log.hex(): 1})])
    assert (set(says(there)), rebuilds) == ({"account/zo"}, [])


def test_an_update_that_knows_a_type_shows_what_came_before_it(here, there, tmp_path, monkeypatch):
    here.write([account("zo"), Change("course_progress", "zo/maths", {"visited": 3})], at=1)
    with monkeypatch.context() as older:
        older.delitem(TYPES, "course_progress")
        older_one = Records(tmp_path / "older.sqlite")
        enrol(older_one, NEW, "mz", said("enrol", NEW, 1), said("enrol", OLD, 1))
        give(older_one, *segments(here, OLD))
        assert set(says(older_one)) == {"account/zo"}
        older_one.close()
    assert says(Records(tmp_path / "older.sqlite")) == says(here)


# -- cut-offs at heads ---------------------------------------------------------------------------------------


def run(key: SigningKey, number: int, user: str = "zo") -> list[bytes]:
    """Return so many segments of one entry each that follow one another."""
    made: list[bytes] = []
    previous = NONE
    for first in range(1, number + 1):
        entry = encode_entry(Entry("account", f"{user}{first}", 1, 1, 0, "{}"))
        segment = make_segment(key, "mz", 5, first, previous, [entry])
        made.append(segment.data)
        previous = segment.id
    return made


def revoked_at(key: SigningKey, *heads: bytes, generation: int = 2) -> bytes:
    found = [read_header(data) for data in heads]
    log = log_id(bytes(key.verify_key), 5).hex()
    last = max(header.last for _, header in found)
    ids = [id_.hex() for id_, _ in found]
    return said("revoke", key, generation, cut_offs={log: last}, heads={log: ids})


def test_what_a_thief_signs_below_the_cut_off_does_not_count(there):
    honest, forged = run(OLD, 4), run(OLD, 4, "thief")
    give(there, honest[3])
    there.state([revoked_at(OLD, honest[3])])
    give(there, *forged[:3], forged[3])
    assert set(says(there)) == {"account/zo4"}


def test_what_came_before_the_head_counts_whenever_it_arrives(there):
    honest, forged = run(OLD, 5), run(OLD, 5, "thief")
    there.state([revoked_at(OLD, honest[4])])
    for data in (honest[1], forged[1], honest[4], honest[0], forged[0], honest[3], honest[2]):
        give(there, data)
    assert set(says(there)) == {f"account/zo{number}" for number in range(1, 6)}


def test_all_ends_of_a_forked_log_count_though_said_in_two_statements(there):
    one, other = run(OLD, 3), run(OLD, 3, "twin")
    give(there, *one, *other)
    before = says(there)
    there.state([revoked_at(OLD, one[2])])
    assert says(there) != before
    there.state([revoked_at(OLD, other[2], generation=3)])
    assert says(there) == before


def test_what_came_before_the_head_counts_though_the_enrolment_is_heard_last(tmp_path):
    there, honest = enrolled(tmp_path / "there.sqlite", OTHER), run(OLD, 4)
    there.state([revoked_at(OLD, honest[3])])
    give(there, *reversed(honest))
    there.state([said("enrol", OLD, 1)])
    assert set(says(there)) == {f"account/zo{number}" for number in range(1, 5)}


@pytest.mark.parametrize("seed", range(8))
def test_a_cut_off_at_heads_comes_to_the_same_in_any_order(tmp_path, seed):
    one, other = run(OLD, 4), run(OLD, 4, "twin")
    words = [
        *one,
        *other,
        said("enrol", OLD, 1),
        revoked_at(OLD, one[2]),
        revoked_at(OLD, other[1], one[2], generation=3),
        said("enrol", OLD, 4),
    ]
    random.Random(seed).shuffle(words)
    there = enrolled(tmp_path / "there.sqlite", OTHER)
    for word in words:
        if word.startswith(MAGIC):
            give(there, word)
        else:
            there.state([word])
    wanted = {
        *(f"account/zo{number}" for number in (1, 2, 3)),
        *(f"account/twin{number}" for number in (1, 2)),
    }
    assert set(says(there)) == wanted


def test_what_the_head_does_not_continue_is_written_anew_by_its_own_server(here, there):
    here.write([account("zo", first_name="Zo")], at=1)
    here.cut(OLD)
    log = here.log
    entry = encode_entry(Entry("account", "thief", 1, 1, 0, "{}"))
    forged = make_segment(OLD, "mz", here.epoch, 1, NONE, [entry])
    statements = [
        said("revoke", OLD, 2, cut_offs={log.hex(): 1}, heads={log.hex(): [forged.id.hex()]}),
        said("enrol", OLD, 3),
    ]
    here.state(statements)
    there.state(statements)
    give(there, *segments(here, OLD))
    assert says(there)["account/zo"] == {"first_name": "Zo"}


def statements_to_write_anew(path: Path, number: int) -> int:
    """Return how many statements a server's database runs to write so many cut-off segments anew."""
    here = enrolled(path, OLD)
    made = run(OLD, number + 1)
    give(here, *made)
    here._database.query("UPDATE segment SET ours = 1")
    ran: list[str] = []
    here._db.set_trace_callback(ran.append)
    here.state([revoked_at(OLD, made[0]), said("enrol", OLD, 3)])
    here._db.set_trace_callback(None)
    assert here.uncut() == number
    return len(ran)


def test_a_segment_that_was_cut_off_costs_the_same_however_many_were(tmp_path):
    few = statements_to_write_anew(tmp_path / "few.sqlite", 10)
    assert statements_to_write_anew(tmp_path / "many.sqlite", 40) < 4 * few


def test_where_a_cut_off_begins_is_looked_up_anew_when_what_was_missing_comes_and_when_it_counts(there):
    made = run(OLD, 4)
    second, third, last = (read_segment(data) for data in made[1:])
    there.state([revoked_at(OLD, made[0])])
    give(there, made[0], made[2], made[3])
    log = last.log
    assert there.store.named_by_author(log, last.id) == (branch_id(log, third.id), {})
    give(there, made[1])
    assert there.store.named_by_author(log, last.id) == (branch_id(log, second.id), {log: 1})
    there.state([revoked_at(OLD, made[2], generation=3)])
    assert there.store.named_by_author(log, last.id) == (branch_id(log, last.id), {log: 3})
