"""The centre with the operator's certificate, and with PostgreSQL."""

from __future__ import annotations

import json

CURL = "curl -sS --max-time 10"


def test_it_answers_with_the_operators_certificate(host):
    assert host.run(f"{CURL} -f --cacert /root/operator.pem https://shala-central-1:8443/v1/health").rc == 0
    own = "/etc/shala/tls/authority.pem"
    assert host.run(f"{CURL} --cacert {own} https://shala-central-1:8443/v1/health").rc == 60


def test_schools_trust_what_every_system_knows(host):
    said = json.loads(host.file("/etc/shala/zones.json").content_string)
    assert said == {"format": 1, "url": "https://shala-central-1:8443", "authority": ""}


def test_the_zones_are_in_postgresql(host):
    assert host.run("runuser -u shala -- shala org create rajasthan").rc == 0
    rows = host.check_output("runuser -u postgres -- psql -At -d zones -c 'select name from organization'")
    assert rows == "rajasthan"


def test_the_password_is_for_one_account_alone_and_in_no_command_line(host):
    file = host.file("/etc/shala/pgpass")
    assert (file.user, file.mode) == ("shala", 0o600)
    assert "not a:secret" not in host.file("/etc/shala/central.toml").content_string
    assert "not a" not in host.check_output("ps -eo args")
    assert "not a" not in host.run("journalctl --no-pager -u shala-serve").stdout
