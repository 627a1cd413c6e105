from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import msgspec
import pytest
from agent_school import School
from click.testing import CliRunner
from little_centre import LittleCentre
from nacl.signing import SigningKey
from shala_agent import cli, wire
from shala_agent.config import parse_config
from shala_agent.device import FILE, Device
from shala_agent.enrol import check_url, write_request
from shala_agent.failure import UsageError

pytestmark = pytest.mark.http


@pytest.fixture
def agent(school: School):
    def run(*arguments: str, stdin: str = ""):
        line = ["--config", str(school.config_path), *arguments]
        return CliRunner().invoke(cli.shala_agent, line, input=stdin)

    return run


def approval_for(request: Path, centre: LittleCentre, path: Path, url: str | None = None) -> Path:
    asked = msgspec.json.decode(request.read_bytes(), type=wire.EnrolRequest)
    wire.verify(bytes.fromhex(asked.key), wire.enrol_text(asked.key, asked.name, ""), asked.signature)
    statements = centre.enrol(bytes.fromhex(asked.key), asked.name)
    answer = wire.EnrolAnswer(
        zone=centre.zone,
        centre=bytes(centre.key.verify_key).hex(),
        url=centre.url if url is None else url,
        statements=[base64.b64encode(one).decode() for one in statements],
        key=asked.key,
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


def test_an_approval_that_sends_records_anywhere_without_tls_is_refused(
    agent, centre: LittleCentre, tmp_path
):
    agent("enrol", "--request", str(tmp_path / "request.json"))
    approval = approval_for(tmp_path / "request.json", centre, tmp_path / "approval.json")
    approval.write_text(json.dumps({**json.loads(approval.read_text()), "url": "http://10.0.0.9"}))
    assert "field url: 'http://10.0.0.9' is no address" in str(
        agent("enrol", "--approval", str(approval)).exception
    )


def test_a_password_in_an_address_is_refused_and_not_shown(agent):
    refused = agent("enrol", "--token-file", "-", "--url", "https://A:se/c@ret@centre.example.org", stdin="x")
    assert str(refused.exception).startswith("'https://***@centre.example.org' is no address")


def test_the_key_of_the_centre_is_shown(agent, centre: LittleCentre, tmp_path):
    asked = agent("enrol", "--request", str(tmp_path / "request.json"))
    assert "shala device approve REQUEST --zone" in asked.output
    approval = approval_for(tmp_path / "request.json", centre, tmp_path / "approval.json")
    done = agent("enrol", "--approval", str(approval))
    digits = hashlib.sha256(bytes(centre.key.verify_key)).hexdigest()
    assert digits[:32] in done.output.replace(" ", "")


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


def test_an_enrolled_server_refuses_another_servers_approval(agent, centre: LittleCentre, tmp_path):
    assert agent("enrol", "--token-file", "-", "--url", centre.url, stdin=centre.token).exit_code == 0
    request = tmp_path / "request.json"
    write_request(request, SigningKey.generate(), "2031018-mz18")
    refused = agent("enrol", "--approval", str(approval_for(request, centre, tmp_path / "approval.json")))
    assert isinstance(refused.exception, UsageError)
    assert f"{tmp_path}/approval.json: this is another device's approval" in str(refused.exception)


def test_an_approval_without_an_address_leaves_the_one_that_the_server_has(
    agent, centre: LittleCentre, tmp_path
):
    agent("enrol", "--token-file", "-", "--url", centre.url, stdin=centre.token)
    agent("enrol", "--request", str(tmp_path / "request.json"))
    approval = approval_for(tmp_path / "request.json", centre, tmp_path / "approval.json", url="")
    done = agent("enrol", "--approval", str(approval), "--json")
    assert json.loads(done.output)["url"] == centre.url
    assert agent("sync", "--without-ingest").exit_code == 0


def test_a_move_by_a_file_without_an_address_leaves_the_one_that_the_server_has(
    agent, centre: LittleCentre, tmp_path
):
    agent("enrol", "--token-file", "-", "--url", centre.url, stdin=centre.token)
    agent("enrol", "--request", str(tmp_path / "request.json"))
    centre.zone = "lunglei"
    approval = approval_for(tmp_path / "request.json", centre, tmp_path / "approval.json", url="")
    said = json.loads(approval.read_text())
    approval.write_text(json.dumps({**said, "statements": said["statements"][-1:]}))
    done = agent("enrol", "--approval", str(approval), "--json")
    assert [json.loads(done.output)[field] for field in ("zone", "url")] == ["lunglei", centre.url]


def test_an_address_may_be_given_with_an_approval_that_has_none(agent, centre: LittleCentre, tmp_path):
    agent("enrol", "--request", str(tmp_path / "request.json"))
    approval = approval_for(tmp_path / "request.json", centre, tmp_path / "approval.json", url="")
    without = agent("enrol", "--approval", str(approval))
    assert f"No address of the centre is known yet: shala-agent enrol --approval {approval}" in without.output
    done = agent("enrol", "--approval", str(approval), "--url", centre.url)
    assert "Next: shala-agent sync" in done.output
    assert agent("sync", "--without-ingest").exit_code == 0


@pytest.mark.parametrize("raw", [None, "", "{}", "[" * 100_000], ids=["gone", "empty", "other", "nested"])
def test_a_file_that_is_no_approval_is_wrong_usage(agent, tmp_path, raw):
    path = tmp_path / "approval.json"
    if raw is not None:
        path.write_text(raw)
    refused = agent("enrol", "--approval", str(path))
    assert isinstance(refused.exception, UsageError)
    assert str(refused.exception).startswith(f"{path}: ")


def test_a_server_that_does_not_know_who_it_is_is_told_which_file_says_so(school: School, agent, tmp_path):
    school.settings.unlink()
    told = school.config_path.read_text()
    school.config_path.write_text(told.replace('"2031017-mz17"', '""'))
    refused = agent("enrol", "--request", str(tmp_path / "request.json"))
    assert isinstance(refused.exception, UsageError)
    assert f"{school.settings}, which says who this server is, does not exist" in str(refused.exception)
    school.config_path.write_text(told)
    assert agent("enrol", "--request", str(tmp_path / "request.json")).exit_code == 0


def test_the_smallest_configuration_of_the_guide_is_one(request):
    guide = (request.config.rootpath / "docs/operator.md").read_text()
    (block,) = re.findall(r"```toml\n(# /etc/shala/agent.toml\n.*?)```", guide, re.DOTALL)
    config = parse_config(block.encode(), "agent.toml")
    assert (config.identity.server_name, config.sync.enabled) == ("2031017-mz17", True)
    check_url(config.sync.url)


@pytest.mark.parametrize("option", ["--request", "--token-file"])
def test_a_path_that_will_not_do_is_wrong_usage_and_named_as_given(agent, tmp_path, option):
    path = tmp_path / "none/file"
    refused = agent("enrol", option, str(path), "--url", "https://centre.example.org")
    assert isinstance(refused.exception, UsageError)
    assert str(refused.exception).startswith(f"{path} cannot be ")


@pytest.mark.parametrize("arguments", [[], ["--request", "a", "--approval", "b"], ["--token-file", "-"]])
def test_half_an_enrolment_is_wrong_usage(agent, arguments):
    refused = agent("enrol", *arguments, stdin="token")
    assert refused.exit_code == 2 or type(refused.exception).__name__ == "UsageError"


def test_without_a_token_it_asks_at_the_address_that_it_knows(agent, centre: LittleCentre):
    assert agent("enrol", "--token-file", "-", "--url", centre.url, stdin=centre.token).exit_code == 0
    asked_again = agent("enrol")
    # This little centre knows nobody without a token; what matters is that it was asked.
    assert "used or unknown" in str(asked_again.exception)


def test_without_any_address_the_command_that_is_missing_one_is_named(agent):
    for given in ((), ("--token-file", "-")):
        told = str(agent("enrol", *given, stdin="ab" * 24).exception)
        assert " ".join(["shala-agent enrol", *given, "--url https://CENTRE"]) in told


def test_who_asks_for_a_record_that_is_none_is_told_how_they_are_listed(agent, centre: LittleCentre):
    agent("enrol", "--token-file", "-", "--url", centre.url, stdin=centre.token)
    for name, hint in (("foo", "list shows TYPE/KEY"), ("account/foo", "list --type account")):
        assert f"here (shala-agent records {hint})" in str(agent("records", "show", name).exception)


def test_who_is_not_enrolled_is_told_how(agent):
    assert "shala-agent enrol" in str(agent("sync").exception)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\x80" * 30])
def test_a_file_that_holds_no_token_is_named(agent, tmp_path, content):
    path = tmp_path / "token"
    path.write_bytes(content)
    done = agent("enrol", "--token-file", str(path), "--url", "https://centre.example.org")
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).startswith(f"{path}: this is no token (")
    done = agent("enrol", "--token-file", "-", "--url", "https://centre.example.org")
    assert str(done.exception).startswith("stdin: this is no token (")
