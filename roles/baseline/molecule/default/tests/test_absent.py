"""What the baseline leaves behind when it is taken back."""


def test_the_settings_are_gone_and_ssh_still_works(host):
    assert not host.file("/etc/ssh/sshd_config.d/10-shala.conf").exists
    assert not host.file("/etc/systemd/journald.conf.d/shala.conf").exists
    assert host.run("sshd -t").rc == 0
    assert host.service("ssh").is_running


def test_the_account_is_gone(host):
    assert not host.user("shala").exists
