from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shala_agent.manifest import (
    Change,
    File,
    ManifestError,
    bagit_lines,
    read_files,
    sort_key,
    write_line,
)

NAME = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="/"),
    min_size=1,
    max_size=6,
)
PATH = st.lists(NAME | st.sampled_from(["a", "a b", "a-b", "A"]), min_size=1, max_size=4).map("/".join)
CONTENT = st.builds(
    lambda seed, mtime, mode: (hashlib.sha256(bytes([seed])).hexdigest(), seed, mtime, mode),
    st.integers(0, 5),
    st.integers(-(10**18), 2 * 10**18),
    st.integers(0, 0o777),
)
FILES = st.dictionaries(PATH, CONTENT, max_size=12).map(
    lambda found: sorted((File(path, *what) for path, what in found.items()), key=lambda f: sort_key(f.path))
)


def lines_of(changes: Iterable[Change]) -> list[bytes]:
    return [write_line(change) for change in changes]


@given(FILES)
def test_what_is_written_is_read_back(files: list[File]) -> None:
    assert list(read_files(lines_of(files))) == files


@given(FILES)
def test_a_folder_stands_together(files: list[File]) -> None:
    folders = [file.path.rpartition("/")[0] for file in files]
    for folder in set(folders):
        inside = [i for i, path in enumerate(folders) if f"{path}/".startswith(f"{folder}/")]
        assert inside == list(range(inside[0], inside[0] + len(inside))) or folder == ""


def test_the_lines_of_bagit_are_those_that_sha256sum_reads() -> None:
    file = File("data/gstudio/local_settings.py", "0" * 64, 3, 0, 0o644)
    assert list(bagit_lines([file])) == [b"0" * 64 + b"  data/gstudio/local_settings.py\n"]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([b"nonsense\n"], "line 1 is not a line"),
        ([b"-a\n"], "marked as gone"),
        ([write_line(File("a", "0" * 64, 1, 1, 0o644))[:-1]], "line 1 is cut"),
        ([b"\xff\n"], "line 1 is not UTF-8"),
        ([write_line(File(p, "0" * 64, 1, 1, 0o644)) for p in ("b", "a")], "line 2: 'a' is out of order"),
        ([write_line(File(p, "0" * 64, 1, 1, 0o644)) for p in ("a", "a")], "or there twice"),
        ([b"0" * 64 + b" 99999999999999999999 1 0644 a\n"], "line 1 is not a line"),
    ],
)
def test_what_is_no_manifest_is_refused_by_its_line(lines: list[bytes], complaint: str) -> None:
    with pytest.raises(ManifestError, match=complaint):
        list(read_files(lines))
