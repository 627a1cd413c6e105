"""Metrics: how the server stands, in a file for the textfile collector of Prometheus' node_exporter.

Written whole or not at all. Names of pupils are in none of them.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from shala_agent import durable
from shala_agent.collection import ItemResult
from shala_agent.config import Config
from shala_agent.ledger import Ledger
from shala_agent.outcome import FAILED, OK, SKIPPED, SUSPECT
from shala_agent.room import MB, free_at
from shala_agent.status import Sealed, Status, read_status

OUTCOMES = (OK, SUSPECT, FAILED, SKIPPED)
_GRAVEST = (FAILED, SUSPECT, OK, SKIPPED)

# What there is: name -> help. All are gauges; times are seconds since 1970 by the server's clock.
METRICS = {
    "shala_agent_info": "1; the labels say which server this is and which agent it has.",
    "shala_written_timestamp_seconds": "When this file was written: a server that is off writes none.",
    "shala_chain_open": "1 while a chain is to be gone on with, 0 when the last one has ended.",
    "shala_chain_ended_timestamp_seconds": "When the last chain ended.",
    "shala_chain_done": "1 when the last chain that ended left nothing and failed nowhere.",
    "shala_step_outcome": "1 for the outcome that the step had the last time, 0 for the others.",
    "shala_step_ended_timestamp_seconds": "When the step ended the last time.",
    "shala_step_ok_timestamp_seconds": "When the step was last ok.",
    "shala_step_duration_seconds": "How long the step took the last time.",
    "shala_step_in_a_row": "How often in a row the step ended as it did the last time.",
    "shala_item_outcome": "1 for the outcome of the item in the newest collection, 0 for the others; all of"
    " `unplatform` is one item, with the worst of its outcomes.",
    "shala_item_files": "Files of the item in the newest collection.",
    "shala_item_bytes": "Bytes of the item in the newest collection.",
    "shala_collection_sequence": "Number of the newest collection.",
    "shala_collection_sealed_timestamp_seconds": "When the newest collection was sealed.",
    "shala_collection_acknowledged": "Number of the newest collection that the centre has said it has.",
    "shala_spool_free_bytes": "What is free on the disk of the spool.",
    "shala_spool_min_free_bytes": "What the agent leaves free there.",
    "shala_container_running": "1 when the platform's container ran at the last heartbeat.",
    "shala_heartbeat_timestamp_seconds": "When the last heartbeat was taken.",
    "shala_sync_lag_records": "Records that are still to be sent to the zone.",
    "shala_sync_lag_bytes": "Bytes that are still to be sent to the zone.",
}


class Figure(NamedTuple):
    """One line: a metric, its labels and its value."""

    name: str
    value: float
    labels: dict[str, str] = {}  # noqa: RUF012 - never changed


def write_metrics(config: Config, ledger: Ledger) -> None:
    """Replace the file that the configuration names, if it names one. Raises OSError."""
    if config.metrics.file:
        status = read_status(config, ledger)
        durable.write(Path(config.metrics.file), text(figures(config, status)).encode(), 0o644)


def text(found: Iterator[Figure]) -> str:
    """Return figures in Prometheus' text format: those of one metric together, in the order of METRICS."""
    lines: dict[str, list[str]] = {name: [] for name in METRICS}
    for name, value, labels in found:
        inside = ",".join(f'{label}="{_escaped(said)}"' for label, said in labels.items())
        lines[name].append(f"{name}{{{inside}}} {value:.17g}" if inside else f"{name} {value:.17g}")
    parts = [
        f"# HELP {name} {METRICS[name]}\n# TYPE {name} gauge\n" + "".join(f"{line}\n" for line in some)
        for name, some in lines.items()
        if some
    ]
    return "".join(parts)


def figures(config: Config, status: Status) -> Iterator[Figure]:
    """Yield all that is known; what is not known is left out."""
    yield Figure("shala_agent_info", 1, {"server": status.server_name, "version": status.agent_version})
    yield Figure("shala_written_timestamp_seconds", round(time.time()))
    if status.chain is not None:
        yield Figure("shala_chain_open", float(status.chain.ended is None))
        if status.chain.ended is not None:
            yield Figure("shala_chain_ended_timestamp_seconds", _seconds(status.chain.ended))
            yield Figure("shala_chain_done", float(status.chain.outcome == "done"))
    for step in status.steps:
        label = {"step": step.step}
        yield from _outcomes("shala_step_outcome", str(step.outcome), label)
        if step.ended is not None:
            yield Figure("shala_step_ended_timestamp_seconds", _seconds(step.ended), label)
        if step.last_ok is not None:
            yield Figure("shala_step_ok_timestamp_seconds", _seconds(step.last_ok), label)
        yield Figure("shala_step_duration_seconds", step.seconds, label)
        yield Figure("shala_step_in_a_row", step.times, label)
    if status.sealed is not None:
        yield Figure("shala_collection_sequence", status.sealed.sequence)
        yield Figure("shala_collection_sealed_timestamp_seconds", _seconds(status.sealed.sealed))
        for name, item in _items(status.sealed):
            label = {"item": name}
            yield from _outcomes("shala_item_outcome", item.outcome, label)
            yield Figure("shala_item_files", item.files, label)
            yield Figure("shala_item_bytes", item.bytes, label)
    yield Figure("shala_collection_acknowledged", status.acknowledged)
    yield Figure("shala_spool_free_bytes", free_at(Path(config.paths.spool)))
    yield Figure("shala_spool_min_free_bytes", config.spool.min_free_mb * MB)
    if status.heartbeat is not None:
        yield Figure("shala_container_running", float(status.heartbeat.container == "running"))
        yield Figure("shala_heartbeat_timestamp_seconds", _seconds(status.heartbeat.taken))
    if status.sync is not None and not status.sync.problem:
        yield Figure("shala_sync_lag_records", status.sync.lag_entries)
        yield Figure("shala_sync_lag_bytes", status.sync.lag_bytes)


def _items(sealed: Sealed) -> Iterator[tuple[str, ItemResult]]:
    """Yield the items. Those of unplatform are as many as its folder has names, which anybody may give: they
    are one, with the worst outcome of them.
    """
    grouped: dict[str, ItemResult] = {}
    for item in sealed.items:
        name = item.platform if item.platform == "unplatform" else f"{item.platform}/{item.name}"
        before = grouped.get(name)
        grouped[name] = item if before is None else _together(before, item)
    yield from grouped.items()


def _together(one: ItemResult, other: ItemResult) -> ItemResult:
    return msgspec.structs.replace(
        one,
        outcome=min(one.outcome, other.outcome, key=_GRAVEST.index),
        files=one.files + other.files,
        bytes=one.bytes + other.bytes,
    )


def _outcomes(name: str, outcome: str, labels: dict[str, str]) -> Iterator[Figure]:
    for one in OUTCOMES:
        yield Figure(name, float(one == outcome), {**labels, "outcome": one})


def _seconds(written: str) -> float:
    return datetime.datetime.fromisoformat(written.replace("Z", "+00:00")).timestamp()


def _escaped(said: str) -> str:
    return said.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
