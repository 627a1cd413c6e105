"""Staging: the folder into which one server's missing files are fetched, batch by batch.

A file that has come whole is compared with the manifest, and moved to the objects when it is right; a pull
that is cut at any moment goes on with the part of the file that it was at. No reader sees this folder.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shala_agent.manifest import File

from shala_central.bag import BagRefused
from shala_central.ciphertext import item_of
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
        ciphertexts = objects.ciphertexts
        self._sensitive = ciphertexts.is_sensitive
        self._any_encrypted = bool(ciphertexts.items(server))
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        os.utime(folder)  # gone on with: otherwise prune gives it up one day
        self._own = folder.with_name("own")  # what is looked at; no rsync was given it
        self._give_back()
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
        batch: dict[tuple[str | bool, str], File] = {}
        for file in files:
            batch.setdefault((self._kind(_inner(file)), file.sha256), file)
            if len(batch) >= size:
                yield list(batch.values())
                batch = {}
        if batch:
            yield list(batch.values())

    def take(self, batch: Iterable[File]) -> None:
        """Compare what was fetched with the manifest and move it to the objects.

        Raises BagRefused naming each file that is missing or not what the manifest says; others are taken.
        The rsync that brought them may still run, and a hostile school have it write a name again: so each is
        moved out of its reach before it is read.
        """
        good: list[File] = []
        reasons: list[str] = []
        paths: list[str] = []
        for file in batch:
            path = _inner(file)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _move(self.folder / path, self._own / path)
            if problem := self._problem(file, self._own):
                reasons.append(f"'{path}' {problem}")
                paths.append(path)
            else:
                good.append(file)
        # On the disk before it has its name among the objects: what has one is believed.
        sync_file_system(self.folder)
        sensitive = []
        for file in good:
            if self._sensitive(_inner(file)):
                sensitive.append(file)
            else:
                self._add(file, self._own)
        self._encrypt(sensitive, self._own)
        remove_tree(self._own)
        if reasons:
            raise BagRefused(reasons, paths)

    def room_for(self, batch: Iterable[File]) -> int:
        """Return how many bytes a batch needs at most: what is sensitive twice, until it is encrypted."""
        return sum(file.size * (1 + self._sensitive(_inner(file))) for file in batch)

    def _kind(self, path: str) -> str | bool:
        """Return what must be the same of two files for one content to be fetched for both."""
        return item_of(path) if self._sensitive(path) else self._objects.is_shared(path)

    def _give_back(self) -> None:
        """Put back what a run that was cut had taken to look at."""
        for folder, _, names in os.walk(self._own):
            for name in names:
                place = Path(folder, name)
                with contextlib.suppress(NotADirectoryError, IsADirectoryError):
                    _move(place, self.folder / place.relative_to(self._own))
        remove_tree(self._own)

    def _add(self, file: File, folder: Path) -> None:
        path = _inner(file)
        self._objects.add(folder / path, self._server, path, file.sha256)
        if self._any_encrypted:
            self._objects.ciphertexts.forget(self._server, file)

    def _encrypt(self, files: Sequence[File], folder: Path) -> None:
        """Keep what stands here, whole, as age files; the plain content goes when they are there for good."""
        if files:
            contents = [(file, folder / _inner(file)) for file in files]
            self._objects.add_encrypted(self._server, contents, self.folder.with_name("encrypted"))
            for _, place in contents:
                place.unlink()

    def _is_there(self, file: File) -> bool:
        path = _inner(file)
        sensitive = self._sensitive(path)
        if (sensitive or self._any_encrypted) and self._is_encrypted(file):
            return True
        if sensitive:
            return self._is_there_to_encrypt(file)
        if (
            self._objects.find(self._server, path, file.sha256, file.size) is not None
            or self._objects.has_remote(self._server, path, file.sha256, file.size)
            or self._objects.thaw(self._server, path, file.sha256)
        ):
            return True
        if self._empty:
            return False
        if not self._is_whole_here(file):
            return False
        self._add(file, self.folder)
        return True

    def _is_encrypted(self, file: File) -> bool:
        stored = self._objects.ciphertexts.as_stored(self._server, file)
        return stored is not file and self._objects.has(self._server, stored)

    def _is_there_to_encrypt(self, file: File) -> bool:
        """Return whether a sensitive content is here in plain, and then encrypt it: no need to fetch it."""
        spare = self.folder.with_name("plain")
        if (place := self._objects.readable(self._server, file, spare)) is not None:
            work = self.folder.with_name("encrypted")
            self._objects.add_encrypted(self._server, [(file, place)], work)
            spare.unlink(missing_ok=True)
            return True
        if self._empty:
            return False
        if not self._is_whole_here(file):
            return False
        self._encrypt([file], self.folder)
        return True

    def _is_whole_here(self, file: File) -> bool:
        """Return whether an earlier run has left a file here whole; what it left of another one goes, or it
        would pass for the one that is to come.
        """
        path = _inner(file)
        self._clear_way(path)
        if not self._problem(file, self.folder):
            return True
        with contextlib.suppress(FileNotFoundError):
            (self.folder / path).unlink()
        return False

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

    def _problem(self, file: File, folder: Path) -> str:
        """Return why a fetched file cannot be taken, or ""."""
        place = f"{folder}/{_inner(file)}"
        try:
            seen = os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return "is listed but was not sent"
        if not stat.S_ISREG(seen.st_mode):
            return "is not a plain file"
        if seen.st_size != file.size or digest_of(place) != file.sha256:
            return "is not what the manifest says (sha256 differs)"
        return ""


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except FileNotFoundError:
        source.lstat()  # or is it the source that is not there?
        target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        source.rename(target)


def _inner(file: File) -> str:
    return file.path.removeprefix("data/")
