"""The command line of zone sync: `shala org ...`, `shala zone ...`."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING

import click
import msgspec

from shala_central.config import CentralConfig
from shala_central.failure import CentralError, UsageError
from shala_central.options import (
    MAX_SHOWN,
    PARTLY,
    Group,
    complain_of,
    config_option,
    confirm,
    counted,
    json_option,
    print_json,
    visible,
)
from shala_central.report import duration, size, table

if TYPE_CHECKING:
    from shala_central.zone_status import Place, ZoneStatus
    from shala_central.zones import Zones


def open_zones(config: CentralConfig, *, make: bool = False, anew: bool = False) -> Zones:
    """Return the database of zones, upgraded if that is needed. Raises CentralError.

    Only where it may be the first command is it made: elsewhere its path is a slip. `anew`: the centre's
    key has had one that is lost.
    """
    # Only now: SQLAlchemy takes longer to import than most commands take.
    from shala_central.zones import Zones

    return Zones.open(config.zones, make=make, anew=anew)


# -- organizations -------------------------------------------------------------------------------------------


@click.group("org", cls=Group)
def org_group() -> None:
    """Organizations: who owns zones.

    \b
    Example:
      shala org create mizoram
    """


@org_group.command("create", short_help="Make an organization.")
@click.argument("name")
@click.option(
    "--new-database", is_flag=True, help="Make a database though the centre's key has one: it is lost."
)
@config_option
@json_option
def org_create(name: str, new_database: bool, config: CentralConfig, as_json: bool) -> int:
    """Make an organization.

    \b
    Example:
      shala org create mizoram
    """
    zones = open_zones(config, make=True, anew=new_database)
    with zones.database.writing() as session:
        zones.create_organization(session, name)
    if as_json:
        print_json({"organization": name})
    else:
        click.echo(f"The organization {name} is there. Next: shala zone create ZONE --org {name}")
    return 0


@org_group.command("list", short_help="List organizations.")
@config_option
@json_option
def org_list(config: CentralConfig, as_json: bool) -> int:
    """List the organizations and how many zones each has.

    \b
    Example:
      shala org list
    """
    zones = open_zones(config)
    with zones.database.reading() as session:
        rows = session.query(
            "SELECT o.name, COUNT(z.id) FROM organization o LEFT JOIN zone z ON z.organization = o.id"
            " GROUP BY o.name ORDER BY o.name"
        )
    found = [{"organization": name, "zones": int(number)} for name, number in rows]
    if as_json:
        print_json({"organizations": found})
        return 0
    for line in table(found, ("organization", "zones"), ("zones",)):
        click.echo(line)
    click.echo(f"{counted(len(found), 'organization')}. More: shala org show NAME")
    return 0


@org_group.command("show", short_help="Show an organization and its zones.")
@click.argument("name")
@config_option
@json_option
def org_show(name: str, config: CentralConfig, as_json: bool) -> int:
    """Show an organization and its zones.

    \b
    Example:
      shala org show mizoram
    """
    zones = open_zones(config)
    with zones.database.reading() as session:
        zones.require_organization(session, name)
        found = [zone.name for zone in zones.zones(session) if zone.organization == name]
    if as_json:
        print_json({"organization": name, "zones": found})
    else:
        click.echo(f"{name}: {', '.join(found) or f'no zone yet (shala zone create ZONE --org {name})'}")
    return 0


# -- zones ---------------------------------------------------------------------------------------------------


@click.group("zone", cls=Group)
def zone_group() -> None:
    """Zones: groups of servers that share their records.

    \b
    Examples:
      shala zone create mz-aizawl --org mizoram
      shala zone status mz-aizawl
    """


@zone_group.command("create", short_help="Make a zone.")
@click.argument("name")
@click.option("--org", "organization", required=True, metavar="NAME", help="The organization that owns it.")
@config_option
@json_option
def zone_create(name: str, organization: str, config: CentralConfig, as_json: bool) -> int:
    """Make a zone. It is empty until devices are enrolled in it.

    \b
    Example:
      shala zone create mz-aizawl --org mizoram
    """
    zones = open_zones(config)
    with zones.database.writing() as session:
        zones.create_zone(session, name, organization)
    if as_json:
        print_json({"zone": name, "organization": organization})
    else:
        click.echo(f"The zone {name} is there. Next: shala device create --zone {name}")
    return 0


@zone_group.command("list", short_help="List zones.")
@config_option
@json_option
def zone_list(config: CentralConfig, as_json: bool) -> int:
    """List the zones and how many devices each has.

    \b
    Example:
      shala zone list
    """
    zones = open_zones(config)
    with zones.database.reading() as session:
        rows = session.query("SELECT zone, COUNT(*) FROM device WHERE revoked IS NULL GROUP BY zone")
        counts = {zone: int(number) for zone, number in rows}
        found = [
            {"zone": zone.name, "organization": zone.organization, "devices": counts.get(zone.id, 0)}
            for zone in zones.zones(session)
        ]
    if as_json:
        print_json({"zones": found})
        return 0
    for line in table(found, ("zone", "organization", "devices"), ("devices",)):
        click.echo(line)
    click.echo(f"{counted(len(found), 'zone')}. More: shala zone status, shala zone show NAME")
    return 0


@zone_group.command("show", short_help="Show a zone and its devices.")
@click.argument("name")
@config_option
@json_option
def zone_show(name: str, config: CentralConfig, as_json: bool) -> int:
    """Show a zone, its devices, and the fingerprint of the centre's key, which `shala-agent enrol` shows too.

    \b
    Example:
      shala zone show mz-aizawl
    """
    from shala_agent.enrol import fingerprint

    zones = open_zones(config)
    centre = fingerprint(zones.public_key)
    with zones.database.reading() as session:
        zone = zones.zone(session, name)
        devices = zones.devices(session, zone)
    if as_json:
        names = [one.name for one in devices]
        print_json({"zone": name, "organization": zone.organization, "devices": names, "centre": centre})
        return 0
    click.echo(f"{name} of {zone.organization}: {counted(len(devices), 'device')}")
    for device in devices:
        click.echo(f"  {device.name}{' (revoked)' if device.revoked is not None else ''}")
    click.echo(f"The key of this centre: {centre} (shala-agent enrol shows the same)")
    click.echo(f"More: shala zone status {name}")
    return 0


@zone_group.command("status", short_help="Show how far each device is behind.")
@click.argument("name", default="", metavar="[ZONE]")
@config_option
@json_option
def zone_status_command(name: str, config: CentralConfig, as_json: bool) -> int:
    """Show the lag of each device, and what is in dispute: conflicts, waiting records, quarantine, forks.

    What a device lacks is as of its last contact: what it was told of then, and mostly fetched, it has to
    confirm with the next one. "To be told" are revocations and redactions
    of which it has not said yet that it has them.

    \b
    Examples:
      shala zone status
      shala zone status mz-aizawl
    """
    from shala_central import remake
    from shala_central.certificate import certificate_problem
    from shala_central.zone_status import zone_status

    zones = open_zones(config)
    zones.remake_for(remake.READERS_WAIT)
    shown = 10_000 if as_json else MAX_SHOWN
    with zones.database.reading() as session:
        wanted = [zones.zone(session, name)] if name else zones.zones(session)
        found = [zone_status(zones, session, zone, shown=shown) for zone in wanted]
    disk = zones.quotas.disk(zones.database)
    certificate = certificate_problem()
    if as_json:
        print_json({"zones": found, "disk": disk, "certificate": certificate})
        return 0
    for status in found:
        _print_status(status)
    for problem in filter(None, (disk, certificate)):
        click.echo(problem)
    living = [lag for status in found for lag in status.devices if not lag.revoked]
    behind = sum(lag.is_behind and not lag.is_to_confirm for lag in living)
    to_confirm = sum(lag.is_to_confirm for lag in living)
    untold = sum(lag.to_be_told > 0 for lag in living)
    click.echo(
        f"{behind} of {counted(len(living), 'device')} behind"
        f"{f', {to_confirm} to confirm with the next sync what is there' if to_confirm else ''}"
        f"{f', {untold} to be told of revocations or redactions' if untold else ''}."
        " More: shala zone record TYPE KEY, shala device show NAME"
    )
    return 0


def _print_status(status: ZoneStatus) -> None:
    click.echo(
        f"{status.zone} of {status.organization}: {counted(status.records, 'record')}"
        f" in {counted(status.segments, 'segment')}"
    )
    columns = (
        "server",
        "known",
        "here",
        "to upload",
        "bytes up",
        "to download",
        "bytes down",
        "to confirm",
        "left out",
        "to be told",
        "last contact",
    )
    rows = [
        {
            "server": f"{lag.name}{' (revoked)' if lag.revoked else ''}",
            "known": "-" if lag.contact is None else lag.counter,
            "here": lag.held,
            "to upload": lag.up_entries,
            "bytes up": size(lag.up_bytes),
            "to download": lag.down_entries - lag.named_entries,
            "bytes down": size(lag.down_bytes - lag.named_bytes),
            "to confirm": lag.named_entries,
            "left out": lag.left_out,
            "to be told": lag.to_be_told,
            "last contact": "never" if lag.age_seconds is None else f"{duration(lag.age_seconds)} ago",
        }
        for lag in status.devices
    ]
    for line in table(rows, columns, columns[1:]) if rows else ():
        click.echo(f"  {line}")
    if not rows:
        none = "no device now: who wrote here was moved" if status.segments else "no device yet"
        click.echo(f"  {none} (shala device create --zone {status.zone} --name SERVER)")
    if status.remaking:
        click.echo("  the records are being made anew from the segments: not all are counted yet")
    for name, lines in (
        ("conflicts", (f"conflict: {record} (shala zone record {record})" for record in status.conflicts)),
        (
            "waiting",
            (
                f"waiting: {counted(number, 'record')} for {record}, which has not arrived or was forgotten"
                for record, number in status.waiting.items()
            ),
        ),
        (
            "held",
            (f"held back: {counted(number, 'segment')}: {reason}" for reason, number in status.held.items()),
        ),
        ("quarantined", (f"quarantined: {entry}" for entry in status.quarantined)),
    ):
        for line in lines:
            click.echo(f"  {line}")
        if more := status.more.get(name):
            click.echo(f"  and {more:,} more, {name} (--json names them)")
    for fork in status.forks:
        click.echo(f"  fork: {fork}")
    for quota in status.quotas:
        click.echo(f"  nearly used up: {quota}")
    click.echo()


@zone_group.command("record", short_help="Say where a record is.")
@click.argument("type_", metavar="TYPE")
@click.argument("key")
@click.option("--zone", "zone_name", default="", metavar="ZONE", help="Only in this zone.")
@config_option
@json_option
def zone_record(type_: str, key: str, zone_name: str, config: CentralConfig, as_json: bool) -> int:
    """Say where a record is: its value, who wrote it, what contradicts it, and which servers have it.

    \b
    Examples:
      shala zone record account zodin
      shala zone record progress zodin/geometric-reasoning --zone mz-aizawl
    """
    from shala_central import remake
    from shala_central.zone_status import place_of

    zones = open_zones(config)
    zones.remake_for(remake.READERS_WAIT)
    with zones.database.reading() as session:
        wanted = [zones.zone(session, zone_name)] if zone_name else zones.zones(session)
        places = [place_of(zones, session, zone, type_, key) for zone in wanted]
    found = [place for place in places if place is not None]
    if not found:
        raise UsageError(f"no zone has a record {type_} {key} ({_not_there(type_)})")
    if as_json:
        print_json({"records": found})
        return 0
    for place in found:
        _print_place(place)
    return 0


def _not_there(type_: str) -> str:
    from shala_agent.record_types import TYPES

    if type_ not in TYPES:
        return f"there is no type '{type_}' here: {', '.join(TYPES)}"
    return "shala zone status tells what has not arrived"


def _print_place(place: Place) -> None:
    value = "deleted" if place.value is None else msgspec.json.encode(place.value).decode()
    click.echo(f"{visible(place.type)} {visible(place.key)} in {place.zone}: {visible(value)}")
    if place.waits:
        click.echo(f"  not shown yet: it waits for {visible(place.waits)}")
    if place.conflict:
        click.echo(f"  conflict: {counted(len(place.versions), 'version')}, the first one is shown")
    for version in place.versions:
        there = ", ".join(version.at_servers) or "no server is known to have it"
        click.echo(f"  written by {version.author} as its change {version.counter}; at: {there}")
        if place.conflict:
            text = "deleted" if version.value is None else msgspec.json.encode(version.value).decode()
            click.echo(f"    {visible(text)}")
    if place.missing_at:
        click.echo(f"  not confirmed by: {', '.join(place.missing_at)}")


@zone_group.command("records", short_help="List all records of a user.")
@click.option("--user", required=True, metavar="USER", help="User name, such as green-apple-mz17.")
@click.option("--zone", "zone_name", default="", metavar="ZONE", help="Only in this zone.")
@config_option
@json_option
def zone_records(user: str, zone_name: str, config: CentralConfig, as_json: bool) -> int:
    """List the records that name a user, in all zones: her account, and what hangs on it. Only reads.

    Deleted records and those that wait for another one are listed too, as the centre still has them.

    \b
    Examples:
      shala zone records --user green-apple-mz17
      shala zone records --user green-apple-mz17 --zone mz-aizawl --json
    """
    found = _records_of(open_zones(config), user, zone_name)
    if as_json:
        rows = [{"zone": zone, "type": type_, "key": key} for zone, type_, key in found]
        print_json({"user": user, "records": rows})
        return 0
    for zone, type_, key in found[:MAX_SHOWN]:
        click.echo(f"{zone}: {type_} {visible(key)}")
    if len(found) > MAX_SHOWN:
        click.echo(f"and {len(found) - MAX_SHOWN:,} more (--json names them)")
    for zone, named in _by_zone(found).items():
        click.echo(f"{zone}: {_counts(named)}. More: shala zone record TYPE KEY; {_redact_all(zone, user)}")
    if not found:
        click.echo(f"No record names {visible(user)} (shala zone status tells what has not arrived).")
    return 0


def _records_of(zones: Zones, user: str, zone_name: str = "") -> list[tuple[str, str, str]]:
    """Return (zone, type, key) of the records that name a user."""
    from shala_central import remake

    zones.remake_for(remake.READERS_WAIT)
    with zones.database.reading() as session:
        wanted = [zones.zone(session, zone_name)] if zone_name else zones.zones(session)
        if session.query("SELECT 1 FROM zone WHERE remade IS NOT NULL"):
            complain_of(["the records are being made anew from the segments: not all are counted yet"])
        return [(zone.name, *name) for zone in wanted for name in zones.records_of_user(session, zone, user)]


def _by_zone(found: list[tuple[str, str, str]]) -> dict[str, Counter[str]]:
    """Return how many records of each type there are, by zone."""
    counts: dict[str, Counter[str]] = {}
    for zone, type_, _ in found:
        counts.setdefault(zone, Counter())[type_] += 1
    return counts


def _counts(named: Counter[str]) -> str:
    return ", ".join(f"{number:,} {type_}" for type_, number in named.items())


def _require_entries(there: bool, zone: str, type_: str, key: str, others: Counter[str]) -> None:
    """Raise UsageError where nothing of a record is there; `others` are those that name the same user."""
    if not there:
        way_out = f"it has {_counts(others)}: {_redact_all(zone, key)}" if others else _not_there(type_)
        raise UsageError(f"the zone {zone} has no entry of {type_} {key} ({way_out})")


def _redact_all(zone: str, user: str) -> str:
    return shlex.join(["shala", "zone", "redact", zone, "account", visible(user), "--with-dependents"])


@zone_group.command("redact", short_help="Have a record forgotten everywhere.")
@click.argument("zone_name", metavar="ZONE")
@click.argument("type_", metavar="TYPE")
@click.argument("key")
@click.option("--reason", default="", metavar="TEXT", help="Kept in the statement that goes to every server.")
@click.option(
    "--with-dependents",
    is_flag=True,
    help="With an account: all other records of that user as well, also what is held back here.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_option
@json_option
def zone_redact(  # noqa: PLR0917 - click's
    zone_name: str,
    type_: str,
    key: str,
    reason: str,
    with_dependents: bool,
    yes: bool,
    config: CentralConfig,
    as_json: bool,
) -> int:
    """Have all that was ever written of a record forgotten: here now, on each server with its next sync.

    It cannot be undone. What a source still says on some server is written anew: delete it there first.
    Of an account it says afterwards which other records name that user, here and in other zones.

    \b
    Examples:
      shala zone redact mz-aizawl account zodin --reason "the parents ask for it"
      shala zone redact mz-aizawl account zodin --with-dependents
    """
    if len(reason) > 500:
        raise UsageError("--reason has more than 500 characters")
    if not key:  # of a script whose variable was empty, say
        raise UsageError("KEY is empty (shala zone redact --help)")
    if with_dependents and type_ != "account":
        raise UsageError(
            f"--with-dependents goes with an account, not with {type_} (shala zone redact --help)"
        )
    zones = open_zones(config)
    with zones.database.reading() as session:
        zone = zones.zone(session, zone_name)
    named = _by_zone(_records_of(zones, key)) if type_ == "account" else {}
    here = named.pop(zone_name, Counter())
    del here["account"]
    if here and not with_dependents:
        named = {zone_name: here, **named}
    with zones.database.reading() as session:
        is_there = zones.has_entries(session, zone, type_, key, dependents=with_dependents)
    _require_entries(is_there, zone_name, type_, key, here)
    if not yes:
        also = f" and what hangs on it ({_counts(here)})" if with_dependents and here else ""
        confirm(f"Forget {type_} {key}{also} in {zone_name} for good?")
    if hurt := zones.look_through(zone):
        raise CentralError(
            f"{counted(hurt, 'segment')} of {zone_name} is damaged, nothing was forgotten: nobody knows what"
            " is in it (a server that has it brings it with its next sync: try again then)"
        )
    with zones.database.writing() as session:
        zone = zones.zone(session, zone_name)
        number = zones.redact(session, zone, type_, key, reason, dependents=with_dependents)
    _require_entries(bool(number), zone_name, type_, key, here)
    if not (is_empty := zones.database.has_empty_log()):
        complain_of(
            ["the database's log still holds it while somebody reads (it goes with the next redaction)"]
        )
    with zones.database.reading() as session:
        servers = [one.name for one in zones.devices(session, zone) if one.revoked is None]
    if as_json:
        left = [
            {"zone": name, "type": of, "records": count}
            for name, counts in named.items()
            for of, count in counts.items()
        ]
        print_json(
            {
                "zone": zone_name,
                "type": type_,
                "key": key,
                "entries": number,
                "left": left,
                "to_be_told": servers,
            }
        )
    else:
        click.echo(f"Forgotten here: {counted(number, 'change')}. Each server does it with its next sync.")
        for name, counts in named.items():
            click.echo(
                f"Left in {name}, and naming {visible(key)}: {_counts(counts)}."
                f" Those too: {_redact_all(name, key)}"
            )
        if servers:
            more = f" and {len(servers) - MAX_SHOWN:,} more" if len(servers) > MAX_SHOWN else ""
            click.echo(
                f"Have yet to hear of it: {', '.join(servers[:MAX_SHOWN])}{more}"
                f" (shala zone status {zone_name} counts what each is to be told)"
            )
    return 0 if is_empty else PARTLY
