"""The centre, as a server sees it over HTTP: signed requests, bounded answers, counted and limited bytes.

Nothing that it says is believed before it was looked at: the callers verify ids and signatures, this module
sizes and forms.
"""

from __future__ import annotations

import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec
from nacl.signing import SigningKey

from shala_agent.bandwidth import Bandwidth, unlimited
from shala_agent.device import device_id
from shala_agent.failure import AgentError
from shala_agent.wire import (
    DEVICE_HEADER,
    OFFSET_HEADER,
    SESSION_HEADER,
    SIGNATURE_HEADER,
    SIZE_HEADER,
    EnrolAnswer,
    EnrolRequest,
    Problem,
    Receipt,
    SyncAnswer,
    SyncRequest,
    sign,
    signed_text,
)

# httpx imports its own command line where it can, and Rich with it: a third of its time, for nobody here.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

if TYPE_CHECKING:  # it takes longer to import than all else: only who makes a request waits for it
    import httpx

MAX_ANSWER = 16 << 20  # bytes of JSON; a thousand items and the statements among them
MAX_PROBLEM = 16 << 10  # bytes of the body of a refusal
PIECE = 16 << 10  # bytes that are sent at once: the limit is kept in such steps
BUSY_TRIES = 3  # of a request that the centre has no time for
QUIET = 30.0  # seconds without a byte after which the link counts as dead

Answer = TypeVar("Answer")


class CentreSilent(AgentError):
    """No centre answers, or not now: to be tried again later, nothing is wrong here."""


class CentreFull(CentreSilent):
    """The centre has no room for what this server sends; what it has to give it gives all the same."""


class CentreRefuses(AgentError):
    """The centre says no, or what answers is no centre: somebody must look at it."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class SessionOver(Exception):
    """The session has expired: open another one."""


class OutOfTime(Exception):
    """The deadline has come, or a window of the day in which nothing is to be sent."""


@dataclass(slots=True)
class Traffic:
    """What went over the line: bytes with the headers, without TLS."""

    requests: int = 0
    up: int = 0
    down: int = 0


def _for_ever() -> float:
    return float("inf")


@dataclass(slots=True)
class Centre:
    """The centre at `url`, spoken to as the device with this key. `remaining` is the time left in seconds."""

    url: str
    key: SigningKey
    ca_file: str = ""
    connect_seconds: float = 10.0
    bandwidth: Bandwidth = field(default_factory=unlimited)
    remaining: Callable[[], float] = _for_ever
    traffic: Traffic = field(default_factory=Traffic)
    session: str = ""
    _client: httpx.Client | None = None

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        """Ask to become a device of a zone."""
        body = msgspec.json.encode(request)
        with self._answer("POST", "/v1/enrol", body, signed=False) as response:
            return _decoded(self._checked(response), EnrolAnswer, self.url)

    def open(self, request: SyncRequest) -> SyncAnswer:
        """Open a session: its token is used from now on."""
        self.session = ""
        with self._answer("POST", "/v1/sync", msgspec.json.encode(request)) as response:
            answer = _decoded(self._checked(response), SyncAnswer, self.url)
        # Each answer is a session, a fork, or a beginning anew; `{}` is what others say to anything.
        if not (answer.fork or (answer.nonce and (answer.session or answer.restart))):
            raise CentreRefuses(f"what answers at {self.url} is no shala centre (it opens no session)")
        # It goes into a header of ours.
        if not re.fullmatch(r"[\x21-\x7e]{0,200}", answer.session) or len(answer.nonce) > 32:
            raise CentreRefuses(f"{self.url} gave a session that cannot be one (is it a shala centre?)")
        self.session = answer.session
        return answer

    def put(self, id_: bytes, size: int, offset: int, part: bytes) -> Receipt:
        """Send a part of a segment of `size` bytes, which begins at `offset`."""
        headers = {OFFSET_HEADER: str(offset), SIZE_HEADER: str(size)}
        with self._answer("PUT", _path(id_), part, headers, offset) as response:
            if response.status_code != 409:
                return _decoded(self._checked(response), Receipt, self.url)
            body = self._body(response, MAX_PROBLEM)
            try:
                return msgspec.json.decode(body, type=Receipt)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise CentreRefuses(_problem(body, self.url, 409), 409) from None

    @contextmanager
    def get(self, id_: bytes, offset: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Ask for a segment from a byte on; give (the byte that it really begins at, what comes)."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._answer("GET", _path(id_), b"", headers) as response:
            if response.status_code == 206:
                begins = re.match(r"bytes (\d{1,15})-", response.headers.get("Content-Range", ""))
                if begins is None or int(begins[1]) != offset:
                    raise CentreRefuses(f"{self.url} sent another part of a segment than was asked for")
                yield offset, self._pieces(response)
                return
            if response.status_code != 200:
                self._checked(response)
            yield 0, self._pieces(response)

    # -- within ----------------------------------------------------------------------------------------------

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str] | None = None,
        offset: int = 0,
        *,
        signed: bool = True,
    ) -> Iterator[httpx.Response]:
        """Send a request; give its answer, of which only the headers have been read."""
        import httpx

        said = dict(headers or {})
        if signed:
            public = bytes(self.key.verify_key).hex()
            text = signed_text(method, path, self.session, offset, body)
            said |= {DEVICE_HEADER: device_id(public), SIGNATURE_HEADER: sign(self.key, text)}
            if self.session:
                said[SESSION_HEADER] = self.session
        if method != "GET":
            said["Content-Length"] = str(len(body))
        response = self._sent(method, path, said, body)
        for _ in range(BUSY_TRIES):
            # Not where a number goes along that is good for once.
            if response.status_code != 429 or method == "POST":
                break
            response.close()
            self._sleep(_seconds(response.headers.get("Retry-After", "")))
            response = self._sent(method, path, said, body)
        try:
            yield response
        except httpx.TransportError as error:
            raise self._explained(error) from None
        finally:
            response.close()

    def _sent(self, method: str, path: str, headers: dict[str, str], body: bytes) -> httpx.Response:
        """Send a request; return its answer, of which only the headers have been read."""
        import httpx

        try:
            client = self._connection()
            request = client.build_request(
                method,
                self.url.rstrip("/") + path,
                headers=headers,
                content=self._outgoing(body) if method != "GET" else None,
                timeout=httpx.Timeout(self._patience(), connect=min(self.connect_seconds, self._patience())),
            )
            self.traffic.requests += 1
            self.traffic.up += len(method) + len(request.url.raw_path) + 12 + _size(request.headers)
            response = client.send(request, stream=True)
        except (httpx.TransportError, httpx.InvalidURL, UnicodeError, OSError) as error:
            raise self._explained(error) from None
        self.traffic.down += 15 + len(response.reason_phrase) + _size(response.headers)
        return response

    def _connection(self) -> httpx.Client:
        import httpx

        if self._client is None:
            verify: ssl.SSLContext | bool = False
            if self.url.startswith("https:"):
                try:
                    verify = ssl.create_default_context(cafile=self.ca_file or None)
                except OSError as error:  # ssl.SSLError is one
                    raise CentreRefuses(
                        f"sync.ca_file {self.ca_file} cannot be used: {error.strerror or error}"
                        " (it is to hold the certificate of your authority, in PEM)"
                    ) from None
            self._client = httpx.Client(verify=verify, trust_env=False)
            # Every byte of a no-op counts: it is to fit into one kilobyte both ways.
            for name in list(self._client.headers):
                del self._client.headers[name]
        return self._client

    def _outgoing(self, body: bytes) -> Iterator[bytes]:
        for start in range(0, len(body), PIECE):
            piece = body[start : start + PIECE]
            self._pass(len(piece))
            self.traffic.up += len(piece)
            yield piece

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        for piece in response.iter_raw():
            self.traffic.down += len(piece)
            yield piece
            self._pass(len(piece))

    def _pass(self, size: int) -> None:
        """Wait as long as the limit has it. Raises OutOfTime."""
        self._sleep(self.bandwidth.take(size))

    def _sleep(self, seconds: float) -> None:
        if seconds >= self.remaining() or self.remaining() <= 0:
            raise OutOfTime
        if seconds:
            time.sleep(seconds)

    def _patience(self) -> float:
        remaining = self.remaining()
        if remaining <= 0:
            raise OutOfTime
        return min(QUIET, max(1.0, remaining))

    def _checked(self, response: httpx.Response) -> bytes:
        """Return the body of a good answer. Raises SessionOver, CentreSilent, CentreRefuses."""
        status = response.status_code
        if status == 200:
            return self._body(response, MAX_ANSWER)
        problem = _problem(self._body(response, MAX_PROBLEM), self.url, status)
        if status == 401 and self.session:
            raise SessionOver
        if status == 429:
            raise CentreSilent(f"{self.url} asks to come later: {problem}")
        if status == 507:
            raise CentreFull(f"{self.url} takes no more now: {problem}")
        if status >= 500:
            raise CentreSilent(f"{self.url} has trouble of its own ({status}); try again later")
        raise CentreRefuses(problem, status)

    def _body(self, response: httpx.Response, limit: int) -> bytes:
        body = bytearray()
        for piece in self._pieces(response):
            body += piece
            if len(body) > limit:
                raise CentreRefuses(
                    f"{self.url} answers with more than {limit} bytes (is it a shala centre?)"
                )
        return bytes(body)

    def _explained(self, error: Exception) -> AgentError:
        import httpx

        self.close()
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL | UnicodeError):
            return CentreRefuses(f"{self.url} is no address of a centre: {reason}")
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return CentreRefuses(
                f"{self.url} cannot prove that it is the centre: {reason}"
                " (is the clock right? set sync.ca_file to the certificate of your own authority)"
            )
        return CentreSilent(f"{self.url} does not answer: {reason}")


def _seconds(retry_after: str) -> float:
    """Return how long a centre wants to be left alone, within reason."""
    return float(min(60, max(1, int(retry_after)))) if re.fullmatch(r"\d{1,6}", retry_after) else 10.0


def _path(id_: bytes) -> str:
    return f"/v1/segments/{id_.hex()}"


def _size(headers: httpx.Headers) -> int:
    return 2 + sum(len(name) + len(value) + 4 for name, value in headers.raw)


def _decoded(body: bytes, kind: type[Answer], url: str) -> Answer:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CentreRefuses(f"what answers at {url} is no shala centre ({error})") from None


def _problem(body: bytes, url: str, status: int) -> str:
    """Return what a refusal says, as one line that a terminal can show."""
    try:
        text = msgspec.json.decode(body, type=Problem).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return f"what answers at {url} is no shala centre (HTTP {status})"
    shown = "".join(letter if letter.isprintable() else " " for letter in text)[:300]
    return f"the centre refuses: {shown} (HTTP {status})"
