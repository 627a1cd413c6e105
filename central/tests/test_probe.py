"""The probe against real listeners on loopback."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from shala_central.probe import Target, run_probe


@pytest.fixture
def listener() -> Iterator[Callable[..., int]]:
    """Start a listener that greets with these bytes (None: says nothing) and return its port."""
    sockets: list[socket.socket] = []

    def start(greeting: bytes | None, close: bool = True) -> int:
        server = socket.create_server(("127.0.0.1", 0), backlog=1200)
        sockets.append(server)

        def serve() -> None:
            kept = []
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                if greeting is not None:
                    client.sendall(greeting)
                if close and greeting is not None:
                    client.close()
                else:
                    kept.append(client)

        threading.Thread(target=serve, daemon=True).start()
        return int(server.getsockname()[1])

    yield start
    for server in sockets:
        server.close()


def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def ask(port: int, timeout: float = 0.5, address: str = "127.0.0.1") -> str:
    return run_probe([Target("one", address, port)], timeout)["one"]


def test_an_ssh_server_is_online(listener):
    assert ask(listener(b"SSH-2.0-OpenSSH_9.2\r\n", close=False)) == ""


def test_a_greeting_before_the_banner_is_passed_over(listener):
    assert ask(listener(b"Government property.\r\nKeep out.\r\nSSH-2.0-x\r\n")) == ""


def test_each_silence_has_its_reason(listener):
    assert ask(closed_port()) == "connection refused"
    assert ask(listener(None)) == "no answer within 0.5 s"
    assert ask(listener(b"")) == "closed the connection without an SSH banner"
    assert (
        ask(listener(b"HTTP/1.1 400 Bad Request\r\n" * 2000, close=False))
        == "answers, but not as an SSH server"
    )
    assert ask(listener(b"x" * 100_000, close=False)) == "answers, but not as an SSH server"
    assert ask(22, address="no-such-host.invalid")[:4] in ("name", "temp", "no a")


def test_six_hundred_servers_take_the_time_of_one(listener):
    silent, living = listener(None), listener(b"SSH-2.0-x\r\n")
    targets = [Target(f"s{n}", "127.0.0.1", silent if n % 3 else living) for n in range(600)]
    started = time.monotonic()
    answers = run_probe(targets, 2.0)
    assert time.monotonic() - started < 6  # one time-out, and a slow machine
    assert sum(not reason for reason in answers.values()) == 200


def test_the_command_answers_in_json_from_a_pipe(centre, listener):
    targets = [
        {"name": "a", "address": "127.0.0.1", "port": listener(b"SSH-2.0-x\r\n")},
        {"name": "b", "address": "127.0.0.1", "port": closed_port(), "more": "fields"},
    ]
    done = centre.shala("probe", "--json", "-", stdin=json.dumps(targets))
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"online": ["a"], "offline": {"b": "connection refused"}}


@pytest.mark.parametrize(
    "stdin, complaint",
    [
        ("", "is not readable"),
        ('[{"name": "a"}]', "is not readable"),
        ('[{"name": "a", "address": "-oProxyCommand=x"}]', "is neither a host name nor an IP address"),
        ('[{"name": "a", "address": "10.0.0.1", "port": 0}]', "is not between 1 and 65535"),
        (
            '[{"name": "a", "address": "10.0.0.1"}, {"name": "a", "address": "10.0.0.2"}]',
            "is in the list twice",
        ),
    ],
)
def test_a_list_that_is_none_is_wrong_usage(centre, stdin, complaint):
    done = centre.shala("probe", "-", stdin=stdin)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nobody_to_ask_is_an_answer_too(centre):
    assert json.loads(centre.shala("probe", "--json", stdin="[]").stdout) == {"online": [], "offline": {}}
