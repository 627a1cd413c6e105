"""A school server after the role: what the agent can do there, and who comes with the centre's key."""

from __future__ import annotations

import re

import tomllib

SSH = (
    "ssh -i /root/pull_key -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=no "
    "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
)


def test_the_command_line_answers(host):
    assert host.run("shala-agent --help").rc == 0


def test_it_runs_from_a_release_of_its_own(host):
    current = host.check_output("readlink /opt/shala/agent/current")
    assert current.startswith("/opt/shala/agent/releases/0.")
    assert host.file(f"{current}/.complete").exists
    assert not host.file(f"{current}/wheels").exists


def test_the_agent_accepts_its_configuration_and_others_cannot_read_it(host):
    config = host.file("/etc/shala/agent.toml")
    assert (config.user, config.group, config.mode) == ("root", "root", 0o640)
    assert 'server_name = "2031017-mz17"' in config.content_string
    assert host.run("shala-agent check-config --files-later /etc/shala/agent.toml").rc == 0


def test_what_may_leave_the_server_is_what_the_operator_said(host):
    said = tomllib.loads(host.file("/etc/shala/catalogue.toml").content_string)
    assert said["items"]["nginx-logs"] == {"take": False}
    assert said["items"]["gstudio-exported-users-analytics-csvs"]["pseudonymise"] == [
        "first_name",
        "last_name",
    ]
    assert said["items"]["h5p-logs"]["about"] == 'what "H5P" \\ नोट wrote'
    assert said["derivations"] == {"activity-timestamps": {"every_hours": 20}}


def test_the_key_of_the_pseudonyms_is_roots_alone(host):
    key = host.file("/etc/shala/pseudonym.key")
    assert (key.user, key.group, key.mode) == ("root", "root", 0o600)
    assert key.content_string == "0123456789abcdef0123456789abcdef\n"


def test_a_server_with_a_zone_syncs_with_the_centre_that_it_was_told_of(host):
    assert "of the centre" in host.file("/etc/shala/centre.pem").content_string
    sync = tomllib.loads(host.file("/etc/shala/agent.toml").content_string)["sync"]
    assert (sync["enabled"], sync["ca_file"]) == (True, "/etc/shala/centre.pem")


def test_it_starts_at_boot_and_at_its_interval(host):
    timer = host.service("shala-agent.timer")
    assert timer.is_enabled
    assert timer.is_running


def test_the_unit_is_gentle_and_confined(host):
    shown = host.check_output(
        "systemctl show shala-agent.service -p Nice -p IOSchedulingClass -p MemoryMax -p ProtectSystem"
        " -p NoNewPrivileges -p ReadOnlyPaths -p PrivateTmp"
    )
    assert "Nice=19" in shown
    assert "IOSchedulingClass=3" in shown or "IOSchedulingClass=idle" in shown
    assert f"MemoryMax={512 * 1024 * 1024}" in shown
    assert {"ProtectSystem=full", "NoNewPrivileges=yes", "PrivateTmp=yes"} <= set(shown.split())
    assert {"-/root", "-/opt", "-/srv"} <= set(re.split("[ =\n]", shown))


def test_the_agent_itself_runs_in_that_confinement(host):
    # There is no gStudio here, so the chain fails (1) or is done in part (3).
    # systemd's own refusals are above 200.
    host.run("systemctl start shala-agent.service")
    status = host.check_output("systemctl show shala-agent.service -p ExecMainStatus --value")
    assert status in {"0", "1", "3"}, host.run("journalctl -u shala-agent --no-pager -n 30").stdout


def test_ledger_and_spool_are_closed_to_others(host):
    state, spool = host.file("/var/lib/shala"), host.file("/var/spool/shala")
    assert (state.user, state.mode) == ("root", 0o700)
    assert (spool.user, spool.group, spool.mode) == ("root", "shala-pull", 0o750)


def test_the_centres_key_reads_the_spool(host):
    host.run("install -m 0640 -g shala-pull /etc/hostname /var/spool/shala/probe")
    fetched = host.run(f"rsync -e '{SSH}' shala-pull@127.0.0.1:/probe /root/fetched")
    assert fetched.rc == 0, fetched.stderr
    assert host.file("/root/fetched").content_string == host.file("/etc/hostname").content_string
    host.run("rm -f /var/spool/shala/probe /root/fetched")


def test_the_centres_key_can_do_nothing_else(host):
    assert host.run(f"{SSH} shala-pull@127.0.0.1 id").rc != 0
    assert host.run(f"rsync -e '{SSH}' /etc/hostname shala-pull@127.0.0.1:/planted").rc != 0
    assert not host.file("/var/spool/shala/planted").exists
    assert (
        host.run(f"rsync -e '{SSH}' shala-pull@127.0.0.1:/../../../etc/shala/agent.toml /root/stolen").rc != 0
    )
    assert "SSH-" not in host.run(f"{SSH} -W 127.0.0.1:22 shala-pull@127.0.0.1").stdout


def test_the_key_file_belongs_to_root(host):
    keys = host.file("/var/lib/shala-pull/.ssh/authorized_keys")
    assert (keys.user, keys.mode) == ("root", 0o640)
    assert keys.content_string.count("ssh-ed25519") == 1
