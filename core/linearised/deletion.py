"""A deletion from a network, and what a tier finds: as `core.tiers`, for other models."""

from dataclasses import dataclass, field

from torch import Tensor

from core.linearised.options import HeadSolver
from core.linearised.problem import FeatureSamples, MixedLinearModel
from core.options import UnlearningOptions
from core.results import AnyStatistics, Bound, GateResult, SolverReport
from core.tiers._deletion import NORM_SLACK, Progress, seed_of
from core.vocabulary import Standing, Task, Tier, tier_of


@dataclass(slots=True)
class NetworkDeletion:
    """What was asked for, and what the stages find on their way.

    Attributes:
        model: The network before.
        forget: D_f.
        statistics: Of the whole training set, if any are stored.
        holdout: Samples that were never trained on, if any.
        task: What the outputs mean.
        options: The caller's choices.
        solver: How the system of `forget-curvature` is solved.
        membership: On whose word the forget samples are members of the training set.
        progress: Told about each stage.
        released_before: What was released of the model so far; None where it is not at hand.
        gates: Passed so far, in order.
        seeds: Used so far, by purpose.
    """

    model: MixedLinearModel
    forget: FeatureSamples
    statistics: AnyStatistics | None
    holdout: FeatureSamples | None
    task: Task
    options: UnlearningOptions
    solver: HeadSolver
    membership: Standing
    progress: Progress
    released_before: Tensor | None = None
    gates: list[GateResult] = field(default_factory=list)
    seeds: dict[str, int] = field(default_factory=dict)
    _forget_gradient: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def tier(self) -> Tier:
        """Return the tier that the method aims at."""
        return tier_of(self.options.method, self.model.loss)

    @property
    def n_remaining(self) -> int:
        """Return n_r."""
        return self.model.n_samples - len(self.forget)

    @property
    def jacobian_norm_bound(self) -> float:
        """Return R_J with the slack that forget samples are allowed: retain samples have it too."""
        return self.model.jacobian_norm_bound * (1.0 + NORM_SLACK)

    def forget_gradient(self) -> Tensor:
        """Return ∇_f at the model's weights, shape (D, 1), sum form with its share of the ridge."""
        if self._forget_gradient is None:
            shift = self.model.ridge.forgotten_shift(len(self.forget))
            gradient = self.model.data_gradient(self.forget)
            self._forget_gradient = gradient.add_(self.model.weights, alpha=shift)
        return self._forget_gradient

    def seed(self, purpose: str) -> int:
        """Return the seed of one purpose and record that it was used."""
        return seed_of(self.options.seed, purpose, self.seeds)


@dataclass(frozen=True, slots=True)
class NetworkOutcome:
    """What a tier found.

    Attributes:
        weights: w_u, shape (D, 1), float64.
        remaining: Statistics to store from now on; None where there were none.
        bounds: Every bound, certifying or not.
        solvers: Reports of the curvature and of the linear solve, in order.
        gradient_norm_bound: Bound on ‖∇L(w_u; D_r)‖ to carry to the next deletion.
        retain_losses: L(w; D_r) before and after, in sum form with the ridge; None where they
            cannot be told.
    """

    weights: Tensor
    remaining: AnyStatistics | None
    bounds: tuple[Bound, ...]
    solvers: tuple[SolverReport, ...]
    gradient_norm_bound: float
    retain_losses: tuple[float, float] | None
