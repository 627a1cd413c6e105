"""The fleet: which servers the centre pulls from and where they answer (/etc/shala/fleet.json, made from the
inventory).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from shala_central.failure import UsageError
from shala_central.schools import address_problem, zone_group

SERVER_NAME = re.compile(r"[0-9]{7,8}-([a-z]{2,8})[1-9][0-9]{0,8}")


class Server(msgspec.Struct, frozen=True):
    """One school server as the centre reaches it."""

    name: str
    state: str
    address: str
    zone: str = ""
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 22

    @property
    def school_code(self) -> str:
        """The part of the server name before the dash."""
        return self.name.partition("-")[0]

    @property
    def server_id(self) -> str:
        """The part of the server name after the dash."""
        return self.name.partition("-")[2]


class _Fleet(msgspec.Struct, frozen=True):
    format: Annotated[int, msgspec.Meta(ge=1, le=1)]
    servers: list[Server]


def read_fleet(path: Path) -> list[Server]:
    """Given the path of fleet.json, return its servers in order. Raises UsageError with what to correct."""
    try:
        fleet = msgspec.json.decode(path.read_bytes(), type=_Fleet)
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist (playbooks/central.yml makes it from the inventory)"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path}: {error} (playbooks/central.yml makes it anew)") from None
    seen: set[str] = set()
    for server in fleet.servers:
        match = SERVER_NAME.fullmatch(server.name)
        if match is None:
            raise UsageError(f"{path}: '{server.name}' is not a server name (<school code>-<server id>)")
        if match[1] != server.state:
            raise UsageError(
                f"{path}: {server.name} is said to be of state '{server.state}', its id says '{match[1]}'"
            )
        if problem := address_problem(server.address):
            raise UsageError(f"{path}: the address '{server.address}' of {server.name} {problem}")
        if server.name in seen:
            raise UsageError(f"{path}: {server.name} is in it twice (remove one)")
        seen.add(server.name)
    return fleet.servers


def select(servers: Sequence[Server], names: Sequence[str], limit: str | None) -> list[Server]:
    """Given the fleet, names and a limit such as `state_mz,zone_mz_aizawl`, return the servers meant.

    No names and no limit mean all; both mean those in both. Raises UsageError for what is not in the fleet,
    for a limit that says nothing, and where names and limit have no server in common: that is never all.
    """
    known = {server.name for server in servers}
    for name in names:
        if name not in known:
            raise UsageError(
                f"'{name}' is not in the fleet (shala probe lists it; playbooks/central.yml renews it)"
            )
    chosen = [server for server in servers if not names or server.name in names]
    groups = [part.strip() for part in (limit or "").split(",") if part.strip()]
    if limit is not None and not groups:
        raise UsageError("--limit names no group (e.g. state_mz; without --limit all servers are meant)")
    for group in groups:
        if not any(_belongs(server, group) for server in servers):
            raise UsageError(
                f"--limit: no server belongs to '{group}' (use state_mz, zone_mz_aizawl or a server name)"
            )
    within = [server for server in chosen if not groups or any(_belongs(server, group) for group in groups)]
    if servers and not within:
        raise UsageError("no server is both named and within --limit (leave out one of the two)")
    return within


def _belongs(server: Server, group: str) -> bool:
    zone = zone_group(server.zone) if server.zone else ""
    return group in (server.name, f"state_{server.state}", zone, "all", "schools")
