"""Table file: a table in one SQLite file beside the objects, made when something is first written to it.

Content is removed on its word, so what was written is on the disk. Every failure of SQLite comes out as one
line of its owner's kind.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from shala_agent import write_ahead

from shala_central.copies import connect, is_damage, lost
from shala_central.failure import CentralError
from shala_central.reading import to_read


class TableFile:
    """The table of a schema at a path; raises `failed` where it cannot be used, `way` mends a damaged one."""

    def __init__(self, path: Path, schema: str, failed: type[CentralError], way: str) -> None:
        self.path = path
        self._schema = schema
        self._failed = failed
        self._way = way
        self._lock = threading.RLock()  # threads of one pull share the connection
        self._db: sqlite3.Connection | None = None

    def ask(self, query: str, *values: object) -> list[tuple]:  # type: ignore[type-arg]
        """Return the rows of a query, none where there is no file yet."""
        with self._lock, self._telling():
            if self._db is None and not self.path.exists():
                self._require()
                return []
            return self._opened().execute(query, values).fetchall()

    @contextlib.contextmanager
    def written(self) -> Iterator[sqlite3.Connection]:
        """Open one transaction."""
        with self._lock, self._telling(), self._opened() as db:
            yield db

    def close(self) -> None:
        """Close the file; whoever asks opens it again."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            way = self._way if is_damage(error) else "is the disk full, or another run at work?"
            raise self._failed(f"{self.path}: {error} ({way})") from None

    def _require(self) -> None:
        """Raise if the table is gone: where there is a copy it is not made anew."""
        if gone := lost(self.path):
            raise self._failed(gone)

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            self._require()
            db = connect(to_read(self.path), threads=True)
            try:
                write_ahead.switch(db, self.path)
                db.execute("PRAGMA synchronous = FULL")
                if not db.execute("PRAGMA user_version").fetchone()[0]:
                    db.executescript(self._schema)
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db
