"""Stored statistics: what stays of the training data, collected in one pass (METHOD §4).

All of it lives in the augmented Gram matrix M = [X Y]ᵀ[X Y]; sums of M add up over shards and are
downdated by a deletion. Each step rounds, so a bound on the error of M in the spectral norm travels
along: with it, every bound of the exact tier speaks about the training data, not only about
what float64 made of them.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InvalidOptionError, InvalidTensorError, StatisticsMismatchError
from core.factorisation import factorise
from core.problem import Ridge, SampleSet, require_matrix
from core.rounding import UNIT_ROUND_OFF, gamma, upward

# Sums over blocks round as often as a block has rows, plus once a block: near √n at its best.
_BLOCK_ROWS = 512


@dataclass(frozen=True, slots=True, eq=False)
class StoredStatistics:
    """Sums over a set of n samples from which squared-loss training follows.

    Attributes:
        gram: G = XᵀX, shape (d, d), float64, symmetric up to round-off.
        cross: B = XᵀY, shape (d, C), float64.
        target_gram: YᵀY, shape (C, C), float64, symmetric up to round-off.
        n_samples: n, at least 1.
        round_off: A number >= ‖M̂ − M‖₂, where M̂ = [G B; Bᵀ YᵀY] as stored, or with either
            triangle mirrored, and M is the exact [X Y]ᵀ[X Y] of the samples.
    """

    gram: Tensor
    cross: Tensor
    target_gram: Tensor
    n_samples: int
    round_off: float

    def __post_init__(self) -> None:
        width = self.gram.shape[0] if self.gram.ndim else None
        require_matrix("gram", self.gram, width, width)
        require_matrix("cross", self.cross, width)
        outputs = self.cross.shape[1]
        require_matrix("target_gram", self.target_gram, outputs, outputs)
        if self.n_samples < 1:
            raise InvalidOptionError(f"n_samples: expected at least 1, got {self.n_samples}")
        if not 0 <= self.round_off < math.inf:
            raise InvalidOptionError(f"round_off: expected a number >= 0, got {self.round_off}")

    @classmethod
    def from_arrays(
        cls,
        gram: Tensor,
        cross: Tensor,
        target_gram: Tensor,
        n_samples: int,
        round_off: float | None = None,
    ) -> "StoredStatistics":
        """Take statistics that were collected elsewhere.

        Without a known `round_off` the worst case of float64 sums in any order is taken:
        |M̂ − M| ≤ γ_n |A|ᵀ|A| for A = [X Y], whose norm is at most trace(M); one more rounding makes
        M̂ symmetric, and one covers the trace being that of M̂. What symmetry changes is added, to a
        declared `round_off` too: M is symmetric, so M̂ is off by at least as much as it is not.

        Args:
            gram: XᵀX, shape (d, d), float64, symmetric up to round-off.
            cross: XᵀY, shape (d, C), float64.
            target_gram: YᵀY, shape (C, C), float64, symmetric up to round-off.
            n_samples: n.
            round_off: As the attribute; None where it is not known.

        Returns:
            Statistics whose matrices are exactly symmetric.

        Raises:
            InvalidTensorError: A shape, dtype or value does not fit, or a matrix is not symmetric.
            InvalidOptionError: `n_samples` or `round_off` is out of range.
        """
        exact_gram, gram_gap = _symmetrised("gram", gram)
        exact_target_gram, target_gap = _symmetrised("target_gram", target_gram)
        if round_off is None:
            trace = float(exact_gram.diagonal().abs().sum())
            trace += float(exact_target_gram.diagonal().abs().sum())
            round_off = upward(gamma(n_samples + 2) * trace)
        if gram_gap + target_gap > 0:
            round_off = upward(round_off + gram_gap + target_gap)
        return cls(exact_gram, cross, exact_target_gram, n_samples, round_off)

    def __add__(self, other: "StoredStatistics") -> "StoredStatistics":
        return merge(self, other)

    @property
    def num_features(self) -> int:
        """Return d."""
        return self.cross.shape[0]

    @property
    def num_outputs(self) -> int:
        """Return C."""
        return self.cross.shape[1]

    @property
    def relative_round_off(self) -> float:
        """Return `round_off` over the trace of M̂: about 1e-13 for float64 sums, 0 for no data."""
        trace = float(self.gram.trace()) + float(self.target_gram.trace())
        if self.round_off == 0:
            return 0.0
        return self.round_off / trace if trace > 0 else math.inf

    def hessian(self, ridge: Ridge) -> Tensor:
        """Return H = G + shift(n)·I of the training objective, summed over the samples.

        Args:
            ridge: The L2 term.

        Returns:
            A new tensor, shape (d, d), float64, symmetric.
        """
        matrix = self.gram.clone()
        matrix.diagonal().add_(ridge.shift(self.n_samples))
        return matrix

    def training_gradient(self, weights: Tensor, ridge: Ridge) -> Tensor:
        """Return ∇L(W; D) = HW − B, summed over the samples.

        Args:
            weights: W, shape (d, C), float64.
            ridge: The L2 term.

        Returns:
            Shape (d, C), float64; for round-off see `training_gradient_round_off`.

        Raises:
            InvalidTensorError: `weights` does not fit the statistics.
        """
        self._require_weights(weights)
        gradient = self._gram_times(weights).sub_(self.cross)
        return gradient.add_(weights, alpha=ridge.shift(self.n_samples))

    def training_gradient_round_off(self, weights: Tensor, ridge: Ridge) -> float:
        r"""Bound how far `training_gradient` may be from that of the exact samples.

        Evaluating GW + sW − B rounds each term at most d+3 times (s = λn once), which gives
        γ_{d+3}(|G||W| + s|W| + |B|). The stored matrices are off by E = M̂ − M, which changes
        the gradient by the first d rows of E·[W; −I], at most ‖E‖₂·√(‖W‖²_F + C).

        Args:
            weights: W, shape (d, C), float64, the exact value of what is stored.
            ridge: The L2 term.

        Returns:
            A number >= the Frobenius norm of the difference.

        Raises:
            InvalidTensorError: `weights` does not fit the statistics.
        """
        self._require_weights(weights)
        magnitude = weights.abs()
        entries = (magnitude.T @ self.gram.abs()).T.add_(self.cross.abs())
        entries.add_(magnitude, alpha=ridge.shift(self.n_samples))
        evaluation = gamma(self.num_features + 3) * float(torch.linalg.norm(entries))
        reach = math.sqrt(float(weights.square().sum()) + self.num_outputs)
        return upward(evaluation + self.round_off * reach)

    def retain_loss(self, weights: Tensor, ridge: Ridge) -> float:
        """Return L(W; D) of these samples with the ridge, in sum form, exact but for round-off.

        ½(tr WᵀGW − 2 tr WᵀB + tr YᵀY) + (shift(n)/2)‖W‖²_F. After a downdate the samples are the
        retain set.

        Args:
            weights: W, shape (d, C), float64.
            ridge: The L2 term.

        Returns:
            A number >= 0.

        Raises:
            InvalidTensorError: `weights` does not fit the statistics.
        """
        self._require_weights(weights)
        # tr Wᵀ(GW − 2B) + tr YᵀY = ‖XW − Y‖².
        inner = self._gram_times(weights).sub_(self.cross, alpha=2.0)
        squares = float((weights * inner).sum()) + float(self.target_gram.trace())
        penalty = ridge.shift(self.n_samples) * float(weights.square().sum())
        # A perfect fit cancels to round-off of either sign; the loss itself is never negative.
        return 0.5 * max(squares, 0.0) + 0.5 * penalty

    def downdate(self, forget: SampleSet) -> "StoredStatistics":
        r"""Return the statistics of the rest: these samples without the forget set.

        If the samples were in the set, the exact M_r = M − M_f is a Gram matrix, so M̂_r ⪰ −ρI with
        its own `round_off` ρ. Tested by a Cholesky factorisation of M̂_r + tol·I, k = d + C,

            tol = 2(ρ + γ_{k+2}·trace(M̂_r)),

        which runs to its end whenever λ_min(M̂_r) ≥ −ρ (Higham, theorems 10.3 and 10.7: its backward
        error is at most γ_{k+1}·trace) and breaks down whenever λ_min(M̂_r) < −2·tol. So true
        members always pass; what passes need not have been a member.

        Args:
            forget: D_f, fewer samples than the set has.

        Returns:
            New statistics; these are unchanged.

        Raises:
            InvalidTensorError: `forget` has other dimensions.
            StatisticsMismatchError: The forget set cannot have been part of the samples.
        """
        self._require_samples(forget)
        if len(forget) >= self.n_samples:
            raise StatisticsMismatchError(
                f"forget set: {len(forget)} samples cannot leave a rest of the {self.n_samples} "
                "that the statistics were collected from"
            )
        rest = _combine(self, _sum_of(forget), sign=-1)
        rest._require_possible()  # noqa: SLF001 - its own class
        return rest

    def _gram_times(self, weights: Tensor) -> Tensor:
        # G is symmetric, and WᵀG takes half the time of GW: W has few columns.
        return (weights.T @ self.gram).T

    def _require_possible(self) -> None:
        # A factorisation, not eigenvalues, which are ten times dearer.
        width, size = self.num_features, self.num_features + self.num_outputs
        augmented = self.gram.new_empty(size, size)
        augmented[:width, :width] = self.gram
        augmented[:width, width:] = self.cross
        augmented[width:, :width] = self.cross.T
        augmented[width:, width:] = self.target_gram
        trace = max(float(augmented.trace()), 0.0)
        tolerance = upward(2.0 * (self.round_off + gamma(size + 2) * trace))
        # All-zero data have no round-off at all, but a factor needs a positive pivot.
        augmented.diagonal().add_(max(tolerance, torch.finfo(torch.float64).tiny))
        if factorise(augmented).failed_minor > 0:
            raise StatisticsMismatchError(
                "forget set: without it the statistics would have an eigenvalue below "
                f"-{0.5 * tolerance:.3g}, which those of no data set have: samples were never in "
                "the training set, or were removed before, or the statistics are less precise "
                "than they declare"
            )

    def _require_weights(self, weights: Tensor) -> None:
        require_matrix("weights", weights, self.num_features, self.num_outputs)

    def _require_samples(self, samples: SampleSet) -> None:
        require_matrix("features", samples.features, columns=self.num_features)
        require_matrix("targets", samples.targets, columns=self.num_outputs)


def collect(batches: Iterable[SampleSet]) -> StoredStatistics:
    """Collect the statistics of a data set in one streaming pass.

    Args:
        batches: The data set in pieces of any size, each sample once.

    Returns:
        Statistics of all samples together.

    Raises:
        InvalidTensorError: There is no batch, or batches differ in their dimensions.

    >>> data = SampleSet(torch.eye(3, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64))
    >>> collect([data, data]).n_samples
    6
    """
    total: StoredStatistics | None = None
    for batch in batches:
        part = _sum_of(batch)
        total = part if total is None else merge(total, part)
    if total is None:
        raise InvalidTensorError("batches: none were given, so there is nothing to collect")
    return total


def merge(first: StoredStatistics, second: StoredStatistics) -> StoredStatistics:
    """Return the statistics of two disjoint sets together; commutative, associative to round-off.

    Args:
        first: Statistics of one set.
        second: Statistics of another, of the same d and C.

    Returns:
        New statistics; both inputs are unchanged.

    Raises:
        InvalidTensorError: The dimensions differ.
    """
    if first.cross.shape != second.cross.shape:
        raise InvalidTensorError(
            "statistics: expected the same (d, C) in both, "
            f"got {tuple(first.cross.shape)} and {tuple(second.cross.shape)}"
        )
    return _combine(first, second, sign=1)


def _combine(first: StoredStatistics, second: StoredStatistics, sign: int) -> StoredStatistics:
    gram = torch.add(first.gram, second.gram, alpha=sign)
    cross = torch.add(first.cross, second.cross, alpha=sign)
    target_gram = torch.add(first.target_gram, second.target_gram, alpha=sign)
    return StoredStatistics(
        gram,
        cross,
        target_gram,
        first.n_samples + sign * second.n_samples,
        # A sum is off by at most u times itself; the spectral norm is below the Frobenius norm.
        upward(
            first.round_off
            + second.round_off
            + UNIT_ROUND_OFF * _frobenius(gram, cross, target_gram)
        ),
    )


def _sum_of(samples: SampleSet) -> StoredStatistics:
    blocks = (_sum_of_block(*block) for block in _blocks(samples))
    total = next(blocks)
    for block in blocks:
        total = merge(total, block)
    return total


def _blocks(samples: SampleSet) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(
        torch.split(samples.features, _BLOCK_ROWS),
        torch.split(samples.targets, _BLOCK_ROWS),
        strict=True,
    )


def _sum_of_block(features: Tensor, targets: Tensor) -> StoredStatistics:
    rows = features.shape[0]
    size = float(features.square().sum()) + float(targets.square().sum())
    return StoredStatistics(
        features.T @ features,
        features.T @ targets,
        targets.T @ targets,
        rows,
        # |M̂ − M| ≤ γ_rows|A|ᵀ|A| entry by entry, and ‖|A|ᵀ|A|‖₂ ≤ ‖A‖²_F for A = [X Y].
        upward(gamma(rows) * size),
    )


def _frobenius(gram: Tensor, cross: Tensor, target_gram: Tensor) -> float:
    # The cross block stands in M twice.
    return math.sqrt(
        float(torch.linalg.norm(gram)) ** 2
        + 2.0 * float(torch.linalg.norm(cross)) ** 2
        + float(torch.linalg.norm(target_gram)) ** 2
    )


def _symmetrised(name: str, matrix: Tensor) -> tuple[Tensor, float]:
    # With the Frobenius norm of what the symmetric version changed.
    size = matrix.shape[0] if matrix.ndim else None
    require_matrix(name, matrix, size, size)
    result = 0.5 * (matrix + matrix.T)
    change = matrix - result
    # Loose enough for any order of summation in float64, too tight for sums in float32.
    if (gap := float(change.abs().max())) > 1e-9 * float(matrix.abs().max()):
        raise InvalidTensorError(
            f"{name}: not symmetric, entries differ by up to {2 * gap:.3g}; expected sums of "
            "products of samples, collected in float64"
        )
    return result, float(torch.linalg.norm(change))
