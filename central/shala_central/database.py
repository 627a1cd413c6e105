"""Database: the centre's database of zones, SQLite or PostgreSQL, opened, migrated, and its transactions.

What was committed is on the disk: a receipt is given after that and never before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from shala_central.failure import CentralError, UsageError

REVISION = "0001"  # the newest of the migrations
# Seconds that a writer waits for another one: a zone is made anew within one transaction after a fork.
BUSY_SECONDS = 120
_MIGRATING = 7_302_018  # any number: the advisory lock that two starting workers take in PostgreSQL


class DatabaseProblem(CentralError):
    """The database of zones cannot be used."""


class Database:
    """The database behind a URL. Safe to use from several threads."""

    def __init__(self, url: str, *, connections: int = 8) -> None:
        self.url = _checked(url)
        self._engine = _engine(self.url, connections)

    def open(self) -> Database:
        """Make or upgrade the tables, if that is needed. Raises DatabaseProblem."""
        with self._explained():
            with self._engine.connect() as connection:
                found = _revision(connection)
            if found != REVISION:
                _migrate(self._engine, self.name)
        return self

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

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
            with connection.begin():
                yield Session(connection)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise DatabaseProblem(f"{self.name}: {str(error.orig).strip().splitlines()[0]}") from error
        except SQLAlchemyError as error:
            raise DatabaseProblem(f"{self.name}: {error}") from error


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

    def forget_for_good(self) -> None:
        """Have SQLite overwrite from now on what is deleted; PostgreSQL's VACUUM does it in its time."""
        if not self._is_postgresql:
            self.query("PRAGMA secure_delete = ON")

    def lock_zone(self, zone: int) -> None:
        """Let nobody else write in a zone until this transaction ends. SQLite has one writer anyway."""
        self.query(f"SELECT 1 FROM zone WHERE id = ?{self.locking}", (zone,))  # noqa: S608 - constants

    def lock_device(self, device: bytes) -> None:
        """Let nobody else answer a device until this transaction ends."""
        self.query(f"SELECT 1 FROM device WHERE id = ?{self.locking}", (device,))  # noqa: S608 - constants

    def _own(self, sql: str) -> str:
        return sql.replace("?", "%s") if self._is_postgresql else sql


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
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


def _engine(url: URL, connections: int) -> Engine:
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)  # children's data: nobody else reads them
        # No isolation level: the driver begins no transactions of its own, `_begin` does.
        engine = create_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            connect_args={"isolation_level": None, "timeout": BUSY_SECONDS},
        )
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = create_engine(url, pool_size=connections, max_overflow=0, pool_pre_ping=True)
    event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


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
