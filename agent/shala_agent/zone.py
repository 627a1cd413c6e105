"""The zone: what this server does as one of its devices, one thing after the other: hear what was derived,
talk to the centre, give accounts to the platform, write the page for the teacher.

One at a time: whoever changes the records holds their lock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from shala_agent import __version__
from shala_agent.config import Config
from shala_agent.device import FILE, Device
from shala_agent.failure import AgentError, UsageError
from shala_agent.lock import held
from shala_agent.outcome import FAILED, OK, SKIPPED, Result, failed, judged, shortened

if TYPE_CHECKING:
    from shala_agent.accounts import Given
    from shala_agent.centre import Centre
    from shala_agent.container import Container
    from shala_agent.ingest import Heard
    from shala_agent.reach import Reach
    from shala_agent.records import Records
    from shala_agent.sync import SyncResult

CHAIN_CONNECT = (
    5.0  # seconds in which a centre that can be reached answers; the chain does not wait for others
)
CONNECT = 15.0  # the same, when somebody has asked for it

Watch = Callable[[str], None]


class NotEnrolled(AgentError):
    """This server belongs to no zone."""


class Standing(msgspec.Struct, kw_only=True):
    """How zone sync stands on this server, for `status`."""

    zone: str = ""
    name: str = ""  # of this server in the zone
    enabled: bool = False
    lag_entries: int = 0
    lag_bytes: int = 0
    damaged: int = 0  # segments whose bytes the disk has hurt, and that have not come again
    hollow: int = 0  # segments of which entries are gone that nobody has ordered to be forgotten
    last: SyncResult | None = None
    problem: str = ""  # why the records cannot be read: nothing else is known then


class Round(msgspec.Struct, kw_only=True):
    """What one round did; parts that were not done are None."""

    heard: Heard | None = None
    sync: SyncResult | None = None
    accounts: Given | None = None
    page: str = ""
    notes: list[str] = []


def records_path(config: Config) -> Path:
    """Return where the records are."""
    return Path(config.paths.state) / "records.sqlite"


def page_path(config: Config) -> Path:
    """Return where the page for the teacher is."""
    return Path(config.sync.page or f"{config.paths.state}/progress.html")


@contextmanager
def changing(config: Config, purpose: str, wait_seconds: float = 0.0) -> Iterator[Records]:
    """Open the records to change them, alone. Raises Busy."""
    from shala_agent.records import Records, naming

    lock, path = Path(config.paths.state) / "locks/records.lock", records_path(config)
    with held(lock, purpose, wait_seconds), naming(path), closing(Records(path)) as records:
        yield records


@contextmanager
def reading(config: Config) -> Iterator[Records]:
    """Open the records of an enrolled server to read them; a sync may go on meanwhile. Raises NotEnrolled."""
    from shala_agent.records import Records, RecordsDamaged, naming

    path = records_path(config)
    if not path.exists():
        _not_enrolled()
    if not path.stat().st_size:  # a power cut, or a disk that was full
        if not path.with_name(FILE).exists():
            _not_enrolled()
        raise RecordsDamaged(
            f"{path} is empty (shala-agent enrol --url CENTRE, with --token-file if this server never was in"
            " a zone: the zone's records come again, one's own are heard anew)"
        )
    with naming(path), closing(Records(path, only_read=True)) as records:
        if records.store is None:
            _not_enrolled()
        yield records


def device_of(config: Config) -> Device:
    """Return this server as a device; its key is made when there is none."""
    return Device(Path(config.paths.state) / FILE)


def centre_at(config: Config, url: str, connect_seconds: float = CONNECT) -> Centre:
    """Return the centre at an address."""
    from shala_agent.centre import Centre

    return Centre(url, device_of(config).key, config.sync.ca_file, connect_seconds)


def go_round(
    config: Config,
    container: Container,
    reach: Reach,
    *,
    ingest: bool = True,
    upload_only: bool = False,
    connect_seconds: float = CONNECT,
    remaining: Callable[[], float] = lambda: float("inf"),
    watch: Watch | None = None,
    wait_seconds: float = 0.0,
) -> Round:
    """Do one round. Raises NotEnrolled, Busy; what the centre does is in the result."""
    from shala_agent.sync import together

    with reading(config):
        pass  # before any lock is made or anything heard
    done = Round()
    with changing(config, "sync", wait_seconds) as records:
        first = None
        if ingest:
            if records.kept("cursor_place") is None:
                # What the zone knows already of this server, which may have been enrolled before, is not to
                # be said anew without having seen it.
                first = _talk(config, records, connect_seconds, remaining, watch, upload_only=False)
            done.heard = _hear(config, reach, records, done.notes)
        if first is not None and first.outcome in ("silent", "refused"):
            done.sync = first
        else:
            done.sync = _talk(config, records, connect_seconds, remaining, watch, upload_only=upload_only)
            if first is not None:
                done.sync = together(first, done.sync)
        if config.sync.apply_accounts:
            done.accounts = _give_accounts(config, container, reach, records, done.notes)
        try:
            done.page = str(_write_page(config, records))
        except OSError as error:
            where = error.filename or page_path(config)
            done.notes.append(f"the page could not be written: {where}: {error.strerror or error}")
    return done


def step(
    config: Config,
    container: Container,
    reach: Reach,
    remaining: Callable[[], float],
    watch: Watch | None = None,
) -> Result:
    """Do one round as a step of the chain: that nobody answers is no failure."""
    from shala_agent.bandwidth import rate_now

    if rate_now(config.sync) is None:
        return Result(SKIPPED, ["now is a closed window of the day (sync.windows)"])
    try:
        done = go_round(
            config, container, reach, connect_seconds=CHAIN_CONNECT, remaining=remaining, watch=watch,
            wait_seconds=60.0,
        )  # fmt: skip
    except NotEnrolled as error:
        return Result(SKIPPED, [str(error)])
    return _judged(done)


def standing(config: Config) -> Standing | None:
    """Return how zone sync stands, None where it is neither switched on nor enrolled for, or was."""
    from shala_agent.sync import last_sync

    found = Standing(enabled=config.sync.enabled)
    try:
        with reading(config) as records:
            unsent = records.unsent()
            if (store := records.store) is not None:
                found.zone, found.name = store.name, store.member(store.own).name
            found.lag_entries, found.lag_bytes = unsent.entries + records.uncut(), unsent.bytes
            found.damaged, found.hollow = records.damaged(), records.hollow()
            found.last = last_sync(records)
    except NotEnrolled:
        return found if config.sync.enabled else None
    except AgentError as error:
        found.problem = str(error)
    except (OSError, sqlite3.Error) as error:
        found.problem = f"{records_path(config)} cannot be read: {error} (shala-agent doctor)"
    return found


# -- the parts of a round ------------------------------------------------------------------------------------


def _hear(config: Config, reach: Reach, records: Records, notes: list[str]) -> Heard | None:
    from shala_agent.collect import identify
    from shala_agent.ingest import ingest

    try:
        return ingest(records, reach, identify(config, reach))
    except AgentError as error:
        # What is in the records already can be synced all the same.
        notes.append(f"nothing was heard of this server's own data: {error}")
        return None
    finally:
        reach.forget()


def _talk(
    config: Config,
    records: Records,
    connect_seconds: float,
    remaining: Callable[[], float],
    watch: Watch | None,
    *,
    upload_only: bool,
) -> SyncResult:
    import time

    from shala_agent.bandwidth import Bandwidth, rate_now
    from shala_agent.sync import sync

    url = config.sync.url or str(records.kept("url") or "")
    if not url:
        raise UsageError("sync.url is not set, and the enrolment named no address of the centre")
    centre = centre_at(config, url, connect_seconds)
    deadline = float("inf")
    if config.sync.deadline_minutes:
        deadline = time.monotonic() + config.sync.deadline_minutes * 60
    # Who syncs by hand in a closed window has the limit of the rest of the day; one that closes ends the run.
    may_close = rate_now(config.sync) is not None

    def left() -> float:
        if may_close and rate_now(config.sync) is None:
            return 0.0
        return min(deadline - time.monotonic(), remaining())

    centre.remaining = left
    limit = config.sync.bytes_per_second
    centre.bandwidth = Bandwidth(lambda: limit if (rate := rate_now(config.sync)) is None else rate)
    return sync(records, centre, Path(config.paths.state) / "parts", watch, upload_only=upload_only)


def _give_accounts(
    config: Config, container: Container, reach: Reach, records: Records, notes: list[str]
) -> Given | None:
    from shala_agent.accounts import give_accounts

    try:
        return give_accounts(records, container, reach)
    except (AgentError, OSError) as error:
        notes.append(f"accounts were not given to the platform: {error}")
        return None
    finally:
        reach.forget()


def _write_page(config: Config, records: Records) -> Path:
    from shala_agent.page import write_page

    path, mode = page_path(config), 0o644 if config.sync.page_world_readable else 0o640
    # Nothing new is the usual case, and the page of a large zone is some seconds of work.
    made_of = f"{__version__} {records.version} {mode:o} {path}"
    before = str(records.kept("page") or "")
    if before != made_of or not path.is_file():
        write_page(records, path, mode)
        _remove_earlier(before, path)
        records.keep(page=made_of)
    return path


def _remove_earlier(made_of: str, path: Path) -> None:
    """Remove the page from where it was before sync.page named another place: it would stay there for ever,
    as it was, with names of children. Raises OSError.
    """
    *_, place = made_of.split(" ", 3)
    if place and Path(place).is_file() and not path.samefile(place):
        try:
            Path(place).unlink()
        except OSError as error:
            reason = f"the earlier page is still there: {error.strerror} (remove it)"
            raise OSError(error.errno, reason, place) from None


def _judged(done: Round) -> Result:
    """Return a round as the outcome of a step."""
    sync = done.sync
    if sync is None:
        return failed("no sync was tried")
    findings = [*done.notes]
    if done.heard is not None:
        findings += done.heard.skipped
    findings += [f"{one.way} {one.id[:12]}: {one.reason}" for one in sync.refused]
    detail = {
        "up": sync.records_up, "down": sync.records_down, "bytes_up": sync.bytes_up,
        "bytes_down": sync.bytes_down, "lag": sync.lag_after.entries,
    }  # fmt: skip
    if sync.outcome == "refused":
        return Result(FAILED, shortened([sync.reason, *findings]), detail)
    if sync.outcome == "silent":
        return Result(SKIPPED, shortened([sync.reason, *findings]), detail)
    if sync.outcome == "partly" and not findings:
        return Result(OK, [f"{sync.reason}; the next run goes on there"], detail)
    return judged(findings, None, detail)


def _not_enrolled() -> NoReturn:
    raise NotEnrolled("this server is not enrolled in a zone (shala-agent enrol --help)")
