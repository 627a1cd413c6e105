"""Up to which place a device was sent what has arrived."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """What it was sent before, it confirms with its next sync."""
    op.add_column("device", sa.Column("named", sa.BigInteger(), server_default="0", nullable=False))
