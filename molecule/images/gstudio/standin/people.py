"""The users of a server: the ten that are alike everywhere, and the school's own. All names are invented."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from .chance import stream
from .school import INSTALL_DAY, IST, School, Sizes, instant

COLOURS = (
    "green",
    "blue",
    "red",
    "black",
    "white",
    "yellow",
    "orange",
    "violet",
    "brown",
    "golden",
    "silver",
    "pink",
)
THINGS = (
    "apple",
    "bat",
    "rhino",
    "tiger",
    "mango",
    "lotus",
    "peacock",
    "river",
    "kite",
    "drum",
    "eagle",
    "banyan",
)
SHARED = (
    "green-apple",
    "blue-bat",
    "red-kite",
    "black-rhino",
    "white-lotus",
    "yellow-mango",
    "orange-tiger",
    "violet-river",
    "brown-drum",
)
SYLLABLES = ("la", "ri", "mo", "ta", "ni", "sa", "vi", "ka", "du", "pe", "zo", "mi", "ra", "ju")
UTF8_NAMES = ("आशा", "रवि", "గీత", "కిరణ్")  # the CSVs are UTF-8: some names must need it


@dataclass(frozen=True)
class User:
    """One row of auth_user."""

    id: int
    username: str
    password: str
    first_name: str
    last_name: str
    last_login: datetime
    date_joined: datetime
    is_superuser: bool = False


def stored_password(username: str) -> str:
    """Return what looks like Django 1.6's stored form; nothing was ever hashed to it."""
    rng = stream("password", username)
    salt = "".join(rng.choice("abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789") for _ in range(12))
    return f"pbkdf2_sha256$12000${salt}${base64.b64encode(rng.randbytes(32)).decode()}"


def _user(user_id: int, username: str, joined: datetime, superuser: bool = False) -> User:
    rng = stream("person", username)
    first = "".join(rng.choice(SYLLABLES) for _ in range(rng.randrange(2, 4))).capitalize()
    if rng.random() < 0.15:
        first = rng.choice(UTF8_NAMES)
    last = "".join(rng.choice(SYLLABLES) for _ in range(2)).capitalize()
    login = joined + timedelta(seconds=rng.randrange(86_400 * 100), microseconds=rng.randrange(1_000_000))
    return User(user_id, username, stored_password(username), first, last, login, joined, superuser)


def factory_users() -> list[User]:
    """Return the users that every image brings: administrator and the nine of sp100."""
    joined = datetime(2017, 6, 1, 9, 30, tzinfo=IST)
    users = [_user(1, "administrator", joined, superuser=True)]
    return users + [_user(2 + i, f"{name}-sp100", joined) for i, name in enumerate(SHARED)]


def school_users(school: School, sizes: Sizes, day: int = 0) -> list[User]:
    """Return the school's own users on a day; every third day one more joins, and some log in every day."""
    names = [f"{colour}-{thing}" for colour in COLOURS for thing in THINGS]
    # A server that is still called sp100 must not have the shared ones twice.
    names = [name for name in names if name not in SHARED]
    stream(school.server_id, "usernames").shuffle(names)
    count = sizes.users + day // 3
    users = []
    for i in range(count):
        joined = (
            INSTALL_DAY
            if i < sizes.users
            else datetime.fromtimestamp(instant((i - sizes.users + 1) * 3), IST)
        )
        number = "" if i < len(names) else str(i // len(names))
        users.append(
            _user(school.first_user_id + i, f"{names[i % len(names)]}{number}-{school.server_id}", joined)
        )
    for past in range(1, day + 1):
        rng = stream(school.server_id, "logins", past)
        for i in rng.sample(range(count), max(1, count // 20)):
            users[i] = replace(
                users[i], last_login=datetime.fromtimestamp(instant(past, rng.randrange(18_000)), IST)
            )
    return users
