"""Refusals: why the server of zone sync does not do what it was asked, with the status that says so."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from shala_agent.wire import Receipt


class Refusal(Exception):
    """Ends a request: nothing was changed. The text is for a person."""

    def __init__(
        self,
        status: int,
        text: str,
        *,
        receipt: Receipt | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.receipt = receipt
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Return the answer's body; where a part of a segment was refused it reads as a receipt, too."""
        receipt = msgspec.to_builtins(self.receipt) if self.receipt is not None else {}
        return msgspec.json.encode({"error": str(self), **receipt})
