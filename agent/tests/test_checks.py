from __future__ import annotations

import io
import json
import tarfile
import tracemalloc

import bson as reference
import pytest
from agent_school import bson, csv, rcs, sql
from hypothesis import given, settings
from hypothesis import strategies as st
from shala_agent import checks
from shala_agent.kinds import KINDS

COLUMNS = checks.ACTIVITY_COLUMNS
FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def found(check, tmp_path_factory, content: bytes, *arguments, **options) -> list[str]:
    path = tmp_path_factory.getbasetemp() / "content"
    path.write_bytes(content)
    return list(check(path, *arguments, **options))


@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=5).filter(lambda k: "\0" not in k), st.integers(0, 9) | st.text(max_size=9)
        ),
        max_size=6,
    ),
    st.data(),
)
def test_every_bson_file_counts_right_and_every_cut_one_is_found_or_shorter(
    tmp_path_factory, documents, data
):
    whole = b"".join(map(reference.encode, documents))
    path = tmp_path_factory.getbasetemp() / "documents.bson"
    path.write_bytes(whole)
    assert checks.count_bson(path) == len(documents)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    try:
        assert checks.count_bson(path) == len(reference.decode_all(whole[:cut]))
    except checks.BsonBroken:
        with pytest.raises(reference.errors.InvalidBSON):
            reference.decode_all(whole[:cut])


@given(st.binary(max_size=64))
def test_no_bytes_break_the_bson_walk(tmp_path_factory, content):
    assert len(found(checks.bson_is_whole, tmp_path_factory, content)) <= 1


@given(st.lists(st.lists(FIELD, min_size=len(COLUMNS), max_size=len(COLUMNS)), max_size=5), st.data())
def test_whole_csvs_pass_and_cut_ones_do_not(tmp_path_factory, rows, data):
    text = io.StringIO(newline="")
    writer = __import__("csv").writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    content = text.getvalue().encode()
    assert found(checks.csv_is_whole, tmp_path_factory, content, COLUMNS) == []
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    # A cut exactly behind a row's end cannot be seen in the file itself: the count of rows is another check.
    if not cut.endswith(b"\r\n"):
        assert found(checks.csv_is_whole, tmp_path_factory, cut, COLUMNS)


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [b"a", b",", b"a,b", b'"', b"\r\n", b"\r", b"\n", b"\0", b"\xff", b"\xc3\xa4", b"\xef\xbb\xbf"]
        )
    ),
    st.booleans(),
    st.sampled_from([1, 6, 9, checks.BLOCK]),
)
def test_counting_commas_finds_what_the_parser_finds(tmp_path_factory, pieces, further, block):
    path = tmp_path_factory.getbasetemp() / "plain.csv"
    path.write_bytes(b"a,b\r\n" + b"".join(pieces) + b"\r\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "BLOCK", block)
        quick = list(checks.csv_is_whole(path, ["a", "b"], further=further))
        patch.setattr(checks, "_is_plainly_whole", lambda *_: False)
        assert list(checks.csv_is_whole(path, ["a", "b"], further=further)) == quick


def test_documents_across_the_blocks_of_a_reading_are_counted(tmp_path, monkeypatch):
    path = tmp_path / "n.bson"
    path.write_bytes(bson(50))
    for size in range(4, 40):
        monkeypatch.setattr(checks, "BLOCK", size)
        assert checks.count_bson(path) == 50
        path.write_bytes(bson(50)[:-1] + b"x")
        with pytest.raises(checks.BsonBroken, match="without an end"):
            checks.count_bson(path)
        path.write_bytes(bson(50))


@pytest.mark.parametrize(
    "content, finding",
    [
        (b"", "empty"),
        (csv(COLUMNS)[:-1], "was cut"),
        (csv(COLUMNS) + b"a,b\r\n", "1 row with"),
        (csv(["Unit", "Other"]), "other columns"),
        (csv([*COLUMNS, "More"]), "other columns"),
        (csv(COLUMNS) + b"\xff" + b",x" * 8 + b"\r\n", "UTF-8"),
    ],
)
def test_a_broken_csv_is_found_by_its_fault(tmp_path_factory, content, finding):
    assert finding in " ".join(found(checks.csv_is_whole, tmp_path_factory, content, COLUMNS))


def test_an_empty_line_is_no_row_of_a_csv_with_one_column(tmp_path_factory):
    whole = b"a\r\nb\r\n"
    assert not found(checks.csv_is_whole, tmp_path_factory, whole, ["a"])
    assert found(checks.csv_is_whole, tmp_path_factory, whole + b"\r\n" + whole, ["a"])


@pytest.mark.parametrize("kind", ["rectangular", "ragged"])
def test_a_csv_without_line_ends_is_found_in_little_memory(tmp_path, kind):
    path = tmp_path / "x.csv"
    with path.open("wb") as file:
        file.write(csv(COLUMNS))
        file.truncate(100_000_000)
    tracemalloc.start()
    found = list(checks.csv_is_whole(path, COLUMNS, rectangular=kind == "rectangular"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert any("a line longer than 1048576 bytes" in one for one in found)
    assert most < 20_000_000


def test_a_json_that_would_take_the_agents_memory_is_not_parsed(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[" + ",".join(["{}"] * 2_000_000) + "]")
    tracemalloc.start()
    assert "not read" in next(checks.json_parses(path))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_what_is_no_text_is_found_beyond_the_first_block_of_a_ragged_csv(tmp_path):
    path = tmp_path / "activity-data.csv"
    rows = b"a-mz17,1,2018-01-01,1,2,3,4\r\n" * 1000
    path.write_bytes(b"Username,UserID\r\n" + rows)
    check = KINDS["qbank"].check
    assert list(check(path, "student-activities/activity-data.csv", "")) == []
    path.write_bytes(b"Username,UserID\r\n" + rows + b"b\xff-mz17,1\r\n")
    assert "UTF-8" in next(check(path, "student-activities/activity-data.csv", ""))


@pytest.mark.parametrize("content", [b"", rcs()[:-1], rcs()[:-20], rcs()[5:], b"\0" * 50])
def test_a_history_is_whole_or_found(tmp_path_factory, content):
    assert found(checks.rcs_is_whole, tmp_path_factory, content)
    assert not found(checks.rcs_is_whole, tmp_path_factory, rcs())


def test_the_header_only_activity_data_is_found(tmp_path_factory):
    assert found(checks.csv_has_rows, tmp_path_factory, b"Username,UserID\r\n") == ["holds only its header"]
    assert found(checks.csv_has_rows, tmp_path_factory, b"Username,UserID\r\na,1\r\n") == []


def test_an_sql_dump_without_its_trailer_is_not_whole(tmp_path_factory):
    assert (
        found(checks.sql_dump_is_complete, tmp_path_factory, b"CREATE\n" + checks.SQL_TRAILER + b"\n\n") == []
    )
    assert found(checks.sql_dump_is_complete, tmp_path_factory, b"CREATE\n")
    assert found(checks.sql_dump_is_complete, tmp_path_factory, b"")


def test_a_tar_must_read_to_its_end_and_hold_what_is_expected(tmp_path_factory):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("qbank/mongo-dump/x.bson")
        member.size = 50_000
        archive.addfile(member, io.BytesIO(__import__("os").urandom(50_000)))
    content = packed.getvalue()
    assert found(checks.tar_gz_reads, tmp_path_factory, content, ["mongo-dump"]) == []
    assert found(checks.tar_gz_reads, tmp_path_factory, content, ["student-activities"])
    assert found(checks.tar_gz_reads, tmp_path_factory, content[:-2000], ["mongo-dump"])
    assert found(checks.tar_gz_reads, tmp_path_factory, b"", [])


def test_a_medium_is_what_its_name_says():
    name = "a" * 64
    path = f"a/a/a/{name[3:]}.ogg"
    assert list(checks.media_name_is_sha256(path, name)) == []
    assert list(checks.media_name_is_sha256(path, "b" * 64))
    assert list(checks.media_name_is_sha256("help_videos/intro.mp4", "b" * 64)) == []


def test_a_heartbeat_cut_or_empty_is_found(tmp_path_factory):
    whole = b"shala heartbeat 1\nMem:\nFilesystem\nload average\nPID\nend of heartbeat\n"
    assert found(checks.heartbeat_is_complete, tmp_path_factory, whole) == []
    assert found(checks.heartbeat_is_complete, tmp_path_factory, whole[:-10])
    assert found(checks.heartbeat_is_complete, tmp_path_factory, whole[:20])
    assert found(checks.heartbeat_is_complete, tmp_path_factory, b"")


def test_counting_is_of_documents_and_not_of_bytes(tmp_path):
    (tmp_path / "n.bson").write_bytes(bson(1000))
    assert checks.count_bson(tmp_path / "n.bson") == 1000


def test_a_dump_without_roles_or_users_is_no_dump_of_the_cluster(tmp_path_factory):
    check = checks.sql_dump_holds_accounts
    assert found(check, tmp_path_factory, sql()) == []
    assert found(check, tmp_path_factory, sql().replace(b"public.", b"")) == []
    assert "no roles" in found(check, tmp_path_factory, sql().replace(b"ROLE", b"USER"))[0]
    assert "no users" in found(check, tmp_path_factory, sql(users=0))[0]
    assert "no users" in found(check, tmp_path_factory, sql().replace(b"auth_user", b"auth_group"))[0]


@pytest.mark.parametrize(
    "source, finding",
    [
        ("GSTUDIO_INSTITUTE_NAME = 'St. John'\n", ""),
        ("try:\n  from x import *\nexcept Exception, error:\n  print 'Python 2', 0777, u'x'\n", ""),
        ("raise SystemExit(7)\n", ""),
        ("GSTUDIO_INSTITUTE_NAME = 'St.John's HSS'\n", "line 1"),
        ("DATABASES = {'default': {'NAME': 'gstudio_psql',\n", "cut"),
        ("", "empty"),
        (" \n", "empty"),
        ("NAME = '\x00'\n", "zero bytes"),
    ],
)
def test_settings_are_parsed_and_never_run(tmp_path_factory, source, finding):
    said = " ".join(found(checks.settings_parse, tmp_path_factory, source.encode()))
    assert (finding in said) if finding else said == ""


def test_settings_of_a_size_that_none_have_are_not_read(tmp_path):
    path = tmp_path / "local_settings.py"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    tracemalloc.start()
    assert "it was damaged" in next(checks.settings_parse(path))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_settings_that_are_no_text_are_said(tmp_path_factory):
    assert "UTF-8" in found(checks.settings_parse, tmp_path_factory, b"NAME = '\xff'\n")[0]


def test_a_git_log_lacks_no_command_of_any_repository(tmp_path_factory):
    one = "# /home/x\n## git status\n## git diff\n## git log -5\n## git branch\n"
    check = checks.git_log_is_complete
    assert found(check, tmp_path_factory, f"Date : now\n\n{one}\n{one}".encode()) == []
    cut = f"Date : now\n\n{one}\n{one}".encode()[:-28]
    assert found(check, tmp_path_factory, cut) == ["/home/x lacks git log -5, git branch"]
    assert found(check, tmp_path_factory, b"Date : now\n") == ["names no repository"]


@given(st.lists(st.lists(FIELD, min_size=2, max_size=2)))
def test_rows_are_counted_as_a_reader_of_csvs_does(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        __import__("csv").writer(file).writerows([["a", "b"], *rows])
    assert checks.count_rows(path) == len(rows)


def test_a_drop_is_what_goes_beyond_the_share():
    assert not checks.dropped(80, 100, 20)
    assert checks.dropped(79, 100, 20)
    assert not checks.dropped(0, 100, 100)
    assert not checks.dropped(0, 0, 20)


LINE_CHECKS = {
    "csv": lambda path: list(checks.csv_is_whole(path, COLUMNS)),
    "sql": lambda path: list(checks.sql_dump_holds_accounts(path)),
    "bson": lambda path: list(checks.bson_is_whole(path)),
    "json": lambda path: list(checks.json_parses(path)),
}


@pytest.mark.parametrize("kind", LINE_CHECKS)
@pytest.mark.parametrize("begin", [b"", b'"', ",".join(COLUMNS).encode() + b'\r\n"'])
def test_a_file_of_zeros_as_a_power_cut_leaves_it_is_found_and_does_not_fill_the_memory(
    tmp_path, kind, begin
):
    path = tmp_path / "content"
    path.write_bytes(begin)
    with path.open("r+b") as file:
        file.truncate(80 << 20)
    assert peak_mb(lambda: LINE_CHECKS[kind](path)) < 64


def test_a_field_of_many_lines_that_never_ends_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "content"
    path.write_bytes(",".join(COLUMNS).encode() + b'\r\n"' + b"0123456789abcde\n" * (8 << 20))
    assert peak_mb(lambda: LINE_CHECKS["csv"](path)) < 64


def peak_mb(look, *, found: bool = True) -> float:
    tracemalloc.start()
    try:
        assert bool(look()) == found
        return tracemalloc.get_traced_memory()[1] / (1 << 20)
    finally:
        tracemalloc.stop()


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(VALUE, st.booleans(), st.data())
def test_json_is_judged_as_its_own_parser_judges_it(tmp_path_factory, value, ascii_only, data):
    whole = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 2)))
    content = whole[:start] + data.draw(st.binary(max_size=2)) + whole[end:]
    try:
        json.loads(content)
        is_json = True
    except ValueError:
        is_json = False
    assert (found(checks.json_parses, tmp_path_factory, content) == []) == (is_json and content != b"")


@pytest.mark.parametrize("content", [b"NaN", b'"\\ud800"', b"\xef\xbb\xbf{}", "{}".encode("utf-16")])
def test_json_as_python_writes_it_passes(tmp_path_factory, content):
    assert found(checks.json_parses, tmp_path_factory, content) == []


@pytest.mark.parametrize("content", [b'"\xe9"', b'{"a": "\xff"}', b'["\xe0\xa4"]'])
def test_json_that_is_not_utf_8_is_found(tmp_path_factory, content):
    assert found(checks.json_parses, tmp_path_factory, content) != []
