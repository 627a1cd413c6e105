"""Journal: what the agent does can be asked for by its run."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from agent_school import School


def ran(school: School, *, by_systemd: bool) -> tuple[str, str, int]:
    """Run the agent with its streams in files, as systemd would have them in its socket."""
    out, err = school.root / "out", school.root / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        seen = os.fstat(stderr.fileno())
        stream = {"JOURNAL_STREAM": f"{seen.st_dev}:{seen.st_ino}"} if by_systemd else {}
        command = [sys.executable, "-m", "shala_agent.cli", "--config", str(school.config_path)]
        subprocess.run(
            [*command, "collect", "--without-dumps"],
            check=False,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **stream},
        )
    return out.read_text(), err.read_text(), school.ledger().runs(1)[0].id


def test_each_line_in_the_journal_names_its_run_and_how_grave_it_is(school: School):
    _, err, run = ran(school, by_systemd=True)
    lines = err.splitlines()
    assert any(line.startswith(f"<4>run {run}: collect: suspect") for line in lines)
    assert all(re.match(f"<[346]>run {run}: ", line) for line in lines)


def test_for_a_person_the_lines_are_plain(school: School):
    _, err, _ = ran(school, by_systemd=False)
    assert any(line.startswith("collect: suspect") for line in err.splitlines())
    assert "<4>" not in err
