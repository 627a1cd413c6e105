"""Quarantine: collections that were refused, with the reasons, and the operator's word that lets one in.

What lies there is a stranger's: nothing of it is believed, and readers never see it.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from shala_central.archive import Archive, stamp
from shala_central.bag import BagRefused, Broken
from shala_central.failure import UsageError, user_name
from shala_central.fleet import SERVER_NAME
from shala_central.publish import make_folders, remove_tree, write_file

logger = logging.getLogger(__name__)
QUARANTINED = 5  # refused collections of one server that stay to be looked at: the newest ones


QUARANTINE_FOLDER = re.compile(r"(.+)-[0-9]{8,}-[0-9TZ.]+")  # server name, number, when


class Release(msgspec.Struct, frozen=True):
    """The operator's word on a collection that was refused: which rules it may break, who said so and when.

    `folder` is its place in quarantine, "" where it never came there.
    """

    server_name: str
    sequence: int | None
    broken: list[Broken]
    by: str
    at: str
    how: str
    folder: str = ""
    format: int = 1


def quarantine(
    archive: Archive, name: str, sequence: int | None, refused: BagRefused, tag_files: Mapping[str, bytes]
) -> Path:
    """Keep what was refused, with its reasons; damaged payload files are moved there out of staging.

    A collection that was refused before for the same reasons is not kept twice, and stays in the folder
    by which the operator knows it.
    """
    _forget_unfinished(archive, name)
    digest = _digest_of(tag_files)
    times = 1
    folder = archive.hidden / "quarantine" / f"{name}-{sequence or 0:08d}-{stamp()}"
    for earlier in in_quarantine(archive, name):
        if earlier.get("digest") == digest and earlier.get("reasons") == refused.reasons:
            times += int(str(earlier.get("times", 1)))
            folder = Path(str(earlier["folder"]))
    folder.mkdir(mode=0o750, exist_ok=True)
    (folder / "released").unlink(missing_ok=True)
    for file, content in tag_files.items():
        write_file(folder / file, content)
    data = archive.staging(name) / "data"
    for number, path in enumerate(refused.paths):
        source = data / path
        # Paths of a refused manifest are a stranger's words: only what is a plain file inside staging is
        # moved.
        if ".." in path.split("/") or path.startswith("/") or not _is_file_below(data, source):
            continue
        if archive.objects.ciphertexts.is_sensitive(path):
            source.unlink()
            continue
        source.rename(folder / f"file-{number:04d}")
    reason = {
        "format": 1,
        "server_name": name,
        "sequence": sequence,
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        "times": times,
        "digest": digest,
        "reasons": refused.reasons,
        "paths": refused.paths,
        "broken": refused.broken,
    }
    write_file(folder / "reason.json", msgspec.json.format(msgspec.json.encode(reason), indent=1) + b"\n")
    for earlier in in_quarantine(archive, name)[:-QUARANTINED]:
        remove_tree(Path(str(earlier["folder"])))
    return folder


def _forget_unfinished(archive: Archive, name: str) -> None:
    """Remove what was cut while it was put into quarantine: its reasons, written last, are not known."""
    for entry in list(os.scandir(archive.hidden / "quarantine")):
        match = QUARANTINE_FOLDER.fullmatch(entry.name)
        if match is not None and match[1] == name and not Path(entry.path, "reason.json").exists():
            remove_tree(Path(entry.path))


def _is_file_below(folder: Path, path: Path) -> bool:
    try:
        inside = path.parent.resolve().is_relative_to(folder.resolve())
        return inside and stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def _digest_of(tag_files: Mapping[str, bytes]) -> str:
    """Return one digest over tag files, to tell whether the same thing came again."""
    digest = hashlib.sha256()
    for name in sorted(tag_files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(tag_files[name]).digest())
    return digest.hexdigest()


def in_quarantine(archive: Archive, name: str) -> list[dict[str, object]]:
    """Return what is in quarantine of a server, each with its folder and reasons, oldest first."""
    found: list[dict[str, object]] = []
    if not SERVER_NAME.fullmatch(name):
        return found
    for path in (archive.hidden / "quarantine").glob(f"{name}-*/reason.json"):
        with contextlib.suppress(msgspec.MsgspecError, OSError):
            reason = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
            if reason.get("server_name") == name:
                released = (path.parent / "released").exists()
                found.append({"folder": str(path.parent), "released": released, **reason})
    # By when each was seen last, not by the number that the school gave.
    return sorted(found, key=lambda entry: (str(entry.get("at")), str(entry["folder"]).rpartition("-")[2]))


def quarantine_counts(archive: Archive) -> dict[str, int]:
    """Return how many refused collections each server has in quarantine."""
    counts: dict[str, int] = {}
    for entry in os.scandir(archive.hidden / "quarantine"):
        if match := QUARANTINE_FOLDER.fullmatch(entry.name):
            counts[match[1]] = counts.get(match[1], 0) + 1
    return counts


def let_in(archive: Archive, folder: str) -> Release:
    """Let a refused collection, named by its folder in quarantine, in the next time it is asked for.

    Only what it was refused for is lifted, and only for it; returns what that is. Raises UsageError if
    it is not there (any more), or if it is not a rule that stands against it; CentralError while its
    server is pulled.
    """
    match = QUARANTINE_FOLDER.fullmatch(folder)
    if match is None or not (archive.hidden / "quarantine" / folder).is_dir():
        raise _not_in_quarantine(folder)
    name = match[1]
    with archive.locked(name):
        entry = next((e for e in in_quarantine(archive, name) if Path(str(e["folder"])).name == folder), None)
        if entry is None:
            raise _not_in_quarantine(folder)
        broken = msgspec.convert(entry.get("broken") or [], list[Broken])
        if not broken:
            reasons = entry.get("reasons")
            first = reasons[0] if isinstance(reasons, list) and reasons else "it is not whole"
            raise UsageError(
                f"the collection of {name} cannot be let in: {first} (shala pull {name} asks again)"
            )
        sequence = msgspec.convert(entry.get("sequence"), int | None)
        release = note_release(
            archive, name, sequence, broken, "shala archive quarantine release", folder=folder
        )
        write_file(Path(str(entry["folder"])) / "released", msgspec.json.encode(release) + b"\n")
        return release


def _not_in_quarantine(folder: str) -> UsageError:
    return UsageError(f"'{folder}' is not in quarantine (shala archive quarantine list names the folders)")


def note_release(
    archive: Archive, name: str, sequence: int | None, broken: Sequence[Broken], how: str, *, folder: str = ""
) -> Release:
    """Write down for good which rules the operator has lifted for which collection."""
    release = Release(name, sequence, list(broken), _operator(), _now(), how, folder)
    place = archive.hidden / "releases"
    make_folders(place)
    raw = msgspec.json.format(msgspec.json.encode(release), indent=1) + b"\n"
    write_file(place / f"{name}-{stamp()}.json", raw)
    return release


def _operator() -> str:
    """Return who runs this command, also behind sudo."""
    user, behind = user_name(os.geteuid()), os.environ.get("SUDO_USER", "")
    return f"{behind} (as {user})" if behind else user


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def releases_of(archive: Archive, name: str) -> list[Release]:
    """Return which rules were ever lifted for collections of a server, oldest first."""
    if not SERVER_NAME.fullmatch(name):
        return []
    found: list[Release] = []
    for place in sorted((archive.hidden / "releases").glob(f"{name}-*.json")):
        try:
            found.append(msgspec.json.decode(place.read_bytes(), type=Release))
        except msgspec.MsgspecError as error:
            logger.warning("%s is damaged: %s", place, error)
    return found


def lifted_for(archive: Archive, name: str, head: bytes) -> list[Broken]:
    """Return the rules that the operator has lifted for the collection with this HEAD."""
    lifted: list[Broken] = []
    for entry in in_quarantine(archive, name):
        folder = Path(str(entry["folder"]))
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
            release = msgspec.json.decode((folder / "released").read_bytes(), type=Release)
            if (folder / "HEAD").read_bytes() == head:
                lifted += release.broken
    return lifted


def close_release(archive: Archive, name: str) -> None:
    """Remove what the operator let in from quarantine: it is let in once."""
    committed = archive.committed(name)
    head = (committed.record / "HEAD").read_bytes() if committed is not None else b""
    for entry in in_quarantine(archive, name):
        folder = Path(str(entry["folder"]))
        with contextlib.suppress(FileNotFoundError):
            if (folder / "HEAD").read_bytes() == head:
                remove_tree(folder)


def folder_meant(archive: Archive, wanted: str) -> str:
    """Return the folder in quarantine that is meant by its name, or by that of a server that has only one.

    Raises UsageError for a server of which there are more.
    """
    found = [Path(str(entry["folder"])).name for entry in in_quarantine(archive, wanted)]
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} collections of {wanted} are in quarantine (name one: {', '.join(found)})"
        )
    return found[0] if found else Path(wanted).name


def server_of(archive: Archive, folder: str) -> str:
    """Return the server of a folder in quarantine, by its name; "" where there is none of that name."""
    match = QUARANTINE_FOLDER.fullmatch(folder)
    return match[1] if match and (archive.hidden / "quarantine" / folder).is_dir() else ""


def discard(archive: Archive, name: str, folder: str = "") -> int:
    """Remove what is in quarantine of a server, or of it one folder; return how many collections that was.

    Raises CentralError while it is pulled.
    """
    with archive.locked(name):
        _forget_unfinished(archive, name)
        found = [
            entry for entry in in_quarantine(archive, name) if folder in ("", Path(str(entry["folder"])).name)
        ]
        for entry in found:
            remove_tree(Path(str(entry["folder"])))
        return len(found)
