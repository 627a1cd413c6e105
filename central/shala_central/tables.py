"""Tables: what the database of zones holds. The migrations alone make and change it; a test compares.

The tables zone to quarantine are those of shala_agent.store, with the same columns as on a server; the others
are the centre's own. Times are whole seconds since 1970 by the centre's clock.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

metadata = MetaData()

# PostgreSQL compares names as bytes then, as SQLite does: pages and rankings are the same on both.
Name = Text().with_variant(Text(collation="C"), "postgresql")
# INTEGER PRIMARY KEY is what SQLite numbers by itself.
Number = BigInteger().with_variant(Integer(), "sqlite")


def _id() -> Column[int]:
    return Column("id", Number, Identity(), primary_key=True)


def _zone(*, primary_key: bool = False) -> Column[int]:
    return Column("zone", Number, ForeignKey("zone.id"), nullable=False, primary_key=primary_key)


meta = Table(
    "meta", metadata, Column("name", Name, primary_key=True), Column("value", LargeBinary, nullable=False)
)

organization = Table(
    "organization",
    metadata,
    _id(),
    Column("name", Name, nullable=False, unique=True),
    Column("created", BigInteger, nullable=False),
)

zone = Table(
    "zone",
    metadata,
    _id(),
    Column("name", Name, nullable=False, unique=True),
    Column("centre", LargeBinary, nullable=False),
    Column("organization", Number, ForeignKey("organization.id"), nullable=False),
    Column("created", BigInteger, nullable=False),
    # The newest place of the list of arrivals and its digest: a no-op is answered from this row.
    Column("place", BigInteger, nullable=False, server_default="0"),
    Column("digest", LargeBinary, nullable=False),
    Column("bytes", BigInteger, nullable=False, server_default="0"),  # of all segments as they came
    # The greatest id of the segments from which the records have been made anew; null when all have.
    Column("remade", LargeBinary),
)

device = Table(
    "device",
    metadata,
    Column("id", LargeBinary, primary_key=True),  # SHA-256 of the key
    Column("key", LargeBinary, nullable=False),
    _zone(),
    Column("name", Name, nullable=False),
    Column("enrolled", BigInteger, nullable=False),
    Column("revoked", BigInteger),
    Column("reason", Text, nullable=False, server_default=""),
    # What it said of itself when it last opened a session.
    Column("contact", BigInteger),
    Column("software", Text, nullable=False, server_default=""),
    Column("epoch", BigInteger),
    Column("counter", BigInteger, nullable=False, server_default="0"),
    Column("place", BigInteger, nullable=False, server_default="0"),  # up to there it has all arrivals
    Column(
        "wanted", BigInteger, nullable=False, server_default="0"
    ),  # bytes that it offered and are not here
    Column("bytes", BigInteger, nullable=False, server_default="0"),  # of the segments that it has brought
    Column("left_out", BigInteger, nullable=False, server_default="0"),  # segments that it could not have
    # Up to there it was sent what has arrived, which it confirms when it comes again. Below 0: it came again
    # and did not have what lies before that place.
    Column("named", BigInteger, nullable=False, server_default="0"),
    Index("device_zone", "zone", "name"),
    Index(
        "device_name",
        "name",
        unique=True,
        sqlite_where=text("revoked IS NULL"),
        postgresql_where=text("revoked IS NULL"),
    ),
)

token = Table(
    "token",
    metadata,
    Column("digest", LargeBinary, primary_key=True),  # SHA-256: the token itself is nowhere
    _zone(),
    Column("name", Name, nullable=False, server_default=""),  # of the server that may use it; "" for any
    Column("replaces", Boolean, nullable=False),  # a device of that name is revoked then
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("used", BigInteger),
    Column("device", LargeBinary),
)

contact = Table(
    "contact",
    metadata,
    Column("device", LargeBinary, ForeignKey("device.id"), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    _zone(),  # in which the device counts in this epoch
    Column("number", BigInteger, nullable=False),
    Column("shown", Text, nullable=False),  # the nonce that its last request showed
    Column("given", Text, nullable=False),  # the nonce of the last answer
    Column("disputed", BigInteger),  # when somebody else was last seen to speak in its name
)

arrival = Table(
    "arrival",
    metadata,
    _zone(primary_key=True),
    Column("place", BigInteger, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("kind", Text, nullable=False),  # segment | statement
    Column("id", LargeBinary, nullable=False),
    Column("device", LargeBinary),  # that has brought a segment
    Index("arrival_id", "id"),
)

part = Table(
    "part",
    metadata,
    Column("device", LargeBinary, ForeignKey("device.id"), primary_key=True),
    Column("segment", LargeBinary, primary_key=True),
    Column("first", BigInteger, primary_key=True),  # byte of the segment at which it begins
    Column("size", BigInteger, nullable=False),  # of the whole segment
    Column("at", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

log = Table("log", metadata, _id(), Column("log", LargeBinary, nullable=False, unique=True))

fork = Table("fork", metadata, _zone(primary_key=True), Column("log", LargeBinary, primary_key=True))

statement = Table(
    "statement",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    _zone(),
    Column("kind", Text, nullable=False),
    Column("key", LargeBinary, nullable=False),
    Column("segment", LargeBinary),
    Column("data", LargeBinary, nullable=False),
    Index("statement_key", "zone", "key"),
    Index(
        "statement_segment",
        "zone",
        "segment",
        sqlite_where=text("segment IS NOT NULL"),
        postgresql_where=text("segment IS NOT NULL"),
    ),
)

segment = Table(
    "segment",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    _zone(),
    Column("key", LargeBinary, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("log", LargeBinary, nullable=False),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("previous", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("held", Text),
    Column("data", LargeBinary, nullable=False),
    Index("segment_log", "zone", "log", "first"),
    Index("segment_key", "zone", "key"),
    Index(
        "segment_held",
        "zone",
        sqlite_where=text("held IS NOT NULL"),
        postgresql_where=text("held IS NOT NULL"),
    ),
)

record = Table(
    "record",
    metadata,
    # No foreign key here: it would be looked up with every record.
    Column("zone", Number, primary_key=True, autoincrement=False),
    Column("type", Name, primary_key=True),
    Column("key", Name, primary_key=True),
    Column("value", Text),
    Column("log", BigInteger, nullable=False),
    Column("counter", BigInteger, nullable=False),
    Column("depth", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("schema", BigInteger, nullable=False),
    Column("rest", LargeBinary),
    Column("conflict", Integer, nullable=False),
    Column("waits", Name),
    Index(
        "record_waits",
        "zone",
        "waits",
        sqlite_where=text("waits IS NOT NULL"),
        postgresql_where=text("waits IS NOT NULL"),
    ),
    Index(
        "record_conflict", "zone", sqlite_where=text("conflict = 1"), postgresql_where=text("conflict = 1")
    ),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("zone", Number, primary_key=True, autoincrement=False),
    Column("log", BigInteger, primary_key=True),
    Column("counter", BigInteger, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("entry", LargeBinary, nullable=False),
)
