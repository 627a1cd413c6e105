"""`shala serve`: runs the server of zone sync."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import click

from shala_central.config import read_config
from shala_central.failure import UsageError
from shala_central.options import config_path_option, json_option, print_json

# Seconds: from one request of a device to its next, while it works on what it got.
_KEEP_ALIVE = 30


@click.command("serve", short_help="Run the server of zone sync.")
@click.option("--listen", default="", metavar="HOST:PORT", help="Instead of zones.listen.")
@click.option("--workers", type=click.IntRange(1, 64), help="Instead of zones.workers.")
@config_path_option
@json_option
def serve_command(config_path: Path, listen: str, workers: int | None, as_json: bool) -> int:
    """Run the server that the devices of all zones sync with. TLS is put in front of it by nginx.

    It makes its database with the first start and upgrades it after an update. It may be stopped or killed at
    any time: what a device was told to be here is here.

    \b
    Examples:
      shala serve
      shala serve --listen 127.0.0.1:8470 --workers 4
    """
    import uvicorn

    from shala_central.zones import Zones

    config = read_config(config_path)
    listen = listen or config.zones.listen
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"'{listen}' is not of the form HOST:PORT (e.g. 127.0.0.1:8470)")
    with _taken(listen, int(port)):
        _require_address(listen, host.strip("[]"), int(port))
        # Before the workers: the first one would make what the second one makes, too.
        zones = Zones.open(config.zones)
        zones.database.require_writable()
        name = zones.database.name
        zones.database.close()
        number = workers or config.zones.workers
        if as_json:
            print_json({"listen": listen, "workers": number, "database": name})
        else:
            click.echo(f"Serving zones on {listen} with {number} workers from {name}", err=True)
        os.environ["SHALA_CENTRAL_CONFIG"] = str(config_path.absolute())
        uvicorn.run(
            "shala_central.server:application",
            factory=True,
            host=host.strip("[]"),
            port=int(port),
            workers=number,
            access_log=False,
            server_header=False,
            date_header=False,
            log_level="warning",
            timeout_keep_alive=_KEEP_ALIVE,
            # Beyond it uvicorn answers 503 by itself: each connection may hold a part of a segment in memory.
            limit_concurrency=512,
        )
    return 0


@contextlib.contextmanager
def _taken(listen: str, port: int) -> Iterator[None]:
    """Let no second `shala serve` begin for this port, until this process ends. Raises UsageError.

    uvicorn's workers listen seconds after it has the address: until then nobody else is refused it, and the
    workers of two would be started anew for ever. The name is in no folder, and the kernel frees it.
    """
    with socket.socket(socket.AF_UNIX) as held:
        try:
            held.bind(f"\0shala serve {port}")
        except OSError as error:
            raise _not_to_listen_on(listen, error.strerror or str(error)) from None
        yield


def _require_address(listen: str, host: str, port: int) -> None:
    """Raise UsageError where nobody can listen: uvicorn says so late, and in its own words."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does
            tried.bind((host, port))
    except (OSError, UnicodeError) as error:  # a name that no name can be
        reason = str(getattr(error, "strerror", None) or error)
        raise _not_to_listen_on(listen, reason) from None


def _not_to_listen_on(listen: str, reason: str) -> UsageError:
    return UsageError(
        f"{listen} cannot be listened on: {reason} (is shala serve running already? else correct --listen"
        " or zones.listen)"
    )
