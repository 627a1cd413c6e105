"""What was refused: `shala archive quarantine ...`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from shala_central.archive import Archive
from shala_central.config import CentralConfig
from shala_central.failure import UsageError
from shala_central.options import (
    Group,
    config_option,
    counted,
    json_option,
    open_archive,
    print_json,
    visible,
)
from shala_central.quarantine import (
    discard,
    folder_meant,
    in_quarantine,
    let_in,
    quarantine_counts,
    server_of,
)


@click.group("quarantine", cls=Group)
def quarantine_group() -> None:
    """Look at what was refused, let it in, or throw it away.

    \b
    Example:
      shala archive quarantine list
    """


@quarantine_group.command("list", short_help="List what was refused, with the reasons.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@config_option
@json_option
def quarantine_list(names: tuple[str, ...], config: CentralConfig, as_json: bool) -> int:
    """List the refused collections with their reasons.

    \b
    Example:
      shala archive quarantine list 2031017-mz17
    """
    archive = open_archive(config)
    found = [entry for name in _refused(archive, names) for entry in in_quarantine(archive, name)]
    if as_json:
        print_json({"quarantine": found})
        return 0
    for entry in found:
        reasons = entry.get("reasons")
        folder = Path(str(entry["folder"])).name
        click.echo(f"{entry['server_name']}  {folder}  {times_seen(entry)}{whether_released(entry)}")
        for reason in reasons if isinstance(reasons, list) else []:
            click.echo(f"  {visible(str(reason))}")
    more = ". To let one in: shala archive quarantine release FOLDER" if found else ""
    click.echo(f"{counted(len(found), 'refused collection')}{more}")
    return 0


@quarantine_group.command("release", short_help="Let a refused collection in.")
@click.argument("folder")
@config_option
@json_option
def quarantine_release(folder: str, config: CentralConfig, as_json: bool) -> int:
    """Let a refused collection in, if what stood against it was a rule.

    FOLDER is the one in which it is kept, as shala archive quarantine list names it; the name of a server
    will do where it has only one.

    Rules are: numbers and years only go up, one device stays one device. Only those are lifted that it was
    refused for, and only for this collection: if it breaks another one, or comes signed by yet another
    device, it is refused again. Who lifted what and when is kept in .shala/releases. What differs from its
    own manifest cannot be let in: shala pull asks for it again.

    \b
    Example:
      shala archive quarantine release 2031017-mz17-00000003-20261121T153800.000000Z
    """
    archive = open_archive(config, writing=True)
    release = let_in(archive, folder_meant(archive, folder))
    if as_json:
        print_json(release)
        return 0
    click.echo(f"{release.folder} will be let in, although")
    for broken in release.broken:
        click.echo(f"  {broken.rule}: {broken.fact}")
    click.echo(f"Said by {visible(release.by)}. Now: shala pull {release.server_name}")
    return 0


@quarantine_group.command("discard", short_help="Throw refused collections away.")
@click.argument("names", nargs=-1, required=True, metavar="NAME|FOLDER...")
@config_option
@json_option
def quarantine_discard(names: tuple[str, ...], config: CentralConfig, as_json: bool) -> int:
    """Throw away the refused collections of servers, or only what one FOLDER keeps.

    \b
    Examples:
      shala archive quarantine discard 2031017-mz17
      shala archive quarantine discard 2031017-mz17-00000003-20261121T153800.000000Z
    """
    archive = open_archive(config, writing=True)
    folders = {name: server for name in names if (server := server_of(archive, Path(name).name))}
    servers = [name for name in names if name not in folders]
    gone = {name: discard(archive, name) for name in (_refused(archive, servers) if servers else ())}
    gone |= {Path(name).name: discard(archive, server, Path(name).name) for name, server in folders.items()}
    if as_json:
        print_json({"discarded": gone})
    else:
        click.echo(f"{counted(sum(gone.values()), 'refused collection')} of {', '.join(gone)} thrown away")
    return 0


def _refused(archive: Archive, names: Sequence[str]) -> list[str]:
    """Return the servers that are meant, each once: those named, or all with something in quarantine.

    Raises UsageError for one that has nothing there.
    """
    refused = quarantine_counts(archive)
    for name in names:
        if name not in refused:
            raise UsageError(
                f"nothing of '{visible(name)}' is in quarantine (shala archive quarantine list shows what is)"
            )
    return list(dict.fromkeys(names)) or sorted(refused)


def times_seen(entry: Mapping[str, object]) -> str:
    """Say how often a refused collection was seen."""
    return f"seen {counted(int(str(entry.get('times', 1))), 'time')}"


def whether_released(entry: Mapping[str, object]) -> str:
    """Say that a refused collection will be let in, if so."""
    return "  released: the next pull lets it in" if entry["released"] else ""
