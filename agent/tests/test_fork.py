"""Forks: what a log is taken apart into depends on the set of its segments alone."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from shala_agent.fork import Link, branches, is_fork
from shala_agent.segment import NONE


def chain(name: str, cuts: list[int], first: int = 1, previous: bytes = NONE) -> list[Link]:
    links = []
    for number, size in enumerate(cuts):
        id_ = f"{name}{number}".encode().ljust(32)
        links.append(Link(id_, first, first + size - 1, previous))
        first, previous = first + size, id_
    return links


TRUNK = chain("t", [3, 2])
ONE = chain("a", [4, 1], 6, TRUNK[-1].id)
OTHER = chain("b", [1, 1, 6], 6, TRUNK[-1].id)


def test_a_log_that_was_never_continued_twice_is_one_trunk():
    found = branches(TRUNK + ONE)
    assert set(found.branch.values()) == {None}
    assert found.disputed is None


def test_after_the_place_of_dispute_each_side_is_a_branch():
    found = branches(TRUNK + ONE + OTHER)
    assert {found.branch[link.id] for link in TRUNK} == {None}
    assert {found.branch[link.id] for link in ONE} == {ONE[0].id}
    assert {found.branch[link.id] for link in OTHER} == {OTHER[0].id}
    assert found.disputed == 6


def test_a_side_of_which_only_the_continuation_is_known_is_a_branch_too():
    found = branches(TRUNK + ONE + OTHER[1:])
    assert found.branch[OTHER[1].id] == OTHER[0].id
    assert found.branch[ONE[1].id] == ONE[0].id


@given(
    st.lists(st.integers(1, 5), max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_the_order_of_arrival_does_not_matter(trunk, one, other, chance):
    before = chain("t", trunk)
    previous = before[-1].id if before else NONE
    start = sum(trunk) + 1
    links = before + chain("a", one, start, previous) + chain("b", other, start, previous)
    first = branches(links)
    chance.shuffle(links)
    assert branches(links) == first
    assert {first.branch[link.id] for link in before} <= {None}
    assert first.disputed == start


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 99))
def test_the_pieces_of_one_chain_are_no_fork_in_whatever_order_they_come(cuts, seed):
    links = chain("t", cuts)
    random.Random(seed).shuffle(links)
    for number, link in enumerate(links):
        assert not is_fork(link, links[:number])


@given(
    st.lists(st.integers(1, 5), max_size=3),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_a_fork_is_noticed_at_the_latest_when_all_pieces_are_there(trunk, one, other, seed):
    before = chain("t", trunk)
    previous = before[-1].id if before else NONE
    start = sum(trunk) + 1
    links = before + chain("a", one, start, previous) + chain("b", other, start, previous)
    random.Random(seed).shuffle(links)
    assert any(is_fork(link, links[:number]) for number, link in enumerate(links))


@st.composite
def trees(draw):
    """Segments of one log as clones of clones cut them; some may not have come yet."""
    links = [Link(b"0".ljust(32), 1, draw(st.integers(1, 3)), NONE)]
    for number in range(1, draw(st.integers(1, 12))):
        before = draw(st.sampled_from(links))
        last = before.last + draw(st.integers(1, 3))
        links.append(Link(f"{number}".encode().ljust(32), before.last + 1, last, before.id))
    return [link for link in links if draw(st.integers(0, 4))]


@given(trees())
def test_within_a_branch_no_counter_is_there_twice(links):
    found = branches(links)
    counted = [(found.branch[link.id], n) for link in links for n in range(link.first, link.last + 1)]
    assert len(counted) == len(set(counted))


@given(trees())
def test_a_branch_has_seen_all_that_it_continues_and_nothing_else(links):
    found = branches(links)
    known = {link.id: link for link in links}
    for link in links:
        name, before = found.branch[link.id], link
        while before.previous in known:
            before = known[before.previous]
            if (other := found.branch[before.id]) != name:
                assert found.seen[name][other] >= before.last
        for other, counter in found.seen.get(name, {}).items():
            assert counter < link.first, other
