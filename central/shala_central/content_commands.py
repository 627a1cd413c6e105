"""What becomes of content that is there: `shala archive prune`, `encrypt` and `objects`."""

from __future__ import annotations

import functools

import click

from shala_central.archive import Archive
from shala_central.backup import back_up
from shala_central.config import CentralConfig
from shala_central.failure import UsageError
from shala_central.moving import places, reindex, upload
from shala_central.options import (
    FAILED,
    MAX_SHOWN,
    PARTLY,
    bar,
    complain_of,
    config_option,
    counted,
    json_option,
    of_each,
    open_archive,
    print_json,
    servers_of,
    visible,
)
from shala_central.report import size
from shala_central.retention import prune


@click.command("prune", short_help="Forget collections that the policy lets go.")
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
    archive.require_own()  # its locks are made where they are not
    pruned = prune(archive, settings.keep_days, settings.keep_months, pretend=dry_run)
    # What was packed just now is nowhere else.
    tables = back_up(archive) if not dry_run else []
    code = PARTLY if pruned.left_alone or tables else 0
    if as_json:
        print_json(
            {
                "collections": pruned.versions,
                "objects": pruned.objects,
                "bytes": pruned.bytes,
                "packed": pruned.packed,
                "left_alone": pruned.left_alone,
                "tables": tables,
            }
        )
        return code
    for version in pruned.versions:
        click.echo(f"{version.server}  collection {version.sequence} of {version.pulled[:10]}")
    collections, objects = counted(len(pruned.versions), "collection"), counted(pruned.objects, "object")
    if dry_run:
        click.echo(
            f"would go: {collections}; {objects} that nothing needs even now, {size(pruned.bytes)}"
            " (what only those collections need, and what packing frees, is not estimated)"
        )
    else:
        click.echo(
            f"gone: {collections}, {objects};"
            f" room: {size(pruned.bytes)}, and {size(pruned.packed)} by packing"
        )
    complain_of(f"{name} is left alone: {reason}" for name, reason in pruned.left_alone.items())
    complain_of(f"{table.path} {table.problem}" for table in tables)
    return code


@click.command("encrypt", short_help="Encrypt what is in plain of sensitive items.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@config_option
@json_option
def archive_encrypt(names: tuple[str, ...], config: CentralConfig, as_json: bool) -> int:
    """Encrypt to archive.recipients what came of archive.sensitive_items before they were named.

    In all kept collections and the tree, of every server without NAME. There is no way back but the keys of
    the recipients. It may be interrupted at any moment; the same command goes on from there. What is damaged
    and servers that are pulled just now are named and left: exit code 3, or 1 if nothing could be done.

    \b
    Example:
      shala archive encrypt
    """
    from shala_central.encryption import encrypt

    if not config.archive.recipients:
        raise UsageError("there is nobody to encrypt to (archive.recipients in the configuration: age1...)")
    archive = open_archive(config, writing=True)
    with bar(servers_of(archive, names), "Encrypting", quiet=as_json) as moving:
        answers, failed = of_each(moving, functools.partial(encrypt, archive))
    tables = back_up(archive, keep_packed=False)
    complain_of(failed.values())
    complain_of(f"{table.path} {table.problem}; the copies from before stay" for table in tables)
    left = [answer for answer in answers if answer.left]
    if as_json:
        print_json({"servers": answers, "failed": failed, "tables": tables})
    else:
        for answer in left:
            click.echo(f"{answer.name}: {len(answer.left)} left (damaged or gone)")
            for path in answer.left[:MAX_SHOWN]:
                click.echo(f"  {visible(path)}")
        objects, encrypted = sum(a.objects for a in answers), sum(a.bytes for a in answers)
        servers = counted(len(left) + len(failed), "server")
        hint = f"; left: {servers}. Mend: shala archive repair" if left or failed else ""
        click.echo(
            f"{counted(objects, 'content')} encrypted, {size(encrypted)};"
            f" {counted(sum(a.removed for a in answers), 'plain one')} removed{hint}"
        )
    if not left and not failed:
        return PARTLY if tables else 0
    return PARTLY if len(left) < len(answers) or any(answer.objects for answer in left) else FAILED


@click.command("objects", short_help="Say where content is: on this disk, in a bucket.")
@click.option("--upload", "sending", is_flag=True, help="Send what is only on this disk.")
@click.option("--reindex", "listing", is_flag=True, help="List the bucket to learn what is in it.")
@config_option
@json_option
def archive_objects(sending: bool, listing: bool, config: CentralConfig, as_json: bool) -> int:
    """Say where content is, how many objects and how many bytes; bring it to the bucket.

    With archive.view = "on-demand", --upload removes from this disk what is in the bucket, and the tree. It
    may be interrupted at any moment; the same command goes on from there. What prune has packed of earlier
    collections is not sent: it stays on this disk, and .shala must be copied elsewhere as well. What is
    damaged is named and stays; the exit code is 3 then.

    \b
    Examples:
      shala archive objects
      shala archive objects --upload
    """
    archive = open_archive(config)
    if listing or sending:
        archive.require_own()
    if listing:
        reindex(archive)
    sent = upload(archive) if sending else None
    code = PARTLY if sent is not None and sent.left else 0
    complain_of(sent.left if sent is not None else ())
    found = places(archive)
    if as_json:
        print_json({"places": found, "sent": sent})
        return code
    if sent is not None:
        click.echo(f"{counted(sent.objects, 'object')} sent, {size(sent.bytes)}")
    click.echo(f"{archive.root}: {counted(found.local_objects, 'object')}, {size(found.local_bytes)}")
    if found.packed_objects:
        click.echo(f"  packed: {counted(found.packed_objects, 'object')}, {size(found.packed_bytes)}")
    print_only_here(archive, found.only_objects, found.only_bytes)
    if found.remote is not None:
        click.echo(f"{found.bucket}: {counted(found.remote.objects, 'object')}, {size(found.remote.bytes)}")
        if found.remote.unfinished:
            click.echo(f"  cut: {counted(found.remote.unfinished, 'upload')} (the next goes on from there)")
    return code


def print_only_here(archive: Archive, objects: int, size_here: int) -> None:
    """Say what the bucket does not have and never gets."""
    if objects:
        what = f"{counted(objects, 'packed object')}, {size(size_here)}"
        click.echo(f"  only on this disk: {what} of earlier collections (keep a copy of {archive.hidden})")
