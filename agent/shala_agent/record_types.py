"""The types of records that shala knows: key, schema version, merge policy, what each waits for.

A type that is not here is stored and forwarded, and applied after an update that knows it.
"""

from __future__ import annotations

import hashlib

from shala_agent.merge import RecordType, Value

MAX_VALUE_FIELDS = 2000  # a progress row has 49 columns and one per activity


def _user_of(key: str) -> tuple[str, str]:
    """Return the account that a key begins with: `<user>/...`."""
    return ("account", key.partition("/")[0])


def _problem(key: str, value: Value) -> str:
    if not key.partition("/")[0]:
        return f"its key '{key}' names no user"
    if len(value) > MAX_VALUE_FIELDS:
        return f"it has {len(value)} fields, more than {MAX_VALUE_FIELDS}"
    return ""


TYPES = {
    known.name: known
    for known in (
        # key: user name. Fields: user_id, school_code, first_name, ...
        RecordType("account", 1, "latest", None, _problem),
        # key: <user name>/<unit>. The counts of a progress CSV only grow.
        RecordType("progress", 1, "max", _user_of, _problem),
        # key: <user name>/<digest of the visit>. A visit has happened: nothing changes it.
        RecordType("activity", 1, "append", _user_of, _problem),
        # key: <user name>/<assessment taken>
        RecordType("assessment", 1, "latest", _user_of, _problem),
        # key: <user name>/<course>
        RecordType("course_progress", 1, "max", _user_of, _problem),
    )
}
NEEDED = frozenset({"account"})  # the types that others wait for

# One more with every other change of what entries come to: here, in shala_agent.state, merge or fork.
RULES = 2


def types_digest() -> bytes:
    """Return what is another one when these types differ: records are to be made anew then."""
    said = [
        (known.name, known.schema, known.policy, known.needs is not None, known.problem is not None)
        for known in TYPES.values()
    ]
    return hashlib.sha256(repr((RULES, MAX_VALUE_FIELDS, sorted(NEEDED), sorted(said))).encode()).digest()
