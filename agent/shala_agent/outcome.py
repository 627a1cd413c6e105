"""Outcomes: the four words that a step or an item ends with, and the result that carries one."""

from __future__ import annotations

from collections.abc import Iterable
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
    with). In both stand names of files, which may hold bytes that are no text: written out they are.
    """

    outcome: str
    reasons: list[str] = msgspec.field(default_factory=list)
    detail: dict[str, Any] = msgspec.field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.reasons, self.detail = _as_text(self.reasons), _as_text(self.detail)


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


class Findings(list[str]):
    """Reasons of which only the first are kept: a million broken files do not fill the memory."""

    unsaid = 0  # how many more there were

    def append(self, reason: str) -> None:
        """Keep a reason, or count it."""
        if len(self) <= MAX_REASONS:
            super().append(reason)
        else:
            self.unsaid += 1

    def __iadd__(self, reasons: Iterable[str]) -> Findings:  # type: ignore[override,misc]
        for reason in reasons:
            self.append(reason)
        return self


def shortened(reasons: list[str], unsaid: int = 0) -> list[str]:
    """Return the first reasons and how many more there are: a thousand broken files are one message."""
    shown: list[str] = _as_text(reasons[:MAX_REASONS])
    more = len(reasons) - len(shown) + unsaid
    if not more:
        return shown
    # What was shortened before is not counted anew.
    return [*shown, reasons[-1] if more == 1 else f"and {more} more"]


def _as_text(said: Any) -> Any:
    if isinstance(said, str):
        return said.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(said, dict):
        return {_as_text(name): _as_text(value) for name, value in said.items()}
    return [_as_text(one) for one in said] if isinstance(said, list) else said
