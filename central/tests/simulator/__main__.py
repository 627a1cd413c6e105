"""The command line of the simulator: `make simulate RUNS=n [SEED=s]`."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter
from collections.abc import Sequence

from simulator.run import Ran, Wish, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Do runs, tell what was found. Exit code 1: an invariant does not hold."""
    parser = argparse.ArgumentParser(prog="make simulate")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, help="of the first run; the next one has the next")
    parser.add_argument("--steps", type=int, help="so many steps instead of those that the seed draws")
    parser.add_argument("--story", action="store_true", help="tell what happens")
    chosen = parser.parse_args(arguments)
    first = secrets.randbelow(1 << 40) if chosen.seed is None else chosen.seed
    began, steps, faults, violations = time.perf_counter(), 0, Counter[str](), 0
    for number in range(chosen.runs):
        ran = run(first + number, Wish(steps=chosen.steps, told=chosen.story))
        steps, faults = steps + ran.steps, faults + ran.faults
        violations += len(ran.violations)
        if chosen.story:
            sys.stderr.write("\n".join(ran.story) + "\n")
        _tell(ran)
        if sys.stderr.isatty() or (number + 1) % 50 == 0:
            sys.stderr.write(f"\r{number + 1} of {chosen.runs} runs, {steps} steps, {violations} violations")
            sys.stderr.flush()
    sys.stderr.write(f"\n{time.perf_counter() - began:.0f} s; faults: {dict(faults.most_common())}\n")
    sys.stdout.write(
        f"runs {chosen.runs}, steps {steps}, faults injected {faults.total()}, violations {violations}\n"
    )
    return 1 if violations else 0


def _tell(ran: Ran) -> None:
    for violation in ran.violations[:5]:
        sys.stderr.write(f"\n{violation}\n")
    if ran.violations:
        sys.stderr.write(f"replay it: make simulate RUNS=1 SEED={ran.seed}\n")


if __name__ == "__main__":
    sys.exit(main())
