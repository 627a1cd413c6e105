"""Sync: one conversation with the centre (docs/protocol.md, section 6). Uploads first, then downloads.

Whatever has moved is never moved again, wherever the line is cut: the centre says at which byte it goes on, a
segment that has come in part waits in a file. Nothing that comes is believed: sizes are bounded, ids, authors
and statements verified; what is wrong is named and left out, and blocks nobody.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
from nacl.signing import SigningKey

from shala_agent import __version__
from shala_agent.centre import Centre, CentreFull, CentreRefuses, CentreSilent, OutOfTime, SessionOver
from shala_agent.ledger import now
from shala_agent.membership import StatementRefused, statement_id
from shala_agent.records import Offer, Records
from shala_agent.segment import MAX_SEGMENT, Segment, SegmentRefused, read_header
from shala_agent.store import DAMAGED, HOLLOW, Store
from shala_agent.wire import (
    MAX_DOUBTED,
    MAX_OFFERS,
    MAX_STATEMENTS,
    Cursor,
    Item,
    Receipt,
    SyncAnswer,
    SyncRequest,
)
from shala_agent.wire import Offer as OfferOnWire

PART = 256 << 10  # bytes of one upload at most (docs/protocol.md, section 6)
SMALL_PART = 16 << 10  # on a slow line: a cut costs no more than what one request has sent
LONG, SHORT = 20.0, 4.0  # seconds for one part: after more the next ones are halved, after less doubled
MAX_FORKS = 3  # in one run; somebody who finds more of them is not right
MAX_RESTARTS = 2
MAX_SESSIONS = 3  # opened anew without anything having moved
FULL_TRIES = 3  # authors of whom the centre takes no more, in one session
STALLS = 2  # receipts for one segment that do not get on
ASK_AGAIN = 86_400  # seconds by the server's clock until what could not be had is asked for again
AGAIN_AT_ONCE = 200  # segments of those in one run
STATEMENTS_AT_ONCE = 256 << 10  # bytes of statements that are sent back to a restored centre in one request

_SUMS = (
    "records_up", "records_down", "segments_up", "segments_down", "statements", "bytes_up", "bytes_down",
    "requests", "forks", "restarts", "seconds",
)  # fmt: skip
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


def sync(
    records: Records, centre: Centre, parts: Path, watch: Watch | None = None, *, upload_only: bool = False
) -> SyncResult:
    """Bring this server and the centre to the same records, as far as line, deadline and centre allow.

    With `upload_only` what is new in the zone is counted and left for another run. `parts` is a folder for
    segments that have come in part. The result says how far it came; it is kept in the records, too. Raises
    AgentError only where the records themselves cannot be used.
    """
    began = time.monotonic()
    run = _Run(records, centre, parts, watch or (lambda _text: None), upload_only)
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
        if result.outcome == "done" and run.full:
            result.outcome, result.reason = "partly", run.full
        if result.outcome == "done" and (left_out := max(len(result.refused), records.left_out())):
            result.outcome = "partly"
            result.reason = f"{left_out} segments or statements were left out"
        records.keep(last_sync=msgspec.json.encode(result).decode(), part=run.part)
    return result


def together(first: SyncResult, second: SyncResult) -> SyncResult:
    """Return two runs as one."""
    sums = {name: getattr(first, name) + getattr(second, name) for name in _SUMS}
    refused = [*first.refused, *(one for one in second.refused if one not in first.refused)]
    return msgspec.structs.replace(
        second, started=first.started, lag_before=first.lag_before, refused=refused, **sums
    )


def of_another_key(store: Store) -> str:
    """Return what to say where the key here is not the one that the zone knows this server by."""
    name = store.member(store.own).name
    return (
        f"zone {store.name} knows this server by another device.key than the one here (put that back; if it"
        f" is lost, at the centre: shala device create --zone {store.name} --name {name} --replace, then"
        " here: shala-agent enrol --token-file FILE)"
    )


def last_sync(records: Records) -> SyncResult | None:
    """Return what the last run did."""
    said = records.kept("last_sync")
    try:
        return None if said is None else msgspec.json.decode(said, type=SyncResult)
    except msgspec.MsgspecError:
        return None  # of another version


@dataclass(slots=True)
class _Run:
    records: Records
    centre: Centre
    parts: Path
    watch: Watch
    upload_only: bool = False
    result: SyncResult = field(default_factory=SyncResult)
    cursor: Cursor = field(init=False)  # of this run; what is kept of it lags behind what was refused
    _key: SigningKey = field(init=False)
    part: int = PART
    _keeps_cursor: bool = True
    _is_list_whole: bool = True  # what the centre names now is what the list's digest says
    _refused_statements: set[str] = field(default_factory=set)
    _has_read_all: bool = False
    _has_pleaded: bool = False
    _named: set[bytes] = field(
        default_factory=set
    )  # by the lists of this run, whatever becomes of the cursor
    _sessions: int = 0
    _done: int = 0  # up to which place of the list an answer was worked off
    _seen_first: bool = False
    _to_come: dict[str, int] = field(default_factory=dict)
    full: str = ""  # why the centre takes no more

    def __post_init__(self) -> None:
        self._key = self.centre.key
        self.part = min(PART, max(SMALL_PART, int(self.records.kept("part") or PART)))
        self.result.started, self.result.url = now(), self.centre.url
        self.cursor = Cursor(
            int(self.records.kept("cursor_place") or 0), str(self.records.kept("cursor_digest") or "0" * 16)
        )

    def run(self) -> None:
        """Talk until nothing is left on either side."""
        self.records.cut(self._key)
        if (store := self.records.store) is not None:
            self.result.zone = store.name
            if store.own != bytes(self._key.verify_key):
                raise CentreRefuses(of_another_key(store))
        self._measure_unsent(self.result.lag_before)
        self._measure_unsent(self.result.lag_after)
        while self._round():
            pass
        if self.upload_only:
            return  # what has come in part stays for whoever downloads
        with contextlib.suppress(SessionOver):  # the next run has another session
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
        # A restored centre hears first what it has forgotten to have said: it judges uploads by that.
        waits = not self._has_read_all and bool(self._unheard())
        self.upload_only = self.upload_only and not waits
        offers = [] if waits else self.records.offers(MAX_OFFERS)
        before, receipts = self.cursor, self.records.received()
        # Only now is it known which statements the list does not name.
        unheard = self._unheard() if self._has_read_all else []
        answer = self._open(before, offers, unheard)
        if answer.fork:
            self._fork(answer)
            return True
        if answer.restart:
            self._restart()
            return True
        stood = self._standing()
        if unheard:
            self.records.set_heard(map(statement_id, unheard))
        self._look_at(answer, before)
        if not self.upload_only:
            self._look_at_versions(answer)  # after an update what was left out is asked for again
        try:
            self._upload(answer, offers)
            if not self.upload_only:
                self._download(answer, before)
        except SessionOver:
            self._sessions = self._sessions + 1 if self._standing() == stood else 0
            if self._sessions > MAX_SESSIONS:
                raise CentreRefuses(f"{self.centre.url} forgets its sessions at once") from None
            return True
        self._sessions = 0
        if self.upload_only:
            return bool(self.records.offers(1) or self.records.uncut()) and self._standing() != stood
        self._move_on(answer, before)
        if not answer.more:
            self._has_read_all = True
            self._doubt(receipts)
            if self._keeps_cursor:
                # It has them, and the list has come to its end: what it did not name now it named before.
                self.records.set_at_centre(_not_wanted(answer, offers))
        forgotten = bool(self._unheard())
        left = answer.more or bool(self.records.offers(1)) or bool(self.records.uncut()) or forgotten
        got_on = self._standing() != stood or (forgotten and not unheard) or (waits and not answer.more)
        if left and answer.more and not got_on:
            raise CentreRefuses(f"{self.centre.url} says that there is more, and gives nothing")
        return left and got_on

    def _doubt(self, receipts: Sequence[bytes]) -> None:
        """Offer again what has a receipt and is not in the list, which has come to its end: the centre went
        back to a backup from after our cursor and before the receipt.
        """
        unlisted = set(receipts) & set(self.records.received()) - self._named
        if unlisted:
            self.watch(f"the centre has lost {len(unlisted)} segments: offering them again")
            self.records.offer_again(unlisted)

    def _standing(self) -> tuple[object, ...]:
        """Return what changes while a run gets on."""
        result = self.result
        moved = (result.segments_up, result.segments_down, result.statements)
        return (*moved, self.cursor, self.records.unsent(), self._unheard(), self.records.epoch)

    def _unheard(self) -> list[bytes]:
        """Return the next statements that a centre which was restored from a backup has forgotten."""
        return self.records.unheard(MAX_STATEMENTS, STATEMENTS_AT_ONCE)

    def _open(self, cursor: Cursor, offers: Sequence[Offer], statements: Sequence[bytes]) -> SyncAnswer:
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
            statements=[base64.b64encode(data).decode() for data in statements],
            left_out=self.records.left_out(),
            doubted=[id_.hex() for id_ in self.records.doubted(MAX_DOUBTED)],
            software=f"shala-agent {__version__}",
        )
        try:
            answer = self.centre.open(request)
        except CentreRefuses as error:
            if error.status != 403 or (again := self._plead(cursor, offers)) is None:
                raise
            return again
        if answer.nonce:
            self.records.keep(nonce=answer.nonce)
        if answer.zone not in ("", self.result.zone):
            if (again := self._plead(cursor, offers)) is None:
                raise CentreRefuses(
                    f"{self.centre.url} has this server in the zone '{answer.zone}', this is"
                    f" '{self.result.zone}' (shala-agent enrol)"
                )
            return again
        return answer

    def _plead(self, cursor: Cursor, offers: Sequence[Offer]) -> SyncAnswer | None:
        """Open with the centre's own word that this server belongs to its zone: one that was restored may
        have forgotten it. Return None where that was said already, or nothing is known that could be.
        """
        word = self.records.own_enrolment()
        if word is None or self._has_pleaded:
            return None
        self._has_pleaded = True
        return self._open(cursor, offers, [word])

    def _look_at(self, answer: SyncAnswer, before: Cursor) -> None:
        """Note what is to come. Raises CentreRefuses for an answer that cannot be one."""
        end = before.place if answer.cursor is None else answer.cursor.place
        goes_on = [item.place for item in answer.items] == list(range(before.place + 1, end + 1))
        if not goes_on or not (answer.items or answer.cursor in (None, before)):
            raise CentreRefuses(f"{self.centre.url} gives a list of arrivals that does not go on from ours")
        digest = before.digest
        for item in answer.items:
            digest = _next_digest(digest, item.id)
        self._is_list_whole = answer.cursor is None or digest == answer.cursor.digest
        store = self.records.store
        self._to_come = {
            item.id: item.size
            for item in answer.items
            if not item.statement and store is not None and store.lacks(bytes.fromhex(item.id))
        }
        self.result.lag_after.more = answer.more
        if not self._seen_first:
            self._seen_first = True
            lag = self.result.lag_before
            lag.segments_down, lag.bytes_down = len(self._to_come), sum(self._to_come.values())
            lag.more = answer.more

    def _look_at_versions(self, answer: SyncAnswer) -> None:
        versions = f"{__version__} {answer.software}"
        if versions != self.records.kept("versions"):
            self.records.ask_anew()
            self.records.keep(versions=versions)

    def _move_on(self, answer: SyncAnswer, before: Cursor, done: int | None = None) -> None:
        """Keep the cursor as far as everything before it is here or noted down: all of the answer, or what
        was done of it when the line was cut. What was refused for good is never passed, nor a list that is
        not what its digest says: the next run reads on from there.
        """
        if answer.cursor is None:
            return
        digest, end, reached = before.digest, before, answer.cursor if done is None else before
        for item in answer.items:
            digest = _next_digest(digest, item.id)
            if done is not None and item.place > done:
                continue
            reached = Cursor(item.place, digest)
            if item.id in self._refused_statements:
                self._keeps_cursor = False
            elif self._keeps_cursor:
                end = reached
        if done is not None and not self._is_list_whole:
            return
        self.cursor = answer.cursor if done is None else reached
        if not self._is_list_whole:
            self._keeps_cursor = False
            reason = "the list of arrivals up to it is not what its digest says"
            self.result.refused.append(Refused(answer.items[-1].id, "down", reason))
        elif end != before:
            self.records.keep(cursor_place=end.place, cursor_digest=end.digest)
            # Not before: what a cursor that is not kept has passed, a centre may lose and nobody notices.
            passed = answer.items[: end.place - before.place]
            self.records.set_at_centre(bytes.fromhex(item.id) for item in passed)

    def _fork(self, answer: SyncAnswer) -> None:
        self.result.forks += 1
        if self.result.forks > MAX_FORKS or answer.number >= 1 << 52:
            raise CentreRefuses(f"{self.centre.url} takes every epoch of this server for a copy's")
        self.watch("another server speaks with this one's key: going on in a new epoch")
        # The nonce is of the old epoch's conversation.
        self.records.keep(number=max(int(self.records.kept("number") or 0), answer.number), nonce="")
        self.records.renew()
        # Maybe it is the centre that went back, to before what it named when the last run was cut.
        self._begin_anew()

    def _restart(self) -> None:
        self.result.restarts += 1
        if self.result.restarts > MAX_RESTARTS:
            raise CentreRefuses(f"{self.centre.url} wants to begin anew again and again")
        self.watch("the centre has lost its memory: offering everything again")
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Believe nothing of what the centre is known to have, and read its list from the beginning."""
        self.upload_only = False
        self.records.offer_all()
        self.records.doubt_statements()
        self.records.forget_left_out()
        self.cursor, self._keeps_cursor, self._has_read_all = Cursor(), True, False
        self.records.keep(cursor_place=0, cursor_digest=self.cursor.digest)

    # -- up --------------------------------------------------------------------------------------------------

    def _upload(self, answer: SyncAnswer, offers: Sequence[Offer]) -> None:
        offered = {offer.id.hex(): offer for offer in offers}
        # Of what it wants besides, the centre's disk has hurt its own.
        found = [
            (offered.get(one.id) or self.records.offer(bytes.fromhex(one.id)), one.offset)
            for one in answer.wanted
        ]
        wanted = [(offer, offset) for offer, offset in found if offer is not None]
        # Not more than a receipt: until the list names them our cursor does not vouch for them.
        self.records.set_received(_not_wanted(answer, offers))
        too_much: set[bytes] = set()  # authors of whom the centre takes no more
        for number, (offer, offset) in enumerate(wanted, 1):
            segment = self.records.read(offer.id)
            if segment is None:
                self.result.refused.append(Refused(offer.id.hex(), "up", DAMAGED))
                continue
            author = segment.header.key
            if author in too_much:
                continue
            self.watch(f"up: segment {number} of {len(wanted)}")
            try:
                self._send(segment, offset)
                if offer.id.hex() not in offered:
                    self.records.set_at_centre([offer.id])  # the list has named it long ago
            except CentreFull as error:
                self.full = str(error)
                too_much.add(author)
                if len(too_much) >= FULL_TRIES:
                    return
            except CentreRefuses as error:
                if error.status not in (400, 413, 422):
                    raise
                # Of this one segment: the others go all the same.
                self._refuse_up(offer.id, str(error))

    def _send(self, segment: Segment, offset: int) -> None:
        id_, data = segment.id, segment.data
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
                self.result.segments_up += 1
                self.result.records_up += len(segment.entries)
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

    def _download(self, answer: SyncAnswer, before: Cursor) -> None:
        """Get what is named; what has come before a cut is not named again."""
        self._done = before.place
        try:
            self._download_items(answer)
        except BaseException:
            self._move_on(answer, before, self._done)
            raise

    def _download_items(self, answer: SyncAnswer) -> None:
        store = self.records.store
        statements: list[Item] = []
        for item in answer.items:
            if item.statement:
                statements.append(item)
                continue
            # What a segment's author may do was said before it came.
            self._state(statements)
            statements = []
            id_ = bytes.fromhex(item.id)
            self._named.add(id_)
            if store is None or store.lacks(id_):
                self.watch(
                    f"down: {len(self._to_come)} segments, {sum(self._to_come.values()) / 1e6:.1f} MB left"
                )
                self._fetch(item.id, item.size)
            self._to_come.pop(item.id, None)
            self._done = item.place
        self._state(statements)

    def _state(self, items: Sequence[Item]) -> None:
        """Keep statements; one that is wrong is left out alone."""
        if not items:
            return
        good = [data for item in items if (data := self._statement(item)) is not None]
        try:
            self.result.statements += self.records.state(good, from_centre=True)
        except StatementRefused:
            for data in good:
                try:
                    self.result.statements += self.records.state([data], from_centre=True)
                except StatementRefused as error:
                    self._refuse_statement(statement_id(data).hex(), str(error))
        self.records.set_heard(map(statement_id, good))

    def _statement(self, item: Item) -> bytes | None:
        try:
            data = base64.b64decode(item.statement, validate=True)
        except (ValueError, binascii.Error):
            data = b""
        if statement_id(data).hex() != item.id:
            self._refuse_statement(item.id, "it is not what its id says")
            return None
        return data

    def _refuse_statement(self, id_: str, reason: str) -> None:
        self._refused_statements.add(id_)
        self.result.refused.append(Refused(id_, "down", f"a statement: {reason}"))

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
        if self._is_list_whole:  # else it is read again, and may then name another one
            self.records.leave_out(bytes.fromhex(id_), size, int(time.time()), reason[:300])

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
        if (store := self.records.store) is not None and store.is_to_mend(found):
            raise SegmentRefused(HOLLOW)  # it is kept, and whole once the order to forget has come, too
        self.result.segments_down += 1
        self.result.records_down += header.last - header.first + 1

    # -- what could not be had -------------------------------------------------------------------------------

    def _ask_again(self) -> None:
        """Ask again for what could not be had: once a day when something else has moved, for it may have been
        mended at the centre, and at once after an update of either side.
        """
        at_once = AGAIN_AT_ONCE if self.result.moved else 0
        just_now = {one.id for one in self.result.refused}
        for one in self.records.to_ask_again(int(time.time()), ASK_AGAIN, at_once):
            if one.id.hex() in just_now:
                continue
            store = self.records.store
            # What is here and to be mended may never have been at the centre.
            was_named = store is not None and not store.has(one.id)
            self._fetch(one.id.hex(), one.size)
            if was_named and store is not None and not store.lacks(one.id):
                self.records.set_at_centre([one.id])

    def _tidy(self) -> None:
        """Remove parts of segments that nobody names any more."""
        if self.parts.is_dir():
            for path in self.parts.iterdir():
                path.unlink()


def _not_wanted(answer: SyncAnswer, offers: Sequence[Offer]) -> list[bytes]:
    wanted = {one.id for one in answer.wanted}
    return [offer.id for offer in offers if offer.id.hex() not in wanted]


def _gets_on(receipt: Receipt, offset: int, size: int) -> bool:
    return offset < receipt.offset <= size


def _next_digest(digest: str, id_: str) -> str:
    """Return the digest of the list of arrivals that is longer by one id."""
    return hashlib.sha256(bytes.fromhex(digest + id_)).digest()[:8].hex()
