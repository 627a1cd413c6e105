"""How a pull goes, at a terminal: one bar per server at work. Only imported when there is a terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from shala_central.options import counted
from shala_central.pull import ServerResult
from shala_central.report import size


class Bars:
    """A watcher of `shala_central.pull` that draws on stderr, so that stdout stays the report."""

    def __init__(self, servers: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<18}"),
            TextColumn("{task.fields[doing]:<10}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[more]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._all = self._progress.add_task("all", total=None, doing="", more="")
        self._servers = servers
        self._finished = self._files = self._saved = 0
        self._moved: dict[str, tuple[int, int]] = {}
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bars away."""
        self._progress.stop()

    def step(self, name: str, doing: str) -> None:
        """Show what is being done with a server."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=None, doing=doing, more="")
        self._progress.update(self._tasks[name], doing=doing)

    def moved(self, name: str, done: int, total: int) -> None:
        """Show how far the files of a server are, and how far all are together."""
        self._moved[name] = (min(done, total), total)
        if name in self._tasks:
            self._progress.update(self._tasks[name], completed=min(done, total), total=total)
        self._draw_all()

    def done(self, result: ServerResult) -> None:
        """Replace the bar of a server by a line."""
        self._finished += 1
        self._files += result.files_received
        if result.result == "committed":
            self._saved += max(0, result.bytes - result.bytes_received)
        if (task := self._tasks.pop(result.name, None)) is not None:
            self._progress.remove_task(task)
        self._draw_all()
        self._progress.console.print(f"{result.name}: {result.result}", highlight=False, markup=False)

    def _draw_all(self) -> None:
        moved = sum(done for done, _ in self._moved.values())
        total = sum(total for _, total in self._moved.values())
        self._progress.update(
            self._all,
            completed=moved,
            total=total or None,
            doing=f"{self._finished}/{self._servers}",
            more=f"{counted(self._files, 'file')}, {size(self._saved)} not moved again",
        )
