"""The command that brings a collection back: restore."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from shala_agent.config import read_config
from shala_agent.failure import Stopped
from shala_agent.outcome import FAILED, OK, counted
from shala_agent.progress import Progress

if TYPE_CHECKING:
    from shala_agent.restore import Restored


@click.command(short_help="Bring an archived collection back onto this server.")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@click.option(
    "--item",
    "items",
    multiple=True,
    metavar="NAME",
    help="Only this item, e.g. media; may be given more than once.",
)
@click.option("--yes", is_flag=True, help="Replace what a server has that is not like new.")
@click.option("--list", "listing", is_flag=True, help="Only say which items can go back.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.option(
    "--wait",
    type=click.IntRange(min=0),
    default=0,
    metavar="MINUTES",
    help="Wait so long for a running chain to end.",
)
@click.pass_obj
def restore(  # noqa: PLR0917 - click's
    config_path: Path,
    folder: Path | None,
    items: tuple[str, ...],
    yes: bool,
    listing: bool,
    as_json: bool,
    wait: int,
) -> None:
    """Bring databases, media and settings of an archived collection back onto this server.

    FOLDER is what `shala archive checkout` wrote at the centre, or what `shala archive export` packed,
    unpacked. All of it is looked at before anything is changed. What is replaced is kept aside.
    It may be cut at any moment and run again.

    \b
    Example:  shala-agent restore /mnt/usb/2031017-mz17
              shala-agent restore /mnt/usb/2031017-mz17 --item media --item rcs-repo
    """
    from shala_agent.extension import read_catalogue
    from shala_agent.priority import yield_to_others
    from shala_agent.restore import restore as bring_back
    from shala_agent.restore_note import half_done

    if listing and folder is not None:
        raise click.UsageError("--list shows what can go back at all, FOLDER or not: leave one of them out")
    config = read_config(config_path)
    if listing:
        names = [item.name for item in read_catalogue(config).items if item.restore]
        click.echo(msgspec.json.encode({"format": 1, "items": names}) if as_json else "\n".join(names))
        return
    if folder is None:
        raise click.UsageError("Missing argument 'FOLDER'.")
    yield_to_others()
    try:
        with Progress() as bar:
            done = bring_back(
                config, folder, items, yes=yes, wait_seconds=wait * 60.0, say=bar.say, tick=bar.tick
            )
    except Stopped as stop:
        state = Path(config.paths.state)
        stop.left = half_done(state) or "no database is half restored, the same command goes on"
        raise
    if as_json:
        listed = [{"name": name, **msgspec.to_builtins(result)} for name, result in done.items]
        document = {
            "format": 1,
            "exit": done.exit_code,
            "kept": done.kept,
            "restart_needed": done.restart_needed,
            "items": listed,
        }
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=1))
    else:
        for line in _lines(done):
            click.echo(line)
    raise click.exceptions.Exit(done.exit_code)


def _lines(done: Restored) -> list[str]:
    lines = [f"{name} {result.outcome}: {'; '.join(result.reasons)}" for name, result in done.items]
    if done.kept:
        lines.append(f"What was there before is in {done.kept}: remove it when nobody misses it.")
    if bad := [name for name, result in done.items if result.outcome == FAILED]:
        lines.append(f"Not restored: {', '.join(bad)}. Run it again when that is mended.")
    else:
        good = sum(result.outcome == OK for _, result in done.items)
        lines.append(f"{counted(good, 'item')} restored. Next: shala-agent run")
    return lines
