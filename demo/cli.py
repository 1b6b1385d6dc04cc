"""Send real unlearning requests through the whole service, and compare with retraining."""

import json as json_module
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from app.embedded.stack import Stack
from core.serialization import dump_statistics, dump_weights
from demo import report
from demo.client import Client, is_final
from demo.comparison import compare
from demo.data import DataNotFoundError, DatasetName, load
from demo.report import Outcome
from demo.scenarios import Registration, Scenario, build

_HOLDOUT_SAMPLES = 2000
_DEADLINE_SECONDS = 600
_POLL_SECONDS = 0.1


def demo(
    dataset: Annotated[
        DatasetName, typer.Option(help="Data to train on and forget from.")
    ] = DatasetName.DIGITS,
    json: Annotated[Path | None, typer.Option(help="Write the report here as JSON too.")] = None,
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service up at the end.")] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of Fashion-MNIST's four original files.")
    ] = None,
    state_dir: Annotated[Path, typer.Option(help="Where the service and its records live.")] = Path(
        ".lethe/demo"
    ),
) -> None:
    """Send five real unlearning requests through the whole service, and compare with retraining."""
    console = Console()
    try:
        data = load(dataset, data_dir)
    except DataNotFoundError as error:
        console.print(f"[red]{error}")
        raise typer.Exit(2) from error
    console.print(f"[bold]Training[/] on {data.name}: {len(data.train_labels):,} samples.")
    scenarios = build(data, dataset)
    with ExitStack() as resources:
        with console.status("Starting PostgreSQL, Valkey, the API and a worker ..."):
            stack = resources.enter_context(Stack(state_dir))
            client = resources.enter_context(Client(stack.url, stack.admin_key))
        console.print(f"[bold]Service[/] at {stack.url}")
        outcomes = _run(client, scenarios, state_dir / "records", console)
        checkpoint = client.checkpoint()
        report.print_table(console, outcomes, checkpoint)
        verdict = report.judge(outcomes)
        if json is not None:
            json.write_text(json_module.dumps(report.as_data(outcomes, checkpoint), indent=2))
        for failure in verdict:
            console.print(f"[bold red]not as promised:[/] {failure}")
        if keep:
            console.print(f"The service stays up at {stack.url}; stop it with Ctrl-C.")
            stack.wait()
    raise typer.Exit(1 if verdict else 0)


def _run(
    client: Client, scenarios: list[Scenario], records: Path, console: Console
) -> list[Outcome]:
    """Register, send, wait, and collect what came of it."""
    models = _register(client, scenarios)
    requests = {}
    for scenario in scenarios:
        model_id = models[scenario.registration.name]
        samples = _samples(scenario.registration, scenario.forget)
        requests[scenario.name] = client.forget(scenario.request_body(model_id), samples)
    finished = _wait(client, scenarios, requests, console)
    records.mkdir(parents=True, exist_ok=True)
    client.save_keys(records / report.KEY_FILE)
    return [_outcome(client, scenario, finished[scenario.name], records) for scenario in scenarios]


def _register(client: Client, scenarios: list[Scenario]) -> dict[str, str]:
    """Register each model once. After this the service gets nothing but forget samples."""
    models: dict[str, str] = {}
    for registration in (scenario.registration for scenario in scenarios):
        if registration.name in models:
            continue
        trained = registration.trained
        dataset = trained.dataset
        holdout = safetensors.torch.save(
            {
                "x": dataset.test_features[:_HOLDOUT_SAMPLES].contiguous(),
                "y": dataset.test_labels[:_HOLDOUT_SAMPLES].contiguous(),
            }
        )
        models[registration.name] = client.register_model(
            json_module.dumps(trained.manifest(registration.name)),
            dump_weights(trained.weights),
            dump_statistics(trained.statistics) if registration.with_statistics else None,
            holdout,
        )
    return models


def _samples(registration: Registration, forget: Tensor) -> bytes:
    dataset = registration.trained.dataset
    return safetensors.torch.save(
        {"x": dataset.train_features[forget], "y": dataset.train_labels[forget]}
    )


def _wait(
    client: Client, scenarios: list[Scenario], requests: dict[str, str], console: Console
) -> dict[str, dict[str, Any]]:
    """Follow the requests with one progress bar each until all have ended."""
    finished: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + _DEADLINE_SECONDS
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bars = {
            scenario.name: progress.add_task(scenario.title, total=1.0, state="queued")
            for scenario in scenarios
        }
        while len(finished) < len(requests):
            for name, request_id in requests.items():
                if name in finished:
                    continue
                request = client.request(request_id)
                step = request["progress"] or {"stage": "", "fraction": 0.0}
                state = request["state"]
                if is_final(request):
                    finished[name] = request
                    progress.update(bars[name], completed=1.0, state=state)
                    progress.stop_task(bars[name])
                else:
                    state = f"{state} {step['stage']}"
                    progress.update(bars[name], completed=step["fraction"], state=state)
            if time.monotonic() > deadline:
                waiting = sorted(set(requests) - set(finished))
                raise TimeoutError(f"still not finished after {_DEADLINE_SECONDS} s: {waiting}")
            time.sleep(_POLL_SECONDS)
    return finished


def _outcome(client: Client, scenario: Scenario, request: dict[str, Any], records: Path) -> Outcome:
    path = records / f"{scenario.name}.json"
    path.write_bytes(client.record(request["id"]))
    comparison = None
    if request["state"] == "completed":
        weights = client.weights(request["model_id"], request["resulting_revision"])
        comparison = compare(scenario, weights)
    return Outcome(scenario, request, comparison, path)
