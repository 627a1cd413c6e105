"""What the commands of the centre have in common: options, and ways to print."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from shala_central.archive import Archive
from shala_central.cold import ColdFailed
from shala_central.config import CONFIG_PATH, CentralConfig, read_config
from shala_central.failure import CentralError, UsageError, refused
from shala_central.remote import RemoteFailed

T = TypeVar("T")
FAILED, USAGE, PARTLY = 1, 2, 3
MAX_NAMED = 5  # servers in one line
MAX_SHOWN = 20  # files or findings shown one by one; --json has them all


class _Elsewhere(click.Command):
    """Stands for a command of another module."""

    def __init__(self, name: str, module: str, attribute: str) -> None:
        super().__init__(name)
        self.module, self.attribute = module, attribute


class Group(click.Group):
    """Commands in the order in which a newcomer meets them, not in that of the alphabet."""

    def add_elsewhere(self, name: str, module: str, attribute: str) -> None:
        """Add a command whose module is imported when it is asked for: a pull needs no server and no zones,
        and importing them would take it longer than finding that a school has nothing new.
        """
        self.add_command(_Elsewhere(name, module, attribute))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of their definition."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name."""
        command = super().get_command(ctx, cmd_name)
        if isinstance(command, _Elsewhere):
            loaded: click.Command = getattr(importlib.import_module(command.module), command.attribute)
            return loaded
        return command


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")(
        command
    )


def config_path_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config; the command receives the path, for what it may need no configuration for."""
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        default=CONFIG_PATH,
        envvar="SHALA_CENTRAL_CONFIG",
        show_default=True,
        help="The centre's configuration.",
    )(command)


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config; the command receives the configuration, read and checked."""

    @config_path_option
    @functools.wraps(command)
    def with_config(*arguments: Any, config_path: Path, **options: Any) -> Any:
        return command(*arguments, config=read_config(config_path), **options)

    return with_config


def identity_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --identity: a file, because a key in a command line is for all to see."""
    return click.option(
        "--identity",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Decrypt with the age identity file of a researcher.",
    )(command)


def visible(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


def open_archive(config: CentralConfig, *, writing: bool = False) -> Archive:
    """Return the archive of a configuration. Raises UsageError, CentralError where it cannot be used so."""
    archive = Archive.of(config.archive)
    archive.require()
    if writing:
        archive.open()
    return archive


def servers_of(archive: Archive, names: Sequence[str]) -> list[str]:
    """Return the servers that are meant, each once: those named, or without names all in the archive.

    Raises UsageError for one of which nothing is there, or if there is nothing at all.
    """
    for name in names:
        if not archive.knows(name):
            raise UsageError(
                f"nothing of '{visible(name)}' is in the archive (shala archive tree --depth 2 shows what is)"
            )
    chosen = list(dict.fromkeys(names)) or archive.known()
    if not chosen:
        raise UsageError("nothing is committed yet (shala pull)")
    return chosen


def of_each(names: Iterable[str], deed: Callable[[str], T]) -> tuple[list[T], dict[str, str]]:
    """Do something for each server; return the answers, and why it could not be done: {server: the reason}.

    One server is never the end of it; what all servers share, when it cannot be used, is.
    """
    answers: list[T] = []
    failed: dict[str, str] = {}
    for name in names:
        try:
            answers.append(deed(name))
        except (ColdFailed, RemoteFailed):
            raise
        except CentralError as error:
            failed[name] = str(error) if name in str(error) else f"{name}: {error}"
        except PermissionError as error:
            failed[name] = f"{name}: {refused(Path(os.fsdecode(error.filename or 'the archive')))}"
        except OSError as error:
            failed[name] = f"{name}: {error.filename or 'the archive'}: {error.strerror or error}"
    return answers, failed


def complain_of(failed: Iterable[str]) -> None:
    """Say on stderr, a line each, why something was left."""
    for reason in failed:
        click.echo(f"shala: {reason}", err=True)


def confirm(question: str) -> None:
    """Ask before what cannot be undone. Raises UsageError for every answer but a yes, and for none."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)  # the line of the question ends
        agreed = False
    if not agreed:
        raise UsageError("not confirmed, nothing was changed (answer y, or --yes does not ask)")


def items_line(items: dict[str, int]) -> str:
    return "/".join(str(items.get(kind, 0)) for kind in ("ok", "suspect", "failed", "missing"))


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def print_json(value: object) -> None:
    click.echo(msgspec.json.encode(value).decode())


def bar(items: Sequence[str], label: str, *, quiet: bool) -> Any:
    """Return a progress bar at a terminal, otherwise something that only hands the items on."""
    if quiet or not sys.stderr.isatty():
        return contextlib.nullcontext(items)
    return click.progressbar(items, label=label, file=sys.stderr)
