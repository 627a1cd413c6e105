from __future__ import annotations

import json

from agent_school import School
from click.testing import CliRunner
from shala_agent import cli
from shala_agent.ledger import CHAIN, Ledger
from shala_agent.outcome import FAILED, OK, Result
from shala_agent.status import read_status


def ended(ledger: Ledger, step: str, *outcomes: str) -> None:
    """Note runs of a step, one second after another."""
    for outcome in outcomes:
        run = ledger.start(CHAIN)
        ledger.begin(run, step)
        ledger.finish(run, step, Result(outcome, [f"it was {outcome}"]))
        ledger.end(run, "done")


def clock(monkeypatch) -> None:
    seconds = iter(range(10, 60))
    monkeypatch.setattr("shala_agent.ledger.now", lambda: f"2026-01-01T00:00:{next(seconds)}Z")


def test_a_step_tells_since_when_it_fails_and_when_it_was_last_ok(school: School, monkeypatch):
    clock(monkeypatch)
    ledger = school.ledger()
    ended(ledger, "progress", OK, FAILED, OK, FAILED, FAILED, FAILED)
    times = {record.run: record.ended for run in range(1, 7) if (record := ledger.done(run, "progress"))}
    (step,) = read_status(school.config, ledger).steps
    assert (step.times, step.since, step.last_ok) == (3, times[4], times[3])


def test_an_item_tells_since_when_it_is_as_it_is(school: School, monkeypatch):
    school.collect()
    school.write("data/gstudio_tools_logs/policesquad/7-policesquad.json", "[{]")
    school.collect()
    first = {item.name: item for item in read_status(school.config, school.ledger()).sealed.items}
    monkeypatch.setattr("shala_agent.collect.now", lambda: "2090-01-01T00:00:00Z")
    school.write("data/gstudio_tools_logs/policesquad/7-policesquad.json", "[{]]")
    school.write("data/gstudio-logs/more.log", "more\n")
    school.collect()
    then = {item.name: item for item in read_status(school.config, school.ledger()).sealed.items}
    assert first["gstudio_tools_logs"].outcome == then["gstudio_tools_logs"].outcome != OK
    assert first["gstudio_tools_logs"].since == then["gstudio_tools_logs"].since < "2090"


def test_what_is_due_is_what_the_next_chain_does(school: School):
    (school.root / "catalogue.toml").write_text(
        'format = 1\n[derivations.scores]\nabout = "scores"\ncommand = ["true"]\noutput = "/data/scores"\nevery_hours = 24\n'
    )
    text = school.config_path.read_text().replace(
        "[paths]", f'[paths]\ncatalogue = "{school.root}/catalogue.toml"'
    )
    school.config_path.write_text(text)
    with_scores = School(
        school.root, cli.read_config(school.config_path), school.config_path, school.container
    )
    ledger = with_scores.ledger()
    assert "scores" in read_status(with_scores.config, ledger).due
    ended(ledger, "scores", OK)
    status = read_status(with_scores.config, ledger)
    assert "scores" not in status.due
    assert "heartbeat" in status.due
    assert status.steps[0].not_due_until > status.steps[0].ended


def test_status_shows_why_and_since_when(school: School):
    ended(school.ledger(), "progress", OK, FAILED, FAILED)
    school.write("data/gstudio_tools_logs/policesquad/7-policesquad.json", "[{]")
    school.collect()
    arguments = ["--config", str(school.config_path), "status"]
    shown = CliRunner().invoke(cli.shala_agent, arguments).output
    assert "(2x)" in shown
    assert "it was failed" in shown
    assert "due with the next chain: heartbeat, postgres-dump" in shown
    told = json.loads(CliRunner().invoke(cli.shala_agent, [*arguments, "--json"]).output)
    assert {"times", "since", "last_ok", "not_due_until"} <= told["steps"][0].keys()
    assert all(item["since"] for item in told["sealed"]["items"])
