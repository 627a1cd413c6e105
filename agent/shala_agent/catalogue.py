"""The catalogue: every LEVEL 4 item and every derivation, as data.

For an item: where it is, how it is read while the platform may be writing it, how it is checked, which
step makes it, and what in it is sensitive. For a derivation: what is run, where its files appear, by which
words it says that it is done, how long it may take and when it is due. An operator adds rows with
/etc/shala/catalogue.toml (shala_agent.extension); docs/catalogue.md is made from this file. No deeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shala_agent.kinds import ANY, KINDS, Kind
from shala_agent.privacy import NEVER, VERSION, Policy
from shala_agent.reach import CODE, DATA, DATASTORE, GNOWSYS, STAGING

# Ways of reading a file while the platform may be writing it.
PLAIN = "plain"  # read again when it changed meanwhile
JSON = "json"  # read again until it parses: tools truncate and rewrite it (facts/gstudio.md 4)
LOG = "log"  # only up to its last whole line
FRESH = "fresh"  # made anew under a new name: left for the next time while somebody is still writing
READINGS = (PLAIN, JSON, LOG, FRESH)

# What becomes of an item whose step failed: the previous collection's copy, or what there is, labelled.
CARRY = "carry"
LABEL = "label"

# How an item goes back onto a server (shala_agent.restore); what does not, says why.
POSTGRESQL = "postgresql"
MONGODB = "mongodb"
FILES = "files"
SETTINGS = "settings"  # files that the platform reads at its start

LARGEST_DROP = 20  # percent: less than the last good one by more is suspect, unless the row says otherwise
ANY_DROP = 100  # for what is rotated, or made anew each time

ALL_USERS_SCRIPT = f"{CODE}/gstudio/doc/deployer/get_all_users_activity_timestamp_csvs.py"
ASSESSMENTS = f"{CODE}/qbank-gstudio-scripts/single_school_get_MIT_activity_data"
PYTHON = "/usr/bin/python"

PROGRESS_FOLDER = f"{DATA}/gstudio-exported-users-analytics-csvs"
ACTIVITY_FOLDER = f"{DATA}/activity-timestamp-csvs"
QBANK_FOLDER = f"{DATA}/qbank"
HEARTBEAT_FOLDER = f"{DATA}/system-heartbeat"
POSTGRES_DUMP = f"{DATA}/postgres-dump/pg_dump_all.sql"  # where the platform looks for it, and puts its own
OWN_POSTGRES_DUMP = f"{STAGING}/postgres-dump/pg_dump_all.sql"  # which no script of the platform moves over
DUMPED_DATABASES = f"{STAGING}/db"

GIT_LOG = "git-commit.log"  # the one item that is made while collecting


@dataclass(frozen=True, slots=True)
class Item:
    """One LEVEL 4 entry; `parts` are (LEVEL 5 folder or "", path in the container). Of two parts with one
    folder the first that is there is taken.
    """

    name: str
    about: str
    kind: Kind = ANY
    parts: tuple[tuple[str, str], ...] = ()
    reading: str = PLAIN
    step: str = ""
    when_step_failed: str = LABEL
    # Names of the top folder that are taken; empty means all.
    only: tuple[str, ...] = ()
    # Names in its folder without which it is not whole.
    required: tuple[str, ...] = ()
    # Files that are never changed under their name: the mirror may hold a link to them.
    written_once: bool = False
    largest_drop: int = LARGEST_DROP
    # What stands in the command line of the platform's own programs that write it, by its cron.
    writers: tuple[str, ...] = ()
    sensitive: str = ""
    # How it goes back onto a server, or "" and why it does not.
    restore: str = ""
    not_restored: str = ""
    policy: Policy = field(default_factory=Policy)

    # By what a file is looked at: another check, or another policy, and it is read again.
    check_id: str = field(init=False)

    def __post_init__(self) -> None:
        form = f"/{self.policy.id}" if self.policy.id else ""
        object.__setattr__(self, "check_id", f"{self.name}/{self.kind.id}/{VERSION}{form}")


@dataclass(frozen=True, slots=True)
class Derivation:
    """One command in the container that makes derived data, and what proves that it did."""

    name: str  # its step in the chain
    about: str
    command: tuple[str, ...]
    output: str  # the folder in which its files appear
    workdir: str = GNOWSYS
    kind: Kind = ANY  # how what it made is checked
    done: str = ""  # a regular expression: stdout of a run that came to its end has it
    # A regular expression for how many files it says it made: the number in group 1, or one for each match.
    says: str = ""
    makes: tuple[str, ...] = ()  # files without which nothing came of it
    # Files of earlier runs that it removes first: all that lies in the folder is its own.
    whole_folder: bool = False
    own_dump: str = ""  # a folder of its output that must hold no less than our own dump of the databases
    timeout_minutes: int = 0  # 0: derive.timeout_minutes
    every_hours: int = 0  # when it is due again after it ended well; 0: with each chain
    largest_drop: int = LARGEST_DROP
    writers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What one server is to give: the built-in tables, and what the operator has added or changed."""

    items: tuple[Item, ...]
    derivations: tuple[Derivation, ...]
    never: tuple[str, ...] = NEVER  # names that enter no item

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that make something, in their order."""
        return ("heartbeat", *DUMPS, *(derivation.name for derivation in self.derivations))

    def derivation(self, name: str) -> Derivation:
        """Return the derivation of that name. Raises KeyError."""
        for derivation in self.derivations:
            if derivation.name == name:
                return derivation
        raise KeyError(name)


DUMPS = ("postgres-dump", "mongo-dump")

_NAMES = "names of children and teachers"
_MADE_ANEW = "the platform makes it anew from its databases"
_OF_THE_MACHINE = "it tells of the machine it was taken from"

# In the order of the chain: cheap first, what takes hours last.
DERIVATIONS = (
    Derivation(
        "activity-timestamps",
        "activity timestamps of all users, one CSV each",
        ("sh", "-c", f"echo \"execfile('{ALL_USERS_SCRIPT}')\" | {PYTHON} manage.py shell"),
        ACTIVITY_FOLDER,
        kind=KINDS["activity-csv"],
        says=r"Total activity-player visits",
        writers=("get_all_users_activity_timestamp_csvs", "manage.py activity_timestamp", "manage.py shell"),
    ),
    Derivation(
        "progress",
        "progress of all users, one CSV for each unit",
        (PYTHON, "manage.py", "export_users_analytics"),
        PROGRESS_FOLDER,
        kind=KINDS["progress-csv"],
        done=r"RESULT OF CSV EXPORT",
        says=r"(?m)^\s*-\s*CREATED:\s*(\d+)",
        writers=("manage.py export_users_analytics",),
    ),
    Derivation(
        "assessments",
        "the MIT script: dumps of the qbank databases and a CSV of activities, packed",
        (PYTHON, "single_school_get_MIT_activity_data.py"),
        QBANK_FOLDER,
        workdir=ASSESSMENTS,
        kind=KINDS["qbank"],
        done=r"Done!",
        makes=("qbank_data.tar.gz",),
        whole_folder=True,
        own_dump="mongo-dump",
        writers=("single_school_get_MIT_activity_data.py",),
    ),
)


def _item(name: str, about: str, kind: str, **more: object) -> Item:
    """An item that lies in /data under its own name, unless `parts` says otherwise."""
    more.setdefault("parts", (("", f"{DATA}/{name}"),))
    return Item(name, about, KINDS[kind], **more)  # type: ignore[arg-type]


# The small and irreplaceable first, the large last.
ITEMS = (
    _item(
        "server_settings.py",
        "who the server is",
        "settings",
        parts=(("", f"{GNOWSYS}/gnowsys_ndf/server_settings.py"),),
        largest_drop=ANY_DROP,
        restore=SETTINGS,
    ),
    _item(
        "local_settings.py",
        "how the platform is set up",
        "settings",
        parts=(("", f"{GNOWSYS}/gnowsys_ndf/local_settings.py"),),
        largest_drop=ANY_DROP,
        sensitive="may hold the platform's secret key and passwords of databases",
        restore=SETTINGS,
    ),
    _item(
        "system-heartbeat",
        "ids, addresses, memory, disk, uptime, processes",
        "heartbeat",
        reading=FRESH,
        step="heartbeat",
        writers=("system-heartbeat.sh",),
        not_restored=_OF_THE_MACHINE,
    ),
    _item(
        "postgres-dump",
        "all of PostgreSQL by pg_dumpall: accounts",
        "accounts",
        parts=(("", f"{STAGING}/postgres-dump"), ("", f"{DATA}/postgres-dump")),
        step="postgres-dump",
        when_step_failed=CARRY,
        only=("pg_dump_all.sql",),
        sensitive=f"{_NAMES}, addresses of mail, password hashes",
        restore=POSTGRESQL,
    ),
    _item(
        "db",
        "the MongoDB databases by mongodump, each awaited to its end",
        "databases",
        parts=(("", DUMPED_DATABASES),),
        step="mongo-dump",
        when_step_failed=CARRY,
        required=("gstudio-mongodb",),
        sensitive="user names, what children wrote and answered",
        restore=MONGODB,
    ),
    _item(
        "gstudio-exported-users-analytics-csvs",
        "progress CSVs, unit by unit",
        "progress-csv",
        reading=FRESH,
        step="progress",
        writers=("manage.py export_users_analytics",),
        sensitive=f"{_NAMES}, roll numbers",
        not_restored=_MADE_ANEW,
    ),
    _item(
        "activity-timestamp-csvs",
        "activity timestamps, user by user",
        "activity-csv",
        reading=FRESH,
        step="activity-timestamps",
        writers=("get_all_users_activity_timestamp_csvs", "manage.py activity_timestamp", "manage.py shell"),
        sensitive="user names, in the names of the files too",
        not_restored=_MADE_ANEW,
    ),
    _item(
        "qbank",
        "what the MIT script makes; `db` and `postgres-dump` are the complete ones",
        "qbank",
        step="assessments",
        when_step_failed=CARRY,
        writers=("single_school_get_MIT_activity_data.py",),
        sensitive=f"{_NAMES}, password hashes (pg_dump_all.sql), answers",
        not_restored=_MADE_ANEW,
    ),
    _item(
        "gstudio_tools_logs", "tools' data", "json", reading=JSON, sensitive="numbers of users", restore=FILES
    ),
    _item(
        GIT_LOG,
        "git status, diff, log and branch of the platform's repositories",
        "git-log",
        parts=(),
        when_step_failed=CARRY,
        largest_drop=ANY_DROP,
        sensitive="settings that were changed in place stand in the diff",
        not_restored="it is made while collecting",
    ),
    _item(
        "gstudio-logs",
        "logs of scripts and updates",
        "any",
        reading=LOG,
        largest_drop=ANY_DROP,
        not_restored=_OF_THE_MACHINE,
    ),
    _item(
        "nginx-logs",
        "what was asked of the web server",
        "any",
        reading=LOG,
        largest_drop=ANY_DROP,
        sensitive="addresses on the school's network",
        not_restored=_OF_THE_MACHINE,
    ),
    _item(
        "assessment-media",
        "files of assessments, and what students recorded",
        "any",
        parts=(
            ("repository", f"{DATASTORE}/repository"),
            ("studentResponseFiles", f"{DATASTORE}/studentResponseFiles"),
        ),
        written_once=True,
        sensitive="voices and pictures of children",
        restore=FILES,
    ),
    _item(
        "rcs-repo",
        "nodes as JSON with their histories",
        "nodes",
        reading=JSON,
        sensitive="what children wrote",
        restore=FILES,
    ),
    _item(
        "media",
        "files uploaded to gStudio, named by their content",
        "media",
        written_once=True,
        sensitive="what children uploaded",
        restore=FILES,
    ),
)


def built_in() -> Catalogue:
    """Return the catalogue as it is without an operator's file."""
    guarded = tuple(replace(item, policy=replace(item.policy, exclude=NEVER)) for item in ITEMS)
    return Catalogue(guarded, DERIVATIONS)
