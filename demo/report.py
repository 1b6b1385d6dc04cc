"""What the demo tells: a table for people, the same as data for programs."""

import datetime
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.comparison import Accuracies, Comparison
from demo.scenarios import Scenario

KEY_FILE = "lethe-keys.json"
_EXACT_RHO_W = 1e-8
# What one Newton step leaves of a single record is of second order.
_CERTIFIED_RHO_W = 0.05
_VERDICTS = {"exact": "exact to round-off", "certified": "residual certified"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A scenario with what came of it; `comparison` is None unless it was completed."""

    scenario: Scenario
    request: dict[str, Any]
    comparison: Comparison | None
    record: Path

    @property
    def seconds(self) -> float:
        """Return how long the worker took."""
        started = datetime.datetime.fromisoformat(self.request["started_at"])
        finished = datetime.datetime.fromisoformat(self.request["finished_at"])
        return (finished - started).total_seconds()


def judge(outcomes: list[Outcome]) -> list[str]:
    """Return what is not as the demo promises; empty when all is well."""
    by_name = {outcome.scenario.name: outcome for outcome in outcomes}
    failures = []
    exact = by_name["one-record-exact"].comparison
    if exact is None or not exact.rho_w <= _EXACT_RHO_W:
        failures.append(f"one record from statistics: rho_w <= {_EXACT_RHO_W}, got {exact}")
    estimated = by_name["ten-percent-estimated"].comparison
    if estimated is None or not estimated.rho_w < 1:
        failures.append(f"10 % without statistics: rho_w < 1, got {estimated}")
    lone = by_name["one-record-refused"].request["state"]
    if lone != "refused":
        failures.append(f"one record without statistics: refused, got {lone}")
    certified = by_name["one-record-certified"].comparison
    if certified is None or not certified.rho_w < _CERTIFIED_RHO_W:
        failures.append(f"one logistic record: rho_w < {_CERTIFIED_RHO_W}, got {certified}")
    return failures


def as_data(outcomes: list[Outcome], checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the report as JSON-able data."""
    return {
        "requests": [_row(outcome) for outcome in outcomes],
        "checkpoint": checkpoint,
        "failures": judge(outcomes),
        "ok": not judge(outcomes),
    }


def print_table(console: Console, outcomes: list[Outcome], checkpoint: dict[str, Any]) -> None:
    """Print what was guaranteed, how near it came to retraining, and where the evidence lies."""
    labels = [f"({letter})" for letter in "abcdefgh"[: len(outcomes)]]
    for label, outcome in zip(labels, outcomes, strict=True):
        console.print(f"{label} {outcome.scenario.title}")
    console.print(_verdicts(labels, outcomes))
    console.print(
        "ρ_w, ρ_g: distance to the retrained model; doing nothing scores 1, retraining 0."
    )
    console.print(_accuracies(labels, outcomes))
    for label, outcome in zip(labels, outcomes, strict=True):
        if refusal := outcome.request["refusal"]:
            console.print(f"[yellow]{label} refused[/]: {refusal['cause']}")
            console.print(f"    why:    {refusal['detail']}")
            console.print(f"    remedy: {refusal['remedy']}")
    folder = outcomes[0].record.parent
    console.print("[bold]Signed records[/], to be checked offline by")
    console.print(f"  {sys.argv[0]} verify FILE --key {folder / KEY_FILE}", soft_wrap=True)
    for label, outcome in zip(labels, outcomes, strict=True):
        console.print(f"  {label} {outcome.record}", soft_wrap=True)
    console.print(
        f"[bold]Audit log[/]: {checkpoint['size']} entries, root {checkpoint['root']}",
        soft_wrap=True,
    )


def _verdicts(labels: list[str], outcomes: list[Outcome]) -> Table:
    table = Table(title="Unlearned by the service, held against true retraining")
    for heading in ("", "tier", "verdict"):
        table.add_column(heading, overflow="fold")
    for heading in ("ρ_w", "ρ_g", "residual ≤", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, outcome in zip(labels, outcomes, strict=True):
        row = _row(outcome)
        figures = (_short(row[key]) for key in ("rho_w", "rho_g", "residual_bound"))
        table.add_row(label, row["tier"], row["verdict"], *figures, f"{outcome.seconds:.2f}")
    return table


def _accuracies(labels: list[str], outcomes: list[Outcome]) -> Table:
    table = Table(title="Accuracy on test / retain / forget samples, %")
    for heading in ("", "before", "after", "retrained"):
        table.add_column(heading, no_wrap=True)
    for label, outcome in zip(labels, outcomes, strict=True):
        comparison = outcome.comparison
        if comparison is None:
            table.add_row(label, "unchanged")
        else:
            shares = (comparison.before, comparison.after, comparison.retrained)
            table.add_row(label, *map(_percent, shares))
    return table


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _percent(accuracies: Accuracies) -> str:
    shares = (accuracies.test, accuracies.retain, accuracies.forget)
    return " / ".join(f"{100 * share:.1f}" for share in shares)


def _row(outcome: Outcome) -> dict[str, Any]:
    request = outcome.request
    comparison = outcome.comparison
    result = request["result"]
    return {
        "name": outcome.scenario.name,
        "tier": request["tier"],
        "method": request["method"],
        "state": request["state"],
        "verdict": _verdict(request),
        "forgotten": len(outcome.scenario.forget),
        "rho_w": None if comparison is None else comparison.rho_w,
        "rho_g": None if comparison is None else comparison.rho_g,
        "accuracy": None
        if comparison is None
        else {
            "before": asdict(comparison.before),
            "after": asdict(comparison.after),
            "retrained": asdict(comparison.retrained),
        },
        "residual_bound": None if result is None else result["residual_bound"],
        "refusal": request["refusal"],
        "seconds": outcome.seconds,
        "record": str(outcome.record),
    }


def _verdict(request: dict[str, Any]) -> str:
    if request["state"] == "refused":
        return "refused"
    if request["state"] != "completed":
        return str(request["state"])
    return _VERDICTS.get(request["tier"], "no guarantee")
