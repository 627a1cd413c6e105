"""The examples of docs/protocol.md: what is written there in words is what the code reads and writes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey
from shala_agent import wire
from shala_agent.membership import StatementRefused, read_statement
from shala_agent.records import Records
from shala_agent.segment import (
    NONE,
    Entry,
    SegmentRefused,
    encode_entry,
    log_id,
    make_segment,
    read_segment,
    redact,
)

FOLDER = Path(__file__).with_name("vectors")
VECTORS = json.loads((FOLDER / "vectors.json").read_text())


def raw(name: str) -> bytes:
    return bytes.fromhex(VECTORS[name])


def test_the_segment_reads_as_its_entries():
    segment = read_segment(raw("segment"))
    assert segment.id == raw("segment_id")
    assert segment.log == raw("log") == log_id(raw("author_key"), VECTORS["epoch"])
    assert [entry.hex() for entry in segment.entries] == VECTORS["entries"]
    assert (segment.header.zone, segment.header.first, segment.header.last) == (VECTORS["zone"], 1, 3)


def test_the_redacted_segment_has_the_same_id_and_signature():
    segment = read_segment(raw("redacted_segment"))
    assert segment.id == raw("segment_id")
    assert [entry is None for entry in segment.entries] == [False, True, False]
    assert redact(read_segment(raw("segment")), [2]).entries == segment.entries


def test_the_statement_is_the_centres_and_nobody_elses():
    id_, statement = read_statement(raw("statement"), raw("centre_key"))
    assert id_ == raw("statement_id")
    assert (statement.kind, statement.key) == ("enrol", VECTORS["author_key"])
    with pytest.raises(StatementRefused):
        read_statement(raw("statement"), raw("author_key"))


def test_the_revocation_cuts_the_log_off_at_the_segment():
    _, statement = read_statement(raw("revocation"), raw("centre_key"))
    assert statement.cut_offs == {VECTORS["log"]: 3}
    assert statement.heads == {VECTORS["log"]: [VECTORS["segment_id"]]}


def test_requests_and_enrolments_are_signed_as_written():
    key = raw("author_key")
    said = VECTORS["request"]
    body = said["body"].encode()
    text = wire.signed_text(said["method"], said["path"], said["session"], said["offset"], body)
    wire.verify(key, text, said["signature"])
    said = VECTORS["enrolment"]
    text = wire.enrol_text(VECTORS["author_key"], said["name"], said["token"])
    wire.verify(key, text, said["signature"])


def test_every_flipped_bit_of_the_segment_is_noticed():
    whole = raw("segment")
    for place in range(len(whole) * 8):
        hurt = bytearray(whole)
        hurt[place // 8] ^= 1 << place % 8
        try:
            # zstd has bits that mean nothing: then the content is the same, and signed.
            assert [entry.hex() for entry in read_segment(bytes(hurt)).entries] == VECTORS["entries"]
        except SegmentRefused:
            continue


def test_the_bytes_before_the_body_are_made_the_same_today():
    spec = importlib.util.spec_from_file_location("make_vectors", FOLDER / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    now = make.made()
    packed = {"segment", "redacted_segment"}
    assert {name: one for name, one in now.items() if name not in packed} == {
        name: one for name, one in VECTORS.items() if name not in packed
    }
    header = 13 + int.from_bytes(raw("segment")[9:13], "little") + 64
    for name in packed:
        assert now[name][: header * 2] == VECTORS[name][: header * 2]
    text = b"shala segment 1\n" + raw("segment")[13 : header - 64]
    VerifyKey(raw("author_key")).verify(text, raw("segment")[header - 64 : header])
    with pytest.raises(BadSignatureError):
        VerifyKey(raw("centre_key")).verify(text, raw("segment")[header - 64 : header])


def test_an_entry_whose_key_is_no_text_is_quarantined_alone(tmp_path: Path):
    key = SigningKey.generate()
    records = Records(tmp_path / "records.sqlite")
    records.enrol("mz", bytes(SigningKey.generate().verify_key), bytes(key.verify_key))
    good = encode_entry(Entry("account", "green-apple-mz17", 1, 1, 0, "{}"))
    bad = good.replace(b"green", b"gr\xff\xfen")
    foreign = make_segment(key, "mz", 99, 1, NONE, [bad, good])
    assert records.accept(foreign.data, from_centre=True) == "applied"
    assert [record.key for record in records.records()] == ["green-apple-mz17"]
