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
    """An entry that no other one has seen. `value` is the JSON text of an object, None for a delete;
    `context` what it has seen itself of other logs.
    """

    log: bytes
    counter: int
    depth: int
    at: int
    schema: int
    value: str | None
    context: Vector = {}  # noqa: RUF012 - nobody changes it

    @property
    def rank(self) -> tuple[bool, int, bytes, int]:
        """By what the winner is decided: an edit outlives a delete that did not know of it."""
        return (self.value is not None, self.depth, self.log, self.counter)


class Claim(NamedTuple):
    """The word of an entry, (log, counter), that it has seen another log up to a counter."""

    upto: int
    log: bytes
    counter: int
    depth: int


class State(NamedTuple):
    """What the entries of one record come to: siblings, the winner first; of each log the greatest counter
    that is here, and what is claimed to have been seen of it beyond that.
    """

    siblings: tuple[Sibling, ...]
    seen: Vector
    claims: Mapping[bytes, tuple[Claim, ...]] = {}


EMPTY = State((), {})


def add(state: State, sibling: Sibling, context: Vector) -> State:
    """Return the state with one more entry."""
    return merged(state, [(sibling, context)])


def merged(state: State, entries: Iterable[tuple[Sibling, Vector]]) -> State:
    """Return the state with more entries, in any order; the same state where they say nothing new.

    Each log's newest entry lives unless another one has seen it. Where two claim to have seen each other,
    only the deeper one is believed: else whoever claims to have seen what another device has not written yet
    would undo all that it writes from then on.
    """
    seen, claims = dict(state.seen), dict(state.claims)
    living = {one.log: one for one in state.siblings}
    for sibling, context in entries:
        if seen.get(sibling.log, 0) < sibling.counter:
            _enter(sibling._replace(context=context), seen, living, claims)
        for log, upto in context.items():
            # Of its own log an entry has seen what came before it, whatever it says.
            if log == sibling.log:
                continue
            claim, other = Claim(upto, sibling.log, sibling.counter, sibling.depth), living.get(log)
            if other is not None and _has_seen(claim, other):
                del living[log]
            if upto > seen.get(log, 0):
                claims[log] = _with(claims.get(log, ()), claim)
    if seen == state.seen and claims == state.claims and len(living) == len(state.siblings):
        return state
    return State(tuple(sorted(living.values(), key=_rank, reverse=True)), seen, claims)


def winner(state: State) -> Sibling:
    """Return the sibling that counts; where everybody claims to have seen everybody else, a delete."""
    if state.siblings:
        return state.siblings[0]
    log = min(state.seen)
    return Sibling(log, state.seen[log], 1, 0, 1, None)


def is_claimed(state: State, log: bytes, counter: int) -> bool:
    """Return whether somebody went on from an entry that need not be here."""
    return state.seen.get(log, 0) >= counter or any(
        claim.upto >= counter for claim in state.claims.get(log, ())
    )


def _enter(
    sibling: Sibling,
    seen: dict[bytes, int],
    living: dict[bytes, Sibling],
    claims: dict[bytes, tuple[Claim, ...]],
) -> None:
    """Make an entry the newest one of its log."""
    seen[sibling.log] = sibling.counter
    living[sibling.log] = sibling
    if said := claims.pop(sibling.log, ()):
        if any(_has_seen(claim, sibling) for claim in said):
            del living[sibling.log]
        if beyond := tuple(claim for claim in said if claim.upto > sibling.counter):
            claims[sibling.log] = beyond


def _has_seen(claim: Claim, other: Sibling) -> bool:
    has_seen_it = other.context.get(claim.log, 0) >= claim.counter
    return claim.upto >= other.counter and not (has_seen_it and other.depth >= claim.depth)


def _with(claims: tuple[Claim, ...], new: Claim) -> tuple[Claim, ...]:
    """Return claims with one more, without those that say less than another one."""

    def says_more(one: Claim, other: Claim) -> bool:
        if one.log != other.log:
            return False
        return one.upto >= other.upto and one.counter >= other.counter and one.depth >= other.depth

    if any(says_more(one, new) for one in claims):
        return claims
    return tuple(sorted([*(one for one in claims if not says_more(new, one)), new]))


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
