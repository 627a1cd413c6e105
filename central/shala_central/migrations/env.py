"""Run by Alembic: the migrations, in the transaction that shala_central.database holds."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    # SQLite can take back changes of tables, too, as long as nobody commits in between.
    transactional_ddl=True,
)
context.run_migrations()
