"""What a hostile school may send, and what is said about it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import posixpath

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shala_agent.collection import BAGIT, bag_info, read_collection, tag_manifest, write_collection
from shala_agent.manifest import File, bagit_lines, read_files, sort_key, write_line
from shala_central.bag import (
    MAX_REASONS,
    SMALL_TAG_FILES,
    BagRefused,
    Head,
    count_items,
    fold_files,
    path_problem,
    read_bag,
    read_head,
    survey,
)
from shala_central.config import Limits
from shala_central.fleet import Server
from shala_central.listing import changes_between

SERVER = Server("2031017-mz17", "mz", "127.0.0.1")
DIGEST = "0" * 64
FILES = {"gstudio/db/a.bson": b"a", "gstudio/media/b": b"bb"}


def listed(*paths: str) -> list[bytes]:
    """Return a list of files with these paths, in order."""
    return [write_line(File(path, DIGEST, 0, 0, 0o644)) for path in sorted(paths, key=sort_key)]


def believed(tags: dict[str, bytes], head: Head, limits: Limits | None = None):
    small = {name: raw for name, raw in tags.items() if name in SMALL_TAG_FILES}
    return read_bag(small, io.BytesIO(tags["files.txt"]), head, SERVER, limits or Limits())


def head(**changes: object) -> bytes:
    digests = dict.fromkeys(("manifest_sha256", "files_sha256", "tag_manifest_sha256"), DIGEST)
    sound = {"format": 2, "server_name": SERVER.name, "sequence": 1, "year": 2026, **digests}
    return json.dumps({**sound, **changes}).encode()


def refusal(*paths: str, **limits: object) -> str:
    with pytest.raises(BagRefused) as refused:
        survey(listed(*paths), Limits(**limits))
    return str(refused.value)


def head_of(school, tags: dict[str, bytes]) -> Head:
    names = ("manifest-sha256.txt", "files.txt", "tagmanifest-sha256.txt")
    digests = [hashlib.sha256(tags.get(name, b"")).hexdigest() for name in names]
    return Head(2, school.name, school.sequence, school.year, *digests)


@pytest.fixture
def sealed_school(school):
    school.sequence = 3
    return school


@pytest.mark.parametrize(
    "path, why",
    [
        ("/etc/passwd", "is an absolute path"),
        ("data/../../../etc/passwd", "climbs out of its folder"),
        ("data/gstudio/db/..", "climbs out of its folder"),
        ("data/gstudio//db", "has an empty part"),
        ("data/./gstudio/db", "has an empty part"),
        ("data/gstudio/db/", "has an empty part"),
        ("gstudio/db/x", "is not below data/"),
        ("data/x", "is not below a platform"),
        ("data/gstudio", "is not below a platform"),
        ("data/windows/db/x", "is not below a platform"),
        ("data/gstudio/db/a\x1b[2Jb", "holds control characters"),
        ("data/gstudio/db/a\u202egpj.exe", "holds control characters"),
        ("data/gstudio/db/a\u2028b", "holds control characters"),
        ("data/gstudio/db/\x00", "holds control characters"),
        ("data/gstudio/db/" + "x" * 256, "has a name of more than 255 bytes"),
        ("data/gstudio/db/" + "क" * 86, "has a name of more than 255 bytes"),
        ("data/gstudio/db/.shala-partial/x", "which is kept for unfinished transfers"),
        ("data/gstudio/" + "d/" * 70 + "x", "is more than 64 folders deep"),
        ("data/gstudio/" + "/".join(["d" * 100] * 12), "is longer than 1024 bytes"),
    ],
)
def test_a_path_that_must_not_be_written_is_refused(path, why):
    message = refusal(path)
    assert why in message
    assert all(c.isprintable() for c in message)


@pytest.mark.parametrize(
    "path",
    [
        "data/gstudio/local_settings.py",
        "data/unplatform/x/y",
        "data/gstudio/media/a b (1) 100%25 'q' \"d\" $x;|&.jpg",
        "data/gstudio/media/నమస్తే क्\u200dष.txt",
        "data/gstudio/media/..hidden",
        "data/gstudio/media/-rf",
        "data/gstudio/media/#x",
    ],
)
def test_a_path_that_is_only_unusual_is_taken_as_it_stands(path):
    assert survey(listed(path), Limits()).files == 1


def test_a_path_listed_twice_is_refused():
    assert "line 2: 'data/gstudio/db/x' is out of order or there twice" in refusal(
        "data/gstudio/db/x", "data/gstudio/db/x"
    )


@pytest.mark.parametrize(
    "one, other",
    [("a", "A"), ("caf\u00e9", "cafe\u0301"), ("stra\u00dfe", "STRASSE"), ("d/x", "D/y")],
)
def test_names_that_a_usb_disk_cannot_tell_apart_are_refused_unless_allowed(one, other):
    paths = (f"data/gstudio/media/{one}", f"data/gstudio/media/{other}")
    assert "only in case or spelling (limits.case_collisions)" in refusal(*paths)
    assert survey(listed(*paths), Limits(case_collisions="allow")).files == 2


def test_a_file_that_is_also_a_folder_is_refused():
    paths = ("data/gstudio/db/x", "data/gstudio/db/x/y")
    assert "is both a file and a folder" in refusal(*paths)
    assert "is both a file and a folder" in refusal(*paths, case_collisions="allow")


def test_more_files_than_allowed_are_refused():
    assert "more than 2 files (limits.max_files" in refusal(
        *(f"data/gstudio/db/{n}" for n in range(3)), max_files=2
    )


def test_a_thousand_reasons_are_counted_not_listed():
    with pytest.raises(BagRefused) as refused:
        survey(listed(*(f"/{n}" for n in range(1000))), Limits())
    assert len(refused.value.reasons) == MAX_REASONS + 1
    assert refused.value.reasons[-1] == f"and {1000 - MAX_REASONS} more"


@pytest.mark.parametrize(
    "raw", [b"\xff\n", b"no manifest\n", b"0" * 64 + b"\n", b"", b"0" * 63 + b" 1 1 0644 data/gstudio/x\n"]
)
def test_what_is_no_manifest_is_refused(raw):
    with pytest.raises(BagRefused):
        survey(io.BytesIO(raw), Limits())


@pytest.mark.parametrize(
    "raw, why",
    [
        (b"", "is not readable"),
        (b"[]", "is not readable"),
        (b'{"format":2}', "is not readable"),
        (b"\xff", "is not readable"),
        (head(format=3), "update the centre"),
        (head(format=1), "update the agent"),
        (head(server_name="a-b"), "'a-b'"),
        (head(year=1970), "clock"),
        (head(sequence=-1), "sequence"),
        (head(manifest_sha256="../x"), "manifest"),
    ],
)
def test_a_head_that_cannot_be_believed_is_refused(raw, why):
    with pytest.raises(BagRefused, match=why):
        read_head(raw, SERVER)


def test_a_head_of_tomorrow_with_more_fields_is_read():
    assert read_head(head(new=1), SERVER).sequence == 1


def test_a_sound_bag_is_believed(sealed_school):
    tags = sealed_school.tag_files(FILES)
    bag = believed(tags, head_of(sealed_school, tags))
    assert (bag.files, bag.payload_bytes) == (len(FILES), 3)


def test_a_bag_that_the_agent_writes_is_believed(sealed_school):
    sealed_school.items = {"db": "ok", "media": "suspect"}
    said = read_collection(json.dumps(sealed_school.collection(school_name="नमस्ते: St. X\r")).encode())
    listed = [
        File(f"data/{p}", hashlib.sha256(raw).hexdigest(), len(raw), 7, 0o600) for p, raw in FILES.items()
    ]
    tags = {
        "bagit.txt": BAGIT,
        "bag-info.txt": bag_info(said, 3, len(FILES)),
        "collection.json": write_collection(said),
        "files.txt": b"".join(map(write_line, listed)),
        "manifest-sha256.txt": b"".join(bagit_lines(listed)),
    }
    digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in tags.items()}
    tags["tagmanifest-sha256.txt"] = tag_manifest(digests)
    assert believed(tags, head_of(sealed_school, tags)).collection == said


@pytest.mark.parametrize("name", ["bagit.txt", "bag-info.txt", "collection.json", "tagmanifest-sha256.txt"])
def test_a_tag_file_that_is_missing_or_changed_is_named(sealed_school, name):
    tags = sealed_school.tag_files(FILES)
    head = head_of(sealed_school, tags)
    with pytest.raises(BagRefused, match=f"{name} is missing"):
        believed({other: raw for other, raw in tags.items() if other != name}, head)
    changed = {**tags, name: tags[name] + b"x"}
    with pytest.raises(BagRefused, match=r"tagmanifest-sha256\.txt"):
        believed(changed, head_of(sealed_school, changed))


def test_a_manifest_that_head_does_not_name_is_refused(sealed_school):
    tags = sealed_school.tag_files(FILES)
    sound = head_of(sealed_school, tags)
    for field in ("manifest_sha256", "files_sha256", "tag_manifest_sha256"):
        name = field.replace("_sha256", "").replace("tag_manifest", "tagmanifest-sha256.txt")
        name = {"manifest": "manifest-sha256.txt", "files": "files.txt"}.get(name, name)
        with pytest.raises(BagRefused, match=f"{name} is not the one that HEAD"):
            believed(tags, msgspec.structs.replace(sound, **{field: DIGEST}))


PATHS = st.lists(st.sampled_from("abcd/"), min_size=1, max_size=4).map("".join)
LISTED = st.dictionaries(PATHS, st.integers(0, 9), max_size=6).map(
    lambda found: sorted(
        (File(p, DIGEST, n, n, 0o644) for p, n in found.items()), key=lambda f: sort_key(f.path)
    )
)


@given(st.lists(LISTED, min_size=1, max_size=5))
def test_the_newest_list_of_files_follows_from_an_old_one_and_the_changes_since(days):
    written = [list(map(write_line, day)) for day in days]
    changes = [list(map(write_line, changes_between(a, b))) for a, b in itertools.pairwise(written)]
    assert list(fold_files(written[0], changes)) == written[-1]


@pytest.mark.parametrize("lines", [b"nonsense\n", b"-a", b"-b\n-a\n", b"-\xff\n"])
def test_a_list_that_is_none_is_refused(lines):
    with pytest.raises(BagRefused, match="list of changes"):
        list(fold_files([], [io.BytesIO(lines)]))
    with pytest.raises(BagRefused, match=r"files\.txt"):
        survey(io.BytesIO(lines), Limits())


@pytest.mark.parametrize(
    "oxum, why",
    [
        ("3.3", "counts 3 files"),
        ("3", "no Payload-Oxum"),
        ("9999999.2", "of 9999999 bytes"),
        ("-1.2", "no Payload-Oxum"),
    ],
)
def test_a_payload_sum_that_does_not_fit_is_refused(sealed_school, oxum, why):
    from_conftest = sealed_school.tag_files(FILES)
    from_conftest["bag-info.txt"] = f"Payload-Oxum: {oxum}\n".encode()
    tags = sealed_school.resealed(from_conftest)
    with pytest.raises(BagRefused, match=why):
        believed(tags, head_of(sealed_school, tags), Limits(max_bytes=1000))


@pytest.mark.parametrize(
    "change",
    [
        {"server_name": "2031008-mz8"},
        {"state": "rj"},
        {"school_code": "2031018"},
        {"server_id": "mz1"},
        {"sequence": 4},
        {"year": 2025},
    ],
)
def test_a_collection_that_says_it_is_another_is_refused(sealed_school, change):
    tags = sealed_school.tag_files(FILES, **change)
    with pytest.raises(BagRefused, match="expected was"):
        believed(tags, head_of(sealed_school, tags))


def test_more_bytes_than_allowed_are_refused(sealed_school):
    tags = sealed_school.tag_files(FILES)
    with pytest.raises(BagRefused, match=r"limits\.max_bytes allows"):
        believed(tags, head_of(sealed_school, tags), Limits(max_bytes=2))


def test_an_item_that_is_said_to_be_there_and_is_not_is_refused(sealed_school):
    item = {"platform": "gstudio", "name": "postgres-dump", "outcome": "ok", "files": 1}
    tags = sealed_school.tag_files(FILES)
    said = json.loads(tags["collection.json"])
    said["items"].append(item)
    tags = sealed_school.resealed({**tags, "collection.json": json.dumps(said).encode()})
    with pytest.raises(BagRefused, match="says that gstudio/postgres-dump has 1 files"):
        believed(tags, head_of(sealed_school, tags))


def test_a_head_that_is_nested_without_end_is_refused():
    with pytest.raises(BagRefused, match="HEAD is not readable"):
        read_head(b'{"format": 2, "x": ' + b"[" * 5000, SERVER)


def test_items_are_counted_and_absent_ones_are_missing(sealed_school):
    sealed_school.items = {"db": "ok", "media": "suspect", "qbank": "failed", "nginx-logs": "skipped"}
    tags = sealed_school.tag_files(FILES)
    bag = believed(tags, head_of(sealed_school, tags))
    assert count_items(bag.collection) == {"ok": 1, "suspect": 1, "failed": 1, "missing": 12}


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_stumble(raw):
    with contextlib.suppress(BagRefused):
        survey(io.BytesIO(raw), Limits())


PART = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), max_size=12)


@given(st.lists(st.one_of(PART, st.sampled_from(["..", ".", "", "a"])), min_size=1, max_size=6).map("/".join))
def test_a_path_that_passes_stays_inside_whatever_it_is(path):
    if not path_problem(path, Limits()):
        joined = posixpath.normpath(posixpath.join("/root/data", path))
        assert joined.startswith("/root/data/")
        assert joined == f"/root/data/{path}"
        assert "\n" not in path
        assert "\0" not in path


@given(
    st.dictionaries(
        PART.filter(lambda p: not path_problem(p, Limits())), st.binary(max_size=8), min_size=1, max_size=8
    )
)
def test_a_list_that_was_written_comes_to_the_digest_of_its_manifest(files):
    lines = listed(*(f"data/gstudio/db/{name}" for name in files))
    manifest = b"".join(bagit_lines(read_files(lines)))
    found = survey(lines, Limits(case_collisions="allow"))
    assert (found.files, found.manifest_sha256) == (len(files), hashlib.sha256(manifest).hexdigest())
    assert found.files_sha256 == hashlib.sha256(b"".join(lines)).hexdigest()
