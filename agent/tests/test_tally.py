"""The tally of the fault suite: what counts as injected, what a whole run must have, and what becomes of the page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from injected import (
    BY_THE_FLEET,
    FAULTS,
    LEAST_RANDOM_KILLS,
    OF_THE_FLEET,
    RANDOM_KILLS,
    SUITE,
    TRIES,
    Tally,
)

LAB = Path(__file__).resolve().parents[2] / "lab"
PAGE = "# What the agent survives\n\nBefore | it.\n\n{}\n\nAfter it.\n"


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reliability_docs", LAB / "reliability_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page(tmp_path: Path, docs: ModuleType) -> Path:
    """A page with a table of one row, that of the fleet."""
    cut = FAULTS["power-cut"]
    row = f"| {cut.group} | {cut.what} | 7 | {cut.how} | a full collection at boot 4: 7 | 0 |"
    head = "| what is hit | fault | injected | by | seen afterwards | lost |\n|---|---|---|---|---|---|"
    path = tmp_path / "reliability.md"
    path.write_text(PAGE.format(f"{docs.BEGIN}\n{head}\n{row}\n{docs.END}"))
    return path


@pytest.fixture
def tally() -> Tally:
    """What a whole run counts: of each row somewhat more than it must."""
    made = Tally()
    for fault, row in FAULTS.items():
        if fault not in OF_THE_FLEET:
            hit(made, fault, row.least + 60 * (fault in RANDOM_KILLS))
    return made


def hit(tally: Tally, fault: str, times: int = 1) -> None:
    for _ in range(times):
        with tally.injected(fault) as injection:
            injection.hit, injection.saw = True, "the last one stood"


def miss(tally: Tally, fault: str, times: int = 1) -> None:
    for _ in range(times):
        with tally.injected(fault) as injection:
            injection.saw = "the last one stood"


def without(tally: Tally, *faults: str) -> Tally:
    for fault in faults:
        del tally.seen[fault]
    return tally


# -- what counts -------------------------------------------------------------------------------------------


def test_a_fault_that_missed_is_not_injected():
    tally = Tally()
    hit(tally, "kill-instant", 2)
    miss(tally, "kill-instant", 3)
    assert tally.hits("kill-instant") == 2
    assert tally.seen["kill-instant"] == {"the last one stood": 2}
    assert tally.missed["kill-instant"] == 3


def test_a_test_that_fails_is_a_loss():
    tally = Tally()
    with pytest.raises(FileNotFoundError):
        with tally.injected("kill-collect") as injection:
            injection.hit, injection.saw = True, Path("/nowhere/HEAD").read_text()
    assert tally.lost["kill-collect"] == 1


def test_a_fault_that_hit_and_after_which_nobody_looked_is_a_loss():
    tally = Tally()
    with pytest.raises(AssertionError, match="what was seen"):
        with tally.injected("inodes") as injection:
            injection.hit = True
    assert tally.lost["inodes"] == 1


def test_what_missed_is_tried_again():
    tally = Tally()
    for number in tally.until_it_hits("disk-full", 3):
        hit(tally, "disk-full") if number % 2 else miss(tally, "disk-full")
    assert (tally.hits("disk-full"), tally.missed["disk-full"]) == (3, 3)


def test_what_never_hits_is_not_tried_for_ever():
    tally = Tally()
    for _ in tally.until_it_hits("disk-full", 4):
        miss(tally, "disk-full")
    assert (tally.hits("disk-full"), tally.missed["disk-full"]) == (0, 4 * TRIES)


def test_hits_of_another_test_are_not_taken_for_ones_own():
    tally = Tally()
    for _ in range(2):
        for _ in tally.until_it_hits("kill-restore-again", 5):
            hit(tally, "kill-restore-again")
    assert tally.hits("kill-restore-again") == 10


# -- a whole run -------------------------------------------------------------------------------------------


def test_a_whole_run_has_no_problems(tally: Tally):
    assert tally.never_injected() == []
    assert tally.problems() == []


def test_a_row_below_its_minimum_is_named_with_its_figures(tally: Tally):
    least = FAULTS["kill-collect"].least
    hit(without(tally, "kill-collect"), "kill-collect", least - 1)
    miss(tally, "kill-collect", 5)
    assert tally.problems() == [
        f"kill-collect: injected {least - 1} of at least {least} times, 5 more missed"
    ]


def test_too_few_random_kills_together_are_named_with_their_figures(tally: Tally):
    for fault in RANDOM_KILLS:
        hit(without(tally, fault), fault, FAULTS[fault].least)
    [problem] = tally.problems()
    together = sum(FAULTS[fault].least for fault in RANDOM_KILLS)
    assert problem.startswith(f"random kills: {together} of at least {LEAST_RANDOM_KILLS} (kill-first 20, ")


def test_a_loss_is_named(tally: Tally):
    with pytest.raises(AssertionError):
        with tally.injected("inodes"):
            raise AssertionError
    assert tally.problems() == ["inodes: 1 of them lost something"]


# -- the page ----------------------------------------------------------------------------------------------


def test_the_table_is_written_and_the_rest_of_the_page_and_the_fleets_row_stay(
    docs: ModuleType, page: Path, tally: Tally, tmp_path: Path
):
    one, other = Tally(), without(tally, "inodes")
    hit(one, "inodes", 9)
    one.write(tmp_path / SUITE / "1.json")
    other.write(tmp_path / SUITE / "2.json")
    before = page.read_text()
    assert docs.main([], page, tmp_path) == 0
    after = page.read_text()
    assert after.partition(docs.BEGIN)[0] == before.partition(docs.BEGIN)[0]
    assert after.partition(docs.END)[2] == before.partition(docs.END)[2]
    [row] = [line for line in before.splitlines() if "a full collection at boot 4: 7" in line]
    assert row in after.splitlines()
    assert (
        "| no file more can be made, while collecting | 9 | a small tmpfs | the last one stood: 9 | 0 |"
        in after
    )
    assert f"| **all** |  | **{sum(map(tally.hits, FAULTS)) + 9 + 7}** |  |  | **0** |" in after
    assert docs.main(["--check"], page, tmp_path) == 0


def test_what_the_fleet_has_counted_takes_the_place_of_its_row(
    docs: ModuleType, page: Path, tally: Tally, tmp_path: Path
):
    fleet = Tally()
    hit(fleet, "power-cut", 5)
    fleet.write(tmp_path / BY_THE_FLEET)
    tally.write(tmp_path / SUITE / "1.json")
    assert docs.main([], page, tmp_path) == 0
    row = FAULTS["power-cut"]
    assert f"| {row.what} | 5 | {row.how} | the last one stood: 5 | 0 |" in page.read_text()


@pytest.mark.parametrize("mode", [[], ["--counted"]])
def test_a_table_of_a_part_of_the_suite_is_refused_in_one_line(
    docs: ModuleType, page: Path, tally: Tally, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode
):
    miss(without(tally, "kill-first", "mongod-late"), "kill-first")
    tally.write(tmp_path / SUITE / "1.json")
    before = page.read_bytes()
    assert docs.main(mode, page, tmp_path) == 2
    assert page.read_bytes() == before
    [line] = capsys.readouterr().out.splitlines()
    assert "never injected: kill-first, mongod-late" in line


def test_tallies_beside_those_of_the_suite_do_not_count(
    docs: ModuleType, page: Path, tally: Tally, tmp_path: Path
):
    tally.write(tmp_path / "of-another-day.json")
    assert docs.main([], page, tmp_path) == 2


def test_a_tally_of_what_is_no_row_is_refused(
    docs: ModuleType, page: Path, tally: Tally, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tally.write(tmp_path / SUITE / "1.json")
    (tmp_path / SUITE / "2.json").write_text('{"kill-once": {"seen": {}, "missed": 0, "lost": 0}}')
    before = page.read_bytes()
    assert docs.main([], page, tmp_path) == 2
    assert page.read_bytes() == before
    assert "2.json counts 'kill-once', which is no row" in capsys.readouterr().out


def test_a_row_below_its_minimum_is_not_written(
    docs: ModuleType, page: Path, tally: Tally, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hit(without(tally, "switches"), "switches")
    tally.write(tmp_path / SUITE / "1.json")
    before = page.read_bytes()
    assert docs.main([], page, tmp_path) == 1
    assert page.read_bytes() == before
    assert f"switches: injected 1 of at least {FAULTS['switches'].least} times" in capsys.readouterr().out


def test_a_page_with_no_place_for_the_table_is_refused(
    docs: ModuleType, page: Path, tally: Tally, tmp_path: Path
):
    tally.write(tmp_path / SUITE / "1.json")
    page.write_text("# What the agent survives\n")
    assert docs.main([], page, tmp_path) == 2
    assert page.read_text() == "# What the agent survives\n"


def test_the_check_compares_names_and_no_numbers(docs: ModuleType, page: Path, tally: Tally, tmp_path: Path):
    tally.write(tmp_path / SUITE / "1.json")
    assert docs.main([], page, tmp_path) == 0
    text = page.read_text()
    row = next(line for line in text.splitlines() if " read-only " in line)
    uncounted = row.replace("| 2 |", "| not yet counted |").replace(
        "| the last one stood: 2 | 0 |", "|  |  |"
    )
    assert uncounted != row
    page.write_text(text.replace(row, uncounted))
    assert docs.main(["--check"], page, tmp_path) == 0
    page.write_text(text.replace(row, row.replace("read-only", "never mounted")))
    assert docs.main(["--check"], page, tmp_path) == 1
    page.write_text(text.replace(f"{row}\n", ""))
    assert docs.main(["--check"], page, tmp_path) == 1
