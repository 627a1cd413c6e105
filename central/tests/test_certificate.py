"""What the operator is told of the certificate that schools know the centre by."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shala_central.certificate import certificate_problem

pytestmark = pytest.mark.http


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Serve a certificate that is good for so many days; return what schools are told of it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def make(days: int) -> Path:
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        command = (
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days {days}"
            " -subj /CN=centre -addext subjectAltName=IP:127.0.0.1"
        )
        files = ("-keyout", key, "-out", certificate)
        subprocess.run([*command.split(), *files], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)

        def serve() -> None:
            line, _ = listener.accept()
            try:
                with context.wrap_socket(line, server_side=True) as safe:
                    safe.recv(1)
            except OSError:
                pass  # whoever does not believe it hangs up

        threading.Thread(target=serve, daemon=True).start()
        said = {
            "url": f"https://127.0.0.1:{listener.getsockname()[1]}",
            "authority": certificate.read_text(),
        }
        (tmp_path / "zones.json").write_text(json.dumps({"format": 1, **said}))
        return tmp_path / "zones.json"

    yield make
    listener.close()


def test_a_certificate_that_ends_soon_is_told(told):
    assert "ends in 8 days" in certificate_problem(told(9))


def test_one_that_is_good_for_long_is_not(told):
    assert not certificate_problem(told(400))


def test_one_that_schools_do_not_believe_is_told(told):
    path = told(400)
    path.write_text(json.dumps({**json.loads(path.read_text()), "authority": ""}))
    assert "no school believes" in certificate_problem(path)


def test_where_no_zones_are_served_there_is_nothing_to_tell(tmp_path):
    assert not certificate_problem(tmp_path / "none.json")
