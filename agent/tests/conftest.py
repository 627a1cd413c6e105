"""Fixtures of the agent's tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from agent_school import School, school_in
from injected import Tally
from little_centre import LittleCentre, served
from zone_school import Server, server_in

# How long an example takes says what else this machine was doing.
settings.register_profile("shala", deadline=None)
settings.load_profile("shala")


@pytest.fixture(autouse=True)
def _own_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    # A process that has stepped back cannot step forward again: the tests after it would be slow.
    monkeypatch.setattr("shala_agent.priority.yield_to_others", lambda: None)


@pytest.fixture(scope="session")
def tally() -> Iterator[Tally]:
    """What the fault suite injects and sees; SHALA_FAULTS_TALLY names a folder to write it to."""
    made = Tally()
    yield made
    if folder := os.environ.get("SHALA_FAULTS_TALLY"):
        made.write(Path(folder) / f"{os.getpid()}.json")


@pytest.fixture
def school(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> School:
    """A server with every item, at rest for long; its container quiet."""
    for module in ("collect", "sketch"):
        monkeypatch.setattr(f"shala_agent.{module}.RACY_NS", -1)
    return school_in(tmp_path)


@pytest.fixture
def centre() -> Iterator[LittleCentre]:
    """A centre of one zone, on a port of the loopback."""
    with served(LittleCentre()) as made:
        yield made


@pytest.fixture
def lake(tmp_path: Path, centre: LittleCentre) -> Server:
    """Another server of the zone."""
    return server_in(tmp_path / "lake", "2031018-mz18", centre)
