"""Line: the way between a school and the centre, as an httpx transport; what goes wrong on it is drawn.

The centre's application is called in process: it answers one request after the other, but between two requests
of a school anything may happen to anybody.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

_LOST = (
    "lost",
    "no answer",
    "twice",
    "late",
    "cut up",
    "cut down",
    "flipped up",
    "flipped down",
    "proxy",
    "early",
)


@dataclass(frozen=True)
class Request:
    """A request as it went out."""

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What the application said."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


Serve = Callable[[Request, int | None], Answer]


@dataclass
class Line:
    """All lines of a world. `serve` is the centre's application; it raises httpx.TransportError when it dies."""

    chance: random.Random
    serve: Serve
    note: Callable[..., None]  # of the trace
    meanwhile: Callable[[], None]
    pass_time: Callable[[float], None]
    trouble: float = 0.0  # how likely it is that a request has any
    busy: float = 0.0  # how likely it is that something else happens meanwhile
    faults: Counter[str] = field(default_factory=Counter)
    in_flight: list[Request] = field(default_factory=list)  # to arrive late, or once more
    watch: Callable[[Request, Answer], None] = lambda _request, _answer: None
    point: Callable[[], None] = lambda: None  # at which who has sent the request may die

    def transport(self, **_settings: Any) -> httpx.BaseTransport:
        return _Transport(self)

    def deliver_late(self) -> bool:
        """Have something arrive that was on its way for long; nobody hears the answer."""
        if not self.in_flight:
            return False
        request = self.in_flight.pop(self.chance.randrange(len(self.in_flight)))
        with contextlib.suppress(httpx.TransportError):
            self._answered(request)
        return True

    def handle(self, request: Request) -> tuple[Answer, int | None]:
        """Return the answer, and after how many of its bytes the line breaks."""
        self.pass_time(self.chance.uniform(0.01, 3.0))
        if self.busy and self.chance.random() < self.busy:
            self.meanwhile()
        fault = self.chance.choice(_LOST) if self.chance.random() < self.trouble else ""
        if fault:
            self.faults[f"line: {fault}"] += 1
            self.note("line", fault)
        if fault in ("lost", "late", "early"):
            if fault != "lost":
                self.in_flight.append(request)
            if fault == "early":  # it comes through, and once more much later
                return self._answered(request), None
            self.pass_time(30.0)
            raise httpx.ReadTimeout("timed out")
        if fault == "proxy":
            return Answer(502, (), b"<html>bad gateway</html>"), None
        if fault == "cut up":
            self._answered(request, self.chance.randrange(len(request.body) + 1))
            raise httpx.WriteError("broken pipe")
        if fault == "flipped up":
            request = Request(request.method, request.path, request.headers, self._flipped(request.body))
        answer = self._answered(request)
        if fault == "twice":
            self._answered(request)
        if fault == "no answer":
            self.pass_time(30.0)
            raise httpx.ReadTimeout("timed out")
        if fault == "cut down":
            return answer, self.chance.randrange(len(answer.body) + 1)
        if fault == "flipped down" and request.method == "GET":
            answer = Answer(answer.status, answer.headers, self._flipped(answer.body))
        if fault == "flipped down" and request.method == "POST":
            answer = self._with_damaged_item(answer)
        return answer, None

    def _with_damaged_item(self, answer: Answer) -> Answer:
        """Return an answer in which the id of an item or a statement is another one: what TLS would have seen."""
        said = json.loads(answer.body)
        if not (items := said.get("items")):
            return answer
        item = self.chance.choice(items)
        place = 3 if len(item) > 3 and item[3] and self.chance.random() < 0.5 else 1
        at = self.chance.randrange(len(item[place]))
        item[place] = item[place][:at] + self.chance.choice("0123456789abcdef") + item[place][at + 1 :]
        body = json.dumps(said).encode()
        headers = [(name, value) for name, value in answer.headers if name != b"content-length"]
        return Answer(answer.status, (*headers, (b"content-length", b"%d" % len(body))), body)

    def _answered(self, request: Request, cut: int | None = None) -> Answer:
        answer = self.serve(request, cut)
        self.note(request.method, request.path, len(request.body), answer.status, len(answer.body))
        self.watch(request, answer)
        return answer

    def _flipped(self, data: bytes) -> bytes:
        return flip(data, self.chance)


def flip(data: bytes, chance: random.Random) -> bytes:
    """Return data with one bit the other way round."""
    if not data:
        return data
    damaged = bytearray(data)
    damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


class _Transport(httpx.BaseTransport):
    def __init__(self, line: Line) -> None:
        self._line = line

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = b"".join(request.stream)  # type: ignore[arg-type] # of a client that is not async
        headers = tuple((name.lower(), value) for name, value in request.headers.raw)
        path = request.url.raw_path.decode()
        self._line.point()
        answer, breaks = self._line.handle(Request(request.method, path, headers, body))
        self._line.point()
        body_ = _Body(answer.body, breaks, self._line.point)
        return httpx.Response(answer.status, headers=list(answer.headers), stream=body_)


class _Body(httpx.SyncByteStream):
    def __init__(self, body: bytes, breaks: int | None, point: Callable[[], None]) -> None:
        self._body, self._breaks, self._point = body, breaks, point

    def __iter__(self) -> Iterator[bytes]:
        whole = self._body if self._breaks is None else self._body[: self._breaks]
        half = len(whole) // 2
        yield whole[:half]
        self._point()
        yield whole[half:]
        if self._breaks is not None:
            raise httpx.ReadError("the line broke")


def call(application: Any, request: Request, cut: int | None) -> Answer:
    """Have an ASGI application answer, in one go: it waits for nothing. `cut`: so much of the body comes."""
    said: list[dict[str, Any]] = []
    body = request.body if cut is None else request.body[:cut]
    coming = [{"type": "http.request", "body": body, "more_body": cut is not None}]

    async def receive() -> dict[str, Any]:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    path, _, query = request.path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": request.method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        "root_path": "", "headers": list(request.headers), "client": ("school", 1), "server": ("centre", 80),
    }  # fmt: skip
    try:
        application(scope, receive, send).send(None)
    except StopIteration:
        pass
    else:
        raise AssertionError("the centre waits for something outside of itself")
    answered = b"".join(message.get("body", b"") for message in said[1:])
    return Answer(said[0]["status"], tuple(said[0]["headers"]), answered)
