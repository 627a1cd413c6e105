"""Staging: what was looked at is what is kept, whatever the other side does meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from central_school import sha256
from shala_agent.manifest import File, write_line
from shala_central import staging as module
from shala_central.bag import BagRefused
from shala_central.objects import Objects
from shala_central.staging import Staging

NAME = "2031017-mz17"
FILE = File("data/gstudio/db/a", sha256(b"good"), 4, 0, 0o644)


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    root = tmp_path / "archive/.shala/objects"
    root.mkdir(parents=True)
    return Objects(root, ("gstudio/media",))


def staged(tmp_path: Path, objects: Objects, content: bytes = b"good") -> Staging:
    staging = Staging(tmp_path / "staging/data", objects, NAME)
    (staging.folder / "gstudio/db").mkdir(parents=True, exist_ok=True)
    (staging.folder / "gstudio/db/a").write_bytes(content)
    return staging


def kept(objects: Objects) -> bytes:
    place = objects.find(NAME, "gstudio/db/a", FILE.sha256)
    assert place is not None
    return place.read_bytes()


def test_a_file_that_is_sent_again_after_it_was_checked_is_not_the_one_that_is_kept(
    tmp_path, objects, monkeypatch
):
    staging = staged(tmp_path, objects)

    def sent_again(_folder: Path) -> None:
        (staging.folder / "gstudio/db/a").write_bytes(b"evil")

    monkeypatch.setattr(module, "sync_file_system", sent_again)
    staging.take([FILE])
    assert kept(objects) == b"good"


def test_what_an_earlier_run_has_left_of_another_version_does_not_pass_for_the_new_one(tmp_path, objects):
    staged(tmp_path, objects, b"old!")
    staging = Staging(tmp_path / "staging/data", objects, NAME)
    assert [*staging.missing((), [write_line(FILE)])] == [FILE]
    assert not (staging.folder / "gstudio/db/a").exists()


def test_what_a_run_was_cut_while_looking_at_is_not_fetched_again(tmp_path, objects, monkeypatch):
    staging = staged(tmp_path, objects)

    def cut(_folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "sync_file_system", cut)
        with pytest.raises(KeyboardInterrupt):
            staging.take([FILE])
    again = Staging(tmp_path / "staging/data", objects, NAME)
    assert [*again.missing((), [write_line(FILE)])] == []
    assert kept(objects) == b"good"


def test_what_is_wrong_is_named_and_goes(tmp_path, objects):
    staging = staged(tmp_path, objects, b"evil")
    with pytest.raises(BagRefused, match="is not what the manifest says"):
        staging.take([FILE])
    assert not (staging.folder / "gstudio/db/a").exists()
    assert objects.find(NAME, "gstudio/db/a", FILE.sha256) is None
