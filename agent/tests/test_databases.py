"""Databases: the commands that put a dump into its places, run by a real shell on this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from agent_school import QuietContainer
from shala_agent.container import Execution
from shala_agent.databases import _put_beside


class Here(QuietContainer):
    """Runs commands on this machine."""

    def run(self, command: Sequence[str], **_: Any) -> Execution:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        return Execution(ran.returncode, ran.stdout, ran.stderr, False, 0.0)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    dump = tmp_path / ".shala/postgres-dump/pg_dump_all.sql"
    dump.parent.mkdir(parents=True)
    dump.write_text("the last good dump\n")
    return dump


def put(own: Path, shared: Path) -> list[str]:
    return _put_beside(Here("here", own.parent), str(own), str(shared))


@pytest.mark.parametrize("before", ["nothing", "another dump", "a link to ours"])
def test_who_writes_over_the_platforms_dump_leaves_ours_as_it_was(own: Path, tmp_path: Path, before: str):
    shared = tmp_path / "postgres-dump/pg_dump_all.sql"
    if before != "nothing":
        shared.parent.mkdir()
    if before == "another dump":
        shared.write_text("older\n")
    if before == "a link to ours":
        os.link(own, shared)
    assert put(own, shared) == []
    assert shared.read_text() == "the last good dump\n"
    shared.write_text("")
    assert own.read_text() == "the last good dump\n"
    assert [one.name for one in shared.parent.iterdir()] == ["pg_dump_all.sql"]


def test_the_platforms_dump_is_closed_to_others_and_written_only_when_it_is_another(
    own: Path, tmp_path: Path
):
    shared = tmp_path / "postgres-dump/pg_dump_all.sql"
    put(own, shared)
    assert shared.stat().st_mode & 0o777 == 0o600
    before = shared.stat()
    put(own, shared)
    after = shared.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
