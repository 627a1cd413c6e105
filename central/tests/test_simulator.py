"""The simulator of zone sync (docs/simulator.md): its invariants hold, and it would see it if they did not."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from simulator.__main__ import main
from simulator.mutations import MUTATIONS
from simulator.run import Wish, run

BUDGET = 20  # runs in which a mutation must be found
TESTS = Path(__file__).parent


def failures(seeds: range) -> list[str]:
    found = []
    for seed in seeds:
        for violation in run(seed).violations:
            found.append(f"{violation} (make simulate RUNS=1 SEED={seed})")
    return found


@pytest.mark.timeout(300)
def test_every_invariant_holds_in_twenty_runs():
    assert failures(range(1, 21)) == []


@pytest.mark.simulator
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(1000, 1300, 20))
def test_every_invariant_holds_in_three_hundred_runs(first):
    assert failures(range(first, first + 20)) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_of_another_system_is_found(name):
    mutation, invariants = MUTATIONS[name]
    for seed in range(1, 1 + BUDGET):
        found = {violation.invariant for violation in run(seed, mutation=mutation).violations}
        if found & invariants:
            return
    pytest.fail(f"{name} is not found in {BUDGET} runs")


@pytest.mark.parametrize("seed", range(1, 7))
def test_clocks_that_are_years_wrong_change_nothing_of_what_comes_out(seed):
    right, wrong = (run(seed, Wish(calm=True, clocks=clocks)) for clocks in (False, True))
    assert right.violations == wrong.violations == []
    assert right.outcome == wrong.outcome
    assert right.writes


def test_one_seed_is_one_run():
    seed = random.randrange(1 << 30)
    assert run(seed).digest == run(seed).digest
    assert run(seed).digest != run(seed + 1).digest


def test_one_seed_is_one_run_in_another_process_too():
    program = "from simulator.run import run; print(*(run(seed).digest for seed in (7, 8)))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=TESTS, env={**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for salt in ("1",)
    }  # fmt: skip
    assert digests == {" ".join(run(seed).digest for seed in (7, 8)) + "\n"}


def test_what_is_found_is_told_with_the_command_that_replays_it(capsys):
    with MUTATIONS["receiver wins"][0]():
        assert main(["--runs", "2", "--seed", "1"]) == 1
    told = capsys.readouterr()
    assert "make simulate RUNS=1 SEED=1" in told.err
    assert told.out.startswith("runs 2, steps ")
    assert len(told.out.splitlines()) == 1
    assert not told.out.endswith("violations 0\n")


def test_when_nothing_is_found_one_line_says_so(capsys):
    assert main(["--runs", "1", "--seed", "1"]) == 0
    assert capsys.readouterr().out.endswith("violations 0\n")
