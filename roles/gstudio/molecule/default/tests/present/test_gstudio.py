"""The platform after the role, looked at from outside."""

from __future__ import annotations

import ast
import json

import pytest

testinfra_hosts = ["docker://shala-gstudio-1"]
SETTINGS = "/home/core/code/gstudio/gnowsys-ndf/gnowsys_ndf/server_settings.py"
NAME = 'St. John\'s "Model" H/S \\ & Co\nराजकीय विद्यालय, ప్రభుత్వ పాఠశాల \\u0041\\'


@pytest.fixture
def container(host):
    """Give what the engine says about the container."""
    return json.loads(host.check_output("docker inspect gstudio"))[0]


def test_the_container_has_the_volumes_of_a_school_server(container):
    assert {mount["Source"]: mount["Destination"] for mount in container["Mounts"]} == {
        "/home/core/data": "/data",
        "/home/core/code": "/home/docker/code",
        "/home/core/setup-software": "/softwares",
        "/home/core/assesment-datastore": (
            "/home/docker/code/gstudio/gnowsys-ndf/qbank-lite/webapps/CLIx/datastore"
        ),
        "/home/core/backups": "/backups",
        "/home/core/static": "/static",
        "/faults": "/faults",
    }


def test_the_container_comes_back_by_itself_and_its_log_is_bounded(container):
    assert container["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert container["HostConfig"]["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
    assert container["Config"]["Hostname"] == "clixserver.tiss.edu"


def test_it_was_started_once(container):
    assert container["RestartCount"] == 0


def test_whatever_the_schools_name_holds_it_is_a_python_string(host):
    source = host.file(SETTINGS).content
    found = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}
    assert found == {
        "GSTUDIO_INSTITUTE_ID": "mz17",
        "GSTUDIO_INSTITUTE_ID_SECONDARY": "2031017",
        "GSTUDIO_INSTITUTE_NAME": NAME,
        "GSTUDIO_PRIMARY_COURSE_LANGUAGE": "en",
    }


def test_python_2_reads_the_same(host):
    first, *lines = host.file(SETTINGS).content.decode("utf-8").splitlines()
    assert first == "# -*- coding: utf-8 -*-"
    # In a byte string of Python 2, \\u and \\x say something else than in Python 3: neither is written.
    literal = next(line for line in lines if line.startswith("GSTUDIO_INSTITUTE_NAME")).split(" = ", 1)[1]
    escapes = {pair[1] for pair in _escapes(literal)}
    assert escapes == {"'", "\\", "n"}


def _escapes(literal: str) -> list[str]:
    found, rest = [], literal
    while "\\" in rest:
        start = rest.index("\\")
        found.append(rest[start : start + 2])
        rest = rest[start + 2 :]
    return found


def test_the_code_is_the_images(host):
    assert host.file("/home/core/code/gstudio/gnowsys-ndf/manage.py").is_file
    assert not host.file("/home/core/.code.seeding").exists
    assert host.run("docker inspect gstudio-seed").failed


def test_pupils_can_open_it(host):
    assert "200" in host.check_output(
        "docker exec gstudio curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1/"
    )


def test_it_is_the_schools_own_data(host):
    names = host.check_output(
        "docker exec gstudio su - postgres -c"
        " \"psql -XAt -d gstudio_psql -c 'select username from auth_user'\""
    )
    assert "-mz17" in names
