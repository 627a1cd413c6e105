"""Write-ahead log: several connections that open one new file."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
import time

from shala_agent import write_ahead


def test_a_file_is_switched_by_one_connection_at_a_time(tmp_path):
    path = tmp_path / "new.sqlite"

    def switch() -> None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            write_ahead.switch(db, path)
            db.execute("CREATE TABLE done (it)")

    other = threading.Thread(target=switch)
    with write_ahead.in_turn(tmp_path):
        other.start()
        other.join(0.5)
        waits, size = other.is_alive(), path.stat().st_size
    other.join(30)
    with contextlib.closing(sqlite3.connect(path)) as db:
        mode = db.execute("PRAGMA journal_mode").fetchone()
    assert (waits, size, mode) == (True, 0, ("wal",))


def test_whoever_keeps_the_folder_holds_nobody_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(write_ahead, "SECONDS", 0.2)
    path = tmp_path / "new.sqlite"
    with write_ahead.in_turn(tmp_path), contextlib.closing(sqlite3.connect(path)) as db:
        write_ahead.switch(db, path)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_switched_waits_for_no_turn(tmp_path, monkeypatch):
    path = tmp_path / "there.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        write_ahead.switch(db, path)
        db.execute("CREATE TABLE done (it)")
    monkeypatch.setattr(write_ahead, "SECONDS", 60.0)
    began = time.monotonic()
    with write_ahead.in_turn(tmp_path), contextlib.closing(sqlite3.connect(path)) as db:
        write_ahead.switch(db, path)
    assert time.monotonic() - began < 10


def test_processes_that_open_a_new_file_together_all_get_in(tmp_path):
    code = (
        "import sqlite3, sys; from pathlib import Path; from shala_agent import write_ahead\n"
        "sys.stdin.readline()\n"
        "for number in range(50):\n"
        "    path = Path(sys.argv[1]) / f'{number}.sqlite'\n"
        "    db = sqlite3.connect(path, timeout=30, isolation_level=None)\n"
        "    write_ahead.switch(db, path)\n"
        "    db.execute('CREATE TABLE IF NOT EXISTS done (it)')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    opened = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    said = [one.communicate(b"go\n", 120)[1] for one in opened]
    assert said == [b""] * 4
