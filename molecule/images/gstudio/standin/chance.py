"""Reproducible chance: every random choice comes from a stream named after what it decides."""

from __future__ import annotations

import hashlib
import random

COURSE = "course"  # the seed of all that every school has alike

WORDS = (
    "light",
    "water",
    "plant",
    "star",
    "ratio",
    "angle",
    "sound",
    "seed",
    "river",
    "market",
    "cloud",
    "letter",
    "story",
    "number",
    "circle",
    "window",
    "garden",
    "teacher",
    "question",
    "answer",
    "school",
    "morning",
    "evening",
    "field",
    "paper",
    "music",
    "engine",
    "metal",
    "forest",
    "moon",
    "shadow",
    "rain",
    "wind",
    "kitchen",
    "lemon",
    "ice",
    "sugar",
    "salt",
    "wheel",
    "bridge",
    "road",
    "train",
    "village",
    "city",
    "map",
    "travel",
    "listen",
    "speak",
    "read",
    "write",
    "count",
    "measure",
    "compare",
    "observe",
    "explain",
    "predict",
    "draw",
    "build",
    "share",
    "play",
    "practise",
    "remember",
    "discover",
    "wonder",
)


class Oid(str):
    """A MongoDB ObjectId as 24 hex digits; becomes a real ObjectId where BSON is written."""

    __slots__ = ()


def stream(*names: object) -> random.Random:
    """Given the names of a decision, return its own random stream: everywhere and always the same."""
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return random.Random(int.from_bytes(digest[:16], "big"))


def oid(*names: object, when: int) -> Oid:
    """Return the ObjectId of what `names` say, created at epoch second `when` (its first eight digits)."""
    return Oid(f"{when:08x}{hashlib.sha256(repr(names).encode()).hexdigest()[:16]}")


def prose(rng: random.Random, words: int) -> str:
    """Return that many invented words, in sentences."""
    chosen = rng.choices(WORDS, k=words)
    for start in range(0, words, 12):
        chosen[start] = chosen[start].capitalize()
        last = min(start + 11, words - 1)
        chosen[last] += "."
    return " ".join(chosen)
