"""`lethe verify`: signed records, offline."""
# ruff: noqa: PLC0415 - imports when a command runs: `lethe --help` stays quick

from pathlib import Path
from typing import Annotated

import typer

from app.commands._shared import EXIT_FAILED, console, errors, explained_errors


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

    with explained_errors():
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
