"""The records that shala and its peer are both given: students' visits, the same for a seed everywhere.

A visit is 313 bytes as a JSON array of its fields, as in facts/sync.md 3.1: who, what, of which kind, with
which score, and 200 characters of words, as compressible as what a learning platform notes of a visit.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import NamedTuple

FIRST_MOMENT = 1_760_000_000  # seconds since 1970
_PAYLOAD = 200  # characters
_CONTENTS, _WORDS = 200, 400  # so that the peer sends 190 bytes for a visit: facts/sync.md 3.2
_KINDS = ("video", "audio", "exercise", "document", "game")


class Visit(NamedTuple):
    """One visit. `user` and `id` are 32 hexadecimal digits, as the peer wants its keys to be."""

    id: str
    user: str
    learner: str
    content_id: str
    kind: str
    score: float
    payload: str


def user_ids(number: int) -> list[str]:
    """Return the ids of so many students."""
    chance = random.Random("users")
    return [_hex(chance) for _ in range(number)]


def learner_name(number: int) -> str:
    """Return the name of the student at this place of `user_ids`."""
    return f"mz7-student-{number:05d}"


def visits(records: int, seed: int = 1, *, of: int) -> Iterator[Visit]:
    """Yield so many visits of so many students; another seed makes others."""
    chance = random.Random(f"visits {seed}")
    fixed = random.Random("contents")
    contents = [_hex(fixed) for _ in range(_CONTENTS)]
    words = [_word(fixed) for _ in range(_WORDS)]
    users = user_ids(of)
    for _ in range(records):
        user = chance.randrange(len(users))
        yield Visit(
            _hex(chance),
            users[user],
            learner_name(user),
            chance.choice(contents),
            chance.choice(_KINDS),
            chance.randrange(1000) / 10,
            _text(chance, words),
        )


def raw_bytes(visit: Visit) -> int:
    """Return how many bytes a visit has as a JSON array, without any key of a database."""
    return len(json.dumps(visit[1:]))


def _word(chance: random.Random) -> str:
    return "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 9)))


def _text(chance: random.Random, words: list[str]) -> str:
    return " ".join(chance.choices(words, k=70))[:_PAYLOAD]


def _hex(chance: random.Random) -> str:
    return f"{chance.getrandbits(128):032x}"
