"""The command line `shala-agent`.

Says what it does in one line, what is left in the last one; --json is for machines.
"""

from __future__ import annotations

import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from shala_agent import __version__
from shala_agent.config import CONFIG_PATH, Config, read_config
from shala_agent.failure import AgentError, Stopped, UsageError
from shala_agent.ledger import Ledger
from shala_agent.outcome import counted
from shala_agent.progress import Progress
from shala_agent.sync_commands import enrol, progress, records, sync

if TYPE_CHECKING:
    from shala_agent.chain import Chain, Passage
    from shala_agent.zone import Standing

DONE, FAILED, USAGE, PARTLY = 0, 1, 2, 3

Command = TypeVar("Command", bound=Callable[..., Any])

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
_wait = click.option(
    "--wait",
    type=click.IntRange(min=0),
    default=0,
    metavar="MINUTES",
    help="Wait so long for a running chain to end.",
)


def main() -> None:
    """Run the command line; every error is one line with the way out."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        code = shala_agent(standalone_mode=False)  # Click returns what a command gave to Exit
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(USAGE)
    except click.ClickException as error:
        command = (
            error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "shala-agent"
        )
        click.echo(f"shala-agent: {error.format_message()} (see: {command} --help)", err=True)
        sys.exit(USAGE)
    except AgentError as error:
        click.echo(f"shala-agent: {error}", err=True)
        sys.exit(USAGE if isinstance(error, UsageError) else FAILED)
    except OSError as error:
        click.echo(
            f"shala-agent: {error.filename or ''}: {error.strerror or error} (run as root? disk full?)",
            err=True,
        )
        sys.exit(FAILED)
    except sqlite3.Error as error:
        click.echo(f"shala-agent: the agent's own records: {error} (run as root? disk full?)", err=True)
        sys.exit(FAILED)
    except (Stopped, click.Abort):
        click.echo("shala-agent: stopped; nothing half done is kept, the next run goes on here", err=True)
        sys.exit(PARTLY)
    sys.exit(code if isinstance(code, int) else DONE)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shala-agent")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=CONFIG_PATH,
    envvar="SHALA_AGENT_CONFIG",
    show_default=True,
    help="The configuration.",
)
@click.pass_context
def shala_agent(context: click.Context, config_path: Path) -> None:
    """Looks after the data of one school server.

    \b
    Example:  shala-agent run        heartbeat, dumps, derivations, collection, zone sync
              shala-agent progress --user green-apple-mz17
              shala-agent status     how it stands
              shala-agent doctor     what is wrong, and the remedy

    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 partly done.
    """
    context.obj = config_path


@shala_agent.command()
@_json
@_wait
@click.pass_obj
def run(config_path: Path, as_json: bool, wait: int) -> None:
    """Do the whole chain, or go on with the one that was cut.

    \b
    Example:  shala-agent run --wait 30
    """
    _pass(config_path, as_json, lambda chain: chain.run(wait * 60.0))


@shala_agent.command()
@_json
@click.pass_obj
def heartbeat(config_path: Path, as_json: bool) -> None:
    """Write one heartbeat now.

    \b
    Example:  shala-agent heartbeat
    """
    _pass(config_path, as_json, lambda chain: chain.by_hand(("heartbeat",)))


@shala_agent.command(short_help="Gather all items and seal them.")
@_json
@_wait
@click.option(
    "--without-dumps", is_flag=True, help="Take the database dumps that are there, make no new ones."
)
@click.pass_obj
def collect(config_path: Path, as_json: bool, wait: int, without_dumps: bool) -> None:
    """Dump the databases, gather all items, seal them into the spool.

    \b
    Example:  shala-agent collect --without-dumps
    """
    from shala_agent.chain import DUMPS

    steps = ("collect",) if without_dumps else (*DUMPS, "collect")
    _pass(config_path, as_json, lambda chain: chain.by_hand(steps, wait * 60.0))


@shala_agent.group()
def derive() -> None:
    """Have the platform make its derived data, and check them.

    \b
    Example:  shala-agent derive activity-timestamps --user green-apple-mz17
    """


@derive.command("activity-timestamps")
@click.option("--user", default="", help="Only this user; without it, all users (takes long).")
@_json
@_wait
@click.pass_obj
def derive_activity_timestamps(config_path: Path, user: str, as_json: bool, wait: int) -> None:
    """Make the activity timestamps of one user or all.

    \b
    Example:  shala-agent derive activity-timestamps --user green-apple-mz17
    """
    _pass(config_path, as_json, lambda chain: chain.by_hand(("activity-timestamps",), wait * 60.0, user))


@derive.command("progress")
@_json
@_wait
@click.pass_obj
def derive_progress(config_path: Path, as_json: bool, wait: int) -> None:
    """Make the progress CSVs of all units.

    \b
    Example:  shala-agent derive progress
    """
    _pass(config_path, as_json, lambda chain: chain.by_hand(("progress",), wait * 60.0))


@derive.command("assessments")
@_json
@_wait
@click.pass_obj
def derive_assessments(config_path: Path, as_json: bool, wait: int) -> None:
    """Make the assessment dumps of the school.

    \b
    Example:  shala-agent derive assessments
    """
    _pass(config_path, as_json, lambda chain: chain.by_hand(("assessments",), wait * 60.0))


@shala_agent.command(short_help="Show what is done and what is open.")
@_json
@click.pass_obj
def status(config_path: Path, as_json: bool) -> None:
    """Show what is done, what is open, and what is in the spool.

    \b
    Example:  shala-agent status --json
    """
    from shala_agent.status import Status, read_status

    config = read_config(config_path)
    with closing(_ledger(config)) as ledger:
        now: Status = read_status(config, ledger)
    if as_json:
        _print_json(now)
        return
    beat, chain = now.heartbeat, now.chain
    click.echo(f"{now.server_name or 'unidentified server'}, shala-agent {now.agent_version}")
    if beat is not None:
        free = f"{beat.disk_free / 1e9:.1f} of {beat.disk_total / 1e9:.1f} GB disk free"
        up = f"up {beat.uptime_seconds / 60:.0f} min"
        click.echo(f"heartbeat  {beat.taken}  container {beat.container}, {free}, {up}")
    if chain is not None:
        how = (
            f"open, left: {', '.join(now.open_steps)}"
            if chain.ended is None
            else f"{chain.outcome} {chain.ended}"
        )
        click.echo(f"chain {chain.id}  begun {chain.started}, {how}")
    rows = [
        [s.step, s.outcome or "", s.ended or "", f"{s.seconds:.1f}", _first(s.reasons)] for s in now.steps
    ]
    _table(["step", "outcome", "ended", "seconds", "reason"], rows)
    if now.sync is not None:
        click.echo(_sync_line(now.sync))
    if now.sealed is None:
        click.echo("Nothing was collected yet (shala-agent run).")
        return
    click.echo(f"collection {now.sealed.sequence}, sealed {now.sealed.sealed}: "
               f"{now.sealed.files} files, {now.sealed.bytes / 1e6:.1f} MB")  # fmt: skip
    _table(["item", "outcome", "files", "MB", "reason"], [_item_row(item) for item in now.sealed.items])


@shala_agent.command(short_help="Say what is wrong, and the remedy.")
@_json
@click.pass_obj
def doctor(config_path: Path, as_json: bool) -> None:
    """Say what is wrong on this server, one line per problem, with the remedy.

    \b
    Example:  shala-agent doctor
    """
    from shala_agent.doctor import examine

    config = read_config(config_path)
    with closing(_ledger(config)) as ledger:
        problems = list(examine(config, ledger))
    if as_json:
        _print_json({"problems": problems})
    else:
        for problem in problems:
            click.echo(str(problem))
        click.echo(f"{counted(len(problems), 'problem')}." if problems else "All is well.")
    raise click.exceptions.Exit(FAILED if problems else DONE)


@shala_agent.command("check-config")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@_json
@click.pass_obj
def check_config(config_path: Path, path: Path | None, as_json: bool) -> None:
    """Check a configuration without using it.

    \b
    Example:  shala-agent check-config /etc/shala/agent.toml
    """
    config = read_config(path or config_path)
    if as_json:
        _print_json({"valid": True, "config": config})
    else:
        click.echo(f"{path or config_path} is valid.")


for _command in (enrol, sync, records, progress):
    shala_agent.add_command(_command)


def _pass(config_path: Path, as_json: bool, deed: Callable[[Chain], Passage]) -> None:
    """Do some steps, print what came of them and leave with the exit code."""
    from shala_agent.chain import Chain

    config = read_config(config_path)
    with closing(_ledger(config)) as ledger, Progress() as bar:
        passage = deed(Chain(config, ledger, bar.say, bar.files, bar.tick))
    if as_json:
        _print_json(_passage_document(passage))
    else:
        for line in _passage_lines(passage):
            click.echo(line)
    raise click.exceptions.Exit(passage.exit_code)


def _passage_document(passage: Passage) -> dict[str, Any]:
    collected = passage.collected
    return {
        "format": 1,
        "run": passage.run,
        "resumed": passage.resumed,
        "exit": passage.exit_code,
        "steps": [{"step": name, **msgspec.to_builtins(result)} for name, result in passage.steps],
        "left": passage.left,
        "collection": None
        if collected is None
        else {
            "sealed": collected.sealed,
            "sequence": collected.head.sequence if collected.head else None,
            "items": msgspec.to_builtins(collected.collection.items),
        },
    }


def _passage_lines(passage: Passage) -> list[str]:
    lines = []
    if passage.collected is not None:
        done = passage.collected
        count = {
            word: sum(i.outcome == word for i in done.collection.items)
            for word in ("ok", "suspect", "failed", "skipped")
        }
        sequence = done.head.sequence if done.head else 0
        what = (
            f"collection {sequence} is sealed"
            if done.sealed
            else f"nothing is new since collection {sequence}"
        )
        lines.append(f"{what}: {', '.join(f'{number} {word}' for word, number in count.items() if number)}")
    lines += [
        f"{name} {result.outcome}: {reason}"
        for name, result in passage.steps
        for reason in (result.reasons if result.outcome != "ok" else [])
    ]
    if passage.left:
        lines.append(f"Left for the next run: {', '.join(passage.left)}. More: shala-agent status")
    elif passage.exit_code:
        lines.append(f"Not done: {', '.join(passage.missed)}. More: shala-agent status; shala-agent doctor")
    else:
        lines.append("Done.")
    return lines


def _sync_line(standing: Standing) -> str:
    if not standing.zone:
        return "sync       switched on, but this server is not enrolled in a zone (shala-agent enrol)"
    lag = f"{standing.lag_entries} records to send ({standing.lag_bytes / 1000:.0f} kB)"
    last = standing.last
    if last is None:
        return f"sync       zone {standing.zone}, {lag}, never synced (shala-agent sync)"
    how = last.outcome if last.outcome == "done" else f"{last.outcome}: {last.reason}"
    moved = f"{last.records_up} up, {last.records_down} down"
    return f"sync       zone {standing.zone}, {lag}; last {last.ended}: {moved}, {how}"


def _item_row(item: dict[str, Any]) -> list[str]:
    name = f"{item['platform']}/{item['name']}"
    return [name, item["outcome"], str(item["files"]), f"{item['bytes'] / 1e6:.1f}", _first(item["reasons"])]


def _table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        click.echo(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _first(reasons: list[str]) -> str:
    return f"{reasons[0]}{f' (+{len(reasons) - 1})' if len(reasons) > 1 else ''}" if reasons else ""


def _ledger(config: Config) -> Ledger:
    return Ledger(Path(config.paths.state) / "ledger.sqlite")


def _print_json(document: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=1))


def _stop(number: int, _frame: object) -> None:
    raise Stopped(signal.Signals(number).name)


if __name__ == "__main__":
    main()
