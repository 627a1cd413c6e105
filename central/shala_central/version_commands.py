"""Earlier collections: `shala archive log`, `diff`, `checkout`, `export`, `restore` and `accept`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from shala_central.archive import Archive
from shala_central.checkout import checkout
from shala_central.ciphertext import read_identities
from shala_central.commit import accept, restore
from shala_central.config import CentralConfig
from shala_central.failure import UsageError
from shala_central.fleet import read_fleet, select
from shala_central.history import HistoryError
from shala_central.options import (
    MAX_NAMED,
    PARTLY,
    complain_of,
    config_option,
    counted,
    identity_option,
    json_option,
    open_archive,
    print_json,
    servers_of,
    visible,
)
from shala_central.report import size, table
from shala_central.target import writing_to
from shala_central.versions import diff, handles, items_of, newest_of, version_of, versions_of


@click.command("log", short_help="List the kept collections of a server.")
@click.argument("name")
@config_option
@json_option
def archive_log(name: str, config: CentralConfig, as_json: bool) -> int:
    """List the collections of a server that are kept, newest first.

    What stands under `collection` is what diff, checkout, restore and export take: a number, and with its
    time where a server that was installed anew has used that number twice.

    \b
    Example:
      shala archive log 2031017-mz17
    """
    archive = open_archive(config)
    try:
        versions, code = versions_of(archive, name)[::-1], 0
    except HistoryError as error:
        click.echo(f"shala: {error}; only the newest is known", err=True)
        versions, code = [newest_of(archive, name)], PARTLY
    names = handles(versions)
    if as_json:
        listed = [
            {
                **msgspec.structs.asdict(version),
                "handle": names[version],
                "items": items_of(archive, version),
            }
            for version in versions
        ]
        print_json({"name": name, "collections": listed})
        return code
    rows = [
        {
            "collection": names[version],
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
    return code


@click.command("diff", short_help="Show what changed between two collections.")
@click.argument("name")
@click.argument("old")
@click.argument("new", required=False)
@config_option
@json_option
def archive_diff(name: str, old: str, new: str | None, config: CentralConfig, as_json: bool) -> int:
    """Show which files changed between two collections of a server: + new, - gone, * changed.

    OLD and NEW are collections as shala archive log names them; without NEW it is the newest.

    \b
    Examples:
      shala archive diff 2031017-mz17 3
      shala archive diff 2031017-mz17 3 7
      shala archive diff 2031017-mz17 2@2026-11-20T15:38 2@2026-11-21T15:38
    """
    archive = open_archive(config)
    before, after = version_of(archive, name, old), version_of(archive, name, new)
    changes = diff(archive, before, after)
    if as_json:
        print_json({"name": name, "old": before, "new": after, "changes": changes})
        return 0
    for change in changes:
        click.echo(f"{change.sign} {visible(change.path)}  {size(change.bytes)}")
    counts = {sign: sum(change.sign == sign for change in changes) for sign in "+-*"}
    click.echo(f"{counts['+']} new, {counts['-']} gone, {counts['*']} changed")
    return 0


@click.command("checkout", short_help="Write an earlier collection to a folder.")
@click.argument("name")
@click.argument("number")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--item", default="", metavar="PATH", help="Only what is below this, e.g. gstudio/db.")
@identity_option
@config_option
@json_option
def archive_checkout(  # noqa: PLR0917 - click's
    name: str,
    number: str,
    folder: Path,
    item: str,
    identity: Path | None,
    config: CentralConfig,
    as_json: bool,
) -> int:
    """Write a collection of a server, as it was sealed, to a folder that does not exist yet.

    NUMBER is the collection as shala archive log names it. The folder is its owner's alone (0700); what is
    in it has the permissions of the school. What is encrypted is an age file there; with the key of a
    researcher it is decrypted and compared with what the school sealed.

    \b
    Examples:
      shala archive checkout 2031017-mz17 3 /tmp/mz17-3
      shala archive checkout 2031017-mz17 3 /tmp/db --item gstudio/db
      shala archive checkout 2031017-mz17 3 /tmp/users --item gstudio/postgres-dump --identity key.txt
    """
    archive = open_archive(config)
    version = version_of(archive, name, number)
    identities = read_identities(identity) if identity is not None else ()
    with writing_to(archive, folder):
        files, written = checkout(archive, version, folder, item.strip("/"), identities)
    if as_json:
        print_json(
            {"name": name, "collection": version, "folder": str(folder), "files": files, "bytes": written}
        )
    else:
        click.echo(
            f"{folder}: collection {version.sequence} of {name}, {counted(files, 'file')}, {size(written)}"
        )
    return 0


@click.command("restore", short_help="Put an earlier collection, or items of it, in view again.")
@click.argument("name")
@click.argument("number")
@click.option(
    "--item",
    "items",
    multiple=True,
    metavar="ITEM",
    help="Only this item, e.g. gstudio/db; may be given more than once.",
)
@config_option
@json_option
def archive_restore(
    name: str, number: str, items: tuple[str, ...], config: CentralConfig, as_json: bool
) -> int:
    """Let readers see an earlier collection of a server, or items of it, until the next good one.

    NUMBER is the collection as shala archive log names it. The newest one stays what it is, beside it:
    shala archive accept brings it back into view.

    \b
    Examples:
      shala archive restore 2031017-mz17 3
      shala archive restore 2031017-mz17 3 --item gstudio/db
    """
    archive = open_archive(config, writing=True)
    version = version_of(archive, name, number)
    shown = restore(archive, name, version, items)
    if as_json:
        print_json({"name": name, "collection": version, "items": shown})
    else:
        click.echo(f"{name}: readers see collection {number} of {', '.join(shown)}")
    return 0


@click.command("accept", short_help="Let suspect items replace the last good ones in view.")
@click.argument("name")
@click.argument("items", nargs=-1, metavar="[ITEM]...")
@config_option
@json_option
def archive_accept(name: str, items: tuple[str, ...], config: CentralConfig, as_json: bool) -> int:
    """Let suspect items of the newest collection replace the last good ones in view.

    Without ITEM all that are held back; shala archive show NAME lists them.

    \b
    Examples:
      shala archive accept 2031017-mz17
      shala archive accept 2031017-mz17 gstudio/db
    """
    accepted = accept(open_archive(config, writing=True), name, items)
    if as_json:
        print_json({"name": name, "accepted": accepted})
    else:
        click.echo(f"{name}: {', '.join(accepted) or 'nothing'} accepted")
    return 0


@click.command("export", short_help="Write a selection to one tar file.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--limit", metavar="GROUP", help="Only these groups, e.g. state_mz.")
@click.option(
    "--item",
    "items",
    multiple=True,
    metavar="ITEM",
    help="Only this item, e.g. gstudio/db; may be given more than once.",
)
@click.option("--number", help="This collection (as shala archive log names it) instead of the newest.")
@click.option(
    "--to", "target", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.tar[.zst]"
)
@identity_option
@config_option
@json_option
def archive_export(  # noqa: PLR0917 - click's
    names: tuple[str, ...],
    limit: str | None,
    items: tuple[str, ...],
    number: str | None,
    target: Path,
    identity: Path | None,
    config: CentralConfig,
    as_json: bool,
) -> int:
    """Write what servers sealed to one tar file: a BagIt bag for each, with its manifest.

    What is encrypted is an age file there, or decrypted with the key of a researcher. Servers that have none
    of what is wanted are named and left out, and so are those of which something is damaged (exit code 3).

    FILE ends in .tar, or in .tar.zst, which is packed.

    \b
    Examples:
      shala archive export 2031017-mz17 --to mz17.tar
      shala archive export --limit state_mz --item gstudio/activity-timestamp-csvs --to mz.tar.zst
    """
    from shala_central.export import export

    archive = open_archive(config)
    wanted = servers_of(archive, names)
    if limit is not None:
        wanted = [server.name for server in select(read_fleet(Path(config.fleet)), names, limit)]
    versions = [
        version_of(archive, name, number) for name in wanted if name in names or archive.is_readable(name)
    ]
    if not versions:
        raise UsageError("no chosen server has a collection (shala archive status shows which have)")
    identities = read_identities(identity) if identity is not None else ()
    with writing_to(archive, target):
        done = export(archive, versions, items, target, identities)
    if as_json:
        print_json(done)
    else:
        whose = counted(len(done.servers), "server")
        left = f"; left out: {counted(len(done.failed), 'damaged server')}" if done.failed else ""
        click.echo(f"{target}: {whose}, {counted(done.files, 'file')}, {size(done.bytes)}{left}")
    complain_of(done.failed.values())
    if lacking := [name for name in wanted if name not in done.servers and name not in done.failed]:
        others = f" and {counted(len(lacking) - MAX_NAMED, 'other')}" if len(lacking) > MAX_NAMED else ""
        click.echo(f"shala: nothing of {', '.join(lacking[:MAX_NAMED])}{others} is in it", err=True)
    code = PARTLY if done.failed else 0
    return code if names else _name_damaged(archive) or code


def _name_damaged(archive: Archive) -> int:
    """Name the servers that were left out because nothing can be told of them; return the exit code."""
    damaged = archive.damaged()
    complain_of(damaged.values())
    return PARTLY if damaged else 0
