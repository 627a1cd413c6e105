"""What counts against quotas: bytes of devices and zones, and who has brought a segment."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Count what is there; who has brought it is not known, so its author has."""
    op.add_column("zone", sa.Column("bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("device", sa.Column("bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("arrival", sa.Column("device", sa.LargeBinary(), nullable=True))
    held = sa.text("held IS NOT NULL")
    op.create_index("segment_held", "segment", ["zone"], sqlite_where=held, postgresql_where=held)
    brought = "(SELECT COALESCE(SUM(size), 0) FROM segment WHERE "
    op.execute(f"UPDATE zone SET bytes = {brought}segment.zone = zone.id)")  # noqa: S608 - constants
    op.execute(
        f"UPDATE device SET bytes = {brought}segment.zone = device.zone AND segment.key = device.key)"  # noqa: S608 - constants
    )
