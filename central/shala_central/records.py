"""Records: what is kept of a collection beside its content, and whether it is still what was committed.

A record is a folder: HEAD and the tag files as the school sealed them, pull.json (how they came), and the
lists of what is in view where that is not all of it. Nothing here changes one.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from shala_agent.collection import Collection
from shala_agent.device import SIGNATURE, SignatureWrong, signer_of

from shala_central.bag import FILES, HEAD_FORMAT, MANIFEST, NEEDED_TAG_FILES, TAG_MANIFEST, Head
from shala_central.failure import CentralError
from shala_central.listing import file_of, lines_of, readable
from shala_central.objects import digest_of

HEAD = "HEAD"
PULL = "pull.json"
PULL_DIGEST = "pull.sha256"  # its digest; a record of an older shala has none
VIEW = "view.txt"  # the list of what is in view, where that is not all of the collection
# Where some of what is in view is encrypted: its paths at the school, and the list of the files that are
# published. That list can be made again from the paths, and so is kept of the newest alone.
ENCRYPTED = "encrypted.txt"
PUBLISHED = "published.txt"
# The lists that no signature covers, and the field of pull.json with the digest of each.
LISTS = {VIEW: "view_sha256", ENCRYPTED: "encrypted_sha256", PUBLISHED: "published_sha256"}
SEALED = (HEAD, TAG_MANIFEST, SIGNATURE, FILES, *(name for name in NEEDED_TAG_FILES if name != TAG_MANIFEST))
_FOLDER = re.compile(r"([0-9]{4})-([0-9]{8})(?:-[0-9TZ.]+)?")  # its name: year, number, and when, if twice
_TAG_LINE = re.compile(r"([0-9a-f]{64})[ \t]+(.+)")


class RecordDamaged(CentralError):
    """The record of a server cannot be read, or is gone; its content may be whole."""


class PullRecord(msgspec.Struct, frozen=True):
    """How and when a collection came: pull.json of its record."""

    pulled: str
    year: int
    state: str
    sequence: int
    manifest_sha256: str
    bytes: int
    files: int
    bytes_received: int
    files_received: int
    seconds: float
    address: str = ""
    # The device that signed it, and its public key; "" where it is not signed.
    device: str = ""
    public_key: str = ""
    # Suspect items whose last good one readers go on seeing: {platform/item: the collection it is of}, by its
    # number@time (shala_central.history), or the number alone where that collection is not kept.
    held: dict[str, str] = msgspec.field(default_factory=dict)
    # Suspect items that the operator has taken for good.
    accepted: list[str] = msgspec.field(default_factory=list)
    # Of the lists that no signature covers, "" where there is none.
    view_sha256: str = ""
    encrypted_sha256: str = ""
    published_sha256: str = ""
    # When the same collection came once more, last: asked for again, or its tree was lost.
    again: str = ""
    format: int = 1

    @property
    def came(self) -> str:
        """Return when it came last."""
        return self.again or self.pulled

    def received_before(self, first: PullRecord) -> PullRecord:
        """Return the record of a collection that came once more: how it came first, and when this was."""
        return msgspec.structs.replace(
            self,
            again=self.pulled,
            pulled=first.pulled,
            bytes_received=first.bytes_received,
            files_received=first.files_received,
            seconds=first.seconds,
            address=first.address,
        )

    def is_of_same_collection(self, other: PullRecord) -> bool:
        """Return whether two records are of one collection."""
        mine, others = ((one.manifest_sha256, one.year, one.sequence) for one in (self, other))
        return mine == others


class Flaw(msgspec.Struct, frozen=True):
    """One file of a record that is not what was committed."""

    name: str
    problem: str


def read_pull(record: Path) -> PullRecord:
    """Return how the collection of a record came. Raises RecordDamaged, FileNotFoundError."""
    try:
        return msgspec.json.decode((record / PULL).read_bytes(), type=PullRecord)
    except FileNotFoundError:
        raise
    except (OSError, msgspec.MsgspecError) as error:
        raise RecordDamaged(f"{record / PULL} cannot be read: {_shown(error)}") from None


def flaws(record: Path) -> list[Flaw]:
    """Return what is wrong with a record: each file is compared with the digest that another one gives it.

    The school's signature covers the tag manifest, that the tag files; HEAD names both lists, and pull.json
    the manifest and the list of what is in view; it has its own digest beside it. Payload is not looked at.
    """
    return list(_flaws(record))


def _flaws(record: Path) -> Iterator[Flaw]:
    pull: PullRecord | None = None
    head: Head | None = None
    try:
        pull = read_pull(record)
    except FileNotFoundError:
        yield Flaw(PULL, "of the record is missing")
    except RecordDamaged:
        yield Flaw(PULL, "of the record cannot be read")
    if pull is not None and not has_pull(record):
        yield Flaw(PULL, f"of the record is not the one that {PULL_DIGEST} names")
        pull = None  # what a damaged one says of the other files says nothing of them
    try:
        head = msgspec.json.decode((record / HEAD).read_bytes(), type=Head)
    except FileNotFoundError:
        yield Flaw(HEAD, "of the record is missing")
    except (OSError, msgspec.MsgspecError):
        yield Flaw(HEAD, "of the record cannot be read")
    if pull is not None and head is not None:
        said = (head.manifest_sha256, head.year, head.sequence)
        if said != (pull.manifest_sha256, pull.year, pull.sequence):
            yield Flaw(HEAD, f"of the record is not of the collection that {PULL} names")
    if head is not None and head.format != HEAD_FORMAT:
        yield Flaw(HEAD, f"of the record is of format {head.format}, this shala reads {HEAD_FORMAT}")
    yield from _tag_flaws(record, head, pull)
    if not has_sealed_list(record) and head is not None:
        yield Flaw(FILES, "of the record is not the one that was committed")
    for name in _changed_lists(record, pull) if pull is not None else ():
        yield Flaw(name, "of the record is not the one that was published")


def _tag_flaws(record: Path, head: Head | None, pull: PullRecord | None) -> Iterator[Flaw]:
    try:
        tags = (record / TAG_MANIFEST).read_bytes()
    except FileNotFoundError:
        yield Flaw(TAG_MANIFEST, "of the record is missing")
        return
    except OSError as error:
        yield Flaw(TAG_MANIFEST, f"of the record cannot be read: {error.strerror}")
        return
    if head is not None and hashlib.sha256(tags).hexdigest() != head.tag_manifest_sha256:
        yield Flaw(TAG_MANIFEST, f"of the record is not the one that {HEAD} names")
        return
    listed = dict(_tag_lines(tags))
    for name in NEEDED_TAG_FILES:
        if name == TAG_MANIFEST:
            continue
        try:
            if digest_of(record / name) != listed.get(name):
                yield Flaw(name, f"of the record is not the one that {TAG_MANIFEST} names")
        except FileNotFoundError:
            yield Flaw(name, "of the record is missing")
        except OSError as error:
            yield Flaw(name, f"of the record cannot be read: {error.strerror}")
    for name, wanted in ((FILES, head and head.files_sha256), (MANIFEST, head and head.manifest_sha256)):
        if wanted and listed.get(name) != wanted:
            yield Flaw(HEAD, f"of the record names another {name} than {TAG_MANIFEST}")
    if pull is not None and pull.public_key:
        yield from _signature_flaws(record, tags, pull)


def _signature_flaws(record: Path, tags: bytes, pull: PullRecord) -> Iterator[Flaw]:
    try:
        if signer_of((record / SIGNATURE).read_bytes(), tags) != pull.public_key:
            yield Flaw(SIGNATURE, "is not that of the device that sealed the collection")
    except FileNotFoundError:
        yield Flaw(SIGNATURE, "of the record is missing")
    except (OSError, SignatureWrong) as error:
        yield Flaw(SIGNATURE, _shown(error))


def _tag_lines(tags: bytes) -> Iterator[tuple[str, str]]:
    for line in tags.decode(errors="replace").splitlines():
        if match := _TAG_LINE.fullmatch(line):
            yield match[2], match[1]


def tag_files_are_whole(record: Path) -> bool:
    """Return whether HEAD and the small tag files of a record fit one another; reads nothing large."""
    try:
        head = msgspec.json.decode((record / HEAD).read_bytes(), type=Head)
    except (OSError, msgspec.MsgspecError):
        return False
    return not any(_tag_flaws(record, head, None))


def has_sealed_list(record: Path) -> bool:
    """Return whether FILES of a record is still the one that the school sealed."""
    try:
        head = msgspec.json.decode((record / HEAD).read_bytes(), type=Head)
        return digest_of(record / FILES) == head.files_sha256
    except (OSError, msgspec.MsgspecError):
        return False


def pull_files(pull: PullRecord) -> dict[str, bytes]:
    """Return the files of a record that tell how its collection came, in the order in which to write them."""
    raw = msgspec.json.encode(pull) + b"\n"
    return {PULL: raw, PULL_DIGEST: hashlib.sha256(raw).hexdigest().encode() + b"\n"}


def has_pull(record: Path) -> bool:
    """Return whether pull.json of a record is the one that was written; an older shala noted no digest."""
    try:
        wanted = (record / PULL_DIGEST).read_bytes().strip()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return _digest_or_none(record / PULL).encode() == wanted


def has_view(record: Path) -> bool:
    """Return whether VIEW of a record is still the one that was published; an older shala noted no digest."""
    try:
        return VIEW not in _changed_lists(record, read_pull(record))
    except (FileNotFoundError, RecordDamaged):
        return False


def has_published_list(record: Path) -> bool:
    """Return whether all lists of what is in view are still those that were published."""
    try:
        return not list(_changed_lists(record, read_pull(record)))
    except (FileNotFoundError, RecordDamaged):
        return False


def is_whole(record: Path) -> bool:
    """Return whether every file of a record is the one that was committed."""
    return not flaws(record)


def lists_are_whole(record: Path) -> bool:
    """Return whether the lists of a record are those that the school sealed and that were published."""
    return has_sealed_list(record) and has_pull(record) and has_published_list(record)


def chosen_in(record: Path) -> Path:
    """Return the list of what is in view by a record, as the school sealed it."""
    view = record / VIEW
    return view if view.is_file() else record / FILES


def published_in(record: Path) -> Path:
    """Return the list of what is published by a record."""
    published = record / PUBLISHED
    return published if published.is_file() else chosen_in(record)


def digests_of_lists(record: Path) -> dict[str, str]:
    """Return what pull.json says of the lists in a record that no signature covers."""
    return {field: _digest_or_none(record / name) for name, field in LISTS.items()}


def _changed_lists(record: Path, pull: PullRecord) -> Iterator[str]:
    for name, field in LISTS.items():
        wanted = getattr(pull, field)
        if wanted and _digest_or_none(record / name) != wanted:
            yield name


def _digest_or_none(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError:
        return ""


def digest_sealed(record: Mapping[str, bytes]) -> str:
    """Return the digest of FILES that the other files of a record name, "" where none does any more."""
    with contextlib.suppress(KeyError, msgspec.MsgspecError):
        return msgspec.json.decode(record[HEAD], type=Head).files_sha256
    return dict(_tag_lines(record.get(TAG_MANIFEST, b""))).get(FILES, "")


def folders_of(server: Path) -> list[Path]:
    """Return the records in the folder of a server; as a rule it is one."""
    try:
        return sorted(path for path in server.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir())
    except FileNotFoundError:
        return []


def what_is_left(record: Path, state: str) -> PullRecord:
    """Return what can still be told of a record whose pull.json cannot be read: of its name and other files.

    What was held back is not among it. Never raises for damage.
    """
    named = _FOLDER.fullmatch(record.name)
    year, sequence = (int(named[1]), int(named[2])) if named else (0, 0)
    manifest, key, pulled = "", "", 0.0
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        head = msgspec.json.decode((record / HEAD).read_bytes(), type=Head)
        year, sequence, manifest = head.year, head.sequence, head.manifest_sha256
    with contextlib.suppress(OSError, SignatureWrong):
        key = signer_of((record / SIGNATURE).read_bytes(), (record / TAG_MANIFEST).read_bytes())
    with contextlib.suppress(OSError):
        pulled = record.stat().st_mtime
    count = size = 0
    with contextlib.suppress(OSError):
        for file in map(file_of, readable(lines_of(record / FILES))):
            count, size = count + 1, size + file.size
    told = PullRecord(
        pulled=datetime.datetime.fromtimestamp(pulled, datetime.UTC).isoformat(timespec="microseconds"),
        year=year,
        state=state,
        sequence=sequence,
        manifest_sha256=manifest,
        bytes=size,
        files=count,
        bytes_received=0,
        files_received=0,
        seconds=0.0,
        public_key=key,
    )
    return msgspec.structs.replace(told, **digests_of_lists(record))


def pull_of(record: Path, state: str) -> PullRecord:
    """Return how the collection of a record came; of one that a disk has damaged what is left of it."""
    with contextlib.suppress(FileNotFoundError, RecordDamaged):
        pull = read_pull(record)
        if has_pull(record):
            return pull
    return what_is_left(record, state)


def read_collection(record: Path) -> Collection:
    """Return what the school said about the collection of a record. Raises RecordDamaged."""
    path = record / "collection.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Collection)
    except (OSError, msgspec.MsgspecError) as error:
        raise RecordDamaged(f"the record {path} is damaged: {_shown(error)}") from None


def _shown(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
