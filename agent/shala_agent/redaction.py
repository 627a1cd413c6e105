"""Redaction: texts without names of people, keys and passwords, for who looks at a server from afar.

What is let through is known: words that stand in the agent's own messages, in those of the system and in its
configuration, numbers, and times. All else becomes a sign, the same for the same word within one archive, so
that one can see what belongs together; from the sign nobody gets back to the word.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from shala_agent.config import Config, without_password

MASK = "***"

_TOKEN = re.compile(r"[^\s\"'`,;:!?()\[\]{}<>=|]+")
# Numbers with a unit or a sign, times, versions; a longer number may be that of a telephone.
_PLAIN = re.compile(
    r"[-+~]?\d{1,8}([.]\d{1,6})?(%|[kMGT]?B|ms|s|min|h|x)?"
    r"|\d{4}-\d\d-\d\d(T\d\d)?|\d\d([.]\d{1,6})?Z?|\d{1,3}([.]\d{1,3}){2}"
)
_SECRET = re.compile(r"(?i)pass|secret|token|key|credential")
# Users are called by a server's id; an example of one stands in a message.
_OF_SERVER = re.compile(r".*-[a-z]{2,8}\d+")
_LONG = 40  # letters and digits: a longer word is a key or a digest, whatever it looks like
# Words of Docker, systemd, SQLite and the databases that matter and are not of the agent.
_SYSTEM = """
    client daemon docker engine socket connection refused reset timed out error errno
    no such file or directory
    permission denied database disk is full image malformed locked readonly operational attempt to write a
    could not connect server closed unexpectedly fatal role does not exist started starting stopped failed
    result exit code main process exited status succeeded deactivated successfully consumed cpu time
    expecting property name enclosed value delimiter column char extra data unterminated string invalid
    unit triggered finished killed signal memory out of oom watchdog broken pipe input output i/o
"""


class Redaction:
    """Gives texts their form for one archive; the signs of another archive are others.

    `known` are words of this server that may be read too.
    """

    def __init__(self, config: Config, *known: str) -> None:
        self._salt = secrets.token_bytes(16)
        self._words = _own_words().union(_tokens(_SYSTEM), _of_config(config), *map(_tokens, known))

    def text(self, said: str) -> str:
        """Return a text in which only what is known can be read."""
        return _TOKEN.sub(lambda match: self._word(match[0]), said)

    def document(self, value: Any) -> Any:
        """Return a document, all texts in it, names of fields too, in that form."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(name)): self.document(inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.document(inner) for inner in value]
        return value

    def _word(self, token: str) -> str:
        core = token.strip(".-/*…")
        if not core or _PLAIN.fullmatch(core):
            return token
        if len(core) <= _LONG and core.lower() in self._words:
            return token
        sign = hashlib.blake2b(core.encode("utf-8", "surrogatepass"), digest_size=4, key=self._salt)
        return f"<{sign.hexdigest()}>"


def without_secrets(value: Any) -> Any:
    """Return a configuration in which what is called a password, key or token is masked, in URLs too."""
    if isinstance(value, dict):
        return {
            name: MASK if _SECRET.search(str(name)) and inner else without_secrets(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(inner) for inner in value]
    if isinstance(value, str) and "://" in value:
        return re.sub(r"[?#].*", "", without_password(value))  # in this order: it may hold these, too
    return value


@cache
def _own_words() -> frozenset[str]:
    """Return the words of the agent's messages: those of its texts, not of what explains the code."""
    found: set[str] = set()
    for module in Path(__file__).parent.glob("*.py"):
        if module.name == Path(__file__).name:
            continue
        tree = ast.parse(module.read_bytes())
        explained = {id(text) for node in ast.walk(tree) for text in _docstring(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in explained:
                found.update(_tokens(node.value))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id.lower())  # a field of a document
    for number in errno.errorcode:
        found.update(_tokens(os.strerror(number)))
    return frozenset(word for word in found if not _OF_SERVER.fullmatch(word))


def _docstring(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
        first = node.body[0]
        if isinstance(first, ast.Expr):
            yield first.value


def _of_config(config: Config) -> Iterator[str]:
    """Yield what the operator has written: places, the names of the server and of databases."""
    for kind in (config.paths, config.container, config.identity, config.databases, config.metrics):
        for value in msgspec.structs.asdict(kind).values():
            for one in value if isinstance(value, (list, tuple)) else [value]:
                yield from _tokens(str(one))


def _tokens(text: str) -> Iterator[str]:
    for token in _TOKEN.findall(text):
        core = token.strip(".-/*…").lower()
        if core:
            yield core
