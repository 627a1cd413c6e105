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
from shala_central.integrity import Noted, noted_damage
from shala_central.quarantine import in_quarantine, quarantine_counts
from shala_central.records import RecordDamaged
from shala_central.report import MAX_NAMED, named, size
from shala_central.versions import shown

KINDS = ("ok", "suspect", "failed", "missing")
CELL, NAME_WIDTH, HEAD = 14, 190, 56  # pixels of the grid


DAMAGED = "#b00020"
CONDITIONS = ("whole", "incomplete", "held back", "refused", "damaged")
SHADES = (
    (0, "#eee", "none"),
    (1, "#9ecae1", "1 or 2"),
    (3, "#4292c6", "3 to 9"),
    (10, "#08519c", "10 and more"),
)


class Completeness(msgspec.Struct, frozen=True):
    """One server: its newest collection, `months` being {YYYY-MM: collections pulled in it that are kept}.

    `lacks` are the reasons why it is not whole. Whole is a server of whose newest collection every item is ok
    and in view, nothing newer was refused, and nothing is known to be damaged.
    """

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
    held: dict[str, str] = msgspec.field(default_factory=dict)
    conditions: list[str] = msgspec.field(default_factory=list)
    lacks: list[str] = msgspec.field(default_factory=list)

    @property
    def last_pulled(self) -> str:
        """Return when it was pulled last, to the minute, in words where there is no such time."""
        return self.pulled[:16] or ("unknown" if "damaged" in self.conditions else "never")

    @property
    def is_whole(self) -> bool:
        """Return whether the server has delivered and nothing is lacking."""
        return self.conditions == ["whole"]


def completeness(archive: Archive, servers: Sequence[Server]) -> list[Completeness]:
    """Given the archive and the servers that should be in it, return one entry for each, in their order."""
    months: dict[str, dict[str, int]] = {}
    with contextlib.suppress(HistoryError), archive.history() as history:
        months = history.months()
    refused, noted, known = quarantine_counts(archive), noted_damage(archive), set(archive.known())
    return [
        _of_server(
            archive,
            server,
            months.get(server.name, {}),
            refused.get(server.name, 0),
            noted.get(server.name),
            is_known=server.name in known,
        )
        for server in servers
    ]


def by_state(entries: Iterable[Completeness]) -> list[dict[str, object]]:
    """Return a row for each state: servers, how many have delivered, are in each condition, bytes."""
    rows: dict[str, dict[str, object]] = {}
    for state in sorted({entry.state for entry in entries}):
        of_state = [entry for entry in entries if entry.state == state]
        delivered = [entry for entry in of_state if entry.sequence is not None]
        rows[state] = {
            "state": state,
            "servers": len(of_state),
            "delivered": len(delivered),
            **{kind: sum(kind in entry.conditions for entry in of_state) for kind in CONDITIONS},
            "bytes": sum(entry.bytes for entry in delivered),
        }
    return list(rows.values())


def page(entries: Sequence[Completeness], made: str) -> str:
    """Return an HTML page without any other file: figures by state, and a grid of servers by months (SVG)."""
    months = sorted({month for entry in entries for month in entry.months})
    rows = "".join(
        f"<tr><td>{html.escape(str(row['state']))}</td><td>{row['servers']}</td><td>{row['delivered']}</td>"
        f"{''.join(f'<td>{row[kind]}</td>' for kind in CONDITIONS)}"
        f"<td>{size(int(str(row['bytes'])))}</td></tr>"
        for row in by_state(list(entries))
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>The archive of the schools</title>"
        "<style>body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:.2em .8em;"
        "border-bottom:1px solid #ccc;text-align:right}td:first-child{text-align:left}</style>"
        f"<h1>The archive of the schools</h1><p>{html.escape(made)}</p>"
        "<table><tr><th>state</th><th>servers</th><th>delivered</th>"
        f"{''.join(f'<th>{kind}</th>' for kind in CONDITIONS)}<th>bytes</th></tr>{rows}</table>"
        "<p>Whole: every item of the newest collection is ok and in view, nothing newer was refused, nothing"
        " is known to be damaged.</p>"
        f"<h2>Servers</h2>{_servers(entries)}"
        f"<h2>Servers by months</h2><p>Collections pulled in a month: {legend()} &nbsp; <span"
        f" style='color:{DAMAGED}'>in red: damaged</span></p>"
        f"{grid(entries, months)}</html>\n"
    )


def legend() -> str:
    """Return what the shades of the grid mean, in HTML."""
    return " &nbsp; ".join(
        f"<span style='background:{colour};padding:0 .6em;margin-right:.3em'></span>{html.escape(words)}"
        for _, colour, words in SHADES
    )


def _servers(entries: Sequence[Completeness]) -> str:
    """Return a table of all servers: when each was pulled last, and what it lacks; those that do first."""
    rows = "".join(
        f"<tr><td>{html.escape(entry.name)}</td><td>{entry.sequence or '-'}</td>"
        f"<td>{html.escape(entry.last_pulled)}</td>"
        f"<td style='text-align:left'>{html.escape('; '.join(entry.lacks)) or 'whole'}</td></tr>"
        for entry in sorted(entries, key=lambda entry: entry.is_whole)
    )
    return (
        f"<table><tr><th>server</th><th>collection</th><th>last pulled</th><th>lacks</th></tr>{rows}</table>"
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
        label, told = html.escape(entry.name), html.escape("; ".join(entry.lacks))
        colour, word = (f" fill='{DAMAGED}'", " damaged") if "damaged" in entry.conditions else ("", "")
        parts.append(
            f"<text x='0' y='{y + 11}' font-size='11'{colour}>{label}{word}<title>{told}</title></text>"
        )
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


def _of_server(
    archive: Archive,
    server: Server,
    months: dict[str, int],
    quarantined: int,
    noted: Noted | None,
    *,
    is_known: bool,
) -> Completeness:
    empty = Completeness(
        name=server.name,
        state=server.state,
        zone=server.zone,
        sequence=None,
        pulled="",
        bytes=0,
        items=dict.fromkeys(KINDS, 0),
        outcomes={},
        months=months,
        quarantined=quarantined,
    )
    refused = _refused_since(archive, server.name, "")
    try:
        committed = archive.committed(server.name)
        if committed is None and is_known and (gone := archive.damaged_record(server.name, is_known=True)):
            raise RecordDamaged(gone)
        collection = committed.collection() if committed is not None else None
    except RecordDamaged:
        lacks = ["its record is damaged", *refused]
        conditions = ["damaged", *(["refused"] if refused else [])]
        return msgspec.structs.replace(empty, conditions=conditions, lacks=lacks)
    if committed is None or collection is None:
        lacks = ["nothing is delivered yet", *refused]
        return msgspec.structs.replace(empty, conditions=["refused"] if refused else [], lacks=lacks)
    pull = committed.pull
    outcomes = {f"{item.platform}/{item.name}": item.outcome for item in collection.items}
    items = count_items(collection)
    refused = _refused_since(archive, server.name, pull.came)
    reasons = {
        "incomplete": _incomplete(outcomes, items),
        "held back": _held(pull.held),
        "refused": refused,
        "damaged": [str(noted)] if noted is not None else [],
    }
    return msgspec.structs.replace(
        empty,
        sequence=pull.sequence,
        pulled=pull.came,
        bytes=pull.bytes,
        items=items,
        outcomes=outcomes,
        months={**months, pull.pulled[:7]: months.get(pull.pulled[:7], 0) + 1},
        held=pull.held,
        conditions=[kind for kind, why in reasons.items() if why] or ["whole"],
        lacks=[why for whys in reasons.values() for why in whys],
    )


def _held(held: dict[str, str]) -> list[str]:
    """Say once for each collection which items of it are in view instead of the newest."""
    found = []
    for handle in sorted(set(held.values())):
        items = [item for item, of in held.items() if of == handle]
        verb = "is" if len(items) == 1 else "are"
        found.append(f"{named(items)} of collection {shown(handle)} {verb} in view")
    return found


def _incomplete(outcomes: dict[str, str], items: dict[str, int]) -> list[str]:
    bad = [f"{name} {outcome}" for name, outcome in outcomes.items() if outcome != "ok"]
    missing = [f"{items['missing']} items missing"] if items["missing"] and not bad else []
    return [
        *bad[:MAX_NAMED],
        *([f"and {len(bad) - MAX_NAMED} more"] if len(bad) > MAX_NAMED else []),
        *missing,
    ]


def _refused_since(archive: Archive, name: str, pulled: str) -> list[str]:
    """Return that collections were refused after the last one that came in, if any were."""
    later = [entry for entry in in_quarantine(archive, name) if str(entry.get("at", "")) > pulled]
    return [f"{len(later)} in quarantine since"] if later else []


def _colour(count: int) -> str:
    return next(colour for least, colour, _ in reversed(SHADES) if count >= least)
