"""(ε, δ): what noise of a given strength hides, and the budget that follows (METHOD §5).

Free of torch, so that the API can use it too. A Gaussian of standard deviation σ on every entry
makes two vectors (or matrices) whose distance is at most Δ (ε, δ)-indistinguishable exactly if

    δ ≥ Φ(Δ/2σ − εσ/Δ) − e^ε Φ(−Δ/2σ − εσ/Δ)

(Balle and Wang 2018, arXiv:1805.06530, theorem 8; Φ of the standard normal distribution).
`dp-accounting` solves this for σ at Δ = 1; everything else here is a ratio.
"""

import dataclasses
import importlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from core.errors import BudgetError, InvalidOptionError
from core.rounding import upward
from core.vocabulary import Mechanism

LARGEST_EPSILON = 10.0

# Below these, the difference of two nearly equal probabilities above has too few digits left for
# the margin that `_unit_sigma` adds.
_SMALLEST_EPSILON = 1e-6
_SMALLEST_DELTA = 1e-300
_LARGEST_EXPONENT = 700.0

# A reservation that is given back may differ from what was reserved by the rounding of sums.
_RESERVATION_SLACK = 1e-12


@dataclass(frozen=True, slots=True)
class Privacy:
    """How residuals of deletions are hidden.

    Attributes:
        mechanism: Where the noise enters.
        epsilon: ε of the guarantee, positive.
        delta: δ of the guarantee, in (0, 1).
        sigma: Standard deviation of each entry of b, or of the noise on each released weight.
    """

    mechanism: Mechanism
    epsilon: float
    delta: float
    sigma: float

    def __post_init__(self) -> None:
        for name in ("epsilon", "sigma"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidOptionError(
                    f"privacy.{name}: expected a positive number, got {getattr(self, name)}"
                )
        if not 0 < self.delta < 1:
            raise InvalidOptionError(
                f"privacy.delta: expected a number in (0, 1), got {self.delta}"
            )


def covered_norm(privacy: Privacy) -> float:
    """Return the largest distance that the declared noise hides, rounded downward.

    Objective perturbation holds the Frobenius norm of the residual gradient against it, output
    perturbation the distance of the weights to retraining.

    Args:
        privacy: ε, δ and σ.

    Returns:
        Δ = σ / σ₁(ε, δ), where σ₁ is the standard deviation that the distance 1 needs.

    Raises:
        InvalidOptionError: ε < 1e-6 or δ < 1e-300, where float64 cannot calibrate the noise.

    >>> round(covered_norm(Privacy(Mechanism.OUTPUT, epsilon=1.0, delta=1e-5, sigma=1.0)), 3)
    0.268
    """
    return math.nextafter(privacy.sigma / _unit_sigma(privacy.epsilon, privacy.delta), 0.0)


def sigma_for(epsilon: float, delta: float, norm: float) -> float:
    """Return a standard deviation that hides a distance, rounded upward.

    Args:
        epsilon: ε of the guarantee, at least 1e-6.
        delta: δ of the guarantee, in (0, 1).
        norm: Δ, the distance to hide, positive: the budget of the whole lineage.

    Returns:
        σ with `covered_norm` >= `norm`.

    Raises:
        InvalidOptionError: An argument is out of range.

    >>> round(sigma_for(1.0, 1e-5, 2.0), 2)
    7.46
    """
    if not 0 < norm < math.inf:
        raise InvalidOptionError(f"norm: expected a positive number, got {norm}")
    # One rounding for the product, one for the quotient in `covered_norm`, one for its own step.
    sigma = norm * _unit_sigma(epsilon, delta)
    for _ in range(4):
        sigma = math.nextafter(sigma, math.inf)
    return sigma


def delta_of(epsilon: float, sigma: float, norm: float) -> float:
    """Return the δ that noise gives at a distance: the closed form above, to about ten digits.

    Independent of how `covered_norm` is found, so that a statement can be checked without the
    accounting library.

    Args:
        epsilon: ε, positive.
        sigma: σ, positive.
        norm: Δ, positive.

    Returns:
        δ, at least 0.

    >>> round(1e6 * delta_of(1.0, 1.0, 0.2680), 1)
    10.0
    """
    half, step = 0.5 * norm / sigma, epsilon * (sigma / norm)
    first, second = _normal(half - step), _normal(-half - step)
    # Where the factor overflows its product is left out, which only makes δ larger.
    less = math.exp(epsilon) * second if epsilon < _LARGEST_EXPONENT else 0.0
    return max(first - less, 0.0)


def require_policy(
    privacy: Privacy, n_samples: int, *, largest_epsilon: float = LARGEST_EPSILON
) -> None:
    """Refuse parameters whose guarantee says nothing.

    With δ ≥ 1/n a mechanism that publishes a training sample picked at random passes; with ε
    above 10 it may make an outcome 22,000 times as likely.

    Args:
        privacy: What is declared.
        n_samples: n, the size of the training set.
        largest_epsilon: What the policy allows.

    Raises:
        InvalidOptionError: δ ≥ 1/n, ε above the policy, or either too small to calibrate.
    """
    if privacy.delta * n_samples >= 1:
        raise InvalidOptionError(
            f"privacy.delta: expected less than 1/n = {1 / n_samples:.3g}, got {privacy.delta:g}; "
            f"declare a smaller δ, usually 0.01/n = {0.01 / n_samples:.2g}, and train with the σ "
            "that it needs"
        )
    if privacy.epsilon > largest_epsilon:
        raise InvalidOptionError(
            f"privacy.epsilon: expected at most {largest_epsilon:g}, got {privacy.epsilon:g}; "
            "declare a smaller ε, or raise the policy's largest_epsilon"
        )
    _unit_sigma(privacy.epsilon, privacy.delta)


@dataclass(frozen=True, slots=True)
class Budget:
    """What the noise of one lineage of models still hides; every operation returns a new one.

    All three in the unit of what is held against `covered_norm`: the residual gradient for
    objective perturbation, the distance to retraining for output perturbation. Sums are rounded
    upward, so that rounding never makes room.

    Attributes:
        limit: `covered_norm`, positive.
        spent: By the deletions that are done.
        reserved: For deletions that are under way.
    """

    limit: float
    spent: float = 0.0
    reserved: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.limit < math.inf:
            raise InvalidOptionError(f"budget.limit: expected a positive number, got {self.limit}")
        for name in ("spent", "reserved"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidOptionError(
                    f"budget.{name}: expected a number >= 0, got {getattr(self, name)}"
                )
        if self.spent > self.limit:
            raise BudgetError(
                f"budget: {self.spent:.6g} spent of {self.limit:.6g}; retraining sets it back"
            )

    @property
    def left(self) -> float:
        """Return what is neither spent nor reserved; 0 where nothing is."""
        used = _sum(self.spent, self.reserved)
        return max(math.nextafter(self.limit - used, -math.inf), 0.0) if used else self.limit

    def reserve(self, amount: float) -> "Budget":
        """Return a budget with `amount` more reserved.

        Args:
            amount: What a deletion may need, positive.

        Returns:
            The new budget.

        Raises:
            BudgetError: More than is left.
        """
        _require_amount(amount)
        if amount > self.left:
            raise BudgetError(
                f"budget: {amount:.6g} asked for, {self.left:.6g} left of {self.limit:.6g} "
                f"({self.spent:.6g} spent, {self.reserved:.6g} reserved); batch the deletions that "
                "wait, or retrain, which sets the budget back"
            )
        return dataclasses.replace(self, reserved=_sum(self.reserved, amount))

    def release(self, amount: float) -> "Budget":
        """Return a budget with `amount` less reserved: a deletion was refused or failed.

        Args:
            amount: What was reserved for it, positive.

        Returns:
            The new budget.

        Raises:
            BudgetError: More than is reserved.
        """
        _require_amount(amount)
        if amount > self.reserved * (1 + _RESERVATION_SLACK):
            raise BudgetError(
                f"budget: {amount:.6g} to be given back, but {self.reserved:.6g} is reserved; give "
                "back what `reserve` was asked for, once"
            )
        rest = self.reserved - amount
        return dataclasses.replace(
            self, reserved=rest if rest > _RESERVATION_SLACK * self.reserved else 0.0
        )

    def spend(self, amount: float, *, reserved: float | None = None) -> "Budget":
        """Return a budget in which a reservation has become spending.

        Args:
            amount: What the deletion added, at least 0.
            reserved: What was reserved for it; `amount` if None. Where less was spent, the rest
                is left again.

        Returns:
            The new budget.

        Raises:
            BudgetError: More than was reserved for it, or than is reserved at all.
        """
        held = amount if reserved is None else reserved
        if not 0 <= amount < math.inf:
            raise BudgetError(f"budget: expected to spend a number >= 0, got {amount}")
        if amount > held:
            raise BudgetError(
                f"budget: {amount:.6g} to be spent, but {held:.6g} was reserved for it; reserve "
                "what the deletion's bound says before its result is released"
            )
        freed = self.release(held) if held > 0 else self
        return dataclasses.replace(freed, spent=min(_sum(self.spent, amount), self.limit))

    def settle(self, total: float) -> "Budget":
        """Return a budget of which `total` is spent by the whole lineage.

        A bound counts all deletions since training, so it replaces the sum of earlier ones: exact
        deletions leave round-off whatever their number, and kept anchors depend on the net step.

        Args:
            total: `PrivacyStatement.spent` at the new weights, at least 0.

        Returns:
            The new budget; reservations of other deletions stay.

        Raises:
            BudgetError: More than the limit.
        """
        if not 0 <= total <= self.limit:
            raise BudgetError(
                f"budget: {total:.6g} would be spent of {self.limit:.6g}; retrain, which sets the "
                "budget back"
            )
        return dataclasses.replace(self, spent=total)


@lru_cache(maxsize=256)
def _unit_sigma(epsilon: float, delta: float) -> float:
    # σ₁(ε, δ), rounded upward: the root is found to 4e-8 in this range, the margin is 9.5e-7.
    for name, value, smallest in (
        ("epsilon", epsilon, _SMALLEST_EPSILON),
        ("delta", delta, _SMALLEST_DELTA),
    ):
        if not value >= smallest:
            raise InvalidOptionError(
                f"privacy.{name}: expected at least {smallest:g}, got {value}; noise for less "
                "cannot be calibrated in float64"
            )
    if not (epsilon < math.inf and delta < 1):
        raise InvalidOptionError(
            f"privacy: expected a finite ε and δ < 1, got {epsilon} and {delta}"
        )
    # Importing it takes most of a second, which models without noise need not pay.
    accounting: Any = importlib.import_module("dp_accounting")
    return upward(float(accounting.get_sigma_gaussian(epsilon, delta)))


def _normal(bound: float) -> float:
    # Φ, with its digits kept in the lower tail.
    return 0.5 * math.erfc(-bound / math.sqrt(2.0))


def _sum(first: float, second: float) -> float:
    if first == 0 or second == 0:
        return first + second
    return math.nextafter(first + second, math.inf)


def _require_amount(amount: float) -> None:
    if not 0 < amount < math.inf:
        raise BudgetError(f"budget: expected a positive amount, got {amount}")
