"""Durable files: whole, or as they were."""

from __future__ import annotations

import fcntl
from concurrent.futures import ThreadPoolExecutor

import pytest
from shala_agent import durable


def test_two_who_write_one_file_at_once_each_write_it_whole(tmp_path):
    path = tmp_path / "latest.json"
    contents = [letter * 300_000 for letter in (b"a", b"b", b"c", b"d")]

    def write(content: bytes) -> bytes:
        durable.write(path, content)
        return path.read_bytes()

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(write, contents * 10)) <= set(contents)
    assert [one.name for one in tmp_path.iterdir()] == ["latest.json"]


@pytest.mark.parametrize("name", ["none/file", "file/file", "folder"])
def test_what_cannot_be_written_is_named_as_it_was_given_and_leaves_nothing(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=f"{name}'$"):
        durable.write(tmp_path / name, b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_what_a_killed_writer_has_left_goes_with_the_next_write_and_nobody_elses(tmp_path):
    left, others = tmp_path / ".shala-latest.json.0123abcd.part", tmp_path / ".shala-other.json.0123abcd.part"
    for path in (left, others):
        path.write_bytes(b"half")
    durable.write(tmp_path / "latest.json", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [others.name, "latest.json"]


def test_what_is_just_being_written_is_not_taken_away(tmp_path):
    part = tmp_path / ".shala-latest.json.0123abcd.part"
    with part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        durable.write(tmp_path / "latest.json", b"whole")
        assert part.exists()
