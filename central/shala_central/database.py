"""Database: the centre's database of zones, SQLite or PostgreSQL, opened, migrated, and its transactions.

What was committed is on the disk: a receipt is given after that and never before.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shala_agent import write_ahead
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from shala_central.failure import CentralError, UsageError, refused
from shala_central.ownership import make_file, make_folder

_NO_ACCESS = (sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
# Of ours, since the first release; a file in which there are others is another program's.
_OURS = {"alembic_version", "organization", "zone", "device", "token"}
REVISION = "0007"  # the newest of the migrations
# Seconds that a writer waits for another one: an upgrade may rewrite a table.
BUSY_SECONDS = 120
_MIGRATING = 7_302_018  # any number: the advisory lock that two starting workers take in PostgreSQL


class DatabaseProblem(CentralError):
    """The database of zones cannot be used."""


class NotForUs(DatabaseProblem, UsageError):
    """What zones.database names is another program's, or may not be written (exit code 2)."""


class Database:
    """The database behind a URL. Safe to use from several threads."""

    def __init__(self, url: str, *, connections: int = 8, make: bool = True) -> None:
        self.url = _checked(url)
        self._make = make
        self._engine = _engine(self.url, connections, make)

    def open(self) -> Database:
        """Make or upgrade the tables, if that is needed. Raises DatabaseProblem, and UsageError for none."""
        with self._explained():
            with self._engine.connect() as connection:
                found = _revision(connection)
            if not found and not self._make:
                raise _no_database(self.name)
            if found != REVISION:
                _migrate(self._engine, self.name)
        return self

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def require_writable(self) -> None:
        """Raise DatabaseProblem where nothing can be written."""
        with self.writing() as session:
            session.query("UPDATE meta SET value = value WHERE name = 'centre'")

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def folder(self) -> Path | None:
        """Where the file is; None for PostgreSQL's."""
        path = _sqlite_file(self.url)
        return path.parent if path is not None else None

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """Give a transaction that only reads."""
        with self._explained(), self._engine.connect() as connection, connection.begin():
            yield Session(connection)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """Give a transaction that writes; when this ends without an exception all of it is on the disk."""
        with self._explained(), self._engine.connect() as connection:
            connection.execution_options(shala_writes=True)
            connection.info.pop("shala_forgets", None)  # of a transaction that came to nothing
            with connection.begin():
                yield Session(connection)
            if connection.info.pop("shala_forgets", False):
                _empty_log(connection)

    def has_empty_log(self) -> bool:
        """Empty the log of what was written; return whether it is: not while somebody reads what is in it."""
        with self._explained(), self._engine.connect() as connection:
            return self.folder is None or _empty_log(connection)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if _code(error) in _NO_ACCESS and (hindrance := _hindrance(Path(self.url.database or ""))):
                raise NotForUs(hindrance) from None
            said = str(error.orig).strip().splitlines()[0]
            raise DatabaseProblem(f"{self.name}: {said}{_way(error)}") from error
        except SQLAlchemyError as error:
            raise DatabaseProblem(f"{self.name}: {error}") from error


def _empty_log(connection: Connection) -> bool:
    driver: Any = connection.connection.driver_connection
    ((busy, *_),) = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return not busy


class Session:
    """One transaction; `shala_agent.state.Database` over SQLAlchemy."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._is_postgresql = connection.dialect.name == "postgresql"

    def query(self, sql: str, parameters: Sequence[object] = ()) -> Sequence[Sequence[Any]]:
        """Run one statement with `?` for a parameter and return its rows, if it has any."""
        result = self.connection.exec_driver_sql(self._own(sql), tuple(parameters))
        return result.fetchall() if result.returns_rows else ()

    def many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """Run a statement once for each row of parameters."""
        self.connection.exec_driver_sql(self._own(sql), rows)

    @property
    def locking(self) -> str:
        """What to write behind a SELECT of rows that nobody else may change until this transaction ends."""
        return " FOR NO KEY UPDATE" if self._is_postgresql else ""

    def locking_only(self, table: str) -> str:
        """The same for the rows of one table of a join."""
        return f"{self.locking} OF {table}" if self._is_postgresql else ""

    def forget_for_good(self) -> None:
        """Have what this transaction deletes stay in no file; PostgreSQL's VACUUM does it in its time."""
        self.connection.info["shala_forgets"] = not self._is_postgresql

    def lock_zone(self, zone: int) -> None:
        """Let nobody else write in a zone until this transaction ends. SQLite has one writer anyway."""
        self.query(f"SELECT 1 FROM zone WHERE id = ?{self.locking}", (zone,))  # noqa: S608 - constants

    def lock_device(self, device: bytes) -> None:
        """Let nobody else answer a device until this transaction ends."""
        self.query(f"SELECT 1 FROM device WHERE id = ?{self.locking}", (device,))  # noqa: S608 - constants

    def _own(self, sql: str) -> str:
        return sql.replace("?", "%s") if self._is_postgresql else sql


def sqlite_file(url: str) -> Path | None:
    """Return where the file of a URL is; None for PostgreSQL's. Raises UsageError."""
    return _sqlite_file(_checked(url))


def _sqlite_file(url: URL) -> Path | None:
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
        if {"password", "sslpassword"} & set(parsed.query):  # it would be shown wherever the URL is
            raise UsageError(
                "zones.database holds a password behind its '?' (it belongs into ~/.pgpass, or ?passfile=)"
            )
        if parsed.get_backend_name() == "postgresql":
            return parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite" and (parsed.database or "").startswith("/"):
            return parsed.set(drivername="sqlite+pysqlite")
    except (ArgumentError, NoSuchModuleError, ValueError):
        pass
    raise UsageError(
        "zones.database is neither sqlite:////absolute/path nor postgresql://[user@host]/name"
        " (a password belongs into ~/.pgpass)"
    )


def _way(error: DBAPIError) -> str:
    """Return the way out where SQLite says that the file is no database, or not any more; else ""."""
    if _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return " (correct zones.database, or put a backup in its place)"
    return ""


def _code(error: DBAPIError) -> int:
    return int(getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_OK)) & 0xFF


def _hindrance(path: Path) -> str:
    """Return why the file at `path`, or what SQLite keeps beside it, cannot be made or written, with the way
    out; "" where nothing is seen.
    """
    folders = [folder for folder in reversed(path.parents) if os.path.lexists(folder)]
    for place in [*folders, *([path] if os.path.lexists(path) else [])]:
        if place.is_dir() == (place == path):
            return f"{place} is {'a' if place == path else 'no'} folder (correct zones.database)"
        needed = os.R_OK | os.W_OK if place in (folders[-1], path) else os.X_OK
        if not os.access(place, needed, effective_ids=True):
            if os.statvfs(place).f_flag & os.ST_RDONLY:
                return f"{place} is on a disk that is mounted read-only (correct zones.database, or that)"
            return refused(place)
    return ""


def _no_database(place: str) -> UsageError:
    return UsageError(
        f"no database at {place} (correct zones.database; shala org create NAME and shala serve make one)"
    )


def _engine(url: URL, connections: int, make: bool) -> Engine:
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        if make:
            path = Path(os.path.realpath(path))  # where a link leads SQLite makes the file, for all to read
            try:
                make_folder(path.parent)
                with write_ahead.in_turn(path.parent), contextlib.suppress(FileExistsError):
                    make_file(path)  # children's data: nobody else reads them
            except OSError:
                if hindrance := _hindrance(path):
                    raise NotForUs(hindrance) from None
                raise
        else:
            try:
                path.stat()
            except (FileNotFoundError, NotADirectoryError):
                raise _no_database(str(path)) from None
            except PermissionError:
                raise UsageError(refused(path)) from None
        # No isolation level: the driver begins no transactions of its own, `_begin` does.
        engine = create_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_use_lifo=True,  # each has a cache of its own: the fewer are in use the better
            connect_args={"isolation_level": None, "timeout": BUSY_SECONDS},
        )
        event.listen(engine, "connect", partial(_set_up_sqlite, path))
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = create_engine(url, pool_size=connections, max_overflow=0, pool_pre_ping=True)
    event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _set_up_sqlite(path: Path, connection: Any, _record: object) -> None:
    _require_ours(path, connection)
    write_ahead.switch(connection, path)
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut
    cursor.execute("PRAGMA cache_size = -8192")  # KiB: what one segment changes of the index of the records
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA secure_delete = ON")  # records are deleted long before one is to be forgotten
    cursor.close()


def _require_ours(path: Path, connection: Any) -> None:
    """Raise NotForUs for the database of another program, before anything is changed in it."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    names = {name for (name,) in rows if not name.startswith("sqlite_")}
    ((application,),) = connection.execute("PRAGMA application_id")
    if application or (names and not names >= _OURS):
        connection.close()
        raise NotForUs(
            f"{path} is another program's database and stays as it is (name another file in zones.database)"
        )


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("shala_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _set_up_postgresql(connection: Any, _record: object) -> None:
    # A receipt is a promise: where the operator has switched the waiting for the disk off, it is on for us.
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') = 'off'"
        )
    connection.commit()


def _revision(connection: Connection) -> str:
    """Return which migration the database is at, "" for an empty one."""
    if not connection.dialect.has_table(connection, "alembic_version"):
        return ""
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")


def _migrate(engine: Engine, name: str) -> None:
    # Only now: importing it takes longer than most commands.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "shala_central:migrations")
    with engine.connect() as connection, connection.execution_options(shala_writes=True).begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATING})"))
        found = _revision(connection)  # another worker may have been here first
        if found > REVISION:
            raise DatabaseProblem(
                f"{name} is of revision {found}, this shala knows {REVISION} (update shala)"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, REVISION)
