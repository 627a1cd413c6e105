"""Of the devices of one name only one may live; before, two that enrolled at one moment could both."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Rename all but the one that was enrolled first, then make the index."""
    connection = op.get_bind()
    living = connection.execute(
        sa.text("SELECT id, name FROM device WHERE revoked IS NULL ORDER BY enrolled, id")
    ).all()
    taken: set[str] = set()
    for id_, name in living:
        if name in taken:
            connection.execute(
                sa.text("UPDATE device SET name = :name WHERE id = :id"),
                {"name": f"{name}~{bytes(id_).hex()[:12]}", "id": id_},
            )
        taken.add(name)
    op.create_index(
        "device_name",
        "device",
        ["name"],
        unique=True,
        sqlite_where=sa.text("revoked IS NULL"),
        postgresql_where=sa.text("revoked IS NULL"),
    )
