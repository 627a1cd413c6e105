"""Privacy: what leaves the server of an item, and in which form, by the operator's policy.

A file may be left out, lose its password hashes, have columns of its CSVs replaced by a keyed hash, and be
sealed (age) to keys whose owners alone can open it. Nothing is ever taken in a plainer form than the policy
says: what cannot be treated is not taken at all.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from shala_agent.checks import MAX_FIELD, csv_lines
from shala_agent.failure import AgentError

# Names that enter no item, wherever they lie: keys of TLS and ssh, of GnuPG, lists of users with passwords.
NEVER = (
    ".gnupg", ".ssh", "id_rsa*", "id_ed25519*", "*.pem", "privkey*", "server.key", "clixserver.tiss.edu*",
    "user-csvs", "*_users.csv", ".pgpass", ".netrc", ".env",
)  # fmt: skip
SEALED = ".age"
MIN_KEY = 16  # bytes of the key for pseudonyms
MAX_KEY = 4096
PSEUDONYM = 24  # hex digits: 96 bits, no two of a nation's children share one
MAX_SQL_LINE = 16 << 20  # bytes: one row of a table; a damaged dump may have no line end in gigabytes
VERSION = 2  # of the forms below: another one, and all files are treated anew

_NO_PASSWORD = b"!"  # what Django takes for "cannot log in until a new one is set"
_HASH = re.compile(rb"\b(?:pbkdf2_sha\d+|bcrypt\w*|argon2\w*|scrypt|sha1|md5|crypt)\$[^\s',]+")
_ROLE_PASSWORD = re.compile(rb" PASSWORD '(?:[^']|'')*'")
_WILD = {"*": "[^/]*", "?": "[^/]"}
_COPY = re.compile(rb"COPY [^(]+(?: \((.*)\))? FROM stdin;")
# A copy of such a file, by its name: "dump.sql.gz", "names.csv.bak", "names.csv~"; not "records.sqlite".
_COPIED = {ending: re.compile(rf"\{ending}(?![a-z])(?=.)") for ending in (".sql", ".csv")}
_ARCHIVES = (".gz", ".tgz", ".tar", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar", ".bak")


class NotTreated(AgentError):
    """A file could not be given the form that the policy asks for: it must not be taken."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What leaves the server of one item."""

    take: bool = True
    exclude: tuple[str, ...] = ()
    password_hashes: bool = False
    pseudonymise: tuple[str, ...] = ()
    recipients: tuple[str, ...] = ()
    key: bytes = field(default=b"", repr=False)

    @property
    def suffix(self) -> str:
        """What the names of its files get."""
        return SEALED if self.recipients else ""

    @property
    def id(self) -> str:
        """A word for the form of its files, "" for plain ones: another word, another form."""
        if not (self.recipients or self.pseudonymise or self.password_hashes):
            return ""
        parts = (VERSION, self.password_hashes, self.pseudonymise, self.recipients, self._key_sign())
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    @property
    def said(self) -> str:
        """The form in words, as collection.json has it; with what tells one form from another."""
        parts = []
        if not self.take:
            parts.append("left out")
        if self.password_hashes:
            parts.append("with password hashes")
        if self.pseudonymise:
            parts.append(f"pseudonyms in {','.join(self.pseudonymise)}")
        if self.recipients:
            parts.append(f"sealed to {','.join(self.recipients)}")
        return f"{'; '.join(parts)} [{self.id}]" if self.id else "; ".join(parts)

    def leaves_out(self, relative: str) -> bool:
        """Return whether a path inside the item is excluded, itself or by a folder above it."""
        return self.excluder()(relative)

    def excluder(self) -> Callable[[str], bool]:
        """Return `leaves_out` for many paths in the order of a walk: a folder's name is looked at once."""
        names, paths = _excluding(self.exclude)
        last, outside = "", False

        def leaves_out(relative: str) -> bool:
            nonlocal last, outside
            folder, _, name = relative.rpartition("/")
            if folder != last:
                last, outside = folder, any(map(names.fullmatch, folder.split("/")))
            if outside or names.fullmatch(name):
                return True
            return paths is not None and paths.match(relative) is not None

        return leaves_out

    def refuses(self, relative: str) -> str:
        """Return why a file is not taken at all, "" when it is: what it holds cannot be given its form."""
        name = relative.rpartition("/")[2].lower()
        if not self.password_hashes and _COPIED[".sql"].search(name):
            return "may hold password hashes, and is no plain *.sql that can lose them: it was not taken"
        if self.pseudonymise and (_COPIED[".csv"].search(name) or name.endswith(_ARCHIVES)):
            return "may hold a CSV, and is none that can be given pseudonyms: it was not taken"
        return ""

    def treats(self, relative: str) -> bool:
        """Return whether a file does not go as it is."""
        return bool(self.recipients or self._forms(relative))

    def copies(self, relative: str) -> int:
        """Return how often a file lies on the disk while it is given its form, besides what comes of it."""
        return 1 + bool(self.recipients and self._forms(relative))

    def treat(self, source: Path, relative: str, target: BinaryIO, scratch: Path) -> None:
        """Write a file in the form of the policy. Raises NotTreated, OSError."""
        forms = self._forms(relative)
        if not self.recipients:
            with source.open("rb") as plain:
                forms[0](plain, target)
            return
        if forms:
            with source.open("rb") as plain, scratch.open("wb") as formed:
                forms[0](plain, formed)
            source = scratch
        try:
            with source.open("rb") as plain:
                _seal(self.recipients, plain, target)
        finally:
            scratch.unlink(missing_ok=True)

    def _forms(self, relative: str) -> list[Callable[[BinaryIO, BinaryIO], None]]:
        """Return what is done to the content of a file: nothing, or one thing by its ending."""
        name = relative.lower()
        if name.endswith(".sql") and not self.password_hashes:
            return [without_passwords]
        if name.endswith(".csv") and self.pseudonymise:
            return [lambda source, target: pseudonymised(source, target, self.pseudonymise, self.key)]
        return []

    def _key_sign(self) -> str:
        return hmac.new(self.key, b"shala policy", "sha256").hexdigest()[:12] if self.key else ""


def not_as_it_was(said: str) -> str:
    """Given the form of an item as collection.json has it (Policy.said), return why that is not what the
    platform had; "" when it is, but for password hashes.
    """
    forms = {
        "left out": "the policy left it out of the collection",
        "pseudonyms in ": "it holds pseudonyms in the place of names",
        "sealed to ": "it is sealed, only the owner of the key can open it",
    }
    parts = said.split("; ")
    return next((why for form, why in forms.items() if any(part.startswith(form) for part in parts)), "")


def without_passwords(source: BinaryIO, target: BinaryIO) -> None:
    """Copy an SQL dump without the password hashes of users and roles; it still restores."""
    rows, column = False, -1  # whether a line is a row of some table, and where that has a password
    while line := source.readline(MAX_SQL_LINE):
        if len(line) == MAX_SQL_LINE:
            raise NotTreated(f"has a line longer than {MAX_SQL_LINE} bytes: it was not taken")
        out = line
        if rows and line.startswith(b"\\."):
            rows, column = False, -1
        elif column >= 0:
            fields = line.split(b"\t")
            # A line that is not like its table is not trusted to have its password in the right place.
            if len(fields) <= column:
                raise NotTreated("holds a row of users that cannot be read: it was not taken")
            last = column == len(fields) - 1
            fields[column] = _NO_PASSWORD + (b"\n" if last and fields[column].endswith(b"\n") else b"")
            out = b"\t".join(fields)
        elif rows:
            pass
        elif match := _COPY.match(line):
            columns = [name.strip(b' "') for name in (match[1] or b"").split(b",")]
            rows, column = True, columns.index(b"password") if b"password" in columns else -1
        elif line.startswith((b"CREATE ROLE ", b"ALTER ROLE ")):
            out = _ROLE_PASSWORD.sub(b"", line)  # a role that is there keeps its own
        target.write(_HASH.sub(_NO_PASSWORD, out))


def pseudonymised(source: BinaryIO, target: BinaryIO, columns: Sequence[str], key: bytes) -> None:
    """Copy a CSV with a keyed hash in the place of each value of the columns; empty ones stay empty.

    The same value has the same pseudonym in every column, file and school that shares the key.
    """
    import csv
    import io

    if len(key) < MIN_KEY:
        raise NotTreated("there is no key for pseudonyms: it was not taken")
    csv.field_size_limit(MAX_FIELD)
    text = io.TextIOWrapper(source, encoding="utf-8", newline="")
    out = io.TextIOWrapper(target, encoding="utf-8", newline="")
    try:
        rows, writer = csv.reader(csv_lines(text), strict=True), csv.writer(out)
        header = next(rows, None)
        if header is None:  # an empty file
            return
        places = [place for place, name in enumerate(header) if name.removeprefix("\ufeff") in columns]
        if not places:
            raise NotTreated(f"has none of the columns {', '.join(columns)}: it was not taken")
        writer.writerow(header)
        for row in rows:
            for place in places:
                if len(row) != len(header):
                    raise NotTreated("has rows that are no rows of its header: it was not taken")
                if row[place]:
                    digest = hmac.new(key, row[place].encode(), "sha256").hexdigest()
                    row[place] = digest[:PSEUDONYM]
            writer.writerow(row)
        out.flush()
    except (csv.Error, UnicodeDecodeError) as error:
        raise NotTreated(f"is no CSV that can be given pseudonyms ({error}): it was not taken") from None
    finally:
        text.detach()
        out.detach()


def check_recipient(key: str) -> None:
    """Raise ValueError unless the text is a public key of age."""
    import pyrage  # type: ignore[import-untyped]

    try:
        pyrage.x25519.Recipient.from_str(key)
    except pyrage.RecipientError:
        raise ValueError("no public key of age (age1...)") from None


def _seal(recipients: Sequence[str], source: BinaryIO, target: BinaryIO) -> None:
    import pyrage

    try:
        pyrage.encrypt_io(source, target, [pyrage.x25519.Recipient.from_str(key) for key in recipients])
    except pyrage.EncryptError as error:
        # It tells of a fault of the disk in its text alone.
        if number := re.search(r"\[Errno (\d+)\]", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
        raise NotTreated(f"could not be sealed ({error}): it was not taken") from None


@lru_cache(maxsize=64)
def _excluding(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    """Return one expression for names anywhere in a path, and one for paths from their top (or None)."""
    names = [_expression(pattern) for pattern in patterns if "/" not in pattern]
    paths = [_expression(pattern) + "(?:/|$)" for pattern in patterns if "/" in pattern]
    return re.compile("|".join(names) or r"(?!)"), re.compile("|".join(paths)) if paths else None


def _expression(pattern: str) -> str:
    return "".join(_WILD.get(letter) or re.escape(letter) for letter in pattern)
