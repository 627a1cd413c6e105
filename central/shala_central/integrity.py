"""Integrity: read content again and again, say what is damaged, mend it from a second copy."""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
from shala_agent.manifest import File

from shala_central.archive import Archive, Damage
from shala_central.cold import ColdDamaged, ColdFailed
from shala_central.objects import ObjectDamaged, digest_of
from shala_central.publish import sync_file_system, write_file

logger = logging.getLogger(__name__)
BUCKETS = 256  # the first two digits of a digest


class Scrubbed(msgspec.Struct, frozen=True):
    """What was read again; `oldest` is when that which was read longest ago was, "" if some never was."""

    objects: int
    bytes: int
    damage: list[Damage]
    oldest: str


class Repaired(msgspec.Struct, frozen=True):
    """What was mended of a server and what could not be: paths below its folder."""

    name: str
    mended: list[str]
    lost: list[str]


class SecondCopy:
    """Another copy of an archive, by its root; nothing is ever written there."""

    def __init__(self, archive: Archive, root: Path) -> None:
        self._root = root
        self._objects = archive.objects.of_copy(root / ".shala" / "objects")
        self._told: set[str] = set()

    def fetch(self, name: str, file: File, target: Path) -> bool:
        """Write a content to a file: of the copy's objects, plain or packed, or of its trees.

        Returns whether it is there, as it should be.
        """
        path = file.path.removeprefix("data/")
        with self._trying(), target.open("wb") as staged:
            self._objects.copy(name, path, file.sha256, staged)
            return True
        for candidate in sorted(self._root.glob(f"[0-9][0-9][0-9][0-9]/*/{name}/{_literal(path)}")):
            with self._trying():
                shutil.copyfile(candidate, target)
                if digest_of(target) == file.sha256:
                    return True
        return False

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        """Pass over what the copy cannot give; that its table of packed contents is none is said once."""
        try:
            yield
        except ObjectDamaged:
            pass
        except ColdFailed as failed:
            if str(failed) not in self._told:
                logger.warning("of the second copy nothing packed can be used: %s", failed)
            self._told.add(str(failed))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # that is this disk
                raise


class _Readings(msgspec.Struct):
    """scrub.json: when each bucket was last read as a whole, ISO 8601 in UTC."""

    buckets: dict[str, str] = msgspec.field(default_factory=dict)
    format: int = 1


def damaged_objects(archive: Archive, name: str) -> list[Damage]:
    """Return what is damaged of all that a server's kept collections need."""
    return [Damage(path, problem) for path, problem, _ in _damaged(archive, name)]


def scrub(archive: Archive, days: int) -> Scrubbed:
    """Read the share of all objects that has not been read for longest, so that all are within `days` days.

    It may be cut at any moment: a bucket counts when it was read whole.
    """
    state = archive.hidden / "scrub.json"
    try:
        readings = msgspec.json.decode(state.read_bytes(), type=_Readings)
    except (FileNotFoundError, msgspec.MsgspecError):
        readings = _Readings()
    names = sorted((f"{number:02x}" for number in range(BUCKETS)), key=lambda n: readings.buckets.get(n, ""))
    objects = size = 0
    damage: list[Damage] = []
    for bucket in names[: math.ceil(BUCKETS / days)]:
        for pool in archive.objects.pools():
            for digest, place in archive.objects.stored(pool, bucket):
                try:
                    whole = digest_of(place) == digest
                    size += place.stat().st_size
                except FileNotFoundError:
                    continue  # pruned meanwhile
                except OSError as error:
                    damage.append(Damage(f"{pool}/{bucket}/{digest}", f"cannot be read: {error.strerror}"))
                    continue
                objects += 1
                if not whole:
                    damage.append(Damage(f"{pool}/{bucket}/{digest}", "has changed (sha256 differs)"))
            for digest, packed in archive.objects.cold.stored(pool, bucket):
                objects, size = objects + 1, size + packed
                try:
                    archive.objects.cold.read(pool, digest, archive.objects.plain)
                except ColdDamaged as damaged:
                    damage.append(Damage(f"{pool}/{bucket}/{digest}", str(damaged)))
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        readings.buckets[bucket] = now
        write_file(state, msgspec.json.encode(readings))
    oldest = min(readings.buckets.values()) if len(readings.buckets) == BUCKETS else ""
    return Scrubbed(objects, size, damage, oldest)


def repair(archive: Archive, name: str, second: SecondCopy | None = None) -> Repaired:
    """Mend what is damaged of a server's kept collections from a second copy of the archive.

    Raises CentralError while the server is pulled.
    """
    mended: list[str] = []
    lost: list[str] = []
    with archive.changing(name):
        committed = archive.committed(name)
        if committed is None or not archive.is_whole(committed.record):
            return Repaired(name, mended, ["the record of its collection (shala pull --again)"])
        for path, _problem, file in list(_damaged(archive, name)):
            if not archive.objects.on_demand and archive.objects.bring_back(
                archive.objects.pool_of(name, path), file.sha256
            ):
                mended.append(path)
                continue
            staged = archive.staging(name) / "mended"
            if second is None or not second.fetch(name, file, staged):
                lost.append(path)
                continue
            os.utime(staged, ns=(file.mtime_ns, file.mtime_ns))
            sync_file_system(archive.staging(name))
            archive.objects.add(staged, name, path, file.sha256)
            mended.append(path)
        archive.relink(name)
        archive.mend_earlier_years(name)
        archive.recover(name)
    return Repaired(name, mended, lost)


def _damaged(archive: Archive, name: str) -> Iterator[tuple[str, str, File]]:
    """Yield (path, problem, file) for each content that is needed and not as it should be, once each."""
    seen: set[tuple[bool, str]] = set()
    with archive.history() as history:
        for file in archive.needed(name, history):
            path = file.path.removeprefix("data/")
            key = (archive.objects.is_shared(path), file.sha256)
            if key in seen:
                continue
            seen.add(key)
            if problem := archive.objects.problem(name, file):
                yield path, problem, file


def _literal(path: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)
