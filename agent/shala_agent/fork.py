"""Forks: one log that was continued twice (a cloned disk, a restored backup), taken apart into branches.

Segments name the one before, so a log is a chain; where it is a tree instead, everything from the place of
dispute on belongs to a branch of its own, named after the first segment of it. Neither side is the right one
and none is lost. What comes out depends on the set of segments alone, not on which came first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from shala_agent.segment import NONE


class Link(NamedTuple):
    """A segment as a link of the chain."""

    id: bytes
    first: int
    last: int
    previous: bytes


class Branches(NamedTuple):
    """How a log is taken apart. A branch is named after its first segment; None is the trunk.

    `branch` of each segment; `seen` of each branch: up to which counter it continues the trunk and the
    branches before it. From the counter `disputed` on, a mention of the log does not say which one is meant.
    """

    branch: Mapping[bytes, bytes | None]
    seen: Mapping[bytes, Mapping[bytes | None, int]]
    disputed: int | None


def is_fork(link: Link, neighbours: Iterable[Link]) -> bool:
    """Return whether a segment does not continue, or is not continued by, those that touch or overlap it."""
    for other in neighbours:
        if other.id == link.id:
            continue
        if other.first <= link.last and link.first <= other.last:
            return True
        if other.last + 1 == link.first and other.id != link.previous:
            return True
        if link.last + 1 == other.first and link.id != other.previous:
            return True
    return False


def branches(links: Iterable[Link]) -> Branches:
    """Return how the segments of one log are taken apart: within a branch no counter is there twice."""
    nodes = {link.id: link for link in links}
    # A segment that is only spoken of takes part: where it ended, and thus what it disputes, is known.
    spoken = {link.previous: link.first - 1 for link in nodes.values() if link.previous != NONE}
    continued = Counter(link.previous for link in nodes.values())
    for id_, last in spoken.items():
        nodes.setdefault(id_, Link(id_, last, last, NONE))
    disputed = _disputed(nodes.values())
    branch: dict[bytes, bytes | None] = {}
    seen: dict[bytes, Mapping[bytes | None, int]] = {}
    for link in sorted(nodes.values(), key=lambda one: one.first):
        before = branch.get(link.previous)
        begins = link.id in disputed if before is None else continued[link.previous] > 1
        branch[link.id] = name = link.id if begins else before
        if begins and name is not None:
            earlier = seen[before] if before is not None else {}
            seen[name] = {**earlier, before: link.first - 1} if link.previous in nodes else {None: 0}
    starts = [nodes[id_].first for id_ in disputed]
    return Branches(branch, seen, min(starts, default=None))


def _disputed(links: Iterable[Link]) -> set[bytes]:
    """Return the ids of segments that overlap another one."""
    found: set[bytes] = set()
    longest: Link | None = None
    for link in sorted(links, key=lambda one: (one.first, one.last, one.id)):
        if longest is not None and link.first <= longest.last:
            found |= {link.id, longest.id}
        if longest is None or link.last > longest.last:
            longest = link
    return found
