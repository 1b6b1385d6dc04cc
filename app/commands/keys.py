"""`lethe keys`: secrets of a deployment, and API keys."""
# ruff: noqa: PLC0415 - imports when a command runs: `lethe --help` stays quick

import datetime
from pathlib import Path
from typing import Annotated

import typer

from app.commands._shared import StateDir, console, database_url, errors, explained_errors

keys = typer.Typer(help="Secrets of a deployment, and API keys.", no_args_is_help=True)


@keys.command("init")
def init_keys(
    *, directory: Annotated[Path, typer.Option(help="Where to write them.")] = Path("secrets")
) -> None:
    """Write a master key and a signing key for a deployment. Existing files are never replaced."""
    from app.embedded.keys import create_key_files

    with explained_errors():
        files = create_key_files(directory)
    console.print(f"master key   {files.master_key}   (MASTER_KEY_FILE)")
    console.print(f"signing key  {files.signing_key}   (SIGNING_KEY_FILE)")
    console.print("Back both up, apart from the database: without the first, no artifact opens.")


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    *,
    scope: Annotated[list[str], typer.Option(help="What it may do; may be given repeatedly.")],
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires.")] = None,
    state_dir: StateDir = Path(".lethe"),
) -> None:
    """Make an API key and print it, once: only its hash is stored."""
    from app import auth
    from app.db import make_engine, make_sessions

    with explained_errors():
        try:
            scopes = [auth.Scope(word) for word in scope]
        except ValueError as error:
            raise typer.BadParameter(
                f"{error}: choose from {', '.join(auth.Scope)}", param_hint="--scope"
            ) from error
        now = datetime.datetime.now(datetime.UTC)
        expires_at = None if days is None else now + datetime.timedelta(days=days)
        engine = make_engine(database_url(state_dir))
        try:
            with make_sessions(engine).begin() as session:
                _, token = auth.create_key(session, name=name, scopes=scopes, expires_at=expires_at)
        finally:
            engine.dispose()
    # The key alone on standard output, so that a script can keep it.
    print(token)  # noqa: T201
    errors.print("Keep it: it is not shown again.")
