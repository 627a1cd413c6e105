"""Have-sets: exact, whatever order the counters came in."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from shala_central.haves import Ranges

parts = st.lists(
    st.tuples(st.integers(1, 60), st.integers(0, 8)).map(lambda p: (p[0], p[0] + p[1])), max_size=12
)


@given(parts)
def test_they_hold_what_was_added_and_nothing_else(added):
    held = Ranges(added)
    wanted = {n for first, last in added for n in range(first, last + 1)}
    assert {n for first, last in held for n in range(first, last + 1)} == wanted
    assert len(held) == len(wanted)
    assert {n for first, last in held.missing(75) for n in range(first, last + 1)} == set(
        range(1, 76)
    ) - wanted


@given(parts, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(added, chance):
    first = Ranges(added)
    chance.shuffle(added)
    assert Ranges(added) == first


@given(parts)
def test_ranges_are_apart_and_in_order(added):
    ranges = list(Ranges(added))
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(ranges))
