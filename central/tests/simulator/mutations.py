"""Mutations: the faults by which other systems lose data, put into ours for a run. Each must be found.

No production code knows of them: they replace functions of it from here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import msgspec
import shala_agent.state
import shala_agent.sync
import shala_central.exchange
import shala_central.server
from shala_agent.merge import State
from shala_agent.segment import Entry, read_segment
from shala_agent.wire import Cursor
from shala_central import arrivals


@contextlib.contextmanager
def lowered_counters() -> Iterator[None]:
    """Morango (facts/sync.md 3.3): whoever uploads brings a stale view along, and by it the receiver's
    counters go down. Here: the count of what has arrived, to what the device has seen of it.
    """

    def answer(zones: Any, device: Any, request: Any, key: bytes) -> Any:
        if request.offers:
            with zones.database.writing() as session:
                place, digest = request.cursor.place, bytes.fromhex(request.cursor.digest)
                if place < arrivals.newest(session, device.zone)[0]:
                    parameters = (device.zone, place)
                    session.query("DELETE FROM arrival WHERE zone = ? AND place > ?", parameters)
                    session.query(
                        "UPDATE zone SET place = ?, digest = ? WHERE id = ?", (place, digest, device.zone)
                    )
        return honest(zones, device, request, key)

    honest = shala_central.exchange.answer
    called = next(name for name, value in vars(shala_central.server).items() if value is honest)
    with mock.patch.object(shala_central.server, called, answer):
        yield


@contextlib.contextmanager
def lowered_own_counter() -> Iterator[None]:
    """The same the other way round: after an upload the device counts its own changes from where the centre
    was before.
    """
    upload = shala_agent.sync._Run._upload

    def stale(run: Any, answer: Any, offers: Any) -> None:
        records = run.records
        before = records.counter - records.uncut() - len(answer.wanted)
        upload(run, answer, offers)
        if answer.wanted and not records.uncut():
            with records._transaction():
                records._set_meta("counter", max(0, before))

    with mock.patch.object(shala_agent.sync._Run, "_upload", stale):
        yield


@contextlib.contextmanager
def greatest_seen() -> Iterator[None]:
    """KA Lite: a page is the first so many of what is new, in any order, and whoever gets it has from then on
    all up to the greatest of them. (There a hundred records; here a page of the run, so that runs stay small.)
    """

    def since(session: Any, zone: int, place: int) -> Any:
        pages = arrivals.MAX_ITEMS
        with mock.patch.object(arrivals, "MAX_ITEMS", 1 << 30):
            items, _, _ = honest(session, zone, place)
        items = sorted(items, key=lambda item: item.id)[:pages]
        if not items:
            return [], None, False
        last = max(item.place for item in items)
        rows = session.query("SELECT digest FROM arrival WHERE zone = ? AND place = ?", (zone, last))
        more = last < arrivals.newest(session, zone)[0]
        return items, Cursor(last, bytes(rows[0][0]).hex()), more

    honest = arrivals.since
    with mock.patch.object(shala_central.exchange.arrivals, "since", since):
        yield


@contextlib.contextmanager
def modification_time() -> Iterator[None]:
    """Sahana: what is new is what was changed later, by its author's clock, than a second after the youngest
    that one has.
    """

    def since(session: Any, zone: int, place: int) -> Any:
        youngest = max((_changed(session, id_) for id_ in _ids(session, zone, place)), default=None)
        items, cursor, more = honest(session, zone, place)
        if youngest is not None:
            items = [
                item
                for item in items
                if item.statement or _changed(session, bytes.fromhex(item.id)) >= youngest + _SECOND
            ]
        return items, cursor, more

    honest = arrivals.since
    with mock.patch.object(shala_central.exchange.arrivals, "since", since):
        yield


_SECOND = 100_000  # model.NUMBERS: the simulator's clock field counts in these


def _ids(session: Any, zone: int, place: int) -> list[bytes]:
    rows = session.query(
        "SELECT id FROM arrival WHERE zone = ? AND place <= ? AND kind = 'segment'", (zone, place)
    )
    return [bytes(id_) for (id_,) in rows]


def _changed(session: Any, id_: bytes) -> int:
    """Return when the youngest entry of a segment was written, by its author's clock."""
    rows = session.query("SELECT data FROM segment WHERE id = ?", (id_,))
    times = [0]
    for _, raw in read_segment(bytes(rows[0][0])).numbered():
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            times.append(msgspec.msgpack.decode(raw, type=Entry).at)
    return max(times)


@contextlib.contextmanager
def receiver_wins() -> Iterator[None]:
    """Morango: where two have written, what is here stays and what comes is taken to be replaced."""

    def merged(state: Any, entries: Any) -> State:
        found = honest(state, entries)
        if len(found.siblings) > 1 and state.siblings:
            return State(state.siblings[:1], found.seen)
        return found

    honest = shala_agent.state.merged
    with mock.patch.object(shala_agent.state, "merged", merged):
        yield


@contextlib.contextmanager
def trusted_receipts() -> Iterator[None]:
    """A receipt is believed for ever: nobody looks whether the list has come to name what it was for."""
    with mock.patch.object(shala_agent.sync._Run, "_doubt", return_value=None):
        yield


MUTATIONS: dict[str, tuple[Callable[[], AbstractContextManager[None]], set[str]]] = {
    # and the invariants of which one must be found to be broken
    "lowered counters": (lowered_counters, {"I6"}),
    "lowered own counter": (lowered_own_counter, {"I6"}),
    "greatest seen": (greatest_seen, {"I1", "I15"}),
    "modification time": (modification_time, {"I1", "I15"}),
    "receiver wins": (receiver_wins, {"I1", "I2"}),
    "trusted receipts": (trusted_receipts, {"I1", "I2"}),
}
