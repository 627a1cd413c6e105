"""Priority: the lesson comes first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shala_agent import container

HERE = {**os.environ, "LC_ALL": "C"}


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, env=HERE).stdout.strip()


@pytest.mark.skipif(shutil.which("ionice") is None, reason="needs ionice, of util-linux")
def test_the_agent_by_hand_reads_and_writes_only_when_nobody_else_does():
    code = (
        "import os, subprocess\n"
        "from shala_agent.priority import yield_to_others\n"
        "yield_to_others()\n"
        "print(os.getpriority(os.PRIO_PROCESS, 0), flush=True)\n"
        "subprocess.run(['ionice', '-p', str(os.getpid())])\n"
    )
    assert said(sys.executable, "-c", code).split() == ["19", "idle"]


def test_what_runs_in_the_container_is_behind_the_platform_and_still_found_to_be_ended(tmp_path: Path):
    pid_file = tmp_path / "pid"
    command = ["sh", "-c", container._WRAPPER, str(pid_file), "5", "20", "sh", "-c", "nice; sleep 10"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=HERE) as process:
        assert process.stdout.readline().strip() == "19"
        number = pid_file.read_text().strip()
        # By this name the next run ends what a killed agent left.
        assert Path(f"/proc/{number}/comm").read_text().strip() == "timeout"
        os.kill(int(number), 15)
        began = time.monotonic()
        assert process.wait() != 0
        assert time.monotonic() - began < 5
    assert not pid_file.exists()


@pytest.mark.parametrize("code", [0, 7])
def test_the_exit_code_of_the_command_comes_through(tmp_path: Path, code: int):
    command = ["sh", "-c", container._WRAPPER, str(tmp_path / "pid"), "5", "20", "sh", "-c", f"exit {code}"]
    assert subprocess.run(command, check=False, env=HERE).returncode == code
