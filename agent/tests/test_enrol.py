from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from agent_school import School
from click.testing import CliRunner
from little_centre import LittleCentre, served
from shala_agent import cli, wire
from shala_agent.device import FILE, Device

pytestmark = pytest.mark.http


@pytest.fixture
def centre() -> Iterator[LittleCentre]:
    with served(LittleCentre()) as made:
        yield made


@pytest.fixture
def agent(school: School):
    def run(*arguments: str, stdin: str = ""):
        line = ["--config", str(school.config_path), *arguments]
        return CliRunner().invoke(cli.shala_agent, line, input=stdin)

    return run


def approval_for(request: Path, centre: LittleCentre, path: Path) -> Path:
    asked = msgspec.json.decode(request.read_bytes(), type=wire.EnrolRequest)
    wire.verify(bytes.fromhex(asked.key), wire.enrol_text(asked.key, asked.name, ""), asked.signature)
    statements = centre.enrol(bytes.fromhex(asked.key), asked.name)
    answer = wire.EnrolAnswer(
        zone=centre.zone,
        centre=bytes(centre.key.verify_key).hex(),
        url=centre.url,
        statements=[base64.b64encode(one).decode() for one in statements],
    )
    path.write_bytes(msgspec.json.encode(answer))
    return path


def test_a_token_in_a_file_makes_a_device_of_the_server(
    school: School, agent, centre: LittleCentre, tmp_path
):
    token = tmp_path / "token"
    token.write_text(f"{centre.token}\n")
    done = agent("enrol", "--token-file", str(token), "--url", centre.url, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    key = school.root / "state" / FILE
    assert said["zone"] == centre.zone
    assert said["device"] == Device(key).id
    assert key.stat().st_mode & 0o777 == 0o600
    assert centre.token not in done.output


def test_a_token_may_come_on_stdin(agent, centre: LittleCentre):
    assert agent("enrol", "--token-file", "-", "--url", centre.url, stdin=centre.token).exit_code == 0
    assert agent("sync", "--without-ingest").exit_code == 0


def test_a_wrong_token_is_said_in_one_line_and_not_repeated(agent, centre: LittleCentre):
    refused = agent("enrol", "--token-file", "-", "--url", centre.url, stdin="secret-guess")
    assert "used or unknown" in str(refused.exception)
    assert "secret-guess" not in str(refused.exception) + refused.output


def test_enrolment_by_two_files_needs_no_network(agent, centre: LittleCentre, tmp_path):
    assert agent("enrol", "--request", str(tmp_path / "request.json")).exit_code == 0
    approval = approval_for(tmp_path / "request.json", centre, tmp_path / "approval.json")
    done = agent("enrol", "--approval", str(approval))
    assert done.exit_code == 0, done.output
    assert centre.zone in done.output
    assert agent("sync", "--without-ingest").exit_code == 0


def test_another_servers_approval_is_refused(agent, centre: LittleCentre, tmp_path):
    agent("enrol", "--request", str(tmp_path / "request.json"))
    approval = approval_for(tmp_path / "request.json", centre, tmp_path / "approval.json")
    said = json.loads(approval.read_text())
    for number, statement in enumerate(said["statements"]):
        raw = base64.b64decode(statement)
        said["statements"][number] = base64.b64encode(raw[:-3] + b"x" + raw[-2:]).decode()
    approval.write_text(json.dumps(said))
    assert "not signed by this centre" in str(agent("enrol", "--approval", str(approval)).exception)
    said["statements"] = []
    approval.write_text(json.dumps(said))
    assert "does not take this server" in str(agent("enrol", "--approval", str(approval)).exception)


@pytest.mark.parametrize("arguments", [[], ["--request", "a", "--approval", "b"], ["--token-file", "-"]])
def test_half_an_enrolment_is_wrong_usage(agent, arguments):
    refused = agent("enrol", *arguments, stdin="token")
    assert refused.exit_code == 2 or type(refused.exception).__name__ == "UsageError"


def test_who_is_not_enrolled_is_told_how(agent):
    assert "shala-agent enrol" in str(agent("sync").exception)
