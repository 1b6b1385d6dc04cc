"""Run a completed deletion again, and compare it with its signed record."""

import uuid
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from app.artifacts.keys import MasterKeyError
from app.commands._shared import StateDir, console, errors, service_settings
from app.embedded.launcher import LauncherError
from app.errors import AppError
from app.evidence.keys.signing import SigningKeyError
from app.process import forbid_core_dumps
from app.services import Services
from core.errors import CoreError
from worker.replay import Outcome, Replay
from worker.replay import replay as run

EXIT_DIFFERENT = 1
EXIT_NOT_REPLAYED = 2

_EXITS = {
    Outcome.IDENTICAL: 0,
    Outcome.WITHIN_TOLERANCE: 0,
    Outcome.DIFFERENT: EXIT_DIFFERENT,
    Outcome.CANNOT: EXIT_NOT_REPLAYED,
}
_COLOURS = {0: "bold green", EXIT_DIFFERENT: "bold red", EXIT_NOT_REPLAYED: "bold yellow"}


def replay(
    request_id: Annotated[uuid.UUID, typer.Argument(help="A completed unlearning request.")],
    *,
    samples: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Its forget samples, sent again: safetensors with x and y.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Compute with so many; else with as many as the record names."),
    ] = None,
    state_dir: StateDir = Path(".lethe"),
) -> None:
    """Run a completed deletion again, and compare it with its signed record.

    With the worker's settings from the environment, or on the service that runs on --state-dir.
    The result is entered in the audit log. Exit status: 0, identical or within tolerance; 1,
    different; 2, it cannot be replayed.
    """
    forbid_core_dumps()
    content = None if samples is None else samples.read_bytes()
    try:
        with closing(Services.from_settings(service_settings(state_dir))) as services:
            found = run(services, request_id, samples=content, threads=threads)
    except AppError as error:
        raise _not_replayed(f"{error.detail} {error.remedy}") from error
    except (LauncherError, MasterKeyError, SigningKeyError, CoreError, ValidationError) as error:
        raise _not_replayed(str(error)) from error
    except Exception as error:
        # A crash would end with the status that says `different`.
        errors.print_exception(show_locals=False)
        raise typer.Exit(EXIT_NOT_REPLAYED) from error
    _tell(found)
    raise typer.Exit(_EXITS[found.outcome])


def _tell(found: Replay) -> None:
    colour = _COLOURS[_EXITS[found.outcome]]
    console.print(f"[{colour}]{found.outcome}[/]  request {found.request_id}")
    for sentence in found.findings:
        console.print(f"  {sentence}", markup=False)
    for sentence in found.environment:
        console.print(f"  environment: {sentence}", markup=False)
    if not found.environment and found.outcome is not Outcome.CANNOT:
        console.print("  environment: as in the record.")


def _not_replayed(message: str) -> typer.Exit:
    errors.print("[bold red]error:[/] ", end="")
    errors.print(message, markup=False)
    return typer.Exit(EXIT_NOT_REPLAYED)
