"""A centre of one zone that keeps to docs/protocol.md, small enough to be read; real HTTP on the loopback.

It is the store of shala_agent and a list; what can go wrong on the way is switched on by its attributes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import secrets
import socket
import sqlite3
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
from nacl.signing import SigningKey
from shala_agent import records as records_module
from shala_agent import wire
from shala_agent.membership import Statement, sign_statement
from shala_agent.segment import SegmentRefused, read_segment
from shala_agent.store import Store


class LittleCentre:
    """The centre's side: enrolment, sessions, arrivals, parts."""

    def __init__(self, zone: str = "mz-aizawl") -> None:
        self.key = SigningKey.generate()
        self.zone = zone
        self.lock = threading.RLock()
        self.url = ""
        self.token = "one-time-token"
        self.keys: dict[str, bytes] = {}  # device id -> public key
        self.memory: dict[tuple[str, int], tuple[int, list[str]]] = {}  # number and last nonces
        self.sessions: dict[str, str] = {}
        self.parts: dict[str, bytearray] = {}
        self.requests: list[tuple[str, str, int]] = []  # method, path, offset
        self.received = self.sent = 0
        # What goes wrong, once each:
        self.cut_upload_after = self.cut_download_after = -1
        self.session_expires = False
        self.busy = 0  # so many times
        # And for as long as it is set:
        self.lies_about: dict[str, bytes] = {}  # id -> what is sent instead
        self.software = "shala 1"
        self.refuses: dict[str, str] = {}
        self.list_digest = ""  # said of the list, whatever it is
        self.page = wire.MAX_ITEMS
        self.garbage: bytes | None = None
        self.status: int = 0
        self.forget()

    def forget(self) -> None:
        """Be a centre that was made anew from nothing."""
        db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        db.executescript(records_module._SCHEMA)
        db.execute("INSERT INTO zone (name, centre) VALUES (?, ?)", (self.zone, bytes(self.key.verify_key)))
        self.store = Store(records_module._Sqlite(db), 1, self.zone, bytes(self.key.verify_key))
        self.arrivals: list[tuple[str, int, str]] = []  # id, size, statement
        self.digests = ["0" * 16]
        self.memory.clear()
        self.statements: list[bytes] = []

    def enrol(self, key: bytes, name: str, generation: int = 1) -> list[bytes]:
        """Take a device in; return the zone's statements."""
        said = Statement(
            format=1, kind="enrol", zone=self.zone, key=key.hex(), name=name, generation=generation
        )
        data = sign_statement(self.key, said)
        self.keys[said.device] = key
        self.store.state(data)
        self.statements.append(data)
        self.arrive(hashlib.sha256(data[64:]).digest(), 0, base64.b64encode(data).decode())
        return self.statements

    def say_wrongly(self) -> str:
        """Name a statement that is not the centre's; return its id."""
        said = b"{}"
        self.arrive(hashlib.sha256(said).digest(), 0, base64.b64encode(bytes(64) + said).decode())
        return self.arrivals[-1][0]

    def hear(self, data: bytes) -> None:
        """Keep a statement that was forgotten."""
        if (said := self.store.state(data)) is not None:
            self.statements.append(data)
            self.keys[said.device] = bytes.fromhex(said.key)
            self.arrive(hashlib.sha256(data[64:]).digest(), 0, base64.b64encode(data).decode())

    def arrive(self, id_: bytes, size: int, statement: str = "") -> None:
        """Give something the next place of the list."""
        self.arrivals.append((id_.hex(), size, statement))
        self.digests.append(hashlib.sha256(bytes.fromhex(self.digests[-1]) + id_).digest()[:8].hex())

    def take(self, data: bytes) -> None:
        """Keep a whole segment."""
        segment = read_segment(data)
        if not self.store.has(segment.id):
            self.store.accept(segment)
            self.arrive(segment.id, len(data))

    def sync(self, device: str, request: wire.SyncRequest) -> wire.SyncAnswer:
        number, nonces = self.memory.get((device, request.epoch), (0, []))
        if request.number <= number or (
            number and request.number == number + 1 and request.nonce not in nonces
        ):
            return wire.SyncAnswer(fork=True, number=number)
        nonce = secrets.token_hex(8)
        self.memory[device, request.epoch] = request.number, [*nonces[-1:], nonce]
        session = self.sessions[secrets.token_hex(16)] = device
        session = next(token for token, one in reversed(self.sessions.items()) if one == session)
        place = request.cursor.place
        if place >= len(self.digests) or self.digests[place] != request.cursor.digest:
            return wire.SyncAnswer(nonce=nonce, restart=True)
        for text in request.statements:
            self.hear(base64.b64decode(text))
        wanted = [
            wire.Wanted(offer.id, len(self.parts.get(offer.id, b"")))
            for offer in request.offers
            if not self.store.has(bytes.fromhex(offer.id))
        ]
        found = self.arrivals[place : place + self.page]
        items = [wire.Item(place + n, *one) for n, one in enumerate(found, 1)]
        end = place + len(found)
        return wire.SyncAnswer(
            nonce=nonce,
            session=session,
            wanted=wanted,
            items=items,
            cursor=wire.Cursor(end, self.list_digest or self.digests[end]) if found else None,
            more=end < len(self.arrivals),
            software=self.software,
        )


class _Counted(socket.SocketIO):
    def __init__(self, sock: socket.socket, mode: str, centre: LittleCentre) -> None:
        super().__init__(sock, mode)
        self._centre = centre

    def readinto(self, buffer):
        size = super().readinto(buffer)
        self._centre.received += size or 0
        return size

    def write(self, data):
        # Before it goes: the client has the answer as soon as it is written, and the test counts then.
        self._centre.sent += len(data)
        self._sock.sendall(data)
        return len(data)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    centre: LittleCentre

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Counted(self.connection, "r", self.centre))
        self.wfile = _Counted(self.connection, "w", self.centre)

    def log_message(self, *_arguments) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.centre.lock:
            self.centre.requests.append(("POST", self.path, 0))
            if self.centre.status:
                return self.answer(self.centre.status, b'{"error": "for a test"}')
            if self.centre.garbage is not None:
                return self.answer(200, self.centre.garbage)
            if self.path == "/v1/enrol":
                return self.enrol(msgspec.json.decode(body, type=wire.EnrolRequest))
            device = self.device(body)
            if device is None:
                return self.answer(401, b'{"error": "not signed by a device of ours"}')
            answer = self.centre.sync(device, msgspec.json.decode(body, type=wire.SyncRequest))
            return self.answer(200, msgspec.json.encode(answer))

    def enrol(self, request: wire.EnrolRequest) -> None:
        key = bytes.fromhex(request.key)
        wire.verify(key, wire.enrol_text(request.key, request.name, request.token), request.signature)
        if request.token != self.centre.token:
            return self.answer(403, b'{"error": "the token is used or unknown"}')
        statements = [base64.b64encode(one).decode() for one in self.centre.enrol(key, request.name)]
        answer = wire.EnrolAnswer(
            zone=self.centre.zone,
            centre=bytes(self.centre.key.verify_key).hex(),
            url=self.centre.url,
            statements=statements,
        )
        return self.answer(200, msgspec.json.encode(answer))

    def do_PUT(self) -> None:
        centre, name = self.centre, self.path.rpartition("/")[2]
        offset, size = int(self.headers[wire.OFFSET_HEADER]), int(self.headers[wire.SIZE_HEADER])
        length = int(self.headers["Content-Length"])
        with centre.lock:
            centre.requests.append(("PUT", name, offset))
            part = centre.parts.setdefault(name, bytearray())
            if 0 <= centre.cut_upload_after < length:
                part += self.rfile.read(centre.cut_upload_after)
                centre.cut_upload_after = -1
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_RDWR)
            body = self.rfile.read(length)
            if centre.busy:
                centre.busy -= 1
                return self.answer(429, b'{"error": "too often"}', {"Retry-After": "1"})
            if centre.session_expires or self.device(body, offset) is None:
                centre.session_expires = False
                return self.answer(401, b'{"error": "no session"}')
            if reason := centre.refuses.get(name):
                return self.receipt(200, wire.Receipt(offset=0, refused=reason))
            if len(part) != offset:
                return self.receipt(409, wire.Receipt(offset=len(part)))
            part += body
            if len(part) < size:
                return self.receipt(200, wire.Receipt(offset=len(part)))
            try:
                centre.take(bytes(centre.parts.pop(name)))
            except SegmentRefused as error:
                return self.receipt(200, wire.Receipt(offset=0, refused=str(error)))
            return self.receipt(200, wire.Receipt(offset=size, whole=True))

    def do_GET(self) -> None:
        centre, name = self.centre, self.path.rpartition("/")[2]
        wish = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))
        offset = int(wish[1])
        with centre.lock:
            centre.requests.append(("GET", name, offset))
            if self.device(b"") is None:
                return self.answer(401, b'{"error": "no session"}')
            data = centre.lies_about.get(name) or centre.store.data(bytes.fromhex(name))
            if data is None:
                return self.answer(404, b'{"error": "no such segment"}')
            more = {"Content-Range": f"bytes {offset}-{len(data) - 1}/{len(data)}"} if offset else {}
            if offset and offset >= len(data):
                return self.answer(416, b'{"error": "it is not as long"}')
            cut, centre.cut_download_after = centre.cut_download_after, -1
            return self.answer(206 if offset else 200, data[offset:], more, cut)

    def device(self, body: bytes, offset: int = 0) -> str | None:
        """Return the device that signed, None if nobody did."""
        device = self.headers.get(wire.DEVICE_HEADER, "")
        session = self.headers.get(wire.SESSION_HEADER, "")
        key = self.centre.keys.get(device)
        if key is None or (session and self.centre.sessions.get(session) != device):
            return None
        text = wire.signed_text(self.command, self.path, session, offset, body)
        try:
            wire.verify(key, text, self.headers.get(wire.SIGNATURE_HEADER, ""))
        except wire.SignatureRefused:
            return None
        return device

    def receipt(self, status: int, receipt: wire.Receipt) -> None:
        self.answer(status, msgspec.json.encode(receipt))

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int = -1) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if 0 <= cut < len(body):
            self.wfile.write(body[:cut])
            self.close_connection = True
            return
        self.wfile.write(body)


@contextmanager
def served(centre: LittleCentre, certificate: Path | None = None) -> Iterator[LittleCentre]:
    """Give the centre a port of the loopback while the block runs; with TLS where a certificate is given."""
    handler = type("Handler", (_Handler,), {"centre": centre})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    scheme = "http" if certificate is None else "https"
    centre.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    try:
        yield centre
    finally:
        server.shutdown()
        server.server_close()
