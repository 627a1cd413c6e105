"""The agent's own sync against the real server: both sides are what runs in production."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from shala_agent.centre import Centre
from shala_agent.enrol import enrol_online
from shala_agent.records import Records
from shala_agent.sync import SyncResult, sync
from zone_world import ZoneCentre, account, progress

pytestmark = pytest.mark.timeout(120)


@dataclass
class School:
    """A school server with the agent's sync."""

    folder: Path
    key: SigningKey
    records: Records
    centre: ZoneCentre

    def sync(self) -> SyncResult:
        line = Centre(f"http://127.0.0.1:{self.centre.port}", self.key)
        return sync(self.records, line, self.folder / "parts")

    def says(self) -> dict[tuple[str, str], object]:
        return {(one.type, one.key): one.value for one in self.records.records()}


@pytest.fixture
def school(served: ZoneCentre, tmp_path: Path) -> Callable[[str], School]:
    def make(name: str, zone: str = "mz") -> School:
        folder = tmp_path / name
        made = School(folder, SigningKey.generate(), Records(folder / "records.sqlite"), served)
        line = Centre(f"http://127.0.0.1:{served.port}", made.key)
        enrol_online(made.records, line, name, served.token(zone))
        return made

    return make


def test_a_students_progress_reaches_her_zone_and_no_other(school):
    hill, lake = school("2031017-mz17"), school("2031018-mz18")
    far = school("3011001-rj1", "rj")
    hill.records.write([account("green-apple-mz17"), progress("green-apple-mz17", 3)], 1000)
    assert hill.sync().outcome == "done"
    for other in (lake, far):
        assert other.sync().outcome == "done"
    assert lake.says() == hill.says() != {}
    assert far.says() == {}


def test_nothing_new_is_one_request_of_less_than_a_kilobyte(school):
    hill, lake = school("2031017-mz17"), school("2031018-mz18")
    hill.records.write([account("green-apple-mz17")], 1000)
    for one in (hill, lake, hill, lake):
        one.sync()
    result = hill.sync()
    assert result.requests == 1
    assert result.bytes_up + result.bytes_down < 1000


def test_a_centre_that_has_lost_its_database_begins_anew_with_its_key_and_gets_all_back(
    school, served: ZoneCentre
):
    if served.postgres:
        pytest.skip("a database of PostgreSQL is made by its own commands")
    hill, lake = school("2031017-mz17"), school("2031018-mz18")
    hill.records.write([account("green-apple-mz17")], 1000)
    for one in (hill, lake):
        one.sync()
    served.stop()
    for path in Path(served.database.removeprefix("sqlite:///")).parent.glob("zones.sqlite*"):
        path.unlink()
    assert served.shala("org", "create", "clix").returncode == 2
    assert served.shala("org", "create", "clix", "--new-database").returncode == 0
    assert served.shala("zone", "create", "mz", "--org", "clix").returncode == 0
    served.start()
    lake.records.write([account("red-pear-mz18")], 1000)
    for one in (hill, lake, hill):
        assert one.sync().outcome == "done"
    assert lake.says() == hill.says()
    assert len(hill.says()) == 2


def test_a_centre_restored_from_a_backup_gets_back_what_it_has_lost(school, served: ZoneCentre):
    hill, lake = school("2031017-mz17"), school("2031018-mz18")
    for one in (hill, lake):
        one.sync()
    backup = served.backup()
    hill.records.write([account("green-apple-mz17")], 1000)
    hill.sync()
    served.restore(backup)
    # Its cursor is still one of the centre's, but its receipt is void now.
    assert hill.sync().outcome == "done"
    assert lake.sync().outcome == "done"
    assert lake.says() == hill.says() != {}
    assert hill.sync().requests == 1


def test_a_server_that_was_moved_learns_of_it_without_a_token(school, served: ZoneCentre):
    hill = school("2031017-mz17")
    hill.records.write([account("green-apple-mz17")], 1000)
    assert hill.sync().outcome == "done"
    served.make_zone("lunglei")
    done = served.shala("device", "move", "2031017-mz17", "--zone", "lunglei")
    assert done.returncode == 0, done.stderr
    line = Centre(f"http://127.0.0.1:{served.port}", hill.key)
    assert enrol_online(hill.records, line, "2031017-mz17", "").zone == "lunglei"
    assert hill.sync().outcome == "done"
