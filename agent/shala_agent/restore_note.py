"""The note of a restore that is under way: what of it is done, and what is half done, wherever it is cut."""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec

from shala_agent import durable
from shala_agent.failure import AgentError

FILE = "restore.json"  # in the folder of the state
# What was cut longer ago is begun anew: somebody may have worked on what is there since.
GOES_ON = datetime.timedelta(days=1)


class Note(msgspec.Struct):
    """`digest` of what is brought back, and the folder `kept` with what was there before.

    A database that is `half_done` is nothing to keep, or to dump; one that is `done` is not replaced again.
    That was so in one `container`, at the time `begun`. What an earlier restore has left half done,
    `half_before`, is kept all the same, in a folder of its own.
    """

    digest: str
    kept: str
    half_done: list[str] = []
    done: list[str] = []
    container: str = ""
    begun: datetime.datetime | None = None
    half_before: list[str] = []

    @property
    def kept_half(self) -> str:
        """The folder with what was there before of a database that was half done."""
        above, _, name = self.kept.rpartition("/")
        return f"{above}/half-{name}"

    def goes_on(self, digest: str, container: str) -> bool:
        """Return whether a restore is this one: of the same files, into the same container, begun lately.

        Not whether the container has been started anew: that is what a power cut does.
        """
        if (self.digest, self.container) != (digest, container) or self.begun is None:
            return False
        return abs(datetime.datetime.now(datetime.timezone.utc) - self.begun) < GOES_ON


def read_note(state: Path) -> Note | None:
    """Return the note, None when no restore is under way. Raises AgentError."""
    file = state / FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=Note)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise AgentError(
            f"{file} cannot be read: {error} (remove it, then restore again with --yes)"
        ) from None


def write_note(state: Path, note: Note) -> None:
    """Put the note on the disk, before what it says is begun."""
    durable.write(state / FILE, msgspec.json.encode(note), mode=0o600)


def forget_note(state: Path) -> None:
    """Remove the note: what was begun is done."""
    durable.remove(state / FILE)


def half_done(state: Path) -> str:
    """Return what stands against dumping the databases: a restore that was cut; "" when there is none."""
    try:
        note = read_note(state)
    except AgentError as error:
        return str(error)
    if note is None or not note.half_done:
        return ""
    return (
        f"a restore of {', '.join(note.half_done)} was cut (run it again: shala-agent restore;"
        f" to give it up, remove {state / FILE})"
    )
