"""Replaced while stopped, cut in the middle of a restore: the users are there, all of them, once."""

from __future__ import annotations

import pytest

testinfra_hosts = ["docker://shala-gstudio-1"]
DUMPS = "/home/core/data/postgres-dump"


@pytest.fixture
def users(host):
    """Give the platform's user names as PostgreSQL tells them."""
    return host.check_output(
        "docker exec gstudio su - postgres -c"
        " \"psql -XAt -d gstudio_psql -c 'select username from auth_user'\""
    ).split()


def test_the_container_is_another_one(host):
    assert "ROUND=2" in host.check_output("docker inspect gstudio --format '{{.Config.Env}}'")


def test_the_schools_users_are_there_and_the_last_one_enrolled_too(users):
    assert "new-student-mz17" in users
    assert len(users) == len(set(users))
    # More than the image's own ten accounts.
    assert len([name for name in users if name.endswith("-mz17")]) > 10


def test_their_passwords_came_with_them(host):
    hashes = host.check_output(
        'docker exec gstudio su - postgres -c "psql -XAt -d gstudio_psql -c \\"'
        "select password from auth_user where username = 'new-student-mz17'\\\"\""
    )
    assert hashes == "x"


def test_the_dump_is_whole_private_and_the_only_one_waiting(host):
    dump = host.file(f"{DUMPS}/pg_dump_all.sql")
    assert dump.mode == 0o600
    assert "-- PostgreSQL database cluster dump complete" in dump.content_string[-200:]
    assert not host.file(f"{DUMPS}/.users-to-restore.json").exists
    assert not host.file(f"{DUMPS}/.users-to-restore.sql").exists
    assert not host.file(f"{DUMPS}/.pg_dump_all.sql.new").exists
