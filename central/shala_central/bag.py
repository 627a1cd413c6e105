"""A sealed collection as it comes from a school: read its tag files and decide whether to believe them.

The sender is taken to be hostile. Everything here works on bytes that were fetched with a size limit, never
follows a path, and turns every doubt into a `BagRefused` with its reasons. Payload files are compared in
`shala_central.staging`.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from shala_agent.collection import Collection
from shala_agent.device import SIGNATURE, SignatureWrong, signer_of
from shala_agent.manifest import File, ManifestError, read_files

from shala_central.config import Limits
from shala_central.fleet import Server
from shala_central.listing import fold

PLATFORMS = ("gstudio", "unplatform")
TAG_MANIFEST = "tagmanifest-sha256.txt"
MANIFEST = "manifest-sha256.txt"
FILES = "files.txt"  # the manifest with sizes, times and permissions (shala_agent.manifest)
NEEDED_TAG_FILES = ("bagit.txt", "bag-info.txt", "collection.json", TAG_MANIFEST)
SMALL_TAG_FILES = (*NEEDED_TAG_FILES, SIGNATURE)
HEAD_FORMAT = 2
# Where rsync keeps the first part of a file whose transfer was cut; no payload file may bear this name.
PARTIAL_DIR = ".shala-partial"

MAX_HEAD = 64 * 1024  # bytes; a real one has 400
MAX_SMALL_TAG_FILE = 4 << 20  # bytes; a real one has some thousand
MAX_FILES = 512 << 20  # bytes of FILES or of a list of changes; of a million files it has about 150 MB
MAX_CHAIN = 100  # lists of changes that are put together; of a school longer away all of FILES is fetched
FIRST_YEAR = 2016  # the first CLIx servers
MAX_ITEMS = 1000  # LEVEL 4 entries of one server; a real one has about twenty
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
# What nearly all paths of schools look like: in ASCII, no empty part, none of dots alone, none too long.
_USUAL_PATH = re.compile(r"data/(?:gstudio|unplatform)(?:/(?!\.)[ !-.0-~]{1,255})+")
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Broken(msgspec.Struct, frozen=True):
    """A rule that a collection breaks, and how; `device` is the one that signed it, "" where none has.

    The rules are: numbers (sequence) and years only go up, and one device stays one device.
    """

    rule: Literal["sequence", "year", "device"]
    fact: str
    device: str = ""

    def is_lifted_by(self, other: Broken) -> bool:
        """Return whether the operator's word on another breach is one on this."""
        return (self.rule, self.device) == (other.rule, other.device)


class BagRefused(Exception):
    """A collection cannot be believed.

    `reasons` are for a person; `paths` are the files concerned, if any. One that is whole, and refused for
    the rules it has `broken` alone, may be let in by the operator's word.
    """

    def __init__(
        self,
        reasons: list[str],
        paths: list[str] | None = None,
        more: int = 0,
        *,
        broken: Sequence[Broken] = (),
    ) -> None:
        if len(reasons) + more > MAX_REASONS:
            reasons = [*reasons[:MAX_REASONS], f"and {len(reasons) + more - MAX_REASONS} more"]
        super().__init__("; ".join(reasons))
        self.reasons = reasons
        self.paths = paths or []
        self.broken = list(broken)


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


class Bag(msgspec.Struct, frozen=True):
    """One collection, believed: what its tag files say, and what its list of files comes to."""

    head: Head
    collection: Collection
    payload_bytes: int
    files: int
    public_key: str = ""  # of the device that signed it, hexadecimal; "" where none has


class Survey(msgspec.Struct, frozen=True):
    """What a list of files comes to: bytes and number, its digest and that of the manifest made of it."""

    files: int
    bytes: int
    files_sha256: str
    manifest_sha256: str
    items: frozenset[tuple[str, str]]


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


def read_bag(
    tag_files: Mapping[str, bytes], lines: Iterable[bytes], head: Head, server: Server, limits: Limits
) -> Bag:
    """Given the small tag files by name and the lines of FILES, return the bag.

    Raises BagRefused with every reason that can be told at once.
    """
    missing = [name for name in NEEDED_TAG_FILES if name not in tag_files]
    if missing:
        raise BagRefused([f"{name} is missing" for name in missing], missing)
    listed = _check_tag_manifest(tag_files, head)
    _check_declaration(tag_files["bagit.txt"])
    collection = _read_collection(tag_files["collection.json"])
    if reasons := [*_identity_reasons(collection, head, server)]:
        raise BagRefused(reasons)
    found = survey(lines, limits)
    digests = {
        FILES: (found.files_sha256, head.files_sha256),
        MANIFEST: (found.manifest_sha256, head.manifest_sha256),
    }
    others = [name for name, (is_one, should) in digests.items() if not is_one == should == listed[name]]
    if others:
        raise BagRefused(
            [f"{name} is not the one that HEAD and {TAG_MANIFEST} name" for name in others], others
        )
    _check_oxum(tag_files["bag-info.txt"], found, limits)
    if reasons := [*_item_reasons(collection, found)]:
        raise BagRefused(reasons)
    return Bag(head, collection, found.bytes, found.files, _signer(tag_files))


def survey(lines: Iterable[bytes], limits: Limits) -> Survey:
    """Read a list of files once, with memory for one folder, and return what it comes to.

    Raises BagRefused for a line that is none, and for every path that could leave the server's own folder or
    that two file systems would read differently.
    """
    refused = _Refusals()
    digests = _Digests()
    count = size = 0
    items: set[tuple[str, str]] = set()
    names = _Names(limits)
    for file in read_files_of(digests.of(lines), FILES):
        count, size = count + 1, size + file.size
        path = file.path
        if not _USUAL_PATH.fullmatch(path) or len(path) > limits.max_path_bytes:
            reason = _payload_path_problem(path, limits)
        else:
            reason = _too_deep(path, limits)
        if abs(file.mtime_ns) >= 1 << 63:
            reason = "has a time that no file can have"
        if reason := reason or names.problem(path):
            refused.add(path, reason)
        elif len(items) <= MAX_ITEMS:
            platform, item = path.split("/", 3)[1:3]
            items.add((platform, item))
        if count > limits.max_files:
            raise BagRefused([f"it lists more than {limits.max_files} files (limits.max_files allows more)"])
    refused.settle()
    if not count:
        raise BagRefused([f"{FILES} lists no file"])
    if len(items) > MAX_ITEMS:
        raise BagRefused([f"it lists more than {MAX_ITEMS} items"])
    return Survey(count, size, *digests.hexdigests(), frozenset(items))


def fold_files(old: Iterable[bytes], chain: Sequence[Iterable[bytes]]) -> Iterator[bytes]:
    """Given an older FILES and the changes of each collection since, yield the lines of the newest.

    Raises BagRefused for changes that are none.
    """
    try:
        yield from fold(old, chain)
    except ManifestError as error:
        raise BagRefused([f"a list of changes: {_shown(str(error))}"]) from None


def read_files_of(lines: Iterable[bytes], name: str) -> Iterator[File]:
    """Yield the files of a list called `name`. Raises BagRefused."""
    try:
        yield from read_files(lines)
    except ManifestError as error:
        raise BagRefused([f"{name}: {_shown(str(error))}"], [name]) from None


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
    if reason := _too_deep(path, limits):
        return reason
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


def _too_deep(path: str, limits: Limits) -> str:
    if path.count("/") < limits.max_depth:
        return ""
    return f"is more than {limits.max_depth} folders deep (limits.max_depth)"


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


class _Refusals:
    """Reasons as they come up; beyond MAX_REASONS they are only counted."""

    def __init__(self) -> None:
        self._reasons: list[str] = []
        self._paths: list[str] = []
        self._more = 0

    def add(self, path: str, reason: str) -> None:
        if len(self._reasons) < MAX_REASONS:
            self._reasons.append(f"'{_shown(path)}' {reason}")
            self._paths.append(path)
        else:
            self._more += 1

    def settle(self) -> None:
        if self._reasons:
            raise BagRefused(self._reasons, self._paths, self._more)


class _Names:
    """The names in the open folders of a list in order: tells paths that cannot stand beside another one."""

    def __init__(self, limits: Limits) -> None:
        self._fold = limits.case_collisions != "allow"
        self._folder = ""
        self._folders: list[str] = []
        self._names: list[dict[str, str]] = [{}]

    def problem(self, path: str) -> str:
        """Return why a path, which comes after those that were asked before, cannot stand beside them."""
        folder, _, name = path.rpartition("/")
        if self._folder != folder:
            self._folder = folder
            parts = folder.split("/")
            same = 0
            while same < min(len(parts), len(self._folders)) and parts[same] == self._folders[same]:
                same += 1
            del self._folders[same:], self._names[same + 1 :]
            for part in parts[same:]:
                reason = self._meet(part)
                self._folders.append(part)
                self._names.append({})
                if reason:
                    return reason
        return self._meet(name)

    def _meet(self, name: str) -> str:
        same = name
        if self._fold:
            same = name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()
        first = self._names[-1].get(same)
        if first is None:
            self._names[-1][same] = name
            return ""
        if first == name:
            return "is both a file and a folder"
        beside = "/".join([*self._folders, first])
        return f"differs from '{_shown(beside)}' only in case or spelling (limits.case_collisions)"


class _Digests:
    """The digests of a list and of the manifest that is made of it, a thousand lines at a time."""

    def __init__(self) -> None:
        self._files, self._manifest = hashlib.sha256(), hashlib.sha256()

    def of(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines, having taken note of each."""
        some: list[bytes] = []
        for line in lines:
            some.append(line)
            if len(some) >= 1000:
                self._note(some)
                some = []
            yield line
        self._note(some)

    def hexdigests(self) -> tuple[str, str]:
        """Return both."""
        return self._files.hexdigest(), self._manifest.hexdigest()

    def _note(self, some: list[bytes]) -> None:
        self._files.update(b"".join(some))
        fields = [line.split(b" ", 4) for line in some]
        self._manifest.update(b"".join([b"%b  %b" % (field[0], field[-1]) for field in fields]))


def _manifest_lines(raw: bytes, name: str) -> Iterator[tuple[int, str, str, str]]:
    """Yield (line number, path, sha256, reason why the line is refused or "") of a tag manifest."""
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


def _check_tag_manifest(tag_files: Mapping[str, bytes], head: Head) -> dict[str, str]:
    """Return {name: sha256} of the tag manifest: the one that HEAD names, and the small tag files fit it."""
    raw = tag_files[TAG_MANIFEST]
    if hashlib.sha256(raw).hexdigest() != head.tag_manifest_sha256:
        raise BagRefused([f"{TAG_MANIFEST} is not the one that HEAD names"], [TAG_MANIFEST])
    reasons: list[str] = []
    listed: dict[str, str] = {}
    for number, path, digest, reason in _manifest_lines(raw, TAG_MANIFEST):
        if reason or path in listed:
            reasons.append(f"{TAG_MANIFEST} line {number}: '{_shown(path)}' {reason or 'is listed twice'}")
            if len(reasons) > MAX_REASONS:
                break
        listed[path] = digest
    for name in (*NEEDED_TAG_FILES, FILES, MANIFEST):
        if name == TAG_MANIFEST:
            continue
        if name not in listed:
            reasons.append(f"{TAG_MANIFEST} does not list {name}")
        elif name in tag_files and hashlib.sha256(tag_files[name]).hexdigest() != listed[name]:
            reasons.append(f"{name} is not what {TAG_MANIFEST} says")
    if reasons:
        raise BagRefused(reasons, [TAG_MANIFEST])
    return listed


def _check_declaration(raw: bytes) -> None:
    tags = _tags(raw, "bagit.txt")
    if tags.get("BagIt-Version") not in ("1.0", "0.97") or tags.get("Tag-File-Character-Encoding") != "UTF-8":
        raise BagRefused(["bagit.txt does not declare BagIt 1.0 in UTF-8"], ["bagit.txt"])


def _check_oxum(raw: bytes, found: Survey, limits: Limits) -> None:
    """Compare what bag-info.txt announces with what FILES lists."""
    oxum = re.fullmatch(r"([0-9]{1,18})\.([0-9]{1,12})", _tags(raw, "bag-info.txt").get("Payload-Oxum", ""))
    if oxum is None:
        raise BagRefused(["bag-info.txt names no Payload-Oxum"], ["bag-info.txt"])
    size, files = int(oxum[1]), int(oxum[2])
    if (files, size) != (found.files, found.bytes):
        said = f"bag-info.txt counts {files} files of {size} bytes"
        raise BagRefused([f"{said}, {FILES} lists {found.files} of {found.bytes}"], ["bag-info.txt"])
    if size > limits.max_bytes:
        raise BagRefused([f"it holds {size} bytes, more than limits.max_bytes allows ({limits.max_bytes})"])


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


def _signer(tag_files: Mapping[str, bytes]) -> str:
    """Return the public key whose owner signed the tag manifest, and with it everything; "" if nobody did."""
    raw = tag_files.get(SIGNATURE)
    if raw is None:
        return ""
    try:
        return signer_of(raw, tag_files[TAG_MANIFEST])
    except SignatureWrong as wrong:
        raise BagRefused([f"{SIGNATURE} {_shown(str(wrong))}"], [SIGNATURE]) from None


def _item_reasons(collection: Collection, found: Survey) -> Iterator[str]:
    """Yield the items that are said to be there and of which no file is listed."""
    for item in collection.items:
        if item.files > 0 and (item.platform, item.name.partition("/")[0]) not in found.items:
            shown = _shown(f"{item.platform}/{item.name}")
            yield f"collection.json says that {shown} has {item.files} files, {FILES} lists none"


def _shown(text: str) -> str:
    """Return text of a sender as it may be printed: no control characters, not endless."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:160])
