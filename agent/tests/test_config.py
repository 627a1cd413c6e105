from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shala_agent.config import parse_config
from shala_agent.failure import UsageError


def refused(text: str) -> str:
    with pytest.raises(UsageError) as refusal:
        parse_config(text.encode(), "agent.toml")
    return str(refusal.value)


def test_one_line_is_a_whole_configuration():
    config = parse_config(b"format = 1\n", "agent.toml")
    assert config.container.name == "gstudio"
    assert len(config.databases.mongo) == 9


@pytest.mark.parametrize(
    "text, parts",
    [
        ("", ["format is missing"]),
        ("format = 2", ["format = 2"]),
        (
            "format = 1\n[chain]\nevery_minute = 5",
            ["chain.every_minute = 5", "did you mean chain.every_minutes?"],
        ),
        (
            "format = 1\n[chain]\nevery_minutes = 'often'",
            ["chain.every_minutes = 'often'", "whole number of minutes"],
        ),
        ("format = 1\n[paths]\ndata = 'home'", ["paths.data = 'home'", "absolute path"]),
        ('format = 1\n[paths]\ndata = "/home\\n"', [r"paths.data = '/home\n'"]),
        ('format = 1\n[container]\nname = "gstudio\\n"', [r"container.name = 'gstudio\n'"]),
        ("format = 1\n[paths]\nspool = '/home/core/data/spool'", ["paths.spool", "inside paths.data"]),
        ("format = 1\n[identity]\nstates = ['MZ']", ["identity.states.0 = 'MZ'"]),
        ("format = 1\n[identity.aliases]\ncg = 'xx'", ["identity.aliases.cg = 'xx'"]),
        ("format = 1\n[identity]\nstates = ['MZ']", ["a state code in small letters"]),
        (
            "format = 1\n[[sync.windows]]\nbegin = '08:00'\nuntil = '9'",
            ["sync.windows.0.until = '9': expected a time of the day, such as \"08:30\""],
        ),
        ("format = 1\n[[sync.windows]]\nbegin = '08:00'", ["sync.windows.0.until is missing (add it)"]),
        ("format = 1\n[[sync.windows]]\nbegun = '08:00'", ["did you mean sync.windows.0.begin?"]),
        ("format = ", ["not valid TOML"]),
        ("format = 1\n[surprise]\n", ["surprise", "there is no such setting"]),
        (
            "format = 1\n[sync]\npage = 'p.html'",
            ["sync.page = 'p.html'", '"" for progress.html in paths.state'],
        ),
        ("format = 1\nchain = 3\n", ["chain = 3", "a section: its name in brackets"]),
        ("format = 1\n[databases]\nmongo = 'id'\n", ["mongo = 'id'", 'such as ["one", "two"]']),
        ("format = 1\n[sync]\nurl = 'https://centre.example.org:65536'", ["65536'", 'such as "https://']),
        ("format = 1\n[sync]\nurl = 'http://127.0.0.1:70000'", ["70000'", 'such as "https://']),
        (
            "format = 1\n[sync]\nenabled = 'yes'",
            ["sync.enabled = 'yes': expected true or false"],
        ),
        ("\ufeffformat = 1\n", ["agent.toml begins with a byte order mark (save the file as UTF-8 without"]),
    ],
)
def test_each_mistake_names_file_field_value_and_way_out(text, parts):
    message = refused(text)
    assert message.startswith("agent.toml")
    for part in parts:
        assert part in message


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(raw):
    try:
        parse_config(raw, "agent.toml")
    except UsageError as refusal:
        said = str(refusal)
    else:
        said = "agent.toml is valid"
    assert "agent.toml" in said


@pytest.mark.parametrize("password", ["secret", "se/cret", "s@cret", "se?cret", "se cret"])
def test_a_password_in_an_address_is_not_shown(password):
    told = refused(f'format = 1\n[sync]\nurl = "https://A:{password}@centre.example.org"\n')
    assert "sync.url = 'https://***@centre.example.org'" in told
