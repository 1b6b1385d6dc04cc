"""`lethe verify`: signed records, offline."""
# ruff: noqa: PLC0415 - imports when a command runs: `lethe --help` stays quick

import json
from pathlib import Path
from typing import Annotated

import typer

from app.commands._shared import EXIT_FAILED, console, errors, explained_errors

_FILE = {"exists": True, "dir_okay": False}


def verify(
    file: Annotated[Path, typer.Argument(**_FILE, help="A signed record.")],
    *,
    key: Annotated[
        list[Path],
        typer.Option(
            **_FILE,
            metavar="<file>",
            help="Keys to trust, from the operator by another way than the record: the list from "
            "/v1/audit/keys, a PEM file (for records) or lines name+hint+key (for checkpoints). "
            "May be given several times.",
        ),
    ],
    weights: Annotated[
        list[Path] | None,
        typer.Option(**_FILE, help="Weights it is about, safetensors. May be given several times."),
    ] = None,
    since: Annotated[
        Path | None,
        typer.Option(
            **_FILE, help="A checkpoint that you kept: the record's log has to continue it."
        ),
    ] = None,
    tsa_root: Annotated[
        Path | None,
        typer.Option(**_FILE, help="Certificates of timestamping authorities to trust, PEM."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check a signed record, offline: signature, content, place in the log, checkpoint, weights."""
    from app.evidence.canonical import sha256_hex
    from app.evidence.keys.trust import TrustedKeys
    from app.evidence.verification import verify_bundle

    with explained_errors():
        checks = verify_bundle(
            file.read_bytes(),
            TrustedKeys.read(*(path.read_bytes() for path in key)),
            subjects=[sha256_hex(path.read_bytes()) for path in weights or ()],
            # Bytes that are no UTF-8 are no note: a finding, and no crash here.
            since=None if since is None else since.read_bytes().decode(errors="surrogateescape"),
            tsa_roots=None if tsa_root is None else tsa_root.read_bytes(),
        )
    ok = all(check.ok for check in checks)
    if as_json:
        listed = [
            {"name": check.name, "ok": check.ok, "sentence": check.sentence} for check in checks
        ]
        typer.echo(json.dumps({"file": str(file), "ok": ok, "checks": listed}, ensure_ascii=False))
    else:
        for check in checks:
            mark = "[green]✓[/]" if check.ok else "[bold red]✗[/]"
            console.print(f"{mark} {check.name}: ", end="")
            console.print(check.sentence, markup=False)
    if not ok:
        errors.print(f"{file} does not verify.", style="bold red", markup=False)
        raise typer.Exit(EXIT_FAILED)
