from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing, suppress

import click
import msgspec
import pytest
from agent_school import QuietContainer, School
from click.testing import CliRunner
from shala_agent import chain as chain_module
from shala_agent import cli, container, durable
from shala_agent.chain import Chain, steps_of
from shala_agent.config import parse_config
from shala_agent.failure import AgentError, Busy, Stopped
from shala_agent.lock import held
from shala_agent.outcome import Result, failed
from shala_agent.status import read_status


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """The steps that were really done, each replaced by nothing."""
    order: list[str] = []

    def step(name):
        return lambda *_: order.append(name) or Result("ok")

    for method, name in {
        "_heartbeat": "heartbeat",
        "_postgres": "postgres-dump",
        "_mongo": "mongo-dump",
        "_collect": "collect",
    }.items():
        monkeypatch.setattr(Chain, method, step(name))
    monkeypatch.setattr(Chain, "_derive", lambda _chain, row, _run: order.append(row.name) or Result("ok"))
    return order


STEPS = steps_of(parse_config(b"format = 1", "agent.toml"))


def test_the_chain_goes_in_its_order(school: School, done):
    passage = Chain(school.config, school.ledger()).run()
    assert done == list(STEPS)
    assert passage.exit_code == 0


def test_a_chain_that_is_stopped_goes_on_at_its_step(school: School, done, monkeypatch):
    with monkeypatch.context() as patch:
        derive = Chain._derive

        def stop(chain, row, run):
            if row.name == "progress":
                raise Stopped
            return derive(chain, row, run)

        patch.setattr(Chain, "_derive", stop)
        with pytest.raises(Stopped):
            Chain(school.config, school.ledger()).run()
    del done[:]
    status = read_status(school.config, school.ledger())
    assert status.open_steps == ["progress", "assessments", "collect"]
    passage = Chain(school.config, school.ledger()).run()
    assert passage.resumed
    assert done == ["heartbeat", "progress", "assessments", "collect"]


def test_one_failing_step_does_not_stop_the_others(school: School, done, monkeypatch):
    def fail(*_):
        raise AgentError("container gstudio is paused (docker unpause gstudio)")

    monkeypatch.setattr(Chain, "_mongo", fail)
    passage = Chain(school.config, school.ledger()).run()
    assert done == [step for step in STEPS if step != "mongo-dump"]
    assert passage.exit_code == 3


def test_a_step_that_is_cut_again_and_again_is_passed_over(school: School, done):
    ledger = school.ledger()
    run, _ = ledger.open_chain()
    for _ in range(3):
        ledger.begin(run, "progress")
    passage = Chain(school.config, ledger).run()
    assert set(done) == {*STEPS} - {"progress"}
    assert "cut 3 times" in dict(passage.steps)["progress"].reasons[0]


@pytest.mark.parametrize("how", ["deadline", "stop"])
def test_a_school_that_is_on_for_less_than_a_step_takes_gets_its_collection(
    school: School, done, monkeypatch, how
):
    derive = Chain._derive

    def longer_than_the_day(chain, row, run):
        if row.name != "progress":
            return derive(chain, row, run)
        done.append(row.name)
        if how == "stop":
            raise Stopped
        chain._deadline = 0.0
        return failed("cut after 400 s")

    monkeypatch.setattr(Chain, "_derive", longer_than_the_day)
    for _ in range(12):
        with suppress(Stopped), closing(school.ledger()) as ledger:
            Chain(school.config, ledger).run()
        done.append("off")
    days = " ".join(done).split(" off")
    assert days[2].split() == ["heartbeat", "collect", "progress"]  # what there is goes before a third try
    assert sum("collect" in day for day in days) >= 6
    assert sum("postgres-dump" in day for day in days) == 3  # the chains come to their ends
    assert any("assessments" in day for day in days)


def test_what_a_step_that_came_late_makes_is_collected_in_the_same_chain(school: School, done):
    ledger = school.ledger()
    run, _ = ledger.open_chain()
    for _ in range(2):
        ledger.begin(run, "assessments")
    assert Chain(school.config, ledger).run().exit_code == 0
    assert done[:2] == ["heartbeat", "collect"]
    assert done[-2:] == ["assessments", "collect"]
    assert ledger.runs(1)[0].outcome == "done"


def test_heartbeats_of_a_chain_that_is_gone_on_with_often_are_no_cuts(school: School, done):
    ledger = school.ledger()
    run, _ = ledger.open_chain()
    for _ in range(5):
        ledger.begin(run, "heartbeat")
        ledger.finish(run, "heartbeat", Result("ok"))
    name, result = Chain(school.config, ledger).run().steps[0]
    assert (name, result.outcome, result.reasons) == ("heartbeat", "ok", [])


def test_an_error_that_nobody_foresaw_ends_its_step_alone(school: School, done, monkeypatch):
    monkeypatch.setattr(Chain, "_mongo", lambda *_: b"\xff".decode())
    warned: list[str] = []
    passage = Chain(school.config, school.ledger(), warn=warned.append).run()
    assert done == [step for step in STEPS if step != "mongo-dump"]
    result = dict(passage.steps)["mongo-dump"]
    assert (result.outcome, result.reasons[0][:18]) == ("failed", "UnicodeDecodeError")
    assert "Traceback" in warned[0]


def test_a_mistake_in_the_catalogue_stops_the_collection_alone(school: School, done, monkeypatch):
    monkeypatch.undo()
    school.write("catalogue.toml", "format = 1\npseudonym_key = '/nowhere/key'\n")
    paths = msgspec.structs.replace(school.config.paths, catalogue=str(school.root / "catalogue.toml"))
    monkeypatch.setattr(chain_module, "Container", _down)
    config = msgspec.structs.replace(school.config, paths=paths)
    passage = Chain(config, school.ledger()).run()
    steps = dict(passage.steps)
    assert steps["heartbeat"].detail
    assert "catalogue.toml: pseudonym_key = '/nowhere/key'" in steps["collect"].reasons[0]
    assert passage.collected is None
    assert read_status(config, school.ledger()).steps


def test_what_a_command_may_take_never_ends_before_the_deadline(tmp_path, monkeypatch):
    asked: list[str] = []

    class Engine:
        def exec_create(self, _name, command, **_):
            asked.extend(command)
            raise OSError

    monkeypatch.setattr(container.Container, "_engine", lambda _: Engine())
    monkeypatch.setattr(
        container.Container, "state", lambda _: container.ContainerState("gstudio", "running")
    )
    with pytest.raises(container.ContainerUnavailable):
        container.Container("gstudio", tmp_path).run(["true"], timeout_seconds=9.2)
    assert asked[-2:] == ["10", "true"]


def test_the_deadline_leaves_the_rest_for_the_next_time(school: School, done, monkeypatch):
    config = msgspec.structs.replace(
        school.config, chain=msgspec.structs.replace(school.config.chain, deadline_minutes=1)
    )
    clock = iter(range(0, 10_000, 15))
    monkeypatch.setattr(chain_module.time, "monotonic", lambda: next(clock))
    passage = Chain(config, school.ledger()).run()
    assert passage.left
    assert passage.exit_code == 3
    assert [*done, *passage.left] == list(STEPS)  # the most valuable first
    monkeypatch.setattr(chain_module.time, "monotonic", lambda: 0.0)
    del done[:]
    assert Chain(config, school.ledger()).run().exit_code == 0
    assert done == ["heartbeat", *passage.left]


def test_heartbeats_are_written_with_the_container_down(school: School, monkeypatch):
    monkeypatch.setattr(chain_module, "Container", _down)
    passage = Chain(school.config, school.ledger()).by_hand(("heartbeat",))
    assert passage.steps[0][1].outcome == "suspect"
    logs = sorted((school.data / "system-heartbeat").glob("system-heartbeat-2*.log"))
    text = logs[-1].read_text()
    for part in (
        "2031017",
        "mz17",
        "Hill School",
        "## free -h",
        "## df -h",
        "## ps",
        "## uptime",
        "exited",
    ):
        assert part in text
    assert text.endswith("end of heartbeat\n")
    assert read_status(school.config, school.ledger()).heartbeat.server_name == "2031017-mz17"


def test_a_heartbeat_is_not_written_through_a_link_that_the_container_made(school: School, monkeypatch):
    monkeypatch.setattr(chain_module, "Container", _down)
    (school.root / "elsewhere").mkdir()
    durable.remove(school.data / "system-heartbeat")
    (school.data / "system-heartbeat").symlink_to(school.root / "elsewhere")
    passage = Chain(school.config, school.ledger()).by_hand(("heartbeat",))
    assert passage.steps[0][1].outcome == "failed"
    assert "is a link" in passage.steps[0][1].reasons[-1]
    assert list((school.root / "elsewhere").iterdir()) == []


def test_no_argument_of_any_program_leaves_with_a_heartbeat(school: School, monkeypatch):
    monkeypatch.setattr(chain_module, "Container", _down)
    with subprocess.Popen(["sleep", "60", "60.20180814"]) as program:
        Chain(school.config, school.ledger()).by_hand(("heartbeat",))
        program.kill()
    log = max((school.data / "system-heartbeat").glob("system-heartbeat-2*.log"))
    assert "sleep" in log.read_text()
    assert "60.20180814" not in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o640


def test_what_a_heartbeat_that_was_cut_left_is_removed_by_the_next(school: School, monkeypatch):
    monkeypatch.setattr(chain_module, "Container", _down)
    left = school.write("data/system-heartbeat/.shala-system-heartbeat-20260101-120000.log.part", "half")
    Chain(school.config, school.ledger()).by_hand(("heartbeat",))
    assert not left.exists()


def _down(name, locks):
    made = QuietContainer(name, locks)
    made.up = False
    return made


def test_status_and_doctor_speak_json_and_plain(school: School):
    call = CliRunner().invoke
    arguments = ["--config", str(school.config_path)]
    assert json.loads(call(cli.shala_agent, [*arguments, "status", "--json"]).output)["sealed"] is None
    assert "Nothing was collected yet" in call(cli.shala_agent, [*arguments, "status"]).output
    report = call(cli.shala_agent, [*arguments, "doctor"])
    assert report.exit_code == 1
    assert "nothing was ever collected -> shala-agent run" in report.output
    school.collect()
    assert "collection 1" in call(cli.shala_agent, [*arguments, "status"]).output


def leaves(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from leaves(command)
        else:
            yield command


def test_every_command_speaks_json_and_its_help_has_an_example():
    for command in leaves(cli.shala_agent):
        options = [name for one in command.params for name in one.opts]
        assert {"--json", "--format"} & set(options), command.name  # `records export` is for machines alone
        assert "Example:" in command.help, command.name


@pytest.mark.parametrize("arguments", [[], *([name] for name in cli.shala_agent.commands)])
def test_every_help_has_an_example(arguments):
    shown = CliRunner().invoke(cli.shala_agent, [*arguments, "--help"])
    assert shown.exit_code == 0
    assert "Example:" in shown.output


def test_a_wrong_configuration_is_exit_code_two(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.toml").write_text("format = 1\n[chian]\n")
    monkeypatch.setattr("sys.argv", ["shala-agent", "check-config", str(tmp_path / "bad.toml")])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 2
    assert "did you mean chain?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "x/../../outside"])
def test_what_climbs_out_of_a_containers_archive_is_refused(tmp_path, name):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    packed.seek(0)
    with tarfile.open(fileobj=packed, mode="r|") as archive, pytest.raises(container.FetchRefused):
        container._unpack(archive, tmp_path / "taken", 1000)


def test_links_in_a_containers_archive_are_left_out_and_too_much_is_refused(tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        link = tarfile.TarInfo("media/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
        file = tarfile.TarInfo("media/link2/file")
        file.size = 10
        archive.addfile(file, io.BytesIO(b"0123456789"))
    for limit in (1000, 5):
        packed.seek(0)
        with tarfile.open(fileobj=packed, mode="r|") as archive:
            if limit == 5:
                with pytest.raises(container.FetchRefused, match="more than 5 bytes"):
                    container._unpack(archive, tmp_path / "less", limit)
            else:
                container._unpack(archive, tmp_path / "taken", limit)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["link2"]


def test_output_is_bounded_and_keeps_both_ends():
    kept = container._Kept()
    kept.add(b"first")
    for _ in range(100):
        kept.add(b"x" * 100_000)
    kept.add(b"last")
    text = kept.text()
    assert text.startswith("first")
    assert text.endswith("last")
    assert len(text) < 2 * container.KEPT_OUTPUT
    assert "bytes left out" in text


def test_a_sealed_collection_with_a_failed_item_is_partly_done(school: School, monkeypatch):
    monkeypatch.setattr(chain_module, "Container", _down)
    passage = Chain(school.config, school.ledger()).by_hand(("collect",))
    assert passage.collected.sealed
    assert passage.missed == ["gstudio/git-commit.log"]
    assert passage.exit_code == 3


@pytest.mark.parametrize(
    "arguments, code",
    [
        (["doctor"], 1),
        (["status"], 0),
        (["--help"], 0),
        (["collect", "--without-dumps"], 3),
        (["collect", "--x"], 2),
        (["x"], 2),
    ],
)
def test_the_programs_exit_codes_are_those_it_promises(school: School, monkeypatch, arguments, code):
    monkeypatch.setattr(chain_module, "Container", _down)
    monkeypatch.setattr("sys.argv", ["shala-agent", "--config", str(school.config_path), *arguments])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == code


def test_nothing_is_made_by_hand_while_the_chain_gathers_it_but_a_heartbeat_is(school: School, done):
    chain = Chain(school.config, school.ledger())
    with held(school.root / "state/locks/chain.lock", "run", 0):
        for step in ("progress", "assessments", "collect"):
            with pytest.raises(Busy):
                chain.by_hand((step,))
        chain.by_hand(("heartbeat",))
    assert done == ["heartbeat"]
