"""Staging: the folder into which one server's missing files are fetched, batch by batch.

A file that has come whole is compared with the manifest, and moved to the objects when it is right; a pull
that is cut at any moment goes on with the part of the file that it was at. No reader sees this folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from shala_agent.manifest import File

from shala_central.bag import BagRefused
from shala_central.listing import differing
from shala_central.objects import Objects, digest_of
from shala_central.publish import remove_tree, sync_file_system

BATCH = 20_000  # files fetched by one rsync: bounds its memory, at both ends


class Staging:
    """The files of one server on their way; `folder` holds them under their paths (without data/)."""

    def __init__(self, folder: Path, objects: Objects, server: str) -> None:
        self.folder = folder
        self._objects = objects
        self._server = server
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._empty = not any(os.scandir(folder))
        if not self._empty:
            sync_file_system(folder)  # what an earlier run was cut after may not be on the disk yet

    def missing(self, old: Iterable[bytes], new: Iterable[bytes]) -> Iterator[File]:
        """Given two lists of files, yield those of the new one whose content is not in the archive.

        What stands in both lists is there. What an earlier run has left in the folder is taken.
        """
        for _before, file in differing(old, new):
            if file is not None and not self._is_there(file):
                yield file

    def batches(self, files: Iterable[File], size: int = BATCH) -> Iterator[list[File]]:
        """Yield files in lists of at most `size`, in each a content once; give `files` as `missing` does.

        What a later file shares with an earlier batch is found when it is looked for, because that batch was
        taken meanwhile.
        """
        batch: dict[tuple[bool, str], File] = {}
        for file in files:
            batch.setdefault((self._objects.is_shared(_inner(file)), file.sha256), file)
            if len(batch) >= size:
                yield list(batch.values())
                batch = {}
        if batch:
            yield list(batch.values())

    def take(self, batch: Iterable[File]) -> None:
        """Compare what was fetched with the manifest and move it to the objects.

        Raises BagRefused naming each file that is missing or not what the manifest says; others are taken.
        """
        good: list[File] = []
        reasons: list[str] = []
        paths: list[str] = []
        for file in batch:
            path = _inner(file)
            if problem := self._problem(file):
                reasons.append(f"'{path}' {problem}")
                paths.append(path)
            else:
                good.append(file)
        # On the disk before it has its name among the objects: what has one is believed.
        sync_file_system(self.folder)
        for file in good:
            self._objects.add(self.folder / _inner(file), self._server, _inner(file), file.sha256)
        if reasons:
            raise BagRefused(reasons, paths)

    def clear(self) -> None:
        """Remove what is left."""
        remove_tree(self.folder)

    def _is_there(self, file: File) -> bool:
        path = _inner(file)
        if self._objects.find(self._server, path, file.sha256, file.size) is not None:
            return True
        if self._objects.has_remote(self._server, path, file.sha256, file.size):
            return True
        if self._objects.thaw(self._server, path, file.sha256):
            return True
        if self._empty:
            return False
        self._clear_way(path)
        if self._problem(file):
            return False
        self._objects.add(self.folder / path, self._server, path, file.sha256)
        return True

    def _clear_way(self, path: str) -> None:
        """Remove what an earlier collection left where this one has a file for a folder, or the reverse."""
        place = self.folder
        parts = path.split("/")
        for part in parts[:-1]:
            place /= part
            if os.path.lexists(place) and (place.is_symlink() or not place.is_dir()):
                place.unlink()
        if (self.folder / path).is_dir():
            remove_tree(self.folder / path)

    def _problem(self, file: File) -> str:
        """Return why a fetched file cannot be taken, or ""."""
        place = f"{self.folder}/{_inner(file)}"
        try:
            seen = os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return "is listed but was not sent"
        if not stat.S_ISREG(seen.st_mode):
            return "is not a plain file"
        if seen.st_size != file.size or digest_of(place) != file.sha256:
            return "is not what the manifest says (sha256 differs)"
        return ""


def _inner(file: File) -> str:
    return file.path.removeprefix("data/")
