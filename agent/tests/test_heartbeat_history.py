from __future__ import annotations

import json
import sqlite3

from agent_school import School
from click.testing import CliRunner
from shala_agent import cli, heartbeat_history
from shala_agent.heartbeat import HISTORY, newest, take_heartbeat


def beat(school: School) -> str:
    return take_heartbeat(school.config, school.container, school.reach(), None).outcome


def path(school: School):
    return school.root / "state/heartbeat" / HISTORY


def asked(school: School, *arguments: str) -> str:
    ran = CliRunner().invoke(cli.shala_agent, ["--config", str(school.config_path), "heartbeat", *arguments])
    assert ran.exit_code == 0
    return ran.output


def test_the_last_heartbeats_come_in_the_order_in_which_they_were_taken(school: School, monkeypatch):
    for second in (3, 1, 2):  # the clock goes back
        monkeypatch.setattr("shala_agent.heartbeat.now", lambda at=second: f"2026-01-01T00:00:0{at}Z")
        beat(school)
    assert [one.taken[-2:-1] for one in newest(school.config, 2)] == ["1", "2"]


def test_heartbeats_are_shown_as_lines_and_as_json(school: School):
    beat(school)
    school.container.up = False
    beat(school)
    shown = asked(school, "--last", "30")
    assert "2 heartbeats" in shown
    assert "1 boot" in shown
    assert "█·  running in 1 of 2" in shown
    told = json.loads(asked(school, "--last", "30", "--json"))["heartbeats"]
    assert [one["container"] for one in told] == ["running", "exited"]


def test_without_a_heartbeat_the_history_says_how_to_take_one(school: School):
    assert "shala-agent heartbeat" in asked(school, "--last", "3")


def test_a_damaged_history_stops_no_heartbeat(school: School):
    beat(school)
    path(school).write_bytes(b"no database" * 1000)
    assert newest(school.config, 3) == []
    beat(school)
    assert len(newest(school.config, 3)) == 1


def test_the_oldest_heartbeats_are_forgotten(school: School, monkeypatch):
    monkeypatch.setattr(heartbeat_history, "KEPT", 3)
    for _ in range(7):
        beat(school)
    with sqlite3.connect(path(school)) as db:
        assert db.execute("SELECT count(*) FROM heartbeats").fetchone() == (3,)


def test_a_sparkline_spans_from_its_least_to_its_greatest_value():
    assert heartbeat_history.sparkline([0, 7, 3.5]) == "▁█▅"
    assert heartbeat_history.sparkline([5, 5]) == "▄▄"
    assert heartbeat_history.sparkline([5, 5.01], span=1) == "▄▄"
    assert heartbeat_history.sparkline([]) == ""
