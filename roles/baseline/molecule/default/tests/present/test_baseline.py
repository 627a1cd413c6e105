"""What a server has after the role: looked at from outside, through the programs that use it."""

from __future__ import annotations

import pytest

testinfra_hosts = ["docker://shala-baseline-1", "docker://shala-baseline-2"]


@pytest.fixture
def sshd(host):
    """Give sshd's settings in force for root, as sshd itself tells them."""
    output = host.check_output("/usr/sbin/sshd -T -C user=root,host=school,addr=192.0.2.1")
    return dict(line.split(" ", 1) for line in output.splitlines() if " " in line)


def name_of(host) -> str:
    return host.check_output("hostname")


def test_the_clock_shows_indian_time(host):
    assert host.check_output("date +%Z") == "IST"
    assert host.file("/etc/timezone").content_string == "Asia/Kolkata\n"


def test_time_is_synchronised_from_the_next_boot_on(host):
    assert host.service("systemd-timesyncd").is_enabled


def test_the_journal_is_kept_and_cannot_fill_the_disk(host):
    settings = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    assert "\nSystemMaxUse=500M" in settings
    assert "\nStorage=persistent" in settings
    assert host.service("systemd-journald").is_running


def test_nobody_is_locked_out_where_no_key_is_known(host, sshd):
    keys_only = sshd["passwordauthentication"] == "no"
    assert keys_only == (name_of(host) == "shala-baseline-1")


def test_root_gets_in_by_key_and_never_by_password(host, sshd):
    assert sshd["permitrootlogin"] in ("without-password", "prohibit-password")
    assert sshd["permitemptypasswords"] == "no"
    assert sshd["pubkeyauthentication"] == "yes"


def test_ssh_answers_with_the_new_settings(host, sshd):
    assert sshd["x11forwarding"] == "no"
    assert sshd["maxauthtries"] == "4"
    assert host.service("ssh").is_running
    assert host.socket("tcp://0.0.0.0:22").is_listening


def test_the_maintainers_have_an_account_without_rights_or_password(host):
    user = host.user("shala")
    assert user.exists
    assert user.groups == ["shala"]
    assert user.password == "*"
    assert host.run("runuser -u shala -- sudo -n true").failed


def test_only_security_updates_install_themselves(host):
    if name_of(host) != "shala-baseline-1":
        assert 'APT::Periodic::Unattended-Upgrade "0";' in host.check_output("apt-config dump")
        return
    settings = host.check_output("apt-config dump")
    begin = "Unattended-Upgrade::Origins-Pattern::"
    origins = [line for line in settings.splitlines() if line.startswith(begin)]
    assert len(origins) == 1
    assert "label=Debian-Security" in origins[0]
    assert 'APT::Periodic::Unattended-Upgrade "1";' in settings
    assert "Allowed origins are: origin=Debian,codename=bookworm-security" in host.check_output(
        "unattended-upgrade --dry-run --verbose 2>&1 | head -n 20"
    )


def test_the_maintainers_key_opens_their_account(host):
    if name_of(host) == "shala-baseline-1":
        assert "maintainer@example.org" in host.file("/home/shala/.ssh/authorized_keys").content_string
