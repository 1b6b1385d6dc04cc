"""`python -m migrations MESSAGE`: a new migration from the tables, by a scratch server."""

import sys
import tempfile
from pathlib import Path

from alembic import command

import migrations
from app.embedded.launcher import EPHEMERAL, PostgresServer

DATABASE = "scratch"


def write_revision(message: str) -> None:
    """Write what the tables have and the newest migration lacks; read it before you commit it."""
    with tempfile.TemporaryDirectory(prefix="lethe-migration-") as folder:
        server = PostgresServer(Path(folder), EPHEMERAL)
        process = server.launch()
        try:
            server.create_database(DATABASE)
            url = server.url(DATABASE)
            migrations.upgrade(url)
            command.revision(migrations.configuration(url), message, autogenerate=True)
        finally:
            process.stop(30.0)


if __name__ == "__main__":
    match sys.argv[1:]:
        case [text] if text:
            write_revision(text)
        case _:
            sys.exit('usage: make migration M="what it does"')
