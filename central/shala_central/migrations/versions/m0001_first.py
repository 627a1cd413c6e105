"""The tables of the first release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "log",
        sa.Column("id", NUMBER, sa.Identity(always=False), nullable=False),
        sa.Column("log", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("log"),
    )
    op.create_table(
        "meta",
        sa.Column("name", NAME, nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "organization",
        sa.Column("id", NUMBER, sa.Identity(always=False), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "quarantine",
        sa.Column("zone", NUMBER, autoincrement=False, nullable=False),
        sa.Column("log", sa.BigInteger(), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("entry", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("zone", "log", "counter"),
    )
    op.create_table(
        "record",
        sa.Column("zone", NUMBER, autoincrement=False, nullable=False),
        sa.Column("type", NAME, nullable=False),
        sa.Column("key", NAME, nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("log", sa.BigInteger(), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("depth", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("schema", sa.BigInteger(), nullable=False),
        sa.Column("rest", sa.LargeBinary(), nullable=True),
        sa.Column("conflict", sa.Integer(), nullable=False),
        sa.Column("waits", NAME, nullable=True),
        sa.PrimaryKeyConstraint("zone", "type", "key"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "record_conflict",
        "record",
        ["zone"],
        sqlite_where=sa.text("conflict = 1"),
        postgresql_where=sa.text("conflict = 1"),
    )
    op.create_index(
        "record_waits",
        "record",
        ["zone", "waits"],
        sqlite_where=sa.text("waits IS NOT NULL"),
        postgresql_where=sa.text("waits IS NOT NULL"),
    )
    op.create_table(
        "zone",
        sa.Column("id", NUMBER, sa.Identity(always=False), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("centre", sa.LargeBinary(), nullable=False),
        sa.Column("organization", NUMBER, nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("place", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["organization"], ["organization.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "arrival",
        sa.Column("zone", NUMBER, nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["zone"], ["zone.id"]),
        sa.PrimaryKeyConstraint("zone", "place"),
    )
    op.create_index("arrival_id", "arrival", ["id"])
    op.create_table(
        "device",
        sa.Column("id", sa.LargeBinary(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("zone", NUMBER, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("enrolled", sa.BigInteger(), nullable=False),
        sa.Column("revoked", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("contact", sa.BigInteger(), nullable=True),
        sa.Column("software", sa.Text(), server_default="", nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=True),
        sa.Column("counter", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("place", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("wanted", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["zone"], ["zone.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("device_zone", "device", ["zone", "name"])
    op.create_table(
        "fork",
        sa.Column("zone", NUMBER, nullable=False),
        sa.Column("log", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["zone"], ["zone.id"]),
        sa.PrimaryKeyConstraint("zone", "log"),
    )
    op.create_table(
        "segment",
        sa.Column("id", sa.LargeBinary(), nullable=False),
        sa.Column("zone", NUMBER, nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("log", sa.LargeBinary(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("previous", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.Text(), nullable=True),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["zone"], ["zone.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("segment_key", "segment", ["zone", "key"])
    op.create_index("segment_log", "segment", ["zone", "log", "first"])
    op.create_table(
        "statement",
        sa.Column("id", sa.LargeBinary(), nullable=False),
        sa.Column("zone", NUMBER, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("segment", sa.LargeBinary(), nullable=True),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["zone"], ["zone.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("statement_key", "statement", ["zone", "key"])
    op.create_index(
        "statement_segment",
        "statement",
        ["zone", "segment"],
        sqlite_where=sa.text("segment IS NOT NULL"),
        postgresql_where=sa.text("segment IS NOT NULL"),
    )
    op.create_table(
        "token",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("zone", NUMBER, nullable=False),
        sa.Column("name", NAME, server_default="", nullable=False),
        sa.Column("replaces", sa.Boolean(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=True),
        sa.Column("device", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["zone"], ["zone.id"]),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "contact",
        sa.Column("device", sa.LargeBinary(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("zone", NUMBER, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("shown", sa.Text(), nullable=False),
        sa.Column("given", sa.Text(), nullable=False),
        sa.Column("disputed", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["device"], ["device.id"]),
        sa.ForeignKeyConstraint(["zone"], ["zone.id"]),
        sa.PrimaryKeyConstraint("device", "epoch"),
    )
    op.create_table(
        "part",
        sa.Column("device", sa.LargeBinary(), nullable=False),
        sa.Column("segment", sa.LargeBinary(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"]),
        sa.PrimaryKeyConstraint("device", "segment", "first"),
    )
    if op.get_context().dialect.name == "postgresql":
        # Segments are compressed: PostgreSQL need not try.
        for table in ("segment", "part"):
            op.execute(f"ALTER TABLE {table} ALTER COLUMN data SET STORAGE EXTERNAL")
