"""Remake: the centre's records made anew from the segments, in steps between which others write.

After a fork, a revocation, a redaction or an update that knows other types. Records are only reports here:
segments go by as ever, and nobody waits until a zone of half a million records has been gone through.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from shala_agent.segment import Segment
from shala_agent.store import Store

AT_ONCE = 50  # segments that are looked up at once
# Seconds in the transaction that has made it necessary: for most zones that is all.
FIRST_STEP = 1.0
# Seconds of each further step, and between two: a writer that waits looks every 0.1 s, and is let in.
STEP, PAUSE = 0.3, 0.2
IDLE = 5.0  # seconds until it is looked again whether there is something to do
# What is noted before the first segment is applied: that there are records of before, that there are none.
CLEARING, _CLEAR = b"", b"\0"
READERS_WAIT = 10.0  # seconds that somebody who wants to read the records goes on making them himself
_log = logging.getLogger("uvicorn.error")


class CentralStore(Store):
    """The store of a zone at the centre."""

    _began: float | None = None  # when the first segment was applied in this transaction

    def rebuild(self, progress: Callable[[int], None] | None = None) -> None:
        """Begin to make the records anew; `Zones.remake_for` does what is left."""
        self.stale = False
        ((before,),) = self.database.query("SELECT remade FROM zone WHERE id = ?", (self.zone,))
        self._note(CLEARING)
        if before is None:  # else whoever is at it goes on: forks upon forks do not hold up all others
            self.go_on(FIRST_STEP)

    def go_on(self, seconds: float) -> bool:
        """Go on making the records anew for so long; return whether more is left. The zone is locked.

        When all is cleared, segments are applied in the order of their ids; what arrives meanwhile is applied
        when it arrives, and again: twice is as good as once.
        """
        end = time.monotonic() + seconds
        ((remade,),) = self.database.query("SELECT remade FROM zone WHERE id = ?", (self.zone,))
        if remade == CLEARING:
            if not self._clear(end):
                return True
            remade = _CLEAR
        while remade is not None:
            rows = self.database.query(
                "SELECT id FROM segment WHERE zone = ? AND held IS NULL AND id > ? ORDER BY id LIMIT ?",
                (self.zone, remade, AT_ONCE),
            )
            for (id_,) in rows:
                remade = bytes(id_)
                if (segment := self.read(remade)) is None:
                    _log.error("segment %s: its bytes are damaged on the disk here", remade.hex())
                    self._note(CLEARING)  # without it a fork may be none
                    return True
                super()._apply(segment)
                if time.monotonic() > end:
                    self._note(remade)
                    return True
            if len(rows) < AT_ONCE:
                remade = None
        self._note(None)
        return False

    def _apply(self, segment: Segment) -> None:
        """Apply a segment, or leave it to the steps where there are too many of them: of a device that nobody
        knew until now, say.
        """
        if self._began is None:
            self._began = time.monotonic()
        elif time.monotonic() - self._began > FIRST_STEP:
            self.stale = True
        if not self.stale:
            super()._apply(segment)

    def _clear(self, end: float) -> bool:
        """Forget records until all are forgotten, or the time is over; return whether all are."""
        while rows := self.database.query(
            "SELECT zone, type, key FROM record WHERE zone = ? LIMIT 500", (self.zone,)
        ):
            self.database.many(
                "DELETE FROM record WHERE zone = ? AND type = ? AND key = ?", list(map(tuple, rows))
            )
            if time.monotonic() > end:
                return False
        self.tables.clear()
        return True

    def _note(self, remade: bytes | None) -> None:
        self.database.query("UPDATE zone SET remade = ? WHERE id = ?", (remade, self.zone))
