"""Have-sets: which counters of which logs are there, exactly, in whatever order they arrived.

Per log the ranges that are present: never only the greatest one seen, so nothing that is missing can pass for
present (KA Lite's fault, facts/sync.md 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Range = tuple[int, int]  # first and last counter, both included


class Ranges:
    """The counters of one log: sorted, disjoint ranges that do not touch."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._ranges: list[Range] = []
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        """Add the counters first..last."""
        kept: list[Range] = []
        for a, b in self._ranges:
            if b + 1 < first or last + 1 < a:
                kept.append((a, b))
            else:
                first, last = min(first, a), max(last, b)
        self._ranges = sorted([*kept, (first, last)])

    def missing(self, last: int) -> Iterator[Range]:
        """Yield the ranges up to `last` that are not there."""
        nextone = 1
        for a, b in self._ranges:
            if nextone > last:
                return
            if nextone < a:
                yield nextone, min(a - 1, last)
            nextone = max(nextone, b + 1)
        if nextone <= last:
            yield nextone, last

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return sum(b - a + 1 for a, b in self._ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._ranges == other._ranges

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ranges({self._ranges})"
