"""Locks: one chain at a time, one user of a container at a time.

The kernel frees them when their holder dies.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shala_agent.failure import Busy

POLL_SECONDS = 0.5


@contextmanager
def held(path: Path, purpose: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file while the block runs.

    Raises Busy, naming the holder, when it is not free in time.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        give_up = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    holder = (
                        os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
                    )
                    raise Busy(f"{path.stem} is in use by {holder} (wait for it, or use --wait)") from None
            time.sleep(POLL_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} ({purpose})".encode(), 0)
        yield
    finally:
        os.close(descriptor)
