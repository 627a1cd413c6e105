from __future__ import annotations

import os
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from shala_agent.failure import Busy
from shala_agent.ledger import KEPT_RUNS, Ledger
from shala_agent.lock import held
from shala_agent.outcome import Result, failed

STEPS = ["heartbeat", "postgres-dump", "collect"]


def test_a_cut_chain_is_open_and_a_finished_one_is_not(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    run, resumed = ledger.open_chain()
    assert not resumed
    ledger.begin(run, "heartbeat")
    ledger.finish(run, "heartbeat", Result("ok"))
    ledger.begin(run, "postgres-dump")
    ledger.close()
    again = Ledger(tmp_path / "ledger.sqlite")
    assert again.open_chain() == (run, True)
    assert again.done(run, "heartbeat") is not None
    assert again.done(run, "postgres-dump") is None
    assert again.begin(run, "postgres-dump") == 2
    again.end(run, "done")
    assert again.open_chain() == (run + 1, False)


def test_the_last_ending_of_a_step_is_found_in_any_run(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    first, second, third = (ledger.start("by hand") for _ in range(3))
    ledger.finish(first, "progress", Result("ok", [], {"count": 28}))
    ledger.finish(second, "progress", failed("cut"))
    ledger.begin(third, "progress")
    assert ledger.last("progress").outcome == "failed"
    assert ledger.last("progress", "ok", "suspect").detail == {"count": 28}
    assert ledger.last("assessments") is None


def test_a_damaged_ledger_is_kept_aside_with_one_line_and_work_goes_on(tmp_path, caplog):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    assert Ledger(path).open_chain() == (1, False)
    assert (tmp_path / "ledger.sqlite.damaged").exists()
    (line,) = caplog.messages
    assert line.endswith(f"the ledger {path} was damaged (file is not a database): it is {path}.damaged now")


def test_every_step_survives_a_kill_right_after_it(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from shala_agent.ledger import Ledger; from shala_agent.outcome import Result\n"
        "ledger = Ledger(Path(sys.argv[1])); run, _ = ledger.open_chain()\n"
        "ledger.begin(run, 'heartbeat'); ledger.finish(run, 'heartbeat', Result('ok', ['kept']))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "ledger.sqlite"
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    ledger = Ledger(path)
    run, resumed = ledger.open_chain()
    assert resumed
    assert ledger.done(run, "heartbeat").reasons == ["kept"]


def test_only_one_holds_a_lock_and_the_other_hears_who(tmp_path):
    path = tmp_path / "locks/chain.lock"
    with (
        held(path, "run"),
        pytest.raises(Busy, match=r"chain is in use by process \d+ \(run\)"),
        held(path, "run"),
    ):
        pass
    with held(path, "run"):
        pass


class CutChains(RuleBasedStateMachine):
    """Steps are begun, finished and cut in any order: what was finished stays so, nothing else is."""

    @initialize()
    def begin(self):
        self.folder = __import__("tempfile").TemporaryDirectory()
        self.path = __import__("pathlib").Path(self.folder.name) / "ledger.sqlite"
        self.ledger = Ledger(self.path)
        self.run, _ = self.ledger.open_chain()
        self.finished = {}

    @rule(step=st.sampled_from(STEPS), outcome=st.sampled_from(["ok", "suspect", "failed"]))
    def do(self, step, outcome):
        self.ledger.begin(self.run, step)
        self.ledger.finish(self.run, step, Result(outcome))
        self.finished[step] = outcome

    @rule(step=st.sampled_from(STEPS))
    def cut(self, step):
        self.ledger.begin(self.run, step)
        self.ledger.close()
        self.ledger = Ledger(self.path)
        assert self.ledger.open_chain() == (self.run, True)
        self.finished.pop(step, None)

    @rule()
    def end(self):
        self.ledger.end(self.run, "done")
        self.run, resumed = self.ledger.open_chain()
        assert not resumed
        self.finished = {}

    @invariant()
    def what_is_done_is_known(self):
        known = {step: record.outcome for step in STEPS if (record := self.ledger.done(self.run, step))}
        assert known == self.finished

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.folder.cleanup()


TestCutChains = CutChains.TestCase
TestCutChains.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)


def test_the_ledger_is_write_ahead(tmp_path):
    Ledger(tmp_path / "ledger.sqlite").close()
    assert sqlite3.connect(tmp_path / "ledger.sqlite").execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_last_good_run_of_a_step_is_never_forgotten(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    first, second = ledger.start("chain"), ledger.start("chain")
    for run in (first, second):
        ledger.finish(run, "h5p", Result("ok", [], {"count": run}))
    for _ in range(KEPT_RUNS + 1):
        ledger.start("by hand")
    assert ledger.last("h5p", "ok").run == second
    assert [run.id for run in ledger.runs(KEPT_RUNS + 2)][-1] == second


def test_a_name_that_is_no_text_is_noted_all_the_same(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    run = ledger.start("chain")
    name = os.fsdecode(b"un\xefit.csv")
    ledger.finish(run, "progress", Result("suspect", [f"{name} is empty"], {"rows": {name: 3}}))
    last = ledger.last("progress")
    assert (last.reasons, last.detail) == (["un\\udcefit.csv is empty"], {"rows": {"un\\udcefit.csv": 3}})
