"""Tables and sizes as a person reads them, in plain text: the same at a terminal, in a pipe and in a mail."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

MAX_NAMED = 3  # items of a server that are named one by one


def size(number: int) -> str:
    """Return bytes in words: `0 B`, `512 B`, `1.4 kB`, `17 GB` (powers of ten)."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.1f} {unit}" if unit != "B" and value < 99.95 else f"{value:.0f} {unit}"


def duration(seconds: float) -> str:
    """Return a duration in words: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def table(
    rows: Sequence[Mapping[str, object]], columns: Sequence[str], right: Sequence[str] = ()
) -> list[str]:
    """Given rows and column names, return aligned lines with a header;
    columns named in `right` are right-aligned.
    """
    texts = [[_clean(row.get(column, "")) for column in columns] for row in rows]
    widths = [max([_width(column), *(_width(text[i]) for text in texts)]) for i, column in enumerate(columns)]
    lines = []
    for cells in [list(columns), ["-" * width for width in widths], *texts]:
        parts = []
        for column, cell, width in zip(columns, cells, widths, strict=True):
            gap = " " * (width - _width(cell))
            parts.append(gap + cell if column in right else cell + gap)
        lines.append("  ".join(parts).rstrip())
    return lines


def named(items: Sequence[str]) -> str:
    """Return the first items of a server, and how many others there are."""
    others = len(items) - MAX_NAMED
    more = f" and {others} other{'' if others == 1 else 's'}" if others > 0 else ""
    return ", ".join(items[:MAX_NAMED]) + more


def cut(text: str, length: int) -> str:
    """Return a text, or so much of one that is longer and dots."""
    return text if len(text) <= length else f"{text[: length - 4].rstrip()} ..."


def _clean(value: object) -> str:
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else "?" for c in text)


def _width(text: str) -> int:
    """Return the columns a text takes at a terminal: combining vowel signs take none, wide characters two."""
    return sum(
        0
        if unicodedata.combining(c) or unicodedata.category(c) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(c) in "WF"
        else 1
        for c in text
    )
