"""Databases come back: what is kept of those that are there, when it is believed, and who can log in then."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_school import School, bson
from little_databases import DATABASE, Databases, dump, users_in
from shala_agent import durable
from shala_agent.config import read_config
from shala_agent.failure import AgentError
from shala_agent.restore import Restored, restore
from shala_agent.restore_note import Note, half_done, read_note, write_note
from test_restore import Bag

WEEKS_AGO = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(weeks=3)


@pytest.fixture
def bag(tmp_path: Path) -> Bag:
    return Bag(tmp_path / "bag")


@pytest.fixture
def there(school: School, monkeypatch: pytest.MonkeyPatch) -> Iterator[Databases]:
    """The databases of the school, with nothing in them."""
    made = Databases(school.root)
    monkeypatch.setattr("shala_agent.restore.Container", lambda *_: made)
    return made


def put_mongo(bag: Bag, **collections: int) -> None:
    for name, count in collections.items():
        bag.put(f"db/{DATABASE}/{name}.bson", bson(count))
        bag.put(f"db/{DATABASE}/{name}.metadata.json", b"{}")


def brought_back(school: School, bag: Bag, *, yes: bool = False) -> Restored:
    return restore(read_config(school.config_path), bag.folder, yes=yes)


def outcomes(done: Restored) -> dict[str, str]:
    return {name: result.outcome for name, result in done.items}


def test_what_is_kept_is_on_the_disk_before_it_is_noted_that_it_is(
    school: School, bag: Bag, there: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.documents = {"Nodes": 3}
    put_mongo(bag, Nodes=5)
    synced, noted = durable.sync_filesystem, write_note
    monkeypatch.setattr(durable, "sync_filesystem", lambda path: (there.deeds.append("synced"), synced(path)))

    def note(state: Path, what: Note) -> None:
        there.deeds.append("noted" if what.half_done else "begun")
        noted(state, what)

    monkeypatch.setattr("shala_agent.restore.write_note", note)
    done = brought_back(school, bag)
    assert outcomes(done) == {"db": "ok"}, done.items
    kept = Path(done.kept).name
    assert there.deeds[:5] == ["begun", f"kept in {kept}", "synced", "noted", "mongorestore"]
    assert (Path(done.kept) / f"db/{DATABASE}/Nodes.bson").read_bytes() == bson(3)


def test_two_restores_that_begin_in_one_second_each_keep_what_they_found(
    school: School, bag: Bag, there: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shala_agent.restore.written", lambda _: "2026-11-22T08:00:00Z")
    there.documents, there.users = {"Nodes": 3}, {"green-apple-mz17": "pbkdf2_sha256$a$b"}
    put_mongo(bag, Nodes=5)
    bag.put("postgres-dump/pg_dump_all.sql", dump({"blue-bat-mz17": "!"}))
    first, second = brought_back(school, bag, yes=True), brought_back(school, bag, yes=True)
    assert first.kept != second.kept
    for done, count, user in ((first, 3, "green-apple-mz17"), (second, 5, "blue-bat-mz17")):
        assert (Path(done.kept) / f"db/{DATABASE}/Nodes.bson").read_bytes() == bson(count)
        assert set(users_in(Path(done.kept) / "pg_dump_all.sql")) == {user}


def test_files_that_changed_since_the_collection_are_data_of_this_server(
    school: School, bag: Bag, there: Databases
) -> None:
    collected = bag.put("rcs-repo/Nodes/a.json")
    os.utime(collected, (1_000_000_000, 1_000_000_000))
    for name, content in {"a.json": b'["of today"]', "b.json": b"{}"}.items():
        school.write(f"data/rcs-repo/Nodes/{name}", content)
    with pytest.raises(AgentError, match=r"0 users of a school.* 1 file newer than the collection's.*--yes"):
        brought_back(school, bag)
    assert (school.data / "rcs-repo/Nodes/a.json").read_bytes() == b'["of today"]'
    done = brought_back(school, bag, yes=True)
    assert (school.data / "rcs-repo/Nodes/a.json").read_bytes() == b"{}"
    assert (Path(done.kept) / "files/rcs-repo/Nodes/a.json").read_bytes() == b'["of today"]'


def test_files_that_are_older_or_the_same_are_no_data_of_this_server(
    school: School, bag: Bag, there: Databases
) -> None:
    bag.put("rcs-repo/Nodes/a.json")
    bag.put("rcs-repo/Nodes/b.json")
    school.write("data/rcs-repo/Nodes/a.json", "[]")
    school.write("data/rcs-repo/Nodes/b.json", "{}", age=1)
    assert outcomes(brought_back(school, bag)) == {"rcs-repo": "ok"}


@pytest.mark.parametrize("before", [5, 7])
def test_documents_of_before_are_not_taken_for_those_that_were_collected(
    school: School, bag: Bag, there: Databases, before: int
) -> None:
    there.documents, there.idle = {"Nodes": before}, True
    put_mongo(bag, Nodes=5)
    done = brought_back(school, bag)
    [(_, result)] = done.items
    assert result.outcome == "failed"
    assert f"{DATABASE}.Nodes holds 0 documents, its dump 5" in result.reasons[0]
    assert f"a restore of db/{DATABASE} was cut" in half_done(school.root / "state")


def test_documents_that_came_meanwhile_are_no_success(school: School, bag: Bag, there: Databases) -> None:
    there.at_work = {"Nodes": 2}
    put_mongo(bag, Nodes=5)
    [(_, result)] = brought_back(school, bag).items
    assert result.outcome == "failed"
    assert f"{DATABASE}.Nodes holds 7 documents, its dump 5 (nobody may be at work" in result.reasons[0]


def test_who_had_a_password_here_keeps_it_and_how_others_get_one_is_said(
    school: School, bag: Bag, there: Databases
) -> None:
    there.users = {
        "green-apple-mz17": "pbkdf2_sha256$1$a$b=",
        "administrator": "!unusable",
        "gone": "sha1$a$b",
    }
    bag.put(
        "postgres-dump/pg_dump_all.sql", dump({"green-apple-mz17": "!", "administrator": "!", "blue": "!"})
    )
    done = brought_back(school, bag, yes=True)
    assert outcomes(done) == {"postgres-dump": "ok"}, done.items
    assert there.users == {"green-apple-mz17": "pbkdf2_sha256$1$a$b=", "administrator": "!", "blue": "!"}
    said = " ".join(dict(done.items)["postgres-dump"].reasons)
    assert "2 users cannot log in" in said
    assert (
        "docker exec -it -w /home/docker/code/gstudio/gnowsys-ndf gstudio"
        " /usr/bin/python manage.py changepassword USER" in said
    )


def test_a_password_that_was_collected_is_not_replaced_by_one_that_was_here(
    school: School, bag: Bag, there: Databases
) -> None:
    there.users = {"green-apple-mz17": "pbkdf2_sha256$of$today"}
    bag.put("postgres-dump/pg_dump_all.sql", dump({"green-apple-mz17": "pbkdf2_sha256$of$then"}))
    brought_back(school, bag, yes=True)
    assert there.users == {"green-apple-mz17": "pbkdf2_sha256$of$then"}


def test_a_restore_is_in_the_ledger_before_it_is_forgotten(
    school: School, bag: Bag, there: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_mongo(bag, Benchmarks=5)
    with monkeypatch.context() as patch:
        patch.setattr("shala_agent.restore.Ledger", killed)
        with pytest.raises(KeyboardInterrupt):
            brought_back(school, bag)
    # What was a new server has data now: the same command is not asked whether to replace it.
    assert outcomes(brought_back(school, bag)) == {"db": "ok"}


def killed(*_: object) -> None:
    raise KeyboardInterrupt


# -- a restore that was cut ------------------------------------------------------------------------------------


@pytest.fixture
def cut(school: School, bag: Bag, there: Databases) -> Path:
    """A server with data of which a restore, that was told to replace it, is half done; the folder of its state."""
    there.documents, there.broken = {"Benchmarks": 7}, True
    put_mongo(bag, Benchmarks=5)
    assert outcomes(brought_back(school, bag, yes=True)) == {"db": "failed"}
    there.broken = False
    there.deeds.clear()
    return school.root / "state"


def test_the_same_command_goes_on_where_it_was_cut_and_keeps_no_half(
    school: School, bag: Bag, there: Databases, cut: Path
) -> None:
    done = brought_back(school, bag)
    assert outcomes(done) == {"db": "ok"}
    assert there.deeds == ["mongorestore"]
    assert (Path(done.kept) / f"db/{DATABASE}/Benchmarks.bson").read_bytes() == bson(7)
    assert read_note(cut) is None


@pytest.mark.parametrize("change", [{"begun": WEEKS_AGO}, {"container": "made anew"}])
def test_weeks_later_or_in_another_container_it_is_asked_again_and_what_is_there_is_kept(
    school: School, bag: Bag, there: Databases, cut: Path, change: dict[str, Any]
) -> None:
    note = read_note(cut)
    assert note is not None
    write_note(cut, msgspec.structs.replace(note, done=[f"db/{DATABASE}"], **change))
    there.documents = {"Benchmarks": 7}  # somebody has worked since
    with pytest.raises(AgentError, match=r"7 documents of what they did.*--yes"):
        brought_back(school, bag)
    assert half_done(cut)
    done = brought_back(school, bag, yes=True)
    assert outcomes(done) == {"db": "ok"}
    kept, deed = there.deeds
    assert re.fullmatch(r"kept in half-\d{4}-.*", kept)
    assert deed == "mongorestore"
    assert "half-" in done.kept
    assert half_done(cut) == ""


def test_a_restart_is_needed_until_the_platform_has_read_its_settings(
    school: School, bag: Bag, there: Databases
) -> None:
    bag.put("local_settings.py", b"DEBUG = False\n")
    there.started = "2026-01-05T08:00:00.123456789Z"
    assert brought_back(school, bag, yes=True).restart_needed
    # Cut before the restart: there is nothing to write any more, and what was written is not read yet.
    again = brought_back(school, bag, yes=True)
    assert dict(again.items)["local_settings.py"].detail["written"] == 0
    assert again.restart_needed
    there.started = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)).isoformat()
    assert not brought_back(school, bag, yes=True).restart_needed
