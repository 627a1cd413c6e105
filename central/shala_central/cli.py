"""The command line of the centre, `shala`: reads arguments, prints results; all else is in other modules."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import click
import msgspec

from shala_central import __version__
from shala_central.archive import Archive, Committed, Entry
from shala_central.bag import count_items
from shala_central.completeness import Completeness, by_state, completeness, page
from shala_central.config import CONFIG_PATH, CentralConfig, read_config
from shala_central.failure import CentralError, UsageError
from shala_central.fleet import Server, read_fleet, select
from shala_central.probe import TIMEOUT_SECONDS, Target, run_probe
from shala_central.pull import GOOD, NoWatcher, ServerResult, Watcher, exit_code, pull
from shala_central.report import duration, size, table
from shala_central.schools import ALIASES, STATES, Rules, address_problem, read_schools

FAILED, USAGE, PARTLY = 1, 2, 3
MAX_SHOWN = 20  # files or findings shown one by one; --json has them all


class Group(click.Group):
    """Commands in the order in which a newcomer meets them, not in that of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of their definition."""
        return list(self.commands)


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
        code = _complain(f"{error.filename or 'system'}: {error.strerror or error}", FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str, code: int) -> int:
    click.echo(f"shala: {text}", err=True)
    return code


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")(
        command
    )


def _config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config; the command receives the configuration, read and checked."""

    @click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        default=CONFIG_PATH,
        envvar="SHALA_CENTRAL_CONFIG",
        show_default=True,
        help="The centre's configuration.",
    )
    @functools.wraps(command)
    def with_config(*arguments: Any, config_path: Path, **options: Any) -> Any:
        return command(*arguments, config=read_config(config_path), **options)

    return with_config


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
    default="",
    metavar="GROUP",
    help="Only these groups, e.g. state_mz or zone_mz_aizawl,state_rj.",
)
@click.option(
    "--accept-reset", is_flag=True, help="Take a collection whose number went back (server re-installed)."
)
@_config_option
@_json_option
def pull_command(
    names: tuple[str, ...], limit: str, accept_reset: bool, config: CentralConfig, as_json: bool
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
    """
    servers = select(read_fleet(Path(config.fleet)), names, limit)
    if not servers:
        raise UsageError(
            "no server is both named and within --limit" if names and limit else "the fleet is empty"
        )
    if not as_json:
        zones = len({server.zone for server in servers if server.zone})
        within = f" in {_counted(zones, 'zone')}" if zones else ""
        click.echo(
            f"Pulling from {_counted(len(servers), 'server')}{within} into {config.archive.root}", err=True
        )
    if accept_reset and not names:
        raise UsageError("--accept-reset needs the names of the servers that were re-installed")
    with contextlib.ExitStack() as stack:
        watcher: Watcher = NoWatcher()
        if not as_json and sys.stderr.isatty():
            from shala_central.progress import Bars

            watcher = stack.enter_context(Bars(len(servers)))
        results = asyncio.run(_interruptible(servers, config, watcher, accept_reset))
    if as_json:
        _print_json({"servers": results})
    else:
        _print_results(results)
    return exit_code(results)


async def _interruptible(
    servers: Sequence[Server], config: CentralConfig, watcher: Watcher, accept_reset: bool
) -> list[ServerResult]:
    """Pull, and treat SIGTERM (systemd stopping the unit) like Ctrl-C:
    end the transfers, keep what has arrived.
    """
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await pull(servers, config, watcher, accept_reset=accept_reset)


def _print_results(results: Sequence[ServerResult]) -> None:
    rows = [
        {
            "server": result.name,
            "state": result.state,
            "zone": result.zone or "-",
            "result": result.result,
            "ok/suspect/failed/missing": _items(result.items) if result.result in GOOD else "-",
            "bytes": size(result.bytes) if result.result in GOOD else "-",
            "received": size(result.bytes_received),
            "duration": duration(result.seconds),
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


# -- archive -------------------------------------------------------------------------------------------------


@shala.group("archive", cls=Group)
def archive_group() -> None:
    """Look at the archive of all collections.

    \b
    Example:
      shala archive tree 2026/mz
    """


@archive_group.command("tree", short_help="Print the tree with sizes.")
@click.argument("path", default="", metavar="[PATH]")
@click.option("--depth", type=click.IntRange(0, 20), default=4, show_default=True, help="Down to this LEVEL.")
@_config_option
@_json_option
def archive_tree(path: str, depth: int, config: CentralConfig, as_json: bool) -> int:
    """Print the tree of the archive with sizes: year, state, server, platform, item.

    PATH is a place in it; LEVEL 0 is a year, 4 an item.

    \b
    Examples:
      shala archive tree
      shala archive tree 2026/mz/2031017-mz17
      shala archive tree --depth 2
    """
    archive = _archive(config)
    entries = archive.tree(path, depth)
    if as_json:
        _print_json({"root": str(archive.root), "entries": entries})
        return 0
    _print_tree(str(archive.root), entries)
    top = [entry for entry in entries if entry.level == entries[0].level]
    total = sum(entry.bytes for entry in top)
    click.echo(
        f"\n{size(total)} in {_counted(sum(entry.files for entry in top), 'file')}."
        " More: shala archive tree PATH --depth 5, shala archive show NAME"
    )
    return 0


def _print_tree(root: str, entries: Sequence[Entry]) -> None:
    click.echo(root)
    if not entries:
        click.echo("(nothing is committed yet: shala pull)")
        return
    base = entries[0].level
    lines: list[tuple[str, Entry]] = []
    # From the last to the first: whether a branch goes on below is known only from what comes after.
    open_levels: set[int] = set()
    for entry in reversed(entries):
        open_levels = {level for level in open_levels if level <= entry.level}
        branch = "├── " if entry.level in open_levels else "└── "
        rails = "".join("│   " if level in open_levels else "    " for level in range(base, entry.level))
        open_levels.add(entry.level)
        name = entry.path if entry.level == base else entry.name
        lines.append((rails + branch + _visible(name), entry))
    width = max(len(text) for text, _ in lines)
    for text, entry in reversed(lines):
        click.echo(f"{text:<{width}}  {size(entry.bytes):>8}  {_counted(entry.files, 'file'):>12}")


@archive_group.command("show", short_help="Show what is known of one server.")
@click.argument("name")
@_config_option
@_json_option
def archive_show(name: str, config: CentralConfig, as_json: bool) -> int:
    """Show what is known of one server: its collection item by item, its history, its quarantine.

    \b
    Example:
      shala archive show 2031017-mz17
    """
    archive = _archive(config)
    committed, quarantined = archive.committed(name), archive.quarantined(name)
    if committed is None and not quarantined:
        raise UsageError(
            f"nothing of '{name}' is in the archive (shala archive tree --depth 2 shows what is)"
        )
    history = archive.records(name)
    if as_json:
        _print_json(
            {
                "name": name,
                "tree": str(committed.tree) if committed else None,
                "collection": committed.collection() if committed else None,
                "pull": committed.pull if committed else None,
                "history": history,
                "quarantine": quarantined,
            }
        )
        return 0
    if committed is None:
        click.echo(f"{name}: nothing is committed yet")
    else:
        _print_committed(committed)
    click.echo(f"\nHistory: {_counted(len(history), 'collection')}")
    for record in history[-MAX_SHOWN:]:
        click.echo(
            f"  {record.pulled[:19]}  number {record.sequence}"
            f"  {size(record.bytes)} in {_counted(record.files, 'file')},"
            f" {size(record.bytes_received)} received"
        )
    for entry in quarantined[-MAX_SHOWN:]:
        reasons = entry.get("reasons")
        click.echo(f"\nQuarantine: {entry['folder']} (seen {entry.get('times', 1)} times)")
        for reason in reasons if isinstance(reasons, list) else []:
            click.echo(f"  {reason}")
    click.echo(f"\nMore: shala archive verify {name}, shala archive show {name} --json")
    return 0


def _visible(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


def _print_committed(committed: Committed) -> None:
    collection = committed.collection()
    click.echo(f"{committed.name}  {_visible(collection.school_name)}".rstrip())
    click.echo(f"  {committed.tree}")
    click.echo(
        f"  collection {collection.sequence}, sealed {_visible(collection.sealed)},"
        f" by shala-agent {_visible(collection.agent_version)};"
        f" items ok/suspect/failed/missing {_items(count_items(collection))}\n"
    )
    rows = [
        {
            "platform": _visible(item.platform),
            "item": _visible(item.name),
            "outcome": _visible(item.outcome),
            "files": item.files,
            "bytes": size(item.bytes),
            "of collection": item.carried_from if item.carried_from is not None else collection.sequence,
            "reasons": _visible("; ".join(item.reasons)),
        }
        for item in collection.items
    ]
    columns = ("platform", "item", "outcome", "files", "bytes", "of collection", "reasons")
    for line in table(rows, columns, ("files", "bytes", "of collection")):
        click.echo(f"  {line}")


@archive_group.command("verify", short_help="Compare every file with its manifest.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_config_option
@_json_option
def archive_verify(names: tuple[str, ...], config: CentralConfig, as_json: bool) -> int:
    """Read every published file again and compare it with its manifest.

    Without NAME: of every server. Exit code 1 if all are damaged, 3 if some are.

    \b
    Examples:
      shala archive verify
      shala archive verify 2031017-mz17
    """
    archive = _archive(config)
    chosen = list(names) or archive.servers()
    if not chosen:
        raise UsageError("nothing is committed yet (shala pull)")
    answers = []
    with _bar(chosen, "Verifying", quiet=as_json) as moving:
        for name in moving:
            answers.append({"name": name, "damage": archive.verify(name)})
    damaged = [answer for answer in answers if answer["damage"]]
    if as_json:
        _print_json({"servers": answers})
    else:
        for answer in answers:
            damage: list[Any] = answer["damage"]
            click.echo(f"{answer['name']}: {_counted(len(damage), 'damaged file') if damage else 'ok'}")
            for item in damage[:MAX_SHOWN]:
                click.echo(f"  {item.path} {item.problem}")
            if len(damage) > MAX_SHOWN:
                click.echo(f"  and {len(damage) - MAX_SHOWN} more (--json has all)")
        whole = f"{len(answers) - len(damaged)} of {_counted(len(answers), 'server')} whole"
        hint = (
            f"; left: {len(damaged)} damaged. More: shala archive verify {damaged[0]['name']} --json"
            if damaged
            else ""
        )
        click.echo(f"{whole}{hint}")
    if not damaged:
        return 0
    return FAILED if len(damaged) == len(answers) else PARTLY


@archive_group.command("status", short_help="Show how complete the archive is.")
@click.option("--limit", default="", metavar="GROUP", help="Only these groups, e.g. state_mz.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page for people: figures by state, and a grid of servers by months.",
)
@_config_option
@_json_option
def archive_status(limit: str, html_file: Path | None, config: CentralConfig, as_json: bool) -> int:
    """Show how complete the archive is: by state, and every server that lacks something.

    \b
    Examples:
      shala archive status
      shala archive status --limit state_mz --html status.html
    """
    archive = _archive(config)
    entries = completeness(archive, select(read_fleet(Path(config.fleet)), (), limit))
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    if html_file is not None:
        html_file.write_text(page(entries, f"made {made}"), encoding="utf-8")
    if as_json:
        _print_json({"made": made, "states": by_state(entries), "servers": entries})
        return 0
    rows = [{**row, "bytes": size(int(str(row["bytes"])))} for row in by_state(entries)]
    numbers = ("servers", "delivered", "whole", "bytes")
    for line in table(rows, ("state", *numbers), numbers):
        click.echo(line)
    lacking = [
        entry for entry in entries if entry.items["ok"] < sum(entry.items.values()) or not entry.sequence
    ]
    if lacking:
        click.echo("\nNot whole, or not there:")
        rows = [_lack(entry) for entry in lacking]
        for line in table(rows, ("server", "collection", "pulled", "items", "lacks"), ("collection",)):
            click.echo(line)
    whole = f"{len(entries) - len(lacking)} of {_counted(len(entries), 'server')} whole"
    click.echo(f"\n{whole}. More: shala archive show NAME")
    return 0


def _lack(entry: Completeness) -> dict[str, object]:
    bad = [f"{name} {outcome}" for name, outcome in entry.outcomes.items() if outcome != "ok"]
    quarantined = [f"{entry.quarantined} in quarantine"] if entry.quarantined else []
    shown = [*bad[:3], *([f"and {len(bad) - 3} more"] if len(bad) > 3 else []), *quarantined]
    return {
        "server": entry.name,
        "collection": entry.sequence or "-",
        "pulled": entry.pulled[:16] or "never",
        "items": _items(entry.items) if entry.sequence else "-",
        "lacks": _visible(", ".join(shown)),
    }


@archive_group.command("log", short_help="List the kept collections of a server.")
@click.argument("name")
@_config_option
@_json_option
def archive_log(name: str, config: CentralConfig, as_json: bool) -> int:
    """List the collections of a server that are kept, newest first.

    \b
    Example:
      shala archive log 2031017-mz17
    """
    versions = _archive(config).versions(name)[::-1]
    if as_json:
        _print_json({"name": name, "collections": versions})
        return 0
    rows = [
        {
            "collection": version.sequence,
            "year": version.year,
            "pulled": version.pulled[:19],
            "files": version.files,
            "bytes": size(version.bytes),
        }
        for version in versions
    ]
    numbers = ("collection", "files", "bytes")
    for line in table(rows, ("collection", "year", "pulled", "files", "bytes"), numbers):
        click.echo(line)
    click.echo(f"More: shala archive diff {name} OLD NEW, shala archive checkout {name} NUMBER FOLDER")
    return 0


@archive_group.command("diff", short_help="Show what changed between two collections.")
@click.argument("name")
@click.argument("old", type=int)
@click.argument("new", type=int, required=False)
@_config_option
@_json_option
def archive_diff(name: str, old: int, new: int | None, config: CentralConfig, as_json: bool) -> int:
    """Show which files changed between two collections of a server: + new, - gone, * changed.

    OLD and NEW are numbers of collections; without NEW it is the newest.

    \b
    Examples:
      shala archive diff 2031017-mz17 3
      shala archive diff 2031017-mz17 3 7
    """
    archive = _archive(config)
    before, after = archive.version(name, old), archive.version(name, new)
    changes = archive.diff(before, after)
    if as_json:
        _print_json({"name": name, "old": before, "new": after, "changes": changes})
        return 0
    for change in changes:
        click.echo(f"{change.sign} {_visible(change.path)}  {size(change.bytes)}")
    counts = {sign: sum(change.sign == sign for change in changes) for sign in "+-*"}
    click.echo(f"{counts['+']} new, {counts['-']} gone, {counts['*']} changed")
    return 0


@archive_group.command("checkout", short_help="Write an earlier collection to a folder.")
@click.argument("name")
@click.argument("number", type=int)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--item", default="", metavar="PATH", help="Only what is below this, e.g. gstudio/db.")
@_config_option
@_json_option
def archive_checkout(  # noqa: PLR0917 - click's
    name: str, number: int, folder: Path, item: str, config: CentralConfig, as_json: bool
) -> int:
    """Write a collection of a server, as it was sealed, to a folder that does not exist yet.

    \b
    Examples:
      shala archive checkout 2031017-mz17 3 /tmp/mz17-3
      shala archive checkout 2031017-mz17 3 /tmp/db --item gstudio/db
    """
    archive = _archive(config)
    version = archive.version(name, number)
    files, written = archive.checkout(version, folder, item.strip("/"))
    if as_json:
        _print_json(
            {"name": name, "collection": version, "folder": str(folder), "files": files, "bytes": written}
        )
    else:
        click.echo(
            f"{folder}: collection {version.sequence} of {name}, {_counted(files, 'file')}, {size(written)}"
        )
    return 0


@archive_group.command("prune", short_help="Forget collections that the policy lets go.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@_config_option
@_json_option
def archive_prune(dry_run: bool, config: CentralConfig, as_json: bool) -> int:
    """Forget the collections that the policy lets go, and free the room that only they needed.

    All of the last archive.keep_days days stay, of the last archive.keep_months months the newest of each
    month, then the newest of each year. It may be interrupted at any moment.

    \b
    Example:
      shala archive prune --dry-run
    """
    settings = config.archive
    pruned = _archive(config).prune(settings.keep_days, settings.keep_months, pretend=dry_run)
    if as_json:
        _print_json({"collections": pruned.versions, "objects": pruned.objects, "bytes": pruned.bytes})
        return 0
    for version in pruned.versions:
        click.echo(f"{version.server}  collection {version.sequence} of {version.pulled[:10]}")
    word = "would go" if dry_run else "are gone"
    click.echo(
        f"{_counted(len(pruned.versions), 'collection')} and {_counted(pruned.objects, 'object')} {word},"
        f" {size(pruned.bytes)} of room"
    )
    return 0


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
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=CONFIG_PATH,
    envvar="SHALA_CENTRAL_CONFIG",
    help="Where the fleet is found when neither FILE nor a pipe gives it.",
)
@_json_option
def probe_command(file: IO[bytes] | None, timeout: float, config_path: Path, as_json: bool) -> int:
    """Find out which servers answer now, a thousand at once, without logging in anywhere.

    FILE (or a pipe, or `-`) holds a JSON list of {"name", "address", "port"}; at a terminal without FILE it
    is the fleet of the centre. The exit code is 0 whoever answers: who does is the answer.

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
        _print_json({"online": online, "offline": offline})
        return 0
    for name, reason in answers.items():
        click.echo(f"{name:<20} {f'offline: {reason}' if reason else 'online'}")
    click.echo(f"{len(online)} of {_counted(len(answers), 'server')} answer. More: shala pull")
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
@click.option("--states", default=",".join(STATES), show_default=True, help="The state codes there are.")
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
    default="error",
    show_default=True,
    help="What a server id in two rows means: an error, the first row counts, or neither.",
)
@click.option(
    "--invalid",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What a row that cannot be used means: an error, or it is left out with a warning.",
)
@click.option(
    "--code",
    "codes",
    multiple=True,
    metavar="ID=CODE",
    help="The school code of a server of which the list has none; may be given more than once.",
)
@_json_option
def schools_check(  # noqa: PLR0917 - Click calls it by name
    file: Path,
    states: str,
    aliases: tuple[str, ...],
    duplicate_ids: str,
    invalid: str,
    codes: tuple[str, ...],
    as_json: bool,
) -> int:
    """Check a list of schools before it becomes an inventory.

    FILE is a CSV with the columns `School Name;Full CLIx School Code;Server id`, and zone, address, port,
    ring if you have them. Names line, field and value of whatever is wrong. Exit code 1 if there is an error.

    \b
    Examples:
      shala schools check schools.csv
      shala schools check schools.csv --duplicate-ids first --states mz,rj,ct,tg,ka
      shala schools check inventories/example/schools.csv --code tg39=4160139
    """
    mapping = dict(ALIASES)
    for alias in aliases:
        other, equals, state = alias.partition("=")
        if not equals:
            raise UsageError(f"--alias '{alias}' is not of the form OTHER=STATE (e.g. --alias cg=ct)")
        mapping[other] = state
    known = tuple(state.strip() for state in states.split(",") if state.strip())
    mapping = {
        other: state for other, state in mapping.items() if state in known or f"{other}={state}" in aliases
    }
    given = dict(code.split("=", 1) for code in codes if "=" in code)
    if len(given) != len(codes):
        raise UsageError("--code is of the form ID=CODE, each id once (e.g. --code tg39=4160139)")
    rules = Rules(
        states=known,
        aliases=mapping,
        duplicate_ids=duplicate_ids,  # type: ignore[arg-type]
        invalid=invalid,  # type: ignore[arg-type]
        codes=given,
    )
    try:
        read = read_schools(file, rules)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if as_json:
        _print_json({"schools": read.schools, "findings": read.findings})
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
        f"{_counted(len(read.schools), 'server')} can be used,"
        f" {_counted(errors, 'error')}, {_counted(warnings, 'warning')}."
        f"{' Correct the errors, or see: shala schools check --help' if errors else ''}"
    )
    return FAILED if errors else 0


@shala.command("version")
@_json_option
def version_command(as_json: bool) -> int:
    """Print the version.

    \b
    Example:
      shala version
    """
    if as_json:
        _print_json({"version": __version__})
    else:
        click.echo(f"shala {__version__}")
    return 0


# -- small things --------------------------------------------------------------------------------------------


def _archive(config: CentralConfig) -> Archive:
    archive = Archive(Path(config.archive.root), config.archive.shared_items)
    archive.require()
    return archive


def _items(items: dict[str, int]) -> str:
    return "/".join(str(items.get(kind, 0)) for kind in ("ok", "suspect", "failed", "missing"))


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _print_json(value: object) -> None:
    click.echo(msgspec.json.encode(value).decode())


def _bar(items: Sequence[str], label: str, *, quiet: bool) -> Any:
    """Return a progress bar at a terminal, otherwise something that only hands the items on."""
    if quiet or not sys.stderr.isatty():
        return contextlib.nullcontext(items)
    return click.progressbar(items, label=label, file=sys.stderr)
