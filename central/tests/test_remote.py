"""Objects in a bucket: names, the index, credentials and settings; what needs no server."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shala_central import remote as module
from shala_central.archive import Archive
from shala_central.config import read_config
from shala_central.failure import UsageError
from shala_central.remote import (
    PART,
    Bucket,
    Local,
    Remote,
    RemoteFailed,
    _composed,
    _keys,
    in_parallel,
    read_credentials,
)

DIGEST = hashlib.sha256(b"one").hexdigest()


@given(st.integers(0, 40 * PART))
def test_the_names_in_the_bucket_tell_the_size_of_a_content_and_whether_it_is_whole(size):
    keys = _keys("shared", DIGEST, size)
    assert len(set(keys)) == len(keys) == max(1, -(-size // PART))
    assert all(module._KEY.fullmatch(key) for key in keys)
    if size < PART:
        return
    sizes = {key: min(PART, size - number * PART) for number, key in enumerate(keys)}
    assert _composed(sizes) == (size, 1)
    for lost in (keys[0], keys[-1]):
        left = {key: length for key, length in sizes.items() if key != lost}
        if left:
            assert _composed(left)[1] == 0
            assert _keys("shared", DIGEST, _composed(left)[0]) == keys


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660])
def test_credentials_that_others_can_read_are_refused(tmp_path, mode):
    path = tmp_path / "s3.toml"
    path.write_text('access_key_id = "a"\nsecret_access_key = "b"\n')
    path.chmod(mode)
    with pytest.raises(UsageError, match=r"can be read by others \(chmod 600"):
        read_credentials(path)
    path.chmod(0o600)
    assert read_credentials(path).access_key_id == "a"


def test_what_is_wrong_with_credentials_is_told_without_them(tmp_path):
    path = tmp_path / "s3.toml"
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_credentials(path)
    path.touch(0o600)
    path.write_text('access_key_id = "a"\nsecret_access_key = hidden-words\n')
    with pytest.raises(UsageError, match="must hold") as told:
        read_credentials(path)
    assert "hidden" not in str(told.value)
    assert "hidden" not in repr(told.value.__cause__)


@pytest.mark.parametrize(
    "settings,problem",
    [
        ('view = "on-demand"', "needs archive.objects_url"),
        ('objects_endpoint = "https://s3.example.org"', "without archive.objects_url"),
        ('objects_url = "s3://b-1"\nobjects_endpoint = "http://s3.example.org"', "in clear"),
        ('objects_url = "https://b-1/x"', "objects_url"),
        ('objects_url = "s3://b-1/a//b"', "objects_url"),
        ('objects_url = "s3://b-1"\nobjects_endpoint = "https://me:word@s3.example.org"', "objects_endpoint"),
        ('objects_url = "s3://b-1"\nobjects_endpoint = "https://s3.example.org:70000"', "objects_endpoint"),
        ('objects_url = "s3://b-1"\nobjects_credentials = "s3.toml"', "is not an absolute path"),
    ],
)
def test_settings_of_a_bucket_that_make_no_sense_are_refused(tmp_path, settings, problem):
    path = tmp_path / "central.toml"
    path.write_text(f"format = 1\n[archive]\n{settings}\n")
    with pytest.raises(UsageError, match=problem) as refusal:
        read_config(path)
    assert "me:word" not in str(refusal.value)


def test_a_bucket_may_be_on_this_machine_or_behind_https(tmp_path):
    path = tmp_path / "central.toml"
    for endpoint in ("http://127.0.0.1:8333", "http://[::1]:8333", "https://s3.example.org"):
        path.write_text(
            f'format = 1\n[archive]\nobjects_url = "s3://b-1/a/b/"\nobjects_endpoint = "{endpoint}"\n'
            f'view = "on-demand"\nroot = "{tmp_path}"\n'
        )
        archive = Archive.of(read_config(path).archive)
        assert str(archive.objects.remote.bucket) == f"s3://b-1/a/b at {endpoint}"
        assert archive.objects.on_demand


def test_without_a_bucket_everything_stays_on_this_disk(tmp_path):
    path = tmp_path / "central.toml"
    path.write_text(f'format = 1\n[archive]\nroot = "{tmp_path}"\n')
    assert Archive.of(read_config(path).archive).objects.remote is None
    assert list(tmp_path.iterdir()) == [path]


def test_an_unreachable_bucket_is_told_in_one_line_without_the_keys(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    credentials = tmp_path / "s3.toml"
    credentials.touch(0o600)
    credentials.write_text('access_key_id = "the-id"\nsecret_access_key = "the-word"\n')
    remote = Remote(
        Bucket("b-1", "x", "http://127.0.0.1:1", credentials=credentials), tmp_path / "remote.sqlite"
    )
    (tmp_path / "one").write_bytes(b"one")
    with pytest.raises(RemoteFailed) as told:
        remote.put(tmp_path / "one", "shared", DIGEST)
    text = str(told.value)
    assert text.startswith("s3://b-1/x at http://127.0.0.1:1 cannot be reached: ")
    assert "\n" not in text
    assert "the-" not in text
    assert not remote.has("shared", DIGEST)


def test_a_damaged_index_is_told(tmp_path):
    (tmp_path / "remote.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(RemoteFailed, match="--reindex"):
        Remote(Bucket("b-1"), tmp_path / "remote.sqlite").has("shared", DIGEST)


def test_what_is_known_to_be_there_is_not_even_opened(tmp_path):
    remote = Remote(Bucket("b-1", credentials=tmp_path / "none"), tmp_path / "remote.sqlite")
    with remote._index.written() as db:
        db.execute(module._ADD, ("shared", bytes.fromhex(DIGEST), 3, 1))
    done: list[Local] = []
    item = Local("shared", DIGEST, 3, tmp_path / "gone")
    assert remote.upload([item], done.append).bytes == 0
    assert done == [item]


def test_parallel_work_keeps_its_order_stays_close_and_ends_at_the_first_failure():
    taken: list[int] = []
    running: list[int] = []
    most = 0
    lock = threading.Lock()

    def items():
        for number in range(200):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        nonlocal most
        with lock:
            running.append(number)
            most = max(most, len(running))
        time.sleep(0.001)
        with lock:
            running.remove(number)
        if number == 100:
            raise ValueError(number)
        return number

    results: list[int] = []
    close: list[bool] = []

    def consume() -> None:
        for result in in_parallel(work, items()):
            results.append(result)
            close.append(len(taken) <= result + 5 * module.AT_ONCE)

    with pytest.raises(ValueError, match="100"):
        consume()
    assert all(close)
    assert results == list(range(100))
    assert most <= module.AT_ONCE
    assert len(taken) < 200


def test_a_million_questions_cost_no_request(tmp_path: Path):
    remote = Remote(Bucket("b-1", credentials=tmp_path / "none"), tmp_path / "remote.sqlite")
    digests = [hashlib.sha256(b"%d" % number).digest() for number in range(20_000)]
    with remote._index.written() as db:
        db.executemany(module._ADD, [("shared", digest, 3, 1) for digest in digests])
    started = time.perf_counter()
    assert all(remote.has("shared", digest.hex()) for digest in digests)
    assert time.perf_counter() - started < 5
    assert remote.kept() == module.Kept(20_000, 60_000, 0)
