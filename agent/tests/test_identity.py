from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shala_agent.identity import CODE, ID, NAME, Identity, IdentityRefused, read_identity

STATES = ["mz", "rj", "ct", "tg"]
ALIASES = {"cg": "ct", "ts": "tg"}


def read(source: str) -> Identity:
    return read_identity(source, "server_settings.py", STATES, ALIASES)


def settings(server_id: str, code: str, name: str = "School") -> str:
    return f"{ID} ={server_id!r}\n{CODE} ={code!r}\n{NAME} ={name!r}\n"


@given(
    st.sampled_from(STATES),
    st.integers(1, 9999),
    st.from_regex(r"[1-9][0-9]{6}", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80),
)
def test_whatever_the_schools_name_holds_a_well_written_file_is_understood(state, number, code, name):
    who = read(settings(f"{state}{number}", code, name))
    assert (who.state, who.server_id, who.school_code) == (state, f"{state}{number}", code)
    assert who.server_name == f"{code}-{state}{number}"


@given(st.text(max_size=300))
def test_no_file_is_executed_or_breaks_the_reader(source):
    try:
        assert read(source).state in STATES
    except IdentityRefused as refusal:
        said = str(refusal)
    else:
        said = "server_settings.py is valid"
    assert "server_settings.py" in said


@given(st.text(max_size=20), st.text(max_size=20))
def test_only_true_identities_pass(server_id, code):
    try:
        who = read(settings(server_id, code))
    except IdentityRefused:
        return
    assert who.server_id[:2] in STATES
    assert who.school_code.isascii()
    assert who.school_code.isdigit()


@pytest.mark.parametrize(
    "server_id, code",
    [
        ("sp100", "00000000"),
        ("clix-default", "2031017"),
        ("", "2031017"),
        ("mz17", ""),
        ("tg39", "NA"),
        ("mz17\r", "2031017"),
        ("mz'17", "2031017"),
        ("mz017", "2031017"),
        ("xx17", "2031017"),
        ("mz17", "mz17"),
        ("mz17", "../../etc"),
    ],
)
def test_what_is_no_identity_is_refused_by_file_field_and_value(server_id, code):
    with pytest.raises(IdentityRefused, match=r"server_settings\.py: GSTUDIO_INSTITUTE_ID(_SECONDARY)? = "):
        read(settings(server_id, code))


def test_spellings_of_one_server_are_one_server():
    assert read(settings("cg11", "01011011")) == read(settings("ct11", "1011011"))


def test_a_quote_in_the_name_is_named_with_its_line():
    with pytest.raises(IdentityRefused, match="line 3"):
        read(f"{ID} = 'mz86'\n{CODE} = '2031086'\n{NAME} = 'St.John's HSS'\n")


def test_python_2_elsewhere_in_the_file_does_no_harm():
    assert read("print 'hello'\n" + settings("mz17", "2031017")).server_name == "2031017-mz17"


def test_settings_are_parsed_and_never_run(tmp_path):
    trap = tmp_path / "executed"
    read(f"open({str(trap)!r}, 'w')\n" + settings("mz17", "2031017"))
    assert not trap.exists()
    with pytest.raises(IdentityRefused, match="plain text"):
        read(f"{ID} = str('mz17')\n{CODE} = '2031017'\n")
