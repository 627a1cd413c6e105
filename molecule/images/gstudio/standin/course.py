"""The course: units with lessons and activities. It is the same in every school, down to the ids."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .chance import COURSE, Oid, oid, stream
from .school import INSTALL_DAY

CREATED = int(INSTALL_DAY.timestamp()) - 86_400 * 200
MODULES = (
    ("English Beginner", "eb"),
    ("English Elementary", "ee"),
    ("Geometric Reasoning", "gr"),
    ("Proportional Reasoning", "pr"),
    ("Linear Equations", "le"),
    ("Ecosystem", "es"),
    ("Basic Astronomy", "ba"),
    ("Health and Disease", "hd"),
    ("Understanding Motion", "um"),
    ("Atomic Structure", "as"),
)
DOINGS = ("look", "try", "talk")
KINDS = ("Warm up", "Practise", "Game", "Quiz", "Story")
HINDI = ("गतिविधि", "अभ्यास")  # slugify() makes an empty word of these


@dataclass(frozen=True)
class Named:
    """A lesson or an activity: its id and its name."""

    id: Oid
    name: str


@dataclass(frozen=True)
class Unit:
    """A unit of a module, which gStudio keeps as a group."""

    id: Oid
    name: str
    module: str
    lessons: tuple[Named, ...]
    activities: tuple[tuple[Named, Named], ...]  # (lesson, activity)

    @property
    def slug(self) -> str:
        """The unit's part of a CSV's name."""
        return slugify(self.name)


def slugify(name: str) -> str:
    """Return Django 1.6's slug: ASCII letters, digits and dashes; other scripts vanish."""
    plain = name.encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def units(count: int) -> list[Unit]:
    """Return the first `count` units of the course."""
    made = []
    for i in range(count):
        module, short = MODULES[i % len(MODULES)]
        number = i // len(MODULES)
        rng = stream(COURSE, "unit", i)
        lessons = tuple(
            Named(oid("lesson", i, k, when=CREATED + i * 100 + k), f"Lesson {k + 1} {rng.choice(DOINGS)}")
            for k in range(3)
        )
        activities = []
        for k in range(9):
            word = rng.choice(HINDI) if k == 7 else rng.choice(KINDS)
            name = word if k == 7 else f"{word} {k + 1}"
            identifier = oid("activity", i, k, when=CREATED + i * 100 + 10 + k)
            activities.append((lessons[k // 3], Named(identifier, name)))
        unit_id = oid("unit", i, when=CREATED + i * 100)
        name = f"{short.upper()} Unit{number} {module}"
        made.append(Unit(unit_id, name, module, lessons, tuple(activities)))
    return made
