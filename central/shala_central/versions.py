"""Versions: the collections of a server that are kept, what each of them holds, and what they all need."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from shala_agent.collection import Collection
from shala_agent.manifest import File, ManifestError

from shala_central.archive import Archive, Committed
from shala_central.bag import FILES
from shala_central.failure import CentralError, UsageError
from shala_central.history import History, HistoryError, Version
from shala_central.listing import changes_between, differing, file_of, lines_in, lines_of, readable
from shala_central.records import (
    ENCRYPTED,
    HEAD,
    PUBLISHED,
    PULL,
    PULL_DIGEST,
    VIEW,
    PullRecord,
    RecordDamaged,
    digest_sealed,
    has_published_list,
    has_pull,
    has_sealed_list,
    has_view,
    pull_of,
    read_pull,
)

logger = logging.getLogger(__name__)


class NotRemembered(CentralError):
    """A commit goes on, or was cut: the collection before it is not in the history yet."""


class Difference(msgspec.Struct, frozen=True):
    """One file that differs between two collections: + new, - gone, * changed; its size in bytes."""

    sign: str
    path: str
    bytes: int


def versions_of(archive: Archive, name: str) -> list[Version]:
    """Return every collection of a server that is kept, oldest first; the newest has the id 0.

    Raises UsageError if there is none.
    """
    newest = newest_of(archive, name)
    with archive.history() as history:
        return [*history.versions(name), newest]


def newest_of(archive: Archive, name: str) -> Version:
    """Return the newest collection of a server. Raises UsageError if there is none."""
    pull = archive.require_committed(name).pull
    return Version(0, name, pull.pulled, pull.year, pull.sequence, pull.files, pull.bytes)


def newest_of_years(archive: Archive, name: str) -> dict[int, Version]:
    """Return the newest collection of each year, whose tree stands in that year: {year: collection}."""
    return {version.year: version for version in versions_of(archive, name)}


def version_of(archive: Archive, name: str, wanted: int | str | None) -> Version:
    """Return one kept collection: by its number, by its handle `2@2026-11-21T15:38`, or None: the newest.

    Raises UsageError if there is none, or more than one of that number.
    """
    newest = newest_of(archive, name)
    if wanted is None:
        return newest
    try:
        versions = versions_of(archive, name)
    except HistoryError:
        if str(wanted) == str(newest.sequence):  # as far as is known
            return newest
        raise
    number, _, pulled = str(wanted).partition("@")
    found = [v for v in versions if str(v.sequence) == number and v.pulled.startswith(pulled)]
    if len(found) == 1:
        return found[0]
    names = handles(versions)
    if found:
        which = ", ".join(names[version] for version in found)
        raise UsageError(
            f"{name} has {len(found)} collections {wanted}: it was installed anew (name one: {which})"
        )
    kept = ", ".join(names[version] for version in versions[-10:])
    raise UsageError(f"{name} has no collection {wanted} (kept are: {kept}; shala archive log {name})")


def handles(versions: Sequence[Version]) -> dict[Version, str]:
    """Return what each collection of one server is called: its number, and its time where that is not enough.

    After a server was installed anew its numbers begin again.
    """
    names: dict[Version, str] = {}
    for version in versions:
        times = [v.pulled for v in versions if v.sequence == version.sequence]
        # Characters of ISO 8601: none, to the minute, to the second, all.
        for length in (0, 16, 19, len(version.pulled)):
            time_shown = version.pulled[:length]
            if sum(pulled.startswith(time_shown) for pulled in times) == 1:
                break
        names[version] = f"{version.sequence}{'@' if time_shown else ''}{time_shown}"
    return names


def shown(handle: str) -> str:
    """Return the handle of a collection as it is said where others are not known: to the minute."""
    number, at, pulled = handle.partition("@")
    return number + at + pulled[:16]


def files_of(archive: Archive, version: Version) -> Iterator[bytes]:
    """Yield the lines of FILES of a kept collection.

    Raises RecordDamaged, at the end, where those of an earlier one do not come to what the school sealed.
    """
    newest = archive.require_committed(version.server).files()
    if version.id == 0:
        yield from newest
        return
    digest = hashlib.sha256()
    with archive.history() as history:
        wanted, known = digest_sealed(history.record(version)), history.versions(version.server)
        try:
            for line in history.files(version, newest):
                digest.update(line)
                yield line
        except ManifestError:
            wanted = ""
        is_whole = digest.hexdigest() == wanted
        is_same = is_whole or history.versions(version.server) == known
    if not is_whole:
        if not is_same or archive.is_at_work(version.server):
            raise NotRemembered(
                f"a collection of {version.server} is being committed (try again; one that was cut is"
                " finished by the next pull)"
            )
        raise RecordDamaged(
            f"the list of files of collection {version.sequence} of {version.server} cannot be told any"
            " more: a record that leads to it is damaged (another copy of the archive may have it)"
        )


def view_of(archive: Archive, version: Version) -> Iterator[bytes]:
    """Yield the lines of the list of what was published of a kept collection.

    Raises CentralError if it is damaged.
    """
    if version.id == 0:
        yield from _published_list(archive.require_committed(version.server))
        return
    with archive.history() as history:
        record = history.record(version)
    lines = chosen_of(archive, version, record)
    if ENCRYPTED not in record:
        yield from lines
        return
    only = set(record[ENCRYPTED].splitlines())
    yield from archive.objects.ciphertexts.lines(version.server, lines, only)


def chosen_of(archive: Archive, version: Version, record: Mapping[str, bytes]) -> Iterator[bytes]:
    """Yield the lines of the list of what was in view of an earlier collection, as it was sealed.

    Raises CentralError if it is damaged.
    """
    view = _view_of(version, record)
    return lines_in(view) if view is not None else files_of(archive, version)


def _view_of(version: Version, record: Mapping[str, bytes]) -> bytes | None:
    """Return VIEW of the record of an earlier collection, None where there is none. Raises CentralError."""
    view = record.get(VIEW)
    wanted = msgspec.json.decode(record["pull.json"], type=PullRecord).view_sha256
    if wanted and hashlib.sha256(view or b"").hexdigest() != wanted:
        raise _damaged_view(f"collection {version.sequence} of {version.server}")
    return view


def _published_list(committed: Committed) -> Iterator[bytes]:
    if not has_published_list(committed.record):
        raise _damaged_view(committed.name)
    return committed.view()


def _damaged_view(whose: str) -> CentralError:
    return CentralError(f"{VIEW} in the record of {whose} is damaged (shala archive repair)")


def record_of(archive: Archive, version: Version) -> dict[str, bytes]:
    """Return the small files of the record of a kept collection, by name."""
    if version.id:
        with archive.history() as history:
            record = history.record(version)
    else:
        folder = archive.require_committed(version.server).record
        others = (FILES, VIEW, PUBLISHED, PULL_DIGEST)
        record = {file.name: file.read_bytes() for file in folder.iterdir() if file.name not in others}
    for name in (HEAD, "collection.json", "bag-info.txt"):
        if name not in record:
            raise RecordDamaged(
                f"{name} in the record of collection {version.sequence} of {version.server} is gone"
                " (another copy of the archive may have it)"
            )
    return record


def items_of(archive: Archive, version: Version) -> dict[str, str] | None:
    """Return {platform/item: its outcome, `held` or `accepted`} of a kept collection.

    None where its record does not tell.
    """
    try:
        record = record_of(archive, version)
        collection = msgspec.json.decode(record["collection.json"], type=Collection)
        pull = msgspec.json.decode(record["pull.json"], type=PullRecord)
    except (RecordDamaged, KeyError, msgspec.MsgspecError):
        return None
    outcomes = {f"{item.platform}/{item.name}": str(item.outcome) for item in collection.items}
    return outcomes | dict.fromkeys(pull.accepted, "accepted") | dict.fromkeys(pull.held, "held")


def pulls_of(archive: Archive, name: str) -> list[PullRecord]:
    """Return how each collection of a server that is kept was pulled, oldest first."""
    with archive.history() as history:
        earlier = [history.record(version)["pull.json"] for version in history.versions(name)]
    records = [msgspec.json.decode(raw, type=PullRecord) for raw in earlier]
    committed = archive.committed(name)
    return [*records, committed.pull] if committed is not None else records


def diff(archive: Archive, old: Version, new: Version) -> list[Difference]:
    """Return which files differ in content between two kept collections, in the order of manifests."""
    differences: list[Difference] = []
    for before, after in differing(files_of(archive, old), files_of(archive, new)):
        if after is None and before is not None:
            differences.append(Difference("-", before.path.removeprefix("data/"), before.size))
        elif after is not None and before is None:
            differences.append(Difference("+", after.path.removeprefix("data/"), after.size))
        elif before is not None and after is not None and before.sha256 != after.sha256:
            differences.append(Difference("*", after.path.removeprefix("data/"), after.size))
    return differences


def files_needed(archive: Archive, name: str, history: History) -> Iterator[File]:
    """Yield every file, as it is kept, that a server's collections need or what is published of them.

    Raises CentralError where a list of what was published is damaged: nobody knows what it named.
    """
    ciphertexts = archive.objects.ciphertexts
    if not ciphertexts.items(name):
        yield from files_sealed(archive, name, history)
        return
    yield from map(file_of, _published_list(archive.require_committed(name)))
    for file in files_sealed(archive, name, history):
        yield ciphertexts.as_stored(name, file)


def files_sealed(archive: Archive, name: str, history: History) -> Iterator[File]:
    """Yield every file of a server's collections as the school sealed it, some of them more than once."""
    committed = archive.require_committed(name)
    _published_list(committed)
    for lines in (committed.files(), committed.chosen()):
        yield from map(file_of, lines)
    yield from history.digests(name)
    for version in history.versions(name):
        if (view := _view_of(version, history.record(version))) is not None:
            yield from map(file_of, lines_in(view))


def remember(history: History, name: str, record: Path, newest: Path) -> bool:
    """Put the collection of a record into a history, as the way back from the newest record.

    Returns whether it is there: without its list of files there is no way back.
    """
    if not (record / FILES).is_file():
        return False
    # pull.json is written anew below.
    names = [file.name for file in record.iterdir() if file.name not in (FILES, PUBLISHED, PULL_DIGEST)]
    files = {file: (record / file).read_bytes() for file in names}
    old = lines_of(record / FILES)
    # Of a list that a disk has damaged stays what can be read: so much content of it is kept.
    old = old if has_sealed_list(record) else readable(old)
    back = changes_between(lines_of(newest / FILES), old)
    pull = pull_of(record, read_pull(newest).state)
    if not has_pull(record):  # as it is it would be given a sum, and pass for good ever after
        logger.warning(
            "%s of collection %s of %s was damaged: in the history stands what its other files tell",
            *(PULL, pull.sequence, name),
        )
    if VIEW in files and not has_view(record):
        files[VIEW] = b"".join(readable(lines_in(files[VIEW])))
        pull = msgspec.structs.replace(pull, view_sha256=hashlib.sha256(files[VIEW]).hexdigest())
    # What is encrypted of it may become more; its list is made anew of that.
    pull = msgspec.structs.replace(pull, encrypted_sha256="", published_sha256="")
    files["pull.json"] = msgspec.json.encode(pull) + b"\n"
    history.add(name, pull.pulled, files, back)
    return True
