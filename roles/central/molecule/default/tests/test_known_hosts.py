"""One school was offline while the other one came with a new host key."""

from __future__ import annotations


def test_the_new_key_replaced_the_old_one(host):
    new = host.check_output("cut -d' ' -f2 /root/new.pub")
    known = host.check_output("ssh-keygen -F 198.51.100.17 -f /var/lib/shala/ssh/known_hosts")
    assert new in known
    assert known.count("ssh-ed25519") == 1


def test_the_school_that_is_offline_keeps_its_key(host):
    old = host.check_output("cut -d' ' -f2 /root/3080101-rj1.pub")
    assert old in host.check_output("ssh-keygen -F '[198.51.100.20]:43001' -f /var/lib/shala/ssh/known_hosts")
