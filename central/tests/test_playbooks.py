"""Playbooks of zone sync and restore, run by the Ansible of the controller on schools that are this machine."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from shala_agent.config import SyncConfig
from shala_central.config import ZoneSettings, read_config

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

pytestmark = [
    pytest.mark.skipif(not (REPOSITORY / "playbooks").is_dir(), reason="the package alone has no playbooks"),
    pytest.mark.skipif(Path("/etc/shala").exists(), reason="this machine is a school or a centre itself"),
]


@pytest.fixture
def answering() -> Iterator[int]:
    """A port at which something says that it is an SSH server, which is all that the probe asks for."""
    listener = socket.create_server(("127.0.0.1", 0))

    def greet() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            with line:
                line.sendall(b"SSH-2.0-here\r\n")

    thread = threading.Thread(target=greet, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def run(*arguments: str, programs: str = "") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": ":".join(filter(None, (programs, str(BIN), os.environ["PATH"]))),
    }
    command = [str(BIN / "ansible-playbook"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=environment, cwd=REPOSITORY
    )


@pytest.fixture
def play(answering: int, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a playbook on a centre and three schools: two that answer, and one that does not."""
    (tmp_path / "hosts.yml").write_text(
        f"""
all:
  vars: {{ansible_connection: local, ansible_become: false, ansible_host: 127.0.0.1, ansible_port: {answering},
          ansible_python_interpreter: {sys.executable}, state: mz, zone: mz}}
  children:
    schools: {{hosts: {{mz17: {{}}, mz18: {{zone: ''}}, mz19: {{ansible_port: 1}}}}}}
    centre: {{hosts: {{centre-1: {{}}}}}}
"""
    )

    def play(name: str, *arguments: str, programs: str = "") -> subprocess.CompletedProcess[str]:
        inventory = str(tmp_path / "hosts.yml")
        return run("-i", inventory, f"playbooks/{name}.yml", *arguments, programs=programs)

    return play


def test_with_a_centre_that_serves_no_zones_enrolling_is_done_at_once(play):
    done = play("enrol")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "shala device create" not in done.stdout
    assert "is not enrolled" not in done.stdout


def test_whoever_could_not_be_asked_for_its_zone_is_named(play):
    done = play("enrol", "--limit", "schools")
    assert done.returncode == 3, done.stdout[-3000:]
    assert "mz17 could not be asked for its zone" in done.stdout
    assert "they do not answer: mz19\n" in done.stdout
    assert "mz18" not in done.stdout.partition("PLAY RECAP")[2].partition("\n\n")[2]


NOTHING = {"entries": 0, "segments_down": 0}
SYNCED = {"outcome": "done", "reason": "", "refused": [], "records_up": 0, "records_down": 0, "bytes_up": 9}
SYNCED |= {"bytes_down": 9, "lag_before": NOTHING, "lag_after": NOTHING}


def row_of(folder: Path, sent: dict[str, Any]) -> dict[str, str]:
    """Return the row of sync.yml's table of a school whose first pass said this, and whose second went well."""
    got = {"sync": SYNCED, "notes": [], "heard": None}
    variables = {
        "fleet_row": {"server": "mz17", "result": "online", "reason": ""},
        "sync_sent": {"stdout": json.dumps({"sync": SYNCED, **sent}), "rc": 0},
        "sync_got": {"stdout": json.dumps(got), "rc": 0},
    }
    tasks = [
        {"name": "Have the answers", "ansible.builtin.set_fact": variables},
        {"name": "Row", "ansible.builtin.include_tasks": f"{REPOSITORY}/playbooks/tasks/sync_row.yml"},
        {
            "name": "Keep it",
            "ansible.builtin.copy": {"content": "{{ fleet_row | to_json }}", "dest": f"{folder}/row.json"},
        },
    ]
    play = {"name": "P", "hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    play["vars"] = {"ansible_python_interpreter": sys.executable}
    (folder / "play.yml").write_text(json.dumps([play]))
    done = run(str(folder / "play.yml"))
    assert done.returncode == 0, done.stdout
    row: dict[str, str] = json.loads((folder / "row.json").read_text())
    return row


def test_a_school_whose_own_data_could_not_be_heard_is_not_in_sync(tmp_path):
    why = "nothing was heard of this server's own data: no such school"
    row = row_of(tmp_path, {"notes": [why], "heard": None})
    assert (row["result"], row["reason"]) == ("partly", why)


def test_what_a_school_has_left_out_of_its_data_stands_in_its_row(tmp_path):
    row = row_of(tmp_path, {"notes": [], "heard": {"skipped": ["visits.csv, row 3: no user name"]}})
    assert (row["result"], row["reason"]) == ("in sync", "visits.csv, row 3: no user name")


# -- restore ---------------------------------------------------------------------------------------------------

SAYS = """#!/bin/sh
case "$*" in
  *--list*) echo '{"items": ["db", "media"]}' ;;
  *log*) cat FOLDER/log.json ;;
  *export*) while [ "$1" != --to ]; do shift; done; tar -cf "$2" -C FOLDER log.json ;;
  *) cat FOLDER/restored.json ;;
esac
"""


@pytest.fixture
def restore(play, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Restore mz17 where the centre keeps these collections, {number: its items}; the agent has done all."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("shala", "shala-agent"):
        (programs / name).write_text(SAYS.replace("FOLDER", str(tmp_path)))
        (programs / name).chmod(0o755)
    items = [{"name": "db", "outcome": "ok", "reasons": [], "detail": {}}]

    def restore(
        collections: dict[str, dict[str, str] | None], *arguments: str, **said: Any
    ) -> subprocess.CompletedProcess[str]:
        kept = [{"handle": number, "items": items} for number, items in collections.items()]
        (tmp_path / "log.json").write_text(json.dumps({"name": "mz17", "collections": kept}))
        (tmp_path / "restored.json").write_text(json.dumps({"items": items, "kept": "", **said}))
        return play(
            "restore",
            *("-e", "restore_server=mz17", "-e", "gstudio_container_name=shala-no-such"),
            *arguments,
            programs=str(programs),
        )

    return restore


GOOD = {"gstudio/db": "ok", "gstudio/media": "accepted"}


@pytest.mark.plays
def test_what_the_centre_doubts_is_restored_only_when_it_is_asked_for(restore):
    kept = {"4": None, "3": {**GOOD, "gstudio/db": "held"}, "2": GOOD}
    assert "collection 2 of mz17" in restore(kept, "--check").stdout
    assert "collection 3 of mz17" in restore(kept, "--check", "-e", '{"restore_items": ["media"]}').stdout
    assert "collection 3 of mz17" in restore(kept, "--check", "-e", "restore_collection=3").stdout


def test_where_every_collection_is_in_doubt_the_operator_is_to_name_one(restore):
    done = restore({"3": {**GOOD, "gstudio/media": "suspect"}, "2": {**GOOD, "gstudio/db": "failed"}})
    assert done.returncode not in (0, 3)
    assert "nothing was restored" in done.stdout
    assert "-e restore_collection=NUMBER" in done.stdout


@pytest.mark.plays
def test_a_restore_after_which_the_platform_does_not_come_up_has_failed(restore):
    done = restore({"2": GOOD}, restart_needed=True)
    assert done.returncode not in (0, 3)
    assert "Not done to its end: Have the platform read its settings" in done.stdout
    assert "None is left" not in done.stdout


@pytest.mark.plays
def test_a_restore_after_which_nothing_is_to_be_read_anew_is_done(restore):
    done = restore({"2": GOOD}, restart_needed=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "None is left" in done.stdout


def make_certificates(folder: Path, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the role's own tasks, which make an authority and a certificate, in another folder."""
    (folder / "own.yml").write_text(
        f"""
- hosts: localhost
  connection: local
  gather_facts: false
  vars_files: [{REPOSITORY}/roles/central/vars/main.yml]
  tasks:
    - ansible.builtin.include_tasks: {REPOSITORY}/roles/central/tasks/certificate_own.yml
  handlers:
    - name: Reload nginx
      ansible.builtin.debug: {{msg: reload}}
"""
    )
    said = {"central_tls_folder": f"{folder}/tls", "central_zones_host": host}
    return run(str(folder / "own.yml"), "-e", json.dumps(said), *arguments)


@pytest.mark.skipif(os.getuid() != 0, reason="the role makes files of root's")
@pytest.mark.plays
def test_the_roles_certificate_is_good_whatever_a_schools_clock_says_and_made_once(tmp_path):
    done = make_certificates(tmp_path, "fd00::17", "--check")  # on a new host, of which nothing is there yet
    assert done.returncode == 0, done.stdout
    assert not (tmp_path / "tls").exists()
    done = make_certificates(tmp_path, "fd00::17")
    assert done.returncode == 0, done.stdout
    tls = tmp_path / "tls"
    for clock in ("0", "946684800", "1600000000", "7258118400"):  # 1970, 2000, 2020, 2200
        verify = ["openssl", "verify", "-attime", clock, "-verify_ip", "fd00::17", "-CAfile"]
        done = subprocess.run(
            [*verify, tls / "authority.pem", tls / "own.pem"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (clock, done.stderr)
    assert "changed=0 " in make_certificates(tmp_path, "fd00::17").stdout


def test_a_centre_reads_what_the_role_writes_whatever_it_is_called_in_the_inventory(tmp_path):
    hosts = {
        "shala_centre": {},
        "named.by.address": {"ansible_host": "2001:db8::1", "central_zones_port": 8443},
        "of no zones": {"central_zones_enabled": False},
    }
    defaults = yaml.safe_load((REPOSITORY / "roles/central/defaults/main.yml").read_text())
    said = {**defaults, "ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"vars": said, "hosts": hosts}}))
    (tmp_path / "write.yml").write_text(
        f"""
- hosts: all
  gather_facts: false
  vars_files: [{REPOSITORY}/roles/central/vars/main.yml]
  tasks:
    - ansible.builtin.template:
        src: {REPOSITORY}/roles/central/templates/central.toml.j2
        dest: "{tmp_path}/{{{{ inventory_hostname }}}}.toml"
        mode: "0644"
"""
    )
    done = run("-i", str(tmp_path / "hosts.yml"), str(tmp_path / "write.yml"))
    assert done.returncode == 0, done.stdout
    assert {path.stem: read_config(path).zones.url for path in tmp_path.glob("*.toml")} == {
        "shala_centre": "https://shala_centre",
        "named.by.address": "https://[2001:db8::1]:8443",
        "of no zones": "",
    }


@given(st.data())
def test_an_address_of_each_name_that_the_role_takes_is_one_that_centre_and_servers_take(data):
    rule = re.search(r"match\('(.*)\$'\)", (REPOSITORY / "roles/central/tasks/serve.yml").read_text())
    name = data.draw(st.from_regex(rule[1], fullmatch=True, alphabet=st.characters(codec="ascii")))
    url = f"https://[{name}]:8443" if ":" in name else f"https://{name}"
    assert msgspec.convert({"url": url}, ZoneSettings).url == url
    assert msgspec.convert({"url": url}, SyncConfig).url == url
