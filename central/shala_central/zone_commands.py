"""The command line of zone sync: `shala org ...`, `shala zone ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from shala_central.config import CentralConfig
from shala_central.failure import UsageError
from shala_central.options import (
    MAX_SHOWN,
    Group,
    config_option,
    counted,
    json_option,
    print_json,
    visible,
)
from shala_central.report import duration, size, table

if TYPE_CHECKING:
    from shala_central.zone_status import Place, ZoneStatus
    from shala_central.zones import Zones


def open_zones(config: CentralConfig) -> Zones:
    """Return the database of zones; made or upgraded, if that is needed. Raises CentralError."""
    # Only now: SQLAlchemy takes longer to import than most commands take.
    from shala_central.zones import Zones

    return Zones.open(config.zones)


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
@config_option
@json_option
def org_create(name: str, config: CentralConfig, as_json: bool) -> int:
    """Make an organization.

    \b
    Example:
      shala org create mizoram
    """
    zones = open_zones(config)
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
    """Show a zone and its devices.

    \b
    Example:
      shala zone show mz-aizawl
    """
    zones = open_zones(config)
    with zones.database.reading() as session:
        zone = zones.zone(session, name)
        devices = zones.devices(session, zone)
    if as_json:
        print_json(
            {"zone": name, "organization": zone.organization, "devices": [one.name for one in devices]}
        )
        return 0
    click.echo(f"{name} of {zone.organization}: {counted(len(devices), 'device')}")
    for device in devices:
        click.echo(f"  {device.name}{' (revoked)' if device.revoked is not None else ''}")
    click.echo(f"More: shala zone status {name}")
    return 0


@zone_group.command("status", short_help="Show how far each device is behind.")
@click.argument("name", default="", metavar="[ZONE]")
@config_option
@json_option
def zone_status_command(name: str, config: CentralConfig, as_json: bool) -> int:
    """Show the lag of each device, and what is in dispute: conflicts, waiting records, quarantine, forks.

    What a device lacks is as of its last contact: what it fetched then, it confirms with the next one.

    \b
    Examples:
      shala zone status
      shala zone status mz-aizawl
    """
    from shala_central.zone_status import zone_status

    zones = open_zones(config)
    shown = 10_000 if as_json else MAX_SHOWN
    with zones.database.reading() as session:
        wanted = [zones.zone(session, name)] if name else zones.zones(session)
        found = [zone_status(zones, session, zone, shown=shown) for zone in wanted]
    if as_json:
        print_json({"zones": found})
        return 0
    for status in found:
        _print_status(status)
    behind = sum(lag.is_behind for status in found for lag in status.devices if not lag.revoked)
    total = sum(not lag.revoked for status in found for lag in status.devices)
    click.echo(
        f"{behind} of {counted(total, 'device')} behind."
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
        "last contact",
    )
    rows = [
        {
            "server": f"{lag.name}{' (revoked)' if lag.revoked else ''}",
            "known": lag.counter,
            "here": lag.held,
            "to upload": lag.up_entries,
            "bytes up": size(lag.up_bytes),
            "to download": lag.down_entries,
            "bytes down": size(lag.down_bytes),
            "last contact": "never" if lag.age_seconds is None else f"{duration(lag.age_seconds)} ago",
        }
        for lag in status.devices
    ]
    for line in table(rows, columns, columns[1:]):
        click.echo(f"  {line}")
    for record in status.conflicts:
        click.echo(f"  conflict: {record} (shala zone record {record})")
    for record, number in status.waiting.items():
        click.echo(f"  waiting: {counted(number, 'record')} for {record}, which has not arrived")
    for reason, number in status.held.items():
        click.echo(f"  held back: {counted(number, 'segment')}: {reason}")
    for entry in status.quarantined:
        click.echo(f"  quarantined: {entry}")
    for fork in status.forks:
        click.echo(f"  fork: {fork}")
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
    from shala_central.zone_status import place_of

    zones = open_zones(config)
    with zones.database.reading() as session:
        wanted = [zones.zone(session, zone_name)] if zone_name else zones.zones(session)
        places = [place_of(zones, session, zone, type_, key) for zone in wanted]
    found = [place for place in places if place is not None]
    if not found:
        raise UsageError(f"no zone has a record {type_} {key} (shala zone status tells what has not arrived)")
    if as_json:
        print_json({"records": found})
        return 0
    for place in found:
        _print_place(place)
    return 0


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


@zone_group.command("redact", short_help="Have a record forgotten everywhere.")
@click.argument("zone_name", metavar="ZONE")
@click.argument("type_", metavar="TYPE")
@click.argument("key")
@click.option("--reason", default="", metavar="TEXT", help="Kept in the statement that goes to every server.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_option
@json_option
def zone_redact(  # noqa: PLR0917 - click's
    zone_name: str, type_: str, key: str, reason: str, yes: bool, config: CentralConfig, as_json: bool
) -> int:
    """Have all that was ever written of a record forgotten: here now, on each server with its next sync.

    It cannot be undone. What a source still says on some server is written anew: delete it there first.

    \b
    Example:
      shala zone redact mz-aizawl account zodin --reason "the parents ask for it"
    """
    if len(reason) > 500:
        raise UsageError("--reason has more than 500 characters")
    if not yes:
        click.confirm(f"Forget {type_} {key} in {zone_name} for good?", abort=True, err=True)
    zones = open_zones(config)
    with zones.database.writing() as session:
        number = zones.redact(session, zones.zone(session, zone_name), type_, key, reason)
    if not number:
        raise UsageError(
            f"the zone {zone_name} has no entry of {type_} {key} (shala zone record {type_} {key})"
        )
    if as_json:
        print_json({"zone": zone_name, "type": type_, "key": key, "entries": number})
    else:
        click.echo(
            f"Forgotten here: {number} of its changes. Each server does it with its next sync:"
            f" shala zone status {zone_name}"
        )
    return 0
