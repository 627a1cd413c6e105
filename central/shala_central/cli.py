"""The command line of the centre, `shala`: reads arguments, prints results; all else is in other modules."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NoReturn

import click
import msgspec
from shala_agent.output import lost

from shala_central import __version__
from shala_central.config import CentralConfig, read_config
from shala_central.failure import CentralError, UsageError, refused
from shala_central.fleet import Server, read_fleet, select
from shala_central.options import (
    FAILED,
    USAGE,
    Group,
    config_option,
    config_path_option,
    counted,
    items_line,
    json_option,
    print_json,
)
from shala_central.probe import TIMEOUT_SECONDS, Target, run_probe
from shala_central.pull import GOOD, NoWatcher, ServerResult, Watcher, exit_code, pull
from shala_central.report import duration, size, table
from shala_central.schools import STATES, Rules, address_problem, read_schools, rules_beside


def main() -> NoReturn:
    """Run the command line; every failure is one line on stderr and an exit code."""
    try:
        code = shala.main(prog_name="shala", standalone_mode=False)
    except UsageError as error:
        code = _complain(str(error), USAGE)
    except CentralError as error:
        code = _complain(str(error), FAILED)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = USAGE
    except click.ClickException as error:
        hint = (
            f" (see: {error.ctx.command_path} --help)"
            if isinstance(error, click.UsageError) and error.ctx
            else ""
        )
        code = _complain(error.format_message() + hint, USAGE)
    except (KeyboardInterrupt, click.Abort, asyncio.CancelledError):
        code = _complain("interrupted; what has arrived is kept, the same command goes on from there", FAILED)
    except OSError as error:
        place = Path(str(error.filename or "system"))
        inside = isinstance(error, PermissionError) and ".shala" in place.parts
        why = refused(place) if inside else f"{place}: {error.strerror or error}"
        code = _complain(lost() or why, FAILED)
    if reason := lost():
        code = _complain(reason, FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str, code: int) -> int:
    click.echo(f"shala: {text}", err=True)
    return code


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="shala %(version)s")
def shala() -> None:
    """Runs school servers that nobody can reach most of the time: the central side.

    \b
    Example, from a list of schools to an archive:
      shala schools check schools.csv     is the list of schools right?
      shala probe                         who answers now?
      shala pull --limit state_mz         fetch what Mizoram's servers have collected
      shala archive tree 2026/mz          look at it

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 partly done.
    """


# -- pull ----------------------------------------------------------------------------------------------------


@shala.command("pull", short_help="Fetch new collections into the archive.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--limit",
    metavar="GROUP",
    help="Only these groups, e.g. state_mz or zone_mz_aizawl,state_rj.",
)
@click.option(
    "--accept-reset",
    is_flag=True,
    help="Take a collection whose number went back, or of another device (server re-installed).",
)
@click.option(
    "--again", is_flag=True, help="Read all content that is here again, and fetch what is damaged or gone."
)
@config_option
@json_option
def pull_command(  # noqa: PLR0917 - click's
    names: tuple[str, ...],
    limit: str | None,
    accept_reset: bool,
    again: bool,
    config: CentralConfig,
    as_json: bool,
) -> int:
    """Fetch the newest sealed collections into the archive.

    Without NAME and --limit: from every server of the fleet. Servers that do not answer are named and left
    for the next time. Files that have not changed are not moved again; an interrupted pull goes on where it
    was.

    \b
    Examples:
      shala pull
      shala pull --limit state_mz
      shala pull 2031017-mz17 --json
      shala pull --again 2031017-mz17     after: shala archive verify
    """
    if accept_reset and not names:
        raise UsageError("--accept-reset needs the names of the servers that were re-installed")
    servers = select(read_fleet(Path(config.fleet)), names, limit)
    if not servers:
        raise UsageError("the fleet is empty (playbooks/central.yml makes it from the inventory)")
    if not as_json:
        zones = len({server.zone for server in servers if server.zone})
        within = f" in {counted(zones, 'zone')}" if zones else ""
        click.echo(
            f"Pulling from {counted(len(servers), 'server')}{within} into {config.archive.root}", err=True
        )
    with contextlib.ExitStack() as stack:
        watcher: Watcher = NoWatcher()
        if not as_json and sys.stderr.isatty():
            from shala_central.progress import Bars

            watcher = stack.enter_context(Bars(len(servers)))
        results = asyncio.run(_interruptible(servers, config, watcher, accept_reset, again))
    if as_json:
        print_json({"servers": results})
    else:
        _print_results(results)
    return exit_code(results)


async def _interruptible(
    servers: Sequence[Server], config: CentralConfig, watcher: Watcher, accept_reset: bool, again: bool
) -> list[ServerResult]:
    """Pull, and treat SIGTERM (systemd stopping the unit) like Ctrl-C:
    end the transfers, keep what has arrived.
    """
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await pull(servers, config, watcher, accept_reset=accept_reset, again=again)


def _print_results(results: Sequence[ServerResult]) -> None:
    rows = [
        {
            "server": result.name,
            "state": result.state,
            "zone": result.zone or "-",
            "result": result.result,
            "ok/suspect/failed/missing": items_line(result.items) if result.result in GOOD else "-",
            "bytes": size(result.bytes) if result.result in GOOD else "-",
            "received": size(result.bytes_received) if result.result != "offline" else "-",
            "duration": duration(result.seconds) if result.result != "offline" else "-",
        }
        for result in results
    ]
    right = ("ok/suspect/failed/missing", "bytes", "received", "duration")
    for line in table(rows, list(rows[0]), right):
        click.echo(line)
    click.echo()
    for result in results:
        if result.result not in GOOD:
            click.echo(f"{result.name}: {result.result}: {result.reason}")
    if received := sum(result.bytes_received for result in results):
        new = [result for result in results if result.result == "committed"]
        files = sum(result.files_received for result in new)
        whole = sum(result.bytes for result in new)
        saved = max(0, whole - sum(result.bytes_received for result in new))
        spared = f"; {size(saved)} of {size(whole)} did not have to travel" if new else ""
        click.echo(f"{counted(files, 'file')}, {size(received)} received{spared}.")
    left = [result for result in results if result.result not in GOOD]
    committed = sum(result.result == "committed" for result in results)
    unchanged = sum(result.result == "unchanged" for result in results)
    done = f"{committed} committed, {unchanged} unchanged"
    if not left:
        click.echo(f"Done: {done}, none left. More: shala archive tree, shala archive show {results[0].name}")
        return
    kinds = ", ".join(
        f"{count} {kind}"
        for kind in ("offline", "quarantined", "failed")
        if (count := sum(result.result == kind for result in left))
    )
    again = " ".join(result.name for result in left[:5]) + (" ..." if len(left) > 5 else "")
    refused = next((result.name for result in left if result.result == "quarantined"), None)
    more = f"shala archive show {refused}" if refused else "shala probe"
    click.echo(f"{done}; left: {kinds}. Again: shala pull {again}. More: {more}")


shala.add_elsewhere("archive", "shala_central.archive_commands", "archive_group")
shala.add_elsewhere("org", "shala_central.zone_commands", "org_group")
shala.add_elsewhere("zone", "shala_central.zone_commands", "zone_group")
shala.add_elsewhere("device", "shala_central.device_commands", "device_group")
shala.add_elsewhere("serve", "shala_central.serve_command", "serve_command")


# -- probe and schools ---------------------------------------------------------------------------------------


class _ProbeTarget(msgspec.Struct, forbid_unknown_fields=False):
    name: str
    address: str
    port: int = 22


@shala.command("probe", short_help="Find out which servers answer now.")
@click.argument("file", type=click.File("rb"), required=False)
@click.option(
    "--timeout", type=click.FloatRange(0.1, 60), default=TIMEOUT_SECONDS, show_default=True, help="Seconds."
)
@config_path_option
@json_option
def probe_command(file: IO[bytes] | None, timeout: float, config_path: Path, as_json: bool) -> int:
    """Find out which servers answer now, a thousand at once, without logging in anywhere.

    FILE (`-`: what is piped in) holds a JSON list of {"name", "address", "port"}; without FILE it is the
    fleet of the centre. The exit code is 0 whoever answers: who does is the answer.

    \b
    Examples:
      shala probe
      echo '[{"name": "mz17", "address": "10.0.0.17"}]' | shala probe --json -
    """
    if file is None:
        fleet = read_fleet(Path(read_config(config_path).fleet))
        targets = [Target(server.name, server.address, server.port) for server in fleet]
    else:
        targets = _read_targets(file.read())
    answers = run_probe(targets, timeout)
    online = [name for name, reason in answers.items() if not reason]
    offline = {name: reason for name, reason in answers.items() if reason}
    if as_json:
        print_json({"online": online, "offline": offline})
        return 0
    for name, reason in answers.items():
        click.echo(f"{name:<20} {f'offline: {reason}' if reason else 'online'}")
    click.echo(f"{len(online)} of {counted(len(answers), 'server')} answer. More: shala pull")
    return 0


def _read_targets(raw: bytes) -> list[Target]:
    try:
        items = msgspec.json.decode(raw, type=list[_ProbeTarget])
    except msgspec.MsgspecError as error:
        raise UsageError(f"the list of servers is not readable: {error} (see: shala probe --help)") from None
    seen: set[str] = set()
    for item in items:
        if problem := address_problem(item.address):
            raise UsageError(f"the address '{item.address}' of '{item.name}' {problem}")
        if not 1 <= item.port <= 65535:
            raise UsageError(f"the port {item.port} of '{item.name}' is not between 1 and 65535")
        if item.name in seen:
            raise UsageError(f"'{item.name}' is in the list twice")
        seen.add(item.name)
    return [Target(item.name, item.address, item.port) for item in items]


@shala.group("schools", cls=Group)
def schools_group() -> None:
    """The list of schools.

    \b
    Example:
      shala schools check schools.csv
    """


@schools_group.command("check", short_help="Check a list of schools.")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--states", help=f"The state codes there are.  [default: {','.join(STATES)}]")
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="OTHER=STATE",
    help="Another spelling of a state; may be given more than once.  [default: cg=ct, ts=tg]",
)
@click.option(
    "--duplicate-ids",
    type=click.Choice(["error", "first", "skip"]),
    help="What a server id in two rows means: an error, the first row counts, or neither.  [default: error]",
)
@click.option(
    "--invalid",
    type=click.Choice(["error", "skip"]),
    help="What a row that cannot be used means: an error, or left out with a warning.  [default: error]",
)
@click.option(
    "--code",
    "codes",
    multiple=True,
    metavar="ID=CODE",
    help="The school code of a server of which the list has none; may be given more than once.",
)
@json_option
def schools_check(  # noqa: PLR0917 - Click calls it by name
    file: Path,
    states: str | None,
    aliases: tuple[str, ...],
    duplicate_ids: str | None,
    invalid: str | None,
    codes: tuple[str, ...],
    as_json: bool,
) -> int:
    """Check a list of schools before it becomes an inventory.

    FILE is a CSV with the columns `School Name;Full CLIx School Code;Server id`, and zone, address, port,
    ring if you have them. Names line, field and value of whatever is wrong. Exit code 1 if there is an error.
    What a schools.yml beside it says (states, aliases, duplicate_ids, invalid, codes) holds here as it does
    in the inventory, unless an option says otherwise.

    \b
    Examples:
      shala schools check schools.csv
      shala schools check schools.csv --duplicate-ids first --states mz,rj,ct,tg,ka
      shala schools check inventories/example/schools.csv
      shala schools check schools.csv --code tg39=4160139
    """
    beside = rules_beside(file)
    mapping = dict(beside.aliases)
    for alias in aliases:
        other, equals, state = alias.partition("=")
        if not equals:
            raise UsageError(f"--alias '{alias}' is not of the form OTHER=STATE (e.g. --alias cg=ct)")
        mapping[other] = state
    known = tuple(state.strip() for state in (states or ",".join(beside.states)).split(",") if state.strip())
    mapping = {
        other: state for other, state in mapping.items() if state in known or f"{other}={state}" in aliases
    }
    given = dict(code.split("=", 1) for code in codes if "=" in code)
    if len(given) != len(codes):
        raise UsageError("--code is of the form ID=CODE, each id once (e.g. --code tg39=4160139)")
    rules = Rules(
        states=known,
        aliases=mapping,
        duplicate_ids=duplicate_ids or beside.duplicate_ids,  # type: ignore[arg-type]
        invalid=invalid or beside.invalid,  # type: ignore[arg-type]
        codes={**beside.codes, **given},
    )
    try:
        read = read_schools(file, rules)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if as_json:
        print_json({"schools": read.schools, "findings": read.findings})
        return FAILED if read.errors else 0
    for finding in read.findings:
        click.echo(f"{finding.severity}: {finding}")
    rows = [
        {"state": state, "servers": sum(school.state == state for school in read.schools)} for state in known
    ]
    for line in table(rows, ("state", "servers"), ("servers",)):
        click.echo(line)
    errors, warnings = len(read.errors), len(read.findings) - len(read.errors)
    click.echo(
        f"{counted(len(read.schools), 'server')} can be used,"
        f" {counted(errors, 'error')}, {counted(warnings, 'warning')}."
        f"{f' Correct them in {file.name}, or set what to do in schools.yml beside it' if errors else ''}"
    )
    return FAILED if errors else 0


@shala.command("version")
@json_option
def version_command(as_json: bool) -> int:
    """Print the version.

    \b
    Example:
      shala version
    """
    if as_json:
        print_json({"version": __version__})
    else:
        click.echo(f"shala {__version__}")
    return 0
