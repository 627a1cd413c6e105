"""Fixtures of the agent's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from agent_school import School, school_in


@pytest.fixture
def school(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> School:
    """A server with every item, at rest for long; its container quiet."""
    monkeypatch.setattr("shala_agent.collect.RACY_NS", -1)
    return school_in(tmp_path)
