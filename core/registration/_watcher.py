"""Who is told how far a long registration has come."""

from torch import Tensor


class Watcher:
    """Told how far `from_network` has come; by itself does nothing. Any method may raise."""

    def features(self, fraction: float) -> None:
        """Hear which share of the training set has passed through the frozen layers."""

    def training(self, iteration: int, relative_gradient: float, weights: Tensor) -> None:
        """Hear of an iteration: its number, ‖∇L(w)‖/‖∇L(0)‖, and w, which changes in place."""

    def statistics(self, fraction: float) -> None:
        """Hear which share of the statistics is collected; with 0.0 the training is over."""
