"""The chain: heartbeat -> database dumps -> derivations -> collect and seal -> zone sync.

One at a time; a cut one resumes at its step.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from shala_agent import databases, derive, zone
from shala_agent.collect import Collected, Report, collect, identify
from shala_agent.config import Config
from shala_agent.container import Container
from shala_agent.failure import AgentError, Stopped
from shala_agent.heartbeat import take_heartbeat
from shala_agent.ledger import BY_HAND, Ledger
from shala_agent.lock import held
from shala_agent.outcome import FAILED, OK, Result, failed
from shala_agent.reach import Reach

MAX_CUTS = (
    3  # a step that was cut so often would keep the chain from ever reaching its end: it is passed over
)

Say = Callable[[str], None]

STEPS = (
    "heartbeat",
    "postgres-dump",
    "mongo-dump",
    "activity-timestamps",
    "progress",
    "assessments",
    "collect",
)
SYNC = "sync"  # the last step of who is a device of a zone
DUMPS = ("postgres-dump", "mongo-dump")


def steps_of(config: Config) -> tuple[str, ...]:
    """Return the steps of a server's chain."""
    return (*STEPS, SYNC) if config.sync.enabled else STEPS


@dataclass(slots=True)
class Passage:
    """What one pass through steps did; `left` names the steps that remain for the next one."""

    run: int
    resumed: bool = False
    steps: list[tuple[str, Result]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    collected: Collected | None = None

    @property
    def exit_code(self) -> int:
        """0 done, 1 nothing came of it, 3 partly done."""
        bad = [name for name, result in self.steps if result.outcome == FAILED]
        if not self.missed and not self.left:
            return 0
        return 1 if bad and len(bad) == len(self.steps) else 3

    @property
    def missed(self) -> list[str]:
        """The steps and items that failed."""
        items = self.collected.collection.items if self.collected else []
        steps = [name for name, result in self.steps if result.outcome == FAILED]
        return [*steps, *(f"{item.platform}/{item.name}" for item in items if item.outcome == FAILED)]


class Chain:
    """The steps, on one server."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        say: Say | None = None,
        report: Report | None = None,
        tick: Say | None = None,
    ) -> None:
        state = Path(config.paths.state)
        self._config = config
        self._ledger = ledger
        self._say = say or (lambda _text: None)
        self._report = report
        self._tick = tick
        self._locks = state / "locks"
        self.container = Container(config.container.name, self._locks)
        self.reach = Reach(config.paths, self.container, state / "fetched")
        self._deadline: float | None = None
        self._wait = 0.0
        self._collected: Collected | None = None

    def run(self, wait_seconds: float = 0.0) -> Passage:
        """Go through the whole chain, or on with the one that was cut. Raises Busy, Stopped."""
        self._wait = wait_seconds
        if self._config.chain.deadline_minutes:
            self._deadline = time.monotonic() + self._config.chain.deadline_minutes * 60
        with held(self._locks / "chain.lock", "run", wait_seconds):
            run, resumed = self._ledger.open_chain()
            passage = Passage(run, resumed)
            self._pass(passage, steps_of(self._config))
            if not passage.left:
                self._ledger.end(run, "partly" if passage.exit_code else "done")
            return passage

    def by_hand(self, steps: tuple[str, ...], wait_seconds: float = 0.0, user: str = "") -> Passage:
        """Do some steps now, as a run of its own. Raises Busy, Stopped, UsageError."""
        self._wait = wait_seconds
        if steps == ("heartbeat",):
            return self._by_hand(steps, user)
        # What a step makes anew must not be gathered meanwhile by a chain, nor the other way round.
        with held(self._locks / "chain.lock", " ".join(steps) or "derive", wait_seconds):
            return self._by_hand(steps, user)

    def _by_hand(self, steps: tuple[str, ...], user: str) -> Passage:
        passage = Passage(self._ledger.start(BY_HAND))
        outcome = "stopped"
        try:
            if user:
                self._one(passage, f"activity-timestamps {user}", lambda _run: self._activity_of(user))
            else:
                self._pass(passage, steps)
            outcome = "partly" if passage.exit_code else "done"
        finally:
            self._ledger.end(passage.run, outcome)
        return passage

    def _pass(self, passage: Passage, steps: tuple[str, ...]) -> None:
        deeds: dict[str, Callable[[int], Result]] = {
            "heartbeat": lambda _run: self._heartbeat(),
            "postgres-dump": lambda _run: self._postgres(),
            "mongo-dump": self._mongo,
            "activity-timestamps": lambda _run: self._activity(),
            "progress": lambda _run: self._progress(),
            "assessments": lambda _run: self._assessments(),
            "collect": lambda _run: self._collect(),
            SYNC: lambda _run: self._sync(),
        }
        for position, name in enumerate(steps):
            if self._remaining() <= 0:
                passage.left = list(steps[position:])
                self._say(f"the deadline of {self._config.chain.deadline_minutes} minutes is reached")
                break
            # A heartbeat is of its moment: a resumed chain takes a new one.
            done = self._ledger.done(passage.run, name) if name != "heartbeat" else None
            if done is not None and name != "collect":
                passage.steps.append(
                    (name, Result(str(done.outcome), done.reasons, done.detail, done.seconds))
                )
                self._say(f"{name}: {done.outcome}, done before the cut")
                continue
            if not self._one(passage, name, deeds[name]):
                passage.left = list(steps[position:])
                break
        passage.collected = self._collected

    def _one(self, passage: Passage, name: str, deed: Callable[[int], Result]) -> bool:
        """Do one step and note how it ended; an error ends the step, not the chain.

        False: the deadline cut it.
        """
        began = time.monotonic()
        attempts = self._ledger.begin(passage.run, name)
        self._say(f"{name} ...")
        if attempts > MAX_CUTS and name != "collect":
            result = failed(f"it was cut {attempts - 1} times; passed over so that the chain reaches its end")
        else:
            try:
                result = deed(passage.run)
            except Stopped:
                self._ledger.postpone(passage.run, name)
                raise
            except (AgentError, OSError, sqlite3.Error) as error:
                result = failed(" ".join(str(error).split()) or type(error).__name__)
        result.seconds = round(time.monotonic() - began, 3)
        if result.outcome == FAILED and self._remaining() <= 0:
            self._ledger.postpone(passage.run, name)
            self._say(f"{name}: cut by the deadline, to be done the next time")
            return False
        self._ledger.finish(passage.run, name, result)
        passage.steps.append((name, result))
        self._say(f"{name}: {result.outcome}{f' ({result.reasons[0]})' if result.reasons else ''}")
        return True

    def _heartbeat(self) -> Result:
        try:
            identity, why = identify(self._config, self.reach), ""
        except (AgentError, OSError) as error:
            identity, why = None, str(error)
        return take_heartbeat(self._config, self.container, self.reach, identity, why)

    def _postgres(self) -> Result:
        with self.container.claimed("postgres-dump", self._wait):
            if problem := databases.wait_for(self.container, "postgres"):
                return failed(f"PostgreSQL: {problem}")
            return databases.dump_postgres(
                self.container, self.reach, self._seconds(self._config.databases.timeout_minutes)
            )

    def _mongo(self, run: int) -> Result:
        with self.container.claimed("mongo-dump", self._wait):
            databases.repair_dumps(self.container)
            if problem := databases.wait_for(self.container, "mongo"):
                return failed(f"MongoDB: {problem}")

            def dump_one(database: str) -> Result:
                # Long steps resume at the file: a database that this run has dumped is not dumped again.
                step = f"mongo-dump {database}"
                if (done := self._ledger.done(run, step)) is not None and done.outcome == OK:
                    return Result(OK, done.reasons, done.detail)
                seconds = self._seconds(self._config.databases.timeout_minutes)
                result = databases.dump_mongo_database(self.container, self.reach, database, seconds)
                self._ledger.finish(run, step, result)
                return result

            return databases.dump_mongo(self.container, self.reach, self._config.databases.mongo, dump_one)

    def _activity(self) -> Result:
        with self.container.claimed("activity-timestamps", self._wait):
            before = self._last_count("activity-timestamps")
            return derive.derive_activity_of_all(
                self.container, self.reach, self._derive_seconds(), before, self._tick
            )

    def _activity_of(self, user: str) -> Result:
        with self.container.claimed("activity-timestamps", self._wait):
            return derive.derive_activity_of_user(self.container, self.reach, user, self._derive_seconds())

    def _progress(self) -> Result:
        with self.container.claimed("progress", self._wait):
            before = self._last_count("progress")
            return derive.derive_progress(
                self.container, self.reach, self._derive_seconds(), before, self._tick
            )

    def _assessments(self) -> Result:
        with self.container.claimed("assessments", self._wait):
            return derive.derive_assessments(self.container, self.reach, self._derive_seconds())

    def _collect(self) -> Result:
        self._collected = collect(self._config, self.container, self.reach, self._ledger, self._report)
        return self._collected.result

    def _sync(self) -> Result:
        return zone.step(self._config, self.container, self.reach, self._remaining, self._tick)

    def _last_count(self, step: str) -> int:
        last = self._ledger.last(step, OK)
        count = last.detail.get("count", 0) if last else 0
        return count if isinstance(count, int) else 0

    def _derive_seconds(self) -> float:
        return self._seconds(self._config.derive.timeout_minutes)

    def _seconds(self, minutes: int) -> float:
        return max(1.0, min(minutes * 60.0, self._remaining()))

    def _remaining(self) -> float:
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()
