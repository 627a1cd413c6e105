from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shala_agent.manifest import sort_key
from shala_agent.walk import walk

NAMES = st.text(
    st.characters(codec="utf-8", min_codepoint=32, exclude_characters="/\x7f"), min_size=1, max_size=4
).filter(lambda name: name not in (".", "..") and not name.startswith(".shala-"))


def paths(root) -> list[str]:
    notes: list[str] = []
    return [
        entry.relative for entry in walk(root, notes, lambda below, error: pytest.fail(f"{below}: {error}"))
    ]


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@settings(max_examples=60, deadline=None)
@given(st.sets(st.lists(NAMES, min_size=1, max_size=4).map("/".join), max_size=15))
def test_a_walk_is_in_the_order_of_manifests(tmp_path_factory, wanted):
    root = tmp_path_factory.mktemp("tree")
    written = []
    for path in sorted(wanted):
        file = root / path
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
        except OSError:
            continue  # a file and a folder of one name
        written.append(path)
    assert paths(root) == sorted(written, key=sort_key)


def test_names_around_the_separator_are_in_order(tmp_path):
    for name in ("a/z", "a.b", "a b", "a-b", "a!", "\u00e4", "a\u0304", "A", "aa/b", "\ufb01", "\U0001f600"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = paths(tmp_path)
    assert found == sorted(found, key=sort_key)
    assert found.index("a/z") < found.index("a b") < found.index("a-b") < found.index("a.b")


def test_a_walk_that_is_broken_off_leaves_no_folder_open(tmp_path):
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/file").write_bytes(b"")
    before = open_files()
    walking = walk(tmp_path, [], lambda *_: None)
    next(walking)
    assert open_files() == before + 4
    walking.close()
    assert open_files() == before


def test_what_cannot_be_read_is_heard_of_in_its_place(tmp_path, monkeypatch):
    for name in ("a/x", "b/x", "c/x"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    broken = (tmp_path / "b").stat().st_ino
    scandir = os.scandir

    def failing(folder):
        if os.fstat(folder).st_ino == broken:
            raise OSError(5, "Input/output error")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    heard: list[str] = []
    for entry in walk(tmp_path, [], lambda below, _error: heard.append(below)):
        heard.append(entry.relative)
    assert heard == ["a/x", "b/", "c/x"]
