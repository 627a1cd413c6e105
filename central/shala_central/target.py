"""Target: the file or folder outside the archive that a command writes, and what is said when it cannot."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from shala_central.archive import Archive
from shala_central.failure import CentralError, UsageError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def writing_to(archive: Archive, target: Path) -> Iterator[None]:
    """Have what the block cannot write of a target, or is kept from, be one line that names the target.

    SIGTERM, and SIGHUP of a connection that is lost, end it like Ctrl-C: personal data stays nowhere.
    Raises UsageError for a target in the archive, and for one that cannot be written.
    """
    if target.resolve().is_relative_to(archive.root.resolve()):
        raise UsageError(f"{target} is in the archive itself (name a place outside of {archive.root})")
    try:
        with _ended_by(signal.SIGTERM, signal.SIGHUP):
            yield
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            click.echo(err=True)  # the line with ^C ends
        raise CentralError(f"interrupted; {target} is not written (the same command writes it)") from None
    except OSError as error:
        if not _is_of(target, archive, error):
            raise
        way = "make room there, or name another place" if error.errno in _NO_ROOM else "name another place"
        raise UsageError(f"{target} cannot be written: {error.strerror or error} ({way})") from None


def _is_of(target: Path, archive: Archive, error: OSError) -> bool:
    """Return whether it is the target that cannot be written, and not the archive that cannot be read."""
    if error.filename is None:
        return error.errno in _NO_ROOM
    place = Path(os.path.abspath(os.fsdecode(error.filename)))  # noqa: PTH100 - links stay what they are
    mine = Path(os.path.abspath(target))  # noqa: PTH100
    beside = place in mine.parents or place.is_relative_to(mine.parent)
    return beside and not place.is_relative_to(archive.root)


@contextlib.contextmanager
def _ended_by(*numbers: signal.Signals) -> Iterator[None]:
    """Treat signals like Ctrl-C while the block runs; those that are ignored (nohup) stay so."""
    before = {number: signal.getsignal(number) for number in numbers}

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # what is tidied up is tidied up whole
        raise KeyboardInterrupt

    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
