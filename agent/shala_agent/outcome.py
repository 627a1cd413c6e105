"""Outcomes: the four words that a step or an item ends with, and the result that carries one."""

from __future__ import annotations

from typing import Any

import msgspec

OK = "ok"
SUSPECT = "suspect"
FAILED = "failed"
SKIPPED = "skipped"

MAX_REASONS = 20  # shown in full; the rest is counted


def counted(number: int, thing: str) -> str:
    """Return a number of things in words: `1 file`, `2 files`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


class Result(msgspec.Struct):
    """How one step or item ended: `reasons` for a person, `detail` for the next run (counts to compare
    with).
    """

    outcome: str
    reasons: list[str] = msgspec.field(default_factory=list)
    detail: dict[str, Any] = msgspec.field(default_factory=dict)
    seconds: float = 0.0


def judged(
    findings: list[str], notes: list[str] | None = None, detail: dict[str, Any] | None = None
) -> Result:
    """Given findings, return `suspect` with them, or `ok` when there is none; notes are said but do not
    count.
    """
    reasons = shortened([*findings, *(notes or [])])
    return Result(SUSPECT if findings else OK, reasons, detail or {})


def failed(*reasons: str) -> Result:
    """Return the result of something that could not be done."""
    return Result(FAILED, shortened(list(reasons)))


def shortened(reasons: list[str]) -> list[str]:
    """Return the first reasons and how many more there are: a thousand broken files are one message.

    Names of files stand in them, which may hold bytes that are no text.
    """
    shown = [reason.encode("utf-8", "backslashreplace").decode("utf-8") for reason in reasons[:MAX_REASONS]]
    more = len(reasons) - len(shown)
    if not more:
        return shown
    # What was shortened before is not counted anew.
    return [*shown, reasons[-1] if more == 1 else f"and {more} more"]
