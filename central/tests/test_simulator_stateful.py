"""The world of the simulator, driven by Hypothesis: what it finds it makes as short as it can."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from simulator.invariants import Watch, check, come_to_rest, last_words
from simulator.machine import Machine, Sizes, patched
from simulator.world import ACTIONS, World

pytestmark = pytest.mark.timeout(300)


class ZoneSync(RuleBasedStateMachine):
    """Anybody does anything, in any order; when all have talked to the centre, the invariants hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="shala-simulator-"))

    @initialize(schools=st.integers(3, 5), zones=st.integers(1, 2), trouble=st.sampled_from([0.0, 0.2]))
    def begin(self, schools: int, zones: int, trouble: float) -> None:
        self.sizes, self.machine = Sizes(5, 5, 300, 5, 5), Machine(0)
        self.world = World(self.folder, self.machine, random.Random(0), self.sizes)
        with self.running():
            self.world.begin(zones, schools, carriers=1)
        self.world.line.trouble = self.world.crashes = self.world.line.busy = trouble
        self.watch = Watch()

    @rule(action=st.sampled_from(sorted(ACTIONS)), seed=st.integers(0, 1000))
    def act(self, action: str, seed: int) -> None:
        with self.running():
            self.world.act(action, random.Random(seed))
            self.watch.look(self.world)
        assert self.world.violations == []

    def teardown(self) -> None:
        last = random.Random(0)
        with self.running():
            if not self.world.violations:
                come_to_rest(self.world, last)
                last_words(self.world, last)
                come_to_rest(self.world, last)
                check(self.world, last)
            self.world.close()
        shutil.rmtree(self.folder)
        assert self.world.violations == []

    def running(self):
        return patched(self.machine, self.sizes, lambda **_settings: self.world.line.transport())


TestZoneSync = ZoneSync.TestCase
TestZoneSync.settings = settings(
    max_examples=8, stateful_step_count=20, derandomize=True, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
