"""Keep the tables of docs/catalogue.md equal to the agent's catalogue (shala_agent.catalogue).

`python lab/catalogue_docs.py` writes them; with --check it writes nothing and exits 1 where they differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

from shala_agent.catalogue import (
    ANY_DROP,
    CARRY,
    DERIVATIONS,
    DUMPS,
    FILES,
    GIT_LOG,
    ITEMS,
    MONGODB,
    POSTGRESQL,
    SETTINGS,
    Derivation,
    Item,
)
from shala_agent.config import DatabasesConfig, DeriveConfig
from shala_agent.extension import DerivationRow, Extension, ItemRow
from shala_agent.kinds import KINDS, WORDS
from shala_agent.privacy import NEVER

PAGE = Path(__file__).resolve().parent.parent / "docs/catalogue.md"
READING = {
    "plain": "again when it changed meanwhile",
    "json": "again until it parses",
    "log": "up to its last whole line",
    "fresh": "when nobody writes it any more",
}
RESTORES = {
    POSTGRESQL: "its databases are replaced, then dumped and counted",
    MONGODB: "its collections are replaced by mongorestore, then counted",
    FILES: "files that are missing or differ",
    SETTINGS: "the file; the former one is kept beside",
}


def items() -> str:
    """Return the table of items."""
    rows = [
        [
            "item",
            "what",
            "from",
            "read",
            "whole when",
            "made by",
            "not whole",
            "less is suspect",
            "goes back",
            "sensitive",
        ]
    ]
    return _table(rows + [_item(item) for item in ITEMS])


def _item(item: Item) -> list[str]:
    places = [f"`{path}`{f' as {folder}' if folder else ''}" for folder, path in item.parts]
    return [
        f"`{item.name}`",
        item.about,
        ", else ".join(places) if not any(folder for folder, _ in item.parts) else ", ".join(places),
        "made while collecting" if item.name == GIT_LOG else READING[item.reading],
        item.kind.about + (f"; has {', '.join(item.required)}" if item.required else ""),
        item.step or "-",
        "last good copy kept" if item.when_step_failed == CARRY else "taken, labelled",
        "-" if item.largest_drop == ANY_DROP else f"by more than {item.largest_drop} %",
        RESTORES.get(item.restore, f"no: {item.not_restored}"),
        item.sensitive or "-",
    ]


def steps() -> str:
    """Return the table of what is made, in the order of the chain."""
    rows = [["step", "what", "command", "in", "into", "done when", "at most", "due"]]
    rows.append(
        [
            "heartbeat",
            "one reading of the server",
            "the agent itself",
            "-",
            "`system-heartbeat`",
            "-",
            "-",
            "each chain",
        ]
    )
    dumps = f"{DatabasesConfig().timeout_minutes} min (`[databases] timeout_minutes`)"
    done = (
        "trailer, roles, users; the last good one stays on any doubt",
        "each collection as many documents as the database",
    )
    for name, what, command, into, proof in (
        (DUMPS[0], "all of PostgreSQL", "`pg_dumpall`", "`postgres-dump`", done[0]),
        (DUMPS[1], "each MongoDB database", "`mongodump`, awaited to its end", "`db`", done[1]),
    ):
        rows.append([name, what, command, "-", into, proof, dumps, "each chain"])
    return _table(rows + [_derivation(derivation) for derivation in DERIVATIONS])


def _derivation(derivation: Derivation) -> list[str]:
    proof = ["its files are new and whole"]
    if derivation.done:
        proof.append(f"stdout has `{derivation.done}`")
    if derivation.says:
        proof.append("there are as many as it says")
    proof += [f"`{name}` is new" for name in derivation.makes]
    if derivation.own_dump:
        proof.append("its dump holds no less than ours")
    minutes = derivation.timeout_minutes or DeriveConfig().timeout_minutes
    return [
        derivation.name,
        derivation.about,
        f"`{' '.join(derivation.command)}`".replace("|", "\\|"),
        f"`{derivation.workdir}`",
        f"`{derivation.output}`",
        "; ".join(proof),
        f"{minutes} min (`[derive] timeout_minutes`)",
        f"{derivation.every_hours} h after it was ok" if derivation.every_hours else "each chain",
    ]


def kinds() -> str:
    """Return the table of checks that an operator's rows may name."""
    return _table(
        [["`check`", "a file is whole when"], *([f"`{word}`", KINDS[word].about] for word in WORDS)]
    )


def fields() -> str:
    """Return which settings catalogue.toml has."""
    rows = [["table", "settings"]]
    for name, row in (
        ("top", Extension),
        ("`[items.NAME]`", ItemRow),
        ("`[derivations.NAME]`", DerivationRow),
    ):
        rows.append([name, ", ".join(f"`{field}`" for field in row.__struct_fields__)])
    return _table(rows)


def never() -> str:
    """Return the names that enter no item."""
    return ", ".join(f"`{pattern}`" for pattern in NEVER)


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES = {"ITEMS": items, "STEPS": steps, "CHECKS": kinds, "SETTINGS": fields, "NEVER": never}


def filled(text: str) -> str:
    """Return the page with every table as the catalogue has it. Raises ValueError for a marker that is missing."""
    for name, table in TABLES.items():
        begin, end = f"<!-- BEGIN {name} -->", f"<!-- END {name} -->"
        head, rest = text.split(begin, 1)
        text = f"{head}{begin}\n{table()}\n{end}{rest.split(end, 1)[1]}"
    return text


def main() -> int:
    """Check or write the page; return the exit code."""
    text = PAGE.read_text()
    try:
        wanted = filled(text)
    except ValueError:
        print(f"{PAGE}: has not all of the markers <!-- BEGIN {'|'.join(TABLES)} -->")
        return 1
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(wanted)
    elif text != wanted:
        print(f"{PAGE}: differs from the agent's catalogue (run: python lab/catalogue_docs.py)")
        return 1
    print("docs/catalogue.md: equal to the catalogue")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
