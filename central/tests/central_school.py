"""A school server as the centre sees it: a spool with a sealed collection; and its way into an archive."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shala_agent.manifest import (
    File,
    ManifestError,
    bagit_lines,
    read_files,
    sort_key,
    write_line,
)
from shala_central.archive import Archive
from shala_central.assembly import ObjectsLost
from shala_central.bag import FILES, MANIFEST, NEEDED_TAG_FILES, SMALL_TAG_FILES, Bag, read_bag, read_head
from shala_central.commit import commit, recover
from shala_central.config import Limits
from shala_central.fleet import Server
from shala_central.listing import changes_between, lines_in
from shala_central.records import PullRecord, is_whole
from shala_central.staging import Staging

TAG_FILES = (*NEEDED_TAG_FILES, FILES, MANIFEST)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class School:
    """A school server as the centre sees it: a spool with sealed collections."""

    spool: Path
    name: str = "2031017-mz17"
    state: str = "mz"
    zone: str = "mz-aizawl"
    year: int = 2026
    sequence: int = 0
    items: dict[str, str] = field(
        default_factory=lambda: {"db": "ok", "media": "ok", "nginx-logs": "suspect"}
    )
    port: int = 0

    def collection(self, **changes: object) -> dict[str, Any]:
        code, _, server_id = self.name.partition("-")
        return {
            "format": 1,
            "server_name": self.name,
            "state": self.state,
            "school_code": code,
            "server_id": server_id,
            "school_name": "St. Peter's H/S",
            "sequence": self.sequence,
            "year": self.year,
            "started": "2026-11-21T04:00:00+00:00",
            "sealed": "2026-11-21T04:05:00+00:00",
            "agent_version": "0.1.0",
            "previous_manifest_sha256": None,
            "container": {"image": "gstudio:lab", "image_id": "sha256:0"},
            "items": [
                {
                    "platform": "gstudio",
                    "name": name,
                    "outcome": outcome,
                    "reasons": [],
                    "files": 1,
                    "bytes": 1,
                    "seconds": 0.1,
                    "carried_from": None,
                }
                for name, outcome in self.items.items()
            ],
            "a_field_of_tomorrow": True,
            **changes,
        }

    def tag_files(self, files: dict[str, bytes], **changes: object) -> dict[str, bytes]:
        """Return the tag files of a bag with these payload files (paths without data/)."""
        listed = [
            File(f"data/{path}", sha256(content), len(content), 1_700_000_000 * 10**9, 0o644)
            for path, content in files.items()
        ]
        return self.tag_files_of(listed, **changes)

    def tag_files_of(self, listed: list[File], **changes: object) -> dict[str, bytes]:
        """Return the tag files of a bag whose manifest says this, whatever it is."""
        listed = sorted(listed, key=lambda file: sort_key(file.path))
        size = sum(file.size for file in listed)
        tags = {
            "bagit.txt": b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n",
            "bag-info.txt": f"Source-Organization: {self.name}\nPayload-Oxum: {size}.{len(listed)}\n".encode(),
            "collection.json": json.dumps(self._counted(listed, **changes)).encode(),
            "files.txt": b"".join(map(write_line, listed)),
            "manifest-sha256.txt": b"".join(bagit_lines(listed)),
        }
        return sealed(tags)

    def _counted(self, listed: list[File], **changes: object) -> dict[str, Any]:
        collection = self.collection(**changes)
        for item in collection["items"]:
            inside = f"data/{item['platform']}/{item['name']}"
            item["files"] = sum(f.path == inside or f.path.startswith(f"{inside}/") for f in listed)
        return collection

    def resealed(self, tags: dict[str, bytes]) -> dict[str, bytes]:
        """Return changed tag files with the tag manifest that fits them again."""
        return sealed(tags)

    def seal(self, files: dict[str, bytes], **changes: object) -> Path:
        """Seal a collection into the spool; unchanged files stay as they are in the mirror."""
        self.sequence += 1
        bag = self.spool / "bag"
        for path, content in files.items():
            target = bag / "data" / path
            if target.is_dir():
                shutil.rmtree(target)
            for above in (*target.parents,):
                if above.is_file():
                    above.unlink()
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_file() or target.read_bytes() != content:
                target.write_bytes(content)
                os.utime(target, (1_700_000_000, 1_700_000_000))
        for target in (bag / "data").rglob("*"):
            if target.is_file() and str(target.relative_to(bag / "data")) not in files:
                target.unlink()
        self.write_tags(bag, self.tag_files(files, **changes))
        return bag

    def write_tags(self, bag: Path, tags: dict[str, bytes]) -> None:
        """Write the tag files of a bag, the list of what changed in it, and HEAD."""
        old = (bag / "files.txt").read_bytes().splitlines(keepends=True) if self.sequence > 1 else []
        for name, content in tags.items():
            (bag / name).write_bytes(content)
        (self.spool / "changes").mkdir(exist_ok=True)
        new = tags["files.txt"].splitlines(keepends=True)
        with contextlib.suppress(ManifestError):
            lines = list(map(write_line, changes_between(old, map(write_line, read_files(new)))))
            (self.spool / f"changes/{self.sequence:08d}.txt").write_bytes(b"".join(lines))
        self.write_head(tags)

    def write_head(self, tags: dict[str, bytes] | None = None, **changes: object) -> None:
        """Write the HEAD of these tag files, by default of those in the mirror."""
        tags = tags or {name: (self.spool / "bag" / name).read_bytes() for name in TAG_FILES}
        head = {
            "format": 2,
            "server_name": self.name,
            "sequence": self.sequence,
            "year": self.year,
            "manifest_sha256": sha256(tags["manifest-sha256.txt"]),
            "files_sha256": sha256(tags["files.txt"]),
            "tag_manifest_sha256": sha256(tags["tagmanifest-sha256.txt"]),
            **changes,
        }
        (self.spool / "HEAD").write_text(json.dumps(head))

    def entry(self) -> dict[str, object]:
        """Return this school's line of fleet.json."""
        return {
            "name": self.name,
            "state": self.state,
            "zone": self.zone,
            "address": "127.0.0.1",
            "port": self.port,
        }


def sealed(tags: dict[str, bytes]) -> dict[str, bytes]:
    """Return tag files with the tag manifest that fits them."""
    lines = "".join(
        f"{sha256(tags[name])}  {name}\n" for name in TAG_FILES if name in tags and "tagman" not in name
    )
    return {**tags, "tagmanifest-sha256.txt": lines.encode()}


def deliver(
    archive: Archive, school: School, files: dict[str, bytes], *suspect: str, year: int = 2026
) -> None:
    """Let a school deliver its next day to an archive; of the items, these are suspect."""
    school.sequence, school.year = school.sequence + 1, year
    names = {path.split("/")[1] for path in files}
    school.items = {name: "suspect" if name in suspect else "ok" for name in names}
    received(archive, school, files)


def tree_of(folder: Path) -> dict[str, bytes]:
    """Return what the files below a folder hold, by their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def overwrite(path: Path, content: bytes) -> None:
    """Damage a file as a failing disk does: it stays read-only."""
    path.chmod(0o640)
    path.write_bytes(content)
    path.chmod(0o440)


def received(archive: Archive, school: School, files: dict[str, bytes], pulled: str = "") -> Bag | None:
    """Bring a collection into the archive as a pull does, but without a network; None if it is there already."""
    tags = school.tag_files(files)
    school.write_head(tags)
    raw_head = (school.spool / "HEAD").read_bytes()
    server = Server(school.name, school.state, "127.0.0.1")
    head = read_head(raw_head, server)
    small = {name: tags[name] for name in SMALL_TAG_FILES if name in tags}
    bag = read_bag(small, lines_in(tags[FILES]), head, server, Limits())
    with archive.lock(school.name) as lock:
        assert lock is not None
        recover(archive, school.name)
        committed = archive.committed(school.name)
        if committed is not None and committed.pull.manifest_sha256 == head.manifest_sha256:
            return None
        place = archive.staging(school.name) / "received"
        place.mkdir()
        for name, content in {**small, FILES: tags[FILES], "HEAD": raw_head}.items():
            (place / name).write_bytes(content)
        staging = Staging(archive.staging(school.name) / "data", archive.objects, school.name)
        fetched: list[File] = []

        def fetch(missing: Iterable[File]) -> None:
            for batch in staging.batches(missing):
                for file in batch:
                    target = staging.folder / file.path.removeprefix("data/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.unlink(missing_ok=True)
                    target.write_bytes(files[file.path.removeprefix("data/")])
                staging.take(batch)
                fetched.extend(batch)

        def record() -> PullRecord:
            return PullRecord(
                pulled=pulled or f"2026-11-{head.sequence:02d}T04:00:00+00:00",
                year=head.year,
                state=school.state,
                sequence=head.sequence,
                manifest_sha256=head.manifest_sha256,
                bytes=bag.payload_bytes,
                files=bag.files,
                bytes_received=sum(file.size for file in fetched),
                files_received=len(fetched),
                seconds=0.0,
            )

        # Of a record that a disk has damaged a pull believes nothing.
        whole = committed is not None and is_whole(committed.record)
        old = list(committed.files()) if committed is not None and whole else []
        fetch(staging.missing(old, lines_in(tags[FILES])))
        try:
            commit(archive, school.name, bag, place, record())
        except ObjectsLost as lost:
            fetch(lost.files)
            commit(archive, school.name, bag, place, record())
    return bag
