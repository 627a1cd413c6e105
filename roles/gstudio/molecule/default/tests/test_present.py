"""What the gstudio role promises, seen from outside."""

import ast

SETTINGS = "/home/core/code/gstudio/gnowsys-ndf/gnowsys_ndf/server_settings.py"


def test_the_container_runs_with_its_volumes(host):
    mounts = host.check_output(
        "docker inspect gstudio --format '{{ range .Mounts }}{{ .Source }}:{{ .Destination }} {{ end }}'"
    ).split()
    assert "/home/core/data:/data" in mounts
    assert "/home/core/code:/home/docker/code" in mounts
    assert (
        host.check_output("docker inspect gstudio --format '{{ .HostConfig.RestartPolicy.Name }}'")
        == "unless-stopped"
    )


def test_the_lessons_are_served(host):
    assert host.run("docker exec gstudio curl -sf -o /dev/null http://127.0.0.1/").rc == 0


def test_a_school_name_with_quotes_and_hindi_is_still_python(host):
    tree = ast.parse(host.file(SETTINGS).content_string)
    values = {node.targets[0].id: node.value.value for node in tree.body}
    assert values == {
        "GSTUDIO_INSTITUTE_ID": "mz17",
        "GSTUDIO_INSTITUTE_ID_SECONDARY": "2031017",
        "GSTUDIO_INSTITUTE_NAME": 'St. John\'s "Model" H/S \\ राजकीय & Co',
    }


def test_the_code_came_from_the_image(host):
    assert host.file("/home/core/code/gstudio/gnowsys-ndf/manage.py").exists
    assert not host.file("/home/core/code.seeding").exists
