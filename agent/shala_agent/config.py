"""The agent's configuration, /etc/shala/agent.toml: read once, checked as a whole, with messages that say
the way out.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec

from shala_agent.failure import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Document = TypeVar("Document", bound=msgspec.Struct)

CONFIG_PATH = Path("/etc/shala/agent.toml")

Minutes = Annotated[
    int, msgspec.Meta(ge=0, le=10_080, description="a whole number of minutes, at most a week")
]
SomeMinutes = Annotated[
    int, msgspec.Meta(ge=1, le=10_080, description="a whole number of minutes, 1 to a week")
]
Folder = Annotated[
    str, msgspec.Meta(pattern=r"^/[^\x00-\x1f]*\Z", description='an absolute path in quotes, "/like/this"')
]
FolderOrNone = Annotated[
    str,
    msgspec.Meta(pattern=r"^(/[^\x00-\x1f]*)?\Z", description='an absolute path in quotes, or "" for none'),
]
Word = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z", description="a name of letters, digits, '_', '.' and '-'"
    ),
]
State = Annotated[
    str, msgspec.Meta(pattern=r"^[a-z]{2,8}\Z", description='a state code in small letters, such as "mz"')
]

# As the role central takes them (tasks/serve.yml): names in an inventory have underscores.
HOST = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])"
# Without TLS only to the machine itself: names of children travel here.
PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
TLS = rf"https://{HOST}(:{PORT})?"
LOOPBACK = rf"http://(127\.0\.0\.1|localhost|\[::1\])(:{PORT})?"
Url = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^({TLS}(/[\x21-\x7e]*)?|{LOOPBACK}/?)?\Z",
        description='an address such as "https://centre.example.org", or "" for the one of the enrolment',
    ),
]
Rate = Annotated[
    int, msgspec.Meta(ge=0, le=1 << 30, description="a whole number of bytes per second, 0 for no limit")
]
Megabytes = Annotated[
    int, msgspec.Meta(ge=0, le=10_000_000, description="a whole number of megabytes, 0 for none")
]
TimeOfDay = Annotated[
    str, msgspec.Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d\Z", description='a time of the day, such as "08:30"')
]

# For who wrote another type, and who is told no more than the name of the right one.
_EXAMPLES = {
    "`int`": "such as 5",
    "`float`": "such as 5.0",
    "`str`": 'such as "text"',
    "`array`": 'a list, such as ["one", "two"]',
    "`object`": "a section: its name in brackets, its settings on the lines below",
}

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
        msgspec.Meta(pattern=r"^([a-z_][a-z0-9_-]*)?\Z", description='the name of a group, or "" for none'),
    ] = "shala-pull"
    data: Folder = "/home/core/data"
    code: Folder = "/home/core/code"
    assessments: Folder = "/home/core/assesment-datastore"
    unplatform: FolderOrNone = ""
    # What the operator adds to the catalogue (shala_agent.extension); there need be no such file.
    catalogue: Folder = "/etc/shala/catalogue.toml"


class IdentityConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which states there are, which spellings mean the same, and what the inventory calls this server."""

    states: Annotated[list[State], msgspec.Meta(min_length=1, description='a list such as ["mz", "rj"]')] = (
        msgspec.field(default_factory=lambda: ["mz", "rj", "ct", "tg"])
    )
    aliases: dict[State, State] = msgspec.field(default_factory=lambda: {"cg": "ct", "ts": "tg"})
    server_name: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^([0-9]{7,8}-[a-z]+[1-9][0-9]*)?\Z", description='such as "2031017-mz17", or ""'
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
    """Of how many collections the spool still knows what changed: the centre then need not ask for all.

    An unchanged file is read again after `reread_days` (0: never), at most `reread_mb` in one collection.
    """

    changes_kept: Annotated[
        int, msgspec.Meta(ge=1, le=10_000, description="a whole number from 1 to 10000")
    ] = 400
    reread_days: Annotated[
        int, msgspec.Meta(ge=0, le=3650, description="a whole number of days, 0 for never")
    ] = 90
    reread_mb: Annotated[
        int, msgspec.Meta(ge=1, le=10_000_000, description="a whole number of megabytes, 1 or more")
    ] = 500


class SpoolConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How much the spool may hold (0: no limit), and what must stay free on its disk."""

    quota_mb: Megabytes = 0
    min_free_mb: Megabytes = 500


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the figures for Prometheus' node_exporter are written after each chain; "" for nowhere."""

    file: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^(/[^\x00-\x1f]*\.prom)?\Z",
            description='a path that ends with .prom, "/like/this.prom", or "" for none',
        ),
    ] = ""


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
    page: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^(/[^\x00-\x1f]*)?\Z",
            description='an absolute path in quotes, or "" for progress.html in paths.state',
        ),
    ] = ""
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
    spool: SpoolConfig = msgspec.field(default_factory=SpoolConfig)
    metrics: MetricsConfig = msgspec.field(default_factory=MetricsConfig)
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
    config = parsed(raw, file, Config)
    _refuse_contradictions(config, file)
    return config


def parsed(raw: bytes, file: str, kind: type[Document]) -> Document:
    """Given the bytes of a file of settings, return it as a `kind`. Raises UsageError."""
    if raw.startswith(codecs.BOM_UTF8):
        raise UsageError(f"{file} begins with a byte order mark (save the file as UTF-8 without one)")
    try:
        document = tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: byte {error.start} is not UTF-8 (save the file as UTF-8)") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from None
    _refuse_unknown(document, kind, file, "")
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise UsageError(_explained(error, document, kind, file)) from None


def missing_places(config: Config) -> Iterator[str]:
    """Yield which files are to be read or written and cannot be: mostly a slip of the pen."""
    page = Path(config.sync.page)
    if config.sync.page and not page.parent.is_dir():
        yield f"sync.page = '{page}': there is no folder {page.parent} (make it, or correct the path)"
    if config.sync.page and page.is_dir():
        yield f"sync.page = '{page}': that is a folder (name a file in it: '{page}/progress.html')"
    if problem := unusable_authority(config):
        yield problem


def unusable_authority(config: Config) -> str:
    """Return why no certificate can be checked against sync.ca_file, or "". No sync begins then."""
    import ssl

    named = f"sync.ca_file = '{config.sync.ca_file}'"
    if not config.sync.ca_file:
        return ""
    if not Path(config.sync.ca_file).is_file():
        return f'{named}: there is no such file (correct the path, or "" for none)'
    try:
        ssl.create_default_context(cafile=config.sync.ca_file)
    except ssl.SSLError:
        return f'{named}: it holds no certificate in PEM (put that of your authority there, or "" for none)'
    except OSError as error:
        return f"{named}: it cannot be read: {error.strerror} (run as root?)"
    return ""


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
        elif get_origin(kind) is dict and isinstance(value, dict):
            row = get_args(kind)[1]
            for key, inner in value.items():
                if isinstance(row, type) and issubclass(row, msgspec.Struct) and isinstance(inner, dict):
                    _refuse_unknown(inner, row, file, f"{prefix}{name}.{key}.")
        elif get_origin(kind) is list and isinstance(value, list):
            row = get_args(kind)[0]
            for number, inner in enumerate(value):
                if isinstance(row, type) and issubclass(row, msgspec.Struct) and isinstance(inner, dict):
                    _refuse_unknown(inner, row, file, f"{prefix}{name}.{number}.")


def _explained(error: msgspec.ValidationError, document: dict[str, Any], kind: Any, file: str) -> str:
    """Turn msgspec's message into: file, field, value, what it should be."""
    message, _, where = str(error).partition(" - at ")
    if "missing required field" in message:
        field = re.findall(r"`([^`]+)`", message)[-1]
        path = ".".join([*re.findall(r"\w+", where), field])
        return f"{file}: {path} is missing ({'write: format = 1' if path == 'format' else 'add it'})"
    if where.startswith("`key"):
        kind, where = _of_keys(kind, where)
        return f"{file}: {where}: {_way_out(kind, message)}"
    keys: list[str] = []
    value: Any = document
    for key in re.findall(r"\[\.\.\.\]|[A-Za-z_]+|\d+", where.strip("`$")):
        if key == "[...]":  # msgspec does not say which row of a table it means
            row = get_args(kind)[1]
            key = next((name for name, table in value.items() if not _converts(table, row)), "")  # noqa: PLW2901
            value, kind = value.get(key), row
        elif isinstance(value, list) and key.isdigit():
            value = value[int(key)] if int(key) < len(value) else None
            kind = get_args(get_args(kind)[0] if get_origin(kind) is Annotated else kind)[0]
        elif isinstance(value, dict):
            value = value.get(key)
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                kind = {field.name: field.type for field in msgspec.structs.fields(kind)}.get(key)
        keys.append(key)
    return f"{file}: {'.'.join(keys)} = {_shown(value)}: {_way_out(kind, message)}"


def _way_out(kind: Any, message: str) -> str:
    """Return what a setting should be: by its description, else by what msgspec says."""
    inner = () if get_origin(kind) in (dict, list) else get_args(kind)
    for one in (kind, *inner):
        if one is bool:
            return "expected true or false"
        for meta in getattr(one, "__metadata__", ()):
            if meta.description:
                return f"expected {meta.description}"
        if get_origin(one) is Literal:
            return f"expected one of: {', '.join(map(str, get_args(one)))}"
    example = next((text for name, text in _EXAMPLES.items() if name in message.partition(", got ")[0]), "")
    return message[0].lower() + message[1:] + (f" ({example})" if example else "")


def _of_keys(kind: Any, where: str) -> tuple[Any, str]:
    """Return the type that the names in a table have, and which table it is."""
    name = re.findall(r"\w+", where)[-1]
    for field in msgspec.structs.fields(kind):
        if field.name == name:
            return get_args(field.type)[0], f"a name in {name}"
    return kind, name


def _converts(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def without_password(text: str) -> str:
    """Return a text in which all of URLs before the last @ is masked: a password may have / and @ itself."""
    return re.sub(r"(?s)//.*@", "//***@", text)


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
    text = without_password(repr(value))  # it has no place there, and is not shown
    return text if len(text) <= 80 else text[:77] + "..."
