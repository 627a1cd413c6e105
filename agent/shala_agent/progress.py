"""Progress: a line that moves, on anything over two seconds, when a terminal is attached, and nothing
otherwise.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from shala_agent import journal

AFTER_SECONDS = 2.0


class Progress:
    """Shows the step at work and the files of a collection; without a terminal it prints each step on
    stderr.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and not quiet
        self._live: Any = None
        self._task: Any = None
        self._started = time.monotonic()
        self._files = self._bytes = 0
        self._step = ""
        self._run = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begun(self, run: int) -> None:
        """Hear which run what follows is of."""
        self._run = run

    def say(self, text: str) -> None:
        """Show a step."""
        self._say(text, journal.INFO)

    def warn(self, text: str) -> None:
        """Show a step that did not end well."""
        self._say(text, journal.WARNING)

    def _say(self, text: str, level: int) -> None:
        self._step = text
        if self._terminal:
            self._show(text)
        elif not self._quiet and not text.endswith("..."):
            shown = journal.line(text, self._run, level) if journal.is_journal(sys.stderr) else text
            print(shown, file=sys.stderr, flush=True)  # noqa: T201

    def tick(self, text: str) -> None:
        """Show how far the step is; only a terminal hears of it."""
        if self._terminal:
            self._show(f"{self._step} {text}")

    def files(self, item: str, files: int, size: int) -> None:
        """Count files of a collection."""
        self._files += files
        self._bytes += size
        if self._terminal and self._files % 50 == 0:
            self._show(f"collect {item}: {self._files} files, {self._bytes / 1e6:.1f} MB")

    def _show(self, text: str) -> None:
        if self._live is None:
            if time.monotonic() - self._started < AFTER_SECONDS:
                return
            from rich.console import Console
            from rich.progress import Progress as Bar
            from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

            self._live = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._live.start()
            self._task = self._live.add_task(text, total=None)
        self._live.update(self._task, description=text.replace("[", "\\["))
