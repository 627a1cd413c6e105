"""`shala` as an operator meets it: help, errors in one line, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from shala_central.cli import shala
from shala_central.config import read_config
from shala_central.failure import UsageError
from shala_central.fleet import read_fleet, select
from shala_central.report import duration, size, table

HEADER = "Sr. No.;School Name;Full CLIx School Code;Server id\n"


def commands(group: click.Group, before: str = "") -> list[tuple[str, click.Command]]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found.append((f"{before}{name}", command))
        if isinstance(command, click.Group):
            found += commands(command, f"{before}{name} ")
    return found


@pytest.mark.parametrize("name, command", [("", shala), *commands(shala)], ids=lambda value: str(value)[:20])
def test_every_command_has_help_with_an_example(name, command):
    text = command.get_help(click.Context(command, info_name=f"shala {name}".strip()))
    assert "Example" in text
    assert "shala " in text.split("Example", 1)[1]
    if not isinstance(command, click.Group):
        assert "--json" in text


def test_a_command_line_loads_nothing_of_zones_and_keys_before_they_are_asked_for():
    code = "import sys, shala_central.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {
        "nacl",
        "sqlalchemy",
        "shala_central.zone_commands",
        "shala_central.archive_commands",
    }


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("pull", "no-such"), "'no-such' is not in the fleet"),
        (("pull", "--limit", "state_xx"), "no server belongs to 'state_xx'"),
        (("pull", "--accept-reset"), "needs the names"),
        (("archive", "tree"), "is not an archive yet"),
        (("archive", "show", "x"), "is not an archive yet"),
        (("archive", "verify"), "is not an archive yet"),
        (("pull", "--nonsense"), "No such option"),
        (("nonsense",), "No such command"),
        (("schools", "check", "/no/such"), "does not exist"),
        (
            ("pull", "--config", "/no/such.toml"),
            "/no/such.toml does not exist (playbooks/central.yml makes it",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(centre, school, arguments, complaint):
    centre.schools.append(school)
    school.port = 22
    done = centre.shala(*arguments)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert complaint in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("shala: ")] == [
        done.stderr.splitlines()[-1]
    ]


def test_no_command_shows_the_help(centre):
    done = centre.shala()
    assert done.returncode == 2
    assert "shala schools check schools.csv" in done.stderr


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("format = 2\n", "format"),
        ("", r"format is missing \(write: format = 1\)$"),
        ("nonsense = 1\n", "nonsense = 1: there is no such setting"),
        ("format = 1\n[pull]\nparallel = 0\n", "pull.parallel = 0: expected `int` >= 1"),
        ("format = 1\n[pull]\nuser = '-oProxyCommand=x'\n", "pull.user = .*: expected the name of a user"),
        ("format = 1\n[zones]\nlisten = '8470'\n", "zones.listen = '8470': expected HOST:PORT, such as"),
        ("format = 1\n[pull]\nidentity_file = 'key'\n", "is not an absolute path"),
        ("format = 1\n[pull]\nknown_hosts = '/a\"b'\n", "is not an absolute path"),
        ("not toml", "line 1"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(tmp_path, text, complaint):
    path = tmp_path / "central.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=complaint):
        read_config(path)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"name": "../x"}, "is not a server name"),
        ({"name": "-2031017-mz17"}, "is not a server name"),
        ({"state": "rj"}, "its id says 'mz'"),
        ({"address": "-oProxyCommand=x"}, "is neither a host name"),
        ({"address": "a\nProxyCommand x"}, "is neither a host name"),
        ({"address": "1::2%h\n  ProxyCommand x"}, "is neither a host name"),
        ({"address": "mz17\n"}, "is neither a host name"),
        ({"port": 0}, "port"),
    ],
)
def test_a_fleet_that_could_reach_ssh_as_an_option_is_refused(tmp_path, school, change, complaint):
    path = tmp_path / "fleet.json"
    school.port = 22
    path.write_text(json.dumps({"format": 1, "servers": [{**school.entry(), **change}]}))
    with pytest.raises(UsageError, match=complaint):
        read_fleet(path)


def test_a_limit_means_groups_and_names_together(tmp_path, school, another_school):
    path = tmp_path / "fleet.json"
    schools = [school, another_school("2031008-mz8", "mz-lunglei"), another_school("3080101-rj1")]
    school.port = 22
    path.write_text(json.dumps({"format": 1, "servers": [one.entry() for one in schools]}))
    fleet = read_fleet(path)

    def chosen(names: list[str], limit: str | None) -> list[str]:
        return [server.name for server in select(fleet, names, limit)]

    assert len(chosen([], None)) == 3
    assert chosen([], "state_mz") == [school.name, "2031008-mz8"]
    assert chosen([], "zone_mz_lunglei,state_rj") == ["2031008-mz8", "3080101-rj1"]
    assert chosen(["3080101-rj1"], "state_rj") == ["3080101-rj1"]
    for names, limit, complaint in (
        (["3080101-rj1"], "state_mz", "no server is both named and within --limit"),
        ([], "", "names no group"),
        ([], " , ", "names no group"),
    ):
        with pytest.raises(UsageError, match=complaint):
            chosen(names, limit)


def test_a_list_of_schools_is_checked(centre, tmp_path):
    path = tmp_path / "schools.csv"
    path.write_text(f"{HEADER}1;A;2031017;mz17\n2;B;NA;tg39\n")
    done = centre.shala("schools", "check", str(path))
    assert done.returncode == 1
    assert "error: schools.csv line 3: school code 'NA' of server tg39 stands for none" in done.stdout
    assert "1 server can be used, 1 error, 0 warnings." in done.stdout
    done = centre.shala("schools", "check", str(path), "--invalid", "skip", "--json")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert [one["server_name"] for one in answer["schools"]] == ["2031017-mz17"]
    assert answer["findings"][0]["line"] == 3


def test_what_stands_beside_the_list_holds_for_its_check_as_for_the_inventory(centre, tmp_path):
    path = tmp_path / "schools.csv"
    path.write_text(f"{HEADER}1;A;2031017;mz17\n2;B;NA;tg39\n3;C;2031017;mz17\n")
    beside = tmp_path / "schools.yml"
    beside.write_text("plugin: schools\ncodes: {tg39: 4160139}\nduplicate_ids: first\naliases:\n")
    done = centre.shala("schools", "check", str(path), "--json")
    assert done.returncode == 0, done
    assert [one["server_name"] for one in json.loads(done.stdout)["schools"]] == [
        "2031017-mz17",
        "4160139-tg39",
    ]
    assert centre.shala("schools", "check", str(path), "--duplicate-ids", "error").returncode == 1
    beside.write_text("path: another.csv\ncodes: {tg39: 4160139}\n")
    assert centre.shala("schools", "check", str(path)).returncode == 1
    beside.write_text("duplicate_ids: never\n")
    done = centre.shala("schools", "check", str(path))
    assert (done.returncode, "schools.yml" in done.stderr) == (2, True)


def test_the_example_list_needs_nothing_to_be_right(centre):
    example = Path(__file__).parents[2] / "inventories/example/schools.csv"
    assert centre.shala("schools", "check", str(example)).returncode == 0


def test_version(centre):
    assert centre.shala("version").stdout == "shala 0.1.0\n"
    assert centre.shala("--version").stdout == "shala 0.1.0\n"


def test_a_reader_who_has_seen_enough_meets_no_traceback(centre, tmp_path):
    path = tmp_path / "schools.csv"
    path.write_text(HEADER + "".join(f"{n};A;NA;mz{n}\n" for n in range(1, 3000)))
    process = subprocess.Popen(
        centre.command("schools", "check", str(path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=centre.environment(),
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.wait(timeout=20)


def test_sizes_and_times_are_words():
    words = ["0 B", "999 B", "1.0 kB", "99.9 kB", "100 kB", "1.0 MB", "17.2 GB"]
    assert [size(n) for n in (0, 999, 1000, 99_900, 99_999, 999_999, 17_200_000_000)] == words
    assert [duration(s) for s in (0.44, 12, 59.6, 200, 7500)] == [
        "0.4 s",
        "12 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 5 min",
    ]


def test_a_table_aligns_what_is_written_in_indian_scripts():
    lines = table([{"a": "नमस्ते", "b": 1}, {"a": "abc", "b": 10}], ("a", "b"), ("b",))
    assert lines[0] == "a      b"
    assert lines[3] == "abc   10"


@pytest.mark.parametrize(
    "words", [["--help"], ["schools", "check", "schools.csv"]], ids=lambda words: words[0]
)
def test_what_it_prints_and_cannot_write_is_one_line(tmp_path, words):
    (tmp_path / "schools.csv").write_text(f"{HEADER}1;A;2031001;mz1\n")
    # As at a shell: where a test is run, nothing may be kept back in memory.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "shala_central", *words],
            cwd=tmp_path,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    said = "shala: what it prints cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)
