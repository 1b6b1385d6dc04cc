"""What every tier works on, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from core import losses
from core.options import UnlearningOptions
from core.problem import LinearModel, SampleSet, Surrogate
from core.results import Bound, GateResult, SolverReport
from core.statistics import Statistics
from core.vocabulary import Standing, Task, Tier, tier_of

Progress = Callable[[str, float], None]

# A norm may exceed its declared bound by the rounding of a float32 normalisation.
NORM_SLACK = 1e-6

# One stream a purpose, so that the gate's halves do not depend on how much was perturbed.
_PURPOSES = ("gate", "perturbation", "skew")


def seed_of(seed: int, purpose: str, used: dict[str, int]) -> int:
    """Return the seed of one purpose and record that it was used.

    Args:
        seed: Of the request.
        purpose: One of `gate`, `perturbation`, `skew`.
        used: Where it is recorded.

    Returns:
        A number of its own for each purpose.
    """
    used[purpose] = (seed + _PURPOSES.index(purpose)) % 2**32
    return used[purpose]


@dataclass(slots=True)
class Deletion:
    """What was asked for, and what the stages find on their way.

    Attributes:
        model: The model before.
        forget: D_f.
        statistics: Of the whole training set, if any are stored.
        remaining: Of the retain set, downdated by `core.pipeline`; None without `statistics`.
        surrogate: Stand-in for the training features, if any.
        holdout: Samples that were never trained on, if any.
        task: What the outputs mean.
        options: The caller's choices.
        membership: On whose word the forget samples are members of the training set.
        progress: Told about each stage.
        gates: Passed so far, in order.
        seeds: Used so far, by purpose.
        released_before: What was released of the model so far; None where it is not at hand.
    """

    model: LinearModel
    forget: SampleSet
    statistics: Statistics | None
    surrogate: Surrogate | None
    holdout: SampleSet | None
    task: Task
    options: UnlearningOptions
    membership: Standing
    progress: Progress
    remaining: Statistics | None = None
    gates: list[GateResult] = field(default_factory=list)
    seeds: dict[str, int] = field(default_factory=dict)
    _forget_gradient: Tensor | None = field(default=None, init=False, repr=False)
    released_before: Tensor | None = None

    @property
    def tier(self) -> Tier:
        """Return the tier that the method aims at."""
        return tier_of(self.options.method, self.model.loss)

    @property
    def n_remaining(self) -> int:
        """Return n_r."""
        return self.model.n_samples - len(self.forget)

    @property
    def forgotten_shift(self) -> float:
        """Return the forget set's share of the ridge's shift."""
        return self.model.ridge.forgotten_shift(len(self.forget))

    @property
    def feature_norm_bound(self) -> float:
        """Return R_x with the slack that forget samples are allowed: retain samples have it too."""
        return self.model.feature_norm_bound * (1.0 + NORM_SLACK)

    def forget_gradient(self) -> Tensor:
        """Return ∇_f at the model's weights, shape (d, C), sum form with its share of the ridge."""
        if self._forget_gradient is None:
            functions = losses.OF[self.model.loss]
            self._forget_gradient = functions.gradient(
                self.model.weights, self.forget, self.forgotten_shift
            )
        return self._forget_gradient

    def forget_gradient_round_off(self) -> float:
        """Return a bound on the round-off of `forget_gradient` in the Frobenius norm."""
        functions = losses.OF[self.model.loss]
        return functions.gradient_round_off(self.model.weights, self.forget, self.forgotten_shift)

    def seed(self, purpose: str) -> int:
        """Return the seed of one purpose and record that it was used."""
        return seed_of(self.options.seed, purpose, self.seeds)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tier found.

    Attributes:
        weights: W_u, shape (d, C), float64.
        remaining: Statistics to store from now on; None where there were none.
        bounds: Every bound, certifying or not.
        solvers: Reports of the Hessian estimate and of the linear solve, in order.
        gradient_norm_bound: Bound on ‖∇L(W_u; D_r)‖_F to carry to the next deletion.
        retain_losses: L(W; D_r) before and after, in sum form with the ridge; None where they
            cannot be told.
        hessian_change: H_r(W_u − W), shape (d, C), float64, where the tier has it at no cost.
    """

    weights: Tensor
    remaining: Statistics | None
    bounds: tuple[Bound, ...]
    solvers: tuple[SolverReport, ...]
    gradient_norm_bound: float
    retain_losses: tuple[float, float] | None
    hessian_change: Tensor | None = None
