"""What the agent says when it cannot go on: one line for a person, with the way out."""

from __future__ import annotations


class AgentError(Exception):
    """Something that stops a command; the text is shown after `shala-agent: ` (exit code 1)."""


class UsageError(AgentError):
    """A wrong argument or configuration (exit code 2)."""


class Busy(AgentError):
    """Somebody else holds the lock that this needs."""


class Stopped(BaseException):
    """SIGTERM or SIGINT came: leave everything as it is, cleanly.

    Not an Exception, so that nothing swallows it. `left` says what is left.
    """

    left = "nothing half done is kept, the next run goes on here"
