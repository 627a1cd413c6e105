"""Files go back: each written aside, compared with what was collected, and renamed into its place.

What is there already stays as it is, and what else lies there too; what is replaced is kept aside first.
Owners, and the permissions of what is replaced, are the platform's. Folders are opened one below the other
and never through a link.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shala_agent import durable
from shala_agent.failure import AgentError
from shala_agent.payload import CHUNK, Damaged, PlainFile, plain_files, sha256_of

_ASIDE = f"{durable.TEMPORARY}restore.part"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Written:
    """How many files were written, and how many were there already."""

    written: int = 0
    same: int = 0


def copy_aside(source: Path, digests: Mapping[str, str], target: Path) -> None:
    """Copy an item, or a folder of it, to a new folder for root alone. Raises Damaged, OSError."""
    durable.empty_folder(target)
    for file, digest in _as_looked_at(source, digests):
        place = target / (file.relative or source.name)
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(place, flags, 0o600)
        try:
            _copy(file, digest, descriptor)
        finally:
            os.close(descriptor)


def put_back(
    source: Path,
    digests: Mapping[str, str],
    target: Path,
    kept: Path,
    *,
    tick: Callable[[int], None] | None = None,
) -> Written:
    """Put the files of an item, or the one that it is, into their place; cut anywhere, it may be run again.

    What is replaced is in the folder `kept` then, which is made when there is something to keep.

    Raises AgentError where a link or a folder lies in the way, Damaged, OSError.
    """
    single = "" in digests
    root = _root(target.parent if single else target)
    done = Written()
    try:
        for file, digest in _as_looked_at(source, digests):
            place = PurePosixPath(target.name if single else file.relative)
            with_folder = _Folder(root, place.parent.parts, target)
            try:
                if with_folder.holds(place.name, digest):
                    done.same += 1
                else:
                    with_folder.replace(place.name, file, digest, kept)
                    done.written += 1
            finally:
                with_folder.close()
            if tick is not None:
                tick(done.written + done.same)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(_ASIDE, dir_fd=root)
        os.close(root)
    # One for all: what is cut before it is found and written anew by the next run.
    durable.sync_filesystem(target.parent)
    return done


def newer_files(source: Path, digests: Mapping[str, str], target: Path) -> int:
    """Return how many files of an item are there in another form than was collected, and changed since."""
    return sum(_is_newer(source / path, digest, target / path) for path, digest in digests.items())


def _is_newer(collected: Path, digest: str, there: Path) -> bool:
    try:
        seen = there.lstat()
        if not stat.S_ISREG(seen.st_mode) or seen.st_mtime <= collected.stat().st_mtime:
            return False
        descriptor = os.open(there, _READ)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return sha256_of(descriptor) != digest
    finally:
        os.close(descriptor)


def _as_looked_at(source: Path, digests: Mapping[str, str]) -> Iterator[tuple[PlainFile, str]]:
    """Yield the files of an item with their digests. Raises Damaged where they are not exactly those."""
    left = dict(digests)
    for file in plain_files(source):
        digest = left.pop(file.relative, None)
        if digest is None:
            raise Damaged(f"{file.path} was not there when it was looked at (run it again)")
        yield file, digest
    if left:
        raise Damaged(
            f"{source / min(left)} is gone since it was looked at (bring the collection here again)"
        )


@dataclass(slots=True)
class _Folder:
    """An open folder below another one, made where it is missing; on the disk at once if it is `synced`."""

    root: int
    parts: tuple[str, ...]
    shown: Path
    synced: bool = False
    descriptor: int = -1

    def __post_init__(self) -> None:
        self.descriptor = os.dup(self.root)
        for part in self.parts:
            above = self.descriptor
            try:
                self.descriptor = _entered(above, part, self.shown.joinpath(*self.parts))
                if self.synced:
                    os.fsync(above)
            finally:
                os.close(above)

    def close(self) -> None:
        os.close(self.descriptor)

    def holds(self, name: str, digest: str) -> bool:
        """Return whether a file has this content already."""
        try:
            descriptor = os.open(name, _READ, dir_fd=self.descriptor)
        except OSError:
            return False
        try:
            return stat.S_ISREG(os.fstat(descriptor).st_mode) and sha256_of(descriptor) == digest
        finally:
            os.close(descriptor)

    def replace(self, name: str, file: PlainFile, digest: str, kept: Path) -> None:
        """Write a file aside, keep the one that is there, and put the new one in its place."""
        former = self._former(name)
        descriptor = os.open(_ASIDE, _NEW, 0o600, dir_fd=self.root)
        try:
            source = _copy(file, digest, descriptor)
            like = former or os.fstat(self.descriptor)
            os.fchown(descriptor, like.st_uid, like.st_gid)
            os.fchmod(descriptor, (former or source).st_mode & 0o777)
            os.utime(descriptor, ns=(source.st_mtime_ns, source.st_mtime_ns))
            if former is not None:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if former is not None:
            self._keep(name, former, kept)
        os.rename(_ASIDE, name, src_dir_fd=self.root, dst_dir_fd=self.descriptor)

    def _keep(self, name: str, former: os.stat_result, kept: Path) -> None:
        """Have a file in the folder of what was there before, durably; what was kept earlier stays."""
        if not kept.is_dir():
            for folder in (*reversed(kept.parents), kept):
                folder.mkdir(mode=0o700, exist_ok=True)
            durable.sync_filesystem(kept)
        root = os.open(kept, _FOLDER)
        try:
            place = _Folder(root, self.parts, kept, synced=True)
        finally:
            os.close(root)
        try:
            if free := _free_name(place.descriptor, name, former):
                self._link(name, place.descriptor, free)
                os.fsync(place.descriptor)
        finally:
            place.close()

    def _link(self, name: str, folder: int, link: str) -> None:
        """Link a file into another folder; copy it where that is on another file system."""
        try:
            os.link(name, link, src_dir_fd=self.descriptor, dst_dir_fd=folder, follow_symlinks=False)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        with (
            os.fdopen(os.open(name, _READ, dir_fd=self.descriptor), "rb") as source,
            os.fdopen(os.open(_ASIDE, _NEW, 0o600, dir_fd=folder), "wb") as copy,
        ):
            shutil.copyfileobj(source, copy)
            copy.flush()
            seen = os.fstat(source.fileno())
            os.utime(copy.fileno(), ns=(seen.st_mtime_ns, seen.st_mtime_ns))
            os.fsync(copy.fileno())
        os.rename(_ASIDE, link, src_dir_fd=folder, dst_dir_fd=folder)

    def _former(self, name: str) -> os.stat_result | None:
        try:
            seen = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(seen.st_mode):
            raise AgentError(f"{self.shown}: '{name}' is a link or a folder, where a file was (move it away)")
        return seen


def _free_name(folder: int, name: str, former: os.stat_result) -> str:
    """Return a name that nothing in a folder has, "" where this file is in it (a run was cut)."""
    for number in itertools.count():
        free = f"{name}.{number}" if number else name
        try:
            seen = os.stat(free, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return free
        if os.path.samestat(seen, former):
            break
    return ""


def _root(target: Path) -> int:
    """Open the folder that an item goes to; make it where only that one is missing."""
    try:
        above = os.open(target.parent, _FOLDER)
    except OSError as error:
        raise AgentError(
            f"{target.parent}: {error.strerror} (is the platform there? playbooks/provision.yml)"
        ) from None
    try:
        return _entered(above, target.name, target)
    finally:
        os.close(above)


def _entered(above: int, name: str, shown: Path) -> int:
    """Open a folder, made like the one above it where it is missing. Raises AgentError for a link."""
    try:
        return os.open(name, _FOLDER, dir_fd=above)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise AgentError(
                f"{shown}: '{name}' is a link or a file, where a folder was (move it away)"
            ) from None
        if error.errno != errno.ENOENT:
            raise
        like = os.fstat(above)
        os.mkdir(name, like.st_mode & 0o777, dir_fd=above)
        made = os.open(name, _FOLDER, dir_fd=above)
        os.fchown(made, like.st_uid, like.st_gid)
        os.fchmod(made, like.st_mode & 0o777)
        return made


def _copy(file: PlainFile, expected: str, target: int) -> os.stat_result:
    """Copy a file's content; return how the file is. Raises Damaged when it changed since it was checked."""
    digest = hashlib.sha256()
    with file.opened() as source:
        while chunk := os.read(source, CHUNK):
            digest.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[os.write(target, view) :]
        seen = os.fstat(source)
    if digest.hexdigest() != expected:
        raise Damaged(f"{file.path} changed while it was restored (run it again)")
    return seen
