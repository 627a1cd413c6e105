from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import certifi
import derived
import msgspec
import pytest
from agent_school import QuietContainer, School
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from little_centre import LittleCentre
from shala_agent import chain as chain_module
from shala_agent import cli
from shala_agent.accounts import give_accounts
from shala_agent.chain import Chain
from shala_agent.config import read_config
from shala_agent.container import Execution
from shala_agent.failure import UsageError
from shala_agent.outcome import Result
from shala_agent.page import shown, write_page
from shala_agent.records import Change, Records
from shala_agent.segment import read_segment, redact
from shala_agent.status import read_status
from shala_agent.zone import centre_at, changing, device_of, page_path, reading
from zone_school import Server

STUDENT = "green-apple-mz17"

pytestmark = pytest.mark.http


@pytest.fixture
def hill(school: School, centre: LittleCentre) -> School:
    """A school whose agent is a device of the zone, with sync switched on."""
    text = school.config_path.read_text() + f'[sync]\nenabled = true\nurl = "{centre.url}"\n'
    school.config_path.write_text(text)
    school.config = read_config(school.config_path)
    key = device_of(school.config).key
    statements = centre.enrol(bytes(key.verify_key), "2031017-mz17")
    with changing(school.config, "test") as records:
        records.enrol(centre.zone, bytes(centre.key.verify_key), bytes(key.verify_key), statements)
    for name in ("gstudio-exported-users-analytics-csvs", "activity-timestamp-csvs"):
        for path in (school.data / name).iterdir():
            path.unlink()
    derived.dump(school, [(17995, STUDENT, "Lari", "Mota")])
    derived.progress(school, [derived.progress_row(STUDENT)])
    return school


@pytest.fixture
def agent(hill: School, monkeypatch):
    monkeypatch.setattr(chain_module, "Container", QuietContainer)

    def run(*arguments: str):
        return CliRunner().invoke(cli.shala_agent, ["--config", str(hill.config_path), *arguments])

    return run


@pytest.fixture
def quiet_steps(monkeypatch) -> None:
    for method in ("heartbeat", "postgres", "mongo", "derive", "collect"):
        monkeypatch.setattr(Chain, f"_{method}", lambda *_: Result("ok"))


def test_a_students_progress_is_seen_on_another_server_and_on_its_page(agent, hill: School, lake: Server):
    done = agent("sync", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert said["sync"]["records_up"] == 3
    assert said["heard"]["changed"] == {"account": 1, "progress": 1, "course_progress": 1}
    assert lake.sync().outcome == "done"
    write_page(lake.records, lake.root / "progress.html")
    page = (lake.root / "progress.html").read_text()
    for part in ("Lari Mota", STUDENT, "Unit 0", "1 of 4", "2031017-mz17", "2031018-mz18"):
        assert part in page


def test_the_page_is_written_again_only_when_something_is_new(agent, hill: School):
    agent("sync")
    page = page_path(hill.config)
    first = page.stat().st_ino
    agent("sync")
    assert page.stat().st_ino == first
    derived.progress(hill, [derived.progress_row(STUDENT, lessons_visited=3)], when="18h33m")
    agent("sync")
    assert "3 of 4" in page.read_text()
    page.unlink()
    agent("sync")
    assert page.exists()


def test_a_round_with_something_left_undone_beside_the_sync_ends_with_3(agent, hill: School):
    page_path(hill.config).mkdir(parents=True)
    done = agent("sync", "--json")
    said = json.loads(done.output)
    assert (done.exit_code, said["sync"]["outcome"]) == (3, "done")
    assert "the page could not be written" in said["notes"][0]


def test_a_page_whose_place_is_a_folder_is_named_with_the_way_out(agent, hill: School):
    page_path(hill.config).mkdir(parents=True)
    said = f"{page_path(hill.config)}: that is a folder (remove it, or have sync.page name a file)"
    assert agent("sync").output.splitlines()[-1] == f"Done, but: the page could not be written: {said}"
    hill.config_path.write_text(f'{hill.config_path.read_text()}page = "{hill.root}"\n')
    assert f"sync.page = '{hill.root}': that is a folder (name a file in it" in agent("check-config").stderr


def test_a_page_goes_along_when_another_place_is_named_for_it(agent, hill: School):
    agent("sync")
    before, after = page_path(hill.config), hill.root / "teacher.html"
    hill.config_path.write_text(f'{hill.config_path.read_text()}page = "{after}"\n')
    assert agent("sync").exit_code == 0
    assert (before.exists(), after.is_file()) == (False, True)


def test_a_page_that_only_gets_another_name_for_its_folder_stays(agent, hill: School):
    agent("sync")
    (hill.root / "link").symlink_to(page_path(hill.config).parent)
    hill.config_path.write_text(f'{hill.config_path.read_text()}page = "{hill.root}/link/progress.html"\n')
    assert agent("sync").exit_code == 0
    assert page_path(hill.config).is_file()


def test_the_last_line_of_such_a_round_says_what_was_left_undone(agent, hill: School):
    page_path(hill.config).mkdir(parents=True)
    lines = agent("sync").output.splitlines()
    assert lines[-1].startswith("Done, but: the page could not be written")
    assert sum("the page could not be written" in line for line in lines) == 1


def test_the_doctor_names_a_server_that_is_to_sync_and_is_in_no_zone(school: School, quiet_steps):
    school.config_path.write_text(school.config_path.read_text() + "[sync]\nenabled = true\n")
    found = CliRunner().invoke(cli.shala_agent, ["--config", str(school.config_path), "doctor"])
    assert "in no zone -> shala-agent enrol" in found.output


def test_the_doctor_and_the_status_name_what_the_disk_has_hurt(agent, hill: School):
    agent("sync", "--json")
    with changing(hill.config, "test") as records:
        records.store.database.query("UPDATE segment SET data = x'00'")
        (offer,) = records.store.database.query("SELECT id FROM segment")
        assert records.read(bytes(offer[0])) is None
    assert "damaged on the disk here: 1 segment of" in agent("doctor").output
    assert "1 segment damaged on this disk" in agent("status").output


def test_the_doctor_and_the_status_name_what_somebody_left_entries_out_of(agent, hill: School):
    agent("sync", "--json")
    with changing(hill.config, "test") as records:
        ((id_, data),) = records.store.database.query("SELECT id, data FROM segment")
        hollow = redact(read_segment(data), [1]).data
        records.store.database.query("UPDATE segment SET data = ?", (hollow,))
        assert records.read(bytes(id_)) is None
    assert "entries are missing from 1 segment of" in agent("doctor").output
    assert "1 segment with entries missing (shala-agent doctor)" in agent("status").output


def test_the_doctor_names_a_centre_that_refuses_this_server(agent, centre: LittleCentre):
    centre.status = 403
    agent("sync")
    assert re.search(
        r"the centre refused this server at \S+: .* -> .* shala device create", agent("doctor").output
    )
    centre.status = 0
    agent("sync")
    assert "refused" not in agent("doctor").output


def test_the_doctor_names_a_key_and_records_that_are_none(agent, hill: School):
    records, key = hill.root / "state/records.sqlite", hill.root / "state/device.key"
    records.write_bytes(b"garbage" * 1000)
    key.write_bytes(key.read_bytes()[:7])
    said = agent("doctor").output
    assert f"{records}: file is not a database -> update shala; if the file is damaged, move it away" in said
    assert f"{key} is not a key of 32 bytes -> move it away" in said
    assert "in no zone" not in said


def test_a_lost_key_is_named_with_the_command_that_replaces_it(agent, hill: School):
    said = "zone mz-aizawl knows this server by another device.key than the one here"
    command = "shala device create --zone mz-aizawl --name 2031017-mz17 --replace"
    (hill.root / "state/device.key").unlink()
    assert re.search(f"{said} -> .*{command}", agent("doctor").output)
    assert not (hill.root / "state/device.key").exists()
    done = agent("sync")  # makes a new one
    assert re.search(f"{said} .*{command}", done.output)
    found = agent("doctor").output
    assert re.search(f"{said} -> .*{command}", found)
    assert found.count(said) == 1


def test_a_slip_in_a_path_is_named_and_makes_no_folder(agent, hill: School):
    typo = hill.root / "stat/progress.html"
    said = hill.config_path.read_text()
    hill.config_path.write_text(f'{said}page = "{typo}"\n')
    assert f"sync.page = '{typo}': there is no folder {typo.parent} (" in agent("check-config").stderr
    assert f"sync.page = '{typo}': there is no folder {typo.parent} -> " in agent("doctor").output
    done = agent("sync")
    assert (done.exit_code, typo.parent.exists()) == (3, False)
    assert "correct sync.page" in done.output
    assert agent("check-config").exit_code == 0


def test_an_authority_that_cannot_be_used_is_refused_before_any_sync(agent, hill: School):
    ca_file = hill.root / "ca.pem"
    hill.config_path.write_text(f'{hill.config_path.read_text()}ca_file = "{ca_file}"\n')
    named = f"sync.ca_file = '{ca_file}': "
    refused = str(agent("check-config").exception)
    assert refused == f'{hill.config_path}: {named}there is no such file (correct the path, or "" for none)'
    ca_file.write_text("no certificate\n")
    assert f"{named}it holds no certificate in PEM (" in str(agent("check-config").exception)
    assert f"{named}it holds no certificate in PEM -> " in agent("doctor").output
    prepared = agent("check-config", "--files-later")
    assert (prepared.exit_code, named in prepared.stderr) == (0, True)
    shutil.copy(certifi.where(), ca_file)
    assert agent("check-config").exit_code == 0


def test_a_server_is_called_by_its_name_as_soon_as_it_is_enrolled(agent):
    assert agent("status").output.startswith("2031017-mz17, shala-agent")


def test_who_only_reads_after_an_update_changes_nothing(agent, hill: School):
    agent("sync")
    with changing(hill.config, "test") as records:
        records.store.database.query("UPDATE meta SET value = x'00' WHERE name = 'types'")
        before = records.version
    agent("status")
    with reading(hill.config) as records:
        assert records.version == before
    with changing(hill.config, "test") as records:
        assert records.version != before


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_sync_that_is_killed_goes_on_where_it_was(
    hill: School, lake: Server, centre: LittleCentre, way: str
):
    noise = [
        Change("account", f"user{n}", {"note": random.Random(n).randbytes(9000).hex()}) for n in range(80)
    ]
    if way == "up":
        with changing(hill.config, "test") as records:
            records.write(noise, 1000)
    else:
        lake.records.write(noise, 1000)
        lake.sync()
    limit = hill.config_path.read_text() + "bytes_per_second = 200000\n"
    hill.config_path.write_text(limit)
    line = [
        sys.executable,
        "-m",
        "shala_agent.cli",
        "--config",
        str(hill.config_path),
        "sync",
        "--without-ingest",
    ]
    process = subprocess.Popen(line)
    method = {"up": "PUT", "down": "GET"}[way]
    parts = hill.root / "state/parts"
    while not (any(list(centre.parts.values())) or any(part.stat().st_size for part in parts.glob("*"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    centre.requests.clear()
    hill.config_path.write_text(limit.replace("200000", "0"))
    assert subprocess.run(line, check=False).returncode == 0
    begins = [offset for one, _, offset in centre.requests if one == method]
    assert begins[0] > 0
    with changing(hill.config, "test") as records:
        assert records.unsent() == (0, 0)
        assert sum(1 for _ in records.records("account")) == 80


def test_records_are_nobody_elses_to_read(agent, hill: School):
    agent("sync")
    assert (hill.root / "state/records.sqlite").stat().st_mode & 0o777 == 0o600


def test_the_page_is_for_the_teacher_alone_unless_configured(agent, hill: School):
    agent("sync")
    assert page_path(hill.config).stat().st_mode & 0o777 == 0o640
    hill.config_path.write_text(hill.config_path.read_text() + "page_world_readable = true\n")
    agent("sync")
    assert page_path(hill.config).stat().st_mode & 0o777 == 0o644


class Text(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", "'\"><img src=x onerror=alert(1)>", "\u202eevil"]
)
def test_a_name_is_never_more_than_a_name_on_the_page(lake: Server, evil: str):
    user = "green-apple-mz18"
    lake.records.write(
        [
            Change("account", user, {"first_name": evil, "last_name": evil}),
            Change("progress", f"{user}/<b>unit", {"unit_name": evil, "total_lessons": evil}),
            Change("account", evil.replace("/", ""), {"first_name": evil}),
            Change("progress", evil.replace("/", "") + "/u", {}),
        ],
        1000,
    )
    write_page(lake.records, lake.root / "progress.html")
    page = (lake.root / "progress.html").read_text()
    read = Text()
    read.feed(page)
    assert not read.tags & {"script", "img", "b", "a"}
    assert "onerror" not in read.attributes
    assert "\u202e" not in page


@given(st.text(max_size=50))
def test_what_is_shown_holds_no_markup(text: str):
    assert not set("<>\"'") & set(shown(text))


def test_the_page_can_be_read_by_a_screen_reader_and_without_a_network(agent, hill: School):
    agent("sync")
    page = page_path(hill.config).read_text()
    read = Text()
    read.feed(page)
    assert '<html lang="en">' in page
    assert {"main", "h1", "caption", "summary", "title"} <= read.tags
    assert "scope" in read.attributes
    assert not read.attributes & {"src", "href"}


@pytest.mark.parametrize(
    "words", [("export", "--type", "progress"), ("export", "--format", "json"), ("list",)]
)
def test_records_that_cannot_be_printed_are_one_line_and_who_reads_no_further_is_told_nothing(
    agent, hill: School, words
):
    assert agent("sync").exit_code == 0
    command = [sys.executable, "-m", "shala_agent", "--config", str(hill.config_path), "records", *words]
    # As at a shell: where a test is run, nothing may be kept back in memory.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reads, writes = os.pipe()
    os.close(reads)
    said = []
    for target in (os.open("/dev/full", os.O_WRONLY), writes):
        done = subprocess.run(
            command, env=environment, stdout=target, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(target)
        said.append((done.returncode, done.stderr))
    assert said[0] == (1, "shala-agent: what it prints cannot be written: No space left on device\n")
    assert said[1][1] == ""


def test_records_are_listed_shown_and_exported(agent):
    agent("sync")
    listed = json.loads(agent("records", "list", "--type", "progress", "--json").output)
    assert [row["key"] for row in listed["records"]] == [f"{STUDENT}/eb-unit0"]
    assert listed["records"][0]["server"] == "2031017-mz17"
    assert "lessons_visited: 1" in agent("records", "show", f"progress/{STUDENT}/eb-unit0").output
    rows = list(csv.DictReader(io.StringIO(agent("records", "export", "--type", "progress").output)))
    assert rows[0]["unit_name"] == "Unit 0"
    lines = agent("records", "export", "--format", "json").output.splitlines()
    assert {json.loads(line)["type"] for line in lines} == {"account", "progress", "course_progress"}
    assert type(agent("records", "list", "--type", "accounts").exception).__name__ == "UsageError"


def test_listed_records_have_a_header_and_say_what_is_odd_about_them(agent, hill: School):
    agent("sync")
    with changing(hill.config, "test") as records:
        stranger = Change("progress", "red-kite-mz18/eb-unit0", {"unit_name": "Unit 0"})
        records.write([stranger, Change("account", STUDENT, None)], 1000)
    lines = agent("records", "list", "--everything").output.splitlines()
    assert lines[0].split() == ["record", "server", "day", "mark"]
    marks = {line.split()[0]: line[lines[0].index("mark") :] for line in lines[1:-1]}
    assert marks[f"account/{STUDENT}"] == "deleted"
    assert marks["progress/red-kite-mz18/eb-unit0"] == "waits for account/red-kite-mz18"
    assert lines[-1] == "4 records"


def test_a_record_is_shown_by_its_name_as_here_and_as_at_the_centre(agent):
    agent("sync")
    here = agent("records", "show", f"progress/{STUDENT}/eb-unit0").output
    assert here.startswith(f"progress/{STUDENT}/eb-unit0  2031017-mz17 ")
    assert agent("records", "show", "progress", f"{STUDENT}/eb-unit0").output == here
    assert "there is no record 'account/nobody'" in str(
        agent("records", "show", "account", "nobody").exception
    )


def test_no_cell_of_an_export_is_a_formula(agent, hill: School):
    derived.progress(hill, [derived.progress_row(STUDENT, first_name="=HYPERLINK(1)")], unit="eb-unit1")
    agent("sync")
    assert "'=HYPERLINK(1)" in agent("records", "export", "--type", "progress").output


def test_progress_of_a_student_is_a_plain_table_without_a_terminal(agent):
    agent("sync")
    shown_ = agent("progress", "--user", STUDENT).output
    assert "Lari Mota (green-apple-mz17): 1 unit\n" in shown_
    assert "1 of 4" in shown_
    said = json.loads(agent("progress", "--user", STUDENT, "--json").output)
    assert said["units"][0]["server"] == "2031017-mz17"
    for missing in (("progress", "--user", "nobody"), ("records", "show", "account/nobody")):
        assert isinstance(agent(*missing).exception, UsageError)


def test_units_stand_in_the_order_of_their_numbers(agent, hill: School):
    for number in (10, 2, 1):
        row = derived.progress_row(STUDENT, f"Unit {number}")
        derived.progress(hill, [row], unit=f"eb-unit{number}")
    agent("sync")
    said = json.loads(agent("progress", "--user", STUDENT, "--json").output)
    assert [one["unit"] for one in said["units"]] == ["Unit 0", "Unit 1", "Unit 2", "Unit 10"]
    with reading(hill.config) as records:
        write_page(records, hill.root / "p.html")
    units = re.findall(r'<th scope="row">(Unit \d+)</th>', (hill.root / "p.html").read_text())
    assert units == ["Unit 0", "Unit 1", "Unit 2", "Unit 10"]


def test_the_chain_syncs_last(hill: School, quiet_steps, centre: LittleCentre):
    passage = Chain(hill.config, hill.ledger()).run()
    name, result = passage.steps[-1]
    assert (name, result.outcome, result.reasons) == ("sync", "ok", [])
    assert result.detail["up"] == 3
    assert passage.exit_code == 0
    status = read_status(hill.config, hill.ledger())
    assert status.sync.zone == centre.zone
    assert status.sync.lag_entries == 0
    assert status.sync.last.records_up == 3


def test_being_offline_is_no_failure_of_the_chain(hill: School, quiet_steps, agent):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        sync = msgspec.structs.replace(hill.config.sync, url=url)
        passage = Chain(msgspec.structs.replace(hill.config, sync=sync), hill.ledger()).run()
    name, result = passage.steps[-1]
    assert (name, result.outcome) == ("sync", "skipped")
    assert "does not answer" in result.reasons[0]
    assert passage.exit_code == 0
    # What was derived is in the records and on the page all the same.
    assert STUDENT in page_path(hill.config).read_text()
    assert "3 records to send" in agent("status").output


def test_who_is_not_enrolled_is_skipped_and_a_closed_window_too(school: School, quiet_steps):
    for more, why in (
        ("", "not enrolled"),
        ('[[sync.windows]]\nbegin = "00:00"\nuntil = "23:59"\nclosed = true\n', "closed window"),
    ):
        school.config_path.write_text(
            school.config_path.read_text().partition("[sync]")[0] + f"[sync]\nenabled = true\n{more}"
        )
        passage = Chain(read_config(school.config_path), school.ledger()).run()
        assert passage.steps[-1][1].outcome == "skipped"
        assert why in passage.steps[-1][1].reasons[0] or "23:59" in more
        assert passage.exit_code == 0


def test_a_new_server_hears_what_the_zone_knows_before_it_speaks(agent, hill: School, lake: Server):
    lake.records.write([Change("account", STUDENT, {"first_name": "Mapuia"})], 1)
    lake.sync()
    done = json.loads(agent("sync", "--json").stdout)["sync"]
    assert (done["records_down"], done["records_up"]) == (1, 3)
    with changing(hill.config, "test") as records:
        found = records.record("account", STUDENT)
    assert (found.value["first_name"], found.conflict) == ("Lari", False)


def test_a_window_that_closes_ends_a_sync(agent, monkeypatch):
    rates = iter([0])
    monkeypatch.setattr("shala_agent.bandwidth.rate_now", lambda _config: next(rates, None))
    done = json.loads(agent("sync", "--json", "--without-ingest").stdout)["sync"]
    assert (done["outcome"], done["reason"]) == ("partly", "the time for sync is over")


def test_a_revoked_server_is_told_so(hill: School, quiet_steps, centre: LittleCentre):
    centre.status = 403
    passage = Chain(hill.config, hill.ledger()).run()
    assert passage.steps[-1][1].outcome == "failed"
    assert "for a test" in passage.steps[-1][1].reasons[0]


class Platform(QuietContainer):
    """A container that keeps what it is given."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.given = b""
        self.commands: list[list[str]] = []

    def put(self, folder: str, name: str, content: bytes) -> None:
        self.given = content

    def run(self, command, **more) -> Execution:
        self.commands.append(list(command))
        return super().run(command, **more)

    def _stop_all(self) -> None:
        pass


def test_only_accounts_that_are_missing_are_given_to_the_platform(hill: School, tmp_path: Path):
    platform = Platform("gstudio", tmp_path / "locks")
    with changing(hill.config, "test") as records:
        records.write(
            [
                Change("account", "red-kite-mz18", {"user_id": 550455, "school_code": "2031018"}),
                Change("account", "blue-bat-mz18", {"user_id": 17995}),
                Change("account", "no-number-mz18", {}),
                Change("account", STUDENT, {"user_id": 17995, "first_name": "Other"}),
            ],
            5,
        )
        given = give_accounts(records, platform, hill.reach())
    rows = list(csv.reader(io.StringIO(platform.given.decode())))
    assert [row[:3] for row in rows] == [["550455", "2031018", "red-kite-mz18"]]
    assert len(rows[0][3]) >= 24
    assert given.accounts == 1
    assert sorted(given.left_out) == [
        "blue-bat-mz18: its number is taken here",
        "no-number-mz18: its number is not known",
    ]
    assert platform.commands[-1][:2] == ["rm", "-f"]


def test_no_account_is_given_without_knowing_who_is_here(hill: School, tmp_path: Path):
    (hill.data / "postgres-dump/pg_dump_all.sql").write_bytes(b"")
    with changing(hill.config, "test") as records, pytest.raises(Exception, match="no whole dump"):
        give_accounts(records, Platform("gstudio", tmp_path / "locks"), hill.reach())


def test_nothing_heavy_is_imported_to_start_the_command_line():
    code = "import sys, shala_agent.cli; print([m for m in ('httpx', 'nacl', 'zstandard', 'docker', 'rich') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_who_asks_the_centre_nothing_does_not_import_what_speaks_http():
    code = "import sys, shala_agent.sync; print('httpx' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_a_file_for_the_authority_that_is_none_is_said(hill: School, tmp_path: Path):
    (tmp_path / "ca.pem").write_text("no certificate")
    sync = msgspec.structs.replace(hill.config.sync, ca_file=str(tmp_path / "ca.pem"))
    config = msgspec.structs.replace(hill.config, sync=sync)
    from shala_agent.sync import sync as talk

    with changing(config, "test") as records:
        result = talk(records, centre_at(config, "https://127.0.0.1:1"), tmp_path / "parts")
    assert result.outcome == "refused"
    assert "ca.pem" in result.reason


def test_records_that_cannot_be_opened_are_a_line_and_not_a_trace(hill: School, agent):
    (hill.root / "state/records.sqlite").write_bytes(b"no database" * 100)
    for suffix in ("-wal", "-shm"):
        (hill.root / f"state/records.sqlite{suffix}").unlink(missing_ok=True)
    assert "move it away" in str(agent("records", "list").exception)
    with pytest.raises(Exception, match="move it away"):
        Records(hill.root / "state/records.sqlite")


def test_another_programs_database_in_the_place_of_the_records_is_named_with_the_way_out(agent, hill: School):
    records = hill.root / "state/records.sqlite"
    remove_store(records)
    with contextlib.closing(sqlite3.connect(records)) as db, db:
        db.execute("CREATE TABLE meta (cell TEXT)")
    for command in (("records", "list"), ("sync",)):
        said = str(agent(*command).exception)
        assert said.startswith(
            f"{records}: table meta already exists (update shala; if the file is damaged, move"
        )


def test_the_status_says_of_damaged_records_what_the_doctor_says(agent, hill: School):
    records = hill.root / "state/records.sqlite"
    remove_store(records)
    records.write_text("junk\n")
    said = agent("status").output
    assert f"sync       {records}: file is not a database (update shala; if the file is damaged, move" in said
    assert "not enrolled" not in said
    assert f"{records}: file is not a database -> update shala" in agent("doctor").output


def test_records_that_are_damaged_in_the_middle_are_named_with_the_way_out(agent, hill: School, quiet_steps):
    records = hill.root / "state/records.sqlite"
    with changing(hill.config, "test") as opened:
        opened.write([Change("account", f"user{n}-mz17", {"first_name": "x" * 500}) for n in range(500)], 1)
    raw = bytearray(records.read_bytes())
    raw[len(raw) // 4 :] = b"\xff" * (len(raw) - len(raw) // 4)
    records.write_bytes(raw)
    way_out = "move it away, then shala-agent enrol --url CENTRE"
    for command in (("sync",), ("records", "list", "--limit", "999"), ("records", "export", "--format=json")):
        said = str(agent(*command).exception)
        assert said.startswith(f"{records}: database disk image is malformed"), command
        assert way_out in said
    said = agent("doctor").output
    assert f"{records}: database disk image is malformed" in said
    assert way_out in said
    agent("run")
    assert f"{records}: database disk image is malformed" in agent("status").output


@pytest.mark.parametrize(
    ("damage", "command"),
    [
        ("UPDATE record SET value = value || X'FF'", "records list"),
        ("UPDATE record SET value = value || X'FF'", "records show account/zodin-mz17"),
        ("UPDATE record SET value = value || X'FF'", "progress --user zodin-mz17"),
        ("UPDATE record SET value = value || X'FF'", "sync"),
        ("UPDATE record SET value = value || '}'", "records list"),
        ("UPDATE record SET rest = X'C1'", "records show account/zodin-mz17"),
        ("UPDATE tail SET entries = X'00'", "sync"),
    ],
)
def test_a_record_that_is_damaged_is_named_with_the_way_out_and_without_what_is_in_it(
    agent, hill: School, quiet_steps, damage: str, command: str
):
    records = hill.root / "state/records.sqlite"
    with changing(hill.config, "test") as opened:
        opened.write([Change("account", "zodin-mz17", {"first_name": "Zodinpuii"})], 1)
        opened.write([Change("progress", "zodin-mz17/unit0", {"unit_name": "Unit 0"})], 1)
    with contextlib.closing(sqlite3.connect(records)) as db, db:
        db.execute(damage)
    named = f"{records}: database disk image is malformed"
    said = str(agent(*command.split()).exception)
    assert said.startswith(f"{named} (update shala; if the file is damaged, move it away, then")
    assert named in (doctor := agent("doctor").output)
    agent("run")
    assert not any(
        "Zodin" in one for one in (said, doctor, agent("status").output, agent("status", "--json").output)
    )


def test_empty_records_beside_a_key_are_a_problem_and_stay_as_they_are(agent, hill: School):
    records = hill.root / "state/records.sqlite"
    remove_store(records)
    records.touch()
    assert f"sync       {records} is empty (shala-agent enrol" in agent("status").output
    assert f"{records} is empty -> shala-agent enrol --url CENTRE" in agent("doctor").output
    assert records.stat().st_size == 0


def remove_store(records: Path) -> None:
    for path in records.parent.glob("records.sqlite*"):
        path.unlink()
