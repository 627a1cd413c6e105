"""Up to which place a device was told what the centre has said."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """What it has confirmed it was told; of what lies behind that nobody knows any more."""
    op.add_column("device", sa.Column("told", sa.BigInteger(), server_default="0", nullable=False))
    op.execute("UPDATE device SET told = place")
