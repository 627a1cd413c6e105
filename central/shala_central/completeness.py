"""How complete the archive is: what is there of every server, how whole, and in which months it delivered."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterable, Sequence

import msgspec

from shala_central.archive import Archive
from shala_central.bag import count_items
from shala_central.fleet import Server
from shala_central.history import HistoryError
from shala_central.report import size

KINDS = ("ok", "suspect", "failed", "missing")
CELL, NAME_WIDTH, HEAD = 14, 190, 56  # pixels of the grid


class Completeness(msgspec.Struct, frozen=True):
    """One server: its newest collection, `months` being {YYYY-MM: collections pulled in it that are kept}."""

    name: str
    state: str
    zone: str
    sequence: int | None
    pulled: str
    bytes: int
    items: dict[str, int]
    outcomes: dict[str, str]
    months: dict[str, int]
    quarantined: int


def completeness(archive: Archive, servers: Sequence[Server]) -> list[Completeness]:
    """Given the archive and the servers that should be in it, return one entry for each, in their order."""
    months: dict[str, dict[str, int]] = {}
    with contextlib.suppress(HistoryError), archive.history() as history:
        months = history.months()
    refused = archive.quarantine_counts()
    return [
        _of_server(archive, server, months.get(server.name, {}), refused.get(server.name, 0))
        for server in servers
    ]


def by_state(entries: Iterable[Completeness]) -> list[dict[str, object]]:
    """Return a row for each state: servers, how many have delivered, in which the newest is whole, bytes."""
    rows: dict[str, dict[str, object]] = {}
    for state in sorted({entry.state for entry in entries}):
        of_state = [entry for entry in entries if entry.state == state]
        delivered = [entry for entry in of_state if entry.sequence is not None]
        rows[state] = {
            "state": state,
            "servers": len(of_state),
            "delivered": len(delivered),
            "whole": sum(entry.items["ok"] == sum(entry.items.values()) for entry in delivered),
            "bytes": sum(entry.bytes for entry in delivered),
        }
    return list(rows.values())


def page(entries: Sequence[Completeness], made: str) -> str:
    """Return an HTML page without any other file: figures by state, and a grid of servers by months (SVG)."""
    months = sorted({month for entry in entries for month in entry.months})
    rows = "".join(
        f"<tr><td>{html.escape(str(row['state']))}</td><td>{row['servers']}</td><td>{row['delivered']}</td>"
        f"<td>{row['whole']}</td><td>{size(int(str(row['bytes'])))}</td></tr>"
        for row in by_state(list(entries))
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>The archive of the schools</title>"
        "<style>body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:.2em .8em;"
        "border-bottom:1px solid #ccc;text-align:right}td:first-child{text-align:left}</style>"
        f"<h1>The archive of the schools</h1><p>{html.escape(made)}</p>"
        "<table><tr><th>state</th><th>servers</th><th>delivered</th><th>whole</th><th>bytes</th></tr>"
        f"{rows}</table><h2>Servers by months</h2>{grid(entries, months)}</html>\n"
    )


def grid(entries: Sequence[Completeness], months: Sequence[str]) -> str:
    """Return an SVG: a row for each server, a square for each month in which it delivered."""
    parts = [
        f"<text x='{NAME_WIDTH + i * CELL + 10}' y='{HEAD - 4}' font-size='10'"
        f" transform='rotate(-60 {NAME_WIDTH + i * CELL + 10} {HEAD - 4})'>{html.escape(month)}</text>"
        for i, month in enumerate(months)
    ]
    for number, entry in enumerate(entries):
        y = HEAD + number * CELL
        parts.append(f"<text x='0' y='{y + 11}' font-size='11'>{html.escape(entry.name)}</text>")
        for i, month in enumerate(months):
            count = entry.months.get(month, 0)
            told = f"{entry.name} {month}: {count} collections"
            parts.append(
                f"<rect x='{NAME_WIDTH + i * CELL}' y='{y}' width='{CELL - 2}' height='{CELL - 2}'"
                f" fill='{_colour(count)}'><title>{html.escape(told)}</title></rect>"
            )
    width, height = NAME_WIDTH + len(months) * CELL + 40, HEAD + len(entries) * CELL + 10
    frame = f"width='{width}' height='{height}' font-family='sans-serif'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {frame}>{''.join(parts)}</svg>"


def _of_server(archive: Archive, server: Server, months: dict[str, int], quarantined: int) -> Completeness:
    committed = archive.committed(server.name)
    if committed is None:
        nothing = dict.fromkeys(KINDS, 0)
        return Completeness(
            server.name, server.state, server.zone, None, "", 0, nothing, {}, months, quarantined
        )
    collection, pull = committed.collection(), committed.pull
    months = {**months, pull.pulled[:7]: months.get(pull.pulled[:7], 0) + 1}
    outcomes = {f"{item.platform}/{item.name}": item.outcome for item in collection.items}
    return Completeness(
        name=server.name,
        state=server.state,
        zone=server.zone,
        sequence=pull.sequence,
        pulled=pull.pulled,
        bytes=pull.bytes,
        items=count_items(collection),
        outcomes=outcomes,
        months=months,
        quarantined=quarantined,
    )


def _colour(count: int) -> str:
    if not count:
        return "#eee"
    return "#9ecae1" if count < 3 else "#4292c6" if count < 10 else "#08519c"
