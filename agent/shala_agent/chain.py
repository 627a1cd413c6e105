"""The chain: heartbeat -> database dumps -> derivations -> collect and seal -> zone sync.

One at a time; a cut one resumes at its step. What was cut twice waits until what there is is collected.
"""

from __future__ import annotations

import datetime
import functools
import sqlite3
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shala_agent import catalogue, databases, derive, zone
from shala_agent.catalogue import Catalogue, Derivation
from shala_agent.collect import Collected, Report, collect, identify
from shala_agent.config import Config
from shala_agent.container import Container
from shala_agent.extension import known_catalogue
from shala_agent.failure import AgentError
from shala_agent.heartbeat import take_heartbeat
from shala_agent.ledger import BY_HAND, Ledger
from shala_agent.lock import held
from shala_agent.outcome import FAILED, OK, SUSPECT, Result, failed
from shala_agent.reach import Reach
from shala_agent.restore_note import half_done
from shala_agent.room import MB, free_at

# A step that was cut so often, by whatever (power, deadline, stop), comes after the collection: a school that
# is on for less than the step takes would else never have one (facts/gstudio.md 5: 2 to 70 minutes).
LATE_AFTER_CUTS = 2
MAX_CUTS = 3  # cut so often it would keep the chain from ever reaching its end: it is passed over

Say = Callable[[str], None]

DUMPS = catalogue.DUMPS
COLLECT = "collect"
SYNC = "sync"  # the last step of who is a device of a zone
ENDS = (COLLECT, SYNC)
ROOMLESS = ("heartbeat", *ENDS)  # steps that make nothing large, or look for room themselves
CLOCK_SLACK = 3600  # seconds: a step that ended later than now, by the clock, is due


def steps_of(config: Config) -> tuple[str, ...]:
    """Return the steps of a server's chain."""
    steps = (*known_catalogue(config)[0].steps, COLLECT)
    return (*steps, SYNC) if config.sync.enabled else steps


def not_due_until(rows: Catalogue, ledger: Ledger, step: str) -> datetime.datetime | None:
    """Return until when the chain passes over a step, None when it is due.

    A derivation is due when its last good run is old, or by the clock not yet over.
    """
    hours = next((row.every_hours for row in rows.derivations if row.name == step), 0)
    last = ledger.last(step, OK) if hours else None
    if last is None or last.ended is None:
        return None
    ended = datetime.datetime.fromisoformat(last.ended.replace("Z", "+00:00"))
    age = datetime.datetime.now(datetime.timezone.utc) - ended
    if not -CLOCK_SLACK < age.total_seconds() < hours * 3600:
        return None
    return ended + datetime.timedelta(hours=hours)


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
        *,
        warn: Say | None = None,
        begun: Callable[[int], None] | None = None,
    ) -> None:
        state = Path(config.paths.state)
        self._config = config
        self._catalogue, _ = known_catalogue(config)  # a mistake in it is one of `collect`
        self._ledger = ledger
        self._say = say or (lambda _text: None)
        self._warn = warn or self._say
        self._begun = begun or (lambda _run: None)
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
            self._begun(run)
            self._pass(passage, self._in_order(run), whole_chain=True)
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
        self._begun(passage.run)
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

    def _pass(self, passage: Passage, steps: tuple[str, ...], *, whole_chain: bool = False) -> None:
        deeds: dict[str, Callable[[int], Result]] = {
            "heartbeat": lambda _run: self._heartbeat(),
            "postgres-dump": lambda _run: self._postgres(),
            "mongo-dump": self._mongo,
            COLLECT: lambda _run: self._collect(),
            SYNC: lambda _run: self._sync(),
        }
        for made in self._catalogue.derivations:
            deeds[made.name] = functools.partial(self._derive, made)
        for position, name in enumerate(steps):
            if self._remaining() <= 0:
                passage.left = list(steps[position:])
                self._say(f"the deadline of {self._config.chain.deadline_minutes} minutes is reached")
                break
            # A heartbeat is of its moment: a resumed chain takes a new one.
            done = self._ledger.done(passage.run, name) if name != "heartbeat" else None
            if done is not None and name != COLLECT:
                passage.steps.append(
                    (name, Result(str(done.outcome), done.reasons, done.detail, done.seconds))
                )
                self._say(f"{name}: {done.outcome}, done before the cut")
                continue
            if whole_chain and not self._is_due(name):
                self._say(f"{name}: not due")
                continue
            if not self._one(passage, name, deeds[name]):
                passage.left = list(steps[position:])
                break
        passage.collected = self._collected

    def _in_order(self, run: int) -> tuple[str, ...]:
        """Return the steps as they are to be done: once one was cut too often, what is left waits until what
        there is was collected and sent. What it then makes is collected in its turn.
        """
        steps = steps_of(self._config)
        known = {step.step: step for step in self._ledger.steps(run)}
        ended = {name for name, step in known.items() if step.ended is not None}
        cut = (step.attempts for name, step in known.items() if name not in ended)
        if COLLECT not in ended and max(cut, default=0) < LATE_AFTER_CUTS:
            return steps
        early = {"heartbeat", *ended} - {COLLECT, SYNC}
        first = [name for name in steps if name in early]
        ends = [name for name in steps if name in ENDS]
        late = [name for name in steps if name not in early and name not in ENDS]
        return (*first, *ends, *late, COLLECT) if late else (*first, *ends)

    def _one(self, passage: Passage, name: str, deed: Callable[[int], Result]) -> bool:
        """Do one step and note how it ended; an error ends the step, not the chain.

        False: the deadline cut it.
        """
        began = time.monotonic()
        attempts = self._ledger.begin(passage.run, name)
        self._say(f"{name} ...")
        hindered = (
            "" if name in ROOMLESS else self._short_of_room() or half_done(Path(self._config.paths.state))
        )
        if hindered:
            result = failed(hindered)
        elif attempts > MAX_CUTS and name != COLLECT:
            result = failed(f"it was cut {attempts - 1} times; passed over so that the chain reaches its end")
        else:
            try:
                result = deed(passage.run)
            except (AgentError, OSError, sqlite3.Error) as error:
                result = failed(" ".join(str(error).split()) or type(error).__name__)
            except Exception as error:
                self._warn(traceback.format_exc())
                result = failed(f"{type(error).__name__}: {' '.join(str(error).split())}")
        result.seconds = round(time.monotonic() - began, 3)
        if result.outcome == FAILED and self._remaining() <= 0:
            self._say(f"{name}: cut by the deadline, to be done the next time")
            return False
        self._ledger.finish(passage.run, name, result)
        passage.steps.append((name, result))
        say = self._warn if result.outcome in (FAILED, SUSPECT) else self._say
        say(f"{name}: {result.outcome}{f' ({result.reasons[0]})' if result.reasons else ''}")
        return True

    def _short_of_room(self) -> str:
        """Return why nothing more may be made on the platform's disk, "" when it may."""
        folder, floor = Path(self._config.paths.data), self._config.spool.min_free_mb * MB
        free = free_at(folder) if folder.is_dir() else floor
        return (
            f"{free // MB} MB are free at {folder} and {floor // MB} stay so: nothing is made"
            " (free some space, or lower spool.min_free_mb)"
            if free < floor
            else ""
        )

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

            def dump_one(database: str, live: Mapping[str, int] | None) -> Result:
                # Long steps resume at the file: a database that this run has dumped is not dumped again.
                step = f"mongo-dump {database}"
                if (done := self._ledger.done(run, step)) is not None and done.outcome in (OK, SUSPECT):
                    return Result(str(done.outcome), done.reasons, done.detail)
                seconds = self._seconds(self._config.databases.timeout_minutes)
                result = databases.dump_mongo_database(self.container, self.reach, database, seconds, live)
                self._ledger.finish(run, step, result)
                return result

            return databases.dump_mongo(self.container, self.reach, self._config.databases.mongo, dump_one)

    def _derive(self, derivation: Derivation, _run: int) -> Result:
        with self.container.claimed(derivation.name, self._wait):
            last = self._ledger.last(derivation.name, OK)
            seconds = self._derive_seconds(derivation)
            return derive.derive(
                self.container,
                self.reach,
                derivation,
                seconds,
                last_good=last.detail if last else None,
                watch=self._tick,
            )

    def _activity_of(self, user: str) -> Result:
        with self.container.claimed("activity-timestamps", self._wait):
            seconds = self._derive_seconds(self._catalogue.derivation("activity-timestamps"))
            return derive.derive_activity_of_user(self.container, self.reach, user, seconds)

    def _collect(self) -> Result:
        self._collected = collect(self._config, self.container, self.reach, self._ledger, self._report)
        return self._collected.result

    def _sync(self) -> Result:
        return zone.step(self._config, self.container, self.reach, self._remaining, self._tick)

    def _is_due(self, step: str) -> bool:
        return not_due_until(self._catalogue, self._ledger, step) is None

    def _derive_seconds(self, derivation: Derivation) -> float:
        return self._seconds(derivation.timeout_minutes or self._config.derive.timeout_minutes)

    def _seconds(self, minutes: int) -> float:
        return max(1.0, min(minutes * 60.0, self._remaining()))

    def _remaining(self) -> float:
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()
