"""The command line of zone sync: `shala org ...`, `shala zone ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shala_central.config import CentralConfig
from shala_central.options import Group, config_option, counted, json_option, print_json
from shala_central.report import table

if TYPE_CHECKING:
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
