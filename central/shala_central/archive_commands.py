"""The command line of the archive: `shala archive ...`."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from shala_agent.collection import Collection

from shala_central.archive import Archive, Committed, Entry, handles
from shala_central.backup import back_up, damaged_tables, put_back
from shala_central.bag import count_items
from shala_central.ciphertext import read_identities
from shala_central.cold import ColdFailed
from shala_central.config import CentralConfig
from shala_central.failure import UsageError
from shala_central.fleet import read_fleet, select
from shala_central.history import HistoryError
from shala_central.integrity import note_damage
from shala_central.moving import only_packed_here, places, reindex, upload
from shala_central.options import (
    FAILED,
    MAX_SHOWN,
    PARTLY,
    Group,
    bar,
    config_option,
    counted,
    identity_option,
    items_line,
    json_option,
    open_archive,
    print_json,
    servers_of,
    visible,
)
from shala_central.records import PullRecord, RecordDamaged
from shala_central.report import size, table

if TYPE_CHECKING:
    from shala_central.completeness import Completeness


@click.group("archive", cls=Group)
def archive_group() -> None:
    """Look at the archive of all collections.

    \b
    Example:
      shala archive tree 2026/mz
    """


@archive_group.command("tree", short_help="Print the tree with sizes.")
@click.argument("path", default="", metavar="[PATH]")
@click.option("--depth", type=click.IntRange(0, 20), default=4, show_default=True, help="Down to this LEVEL.")
@config_option
@json_option
def archive_tree(path: str, depth: int, config: CentralConfig, as_json: bool) -> int:
    """Print the tree of the archive with sizes: year, state, server, platform, item.

    PATH is a place in it; LEVEL 0 is a year, 4 an item.

    \b
    Examples:
      shala archive tree
      shala archive tree 2026/mz/2031017-mz17
      shala archive tree --depth 2
    """
    archive = open_archive(config)
    entries = archive.tree(path, depth)
    if as_json:
        print_json({"root": str(archive.root), "entries": entries})
        return 0
    _print_tree(str(archive.root), entries)
    top = [entry for entry in entries if entry.level == entries[0].level]
    total = sum(entry.bytes for entry in top)
    click.echo(
        f"\n{size(total)} in {counted(sum(entry.files for entry in top), 'file')}."
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
        lines.append((rails + branch + visible(name), entry))
    width = max(len(text) for text, _ in lines)
    for text, entry in reversed(lines):
        click.echo(f"{text:<{width}}  {size(entry.bytes):>8}  {counted(entry.files, 'file'):>12}")


@archive_group.command("show", short_help="Show what is known of one server.")
@click.argument("name")
@config_option
@json_option
def archive_show(name: str, config: CentralConfig, as_json: bool) -> int:
    """Show what is known of one server: its collection item by item, its history, its quarantine.

    \b
    Example:
      shala archive show 2031017-mz17
    """
    archive = open_archive(config)
    damaged, quarantined = archive.damaged_record(name), archive.quarantined(name)
    committed = None if damaged else archive.committed(name)
    collection = None
    try:
        collection = committed.collection() if committed is not None else None
    except RecordDamaged as unreadable:
        damaged = f"{unreadable} ({_ways([name])})"
    if damaged:
        click.echo(f"shala: {damaged}", err=True)
    elif committed is None and not quarantined:
        raise UsageError(
            f"nothing of '{name}' is in the archive (shala archive tree --depth 2 shows what is)"
        )
    history, releases = _records(archive, name), archive.releases(name)
    if as_json:
        print_json(
            {
                "name": name,
                "tree": str(committed.tree) if committed else None,
                "damaged": damaged,
                "collection": collection,
                "pull": committed.pull if committed else None,
                "encrypted": committed.encrypted() if committed else [],
                "history": history,
                "quarantine": quarantined,
                "releases": releases,
            }
        )
        return PARTLY if damaged else 0
    if damaged or committed is None:
        click.echo(f"{name}: {'its record is damaged' if damaged else 'nothing is committed yet'}")
    if committed is not None and collection is not None:
        _print_committed(committed, collection)
    if committed is not None:
        _print_held(committed)
    for item in committed.encrypted() if committed else ():
        click.echo(f"  encrypted to the researchers' keys: {visible(item)}")
    click.echo(f"\nHistory: {counted(len(history), 'collection')}")
    for record in history[-MAX_SHOWN:]:
        click.echo(
            f"  {record.pulled[:19]}  number {record.sequence}"
            f"  {size(record.bytes)} in {counted(record.files, 'file')},"
            f" {size(record.bytes_received)} received"
        )
    for release in releases[-MAX_SHOWN:]:
        what = "; ".join(f"{broken.rule}: {broken.fact}" for broken in release.broken)
        click.echo(f"  let in: number {release.sequence}, {release.at[:19]} by {visible(release.by)}: {what}")
    for entry in quarantined[-MAX_SHOWN:]:
        reasons = entry.get("reasons")
        click.echo(f"\nQuarantine: {entry['folder']} ({_seen(entry)})")
        for reason in reasons if isinstance(reasons, list) else []:
            click.echo(f"  {reason}")
    click.echo(f"\nMore: shala archive verify {name}, shala archive show {name} --json")
    return PARTLY if damaged else 0


def _print_held(committed: Committed) -> None:
    """Say in a line for each collection which items of it readers see instead of the newest."""
    held = committed.pull.held
    for number in sorted(set(held.values())):
        items = [visible(item) for item, other in held.items() if other == number]
        shown = ", ".join(items[:3]) + (f" and {counted(len(items) - 3, 'other')}" if len(items) > 3 else "")
        which = f" {items[0]}" if len(items) == 1 else "" if len(items) == len(held) else " ITEM"
        way = f"shala archive accept {committed.name}{which}"
        click.echo(f"  readers see {shown} of collection {number} ({way})")


def _records(archive: Archive, name: str) -> list[PullRecord]:
    """Return how the kept collections came; without a history that can be read, how the newest did."""
    try:
        return archive.records(name)
    except HistoryError as error:
        click.echo(f"shala: {error}; only the newest collection is known", err=True)
    except RecordDamaged:
        pass  # that is told already
    committed = archive.committed(name) if archive.is_readable(name) else None
    return [committed.pull] if committed is not None else []


def _print_committed(committed: Committed, collection: Collection) -> None:
    click.echo(f"{committed.name}  {visible(collection.school_name)}".rstrip())
    click.echo(f"  {committed.tree}")
    click.echo(
        f"  collection {collection.sequence}, sealed {visible(collection.sealed)},"
        f" by shala-agent {visible(collection.agent_version)};"
        f" items ok/suspect/failed/missing {items_line(count_items(collection))}\n"
    )
    rows = [
        {
            "platform": visible(item.platform),
            "item": visible(item.name),
            "outcome": visible(item.outcome),
            "files": item.files,
            "bytes": size(item.bytes),
            "of collection": item.carried_from if item.carried_from is not None else collection.sequence,
            "reasons": visible("; ".join(item.reasons)),
        }
        for item in collection.items
    ]
    columns = ("platform", "item", "outcome", "files", "bytes", "of collection", "reasons")
    for line in table(rows, columns, ("files", "bytes", "of collection")):
        click.echo(f"  {line}")


@archive_group.command("verify", short_help="Compare every file with its manifest.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--deep", is_flag=True, help="Also what only earlier collections need.")
@click.option(
    "--sample",
    type=click.FloatRange(0, 100, min_open=True),
    default=100.0,
    metavar="PERCENT",
    help="Read only so many of the files, others each time; that all are there is always checked.",
)
@config_option
@json_option
def archive_verify(
    names: tuple[str, ...], deep: bool, sample: float, config: CentralConfig, as_json: bool
) -> int:
    """Read every published file again and compare it with its manifest.

    Without NAME: of every server. Signatures of devices are checked as well. Exit code 1 if all are damaged,
    3 if some are.

    \b
    Examples:
      shala archive verify
      shala archive verify 2031017-mz17 --deep
      shala archive verify --sample 5
    """
    archive = open_archive(config)
    chosen = servers_of(archive, names)
    answers: list[dict[str, Any]] = []
    with bar(chosen, "Verifying", quiet=as_json) as moving:
        for name in moving:
            damage = archive.verify(name, share=sample / 100)
            if deep:
                from shala_central.integrity import damaged_objects

                damage = [*damage, *damaged_objects(archive, name, damage)]
            answers.append({"name": name, "damage": damage})
    damaged = [answer for answer in answers if answer["damage"]]
    tables = damaged_tables(archive)
    note_damage(archive, {str(a["name"]): a["damage"] for a in answers if a["damage"] or sample == 100})
    if as_json:
        print_json({"servers": answers, "tables": tables})
    else:
        for table_damage in tables:
            click.echo(f"{table_damage.path} {table_damage.problem}")
        for answer in answers:
            found: list[Any] = answer["damage"]
            click.echo(f"{answer['name']}: {counted(len(found), 'damaged file') if found else 'ok'}")
            for item in found[:MAX_SHOWN]:
                click.echo(f"  {item.path} {item.problem}")
            if len(found) > MAX_SHOWN:
                click.echo(f"  and {len(found) - MAX_SHOWN} more (--json has all)")
        whole = f"{len(answers) - len(damaged)} of {counted(len(answers), 'server')} undamaged"
        hint = (
            f"; left: {len(damaged)} damaged. {_ways([str(a['name']) for a in damaged])}" if damaged else ""
        )
        click.echo(f"{whole}{hint}")
    if not damaged and not tables:
        return 0
    return FAILED if len(damaged) == len(answers) else PARTLY


@archive_group.command("scrub", short_help="Read a share of all content again; for the timer.")
@click.option("--days", type=click.IntRange(1, 3650), help="Within so many days everything is read once.")
@click.option(
    "--bucket",
    "percent",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Read back so much of what is in the bucket; the rest is looked up by name and size.",
)
@config_option
@json_option
def archive_scrub(days: int | None, percent: float | None, config: CentralConfig, as_json: bool) -> int:
    """Read again what has not been read for longest: run daily, everything within archive.scrub_days.

    First it copies history.sqlite, cold.sqlite and encrypted.sqlite to .shala/backup, if they are whole;
    shala archive repair puts them back. In the bucket all names and sizes are compared in the same time, and
    archive.objects_scrub_percent of the contents read back, others each time: that is traffic that may have
    to be paid for.

    \b
    Examples:
      shala archive scrub
      shala archive scrub --days 1                everything, now
      shala archive scrub --days 1 --bucket 100   the bucket too
    """
    from shala_central.integrity import Scrubbed, scrub

    settings = config.archive
    if percent is None:
        percent = settings.objects_scrub_percent
    archive = open_archive(config, writing=True)
    tables = back_up(archive)
    try:
        done = scrub(archive, days or settings.scrub_days, percent)
    except ColdFailed:
        if not tables:
            raise
        done = Scrubbed(failed="what is packed was not read")
    if as_json:
        print_json({**msgspec.to_builtins(done), "tables": tables})
    else:
        for table_damage in tables:
            click.echo(f"{table_damage.path} {table_damage.problem}")
        for damage in done.damage[:MAX_SHOWN]:
            click.echo(f"{damage.path} {damage.problem}")
            for where in damage.concerns:
                click.echo(f"  {visible(where)}")
        if done.failed:
            click.echo(f"shala: {done.failed}", err=True)
        hint = " Mend: shala archive repair" if done.damage else ""
        listed = f", {counted(done.listed, 'object')} of the bucket looked up" if done.listed else ""
        click.echo(
            f"{counted(done.objects, 'object')}, {size(done.bytes)} read{listed}:"
            f" {len(done.damage) or 'none'} damaged."
            f" The oldest reading is of {done.oldest or 'never'}.{hint}"
        )
    return FAILED if done.damage or done.failed or tables else 0


def _ways(names: Sequence[str]) -> str:
    """Say what mends servers: nothing does that has no good copy."""
    again = f"shala pull --again {' '.join(names[:5])}"
    return f"Mend: shala archive repair --from ROOT (another copy of the archive), or {again}"


@archive_group.command("repair", short_help="Mend damaged or lost content from a second copy.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--from",
    "second",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="ROOT",
    help="Another copy of the archive (its root).",
)
@config_option
@json_option
def archive_repair(names: tuple[str, ...], second: Path | None, config: CentralConfig, as_json: bool) -> int:
    """Mend damaged or lost content from a second copy of the archive, plain or packed there.

    The copy is only read; its disk may be mounted read-only. What no copy has can be asked of the school
    again, if its newest collection holds it: shala pull --again. A damaged history.sqlite, cold.sqlite or
    encrypted.sqlite is replaced by its copy in .shala/backup.

    \b
    Examples:
      shala archive repair --from /mnt/second-disk/archive
      shala archive repair 2031017-mz17
    """
    from shala_central.integrity import SecondCopy, repair

    archive = open_archive(config, writing=True)
    if second is not None and not (second / ".shala").is_dir():
        raise UsageError(f"{second} is not an archive (--from takes the root of a copy, with .shala in it)")
    if tables := put_back(archive):
        archive = open_archive(config, writing=True)
    chosen = servers_of(archive, names)
    copy = SecondCopy(archive, second) if second is not None else None
    answers = [repair(archive, name, copy) for name in chosen]
    if as_json:
        print_json({"servers": answers, "tables": tables})
    else:
        for one in tables:
            done_with_it = f"the copy of {one.copied[:16]} is put back" if one.copied else "left"
            click.echo(f"{one.name}: {done_with_it}")
            for lost in one.lost[:MAX_SHOWN]:
                click.echo(f"  not in it: {lost}" if one.copied else f"  {lost}")
        for answer in answers:
            if answer.mended or answer.put_back or answer.lost:
                click.echo(
                    f"{answer.name}: {len(answer.mended)} mended, {len(answer.put_back)} put back in view,"
                    f" {len(answer.lost)} left"
                )
                for word, paths in (
                    ("mended", answer.mended),
                    ("put back", answer.put_back),
                    ("left", answer.lost),
                ):
                    for path in paths[:MAX_SHOWN]:
                        click.echo(f"  {word}: {visible(path)}")
                    if len(paths) > MAX_SHOWN:
                        click.echo(f"  {word}: {len(paths) - MAX_SHOWN} more (--json has all)")
        left = [answer.name for answer in answers if answer.lost]
        again = f" {_ways(left)}" if left else ""
        done = sum(len(answer.mended) for answer in answers)
        back = sum(len(answer.put_back) for answer in answers)
        click.echo(
            f"{counted(done, 'file')} mended, {back} put back in view,"
            f" {counted(len(left), 'server')} left.{again}"
        )
    left_over = [answer for answer in answers if answer.lost]
    if not left_over:
        return 0 if all(one.copied for one in tables) else PARTLY
    done_some = any(answer.mended or answer.put_back for answer in answers)
    return PARTLY if len(left_over) < len(answers) or done_some else FAILED


@archive_group.command("status", short_help="Show how complete the archive is.")
@click.option("--limit", metavar="GROUP", help="Only these groups, e.g. state_mz.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page for people: figures by state, and a grid of servers by months.",
)
@config_option
@json_option
def archive_status(limit: str | None, html_file: Path | None, config: CentralConfig, as_json: bool) -> int:
    """Show how complete the archive is: by state, and every server that lacks something.

    Whole is a server of whose newest collection every item is ok and in view, after which nothing was refused
    (quarantine), and of which the last verify or scrub found nothing damaged.

    \b
    Examples:
      shala archive status
      shala archive status --limit state_mz --html status.html
    """
    from shala_central.completeness import CONDITIONS, by_state, completeness, page

    archive = open_archive(config)
    try:
        only_objects, only_bytes = only_packed_here(archive)
    except ColdFailed as failed:
        click.echo(f"shala: {failed}", err=True)
        only_objects = only_bytes = 0
    entries = completeness(archive, select(read_fleet(Path(config.fleet)), (), limit))
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    if html_file is not None:
        # It names schools and what they lack: for its owner and group, as the archive is.
        descriptor = os.open(html_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(page(entries, f"made {made}"))
    if as_json:
        only = {"objects": only_objects, "bytes": only_bytes}
        print_json({"made": made, "states": by_state(entries), "servers": entries, "only_packed_here": only})
        return 0
    rows = [{**row, "bytes": size(int(str(row["bytes"])))} for row in by_state(entries)]
    numbers = ("servers", "delivered", *CONDITIONS, "bytes")
    for line in table(rows, ("state", *numbers), numbers):
        click.echo(line)
    lacking = [entry for entry in entries if not entry.is_whole]
    if lacking:
        click.echo("\nNot whole:")
        rows = [_lack(entry) for entry in lacking]
        for line in table(rows, ("server", "collection", "pulled", "items", "lacks"), ("collection",)):
            click.echo(line)
    _print_only(archive, only_objects, only_bytes)
    if pulled := [entry for entry in entries if entry.pulled]:
        longest = min(pulled, key=lambda entry: entry.pulled)
        click.echo(f"\nLongest ago pulled: {longest.name}, {longest.pulled[:16]}")
    whole = f"{len(entries) - len(lacking)} of {counted(len(entries), 'server')} whole"
    kinds = {kind: sum(kind in entry.conditions for entry in entries) for kind in CONDITIONS[1:]}
    others = "".join(f", {count} {kind}" for kind, count in kinds.items() if count)
    click.echo(f"\n{whole}{others}. More: shala archive show NAME")
    return PARTLY if any("damaged" in entry.conditions and not entry.sequence for entry in entries) else 0


def _lack(entry: Completeness) -> dict[str, object]:
    return {
        "server": entry.name,
        "collection": entry.sequence or "-",
        "pulled": entry.pulled[:16] or "never",
        "items": items_line(entry.items) if entry.sequence else "-",
        "lacks": visible(", ".join(entry.lacks)),
    }


@archive_group.command("log", short_help="List the kept collections of a server.")
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
        versions, code = archive.versions(name)[::-1], 0
    except HistoryError as error:
        click.echo(f"shala: {error}; only the newest is known", err=True)
        versions, code = [archive.newest(name)], PARTLY
    names = handles(versions)
    if as_json:
        listed = [{**msgspec.structs.asdict(version), "handle": names[version]} for version in versions]
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


@archive_group.command("diff", short_help="Show what changed between two collections.")
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
    before, after = archive.version(name, old), archive.version(name, new)
    changes = archive.diff(before, after)
    if as_json:
        print_json({"name": name, "old": before, "new": after, "changes": changes})
        return 0
    for change in changes:
        click.echo(f"{change.sign} {visible(change.path)}  {size(change.bytes)}")
    counts = {sign: sum(change.sign == sign for change in changes) for sign in "+-*"}
    click.echo(f"{counts['+']} new, {counts['-']} gone, {counts['*']} changed")
    return 0


@archive_group.command("checkout", short_help="Write an earlier collection to a folder.")
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
    version = archive.version(name, number)
    identities = read_identities(identity) if identity is not None else ()
    files, written = archive.checkout(version, folder, item.strip("/"), identities)
    if as_json:
        print_json(
            {"name": name, "collection": version, "folder": str(folder), "files": files, "bytes": written}
        )
    else:
        click.echo(
            f"{folder}: collection {version.sequence} of {name}, {counted(files, 'file')}, {size(written)}"
        )
    return 0


@archive_group.command("restore", short_help="Put an earlier collection, or items of it, in view again.")
@click.argument("name")
@click.argument("number")
@click.option("--item", "items", multiple=True, metavar="ITEM", help="Only this one, e.g. gstudio/db.")
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
    version = archive.version(name, number)
    shown = archive.restore(name, version, items)
    if as_json:
        print_json({"name": name, "collection": version, "items": shown})
    else:
        click.echo(f"{name}: readers see collection {number} of {', '.join(shown)}")
    return 0


@archive_group.command("accept", short_help="Let suspect items replace the last good ones in view.")
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
    accepted = open_archive(config, writing=True).accept(name, items)
    if as_json:
        print_json({"name": name, "accepted": accepted})
    else:
        click.echo(f"{name}: {', '.join(accepted) or 'nothing'} accepted")
    return 0


@archive_group.command("provenance", short_help="Say where a published file comes from.")
@click.argument("path")
@config_option
@json_option
def archive_provenance(path: str, config: CentralConfig, as_json: bool) -> int:
    """Say where a published file comes from: which server, when, which path there, software and signature.

    \b
    Example:
      shala archive provenance 2026/mz/2031017-mz17/gstudio/db/gstudio-mongodb/Nodes.bson
    """
    from shala_central.provenance import provenance

    archive = open_archive(config)
    inside = Path(path)
    if inside.is_absolute() and inside.is_relative_to(archive.root):
        path = str(inside.relative_to(archive.root))
    found = provenance(archive, path)
    if as_json:
        print_json(found)
        return 0
    for field in found.__struct_fields__:
        click.echo(f"{field.replace('_', ' '):<19} {visible(str(getattr(found, field)))}")
    return 0


@archive_group.command("export", short_help="Write a selection to one tar file.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--limit", metavar="GROUP", help="Only these groups, e.g. state_mz.")
@click.option("--item", "items", multiple=True, metavar="ITEM", help="Only this one, e.g. gstudio/db.")
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

    What is encrypted is an age file there, or decrypted with the key of a researcher.

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
        archive.version(name, number) for name in wanted if name in names or archive.is_readable(name)
    ]
    if not versions:
        raise UsageError("no chosen server has a collection (shala archive status shows which have)")
    identities = read_identities(identity) if identity is not None else ()
    done = export(archive, versions, items, target, identities)
    if as_json:
        print_json(done)
    else:
        whose = counted(len(done.servers), "server")
        click.echo(f"{target}: {whose}, {counted(done.files, 'file')}, {size(done.bytes)}")
    return 0 if names else _name_damaged(archive)


@archive_group.group("quarantine", cls=Group)
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
    found = [entry for name in _refused(archive, names) for entry in archive.quarantined(name)]
    if as_json:
        print_json({"quarantine": found})
        return 0
    for entry in found:
        reasons = entry.get("reasons")
        click.echo(
            f"{entry['server_name']}  {Path(str(entry['folder'])).name}  {_seen(entry)}"
            f"{'  released: the next pull lets it in' if entry['released'] else ''}"
        )
        for reason in reasons if isinstance(reasons, list) else []:
            click.echo(f"  {visible(str(reason))}")
    more = ". More: shala archive quarantine release --help" if found else ""
    click.echo(f"{counted(len(found), 'refused collection')}{more}")
    return 0


def _refused(archive: Archive, names: Sequence[str]) -> list[str]:
    """Return the servers that are meant, each once: those named, or all with something in quarantine.

    Raises UsageError for one that has nothing there.
    """
    refused = archive.quarantine_counts()
    for name in names:
        if name not in refused:
            raise UsageError(
                f"nothing of '{visible(name)}' is in quarantine (shala archive quarantine list shows what is)"
            )
    return list(dict.fromkeys(names)) or sorted(refused)


def _seen(entry: Mapping[str, object]) -> str:
    return f"seen {counted(int(str(entry.get('times', 1))), 'time')}"


@quarantine_group.command("release", short_help="Let the newest refused collection in.")
@click.argument("name")
@config_option
@json_option
def quarantine_release(name: str, config: CentralConfig, as_json: bool) -> int:
    """Let the newest refused collection of a server in, if what stood against it was a rule.

    Rules are: numbers and years only go up, one device stays one device. Only those are lifted that it was
    refused for, and only for this collection: if it breaks another one, or comes signed by yet another
    device, it is refused again. Who lifted what and when is kept in .shala/releases. What differs from its
    own manifest cannot be let in: shala pull asks for it again.

    \b
    Example:
      shala archive quarantine release 2031017-mz17
    """
    release = open_archive(config, writing=True).release(name)
    if as_json:
        print_json(release)
        return 0
    click.echo(f"{release.folder} will be let in, although")
    for broken in release.broken:
        click.echo(f"  {broken.rule}: {broken.fact}")
    click.echo(f"Said by {visible(release.by)}. Now: shala pull {name}")
    return 0


@quarantine_group.command("discard", short_help="Throw refused collections away.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@config_option
@json_option
def quarantine_discard(names: tuple[str, ...], config: CentralConfig, as_json: bool) -> int:
    """Throw away the refused collections of servers.

    \b
    Example:
      shala archive quarantine discard 2031017-mz17
    """
    archive = open_archive(config, writing=True)
    gone = {name: archive.discard(name) for name in _refused(archive, names)}
    if as_json:
        print_json({"discarded": gone})
    else:
        click.echo(f"{counted(sum(gone.values()), 'refused collection')} of {', '.join(gone)} thrown away")
    return 0


@archive_group.command("prune", short_help="Forget collections that the policy lets go.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@config_option
@json_option
def archive_prune(dry_run: bool, config: CentralConfig, as_json: bool) -> int:
    """Forget the collections that the policy lets go, and free the room that only they needed.

    All of the last archive.keep_days days stay, of the last archive.keep_months months the newest of each
    month, then the newest of each year. It may be interrupted at any moment.

    \b
    Example:
      shala archive prune --dry-run
    """
    settings = config.archive
    archive = open_archive(config, writing=not dry_run)
    pruned = archive.prune(settings.keep_days, settings.keep_months, pretend=dry_run)
    if not dry_run:
        back_up(archive)  # what was packed just now is nowhere else
    if as_json:
        print_json(
            {
                "collections": pruned.versions,
                "objects": pruned.objects,
                "bytes": pruned.bytes,
                "packed": pruned.packed,
            }
        )
        return 0
    for version in pruned.versions:
        click.echo(f"{version.server}  collection {version.sequence} of {version.pulled[:10]}")
    word = "would go" if dry_run else "gone"
    click.echo(
        f"{word}: {counted(len(pruned.versions), 'collection')}, {counted(pruned.objects, 'object')};"
        f" room: {size(pruned.bytes)}, and {size(pruned.packed)} by packing"
    )
    return _name_damaged(archive)


def _name_damaged(archive: Archive) -> int:
    """Name the servers that were left out because nothing can be told of them; return the exit code."""
    damaged = archive.damaged()
    for reason in damaged.values():
        click.echo(f"shala: {reason}", err=True)
    return PARTLY if damaged else 0


def _print_only(archive: Archive, objects: int, size_here: int) -> None:
    """Say what the bucket does not have and never gets."""
    if objects:
        what = f"{counted(objects, 'packed object')}, {size(size_here)}"
        click.echo(f"  only on this disk: {what} of earlier collections (keep a copy of {archive.hidden})")


@archive_group.command("encrypt", short_help="Encrypt what is in plain of sensitive items.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@config_option
@json_option
def archive_encrypt(names: tuple[str, ...], config: CentralConfig, as_json: bool) -> int:
    """Encrypt to archive.recipients what came of archive.sensitive_items before they were named.

    In all kept collections and the tree, of every server without NAME. There is no way back but the keys of
    the recipients. It may be interrupted at any moment; the same command goes on from there.

    \b
    Example:
      shala archive encrypt
    """
    from shala_central.encryption import encrypt

    if not config.archive.recipients:
        raise UsageError("there is nobody to encrypt to (archive.recipients in the configuration: age1...)")
    archive = open_archive(config, writing=True)
    chosen = [name for name in servers_of(archive, names) if archive.is_readable(name)]
    with bar(chosen, "Encrypting", quiet=as_json) as moving:
        answers = [encrypt(archive, name) for name in moving]
    left = [answer for answer in answers if answer.left]
    if as_json:
        print_json({"servers": answers})
    else:
        for answer in left:
            click.echo(f"{answer.name}: {len(answer.left)} left (damaged or gone)")
            for path in answer.left[:MAX_SHOWN]:
                click.echo(f"  {visible(path)}")
        objects, encrypted = sum(a.objects for a in answers), sum(a.bytes for a in answers)
        hint = f"; left: {counted(len(left), 'server')}. Mend: shala archive repair" if left else ""
        click.echo(
            f"{counted(objects, 'content')} encrypted, {size(encrypted)};"
            f" {counted(sum(a.removed for a in answers), 'plain one')} removed{hint}"
        )
    if not left:
        return 0
    return PARTLY if len(left) < len(answers) or any(answer.objects for answer in left) else FAILED


@archive_group.command("objects", short_help="Say where content is: on this disk, in a bucket.")
@click.option("--upload", "sending", is_flag=True, help="Send what is only on this disk.")
@click.option("--reindex", "listing", is_flag=True, help="List the bucket to learn what is in it.")
@config_option
@json_option
def archive_objects(sending: bool, listing: bool, config: CentralConfig, as_json: bool) -> int:
    """Say where content is, how many objects and how many bytes; bring it to the bucket.

    With archive.view = "on-demand", --upload removes from this disk what is in the bucket, and the tree. It
    may be interrupted at any moment; the same command goes on from there. What prune has packed of earlier
    collections is not sent: it stays on this disk, and .shala must be copied elsewhere as well.

    \b
    Examples:
      shala archive objects
      shala archive objects --upload
    """
    archive = open_archive(config)
    if listing:
        reindex(archive)
    sent = upload(archive) if sending else None
    found = places(archive)
    if as_json:
        print_json({"places": found, "sent": sent})
        return 0
    if sent is not None:
        click.echo(f"{counted(sent.objects, 'object')} sent, {size(sent.bytes)}")
    click.echo(f"{archive.root}: {counted(found.local_objects, 'object')}, {size(found.local_bytes)}")
    if found.packed_objects:
        click.echo(f"  packed: {counted(found.packed_objects, 'object')}, {size(found.packed_bytes)}")
    _print_only(archive, found.only_objects, found.only_bytes)
    if found.remote is not None:
        click.echo(f"{found.bucket}: {counted(found.remote.objects, 'object')}, {size(found.remote.bytes)}")
        if found.remote.unfinished:
            click.echo(f"  cut: {counted(found.remote.unfinished, 'upload')} (the next goes on from there)")
    return 0
