"""The generator: one seed, one tree; schools share their course; a school day changes the right things."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import bson
import pytest

IMAGE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(IMAGE))

from standin import day, documents, exports, faults, revisions, sql, tree  # noqa: E402
from standin.people import factory_users  # noqa: E402
from standin.school import School, Sizes, read_settings  # noqa: E402

SMALL = Sizes.of(0.01)


def make(root: Path, server_id: str = "mz17", sizes: Sizes = SMALL) -> tree.Tree:
    made = tree.Tree(
        root, root / "assessment-media", School(server_id, "2031017", f"School {server_id}"), sizes
    )
    tree.generate(made)
    return made


def picture(root: Path) -> dict[str, tuple[int, str]]:
    """Everything below root: times and digests of files, times of folders."""
    return {
        str(path.relative_to(root)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture(scope="module")
def mz17(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("schools") / "mz17").root


def test_the_same_seed_gives_the_same_bytes_and_times(mz17: Path, tmp_path: Path) -> None:
    assert picture(mz17) == picture(make(tmp_path / "again").root)


def test_days_are_reproducible_too(tmp_path: Path) -> None:
    trees = [make(tmp_path / name) for name in "ab"]
    for one in trees:
        day.next_day(one)
        day.next_day(one)
    assert picture(trees[0].root) == picture(trees[1].root)


def test_a_generation_cut_in_the_middle_is_finished_by_the_next(
    mz17: Path, tmp_path: Path, monkeypatch
) -> None:
    def power_off(_: tree.Tree) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(tree.PARTS, "gstudio_tools_logs", power_off)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut")
    monkeypatch.undo()
    assert picture(make(tmp_path / "cut").root) == picture(mz17)


def test_data_that_are_there_already_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "media/a").mkdir(parents=True)
    (tmp_path / "media/a/restored.png").write_bytes(b"restored")
    made = make(tmp_path)
    assert [path.name for path in (made.root / "media").rglob("*.*")] == ["restored.png"]
    before = picture(tmp_path)
    assert tree.generate(made) is False
    assert picture(tmp_path) == before


def test_schools_share_more_than_99_percent_of_their_media_bytes(mz17: Path, tmp_path: Path) -> None:
    def media(root: Path) -> dict[str, int]:
        return {
            str(p.relative_to(root)): p.stat().st_size for p in (root / "media").rglob("*") if p.is_file()
        }

    here, there = media(mz17), media(make(tmp_path / "rj1", "rj1").root)
    common = sum(here[path] for path in here.keys() & there.keys())
    assert here.keys() != there.keys()
    assert common / sum(here.values()) > 0.99
    assert common / sum(there.values()) > 0.99


def test_media_paths_are_the_sha256_of_their_content(mz17: Path) -> None:
    hashed = [p for p in (mz17 / "media").rglob("*") if p.is_file() and "help_videos" not in p.parts]
    assert len(hashed) >= SMALL.media_files
    for path in hashed:
        digits = "".join(path.relative_to(mz17 / "media").with_suffix("").parts)
        assert digits == hashlib.sha256(path.read_bytes()).hexdigest()
        assert len(path.relative_to(mz17 / "media").parts) == 4


def test_rcs_paths_follow_the_id_and_archives_hold_the_text(mz17: Path) -> None:
    archives = list((mz17 / "rcs-repo").rglob("*,v"))
    assert len(archives) == SMALL.nodes
    for archive in archives:
        node = archive.with_name(archive.name[:-2])
        identifier = json.loads(node.read_text())["_id"]
        folders = (identifier[-1], identifier[-2], identifier[-4])
        assert archive.parent.relative_to(mz17 / "rcs-repo/Nodes").parts == folders
        assert node.read_text().replace("@", "@@") in archive.read_text()


@pytest.mark.skipif(
    shutil.which("ci") is None, reason="rcs is not installed here (smoke.sh does this in the image)"
)
def test_archives_are_what_ci_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(IMAGE / "tests/compare_with_ci.py"), str(tmp_path)], check=True)


def test_a_wrong_predecessor_is_refused() -> None:
    archive = revisions.first_revision("one\n", 0, "log", "node")
    with pytest.raises(ValueError, match="another text"):
        revisions.next_revision(archive, "two\n", "three\n", 1, "log")


def test_progress_csvs_are_whole_and_rectangular(mz17: Path) -> None:
    files = sorted((mz17 / "gstudio-exported-users-analytics-csvs").iterdir())
    assert len(files) == SMALL.runs * (SMALL.units - 1)  # nobody has opened the last unit
    for file in files:
        assert re.fullmatch(r"2031017-mz17-[a-z0-9-]+-\d{8}-\d\dh\d\dm\.csv", file.name)
        content = file.read_bytes()
        assert content.endswith(b"\r\n")
        rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
        assert tuple(rows[0][:49]) == exports.PROGRESS_COLUMNS
        assert len(rows[0]) == 49 + 9
        assert re.fullmatch(r".* \[[0-9a-f]{24}\]", rows[0][49])
        assert {len(row) for row in rows} == {len(rows[0])}
        assert rows[1][0] == "mz17"


def test_activity_timestamps_have_their_columns_and_some_are_headers_only(mz17: Path) -> None:
    files = list((mz17 / "activity-timestamp-csvs").iterdir())
    for file in files:
        rows = list(csv.reader(io.StringIO(file.read_bytes().decode(), newline="")))
        assert tuple(rows[0]) == exports.TIMESTAMP_COLUMNS
        assert {len(row) for row in rows} == {9}
    assert len(exports.table([exports.TIMESTAMP_COLUMNS])) == 86  # bytes, facts 2.1


def test_every_server_has_the_ten_shared_users_and_its_own(mz17: Path) -> None:
    dump = (mz17 / "postgres-dump/pg_dump_all.sql").read_text()
    rows = re.search(r"^COPY public\.auth_user \((.*?)\) FROM stdin;\n(.*?)^\\\.$", dump, re.M | re.S)
    assert rows is not None
    assert tuple(rows[1].split(", ")) == sql.COLUMNS
    names = [line.split("\t")[4] for line in rows[2].splitlines()]
    assert names[:10] == [user.username for user in factory_users()]
    assert "green-apple-sp100" in names
    assert all(name.endswith("-mz17") for name in names[10:])
    assert len(names) == len(set(names)) == 10 + SMALL.users
    assert "-- PostgreSQL database cluster dump complete" in dump[-200:]


def test_a_server_still_called_sp100_has_no_user_twice(tmp_path: Path) -> None:
    names = [user.username for user in make(tmp_path, "sp100").users()]
    assert len(names) == len(set(names))


def test_the_qbank_archive_holds_real_bson(mz17: Path) -> None:
    with tarfile.open(mz17 / "qbank/qbank_data.tar.gz") as tar:
        names = tar.getnames()
        taken = tar.extractfile("mongo-dump/assessment/AssessmentTaken.bson")
        assert taken is not None
        assert len(bson.decode_all(taken.read())) > 10
    assert {name.split("/")[0] for name in names} == {"mongo-dump", "student-activities"}
    assert {name.split("/")[1] for name in names if name.count("/") == 2} == set(documents.QBANK)


def test_a_school_day_changes_what_a_school_day_changes(tmp_path: Path) -> None:
    made = make(tmp_path)
    before = picture(tmp_path)
    day.next_day(made)
    after = picture(tmp_path)
    changed = {path for path in after if before.get(path) != after[path] and (tmp_path / path).is_file()}
    assert not before.keys() - after.keys()
    new = changed - before.keys()
    for folder in (
        "media",
        "rcs-repo",
        "assessment-media/studentResponseFiles",
        "db/journal",
        "system-heartbeat",
    ):
        assert any(path.startswith(folder + "/") for path in new), folder
    assert any(path.startswith("gstudio-exported-users-analytics-csvs/") for path in new)
    rewritten = changed - new
    for start in (
        "rcs-repo/",
        "gstudio_tools_logs/",
        "postgres-dump/",
        "db/collection",
        "qbank/",
        "nginx-logs/",
    ):
        assert any(path.startswith(start) for path in rewritten), start
    assert not any(path.startswith("media/") for path in rewritten)
    assert len(changed) < len(after) / 2


def test_documents_only_ever_grow(mz17: Path) -> None:
    school = School("mz17", "2031017", "School mz17")
    first, second = (documents.gstudio(school, SMALL, [], when) for when in (0, 1))
    for name in ("Benchmarks", "Nodes"):
        assert {one["_id"] for one in first[name]} < {one["_id"] for one in second[name]}


def test_settings_with_a_quote_in_the_name_silently_give_nothing(tmp_path: Path) -> None:
    settings = tmp_path / "server_settings.py"
    settings.write_text("GSTUDIO_INSTITUTE_ID ='mz86'\nGSTUDIO_INSTITUTE_NAME ='St.John's HSS'\n")
    assert read_settings(settings) == School("", "", "")


def test_a_full_disk_leaves_a_cut_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(faults, "FOLDER", tmp_path)
    (tmp_path / "disk-full").write_text("100")
    with pytest.raises(OSError, match="No space left"):
        faults.write_in_place(tmp_path / "out", b"x" * 500)
    assert (tmp_path / "out").stat().st_size == 100


def test_it_runs_outside_the_container(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "standin"]
    for arguments in (
        ["generate", "--root", str(tmp_path / "d"), "--seed", "ct3", "--scale", "0.01"],
        ["next-day", "2", "--root", str(tmp_path / "d")],
        ["bson", "--root", str(tmp_path / "d"), "--out", str(tmp_path / "dump")],
    ):
        subprocess.run([*command, *arguments], check=True, cwd=IMAGE, capture_output=True)
    assert tree.read_state(tmp_path / "d")["day"] == 2
    assert bson.decode_all((tmp_path / "dump/gstudio-mongodb/Benchmarks.bson").read_bytes())
