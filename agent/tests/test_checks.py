from __future__ import annotations

import io
import tarfile

import bson as reference
import pytest
from agent_school import bson, csv
from hypothesis import given, settings
from hypothesis import strategies as st
from shala_agent import checks

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
)
def test_counting_commas_finds_what_the_parser_finds(tmp_path_factory, pieces, further):
    path = tmp_path_factory.getbasetemp() / "plain.csv"
    path.write_bytes(b"a,b\r\n" + b"".join(pieces) + b"\r\n")
    quick = list(checks.csv_is_whole(path, ["a", "b"], further=further))
    with pytest.MonkeyPatch.context() as patch:
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
