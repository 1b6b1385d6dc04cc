"""What a caller may choose about one deletion; free of torch, so that the API can use it too."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from core.errors import InvalidOptionError
from core.vocabulary import Floor, Method, PerturbationLaw

SdpSolver = Literal["CLARABEL", "SCS"]

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


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """What an estimated deletion is held against.

    Attributes:
        threshold: Refused from this estimate (7) of ρ_g on; 1 is what doing nothing scores.
        splits: Random half-splits of the forget set that (7) is averaged over.
        require_identified: Refuse `paper-sdp` with fewer equations than unknowns. Only benchmarks
            that show what happens then switch it off.
    """

    threshold: float = 1.0
    splits: int = 8
    require_identified: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InvalidOptionError(
                f"gate.threshold: expected a number in (0, 1], got {self.threshold}; "
                "above 1 a deletion does more harm than doing nothing"
            )
        if self.splits < 1:
            raise InvalidOptionError(f"gate.splits: expected at least 1, got {self.splits}")


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
class UnlearningOptions:
    """Every choice that `core.pipeline.unlearn` leaves to its caller.

    Attributes:
        method: How the retain Hessian is obtained.
        seed: Where all randomness of the deletion comes from, 0 <= seed < 2^32.
        gate: What an estimated deletion is held against.
        perturbation: Stage 1 of `paper-sdp`; other methods draw no perturbations.
        floor: F of the constraint X ⪰ F of `paper-sdp`.
        solver: Program that solves (2) for `paper-sdp`.
    """

    method: Method
    seed: int = 0
    gate: GatePolicy = field(default_factory=GatePolicy)
    perturbation: PerturbationOptions = field(default_factory=PerturbationOptions)
    floor: Floor = Floor.RIDGE
    solver: SdpSolver = "CLARABEL"

    def __post_init__(self) -> None:
        _require_member("method", self.method, Method)
        _require_member("floor", self.floor, Floor)
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
