"""Ansible callback: the closing table of a fleet playbook, and exit code 3 when it is only partly done."""

# ruff: noqa: E402 - Ansible's documentation stands before the imports
from __future__ import annotations

DOCUMENTATION = r"""
name: shala_report
type: aggregate
short_description: Prints the closing report of a fleet playbook
description:
  - "At the end of a run prints what the playbook put into the custom stat C(shala_report)
    (ansible.builtin.set_stats) - a text, a list of lines, a list of rows (dicts), or a dict with C(title),
    C(tables) or one table in C(columns) and C(rows), and C(closing). Each table is a dict with C(title),
    C(columns) and C(rows). What stands in C(shala_report_<word>) is printed as well, in the order in which
    it was said."
  - "When the custom stat C(shala_partly_done) is true and nothing failed, ansible-playbook exits with 3
    (partly done) as every command of shala does."
requirements:
  - enabled in the configuration (callbacks_enabled = shala_report)
"""

from ansible.plugins.callback import CallbackBase

REPORT = "shala_report"
PARTLY_DONE = 3


class CallbackModule(CallbackBase):
    """The closing report of a fleet playbook."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "shala_report"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_stats(self, stats):
        """Print the report; end with exit code 3 if the playbook says that something is left."""
        custom = stats.custom.get("_run", {})
        for name, report in custom.items():
            if name == REPORT or name.startswith(f"{REPORT}_"):
                for line in report_lines(report):
                    self._display.display(line)
        partly = str(custom.get("shala_partly_done", "")).strip().lower() in ("true", "yes", "1")
        # A failure has its own exit code (2, or 4 for a host that fell silent), and it is the louder one.
        if partly and not stats.failures and not stats.dark:
            raise SystemExit(PARTLY_DONE)


def report_lines(report):
    """Given what a playbook reported, return the lines to print."""
    if not report:
        return []
    if isinstance(report, str):
        return ["", *report.rstrip("\n").split("\n")]
    if isinstance(report, dict):
        rows = list(report.get("rows") or [])
        columns = [str(column) for column in report.get("columns") or (rows[0] if rows else [])]
        title, closing = report.get("title"), report.get("closing")
        lines = ["", *([str(title)] if title else []), *table(rows, columns)]
        for one in report.get("tables") or []:
            lines += report_lines(one)
        return [*lines, *([str(closing)] if closing else [])]
    if all(isinstance(row, dict) for row in report):
        return ["", *table(report, [str(column) for column in report[0]])]
    return ["", *(str(line) for line in report)]


def table(rows, columns):
    """Return rows as aligned lines below a header; numbers are right-aligned."""
    if not columns:
        return []
    cells = [[str(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    numbers = [all(isinstance(row.get(column, 0), int | float) for row in rows) for column in columns]
    lines = []
    for line in (columns, ["-" * width for width in widths], *cells):
        padded = (
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, numbers, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return lines
