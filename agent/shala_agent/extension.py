"""Extension: what an operator adds to the catalogue or changes in it, /etc/shala/catalogue.toml.

New items, new commands, and for each item what may leave the server: no code. There need be no such file.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from shala_agent import catalogue, privacy
from shala_agent.catalogue import CARRY, LABEL, READINGS, Catalogue, Derivation, Item
from shala_agent.config import Config, parsed
from shala_agent.failure import UsageError
from shala_agent.kinds import KINDS, WORDS, Kind, csv_kind
from shala_agent.privacy import Policy
from shala_agent.reach import CODE, DATA

Text = Annotated[
    str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]+\Z", description="a text in quotes, of one line")
]
Name = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\Z",
        description="a name of letters, digits, '_', '.' and '-'",
    ),
]
Pattern = Annotated[
    str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]+\Z", description='a name with * and ?, such as "*.pem"')
]
Percent = Annotated[int, msgspec.Meta(ge=0, le=100, description="a whole number of percent, 0 to 100")]
Hours = Annotated[int, msgspec.Meta(ge=0, le=8760, description="a whole number of hours, 0 to a year")]
Minutes = Annotated[int, msgspec.Meta(ge=0, le=10_080, description="a whole number of minutes, 0 to a week")]
Inside = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^/(data|home/docker/code)(/[^\x00-\x1f\x7f]+)?\Z",
        description=f'a path in the container below {DATA} or {CODE}, "{DATA}/like-this"',
    ),
]


class ItemRow(msgspec.Struct, frozen=True, kw_only=True):
    """One item; a built-in one takes only what is about its policy, and `largest_drop`."""

    source: Inside | None = None
    about: Text = "added by the operator"
    check: Literal["any", "not-empty", "json", "csv", "sql", "tar.gz", "databases", "settings"] | None = None
    columns: list[Text] | None = None
    reading: Literal["plain", "json", "log", "fresh"] | None = None
    made_by: Name | None = None
    keep_last_good: bool | None = None
    written_once: bool | None = None
    writers: list[Text] | None = None
    sensitive: Text | None = None
    largest_drop: Percent | None = None
    restore: bool = False
    take: bool = True
    exclude: list[Pattern] = msgspec.field(default_factory=list)
    pseudonymise: list[Text] = msgspec.field(default_factory=list)
    password_hashes: bool = False
    seal: bool = False


class DerivationRow(msgspec.Struct, frozen=True, kw_only=True):
    """One derivation; a built-in one takes only `every_hours`, `timeout_minutes` and `largest_drop`."""

    command: Annotated[list[Text], msgspec.Meta(min_length=1, description="a list of words")] | None = None
    output: Inside | None = None
    about: Text = "added by the operator"
    workdir: Inside | None = None
    check: Literal["any", "not-empty", "json", "csv", "sql", "tar.gz", "databases", "settings"] | None = None
    columns: list[Text] | None = None
    done: Text | None = None
    says: Text | None = None
    makes: list[Text] | None = None
    writers: list[Text] | None = None
    every_hours: Hours | None = None
    timeout_minutes: Minutes | None = None
    largest_drop: Percent | None = None


class Extension(msgspec.Struct, frozen=True, kw_only=True):
    """catalogue.toml as a whole."""

    format: Annotated[int, msgspec.Meta(ge=1, le=1, description="1, the format this agent knows")]
    never: list[Pattern] = msgspec.field(default_factory=lambda: list(privacy.NEVER))
    seal_to: list[Text] = msgspec.field(default_factory=list)
    pseudonym_key: Annotated[
        str,
        msgspec.Meta(pattern=r"^(/[^\x00-\x1f]*)?\Z", description='an absolute path in quotes, "/like/this"'),
    ] = ""
    items: dict[Name, ItemRow] = msgspec.field(default_factory=dict)
    derivations: dict[Name, DerivationRow] = msgspec.field(default_factory=dict)


_POLICY = ("take", "exclude", "pseudonymise", "password_hashes", "seal", "largest_drop")
_TIMES = ("every_hours", "timeout_minutes", "largest_drop")
_RESERVED = ("heartbeat", *catalogue.DUMPS, "collect", "sync")


def read_catalogue(config: Config) -> Catalogue:
    """Return the catalogue of this server. Raises UsageError: file, field, value, way out."""
    path = Path(config.paths.catalogue)
    try:
        path.lstat()
    except FileNotFoundError:
        return catalogue.built_in()
    except OSError:
        pass  # said below
    return catalogue_in(path)


def catalogue_in(path: Path) -> Catalogue:
    """Return the catalogue with the rows of an operator's file. Raises UsageError."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror} (run as root?)") from None
    return extended(parsed(raw, str(path), Extension), str(path))


def known_catalogue(config: Config) -> tuple[Catalogue, str]:
    """Return the catalogue and "", or the built-in one and what is wrong with the operator's file: for all
    that need not keep to its policy. What leaves the server does.
    """
    try:
        return read_catalogue(config), ""
    except UsageError as error:
        return catalogue.built_in(), str(error)


def extended(extension: Extension, file: str) -> Catalogue:
    """Return the built-in catalogue with an operator's rows. Raises UsageError."""
    for number, key in enumerate(extension.seal_to):
        try:
            privacy.check_recipient(key)
        except ValueError as error:
            raise UsageError(f"{file}: seal_to.{number} = {key[:80]!r}: {error}") from None
    built = {item.name for item in catalogue.ITEMS}
    made = {derivation.name: derivation for derivation in catalogue.DERIVATIONS}
    derivations = [
        _changed(derivation, extension.derivations[name], file)
        if name in extension.derivations
        else derivation
        for name, derivation in made.items()
    ]
    derivations += [
        _derivation(name, row, file) for name, row in extension.derivations.items() if name not in made
    ]
    steps = {"heartbeat", *catalogue.DUMPS, *(derivation.name for derivation in derivations)}
    secret = _key(extension, file)
    items = []
    for item in catalogue.ITEMS:
        row = extension.items.get(item.name, ItemRow())
        _only(row, _POLICY, f"items.{item.name}", "the item is built in", file)
        items.append(_with_policy(item, row, extension, secret, file))
    for name, row in extension.items.items():
        if name not in built:
            items.append(_with_policy(_item(name, row, extension, steps, file), row, extension, secret, file))
    return Catalogue(tuple(items), tuple(derivations), tuple(extension.never))


def _item(name: str, row: ItemRow, extension: Extension, steps: set[str], file: str) -> Item:
    where = f"{file}: items.{name}"
    if row.source is None:
        raise UsageError(
            f'{where}: source is missing (write: source = "{DATA}/{name}"; built in:'
            f" {', '.join(item.name for item in catalogue.ITEMS)})"
        )
    _plain_path(row.source, f"{where}.source")
    if Policy(exclude=tuple(extension.never)).leaves_out(row.source.lstrip("/")):
        raise UsageError(
            f"{where}.source = {row.source!r}: such names never leave a server (`never` lists them)"
        )
    if row.made_by is not None and row.made_by not in steps:
        raise UsageError(
            f"{where}.made_by = {row.made_by!r}: no such derivation (add [derivations.{row.made_by}])"
        )
    return Item(
        name,
        row.about,
        _kind(row.check, row.columns, f"{where}.columns"),
        parts=(("", row.source),),
        reading=row.reading or READINGS[0],
        step=row.made_by or "",
        when_step_failed=CARRY if row.keep_last_good else LABEL,
        written_once=bool(row.written_once),
        writers=tuple(row.writers or ()),
        sensitive=row.sensitive or "",
        largest_drop=_or(row.largest_drop, catalogue.LARGEST_DROP),
        restore=catalogue.FILES if row.restore else "",
        not_restored="" if row.restore else f"items.{name} of {file} does not say: restore = true",
    )


def _with_policy(item: Item, row: ItemRow, extension: Extension, key: bytes, file: str) -> Item:
    where = f"{file}: items.{item.name}"
    if row.seal and not extension.seal_to:
        raise UsageError(f'{where}.seal = true: to whom? (write: seal_to = ["age1..."] at the top)')
    if row.pseudonymise and not key:
        raise UsageError(
            f'{where}.pseudonymise: there is no key (write: pseudonym_key = "/etc/shala/pseudonym.key")'
        )
    policy = Policy(
        take=row.take,
        exclude=(*extension.never, *row.exclude),
        password_hashes=row.password_hashes,
        pseudonymise=tuple(row.pseudonymise),
        recipients=tuple(extension.seal_to) if row.seal else (),
        key=key if row.pseudonymise else b"",
    )
    return replace(item, policy=policy, largest_drop=_or(row.largest_drop, item.largest_drop))


def _derivation(name: str, row: DerivationRow, file: str) -> Derivation:
    where = f"{file}: derivations.{name}"
    if name in _RESERVED:
        raise UsageError(f"{where}: that is a step of the chain already (choose another name)")
    if row.command is None or row.output is None:
        missing = "command" if row.command is None else "output"
        built = ", ".join(derivation.name for derivation in catalogue.DERIVATIONS)
        raise UsageError(f"{where}: {missing} is missing (built in: {built})")
    for field, path in (("output", row.output), ("workdir", row.workdir)):
        if path is not None:
            _plain_path(path, f"{where}.{field}")
    for field, expression in (("done", row.done), ("says", row.says)):
        try:
            re.compile(expression or "")
        except re.error as error:
            raise UsageError(f"{where}.{field} = {expression!r}: no regular expression: {error}") from None
    return Derivation(
        name,
        row.about,
        tuple(row.command),
        row.output,
        workdir=row.workdir or CODE,
        kind=_kind(row.check, row.columns, f"{where}.columns"),
        done=row.done or "",
        says=row.says or "",
        makes=tuple(row.makes or ()),
        timeout_minutes=row.timeout_minutes or 0,
        every_hours=row.every_hours or 0,
        largest_drop=_or(row.largest_drop, catalogue.LARGEST_DROP),
        writers=tuple(row.writers or ()),
    )


def _changed(derivation: Derivation, row: DerivationRow, file: str) -> Derivation:
    _only(row, _TIMES, f"derivations.{derivation.name}", "the derivation is built in", file)
    return replace(
        derivation,
        every_hours=_or(row.every_hours, derivation.every_hours),
        timeout_minutes=_or(row.timeout_minutes, derivation.timeout_minutes),
        largest_drop=_or(row.largest_drop, derivation.largest_drop),
    )


def _kind(word: str | None, columns: list[str] | None, where: str) -> Kind:
    if columns is not None and word != "csv":
        raise UsageError(f'{where} = {columns!r}: only for check = "csv" (leave it out, or write that)')
    assert word is None or word in WORDS  # noqa: S101 - both lists are ours
    return csv_kind(columns) if columns else KINDS[word or "any"]


def _key(extension: Extension, file: str) -> bytes:
    """Return the key for pseudonyms; one that is named and not there would silently take names plain."""
    if not extension.pseudonym_key:
        return b""
    try:
        with Path(extension.pseudonym_key).open("rb") as source:
            key = source.read(privacy.MAX_KEY).strip()
            open_to_others = os.fstat(source.fileno()).st_mode & 0o077
    except OSError as error:
        raise UsageError(
            f"{file}: pseudonym_key = {extension.pseudonym_key!r}: {error.strerror}"
            " (the same key on all servers of the programme: openssl rand -hex 32)"
        ) from None
    if open_to_others:
        raise UsageError(
            f"{file}: pseudonym_key = {extension.pseudonym_key!r}: others than root may read it"
            f" (chmod 600 {extension.pseudonym_key})"
        )
    if len(key) < privacy.MIN_KEY:
        raise UsageError(
            f"{file}: pseudonym_key = {extension.pseudonym_key!r}: fewer than {privacy.MIN_KEY} bytes"
            " (openssl rand -hex 32 makes one)"
        )
    return key


def _only(row: msgspec.Struct, allowed: tuple[str, ...], where: str, why: str, file: str) -> None:
    for field in msgspec.structs.fields(row):
        default: Any = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        if field.name not in allowed and getattr(row, field.name) != default:
            raise UsageError(
                f"{file}: {where}.{field.name} = {getattr(row, field.name)!r}: {why}"
                f" (here may stand: {', '.join(allowed)})"
            )


def _plain_path(path: str, where: str) -> None:
    if any(part in ("", ".", "..") for part in path.split("/")[1:]):
        raise UsageError(f"{where} = {path!r}: no '.', '..' or double '/' in it (write the path as it is)")


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
