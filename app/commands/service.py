"""`lethe up` and `lethe down`: the whole service on this machine."""
# ruff: noqa: PLC0415 - imports when a command runs: `lethe --help` stays quick

import logging
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from app.commands._shared import EXIT_INTERRUPTED, StateDir, console, errors, explained_errors


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
        with explained_errors(), unwinding_on_stop_signals(), ExitStack() as resources:
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


def down(*, state_dir: StateDir = Path(".lethe")) -> None:
    """Stop what `lethe up` started."""
    from app.embedded.stack import stop_running_stack

    with explained_errors():
        if stop_running_stack(state_dir):
            console.print(f"Stopped. The state stays in {state_dir}.")
        else:
            console.print(f"Nothing runs on {state_dir}.")
