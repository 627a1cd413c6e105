"""Sketch: what is as it was is not walked, and nothing that changed is missed."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from agent_school import School, csv, rcs, school_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shala_agent import collect as collect_module
from shala_agent import reread, sketch
from shala_agent.acknowledge import acknowledge
from shala_agent.checks import PROGRESS_COLUMNS
from shala_agent.failure import AgentError
from shala_agent.outcome import failed
from shala_agent.sketch import Sketches
from shala_agent.spool import Spool
from shala_agent.walk import walk

REPO = "data/rcs-repo"
DEEP = f"{REPO}/Nodes/a/b/c/x.json,v"
TICK = 0.012  # seconds: two changes in one tick of the clock have one time


class PowerCut(BaseException):
    """The plug is pulled."""


def walked(school: School, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Collect, and return the folders of the school that were walked."""
    roots: set[str] = set()

    def noted(root: Path, *arguments: object):  # type: ignore[no-untyped-def]
        roots.add(str(root.relative_to(school.root)))
        return walk(root, *arguments)  # type: ignore[arg-type]

    time.sleep(TICK)
    with monkeypatch.context() as patch:
        patch.setattr(collect_module, "walk", noted)
        school.collect()
    return roots


def collect_with(
    school: School, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, instead: Callable[..., object]
) -> None:
    """Collect once with another method in the place of one."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, instead)
        school.collect()


def item(collected, name: str):
    return collected.collection.item("gstudio", name)


def in_bag(school: School, path: str) -> Path:
    return school.bag() / path.replace("data/", "data/gstudio/", 1)


@pytest.fixture
def drawn(school: School) -> School:
    """A school that was collected, all of it at rest."""
    school.write(f"{REPO}/Nodes/a/b/c/y.json,v", rcs("[]"))
    (school.root / REPO / "Nodes/empty").mkdir()
    school.collect()
    time.sleep(TICK)
    return school


def test_nothing_that_is_as_it_was_is_walked(drawn: School, monkeypatch):
    assert walked(drawn, monkeypatch) == set()


def test_only_what_has_changed_is_walked(drawn: School, monkeypatch):
    drawn.write("data/nginx-logs/access.log", "GET /new\n")
    assert walked(drawn, monkeypatch) == {"data/nginx-logs"}
    assert walked(drawn, monkeypatch) == set()


def _swapped(school: School) -> None:
    """Another file of the same size and time."""
    file = school.root / DEEP
    seen = file.stat()
    other = file.with_name("other")
    other.write_bytes(file.read_bytes()[::-1])
    os.utime(other, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    other.replace(file)


def _rewritten(school: School) -> None:
    """In place, and its time put back."""
    file = school.root / DEEP
    seen = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"HEAD")
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def _folder_swapped(school: School) -> None:
    """Another folder of the same names and times under the name of this one."""
    folder = (school.root / DEEP).parent
    seen = folder.stat()
    shutil.copytree(folder, folder.with_name("other"))
    (folder.with_name("other") / "x.json,v").write_bytes(rcs("changed"))
    folder.rename(folder.with_name("old"))
    folder.with_name("other").rename(folder)
    shutil.rmtree(folder.with_name("old"))
    os.utime(folder, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def _linked(school: School) -> None:
    """The same folder, by a link."""
    folder = (school.root / DEEP).parent
    folder.rename(school.root / "elsewhere")
    folder.symlink_to(school.root / "elsewhere")


CHANGES: dict[str, Callable[[School], object]] = {
    "a new file": lambda s: s.write(f"{REPO}/Nodes/a/b/c/z.json,v", rcs()),
    "a first file in an empty folder": lambda s: s.write(f"{REPO}/Nodes/empty/z.json,v", rcs()),
    "a new folder": lambda s: s.write(f"{REPO}/Users/z.json,v", rcs()),
    "a file that is gone": lambda s: (s.root / DEEP).unlink(),
    "a folder that is gone": lambda s: shutil.rmtree(s.root / REPO / "Nodes/a/b"),
    "a file that has another name": lambda s: (s.root / DEEP).rename(s.root / REPO / "Nodes/a/b/c/w.json,v"),
    "a longer file": lambda s: s.write(DEEP, rcs("longer")),
    "another file of the same size and time": _swapped,
    "a file that was written in place": _rewritten,
    "another folder with the same names": _folder_swapped,
    "a folder that became a link": _linked,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found(drawn: School, monkeypatch, change):
    CHANGES[change](drawn)
    assert walked(drawn, monkeypatch) == {REPO}
    head = drawn.spool.head()
    assert head is not None
    assert head.sequence == 2


def test_a_file_that_the_mirror_has_lost_is_missed(drawn: School, monkeypatch):
    in_bag(drawn, DEEP).unlink()
    assert walked(drawn, monkeypatch) == {REPO}
    assert in_bag(drawn, DEEP).read_bytes() == rcs()


def test_a_link_to_a_recording_is_no_change_of_it(drawn: School, monkeypatch):
    os.link(drawn.root / "assessments/studentResponseFiles/a.wav", drawn.root / "a-link")
    assert walked(drawn, monkeypatch) == set()


def test_what_is_said_of_an_item_is_said_again(drawn: School, monkeypatch):
    (drawn.root / REPO / "link").symlink_to("elsewhere")
    drawn.collect()
    assert walked(drawn, monkeypatch) == set()
    assert item(drawn.collect(), "rcs-repo").reasons == [
        "'link' is a link or a special file: it was left out"
    ]


def test_another_policy_looks_at_everything_again(drawn: School, monkeypatch):
    (drawn.root / "catalogue.toml").write_text(
        'format = 1\n[items.rcs-repo]\nexclude = ["y.json,v"]\n[items.media]\nlargest_drop = 90\n'
    )
    paths = msgspec.structs.replace(drawn.config.paths, catalogue=str(drawn.root / "catalogue.toml"))
    drawn.config = msgspec.structs.replace(drawn.config, paths=paths)
    assert walked(drawn, monkeypatch) == {REPO}


def test_another_version_of_the_agent_looks_at_everything_again(drawn: School, monkeypatch):
    monkeypatch.setattr(collect_module, "__version__", "99")
    assert REPO in walked(drawn, monkeypatch)
    assert walked(drawn, monkeypatch) == set()


def test_an_item_of_a_step_that_failed_is_looked_at(drawn: School, monkeypatch):
    with closing(drawn.ledger()) as ledger:
        ledger.finish(ledger.start("by hand"), "mongo-dump", failed("MongoDB: it does not answer"))
    assert walked(drawn, monkeypatch) == {"data/.shala/db"}
    assert item(drawn.collect(), "db").outcome == "failed"


def test_an_item_of_which_a_file_is_due_is_walked(drawn: School, monkeypatch):
    later = reread.time.time() + 365 * 86_400
    monkeypatch.setattr("shala_agent.reread.time", type("Clock", (), {"time": lambda: later}))
    monkeypatch.setattr("shala_agent.seen.time", reread.time)
    assert REPO in walked(drawn, monkeypatch)
    assert REPO in walked(drawn, monkeypatch)  # what was read anew is drawn
    assert walked(drawn, monkeypatch) == set()


def test_an_item_of_which_a_file_is_due_rests_when_the_run_has_read_enough(drawn: School, monkeypatch):
    later = reread.time.time() + 365 * 86_400
    monkeypatch.setattr("shala_agent.reread.time", type("Clock", (), {"time": lambda: later}))
    monkeypatch.setattr(reread.Reread, "is_due", lambda *_: False)
    assert walked(drawn, monkeypatch) == set()


def test_a_folder_that_may_change_in_the_same_tick_is_not_believed(drawn: School, monkeypatch):
    monkeypatch.setattr(sketch, "RACY_NS", 60_000_000_000)
    drawn.write(f"{REPO}/Nodes/a/b/c/z.json,v", rcs())
    assert walked(drawn, monkeypatch) == {REPO}
    assert walked(drawn, monkeypatch) == {REPO}


def test_what_was_drawn_and_not_sealed_does_not_count(drawn: School, monkeypatch):
    drawn.write(DEEP, rcs("later"))

    def cut(self, seen, *arguments):
        seen.commit()
        raise PowerCut

    with pytest.raises(PowerCut):
        collect_with(drawn, monkeypatch, Spool, "seal", cut)
    assert walked(drawn, monkeypatch) == {REPO}
    assert in_bag(drawn, DEEP).read_bytes() == rcs("later")


def test_what_was_sealed_and_not_settled_is_walked_once_more(drawn: School, monkeypatch):
    drawn.write(DEEP, rcs("later"))

    def cut(self):
        raise PowerCut

    with pytest.raises(PowerCut):
        collect_with(drawn, monkeypatch, Sketches, "settle", cut)
    assert walked(drawn, monkeypatch) == {REPO}
    assert walked(drawn, monkeypatch) == set()
    assert in_bag(drawn, DEEP).read_bytes() == rcs("later")


def test_another_collection_in_the_mirror_ends_all_sketches(drawn: School, monkeypatch):
    with closing(sqlite3.connect(drawn.root / "state/seen.sqlite")) as db, db:
        db.execute("UPDATE base SET sequence = 7")
    assert REPO in walked(drawn, monkeypatch)


def test_a_sketch_of_another_form_is_drawn_anew(drawn: School, monkeypatch):
    with closing(sqlite3.connect(drawn.root / "state/seen.sqlite")) as db, db:
        db.execute("""UPDATE sketch SET header = '{"parts": 7}'""")
    assert REPO in walked(drawn, monkeypatch)
    assert walked(drawn, monkeypatch) == set()


def test_a_folder_whose_name_is_no_text_is_walked_each_time(drawn: School, monkeypatch):
    os.mkdir(os.fsencode(drawn.root / REPO) + b"/caf\xe9")  # noqa: PTH102
    assert walked(drawn, monkeypatch) == {REPO}
    assert walked(drawn, monkeypatch) == {REPO}


def test_a_folder_with_many_files_is_compared_in_pieces(drawn: School, monkeypatch):
    monkeypatch.setattr(sketch, "LONGEST", 3)
    monkeypatch.setattr(sketch, "PAGE", 2)
    for number in range(10):
        drawn.write(f"{REPO}/Nodes/n/{number}.json,v", rcs())
    drawn.collect()
    assert walked(drawn, monkeypatch) == set()
    (drawn.root / REPO / "Nodes/n/8.json,v").write_bytes(rcs("x"))
    assert walked(drawn, monkeypatch) == {REPO}
    assert in_bag(drawn, f"{REPO}/Nodes/n/8.json,v").read_bytes() == rcs("x")


def test_what_the_mirror_loses_while_a_run_goes_on_is_missed_by_the_next(drawn: School, monkeypatch):
    drawn.write(f"{REPO}/Nodes/a/b/c/z.json,v", rcs("new"))
    real = Sketches.settle

    def lose(self):
        in_bag(drawn, DEEP).unlink()
        real(self)

    collect_with(drawn, monkeypatch, Sketches, "settle", lose)
    assert walked(drawn, monkeypatch) == {REPO}
    assert in_bag(drawn, DEEP).read_bytes() == rcs()


def test_a_file_that_is_left_for_later_is_taken_later(drawn: School, monkeypatch):
    """Its content is known from a run that had no room to seal it."""
    exported = "data/gstudio-exported-users-analytics-csvs/2031017-mz17-eb-unit0-20180814-17h33m.csv"
    new = csv([*PROGRESS_COLUMNS, "Quiz [5a]"], rows=9)
    five_minutes_ago = time.time() - 300
    os.utime(drawn.write(exported, new), (five_minutes_ago, five_minutes_ago))
    with pytest.raises(AgentError, match="free some space"):
        collect_with(drawn, monkeypatch, Spool, "write_manifest", _no_room)
    up = float(Path("/proc/uptime").read_text().split()[0])
    since = int((up - 600) * os.sysconf("SC_CLK_TCK"))
    stat = f"77 (python) S {'0 ' * 18}{since} 0"
    drawn.container.processes = f"{up}|{stat}|python manage.py export_users_analytics "
    assert "still being written" in str(
        item(drawn.collect(), "gstudio-exported-users-analytics-csvs").reasons
    )
    drawn.container.processes = ""
    drawn.collect()
    assert in_bag(drawn, exported).read_bytes() == new


def _no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_item_that_is_not_ok_is_not_drawn_in_vain(drawn: School, monkeypatch):
    drawn.write(f"{REPO}/Nodes/bad.json", b"{")
    with closing(drawn.ledger()) as ledger:
        ledger.finish(ledger.start("by hand"), "mongo-dump", failed("MongoDB: it does not answer"))
    drawn.collect()
    with closing(sqlite3.connect(drawn.root / "state/seen.sqlite")) as db:
        items = db.execute("SELECT DISTINCT item FROM stretch").fetchall()
    assert not {"data/gstudio/rcs-repo", "data/gstudio/db"} & {item for (item,) in items}
    drawn_again: list[object] = []
    monkeypatch.setattr(sketch, "PAGE", 1)
    monkeypatch.setattr(Sketches, "write", lambda _self, stretch: drawn_again.append(stretch))
    drawn.collect()
    assert drawn_again == []


def test_an_item_that_is_well_again_is_drawn(drawn: School, monkeypatch):
    bad = drawn.write(f"{REPO}/Nodes/bad.json", b"{")
    drawn.collect()
    bad.write_bytes(b"{}")
    for _ in range(2):  # it is ok, and it was ok before
        assert walked(drawn, monkeypatch) == {REPO}
    assert walked(drawn, monkeypatch) == set()


PLACES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)
DEEDS = st.one_of(
    st.tuples(st.just("write"), PLACES, st.binary(max_size=3)),
    st.tuples(st.just("remove"), PLACES),
    st.tuples(st.just("rename"), PLACES, PLACES),
    st.tuples(st.just("folder"), PLACES),
    st.tuples(st.just("link"), PLACES),
    st.tuples(st.just("lose"), PLACES),
)


def done(deed: tuple[str, ...], folder: Path, mirror: Path) -> None:
    """Do something to the tree, or have the mirror lose something; what cannot be done is not."""
    what, place = deed[0], folder / deed[1]
    try:
        if what == "write":
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(deed[2])  # type: ignore[arg-type]
        elif what == "remove":
            shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
        elif what == "rename":
            place.rename(folder / deed[2])
        elif what == "folder":
            place.mkdir(parents=True)
        elif what == "link":
            place.symlink_to("nowhere/to/be/written")
        else:
            (mirror / deed[1]).unlink()
    except OSError:
        pass


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(days=st.lists(st.lists(DEEDS, max_size=4), min_size=2, max_size=5))
def test_whatever_happens_to_a_tree_the_mirror_has_it(tmp_path_factory, monkeypatch, days):
    for module in ("collect", "sketch"):
        monkeypatch.setattr(f"shala_agent.{module}.RACY_NS", -1)
    school = school_in(tmp_path_factory.mktemp("school"))
    folder, mirror = school.root / REPO, in_bag(school, REPO)
    for deeds in days:
        for deed in deeds:
            done(deed, folder, mirror)
        time.sleep(TICK)
        head = school.collect().head
        assert head is not None
        with closing(school.ledger()) as ledger:
            acknowledge(school.config, ledger, head.sequence, head.manifest_sha256)
        there = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if is_plain(p)}
        if there:  # an item that was emptied keeps what it had
            assert {p.relative_to(mirror): p.read_bytes() for p in mirror.rglob("*") if p.is_file()} == there


def is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
