"""Provenance: where a published file comes from."""

from __future__ import annotations

import datetime

import msgspec
from shala_agent.collection import Collection
from shala_agent.manifest import write_line

from shala_central.archive import Archive
from shala_central.ciphertext import item_of
from shala_central.failure import UsageError
from shala_central.history import Version
from shala_central.listing import file_of, path_of
from shala_central.records import PullRecord
from shala_central.versions import files_of, record_of, versions_of, view_of


class Provenance(msgspec.Struct, frozen=True):
    """One published file: what was sealed, by whom, and when this content came for the first time.

    `path_in_collection` is its place in the sealed bag (docs/archive.md), `modified_at_school` the time that
    the file had there. Of an encrypted one `sha256` and `bytes` are those of the age file.
    """

    path: str
    server_name: str
    school_name: str
    path_in_collection: str
    sha256: str
    bytes: int
    sha256_at_school: str
    modified_at_school: str
    collection: int
    first_collection: int
    first_pulled: str
    sealed: str
    pulled: str
    from_address: str
    software: str
    container_image: str
    item_outcome: str
    device: str


def provenance(archive: Archive, path: str) -> Provenance:
    """Given a path below the archive's root, return where the file comes from.

    Raises UsageError for a path that is not a published file.
    """
    parts = path.strip("/").split("/", 3)
    wrong = UsageError(
        f"'{path}' is not a published file (e.g. 2026/mz/2031017-mz17/gstudio/local_settings.py)"
    )
    if len(parts) != 4:
        raise wrong
    year, state, name, inner = parts
    versions = [version for version in versions_of(archive, name) if str(version.year) == year]
    if not versions:
        raise wrong
    newest = versions[-1]
    line = _line(archive, newest, inner, view=True)
    if line is None:
        raise wrong
    file = file_of(line)
    sealed = archive.objects.ciphertexts.as_sealed(name, file)
    inner, line = sealed.path.removeprefix("data/"), write_line(sealed)
    # Readers may see the item of an earlier collection, held back or restored: the record has its number, and
    # its list this very line.
    sources = [version for version in versions if _line(archive, version, inner) == line]
    held = msgspec.json.decode(record_of(archive, newest)["pull.json"], type=PullRecord).held.get(
        item_of(inner)
    )
    source, first = (sources[-1], sources[0]) if sources else (newest, newest)
    source = next((version for version in reversed(sources) if version.handle == held), source)
    record = record_of(archive, source)
    collection = msgspec.json.decode(record["collection.json"], type=Collection)
    pull = msgspec.json.decode(record["pull.json"], type=PullRecord)
    if pull.state != state:
        raise wrong
    platform, _, rest = inner.partition("/")
    item = collection.item(platform, rest.split("/", 1)[0])
    return Provenance(
        path=path.strip("/"),
        server_name=name,
        school_name=collection.school_name,
        path_in_collection=f"data/{inner}",
        sha256=file.sha256,
        bytes=file.size,
        sha256_at_school=sealed.sha256,
        modified_at_school=_time(file.mtime_ns),
        collection=source.sequence,
        first_collection=first.sequence,
        first_pulled=first.pulled,
        sealed=collection.sealed,
        pulled=source.pulled,
        from_address=pull.address,
        software=f"shala-agent {collection.agent_version}",
        container_image=collection.container.image,
        item_outcome=item.outcome if item is not None else "",
        device=pull.device,
    )


def _time(ns: int) -> str:
    """Return a time of a file as ISO 8601 in UTC; also one that no calendar has."""
    try:
        return datetime.datetime.fromtimestamp(ns // 1_000_000_000, datetime.UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return f"{ns} ns after 1970"


def _line(archive: Archive, version: Version, inner: str, *, view: bool = False) -> bytes | None:
    wanted = f"data/{inner}".encode()
    lines = view_of(archive, version) if view else files_of(archive, version)
    # To the end: whether a list is the right one is known only then.
    found = [line for line in lines if line.endswith(wanted + b"\n") and path_of(line) == wanted]
    return found[0] if found else None
