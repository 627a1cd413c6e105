"""The commands of zone sync: enrol, sync, records, progress."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from shala_agent.config import Config, read_config
from shala_agent.failure import UsageError
from shala_agent.outcome import counted
from shala_agent.progress import Progress

if TYPE_CHECKING:
    from shala_agent.enrol import Enrolled
    from shala_agent.state import Record
    from shala_agent.sync import SyncResult
    from shala_agent.zone import Round

DONE, FAILED, PARTLY = 0, 1, 3

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
_type = click.option("--type", "type_", default="", help="Only records of this type.")


@click.command(short_help="Become a device of a zone.")
@click.option("--token-file", type=click.Path(), help="File with the one-time token; - is stdin.")
@click.option("--url", default="", help="Address of the centre; without it sync.url of the configuration.")
@click.option(
    "--request", type=click.Path(path_type=Path), help="Write a request to be carried to the centre."
)
@click.option("--approval", type=click.Path(path_type=Path), help="Read the approval that came back.")
@_json
@click.pass_obj
def enrol(
    config_path: Path,
    *,
    token_file: str | None,
    url: str,
    request: Path | None,
    approval: Path | None,
    as_json: bool,
) -> None:
    """Become a device of a zone: online by a one-time token, or by two files that are carried.

    A server that the centre has moved to another zone learns of it without any of them.

    \b
    Example:  shala-agent enrol --token-file /root/token --url https://centre.example.org
              shala-agent enrol --request /mnt/usb/2031017-mz17.json
              shala-agent enrol --approval /mnt/usb/2031017-mz17.approval.json
              shala-agent enrol     after: shala device move
    """
    from shala_agent import enrol as enrolment
    from shala_agent.zone import centre_at, changing, device_of

    if sum(one is not None for one in (token_file, request, approval)) > 1:
        raise UsageError("only one of --token-file, --request, --approval (see: shala-agent enrol --help)")
    enrolment.check_url(url)
    config = read_config(config_path)
    key = device_of(config).key
    if request is not None:
        enrolment.write_request(request, key, _server_name(config_path))
        if as_json:
            _print_json({"format": 1, "request": str(request)})
        else:
            click.echo(f"{request}: carry it to the centre ({enrolment.APPROVE})")
        return
    with changing(config, "enrol") as records:
        if approval is not None:
            done = enrolment.enter_by_approval(records, key, approval, url)
        else:
            token = "" if token_file is None else enrolment.read_token(_text(token_file), token_file)
            address = url or config.sync.url or str(records.kept("url") or "")
            if not address:
                raise UsageError(_without_address(config_path, token_file))
            done = enrolment.enrol_online(
                records, centre_at(config, address), _server_name(config_path), token
            )
    if as_json:
        _print_json(done)
    else:
        click.echo(
            f"The key of the centre: {done.centre} (there: shala zone show {done.zone} shows the same)"
        )
        click.echo(f"This server is a device of zone {done.zone} now. {_next(config, approval, done)}")


@click.command(short_help="Exchange records with the zone, by the centre.")
@_json
@click.option("--without-ingest", is_flag=True, help="Do not look first at what was derived since.")
@click.option("--upload-only", is_flag=True, help="Send what the centre lacks, and leave the rest for later.")
@click.option(
    "--deadline", type=click.IntRange(min=1), metavar="MINUTES", help="At most so long, if not less is set."
)
@click.option(
    "--wait", type=click.IntRange(min=0), default=0, metavar="MINUTES", help="Wait for a running sync."
)
@click.pass_obj
def sync(  # noqa: PLR0917 - click's
    config_path: Path, as_json: bool, without_ingest: bool, upload_only: bool, deadline: int | None, wait: int
) -> None:
    """Hear what was derived, send what the centre lacks, get what this server lacks.

    \b
    Example:  shala-agent sync --json
    """
    import time

    from shala_agent.chain import Chain
    from shala_agent.ledger import Ledger
    from shala_agent.zone import go_round

    config = read_config(config_path)
    over = float("inf") if deadline is None else time.monotonic() + deadline * 60
    ledger = Ledger(Path(config.paths.state) / "ledger.sqlite")
    with Progress() as progress:
        chain = Chain(config, ledger)
        progress.say("sync ...")
        done = go_round(
            config,
            chain.container,
            chain.reach,
            ingest=not without_ingest,
            upload_only=upload_only,
            remaining=lambda: over - time.monotonic(),
            watch=progress.tick,
            wait_seconds=wait * 60.0,
        )
    ledger.close()
    if as_json:
        _print_json(done)
    else:
        for line in _round_lines(done):
            click.echo(line)
    raise click.exceptions.Exit(_exit_code(done))


@click.group()
def records() -> None:
    """Look at the records of the zone that are here.

    \b
    Example:  shala-agent records list --type account
    """


@records.command("list")
@_type
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@click.option("--everything", is_flag=True, help="Deleted and waiting ones, too.")
@_json
@click.pass_obj
def list_records(config_path: Path, type_: str, limit: int, everything: bool, as_json: bool) -> None:
    """List records by type and key, with the server that wrote them.

    \b
    Example:  shala-agent records list --type progress --limit 20
    """
    from itertools import islice

    from shala_agent.zone import reading

    with reading(read_config(config_path)) as opened:
        authors = opened.authors()
        found = list(islice(opened.records(_known(type_), everything=everything), limit + 1))
        rows = [_row(record, authors) for record in found[:limit]]
    if as_json:
        _print_json({"format": 1, "records": rows, "more": len(found) > limit})
        return
    _table([_listed(row) for row in rows])
    click.echo(f"The first {limit}; more: --limit" if len(found) > limit else counted(len(rows), "record"))


@records.command()
@click.argument("type_", metavar="TYPE[/KEY]")
@click.argument("key", metavar="[KEY]", default="")
@_json
@click.pass_obj
def show(config_path: Path, type_: str, key: str, as_json: bool) -> None:
    """Show one record: what it says, who wrote it, and what stands against it.

    Type and key are given as `records list` shows them, or apart, as at the centre.

    \b
    Example:  shala-agent records show account/green-apple-mz17
              shala-agent records show account green-apple-mz17
    """
    from shala_agent.merge import parsed
    from shala_agent.page import day
    from shala_agent.zone import reading

    if not key:
        type_, _, key = type_.partition("/")
    with reading(read_config(config_path)) as opened:
        authors = opened.authors()
        record = opened.record(_known(type_), key) if type_ and key else None
    if record is None:
        listed = (
            f"shala-agent records list --type {type_}" if key else "shala-agent records list shows TYPE/KEY"
        )
        name = f"{type_}/{key}" if key else type_
        raise UsageError(f"there is no record '{name}' here ({listed})")
    said = _row(record, authors)
    said["siblings"] = [
        {
            "server": authors.get(one.log, one.log.hex()),
            "day": day(one.at),
            "value": None if one.value is None else parsed(one.value),
        }
        for one in record.siblings
    ]
    if as_json:
        _print_json({"format": 1, **said})
        return
    click.echo(
        f"{type_}/{key}  {said['server']} {said['day']}, change {record.counter}, schema {record.schema}"
    )
    for field, value in (record.value or {}).items():
        click.echo(f"  {field}: {_plain(value)}")
    if record.value is None:
        click.echo("  deleted")
    if record.waits:
        click.echo(f"It waits for {_plain(record.waits)} and is not shown meanwhile.")
    if record.conflict:
        click.echo(
            f"{len(record.siblings)} servers wrote it without knowing of each other; --json shows all."
        )


@records.command()
@_type
@click.option("--format", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True)
@click.pass_obj
def export(config_path: Path, type_: str, form: str) -> None:
    """Write records to stdout: as CSV of one type, or as one JSON document per line.

    \b
    Example:  shala-agent records export --type progress --format csv > progress.csv
    """
    from shala_agent.zone import reading

    if form == "csv" and not type_:
        raise UsageError("a CSV is of one type (--type progress; or --format json)")
    with reading(read_config(config_path)) as opened:
        authors = opened.authors()

        def rows() -> Iterator[dict[str, Any]]:
            return (_row(record, authors) for record in opened.records(_known(type_)))

        if form == "json":
            for row in rows():
                click.echo(msgspec.json.encode(row).decode())
        else:
            _write_csv(rows)


@click.command(short_help="Show a student's progress across the zone.")
@click.option("--user", required=True, help="User name, such as green-apple-mz17.")
@_json
@click.pass_obj
def progress(config_path: Path, user: str, as_json: bool) -> None:
    """Show a student's units, on whichever server of the zone she worked.

    \b
    Example:  shala-agent progress --user green-apple-mz17
    """
    from shala_agent.page import by_number, name_of, percent, unit_of
    from shala_agent.zone import reading

    with reading(read_config(config_path)) as opened:
        authors = opened.authors()
        found = sorted(opened.records("progress", user=user), key=by_number)
        name = name_of(opened, user)
        known = opened.record("account", user) is not None
    if not found and not known:
        raise UsageError(
            f"nothing of a user '{user}' has arrived here (shala-agent records list --type account)"
        )
    rows = [
        {
            "unit": unit_of(record),
            "lessons": percent(record.value or {}, "lessons_visited", "total_lessons"),
            "activities": percent(record.value or {}, "activities_visited", "total_activities"),
            "quiz": percent(record.value or {}, "correct_attempted_quizitems", "attempted_quizitems"),
            **{one: _row(record, authors)[one] for one in ("server", "day")},
        }
        for record in found
    ]
    if as_json:
        values = [{**row, "value": record.value} for row, record in zip(rows, found, strict=True)]
        _print_json({"format": 1, "user": user, "name": name, "units": values})
        return
    units = counted(len(rows), "unit")
    click.echo(f"{_plain(name)} ({user}): {units}" if name else f"{user}: {units}")
    _table([{key: _plain(value) for key, value in row.items()} for row in rows])


# -- within --------------------------------------------------------------------------------------------------


def _next(config: Config, approval: Path | None, done: Enrolled) -> str:
    if config.sync.url or done.url:
        return "Next: shala-agent sync"
    command = ["shala-agent", "enrol", "--approval", str(approval), "--url", "https://CENTRE"]
    return f"No address of the centre is known yet: {shlex.join(command)} (or sync.url in the configuration)"


def _without_address(config_path: Path, token_file: str | None) -> str:
    given = [] if token_file is None else ["--token-file", token_file]
    command = shlex.join(["shala-agent", "enrol", *given, "--url", "https://CENTRE"])
    return f"no address of the centre is known ({command}, or sync.url in {config_path})"


def _exit_code(done: Round) -> int:
    outcome = done.sync.outcome if done.sync is not None else "silent"
    if outcome == "done":
        # In the notes stands what could not be done beside it: own data not heard, a page not written.
        return PARTLY if done.notes else DONE
    return PARTLY if outcome == "partly" else FAILED


def _round_lines(done: Round) -> Iterator[str]:
    if done.heard is not None:
        changed = ", ".join(f"{number} {type_}" for type_, number in done.heard.changed.items())
        yield f"heard: {changed or 'nothing new'}"
        yield from (f"left out: {what}" for what in done.heard.skipped)
    if done.sync is None or done.sync.outcome != "done":  # of one that is done they are the last line
        yield from done.notes
    if done.accounts is not None:
        yield f"accounts handed to the platform: {done.accounts.accounts}"
        yield from (f"account left out: {what}" for what in done.accounts.left_out)
    if done.sync is not None:
        yield from _sync_lines(done.sync, done.notes)


def _sync_lines(result: SyncResult, notes: list[str]) -> Iterator[str]:
    yield (
        f"zone {result.zone}: {counted(result.records_up, 'record')} up ({result.bytes_up} bytes),"
        f" {result.records_down} down ({result.bytes_down} bytes), {counted(result.requests, 'request')}"
    )
    if result.forks:
        yield "another server spoke with this one's key; this one goes on in a new epoch, nothing is lost"
    yield from (f"left out, {one.way}: {one.id[:16]}: {one.reason}" for one in result.refused)
    lag = result.lag_after
    if result.outcome == "done":
        yield f"Done, but: {'; '.join(notes)}" if notes else "Done."
    else:
        left = f"{counted(lag.entries, 'record')} to send, {counted(lag.segments_down, 'segment')} to get"
        yield f"{result.reason}. Left: {left}. More: shala-agent status"


def _row(record: Record, authors: dict[bytes, str]) -> dict[str, Any]:
    from shala_agent.page import day

    return {
        "type": record.type,
        "key": record.key,
        "server": authors.get(record.log, record.log.hex()),
        "day": day(record.at),
        "deleted": record.value is None,
        "conflict": record.conflict,
        "waits": record.waits,
        "value": record.value,
    }


def _listed(row: dict[str, Any]) -> dict[str, str]:
    """Return a record as a row of the table."""
    marks = [mark for mark in ("deleted", "conflict") if row[mark]]
    if row["waits"]:
        marks.append(f"waits for {row['waits']}")
    cells = {"record": f"{row['type']}/{row['key']}", "server": row["server"], "day": row["day"]}
    return {name: _plain(cell) for name, cell in {**cells, "mark": ", ".join(marks)}.items()}


def _write_csv(rows: Callable[[], Iterator[dict[str, Any]]]) -> None:
    """Write a CSV whose columns are those that any record has; reads the records twice, keeps none."""
    import csv

    columns: dict[str, None] = {}
    for row in rows():
        columns |= dict.fromkeys(row["value"])
    out = csv.writer(sys.stdout)
    out.writerow(["key", "server", "day", *map(_cell, columns)])
    for row in rows():
        cells = [row["key"], row["server"], row["day"], *(row["value"].get(column, "") for column in columns)]
        out.writerow(map(_cell, cells))


def _cell(value: object) -> object:
    """Return what a spreadsheet does not take for a formula."""
    if isinstance(value, list | dict):
        value = msgspec.json.encode(value).decode()
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _table(rows: list[dict[str, str]]) -> None:
    """Print a table: Rich's on a terminal, plain columns otherwise."""
    if not rows:
        return
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(*rows[0])
        for row in rows:
            table.add_row(*(escape(cell) for cell in row.values()))
        Console().print(table)
        return
    widths = [max(len(row[column]) for row in [dict.fromkeys(rows[0], ""), *rows]) for column in rows[0]]
    widths = [max(width, len(column)) for width, column in zip(widths, rows[0], strict=True)]
    for cells in [list(rows[0]), *(list(row.values()) for row in rows)]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def _plain(value: object) -> str:
    """Return a value as one line that a terminal shows and does not obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def _known(type_: str) -> str:
    from shala_agent.record_types import TYPES

    if type_ and type_ not in TYPES:
        raise UsageError(f"there is no type of records '{type_}' (known: {', '.join(TYPES)})")
    return type_


def _server_name(config_path: Path) -> str:
    from shala_agent.chain import Chain
    from shala_agent.collect import identify
    from shala_agent.container import ContainerUnavailable
    from shala_agent.ledger import Ledger
    from shala_agent.reach import SETTINGS

    config = read_config(config_path)
    if config.identity.server_name:
        return config.identity.server_name
    ledger = Ledger(Path(config.paths.state) / "ledger.sqlite")
    reach = Chain(config, ledger).reach
    try:
        return identify(config, reach).server_name
    except ContainerUnavailable as error:
        raise UsageError(
            f"{reach.host(SETTINGS)}, which says who this server is, does not exist, and {error}"
            f" (put it there, or set identity.server_name in {config_path})"
        ) from None
    finally:
        ledger.close()


def _text(path: str) -> str:
    if path == "-":
        return sys.stdin.read(4096)
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror} (--token-file - reads stdin)") from None


def _print_json(document: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=1))
