"""Statistics of logistic training, collected at one point of weight space (METHOD §4, §5).

Logistic loss has no finite summary: what is stored is its second-order expansion at the *anchor*,
the weights that the statistics were collected at, with a bound on everything that the expansion
leaves out. A deletion subtracts the forget set's share at the anchor. Where the anchor then moves,
`drift` and `residual` carry what is not known there (see `core.bounds.certified`).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core import curvature
from core.errors import InvalidOptionError, InvalidTensorError, StatisticsMismatchError
from core.factorisation import factorise
from core.losses import logistic
from core.problem import Ridge, SampleSet, require_matrix
from core.rounding import UNIT_ROUND_OFF, gamma, upward

# Sums over blocks round as often as a block has rows, plus once a block: near √n at its best.
_BLOCK_ROWS = 512
_MISMATCH = (
    "forget set: samples were never in the training set, or were removed before, or the "
    "statistics are less precise than they declare"
)


@dataclass(frozen=True, slots=True, eq=False)
class LogisticStatistics:
    r"""Second-order expansion of logistic training at an anchor, over a set of n samples.

    Exact counterparts: with D_j the samples left after step j and W_j the anchor then,
    H_c is Σ_{D_0} σ'(x·w_{0,c})xxᵀ less what each deletion took off at the anchor of its time. It
    differs from the true Hessian at the anchor by the sum over the moves of the anchor of

        Σ_{i∈D_j} (σ'(x_i·w_{j−1,c}) − σ'(x_i·w_{j,c})) x_i x_iᵀ                  (drift)

    since both subtract the same at the same weights. Without a move it is the true Hessian.

    Attributes:
        anchor: W_a, shape (d, C), float64.
        hessians: H_c without the ridge, shape (C, d, d), float64, symmetric up to round-off.
        gram: G = XᵀX, shape (d, d), float64, symmetric up to round-off.
        gradient: Σ(σ − y)x at the anchor, plus b where the objective was perturbed, without the
            ridge, shape (d, C), float64; after a move, the part of it that is known.
        feature_sums: Σx, shape (d,), float64.
        target_sums: Σy, shape (C,), float64: whole numbers.
        n_samples: n, at least 1.
        largest_norm: A number >= ‖x‖₂ of every sample that was collected.
        hessian_round_off: A number >= max_c ‖Ĥ_c − H_c‖₂.
        gram_round_off: A number >= ‖Ĝ − G‖₂.
        gradient_round_off: A number >= ‖ĝ − g‖_F.
        drift: Per output, shape (C,), float64, >= Σ_j ‖σ'(X_jw_{j−1,c}) − σ'(X_jw_{j,c})‖₂ over
            the moves of the anchor, X_j the rows of D_j; 0 where it never moved.
        n_drifted: Samples removed since the first move.
        residual: Per output, shape (C,), float64, >= the norm of what `gradient` lacks of the true
            gradient at the anchor; 0 where it never moved.
    """

    anchor: Tensor
    hessians: Tensor
    gram: Tensor
    gradient: Tensor
    feature_sums: Tensor
    target_sums: Tensor
    n_samples: int
    largest_norm: float
    hessian_round_off: float
    gram_round_off: float
    gradient_round_off: float
    drift: Tensor
    n_drifted: int
    residual: Tensor

    def __post_init__(self) -> None:
        require_matrix("anchor", self.anchor)
        width, outputs = self.anchor.shape
        if self.hessians.shape != (outputs, width, width):
            raise InvalidTensorError(
                f"hessians: expected shape ({outputs}, {width}, {width}), "
                f"got {tuple(self.hessians.shape)}"
            )
        for output, matrix in enumerate(self.hessians):
            require_matrix(f"hessians[{output}]", matrix)
        require_matrix("gram", self.gram, width, width)
        require_matrix("gradient", self.gradient, width, outputs)
        _require_vector("feature_sums", self.feature_sums, width)
        for name in ("target_sums", "drift", "residual"):
            vector: Tensor = getattr(self, name)
            _require_vector(name, vector, outputs)
            if float(vector.min()) < 0:
                raise InvalidTensorError(
                    f"{name}: expected numbers >= 0, got {float(vector.min())}"
                )
        if self.n_samples < 1:
            raise InvalidOptionError(f"n_samples: expected at least 1, got {self.n_samples}")
        if self.n_drifted < 0:
            raise InvalidOptionError(f"n_drifted: expected at least 0, got {self.n_drifted}")
        for name in ("largest_norm", "hessian_round_off", "gram_round_off", "gradient_round_off"):
            number: float = getattr(self, name)
            if not 0 <= number < math.inf:
                raise InvalidOptionError(f"{name}: expected a number >= 0, got {number}")

    def __add__(self, other: "LogisticStatistics") -> "LogisticStatistics":
        return merge_logistic(self, other)

    @property
    def num_features(self) -> int:
        """Return d."""
        return self.anchor.shape[0]

    @property
    def num_outputs(self) -> int:
        """Return C."""
        return self.anchor.shape[1]

    @property
    def relative_round_off(self) -> float:
        """Return the worst of the three round-offs, each over the size of what was summed.

        The sizes: the largest trace of a Ĥ_c, the trace of Ĝ, and √(nC·trace Ĝ) + ‖ĝ‖_F: the terms
        of the gradient add up to no more than the first, the noise is in the second.
        """
        trace = float(self.gram.trace())
        hessian = float(curvature.traces(self.hessians).max())
        terms = math.sqrt(self.n_samples * self.num_outputs * max(trace, 0.0))
        terms += float(torch.linalg.norm(self.gradient))
        return max(
            _share(self.hessian_round_off, hessian),
            _share(self.gram_round_off, trace),
            _share(self.gradient_round_off, terms),
        )

    def hessian(self, ridge: Ridge) -> Tensor:
        """Return H_c + shift(n)·I, summed over the samples, one matrix an output.

        Args:
            ridge: The L2 term.

        Returns:
            A new tensor, shape (C, d, d), float64.
        """
        matrices = self.hessians.clone()
        curvature.shift(matrices, ridge.shift(self.n_samples))
        return matrices

    def training_gradient(self, ridge: Ridge) -> Tensor:
        """Return what is known of ∇L(W_a; D), summed over the samples, with the ridge.

        Args:
            ridge: The L2 term.

        Returns:
            Shape (d, C), float64.
        """
        return torch.add(self.gradient, self.anchor, alpha=ridge.shift(self.n_samples))

    def drift_norms(self) -> Tensor:
        r"""Bound ‖Ĥ_c − ∇²L_c(W_a; D)‖₂ but for round-off: what moves of the anchor left.

        For unit vectors u, v each move adds at most Σ|Δσ'||x·u||x·v| ≤ R‖Δσ'‖₂‖X_jv‖₂, and X_j has
        beside the rows of today at most those of the `n_drifted` samples removed since, so
        ‖X_j‖² ≤ trace(G) + n_drifted·R², R = `largest_norm`.

        Returns:
            Shape (C,), float64.
        """
        reach = float(self.gram.diagonal().abs().sum()) + self.gram_round_off * self.num_features
        reach += self.n_drifted * self.largest_norm**2
        return self.drift * upward(self.largest_norm * math.sqrt(reach))

    def downdate(self, forget: SampleSet) -> "LogisticStatistics":
        r"""Return the statistics of the rest, the forget set's share taken off at the anchor.

        If the samples were in the set, the exact rest has G ⪰ 0, H_c ⪰ 0 and ¼G − H_c ⪰ 0 (since
        0 < σ' ≤ ¼), up to the drift; no longer sample than `largest_norm`, and of each target at
        most n_r and at least 0. The matrices are tested by Cholesky factorisations of M̂ + tol·I,

            tol = 2(ρ + γ_{d+2}·trace(M̂)),   ρ ≥ ‖M̂ − M‖₂,

        as in `core.statistics.squared`: true members always pass; what passes need not have been a
        member.

        Args:
            forget: D_f, fewer samples than the set has, with targets 0 or 1.

        Returns:
            New statistics; these are unchanged.

        Raises:
            InvalidTensorError: `forget` has other dimensions, or a target that is not 0 or 1.
            StatisticsMismatchError: The forget set cannot have been part of the samples.
        """
        _require_samples(self.anchor, forget)
        if len(forget) >= self.n_samples:
            raise StatisticsMismatchError(
                f"forget set: {len(forget)} samples cannot leave a rest of the {self.n_samples} "
                "that the statistics were collected from"
            )
        part = _sum_of(forget, self.anchor)
        if part.largest_norm > upward(self.largest_norm):
            raise StatisticsMismatchError(
                f"{_MISMATCH}: a sample has norm {part.largest_norm:.6g}, and none of those that "
                f"were collected is longer than {self.largest_norm:.6g}"
            )
        rest = _combine(self, part, sign=-1)
        moved = bool((self.drift > 0).any())
        rest = replace(
            rest,
            largest_norm=self.largest_norm,
            n_drifted=self.n_drifted + (len(forget) if moved else 0),
        )
        rest._require_possible()  # noqa: SLF001 - its own class
        return rest

    def _require_possible(self) -> None:
        least, most = float(self.target_sums.min()), float(self.target_sums.max())
        if least < 0 or most > self.n_samples:
            raise StatisticsMismatchError(
                f"{_MISMATCH}: {self.n_samples} samples cannot have a target that occurs "
                f"{least if least < 0 else most:.0f} times"
            )
        _require_psd(self.gram, self.gram_round_off, "gram")
        quarter = logistic.LARGEST_CURVATURE * self.gram
        share = logistic.LARGEST_CURVATURE * self.gram_round_off + self.hessian_round_off
        # The subtraction rounds once more: |Ĥ| + ¼|Ĝ|, whose norms are below their traces.
        rounded = 2.0 * UNIT_ROUND_OFF * float(torch.linalg.norm(self.gram))
        for matrix, drift in zip(self.hessians, self.drift_norms().tolist(), strict=True):
            _require_psd(matrix, upward(self.hessian_round_off + drift), "hessians")
            # ¼ is a power of 2, so that the product does not round.
            headroom = torch.sub(quarter, matrix)
            _require_psd(headroom, upward(share + drift + rounded), "gram/4 − hessians")


def collect_logistic(
    batches: Iterable[SampleSet], weights: Tensor, *, objective_noise: Tensor | None = None
) -> LogisticStatistics:
    """Collect the statistics of a data set at given weights in one streaming pass.

    Shards that are merged later share the weights, and at most one of them adds the noise.

    Args:
        batches: The data set in pieces of any size, each sample once; targets 0 or 1.
        weights: W_a, shape (d, C), float64: best the trained optimum.
        objective_noise: b of objective perturbation, shape (d, C), float64; None where the
            objective had no such term.

    Returns:
        Statistics of all samples together, with the weights as their anchor.

    Raises:
        InvalidTensorError: There is no batch, a shape or dtype does not fit, or a target is not 0
            or 1.

    >>> data = SampleSet(torch.eye(3, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64))
    >>> found = collect_logistic([data, data], torch.zeros(3, 1, dtype=torch.float64))
    >>> found.n_samples, float(found.gradient.sum()), float(found.hessians.sum())
    (6, -3.0, 1.5)
    """
    require_matrix("weights", weights)
    total: LogisticStatistics | None = None
    for batch in batches:
        _require_samples(weights, batch)
        part = _sum_of(batch, weights)
        total = part if total is None else _combine(total, part, sign=1)
    if total is None:
        raise InvalidTensorError("batches: none were given, so there is nothing to collect")
    if objective_noise is None:
        return total
    require_matrix("objective_noise", objective_noise, *weights.shape)
    gradient = total.gradient + objective_noise
    rounded = UNIT_ROUND_OFF * float(torch.linalg.norm(gradient))
    return replace(
        total, gradient=gradient, gradient_round_off=upward(total.gradient_round_off + rounded)
    )


def merge_logistic(first: LogisticStatistics, second: LogisticStatistics) -> LogisticStatistics:
    """Return the statistics of two disjoint sets together; commutative, associative to round-off.

    Args:
        first: Statistics of one set.
        second: Statistics of another, collected at the same weights.

    Returns:
        New statistics; both inputs are unchanged.

    Raises:
        InvalidTensorError: The dimensions or the anchors differ.
        InvalidOptionError: The anchor of one of them has moved: what is left of two lineages does
            not add up.
    """
    if first.anchor.shape != second.anchor.shape or not torch.equal(first.anchor, second.anchor):
        raise InvalidTensorError(
            "statistics: expected the same anchor in both; collect all shards at the same weights"
        )
    for statistics in (first, second):
        if bool((statistics.drift > 0).any()) or bool((statistics.residual > 0).any()):
            raise InvalidOptionError(
                "statistics: the anchor of one has moved since it was collected; merge shards "
                "before the first deletion"
            )
    return _combine(first, second, sign=1)


def _combine(
    first: LogisticStatistics, second: LogisticStatistics, sign: int
) -> LogisticStatistics:
    # Of sets at the same anchor; drift and residual are those of the first.
    hessians = torch.add(first.hessians, second.hessians, alpha=sign)
    gram = torch.add(first.gram, second.gram, alpha=sign)
    gradient = torch.add(first.gradient, second.gradient, alpha=sign)
    largest = float(torch.linalg.matrix_norm(hessians).max())

    def rounded(name: str, size: float) -> float:
        # A sum is off by at most u times itself; the spectral norm is below the Frobenius norm.
        total: float = getattr(first, name) + getattr(second, name) + UNIT_ROUND_OFF * size
        return upward(total)

    return LogisticStatistics(
        anchor=first.anchor,
        hessians=hessians,
        gram=gram,
        gradient=gradient,
        feature_sums=torch.add(first.feature_sums, second.feature_sums, alpha=sign),
        # Sums of 0 and 1 are exact up to 2^53 samples; below 0 the downdate's test refuses.
        target_sums=_counted(first.target_sums, second.target_sums, sign),
        n_samples=first.n_samples + sign * second.n_samples,
        largest_norm=max(first.largest_norm, second.largest_norm),
        hessian_round_off=rounded("hessian_round_off", largest),
        gram_round_off=rounded("gram_round_off", float(torch.linalg.norm(gram))),
        gradient_round_off=rounded("gradient_round_off", float(torch.linalg.norm(gradient))),
        drift=first.drift,
        n_drifted=first.n_drifted,
        residual=first.residual,
    )


def _counted(first: Tensor, second: Tensor, sign: int) -> Tensor:
    total = torch.add(first, second, alpha=sign)
    if float(total.min()) < 0:
        raise StatisticsMismatchError(
            f"{_MISMATCH}: a target occurs in it more often than in what was collected"
        )
    return total


def _sum_of(samples: SampleSet, weights: Tensor) -> LogisticStatistics:
    blocks = (_sum_of_block(block, weights) for block in _blocks(samples))
    total = next(blocks)
    for block in blocks:
        total = _combine(total, block, sign=1)
    return total


def _blocks(samples: SampleSet) -> Iterator[SampleSet]:
    for features, targets in zip(
        torch.split(samples.features, _BLOCK_ROWS),
        torch.split(samples.targets, _BLOCK_ROWS),
        strict=True,
    ):
        yield SampleSet(features, targets)


def _sum_of_block(samples: SampleSet, weights: Tensor) -> LogisticStatistics:
    features, targets = samples.features, samples.targets
    squares = features.square().sum(dim=1)
    size = float(squares.sum())
    return LogisticStatistics(
        anchor=weights,
        hessians=logistic.hessian(weights, features),
        gram=features.T @ features,
        gradient=logistic.gradient(weights, samples),
        feature_sums=features.sum(dim=0),
        target_sums=targets.sum(dim=0),
        n_samples=len(samples),
        largest_norm=upward(math.sqrt(float(squares.max()))),
        hessian_round_off=logistic.hessian_round_off(weights, features),
        # |Ĝ − G| ≤ γ_rows|X|ᵀ|X| entry by entry, and ‖|X|ᵀ|X|‖₂ ≤ ‖X‖²_F.
        gram_round_off=upward(gamma(len(samples)) * size),
        gradient_round_off=logistic.gradient_round_off(weights, samples),
        drift=weights.new_zeros(weights.shape[1]),
        n_drifted=0,
        residual=weights.new_zeros(weights.shape[1]),
    )


def _require_psd(matrix: Tensor, round_off: float, name: str) -> None:
    trace = max(float(matrix.trace()), 0.0)
    tolerance = upward(2.0 * (round_off + gamma(matrix.shape[0] + 2) * trace))
    # All-zero data have no round-off at all, but a factor needs a positive pivot.
    shift = max(tolerance, torch.finfo(torch.float64).tiny)
    if factorise(matrix, shift).failed_minor > 0:
        raise StatisticsMismatchError(
            f"{_MISMATCH}: without it {name} would have an eigenvalue below "
            f"-{0.5 * tolerance:.3g}, as those of no data set have"
        )


def _require_samples(weights: Tensor, samples: SampleSet) -> None:
    require_matrix("features", samples.features, columns=weights.shape[0])
    require_matrix("targets", samples.targets, columns=weights.shape[1])
    logistic.require_targets(samples.targets)


def _require_vector(name: str, value: Tensor, size: int) -> None:
    if value.ndim != 1:
        raise InvalidTensorError(f"{name}: expected shape ({size},), got {tuple(value.shape)}")
    require_matrix(name, value[None], 1, size)


def _share(round_off: float, size: float) -> float:
    if round_off == 0:
        return 0.0
    return round_off / size if size > 0 else math.inf
