"""What the gstudio role leaves behind: the school's data, and a whole dump of its users."""


def test_the_container_is_gone_and_the_data_stay(host):
    assert host.run("docker inspect gstudio").rc != 0
    assert host.file("/home/core/data/media").is_directory


def test_the_users_are_safe(host):
    dump = host.file("/home/core/data/postgres-dump/pg_dump_all.sql").content_string
    assert "new-student-mz17" in dump
    assert "PostgreSQL database cluster dump complete" in dump
