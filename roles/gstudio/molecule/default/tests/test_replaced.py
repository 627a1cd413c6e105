"""PostgreSQL is on no volume, and yet every user survives the replacement of the container."""


def test_it_is_another_container(host):
    assert "LESSONS=2" in host.check_output("docker inspect gstudio --format '{{ .Config.Env }}'")


def test_every_user_came_back(host):
    names = host.check_output(
        "docker exec gstudio su - postgres -c \"psql -At -d gstudio_psql -c 'select username from auth_user'\""
    ).split()
    assert "new-student-mz17" in names
    assert "administrator" in names
    assert not host.file("/home/core/data/postgres-dump/RESTORE_PENDING").exists
