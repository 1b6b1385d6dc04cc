"""Runs migrations: with timeouts, so that a busy table fails the migration and not the service."""

from alembic import context
from sqlalchemy import Connection, NullPool, create_engine, text

import migrations
from app.settings import get_settings
from app.tables import metadata

STATEMENT_TIMEOUT = "10min"
# Two hosts that deploy at once migrate one after the other.
ADVISORY_LOCK = int.from_bytes(b"lethe")


def database_url() -> str:
    """Return the URL that the caller put into Alembic's configuration, else the service's own."""
    return context.config.get_main_option("sqlalchemy.url") or get_settings().database_url


def run(connection: Connection) -> None:
    """Migrate in one transaction: all steps or none."""
    connection.execute(text(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'"))
    connection.commit()
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        # Before the lock timeout, which would hold for it too: another's migration takes its time.
        connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
        connection.execute(text(f"SET LOCAL lock_timeout = '{migrations.LOCK_TIMEOUT}'"))
        context.run_migrations()


if context.is_offline_mode():
    context.configure(url=database_url(), target_metadata=metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(database_url(), poolclass=NullPool)
    with engine.connect() as connection:
        run(connection)
