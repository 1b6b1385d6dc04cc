"""Bars, checkpoints on the way, and an end on request."""

import math
import signal
from types import FrameType, TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from core.registration import Watcher
from training.checkpoint import Checkpoint, Reached
from training.errors import InterruptedTrainingError


class StopSignals:
    """Hears SIGINT and SIGTERM: once to stop where the work allows it, twice to stop at once."""

    def __init__(self) -> None:
        """Hear nothing yet."""
        self.signum: int | None = None

    def __enter__(self) -> Self:
        """Listen."""
        self._former = {
            signum: signal.signal(signum, self._hear) for signum in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Leave signals to whoever had them."""
        for signum, handler in self._former.items():
            signal.signal(signum, handler)

    def _hear(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum


class Bars(Watcher):
    """Shows the stages, and keeps what training has reached."""

    def __init__(
        self,
        console: Console,
        checkpoint: Checkpoint,
        signals: StopSignals,
        *,
        tolerance: float,
        reached: Reached | None,
    ) -> None:
        """Begin where an earlier run ended, if there was one."""
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._bars: dict[str, TaskID] = {}
        self._checkpoint = checkpoint
        self._signals = signals
        self._tolerance = tolerance
        self._before = 0 if reached is None else reached.iteration
        self.reached = reached

    def __enter__(self) -> Self:
        """Draw."""
        self._progress.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Leave the bars as they are."""
        self._progress.stop()

    @property
    def iterations(self) -> int:
        """Return how many iterations there were, those of earlier runs included."""
        return self._before if self.reached is None else self.reached.iteration

    def features(self, fraction: float) -> None:
        """Show it."""
        self._show("features", fraction, f"{fraction:.0%}")
        self._stop_if_asked()

    def training(self, iteration: int, relative_gradient: float, weights: Tensor) -> None:
        """Show it, and keep it now and then."""
        self.reached = Reached(weights, self._before + iteration)
        # The gradient falls by factors, so that its logarithm tells how far there is to go.
        fraction = math.log(max(relative_gradient, 1e-300)) / math.log(self._tolerance)
        state = f"iteration {self.iterations}, gradient {relative_gradient:.1e}"
        self._show("training", fraction, f"{state} of {self._tolerance:.0e}")
        self._stop_if_asked()
        self._checkpoint.save_if_due(self.reached)

    def statistics(self, fraction: float) -> None:
        """Show it; training is over, and hours of it shall not be lost to what follows."""
        if fraction == 0 and self.reached is not None:
            self._show("training", 1.0, f"{self.iterations} iterations")
            self._checkpoint.save(self.reached)
        self._show("statistics", fraction, f"{fraction:.0%}")
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._signals.signum is None:
            return
        if self.reached is not None:
            self._checkpoint.save(self.reached)
        raise InterruptedTrainingError(self._signals.signum)

    def _show(self, stage: str, fraction: float, state: str) -> None:
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=1.0, state="")
        done = min(max(fraction, 0.0), 1.0)
        self._progress.update(self._bars[stage], completed=done, state=state)
