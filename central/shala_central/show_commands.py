"""What the archive shows: `shala archive tree`, `show`, `status` and `provenance`."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from shala_agent.collection import Collection

from shala_central.archive import Archive, Committed
from shala_central.bag import count_items
from shala_central.cold import ColdFailed
from shala_central.config import CentralConfig
from shala_central.content_commands import print_only_here
from shala_central.failure import UsageError
from shala_central.fleet import read_fleet, select
from shala_central.history import HistoryError
from shala_central.integrity import noted_damage
from shala_central.integrity_commands import ways_to_mend
from shala_central.moving import only_packed_here
from shala_central.options import (
    MAX_SHOWN,
    PARTLY,
    config_option,
    counted,
    items_line,
    json_option,
    open_archive,
    print_json,
    visible,
)
from shala_central.quarantine import in_quarantine, releases_of
from shala_central.quarantine_commands import times_seen, whether_released
from shala_central.records import PullRecord, RecordDamaged
from shala_central.report import cut, named, size, table
from shala_central.target import writing_to
from shala_central.tree import Entry, list_tree
from shala_central.versions import pulls_of, shown

if TYPE_CHECKING:
    from shala_central.completeness import Completeness

MAX_REASONS = 100  # characters of a table's last column; --json has all


@click.command("tree", short_help="Print the tree with sizes.")
@click.argument("path", default="", metavar="[PATH]")
@click.option("--depth", type=click.IntRange(0, 20), default=4, show_default=True, help="Down to this LEVEL.")
@config_option
@json_option
def archive_tree(path: str, depth: int, config: CentralConfig, as_json: bool) -> int:
    """Print the tree of the archive with sizes: year, state, server, platform, item.

    PATH is a place in it, from its root or from that of the disk; LEVEL 0 is a year, 4 an item.

    \b
    Examples:
      shala archive tree
      shala archive tree 2026/mz/2031017-mz17
      shala archive tree --depth 2
    """
    archive = open_archive(config)
    entries = list_tree(archive, _inside(archive, path), depth)
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


def _inside(archive: Archive, path: str) -> str:
    """Return a path from the root of the archive, also of one from that of the disk, as show prints it."""
    place = Path(path)
    if not place.is_absolute() or not place.is_relative_to(archive.root):
        return path
    return "" if place == archive.root else str(place.relative_to(archive.root))


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


@click.command("show", short_help="Show what is known of one server.")
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
    damaged, quarantined = archive.damaged_record(name), in_quarantine(archive, name)
    committed = None if damaged else archive.committed(name)
    collection = None
    try:
        collection = committed.collection() if committed is not None else None
    except RecordDamaged as unreadable:
        damaged = f"{unreadable} ({ways_to_mend([name], [name])})"
    if damaged:
        click.echo(f"shala: {damaged}", err=True)
    elif committed is None and not quarantined:
        raise UsageError(
            f"nothing of '{name}' is in the archive (shala archive tree --depth 2 shows what is)"
        )
    history, releases = _records(archive, name), releases_of(archive, name)
    noted = noted_damage(archive).get(name)
    if as_json:
        print_json(
            {
                "name": name,
                "tree": str(committed.tree) if committed else None,
                "damaged": damaged,
                "known_damage": noted,
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
        _print_view(committed)
    if noted is not None:
        click.echo(f"  known as damaged: {visible(str(noted))}; more: shala archive verify {name} --deep")
    click.echo(f"\nHistory: {counted(len(history), 'collection')}")
    for record in history[-MAX_SHOWN:]:
        click.echo(
            f"  {record.pulled[:19]}  number {record.sequence}"
            f"  {size(record.bytes)} in {counted(record.files, 'file')},"
            f" {size(record.bytes_received)} received{f'; again {record.again[:19]}' if record.again else ''}"
        )
    for release in releases[-MAX_SHOWN:]:
        what = "; ".join(f"{broken.rule}: {broken.fact}" for broken in release.broken)
        click.echo(f"  let in: number {release.sequence}, {release.at[:19]} by {visible(release.by)}: {what}")
    for entry in quarantined[-MAX_SHOWN:]:
        reasons = entry.get("reasons")
        click.echo(f"\nQuarantine: {entry['folder']} ({times_seen(entry)}){whether_released(entry)}")
        for reason in reasons if isinstance(reasons, list) else []:
            click.echo(f"  {visible(str(reason))}")
    click.echo(f"\nMore: shala archive verify {name}, shala archive show {name} --json")
    return PARTLY if damaged else 0


def _print_view(committed: Committed) -> None:
    """Say in a line for each collection which items of it readers see instead of the newest, and in one for
    each item that is encrypted.
    """
    held = committed.pull.held
    for handle in sorted(set(held.values())):
        items = [visible(item) for item, other in held.items() if other == handle]
        which = f" {items[0]}" if len(items) == 1 else "" if len(items) == len(held) else " ITEM"
        way = f"shala archive accept {committed.name}{which}"
        click.echo(f"  readers see {named(items)} of collection {shown(handle)} ({way})")
    for item in committed.encrypted():
        click.echo(f"  encrypted to the researchers' keys: {visible(item)}")


def _records(archive: Archive, name: str) -> list[PullRecord]:
    """Return how the kept collections came; without a history that can be read, how the newest did."""
    try:
        return pulls_of(archive, name)
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
            "reasons": cut(visible("; ".join(item.reasons)), MAX_REASONS),
        }
        for item in collection.items
    ]
    columns = ("platform", "item", "outcome", "files", "bytes", "of collection", "reasons")
    for line in table(rows, columns, ("files", "bytes", "of collection")):
        click.echo(f"  {line}")


@click.command("status", short_help="Show how complete the archive is.")
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
    (quarantine), and of which the last verify or scrub found nothing damaged. Exit code 3 if there is one of
    which nothing can be told, because its record is damaged.

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
        with writing_to(archive, html_file):
            _write_page(html_file, page(entries, f"made {made}").encode())
    untold = any("damaged" in entry.conditions and not entry.sequence for entry in entries)
    code = PARTLY if untold else 0
    if as_json:
        only = {"objects": only_objects, "bytes": only_bytes}
        print_json({"made": made, "states": by_state(entries), "servers": entries, "only_packed_here": only})
        return code
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
    print_only_here(archive, only_objects, only_bytes)
    if pulled := [entry for entry in entries if entry.pulled]:
        longest = min(pulled, key=lambda entry: entry.pulled)
        click.echo(f"\nLongest ago pulled: {longest.name}, {longest.pulled[:16]}")
    whole = f"{len(entries) - len(lacking)} of {counted(len(entries), 'server')} whole"
    kinds = {kind: sum(kind in entry.conditions for entry in entries) for kind in CONDITIONS[1:]}
    others = "".join(f", {count} {kind}" for kind, count in kinds.items() if count)
    click.echo(f"\n{whole}{others}. More: shala archive show NAME")
    return code


def _write_page(target: Path, content: bytes) -> None:
    """Write a page whole or not at all, for its owner and group, as the archive is: it names schools."""
    if target.exists() and not target.is_file():  # a terminal, a pipe
        target.write_bytes(content)
        return
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    unfinished = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o640)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        unfinished.rename(target.resolve())
    finally:
        unfinished.unlink(missing_ok=True)


def _lack(entry: Completeness) -> dict[str, object]:
    return {
        "server": entry.name,
        "collection": entry.sequence or "-",
        "pulled": entry.last_pulled,
        "items": items_line(entry.items) if entry.sequence else "-",
        "lacks": visible(", ".join(entry.lacks)),
    }


@click.command("provenance", short_help="Say where a published file comes from.")
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
    found = provenance(archive, _inside(archive, path))
    if as_json:
        print_json(found)
        return 0
    for field in found.__struct_fields__:
        click.echo(f"{field.replace('_', ' '):<19} {visible(str(getattr(found, field)))}")
    return 0
