"""Make docs/reliability.md of what the fault suite of the agent injected and saw (agent/tests/injected.py).

`python lab/reliability_docs.py` writes the table from build/faults. It refuses to (exit code 2, the page stays as it
is) when a fault of the suite was never injected, and (1) when one was injected less often than a whole run does, or
something was lost. What tests/ injects into the lab fleet is another run: where that was not done, its row stays as it
stands in the page. With --counted all is looked at and nothing written; with --check only whether the page lists the
faults that there are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "agent/tests"))

from injected import BY_THE_FLEET, FAULTS, OF_THE_FLEET, SUITE, TALLIES, Tally  # noqa: E402

PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- BEGIN FAULTS -->", "<!-- END FAULTS -->"
HEAD = ["what is hit", "fault", "injected", "by", "seen afterwards", "lost"]
NOT_YET = ("not yet counted", "", "")  # injected, seen afterwards, lost


class Refused(Exception):
    """The page is not written; the text says why."""


def counted(tallies: Path) -> Tally:
    """Return all that was injected. Raises Refused for a tally of other rows."""
    tally = Tally()
    fleet = tallies / BY_THE_FLEET
    try:
        for path in [*sorted((tallies / SUITE).glob("*.json")), *([fleet] if fleet.exists() else [])]:
            tally.add(path)
    except (ValueError, KeyError) as error:
        raise Refused(f"a tally cannot be read: {error} (run: make faults)") from None
    if missing := tally.never_injected():
        raise Refused(f"never injected: {', '.join(missing)} (the whole suite is: make faults)")
    return tally


def written(tally: Tally, page: str) -> str:
    """Return the page with a new table; all else in it, and the fleet's row if it has no new one, stay."""
    before, begin, rest = page.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not begin or not end:
        raise Refused(f"it has no place for the table ({BEGIN} and {END})")
    standing = {(cells[0], cells[1]): (cells[2], cells[4], cells[5]) for cells in rows(table)}
    lines = []
    for name, fault in FAULTS.items():
        figures = (str(tally.hits(name)), _outcomes(tally, name), str(tally.lost[name]))
        if name in OF_THE_FLEET and not tally.hits(name):
            figures = standing.get((fault.group, fault.what), NOT_YET)
        injected, seen, lost = figures
        lines.append([fault.group, fault.what, injected, fault.how, seen, lost])
    injected, lost = (
        sum(int(cells[column]) for cells in lines if cells[column].isdigit()) for column in (2, 5)
    )
    lines.append(["**all**", "", f"**{injected}**", "", "", f"**{lost}**"])
    drawn = "\n".join(f"| {' | '.join(cells)} |" for cells in [HEAD, ["---"] * len(HEAD), *lines])
    return f"{before}{BEGIN}\n{drawn}\n{END}{after}"


def _outcomes(tally: Tally, name: str) -> str:
    seen = tally.seen[name].most_common() if name in tally.seen else []
    return "; ".join(f"{text}: {times}" for text, times in seen)


def rows(table: str) -> list[list[str]]:
    """Return the cells of each fault of a table as it stands in the page."""
    lines = (line.strip() for line in table.splitlines() if line.startswith("|"))
    cells = [[cell.strip() for cell in line[1:].removesuffix("|").split("|")] for line in lines]
    return [row for row in cells[2:] if len(row) == len(HEAD) and row[0] != "**all**"]  # without its head


def lists_the_faults(page: str) -> bool:
    """Return whether a page lists the faults that there are, in their order, whatever it says was counted."""
    table = page.partition(BEGIN)[2].partition(END)[0]
    listed = [(row[0], row[1], row[3]) for row in rows(table)]
    return listed == [(fault.group, fault.what, fault.how) for fault in FAULTS.values()]


def main(arguments: Sequence[str], page: Path = PAGE, tallies: Path = TALLIES) -> int:
    """Check or write the page; return the exit code."""
    text = page.read_text()
    if "--check" in arguments:
        if not lists_the_faults(text):
            print(f"{page}: lists other faults than agent/tests/injected.py (run: make faults)")
            return 1
        print(f"{page.name}: lists the faults of the suite")
        return 0
    try:
        tally = counted(tallies)
        new = written(tally, text)
    except Refused as refused:
        print(f"{page.name} stays as it is: {refused}")
        return 2
    if found := tally.problems():
        print("\n".join(found))
        return 1
    if "--counted" not in arguments:
        page.write_text(new)
    print(f"{sum(map(tally.hits, FAULTS))} faults were injected, nothing was lost")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
