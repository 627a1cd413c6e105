"""Rate: a token bucket for each device (or address), so that one that runs wild does not hold up the others.

Kept by each worker for itself: a limit that costs a write to the database would do the harm it is against.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

_BURST_SECONDS = 10  # what a device that was silent may send at once
_MAX_DEVICES = 10_000


class Rate:
    """At most so many requests per second of each device, and ten seconds' worth at once."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._burst = per_second * _BURST_SECONDS
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, device: bytes) -> bool:
        """Take a request of a device into account; return whether it may be done."""
        at = time.monotonic()
        with self._lock:
            left, before = self._buckets.pop(device, (self._burst, at))
            left = min(self._burst, left + (at - before) * self._per_second)
            allowed = left >= 1
            self._buckets[device] = (left - 1 if allowed else left, at)
            if len(self._buckets) > _MAX_DEVICES:
                self._buckets.popitem(last=False)
        return allowed
