"""Clones: where the file system lets files share their blocks, a copy takes no room until one is written to."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_school import School, bson, school_in

MAKERS = [maker for maker in ("mkfs.xfs", "mkfs.btrfs") if shutil.which(maker)]
DUMP = "db/gstudio-mongodb/Nodes.bson"


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[School]:
    """A school on a small file system whose files can share blocks."""
    if not MAKERS or os.geteuid():
        pytest.skip("needs mkfs.xfs or mkfs.btrfs, and root")
    for module in ("collect", "sketch"):
        monkeypatch.setattr(f"shala_agent.{module}.RACY_NS", -1)
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run([MAKERS[0], "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=False).returncode:
        pytest.skip("no loop device can be mounted here")
    try:
        yield school_in(mount)
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def used(school: School) -> int:
    os.sync()
    seen = os.statvfs(school.root)
    return (seen.f_blocks - seen.f_bfree) * seen.f_frsize


def test_a_dump_takes_its_room_once_and_its_copy_is_its_own(shared: School):
    content = bson(2_000_000)
    dump = shared.write(f"data/.shala/{DUMP}", content)
    before = used(shared)
    shared.collect()
    assert used(shared) - before < len(content) / 2
    with dump.open("r+b") as file:
        file.write(b"written to in place")
    assert (shared.bag() / f"data/gstudio/{DUMP}").read_bytes() == content
    assert list(shared.spool.damaged()) == []
