"""Train the linear part of a network on your data, and write all that its registration takes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from core.errors import SolverError
from core.linearised.architectures import Architecture, num_parameters
from core.vocabulary import RidgeConvention, Task
from training import options
from training.checkpoint import Checkpoint
from training.errors import BadInputError, InterruptedTrainingError
from training.files import OutputFolder, read_tensors
from training.job import Device, Job, SampleKind, StatisticsKind
from training.progress import Bars, StopSignals

EXIT_FAILED = 1  # the gradient does not come down
EXIT_BAD_INPUT = 2
EXIT_SIGNAL = 128  # and the signal's number, as shells say it: 130 after Ctrl-C

_GUARANTEES = {
    StatisticsKind.GRAM: "Deletions will be exact.",
    StatisticsKind.SKETCH: "Deletions will be certified, with probability 1 - 1e-12.",
    StatisticsKind.NONE: "Deletions will be estimates: nothing is guaranteed.",
}

# Paths and messages have to stay copyable: no colours inside them, no line breaks.
console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def train_mixed(
    *,
    network: Annotated[
        Path, typer.Option(help="The network's weights, safetensors with its state dict's keys.")
    ],
    architecture: Annotated[Architecture, typer.Option(help="Which network it is.")],
    input_shape: Annotated[str, typer.Option(help="Of one input, e.g. 1,28,28.")],
    layers: Annotated[int, typer.Option(help="How many of the last layers to linearise.")],
    data: Annotated[
        Path, typer.Option(help="Training set, safetensors: x, samples; y, labels or targets.")
    ],
    ridge: Annotated[float, typer.Option(help="Strength of the L2 term, positive.")],
    name: Annotated[str, typer.Option(help="Of the model.")],
    output: Annotated[Path, typer.Option(help="Folder for the files; never overwritten.")],
    widths: Annotated[str, typer.Option(help="Hidden dense layers, e.g. 64,32.")] = "",
    channels: Annotated[str, typer.Option(help="Convolutions of small-cnn, e.g. 16,32.")] = "",
    holdout: Annotated[
        Path | None, typer.Option(help="Samples that are not trained on, for the scores.")
    ] = None,
    task: Annotated[Task, typer.Option(help="What y means.")] = Task.CLASSIFICATION,
    convention: Annotated[
        RidgeConvention, typer.Option(help="per_sample: strength times n; total: as it is.")
    ] = RidgeConvention.PER_SAMPLE,
    tolerance: Annotated[
        float, typer.Option(help="Gradient to train to, relative to that at zero.")
    ] = 1e-10,
    statistics: Annotated[
        StatisticsKind, typer.Option(help="gram: exact deletions; sketch: certified; none.")
    ] = StatisticsKind.GRAM,
    rank: Annotated[int, typer.Option(help="Of a sketch.")] = 256,
    public: Annotated[
        Path | None, typer.Option(help="Public samples x, along which to take the sketch.")
    ] = None,
    samples: Annotated[
        SampleKind, typer.Option(help="What x is, and what deletion requests will send.")
    ] = SampleKind.INPUTS,
    input_range: Annotated[
        str | None, typer.Option(help="Every number of x lies in it, e.g. 0,1; else the data's.")
    ] = None,
    membership: Annotated[
        bool, typer.Option("--membership", help="Let the service check who was trained on.")
    ] = False,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --output.")
    ] = False,
) -> None:
    """Train the linear part of a network, and write all that its registration takes.

    Ctrl-C keeps a checkpoint; the same command with --resume goes on from there.
    """
    files = {"--network": network, "--data": data, "--holdout": holdout, "--public": public}
    folder = OutputFolder(output)
    with _explained_errors(folder), options.in_words_of_options(files):
        centre = read_tensors("--network", network)
        layout = options.Layout(architecture, input_shape, layers, widths, channels)
        job = Job(
            spec=layout.spec(centre),
            network=centre,
            data=options.read_samples("--data", data, ("x", "y")),
            holdout=options.read_optional("--holdout", holdout, ("x", "y")),
            public=options.read_optional("--public", public, ("x",)),
            name=options.name_of(name),
            task=task,
            ridge=options.ridge_of(ridge, convention),
            tolerance=options.tolerance_of(tolerance),
            statistics=statistics,
            rank=rank,
            samples=samples,
            input_range=options.range_of(input_range),
            membership=membership,
            device=device,
        )
        iterations = _train(job, folder, resume=resume)
    console.print(f"{iterations} iterations. {_GUARANTEES[statistics]} In {output}:")
    console.print("  " + " ".join(folder.contents()), markup=False)
    console.print("Register it with")
    console.print(f"  {folder.upload_command()}", markup=False)


def _train(job: Job, folder: OutputFolder, *, resume: bool) -> int:
    """Train, write everything, and return how many iterations it took in all."""
    folder.prepare(resume=resume)
    checkpoint = Checkpoint(folder.checkpoint, job.inputs_digest())
    reached = checkpoint.load(num_parameters(job.spec)) if resume else None
    if reached is not None:
        console.print(f"Going on after iteration {reached.iteration}.")
    elif resume:
        console.print("There is no checkpoint yet: starting from the beginning.")
    with (
        StopSignals() as signals,
        Bars(console, checkpoint, signals, tolerance=job.tolerance, reached=reached) as bars,
    ):
        start = None if reached is None else reached.weights
        folder.write(job.run(start, bars))
    return bars.iterations


@contextmanager
def _explained_errors(folder: OutputFolder) -> Iterator[None]:
    """Turn what a user can do something about into sentences instead of tracebacks."""
    try:
        yield
    except BadInputError as error:
        raise _ended(str(error), EXIT_BAD_INPUT) from error
    except SolverError as error:
        remedy = "raise --ridge or --tolerance, or train on with --resume"
        raise _ended(f"{error}; {remedy}", EXIT_FAILED) from error
    except InterruptedTrainingError as error:
        kept = "go on with the same command and --resume"
        if not folder.checkpoint.exists():
            kept = "nothing was reached yet, so start again"
        errors.print(f"Interrupted: {kept}.", markup=False)
        raise typer.Exit(EXIT_SIGNAL + error.signum) from error
    except KeyboardInterrupt as error:
        errors.print("Stopped at once: what was kept last is in the checkpoint.", markup=False)
        raise typer.Exit(EXIT_SIGNAL + signal.SIGINT) from error


def _ended(message: str, code: int) -> typer.Exit:
    errors.print("[bold red]error:[/] ", end="")
    errors.print(message, markup=False)
    return typer.Exit(code)
