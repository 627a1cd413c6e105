"""SQLite keeps the rows of `record` as they come, and only the index sorted by their keys.

Keys come in no order: a table that is kept in theirs rewrites a page of large rows for nearly each of them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_COLUMNS = "zone, type, key, value, log, counter, depth, at, schema, rest, conflict, waits"


def upgrade() -> None:
    """Make the table anew; PostgreSQL keeps rows so anyway."""
    if op.get_context().dialect.name != "sqlite":
        return
    op.rename_table("record", "record_before")
    op.create_table(
        "record",
        sa.Column("zone", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("log", sa.BigInteger(), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("depth", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("schema", sa.BigInteger(), nullable=False),
        sa.Column("rest", sa.LargeBinary(), nullable=True),
        sa.Column("conflict", sa.Integer(), nullable=False),
        sa.Column("waits", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("zone", "type", "key"),
    )
    op.execute(f"INSERT INTO record ({_COLUMNS}) SELECT {_COLUMNS} FROM record_before")  # noqa: S608 - constants
    op.drop_table("record_before")
    op.create_index("record_conflict", "record", ["zone"], sqlite_where=sa.text("conflict = 1"))
    op.create_index("record_waits", "record", ["zone", "waits"], sqlite_where=sa.text("waits IS NOT NULL"))
