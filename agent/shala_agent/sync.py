"""Sync: one conversation with the centre (docs/protocol.md, section 6). Uploads first, then downloads.

Whatever has moved is never moved again, wherever the line is cut: the centre says at which byte it goes on, a
segment that has come in part waits in a file. Nothing that comes is believed: sizes are bounded, ids, authors
and statements verified; what is wrong is named and left out, and blocks nobody.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
from nacl.signing import SigningKey

from shala_agent import __version__
from shala_agent.centre import Centre, CentreRefuses, CentreSilent, OutOfTime, SessionOver
from shala_agent.ledger import now
from shala_agent.membership import StatementRefused
from shala_agent.records import Offer, Records
from shala_agent.segment import MAX_SEGMENT, SegmentRefused, read_header
from shala_agent.wire import MAX_OFFERS, Cursor, Item, Receipt, SyncAnswer, SyncRequest
from shala_agent.wire import Offer as OfferOnWire

PART = 256 << 10  # bytes of one upload at most (docs/protocol.md, section 6)
SMALL_PART = 16 << 10  # on a slow line: a cut costs no more than what one request has sent
LONG, SHORT = 20.0, 4.0  # seconds for one part: after more the next ones are halved, after less doubled
MAX_FORKS = 3  # in one run; somebody who finds more of them is not right
MAX_RESTARTS = 2
MAX_SESSIONS = 3  # opened anew without anything having moved
STALLS = 2  # receipts for one segment that do not get on
LEFT_OUT = 200  # segments that could not be had are remembered, to be asked for again
ASK_AGAIN = 86_400  # seconds by the server's clock until then

Outcome = Literal["done", "partly", "silent", "refused"]
Watch = Callable[[str], None]


class Refused(msgspec.Struct, frozen=True):
    """Something that was left out: the id of a segment or statement, whither it went, and why not."""

    id: str
    way: Literal["up", "down"]
    reason: str


class Lag(msgspec.Struct, kw_only=True):
    """What is still to go: own and others' entries that the centre is not known to have, and what it has
    named that is not here. `more`: it has not named all.
    """

    entries: int = 0
    bytes: int = 0
    segments_down: int = 0
    bytes_down: int = 0
    more: bool = False


class SyncResult(msgspec.Struct, kw_only=True):
    """What one run did; `shala-agent sync --json` prints it."""

    format: int = 1
    zone: str = ""
    url: str = ""
    started: str = ""
    ended: str = ""
    outcome: Outcome = "done"
    reason: str = ""  # why it is not done
    records_up: int = 0
    records_down: int = 0
    segments_up: int = 0
    segments_down: int = 0
    statements: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    requests: int = 0
    lag_before: Lag = msgspec.field(default_factory=Lag)
    lag_after: Lag = msgspec.field(default_factory=Lag)
    forks: int = 0
    restarts: int = 0
    refused: list[Refused] = []
    seconds: float = 0.0

    @property
    def moved(self) -> bool:
        """Return whether anything was sent or came."""
        return bool(self.segments_up or self.segments_down or self.statements)


def sync(records: Records, centre: Centre, parts: Path, watch: Watch | None = None) -> SyncResult:
    """Bring this server and the centre to the same records, as far as line, deadline and centre allow.

    `parts` is a folder for segments that have come in part. The result says how far it came; it is kept in
    the records, too. Raises AgentError only where the records themselves cannot be used.
    """
    began = time.monotonic()
    run = _Run(records, centre, parts, watch or (lambda _text: None))
    result = run.result
    try:
        run.run()
    except OutOfTime:
        result.outcome, result.reason = "partly", "the time for sync is over"
    except CentreSilent as error:
        result.outcome, result.reason = ("partly" if result.moved else "silent"), str(error)
    except CentreRefuses as error:
        result.outcome, result.reason = "refused", str(error)
    except BaseException:
        result.outcome, result.reason = "partly", "it was stopped"
        raise
    finally:
        centre.close()
        run.measure()
        result.ended, result.seconds = now(), round(time.monotonic() - began, 3)
        if result.outcome == "done" and (result.refused or run.left_out):
            result.outcome = "partly"
            result.reason = (
                f"{max(len(result.refused), len(run.left_out))} segments or statements were left out"
            )
        records.keep(last_sync=msgspec.json.encode(result).decode(), part=run.part)
    return result


def last_sync(records: Records) -> SyncResult | None:
    """Return what the last run did."""
    said = records.kept("last_sync")
    try:
        return None if said is None else msgspec.json.decode(said, type=SyncResult)
    except msgspec.MsgspecError:
        return None  # of another version


class _LeftOut(msgspec.Struct, array_like=True):
    """A segment that the centre named and that could not be had."""

    id: str
    size: int
    asked: int
    reason: str


@dataclass(slots=True)
class _Run:
    records: Records
    centre: Centre
    parts: Path
    watch: Watch
    result: SyncResult = field(default_factory=SyncResult)
    left_out: dict[str, _LeftOut] = field(default_factory=dict)
    _key: SigningKey = field(init=False)
    part: int = PART
    _sessions: int = 0
    _seen_first: bool = False
    _to_come: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._key = self.centre.key
        self.part = min(PART, max(SMALL_PART, int(self.records.kept("part") or PART)))
        self.result.started, self.result.url = now(), self.centre.url
        for one in _remembered(self.records.kept("left_out")):
            self.left_out[one.id] = one

    def run(self) -> None:
        """Talk until nothing is left on either side."""
        self.records.cut(self._key)
        self.result.zone = self.records.store.name if self.records.store is not None else ""
        self._measure_unsent(self.result.lag_before)
        self._measure_unsent(self.result.lag_after)
        while self._round():
            pass
        if self.result.moved:
            self._ask_again()
        self._tidy()

    def measure(self) -> None:
        """Note what went over the line and what is still to go."""
        traffic, result = self.centre.traffic, self.result
        result.requests, result.bytes_up, result.bytes_down = traffic.requests, traffic.up, traffic.down
        if self.records.store is not None:
            self._measure_unsent(result.lag_after)
        result.lag_after.segments_down = len(self._to_come)
        result.lag_after.bytes_down = sum(self._to_come.values())

    def _measure_unsent(self, lag: Lag) -> None:
        unsent = self.records.unsent()
        lag.entries, lag.bytes = unsent.entries + self.records.uncut(), unsent.bytes

    # -- one round -------------------------------------------------------------------------------------------

    def _round(self) -> bool:
        """Open a session and move what it names; return whether another one is needed."""
        self.records.cut(self._key)
        offers = self.records.offers(MAX_OFFERS)
        before, receipts = self._cursor(), self.records.received()
        answer = self._open(before, offers)
        if answer.fork:
            self._fork(answer)
            return True
        if answer.restart:
            self._restart()
            return True
        stood = self._standing()
        self._look_at(answer, before)
        try:
            self._upload(answer, offers)
            self._download(answer)
        except SessionOver:
            self._sessions += 1
            if self._sessions > MAX_SESSIONS:
                raise CentreRefuses(f"{self.centre.url} forgets its sessions at once") from None
            return True
        self._sessions = 0
        if answer.cursor is not None:
            self.records.keep(cursor_place=answer.cursor.place, cursor_digest=answer.cursor.digest)
        if not answer.more:
            self._doubt(receipts)
        left = answer.more or bool(self.records.offers(1)) or bool(self.records.uncut())
        got_on = self._standing() != stood
        if left and answer.more and not got_on:
            raise CentreRefuses(f"{self.centre.url} says that there is more, and gives nothing")
        return left and got_on

    def _doubt(self, receipts: Sequence[bytes]) -> None:
        """Offer again what has a receipt and is not in the list, which has come to its end: the centre went
        back to a backup from after our cursor and before the receipt.
        """
        unlisted = set(receipts) & set(self.records.received())
        if unlisted:
            self.watch(f"the centre has lost {len(unlisted)} segments: offering them again")
            self.records.offer_again(unlisted)

    def _standing(self) -> tuple[object, ...]:
        """Return what changes while a run gets on."""
        result = self.result
        moved = (result.segments_up, result.segments_down, result.statements)
        return (*moved, self._cursor(), self.records.unsent(), self.records.epoch)

    def _cursor(self) -> Cursor:
        return Cursor(
            int(self.records.kept("cursor_place") or 0), str(self.records.kept("cursor_digest") or "0" * 16)
        )

    def _open(self, cursor: Cursor, offers: Sequence[Offer]) -> SyncAnswer:
        number = int(self.records.kept("number") or 0) + 1
        # On the disk before it is sent: who goes back to a backup says a number that was said before.
        self.records.keep(number=number)
        request = SyncRequest(
            epoch=self.records.epoch,
            counter=self.records.counter,
            number=number,
            nonce=str(self.records.kept("nonce") or ""),
            cursor=cursor,
            offers=[OfferOnWire(offer.id.hex(), offer.size) for offer in offers],
            software=f"shala-agent {__version__}",
        )
        answer = self.centre.open(request)
        if answer.nonce:
            self.records.keep(nonce=answer.nonce)
        return answer

    def _look_at(self, answer: SyncAnswer, before: Cursor) -> None:
        """Note what is to come. Raises CentreRefuses for an answer that cannot be one."""
        if answer.cursor is not None and answer.cursor.place < before.place:
            raise CentreRefuses(f"{self.centre.url} goes back in its list without saying so")
        store = self.records.store
        self._to_come = {
            item.id: item.size
            for item in answer.items
            if not item.statement and store is not None and not store.has(bytes.fromhex(item.id))
        }
        self.result.lag_after.more = answer.more
        if not self._seen_first:
            self._seen_first = True
            lag = self.result.lag_before
            lag.segments_down, lag.bytes_down = len(self._to_come), sum(self._to_come.values())
            lag.more = answer.more

    def _fork(self, answer: SyncAnswer) -> None:
        self.result.forks += 1
        if self.result.forks > MAX_FORKS or answer.number >= 1 << 52:
            raise CentreRefuses(f"{self.centre.url} takes every epoch of this server for a copy's")
        self.watch("another server speaks with this one's key: going on in a new epoch")
        self.records.keep(number=max(int(self.records.kept("number") or 0), answer.number))
        self.records.renew()

    def _restart(self) -> None:
        self.result.restarts += 1
        if self.result.restarts > MAX_RESTARTS:
            raise CentreRefuses(f"{self.centre.url} wants to begin anew again and again")
        self.watch("the centre has lost its memory: offering everything again")
        self.records.offer_all()
        self.records.keep(cursor_place=0, cursor_digest="0" * 16)

    # -- up --------------------------------------------------------------------------------------------------

    def _upload(self, answer: SyncAnswer, offers: Sequence[Offer]) -> None:
        offered = {offer.id.hex(): offer for offer in offers}
        wanted = [(offered[one.id], one.offset) for one in answer.wanted if one.id in offered]
        names = {offer.id for offer, _ in wanted}
        self.records.set_at_centre(offer.id for offer in offers if offer.id not in names)
        for number, (offer, offset) in enumerate(wanted, 1):
            self.watch(f"up: segment {number} of {len(wanted)}")
            try:
                self._send(offer.id, offset)
            except CentreRefuses as error:
                if error.status not in (400, 413, 422):
                    raise
                # Of this one segment: the others go all the same.
                self._refuse_up(offer.id, str(error))

    def _send(self, id_: bytes, offset: int) -> None:
        store = self.records.store
        data = store.data(id_) if store is not None else None
        if data is None:
            return
        stalls = 0
        offset = offset if offset <= len(data) else 0
        while True:
            began = time.monotonic()
            try:
                receipt = self.centre.put(id_, len(data), offset, data[offset : offset + self.part])
            except (CentreSilent, OutOfTime):
                # What does not get through before the line breaks is not tried in the same size for ever.
                self.part = max(SMALL_PART, self.part // 4)
                raise
            self._pace(time.monotonic() - began, len(data) - offset)
            if receipt.refused:
                self._refuse_up(id_, receipt.refused)
                return
            if receipt.whole:
                self.records.set_received([id_])
                _, header = read_header(data)
                self.result.segments_up += 1
                self.result.records_up += header.last - header.first + 1
                return
            if not _gets_on(receipt, offset, len(data)):
                stalls += 1
                if stalls > STALLS:
                    reason = f"the centre has {receipt.offset} of {len(data)} bytes and takes no more"
                    self.result.refused.append(Refused(id_.hex(), "up", reason))
                    return
            offset = min(receipt.offset, len(data))

    def _pace(self, seconds: float, left: int) -> None:
        """Make the parts as large as the line carries in some seconds."""
        if seconds > LONG:
            self.part = max(SMALL_PART, self.part // 2)
        elif seconds < SHORT and left > self.part:
            self.part = min(PART, self.part * 2)

    def _refuse_up(self, id_: bytes, reason: str) -> None:
        self.records.set_refused([id_])
        self.result.refused.append(Refused(id_.hex(), "up", reason[:300]))

    # -- down ------------------------------------------------------------------------------------------------

    def _download(self, answer: SyncAnswer) -> None:
        store = self.records.store
        known: list[bytes] = []
        statements: list[Item] = []
        for item in answer.items:
            if item.statement:
                statements.append(item)
                continue
            # What a segment's author may do was said before it came.
            self._state(statements)
            statements = []
            id_ = bytes.fromhex(item.id)
            if store is not None and store.has(id_):
                known.append(id_)
            else:
                self.watch(
                    f"down: {len(self._to_come)} segments, {sum(self._to_come.values()) / 1e6:.1f} MB left"
                )
                self._fetch(item.id, item.size)
            self._to_come.pop(item.id, None)
        self._state(statements)
        self.records.set_at_centre(known)

    def _state(self, items: Sequence[Item]) -> None:
        """Keep statements; one that is wrong is left out alone."""
        if not items:
            return
        good = [data for item in items if (data := self._statement(item)) is not None]
        try:
            self.result.statements += self.records.state(good)
        except StatementRefused:
            for data in good:
                try:
                    self.result.statements += self.records.state([data])
                except StatementRefused as error:
                    id_ = hashlib.sha256(data[64:]).hexdigest()
                    self.result.refused.append(Refused(id_, "down", f"a statement: {error}"))

    def _statement(self, item: Item) -> bytes | None:
        try:
            data = base64.b64decode(item.statement, validate=True)
        except (ValueError, binascii.Error):
            data = b""
        if hashlib.sha256(data[64:]).hexdigest() != item.id:
            self.result.refused.append(Refused(item.id, "down", "a statement: it is not what its id says"))
            return None
        return data

    def _fetch(self, id_: str, size: int) -> None:
        """Get one segment, on from where it was cut, and apply it."""
        reason = ""
        for _ in range(2):
            path = self.parts / id_
            resumed = path.exists()
            try:
                if size > MAX_SEGMENT:
                    raise SegmentRefused(f"it is said to have {size} bytes, more than {MAX_SEGMENT}")
                self._get(bytes.fromhex(id_), path)
                self._take(id_, path.read_bytes())
                path.unlink()
                self.left_out.pop(id_, None)
                self._keep_left_out()
                return
            except SegmentRefused as error:
                reason = str(error)
            except CentreRefuses as error:
                if error.status not in (400, 404, 410, 413, 416, 422):
                    raise
                reason = str(error)
            path.unlink(missing_ok=True)
            if not resumed:
                break
            # The part that lay here may have been of another time, or hurt by a power cut: once more, whole.
        self.result.refused.append(Refused(id_, "down", reason[:300]))
        self.left_out[id_] = _LeftOut(id_, size, int(time.time()), reason[:300])
        self._keep_left_out()

    def _get(self, id_: bytes, path: Path) -> None:
        self.parts.mkdir(parents=True, exist_ok=True, mode=0o700)
        here = path.stat().st_size if path.exists() else 0
        with self.centre.get(id_, here) as (begin, pieces), path.open("ab") as file:
            file.truncate(begin)
            total = begin
            for piece in pieces:
                total += len(piece)
                if total > MAX_SEGMENT:
                    raise SegmentRefused(f"it has more than {MAX_SEGMENT} bytes")
                file.write(piece)
                file.flush()  # what has come stays, whatever happens to this process

    def _take(self, id_: str, data: bytes) -> None:
        found, header = read_header(data)
        if found.hex() != id_:
            raise SegmentRefused("another segment came than was asked for")
        epoch = self.records.epoch
        self.records.accept(data, from_centre=True)
        self.result.forks += self.records.epoch != epoch  # it is of a copy of this server
        self.result.segments_down += 1
        self.result.records_down += header.last - header.first + 1

    # -- what could not be had -------------------------------------------------------------------------------

    def _ask_again(self) -> None:
        """Ask once a day for what could not be had: it may have been mended at the centre."""
        store, clock = self.records.store, int(time.time())
        asked = {one.id for one in self.result.refused}
        for one in list(self.left_out.values()):
            if store is not None and store.has(bytes.fromhex(one.id)):
                self.left_out.pop(one.id)  # it came on another way
            elif one.id not in asked and abs(clock - one.asked) > ASK_AGAIN:
                self._fetch(one.id, one.size)
        self._keep_left_out()

    def _keep_left_out(self) -> None:
        while len(self.left_out) > LEFT_OUT:
            self.left_out.pop(next(iter(self.left_out)))
        said = msgspec.json.encode(list(self.left_out.values())).decode()
        if said != (self.records.kept("left_out") or "[]"):
            self.records.keep(left_out=said)

    def _tidy(self) -> None:
        """Remove parts of segments that nobody names any more."""
        if self.parts.is_dir():
            for path in self.parts.iterdir():
                path.unlink()


def _gets_on(receipt: Receipt, offset: int, size: int) -> bool:
    return offset < receipt.offset <= size


def _remembered(said: Any) -> Iterator[_LeftOut]:
    if said is not None:
        try:
            yield from msgspec.json.decode(said, type=list[_LeftOut])
        except msgspec.MsgspecError:
            return  # of another version
