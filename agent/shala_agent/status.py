"""Status: what is done, what is open, what is in the spool.

Reads only; needs neither the engine nor the container.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from shala_agent import __version__
from shala_agent.chain import steps_of
from shala_agent.config import Config
from shala_agent.failure import AgentError
from shala_agent.heartbeat import Heartbeat, latest
from shala_agent.ledger import CHAIN, Ledger, RunRecord, StepRecord
from shala_agent.spool import Spool
from shala_agent.zone import Standing, standing


class Sealed(msgspec.Struct, kw_only=True):
    """The newest sealed collection, in short."""

    sequence: int
    year: int
    sealed: str
    files: int
    bytes: int
    items: list[dict[str, Any]]


class Status(msgspec.Struct, kw_only=True):
    """What `shala-agent status --json` prints."""

    format: int = 1
    agent_version: str = __version__
    server_name: str = ""
    chain: RunRecord | None = None
    open_steps: list[str] = msgspec.field(default_factory=list)
    steps: list[StepRecord] = msgspec.field(default_factory=list)
    sealed: Sealed | None = None
    heartbeat: Heartbeat | None = None
    every_minutes: int = 60
    sync: Standing | None = None


def read_status(config: Config, ledger: Ledger) -> Status:
    """Return where this server stands."""
    status = Status(
        server_name=config.identity.server_name,
        heartbeat=latest(config),
        every_minutes=config.chain.every_minutes,
        sealed=_sealed(config),
        sync=standing(config),
    )
    if status.heartbeat is not None and status.heartbeat.server_name:
        status.server_name = status.heartbeat.server_name
    steps = steps_of(config)
    status.steps = [last for step in steps if (last := ledger.last(step)) is not None]
    runs = ledger.runs(1, CHAIN)
    if runs:
        status.chain = runs[0]
        if status.chain.ended is None:
            done = {step.step for step in ledger.steps(status.chain.id) if step.ended is not None}
            status.open_steps = [step for step in steps if step not in done]
    return status


def _sealed(config: Config) -> Sealed | None:
    try:
        spool = Spool(Path(config.paths.spool))
        head = spool.head()
        collection = spool.collection() if head else None
    except (OSError, AgentError, msgspec.MsgspecError):
        return None
    if collection is None:
        return None
    return Sealed(
        sequence=collection.sequence,
        year=collection.year,
        sealed=collection.sealed,
        files=sum(item.files for item in collection.items),
        bytes=sum(item.bytes for item in collection.items),
        items=[msgspec.to_builtins(item) for item in collection.items],
    )
