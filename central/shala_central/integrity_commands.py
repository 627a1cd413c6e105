"""Whether content is whole: `shala archive verify`, `scrub` and `repair`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from shala_central.backup import PutBack, back_up, damaged_tables, put_back
from shala_central.cold import ColdFailed
from shala_central.config import CentralConfig
from shala_central.failure import UsageError
from shala_central.integrity import Scrubbed, SecondCopy, damaged_objects, note_damage, repair, scrub
from shala_central.options import (
    FAILED,
    MAX_NAMED,
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
from shala_central.verify import verify


@click.command("verify", short_help="Compare every file with its manifest.")
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
    if not os.statvfs(archive.hidden).f_flag & os.ST_RDONLY:
        archive.require_own()  # what it finds is noted for status
    chosen = servers_of(archive, names)
    tables = damaged_tables(archive)
    answers: list[dict[str, Any]] = []
    earlier: set[str] = set()  # servers of which something is damaged that is not in view
    with bar(chosen, "Verifying", quiet=as_json) as moving:
        for name in moving:
            damage = verify(archive, name, share=sample / 100)
            if deep and (kept := damaged_objects(archive, name, damage)):
                damage = [*damage, *kept]
                earlier.add(name)
            answers.append({"name": name, "damage": damage})
    damaged = [answer for answer in answers if answer["damage"]]
    found = {str(a["name"]): a["damage"] for a in answers if a["damage"] or sample == 100}
    # Through a damaged table not all that is kept was read.
    note_damage(archive, found, earlier=earlier, deep=deep and sample == 100 and not tables)
    if as_json:
        print_json({"servers": answers, "tables": tables})
    else:
        for table_damage in tables:
            click.echo(f"{table_damage.path} {table_damage.problem}")
        for answer in answers:
            files: list[Any] = answer["damage"]
            click.echo(f"{answer['name']}: {counted(len(files), 'damaged file') if files else 'ok'}")
            for item in files[:MAX_SHOWN]:
                click.echo(f"  {item.path} {item.problem}")
            if len(files) > MAX_SHOWN:
                click.echo(f"  and {len(files) - MAX_SHOWN} more (--json has all)")
        whole = f"{len(answers) - len(damaged)} of {counted(len(answers), 'server')} undamaged"
        torn = [str(a["name"]) for a in damaged if not all(item.is_shut for item in a["damage"])]
        sendable = [
            str(a["name"]) for a in damaged if not all(item.earlier or item.is_shut for item in a["damage"])
        ]
        mend = f" {ways_to_mend(torn, sendable)}" if torn else ""
        hint = f"; left: {len(damaged)} damaged.{mend}" if damaged else ""
        click.echo(f"{whole}{hint}")
    if not damaged and not tables:
        return 0
    return FAILED if len(damaged) == len(answers) else PARTLY


@click.command("scrub", short_help="Read a share of all content again; for the timer.")
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
    to be paid for. Exit code 1 if anything is damaged.

    \b
    Examples:
      shala archive scrub
      shala archive scrub --days 1                everything, now
      shala archive scrub --days 1 --bucket 100   the bucket too
    """
    settings = config.archive
    if percent is None:
        percent = settings.objects_scrub_percent
    elif not settings.objects_url:
        raise UsageError(
            "--bucket: there is no bucket, archive.objects_url is empty (without --bucket this disk is read)"
        )
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
        torn = not all(damage.is_shut for damage in done.damage)
        hint = " Mend: shala archive repair" if torn else ""
        oldest = (
            f"The oldest reading is of {done.oldest[:16]}." if done.oldest else "Not all was read once yet."
        )
        listed = f", {counted(done.listed, 'object')} of the bucket looked up" if done.listed else ""
        click.echo(
            f"{counted(done.objects, 'object')}, {size(done.bytes)} read{listed}:"
            f" {len(done.damage) or 'none'} damaged."
            f" {oldest}{hint}"
        )
    return FAILED if done.damage or done.failed or tables else 0


@click.command("repair", short_help="Mend damaged or lost content from a second copy.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--from",
    "second",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="ROOT",
    help="Another copy of the archive (its root).",
)
@click.option(
    "--give-up", is_flag=True, help="Forget rows of tables that no copy has whole, and what needs them."
)
@config_option
@json_option
def archive_repair(
    names: tuple[str, ...], second: Path | None, give_up: bool, config: CentralConfig, as_json: bool
) -> int:
    """Mend damaged or lost content from a second copy of the archive, plain or packed there.

    The copy is only read; its disk may be mounted read-only. What no copy has can be asked of the school
    again, if its newest collection holds it: shala pull --again. A damaged history.sqlite, cold.sqlite or
    encrypted.sqlite, or a damaged row, is replaced by its copy in .shala/backup, a row also by that of the
    second copy; remote.sqlite is made anew, of a listing of the bucket. With --give-up a row that no copy
    has whole is removed, and so are the earlier collections that cannot be read without it: until then
    prune leaves that server alone. Exit code 3 if something is left, 1 if nothing could be mended.

    \b
    Examples:
      shala archive repair --from /mnt/second-disk/archive
      shala archive repair 2031017-mz17
    """
    archive = open_archive(config, writing=True)
    if second is not None and not (second / ".shala").is_dir():
        raise UsageError(f"{second} is not an archive (--from takes the root of a copy, with .shala in it)")
    if second is not None and _is_same_place(archive.root, second):
        raise UsageError(
            f"{second} is no other copy than {archive.root} (without --from it is mended of what is in it)"
        )
    if tables := put_back(archive, second, give_up=give_up):
        archive = open_archive(config, writing=True)
    chosen = servers_of(archive, names)
    copy = SecondCopy(archive, second) if second is not None else None
    answers, failed = of_each(chosen, lambda name: repair(archive, name, copy))
    complain_of(failed.values())
    if as_json:
        print_json({"servers": answers, "tables": tables, "failed": failed})
    else:
        _print_put_back(tables)
        for answer in answers:
            if answer.mended or answer.put_back or answer.removed or answer.lost:
                removed = f" {len(answer.removed)} removed," if answer.removed else ""
                click.echo(
                    f"{answer.name}: {len(answer.mended)} mended, {len(answer.put_back)} put back in view,"
                    f"{removed} {len(answer.lost)} left"
                )
                for word, paths in (
                    ("mended", answer.mended),
                    ("put back", answer.put_back),
                    ("removed", answer.removed),
                    ("left", answer.lost),
                ):
                    for path in paths[:MAX_SHOWN]:
                        click.echo(f"  {word}: {visible(path)}")
                    if len(paths) > MAX_SHOWN:
                        click.echo(f"  {word}: {len(paths) - MAX_SHOWN} more (--json has all)")
        left = [*(answer.name for answer in answers if answer.lost), *failed]
        sendable = [answer.name for answer in answers if len(answer.lost) > len(answer.earlier)]
        again = f" {ways_to_mend(left, sendable, repaired=True)}" if left else ""
        done = sum(len(answer.mended) for answer in answers)
        back = sum(len(answer.put_back) for answer in answers)
        click.echo(
            f"{counted(done, 'file')} mended, {back} put back in view,"
            f" {counted(len(left), 'server')} left.{again}"
        )
    left_over = [answer for answer in answers if answer.lost]
    if not left_over and not failed:
        # What no copy of a table had, the second copy of the archive may just have given.
        return 0 if all(one.is_good for one in tables) or not damaged_tables(archive) else PARTLY
    done_some = any(answer.mended or answer.put_back or answer.removed for answer in answers)
    done_some = done_some or any(one.rows or one.given_up for one in tables)
    return PARTLY if len(left_over) < len(answers) or done_some else FAILED


def _is_same_place(root: Path, second: Path) -> bool:
    """Return whether one of two folders is the other, or within it, by whatever way they are reached."""
    one, other = root.resolve(), second.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one) or one.samefile(other)


def _print_put_back(tables: Sequence[PutBack]) -> None:
    for one in tables:
        copy = f"the copy of {one.copied[:16]}"
        done = []
        if one.listed:
            done.append("made anew, of a listing of the bucket")
        elif one.rows is None:
            done.append(f"{copy} is put back" if one.copied else "left")
        elif one.rows:
            done.append(f"{counted(one.rows, 'row')} of {copy} put back")
        elif not one.left and not one.given_up:
            done.append("its indexes are made anew")
        if one.given_up:
            done.append(f"{counted(one.given_up, 'damaged row')} given up")
        if one.left:
            done.append(f"{counted(one.left, 'damaged row')} left (--from ROOT, or --give-up)")
        click.echo(f"{one.name}: {', '.join(done)}")
        for lost in one.lost[:MAX_SHOWN]:
            click.echo(f"  not in it: {lost}" if one.copied and one.rows is None else f"  {visible(lost)}")


def ways_to_mend(names: Sequence[str], sendable: Sequence[str], *, repaired: bool = False) -> str:
    """Say what mends servers, or what still may where they are `repaired` already.

    The schools of those that are `sendable` have something of what is damaged.
    """
    command = " ".join(["shala archive repair", *(names if len(names) <= MAX_NAMED else ())])
    from_copy = "--from ROOT (another copy of the archive)"
    first = f"{command} {from_copy}" if repaired else f"{command}; what that leaves: {from_copy}"
    again = f", or shala pull --again {' '.join(sendable[:MAX_NAMED])}" if sendable else ""
    return f"Mend: {first}{again}"
