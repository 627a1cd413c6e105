"""A dump that fails stops the replacement."""


def test_the_old_container_is_still_there_with_its_new_student(host):
    assert "LESSONS=2" not in host.check_output("docker inspect gstudio --format '{{ .Config.Env }}'")
    names = host.check_output(
        "docker exec gstudio su - postgres -c \"psql -At -d gstudio_psql -c 'select username from auth_user'\""
    )
    assert "new-student-mz17" in names.split()


def test_no_half_dump_took_the_place_of_a_dump(host):
    dump = host.file("/home/core/data/postgres-dump/pg_dump_all.sql")
    assert not dump.exists or "PostgreSQL database cluster dump complete" in dump.content_string
