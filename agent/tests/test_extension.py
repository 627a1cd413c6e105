"""What an operator adds to the catalogue, or changes in it."""

from __future__ import annotations

import datetime

import msgspec
import pytest
from agent_school import School, csv
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from shala_agent import catalogue, cli
from shala_agent.catalogue import Catalogue
from shala_agent.chain import Chain, steps_of
from shala_agent.config import parsed, read_config
from shala_agent.extension import Extension, extended, read_catalogue
from shala_agent.failure import UsageError
from shala_agent.outcome import Result


def read(text: str) -> Catalogue:
    return extended(parsed(f"format = 1\n{text}".encode(), "catalogue.toml", Extension), "catalogue.toml")


def add(school: School, text: str) -> None:
    path = school.root / "catalogue.toml"
    path.write_text(f"format = 1\n{text}")
    paths = msgspec.structs.replace(school.config.paths, catalogue=str(path))
    school.config = msgspec.structs.replace(school.config, paths=paths)


def test_without_a_file_the_catalogue_is_the_built_in_one(school):
    assert read_catalogue(school.config) == catalogue.built_in() == read("")


def test_a_new_folder_of_a_tool_is_collected_and_checked_without_code(school):
    add(school, "[items.h5p]\nsource = '/data/h5p'\ncheck = 'csv'\ncolumns = ['user', 'score']\n")
    school.write("data/h5p/deep/a.csv", csv(["user", "score", "more"]))
    item = school.collect().collection.item("gstudio", "h5p")
    assert (item.outcome, item.files) == ("ok", 1)
    school.write("data/h5p/b.csv", csv(["user", "points"]))
    item = school.collect().collection.item("gstudio", "h5p")
    assert item.outcome == "suspect"
    assert "b.csv has other columns" in item.reasons[0]


def test_an_item_of_the_operator_that_keeps_its_last_good_copy_does(school):
    add(school, "[items.h5p]\nsource = '/data/h5p'\ncheck = 'json'\nkeep_last_good = true\n")
    school.write("data/h5p/a.json", "[1]")
    school.collect()
    school.write("data/h5p/a.json", "[1")
    item = school.collect().collection.item("gstudio", "h5p")
    assert (item.outcome, item.carried_from) == ("failed", 1)
    assert (school.bag() / "data/gstudio/h5p/a.json").read_text() == "[1]"


def test_a_new_command_is_a_step_of_the_chain_before_the_collection(school):
    add(school, "[derivations.h5p]\ncommand = ['make-h5p']\noutput = '/data/h5p'\n")
    assert steps_of(school.config)[-2:] == ("h5p", "collect")


def test_what_is_not_due_is_not_done(school, monkeypatch):
    done: list[str] = []
    monkeypatch.setattr(Chain, "_derive", lambda _chain, row, _run: done.append(row.name) or Result("ok"))
    for method in ("_heartbeat", "_postgres", "_mongo", "_collect"):
        monkeypatch.setattr(Chain, method, lambda *_: Result("ok"))
    add(school, "[derivations.progress]\nevery_hours = 20\n")
    for _ in range(2):
        assert Chain(school.config, school.ledger()).run().exit_code == 0
    assert done == ["activity-timestamps", "progress", "assessments", "activity-timestamps", "assessments"]
    Chain(school.config, school.ledger()).by_hand(("progress",))
    assert done[-1] == "progress"


@pytest.mark.parametrize("hours, due", [(-19, False), (-21, True), (+48, True)])
def test_a_derivation_is_due_when_its_last_good_run_is_old_or_of_another_clock(
    school, monkeypatch, hours, due
):
    add(school, "[derivations.progress]\nevery_hours = 20\n")
    then = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=hours)
    monkeypatch.setattr(
        "shala_agent.ledger.now", lambda: then.isoformat(timespec="seconds").replace("+00:00", "Z")
    )
    ledger = school.ledger()
    ledger.finish(ledger.start("by hand"), "progress", Result("ok"))
    assert Chain(school.config, ledger)._is_due("progress") == due


@pytest.mark.parametrize(
    "text, parts",
    [
        ("[items.x]", ["items.x: source is missing", 'source = "/data/x"']),
        ('[items.x]\nsource = "/data/x\\n"', [r"items.x.source = '/data/x\n'", "below /data"]),
        ("[items.\"x\\n\"]\nsource = '/data/x'", ["a name in items", "letters"]),
        ("[items.x]\nsource = '/etc/passwd'", ["items.x.source = '/etc/passwd'", "below /data"]),
        ("[items.x]\nsource = '/data/../etc'", ["items.x.source = '/data/../etc'", "'..'"]),
        ("[items.x]\nsource = '/data/.gnupg'", ["items.x.source", "never leave a server"]),
        ("[items.x]\nsource = '/data/x'\nmade_by = 'y'", ["items.x.made_by = 'y'", "[derivations.y]"]),
        ("[items.x]\nsource = '/data/x'\ncheck = 'xml'", ["items.x.check = 'xml'", "one of: any"]),
        ("[items.x]\nsource = '/data/x'\ncolumns = ['a']", ["items.x.columns", 'check = "csv"']),
        ("[items.media]\nsource = '/data/x'", ["items.media.source = '/data/x'", "built in"]),
        ("[items.media]\nseal = true", ["items.media.seal", "seal_to"]),
        ("[items.media]\npseudonymise = ['a']", ["items.media.pseudonymise", "pseudonym_key"]),
        ("pseudonym_key = '/nowhere/key'", ["pseudonym_key = '/nowhere/key'", "No such file"]),
        ("seal_to = ['age1nobody']", ["seal_to.0 = 'age1nobody'", "no public key"]),
        ("[items.'../x']\nsource = '/data/x'", ["a name in items", "letters"]),
        ("[derivations.x]\noutput = '/data/x'", ["derivations.x: command is missing"]),
        ("[derivations.collect]\ncommand = ['a']\noutput = '/data/x'", ["derivations.collect", "a step"]),
        ("[derivations.progress]\ncommand = ['a']", ["derivations.progress.command = ['a']", "every_hours"]),
        ("[derivations.x]\ncommand = ['a']\noutput = '/data/x'\nsays = '('", ["derivations.x.says = '('"]),
        ("[items.x]\nsorce = '/data/x'", ["items.x.sorce", "did you mean items.x.source?"]),
        ("[items.x]\nsource = '/data/x'\nlargest_drop = 101", ["items.x.largest_drop = 101", "percent"]),
    ],
)
def test_each_mistake_names_file_field_value_and_way_out(text, parts):
    with pytest.raises(UsageError) as refusal:
        read(text)
    assert str(refusal.value).startswith("catalogue.toml: ")
    for part in parts:
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    "content, mode, why", [("k" * 32, 0o640, "chmod 600"), ("short", 0o600, "fewer than")]
)
def test_a_key_that_is_short_or_open_to_others_is_refused(tmp_path, content, mode, why):
    key = tmp_path / "pseudonym.key"
    key.write_text(content)
    key.chmod(mode)
    with pytest.raises(UsageError, match=why):
        read(f"pseudonym_key = '{key}'")


def test_check_config_reads_the_catalogue_too(school):
    path = school.root / "catalogue.toml"
    path.write_text("format = 1\n[items.x]\n")
    text = school.config_path.read_text()
    school.config_path.write_text(text.replace("[paths]\n", f'[paths]\ncatalogue = "{path}"\n'))
    refusal = CliRunner().invoke(cli.shala_agent, ["check-config", str(school.config_path)]).exception
    assert isinstance(refusal, UsageError)
    assert "items.x: source is missing" in str(refusal)


def test_check_config_checks_a_catalogue_alone_before_it_is_put_in_place(tmp_path):
    path = tmp_path / "catalogue.toml"
    check = ["--config", str(tmp_path / "none.toml"), "check-config", "--catalogue", str(path)]
    path.write_text("format = 1\n[items.x]\n")
    refusal = CliRunner().invoke(cli.shala_agent, check).exception
    assert isinstance(refusal, UsageError)
    assert str(refusal).startswith(f"{path}: items.x: source is missing")
    path.write_text("format = 1\n[items.media]\ntake = false\n")
    assert CliRunner().invoke(cli.shala_agent, check).output == f"{path} is valid.\n"
    path.unlink()
    assert "cannot be read" in str(CliRunner().invoke(cli.shala_agent, check).exception)


def test_a_catalogue_that_cannot_be_read_is_not_taken_for_none(school):
    (school.root / "catalogue.toml").symlink_to(school.root / "gone.toml")
    text = school.config_path.read_text()
    school.config_path.write_text(
        text.replace("[paths]\n", f'[paths]\ncatalogue = "{school.root}/catalogue.toml"\n')
    )
    with pytest.raises(UsageError, match="cannot be read"):
        read_catalogue(read_config(school.config_path))


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(raw):
    try:
        extended(parsed(b"format = 1\n" + raw, "catalogue.toml", Extension), "catalogue.toml")
    except UsageError as refusal:
        said = str(refusal)
    else:
        said = "catalogue.toml is valid"
    assert "catalogue.toml" in said
