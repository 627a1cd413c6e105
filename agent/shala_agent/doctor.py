"""Doctor: what hinders the agent on this server, one line per problem, each with its remedy.

Changes nothing.
"""

from __future__ import annotations

import datetime
import grp
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from shala_agent.chain import SYNC, Chain
from shala_agent.collect import FIRST_YEAR, identify
from shala_agent.config import Config, missing_places
from shala_agent.device import FILE, Device
from shala_agent.extension import known_catalogue
from shala_agent.failure import AgentError
from shala_agent.ledger import CHAIN, Ledger, damaged
from shala_agent.manifest import ManifestError
from shala_agent.outcome import FAILED, SUSPECT, counted
from shala_agent.room import MB, bytes_of, free_at
from shala_agent.spool import Spool
from shala_agent.status import read_status
from shala_agent.sync import of_another_key
from shala_agent.zone import NotEnrolled, Standing, reading, records_path

NEARLY = 0.95  # of the quota: what a day adds may not fit
LOW_DISK = 2_000_000_000  # bytes: less than this and a collection of one day may not fit
PROGRAMS = (("timeout", "coreutils"), ("free", "procps"), ("ps", "procps"), ("ip", "iproute2"))


class Problem(msgspec.Struct):
    """One thing that is wrong, and what to do."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} -> {self.remedy}"


def examine(config: Config, ledger: Ledger) -> Iterator[Problem]:
    """Yield what is wrong on this server."""
    if os.geteuid() != 0:
        yield Problem("this does not run as root", "sudo shala-agent doctor")
    yield from _folders(config)
    if ledger.problem:
        yield _said(ledger.problem)
    if (aside := damaged(Path(config.paths.state) / "ledger.sqlite")).exists():
        yield Problem(
            f"the ledger was damaged; the old one is {aside}",
            f"look at it, then rm {aside}*; if it happens more than once, the disk is dying",
        )
    if mistake := known_catalogue(config)[1]:
        yield _said(f"nothing is collected: {mistake}")
    chain = Chain(config, ledger)
    state = chain.container.state()
    if state.problem:
        yield _said(state.problem)
    elif state.health == "unhealthy":
        yield Problem(
            f"container {state.name} is unhealthy", f"docker inspect {state.name}; docker logs {state.name}"
        )
    try:
        identify(config, chain.reach)
    except AgentError as error:
        yield _said(str(error))
    except OSError as error:
        yield Problem(
            f"the settings of the server cannot be read: {error}", "is the disk dying? dmesg | tail"
        )
    finally:
        with suppress(OSError):  # of a read-only disk
            chain.reach.forget()
    if datetime.datetime.now().astimezone().year < FIRST_YEAR:
        yield Problem(
            "the clock is wrong: it is before the agent was made",
            "timedatectl set-time, or replace the battery",
        )
    for program, package in PROGRAMS:
        if shutil.which(program) is None:
            yield Problem(f"{program} is missing", f"apt-get install {package}")
    yield from _work(config, ledger)


def _said(text: str) -> Problem:
    """Given what an error says, its way out in brackets at the end, return the problem."""
    what, _, remedy = text.rpartition(" (")
    return Problem(what, remedy.removesuffix(")")) if what else Problem(text, "shala-agent check-config")


def _folders(config: Config) -> Iterator[Problem]:
    paths = config.paths
    for name, folder in (("data", paths.data), ("code", paths.code), ("assessments", paths.assessments)):
        if not Path(folder).is_dir():
            yield Problem(
                f"paths.{name} {folder} is not on this host (the container is read instead, which is slower)",
                f"correct paths.{name}, or mount it",
            )
    if paths.unplatform and not Path(paths.unplatform).is_dir():
        yield Problem(f"paths.unplatform {paths.unplatform} does not exist", 'correct it, or set it to ""')
    floor = config.spool.min_free_mb * MB
    told: set[int] = set()  # disks: one line for each
    for name, folder in (("state", paths.state), ("spool", paths.spool), ("data", paths.data)):
        place = Path(folder)
        while not place.is_dir():
            place = place.parent
        if not os.access(place, os.W_OK):
            yield Problem(
                f"paths.{name} {folder} cannot be written", "is the disk read-only? see: dmesg | tail"
            )
        free, disk = free_at(place), place.stat().st_dev
        if free < max(LOW_DISK, floor) and disk not in told:
            told.add(disk)
            stays = f", and {floor // MB} stay so: nothing large is written" if free < floor else ""
            yield Problem(
                f"only {free // MB} MB are free at {folder}{stays}",
                "free some space: old backups, other people's files",
            )
    if quota := config.spool.quota_mb * MB:
        used = bytes_of(Path(paths.spool))
        if used > quota * NEARLY:
            yield Problem(
                f"the spool holds {used // MB} MB, of {quota // MB} that it may",
                "have the centre pull, and say so (shala-agent acknowledge), or raise spool.quota_mb",
            )
    try:
        if paths.spool_group:
            grp.getgrnam(paths.spool_group)
    except KeyError:
        yield Problem(f"there is no group {paths.spool_group}", "run playbooks/provision.yml")


def _work(config: Config, ledger: Ledger) -> Iterator[Problem]:
    status = read_status(config, ledger)
    for step in status.steps:
        if step.outcome == FAILED:
            reason = step.reasons[0] if step.reasons else "no reason is known"
            yield Problem(
                f"{step.step} failed at {step.ended}: {reason}", "shala-agent run, then shala-agent status"
            )
    made_by = {item.name: item.step for item in known_catalogue(config)[0].items}
    named = {step.step for step in status.steps if step.outcome == FAILED}
    for item in status.sealed.items if status.sealed else ():
        # What comes of a step that failed is one problem with it.
        if item.outcome in (FAILED, SUSPECT) and made_by.get(item.name) not in named:
            since = item.since or status.sealed.sealed if status.sealed else ""
            reason = item.reasons[0] if item.reasons else "no reason is known"
            yield Problem(
                f"{item.platform}/{item.name} is {item.outcome} since {since}: {reason}",
                "mend what the reason names, then shala-agent run; all reasons: shala-agent status --json",
            )
    yield from _zone(config, status.sync, SYNC in named)
    spool = Spool(Path(config.paths.spool))
    with suppress(OSError, ManifestError):
        if gone := sum(1 for _ in spool.damaged()):
            yield Problem(
                f"gone from the mirror {spool.bag}, or changed there: {counted(gone, 'file')}",
                "shala-agent run takes them again; if it happens more than once, the disk is dying",
            )
    if status.sealed is None:
        yield Problem("nothing was ever collected", "shala-agent run")
    yield from _timer()
    if not ledger.problem and not ledger.runs(1, CHAIN):
        yield Problem("the chain has never run", "systemctl enable --now shala-agent.timer")


def _zone(config: Config, standing: Standing | None, told: bool) -> Iterator[Problem]:
    """What keeps this server from its zone's records; `told`: how the last sync ended was said already."""
    key, records = Path(config.paths.state) / FILE, records_path(config)
    public = ""
    try:
        if key.exists():  # who only looks makes none
            public = Device(key).public_key
    except AgentError as error:
        yield _said(str(error))
    try:
        with reading(config) as opened:
            opened.check()
            if (store := opened.store) is not None and store.own.hex() != public:
                told = True
                yield _said(of_another_key(store))
    except NotEnrolled:
        if config.sync.enabled:
            yield Problem(
                "zone sync is switched on, but this server is in no zone", "shala-agent enrol --help"
            )
    except AgentError as error:
        yield _said(str(error))
    except (OSError, sqlite3.Error) as error:
        yield Problem(f"{records} cannot be read: {error}", "is the disk dying? dmesg | tail")
    for missing in missing_places(config):
        yield _said(missing)
    if standing is None:
        return
    if standing.damaged:
        yield Problem(
            f"damaged on the disk here: {counted(standing.damaged, 'segment')} of the zone's records",
            "shala-agent sync gets what the centre has; restore records.sqlite for the rest; the disk may be"
            " dying",
        )
    if standing.hollow:
        yield Problem(
            f"entries are missing from {counted(standing.hollow, 'segment')} of the zone's records, and"
            " nobody ordered them to be forgotten",
            "shala-agent sync gets them from the centre; what does not come, the centre lacks too: the server"
            " that wrote them has them",
        )
    if standing.last is not None and standing.last.outcome == "refused" and not told:
        yield Problem(
            f"the centre refused this server at {standing.last.ended}: {standing.last.reason}",
            "mend what the reason names, then shala-agent sync; where it is revoked, by mistake or for a new"
            " disk: shala device create, there",
        )


def _timer() -> Iterator[Problem]:
    """Where systemd runs: a timer that is to be active and is not. One that was disabled is meant so."""
    if not Path("/run/systemd/system").is_dir():
        return
    shown = subprocess.run(
        ["systemctl", "show", "shala-agent.timer", "--property=ActiveState,UnitFileState"],
        capture_output=True, text=True, timeout=20, check=False,
    ).stdout.split()  # fmt: skip
    if "UnitFileState=enabled" in shown and "ActiveState=active" not in shown:
        yield Problem("the agent's timer is not active", "systemctl start shala-agent.timer")
