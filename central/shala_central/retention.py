"""Retention: forget the collections that the policy lets go, and free the room that only they needed.

Nothing is removed of which anybody may still have need: where a record, a table or a content is damaged, or a
pull is not done, what it may name stays. It may be cut at any moment.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from shala_agent.manifest import Gone, ManifestError

from shala_central.archive import Archive
from shala_central.commit import recover
from shala_central.copies import HISTORY, copies_of, damaged
from shala_central.failure import CentralError
from shala_central.fleet import SERVER_NAME
from shala_central.history import History, Version, superfluous
from shala_central.listing import file_of, path_of
from shala_central.objects import SHARED
from shala_central.publish import make_folders, remove_tree
from shala_central.records import ENCRYPTED, is_whole
from shala_central.row_mending import lost_rows
from shala_central.rows import name_of
from shala_central.versions import files_needed

logger = logging.getLogger(__name__)
UNFINISHED_SECONDS = 60 * 86400  # a pull that was cut, and not gone on with for longer, is given up


class Pruned(msgspec.Struct, frozen=True):
    """What pruning forgot and removed, and the room that became free by it and by packing, in bytes.

    `left_alone` are the servers of which nothing was removed because something is to be mended: {name: what}.
    """

    versions: list[Version]
    objects: int
    bytes: int
    packed: int
    left_alone: dict[str, str]


class _Swept(msgspec.Struct):
    """What a sweep has done so far."""

    objects: int = 0
    bytes: int = 0
    packed: int = 0


def prune(archive: Archive, keep_days: int, keep_months: int, *, pretend: bool = False) -> Pruned:
    """Forget the collections that the policy lets go, remove what none needs any more, pack what is cold.

    It may be cut at any moment. Raises CentralError while somebody pulls.
    """
    now = datetime.datetime.now(datetime.UTC)
    gone: list[Version] = []
    shared: set[str] = set()
    shared_bases: dict[str, str] = {}
    counts = _Swept()
    with archive.in_use(alone=True):
        lost = _require_tables(archive)
        with archive.history() as history:
            if not pretend:
                _recover_all(archive)
                _give_up(archive)
            at_work = _at_work(archive)
            left_alone = _unclear(archive, history, at_work) | lost
            unclear = {*left_alone, *at_work}
            for name in archive.servers():
                if name in unclear:
                    continue
                own: set[str] = set()
                try:
                    year = archive.require_committed(name).pull.year
                    superfluous_ones = superfluous(history.versions(name), now, keep_days, keep_months, year)
                    if not pretend:
                        history.forget(superfluous_ones)
                    gone += superfluous_ones
                    for file in files_needed(archive, name, history):
                        to_all = archive.objects.is_shared(file.path.removeprefix("data/"))
                        (shared if to_all else own).add(file.sha256)
                    bases, bases_of_all = _bases(archive, name, history)
                except (CentralError, ManifestError) as damage:
                    left_alone[name] = str(damage)
                    unclear.add(name)
                    continue
                shared_bases |= bases_of_all
                if count := len(_missing(archive, name, own)):
                    left_alone[name] = (
                        f"{count} of the contents that it needs are nowhere"
                        f" (shala archive repair {name} --from ROOT, or shala pull --again {name})"
                    )
                    continue
                if not pretend:
                    archive.objects.ciphertexts.keep(name, own)
                _sweep(archive, name, own, bases, counts, pretend=pretend)
            for pool in _abandoned(archive, unclear, pretend=pretend):
                _sweep(archive, pool, set(), {}, counts, pretend=pretend)
                if not pretend:
                    remove_tree(archive.objects.root / pool)
                    (archive.hidden / "abandoned" / pool).unlink()
            for name in sorted(at_work):
                logger.warning("%s is left alone: its pull is not done", name)
            if not unclear:
                # What is shared may be needed by any server, and so only goes when all are clear.
                _sweep(archive, SHARED, shared, shared_bases, counts, pretend=pretend)
    return Pruned(gone, counts.objects, counts.bytes, counts.packed, left_alone)


def _require_tables(archive: Archive) -> dict[str, str]:
    """Return the servers of which nobody can say what they need, as a collection of theirs is lost.

    Raises CentralError where a table is gone, or damaged in a way that can be mended: of what it named nobody
    knows the need.
    """
    unknown: dict[str, str] = {}
    for name, problem in damaged(archive.hidden).items():
        table = archive.hidden / name
        lost = lost_rows(table, copies_of(table))
        servers = [row["server"] for row in lost or () if name == HISTORY]
        if not lost or not set(archive.servers()).issuperset(servers):
            raise CentralError(f"nothing is removed while {table} {problem}")
        unknown |= {
            row["server"]: f"{name_of(row)} is damaged, and no copy has it whole"
            " (shala archive repair --give-up forgets it)"
            for row in lost
            if name == HISTORY
        }
    return unknown


def _recover_all(archive: Archive) -> None:
    """Finish the commits that were cut: until then nothing says what they need."""
    for staging in (archive.hidden / "staging").iterdir():
        if (staging / "commit.json").exists():
            with archive.lock(staging.name) as lock:
                if lock is not None:
                    recover(archive, staging.name)


def _give_up(archive: Archive) -> None:
    """Remove what pulls have fetched that were cut, and not gone on with for UNFINISHED_SECONDS.

    What is sensitive lies there in plain.
    """
    for staging in (archive.hidden / "staging").iterdir():
        data = staging / "data"
        if not SERVER_NAME.fullmatch(staging.name) or not data.is_dir() or _is_fetched(data):
            continue
        with archive.lock(staging.name) as lock:
            if lock is not None:
                remove_tree(staging)
                logger.warning("what was fetched of %s is given up: nobody went on with it", staging.name)


def _at_work(archive: Archive) -> set[str]:
    """Return the servers with a commit that is not finished, or a pull that goes on."""
    found = set()
    for staging in (archive.hidden / "staging").iterdir():
        data = staging / "data"
        if (data.is_dir() and _is_fetched(data)) or (staging / "commit.json").exists():
            found.add(staging.name)
    return found


def _is_fetched(data: Path) -> bool:
    """Return whether a pull goes on, or may be gone on with; each one sets the time of the folder anew."""
    return time.time() - data.stat().st_mtime < UNFINISHED_SECONDS


def _unclear(archive: Archive, history: History, at_work: set[str]) -> dict[str, str]:
    """Return the other servers of which nobody can say now what they need: {name: what is damaged}."""
    kept = {path.name for path in (archive.hidden / "collections").iterdir()} | history.servers()
    kept.update(archive.known())
    unclear = {}
    for name in sorted(kept - at_work):
        if reason := archive.damaged_record(name, is_known=True):
            unclear[name] = reason
        elif (committed := archive.committed(name)) is not None:
            if not is_whole(committed.record):
                unclear[name] = f"its record is not whole (shala archive repair {name})"
            elif (committed.record / ENCRYPTED).exists() and not archive.objects.ciphertexts.items(name):
                unclear[name] = "nothing says which age files it needs (encrypted.sqlite was lost)"
    return unclear


def _bases(archive: Archive, name: str, history: History) -> tuple[dict[str, str], dict[str, str]]:
    """Return {sha256: that of the same file in the collection after}, of private and of shared files."""
    versions = history.versions(name)
    ways = [list(history.changes(version)) for version in versions]
    changed = {change.path.encode() for way in ways for change in way}
    newer = {
        file.path: file.sha256
        for file in (
            file_of(line) for line in archive.require_committed(name).files() if path_of(line) in changed
        )
    }
    own: dict[str, str] = {}
    to_all: dict[str, str] = {}
    for way in reversed(ways):
        for change in way:
            if isinstance(change, Gone):
                newer.pop(change.path, None)
                continue
            if (base := newer.get(change.path)) not in (None, change.sha256):
                shared = archive.objects.is_shared(change.path.removeprefix("data/"))
                (to_all if shared else own).setdefault(change.sha256, str(base))
            newer[change.path] = change.sha256
    return own, to_all


def _missing(archive: Archive, name: str, needed: set[str]) -> set[str]:
    """Return which contents of a server's own are neither objects, nor packed, nor in the bucket.

    Where a table was lost, and an older copy put back, they may well be here under names that it does not
    know: as age files.
    """
    missing = set(needed)
    missing.difference_update(digest for digest, _ in archive.objects.stored(name))
    missing.difference_update(digest for digest, _ in archive.objects.cold.stored(name))
    remote = archive.objects.remote
    return {digest for digest in missing if remote is None or not remote.has(name, digest)}


def _sweep(
    archive: Archive, pool: str, needed: set[str], bases: Mapping[str, str], counts: _Swept, *, pretend: bool
) -> None:
    """Remove what a pool holds in vain, and pack what no published tree links to."""
    cold = archive.objects.cold
    cold.needed_for({pool: needed})
    for digest, place in archive.objects.stored(pool):
        if digest not in needed:
            seen = place.stat()
            counts.objects += 1
            # What a published tree still links to takes its room there.
            counts.bytes += seen.st_size if seen.st_nlink == 1 else 0
            if not pretend:
                place.unlink()
    vain = {digest: size for digest, size in cold.stored(pool) if digest not in needed}
    counts.objects += len(vain)
    counts.bytes += sum(vain.values())
    if not pretend:
        cold.remove(pool, vain)
    # Packing wants room itself: only after all else of the pool is gone.
    if not pretend and not archive.objects.on_demand:
        for digest, place in archive.objects.stored(pool):
            # Ciphertext can be made no smaller, and nothing is known of what is in it.
            if place.stat().st_nlink == 1 and not archive.objects.ciphertexts.is_ciphertext(pool, digest):
                counts.packed += cold.pack(pool, digest, place, bases.get(digest), archive.objects.plain)
    if archive.objects.remote is not None:
        swept = archive.objects.remote.sweep(pool, needed, pretend=pretend)
        if archive.objects.on_demand:  # otherwise the same objects were counted on this disk
            counts.objects += swept.objects
            counts.bytes += swept.bytes


def _abandoned(archive: Archive, left_alone: set[str], *, pretend: bool) -> list[str]:
    """Return the pools of servers that have had no record, no pull and no tree for UNFINISHED_SECONDS.

    Not at once: records may be lost by accident, and brought back from a copy.
    """
    remote, marks = archive.objects.remote, archive.hidden / "abandoned"
    pools = {*archive.objects.pools(), *(remote.pools() if remote is not None else ())}
    named = {*left_alone, *archive.servers()}
    due: list[str] = []
    for pool in sorted(filter(SERVER_NAME.fullmatch, pools)):
        mark = marks / pool
        if pool in named or any(archive.root.glob(f"[0-9][0-9][0-9][0-9]/*/{pool}")):
            if not pretend:
                mark.unlink(missing_ok=True)
            continue
        if not pretend and not mark.exists():
            make_folders(marks)
            mark.touch()
        since = mark.stat().st_mtime if mark.exists() else time.time()
        if time.time() - since >= UNFINISHED_SECONDS:
            due.append(pool)
            continue
        day = datetime.datetime.fromtimestamp(since + UNFINISHED_SECONDS, datetime.UTC).date()
        logger.warning("%s has content and no record: it goes on %s (or bring back .shala)", pool, day)
    return due
