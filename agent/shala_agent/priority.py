"""Priority: the lesson comes first, also when the agent is started by hand and not by its unit."""

from __future__ import annotations

import os
import platform
from contextlib import suppress

IDLE = 3 << 13  # IOPRIO_CLASS_IDLE: reads and writes only while nobody else does
_OWN = 1  # IOPRIO_WHO_PROCESS
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "i686": 289, "armv7l": 314}  # numbers of the system call


def yield_to_others() -> None:
    """Put this process and those that it starts behind all others, for processor and disk."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 19)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        import ctypes

        # A kernel that refuses it is no reason to do nothing.
        ctypes.CDLL(None).syscall(number, _OWN, 0, IDLE)
