"""Writers: what cannot be seen is never taken for nobody at work."""

from __future__ import annotations

import time

import pytest
from agent_school import QuietContainer, School
from shala_agent.container import KEPT_OUTPUT, Execution
from shala_agent.writers import running, wait_until_idle

WORDS = ["manage.py shell", "system-heartbeat.sh"]


def seen(said: str, *, timed_out: bool = False) -> Execution:
    return Execution(124 if timed_out else 0, said, "", timed_out, 0.0)


@pytest.mark.parametrize(
    "answer",
    [
        seen("", timed_out=True),
        seen("|end\n", timed_out=True),
        seen(""),
        seen("9.0|1 (init) S 0|init\n"),
        seen("x" * KEPT_OUTPUT + "\n|end\n"),
    ],
)
def test_where_it_cannot_be_seen_who_is_at_work_all_may_be(school: School, monkeypatch, answer):
    monkeypatch.setattr(QuietContainer, "run", lambda *_, **__: answer)
    assert [writer.command for writer in running(school.container, WORDS)] == WORDS
    assert max(writer.began for writer in running(school.container, WORDS)) < time.time() - 1800
    said = wait_until_idle(school.container, WORDS, 0)
    assert said.startswith("maybe, as it cannot be seen, the platform's own 'manage.py shell'")


def test_a_quiet_container_is_idle(school: School):
    assert wait_until_idle(school.container, WORDS, 0) == ""
