"""Gathering: what is known of an item, and of each of its files, while it is collected."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from shala_agent.catalogue import Item
from shala_agent.collection import ItemResult
from shala_agent.manifest import File, key_range
from shala_agent.outcome import Findings
from shala_agent.seen import Known, Seen
from shala_agent.sketch import Sketch
from shala_agent.writers import Writer


class ItemPart(NamedTuple):
    """What the server has of an item: the folder in it, or "", where that is, and what it was like."""

    folder: str
    root: Path
    seen: os.stat_result


class Beside:
    """What is known of an item, read beside the walk of its files: both are in the order of manifests."""

    def __init__(self, seen: Seen, item: str) -> None:
        self._seen = seen
        self._rows = seen.known(item)
        self._next = next(self._rows, None)

    def at(self, key: str) -> Known | None:
        """Return what is known of a file; what lies before it is there no more."""
        row = self._next
        while row is not None and row.key < key:
            self._pass(row)
            row = self._next = next(self._rows, None)
        if row is None or row.key != key:
            return None
        self._next = next(self._rows, None)
        return row

    def below(self, path: str) -> Iterator[Known]:
        """Yield what is known of a path and all below it; what lies before is there no more."""
        first, after = key_range(path)
        row = self.at(first)
        if row is not None:
            yield row
        while (row := self._next) is not None and row.key < after:
            self._next = next(self._rows, None)
            yield row

    def finish(self) -> None:
        """Note that nothing more is there."""
        while self._next is not None:
            self._pass(self._next)
            self._next = next(self._rows, None)

    def _pass(self, row: Known) -> None:
        if row.sealed_sha256 is None:
            self._seen.forget(row.key)
        else:
            self._seen.lose(row.key)


@dataclass(slots=True)
class Gathering:
    """What is known so far about an item that is being gathered."""

    item: Item
    prefix: str
    beside: Beside
    sketch: Sketch
    # Of the previous collection, if that has it in the form that the policy asks for today.
    before: ItemResult | None = None
    other_form: bool = False  # the previous collection has it in another one: nothing of that is kept
    finished: float = float("-inf")  # when the step that makes it last ended
    writers: list[Writer] = field(default_factory=list)
    left_out: int = 0  # files that the policy excludes
    # When the newest whole file of an export was made, and its size; of those exports that have halves.
    newest_whole: dict[str, tuple[str, int]] = field(default_factory=dict)
    superseded: int = 0  # such halves, where that one is later
    findings: Findings = field(default_factory=Findings)
    notes: Findings = field(default_factory=Findings)
    found: bool = False
    files: int = 0
    size: int = 0
    lost: int = 0  # files that were to be carried on, and that the mirror has no more
    tops: set[str] = field(default_factory=set)  # what its folder holds, where the item requires something

    def shown(self, path: str) -> str:
        """Return by what name a file of the item is spoken of."""
        return path[len(self.prefix) + 1 :] or self.item.name

    def folder_of(self, part: ItemPart) -> str:
        """Return the path that a part has in the bag, with a slash at its end."""
        return f"{self.prefix}/{part.folder}/" if part.folder else f"{self.prefix}/"

    def withholds(self, path: str) -> bool:
        """Return whether the policy leaves a file out that the previous collection may have."""
        inside = path[len(self.prefix) + 1 :].removesuffix(self.item.policy.suffix)
        folders = [folder for folder, _ in self.item.parts if folder and inside.startswith(f"{folder}/")]
        relative = inside[len(folders[0]) + 1 :] if folders else inside
        policy = self.item.policy
        return bool(relative) and (policy.leaves_out(relative) or bool(policy.refuses(relative)))

    def count(self, path: str, size: int) -> None:
        """Count a file of the next collection."""
        self.files += 1
        self.size += size
        if self.item.required:
            self.tops.add(path[len(self.prefix) + 1 :].partition("/")[0])


@dataclass(slots=True)
class Spot:
    """One path of the next collection: what is sealed there and still at hand, and whether it is planned."""

    gathering: Gathering
    path: str
    shown: str
    known: Known | None
    sealed: File | None
    found: tuple[str, ...] = ()  # what is to be said of it besides what its check finds
    planned: bool = False
    read_day: int | None = None  # when what it holds was read, if its entry is known again by its signs

    @property
    def inside(self) -> str:
        """The path inside the item, as the platform has it."""
        return self.shown.removesuffix(self.gathering.item.policy.suffix)

    def source_sealed(self) -> tuple[int, str] | None:
        """Return the size and the digest of the file when it was sealed, if they are known."""
        known, gathering = self.known, self.gathering
        if known is None or known.sealed_sha256 is None:
            return None
        if known.sha256 == known.sealed_sha256 and known.size is not None:
            return known.size, known.plain_sha256 or known.sha256
        if gathering.other_form or gathering.item.policy.treats(self.inside):
            return None
        return known.sealed_size, known.sealed_sha256

    def keep(self) -> bool:
        """Plan what is sealed, if it is at hand; return whether it is."""
        if self.sealed is not None and not self.planned:
            self.planned = True
            self.gathering.count(self.path, self.sealed.size)
        return self.sealed is not None
