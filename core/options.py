"""What a caller may choose about one deletion; free of torch, so that the API can use it too."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from core.errors import InvalidOptionError
from core.vocabulary import Anchor, Floor, Method, PerturbationLaw, Prior

# FIRST_ORDER is our own; the others are called through cvxpy.
SdpSolver = Literal["FIRST_ORDER", "CLARABEL", "SCS"]

# Seeds are written into signed JSON, where integers beyond 2^53 are not exact.
_SEED_LIMIT = 2**32

# Equations a perturbation count of None asks for, beyond the bare number of unknowns.
_OVERSAMPLING_PERCENT = 120


def unknowns(num_features: int) -> int:
    """Return d(d+1)/2, how many numbers a symmetric d×d matrix has.

    >>> unknowns(20)
    210
    """
    return num_features * (num_features + 1) // 2


def sdp_floats(solver: SdpSolver, equations: int, num_features: int) -> int:
    """Return about how many float64 numbers a solver of (2) holds at its peak.

    cvxpy needs the matrix of all equations, m·d², and copies of it; our own the directions, their
    whitened form and temporaries of their size.

    Args:
        solver: Which one.
        equations: m.
        num_features: d.

    Returns:
        A number of float64 entries, for limits and messages.

    >>> sdp_floats("FIRST_ORDER", 1000, 512)
    6217728
    >>> sdp_floats("CLARABEL", 1000, 512)
    262144000
    """
    if solver == "FIRST_ORDER":
        return 6 * equations * num_features + 12 * num_features**2
    return equations * num_features**2


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """What an estimated deletion is held against.

    Attributes:
        threshold: Refused from this estimate (7) of ρ_g on; 1 is what doing nothing scores.
        splits: Random half-splits of the forget set that (7) is averaged over.
        require_identified: Refuse `paper-sdp` with fewer equations than unknowns. Only benchmarks
            that show what happens then switch it off.
        skew_level: Refuse an estimate when the forget set differs from the training set at this
            level of significance, over all skew tests together; 0 switches them off.
    """

    threshold: float = 1.0
    splits: int = 8
    require_identified: bool = True
    skew_level: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InvalidOptionError(
                f"gate.threshold: expected a number in (0, 1], got {self.threshold}; "
                "above 1 a deletion does more harm than doing nothing"
            )
        if self.splits < 1:
            raise InvalidOptionError(f"gate.splits: expected at least 1, got {self.splits}")
        if not 0 <= self.skew_level < 1:
            raise InvalidOptionError(
                f"gate.skew_level: expected a number in [0, 1), got {self.skew_level}"
            )


@dataclass(frozen=True, slots=True)
class PerturbationOptions:
    """Stage 1 of `paper-sdp` (METHOD §2).

    Attributes:
        count: m, how many equations; an antithetic pair gives one. None: 1.2·d(d+1)/2, rounded up.
        law: How the δ_i are drawn.
        scale: Standard deviation of the entries of δ_i (the paper: 1; its authors' code: 0.01).
    """

    count: int | None = None
    law: PerturbationLaw = PerturbationLaw.ANTITHETIC
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise InvalidOptionError(f"perturbation.count: expected at least 1, got {self.count}")
        if not 0 < self.scale < math.inf:
            raise InvalidOptionError(
                f"perturbation.scale: expected a positive number, got {self.scale}"
            )
        _require_member("perturbation.law", self.law, PerturbationLaw)

    def equations(self, num_features: int) -> int:
        """Return m for a model with d features.

        >>> PerturbationOptions().equations(20)
        252
        """
        if self.count is not None:
            return self.count
        return -(-unknowns(num_features) * _OVERSAMPLING_PERCENT // 100)


@dataclass(frozen=True, slots=True)
class PriorOptions:
    """The penalty weight·‖X − H_0‖²_F that may be added to equation (2), in mean form.

    Attributes:
        kind: H_0.
        weight: Of the penalty, relative to the mean square of the equations' coefficients
            ½δ_jδ_k; dimensionless, positive. Plays no part with kind `none`.
    """

    kind: Prior = Prior.NONE
    weight: float = 1e-3

    def __post_init__(self) -> None:
        _require_member("prior.kind", self.kind, Prior)
        if not 0 < self.weight < math.inf:
            raise InvalidOptionError(f"prior.weight: expected a positive number, got {self.weight}")


@dataclass(frozen=True, slots=True)
class UnlearningOptions:
    """Every choice that `core.pipeline.unlearn` leaves to its caller.

    Attributes:
        method: How the retain Hessian is obtained.
        seed: Where all randomness of the deletion comes from, 0 <= seed < 2^32.
        gate: What an estimated deletion is held against.
        perturbation: Stage 1 of `paper-sdp`; other methods draw no perturbations.
        floor: F of the constraint X ⪰ F of `paper-sdp`.
        solver: Program that solves (2) for `paper-sdp`.
        prior: What (2) is drawn towards where the equations say nothing.
        anchor: What becomes of the weights that logistic statistics were collected at.
    """

    method: Method
    seed: int = 0
    gate: GatePolicy = field(default_factory=GatePolicy)
    perturbation: PerturbationOptions = field(default_factory=PerturbationOptions)
    floor: Floor = Floor.RIDGE
    solver: SdpSolver = "FIRST_ORDER"
    prior: PriorOptions = field(default_factory=PriorOptions)
    anchor: Anchor = Anchor.MOVE

    def __post_init__(self) -> None:
        _require_member("method", self.method, Method)
        _require_member("floor", self.floor, Floor)
        _require_member("anchor", self.anchor, Anchor)
        if self.solver not in get_args(SdpSolver):
            raise InvalidOptionError(
                f"solver: expected one of {', '.join(get_args(SdpSolver))}, got {self.solver!r}"
            )
        if not 0 <= self.seed < _SEED_LIMIT:
            raise InvalidOptionError(
                f"seed: expected a whole number in [0, {_SEED_LIMIT}), got {self.seed}"
            )


def _require_member(name: str, value: object, kind: type) -> None:
    # A bare string would compare equal to a member and yet fail every `is`.
    if not isinstance(value, kind):
        raise InvalidOptionError(f"{name}: expected a member of {kind.__name__}, got {value!r}")
