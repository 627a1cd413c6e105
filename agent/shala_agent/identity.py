"""Identity: which server this is, read from server_settings.py. The file is parsed and never executed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shala_agent.failure import AgentError

ID = "GSTUDIO_INSTITUTE_ID"
CODE = "GSTUDIO_INSTITUTE_ID_SECONDARY"
NAME = "GSTUDIO_INSTITUTE_NAME"
# What a server says that nobody has set up yet (facts/gstudio.md 1.3).
FACTORY = re.compile(r"sp\d*|clix-default|0*|NA", re.IGNORECASE)
MAX_SETTINGS = 1_000_000  # bytes; a real one has a few hundred


class IdentityRefused(AgentError):
    """The settings do not say which server this is; the text names the file, the field and the value."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One server: state `mz`, school code `2031017`, server id `mz17`."""

    state: str
    school_code: str
    server_id: str
    school_name: str

    @property
    def server_name(self) -> str:
        """LEVEL 2 of the archive."""
        return f"{self.school_code}-{self.server_id}"


def read_identity(source: str, file: str, states: Sequence[str], aliases: Mapping[str, str]) -> Identity:
    """Given the text of server_settings.py, return who the server is.

    `file` is only named in messages. State aliases and zero-padded codes are mapped to their one spelling.
    Raises IdentityRefused.
    """
    settings = dict(_assignments(source, file))
    server_id = _required(settings, ID, file)
    match = re.fullmatch(r"([a-z]+)([1-9][0-9]*)", server_id)
    if FACTORY.fullmatch(server_id) or match is None:
        raise _refusal(file, ID, server_id, _why_not(server_id, f"a server id such as {states[0]}17"))
    state = aliases.get(match[1], match[1])
    if state not in states:
        known = ", ".join(states)
        raise _refusal(
            file, ID, server_id, f"'{match[1]}' is no state (known: {known}; identity.states adds one)"
        )
    code = _required(settings, CODE, file)
    if FACTORY.fullmatch(code) or not re.fullmatch(r"[0-9]{7,8}", code):
        raise _refusal(file, CODE, code, _why_not(code, "a school code of 7 or 8 digits"))
    if len(code) == 8 and code.startswith("0"):
        code = code[1:]
    return Identity(state, code, f"{state}{match[2]}", " ".join(settings.get(NAME, "").split()))


def _assignments(source: str, file: str) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of the three settings, in the order in which Python would assign them."""
    if len(source) > MAX_SETTINGS:
        raise IdentityRefused(f"{file} is larger than {MAX_SETTINGS} bytes: that is no settings file")
    if "\0" in source:
        raise IdentityRefused(
            f"{file} holds zero bytes: it was damaged (restore it with playbooks/provision.yml)"
        )
    for statement in _statements(source.removeprefix("\ufeff"), file):
        target: ast.expr | None = None
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
        elif isinstance(statement, ast.AnnAssign):
            target = statement.target
        if not isinstance(target, ast.Name) or target.id not in (ID, CODE, NAME):
            continue
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
            shown = ast.unparse(value) if value is not None else "nothing"
            raise _refusal(file, target.id, shown, "it must be a plain text in quotes")
        yield target.id, value.value


def _statements(source: str, file: str) -> Iterator[ast.stmt]:
    try:
        yield from ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # Python 2 elsewhere in the file is none of our business: the three lines are read each for itself.
        for number, line in enumerate(source.splitlines(), 1):
            if not re.match(rf"({ID}|{CODE}|{NAME})\s*(:[^=]*)?=", line):
                continue
            try:
                yield from ast.parse(line.strip()).body
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                raise IdentityRefused(
                    f"{file} line {number}: {_shown(line.strip())} is not valid Python, often a quote in the"
                    " school's name (playbooks/provision.yml writes the file anew)"
                ) from None


def _required(settings: Mapping[str, str], name: str, file: str) -> str:
    if name not in settings:
        raise IdentityRefused(f"{file} does not set {name} (playbooks/provision.yml writes the file anew)")
    return settings[name]


def _why_not(value: str, expected: str) -> str:
    if not value.strip():
        return f"it is empty; expected {expected}"
    if "\r" in value or "\n" in value:
        return "it holds a line end (^M)"
    if "'" in value or '"' in value:
        return "it holds a quote"
    if FACTORY.fullmatch(value):
        return f"that is the factory setting; expected {expected}"
    return f"expected {expected}"


def _refusal(file: str, name: str, value: str, why: str) -> IdentityRefused:
    return IdentityRefused(f"{file}: {name} = {_shown(value)}: {why} (set it with playbooks/provision.yml)")


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:77] + "...")
