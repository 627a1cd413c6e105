"""The platform is gone; what the school recorded is not."""

from __future__ import annotations

testinfra_hosts = ["docker://shala-gstudio-1"]
DUMPS = "/home/core/data/postgres-dump"


def test_the_container_is_gone_and_the_image_stays(host):
    assert host.check_output("docker ps -aq") == ""
    assert host.run("docker image inspect gstudio:lab").succeeded


def test_the_schools_data_and_users_are_kept(host):
    assert host.file("/home/core/data/media").is_directory
    for dump in (f"{DUMPS}/pg_dump_all.sql", f"{DUMPS}/.users-to-restore.sql"):
        assert "new-student-mz17" in host.file(dump).content_string
