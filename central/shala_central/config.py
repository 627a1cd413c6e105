"""The centre's configuration: /etc/shala/central.toml, checked as a whole before anything is done."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from shala_agent.config import LOOPBACK, PORT, TLS, parsed
from shala_agent.failure import UsageError as AgentUsageError

from shala_central.failure import UsageError, refused

CONFIG_PATH = Path("/etc/shala/central.toml")

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
_BUCKET_URL = r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*/?)?$"
_ITEM = re.compile(r"((gstudio|unplatform)/)?[^/\s]+")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ArchiveSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where the archive lives."""

    root: str = "/srv/shala/archive"
    # Below a server's folder: what these hold is the same at many schools, and moves once for all of them.
    shared_items: tuple[str, ...] = (
        "gstudio/media",
        "gstudio/assessment-media/repository",
        "gstudio/rcs-repo",
    )
    # age public keys (age1...) of the researchers. With one or more, what comes of sensitive items is kept
    # encrypted to all of them; the centre cannot read it again.
    recipients: tuple[str, ...] = ()
    sensitive_items: tuple[str, ...] = (
        "postgres-dump",
        "gstudio-exported-users-analytics-csvs",
        "activity-timestamp-csvs",
    )
    # Of earlier collections stay all of so many days, then the newest of so many months, then of each year.
    keep_days: Count = 30
    keep_months: Count = 24
    # Everything is read again within so many days (shala archive scrub, daily).
    scrub_days: Positive = 30
    # Empty: content stays on this disk. s3://bucket/prefix: it goes there as well, or in the end only there.
    objects_url: Annotated[
        str, msgspec.Meta(pattern=_BUCKET_URL, description='such as "s3://bucket/prefix", or "" for none')
    ] = ""
    # A server that is not AWS, e.g. https://s3.example.org; http only on this machine.
    objects_endpoint: Annotated[
        str,
        msgspec.Meta(
            pattern=rf"^(https?://(\[[0-9a-fA-F:.]+\]|[^\s/@\":\[\]]+)(:{PORT})?/?)?$",
            description='such as "https://s3.example.org", without a password, or "" for AWS',
        ),
    ] = ""
    objects_region: Annotated[
        str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,63}$", description='a region such as "us-east-1"')
    ] = "us-east-1"
    # Of mode 0600: access_key_id and secret_access_key.
    objects_credentials: str = "/etc/shala/s3.toml"
    # Of what scrubbing looks up in the bucket by name and size, so many percent are read back as well.
    objects_scrub_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 5
    # disk: the tree of plain files, as ever. on-demand: none; a checkout fetches what it needs.
    view: Annotated[str, msgspec.Meta(pattern="^(disk|on-demand)$", description='"disk" or "on-demand"')] = (
        "disk"
    )

    @property
    def bucket(self) -> tuple[str, str]:
        """Return name and prefix of the bucket, ("", "") without one."""
        name, _, prefix = self.objects_url.removeprefix("s3://").partition("/")
        return name, prefix.strip("/")


class PullSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How collections are fetched."""

    user: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^[a-z_][a-z0-9_-]{0,31}$", description='the name of a user, such as "shala-pull"'
        ),
    ] = "shala-pull"
    identity_file: str = "/var/lib/shala/ssh/id_ed25519"
    known_hosts: str = "/var/lib/shala/ssh/known_hosts"
    parallel: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    connect_timeout_seconds: Annotated[int, msgspec.Meta(ge=1, le=300)] = 5
    # A server that sends nothing for so long is gone.
    stall_seconds: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 60
    # Kilobits per second and server; 0 = as fast as it goes.
    bandwidth_kbps: Count = 0
    # For one server, from its first to its last byte; 0 = none. What has arrived by then is kept.
    deadline_minutes: Count = 240
    rsync: str = "rsync"
    # What ssh prefers (docs/decisions/0005); "" leaves it to OpenSSH, which takes a post-quantum one.
    key_exchange: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^[a-z0-9@.,-]{0,200}$",
            description='what ssh -Q kex names, with commas, or "" for its own choice',
        ),
    ] = "curve25519-sha256"


class Limits(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a collection may hold at most. A sender is not trusted: beyond these it is quarantined.

    The largest school seen holds 20 GB in 30,000 files (facts/gstudio.md 5); these are twenty times it.
    """

    max_files: Positive = 1_000_000
    max_bytes: Positive = 400_000_000_000
    max_path_bytes: Positive = 1024
    max_depth: Positive = 64
    # refuse | allow: two names that differ only in case or accents' spelling cannot both live on a USB disk.
    case_collisions: Annotated[
        str, msgspec.Meta(pattern="^(refuse|allow)$", description='"refuse" or "allow"')
    ] = "refuse"


class ZoneSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The central server of zone sync (shala serve)."""

    # Or postgresql://user@host/name; a password belongs into ~/.pgpass.
    database: str = "sqlite:////var/lib/shala/zones.sqlite"
    key_file: str = "/var/lib/shala/zones.key"
    # What devices are told at enrolment, e.g. https://sync.example.org; empty: as they came.
    url: Annotated[
        str,
        msgspec.Meta(
            pattern=rf"^({TLS}|{LOOPBACK})?\Z",  # what sync.url of agent.toml takes
            description='an address such as "https://sync.example.org", without a path, or "" for as they'
            " came",
        ),
    ] = ""
    # TLS is nginx's, in front.
    listen: Annotated[
        str,
        msgspec.Meta(pattern=rf"^[^\s/@\"]+:{PORT}$", description='HOST:PORT, such as "127.0.0.1:8470"'),
    ] = "127.0.0.1:8470"
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    # Of one device, per worker: far above what a link to a school carries, far below what hurts.
    requests_per_second: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    # What a device may bring over its life, and what a zone may hold: a school's ten years are some 100 MB.
    max_device_bytes: Positive = 4_000_000_000
    max_zone_bytes: Positive = 100_000_000_000
    # Segments of devices that are not known here (yet), or revoked: how many a device may bring, a zone hold.
    max_device_held: Positive = 2_000
    max_zone_held: Positive = 20_000
    # Each copied disk or restored backup costs a device one; a revocation names them all.
    max_device_epochs: Positive = 1_000
    # With less free on the disk of the database (SQLite's) no segment is taken.
    min_free_bytes: Count = 1_000_000_000
    token_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 30


class CentralConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """central.toml as a whole."""

    format: Annotated[int, msgspec.Meta(ge=1, le=1, description="1, the format this shala knows")]
    archive: ArchiveSettings = msgspec.field(default_factory=ArchiveSettings)
    pull: PullSettings = msgspec.field(default_factory=PullSettings)
    limits: Limits = msgspec.field(default_factory=Limits)
    zones: ZoneSettings = msgspec.field(default_factory=ZoneSettings)
    fleet: str = "/etc/shala/fleet.json"


def read_config(path: Path) -> CentralConfig:
    """Given a path, return the configuration in it.

    Raises UsageError with one line that says what to correct.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist (playbooks/central.yml makes it; --config names another one)"
        ) from None
    except PermissionError:
        raise UsageError(refused(path)) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    try:
        config = parsed(raw, str(path), CentralConfig)
    except AgentUsageError as error:
        raise UsageError(str(error)) from None
    for name, value in (
        ("archive.root", config.archive.root),
        ("pull.identity_file", config.pull.identity_file),
        ("pull.known_hosts", config.pull.known_hosts),
        ("fleet", config.fleet),
        ("zones.key_file", config.zones.key_file),
        ("archive.objects_credentials", config.archive.objects_credentials),
    ):
        if not value.startswith("/") or not value.isprintable() or '"' in value:
            raise UsageError(
                f"{path}: {name} = '{value}' is not an absolute path (write it in full, without quote marks)"
            )
    if problem := _bucket_problem(config.archive) or _encryption_problem(config.archive):
        raise UsageError(f"{path}: {problem}")
    return config


def _bucket_problem(settings: ArchiveSettings) -> str:
    """Return why what is said about the bucket cannot be used, or ""."""
    endpoint = urlsplit(settings.objects_endpoint)
    if endpoint.scheme == "http" and endpoint.hostname not in _LOOPBACK:
        return "archive.objects_endpoint would send children's data in clear (write https://)"
    if settings.objects_url:
        return ""
    if settings.objects_endpoint:
        return "archive.objects_endpoint without archive.objects_url (name the bucket: s3://bucket/prefix)"
    if settings.view == "on-demand":
        return 'archive.view = "on-demand" needs archive.objects_url (there is only this disk)'
    return ""


def _encryption_problem(settings: ArchiveSettings) -> str:
    """Return why what is said about encryption cannot be used, or ""; a slip would leave data in clear."""
    if not settings.recipients:
        return ""
    from shala_central.bag import GSTUDIO_ITEMS
    from shala_central.ciphertext import item_of, recipient_problem

    for number, recipient in enumerate(settings.recipients, 1):
        if problem := recipient_problem(recipient):
            return f"archive.recipients, entry {number}: {problem}"
    if not settings.sensitive_items:
        return "archive.recipients without archive.sensitive_items (name items, e.g. postgres-dump)"
    shared = {item_of(item.strip("/")) for item in settings.shared_items}
    for item in settings.sensitive_items:
        if not _ITEM.fullmatch(item) or ("/" not in item and item not in GSTUDIO_ITEMS):
            return (
                f"archive.sensitive_items: '{item}' is not an item (e.g. postgres-dump; one that is new"
                " to shala with its platform, gstudio/...)"
            )
        if item in shared or item in {of_all.partition("/")[2] for of_all in shared}:
            return (
                f"archive.sensitive_items: '{item}' is shared between schools"
                " (take it out of archive.shared_items)"
            )
    return ""
