"""Output: what is printed, when there is nowhere to write it."""

from __future__ import annotations

import os
import sys


def lost() -> str:
    """Write what was printed and is not written yet; return why that cannot be done, or "".

    What is left of it is dropped then: Python would try again at its end, with lines and an exit code of its
    own. Who reads no further (`| head`) has what he wanted.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            return f"what it prints cannot be written: {error.strerror}"
    return ""
