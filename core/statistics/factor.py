r"""Stored factor: what makes a small deletion of the exact tier cost d², not d³ (METHOD §4).

Beside the statistics two explicit inverses are kept: P ≈ (G + σI)⁻¹, which preconditions the Newton
step, and Q ≈ (M̂ + μI)⁻¹ of the augmented Gram matrix M̂ = [X Y]ᵀ[X Y], which answers the test that
samples can have been members. A deletion updates both and keeps no vectors: Px/√(1 − xᵀPx), stored
beside P, would be the deleted record in another basis.

Neither inverse is ever believed. A step is iterated until its own residual, computed from the
statistics, is round-off; what the test concludes from Q is proved by a residual too. A wrong
inverse costs time, or leads to the O(d³) way.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from core.errors import InvalidOptionError, InvalidTensorError
from core.factorisation import factorise
from core.rounding import gamma, upward

# Of the largest floor that a deletion may end with; what one deletion may use up of the distance.
_ROOM_SHARE = 1.0 / 64.0
# Of the tolerance, in the factorisation that the first floor comes from. That of a true M̂ ⪰ −ρI
# runs to its end from one half on; the lower, the more deletions can follow.
_TESTED_SHARE = 0.6
# Below it, more exact products could not turn a failed test into a passed one.
_NEGLIGIBLE = 1e-10
# Data with repeated or constant features make Q large: its products need correcting.
_CORRECTIONS = 3


@dataclass(frozen=True, eq=False)
class JointGram:
    """The augmented Gram matrix M̂ = [G B; Bᵀ T], in its blocks, k = d + C.

    Attributes:
        gram: G, shape (d, d), float64, symmetric.
        cross: B, shape (d, C), float64.
        target_gram: T = YᵀY, shape (C, C), float64, symmetric.
        round_off: A number >= ‖M̂ − M‖₂ with the exact M of the samples.
    """

    gram: Tensor
    cross: Tensor
    target_gram: Tensor
    round_off: float

    @property
    def size(self) -> int:
        """Return k = d + C."""
        return self.cross.shape[0] + self.cross.shape[1]

    def is_symmetric(self) -> bool:
        """Tell whether G and T equal their transposes to the last bit.

        Returns:
            Whether they do; sums that `collect` took always do.
        """
        return all(torch.equal(block, block.T) for block in (self.gram, self.target_gram))

    @cached_property
    def trace(self) -> float:
        """Return the trace of M̂, or 0 if round-off made it negative."""
        return max(float(self.gram.trace()) + float(self.target_gram.trace()), 0.0)

    def shifted(self, shift: float) -> Tensor:
        """Return M̂ + shift·I as one matrix.

        Args:
            shift: What is added to every eigenvalue.

        Returns:
            A new tensor, shape (k, k), float64.
        """
        width = self.cross.shape[0]
        matrix = self.gram.new_empty(self.size, self.size)
        matrix[:width, :width] = self.gram
        matrix[:width, width:] = self.cross
        matrix[width:, :width] = self.cross.T
        matrix[width:, width:] = self.target_gram
        # All-zero data have no round-off at all, but a factor needs a positive pivot.
        matrix.diagonal().add_(max(shift, torch.finfo(torch.float64).tiny))
        return matrix

    def times(self, rows: Tensor) -> Tensor:
        """Return U·M̂.

        Args:
            rows: U, shape (m, k), float64.

        Returns:
            Shape (m, k), float64.
        """
        width = self.cross.shape[0]
        features, targets = rows[:, :width], rows[:, width:]
        return torch.cat(
            [
                torch.addmm(features @ self.gram, targets, self.cross.T),
                torch.addmm(features @ self.cross, targets, self.target_gram),
            ],
            dim=1,
        )

    def tolerance(self) -> float:
        """Return tol = 2(ρ + γ_{k+2}·trace(M̂)), which the test of a downdate adds to M̂.

        Returns:
            A number >= 0; see `StoredStatistics.downdate`.
        """
        return upward(2.0 * (self.round_off + gamma(self.size + 2) * self.trace))

    def tested_floor(self, shift: float) -> float:
        r"""Return an f with M̂ + fI ⪰ 0 that a Cholesky factorisation of M̂ + shift·I proves.

        A factorisation that runs to its end is the exact one of a matrix at most
        γ_{k+1}/(1 − γ_{k+1})·trace(M̂ + shift·I) away (Higham, theorem 10.3, the factor's squared
        Frobenius norm being its trace); adding the shift rounds once.

        Args:
            shift: Of the factorisation that succeeded.

        Returns:
            shift + γ_{k+3}·trace(M̂ + shift·I).
        """
        trace = self.trace + self.size * shift
        return upward(shift + gamma(self.size + 3) * trace)


@dataclass(frozen=True, slots=True, eq=False)
class StoredFactor:
    """Two inverses that only ever make deletions faster, and what is proved about M̂.

    Attributes:
        inverse: P ≈ (G + σI)⁻¹, shape (d, d), float64, symmetric up to round-off.
        shift: σ, the ridge's shift when P was built. Deletions leave it as it is.
        joint_inverse: Q ≈ (M̂ + μI)⁻¹, shape (d + C, d + C), float64, μ near the test's tolerance.
        floor: f with M̂ + fI ⪰ 0, proved by this process for the very statistics that hold the
            factor. Nobody else's word is taken for it: it is not part of a file.
    """

    inverse: Tensor
    shift: float
    joint_inverse: Tensor
    floor: float

    def __post_init__(self) -> None:
        if not 0 <= self.shift < math.inf:
            raise InvalidOptionError(f"factor.shift: expected a number >= 0, got {self.shift}")
        if not 0 < self.floor < math.inf:
            raise InvalidOptionError(f"factor.floor: expected a positive number, got {self.floor}")

    def require_fit(self, num_features: int, num_outputs: int) -> None:
        """Check shapes and dtypes.

        Args:
            num_features: d.
            num_outputs: C.

        Raises:
            InvalidTensorError: One does not fit.
        """
        wanted = {"inverse": num_features, "joint_inverse": num_features + num_outputs}
        for name, size in wanted.items():
            matrix: Tensor = getattr(self, name)
            # No look at the numbers: NaN proves nothing, which leads to the O(d³) way.
            if matrix.dtype != torch.float64 or matrix.shape != (size, size):
                raise InvalidTensorError(
                    f"factor.{name}: expected float64 of shape ({size}, {size}), "
                    f"got {matrix.dtype} of {tuple(matrix.shape)}"
                )

    def downdate(
        self, before: JointGram, after: JointGram, features: Tensor, targets: Tensor
    ) -> "StoredFactor | None":
        r"""Return the factor of the rest, if it proves that there can be such a rest.

        Let Z = [X_f Y_f], e ≥ ‖M̂_r − (M̂ − ZᵀZ)‖₂, f the floor and δ > 0, so that
        A = M̂ + (f + δ)I ⪰ δI. By Schur's complement A − ZᵀZ ⪰ 0 if ZA⁻¹Zᵀ ⪯ I. Whatever U is,
        with R = Z − UA,

            ZA⁻¹Zᵀ = UZᵀ + RUᵀ + RA⁻¹Rᵀ ⪯ UZᵀ + RUᵀ + (‖R‖²/δ)I.

        U = ZQ makes R small. If the right side, with its own round-off, stays below I, then
        M̂_r + (f + δ + e)I ⪰ 0 is proved; f + δ + e is the floor of the rest. It has to stay below
        what the Cholesky test of `StoredStatistics.downdate` proves when it passes, so this test
        accepts nothing of which less is known.

        Args:
            before: M̂ with its round-off.
            after: M̂_r with its round-off.
            features: X_f, shape (n_f, d), float64.
            targets: Y_f, shape (n_f, C), float64.

        Returns:
            The factor of the rest; None where nothing was proved, and the Cholesky test decides.
        """
        # The round-off of the rest is that of the whole and of the subtraction.
        error = after.round_off - before.round_off
        room = after.tested_floor(after.tolerance()) - self.floor - error
        if not room > 0:
            return None
        margin = _ROOM_SHARE * room
        rows = torch.cat([features, targets], dim=1)
        proof = self._prove(before, rows, margin)
        if proof is None:
            return None
        images = features @ self.inverse
        inverse = _downdated(self.inverse, images, images @ features.T)
        joint_inverse = _downdated(self.joint_inverse, *proof)
        if inverse is None or joint_inverse is None:
            return None
        return StoredFactor(inverse, self.shift, joint_inverse, upward(self.floor + margin + error))

    def _prove(self, joint: JointGram, rows: Tensor, margin: float) -> tuple[Tensor, Tensor] | None:
        # U and the symmetric part of UZᵀ + RUᵀ, once they prove the inequality of `downdate`.
        shift = self.floor + margin
        # M̂ + fI ⪰ 0, so its Frobenius norm is at most its trace.
        magnitude = joint.trace + 2.0 * joint.size * shift
        images = rows @ self.joint_inverse
        for correction in range(_CORRECTIONS + 1):
            residual = torch.sub(rows, joint.times(images)).sub_(images, alpha=shift)
            leverage = torch.addmm(images @ rows.T, residual, images.T)
            if len(leverage) > 1:
                leverage = 0.5 * (leverage + leverage.T)
            slack = _slack(rows, images, residual, magnitude, margin)
            if _is_below_identity(leverage, slack):
                return images, leverage
            # A record that sticks out stays one however exact its product becomes.
            if correction == _CORRECTIONS or not slack > _NEGLIGIBLE:
                break
            images = torch.addmm(images, residual, self.joint_inverse)
        return None


def build(joint: JointGram, shift: float) -> StoredFactor | None:
    """Build the factor of statistics from nothing, in O(d³).

    Args:
        joint: M̂ with its round-off.
        shift: σ, what the ridge adds to every eigenvalue.

    Returns:
        The factor; None where a Cholesky factorisation breaks down, so that there is none, or where
        the statistics are not exactly symmetric.
    """
    if not joint.is_symmetric():
        return None
    tested = _TESTED_SHARE * joint.tolerance()
    joint_inverse = _inverse(joint.shifted(tested))
    hessian = joint.gram.clone()
    hessian.diagonal().add_(shift)
    inverse = _inverse(hessian)
    if inverse is None or joint_inverse is None:
        return None
    floor = max(joint.tested_floor(tested), torch.finfo(torch.float64).tiny)
    return StoredFactor(inverse, shift, joint_inverse, floor)


def restore(
    joint: JointGram, inverse: Tensor, shift: float, joint_inverse: Tensor
) -> StoredFactor | None:
    """Take inverses from a file: nothing but their shapes is believed.

    Args:
        joint: M̂ with its round-off.
        inverse: P, shape (d, d), float64.
        shift: σ.
        joint_inverse: Q, shape (d + C, d + C), float64.

    Returns:
        The factor, its floor proved anew by one Cholesky factorisation; None as for `build`.

    Raises:
        InvalidTensorError: A shape, dtype or value does not fit.
        InvalidOptionError: The shift is out of range.
    """
    tested = _TESTED_SHARE * joint.tolerance()
    if not joint.is_symmetric() or factorise(joint.shifted(tested)).failed_minor > 0:
        return None
    floor = max(joint.tested_floor(tested), torch.finfo(torch.float64).tiny)
    factor = StoredFactor(inverse, shift, joint_inverse, floor)
    factor.require_fit(*joint.cross.shape)
    return factor


def _inverse(matrix: Tensor) -> Tensor | None:
    factor = factorise(matrix)
    if factor.failed_minor > 0:
        return None
    inverse = factor.inverse()
    return inverse if bool(torch.isfinite(inverse.sum())) else None


def _downdated(inverse: Tensor, images: Tensor, leverage: Tensor) -> Tensor | None:
    # (A − ZᵀZ)⁻¹ = P + Uᵀ(I − ZPZᵀ)⁻¹U with U = ZP (Woodbury).
    if len(images) == 1:
        pivot = 1.0 - float(leverage)
        if not pivot > 0:
            return None
        return torch.addr(inverse, images[0], images[0], alpha=1.0 / pivot)
    capacitance = leverage.neg()
    capacitance.diagonal().add_(1.0)
    factor = factorise(0.5 * (capacitance + capacitance.T))
    if factor.failed_minor > 0:
        return None
    scaled = torch.linalg.solve_triangular(factor.upper.mT, images, upper=False)
    return torch.addmm(inverse, scaled.T, scaled)


def _slack(
    rows: Tensor, images: Tensor, residual: Tensor, magnitude: float, margin: float
) -> float:
    # Bounds what the computed UZᵀ + RUᵀ lacks of ZA⁻¹Zᵀ. R is evaluated within
    # γ_{k+4}(‖Z‖ + (‖M̂‖ + f + δ)‖U‖) in the Frobenius norm, which counts once in RUᵀ and squared
    # over δ in RA⁻¹Rᵀ; the products round as γ_{k+3} of their factors' norms.
    size = rows.shape[1]
    z, u, r = (_norm(matrix) for matrix in (rows, images, residual))
    error = gamma(size + 4) * (z + magnitude * u)
    return upward((r + error) ** 2 / margin + error * u + gamma(size + 3) * u * (z + r))


def _is_below_identity(leverage: Tensor, slack: float) -> bool:
    count = len(leverage)
    if count == 1:
        return upward(max(float(leverage), 0.0) + slack) < 1.0
    # Rounding of the difference and of its factorisation, as `JointGram.tested_floor`.
    slack = upward(slack + gamma(count + 3) * count * (1.0 + _norm(leverage)))
    if not slack < 1.0:
        return False
    difference = leverage.neg()
    difference.diagonal().add_(1.0 - slack)
    return factorise(difference).failed_minor == 0


def _norm(matrix: Tensor) -> float:
    flat = matrix.reshape(-1)
    return math.sqrt(float(torch.dot(flat, flat)))
