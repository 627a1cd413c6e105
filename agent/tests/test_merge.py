"""Merge: the state of a record depends on the set of its entries, not on their order."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from shala_agent.merge import EMPTY, Sibling, State, add, is_conflict, merged, next_value, shown
from shala_agent.segment import MAX_DEPTH

LOGS = [bytes([n]) * 16 for n in range(3)]


@st.composite
def histories(draw):
    """Entries as devices write them: each knows some of what was written before it."""
    written: list[tuple[Sibling, dict[bytes, int]]] = []
    views = dict.fromkeys(LOGS, EMPTY)
    counters = dict.fromkeys(LOGS, 0)
    for _ in range(draw(st.integers(1, 12))):
        log = draw(st.sampled_from(LOGS))
        for sibling, context in draw(st.lists(st.sampled_from(written), max_size=4)) if written else []:
            views[log] = add(views[log], sibling, context)
        state = views[log]
        counters[log] += draw(st.integers(1, 3))
        value = draw(
            st.none() | st.dictionaries(st.sampled_from("ab"), st.integers(0, 9), min_size=1, max_size=2)
        )
        text = None if value is None else json.dumps(value, sort_keys=True, separators=(",", ":"))
        depth = 1 + max((one.depth for one in state.siblings), default=0)
        context = {name: counter for name, counter in state.seen.items() if name != log}
        entry = (Sibling(log, counters[log], depth, draw(st.integers(-9, 9)), 1, text), context)
        written.append(entry)
        views[log] = add(state, *entry)
    return written


def folded(entries) -> State:
    state = EMPTY
    for sibling, context in entries:
        state = add(state, sibling, context)
    return state


def shuffled(entries, chance):
    """Return entries in another order, some of them twice."""
    again = [*entries, *chance.choices(entries, k=3)]
    chance.shuffle(again)
    return again


@given(histories(), st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(entries, chance):
    first = folded(entries)
    again = shuffled(entries, chance)
    assert folded(again) == first


@st.composite
def lies(draw):
    """Entries that say of what they have seen whatever they like; each (log, counter) says one thing."""
    names = draw(
        st.lists(st.tuples(st.sampled_from(LOGS), st.integers(1, 4)), min_size=1, max_size=8, unique=True)
    )
    contexts = st.dictionaries(st.sampled_from(LOGS), st.integers(0, 6), max_size=3)
    return [(Sibling(log, n, draw(st.integers(1, 3)), 0, 1, "{}"), draw(contexts)) for log, n in names]


@given(lies(), st.randoms(use_true_random=False))
def test_what_lies_come_to_does_not_depend_on_their_order(entries, chance):
    first = folded(entries)
    again = shuffled(entries, chance)
    assert folded(again) == first
    cut = chance.randrange(len(again) + 1)
    assert merged(merged(EMPTY, again[:cut]), again[cut:]) == first


@given(lies())
def test_of_two_that_claim_to_have_seen_each_other_only_the_deeper_one_is_believed(entries):
    living = {(one.log, one.counter) for one in folded(entries).siblings}
    newest = {sibling.log: 0 for sibling, _ in entries}
    for sibling, _ in entries:
        newest[sibling.log] = max(newest[sibling.log], sibling.counter)
    for sibling, context in entries:
        is_seen = any(
            said.get(sibling.log, 0) >= sibling.counter
            and (context.get(other.log, 0) < other.counter or sibling.depth < other.depth)
            for other, said in entries
            if other.log != sibling.log
        )
        lives = newest[sibling.log] == sibling.counter and not is_seen
        assert ((sibling.log, sibling.counter) in living) == lives


def lied(depth: int) -> State:
    """Somebody has claimed to have seen all that another one will ever write, who then goes on."""
    entries = [
        (Sibling(LOGS[0], 1, 1, 0, 1, '{"a":1}'), {}),
        (Sibling(LOGS[1], 1, depth, 0, 1, '{"a":"lie"}'), {LOGS[0]: 1 << 52}),
        (Sibling(LOGS[0], 2, min(depth + 1, MAX_DEPTH), 0, 1, '{"a":2}'), {LOGS[1]: 1}),
    ]
    return folded(entries)


def test_nobody_has_seen_what_was_written_by_one_who_has_seen_him():
    assert [one.value for one in lied(2).siblings] == ['{"a":2}']


def test_at_the_greatest_depth_a_lie_loses_nothing_and_is_reported():
    assert {one.value for one in lied(MAX_DEPTH).siblings} == {'{"a":2}', '{"a":"lie"}'}
    assert is_conflict(lied(MAX_DEPTH), "latest")


@given(histories())
def test_what_nobody_has_seen_lives_and_what_somebody_has_seen_does_not(entries):
    state = folded(entries)
    for sibling, _ in entries:
        newer = any(
            (other.log == sibling.log and other.counter > sibling.counter)
            or (other is not sibling and context.get(sibling.log, 0) >= sibling.counter)
            for other, context in entries
        )
        living = {(one.log, one.counter) for one in state.siblings}
        assert ((sibling.log, sibling.counter) in living) != newer


@given(histories())
def test_the_greatest_of_each_field_among_the_living_is_shown(entries):
    state = folded(entries)
    values = [json.loads(one.value) for one in state.siblings if one.value is not None]
    text = shown(state, "max")
    joined = {
        name: max(value[name] for value in values if name in value) for value in values for name in value
    }
    assert (json.loads(text) if text is not None else {}) == joined


def two(first: str | None, second: str | None, first_at: int = 0, second_at: int = 0) -> State:
    """Two devices wrote without knowing of one another."""
    return folded(
        [
            (Sibling(LOGS[0], 1, 1, first_at, 1, first), {}),
            (Sibling(LOGS[1], 1, 1, second_at, 1, second), {}),
        ]
    )


def test_no_clock_decides():
    assert shown(two('{"a":1}', '{"a":2}', 999_999), "latest") == shown(
        two('{"a":1}', '{"a":2}', 0, 999_999), "latest"
    )


def test_the_loser_of_a_conflict_is_kept_and_reported():
    state = two('{"a":1}', '{"a":2}')
    assert {one.value for one in state.siblings} == {'{"a":1}', '{"a":2}'}
    assert is_conflict(state, "latest")


def test_the_same_said_twice_is_no_conflict():
    assert not is_conflict(two('{"a":1,"b":2}', '{"b":2,"a":1}'), "latest")


def test_an_edit_outlives_a_delete_that_did_not_know_of_it():
    assert shown(two(None, '{"a":2}'), "latest") == shown(two('{"a":2}', None), "latest") == '{"a":2}'


def test_who_has_seen_both_ends_the_conflict():
    state = add(two('{"a":1}', '{"a":2}'), Sibling(LOGS[2], 1, 2, 0, 1, '{"a":3}'), {LOGS[0]: 1, LOGS[1]: 1})
    assert shown(state, "latest") == '{"a":3}'
    assert not is_conflict(state, "latest")


def test_times_and_numbers_join_to_the_later_and_greater():
    state = two('{"last":"2026-01-09","n":3}', '{"last":"2026-01-10","n":2}')
    assert json.loads(shown(state, "max")) == {"last": "2026-01-10", "n": 3}


def test_lists_join_to_their_union():
    assert json.loads(shown(two('{"a":[1,2]}', '{"a":[2,3]}'), "union")) == {"a": [1, 2, 3]}


def test_saying_again_what_is_known_writes_nothing():
    assert next_value('{"a":1,"new":7}', {"a": 1}, "latest") is None
    assert next_value('{"a":3}', {"a": 2}, "max") is None
    assert next_value('{"a":3}', {"a": 9}, "append") is None


def test_fields_of_a_newer_schema_are_carried_on():
    assert json.loads(next_value('{"a":1,"new":7}', {"a": 2}, "latest")) == {"a": 2, "new": 7}
