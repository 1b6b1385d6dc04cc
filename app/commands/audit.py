"""`lethe audit`: the whole log, in its database."""
# ruff: noqa: PLC0415 - imports when a command runs: `lethe --help` stays quick

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TaskID

from app.commands._shared import (
    EXIT_FAILED,
    StateDir,
    console,
    database_url,
    errors,
    explained_errors,
)

if TYPE_CHECKING:
    from app.artifacts.store import ArtifactStore
    from app.evidence.auditing import LogReport
    from app.evidence.keys.trust import TrustedKeys

_FILE = {"exists": True, "dir_okay": False}

_SHOWN_OF_A_KIND = 10

audit = typer.Typer(help="The whole log, in its database.", no_args_is_help=True)


@audit.callback()
def _one_of_several() -> None:
    """Keep `verify` a word of its own, although it is the only one yet."""


@audit.command("verify")
def verify_audit(
    *,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            **_FILE,
            help="Keys to trust, from the operator by another way than the database: the list from"
            " /v1/audit/keys, a PEM file (for records) or lines name+hint+key (for checkpoints)."
            " May be given several times. Without: those in the database, which proves less.",
        ),
    ] = None,
    since: Annotated[
        list[Path] | None,
        typer.Option(
            **_FILE,
            help="A checkpoint that you kept outside the database. May be given several times.",
        ),
    ] = None,
    state_dir: StateDir = Path(".lethe"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check the whole log of DATABASE_URL (or of the service that runs here), and what it is about.

    Every hash, signature and checkpoint, every record, and the state of requests, models and keys;
    with MASTER_KEY_FILE and ARTIFACTS_URL at hand also the stored weights. Nothing is written, and
    the service may run meanwhile. Ends with 1 if anything is wrong.
    """
    from app.db import make_engine, make_sessions
    from app.evidence.auditing import verify_log

    with explained_errors():
        engine = make_engine(database_url(state_dir))
        try:
            with _bar() as progress, make_sessions(engine)() as session:
                report = verify_log(
                    session,
                    _read_keys(key),
                    # Bytes that are no UTF-8 are no note: a finding, and no crash here.
                    kept=[
                        path.read_bytes().decode(errors="surrogateescape") for path in since or ()
                    ],
                    store=_store(state_dir),
                    progress=progress,
                )
        finally:
            engine.dispose()
    if as_json:
        typer.echo(json.dumps(_spell_out(report), ensure_ascii=False))
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(EXIT_FAILED)


def _read_keys(paths: list[Path] | None) -> "TrustedKeys | None":
    from app.evidence.keys.trust import TrustedKeys

    return TrustedKeys.read(*(path.read_bytes() for path in paths)) if paths else None


def _store(state_dir: Path) -> "ArtifactStore | None":
    """Return what opens stored weights, if the settings or the stack here say how."""
    from app.artifacts.keys import MasterKey
    from app.artifacts.store import ArtifactStore
    from app.embedded.keys import KeyFiles
    from app.embedded.stack import Elsewhere

    chosen = Elsewhere()
    master_key, artifacts = chosen.master_key_file, chosen.artifacts_url
    if chosen.database_url is None:
        folder = state_dir.absolute()
        master_key = master_key or KeyFiles.inside(folder / "keys").master_key
        artifacts = artifacts or (folder / "artifacts").as_uri()
    if master_key is None or artifacts is None:
        return None
    return ArtifactStore(artifacts, MasterKey.load(master_key))


class _Bar:
    """Shows on a bar of its own what is being looked at."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what)
        self._bars.update(self._tasks[what], completed=done, total=total or None)


@contextmanager
def _bar() -> Iterator[_Bar]:
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bars:
        yield _Bar(bars)


def _print(report: "LogReport") -> None:
    for log in report.logs:
        name = "" if log.origin is None else f" ({log.origin})"
        root = "no root, since entries are missing" if log.root is None else f"root {log.root}"
        console.print(f"Log {log.id}{name}: {log.size} entries, {root}", markup=False)
    shown: Counter[str] = Counter()
    for finding in report.findings:
        shown[finding.code] += 1
        if shown[finding.code] > _SHOWN_OF_A_KIND:
            continue
        console.print(f"[bold red]✗ {finding.code}[/]  ", end="")
        console.print(finding.where, markup=False)
        console.print(f"  {finding.sentence}", markup=False)
        console.print(f"  What to do: {finding.remedy}", markup=False)
    for code, count in shown.items():
        if count > _SHOWN_OF_A_KIND:
            more = count - _SHOWN_OF_A_KIND
            console.print(f"[bold red]✗ {code}[/]  {more} more; --json lists all of them.")
    console.print("Looked at:")
    for sentence in report.checked():
        console.print(f"  {sentence}", markup=False)
    console.print("Not looked at, or not shown by this:")
    for sentence in report.limits():
        console.print(f"  {sentence}", markup=False)
    if report.ok:
        console.print("[green]✓[/] Nothing was found to be wrong.")
    else:
        count = len(report.findings)
        errors.print(
            f"[bold red]{count} finding{'' if count == 1 else 's'}: the log does not verify.[/]"
        )


def _spell_out(report: "LogReport") -> dict[str, object]:
    return {
        "ok": report.ok,
        "logs": [
            {
                "log": log.id,
                "origin": log.origin,
                "size": log.size,
                "root": log.root,
                "checkpoints_agree": log.checkpoints,
                "kept_agree": log.kept,
                "covered_by_checkpoints": log.covered,
                "covered_by_kept": log.vouched,
            }
            for log in report.logs
        ],
        "records": report.records,
        "requests": report.requests,
        "revisions": report.revisions,
        "weights_opened": report.weights,
        "findings": [
            {
                "code": str(finding.code),
                "where": finding.where,
                "sentence": finding.sentence,
                "remedy": finding.remedy,
            }
            for finding in report.findings
        ],
        "checked": report.checked(),
        "not_shown": report.limits(),
    }
