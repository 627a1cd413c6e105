"""Acknowledge: the centre's word that it has a collection. What it has may go when room is short."""

from __future__ import annotations

from pathlib import Path

from shala_agent.config import Config
from shala_agent.failure import AgentError, UsageError
from shala_agent.ledger import Ledger
from shala_agent.room import ACKNOWLEDGED
from shala_agent.spool import Spool


def acknowledge(config: Config, ledger: Ledger, sequence: int, manifest_sha256: str) -> int:
    """Note that the centre has a collection and all before it; return the newest that it has.

    Raises UsageError for one that was never sealed here, AgentError for another one of the same number: a
    server that was installed anew counts from 1 again.
    """
    head = Spool(Path(config.paths.spool)).head()
    if head is None or sequence > head.sequence:
        newest = f"the newest is {head.sequence}" if head else "there is none yet"
        raise UsageError(f"collection {sequence} was never sealed here ({newest}; see: shala-agent status)")
    if sequence < head.sequence:
        # It is in no mirror any more, so that only its list of changes may go.
        sequence = max(sequence, ledger.mark(ACKNOWLEDGED))
        if sequence >= head.sequence:
            return sequence
    elif manifest_sha256 != head.manifest_sha256:
        raise AgentError(
            f"collection {sequence} has another manifest here, {head.manifest_sha256}: nothing is noted"
            " (pull it first)"
        )
    ledger.set_mark(ACKNOWLEDGED, sequence)
    return sequence
