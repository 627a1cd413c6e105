"""How many segments a device said that it could not have."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Nobody has said anything yet."""
    op.add_column("device", sa.Column("left_out", sa.BigInteger(), server_default="0", nullable=False))
