"""Segments: what is read is what the author signed, and nothing else is."""

from __future__ import annotations

import contextlib
import struct

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey
from shala_agent import segment as seg
from shala_agent.segment import Entry, SegmentRefused, encode_entry, make_segment, read_header, read_segment

KEY = SigningKey(bytes(range(32)))
ENTRIES = [encode_entry(Entry("progress", f"u{n}/unit", 1, 1, 0, f'{{"n":{n}}}')) for n in range(50)]

entries = st.lists(
    st.builds(
        Entry,
        type=st.text(min_size=1, max_size=20),
        key=st.text(min_size=1, max_size=40),
        schema=st.integers(1, 9),
        depth=st.integers(1, 99),
        at=st.integers(-(1 << 53), 1 << 53),
        value=st.none() | st.text(max_size=200),
        context=st.none()
        | st.dictionaries(st.binary(min_size=16, max_size=16), st.integers(1, 99), max_size=3),
    ),
    min_size=1,
    max_size=30,
)


def made(first: int = 1) -> seg.Segment:
    return make_segment(KEY, "mz-aizawl", 7, first, seg.NONE, ENTRIES)


@given(entries, st.integers(1, 1 << 40))
def test_a_segment_gives_back_its_entries_and_counters(written, first):
    raw = [encode_entry(entry) for entry in written]
    read = read_segment(make_segment(KEY, "zone", 3, first, bytes(32), raw).data)
    assert list(read.numbered()) == list(enumerate(raw, first))
    assert [seg.decode_entry(entry) for entry in read.entries] == written


def test_its_id_is_that_of_its_header_whatever_became_of_the_body():
    whole = made()
    assert read_header(whole.data) == (whole.id, whole.header)
    assert seg.redact(whole, [3]).id == whole.id


@given(st.data())
def test_a_changed_byte_is_noticed_or_changes_nothing(data):
    whole = made()
    raw = bytearray(whole.data)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        read = read_segment(bytes(raw))
    except SegmentRefused:
        return
    assert (read.id, list(read.entries)) == (whole.id, ENTRIES)


@given(st.integers(0, 10_000))
def test_a_cut_segment_is_refused(length):
    whole = made().data
    if length < len(whole):
        with pytest.raises(SegmentRefused):
            read_segment(whole[:length])


def test_bytes_after_its_end_are_refused():
    with pytest.raises(SegmentRefused, match="more follows"):
        read_segment(made().data + b"x")


def test_another_author_cannot_sign_for_the_first():
    whole = made()
    other = make_segment(SigningKey(bytes(32)), "mz-aizawl", 7, 1, seg.NONE, ENTRIES)
    start = 13 + struct.unpack_from("<I", whole.data, 9)[0]
    forged = whole.data[:start] + other.data[start : start + 64] + whole.data[start + 64 :]
    with pytest.raises(SegmentRefused, match="signature is wrong"):
        read_segment(forged)


def test_a_body_that_would_fill_the_memory_is_refused_before_it_is_read():
    whole = made().data
    start = 13 + struct.unpack_from("<I", whole, 9)[0] + 64
    bomb = zstandard.ZstdCompressor().compress(bytes(seg.MAX_BODY + 1))
    with pytest.raises(SegmentRefused, match="its body has more than"):
        read_segment(whole[:start] + bomb)


def test_a_body_that_claims_to_be_short_is_refused_where_it_is_not():
    whole = made().data
    start = 13 + struct.unpack_from("<I", whole, 9)[0] + 64
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
    with pytest.raises(SegmentRefused):
        read_segment(whole[:start] + bomb)


def test_a_newer_format_says_what_to_do():
    raw = bytearray(made().data)
    raw[8] = 2
    with pytest.raises(SegmentRefused, match="update shala"):
        read_segment(bytes(raw))


def test_what_is_redacted_is_gone_and_the_rest_still_verifies():
    whole = made(first=11)
    read = read_segment(seg.redact(whole, [12, 14, 999]).data)
    assert [counter for counter, _ in read.numbered()] == [11, 13, *range(15, 61)]
    assert b'{"n":1}' not in zstandard.decompress(
        read.data[13 + struct.unpack_from("<I", read.data, 9)[0] + 64 :]
    )


def test_redacting_twice_is_redacting_once():
    once = seg.redact(made(), [2, 3])
    assert seg.redact(once, [2]).data == once.data


@given(st.lists(st.integers(1, 600_000), max_size=40))
def test_runs_keep_every_entry_in_its_place_and_stay_small(sizes):
    written = [(number, bytes(size)) for number, size in enumerate(sizes, 5)]
    cut = list(seg.runs(written))
    assert [(n, e) for first, run in cut for n, e in enumerate(run, first)] == written
    assert all(len(run) == 1 or sum(map(len, run)) <= seg.CUT_BODY for _, run in cut)


def test_a_body_of_a_million_things_is_refused_before_they_are_made():
    whole = made().data
    start = 13 + struct.unpack_from("<I", whole, 9)[0] + 64
    bomb = zstandard.compress(b"\xdd" + struct.pack(">I", 1_400_000) + b"\xc4\x00" * 1_400_000)
    with pytest.raises(SegmentRefused, match="holds 1400000 entries"):
        read_segment(whole[:start] + bomb)


def nested(depth: int) -> bytes:
    """Return a msgpack value of so many arrays within each other."""
    return b"\x91" * depth + b"\x00"


@pytest.mark.parametrize("depth", [40, 900, 3000, 200_000])
def test_an_entry_of_a_newer_shala_is_not_readable_where_it_is_nested_without_bottom(depth):
    with pytest.raises(seg.EntryUnreadable, match="nested"):
        seg.decode_entry(b"\x98" + ENTRIES[0][1:] + nested(depth))


def test_an_entry_with_a_field_of_a_newer_shala_is_read():
    assert seg.decode_entry(b"\x98" + ENTRIES[0][1:] + nested(20)) == seg.decode_entry(ENTRIES[0])


@given(st.binary(max_size=60))
def test_no_bytes_break_the_reader_of_entries(raw):
    for start in (b"", b"\x98", b"\x98" + ENTRIES[0][1:]):
        with contextlib.suppress(seg.EntryUnreadable):
            seg.decode_entry(start + raw)


def test_a_header_that_is_nested_without_bottom_is_refused():
    raw = msgspec.msgpack.encode(made().header)
    raw = bytes([raw[0] + 1]) + raw[1:] + b"\xa1x" + nested(2000)
    signature = KEY.sign(b"shala segment 1\n" + raw).signature
    with pytest.raises(SegmentRefused, match="nested"):
        read_header(struct.pack("<8sBI", seg.MAGIC, seg.VERSION, len(raw)) + raw + signature)


@pytest.mark.parametrize("context", [{b"x" * 15: 1}, {n.to_bytes(16, "big"): 1 for n in range(1001)}])
def test_an_entry_whose_context_names_no_logs_or_too_many_is_not_readable(context):
    raw = encode_entry(Entry("account", "zo", 1, 1, 0, "{}", context))
    with pytest.raises(seg.EntryUnreadable, match="length"):
        seg.decode_entry(raw)
