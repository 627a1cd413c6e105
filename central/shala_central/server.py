"""Server: zone sync over HTTP (docs/protocol.md, section 6; shala_agent.wire).

Nothing is remembered between requests but in the database: any worker takes any request, and all may be
restarted at any time. All work on the database is done in threads.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import msgspec
from anyio import CapacityLimiter
from shala_agent.store import WHOLE
from shala_agent.wire import (
    DEVICE_HEADER,
    MAX_REQUEST,
    OFFSET_HEADER,
    SESSION_HEADER,
    SIGNATURE_HEADER,
    SIZE_HEADER,
    EnrolRequest,
    SignatureRefused,
    SyncRequest,
    signed_text,
    verify,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from shala_central import openapi
from shala_central.config import CONFIG_PATH, ZoneSettings, read_config
from shala_central.database import DatabaseProblem
from shala_central.enrolment import enrol_by_token, enrolled
from shala_central.exchange import answer as answer_to
from shala_central.exchange import sent
from shala_central.rate import Rate
from shala_central.recall import enrolment, hear
from shala_central.refusal import Refusal
from shala_central.remake import IDLE, PAUSE
from shala_central.sessions import check_token
from shala_central.uploads import MAX_PART, require_living, take
from shala_central.zones import Device, Zones, session_key

MAX_ENROLMENT = 4 << 10  # bytes of a body; anybody may send one
# Enrolments from one address, per second and worker: a zone is enrolled from behind one router, too.
STRANGERS_PER_SECOND = 5
# Requests at work at once: each may hold a segment of some MiB, and a connection to the database.
THREADS = 8
_ID = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[0-9]{1,16}")
_RANGE = re.compile(r"bytes=([0-9]{1,16})-([0-9]{0,16})")
_log = logging.getLogger("uvicorn.error")
_T = TypeVar("_T")


def application() -> Starlette:
    """Return the server for the configuration that the environment names: what uvicorn's workers run."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    path = Path(os.environ.get("SHALA_CENTRAL_CONFIG", CONFIG_PATH))
    return make_server(read_config(path).zones)


def _end_after(parent: BaseProcess) -> None:
    """End this worker when the process that started it is gone: one that was killed stops nobody, and its
    workers would hold the address, and go on with a database that somebody has put a backup in the place of.
    """
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def make_server(settings: ZoneSettings) -> Starlette:
    """Return the server of zone sync for a configuration."""
    zones = Zones.open(settings)
    server = _Server(zones, settings.requests_per_second)

    @contextlib.asynccontextmanager
    async def lifespan(_server: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as beside:
            beside.start_soon(server.remake)
            yield
            beside.cancel_scope.cancel()
        zones.database.close()

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/v1/enrol", server.enrol, methods=["POST"]),
            Route("/v1/sync", server.sync, methods=["POST"]),
            Route("/v1/segments/{id}", server.put_segment, methods=["PUT"]),
            Route("/v1/segments/{id}", server.get_segment, methods=["GET"]),
            Route("/v1/health", server.health, methods=["GET"]),
            Route("/v1/openapi.json", server.description, methods=["GET"]),
        ],
        exception_handlers={
            Refusal: _refused,
            HTTPException: _not_served,
            ClientDisconnect: _gone,
            DatabaseProblem: _database_failed,
            Exception: _failed,
        },
    )


class _Server:
    def __init__(self, zones: Zones, requests_per_second: int) -> None:
        self._zones = zones
        self._rate = Rate(requests_per_second)
        self._strangers = Rate(STRANGERS_PER_SECOND)
        self._threads = CapacityLimiter(THREADS)
        with zones.database.reading() as session:
            self._session_key = session_key(session)

    async def enrol(self, request: Request) -> Response:
        if not self._strangers.allows(_address(request)):
            raise Refusal(429, "too many enrolments from this address", headers={"Retry-After": "10"})
        body = await _body(request, MAX_ENROLMENT)
        message = _read(body, EnrolRequest)
        url = self._zones.url or str(request.base_url).rstrip("/")
        return await self._in_thread(lambda: self._enrol(message, url))

    async def sync(self, request: Request) -> Response:
        body = await _body(request, MAX_REQUEST)
        return await self._in_thread(lambda: self._sync(request, body))

    async def put_segment(self, request: Request) -> Response:
        self._check_session(request)  # before a stranger's bytes are waited for
        offset, size = _number(request, OFFSET_HEADER), _number(request, SIZE_HEADER)
        body = await _body(request, MAX_PART)
        return await self._in_thread(lambda: self._put(request, offset, size, body))

    async def get_segment(self, request: Request) -> Response:
        self._check_session(request)
        return await self._in_thread(lambda: self._get(request))

    async def remake(self) -> None:
        """Make records anew where that is to be done, beside all requests, for ever."""
        while True:
            goes_on = False
            try:
                goes_on = await self._in_thread(self._zones.remake_step)
            except Exception as error:  # reports are not worth the end of the server
                _log.error("records could not be made anew: %s", error)
            await anyio.sleep(PAUSE if goes_on else IDLE)

    async def health(self, _request: Request) -> Response:
        """Answer as long as the database does."""
        return await self._in_thread(self._health)

    async def description(self, _request: Request) -> Response:
        return _json(openapi.description())

    # -- in threads ------------------------------------------------------------------------------------------

    def _enrol(self, message: EnrolRequest, url: str) -> Response:
        with self._zones.database.reading() as session:
            answer = enrolled(self._zones, session, message, url)
        if answer is None:
            with self._zones.database.writing() as session:
                answer = enrol_by_token(self._zones, session, message, url)
        return _json(answer)

    def _sync(self, request: Request, body: bytes) -> Response:
        """Open a session. One that was cut off may say in it that it was taken in again since, and one that
        nobody knows that it was taken in: this centre may have been restored from a backup.
        """
        device = self._device(_device_id(request))
        if device is None:
            device = self._known_once(request, body)
        else:
            self._require_signature(device.key, request, "", 0, body)
        self._require_rate(device)
        return _json(answer_to(self._zones, device, _read(body, SyncRequest), self._session_key))

    def _put(self, request: Request, offset: int, size: int, body: bytes) -> Response:
        device = self._caller(request, request.headers[SESSION_HEADER], offset, body)
        return _json(take(self._zones, device, _segment_id(request), offset, size, body))

    def _get(self, request: Request) -> Response:
        device = self._caller(request, request.headers[SESSION_HEADER], 0, b"")
        id_ = _segment_id(request)
        with self._zones.database.reading() as session:
            rows = session.query(
                f"SELECT data FROM segment WHERE id = ? AND zone = ? AND {WHOLE}",  # noqa: S608 - constants
                (id_, device.zone),
            )
        if not rows:
            raise Refusal(404, "there is no such segment in this device's zone")
        response = _part_of(bytes(rows[0][0]), request.headers.get("range", ""))
        sent(self._zones, device, id_)
        return response

    def _health(self) -> Response:
        with self._zones.database.reading() as session:
            session.query("SELECT 1")
        return _json({"status": "ok"})

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await anyio.to_thread.run_sync(work, limiter=self._threads)

    # -- who asks --------------------------------------------------------------------------------------------

    def _check_session(self, request: Request) -> None:
        token = request.headers.get(SESSION_HEADER)
        if token is None:
            raise Refusal(401, "no session is named (POST /v1/sync opens one)")
        check_token(self._session_key, _device_id(request), token)

    def _caller(self, request: Request, session_token: str, offset: int, body: bytes) -> Device:
        """Return the device that has signed a request and lives. Raises Refusal."""
        device = self._device(_device_id(request))
        if device is None:
            raise _not_enrolled()
        self._require_signature(device.key, request, session_token, offset, body)
        require_living(device)
        self._require_rate(device)
        return device

    def _known_once(self, request: Request, body: bytes) -> Device:
        """Return a device that is forgotten here, taken in again by the centre's own word. Raises Refusal."""
        id_, statements = _device_id(request), _read(body, SyncRequest).statements
        if len(statements) != 1:  # strangers give no work
            raise _not_enrolled()
        if not self._strangers.allows(_address(request)):
            raise Refusal(429, "too many strangers from this address", headers={"Retry-After": "10"})
        said = enrolment(self._zones, id_, statements[0])
        if said is None:
            raise _not_enrolled()
        self._require_signature(bytes.fromhex(said.key), request, "", 0, body)
        hear(self._zones, statements)
        device = self._device(id_)
        if device is None:
            raise _not_enrolled()
        return device

    def _device(self, id_: bytes) -> Device | None:
        with self._zones.database.reading() as session:
            return self._zones.device(session, id_)

    def _require_signature(
        self, key: bytes, request: Request, session_token: str, offset: int, body: bytes
    ) -> None:
        text = signed_text(request.method, request.url.path, session_token, offset, body)
        try:
            verify(key, text, request.headers.get(SIGNATURE_HEADER, ""))
        except SignatureRefused as error:
            raise Refusal(401, str(error)) from None

    def _require_rate(self, device: Device) -> None:
        if not self._rate.allows(device.id):
            raise Refusal(429, "too many requests of this device", headers={"Retry-After": "10"})


def _not_enrolled() -> Refusal:
    return Refusal(403, "this device is not enrolled (shala device create, shala-agent enrol)")


# -- requests ------------------------------------------------------------------------------------------------


async def _body(request: Request, limit: int) -> bytes:
    """Return the body of a request; nothing beyond the limit is read."""
    too_large = Refusal(413, f"the body has more than {limit} bytes", headers={"Connection": "close"})
    length = request.headers.get("content-length", "0")
    if _NUMBER.fullmatch(length) is None or int(length) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _read(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise Refusal(422, f"the body is not readable: {error}") from None


def _device_id(request: Request) -> bytes:
    text = request.headers.get(DEVICE_HEADER, "")
    if _ID.fullmatch(text) is None:
        raise Refusal(401, f"{DEVICE_HEADER} names no device")
    return bytes.fromhex(text)


def _address(request: Request) -> bytes:
    """Return where a request comes from, as nginx has it, without what a network chooses freely."""
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return b""
    return address.packed[:8] if address.version == 6 else address.packed


def _segment_id(request: Request) -> bytes:
    text = str(request.path_params["id"])
    if _ID.fullmatch(text) is None:
        raise Refusal(422, "the path names no segment: an id has 64 hexadecimal digits")
    return bytes.fromhex(text)


def _number(request: Request, header: str) -> int:
    text = request.headers.get(header, "")
    if _NUMBER.fullmatch(text) is None:
        raise Refusal(422, f"{header} is not a number of bytes")
    return int(text)


# -- answers -------------------------------------------------------------------------------------------------


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _part_of(data: bytes, wanted: str) -> Response:
    """Return the bytes of a segment, or those that a Range header names. Other headers mean all of it."""
    headers = {"Accept-Ranges": "bytes"}
    kind = "application/octet-stream"
    found = _RANGE.fullmatch(wanted)
    if found is None:
        return Response(data, media_type=kind, headers=headers)
    first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
    if first >= len(data):
        raise Refusal(416, f"it has {len(data)} bytes", headers={"Content-Range": f"bytes */{len(data)}"})
    if last < first:
        return Response(data, media_type=kind, headers=headers)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    return Response(data[first : last + 1], 206, media_type=kind, headers=headers)


def _problem(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    body = msgspec.json.encode({"error": text})
    return Response(body, status, media_type="application/json", headers=headers)


async def _refused(_request: Request, error: Exception) -> Response:
    if not isinstance(error, Refusal):
        raise error
    return Response(error.body(), error.status, media_type="application/json", headers=error.headers)


async def _not_served(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _problem(error.status_code, error.detail.lower(), error.headers)


async def _database_failed(_request: Request, error: Exception) -> Response:
    _log.error("%s", error)
    return _problem(503, "the centre's database does not answer; try again later", {"Retry-After": "60"})


async def _gone(_request: Request, _error: Exception) -> Response:
    return _problem(400, "the body ends too early")  # nobody hears it


async def _failed(_request: Request, _error: Exception) -> Response:
    return _problem(500, "the centre has failed; its log says why")
