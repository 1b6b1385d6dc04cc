"""The database's schema, step by step (Alembic), callable from any working directory."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

# A migration that waits for a lock makes every later query on that table wait behind it.
LOCK_TIMEOUT = "5s"


def configuration(database_url: str | None = None) -> Config:
    """Return Alembic's configuration, made without a file; no URL means the service's own."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    if database_url is not None:
        # ConfigParser takes % for its own.
        config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    return config


def upgrade(database_url: str, revision: str = "head") -> None:
    """Run every migration up to `revision`."""
    command.upgrade(configuration(database_url), revision)


def downgrade(database_url: str, revision: str) -> None:
    """Undo every migration after `revision`; "base" undoes all, and deletes all data."""
    command.downgrade(configuration(database_url), revision)


def head() -> str:
    """Return the newest migration's revision: what a database has to be at."""
    revision = ScriptDirectory.from_config(configuration()).get_current_head()
    assert revision is not None, "there is at least the first migration"  # noqa: S101
    return revision
