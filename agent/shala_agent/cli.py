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

from shala_agent import __version__, journal
from shala_agent.config import CONFIG_PATH, Config, missing_places, read_config, unusable_authority
from shala_agent.failure import AgentError, Stopped, UsageError
from shala_agent.ledger import Ledger
from shala_agent.output import lost
from shala_agent.progress import Progress
from shala_agent.restore_command import restore
from shala_agent.status_commands import acknowledge, diagnose, doctor, status
from shala_agent.sync_commands import enrol, progress, records, sync

if TYPE_CHECKING:
    from shala_agent.chain import Chain, Passage

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
        code = stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = USAGE
    except click.ClickException as error:
        command = (
            error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "shala-agent"
        )
        _say_error(f"{error.format_message()} (see: {command} --help)")
        code = USAGE
    except AgentError as error:
        _say_error(str(error))
        code = USAGE if isinstance(error, UsageError) else FAILED
    except OSError as error:
        place = error.filename or "system"
        _say_error(lost() or f"{place}: {error.strerror or error} (run as root? disk full?)")
        code = FAILED
    except sqlite3.Error as error:
        _say_error(f"the agent's own records: {error} (run as root? disk full?)")
        code = FAILED
    except (Stopped, click.Abort) as stop:
        left = stop.left if isinstance(stop, Stopped) else Stopped.left
        click.echo(f"shala-agent: stopped; {left}", err=True)
        code = PARTLY
    if reason := lost():
        _say_error(reason)
        code = FAILED
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
@click.option(
    "--last",
    type=click.IntRange(1, 3000),
    metavar="NUMBER",
    help="Write none; show so many of the last ones.",
)
@_json
@click.pass_obj
def heartbeat(config_path: Path, as_json: bool, last: int | None) -> None:
    """Write one heartbeat now, or show the last ones.

    \b
    Example:  shala-agent heartbeat
              shala-agent heartbeat --last 30
    """
    if last is None:
        _pass(config_path, as_json, lambda chain: chain.by_hand(("heartbeat",)))
        return
    from shala_agent.heartbeat import newest
    from shala_agent.heartbeat_history import shown

    beats = newest(read_config(config_path), last)
    if as_json:
        _print_json({"format": 1, "heartbeats": beats})
    else:
        for line in shown(beats):
            click.echo(line)


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


@derive.command("added")
@click.argument("name")
@_json
@_wait
@click.pass_obj
def derive_added(config_path: Path, name: str, as_json: bool, wait: int) -> None:
    """Run a derivation of /etc/shala/catalogue.toml.

    \b
    Example:  shala-agent derive added h5p-scores
    """
    from shala_agent.extension import read_catalogue

    known = [row.name for row in read_catalogue(read_config(config_path)).derivations]
    if name not in known:
        raise UsageError(f"there is no derivation '{name}' (there are: {', '.join(known)})")
    _pass(config_path, as_json, lambda chain: chain.by_hand((name,), wait * 60.0))


@shala_agent.command("check-config")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--catalogue", is_flag=True, help="PATH is a catalogue.toml; check it alone.")
@click.option("--files-later", is_flag=True, help="Only say it where sync.ca_file is not usable yet.")
@_json
@click.pass_obj
def check_config(
    config_path: Path, path: Path | None, catalogue: bool, files_later: bool, as_json: bool
) -> None:
    """Check a configuration, and the catalogue.toml that it names, without using them.

    \b
    Example:  shala-agent check-config /etc/shala/agent.toml
              shala-agent check-config --catalogue /root/catalogue.toml
    """
    from shala_agent.extension import catalogue_in, read_catalogue

    if catalogue:
        if path is None:
            raise click.UsageError("--catalogue: which file?")
        catalogue_in(path)
        if as_json:
            _print_json({"valid": True})
        else:
            click.echo(f"{path} is valid.")
        return
    config = read_config(path or config_path)
    read_catalogue(config)
    if not files_later and (problem := unusable_authority(config)):
        raise UsageError(f"{path or config_path}: {problem}")
    # Said and no more: a disk that is not there today must not keep a server from being updated.
    for missing in missing_places(config):
        click.echo(f"shala-agent: {path or config_path}: {missing}", err=True)
    if as_json:
        _print_json({"valid": True, "config": config})
    else:
        click.echo(f"{path or config_path} is valid.")


for _command in (status, doctor, diagnose, acknowledge, restore, enrol, sync, records, progress):
    shala_agent.add_command(_command)


def _pass(config_path: Path, as_json: bool, deed: Callable[[Chain], Passage]) -> None:
    """Do some steps, print what came of them and leave with the exit code."""
    from shala_agent.chain import Chain
    from shala_agent.priority import yield_to_others

    yield_to_others()
    config = read_config(config_path)
    with closing(_ledger(config)) as ledger, Progress() as bar:
        passage = deed(Chain(config, ledger, bar.say, bar.files, bar.tick, warn=bar.warn, begun=bar.begun))
        _write_metrics(config, ledger)
    if as_json:
        _print_json(_passage_document(passage))
    else:
        level = journal.WARNING if passage.exit_code else journal.INFO
        in_journal = journal.is_journal(sys.stdout)
        for text in _passage_lines(passage):
            click.echo(journal.line(text, passage.run, level) if in_journal else text)
    raise click.exceptions.Exit(passage.exit_code)


def _write_metrics(config: Config, ledger: Ledger) -> None:
    from shala_agent.metrics import write_metrics

    try:
        write_metrics(config, ledger)
    except OSError as error:
        # The work is done; who looks at the figures sees that they are old.
        _say_error(f"metrics.file {config.metrics.file}: {error.strerror}")


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


def _ledger(config: Config) -> Ledger:
    return Ledger(Path(config.paths.state) / "ledger.sqlite")


def _print_json(document: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=1))


def _say_error(text: str) -> None:
    said = f"shala-agent: {text}"
    click.echo(journal.line(said, level=journal.ERROR) if journal.is_journal(sys.stderr) else said, err=True)


def _stop(number: int, _frame: object) -> None:
    raise Stopped(signal.Signals(number).name)


if __name__ == "__main__":
    main()
