"""`lethe render`: a signed record as a document for people."""
# ruff: noqa: PLC0415 - imports when a command runs: `lethe --help` stays quick

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from app.commands._shared import EXIT_FAILED, console, errors


def render(
    bundle: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A signed record, as downloaded.")
    ],
    *,
    output: Annotated[
        Path, typer.Option(dir_okay=False, help="Where to write it; ends in .html or .pdf.")
    ],
) -> None:
    """Write a record as HTML or PDF for people. That is no evidence: `lethe verify` the bundle."""
    from app.evidence.rendering import UnreadableBundleError, render_html, render_pdf
    from app.strict_json import read_object

    renderer = {".html": render_html, ".pdf": render_pdf}.get(output.suffix.lower())
    if renderer is None:
        raise typer.BadParameter(f"{output} ends in neither .html nor .pdf", param_hint="--output")
    try:
        document = renderer(read_object(bundle.read_bytes()))
    except UnreadableBundleError as error:
        _explain(f"{bundle}: {error}")
    except ValueError as error:
        _explain(f"{bundle}: this is no record bundle: {error}")
    try:
        output.write_bytes(document)
    except OSError as error:
        _explain(f"cannot write {output}: {error.strerror}")
    console.print(
        f"Wrote {output}. It is for reading; `lethe verify {bundle}` checks the evidence.",
        markup=False,
    )


def _explain(finding: str) -> NoReturn:
    errors.print("[bold red]error:[/] ", end="")
    errors.print(finding, markup=False)
    raise typer.Exit(EXIT_FAILED)
