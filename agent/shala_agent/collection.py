"""The sealed collection: what collection.json and bag-info.txt say.

Shared with the centre, which imports it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from shala_agent import __version__

FORMAT = 1
HEAD_FORMAT = 2  # 1 had a folder per collection


class ContainerImage(msgspec.Struct, kw_only=True):
    """Which image the platform's container was running."""

    image: str = ""
    image_id: str = ""


class ItemResult(msgspec.Struct, kw_only=True):
    """How one LEVEL 4 item was taken; `outcome` is ok, suspect, failed or skipped."""

    platform: str
    name: str
    outcome: str
    reasons: list[str] = msgspec.field(default_factory=list)
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    carried_from: int | None = None
    # In which form it was taken (shala_agent.privacy); "" as it is, but without password hashes.
    policy: str = ""
    # What it held when it was last ok: less than that by far is suspect.
    good_files: int | None = None
    good_bytes: int | None = None
    # When the first of the collections in a row was gathered in which it had this outcome.
    since: str = ""


class Collection(msgspec.Struct, kw_only=True):
    """One sealed gathering of all items of one server at one time."""

    format: int = FORMAT
    server_name: str
    state: str
    school_code: str
    server_id: str
    school_name: str
    sequence: int
    year: int
    started: str
    sealed: str
    agent_version: str = __version__
    device: str = ""
    previous_manifest_sha256: str | None = None
    container: ContainerImage = msgspec.field(default_factory=ContainerImage)
    items: list[ItemResult] = msgspec.field(default_factory=list)

    def item(self, platform: str, name: str) -> ItemResult | None:
        """Return the result of an item, or None when the collection does not speak of it."""
        return next((item for item in self.items if (item.platform, item.name) == (platform, name)), None)


class Head(msgspec.Struct, kw_only=True):
    """The newest sealed collection of a spool: the file HEAD."""

    format: int = HEAD_FORMAT
    server_name: str
    sequence: int
    year: int
    manifest_sha256: str
    files_sha256: str
    tag_manifest_sha256: str


def read_collection(raw: bytes) -> Collection:
    """Given collection.json, return it. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(raw, type=Collection)


def write_collection(collection: Collection, original: bytes | None = None) -> bytes:
    """Return collection.json.

    Fields of `original` that this version does not know are kept, items' ones too.
    """
    known: dict[str, Any] = msgspec.to_builtins(collection)
    if original is not None:
        known = _overlaid(msgspec.json.decode(original), known)
    return msgspec.json.format(msgspec.json.encode(known), indent=1) + b"\n"


def bag_info(collection: Collection, payload_bytes: int, payload_files: int) -> bytes:
    """Return bag-info.txt of the collection."""
    tags = [
        ("Source-Organization", " ".join(collection.school_name.split()) or collection.school_code),
        ("External-Identifier", collection.server_name),
        ("Bagging-Date", collection.sealed[:10]),
        ("Bag-Software-Agent", f"shala-agent {collection.agent_version}"),
        ("Payload-Oxum", f"{payload_bytes}.{payload_files}"),
        ("Shala-Device", collection.device or "none"),
        ("Shala-Sequence", str(collection.sequence)),
        ("Shala-Year", str(collection.year)),
        ("Shala-Previous-Manifest-SHA256", collection.previous_manifest_sha256 or "none"),
        *(("Shala-Outcome", f"{item.platform}/{item.name} {item.outcome}") for item in collection.items),
    ]
    return "".join(f"{name}: {value}\n" for name, value in tags).encode("utf-8")


BAGIT = b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"


def tag_manifest(digests: dict[str, str]) -> bytes:
    """Given the sha256 of each tag file by name, return tagmanifest-sha256.txt."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode("utf-8")


def _overlaid(original: Any, known: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(original, dict):
        return known
    merged = {**original, **known}
    if isinstance(original.get("container"), dict):
        merged["container"] = {**original["container"], **known["container"]}
    if isinstance(original.get("items"), list):
        before = {
            (item.get("platform"), item.get("name")): item
            for item in original["items"]
            if isinstance(item, dict)
        }
        merged["items"] = [
            {**before.get((item["platform"], item["name"]), {}), **item} for item in known["items"]
        ]
    return merged
