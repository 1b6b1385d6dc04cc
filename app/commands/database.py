"""`lethe db`: the database's schema."""
# ruff: noqa: PLC0415 - imports when a command runs: `lethe --help` stays quick

from pathlib import Path
from typing import Annotated

import typer

from app.commands._shared import StateDir, console, database_url, explained_errors

database = typer.Typer(help="The database's schema.", no_args_is_help=True)


@database.command("upgrade")
def upgrade_database(
    *,
    revision: Annotated[str, typer.Option(help="Alembic revision to stop at.")] = "head",
    state_dir: StateDir = Path(".lethe"),
) -> None:
    """Bring the schema of DATABASE_URL up to date (or that of the service that runs here)."""
    import migrations

    with explained_errors():
        migrations.upgrade(database_url(state_dir), revision)
    console.print(f"The schema is at {revision}.")
