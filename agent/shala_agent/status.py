"""Status: what is done, due, open, suspect and failed, why and since when; what is in the spool.

Reads only; needs neither the engine nor the container.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec

from shala_agent import __version__
from shala_agent.chain import not_due_until, steps_of
from shala_agent.collection import ItemResult
from shala_agent.config import Config
from shala_agent.extension import known_catalogue
from shala_agent.failure import AgentError
from shala_agent.heartbeat import Heartbeat, latest
from shala_agent.ledger import CHAIN, Ledger, RunRecord, StepRecord, written
from shala_agent.outcome import OK
from shala_agent.room import ACKNOWLEDGED
from shala_agent.spool import Spool
from shala_agent.zone import Standing, standing


class Sealed(msgspec.Struct, kw_only=True):
    """The newest sealed collection, in short."""

    sequence: int
    year: int
    sealed: str
    files: int
    bytes: int
    items: list[ItemResult]


class StepStatus(StepRecord, kw_only=True):
    """How a step ended the last time: so often in a row (`times`), first at `since`; when it was last ok."""

    times: int
    since: str | None
    last_ok: str | None
    not_due_until: str | None


class Status(msgspec.Struct, kw_only=True):
    """What `shala-agent status --json` prints."""

    format: int = 1
    agent_version: str = __version__
    server_name: str = ""
    chain: RunRecord | None = None
    open_steps: list[str] = msgspec.field(default_factory=list)
    # What the next chain does: all steps but derivations whose time has not come.
    due: list[str] = msgspec.field(default_factory=list)
    steps: list[StepStatus] = msgspec.field(default_factory=list)
    sealed: Sealed | None = None
    # The newest collection that the centre has said it has; 0 when it has said nothing.
    acknowledged: int = 0
    heartbeat: Heartbeat | None = None
    every_minutes: int = 60
    sync: Standing | None = None
    # Why the ledger could not be opened: runs and steps are those that could be read all the same.
    ledger_problem: str = ""


def read_status(config: Config, ledger: Ledger) -> Status:
    """Return where this server stands."""
    status = Status(
        server_name=config.identity.server_name,
        heartbeat=latest(config),
        every_minutes=config.chain.every_minutes,
        sealed=_sealed(config),
        acknowledged=ledger.mark(ACKNOWLEDGED),
        sync=standing(config),
        ledger_problem=ledger.problem,
    )
    if status.heartbeat is not None and status.heartbeat.server_name:
        status.server_name = status.heartbeat.server_name
    elif not status.server_name and status.sync is not None:  # enrolled, and no heartbeat yet
        status.server_name = status.sync.name
    steps = steps_of(config)
    rows, _ = known_catalogue(config)
    for step in steps:
        until = not_due_until(rows, ledger, step)
        if until is None:
            status.due.append(step)
        if (last := ledger.last(step)) is not None:
            status.steps.append(_step(ledger, last, until))
    runs = ledger.runs(1, CHAIN)
    if runs:
        status.chain = runs[0]
        if status.chain.ended is None:
            done = {step.step for step in ledger.steps(status.chain.id) if step.ended is not None}
            status.open_steps = [step for step in steps if step not in done]
            status.due = [step for step in status.due if step not in done or step == "heartbeat"]
    return status


def _step(ledger: Ledger, last: StepRecord, until: datetime.datetime | None) -> StepStatus:
    times, since = ledger.streak(last.step)
    good = last if last.outcome == OK else ledger.last(last.step, OK)
    return StepStatus(
        **msgspec.structs.asdict(last),
        times=times,
        since=since,
        last_ok=good.ended if good else None,
        not_due_until=written(until) if until else None,
    )


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
        items=collection.items,
    )
