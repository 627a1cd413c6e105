"""The commands that show how a server stands: status, doctor, diagnose, acknowledge."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from shala_agent.config import Config, read_config
from shala_agent.ledger import Ledger, now
from shala_agent.outcome import OK, SKIPPED, counted

if TYPE_CHECKING:
    from shala_agent.collection import ItemResult
    from shala_agent.status import Status, StepStatus
    from shala_agent.zone import Standing

DONE, FAILED, PARTLY = 0, 1, 3

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


@click.command(short_help="Show what is done, due, suspect and failed.")
@_json
@click.pass_obj
def status(config_path: Path, as_json: bool) -> None:
    """Show what is done, due, open, suspect and failed, why and since when, and what is in the spool.

    \b
    Example:  shala-agent status --json
    """
    from shala_agent.status import read_status

    config = read_config(config_path)
    with closing(_ledger(config)) as ledger:
        standing = read_status(config, ledger)
    if as_json:
        _print_json(standing)
    else:
        _show(standing)
    if standing.ledger_problem:
        click.echo(f"shala-agent: {standing.ledger_problem}", err=True)
        raise click.exceptions.Exit(PARTLY)


@click.command(short_help="Say what is wrong, and the remedy.")
@_json
@click.pass_obj
def doctor(config_path: Path, as_json: bool) -> None:
    """Say what is wrong on this server, one line per problem, with the remedy.

    \b
    Example:  shala-agent doctor
    """
    from shala_agent.doctor import examine

    config = read_config(config_path)
    with closing(_ledger(config)) as ledger:
        problems = list(examine(config, ledger))
    if as_json:
        _print_json({"problems": problems})
    else:
        for problem in problems:
            click.echo(str(problem))
        click.echo(f"{counted(len(problems), 'problem')}." if problems else "All is well.")
    raise click.exceptions.Exit(FAILED if problems else DONE)


@click.command(short_help="Pack what support needs, without personal data.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where to; without it shala-diagnose-<server>-<time>.tar.gz in this folder.",
)
@_json
@click.pass_obj
def diagnose(config_path: Path, output: Path | None, as_json: bool) -> None:
    """Pack all that support needs into one archive: no name of a pupil, no password, no key is in it.

    \b
    Example:  shala-agent diagnose --output /mnt/usb/hill-school.tar.gz
    """
    from shala_agent.diagnose import diagnose as pack

    config = read_config(config_path)
    name = config.identity.server_name or "unnamed"
    target = output or Path(f"shala-diagnose-{name}-{now().replace(':', '')}.tar.gz")
    with closing(_ledger(config)) as ledger:
        packed = pack(config, ledger, target)
    code = PARTLY if packed.broken else DONE
    if as_json:
        parts = [{"file": file, "about": about, "bytes": size} for file, about, size in packed.parts]
        _print_json({"format": 1, "archive": str(packed.path), "parts": parts, "missing": packed.missing})
        raise click.exceptions.Exit(code)
    _table(["file", "bytes", "what"], [[file, str(size), about] for file, about, size in packed.parts])
    for file, why in packed.missing.items():
        click.echo(f"{file} is not in it: {why}")
    click.echo(f"{packed.path}: give it to whoever helps.")
    raise click.exceptions.Exit(code)


@click.command(short_help="Note that the centre has a collection.")
@click.argument("sequence", type=click.IntRange(min=1))
@click.option("--manifest", required=True, metavar="SHA256", help="Digest of its manifest, at the centre.")
@_json
@click.pass_obj
def acknowledge(config_path: Path, sequence: int, manifest: str, as_json: bool) -> None:
    """Note that the centre has a collection and all before it: when room is short, those may go.

    \b
    Example:  shala-agent acknowledge 7 --manifest $(sha256sum < manifest-sha256.txt | cut -c -64)
    """
    from shala_agent.acknowledge import acknowledge as note

    config = read_config(config_path)
    with closing(Ledger(_ledger_path(config))) as ledger:
        newest = note(config, ledger, sequence, manifest)
    if as_json:
        _print_json({"format": 1, "acknowledged": newest})
    else:
        click.echo(f"The centre has the collections up to {newest}.")


def _show(found: Status) -> None:
    beat, chain = found.heartbeat, found.chain
    click.echo(f"{found.server_name or 'unidentified server'}, shala-agent {found.agent_version}")
    if beat is not None:
        free = f"{beat.disk_free / 1e9:.1f} of {beat.disk_total / 1e9:.1f} GB disk free"
        up = f"up {beat.uptime_seconds / 60:.0f} min"
        click.echo(f"heartbeat  {beat.taken}  container {beat.container}, {free}, {up}")
    if chain is not None:
        left = f"open, left: {', '.join(found.open_steps)}"
        how = left if chain.ended is None else f"{chain.outcome} {chain.ended}"
        click.echo(f"chain {chain.id}  begun {chain.started}, {how}")
    _table(["step", "outcome", "ended", "seconds", "since", "reason"], [_step_row(s) for s in found.steps])
    if chain is None or chain.ended is not None:
        click.echo(f"due with the next chain: {', '.join(found.due)}")
    if found.sync is not None:
        click.echo(_sync_line(found.sync))
    if found.sealed is None:
        click.echo("Nothing was collected yet (shala-agent run).")
        return
    sealed = found.sealed
    size = f"{counted(sealed.files, 'file')}, {sealed.bytes / 1e6:.1f} MB"
    has = f"; the centre has collection {found.acknowledged}" if found.acknowledged else ""
    click.echo(f"collection {sealed.sequence}, sealed {sealed.sealed}: {size}{has}")
    _table(["item", "outcome", "files", "MB", "since", "reason"], [_item_row(item) for item in sealed.items])


def _step_row(step: StepStatus) -> list[str]:
    reason = _first(step.reasons)
    if step.not_due_until:
        reason = f"due {step.not_due_until}{f'; {reason}' if reason else ''}"
    since = "" if step.outcome in (OK, SKIPPED) else f"{step.since} ({step.times}x)"
    return [step.step, step.outcome or "", step.ended or "", f"{step.seconds:.1f}", since, reason]


def _item_row(item: ItemResult) -> list[str]:
    since = "" if item.outcome in (OK, SKIPPED) else item.since
    size = f"{item.bytes / 1e6:.1f}"
    return [
        f"{item.platform}/{item.name}", item.outcome, str(item.files), size, since, _first(item.reasons)
    ]  # fmt: skip


def _sync_line(standing: Standing) -> str:
    if standing.problem:
        return f"sync       {standing.problem}"
    if not standing.zone:
        return "sync       switched on, but this server is not enrolled in a zone (shala-agent enrol)"
    lag = f"{counted(standing.lag_entries, 'record')} to send ({standing.lag_bytes / 1000:.0f} kB)"
    if standing.damaged:
        lag += f", {counted(standing.damaged, 'segment')} damaged on this disk (shala-agent doctor)"
    if standing.hollow:
        lag += f", {counted(standing.hollow, 'segment')} with entries missing (shala-agent doctor)"
    last = standing.last
    if last is None:
        return f"sync       zone {standing.zone}, {lag}, never synced (shala-agent sync)"
    how = last.outcome if last.outcome == "done" else f"{last.outcome}: {last.reason}"
    moved = f"{last.records_up} up, {last.records_down} down"
    return f"sync       zone {standing.zone}, {lag}; last {last.ended}: {moved}, {how}"


def _table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(f"  {cells}".rstrip())


def _first(reasons: list[str]) -> str:
    return f"{reasons[0]}{f' (+{len(reasons) - 1})' if len(reasons) > 1 else ''}" if reasons else ""


def _ledger(config: Config) -> Ledger:
    return Ledger.to_look_at(_ledger_path(config))


def _ledger_path(config: Config) -> Path:
    return Path(config.paths.state) / "ledger.sqlite"


def _print_json(document: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=1))
