"""Doctor: one line for each problem, with its remedy."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import yaml
from agent_school import School
from click.testing import CliRunner
from msgspec.structs import replace
from shala_agent import chain, cli, doctor
from shala_agent.config import SpoolConfig
from shala_agent.doctor import Problem, examine
from shala_agent.ledger import CHAIN
from shala_agent.outcome import FAILED, Result


def problems(school: School, monkeypatch, **spool: int) -> list[Problem]:
    monkeypatch.setattr(chain, "Container", lambda *_: school.container)
    config = replace(school.config, spool=SpoolConfig(**spool))
    return list(examine(config, school.ledger()))


def broken(school: School) -> None:
    school.write("data/gstudio_tools_logs/policesquad/7-policesquad.json", "[{")
    school.collect()


def test_an_item_that_is_not_ok_is_a_line_with_reason_since_and_remedy(school: School, monkeypatch):
    broken(school)
    (line,) = [str(one) for one in problems(school, monkeypatch) if "gstudio_tools_logs" in one.what]
    assert re.match(
        r"gstudio/gstudio_tools_logs is suspect since 20\d\d-.*: policesquad/7-policesquad.json ", line
    )
    assert " -> mend what the reason names" in line
    assert "\n" not in line


def test_what_comes_of_a_step_that_failed_is_one_line_with_it(school: School, monkeypatch):
    ledger = school.ledger()
    run = ledger.start(CHAIN)
    ledger.finish(run, "progress", Result(FAILED, ["it did not end"]))
    school.collect()
    said = [one.what for one in problems(school, monkeypatch)]
    assert sum("it did not end" in one for one in said) == 1


def test_what_is_not_of_today_holds_no_roll_out(school: School, monkeypatch, request):
    broken(school)
    (school.root / "state/ledger.sqlite.damaged").write_bytes(b"junk")
    wave = yaml.safe_load((request.config.rootpath / "playbooks/provision_wave.yml").read_text())
    task = next(task for task in wave[0]["post_tasks"] if "vars" in task)
    past = re.compile(task["vars"]["provision_of_the_past"])
    found = [one.what for one in problems(school, monkeypatch) if re.search("is suspect|ledger", one.what)]
    assert len(found) > 1
    assert all(past.search(what) for what in found)


def test_a_disk_below_the_floor_and_a_full_quota_are_named_with_the_way_out(school: School, monkeypatch):
    school.write("data/rcs-repo/Nodes/large.json", '["' + "x" * 2_000_000 + '"]')
    school.collect()
    monkeypatch.setattr(doctor, "free_at", lambda _path: 7_000_000)
    lines = [str(one) for one in problems(school, monkeypatch, quota_mb=2, min_free_mb=500)]
    assert any(
        re.search(r"only 7 MB are free at .*, and 500 stay so: nothing large is written", one)
        for one in lines
    )
    assert sum("MB are free" in one for one in lines) == 1
    assert any("the spool holds 2 MB, of 2 that it may -> have the centre pull" in one for one in lines)


def test_a_server_that_is_well_has_no_line_about_its_items_or_room(school: School, monkeypatch):
    school.collect()
    monkeypatch.setattr(doctor, "free_at", lambda _path: 10**12)
    said = " ".join(str(one) for one in problems(school, monkeypatch, quota_mb=1000))
    assert "is suspect" not in said
    assert "free" not in said
    assert "quota" not in said


def test_a_mistake_in_the_catalogue_is_one_line(school: School, monkeypatch):
    school.write("catalogue.toml", "format = 1\npseudonym_key = '/nowhere/key'\n")
    school.config = replace(
        school.config, paths=replace(school.config.paths, catalogue=str(school.root / "catalogue.toml"))
    )
    (line,) = [str(one) for one in problems(school, monkeypatch) if "catalogue.toml" in one.what]
    assert line.endswith(
        "No such file or directory -> the same key on all servers of the programme: openssl rand -hex 32"
    )


def test_settings_that_the_disk_does_not_give_are_one_line(school: School, monkeypatch):
    school.settings.unlink()
    school.settings.mkdir()
    assert any("settings of the server cannot be read" in one.what for one in problems(school, monkeypatch))


def test_a_ledger_that_the_disk_does_not_give_is_one_problem_beside_the_others(school: School, monkeypatch):
    chain_of(school)
    full_disk(monkeypatch)
    monkeypatch.setattr(chain, "Container", lambda *_: school.container)
    done = CliRunner().invoke(cli.shala_agent, ["--config", str(school.config_path), "doctor"])
    (line,) = [line for line in done.output.splitlines() if "disk I/O error" in line]
    assert re.fullmatch(
        r"the ledger \S+ cannot be opened: disk I/O error -> run as root\? is the disk full\?", line
    )
    assert "nothing was ever collected" in done.output
    assert "the chain has never run" not in done.output
    monkeypatch.setattr("shala_agent.disk.is_read_only", lambda _folder: True)
    done = CliRunner().invoke(cli.shala_agent, ["--config", str(school.config_path), "doctor"])
    assert "cannot be opened: disk I/O error -> the disk is read-only" in done.output


def test_status_and_diagnose_go_on_with_what_can_be_read_of_the_ledger(school: School, monkeypatch):
    chain_of(school)
    full_disk(monkeypatch)
    monkeypatch.setattr(chain, "Container", lambda *_: school.container)
    shown = CliRunner().invoke(cli.shala_agent, ["--config", str(school.config_path), "status"])
    assert shown.exit_code == 3
    assert re.match(r"shala-agent: the ledger \S+ cannot be opened: disk I/O error", shown.stderr)
    assert re.search(r"^  progress +failed ", shown.output, re.MULTILINE)
    target = school.root / "out.tar.gz"
    line = ["--config", str(school.config_path), "diagnose", "--output", str(target)]
    packed = CliRunner().invoke(cli.shala_agent, line)
    assert (packed.exit_code, target.exists()) == (3, True)
    assert re.search(r"^ledger.sqlite is not in it: .*disk I/O error", packed.output, re.MULTILINE)


def test_a_ledger_that_was_put_aside_is_a_problem_until_it_is_removed(school: School, monkeypatch):
    aside = school.root / "state/ledger.sqlite.damaged"
    school.ledger().close()
    aside.write_bytes(b"junk")
    (line,) = [str(one) for one in problems(school, monkeypatch) if "ledger" in one.what]
    assert line.startswith(f"the ledger was damaged; the old one is {aside} -> look at it, then rm {aside}*")
    aside.unlink()
    assert not [one for one in problems(school, monkeypatch) if "ledger" in one.what]


def chain_of(school: School) -> None:
    """A ledger with one chain whose step failed."""
    with closing(school.ledger()) as ledger:
        ledger.finish(ledger.start(CHAIN), "progress", Result(FAILED, ["it was cut"]))


def full_disk(monkeypatch) -> None:
    """SQLite finds no room for what lies beside a database."""

    def refuse(*_):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("shala_agent.write_ahead.switch", refuse)
