"""What the baseline promises, seen from outside."""


def test_passwords_do_not_open_ssh_and_keys_do(host):
    settings = host.check_output("sshd -T")
    assert "passwordauthentication no" in settings
    assert "permitrootlogin without-password" in settings
    assert "pubkeyauthentication yes" in settings


def test_the_journal_is_kept_and_bounded(host):
    settings = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    assert "SystemMaxUse=500M" in settings
    assert host.file("/var/log/journal").is_directory or "Storage=persistent" in settings


def test_only_security_updates_come_by_themselves(host):
    settings = host.check_output("apt-config dump Unattended-Upgrade::Origins-Pattern")
    assert settings.count("origin=") == 1
    assert "label=Debian-Security" in settings
    assert host.package("unattended-upgrades").is_installed


def test_the_time_zone_is_indias(host):
    assert host.check_output("date +%Z") == "IST"


def test_the_maintainers_account_has_no_password_and_no_rights(host):
    assert host.user("shala").exists
    assert host.user("shala").password in ("*", "!")
    assert host.check_output("id -nG shala") == "shala"


def test_ssh_still_listens(host):
    assert host.service("ssh").is_running
