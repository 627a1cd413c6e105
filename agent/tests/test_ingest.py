from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress

import derived
import pytest
from agent_school import School
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey
from shala_agent.bson import DocumentUnreadable, decoded
from shala_agent.collect import identify
from shala_agent.ingest import Heard, ingest
from shala_agent.membership import Statement, sign_statement
from shala_agent.merge import written
from shala_agent.records import Change, Records
from shala_agent.segment import NONE, Entry, encode_entry, make_segment

STUDENT = "green-apple-mz17"
CENTRE = SigningKey.generate()
ELSEWHERE = SigningKey.generate()


@pytest.fixture
def records(school: School) -> Iterator[Records]:
    made = Records(school.root / "state/records.sqlite")
    key = SigningKey.generate()
    made.enrol("mz", bytes(CENTRE.verify_key), bytes(key.verify_key))
    for folder in (derived.PROGRESS, derived.ACTIVITY, "data/qbank"):
        shutil.rmtree(school.root / folder)
    yield made
    made.close()


@pytest.fixture
def hear(school: School, records: Records):
    def run() -> Heard:
        return ingest(records, school.reach(), identify(school.config, school.reach()))

    return run


def counter(records: Records) -> int:
    return records.counter


def everything(school: School) -> None:
    derived.dump(school, [(17995, STUDENT, "Lari", "Mota"), (1, "administrator", "Nipe", "Zora")])
    derived.progress(school, [derived.progress_row(STUDENT)])
    derived.visits(school, STUDENT, [derived.visit("2018-06-05 12:39:48.808000")])
    derived.taken(school, derived.assessment("5a" * 12, STUDENT))
    school.write(
        "data/qbank/student-activities/activity-data.csv",
        derived.table(
            [
                ["Username", "UserID", "Date", "T", "S", "A", "X"],
                [STUDENT, 17995, "2018-12-14", 2, "0:01:00", 1, "10:00:00; 10:01:00"],
            ]
        ),
    )


def test_each_product_becomes_records_of_its_type(school: School, records: Records, hear):
    everything(school)
    heard = hear()
    assert heard.skipped == []
    assert heard.changed == {
        "account": 2, "progress": 1, "activity": 1, "assessment": 2, "course_progress": 1,
    }  # fmt: skip
    account = records.record("account", STUDENT)
    assert account.value == {
        "username": STUDENT, "user_id": 17995, "first_name": "Lari", "last_name": "Mota",
        "server_id": "mz17", "school_code": "2031017",
    }  # fmt: skip
    progress = records.record("progress", f"{STUDENT}/eb-unit0").value
    assert progress["total_lessons"] == 4
    assert progress["percentage_lessons_visited"] == 25.0
    assert progress["Quiz [5a5a5a5a5a5a5a5a5a5a5a5a]"] == 2
    assert progress["roll_no"] == "007"
    taken = records.record("assessment", f"{STUDENT}/{'5a' * 12}").value
    assert taken["started"] == "2018-12-14T04:40:00.000Z"
    assert taken["score"] == 0.5
    course = records.record("course_progress", f"{STUDENT}/english-beginner").value
    assert (course["units"], course["total_lessons"], course["lessons_visited"]) == (1, 4, 1)


def test_hearing_the_same_again_changes_nothing(school: School, records: Records, hear):
    everything(school)
    hear()
    before = counter(records)
    assert hear() == Heard()
    # Not either when every file was made anew with the same content.
    for folder in (derived.PROGRESS, derived.ACTIVITY):
        for path in (school.root / folder).iterdir():
            path.touch()
    again = hear()
    assert again.files == 2
    assert counter(records) == before


def test_of_a_file_that_is_gone_no_name_is_kept(school: School, records: Records, hear):
    everything(school)
    derived.visits(school, "red-kite-mz17", [derived.visit("2018-06-05 12:39:48.808000")])
    hear()

    def names() -> set[str]:
        return {key for (key,) in records._database.query("SELECT key FROM told WHERE type = 'file'")}

    before = names()
    for folder in (derived.PROGRESS, derived.ACTIVITY):
        for path in (school.root / folder).glob(f"*{STUDENT}*" if folder == derived.ACTIVITY else "*"):
            path.unlink()
    assert hear().changed == {}
    gone = before - names()
    assert len(gone) == 2
    assert not any(STUDENT in name for name in names())
    assert any("red-kite-mz17" in name for name in names())


def test_a_changed_row_is_one_new_entry(school: School, records: Records, hear):
    rows = [derived.progress_row(f"user{n}-mz17") for n in range(5)]
    derived.progress(school, rows)
    hear()
    before = counter(records)
    rows[3] = derived.progress_row("user3-mz17", enrollment_status="No")
    derived.progress(school, rows, when="18h33m")
    assert hear().changed == {"progress": 1}
    assert counter(records) == before + 1


def test_the_newest_whole_csv_of_a_unit_is_heard(school: School, records: Records, hear):
    derived.progress(school, [derived.progress_row(STUDENT, lessons_visited=2)], when="10h00m")
    derived.progress(school, [derived.progress_row(STUDENT, lessons_visited=3)], when="11h00m")
    cut = derived.progress(school, [derived.progress_row(STUDENT, lessons_visited=4)], when="12h00m")
    cut.write_bytes(cut.read_bytes()[:-9])
    empty = derived.progress(school, [], when="13h00m")
    empty.write_bytes(b"")
    heard = hear()
    assert records.record("progress", f"{STUDENT}/eb-unit0").value["lessons_visited"] == 3
    assert heard.skipped[0].endswith(" is empty")
    assert len(heard.skipped) == 2


def test_a_bad_row_is_named_and_the_others_are_heard(school: School, records: Records, hear):
    rows = [derived.progress_row(name) for name in ("", "../etc", STUDENT, "a b", "x\ny")]
    derived.progress(school, rows)
    heard = hear()
    assert heard.rows_skipped == 4
    assert "row 2" in heard.skipped[0]
    assert all("\n" not in what for what in heard.skipped)
    assert [one.key for one in records.records("progress")] == [f"{STUDENT}/eb-unit0"]


@pytest.mark.parametrize("amount", ["9" * 400, "Infinity", "nan", "1e400", "twelve"])
@pytest.mark.parametrize("column", ["lessons_visited", "total_assessment_items", "user_id"])
def test_an_amount_that_is_none_is_named_and_the_rest_of_the_row_is_heard(
    school: School, records: Records, hear, column: str, amount: str
):
    path = derived.progress(school, [derived.progress_row(STUDENT, **{column: amount})])
    said = f"{path.name} row 2: {column} = '{amount[:40]}' is no number, and left out"
    assert hear().skipped == hear().skipped == [said]
    value = records.record("progress", f"{STUDENT}/eb-unit0").value
    assert column not in value
    assert "total_lessons" in value


def test_an_amount_may_be_unknown_or_have_as_many_decimals_as_python_writes(
    school: School, records: Records, hear
):
    row = derived.progress_row(STUDENT, percentage_lessons_visited=100 / 101, user_notes="NA", user_files="")
    derived.progress(school, [row])
    assert hear().skipped == []
    value = records.record("progress", f"{STUDENT}/eb-unit0").value
    assert (value["percentage_lessons_visited"], value["user_notes"]) == (100 / 101, "NA")


def test_a_row_that_was_left_out_is_named_until_it_is_mended(school: School, records: Records, hear):
    path = derived.progress(school, [derived.progress_row("a b"), derived.progress_row(STUDENT)])
    assert hear().skipped == hear().skipped == [f"{path.name} row 2: 'a b' is no user name"]
    before = counter(records)
    hear()
    assert counter(records) == before
    derived.progress(school, [derived.progress_row("a-b"), derived.progress_row(STUDENT)])
    assert hear().skipped == []
    assert hear() == Heard()


def test_what_lies_beside_the_csvs_is_named_and_not_opened(school: School, records: Records, hear):
    everything(school)
    progress, activity = school.root / derived.PROGRESS, school.root / derived.ACTIVITY
    (progress / "mine.csv").write_text("a,b\r\n")
    (progress / "2031017-mz17-eb-unit0-20180815-10h00m.csv").mkdir()
    os.mkfifo(activity / "mz17-red-kite-mz17-activity-visits-20180814-17h37m.csv")
    dump = school.root / "data/postgres-dump/pg_dump_all.sql"
    dump.unlink()
    os.mkfifo(dump)
    assert hear().skipped == [
        "pg_dump_all.sql is no plain file",
        f"{progress.name}/2031017-mz17-eb-unit0-20180815-10h00m.csv is a folder",
        f"{progress.name}/mine.csv is not named as the platform names its CSVs",
        f"{activity.name}/mz17-red-kite-mz17-activity-visits-20180814-17h37m.csv is no plain file",
    ]


def test_a_folder_of_csvs_that_is_none_is_named(school: School, records: Records, hear):
    everything(school)
    shutil.rmtree(school.root / derived.PROGRESS)
    (school.root / derived.PROGRESS).write_bytes(b"")
    assert "Not a directory" in hear().skipped[0]


def test_a_product_that_is_no_text_holds_up_no_other(school: School, records: Records, hear):
    everything(school)
    days = school.root / "data/qbank/student-activities/activity-data.csv"
    days.write_bytes(days.read_bytes() + b"a-mz17,1,2018-01-01,1,2,3,4\r\n" * 1000 + b"b\xff-mz17,1\r\n")
    heard = hear()
    assert heard.changed["course_progress"] == 1


def test_no_password_and_no_mail_address_enters_the_records(school: School, records: Records, hear):
    everything(school)
    hear()
    raw = (school.root / "state/records.sqlite").read_bytes() + (
        school.root / "state/records.sqlite-wal"
    ).read_bytes()
    assert derived.HASH.encode() not in raw
    assert b"example.org" not in raw


def test_a_dump_that_is_cut_is_not_heard(school: School, records: Records, hear):
    dump = derived.dump(school, [(17995, STUDENT, "Lari", "Mota")])
    dump.write_bytes(dump.read_bytes()[:-30])
    heard = hear()
    assert "pg_dump_all.sql" in heard.skipped[0]
    assert records.record("account", STUDENT) is None


def test_a_visit_that_ends_later_is_one_visit(school: School, records: Records, hear):
    derived.dump(school, [(17995, STUDENT, "Lari", "Mota")])
    first = derived.visit("2018-06-05 12:00:00.000000", "2018-06-05 12:01:00.000000")
    derived.visits(school, STUDENT, [first, derived.visit("2018-06-05 12:01:00.000000")])
    hear()
    assert len(list(records.records("activity"))) == 2
    ended = derived.visit("2018-06-05 12:01:00.000000", "2018-06-05 12:05:00.000000")
    last = derived.visit("2018-06-05 12:05:00.000000")
    derived.visits(school, STUDENT, [first, ended, last], when="18h37m")
    hear()
    found = [one.value for one in records.records("activity")]
    assert len(found) == 3
    assert sum("OutTime" not in one for one in found) == 1


def test_a_visit_that_ends_after_a_move_to_another_zone_is_one_visit(school: School, records: Records, hear):
    derived.dump(school, [(17995, STUDENT, "Lari", "Mota")])
    derived.visits(school, STUDENT, [derived.visit("2018-06-05 12:01:00.000000")])
    hear()
    key = SigningKey.generate()
    records.enrol("rj", bytes(SigningKey.generate().verify_key), bytes(key.verify_key))
    ended = derived.visit("2018-06-05 12:01:00.000000", "2018-06-05 12:05:00.000000")
    derived.visits(school, STUDENT, [ended], when="18h37m")
    hear()
    assert ["OutTime" in one.value for one in records.records("activity")] == [True]


def test_what_another_server_says_of_a_shared_record_is_not_put_back(school: School, records: Records, hear):
    derived.progress(school, [derived.progress_row("blue-bat-sp100", school_name="Hill School")])
    hear()
    # Another server's word, as if it had been synced.
    changed = {"school_name": "Lake School", "lessons_visited": 4}
    records.write([Change("progress", "blue-bat-sp100/eb-unit0", changed)], 5)
    for path in (school.root / derived.PROGRESS).iterdir():
        path.touch()
    heard = hear()
    assert heard.files == 1
    assert "progress" not in heard.changed
    assert records.record("progress", "blue-bat-sp100/eb-unit0").value["school_name"] == "Lake School"


def test_accounts_of_other_servers_are_theirs_to_speak_of(school: School, records: Records, hear):
    records.write(
        [Change("account", "red-kite-mz18", {"username": "red-kite-mz18", "first_name": "Zovi"})], 5
    )
    derived.dump(school, [(9, "red-kite-mz18", "", ""), (10, "white-lotus-mz19", "Ju", "Ka")])
    hear()
    assert records.record("account", "red-kite-mz18").value["first_name"] == "Zovi"
    assert "school_code" not in records.record("account", "white-lotus-mz19").value


def comes_from_elsewhere(records: Records, key: str, value: dict[str, object]) -> None:
    """Have an account that another server of the zone wrote before it heard of any other."""
    said = Statement(
        format=1, kind="enrol", zone="mz", key=bytes(ELSEWHERE.verify_key).hex(), name="mz18", generation=1
    )
    records.state([sign_statement(CENTRE, said)])
    entry = encode_entry(Entry("account", key, 1, 2, 5, written(value)))  # deeper: this one is shown
    segment = make_segment(ELSEWHERE, "mz", 1, 1, NONE, [entry])
    assert records.accept(segment.data, from_centre=True) == "applied"


def name_of(records: Records, user: str) -> str:
    return records.record("account", user).value["first_name"]


def test_an_account_of_no_server_is_written_anew_when_its_own_row_changes(
    school: School, records: Records, hear
):
    derived.dump(school, [(1, "administrator", "Nipe", "Zora")])
    hear()
    records.write([Change("account", "administrator", {"first_name": "Vigu"})], 5)  # as if it were synced
    derived.dump(school, [(1, "administrator", "Nipe", "Zora"), (17995, STUDENT, "Lari", "Mota")])
    assert hear().changed == {"account": 1}
    assert name_of(records, "administrator") == "Vigu"
    derived.dump(school, [(1, "administrator", "Ravi", "Zora")])
    assert hear().changed == {"account": 1}
    assert name_of(records, "administrator") == "Ravi"


def test_an_account_of_no_server_that_others_spoke_of_first_is_theirs_until_its_own_row_changes(
    school: School, records: Records, hear
):
    comes_from_elsewhere(records, "ravi", {"username": "ravi", "first_name": "Ravi"})
    derived.dump(school, [(7, "ravi", "", "")])
    assert hear().changed == {}
    derived.dump(school, [(7, "ravi", "Ravinder", "")])
    assert hear().changed == {"account": 1}
    assert name_of(records, "ravi") == "Ravinder"


def test_two_servers_settle_what_they_say_of_an_account_once_one_of_them_says_it_anew(
    school: School, records: Records, hear
):
    derived.dump(school, [(1, "administrator", "Nipe", "Zora")])
    hear()
    said = {"username": "administrator", "user_id": 1, "first_name": "Vigu", "last_name": "Zora"}
    comes_from_elsewhere(records, "administrator", said)
    assert records.record("account", "administrator").conflict
    derived.dump(school, [(1, "administrator", "Nipe", "Zora"), (17995, STUDENT, "Lari", "Mota")])
    hear()
    assert records.record("account", "administrator").conflict
    # Maybe that is the one which is shown already.
    derived.dump(school, [(1, "administrator", "Vigu", "Zora")])
    assert hear().changed == {"account": 1}
    assert not records.record("account", "administrator").conflict


def test_in_another_zone_an_old_row_of_an_account_of_no_server_does_not_replace_what_was_said_since(
    school: School, records: Records, hear
):
    derived.dump(school, [(1, "administrator", "Nipe", "Zora")])
    hear()
    records.write([Change("account", "administrator", {"first_name": "Vigu"})], 5)  # as if it were synced
    records.enrol("rj", bytes(CENTRE.verify_key), records.store.own)
    hear()
    assert name_of(records, "administrator") == "Vigu"
    derived.dump(school, [(1, "administrator", "Ravinder", "Zora")])
    hear()
    assert name_of(records, "administrator") == "Ravinder"


def test_what_another_zone_does_not_have_is_heard_there_again(school: School, records: Records, hear):
    comes_from_elsewhere(records, "ravi", {"username": "ravi", "first_name": "Ravi"})
    derived.dump(school, [(7, "ravi", "Ravinder", "")])
    assert hear().changed == {}
    records.enrol("rj", bytes(CENTRE.verify_key), records.store.own)
    assert hear().changed == {"account": 1}
    assert name_of(records, "ravi") == "Ravinder"


def test_a_course_adds_up_units_of_all_servers(school: School, records: Records, hear):
    derived.progress(school, [derived.progress_row(STUDENT, "Unit 0")], unit="eb-unit0")
    elsewhere = {"module_name": "[u'English Beginner']", "total_lessons": 6, "lessons_visited": 5}
    records.write([Change("progress", f"{STUDENT}/eb-unit1", elsewhere)], 5)
    hear()
    course = records.record("course_progress", f"{STUDENT}/english-beginner").value
    assert (course["units"], course["total_lessons"], course["lessons_visited"]) == (2, 10, 6)


def test_a_bad_document_of_a_dump_is_left_out_alone(school: School, records: Records, hear):
    derived.dump(school, [(17995, STUDENT, "Lari", "Mota")])
    nobody = derived.document(b"\x07_id\0" + bytes(12))
    strange = derived.document(b"\x44x\0")
    derived.taken(school, nobody, strange, derived.assessment("5b" * 12, STUDENT))
    heard = hear()
    assert heard.rows_skipped == 2
    assert records.record("assessment", f"{STUDENT}/{'5b' * 12}") is not None


def test_visits_wait_for_their_account_and_hold_up_nobody(school: School, records: Records, hear):
    derived.visits(school, STUDENT, [derived.visit("2018-06-05 12:39:48.808000")])
    hear()
    assert list(records.records("activity")) == []
    derived.dump(school, [(17995, STUDENT, "Lari", "Mota")])
    hear()
    assert len(list(records.records("activity"))) == 1


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_documents(raw: bytes):
    framed = (len(raw) + 4).to_bytes(4, "little") + raw
    with suppress(DocumentUnreadable, ValueError, IndexError):
        assert isinstance(decoded(framed), dict)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a-mz17", "b-mz17", "sp-sp100"]), st.integers(0, 4)),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_order_csvs_come_in_counts_never_go_back(tmp_path_factory, rows: list[tuple[str, int]]):
    made = Records(tmp_path_factory.mktemp("r") / "records.sqlite")
    made.enrol("mz", bytes(SigningKey.generate().verify_key), bytes(SigningKey.generate().verify_key))
    most: dict[str, int] = {}
    for user, visited in rows:
        made.write(
            [Change("account", user, {}), Change("progress", f"{user}/u", {"n": visited})], 1, "progress"
        )
        most[user] = max(most.get(user, 0), visited)
        assert made.record("progress", f"{user}/u").value["n"] == most[user]
    made.close()
