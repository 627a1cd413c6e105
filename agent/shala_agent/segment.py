"""Segments: an immutable, compressed, signed run of one device's changes, the same bytes on every carrier.

    8 bytes  "SHALASEG"
    1 byte   version of the format: 1
    4 bytes  length of the header, little endian
    header   msgpack map, see `Header`
    64 bytes Ed25519 signature of "shala segment 1\\n" and the header
    body     a zstd frame: msgpack array of the entries, each as bytes (docs/protocol.md, section 3)

The header names its author, the counters first..last, the segment before, and the root: the SHA-256 of the
SHA-256 of every entry. So a relay can neither forge nor reorder, and an entry that was redacted (only its
digest left in its place) does not hurt the signature. The id is the SHA-256 of the header.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import zstandard
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

MAGIC = b"SHALASEG"
VERSION = 1
MAX_ENTRIES = 4096
MAX_BODY = 4 << 20  # bytes, uncompressed: bounds the memory of whoever reads one
# Bytes, uncompressed, at which a segment is cut: compressed nearly always less than the 256 KiB of one
# request, so that the centre need not keep a part of it first (bench/sync.py: 30 % fewer requests).
CUT_BODY = 768 << 10
MAX_ENTRY = 256 << 10  # bytes
MAX_DEPTH = 1 << 31  # of a record: it rises no more then, and log ids decide
MAX_HEADER = 4096  # bytes
MAX_CONTEXT = 1000  # logs that an entry names
MAX_NESTING = 32  # of what a newer shala may have put into a header or an entry
MAX_SEGMENT = MAX_BODY + MAX_HEADER + 1024  # bytes; of what cannot be compressed
NONE = bytes(32)  # the id of the segment before the first

_sha256 = hashlib.sha256
_PREFIX = struct.Struct("<8sBI")
_SIGNED = b"shala segment 1\n"
_SIGNATURE = 64
# Levels of zstd, measured on the records of bench/sync: of many records 3 takes 1 us each, 15 takes 22 us
# and saves 6 %; of the few of an ordinary hour 15 takes 11 ms in all and saves 11 %.
_LEVEL, _LEVEL_OF_FEW = 3, 15
_FEW = 128 * 1024  # bytes of a body, as it is before

Counter = Annotated[int, msgspec.Meta(ge=1, le=(1 << 53) - 1)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
LogId = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Seen = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]


class SegmentRefused(Exception):
    """The bytes are no segment, or not what their author signed. The text is for a person."""


class EntryUnreadable(Exception):
    """An entry is none that can be read. The text is for a person."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed. Fields that a newer shala adds are kept, because the bytes are."""

    zone: Annotated[str, msgspec.Meta(max_length=64)]
    key: Digest  # the author's public key
    epoch: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    first: Counter
    last: Counter
    previous: Digest  # id of the author's segment before this one
    root: Digest


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One change of one record. `value` is the JSON text of an object, None where the record was deleted.

    `context` is what the author had seen of this record from others: {log id: counter}. What it had seen of
    itself needs no mention. `depth` is one more than the greatest depth it had seen (a Lamport clock of the
    record); `at` is the author's clock in seconds, to be shown and never to be believed.
    """

    type: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    schema: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
    depth: Annotated[int, msgspec.Meta(ge=1, le=MAX_DEPTH)]
    at: Annotated[int, msgspec.Meta(ge=-(1 << 53), le=1 << 53)]
    value: str | None
    context: Annotated[dict[LogId, Seen], msgspec.Meta(max_length=MAX_CONTEXT)] | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment that was read and verified. `entries` are the bytes of each, None where it was redacted."""

    id: bytes
    header: Header
    data: bytes
    entries: Sequence[bytes | None]

    @property
    def log(self) -> bytes:
        """The id of the log that it is a part of."""
        return log_id(self.header.key, self.header.epoch)

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """Yield (counter, bytes) of each entry that is there."""
        for number, entry in enumerate(self.entries, self.header.first):
            if entry is not None:
                yield number, entry


_entry_encoder = msgspec.msgpack.Encoder()
_body_decoder = msgspec.msgpack.Decoder(list[bytes | msgspec.msgpack.Ext])
_header_decoder = msgspec.msgpack.Decoder(Header)
_entry_decoder = msgspec.msgpack.Decoder(Entry)
_PLAIN = b"\x97"  # how an entry begins that holds the fields of today and nothing else
_REDACTED = 1  # the code of the msgpack extension that stands for an entry: its digest


def log_id(key: bytes, epoch: int) -> bytes:
    """Return the 16 bytes by which a log, the counters of one device in one epoch, is named in contexts."""
    return hashlib.blake2b(key + struct.pack("<Q", epoch), digest_size=16).digest()


def branch_id(log: bytes, segment: bytes) -> bytes:
    """Return the log id of a branch of a forked log, given the id of its first segment."""
    return hashlib.blake2b(log + segment, digest_size=16).digest()


def encode_entry(entry: Entry) -> bytes:
    """Return the bytes of an entry."""
    return _entry_encoder.encode(entry)


def decode_entry(raw: bytes) -> Entry:
    """Return the entry that bytes hold. Raises EntryUnreadable, for the same bytes on every server."""
    # Only what follows the fields of today can be nested: within them the first wrong type ends it.
    if raw[:1] != _PLAIN and not _is_flat(raw):
        raise EntryUnreadable(f"is nested more than {MAX_NESTING} deep, or cut")
    try:
        return _entry_decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EntryUnreadable(f"is not readable: {error}") from None


def runs(entries: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, list[bytes]]]:
    """Given (counter, bytes) in order, yield (first counter, entries) of each segment to be cut."""
    first, size = 0, 0
    run: list[bytes] = []
    for number, entry in entries:
        if run and (len(run) >= MAX_ENTRIES or size + len(entry) > CUT_BODY):
            yield first, run
            run, size = [], 0
        if not run:
            first = number
        run.append(entry)
        size += len(entry)
    if run:
        yield first, run


def make_segment(  # noqa: PLR0917 - all of them, once
    key: SigningKey, zone: str, epoch: int, first: int, previous: bytes, entries: Sequence[bytes]
) -> Segment:
    """Cut a segment: compress and sign entries that begin with the counter `first`."""
    header = Header(
        zone=zone,
        key=bytes(key.verify_key),
        epoch=epoch,
        first=first,
        last=first + len(entries) - 1,
        previous=previous,
        root=_root(entries),
    )
    raw = msgspec.msgpack.encode(header)
    signature = key.sign(_SIGNED + raw).signature
    data = _join(raw, signature, list(entries))
    return Segment(_sha256(raw).digest(), header, data, entries)


def read_header(data: bytes) -> tuple[bytes, Header]:
    """Return (id, header) of a segment without looking at its body; its signature is verified.

    Raises SegmentRefused.
    """
    raw, signature, _ = _split(data)
    if not _is_flat(raw):
        raise SegmentRefused(f"its header is nested more than {MAX_NESTING} deep, or cut")
    try:
        header = _header_decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SegmentRefused(f"its header is not readable: {error}") from None
    if not 0 <= header.last - header.first < MAX_ENTRIES:
        raise SegmentRefused(f"it claims the counters {header.first} to {header.last}")
    try:
        VerifyKey(header.key).verify(_SIGNED + raw, signature)
    except (BadSignatureError, ValueError):
        raise SegmentRefused("its signature is wrong") from None
    return _sha256(raw).digest(), header


def read_segment(data: bytes) -> Segment:
    """Return a segment, signature and content verified. Raises SegmentRefused."""
    id_, header = read_header(data)
    body = _decompress(_split(data)[2])
    if (length := _array_length(body)) != header.last - header.first + 1:
        raise SegmentRefused(f"it holds {length} entries, not those of its counters")
    try:
        items = _body_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise SegmentRefused(f"its body is not readable: {error}") from None
    entries = [item if isinstance(item, bytes) else None for item in items]
    if max(map(len, filter(None, entries)), default=0) > MAX_ENTRY:
        raise SegmentRefused(f"an entry has more than {MAX_ENTRY} bytes")
    if _root(items) != header.root:
        raise SegmentRefused("its content is not what its author signed")
    return Segment(id_, header, data, entries)


def redact(segment: Segment, counters: Iterable[int]) -> Segment:
    """Return the segment with the entries of these counters replaced by their digests: gone for good, and
    id and signature stay valid.
    """
    raw, signature, packed = _split(segment.data)
    items = _body_decoder.decode(_decompress(packed))
    for counter in counters:
        place = counter - segment.header.first
        if 0 <= place < len(items):
            items[place] = msgspec.msgpack.Ext(_REDACTED, _digest_of(items[place]))
    return read_segment(_join(raw, signature, items))


def _join(raw: bytes, signature: bytes, items: Sequence[bytes | msgspec.msgpack.Ext]) -> bytes:
    body = msgspec.msgpack.encode(items)
    level = _LEVEL_OF_FEW if len(body) <= _FEW else _LEVEL
    packed = zstandard.ZstdCompressor(level=level).compress(body)
    return _PREFIX.pack(MAGIC, VERSION, len(raw)) + raw + signature + packed


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return (header, signature, body) of the bytes of a segment."""
    if len(data) > MAX_SEGMENT:
        raise SegmentRefused(f"it has more than {MAX_SEGMENT} bytes")
    if len(data) < _PREFIX.size:
        raise SegmentRefused("it is cut")
    magic, version, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise SegmentRefused("it is no segment")
    if version != VERSION:
        raise SegmentRefused(f"it is of format {version}, this shala reads {VERSION} (update shala)")
    start = _PREFIX.size
    if length > MAX_HEADER or len(data) < start + length + _SIGNATURE:
        raise SegmentRefused("it is cut")
    signature = start + length
    return data[start:signature], data[signature : signature + _SIGNATURE], data[signature + _SIGNATURE :]


def _is_flat(packed: bytes) -> bool:
    """Return whether one msgpack value is nested MAX_NESTING deep at most. Looked at before it is decoded:
    how deep a decoder can go depends on the stack that is left, and what comes of an entry must not.
    """
    place, left = 0, [1]  # how many values are to come, on each level
    while left:
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        if place >= len(packed):
            return False
        kind = packed[place]
        place += 1
        if kind in _HEADS:
            size, fixed, of = _HEADS[kind]
            number = int.from_bytes(packed[place : place + size], "big")
            place += size + fixed + (number if of == 0 else 0)
            inner = number * of
        elif 0x80 <= kind <= 0x9F:
            inner = (kind & 0x0F) * (2 if kind < 0x90 else 1)
        else:
            place += kind & 0x1F if 0xA0 <= kind <= 0xBF else 0
            inner = 0
        if inner:
            left.append(inner)
            if len(left) > MAX_NESTING + 1:
                return False
    return place <= len(packed)


# The first byte of a msgpack value: how many bytes tell a number, how many follow in any case, and how many
# values each of that number stands for; none where it is a number of bytes.
# fmt: off
_HEADS = {
    0xC4: (1, 0, 0), 0xC5: (2, 0, 0), 0xC6: (4, 0, 0),  # bin
    0xC7: (1, 1, 0), 0xC8: (2, 1, 0), 0xC9: (4, 1, 0),  # ext
    0xCA: (0, 4, 0), 0xCB: (0, 8, 0),  # float
    0xCC: (0, 1, 0), 0xCD: (0, 2, 0), 0xCE: (0, 4, 0), 0xCF: (0, 8, 0),  # uint
    0xD0: (0, 1, 0), 0xD1: (0, 2, 0), 0xD2: (0, 4, 0), 0xD3: (0, 8, 0),  # int
    0xD4: (0, 2, 0), 0xD5: (0, 3, 0), 0xD6: (0, 5, 0), 0xD7: (0, 9, 0), 0xD8: (0, 17, 0),  # fixext
    0xD9: (1, 0, 0), 0xDA: (2, 0, 0), 0xDB: (4, 0, 0),  # str
    0xDC: (2, 0, 1), 0xDD: (4, 0, 1), 0xDE: (2, 0, 2), 0xDF: (4, 0, 2),  # array, map
}
# fmt: on


def _array_length(packed: bytes) -> int:
    """Return how many items a msgpack array says to hold, -1 where it is none: looked at before any is made,
    for a million of them fit into a few hundred compressed bytes.
    """
    kind = packed[:1]
    if kind and 0x90 <= kind[0] <= 0x9F:
        return kind[0] & 0x0F
    sizes = {b"\xdc": 2, b"\xdd": 4}
    return int.from_bytes(packed[1 : 1 + sizes[kind]], "big") if kind in sizes else -1


def _decompress(body: bytes) -> bytes:
    try:
        size = zstandard.frame_content_size(body)
        if not 0 <= size <= MAX_BODY:
            raise SegmentRefused(f"its body has more than {MAX_BODY} bytes, or does not say how many")
        reader = zstandard.ZstdDecompressor().decompressobj()
        plain = reader.decompress(body)
    except zstandard.ZstdError as error:
        raise SegmentRefused(f"its body is damaged: {error}") from None
    if len(plain) != size or reader.unused_data or not reader.eof:
        raise SegmentRefused("its body is cut, or more follows it")
    return plain


def _root(items: Iterable[bytes | msgspec.msgpack.Ext]) -> bytes:
    return _sha256(b"".join([_digest_of(item) for item in items])).digest()


def _digest_of(item: bytes | msgspec.msgpack.Ext) -> bytes:
    if isinstance(item, bytes):
        return _sha256(item).digest()
    digest = bytes(item.data)
    if item.code != _REDACTED or len(digest) != 32:
        raise SegmentRefused("an entry is neither there nor redacted")
    return digest
