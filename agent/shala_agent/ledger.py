"""The ledger: which runs there were, which of their steps are done and how they ended.

A cut chain resumes from it.
"""

from __future__ import annotations

import datetime
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from shala_agent import disk, write_ahead
from shala_agent.failure import AgentError
from shala_agent.outcome import OK, Result

CHAIN = "chain"  # a run of the whole chain: left open when it is cut
BY_HAND = "by hand"  # a single command
# Older ones are forgotten, three weeks of hourly runs; but never the last good one of a step, against which
# the next is held.
KEPT_RUNS = 500

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL,
  started TEXT NOT NULL, ended TEXT, outcome TEXT);
CREATE TABLE IF NOT EXISTS steps (run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, step TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, started TEXT NOT NULL, ended TEXT, outcome TEXT, reasons TEXT,
  detail TEXT, seconds REAL, PRIMARY KEY (run, step));
CREATE INDEX IF NOT EXISTS steps_by_name ON steps (step, run);
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""


class StepRecord(msgspec.Struct):
    """One step of one run; `ended` and `outcome` are None while it runs or after it was cut."""

    run: int
    step: str
    attempts: int
    started: str
    ended: str | None
    outcome: str | None
    reasons: list[str]
    detail: dict[str, object]
    seconds: float


class RunRecord(msgspec.Struct):
    """One run; `ended` is None while it is open."""

    id: int
    kind: str
    started: str
    ended: str | None
    outcome: str | None


class LedgerUnavailable(AgentError):
    """The ledger cannot be opened; the text says why."""


class Ledger:
    """The ledger in the file `path`. Every change is on the disk when its method returns."""

    problem = ""  # why this is not the ledger on the disk, but what could be read of it

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = _opened(path)
        except OSError as error:
            raise _unavailable(path, error.strerror or str(error)) from None
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise _unavailable(path, str(error)) from None
            # A damaged ledger only means that steps are done once more; it is kept for whoever wants to know.
            aside = damaged(path)
            for suffix in ("", "-wal", "-shm"):
                broken = path.with_name(path.name + suffix)
                if broken.exists():
                    broken.replace(path.with_name(aside.name + suffix))
            _warn(f"the ledger {path} was damaged ({error}): it is {aside} now")
            self._db = _opened(path)

    @classmethod
    def to_look_at(cls, path: Path) -> Ledger:
        """Return the ledger for who only looks: where it cannot be opened, what can be read of it, in memory,
        with the `problem`.
        """
        try:
            return cls(path)
        except (AgentError, OSError, sqlite3.Error) as error:
            found = cls.__new__(cls)
            found._db, found.problem = _in_memory(path), str(error)
            return found

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def open_chain(self) -> tuple[int, bool]:
        """Return (run, resumed): the chain that was cut, or a new one."""
        open_one = self._db.execute(
            "SELECT id FROM runs WHERE kind = ? AND ended IS NULL ORDER BY id DESC LIMIT 1", (CHAIN,)
        ).fetchone()
        if open_one is not None:
            return int(open_one[0]), True
        return self.start(CHAIN), False

    def start(self, kind: str) -> int:
        """Begin a run and return its id."""
        with self._db:
            self._db.execute(
                "DELETE FROM runs WHERE id <= (SELECT max(id) FROM runs) - ? AND id NOT IN"
                " (SELECT max(run) FROM steps WHERE outcome = ? GROUP BY step)",
                (KEPT_RUNS, OK),
            )
            run = self._db.execute("INSERT INTO runs (kind, started) VALUES (?, ?)", (kind, now())).lastrowid
        return int(run or 0)

    def end(self, run: int, outcome: str) -> None:
        """End a run."""
        with self._db:
            self._db.execute("UPDATE runs SET ended = ?, outcome = ? WHERE id = ?", (now(), outcome, run))

    def begin(self, run: int, step: str) -> int:
        """Note that a step is being done; return how often it was begun since it last ended in this run, now
        included: all but this one were cut.
        """
        with self._db:
            self._db.execute(
                "INSERT INTO steps (run, step, attempts, started) VALUES (?, ?, 1, ?) ON CONFLICT (run, step)"
                " DO UPDATE SET attempts = CASE WHEN ended IS NULL THEN attempts + 1 ELSE 1 END,"
                " started = excluded.started, ended = NULL,"
                " outcome = NULL",
                (run, step, now()),
            )
        row = self._db.execute(
            "SELECT attempts FROM steps WHERE run = ? AND step = ?", (run, step)
        ).fetchone()
        return int(row[0])

    def finish(self, run: int, step: str, result: Result) -> None:
        """Note how a step ended."""
        reasons, detail = (msgspec.json.encode(value).decode() for value in (result.reasons, result.detail))
        with self._db:
            self._db.execute(
                "INSERT INTO steps (run, step, attempts, started, ended, outcome, reasons, detail, seconds)"
                " VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?) ON CONFLICT (run, step)"
                " DO UPDATE SET ended = excluded.ended, outcome = excluded.outcome,"
                " reasons = excluded.reasons, detail = excluded.detail, seconds = excluded.seconds",
                (run, step, now(), now(), result.outcome, reasons, detail, result.seconds),
            )

    def done(self, run: int, step: str) -> StepRecord | None:
        """Return the step if it ended in this run."""
        return self._one("run = ? AND step = ? AND ended IS NOT NULL", (run, step))

    def last(self, step: str, *outcomes: str) -> StepRecord | None:
        """Return the newest ending of a step in any run, of one of the outcomes if any are given."""
        marks = ", ".join("?" * len(outcomes))
        among = f" AND outcome IN ({marks})" if outcomes else ""
        return self._one(f"step = ? AND ended IS NOT NULL{among}", (step, *outcomes))

    def streak(self, step: str) -> tuple[int, str | None]:
        """Return how often in a row a step ended as it did the last time, and when it did so first."""
        rows = self._db.execute(
            "SELECT outcome, ended FROM steps WHERE step = ? AND ended IS NOT NULL ORDER BY run DESC", (step,)
        )
        times, since, outcome = 0, None, None
        for ended_as, ended in rows:
            if times and ended_as != outcome:
                break
            times, since, outcome = times + 1, ended, ended_as
        return times, since

    def steps(self, run: int) -> list[StepRecord]:
        """Return the steps of a run in the order in which they were first begun."""
        rows = self._db.execute(f"SELECT {_STEP_COLUMNS} FROM steps WHERE run = ? ORDER BY rowid", (run,))  # noqa: S608
        return [_step(row) for row in rows]

    def runs(self, limit: int, kind: str | None = None) -> list[RunRecord]:
        """Return the newest runs first."""
        rows = self._db.execute(
            "SELECT id, kind, started, ended, outcome FROM runs WHERE kind = coalesce(?, kind)"
            " ORDER BY id DESC LIMIT ?",
            (kind, limit),
        )
        return [RunRecord(*row) for row in rows]

    def mark(self, name: str) -> int:
        """Return a number kept under a name, 0 when there is none."""
        row = self._db.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def set_mark(self, name: str, value: int) -> None:
        """Keep a number under a name."""
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO marks (name, value) VALUES (?, ?)", (name, value))

    def _one(self, where: str, values: tuple[object, ...]) -> StepRecord | None:
        query = f"SELECT {_STEP_COLUMNS} FROM steps WHERE {where} ORDER BY run DESC LIMIT 1"  # noqa: S608
        row = self._db.execute(query, values).fetchone()
        return _step(row) if row else None


def damaged(path: Path) -> Path:
    """Return where a ledger that was damaged is kept."""
    return path.with_name(f"{path.name}.damaged")


def now() -> str:
    """Return the time as it is written in ledgers and collections: ISO 8601 in UTC."""
    return written(datetime.datetime.now(datetime.timezone.utc))


def written(time: datetime.datetime) -> str:
    """Return a time in UTC as `now` writes it."""
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


_STEP_COLUMNS = "run, step, attempts, started, ended, outcome, reasons, detail, seconds"


def _step(row: tuple[object, ...]) -> StepRecord:
    run, step, attempts, started, ended, outcome, reasons, detail, seconds = row
    return msgspec.convert(
        {
            "run": run,
            "step": step,
            "attempts": attempts,
            "started": started,
            "ended": ended,
            "outcome": outcome,
            "reasons": msgspec.json.decode(str(reasons or "[]")),
            "detail": msgspec.json.decode(str(detail or "{}")),
            "seconds": seconds or 0.0,
        },
        StepRecord,
    )


def _unavailable(path: Path, why: str) -> LedgerUnavailable:
    way_out = "run as root? is the disk full?"
    if disk.is_read_only(path.parent):
        way_out = "the disk is read-only: see dmesg | tail, then mount it again"
    return LedgerUnavailable(f"the ledger {path} cannot be opened: {why} ({way_out})")


def _in_memory(path: Path) -> sqlite3.Connection:
    """Return a copy of the ledger as it was when its log was last written back; an empty one if need be."""
    db = sqlite3.connect(":memory:")
    with suppress(sqlite3.Error):
        file = f"{path.absolute().as_uri()}?mode=ro&immutable=1"  # no lock and no log: nothing is written
        with closing(sqlite3.connect(file, uri=True)) as there:
            db.executescript("\n".join(there.iterdump()))
    db.executescript(_SCHEMA)
    return db


def _warn(text: str) -> None:
    import logging  # for this one line

    logging.getLogger(__name__).warning("shala-agent: %s", text)  # without a handler it goes to stderr


def _opened(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30)
    try:
        write_ahead.switch(db, path)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        with closing(db.execute("PRAGMA quick_check(1)")) as found:
            if found.fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("malformed")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db
