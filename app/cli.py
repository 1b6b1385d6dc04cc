"""The `lethe` command. Commands import what they need when they run: `lethe --help` stays quick."""
# ruff: noqa: PLC0415 - see above

import ast
import datetime
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.errors import AppError

PLUGINS = "lethe.commands"
EXIT_FAILED = 1  # what was asked for did not come about, or a record does not verify
EXIT_INTERRUPTED = 130  # as shells say it of Ctrl-C

# Paths and keys have to stay copyable: no colours inside them, no line breaks by the console.
console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

app = typer.Typer(
    help="Unlearning for trained models: removes samples' influence and proves what was done.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they hold keys and samples
)
database = typer.Typer(help="The database's schema.", no_args_is_help=True)
keys = typer.Typer(help="Secrets of a deployment, and API keys.", no_args_is_help=True)
app.add_typer(database, name="db")
app.add_typer(keys, name="keys")

StateDir = Annotated[
    Path, typer.Option(help="Folder of the service's keys, data and logs; survives restarts.")
]


@app.command()
def up(
    *,
    state_dir: StateDir = Path(".lethe"),
    host: Annotated[str, typer.Option(help="Address the API listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8000,
) -> None:
    """Start PostgreSQL, Valkey, the API and a worker here; Ctrl-C stops all of them."""
    from app.embedded.stack import Stack, unwinding_on_stop_signals

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stack = None
    try:
        with _explained_errors(), unwinding_on_stop_signals(), ExitStack() as resources:
            with console.status("Starting PostgreSQL, Valkey, the API and a worker ..."):
                stack = resources.enter_context(Stack(state_dir, port, host=host))
            with suppress(KeyboardInterrupt):  # a signal between the two
                _introduce(stack.url, state_dir)
                stack.wait()
            console.print("Stopping ...")
    except KeyboardInterrupt:
        when = "before it was up" if stack is None else "while it was stopping"
        errors.print(f"Interrupted {when}. The state stays in {state_dir}.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    console.print(f"Stopped. The state stays in {state_dir}.")


def _introduce(url: str, state_dir: Path) -> None:
    key = state_dir / "keys" / "admin.key"
    console.print(f"[bold green]Lethe is up[/] at [bold]{url}[/]  (API reference: {url}/docs)")
    console.print(f"  admin key  {key}")
    console.print(f"  logs       {state_dir / 'logs'}")
    console.print(f'  try        curl -H "Authorization: Bearer $(cat {key})" {url}/v1/models')
    where = "" if state_dir == Path(".lethe") else f" --state-dir {state_dir}"
    console.print(f"  stop       Ctrl-C, or `lethe down{where}` in another terminal")


@app.command()
def down(*, state_dir: StateDir = Path(".lethe")) -> None:
    """Stop what `lethe up` started."""
    from app.embedded.stack import stop_running_stack

    with _explained_errors():
        if stop_running_stack(state_dir):
            console.print(f"Stopped. The state stays in {state_dir}.")
        else:
            console.print(f"Nothing runs on {state_dir}.")


@database.command("upgrade")
def upgrade_database(
    *,
    revision: Annotated[str, typer.Option(help="Alembic revision to stop at.")] = "head",
    state_dir: StateDir = Path(".lethe"),
) -> None:
    """Bring the schema of DATABASE_URL up to date (or that of the service that runs here)."""
    import migrations

    with _explained_errors():
        migrations.upgrade(_database_url(state_dir), revision)
    console.print(f"The schema is at {revision}.")


@keys.command("init")
def init_keys(
    *, directory: Annotated[Path, typer.Option(help="Where to write them.")] = Path("secrets")
) -> None:
    """Write a master key and a signing key for a deployment. Existing files are never replaced."""
    from app.embedded.keys import create_key_files

    with _explained_errors():
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

    with _explained_errors():
        try:
            scopes = [auth.Scope(word) for word in scope]
        except ValueError as error:
            raise typer.BadParameter(
                f"{error}: choose from {', '.join(auth.Scope)}", param_hint="--scope"
            ) from error
        now = datetime.datetime.now(datetime.UTC)
        expires_at = None if days is None else now + datetime.timedelta(days=days)
        engine = make_engine(_database_url(state_dir))
        try:
            with make_sessions(engine).begin() as session:
                _, token = auth.create_key(session, name=name, scopes=scopes, expires_at=expires_at)
        finally:
            engine.dispose()
    # The key alone on standard output, so that a script can keep it.
    print(token)  # noqa: T201
    errors.print("Keep it: it is not shown again.")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A signed record.")],
    *,
    key: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="The service's public key, PEM.")
    ],
    weights: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The weights it is about, safetensors."),
    ] = None,
) -> None:
    """Check a signed record, offline: signature, place in the log, checkpoint, weights."""
    from app.evidence.verification import verify_bundle

    with _explained_errors():
        checks = verify_bundle(
            file.read_bytes(), key.read_bytes(), None if weights is None else weights.read_bytes()
        )
    for check in checks:
        mark = "[green]✓[/]" if check.ok else "[bold red]✗[/]"
        console.print(f"{mark} {check.name}: ", end="")
        console.print(check.sentence, markup=False)
    if not all(check.ok for check in checks):
        errors.print(f"[bold red]{file} does not verify.[/]")
        raise typer.Exit(EXIT_FAILED)


def _database_url(state_dir: Path) -> str:
    """Return DATABASE_URL, or the address of the database of the stack that runs here.

    Raises:
        LauncherError: There is neither.
    """
    from app.embedded.launcher import LauncherError
    from app.embedded.stack import Elsewhere, running_stack

    if (chosen := Elsewhere().database_url) is not None:
        return chosen
    if (stack := running_stack(state_dir)) is not None and stack.database_url is not None:
        return stack.database_url
    raise LauncherError(
        f"no database: DATABASE_URL is not set and no service runs on {state_dir};"
        " set it, or start one with `lethe up`"
    )


@contextmanager
def _explained_errors() -> Iterator[None]:
    """Turn errors that a user can do something about into sentences instead of tracebacks."""
    from app.artifacts.keys import MasterKeyError
    from app.embedded.launcher import LauncherError
    from app.evidence.signing import SigningKeyError

    try:
        yield
    except AppError as error:
        errors.print("[bold red]error:[/] ", end="")
        errors.print(f"{error.detail} {error.remedy}", markup=False)
        raise typer.Exit(EXIT_FAILED) from error
    except (LauncherError, FileExistsError, MasterKeyError, SigningKeyError) as error:
        errors.print("[bold red]error:[/] ", end="")
        errors.print(str(error), markup=False)
        raise typer.Exit(EXIT_FAILED) from error


def _add_plugin(plugin: EntryPoint) -> None:
    """List a command of an installed package without importing it; import it to run it."""

    def run(context: typer.Context) -> None:
        command = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
        command.command()(plugin.load())
        command(context.args, prog_name=f"lethe {plugin.name}")

    anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(
        plugin.name, help=_summary(plugin), add_help_option=False, context_settings=anything
    )(run)


def _summary(plugin: EntryPoint) -> str:
    """Return the first line of a plugin's module, read but not run: it may import torch."""
    spec = importlib.util.find_spec(plugin.module)
    if spec is None or spec.origin is None:
        return f"Not installed completely: {plugin.module} is missing."
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or plugin.value
    return text.splitlines()[0]


def main() -> None:
    """Run `lethe`."""
    for plugin in entry_points(group=PLUGINS):
        _add_plugin(plugin)
    app()
