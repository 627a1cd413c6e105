"""The running databases of the container: PostgreSQL through psql, port 27017 through PyMongo."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from pymongo import MongoClient, ReplaceOne

from . import sql
from .documents import Databases, with_object_ids
from .people import User

SEPARATOR = "\x1f"


class DatabaseError(Exception):
    """PostgreSQL refused, or does not answer."""


def psql(script: str, database: str = sql.DATABASE) -> str:
    """Run SQL as the postgres user and return what it prints. Raises DatabaseError with psql's own words."""
    command = f"runuser -u postgres -- psql -qAtX -v ON_ERROR_STOP=1 -F {SEPARATOR} -d {database}".split(" ")
    done = subprocess.run(command, input=script, text=True, capture_output=True, cwd="/", check=False)
    if done.returncode:
        raise DatabaseError(done.stderr.strip() or f"psql ended with {done.returncode}")
    return done.stdout


def accounts() -> list[list[str]]:
    """Return (id, username, first name, last name) of all users."""
    rows = psql("SELECT id, username, first_name, last_name FROM auth_user ORDER BY id;")
    return [row.split(SEPARATOR) for row in rows.splitlines()]


def load_users(users: list[User]) -> None:
    """Add these users to the accounts, or renew them."""
    psql(sql.upsert(users))


def client(port: int = 27017, patience_ms: int = 5000) -> MongoClient[dict[str, Any]]:
    """Return a client of this container's port 27017."""
    host = os.environ.get("MONGO_HOST", "127.0.0.1")
    return MongoClient(host, port, serverSelectionTimeoutMS=patience_ms, connectTimeoutMS=patience_ms)


def load_documents(databases: Databases, port: int = 27017) -> None:
    """Make the running databases hold these documents: new ones are added, changed ones replaced."""
    with client(port) as server:
        for database, collections in databases.items():
            for name, documents in collections.items():
                wanted = [with_object_ids(one) for one in documents]
                collection = server[database][name]
                present = {one["_id"]: one for one in collection.find()}
                missing = [one for one in wanted if one["_id"] not in present]
                changed = [one for one in wanted if one["_id"] in present and one != present[one["_id"]]]
                if missing:
                    collection.insert_many(missing)
                if changed:
                    collection.bulk_write([ReplaceOne({"_id": one["_id"]}, one) for one in changed])
