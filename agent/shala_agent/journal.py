"""Journal: lines for journald name their run and how grave they are, so that both can be asked for.

journalctl -u shala-agent --grep 'run 17:'        journalctl -u shala-agent -p warning
"""

from __future__ import annotations

import os
from typing import IO

ERROR, WARNING, INFO = 3, 4, 6  # as syslog counts


def is_journal(stream: IO[str]) -> bool:
    """Return whether systemd reads the stream for its journal (JOURNAL_STREAM of systemd.exec)."""
    said = os.environ.get("JOURNAL_STREAM", "")
    try:
        seen = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return said == f"{seen.st_dev}:{seen.st_ino}"


def line(text: str, run: int = 0, level: int = INFO) -> str:
    """Return one line as the journal takes it: the level in front is read by systemd and not shown."""
    return f"<{level}>{f'run {run}: ' if run else ''}{' '.join(text.splitlines())}"
