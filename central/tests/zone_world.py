"""The world of zone sync's tests: a centre that serves zones, schools that sync with it over a small signed client."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import io
import json
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import uvicorn
from nacl.signing import SigningKey
from shala_agent import wire
from shala_agent.records import Change, Records
from shala_agent.segment import NONE, Entry, encode_entry, make_segment, read_header
from shala_central.cli import main
from shala_central.config import ZoneSettings
from shala_central.enrolment import create_token
from shala_central.server import make_server
from shala_central.zones import Zones

POSTGRES_BIN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]


class Postgres:
    """A PostgreSQL of the tests' own, on a socket; its user is nobody special."""

    def __init__(self) -> None:
        assert POSTGRES_BIN, "PostgreSQL is missing: lab/bootstrap.sh test-tools installs it"
        # Not within pytest's folder, which nobody but its user may pass.
        folder = self._folder = Path(tempfile.mkdtemp(prefix="shala-postgres-"))
        self._bin, self._number = POSTGRES_BIN[0], 0
        self._user: int | None = None
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            self._user = pwd.getpwnam("postgres").pw_uid
            os.chown(folder, self._user, -1)
        self._run("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "shala", "-E", "UTF8", "--no-sync")
        self._run(
            "pg_ctl",
            "-D",
            f"{folder}/data",
            "-l",
            f"{folder}/log",
            "-w",
            "-o",
            f"-F -k {folder} -h ''",
            "start",
        )

    def url(self) -> str:
        """Make an empty database; return its URL."""
        self._number += 1
        name = f"zones{self._number}"
        self._run("createdb", "-h", str(self._folder), "-U", "shala", name)
        return f"postgresql://shala@/{name}?host={self._folder}"

    def copy(self, url: str) -> str:
        """Return the URL of a copy of a database that nobody uses."""
        self._number += 1
        name, before = f"zones{self._number}", url.partition("@/")[2].partition("?")[0]
        self._run("createdb", "-h", str(self._folder), "-U", "shala", "-T", before, name)
        return f"postgresql://shala@/{name}?host={self._folder}"

    def stop(self) -> None:
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-m", "immediate", "stop")
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._bin / program), *arguments],
            check=True,
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if program == "pg_ctl" else None,
        )


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def read(self, kind: Any) -> Any:
        assert self.status == 200, (self.status, self.body[:500])
        return msgspec.json.decode(self.body, type=kind)


@dataclass
class ZoneCentre:
    """A centre whose server runs in a thread here, behind a real socket; or in processes, as operators run it."""

    folder: Path
    database: str
    postgres: Postgres | None = None
    port: int = 0
    quotas: dict[str, int] = field(default_factory=dict)
    url: str = ""
    key_folder: Path | None = None
    _server: uvicorn.Server | None = None
    _thread: threading.Thread | None = None
    _process: subprocess.Popen[bytes] | None = None

    @property
    def key_file(self) -> Path:
        return (self.key_folder or self.folder) / "zones.key"

    @property
    def settings(self) -> ZoneSettings:
        return ZoneSettings(
            database=self.database,
            key_file=str(self.key_file),
            **{"min_free_bytes": 0, **self.quotas},
        )

    @property
    def config(self) -> Path:
        path = self.folder / "central.toml"
        path.write_text(
            f'format = 1\n[zones]\ndatabase = "{self.database}"\nkey_file = "{self.key_file}"\n'
            f'url = "{self.url}"\n'
            + "".join(f"{name} = {value}\n" for name, value in {"min_free_bytes": 0, **self.quotas}.items())
        )
        return path

    @contextlib.contextmanager
    def zones(self) -> Iterator[Zones]:
        opened = Zones.open(self.settings)
        yield opened
        opened.database.close()

    def shala(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command line; in this process, because it is done often."""
        out, errors, code = io.StringIO(), io.StringIO(), 0
        with (
            mock.patch.object(sys, "argv", ["shala", *arguments]),
            mock.patch.object(sys, "stdin", io.StringIO(stdin)),
            mock.patch.dict(os.environ, {"SHALA_CENTRAL_CONFIG": str(self.config)}),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
        ):
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), errors.getvalue())

    def make_zone(self, *names: str) -> None:
        with self.zones() as zones, zones.database.writing() as session:
            if not session.query("SELECT 1 FROM organization"):
                zones.create_organization(session, "clix")
            for name in names:
                zones.create_zone(session, name, "clix")

    def token(self, zone: str, name: str = "", *, days: int = 1, replaces: bool = False) -> str:
        with self.zones() as zones, zones.database.writing() as session:
            return create_token(session, zones.zone(session, zone), name, days, replaces=replaces)

    def query(self, sql: str, *parameters: object) -> Any:
        with self.zones() as zones, zones.database.writing() as session:
            return session.query(sql, parameters)

    # -- the server ------------------------------------------------------------------------------------------

    def start(self) -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            make_server(self.settings), log_level="error", server_header=False, date_header=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def start_workers(self, number: int) -> None:
        self.port = self.port or free_port()
        environment = {**os.environ, "SHALA_CENTRAL_CONFIG": str(self.config)}
        command = [sys.executable, "-m", "shala_central", "serve", "--listen", f"127.0.0.1:{self.port}"]
        self._process = subprocess.Popen([*command, "--workers", str(number)], env=environment)
        for _ in range(600):
            with contextlib.suppress(OSError, http.client.HTTPException):
                if request(self.port, "GET", "/v1/health").status == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("shala serve does not answer")

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(10)
            self._server = self._thread = None
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    # -- backups ---------------------------------------------------------------------------------------------

    def backup(self) -> str:
        """Return the URL of a copy of the database; the server is stopped for it."""
        running = self._server is not None
        self.stop()
        if self.postgres is not None:
            copy = self.postgres.copy(self.database)
        else:
            path = self.database.removeprefix("sqlite:///")
            copy = f"sqlite:///{path}.backup"
            with contextlib.closing(sqlite3.connect(path)) as live:
                live.execute("VACUUM INTO ?", (f"{path}.backup",))
        if running:
            self.start()
        return copy

    def restore(self, url: str) -> None:
        self.stop()
        self.database = url
        self.start()


def request(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return Answer(
            answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        )
    finally:
        connection.close()


@dataclass
class Device:
    """A school server as a party of sync: its record store, its key, and what it says over the wire."""

    name: str
    folder: Path
    centre: ZoneCentre
    key: SigningKey = field(default_factory=SigningKey.generate)
    number: int = 0
    nonce: str = ""
    cursor: wire.Cursor = field(default_factory=wire.Cursor)
    session: str = ""
    records: Records = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.records = Records(self.folder / "records.sqlite")

    @property
    def id(self) -> str:
        return hashlib.sha256(bytes(self.key.verify_key)).hexdigest()

    # -- the wire --------------------------------------------------------------------------------------------

    def send(
        self, method: str, path: str, body: bytes = b"", *, session: str = "", offset: int = 0, **headers: str
    ) -> Answer:
        text = wire.signed_text(method, path, session, offset, body)
        signed = {wire.DEVICE_HEADER: self.id, wire.SIGNATURE_HEADER: wire.sign(self.key, text)}
        if session:
            signed[wire.SESSION_HEADER] = session
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return request(self.centre.port, method, path, body, {**signed, **named})

    def enrol_request(self, token: str = "") -> wire.EnrolRequest:
        key = bytes(self.key.verify_key).hex()
        signature = wire.sign(self.key, wire.enrol_text(key, self.name, token))
        return wire.EnrolRequest(key=key, name=self.name, token=token, signature=signature)

    def enrol(self, token: str = "") -> Answer:
        body = msgspec.json.encode(self.enrol_request(token))
        answer = request(self.centre.port, "POST", "/v1/enrol", body)
        if answer.status == 200:
            self.take_approval(answer.read(wire.EnrolAnswer))
        return answer

    def take_approval(self, said: wire.EnrolAnswer) -> None:
        statements = [base64.b64decode(one) for one in said.statements]
        key = bytes(self.key.verify_key)
        self.records.enrol(said.zone, bytes.fromhex(said.centre), key, statements)
        self.cursor = wire.Cursor()

    def sync_request(self, offers: Iterable[wire.Offer] = ()) -> wire.SyncRequest:
        self.number += 1
        return wire.SyncRequest(
            epoch=self.records.epoch,
            counter=self.records.counter - self.records.uncut(),
            number=self.number,
            nonce=self.nonce,
            cursor=self.cursor,
            offers=list(offers),
            software="shala-agent test",
        )

    def open(self, offers: Iterable[wire.Offer] = ()) -> wire.SyncAnswer:
        said = self.send("POST", "/v1/sync", msgspec.json.encode(self.sync_request(offers))).read(
            wire.SyncAnswer
        )
        if not said.fork:
            self.nonce, self.session = said.nonce, said.session
        return said

    def put(self, data: bytes, offset: int = 0, end: int | None = None, id_: str = "") -> Answer:
        path = f"/v1/segments/{id_ or read_header(data)[0].hex()}"
        headers = {"Shala-Offset": str(offset), "Shala-Size": str(len(data))}
        return self.send("PUT", path, data[offset:end], session=self.session, offset=offset, **headers)

    def get(self, id_: str, **headers: str) -> Answer:
        return self.send("GET", f"/v1/segments/{id_}", session=self.session, **headers)

    # -- a whole sync ----------------------------------------------------------------------------------------

    def write(self, *changes: Change, at: int = 1_600_000_000) -> None:
        self.records.write(changes, at)

    def segments(self) -> list[bytes]:
        """Return the bytes of the segments that the centre is not known to have."""
        store = self.records.store
        assert store is not None
        self.records.cut(self.key)
        return [store.data(offer.id) or b"" for offer in self.records.offers(2000)]

    def sync(self) -> wire.SyncAnswer:
        """Upload what is here, download what is not; a plain client without any cleverness."""
        store = self.records.store
        assert store is not None
        self.records.cut(self.key)
        first = None
        while True:
            offers = self.records.offers(wire.MAX_OFFERS)
            said = self.open(wire.Offer(offer.id.hex(), offer.size) for offer in offers)
            first = first or said
            if said.fork:
                self.records.renew()
                self.nonce, self.number = "", max(self.number, said.number)
                self.records.cut(self.key)
                continue
            if said.restart:
                self.cursor = wire.Cursor()
                store.database.query("UPDATE segment SET at_centre = 0")
            for one in said.wanted:
                self._upload(one)
            for item in said.items:
                self._download(item)
            self.cursor = said.cursor or self.cursor
            if not said.more and not said.restart:
                return first

    def _upload(self, one: wire.Wanted) -> None:
        store = self.records.store
        assert store is not None
        data = store.data(bytes.fromhex(one.id)) or b""
        for offset in range(one.offset, len(data), 256 << 10):
            receipt = self.put(data, offset, offset + (256 << 10)).read(wire.Receipt)
        assert receipt.whole

    def _download(self, item: wire.Item) -> None:
        if item.statement:
            self.records.state([base64.b64decode(item.statement)])
        elif self.records.store is not None and self.records.store.has(bytes.fromhex(item.id)):
            self.records.set_at_centre([bytes.fromhex(item.id)])  # only now: it is in the list
        else:
            answer = self.get(item.id)
            assert answer.status == 200, answer.body
            self.records.accept(answer.body, from_centre=True)

    def values(self) -> dict[tuple[str, str], Any]:
        return {(one.type, one.key): one.value for one in self.records.records()}


def whole_of(
    device: Device, first: int = 1, previous: bytes = NONE, *, zone: str = "mz", noise: int = 0
) -> bytes:
    """Return a segment that a device signs beside its record store; `noise` bytes of it do not compress."""
    value = base64.b64encode(os.urandom(noise)).decode()
    entry = Entry("account", f"user{first}", 1, 1, 0, f'{{"first_name":"{value}"}}')
    return make_segment(device.key, zone, device.records.epoch, first, previous, [encode_entry(entry)]).data


def account(user: str, name: str = "Zo") -> Change:
    return Change("account", user, {"first_name": name})


def progress(user: str, visited: int, unit: str = "geometry") -> Change:
    return Change("progress", f"{user}/{unit}", {"visited": visited})


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
