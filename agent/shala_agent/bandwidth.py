"""Bandwidth: how many bytes may go now, by a token bucket whose rate depends on the time of the day."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable

from shala_agent.config import SyncConfig

BURST = 1.0  # seconds' worth of bytes that may go at once after a rest


class Bandwidth:
    """A token bucket. `rate` says how many bytes per second may go at this moment, 0 for any number."""

    def __init__(self, rate: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._room = 0.0
        self._last = clock()

    def take(self, size: int) -> float:
        """Note that `size` bytes go, and return how many seconds to wait before anything more does."""
        now, rate = self._clock(), self._rate()
        passed, self._last = now - self._last, now
        if not rate:
            self._room = 0.0
            return 0.0
        self._room = min(rate * BURST, self._room + passed * rate) - size
        return max(0.0, -self._room / rate)


def unlimited() -> Bandwidth:
    """Return a bucket without a bottom."""
    return Bandwidth(lambda: 0)


def rate_now(config: SyncConfig, minute: int | None = None) -> int | None:
    """Return the limit in bytes per second at a minute of the day (now, by the server's clock); 0 for none,
    None inside a closed window.
    """
    if minute is None:
        now = datetime.datetime.now().astimezone()
        minute = now.hour * 60 + now.minute
    for window in config.windows:
        begin, until = _minute(window.begin), _minute(window.until)
        inside = begin <= minute < until if begin < until else minute >= begin or minute < until
        if inside:
            return None if window.closed else window.bytes_per_second
    return config.bytes_per_second


def _minute(text: str) -> int:
    hour, _, minute = text.partition(":")
    return int(hour) * 60 + int(minute)
