"""Doctor: what hinders the agent on this server, one line per problem, each with its remedy.

Changes nothing.
"""

from __future__ import annotations

import datetime
import grp
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from shala_agent.chain import Chain
from shala_agent.collect import FIRST_YEAR, identify
from shala_agent.config import Config
from shala_agent.failure import AgentError
from shala_agent.ledger import CHAIN, Ledger
from shala_agent.manifest import ManifestError
from shala_agent.outcome import FAILED, counted
from shala_agent.spool import Spool
from shala_agent.status import read_status

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
    chain = Chain(config, ledger)
    state = chain.container.state()
    if state.problem:
        what, _, remedy = state.problem.rpartition(" (")
        yield Problem(what, remedy.removesuffix(")"))
    elif state.health == "unhealthy":
        yield Problem(
            f"container {state.name} is unhealthy", f"docker inspect {state.name}; docker logs {state.name}"
        )
    try:
        identify(config, chain.reach)
    except AgentError as error:
        what, _, remedy = str(error).rpartition(" (")
        yield Problem(what or str(error), remedy.removesuffix(")"))
    finally:
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
    for name, folder in (("state", paths.state), ("spool", paths.spool)):
        place = Path(folder)
        while not place.is_dir():
            place = place.parent
        if not os.access(place, os.W_OK):
            yield Problem(
                f"paths.{name} {folder} cannot be written", "is the disk read-only? see: dmesg | tail"
            )
        free = shutil.disk_usage(place).free
        if free < LOW_DISK:
            yield Problem(
                f"only {free // 1_000_000} MB are free at {folder}",
                "free some space: old backups, other people's files",
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
    if status.sync is not None and not status.sync.zone:
        yield Problem("zone sync is switched on, but this server is in no zone", "shala-agent enrol --help")
    spool = Spool(Path(config.paths.spool))
    with suppress(OSError, ManifestError):
        if damaged := sum(1 for _ in spool.damaged()):
            yield Problem(
                f"gone from the mirror {spool.bag}, or changed there: {counted(damaged, 'file')}",
                "shala-agent run takes them again; if it happens more than once, the disk is dying",
            )
    if status.sealed is None:
        yield Problem("nothing was ever collected", "shala-agent run")
    if not ledger.runs(1, CHAIN):
        yield Problem("the chain has never run", "systemctl enable --now shala-agent.timer")
