"""Lists of files as they lie on the disk: compared, and put together out of changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from shala_agent.manifest import Change, File, Gone, sort_key, write_line
from shala_central.listing import changes_between, fold

PATH = st.lists(st.sampled_from(["a", "a b", "a-b", "A", "ä", "b"]), min_size=1, max_size=4).map("/".join)
CONTENT = st.builds(
    lambda seed, mtime: (hashlib.sha256(bytes([seed])).hexdigest(), seed, mtime, 0o644),
    st.integers(0, 5),
    st.integers(-(10**18), 2 * 10**18),
)
LINES = st.dictionaries(PATH, CONTENT, max_size=12).map(
    lambda found: [write_line(File(path, *found[path])) for path in sorted(found, key=sort_key)]
)


def lines_of(changes: Iterable[Change]) -> list[bytes]:
    return [write_line(change) for change in changes]


@given(LINES, LINES)
def test_changes_lead_from_one_collection_to_the_next(old, new):
    assert list(fold(old, [lines_of(changes_between(old, new))])) == new


@given(LINES, LINES, LINES)
def test_the_changes_of_several_days_can_be_put_together(first, second, third):
    days = [lines_of(changes_between(*pair)) for pair in ((first, second), (second, third))]
    assert list(fold(first, days)) == third


@given(LINES)
def test_nothing_new_is_no_change(lines):
    assert list(changes_between(lines, lines)) == []


def test_removing_what_is_not_there_is_no_error():
    assert list(fold([], [[write_line(Gone("a"))]])) == []
