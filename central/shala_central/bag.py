"""A sealed collection as it comes from a school: read its tag files and decide whether to believe them.

The sender is taken to be hostile. Everything here works on bytes that were fetched with a size limit, never
follows a path, and turns every doubt into a `BagRefused` with its reasons. Payload files are compared in
`shala_central.staging`.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
from shala_agent.collection import Collection
from shala_agent.manifest import (
    File,
    Gone,
    ManifestError,
    bagit_lines,
    compose_all,
    fold,
    read_changes,
    read_files,
    write_line,
)

from shala_central.config import Limits
from shala_central.fleet import Server

PLATFORMS = ("gstudio", "unplatform")
TAG_MANIFEST = "tagmanifest-sha256.txt"
MANIFEST = "manifest-sha256.txt"
FILES = "files.txt"  # the manifest with sizes, times and permissions (shala_agent.manifest)
SMALL_TAG_FILES = ("bagit.txt", "bag-info.txt", "collection.json", TAG_MANIFEST)
TAG_FILES = (*SMALL_TAG_FILES, FILES, MANIFEST)
HEAD_FORMAT = 2
# Where rsync keeps the first part of a file whose transfer was cut; no payload file may bear this name.
PARTIAL_DIR = ".shala-partial"

MAX_HEAD = 64 * 1024  # bytes; a real one has 400
MAX_SMALL_TAG_FILE = 4 << 20  # bytes; a real one has some thousand
MAX_FILES = 512 << 20  # bytes of FILES or of a list of changes; of a million files it has about 150 MB
MAX_CHAIN = 100  # lists of changes that are put together; of a school longer away all of FILES is fetched
FIRST_YEAR = 2016  # the first CLIx servers
MAX_REASONS = 50  # named in full; the rest is counted

# The LEVEL 4 items of facts/hierarchy.md, and the derived ones: what a whole gstudio collection has.
GSTUDIO_ITEMS = (
    "db",
    "media",
    "rcs-repo",
    "postgres-dump",
    "system-heartbeat",
    "gstudio-exported-users-analytics-csvs",
    "gstudio_tools_logs",
    "gstudio-logs",
    "local_settings.py",
    "server_settings.py",
    "git-commit.log",
    "assessment-media",
    "nginx-logs",
    "activity-timestamp-csvs",
    "qbank",
)

_LINE = re.compile(r"([0-9a-fA-F]{64})[ \t]+(.+)")
_PLAIN_PATH = re.compile(r"[!-~ ]+")
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

Line = TypeVar("Line", File, File | Gone)
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class BagRefused(Exception):
    """A collection cannot be believed.

    `reasons` are for a person; `paths` are the files concerned, if any.
    """

    def __init__(self, reasons: list[str], paths: list[str] | None = None, more: int = 0) -> None:
        if len(reasons) + more > MAX_REASONS:
            reasons = [*reasons[:MAX_REASONS], f"and {len(reasons) + more - MAX_REASONS} more"]
        super().__init__("; ".join(reasons))
        self.reasons = reasons
        self.paths = paths or []


class Head(msgspec.Struct, frozen=True):
    """What a school says its newest collection is: the file HEAD of its spool."""

    format: Annotated[int, msgspec.Meta(ge=1)]
    server_name: Annotated[str, msgspec.Meta(max_length=64)]
    sequence: Annotated[int, msgspec.Meta(ge=1, le=99_999_999)]
    year: int
    manifest_sha256: Sha256
    files_sha256: Sha256
    tag_manifest_sha256: Sha256


class _Format(msgspec.Struct):
    format: Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class Bag:
    """The tag files of one collection, believed.

    `manifest` maps payload path (below data/) to sha256, `sizes` to bytes.
    """

    head: Head
    manifest: Mapping[str, str]
    sizes: Mapping[str, int]
    collection: Collection
    payload_bytes: int


def read_head(raw: bytes, server: Server) -> Head:
    """Given the bytes of HEAD and the server that was asked, return it. Raises BagRefused."""
    try:
        if (found := msgspec.json.decode(raw, type=_Format).format) != HEAD_FORMAT:
            older = "the agent: playbooks/provision.yml" if found < HEAD_FORMAT else "the centre"
            raise BagRefused([f"HEAD is of format {found}, this shala reads {HEAD_FORMAT} (update {older})"])
        head = msgspec.json.decode(raw, type=Head)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BagRefused([f"HEAD is not readable: {_shown(str(error))}"]) from None
    reasons = []
    if head.server_name != server.name:
        reasons.append(f"{server.name} was asked, but it says that it is '{_shown(head.server_name)}'")
    newest = datetime.datetime.now(datetime.UTC).year + 1
    if not FIRST_YEAR <= head.year <= newest:
        reasons.append(
            f"the year {head.year} is not between {FIRST_YEAR} and {newest} (is the server's clock right?)"
        )
    if reasons:
        raise BagRefused(reasons)
    return head


def read_bag(tag_files: Mapping[str, bytes], head: Head, server: Server, limits: Limits) -> Bag:
    """Given the tag files by name, return the bag.

    Raises BagRefused with every reason that can be told at once.
    """
    missing = [name for name in TAG_FILES if name not in tag_files]
    if missing:
        raise BagRefused([f"{name} is missing" for name in missing], missing)
    manifest_raw = tag_files[MANIFEST]
    named = (
        (MANIFEST, head.manifest_sha256),
        (FILES, head.files_sha256),
        (TAG_MANIFEST, head.tag_manifest_sha256),
    )
    others = [name for name, digest in named if hashlib.sha256(tag_files[name]).hexdigest() != digest]
    if others:
        raise BagRefused([f"{name} is not the one that HEAD names" for name in others], others)
    _check_tag_manifest(tag_files)
    _check_declaration(tag_files["bagit.txt"])
    manifest = read_manifest(manifest_raw, limits)
    listed = _of_manifest(read_files(io.BytesIO(tag_files[FILES])), FILES)
    sizes = {file.path.removeprefix("data/"): file.size for file in listed}
    if sizes.keys() != manifest.keys():
        raise BagRefused([f"{FILES} and {MANIFEST} do not list the same files"], [FILES])
    payload_bytes = _check_oxum(tag_files["bag-info.txt"], sizes, limits)
    collection = _read_collection(tag_files["collection.json"])
    reasons = [*_identity_reasons(collection, head, server), *_item_reasons(collection, manifest)]
    if reasons:
        raise BagRefused(reasons)
    return Bag(head, manifest, sizes, collection, payload_bytes)


def fold_files(old: bytes, changes: Sequence[bytes]) -> bytes:
    """Given an older FILES and the changes of each collection since, return the newest. Raises BagRefused."""
    lists = [
        _of_manifest(read_changes(io.BytesIO(lines)), f"the list of changes {number} of {len(changes)}")
        for number, lines in enumerate(changes, 1)
    ]
    files = fold(read_files(io.BytesIO(old)), compose_all(lists))
    return b"".join(map(write_line, _of_manifest(files, FILES)))


def manifest_of(files: bytes) -> bytes:
    """Given FILES, return the MANIFEST of the same collection. Raises BagRefused."""
    return b"".join(bagit_lines(_of_manifest(read_files(io.BytesIO(files)), FILES)))


def read_manifest(raw: bytes, limits: Limits) -> dict[str, str]:
    """Given manifest-sha256.txt, return {payload path without `data/`: sha256}. Raises BagRefused.

    A path that could leave the server's own folder, or that two file systems would read differently, is
    refused.
    """
    reasons: list[str] = []
    paths: list[str] = []
    more = 0
    manifest: dict[str, str] = {}
    for number, path, digest, unreadable in _manifest_lines(raw, MANIFEST):
        inner = path.removeprefix("data/")
        twice = "is listed twice" if inner in manifest else ""
        if reason := unreadable or _payload_path_problem(path, limits) or twice:
            if len(reasons) < MAX_REASONS:
                reasons.append(f"{MANIFEST} line {number}: '{_shown(path)}' {reason}")
                paths.append(path)
            else:
                more += 1
            continue
        manifest[inner] = digest
        if len(manifest) > limits.max_files:
            raise BagRefused([f"it lists more than {limits.max_files} files (limits.max_files allows more)"])
    for path, reason in itertools.islice(_collisions(manifest, limits), MAX_REASONS + 1):
        reasons.append(f"'{_shown(path)}' {reason}")
        paths.append(path)
    if reasons:
        raise BagRefused(reasons, paths, more)
    if not manifest:
        raise BagRefused([f"{MANIFEST} lists no file"])
    return manifest


def path_problem(path: str, limits: Limits) -> str:  # noqa: PLR0911 - one reason after the other
    """Return why a relative path must not be written here, or "" if it may.

    Knows nothing of what is on the disk.
    """
    if path.startswith("/"):
        return "is an absolute path"
    parts = path.split("/")
    if ".." in parts:
        return "climbs out of its folder"
    if "" in parts or "." in parts:
        return "has an empty part"
    if len(parts) > limits.max_depth:
        return f"is more than {limits.max_depth} folders deep (limits.max_depth)"
    if not _PLAIN_PATH.fullmatch(path):
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _BIDI for c in path):
            return "holds control characters"
        encoded = path.encode("utf-8")
    else:
        encoded = path.encode("ascii")
    if len(encoded) > limits.max_path_bytes:
        return f"is longer than {limits.max_path_bytes} bytes (limits.max_path_bytes)"
    if len(encoded) > 255 and any(len(part.encode("utf-8")) > 255 for part in parts):
        return "has a name of more than 255 bytes"
    if PARTIAL_DIR in parts:
        return f"uses the name {PARTIAL_DIR}, which is kept for unfinished transfers"
    return ""


def count_items(collection: Collection) -> dict[str, int]:
    """Return how many items are ok, suspect, failed and missing;
    a skipped or absent LEVEL 4 item is missing.
    """
    counts = {"ok": 0, "suspect": 0, "failed": 0, "missing": 0}
    seen: set[str] = set()
    for item in collection.items:
        if item.platform == "gstudio":
            seen.add(item.name.partition("/")[0])
        outcome = str(item.outcome)
        counts[outcome if outcome in counts else "missing"] += 1
    counts["missing"] += len(set(GSTUDIO_ITEMS) - seen)
    return counts


def _of_manifest(lines: Iterable[Line], name: str) -> Iterator[Line]:
    try:
        yield from lines
    except ManifestError as error:
        raise BagRefused([f"{name}: {_shown(str(error))}"], [name]) from None


def _manifest_lines(raw: bytes, name: str) -> Iterator[tuple[int, str, str, str]]:
    """Yield (line number, path, sha256, reason why the line is refused or "").

    Paths are taken as they stand, as `sha256sum -c` does; names with CR or LF, which BagIt would have to
    encode, are refused anyway.
    """
    for number, ended in enumerate(io.BytesIO(raw), 1):
        try:
            line = ended.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise BagRefused([f"{name} line {number} is not UTF-8"], [name]) from None
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            yield number, line, "", "is not a line of a manifest"
        else:
            yield number, match[2], match[1].lower(), ""


def _payload_path_problem(path: str, limits: Limits) -> str:
    if reason := path_problem(path, limits):
        return reason
    parts = path.split("/", 3)
    if parts[0] != "data":
        return "is not below data/"
    if len(parts) < 3 or parts[1] not in PLATFORMS:
        return f"is not below a platform ({' or '.join(PLATFORMS)}) and an item"
    return ""


def _collisions(manifest: Mapping[str, str], limits: Limits) -> Iterator[tuple[str, str]]:
    """Yield paths that cannot stand beside another one:
    a file that is also a folder, names that differ only in case.
    """
    folders: set[str] = set()
    for path in manifest:
        folder = path.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    for path in folders & manifest.keys():
        yield path, "is both a file and a folder"
    if limits.case_collisions == "allow":
        return
    folded: dict[str, str] = {}
    for path in (*folders, *manifest):
        same = path.lower() if path.isascii() else unicodedata.normalize("NFC", path).casefold()
        first = folded.setdefault(same, path)
        if first != path:
            yield path, f"differs from '{_shown(first)}' only in case or spelling (limits.case_collisions)"


def _check_tag_manifest(tag_files: Mapping[str, bytes]) -> None:
    reasons: list[str] = []
    listed: dict[str, str] = {}
    for number, path, digest, reason in _manifest_lines(tag_files[TAG_MANIFEST], TAG_MANIFEST):
        if reason or path in listed:
            reasons.append(f"{TAG_MANIFEST} line {number}: '{_shown(path)}' {reason or 'is listed twice'}")
            if len(reasons) > MAX_REASONS:
                break
        listed[path] = digest
    for name in TAG_FILES:
        if name == TAG_MANIFEST:
            continue
        if name not in listed:
            reasons.append(f"{TAG_MANIFEST} does not list {name}")
        elif hashlib.sha256(tag_files[name]).hexdigest() != listed[name]:
            reasons.append(f"{name} is not what {TAG_MANIFEST} says")
    if reasons:
        raise BagRefused(reasons, [TAG_MANIFEST])


def _check_declaration(raw: bytes) -> None:
    tags = _tags(raw, "bagit.txt")
    if tags.get("BagIt-Version") not in ("1.0", "0.97") or tags.get("Tag-File-Character-Encoding") != "UTF-8":
        raise BagRefused(["bagit.txt does not declare BagIt 1.0 in UTF-8"], ["bagit.txt"])


def _check_oxum(raw: bytes, sizes: Mapping[str, int], limits: Limits) -> int:
    """Return the bytes of the payload; staging checks the size of each file."""
    oxum = re.fullmatch(r"([0-9]{1,18})\.([0-9]{1,12})", _tags(raw, "bag-info.txt").get("Payload-Oxum", ""))
    if oxum is None:
        raise BagRefused(["bag-info.txt names no Payload-Oxum"], ["bag-info.txt"])
    size, files = int(oxum[1]), int(oxum[2])
    listed = len(sizes), sum(sizes.values())
    if (files, size) != listed:
        said = f"bag-info.txt counts {files} files of {size} bytes, {FILES} lists {listed[0]} of {listed[1]}"
        raise BagRefused([said], ["bag-info.txt"])
    if size > limits.max_bytes:
        raise BagRefused([f"it holds {size} bytes, more than limits.max_bytes allows ({limits.max_bytes})"])
    return size


def _tags(raw: bytes, name: str) -> dict[str, str]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BagRefused([f"{name} is not UTF-8"], [name]) from None
    tags: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and not line[0].isspace():
            tags.setdefault(key.strip(), value.strip())
    return tags


def _read_collection(raw: bytes) -> Collection:
    try:
        collection = msgspec.json.decode(raw, type=Collection)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BagRefused(
            [f"collection.json is not readable: {_shown(str(error))}"], ["collection.json"]
        ) from None
    if collection.format != 1:
        raise BagRefused(
            [f"collection.json is of format {collection.format}, this shala reads 1 (update the centre)"]
        )
    return collection


def _identity_reasons(collection: Collection, head: Head, server: Server) -> Iterator[str]:
    pairs = (
        ("server_name", collection.server_name, server.name),
        ("state", collection.state, server.state),
        ("school_code", collection.school_code, server.school_code),
        ("server_id", collection.server_id, server.server_id),
        ("sequence", collection.sequence, head.sequence),
        ("year", collection.year, head.year),
    )
    for name, said, expected in pairs:
        if said != expected:
            yield f"collection.json says {name} '{_shown(str(said))}', expected was '{expected}'"


def _item_reasons(collection: Collection, manifest: Mapping[str, str]) -> Iterator[str]:
    """Yield the items that are said to be there and of which the manifest lists nothing."""
    listed = {tuple(path.split("/", 2)[:2]) for path in manifest}
    for item in collection.items:
        if item.files > 0 and (item.platform, item.name.partition("/")[0]) not in listed:
            shown = _shown(f"{item.platform}/{item.name}")
            yield f"collection.json says that {shown} has {item.files} files, {MANIFEST} lists none"


def _shown(text: str) -> str:
    """Return text of a sender as it may be printed: no control characters, not endless."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:160])
