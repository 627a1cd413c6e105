"""The inventory and the callback plugin under the Ansible that runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
HEADER = "Sr. No.;School Name;Full CLIx School Code;Server id;zone;address;port\n"

pytestmark = pytest.mark.skipif(
    not (REPOSITORY / "plugins").is_dir(), reason="the package alone has no plugins"
)


def ansible(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "COLUMNS": "999",
    }
    command = [str(BIN / program), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment, cwd=REPOSITORY
    )


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the JSON that ansible-inventory printed; it marks texts that must never become templates."""

    def plain(value: dict[str, Any]) -> Any:
        return value["__ansible_unsafe"] if set(value) == {"__ansible_unsafe"} else value

    return json.loads(done.stdout, object_hook=plain)


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.fixture
def inventory(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def inventory(rows: str, config: str = "") -> subprocess.CompletedProcess[str]:
        (tmp_path / "schools.csv").write_text(HEADER + rows)
        (tmp_path / "schools.yml").write_text(f"plugin: schools\n{config}")
        return ansible("ansible-inventory", "-i", str(tmp_path), "--list")

    return inventory


def test_the_example_loads_clean():
    done = ansible("ansible-inventory", "-i", "inventories/example", "--list")
    assert (done.returncode, done.stderr) == (0, "")
    found = answer(done)
    states = {group for group in found if group.startswith("state_")}
    assert states == {"state_mz", "state_rj", "state_ct", "state_tg"}
    assert len(found["schools"]["hosts"]) == 12
    assert found["_meta"]["hostvars"]["4160139-tg39"]["school_code"] == "4160139"
    assert found["centre"]["hosts"] == ["centre-1"]


def test_hosts_have_the_variables_and_groups_of_the_contract(inventory):
    done = inventory(
        "1;St. Peter's H/S;2031017;mz17;mz-aizawl;10.0.0.17;2222\n"
        "2;B {{ lookup('pipe', 'id') }};3080101;rj1;;;\n"
    )
    found = answer(done)
    variables = found["_meta"]["hostvars"]
    ring = variables["2031017-mz17"].pop("ring")
    assert variables["2031017-mz17"] == {
        "server_name": "2031017-mz17",
        "state": "mz",
        "school_code": "2031017",
        "server_id": "mz17",
        "school_name": "St. Peter's H/S",
        "zone": "mz-aizawl",
        "ansible_host": "10.0.0.17",
        "ansible_port": 2222,
    }
    assert found["zone_mz_aizawl"]["hosts"] == ["2031017-mz17"]
    assert "2031017-mz17" in found[f"ring_{ring}"]["hosts"]
    assert "ansible_host" not in variables["3080101-rj1"]
    assert variables["3080101-rj1"]["school_name"] == "B {{ lookup('pipe', 'id') }}", (
        "a name is never a template"
    )


def test_a_name_that_looks_like_a_template_is_only_a_name(tmp_path):
    (tmp_path / "schools.csv").write_text(HEADER + "1;{{ 1 + 1 }};3080101;rj1;;;\n")
    done = ansible(
        "ansible",
        "-i",
        str(tmp_path / "schools.csv"),
        "all",
        "-c",
        "local",
        "-m",
        "debug",
        "-a",
        "msg={{ school_name }}",
    )
    assert "{{ 1 + 1 }}" in done.stdout, done.stdout + done.stderr


def test_an_error_is_one_line_with_file_line_field_and_value(inventory):
    done = inventory("1;A;2031017;mz17;;;\n2;B;2031018;mz17;;;\n3;C;NA;mz19;;;\n")
    assert done.returncode != 0
    said = flat(done.stderr)
    assert (
        "schools.csv line 3: server id 'mz17' is already used in line 2 (give one of them another id" in said
    )
    assert "schools.csv line 4: school code 'NA' of server mz19 stands for none" in said
    assert "Traceback" not in said


def test_what_policy_lets_pass_is_a_warning(inventory):
    done = inventory(
        "1;A;2031017;mz17;;;\n2;B;2031018;mz17;;;\n3;C;NA;mz19;;;\n", "duplicate_ids: first\ninvalid: skip\n"
    )
    assert answer(done)["schools"]["hosts"] == ["2031017-mz17"]
    said = flat(done.stderr)
    assert "[WARNING]: schools.csv line 3: server id 'mz17' is already used in line 2" in said
    assert "[WARNING]: schools.csv line 4: school code 'NA'" in said


def test_the_options_reach_the_reader(inventory):
    config = "states: [mz, ka]\naliases: {kn: ka}\ncodes: {ka1: '5010001'}\nrings: {1: 0, 7: 100}\n"
    found = answer(inventory("1;A;NA;kn1;;;\n", config))
    assert found["state_ka"]["hosts"] == found["ring_7"]["hosts"] == ["5010001-ka1"]


@pytest.mark.parametrize(
    "config, complaint",
    [
        ("rings: {1: 50}\n", "the shares add up to 50 per cent, not to 100"),
        ("rings: {a: 100}\n", "rings: ring and per cent must be whole numbers"),
        ("path: other.csv\n", "No such file or directory"),
        ("duplicate_ids: last\n", "duplicate_ids"),
    ],
)
def test_a_wrong_option_is_named(inventory, config, complaint):
    done = inventory("1;A;2031017;mz17;;;\n", config)
    assert done.returncode != 0
    assert complaint in flat(done.stderr)


PARSE = """
import time, sys
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, inventory_loader
init_plugin_loader()
inventory_loader.add_directory(sys.argv[1])
plugin, inventory = inventory_loader.get("schools"), InventoryData()
started = time.process_time()
plugin.parse(inventory, DataLoader(), sys.argv[2])
print(len(inventory.hosts), time.process_time() - started)
"""


def test_five_thousand_schools_load_in_under_two_cpu_seconds(tmp_path):
    rows = (f"{n};S {n};2{n:06d};mz{n};mz-{n % 40};10.0.{n // 256}.{n % 256};22\n" for n in range(1, 5001))
    (tmp_path / "schools.csv").write_text(HEADER + "".join(rows))
    (tmp_path / "schools.yml").write_text("plugin: schools\n")
    arguments = [str(REPOSITORY / "plugins" / "inventory"), str(tmp_path / "schools.yml")]
    done = subprocess.run(
        [sys.executable, "-c", PARSE, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    hosts, seconds = done.stdout.split()
    assert int(hosts) == 5000
    assert float(seconds) < 2


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def play(data: dict[str, object], fail: bool = False) -> subprocess.CompletedProcess[str]:
        tasks: list[dict[str, object]] = [{"name": "S", "ansible.builtin.set_stats": {"data": data}}]
        if fail:
            tasks.append({"name": "F", "ansible.builtin.fail": {"msg": "no"}})
        path = tmp_path / "play.yml"
        path.write_text(
            json.dumps([{"name": "P", "hosts": "localhost", "gather_facts": False, "tasks": tasks}])
        )
        (tmp_path / "hosts.yml").write_text("all: {hosts: {localhost: {ansible_connection: local}}}\n")
        return ansible("ansible-playbook", "-i", str(tmp_path / "hosts.yml"), str(path))

    return play


def test_partly_done_is_exit_code_3(play):
    done = play({"shala_partly_done": True, "shala_report": "one line\nanother"})
    assert done.returncode == 3, done.stderr
    assert done.stdout.endswith("one line\nanother\n")


def test_done_is_exit_code_0(play):
    assert play({"shala_partly_done": False, "shala_report": ["a"]}).returncode == 0
    assert play({"other": 1}).returncode == 0
    assert play({"shala_partly_done": "{{ false }}"}).returncode == 0


def test_a_failure_is_louder_than_partly_done(play):
    assert play({"shala_partly_done": True}, fail=True).returncode == 2


def test_rows_become_a_table(play):
    rows = [
        {"server": "2031017-mz17", "state": "mz", "bytes": 12},
        {"server": "3080101-rj1", "state": "rj", "bytes": 3400},
    ]
    done = play(
        {"shala_report": {"columns": ["server", "state", "bytes"], "rows": rows, "closing": "one left"}}
    )
    assert done.stdout.splitlines()[-5:] == [
        "server        state  bytes",
        "------------  -----  -----",
        "2031017-mz17  mz        12",
        "3080101-rj1   rj      3400",
        "one left",
    ]
    assert "2031017-mz17  mz        12" in play({"shala_report": rows}).stdout


def test_a_playbook_writes_sizes_as_the_command_line_does():
    done = ansible("ansible", "localhost", "-m", "debug", "-a", "msg={{ 17234567 | shala_size }}")
    assert "17.2 MB" in done.stdout


def test_a_report_may_hold_several_tables_and_another_one_may_stand_beside_it(play):
    tables = [{"title": f"Zone {zone}", "columns": ["server"], "rows": [{"server": zone}]} for zone in "ab"]
    report = {"title": "All", "tables": tables, "closing": "None is left."}
    said = play({"shala_report_before": ["first"], "shala_report": report, "other": "not this"}).stdout
    assert said.splitlines()[-14:] == [
        "first",
        "",
        "All",
        *("", "Zone a", "server", "------", "a"),
        *("", "Zone b", "server", "------", "b"),
        "None is left.",
    ]
    assert "not this" not in said
