"""Zone sync on a real platform's container: what it really derives, what its sync_users really does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from little_centre import LittleCentre, served
from shala_agent.accounts import give_accounts
from shala_agent.chain import DUMPS
from shala_agent.config import Config, read_config
from shala_agent.ingest import users_of_dump
from shala_agent.reach import Reach
from shala_agent.records import Change
from shala_agent.zone import changing, device_of
from test_container import Platform, platform  # noqa: F401 - a fixture

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

GUEST = "red-kite-mz18"


@pytest.fixture(scope="module")
def zone(platform: Platform) -> Iterator[Config]:  # noqa: F811
    """A platform whose agent is a device of a zone."""
    with served(LittleCentre()) as centre:
        text = platform.config_path.read_text()
        platform.config_path.write_text(
            f'{text}[sync]\nenabled = true\nurl = "{centre.url}"\napply_accounts = true\n'
        )
        config = read_config(platform.config_path)
        key = bytes(device_of(config).key.verify_key)
        statements = centre.enrol(key, "2031017-mz17")
        with changing(config, "test") as records:
            records.enrol(centre.zone, bytes(centre.key.verify_key), key, statements)
            guest = {"username": GUEST, "user_id": 990001, "school_code": "2031018"}
            records.write([Change("account", GUEST, guest)], 1000)
        yield config


def test_what_the_platform_derives_becomes_records_and_goes_to_the_centre(platform, zone: Config):  # noqa: F811
    passage = platform.do(
        lambda chain: chain.by_hand((*DUMPS, "activity-timestamps", "progress", "assessments", "sync"))
    )
    outcomes = {name: (result.outcome, result.reasons) for name, result in passage.steps}
    assert {outcome for outcome, _ in outcomes.values()} == {"ok"}, outcomes
    with changing(zone, "test") as records:
        counts = {type_: sum(1 for _ in records.records(type_)) for type_ in (
            "account", "progress", "activity", "assessment", "course_progress"
        )}  # fmt: skip
        assert min(counts.values()) > 0, counts
        waiting = [one.key for one in records.records(everything=True) if one.waits]
        assert waiting == []
        assert records.unsent() == (0, 0)


def test_another_servers_account_is_in_the_platform_and_nobody_knows_its_password(platform, zone: Config):  # noqa: F811
    passage = platform.do(lambda chain: chain.by_hand(("sync", "postgres-dump")))
    assert [result.outcome for _, result in passage.steps] == ["ok", "ok"]
    dump = platform.root / "data/postgres-dump/pg_dump_all.sql"
    found = [user for user in users_of_dump(dump) if user["username"] == GUEST]
    assert [user["id"] for user in found] == ["990001"]
    assert not (platform.root / "data/.shala/accounts.csv").exists()
    # Once it is there, it is not given again.
    reach = Reach(zone.paths, platform.container, platform.root / "state/fetched")
    with changing(zone, "test") as records:
        assert give_accounts(records, platform.container, reach).accounts == 0


def test_deriving_the_same_again_makes_no_new_records(platform, zone: Config):  # noqa: F811
    with changing(zone, "test") as records:
        before = records.counter
    platform.do(lambda chain: chain.by_hand(("progress", "activity-timestamps", "sync")))
    with changing(zone, "test") as records:
        assert records.counter == before
