"""The command line of devices: `shala device ...`."""

from __future__ import annotations

import datetime
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from shala_agent import durable
from shala_agent.wire import EnrolAnswer, EnrolRequest

from shala_central.config import CentralConfig
from shala_central.failure import UsageError
from shala_central.options import Group, complain_of, config_option, counted, json_option, print_json
from shala_central.report import table
from shala_central.zone_commands import open_zones

if TYPE_CHECKING:
    from shala_central.enrolment import Token
    from shala_central.zones import Device

_URL = "https://CENTRE"  # where zones.url of the configuration does not say it
_REQUEST = "on the server: shala-agent enrol --request FILE writes one"
_MAX_REQUEST_FILE = 64 << 10  # bytes


@click.group("device", cls=Group)
def device_group() -> None:
    """Devices: the servers of a zone, each known by its key.

    \b
    Examples:
      shala device create --zone mz-aizawl --name 2031017-mz17
      shala device list --zone mz-aizawl
    """


@device_group.command("create", short_help="Make a one-time token for a server.")
@click.option("--zone", "zone_name", required=True, metavar="ZONE", help="The zone that it will belong to.")
@click.option("--name", default="", metavar="SERVER", help="Only this server may use it, e.g. 2031017-mz17.")
@click.option("--days", type=click.IntRange(1, 3650), help="How long it is good.  [default: 30]")
@click.option("--replace", is_flag=True, help="The server has a new disk: its old device is revoked then.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the token there (mode 0600) and not to the terminal.",
)
@config_option
@json_option
def device_create(  # noqa: PLR0917 - click's
    zone_name: str,
    name: str,
    days: int | None,
    replace: bool,
    token_file: Path | None,
    config: CentralConfig,
    as_json: bool,
) -> int:
    """Make a token with which one server enrols itself in a zone, once.

    \b
    Examples:
      shala device create --zone mz-aizawl --name 2031017-mz17
      shala device create --zone mz-aizawl --name 2031017-mz17 --replace     its disk was changed
      shala device create --zone mz-aizawl --token-file /root/token
    """
    from shala_central.enrolment import create_token

    zones = open_zones(config)
    lasts = days or config.zones.token_days
    with zones.database.writing() as session:
        token = create_token(session, zones.zone(session, zone_name), name, lasts, replaces=replace)
        if token_file is not None:
            _require_free(token_file)
            _write(token_file, f"{token}\n".encode(), 0o600)
    if as_json:
        shown = {"token_file": str(token_file)} if token_file else {"token": token}
        print_json({"zone": zone_name, "name": name, "days": lasts, **shown})
        return 0
    if token_file is None:
        click.echo(token)
    way = (
        f"carry {token_file} to the server"
        if token_file
        else "on the server, which reads the token from stdin"
    )
    click.echo(
        f"Good once, for {name or 'one server'}, within {counted(lasts, 'day')}."
        f" Next, {way}: {_enrol('--token-file', str(token_file or '-'), '--url', config.zones.url or _URL)}",
        err=True,
    )
    return 0


@device_group.command("approve", short_help="Enrol a server by the request file that was carried here.")
@click.argument("request_file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--zone", "zone_name", required=True, metavar="ZONE", help="The zone that it will belong to.")
@click.option("--replace", is_flag=True, help="The server has a new disk: its old device is revoked.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The approval file, to be carried back.",
)
@config_option
@json_option
def device_approve(  # noqa: PLR0917 - click's
    request_file: Path, zone_name: str, replace: bool, output: Path, config: CentralConfig, as_json: bool
) -> int:
    """Enrol a server that never had a network: by the request that it wrote and somebody carried here.

    Look at the name before you say yes: whoever made the file becomes that server.

    \b
    Example:
      shala device approve /media/usb/mz17.request --zone mz-aizawl --output /media/usb/mz17.approval
    """
    from shala_agent.enrol import fingerprint

    from shala_central.enrolment import approve

    request = _read_request(request_file)
    zones = open_zones(config)
    with zones.database.writing() as session:
        zone = zones.zone(session, zone_name)
        _write(output, _as_file(approve(zones, session, zone, request, replaces=replace)), 0o644)
    _say_if_without_address(config)
    centre = fingerprint(zones.public_key)
    if as_json:
        print_json({"zone": zone_name, "name": request.name, "approval": str(output), "centre": centre})
    else:
        click.echo(f"The key of this centre: {centre} (shala-agent enrol shows the same)")
        click.echo(
            f"{request.name} belongs to {zone_name}. Carry {output} back to it: {_by_approval(output)}"
        )
    return 0


@device_group.command("list", short_help="List devices.")
@click.option("--zone", "zone_name", default="", metavar="ZONE", help="Only those of this zone.")
@config_option
@json_option
def device_list(zone_name: str, config: CentralConfig, as_json: bool) -> int:
    """List the devices, those that were revoked as well.

    \b
    Example:
      shala device list --zone mz-aizawl
    """
    zones = open_zones(config)
    with zones.database.reading() as session:
        devices = zones.devices(session, zones.zone(session, zone_name) if zone_name else None)
    if as_json:
        print_json({"devices": [_as_json(device) for device in devices]})
        return 0
    rows = [
        {
            "server": device.name,
            "zone": device.zone_name,
            "device": device.id.hex()[:12],
            "state": "revoked" if device.revoked is not None else "enrolled",
            "last contact": _date(device.contact),
        }
        for device in devices
    ]
    for line in table(rows, ("server", "zone", "device", "state", "last contact")):
        click.echo(line)
    click.echo(f"{counted(len(devices), 'device')}. More: shala device show NAME, shala zone status")
    return 0


@device_group.command("show", short_help="Show one device.")
@click.argument("name")
@config_option
@json_option
def device_show(name: str, config: CentralConfig, as_json: bool) -> int:
    """Show what is known of one device. NAME is its server name, or at least 8 digits of its id.

    \b
    Example:
      shala device show 2031017-mz17
    """
    zones = open_zones(config)
    with zones.database.reading() as session:
        device = zones.find_device(session, name)
        logs = zones.logs(session, zones.zone(session, device.zone_name), device.key)
    if as_json:
        print_json({**_as_json(device), "logs": {log.hex(): list(haves) for log, haves in logs.items()}})
        return 0
    click.echo(f"{device.name} in {device.zone_name}, device {device.id.hex()}")
    click.echo(f"  enrolled {_date(device.enrolled)}")
    if device.revoked is not None:
        click.echo(f"  revoked {_date(device.revoked)}{': ' if device.reason else ''}{device.reason}")
    click.echo(f"  last contact {_date(device.contact)}, software {device.software or 'not known'}")
    click.echo(f"  entries here: {sum(map(len, logs.values())):,} in {counted(len(logs), 'log')}")
    click.echo(f"More: shala zone status {device.zone_name}")
    return 0


@device_group.command("move", short_help="Move a device to another zone.")
@click.argument("name")
@click.option("--zone", "zone_name", required=True, metavar="ZONE", help="The zone that it moves to.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write an approval file, for a server without a network.",
)
@config_option
@json_option
def device_move(name: str, zone_name: str, output: Path | None, config: CentralConfig, as_json: bool) -> int:
    """Move a device to another zone: it is revoked in the old one. What it sent there stays there, and all
    that it ever wrote comes along into the new one.

    It learns of it with `shala-agent enrol` (no token is needed), or by the approval file.

    \b
    Example:
      shala device move 2031017-mz17 --zone mz-lunglei
    """
    from shala_central.enrolment import move

    zones = open_zones(config)
    with zones.database.writing() as session:
        device = zones.find_device(session, name)
        approval = move(zones, session, device, zones.zone(session, zone_name))
        if output is not None:
            _write(output, _as_file(approval), 0o644)
    if output is not None:
        _say_if_without_address(config)
    if as_json:
        print_json({"name": device.name, "from": device.zone_name, "to": zone_name})
        return 0
    way = f"carry {output} to it: {_by_approval(output)}" if output else "on the server: shala-agent enrol"
    click.echo(f"{device.name} moved from {device.zone_name} to {zone_name}. Next, {way}")
    return 0


@device_group.command("revoke", short_help="Cut a device off.")
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Shown wherever its entries are held back.")
@config_option
@json_option
def device_revoke(name: str, reason: str, config: CentralConfig, as_json: bool) -> int:
    """Cut a device off. What the centre has of it goes on to count; nothing that comes later does.

    \b
    Example:
      shala device revoke 2031017-mz17 --reason "stolen"
    """
    if len(reason) > 500:
        raise UsageError("--reason has more than 500 characters")
    from shala_central.enrolment import enrol_anew

    zones = open_zones(config)
    with zones.database.writing() as session:
        device = zones.find_device(session, name)
        if device.revoked is not None:
            raise UsageError(
                f"'{device.name}' is revoked already (since {_date(device.revoked)};"
                f" {enrol_anew(device.zone_name, device.name)})"
            )
        zones.revoke(session, device, reason)
    if as_json:
        print_json({"name": device.name, "device": device.id.hex(), "zone": device.zone_name})
    else:
        click.echo(f"{device.name} is revoked. Later, {enrol_anew(device.zone_name, device.name)}")
    return 0


@device_group.group("token", cls=Group, short_help="Tokens that can still be used.")
def token_group() -> None:
    """Tokens that were made and not used yet. The token itself is nowhere: an id stands for it.

    \b
    Examples:
      shala device token list
      shala device token revoke 5f2a90c1d3e4
    """


@token_group.command("list", short_help="List the tokens that can still be used.")
@click.option("--zone", "zone_name", default="", metavar="ZONE", help="Only those for this zone.")
@config_option
@json_option
def token_list(zone_name: str, config: CentralConfig, as_json: bool) -> int:
    """List the tokens that can still be used: neither used nor expired.

    \b
    Example:
      shala device token list --zone mz-aizawl
    """
    from shala_central.enrolment import open_tokens

    zones = open_zones(config)
    with zones.database.reading() as session:
        tokens = open_tokens(session, zones.zone(session, zone_name) if zone_name else None)
    if as_json:
        print_json({"tokens": tokens})
        return 0
    rows = [
        {
            "token": token.id[:12],
            "server": f"{token.name or 'any'}{' (replaces)' if token.replaces else ''}",
            "zone": token.zone,
            "made": _date(token.created),
            "expires": _date(token.expires),
        }
        for token in tokens
    ]
    for line in table(rows, ("token", "server", "zone", "made", "expires")):
        click.echo(line)
    click.echo(f"{counted(len(tokens), 'open token')}. More: shala device token revoke TOKEN")
    return 0


@token_group.command("revoke", short_help="Have a token be good for nothing.")
@click.argument("id_", metavar="TOKEN")
@config_option
@json_option
def token_revoke(id_: str, config: CentralConfig, as_json: bool) -> int:
    """Have a token that was not used be good for nothing. TOKEN is its id, as in the list, never itself.

    \b
    Example:
      shala device token revoke 5f2a90c1d3e4
    """
    from shala_central.enrolment import revoke_token

    zones = open_zones(config)
    with zones.database.writing() as session:
        token = revoke_token(session, id_)
    if as_json:
        print_json(token)
    else:
        click.echo(
            f"The token for {token.name or 'any server'} in {token.zone} is good for nothing now."
            f" Another one: {_create(token)}"
        )
    return 0


def _read_request(path: Path) -> EnrolRequest:
    if path.stat().st_size > _MAX_REQUEST_FILE:
        raise UsageError(f"{path} is no request for enrolment: far too large ({_REQUEST})")
    try:
        return msgspec.json.decode(path.read_bytes(), type=EnrolRequest)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(f"{path} is no request for enrolment: {error} ({_REQUEST})") from None


def _create(token: Token) -> str:
    name = ["--name", token.name] if token.name else []
    replace = ["--replace"] if token.replaces else []
    return shlex.join(["shala", "device", "create", "--zone", token.zone, *name, *replace])


def _enrol(*options: str) -> str:
    """Return the command that the server is to run."""
    return shlex.join(["shala-agent", "enrol", *options])


def _by_approval(path: Path) -> str:
    return _enrol("--approval", str(path))


def _say_if_without_address(config: CentralConfig) -> None:
    way_out = f"there: shala-agent enrol --approval FILE --url {_URL}; or set it, then shala device approve"
    if not config.zones.url:
        complain_of([f"zones.url in central.toml is empty: the approval names no address ({way_out})"])


def _as_file(approval: EnrolAnswer) -> bytes:
    return msgspec.json.encode(approval) + b"\n"


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write what is to be carried, within the transaction: where that cannot be, nothing was done."""
    try:
        durable.write(path, content, mode=mode)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror} (name a file in a folder that is there and yours)"
        ) from None


def _require_free(path: Path) -> None:
    """Raise UsageError unless a file is missing or empty: another token may be in it, and nowhere else."""
    if path.exists() and (not path.is_file() or path.stat().st_size):
        raise UsageError(
            f"{path} is there already and is not overwritten (name another file, or remove it if it is used)"
        )


def _as_json(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "device": device.id.hex(),
        "zone": device.zone_name,
        "enrolled": device.enrolled,
        "revoked": device.revoked,
        "reason": device.reason,
        "contact": device.contact,
        "software": device.software,
    }


def _date(at: int | None) -> str:
    if at is None:
        return "never"
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M")
