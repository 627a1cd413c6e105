"""Make docs/reliability.md of what the fault suite of the agent injected and saw (agent/tests/injected.py).

What tests/ injects into the lab fleet comes later in `make test`: its rows stay as they are until it was counted.
`python lab/reliability_docs.py` writes the tables from build/faults; with --counted it only requires that each
fault was injected there and nothing was lost; with --check, that the page lists the faults that there are.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "agent/tests"))

from injected import FAULTS, OF_THE_FLEET, TALLIES  # noqa: E402

PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- BEGIN FAULTS -->", "<!-- END FAULTS -->"


def counted() -> tuple[dict[str, Counter[str]], Counter[str]]:
    """Return what was seen after each fault, and how often something was lost."""
    seen: dict[str, Counter[str]] = {name: Counter() for name in FAULTS}
    lost: Counter[str] = Counter()
    for path in TALLIES.glob("*.json"):
        for name, tally in json.loads(path.read_text()).items():
            seen[name].update(tally["seen"])
            lost[name] += tally["lost"]
    return seen, lost


def problems(seen: dict[str, Counter[str]], lost: Counter[str]) -> list[str]:
    """Return what stands against the claim that every fault of the suite was injected and nothing was lost."""
    suite = [name for name in seen if name not in OF_THE_FLEET]
    found = [f"{name} was never injected" for name in suite if not seen[name]]
    return found + [f"{name}: {lost[name]} of them lost something" for name in suite if lost[name]]


def table(seen: dict[str, Counter[str]], lost: Counter[str], page: str) -> str:
    """Return the table, one row a fault, and its sum; what the fleet has not counted now is as in `page`."""
    injected = 0
    lines = ["| what is hit | fault | injected | by | seen afterwards | lost |", "|---|---|---|---|---|---|"]
    for name, (group, what, how) in FAULTS.items():
        before = re.search(rf"(?m)^\| {group} \| {re.escape(what)} \| (\d+) \|.*$", page)
        if name in OF_THE_FLEET and not seen[name] and before:
            lines.append(before[0])
            injected += int(before[1])
            continue
        injected += seen[name].total()
        outcomes = "; ".join(f"{text}: {times}" for text, times in seen[name].most_common())
        lines.append(f"| {group} | {what} | {seen[name].total()} | {how} | {outcomes} | {lost[name]} |")
    lines.append(f"| **all** | | **{injected}** | | | **{lost.total()}** |")
    return "\n".join(lines)


def listed(text: str) -> list[list[str]]:
    """Return group, fault and way of each row of the page's table."""
    inside = text.partition(BEGIN)[2].partition(END)[0]
    rows = [line.strip("| ").split(" | ") for line in inside.splitlines()]
    return [[row[0], row[1], row[3]] for row in rows if len(row) == 6][1:]  # without its head


def main() -> int:
    """Check or write the page; return the exit code."""
    text = PAGE.read_text()
    if "--check" in sys.argv[1:]:
        if listed(text) != [list(fault) for fault in FAULTS.values()]:
            print(f"{PAGE}: lists other faults than agent/tests/injected.py (run: make faults)")
            return 1
        print("docs/reliability.md: lists the faults of the suite")
        return 0
    seen, lost = counted()
    if found := problems(seen, lost):
        print("\n".join(found))
        return 1
    if "--counted" not in sys.argv[1:]:
        PAGE.write_text(
            f"{text.partition(BEGIN)[0]}{BEGIN}\n{table(seen, lost, text)}\n{END}{text.partition(END)[2]}"
        )
    print(f"{sum(outcomes.total() for outcomes in seen.values())} faults were injected, nothing was lost")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
