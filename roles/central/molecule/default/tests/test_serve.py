"""The server of the zones, as a school meets it: behind nginx with TLS."""

from __future__ import annotations

import json
import time

URL = "https://shala-central-1/v1/health"
AUTHORITY = "/etc/shala/tls/authority.pem"
CURL = "curl -sS --max-time 10"


def answers(host, seconds=30):
    """Return what the health page says, once it says something."""
    for _ in range(seconds):
        done = host.run(f"{CURL} -f --cacert {AUTHORITY} {URL}")
        if done.rc == 0:
            return json.loads(done.stdout)
        time.sleep(1)
    raise AssertionError(host.run("journalctl -u shala-serve -u nginx --no-pager -n 30").stdout)


def test_it_answers_whoever_knows_the_authority(host):
    assert answers(host) == {"status": "ok"}


def test_it_proves_itself_to_nobody_without_it(host):
    assert host.run(f"{CURL} {URL}").rc == 60  # curl: the peer's certificate cannot be authenticated


def test_nothing_is_served_in_clear(host):
    assert host.run(f"{CURL} http://shala-central-1/").rc == 7  # nobody listens
    listening = host.check_output("ss -Hltn sport = :8470")
    assert listening.split()[3] == "127.0.0.1:8470"


def test_old_tls_is_refused(host):
    assert host.run(f"{CURL} --cacert {AUTHORITY} --tls-max 1.1 {URL}").rc == 35


def test_nothing_but_the_api_is_passed_on(host):
    for path in ("", "v1", "docs", "v1/../etc/shala/central.toml", "v1/%2e%2e/%2e%2e/etc/passwd"):
        code = host.check_output(
            f"{CURL} --path-as-is -o /dev/null -w %{{http_code}} --cacert {AUTHORITY} https://shala-central-1/{path}"
        )
        assert code in {"400", "404"}, path


def test_a_body_beyond_all_measure_is_refused_at_the_door(host):
    host.run("truncate -s 2M /tmp/large")
    code = host.check_output(
        f"{CURL} -o /dev/null -w %{{http_code}} --cacert {AUTHORITY} --data-binary @/tmp/large"
        " https://shala-central-1/v1/enrol"
    )
    assert code == "413"


def test_a_storm_from_one_address_is_told_to_come_later_in_the_words_of_the_api(host):
    said = host.check_output(
        f"{CURL} --parallel --parallel-max 50 --cacert {AUTHORITY} -w '\\n%{{http_code}}\\n' '{URL}?[1-800]'"
    )
    assert "429" in said.split()
    assert '{"error":"too many requests from this address"}' in said
    time.sleep(5)
    assert answers(host) == {"status": "ok"}


def test_killed_it_comes_back(host):
    before = host.check_output("systemctl show shala-serve -p MainPID --value")
    host.run(f"kill -9 {before}")
    time.sleep(1)
    assert answers(host) == {"status": "ok"}
    assert host.check_output("systemctl show shala-serve -p MainPID --value") not in (before, "0")
    assert host.service("shala-serve").is_enabled


def test_what_was_made_is_there_after_a_restart(host):
    host.run("runuser -u shala -- shala org create mizoram")  # refused when this test runs again
    assert host.run("systemctl restart shala-serve").rc == 0
    assert answers(host) == {"status": "ok"}
    listed = json.loads(host.check_output("runuser -u shala -- shala org list --json"))
    assert [one["organization"] for one in listed["organizations"]] == ["mizoram"]


def test_it_sees_neither_archive_nor_keys_that_are_not_its_own(host):
    process = host.check_output("systemctl show shala-serve -p MainPID --value")
    for folder in ("/srv/shala/archive", "/var/lib/shala/ssh", "/etc/shala/tls"):
        seen = host.run(f"nsenter -t {process} -m ls -A {folder}")
        assert seen.stdout.strip() == "", folder
        assert host.check_output(f"ls -A {folder}") or folder == "/srv/shala/archive"


def test_records_and_keys_are_for_one_account_alone(host):
    for path, user in (
        ("/var/lib/shala/zones.sqlite", "shala"),
        ("/var/lib/shala/zones.key", "shala"),
        ("/etc/shala/tls/own.key", "root"),
        ("/etc/shala/tls/authority.key", "root"),
    ):
        file = host.file(path)
        assert (file.user, file.mode) == (user, 0o600), path


def test_schools_are_told_address_and_authority(host):
    said = json.loads(host.file("/etc/shala/zones.json").content_string)
    assert said["url"] == "https://shala-central-1"
    assert said["authority"] == host.file(AUTHORITY).content_string


def test_the_certificate_is_for_this_host_and_by_an_authority_that_signs_no_other_one(host):
    text = host.check_output("openssl x509 -in /etc/shala/tls/own.pem -noout -text")
    assert "DNS:shala-central-1" in text
    authority = host.check_output(f"openssl x509 -in {AUTHORITY} -noout -text")
    assert "CA:TRUE, pathlen:0" in authority
