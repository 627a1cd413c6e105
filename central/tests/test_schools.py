"""The schools list: each trap of facts/gstudio.md 1.3 is met, named, and has a way out."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shala_central.schools import Rules, SchoolsList, read_schools, ring_of, zone_group

HEADER = "Sr. No.;School Name;Full CLIx School Code;Server id"


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str | bytes, **rules: object) -> SchoolsList:
        path = tmp_path / "schools.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_schools(path, Rules(**rules))

    return read


def names(schools_list: SchoolsList) -> list[str]:
    return [school.server_name for school in schools_list.schools]


def one_error(schools_list: SchoolsList) -> str:
    assert len(schools_list.errors) == 1, schools_list.findings
    return str(schools_list.errors[0])


def test_the_real_form_of_the_list_is_read(read):
    found = read(f"{HEADER}\n1;GOVT. HIGH SCHOOL;2031017;mz17\n")
    assert found.findings == ()
    school = found.schools[0]
    assert (school.server_name, school.state, school.school_code, school.server_id, school.school_name) == (
        "2031017-mz17",
        "mz",
        "2031017",
        "mz17",
        "GOVT. HIGH SCHOOL",
    )
    assert (school.zone, school.address, school.port) == ("", "", None)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_the_byte_order_mark_do_not_matter(read, ending, bom):
    found = read(bom + f"{HEADER}\n1;A;2031017;mz17\n\n2;B;2031008;mz8\n".replace("\n", ending).encode())
    assert names(found) == ["2031017-mz17", "2031008-mz8"]
    assert found.findings == ()


def test_columns_may_come_in_any_order_with_commas_and_quotes(read):
    found = read(
        'RING,Tunnel Port,address,zone,"SERVER ID",full clix school code,School name\n'
        '2,42017,10.0.0.17,mz-aizawl,mz17,2031017,"Bethlehem, ""Hill"" School"\n'
    )
    school = found.schools[0]
    assert found.findings == ()
    assert school.school_name == 'Bethlehem, "Hill" School'
    assert (school.zone, school.ring, school.address, school.port) == ("mz-aizawl", 2, "10.0.0.17", 42017)
    assert school.groups == ("state_mz", "zone_mz_aizawl", "ring_2")


@pytest.mark.parametrize(
    "name", ["St.John's HSS", "A & B", 'Say "so"', "కొత్తపల్లి", "क्\u200dष विद्यालय", "$(rm) `x`"]
)
def test_a_school_may_be_called_anything(read, name):
    assert read(f"{HEADER}\n1;{name};2031017;mz17\n").schools[0].school_name == name


def test_an_id_that_is_used_twice_is_named_with_both_lines(read):
    text = f"{HEADER}\n1;A;2031017;mz17\n2;B;2031018;mz18\n3;C;2031019;mz17\n"
    assert one_error(read(text)) == (
        "schools.csv line 4: server id 'mz17' is already used in line 2"
        " (give one of them another id, or set duplicate_ids: first)"
    )
    first = read(text, duplicate_ids="first")
    assert (names(first), first.errors, len(first.findings)) == (["2031017-mz17", "2031018-mz18"], (), 1)
    neither = read(text, duplicate_ids="skip")
    assert (names(neither), neither.errors) == (["2031018-mz18"], ())


def test_two_rows_for_one_server_are_a_duplicate_too(read):
    assert "is already used in line 2" in one_error(read(f"{HEADER}\n1;A;2031017;mz17\n2;A;02031017;mz17\n"))


def test_two_servers_with_one_code_are_both_kept_and_mentioned(read):
    found = read(f"{HEADER}\n1;A;2031017;mz17\n2;A;2031017;mz18\n")
    assert names(found) == ["2031017-mz17", "2031017-mz18"]
    assert "is also that of server mz17 in line 2" in str(found.findings[0])
    assert found.errors == ()


@pytest.mark.parametrize("code", ["NA", "na", "N/A", "", "  ", "-"])
def test_a_school_without_a_code_is_refused_unless_mapped(read, code):
    text = f"{HEADER}\n1;A;{code};tg39\n2;B;4160101;tg1\n"
    message = one_error(read(text))
    assert "schools.csv line 2: school code" in message
    assert "tg39: '2031017'" in message
    assert names(read(text, codes={"tg39": "4160139"})) == ["4160139-tg39", "4160101-tg1"]
    left_out = read(text, invalid="skip")
    assert (names(left_out), left_out.errors, len(left_out.findings)) == (["4160101-tg1"], (), 1)


@pytest.mark.parametrize(
    "code", ["203101", "203101777", "2.03E+06", "2031017.0", "20310 17", "00000000", "२०३१०१७"]
)
def test_a_code_of_another_form_is_refused(read, code):
    assert "is not a code of 7 or 8 digits" in one_error(read(f"{HEADER}\n1;A;{code};mz17\n"))


def test_a_padded_code_is_the_code_without_the_zero(read):
    assert names(read(f"{HEADER}\n1;A;01011011;ct11\n")) == ["1011011-ct11"]
    assert names(read(f"{HEADER}\n1;A;12345678;ct11\n")) == ["12345678-ct11"]


@pytest.mark.parametrize("server_id", ["", "NA"])
def test_a_missing_id_is_refused(read, server_id):
    assert "line 2: server id" in one_error(read(f"{HEADER}\n1;A;1011031;{server_id}\n"))
    assert "is missing" in one_error(read(f"{HEADER}\n1;A;1011031\n"))


@pytest.mark.parametrize("server_id", ["sp100", "SP99", "clix-default", "sp"])
def test_a_factory_setting_is_no_id(read, server_id):
    assert "is a factory setting" in one_error(read(f"{HEADER}\n1;A;2031017;{server_id}\n"))


@pytest.mark.parametrize(
    "server_id", ["mz", "17", "mz0", "mz017", "mz-17", "'mz17'", "mz17’", "mz 17", "mz1७", "-ct31"]
)
def test_what_is_no_id_is_refused(read, server_id):
    assert "is not a server id" in one_error(read(f"{HEADER}\n1;A;2031017;{server_id}\n"))


@pytest.mark.parametrize("server_id", ['"mz17\r"', '"mz17\n"', " mz17 ", "mz17\r", "\u00a0mz17"])
def test_white_space_around_an_id_does_not_matter(read, server_id):
    assert names(read(f"{HEADER}\n1;A;2031017;{server_id}\n")) == ["2031017-mz17"]


@pytest.mark.parametrize("server_id", ["m\rz17", '"m\rz17"', "m\0z17"])
def test_control_characters_inside_an_id_are_shown_and_refused(read, server_id):
    message = one_error(read(f"{HEADER}\n1;A;2031017;{server_id}\n2;B;2031018;mz18\n".encode()))
    assert "line 2" in message
    assert "\\r" in message or "\\x00" in message


def test_a_control_character_at_the_edge_of_a_field_is_mentioned(read):
    found = read(f'{HEADER}\n1;A;2031017;"mz17\r"\n'.encode())
    assert (names(found), len(found.findings)) == (["2031017-mz17"], 1)
    assert "'mz17\\r' ends in a control character" in str(found.findings[0])


def test_two_servers_at_one_address_and_port_are_an_error(read):
    header = f"{HEADER};address;port"
    same = f"{header}\n1;A;2031017;mz17;10.0.0.1;22\n2;B;2031018;mz18;10.0.0.1;22\n"
    assert "'10.0.0.1:22' is also that of server mz17 in line 2" in one_error(read(same))
    assert len(names(read(same.replace("1;22\n2", "1;23\n2")))) == 2


def test_an_id_of_a_row_that_was_refused_is_used_all_the_same(read):
    found = read(f"{HEADER}\n1;A;NA;mz17\n2;B;2031018;mz17\n")
    assert names(found) == []
    assert "is already used in line 2" in str(found.findings[1])


def test_a_quote_mark_that_is_never_closed_is_an_error_whatever_else_is_left_out(read):
    found = read(f'{HEADER}\n1;"A;2031017;mz17\n2;B;2031018;mz18\n', invalid="skip")
    assert "holds a line break inside a field" in one_error(found)


def test_an_id_in_capitals_is_read_and_mentioned(read):
    found = read(f"{HEADER}\n1;A;2031017;MZ17\n")
    assert (names(found), found.errors) == (["2031017-mz17"], ())
    assert "is read as mz17" in str(found.findings[0])


def test_other_spellings_of_a_state_are_mapped(read):
    assert names(read(f"{HEADER}\n1;A;1011011;cg11\n2;B;4160101;ts1\n")) == ["1011011-ct11", "4160101-tg1"]


def test_a_spelling_that_meets_its_state_is_a_duplicate(read):
    assert "'ct11' (written 'cg11') is already used in line 2" in one_error(
        read(f"{HEADER}\n1;A;1011011;ct11\n2;B;1011012;cg11\n")
    )


def test_a_fifth_state_needs_no_code(read):
    text = f"{HEADER}\n1;A;5010001;ka1\n"
    assert "of an unknown state 'ka' (known: mz, rj, ct, tg)" in one_error(read(text))
    assert read(text, states=("mz", "ka"), aliases={}).schools[0].groups[0] == "state_ka"


@pytest.mark.parametrize("port", ["0", "65536", "22a", "-1", "2.5", "²2"])
def test_a_bad_port_is_refused(read, port):
    assert f"port '{port}' is not a port" in one_error(read(f"{HEADER};port\n1;A;2031017;mz17;{port}\n"))


@pytest.mark.parametrize(
    "address", ["-oProxyCommand=x", "10.0.0", "10.0.0.256", "a b", "host;x", "mz17\u200b.lan"]
)
def test_a_bad_address_is_refused(read, address):
    text = f'{HEADER};address\n1;A;2031017;mz17;"{address}"\n'
    assert "is neither a host name nor an IP address" in one_error(read(text))


@pytest.mark.parametrize("address", ["10.0.0.17", "fd00::17", "mz17.example.org", "gate-way"])
def test_a_good_address_is_kept(read, address):
    assert read(f"{HEADER};address\n1;A;2031017;mz17;{address}\n").schools[0].address == address


def test_a_bad_ring_and_a_bad_zone_are_refused(read):
    assert "ring 'first' is not a ring" in one_error(read(f"{HEADER};ring\n1;A;2031017;mz17;first\n"))
    assert "zone '---' is not a zone name" in one_error(read(f"{HEADER};zone\n1;A;2031017;mz17;---\n"))


def test_two_zones_that_become_one_group_are_mentioned(read):
    found = read(f"{HEADER};zone\n1;A;2031017;mz17;mz-a\n2;B;2031018;mz18;mz a\n")
    assert "is one group with 'mz-a': zone_mz_a" in str(found.findings[0])


def test_a_quote_that_is_never_closed_does_not_swallow_the_list_in_silence(read):
    found = read(f'{HEADER}\n1;"A;2031017;mz17\n2;B;2031018;mz18\n3;"C";2031019;mz19\n')
    assert found.errors
    assert found.errors[0].line == 2


def test_a_delimiter_inside_a_name_is_named(read):
    assert "has 5 fields, the header has 4" in one_error(read(f"{HEADER}\n1;A; B;2031017;mz17\n"))


@pytest.mark.parametrize(
    "raw, expected",
    [
        (b"", "is not among the columns"),
        (b"\n\n", "is not among the columns"),
        (b"Sr. No.;School Name;Server id\n1;A;mz17\n", "'Full CLIx School Code' is not among the columns"),
        (f"{HEADER};Server ID\n".encode(), "is a second column for the Server id"),
        (f"{HEADER}\n".encode(), "holds no school"),
        (f"{HEADER}\n1;A\xe9;2031017;mz17\n".encode("latin-1"), "line 2: encoding '\\\\xe9' is not UTF-8"),
        (f"{HEADER}\n".encode("utf-16"), "encoding 'UTF-16' cannot be read"),
    ],
)
def test_a_list_that_is_none_is_refused_in_one_line(read, raw, expected):
    assert expected.replace("\\\\", "\\") in one_error(read(raw))


def test_rules_that_contradict_themselves_are_refused(tmp_path):
    with pytest.raises(ValueError, match="100"):
        read_schools(tmp_path / "x.csv", Rules(rings={1: 5}))
    with pytest.raises(ValueError, match="'cg' stands for 'ct'"):
        read_schools(tmp_path / "x.csv", Rules(states=("mz",), aliases={"cg": "ct"}))
    with pytest.raises(ValueError, match="duplicate_ids"):
        read_schools(tmp_path / "x.csv", Rules(duplicate_ids="last"))  # type: ignore[arg-type]


def test_a_ring_depends_on_the_server_alone(read):
    alone = read(f"{HEADER}\n1;A;2031017;mz17\n").schools[0].ring
    among = read(f"{HEADER}\n1;B;2031001;mz1\n1;A;2031017;mz17\n").schools[1].ring
    assert alone == among
    rings = [ring_of(f"20310{n:02d}-mz{n}", {1: 5, 2: 25, 3: 70}) for n in range(1, 2001)]
    assert 60 <= rings.count(1) <= 140
    assert 1300 <= rings.count(3) <= 1500


def generated(number: int) -> str:
    rows = [f"{HEADER};zone;address;port;ring"]
    for n in range(number):
        state, digit = (("mz", 2), ("rj", 3), ("ct", 1), ("tg", 4))[n % 4]
        place = f"{state}-{n % 40};10.{n // 65536}.{n // 256 % 256}.{n % 256};22;"
        rows.append(f"{n};SCHOOL {n};{digit}{n:06d};{state}{n + 1};{place}")
    return "\r\n".join(rows) + "\r\n"


def test_five_thousand_schools_load_in_under_two_seconds(read):
    started = time.process_time()
    found = read(generated(5000))
    assert time.process_time() - started < 2
    assert (len(found.schools), found.findings) == (5000, ())


def test_zone_groups_are_names_that_ansible_takes():
    assert zone_group("mz-aizawl/north 1") == "zone_mz_aizawl_north_1"


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_make_the_reader_stumble(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("any") / "schools.csv"
    for content in (raw, HEADER.encode() + b"\n" + raw):
        path.write_bytes(content)
        found = read_schools(path)
        assert found.schools or found.errors


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20),
            st.sampled_from(["mz", "rj", "ct", "tg", "cg"]),
            st.integers(1, 10**6),
        ),
        min_size=1,
        max_size=20,
        unique_by=lambda row: ("ct" if row[1] == "cg" else row[1], row[2]),
    )
)
def test_every_good_row_becomes_exactly_one_server(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("good") / "schools.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(HEADER.split(";"))
        for index, (name, state, number) in enumerate(rows):
            writer.writerow([index, name, f"{1000000 + index}", f"{state}{number}"])
    found = read_schools(path)
    assert found.errors == ()
    assert [(s.school_code, s.school_name) for s in found.schools] == [
        (f"{1000000 + index}", name.strip()) for index, (name, _, _) in enumerate(rows)
    ]
