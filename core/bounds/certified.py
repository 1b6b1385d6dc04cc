"""Logistic loss with stored statistics: METHOD (5) from the anchor, with every term bounded.

Notation, an output c at a time (its index is left out): v = w_u − w_a the whole step from the
anchor, t_i = x_i·v, q = Σt² = vᵀG_rv, h = Σσ'(z_i)t² = vᵀH_rv at z = X_rw_a, R ≥ ‖x‖, T ≥ max|t|.
By Taylor's theorem

    ∇L(w_u; D_r) = ∇L(w_a; D_r) + H_rv + Σ_i ρ_ix_i,   ρ_i = ∫₀¹(1−s)σ''(z_i+st_i)ds·t_i²,   (5)

and of the first two terms the statistics know all but `residual` and `drift`.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from core import curvature
from core.bounds._assumptions import CERTIFIED_ASSUMPTIONS
from core.bounds._parts import distance_bound, finite
from core.losses.logistic import CURVATURE_LIPSCHITZ, LARGEST_CURVATURE
from core.problem import Ridge
from core.results import Bound
from core.rounding import gamma, upward
from core.statistics import LogisticStatistics

LITERATURE_LIPSCHITZ = 0.25  # what Guo et al. 2020 take for γ
_LARGEST_THIRD = 0.125  # max |σ'''|
_STEEPEST = 1.0 / 6.0  # the σ' where |σ''| is largest
_HULL_JOINT = 0.125  # where the concave hull of x² − 4x³ leaves its chord
# Beyond such margins the exponential forms are worthless, and their factors would overflow.
_FARTHEST = 30.0
_SMALL = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Expansion:
    """The terms of (5) at some weights, per output (shape (C,), float64) where not said otherwise.

    Attributes:
        known: ‖ĝ + Ĥv + shift·w_u‖₂ as computed, plus its round-off and ‖Ĥ − H‖‖v‖.
        first_order: Bound on ‖(H − H_r)v‖₂, 0 where the anchor never moved.
        remainder: Bound on ‖Σρ_ix_i‖₂.
        literature: The literature's bound on the same, ¼R‖X_r‖₂‖v‖‖X_rv‖.
        carried: What earlier moves of the anchor left, `residual` of the statistics.
        curvature_moved: Bound on ‖σ'(X_rw_a) − σ'(X_rw_u)‖₂.
        gradient_round_off: Of the stored gradient, Frobenius norm over all outputs; a number.
        moved_gradient: ĝ + Ĥv, the known gradient at w_u without the ridge; shape (d, C).
        moved_round_off: Of `moved_gradient`, Frobenius norm; a number.
    """

    known: Tensor
    first_order: Tensor
    remainder: Tensor
    literature: Tensor
    carried: Tensor
    curvature_moved: Tensor
    gradient_round_off: float
    moved_gradient: Tensor
    moved_round_off: float

    @property
    def residual(self) -> float:
        """Return a number >= ‖∇L(W_u; D_r)‖_F: outputs in quadrature, round-off on top."""
        return self._total(self.remainder)

    @property
    def literature_residual(self) -> float:
        """Return the same with the literature's remainder in place of ours."""
        return self._total(self.literature)

    @property
    def unknown(self) -> Tensor:
        """Return, per output, the norm of what `moved_gradient` lacks of the true gradient."""
        return (self.first_order + self.remainder + self.carried) * upward(1.0)

    def _total(self, remainder: Tensor) -> float:
        outputs = self.known + self.first_order + remainder + self.carried
        return upward(float(torch.linalg.norm(outputs)) + self.gradient_round_off)


def expand(remaining: LogisticStatistics, weights: Tensor, ridge: Ridge) -> Expansion:
    r"""Expand the retain gradient at any weights around the anchor, METHOD (5).

    *First order.* The stored H differs from H_r by Σ_j Σ_{i∈D_j} Δσ'_{j,i}x_ix_iᵀ over the moves j
    of the anchor (see `core.statistics.logistic`), so ‖(H − H_r)v‖ ≤ R·Σ_j‖Δσ'_j‖₂·‖X_jv‖₂, and X_j
    has, beside the rows of D_r, at most those of the `n_drifted` samples removed since the first
    move: ‖X_jv‖² ≤ q + n_drifted·R²‖v‖².

    *Round-off.* Products of d terms and up to six further roundings: γ_{d+8} of the magnitudes;
    quadratic forms γ_{2d+8}. v = W_u − W_a is rounded once, which is among them.

    Args:
        remaining: Statistics of the retain set.
        weights: W_u, shape (d, C), float64, exactly as they are released.
        ridge: The L2 term.

    Returns:
        Every term; `residual` adds them up.
    """
    width = remaining.num_features
    change = weights - remaining.anchor
    lengths = torch.linalg.vector_norm(change, dim=0)
    # R as measured while the data was there; a smaller one that is declared contradicts it.
    norm_bound = remaining.largest_norm
    moved, moved_sizes = _moved_gradient(remaining, change)
    shift = ridge.shift(remaining.n_samples)
    known = torch.linalg.vector_norm(torch.add(moved, weights, alpha=shift), dim=0)
    sizes = torch.add(moved_sizes, weights.abs(), alpha=shift)
    known = known + gamma(width + 8) * torch.linalg.vector_norm(sizes, dim=0)
    forms = _forms(remaining, change, lengths, norm_bound)
    spectral = float(torch.linalg.norm(remaining.gram)) + remaining.gram_round_off
    literature = LITERATURE_LIPSCHITZ * norm_bound * spectral**0.5 * lengths * forms.squares.sqrt()
    return Expansion(
        known=known + remaining.hessian_round_off * lengths,
        first_order=forms.first_order,
        remainder=norm_bound * forms.squares * _remainder_coefficient(forms),
        literature=literature,
        carried=remaining.residual,
        curvature_moved=forms.squares.sqrt() * _movement_coefficient(forms),
        gradient_round_off=remaining.gradient_round_off,
        moved_gradient=moved,
        moved_round_off=upward(
            remaining.gradient_round_off
            + remaining.hessian_round_off * float(torch.linalg.norm(change))
            + gamma(width + 8) * float(torch.linalg.norm(moved_sizes))
        ),
    )


def move_anchor(
    remaining: LogisticStatistics, weights: Tensor, expansion: Expansion
) -> LogisticStatistics:
    """Return the statistics with their anchor at other weights; the old anchor is forgotten.

    What the expansion does not know of the gradient there goes into `residual`, how far σ' may have
    moved into `drift`.

    Args:
        remaining: Statistics of the retain set.
        weights: The new anchor, shape (d, C), float64.
        expansion: Of `remaining` at `weights`.

    Returns:
        New statistics.
    """
    return dataclasses.replace(
        remaining,
        anchor=weights,
        gradient=expansion.moved_gradient,
        gradient_round_off=expansion.moved_round_off,
        drift=(remaining.drift + expansion.curvature_moved) * upward(1.0),
        residual=expansion.unknown,
    )


def certified_bounds(expansion: Expansion, n_remaining: int, ridge: Ridge) -> tuple[Bound, ...]:
    """Return the certifying bounds of tier `certified`, (5) then (6), and the literature's form.

    Ours is never larger: its coefficient is at most γ/2 of R‖X_rv‖² ≤ R‖X_r‖‖v‖‖X_rv‖.

    Args:
        expansion: At the new weights.
        n_remaining: n_r.
        ridge: The L2 term.

    Returns:
        `residual_gradient_norm`, `distance_to_retraining`, `residual_gradient_norm_literature`.

    Raises:
        IllConditionedError: The residual overflows float64.
    """
    residual = finite(expansion.residual)
    return (
        Bound(
            "residual_gradient_norm",
            "METHOD (5)",
            residual,
            certifies=True,
            note="known gradient, drift of earlier deletions, second-order remainder and "
            "round-off, an output at a time, in quadrature",
            assumptions=CERTIFIED_ASSUMPTIONS,
        ),
        distance_bound(
            "distance_to_retraining",
            residual,
            n_remaining,
            ridge,
            CERTIFIED_ASSUMPTIONS,
            certifies=True,
        ),
        Bound(
            "residual_gradient_norm_literature",
            "Guo et al. 2020, arXiv:1911.03030",
            finite(expansion.literature_residual),
            certifies=False,
            note="the same with the remainder ¼R‖X_r‖‖v‖‖X_rv‖ of the literature; true but looser",
            assumptions=CERTIFIED_ASSUMPTIONS,
        ),
    )


def measured_from_expansion(expansion: Expansion) -> Bound:
    """Return the true residual of another tier's step, where logistic statistics are stored.

    Args:
        expansion: At the new weights.

    Returns:
        `residual_gradient_norm`, not certifying: the tier stays what it is.

    Raises:
        IllConditionedError: The residual overflows float64.
    """
    return Bound(
        "residual_gradient_norm",
        "METHOD (5)",
        finite(expansion.residual),
        certifies=False,
        note="what the estimate left, seen from the statistics; method `stored` would remove it",
        assumptions=CERTIFIED_ASSUMPTIONS,
    )


def _moved_gradient(remaining: LogisticStatistics, change: Tensor) -> tuple[Tensor, Tensor]:
    # With the magnitudes that its round-off is relative to.
    moved = remaining.gradient + curvature.times(remaining.hessians, change)
    magnitudes = curvature.times(remaining.hessians.abs(), change.abs())
    return moved, magnitudes.add_(remaining.gradient.abs())


@dataclass(frozen=True, slots=True, eq=False)
class _Forms:
    # Per output: q from above, T, where h/q lies, and the first-order term.
    squares: Tensor
    reach: Tensor
    lowest: Tensor
    highest: Tensor
    first_order: Tensor


def _forms(
    remaining: LogisticStatistics, change: Tensor, lengths: Tensor, norm_bound: float
) -> _Forms:
    squares, squares_error = _quadratic(remaining.gram, change)
    squares_error = squares_error + remaining.gram_round_off * lengths.square()
    squares = (squares.clamp(min=0.0) + squares_error) * upward(1.0)
    former = squares + remaining.n_drifted * norm_bound**2 * lengths.square()
    first_order = norm_bound * remaining.drift * former.sqrt()
    weighted, error = _quadratic(remaining.hessians, change)
    # |vᵀ(H − H_r)v| ≤ Σ_jΣ|Δσ'|t² ≤ R‖v‖·Σ_j‖Δσ'_j‖‖X_jv‖, the first-order term times ‖v‖.
    error = error + remaining.hessian_round_off * lengths.square() + first_order * lengths
    error = error * upward(1.0)
    # A sample of D_r has |t| ≤ ‖X_rv‖ as well.
    reach = torch.minimum(norm_bound * lengths, squares.sqrt()) * upward(1.0)

    # Where q is 0 the share multiplies 0, whatever it is.
    divisor = squares.clamp(min=torch.finfo(torch.float64).tiny)
    return _Forms(
        squares=squares,
        reach=reach,
        lowest=((weighted - error) / divisor).clamp(0.0, LARGEST_CURVATURE),
        highest=((weighted + error) / divisor * upward(1.0)).clamp(0.0, LARGEST_CURVATURE),
        first_order=first_order,
    )


def _quadratic(matrix: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    # v_cᵀM_cv_c, with a bound on its round-off.
    value = (change * curvature.times(matrix, change)).sum(dim=0)
    magnitude = (change.abs() * curvature.times(matrix.abs(), change.abs())).sum(dim=0)
    return value, gamma(2 * change.shape[0] + 8) * magnitude


def _remainder_coefficient(forms: _Forms) -> Tensor:
    r"""Return κ with Σ|ρ_i| ≤ κ·q: the smallest of three bounds.

    f(p) = p√(1−4p) is |σ''| where σ' = p, concave with f(0) = 0; f̄ its monotone hull, constant
    γ = f(1/6) beyond 1/6. Jensen's inequality gives Σt²f(σ'(z)) ≤ q·f(h/q), increasing in q.
    (a) |σ''| ≤ γ:  κ = γ/2.
    (b) |σ''| ≤ σ' makes σ'(z+st) ≤ e^{s|t|}σ'(z) (generalised self-concordance, Bach 2010), and f̄
        concave makes f̄(e^{s|t|}p) ≤ e^{s|t|}f̄(p):  κ = ((e^T−1−T)/T²)·f̄(h/q).
    (c) |σ'''| ≤ ⅛:  |ρ| ≤ ½|σ''(z)|t² + |t|³/48:  κ = ½f(h/q) + T/48.
    """
    half = torch.full_like(forms.reach, 0.5 * CURVATURE_LIPSCHITZ)
    reach = forms.reach.clamp(max=_FARTHEST)
    # (e^T−1−T)/T² = ½ + T/6 + …, below ½ + T/4 for T ≤ 1; computed, it would cancel there.
    growth = torch.where(
        reach < _SMALL,
        0.5 + 0.25 * reach,
        (torch.expm1(reach) - reach) / reach.clamp(min=_SMALL).square(),
    )
    exponential = growth * _slope(forms.highest.clamp(max=_STEEPEST))
    exponential = torch.where(forms.reach > _FARTHEST, half, exponential)
    cubic = 0.5 * _slope(_nearest(_STEEPEST, forms)) + _LARGEST_THIRD / 6.0 * forms.reach
    return torch.minimum(half, torch.minimum(exponential, cubic)) * upward(1.0)


def _movement_coefficient(forms: _Forms) -> Tensor:
    r"""Return κ with ‖σ'(z+t) − σ'(z)‖₂ ≤ κ·√q, by the same three arguments.

    Here Σt²f(σ')² ≤ q·k(h/q) with k the concave hull of f² = p² − 4p³: the chord p/16 up to ⅛,
    f² beyond. (a) γ; (b) ((e^T−1)/T)·√k̄(h/q), k̄ the monotone hull; (c) √k(h/q) + T/16.
    """
    flat = torch.full_like(forms.reach, CURVATURE_LIPSCHITZ)
    reach = forms.reach.clamp(max=_FARTHEST)
    growth = torch.where(reach < _SMALL, 1.0 + reach, torch.expm1(reach) / reach.clamp(min=_SMALL))
    exponential = growth * _hull(forms.highest.clamp(max=_STEEPEST)).sqrt()
    exponential = torch.where(forms.reach > _FARTHEST, flat, exponential)
    linear = _hull(_nearest(_STEEPEST, forms)).sqrt() + 0.5 * _LARGEST_THIRD * forms.reach
    return torch.minimum(flat, torch.minimum(exponential, linear)) * upward(1.0)


def _nearest(peak: float, forms: _Forms) -> Tensor:
    # Where in [lowest, highest] a function that rises up to `peak` and then falls is largest.
    return torch.maximum(forms.lowest, forms.highest.clamp(max=peak))


def _slope(curvature_share: Tensor) -> Tensor:
    return curvature_share * (1.0 - 4.0 * curvature_share).clamp(min=0.0).sqrt()


def _hull(curvature_share: Tensor) -> Tensor:
    chord = curvature_share / 16.0
    return torch.where(curvature_share <= _HULL_JOINT, chord, _slope(curvature_share).square())
