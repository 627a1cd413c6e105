"""BSON, as far as dumps of the assessment database need it: documents of a file, one after the other.

A dump was walked to its end before (shala_agent.checks), so what does not read here is one bad document.
"""

from __future__ import annotations

import datetime
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MAX_DOCUMENT = 1 << 20  # bytes; what is larger is no assessment that somebody took
MAX_DEPTH = 16

_FIXED: dict[int, tuple[int, Callable[[bytes], Any]]] = {
    0x01: (8, lambda raw: struct.unpack("<d", raw)[0]),
    0x06: (0, lambda _raw: None),
    0x07: (12, bytes.hex),
    0x08: (1, lambda raw: raw != b"\0"),
    0x09: (8, lambda raw: _moment(int.from_bytes(raw, "little", signed=True))),
    0x0A: (0, lambda _raw: None),
    0x10: (4, lambda raw: int.from_bytes(raw, "little", signed=True)),
    0x11: (8, lambda raw: int.from_bytes(raw, "little")),
    0x12: (8, lambda raw: int.from_bytes(raw, "little", signed=True)),
    0x13: (16, bytes.hex),
    0x7F: (0, lambda _raw: None),
    0xFF: (0, lambda _raw: None),
}


class DocumentUnreadable(Exception):
    """One document does not read; the text says why."""


def documents(path: Path) -> Iterator[dict[str, Any] | DocumentUnreadable]:
    """Yield the documents of a file, or why one cannot be read; one at a time is in memory."""
    with path.open("rb") as file:
        while head := file.read(4):
            size = int.from_bytes(head, "little", signed=True)
            if len(head) < 4 or size < 5:
                yield DocumentUnreadable("the file is cut")
                return
            if size > MAX_DOCUMENT:
                file.seek(size - 4, 1)
                yield DocumentUnreadable(f"a document has {size} bytes, more than {MAX_DOCUMENT}")
                continue
            raw = head + file.read(size - 4)
            try:
                yield decoded(raw)
            except (DocumentUnreadable, struct.error, ValueError, IndexError) as error:
                yield DocumentUnreadable(str(error))


def decoded(raw: bytes, depth: int = 0) -> dict[str, Any]:
    """Return one document: object ids and binary as hexadecimal, times as ISO 8601.

    Raises DocumentUnreadable, ValueError.
    """
    if depth > MAX_DEPTH or len(raw) < 5 or int.from_bytes(raw[:4], "little") != len(raw):
        raise DocumentUnreadable("a document is cut or too deep")
    found: dict[str, Any] = {}
    place = 4
    while (kind := raw[place]) != 0:
        end = raw.index(b"\0", place + 1)
        name = raw[place + 1 : end].decode("utf-8", "replace")
        found[name], place = _value(kind, raw, end + 1, depth)
    return found


def _value(kind: int, raw: bytes, place: int, depth: int) -> tuple[Any, int]:
    if (fixed := _FIXED.get(kind)) is not None:
        size, read = fixed
        return read(_slice(raw, place, size)), place + size
    if kind == 0x0B:  # a regular expression: two C strings
        middle = raw.index(b"\0", place)
        return None, raw.index(b"\0", middle + 1) + 1
    size = int.from_bytes(_slice(raw, place, 4), "little", signed=True)
    if size < 0:
        raise DocumentUnreadable("a field has a negative length")
    if kind in (0x02, 0x0D, 0x0E):
        text = _slice(raw, place + 4, size)
        return text[:-1].decode("utf-8", "replace"), place + 4 + size
    if kind in (0x03, 0x04):
        inner = decoded(_slice(raw, place, size), depth + 1)
        return (list(inner.values()) if kind == 0x04 else inner), place + size
    if kind == 0x05:
        return _slice(raw, place + 5, size).hex(), place + 5 + size
    raise DocumentUnreadable(f"a field is of the unknown kind {kind}")


def _slice(raw: bytes, place: int, size: int) -> bytes:
    if place + size > len(raw):
        raise DocumentUnreadable("a field is cut")
    return raw[place : place + size]


def _moment(milliseconds: int) -> str | None:
    try:
        when = datetime.datetime.fromtimestamp(0, datetime.timezone.utc) + datetime.timedelta(
            milliseconds=milliseconds
        )
    except OverflowError:
        return None
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
