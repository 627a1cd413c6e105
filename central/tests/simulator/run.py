"""Run: one seed is one run. `python -m simulator` does many."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from simulator.invariants import Watch, check, come_to_rest, last_words, outcome
from simulator.machine import Machine, Sizes, patched
from simulator.world import ACTIONS, Violation, World

_COPIES = (
    "restore",
    "clone",
    "go_on_alone",
    "restore_centre",
    "forget_session",
)  # after which ids of segments decide about names
# What a run is about: these actions are so many times as likely in it.
_THEMES: tuple[dict[str, float], ...] = (
    {},
    {"backup": 3, "restore": 3, "clone": 4, "cut": 3, "load": 2, "unload": 2, "go_on_alone": 3},
    {"backup_centre": 2, "restore_centre": 2, "forget_session": 3, "sync": 2},
    {
        "revoke": 5,
        "enrol_again": 5,
        "move": 5,
        "redact": 4,
        "replace_disk": 3,
        "new_school": 2,
        "new_key": 3,
        "go_on_alone": 3,
    },
)
Mutation = Callable[[], AbstractContextManager[object]]


@dataclass
class Ran:
    """What a run was and found."""

    seed: int
    steps: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    digest: str = ""  # of all that happened
    outcome: str = ""  # of what came of it, whatever the clocks said
    writes: int = 0
    lost_with_disks: int = 0
    story: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wish:
    """What a run is to be other than the seed has it."""

    steps: int | None = None
    told: bool = False  # with its story
    calm: bool = False  # without faults, copied disks and crashes
    clocks: bool = True  # that are wrong, and jump


def run(seed: int, wish: Wish = Wish(), mutation: Mutation = nullcontext) -> Ran:
    """Do one run: a random part of faults, then rest, then the checks. Whatever it does follows from the seed."""
    chance = random.Random(seed)
    machine = Machine(seed)
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="shala-simulator-", dir=memory if memory.is_dir() else None))
    ran = Ran(seed)
    try:
        sizes = _sizes(chance)
        world = World(folder, machine, chance, sizes)
        if wish.told:
            world.story = ran.story
        with patched(machine, sizes, lambda **_settings: world.line.transport()), mutation():
            try:
                _play(world, chance, ran, wish)
            except Violation as violation:
                ran.violations.append(violation)
            finally:
                world.close()
        ran.violations += world.violations
        ran.faults = world.faults + world.line.faults
        ran.met = world.met
        ran.digest = world.trace.hexdigest()
        ran.writes, ran.lost_with_disks = len(world.model.writes), len(world.model.excused)
    finally:
        shutil.rmtree(folder)
    return ran


def _sizes(chance: random.Random) -> Sizes:
    return Sizes(
        page=chance.choice((3, 5, 8, 20, 100)),
        offers=chance.choice((2, 5, 20, 2000)),
        part=chance.choice((100, 300, 1000, 256 << 10)),
        entries=chance.choice((2, 5, 20, 4096)),
        at_once=chance.choice((2, 5, 2000)),
    )


def _play(world: World, chance: random.Random, ran: Ran, wish: Wish) -> None:
    weather = chance.choice((0.0, 0.1, 0.25, 0.5))
    crashes = chance.choice((0.0, 0.1, 0.4))
    busy = chance.choice((0.0, 0.05, 0.2))
    schools = chance.choice((3, 3, 3, 3, 3, 4, 4, 5, 6, 9))
    number = chance.randint(20, 80)
    theme = chance.choice(_THEMES)
    names, weights = list(ACTIONS), [weight * theme.get(name, 1) for name, weight in ACTIONS.items()]
    if wish.calm:
        weather = crashes = busy = 0.0
        weights = [0.0 if name in _COPIES else weight for name, weight in zip(names, weights, strict=True)]
    world.clocks = wish.clocks
    zones, carriers = chance.choice((1, 1, 2)), chance.choice((0, 1, 1, 2))
    # What a carrier copies is drawn in the order of ids, and those are made of what clocks say, too.
    world.begin(zones, schools, 0 if wish.calm else carriers)
    world.line.trouble, world.line.busy, world.crashes = weather, busy, crashes
    watch = Watch()
    for _ in range(number if wish.steps is None else wish.steps):
        action = chance.choices(names, weights)[0]
        world.act(action, random.Random(chance.getrandbits(64)))
        ran.steps += 1
        watch.look(world)
        if world.violations:
            return
    last = random.Random(chance.getrandbits(64))
    if last.random() < 0.4:  # without anything that is new, too
        come_to_rest(world, last)
    last_words(world, last)
    come_to_rest(world, last)
    watch.look(world)
    if not world.violations:
        check(world, last)
    ran.outcome = outcome(world)
