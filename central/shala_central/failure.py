"""What the centre says when it cannot go on: one line for a person, always with a way out."""

from __future__ import annotations


class CentralError(Exception):
    """Something that stops a command; the text is shown after `shala: `."""


class UsageError(CentralError):
    """The operator asked for something that does not exist or does not fit together (exit code 2)."""
