"""Merge: the state of one record as a pure function of the set of its entries, whatever order they came in.

Of a record's entries those live that no other one has seen (its siblings; nearly always one). What is shown
is decided by the policy of its type. The loser of a true conflict stays as a sibling until somebody who has
seen both writes anew. No clock is believed: causality first, then depth, then the author's log id
(docs/protocol.md, section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec

Value = dict[str, Any]
Name = tuple[str, str]  # type and key of a record
Policy = Literal["latest", "max", "union", "append"]
Vector = Mapping[bytes, int]  # log id -> counter


@dataclass(frozen=True, slots=True)
class RecordType:
    """What is known of a type of record: how its siblings become one value, and which record it waits for."""

    name: str
    schema: int
    policy: Policy
    needs: Callable[[str], Name] | None = None  # by its key
    problem: Callable[[str, Value], str] | None = None  # why a value is none of this type, or ""


class Sibling(NamedTuple):
    """An entry that no other one has seen. `value` is the JSON text of an object, None for a delete."""

    log: bytes
    counter: int
    depth: int
    at: int
    schema: int
    value: str | None

    @property
    def rank(self) -> tuple[bool, int, bytes, int]:
        """By what the winner is decided: an edit outlives a delete that did not know of it."""
        return (self.value is not None, self.depth, self.log, self.counter)


class State(NamedTuple):
    """What the entries of one record come to: siblings, the winner first, and all that they have seen."""

    siblings: tuple[Sibling, ...]
    seen: Vector


EMPTY = State((), {})


def add(state: State, sibling: Sibling, context: Vector) -> State:
    """Return the state with one more entry. The same one again, and one that is known of, change nothing."""
    if not state.seen and not context:  # nearly always: the first entry of a record
        return State((sibling,), {sibling.log: sibling.counter})
    if state.seen.get(sibling.log, 0) >= sibling.counter:
        return state
    seen = dict(state.seen)
    for log, counter in context.items():
        if seen.get(log, 0) < counter:
            seen[log] = counter
    seen[sibling.log] = max(seen.get(sibling.log, 0), sibling.counter)
    living = [
        one for one in state.siblings if one.log != sibling.log and context.get(one.log, 0) < one.counter
    ]
    return State(tuple(sorted([*living, sibling], key=_rank, reverse=True)), seen)


def shown(state: State, policy: Policy) -> str | None:
    """Return the value of a record as JSON text, None if it is deleted."""
    values = [one.value for one in state.siblings if one.value is not None]
    if not values:
        return None
    if policy in ("latest", "append") or len(values) == 1:
        return values[0]
    # The lowest rank first, so that what cannot be joined is the winner's.
    return written(join(map(parsed, reversed(values)), policy))


def join(values: Iterable[Value], policy: Policy) -> Value:
    """Return the fields of all values, each joined; later values win where nothing can be joined."""
    joined: Value = {}
    for value in values:
        for name, new in value.items():
            joined[name] = _join_field(joined[name], new, policy) if name in joined else new
    return joined


def is_conflict(state: State, policy: Policy) -> bool:
    """Return whether somebody's word is not shown: siblings that differ and cannot be joined."""
    if len(state.siblings) < 2 or policy in ("max", "union"):
        return False
    values = {one.value for one in state.siblings}
    return len({None if value is None else written(parsed(value)) for value in values}) > 1


def next_value(current: str | None, new: Value, policy: Policy) -> str | None:
    """Return what is to be written when a source says `new` of a record that shows `current`; None for
    nothing. Fields that only others know (a newer schema's) are carried on.
    """
    if current is None:
        return written(new)
    if policy == "append":
        return None
    before = parsed(current)
    after = join((before, new), policy) if policy in ("max", "union") else {**before, **new}
    return None if after == before else written(after)


def parsed(text: str | bytes) -> Value:
    """Return the value that a JSON text holds. Raises msgspec.MsgspecError."""
    return _decoder.decode(text)


def written(value: Value) -> str:
    """Return a value as JSON text, the same for equal values."""
    return _encoder.encode(value).decode()


_decoder = msgspec.json.Decoder(Value)
_encoder = msgspec.json.Encoder(order="sorted")


def _rank(sibling: Sibling) -> tuple[bool, int, bytes, int]:
    return sibling.rank


def _join_field(old: Any, new: Any, policy: Policy) -> Any:
    if policy == "union" and isinstance(old, list) and isinstance(new, list):
        return _union(old, new)
    if policy == "max" and _comparable(old, new):
        return max(old, new)
    return new


def _comparable(old: Any, new: Any) -> bool:
    numbers = isinstance(old, int | float) and isinstance(new, int | float)
    return numbers or (isinstance(old, str) and isinstance(new, str) and _is_time(old) and _is_time(new))


def _is_time(text: str) -> bool:
    """Return whether a text is a time as ISO 8601 writes it: such texts compare as the times do."""
    return len(text) >= 10 and text[4] == "-" and text[7] == "-" and text[:4].isdigit()


def _union(old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    kept = {_encoder.encode(one): one for one in (*old, *new)}
    return [kept[key] for key in sorted(kept)]
