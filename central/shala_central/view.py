"""The view: which files readers see of a server, as lists in a record that is being made.

That is the newest collection but for the items that are held back, whose last good ones stay; and of what is
encrypted the age files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from shala_agent.collection import Collection
from shala_agent.outcome import FAILED, SUSPECT

from shala_central.archive import Archive, Committed
from shala_central.bag import BagRefused
from shala_central.ciphertext import SUFFIX
from shala_central.listing import lines_of, merged, path_of, select
from shala_central.records import ENCRYPTED, PUBLISHED, VIEW, PullRecord, RecordDamaged

MAX_NAME = 255  # bytes of a file's name


def held_items(
    previous: Committed | None, collection: Collection, pull: PullRecord, handle: Callable[[int], str]
) -> dict[str, str]:
    """Return which items leave an earlier one in view: {platform/item: the handle of its collection}.

    Those that are suspect now; and what is held already, or was restored, until a good one comes.
    """
    held: dict[str, str] = {}
    if previous is None:
        return held
    if previous.pull.is_of_same_collection(pull):
        return previous.pull.held
    try:
        before = previous.collection()
    except RecordDamaged:
        before = None
    for item in collection.items:
        key = f"{item.platform}/{item.name}"
        last = before.item(item.platform, item.name) if before is not None else None
        if item.outcome in (SUSPECT, FAILED) and key in previous.pull.held:
            held[key] = previous.pull.held[key]
        elif item.outcome != SUSPECT or last is None or not last.files:
            continue
        elif last.outcome != SUSPECT or key in previous.pull.accepted:
            held[key] = handle(last.carried_from or previous.pull.sequence)
    return held


def write_view(
    record: Path, files: Iterator[bytes], before: Iterator[bytes], held: Mapping[str, str]
) -> None:
    """Write the list of what is to be published: the collection, with the held items as they were."""
    prefixes = [f"data/{item}" for item in held]
    with (record / VIEW).open("wb") as view:
        view.writelines(merged(select(files, prefixes, inside=False), select(before, prefixes, inside=True)))


def write_published(archive: Archive, name: str, record: Path, chosen: Path) -> Path:
    """Given the list of what is to be in view, return the list of what is published: age files too.

    Raises BagRefused where an age file's name is taken or too long.
    """
    ciphertexts = archive.objects.ciphertexts
    if not ciphertexts.items(name):
        return chosen
    published, encrypted = record / PUBLISHED, record / ENCRYPTED
    with published.open("wb") as lines, encrypted.open("wb") as paths:
        lines.writelines(_without_clashes(ciphertexts.lines(name, lines_of(chosen), paths=paths)))
    if encrypted.stat().st_size:
        return published
    published.unlink()
    encrypted.unlink()
    return chosen


def _without_clashes(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a list whose order is right. Raises BagRefused where two cannot both be there."""
    last = b"\0"
    for line in lines:
        path = path_of(line)
        name = path[5:].decode()
        if path == last or path.startswith(last + b"/"):
            raise BagRefused([f"'{name}' has a name that an encrypted file has here (*{SUFFIX})"], [name])
        if path.endswith(SUFFIX.encode()) and len(path.rpartition(b"/")[2]) > MAX_NAME:
            raise BagRefused(
                [f"'{name}' has a name that is too long to be that of an encrypted file"], [name]
            )
        last = path
        yield line
