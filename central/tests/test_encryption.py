"""Sensitive items: what the disk holds, what the researchers get, what a crash leaves, and turning it on later."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import sqlite3
import stat
import subprocess
from pathlib import Path

import bagit
import pyrage
import pytest
from central_school import deliver, overwrite, received, sha256, tree_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from power_cut import Crash, steps
from shala_agent.manifest import File, read_files, sort_key, write_line
from shala_central import copies as copies_module
from shala_central import objects as objects_module
from shala_central.archive import Archive
from shala_central.backup import back_up, damaged_tables, put_back
from shala_central.bag import BagRefused
from shala_central.checkout import checkout
from shala_central.ciphertext import Ciphertexts, Encrypted, decrypt, item_of, read_identities
from shala_central.commit import accept, restore
from shala_central.config import ArchiveSettings, read_config
from shala_central.encryption import encrypt
from shala_central.export import export
from shala_central.failure import CentralError, UsageError
from shala_central.integrity import SecondCopy, damaged_objects, repair, scrub
from shala_central.mending import drop_damaged, mend_earlier_years
from shala_central.provenance import provenance
from shala_central.quarantine import quarantine
from shala_central.retention import prune
from shala_central.staging import Staging
from shala_central.verify import verify
from shala_central.versions import diff, pulls_of, version_of, versions_of

RESEARCHER, ANOTHER = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
SENSITIVE = ("postgres-dump", "qbank")
DUMP, QBANK = "gstudio/postgres-dump/pg_dump_all.sql", "gstudio/qbank/q"
DAY_1 = {DUMP: b"a secret of day 1", QBANK: b"a secret, too", "gstudio/db/a": b"one"}
DAY_2 = {DUMP: b"a secret of day 2", QBANK: b"a secret, too", "gstudio/db/a": b"two!"}
ENCRYPTION_STEPS = (
    (os, "utime"),
    (objects_module, "remove_tree"),
    (objects_module, "sync_file_system"),
    (Ciphertexts, "add"),
    (Ciphertexts, "encrypt"),
)


def opened(root: Path, *recipients: object, shared: tuple[str, ...] = ()) -> Archive:
    """Open an archive as a centre that encrypts to these recipients does; to none: as one that does not."""
    keys = [str(identity.to_public()) for identity in recipients]
    archive = Archive(root, shared, recipients=keys, sensitive_items=SENSITIVE)
    archive.open()
    return archive


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return opened(tmp_path / "archive", RESEARCHER, ANOTHER)


@pytest.fixture
def plain(tmp_path: Path) -> Archive:
    """The same archive in the days before it was to be encrypted."""
    return opened(tmp_path / "archive")


@pytest.fixture
def day(school):
    """Let a school deliver a day to an archive: `day(archive, files, suspect items...)`."""

    def day(archive: Archive, files: dict[str, bytes], *suspect: str, year: int = 2026) -> None:
        deliver(archive, school, files, *suspect, year=year)

    return day


def seen(archive: Archive, year: int = 2026, identity: object = RESEARCHER) -> dict[str, bytes]:
    """Return what readers see, age files as the holder of a key reads them."""
    tree = archive.root / str(year) / "mz" / "2031017-mz17"
    found = tree_of(tree)
    return {
        path: pyrage.decrypt(content, [identity]) if path.endswith(".age") else content
        for path, content in found.items()
    }


def hidden(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return files under the names that they have where sensitive ones are encrypted."""
    return {
        f"{path}.age" if path.split("/")[1] in SENSITIVE else path: content for path, content in files.items()
    }


def secrets_on(root: Path) -> list[str]:
    """Return the files below a folder in which a secret can be read."""
    return [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and b"a secret" in path.read_bytes()
    ]


def object_of(archive: Archive, path: str, content: bytes) -> Path:
    """Return the object in which a file's content is kept."""
    file = File(f"data/{path}", sha256(content), len(content), 0, 0o644)
    stored = archive.objects.ciphertexts.as_stored("2031017-mz17", file)
    place = archive.objects.find("2031017-mz17", stored.path.removeprefix("data/"), stored.sha256)
    assert place is not None
    return place


# -- what comes ----------------------------------------------------------------------------------------------


def test_a_sensitive_item_is_on_no_disk_but_as_age_files_that_each_researcher_can_read(archive, day):
    day(archive, DAY_1)
    assert secrets_on(archive.root) == []
    assert seen(archive) == seen(archive, identity=ANOTHER) == hidden(DAY_1)
    with pytest.raises(pyrage.DecryptError):
        seen(archive, identity=pyrage.x25519.Identity.generate())
    assert verify(archive, "2031017-mz17") == []


def test_an_unchanged_secret_is_neither_fetched_nor_encrypted_again(archive, school, day):
    day(archive, DAY_1)
    before = (archive.root / f"2026/mz/{school.name}/{QBANK}.age").stat().st_ino
    day(archive, DAY_2)
    day(archive, {**DAY_1, "gstudio/qbank/moved": DAY_1[QBANK]})
    assert archive.committed(school.name).pull.files_received == 0
    day(archive, DAY_2)
    assert (archive.root / f"2026/mz/{school.name}/{QBANK}.age").stat().st_ino == before
    assert [record.files_received for record in pulls_of(archive, school.name)] == [3, 2, 0, 0]


def test_a_server_gets_no_secret_of_another_by_naming_its_digest(archive, school, day, another_school):
    day(archive, DAY_1)
    other = another_school("2031018-mz18")
    other.items, other.sequence = {"postgres-dump": "ok"}, 1
    file = File(f"data/{DUMP}", sha256(DAY_1[DUMP]), len(DAY_1[DUMP]), 0, 0o644)
    staging = Staging(archive.staging(other.name) / "data", archive.objects, other.name)
    assert list(staging.missing([], [write_line(file)])) == [file]


def test_a_content_that_is_plain_in_another_item_is_encrypted_here_all_the_same(archive, school, day):
    day(archive, {"gstudio/db/empty": b"", "gstudio/qbank/empty": b""})
    assert seen(archive) == {"gstudio/db/empty": b"", "gstudio/qbank/empty.age": b""}
    day(archive, {"gstudio/db/empty": b"", "gstudio/qbank/empty": b"", "gstudio/postgres-dump/e": b""})
    assert seen(archive)["gstudio/postgres-dump/e.age"] == b""
    assert verify(archive, school.name) == []


def test_what_an_earlier_run_fetched_whole_is_encrypted_and_not_fetched_again(archive, school):
    staging = Staging(archive.staging(school.name) / "data", archive.objects, school.name)
    (staging.folder / DUMP).parent.mkdir(parents=True)
    (staging.folder / DUMP).write_bytes(DAY_1[DUMP])
    later = Staging(staging.folder, archive.objects, school.name)
    file = File(f"data/{DUMP}", sha256(DAY_1[DUMP]), len(DAY_1[DUMP]), 0, 0o644)
    assert list(later.missing([], [write_line(file)])) == []
    assert secrets_on(archive.root) == []


def test_what_has_not_come_whole_is_for_its_owner_alone(archive):
    assert stat.S_IMODE((archive.hidden / "staging").stat().st_mode) == 0o700


def test_a_refused_secret_is_not_kept_to_be_looked_at(archive, school):
    path = archive.staging(school.name) / "data" / DUMP
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a secret, but damaged")
    quarantine(archive, school.name, 1, BagRefused(["bad"], [DUMP]), {})
    assert secrets_on(archive.root) == []


def test_a_file_with_the_name_of_an_age_file_is_refused(archive, school, day):
    archive = Archive(
        archive.root, recipients=[str(RESEARCHER.to_public())], sensitive_items=["gstudio/l.py"]
    )
    with pytest.raises(BagRefused, match=r"'gstudio/l.py.age' has a name that an encrypted file has here"):
        day(archive, {"gstudio/l.py": b"secret", "gstudio/l.py.age": b"a claim"})
    with pytest.raises(BagRefused, match=r"'gstudio/l.py.age/x' has a name"):
        day(archive, {"gstudio/l.py": b"secret", "gstudio/l.py.age/x": b"a claim"})
    assert archive.committed(school.name) is None
    day(archive, {"gstudio/l.py": b"secret", "gstudio/l.py-2": b"in between"})
    assert set(seen(archive)) == {"gstudio/l.py.age", "gstudio/l.py-2"}


def test_a_name_that_would_be_too_long_is_refused(archive, day):
    with pytest.raises(BagRefused, match="too long to be that of an encrypted file"):
        day(archive, {f"gstudio/qbank/{'x' * 252}": b"secret"})


def test_a_held_secret_stays_in_view_and_comes_back(archive, school, day, tmp_path):
    day(archive, DAY_1)
    day(archive, DAY_2, "postgres-dump")
    assert seen(archive) == hidden({**DAY_2, DUMP: DAY_1[DUMP]})
    assert verify(archive, school.name) == []
    accept(archive, school.name)
    assert seen(archive) == hidden(DAY_2)
    restore(archive, school.name, version_of(archive, school.name, 1), ["gstudio/postgres-dump"])
    assert seen(archive) == hidden({**DAY_2, DUMP: DAY_1[DUMP]})
    assert verify(archive, school.name) == []


# -- what a crash leaves -------------------------------------------------------------------------------------


def test_a_crash_at_any_step_shows_the_old_or_the_new_and_the_next_run_mends_it(tmp_path, school, day):
    for crash_at in range(1, 300):
        archive = opened(tmp_path / str(crash_at), RESEARCHER)
        school.sequence = 0
        day(archive, DAY_1)
        with pytest.MonkeyPatch.context() as monkeypatch:
            done = steps(monkeypatch, crash_at, *ENCRYPTION_STEPS)
            try:
                day(archive, DAY_2)
            except Crash:
                finished = False
            else:
                finished = True
        assert seen(archive) in (hidden(DAY_1), hidden(DAY_2)), done
        assert [path for path in secrets_on(archive.root) if "/staging/" not in path] == [], done
        archive = opened(tmp_path / str(crash_at), RESEARCHER)
        school.sequence = 1
        day(archive, DAY_2)
        assert seen(archive) == hidden(DAY_2), done
        assert secrets_on(archive.root) == [], done
        assert verify(archive, school.name) == [], done
        assert damaged_objects(archive, school.name) == [], done
        if finished:
            break
    assert finished
    assert crash_at > 20


def test_a_failing_disk_while_it_is_encrypted_says_so_and_leaves_the_plain_content(archive, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" * 100_000)
    file = File("data/gstudio/qbank/q", sha256(b"x" * 100_000), 100_000, 0, 0o644)
    with pytest.raises(OSError, match="No space left on device"):
        archive.objects.ciphertexts.encrypt(file, source, Path("/dev/full"))
    source.write_bytes(b"y" * 100_000)
    with pytest.raises(CentralError, match="has changed and was not encrypted"):
        archive.objects.ciphertexts.encrypt(file, source, target)
    assert not target.exists()


@pytest.mark.parametrize("deed", ["forget", "keep"])
def test_a_table_that_another_run_holds_is_told_in_one_line(archive, school, day, monkeypatch, deed):
    monkeypatch.setattr(copies_module, "BUSY_SECONDS", 0.1)
    day(archive, DAY_1)
    table = opened(archive.root).objects.ciphertexts
    file = File(f"data/{DUMP}", sha256(DAY_1[DUMP]), len(DAY_1[DUMP]), 0, 0o644)
    deeds = {"forget": lambda: table.forget(school.name, file), "keep": lambda: table.keep(school.name, ())}
    with sqlite3.connect(archive.hidden / "encrypted.sqlite", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CentralError, match=r"encrypted.sqlite: database is locked .is the disk full"):
            deeds[deed]()
        other.execute("ROLLBACK")
    assert table.as_stored(school.name, file) is not file


# -- integrity -----------------------------------------------------------------------------------------------


def test_a_damaged_age_file_is_found_without_a_key_and_mended_from_a_second_copy(
    archive, school, day, tmp_path
):
    day(archive, DAY_1)
    day(archive, DAY_2)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(archive.root), str(copy)], check=True)
    in_view, in_history = object_of(archive, QBANK, DAY_1[QBANK]), object_of(archive, DUMP, DAY_1[DUMP])
    overwrite(in_view, in_view.read_bytes()[:-1] + b"?")
    in_history.unlink()
    assert [d.path for d in verify(archive, school.name)] == [f"{QBANK}.age"]
    assert {d.path for d in damaged_objects(archive, school.name)} == {f"{QBANK}.age", f"{DUMP}.age"}
    assert len(scrub(archive, 1).damage) == 1
    assert sorted(repair(archive, school.name, SecondCopy(archive, copy)).mended) == [
        f"{DUMP}.age",
        f"{QBANK}.age",
    ]
    assert verify(archive, school.name) == damaged_objects(archive, school.name) == []
    assert seen(archive) == hidden(DAY_2)


def test_a_lost_age_file_is_asked_of_the_school_again_by_the_name_that_it_has_there(archive, school, day):
    day(archive, DAY_1)
    day(archive, DAY_1, year=2027)
    object_of(archive, QBANK, DAY_1[QBANK]).unlink()
    day(archive, {**DAY_1, "gstudio/db/a": b"more"}, year=2027)
    assert archive.committed(school.name).pull.files_received == 2
    mend_earlier_years(archive, school.name)
    assert verify(archive, school.name) == damaged_objects(archive, school.name) == []
    assert seen(archive) == hidden(DAY_1)


def test_drop_damaged_finds_age_files_so_that_the_school_is_asked_for_them(archive, school, day):
    day(archive, DAY_1)
    place = object_of(archive, DUMP, DAY_1[DUMP])
    overwrite(place, b"?" * place.stat().st_size)
    assert drop_damaged(archive, school.name) == 1
    day(archive, {**DAY_1, "gstudio/db/a": b"more"})
    assert verify(archive, school.name) == []


def test_prune_keeps_what_is_needed_packs_no_ciphertext_and_forgets_the_rest(archive, school, day, tmp_path):
    big = [random.Random(n).randbytes(50_000) + b"\0" * 50_000 for n in range(4)]
    for number, content in enumerate(big):
        day(archive, {DUMP: content, "gstudio/db/a": content, QBANK: b"%d" % number})
    prune(archive, keep_days=1000, keep_months=0)
    assert (
        sqlite3.connect(archive.hidden / "cold.sqlite").execute("SELECT count(*) FROM cold").fetchone()[0]
        == 3
    )
    assert damaged_objects(archive, school.name) == []
    checkout(archive, version_of(archive, school.name, 1), tmp_path / "1", identities=[RESEARCHER])
    assert (tmp_path / "1" / DUMP).read_bytes() == big[0]
    prune(archive, keep_days=0, keep_months=0)
    kept = {f"{DUMP}.age": big[3], f"{QBANK}.age": b"3", "gstudio/db/a": big[3]}
    assert seen(archive) == kept
    assert len(list(archive.objects.ciphertexts.contents(school.name))) == 4, "of the newest and of one month"
    assert verify(archive, school.name) == damaged_objects(archive, school.name) == []


def test_a_lost_table_lets_prune_remove_nothing(archive, school, day):
    day(archive, DAY_1)
    for path in archive.hidden.glob("encrypted.sqlite*"):
        path.unlink()
    again = opened(archive.root, RESEARCHER)
    assert prune(again, 0, 0).objects == 0
    assert seen(again) == hidden(DAY_1)


def test_a_table_of_last_night_is_completed_of_the_record_of_what_came_since(archive, school, day, tmp_path):
    day(archive, DAY_1)
    back_up(archive)
    day(archive, DAY_2)
    (archive.hidden / "encrypted.sqlite").write_bytes(b"no table at all" * 1000)
    for left in archive.hidden.glob("encrypted.sqlite-*"):
        left.unlink()
    put_back(archive)
    again = opened(archive.root, RESEARCHER)
    assert [found.path for found in damaged_objects(again, school.name)] == [DUMP]
    done = repair(again, school.name)
    assert (done.mended, done.lost) == ([f"{DUMP}.age in encrypted.sqlite"], [])
    assert repair(again, school.name).mended == []
    assert verify(again, school.name) == damaged_objects(again, school.name) == []
    prune(again, 0, 0)
    for number, files in ((1, DAY_1), (2, DAY_2)):
        checkout(
            again, version_of(again, school.name, number), tmp_path / str(number), identities=[RESEARCHER]
        )
        assert (tmp_path / str(number) / DUMP).read_bytes() == files[DUMP]


def rows_of_encrypted(archive: Archive) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(archive.hidden / "encrypted.sqlite")) as db:
        db.text_factory = bytes
        return db.execute("SELECT * FROM content ORDER BY sha256").fetchall()


def flip_in_encrypted(archive: Archive, column: str, file: File) -> None:
    """Change one bit of a value in the row of a content, as a failing disk does: SQLite notices nothing."""
    kind = "TEXT" if column in ("server", "item") else "BLOB"
    digest = bytes.fromhex(file.sha256)
    with contextlib.closing(sqlite3.connect(archive.hidden / "encrypted.sqlite")) as db, db:
        query = f"SELECT CAST({column} AS BLOB) FROM content WHERE sha256 = ?"
        ((value,),) = db.execute(query, (digest,))
        query = f"UPDATE content SET {column} = CAST(? AS {kind}) WHERE sha256 = ?"
        db.execute(query, (bytes([value[0] ^ 0x80, *value[1:]]), digest))


@pytest.mark.parametrize("column", ["server", "item", "sha256", "stored", "sum"])
def test_a_bit_that_changes_in_a_row_of_what_is_encrypted_is_named_never_copied_and_put_back(
    archive, school, day, tmp_path, column
):
    day(archive, DAY_1)
    day(archive, DAY_2)
    assert back_up(archive) == []
    before, copy = rows_of_encrypted(archive), archive.hidden / "backup/encrypted.sqlite"
    copied = copy.read_bytes()
    flip_in_encrypted(archive, column, File(DUMP, sha256(DAY_1[DUMP]), 0, 0, 0))
    again = opened(archive.root, RESEARCHER, ANOTHER)
    assert "1 row is not what was written" in damaged_tables(again)[0].problem
    for _ in range(2):
        assert "1 row is not what was written" in back_up(again)[0].problem
    assert copy.read_bytes() == copied
    (done,) = put_back(again)
    assert (done.rows, done.left) == (1, 0)
    assert rows_of_encrypted(again) == before
    again = opened(archive.root, RESEARCHER, ANOTHER)
    assert damaged_tables(again) == damaged_objects(again, school.name) == []
    checkout(again, version_of(again, school.name, 1), tmp_path / "1", identities=[RESEARCHER])
    assert (tmp_path / "1" / DUMP).read_bytes() == DAY_1[DUMP]


def test_a_damaged_index_of_what_is_encrypted_costs_nothing_that_came_since_the_copy(archive, school, day):
    day(archive, DAY_1)
    assert back_up(archive) == []
    day(archive, DAY_2)
    table, before = archive.hidden / "encrypted.sqlite", rows_of_encrypted(archive)
    with contextlib.closing(sqlite3.connect(table)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw, stored = table.read_bytes(), before[0][4]
    for place in (found.start() for found in re.finditer(re.escape(stored[:16]), raw)):
        table.write_bytes(raw[:place] + bytes([stored[0] ^ 1]) + raw[place + 1 :])
        if "index" in damaged_tables(archive)[0].problem:
            break
    (done,) = put_back(opened(archive.root, RESEARCHER, ANOTHER))
    assert (done.rows, done.left) == (0, 0)
    assert rows_of_encrypted(archive) == before


def test_rows_of_what_is_encrypted_that_an_older_shala_has_written_get_their_sums(archive, school, day):
    day(archive, DAY_1)
    with contextlib.closing(sqlite3.connect(archive.hidden / "encrypted.sqlite")) as db, db:
        db.execute("ALTER TABLE content DROP COLUMN sum")
        db.execute("PRAGMA user_version = 1")
    again = opened(archive.root, RESEARCHER, ANOTHER)
    assert verify(again, school.name) == damaged_tables(again) == []
    day(again, DAY_2)
    assert sorted(row[6] is None for row in rows_of_encrypted(again)) == [False, True, True]
    assert back_up(again) == []
    assert [row for row in rows_of_encrypted(again) if row[6] is None] == []


# -- what researchers get ------------------------------------------------------------------------------------


def test_with_an_older_table_prune_removes_no_age_file_that_it_does_not_name(archive, school, day):
    day(archive, DAY_1)
    back_up(archive)
    day(archive, DAY_2)
    day(archive, {**DAY_2, DUMP: b"a secret of day 3"})
    before = set((archive.objects.root / school.name).rglob("*"))
    table = archive.hidden / "encrypted.sqlite"
    for left in ("", "-wal", "-shm"):
        table.with_name(table.name + left).unlink(missing_ok=True)
    put_back(archive)
    archive = opened(archive.root, RESEARCHER, ANOTHER)
    pruned = prune(archive, keep_days=1000, keep_months=0)
    assert "the contents that it needs are nowhere" in pruned.left_alone[school.name]
    assert set((archive.objects.root / school.name).rglob("*")) == before


@pytest.mark.parametrize("name", ["published.txt", "encrypted.txt"])
@pytest.mark.parametrize("deed", ["tear", "lose"])
def test_a_damaged_list_of_what_is_published_is_named_and_made_anew(archive, school, day, name, deed):
    day(archive, DAY_1)
    day(archive, DAY_2, "qbank")
    path = archive.committed(school.name).record / name
    whole = path.read_bytes()
    path.unlink()
    if deed == "tear":
        path.write_bytes(whole[: len(whole) // 2])
    assert name in [found.path for found in verify(archive, school.name)]
    assert repair(archive, school.name).mended == [name]
    assert (archive.committed(school.name).record / name).read_bytes() == whole
    assert verify(archive, school.name) == []


@pytest.mark.parametrize("noted", [True, False])
def test_a_torn_list_of_what_is_published_does_not_keep_prune_from_other_servers(
    archive, school, day, another_school, noted
):
    day(archive, DAY_1)
    other = another_school("2031018-mz18")
    for content in (b"one " * 1000, b"two " * 1000):
        other.sequence += 1
        other.items = {"db": "ok"}
        received(archive, other, {"gstudio/db/a": content})
    record = archive.committed(school.name).record
    path = record / "published.txt"
    path.write_bytes(path.read_bytes()[:-20])
    if not noted:  # of an older shala
        pull = json.loads((record / "pull.json").read_bytes())
        pull["published_sha256"] = ""
        (record / "pull.json").write_text(json.dumps(pull))
        (record / "pull.sha256").unlink()
    pruned = prune(archive, keep_days=1000, keep_months=0)
    assert list(pruned.left_alone) == [school.name]
    assert pruned.packed > 0


def test_a_checkout_is_of_age_files_and_with_a_key_as_it_was_sealed(archive, school, day, tmp_path):
    day(archive, DAY_1)
    day(archive, DAY_2)
    first = version_of(archive, school.name, 1)
    checkout(archive, first, tmp_path / "closed")
    checkout(archive, first, tmp_path / "open", identities=[RESEARCHER])
    for folder, name in (("closed", f"{DUMP}.age"), ("open", DUMP)):
        status = (tmp_path / folder / name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o644, 1_700_000_000)
    found = {
        str(p.relative_to(tmp_path / "open")): p.read_bytes()
        for p in (tmp_path / "open").rglob("*")
        if p.is_file()
    }
    assert found == DAY_1
    assert secrets_on(tmp_path / "closed") == []
    checkout(archive, first, tmp_path / "one", f"{DUMP}.age")
    with pytest.raises(CentralError, match="cannot be decrypted: No matching keys found"):
        checkout(archive, first, tmp_path / "wrong", identities=[pyrage.x25519.Identity.generate()])
    assert not (tmp_path / "wrong").exists()


def test_what_decrypts_to_something_else_than_was_sealed_is_refused(archive, school, day, tmp_path):
    day(archive, DAY_1)
    forged = pyrage.encrypt(b"forged", [RESEARCHER.to_public()])
    place = archive.objects.root / school.name / sha256(forged)[:2] / sha256(forged)
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(forged)
    with sqlite3.connect(archive.hidden / "encrypted.sqlite") as db:
        row = (bytes.fromhex(sha256(forged)), len(forged), bytes.fromhex(sha256(DAY_1[DUMP])))
        db.execute("UPDATE content SET stored = ?, stored_size = ? WHERE sha256 = ?", row)
    with pytest.raises(CentralError, match="is not what the school sealed"):
        checkout(archive, version_of(archive, school.name, 1), tmp_path / "out", identities=[RESEARCHER])


def test_an_export_is_a_valid_bag_of_age_files_or_of_plain_ones(archive, school, day, tmp_path):
    day(archive, DAY_1)
    for name, identities, expected in (("closed", (), hidden(DAY_1)), ("open", (RESEARCHER,), DAY_1)):
        export(archive, [version_of(archive, school.name, None)], (), tmp_path / f"{name}.tar", identities)
        shutil.unpack_archive(tmp_path / f"{name}.tar", tmp_path / name)
        bag = tmp_path / name / school.name
        bagit.Bag(str(bag)).validate()
        assert {str(p.relative_to(bag / "data")) for p in (bag / "data").rglob("*") if p.is_file()} == set(
            expected
        )
    assert secrets_on(tmp_path / "closed") == []
    assert (bag / "data" / DUMP).read_bytes() == DAY_1[DUMP]


def test_log_and_diff_speak_of_files_as_they_are_at_the_school(archive, school, day):
    day(archive, DAY_1)
    day(archive, DAY_2)
    old, new = versions_of(archive, school.name)
    assert [(d.sign, d.path) for d in diff(archive, old, new)] == [("*", "gstudio/db/a"), ("*", DUMP)]
    assert archive.committed(school.name).encrypted() == ["gstudio/postgres-dump", "gstudio/qbank"]


def test_the_provenance_of_an_age_file_leads_to_the_school(archive, school, day):
    day(archive, DAY_1)
    day(archive, DAY_2)
    found = provenance(archive, f"2026/mz/{school.name}/{QBANK}.age")
    assert (found.path_in_collection, found.sha256_at_school) == (f"data/{QBANK}", sha256(DAY_1[QBANK]))
    assert (found.collection, found.first_collection) == (2, 1)
    age_file = archive.root / "2026/mz" / school.name / f"{QBANK}.age"
    assert found.sha256 == hashlib.sha256(age_file.read_bytes()).hexdigest()


# -- turning it on, off, and other keys ----------------------------------------------------------------------


def test_turned_on_later_what_is_there_stays_until_it_is_encrypted_history_and_earlier_years_too(
    plain, archive, school, day, tmp_path
):
    day(plain, DAY_1)
    day(plain, DAY_2)
    day(plain, DAY_1, year=2027)
    prune(plain, keep_days=1000, keep_months=0)
    day(archive, {**DAY_1, DUMP: b"a secret that is new"}, year=2027)
    assert seen(archive, 2027) == {
        QBANK: DAY_1[QBANK],
        "gstudio/db/a": b"one",
        f"{DUMP}.age": b"a secret that is new",
    }
    done = encrypt(archive, school.name)
    assert (done.objects, done.left) == (3, [])
    assert secrets_on(archive.root) == []
    assert seen(archive) == hidden(DAY_2)
    assert seen(archive, 2027) == hidden({**DAY_1, DUMP: b"a secret that is new"})
    assert verify(archive, school.name) == damaged_objects(archive, school.name) == []
    checkout(archive, version_of(archive, school.name, 1), tmp_path / "1", identities=[RESEARCHER])
    assert (tmp_path / "1" / DUMP).read_bytes() == DAY_1[DUMP]
    assert encrypt(archive, school.name).objects == 0
    day(archive, DAY_2, year=2027)
    assert archive.committed(school.name).pull.files_received == 0


def test_encrypting_what_is_there_may_be_cut_at_any_step(tmp_path, school, day):
    for crash_at in range(1, 400):
        plain = opened(tmp_path / str(crash_at))
        school.sequence = 0
        for files, year in ((DAY_1, 2026), (DAY_2, 2026), (DAY_1, 2027)):
            day(plain, files, year=year)
        archive = opened(plain.root, RESEARCHER)
        with pytest.MonkeyPatch.context() as monkeypatch:
            done = steps(monkeypatch, crash_at, *ENCRYPTION_STEPS)
            try:
                encrypt(archive, school.name)
            except Crash:
                finished = False
            else:
                finished = True
        assert seen(archive) in (DAY_2, hidden(DAY_2)), done
        assert seen(archive, 2027) in (DAY_1, hidden(DAY_1)), done
        archive = opened(plain.root, RESEARCHER)
        assert encrypt(archive, school.name).left == []
        assert (seen(archive), seen(archive, 2027)) == (hidden(DAY_2), hidden(DAY_1)), done
        assert secrets_on(archive.root) == [], done
        assert verify(archive, school.name) == damaged_objects(archive, school.name) == [], done
        if finished:
            break
    assert finished
    assert crash_at > 20


def test_a_plain_content_that_another_item_needs_stays_and_what_was_packed_against_a_secret_is_unpacked(
    plain, archive, school, day, tmp_path
):
    text = b"".join(b"%d a line that another item has, too\n" % n for n in range(3000))
    day(plain, {DUMP: text, "gstudio/db/a": text})
    day(plain, {DUMP: text + b"a secret", "gstudio/db/a": b""})
    day(plain, {DUMP: b"", "gstudio/db/a": b""})
    prune(plain, keep_days=1000, keep_months=0)
    encrypt(archive, school.name)
    assert damaged_objects(archive, school.name) == []
    checkout(archive, version_of(archive, school.name, 1), tmp_path / "1", identities=[RESEARCHER])
    assert (tmp_path / "1/gstudio/db/a").read_bytes() == (tmp_path / "1" / DUMP).read_bytes() == text
    assert not archive.objects.cold.has(school.name, sha256(text + b"a secret"))


def test_a_damaged_plain_content_is_left_and_named(plain, archive, school, day):
    day(plain, DAY_1)
    overwrite(object_of(plain, QBANK, DAY_1[QBANK]), b"?")
    done = encrypt(archive, school.name)
    assert QBANK in done.left
    assert done.objects == 1


@pytest.mark.parametrize("lost", ["gone", "damaged"])
def test_a_plain_content_stays_whose_age_file_is_not_whole(archive, school, day, lost):
    day(archive, DAY_1)
    age_file = object_of(archive, QBANK, DAY_1[QBANK])
    overwrite(age_file, b"?") if lost == "damaged" else age_file.unlink()
    digest = sha256(DAY_1[QBANK])
    plain = archive.objects.root / school.name / digest[:2] / digest
    plain.parent.mkdir(exist_ok=True)
    plain.write_bytes(DAY_1[QBANK])
    keys = [str(RESEARCHER.to_public())]
    of_the_dump_alone = Archive(archive.root, recipients=keys, sensitive_items=["postgres-dump"])
    encrypt(of_the_dump_alone, school.name)
    assert plain.read_bytes() == DAY_1[QBANK]


def test_turned_off_what_is_new_is_plain_and_what_is_encrypted_stays(plain, archive, school, day):
    day(archive, DAY_1)
    off = opened(archive.root)
    day(off, DAY_2)
    assert off.committed(school.name).pull.files_received == 2
    assert seen(off) == {DUMP: DAY_2[DUMP], f"{QBANK}.age": DAY_1[QBANK], "gstudio/db/a": b"two!"}
    assert verify(off, school.name) == damaged_objects(off, school.name) == []


def test_turned_off_an_age_file_that_is_lost_comes_again_in_plain(plain, archive, school, day):
    day(archive, DAY_1)
    object_of(archive, QBANK, DAY_1[QBANK]).unlink()
    off = opened(archive.root)
    day(off, {**DAY_1, "gstudio/db/a": b"more"})
    assert seen(off) == {f"{DUMP}.age": DAY_1[DUMP], QBANK: DAY_1[QBANK], "gstudio/db/a": b"more"}
    assert verify(off, school.name) == damaged_objects(off, school.name) == []


def test_other_recipients_read_what_came_since_and_the_old_ones_what_came_before(tmp_path, school, day):
    day(opened(tmp_path / "archive", RESEARCHER), DAY_1)
    later = opened(tmp_path / "archive", ANOTHER)
    day(later, DAY_2)
    tree = later.root / "2026/mz" / school.name
    assert pyrage.decrypt((tree / f"{DUMP}.age").read_bytes(), [ANOTHER]) == DAY_2[DUMP]
    assert pyrage.decrypt((tree / f"{QBANK}.age").read_bytes(), [RESEARCHER]) == DAY_2[QBANK]


def test_no_table_and_no_copy_of_one_holds_what_was_packed_in_plain(centre, day):
    plain = opened(centre.root, shared=ArchiveSettings().shared_items)
    secrets = [b"a secret of day %d, " % number * 50 for number in (1, 2, 3)]
    for secret in secrets:
        day(plain, {**DAY_1, DUMP: secret, "gstudio/db/a": b"public, " * len(secret)})
    prune(plain, keep_days=1000, keep_months=0)
    back_up(plain)
    with sqlite3.connect(centre.root / ".shala/cold.sqlite") as db:
        packed = [row[0] for row in db.execute("SELECT packed FROM cold") if row[0] is not None]
    held = [
        path.name for path in (centre.root / ".shala").rglob("*sqlite*") if packed[0] in path.read_bytes()
    ]
    assert "cold.sqlite" in held
    centre.archive_settings = (
        f'recipients = ["{RESEARCHER.to_public()}"]\nsensitive_items = ["postgres-dump"]\n'
    )
    done = centre.shala("archive", "encrypt")
    assert done.returncode == 0, done.stderr
    left = sqlite3.connect(centre.root / ".shala/backup/cold.sqlite").execute("SELECT packed FROM cold")
    gone = set(packed) - {row[0] for row in left}
    assert len(gone) == 2
    for path in (centre.root / ".shala").rglob("*sqlite*"):
        assert not [blob for blob in gone if blob in path.read_bytes()], path
    assert (centre.root / ".shala/backup/encrypted.sqlite").exists()


# -- formats -------------------------------------------------------------------------------------------------

NAMES = st.text("ab-.", min_size=1, max_size=4).filter(lambda name: name.strip("."))
PATHS = st.builds(
    lambda item, parts: f"gstudio/{item}/{'/'.join(parts)}",
    st.sampled_from(("db", "qbank")),
    st.lists(NAMES, min_size=1, max_size=2),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PATHS, unique=True, max_size=12), st.data())
def test_a_list_as_it_is_kept_is_in_order_and_leads_back(tmp_path_factory, paths, data):
    table = Ciphertexts(tmp_path_factory.mktemp("table") / "encrypted.sqlite")
    files = sorted(
        (File(f"data/{path}", sha256(path.encode()), 1, 2, 0o640) for path in paths),
        key=lambda f: sort_key(f.path),
    )
    chosen = [
        file for file in files if item_of(file.path[5:]) == "gstudio/qbank" and data.draw(st.booleans())
    ]
    nowhere = Path("/dev/null")
    table.add("mz17", [Encrypted(f, nowhere, sha256(f.sha256.encode()), f.size + 200) for f in chosen])
    kept = list(table.lines("mz17", map(write_line, files)))
    keys = [sort_key(line.split(b" ", 4)[4].decode()[:-1]) for line in kept]
    assert keys == sorted(keys)
    kept_files = [next(iter(read_files([line]))) for line in kept]
    back = sorted((table.as_sealed("mz17", file) for file in kept_files), key=lambda f: sort_key(f.path))
    assert back == files
    assert list(table.lines("mz18", map(write_line, files))) == list(map(write_line, files))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.integers(65_000, 132_000).map(lambda size: b"x" * size))
def test_what_is_encrypted_comes_back_and_a_changed_byte_does_not(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("age")
    (folder / "plain").write_bytes(content)
    file = File("data/gstudio/qbank/q", sha256(content), len(content), 10**18, 0o640)
    table = Ciphertexts(folder / "t", [str(RESEARCHER.to_public())], SENSITIVE)
    done = table.encrypt(file, folder / "plain", folder / "age")
    stored = (folder / "age").read_bytes()
    assert (done.sha256, done.size) == (sha256(stored), len(stored))
    back = io.BytesIO()
    decrypt(io.BytesIO(stored), back, file, [RESEARCHER])
    assert back.getvalue() == content
    with pytest.raises(CentralError):
        decrypt(io.BytesIO(stored[:-1] + bytes([stored[-1] ^ 1])), io.BytesIO(), file, [RESEARCHER])


# -- the configuration and the command line ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('recipients = ["age1nobody"]', "archive.recipients, entry 1: 'age1nobody' is not an age recipient"),
        ('recipients = ["SECRET"]', "archive.recipients, entry 1: is a secret key, which must never be here"),
        ('recipients = ["OK"]\nsensitive_items = []', "archive.recipients without archive.sensitive_items"),
        ('recipients = ["OK"]\nsensitive_items = ["users-csvs"]', "archive.sensitive_items: 'users-csvs' is not an item"),
        ('recipients = ["OK"]\nsensitive_items = ["media"]', "'media' is shared between schools"),
        ('recipients = ["OK"]\nsensitive_items = ["gstudio/assessment-media"]', "is shared between schools"),
    ],
)  # fmt: skip
def test_what_cannot_be_encrypted_to_is_one_line_and_exit_code_2(centre, lines, said):
    keys = lines.replace("OK", str(RESEARCHER.to_public())).replace("SECRET", str(RESEARCHER))
    centre.archive_settings = f"{keys}\n"
    done = centre.shala("archive", "tree")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"shala: {centre.folder}/central.toml: " in done.stderr
    assert said in done.stderr
    assert str(RESEARCHER) not in done.stderr


def test_without_recipients_nothing_is_sensitive(centre, tmp_path):
    config = read_config(centre.config)
    assert config.archive.sensitive_items
    assert not Archive.of(config.archive).objects.ciphertexts.is_sensitive(DUMP)
    assert centre.shala("archive", "encrypt").returncode == 2


def test_an_identity_file_is_for_its_owner_alone_and_is_never_quoted(tmp_path):
    path = tmp_path / "key.txt"
    path.write_text(f"# created: today\n# public key: {RESEARCHER.to_public()}\n{RESEARCHER}\n")
    path.chmod(0o644)
    with pytest.raises(UsageError, match=r"can be read by others \(chmod 600"):
        read_identities(path)
    path.chmod(0o600)
    assert [str(identity) for identity in read_identities(path)] == [str(RESEARCHER)]
    path.write_text(f"{str(RESEARCHER)[:-1]}\n")
    with pytest.raises(UsageError, match="is not an age identity file") as refused:
        read_identities(path)
    assert str(RESEARCHER)[:20] not in str(refused.value)


def test_encrypting_leaves_no_older_copy_of_what_is_packed(centre, day):
    plain = opened(centre.root, shared=ArchiveSettings().shared_items)
    for number in (1, 2):
        day(plain, {DUMP: b"a secret of day %d, " % number * 50})
    prune(plain, keep_days=1000, keep_months=0)
    for _ in range(2):
        back_up(plain)
    older = centre.root / ".shala/backup/cold.sqlite.1"
    assert older.exists()
    key = RESEARCHER.to_public()
    centre.archive_settings = f'recipients = ["{key}"]\nsensitive_items = ["postgres-dump"]\n'
    assert centre.shala("archive", "encrypt").returncode == 0
    assert not older.exists()


def test_an_operator_encrypts_and_a_researcher_checks_out(centre, day, tmp_path):
    plain = opened(centre.root, shared=ArchiveSettings().shared_items)
    day(plain, DAY_1)
    key = tmp_path / "key.txt"
    key.touch(0o600)
    key.write_text(f"{RESEARCHER}\n")
    centre.archive_settings = (
        f'recipients = ["{RESEARCHER.to_public()}"]\nsensitive_items = ["postgres-dump", "gstudio/qbank"]\n'
    )
    done = centre.shala("archive", "encrypt")
    assert (done.returncode, done.stdout) == (0, "2 contents encrypted, 30 B; 2 plain ones removed\n")
    assert (
        "encrypted to the researchers' keys: gstudio/qbank"
        in centre.shala("archive", "show", "2031017-mz17").stdout
    )
    done = centre.shala(
        "archive", "checkout", "2031017-mz17", "1", str(tmp_path / "out"), "--identity", str(key)
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / DUMP).read_bytes() == DAY_1[DUMP]
