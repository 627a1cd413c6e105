"""Diagnose: what support needs, and nothing about a person."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from agent_school import School, school_in
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace
from shala_agent import chain as chain_module
from shala_agent import cli, diagnose, redaction
from shala_agent.config import Config
from shala_agent.device import FILE, Device
from shala_agent.ledger import CHAIN
from shala_agent.outcome import FAILED, Result
from shala_agent.redaction import Redaction, without_secrets

# What must be in no archive: names of users in both styles, a hash, a password, a token, mail, telephone.
PERSONAL = (
    "blue-bat", "green-apple", "zodin", "Lalrinpuii", "pbkdf2", "c2VjcmV0", "hunter2", "Bearer", "eyJhbGciOi",
    "zo@example.org", "9862012345", "sp100",
)  # fmt: skip
SAID = (
    "user blue-bat-mz17 (Zodin Lalrinpuii, zo@example.org, 9862012345) has pbkdf2_sha256$1$a$c2VjcmV0=;"
    " password=hunter2, Authorization: Bearer eyJhbGciOi.x.y, 2031017-mz17-sp100"
)


@pytest.fixture
def troubled(school: School, monkeypatch) -> School:
    """A school in whose records names and secrets stand wherever they can."""
    monkeypatch.setattr(chain_module, "Container", lambda *_: school.container)
    ledger = school.ledger()
    run = ledger.start(CHAIN)
    ledger.finish(run, "progress", Result(FAILED, [SAID], {"green-apple-mz17": 3, "file": "zodin.csv"}))
    ledger.finish(run, "activity-timestamps green-apple-mz17", Result(FAILED, ["it was cut 3 times"]))
    ledger.end(run, SAID)
    school.write("data/gstudio_tools_logs/zodin/7-blue-bat-mz17.json", "[{")
    school.write("data/activity-timestamp-csvs/mz17-green-apple-mz17-activity-visits.csv", b"broken")
    (school.root / "unplatform").mkdir()
    school.write("unplatform/zodin.json", "{}")
    config = replace(
        school.config, paths=replace(school.config.paths, unplatform=f"{school.root}/unplatform")
    )
    with_all = School(school.root, config, school.config_path, school.container)
    with_all.collect()
    chain_module.Chain(config, ledger).by_hand(("heartbeat",))
    return with_all


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    return school_in(tmp_path_factory.mktemp("school")).config


def packed(school: School, name: str = "out.tar.gz") -> tuple[Path, dict[str, str]]:
    target = school.root / name
    found = diagnose.diagnose(school.config, school.ledger(), target)
    assert not found.broken, found.missing
    with tarfile.open(target) as archive:
        files = {one.name.removeprefix("shala-diagnose/"): archive.extractfile(one).read() for one in archive}
    return target, {name: content.decode() for name, content in files.items()}


def test_no_name_of_a_person_no_password_and_no_key_gets_in(troubled: School):
    key = Device(troubled.root / "state" / FILE).key
    secrets = [*PERSONAL, bytes(key).hex(), key.encode().hex()[:16]]
    _, files = packed(troubled)
    found = {name: [one for one in secrets if one.lower() in text.lower()] for name, text in files.items()}
    assert not any(found.values()), found


def test_what_support_needs_is_in_it(troubled: School):
    _, files = packed(troubled)
    assert {"CONTENTS.txt", "config.json", "status.json", "doctor.json", "ledger.json"} <= files.keys()
    assert {
        "heartbeats.json",
        "versions.json",
        "disks.json",
        "container.json",
        "catalogue.json",
    } <= files.keys()
    for name in files:
        assert name == "CONTENTS.txt" or name in files["CONTENTS.txt"]
    status = json.loads(files["status.json"])
    assert status["server_name"] == "2031017-mz17"
    items = {item["name"]: item for item in status["sealed"]["items"]}
    assert items["gstudio_tools_logs"]["outcome"] == "suspect"
    assert "is not JSON: Expecting property name" in " ".join(items["gstudio_tools_logs"]["reasons"])
    runs = json.loads(files["ledger.json"])
    steps = [step for run in runs for step in run["steps"]]
    assert any(step["reasons"] == ["it was cut 3 times"] for step in steps)
    assert json.loads(files["container.json"])["status"] == "running"
    assert json.loads(files["heartbeats.json"])[0]["disk_free"] > 0
    assert json.loads(files["config.json"])["paths"]["spool"] == str(troubled.root / "spool")
    assert json.loads(files["disks.json"])["spool"]["there"]


def test_the_archive_is_for_its_owner_alone_and_replaces_nothing(troubled: School):
    target, _ = packed(troubled)
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as archive:
        assert {member.mode for member in archive} == {0o600}
    with pytest.raises(diagnose.UsageError, match="exists already"):
        diagnose.diagnose(troubled.config, troubled.ledger(), target)


@pytest.mark.parametrize("place", ["none/x.tar.gz", "agent.toml/x.tar.gz"])
def test_a_place_where_no_archive_can_be_made_is_wrong_usage(troubled: School, place: str):
    target = troubled.root / place
    with pytest.raises(diagnose.UsageError, match=f"{target} cannot be written: .* \\(name a file in"):
        diagnose.diagnose(troubled.config, troubled.ledger(), target)


def test_a_part_that_breaks_costs_only_itself_and_is_named(troubled: School, monkeypatch):
    def broken(*_):
        raise ValueError("zodin")

    monkeypatch.setattr(diagnose, "examine", broken)
    arguments = [
        "--config",
        str(troubled.config_path),
        "diagnose",
        "--output",
        f"{troubled.root}/x.tar.gz",
        "--json",
    ]
    ran = CliRunner().invoke(cli.shala_agent, arguments)
    told = json.loads(ran.output)
    assert ran.exit_code == 3
    assert told["missing"]["doctor.json"].startswith("ValueError: <")
    assert "status.json" in [part["file"] for part in told["parts"]]


def test_the_journal_is_packed_with_its_runs_and_without_names(troubled: School, monkeypatch):
    entry = {"__REALTIME_TIMESTAMP": "1700000000000000", "PRIORITY": "4", "_BOOT_ID": "ab" * 16}
    lines = [
        json.dumps({**entry, "MESSAGE": f"run 17: progress: failed ({SAID})"}),
        json.dumps({**entry, "MESSAGE": [104, 117]}),
    ]
    monkeypatch.setattr(diagnose, "_need_systemd", lambda: None)
    monkeypatch.setattr(diagnose, "_said", lambda *_: "\n".join(lines))
    _, files = packed(troubled)
    assert "run 17: progress: failed (user <" in files["journal.json"]
    assert "2023-11-14T22:13:20" in files["journal.json"]
    assert [one for one in PERSONAL if one in files["journal.json"]] == []


def test_one_word_has_one_sign_in_an_archive_and_another_in_the_next(school: School):
    one, other = Redaction(school.config), Redaction(school.config)
    assert one.text("zodin, zodin") == ", ".join([one.text("zodin")] * 2)
    assert one.text("zodin") != other.text("zodin")


@given(
    name=st.text(st.characters(categories=["L"]), min_size=4, max_size=20),
    around=st.sampled_from(
        [
            "{}",
            "{}-mz17",
            "7-{}.json is not JSON",
            "user '{}' (a teacher)",
            "/data/x/{}/1.csv",
            "{}@example.org",
            "mz17-{}-mz17-1.csv",
        ]
    ),
)
def test_no_name_whatever_comes_through_in_whatever_place(config, name, around):
    assume(name.lower() not in redaction._own_words())
    assert name not in Redaction(config).text(around.format(name)).replace("JSON", "").replace("teacher", "")


def test_numbers_times_and_the_agents_own_words_stay(school: School):
    said = "it holds 12 files at 2026-01-01T10:11:12Z, 99.5% of 1200 MB: No space left on device"
    assert Redaction(school.config).text(said) == said


def test_no_name_of_a_user_stands_in_the_agents_own_words():
    assert [word for word in redaction._own_words() if "apple" in word or "zodin" in word] == []


def test_secrets_of_a_configuration_are_masked():
    told = without_secrets(
        {
            "sync": {
                "url": "https://user:hunter2@centre.example.org/x?token=abc",
                "api_key": "k",
                "token_file": "",
            }
        }
    )
    assert told == {"sync": {"url": "https://***@centre.example.org/x", "api_key": "***", "token_file": ""}}


@pytest.mark.parametrize("password", ["se/cret", "s@cret", "se/cr@et", "se?cret", "se#cret", "se cret"])
def test_a_password_in_a_url_is_masked_whatever_it_holds(password):
    assert without_secrets(f"https://A:{password}@centre.example.org/x") == "https://***@centre.example.org/x"


def test_a_mistake_in_the_catalogue_is_in_the_archive_and_hinders_nothing(school: School, monkeypatch):
    monkeypatch.setattr(chain_module, "Container", lambda *_: school.container)
    school.write("catalogue.toml", "format = 1\npseudonym_key = '/nowhere/key'\n")
    paths = replace(school.config.paths, catalogue=str(school.root / "catalogue.toml"))
    made = diagnose.diagnose(replace(school.config, paths=paths), school.ledger(), school.root / "out.tar.gz")
    assert not made.broken
    with tarfile.open(made.path) as archive:
        assert json.load(archive.extractfile("shala-diagnose/catalogue.json"))["mistake"]
