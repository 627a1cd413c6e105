"""The agent's configuration, /etc/shala/agent.toml: read once, checked as a whole, with messages that say
the way out.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec

from shala_agent.failure import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_PATH = Path("/etc/shala/agent.toml")

Minutes = Annotated[
    int, msgspec.Meta(ge=0, le=10_080, description="a whole number of minutes, at most a week")
]
SomeMinutes = Annotated[
    int, msgspec.Meta(ge=1, le=10_080, description="a whole number of minutes, 1 to a week")
]
Folder = Annotated[
    str, msgspec.Meta(pattern=r"^/[^\x00-\x1f]*$", description='an absolute path in quotes, "/like/this"')
]
FolderOrNone = Annotated[
    str,
    msgspec.Meta(pattern=r"^(/[^\x00-\x1f]*)?$", description='an absolute path in quotes, or "" for none'),
]
Word = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="a name of letters, digits, '_', '.' and '-'"
    ),
]
State = Annotated[
    str, msgspec.Meta(pattern=r"^[a-z]{2,8}$", description='a state code in small letters, such as "mz"')
]

Url = Annotated[
    str,
    msgspec.Meta(
        # Without TLS only to the machine itself: names of children travel here.
        pattern=r"^(https://[A-Za-z0-9.-]+(:\d{1,5})?(/[\x21-\x7e]*)?"
        r"|http://(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?/?)?$",
        description='an address such as "https://centre.example.org", or "" for the one of the enrolment',
    ),
]
Rate = Annotated[
    int, msgspec.Meta(ge=0, le=1 << 30, description="a whole number of bytes per second, 0 for no limit")
]
TimeOfDay = Annotated[
    str, msgspec.Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$", description='a time of the day, such as "08:30"')
]

# gStudio's own database and the eight of qbank (facts/gstudio.md 4).
DATABASES = (
    "gstudio-mongodb", "assessment", "assessment_authoring", "hierarchy", "id", "logging", "relationship",
    "repository", "resource",
)  # fmt: skip


class ContainerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which container the platform runs in."""

    name: Word = "gstudio"


class PathsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where things are on the host."""

    state: Folder = "/var/lib/shala"
    spool: Folder = "/var/spool/shala"
    spool_group: Annotated[
        str,
        msgspec.Meta(pattern=r"^([a-z_][a-z0-9_-]*)?$", description='the name of a group, or "" for none'),
    ] = "shala-pull"
    data: Folder = "/home/core/data"
    code: Folder = "/home/core/code"
    assessments: Folder = "/home/core/assesment-datastore"
    unplatform: FolderOrNone = ""


class IdentityConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which states there are, which spellings mean the same, and what the inventory calls this server."""

    states: Annotated[list[State], msgspec.Meta(min_length=1, description='a list such as ["mz", "rj"]')] = (
        msgspec.field(default_factory=lambda: ["mz", "rj", "ct", "tg"])
    )
    aliases: dict[State, State] = msgspec.field(default_factory=lambda: {"cg": "ct", "ts": "tg"})
    server_name: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^([0-9]{7,8}-[a-z]+[1-9][0-9]*)?$", description='such as "2031017-mz17", or ""'
        ),
    ] = ""


class ChainConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How often the chain runs, and how long it may take."""

    every_minutes: SomeMinutes = 60
    deadline_minutes: Minutes = 0


class DatabasesConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is dumped."""

    mongo: list[Word] = msgspec.field(default_factory=lambda: list(DATABASES))
    timeout_minutes: SomeMinutes = 60


class DeriveConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How long one derivation may take."""

    timeout_minutes: SomeMinutes = 60


class CollectConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Of how many collections the spool still knows what changed: the centre then need not ask for all."""

    changes_kept: Annotated[
        int, msgspec.Meta(ge=1, le=10_000, description="a whole number from 1 to 10000")
    ] = 400


class WindowConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the day, by the server's clock, with a limit of its own; one that ends before it begins spans
    midnight. While a window is `closed`, the chain does not sync.
    """

    begin: TimeOfDay
    until: TimeOfDay
    bytes_per_second: Rate = 0
    closed: bool = False


class SyncConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Whether and how this server keeps its records the same as the zone's."""

    enabled: bool = False
    url: Url = ""
    ca_file: FolderOrNone = ""
    deadline_minutes: Minutes = 20
    bytes_per_second: Rate = 0
    windows: list[WindowConfig] = msgspec.field(default_factory=list)
    # Give the accounts of the zone's other servers to the local gStudio, without their passwords.
    apply_accounts: bool = False
    page: FolderOrNone = ""
    page_world_readable: bool = False


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """agent.toml as a whole; every setting has a default but `format`."""

    format: Annotated[int, msgspec.Meta(ge=1, le=1, description="1, the format this agent knows")]
    container: ContainerConfig = msgspec.field(default_factory=ContainerConfig)
    paths: PathsConfig = msgspec.field(default_factory=PathsConfig)
    identity: IdentityConfig = msgspec.field(default_factory=IdentityConfig)
    chain: ChainConfig = msgspec.field(default_factory=ChainConfig)
    databases: DatabasesConfig = msgspec.field(default_factory=DatabasesConfig)
    derive: DeriveConfig = msgspec.field(default_factory=DeriveConfig)
    collect: CollectConfig = msgspec.field(default_factory=CollectConfig)
    sync: SyncConfig = msgspec.field(default_factory=SyncConfig)


def read_config(path: Path) -> Config:
    """Given a path, return the configuration in it. Raises UsageError: file, field, value, way out."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist (playbooks/provision.yml writes it; --config names another)"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror} (run as root?)") from None
    return parse_config(raw, str(path))


def parse_config(raw: bytes, file: str) -> Config:
    """Given the bytes of agent.toml, return the configuration.

    `file` is only named in messages. Raises UsageError.
    """
    try:
        document = tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: byte {error.start} is not UTF-8 (save the file as UTF-8)") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from None
    _refuse_unknown(document, Config, file, "")
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        raise UsageError(_explained(error, document, file)) from None
    _refuse_contradictions(config, file)
    return config


def _refuse_unknown(table: dict[str, Any], struct: type[msgspec.Struct], file: str, prefix: str) -> None:
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    for name, value in table.items():
        if name not in fields:
            import difflib

            near = difflib.get_close_matches(name, fields, 1)
            way_out = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(fields)}"
            raise UsageError(
                f"{file}: {prefix}{name} = {_shown(value)}: there is no such setting ({way_out})"
            )
        kind = fields[name]
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
            _refuse_unknown(value, kind, file, f"{prefix}{name}.")


def _explained(error: msgspec.ValidationError, document: dict[str, Any], file: str) -> str:
    """Turn msgspec's message into: file, field, value, what it should be."""
    message, _, where = str(error).partition(" - at ")
    keys = re.findall(r"[A-Za-z_]+|\d+", where.strip("`$"))
    if "missing required field" in message:
        field = re.findall(r"`([^`]+)`", message)[-1]
        return f"{file}: {field} is missing (write: {field} = 1)"
    value: Any = document
    kind: Any = Config
    for key in keys:
        if isinstance(value, list) and key.isdigit():
            value = value[int(key)] if int(key) < len(value) else None
        elif isinstance(value, dict):
            value = value.get(key)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            kind = {field.name: field.type for field in msgspec.structs.fields(kind)}.get(key)
    description = next(
        (meta.description for meta in getattr(kind, "__metadata__", ()) if meta.description), None
    )
    way_out = f"expected {description}" if description else message[0].lower() + message[1:]
    return f"{file}: {'.'.join(keys)} = {_shown(value)}: {way_out}"


def _refuse_contradictions(config: Config, file: str) -> None:
    for alias, state in config.identity.aliases.items():
        if state not in config.identity.states:
            raise UsageError(
                f"{file}: identity.aliases.{alias} = '{state}': not in identity.states (add it there)"
            )
    if len(set(config.databases.mongo)) != len(config.databases.mongo):
        raise UsageError(f"{file}: databases.mongo names a database twice (leave one out)")
    for number, window in enumerate(config.sync.windows):
        if window.begin == window.until:
            raise UsageError(
                f"{file}: sync.windows.{number}: begins and ends at {window.begin}"
                " (leave it out, or make it longer)"
            )
    places = config.paths
    data = places.data.rstrip("/") + "/"
    for name, folder in (("state", places.state), ("spool", places.spool)):
        if (folder.rstrip("/") + "/").startswith(data):
            raise UsageError(
                f"{file}: paths.{name} = '{folder}': it lies inside paths.data (choose another folder)"
            )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
