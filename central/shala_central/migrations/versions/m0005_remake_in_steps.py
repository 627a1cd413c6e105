"""How far a zone's records have been made anew."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the place; nothing is being made anew."""
    op.add_column("zone", sa.Column("remade", sa.LargeBinary(), nullable=True))
