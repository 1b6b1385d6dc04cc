"""Stored statistics: what stays of the training data, collected in one pass (METHOD §4).

All of it lives in the augmented Gram matrix M = [X Y]ᵀ[X Y]; sums of M add up over shards and are
downdated by a deletion. Each step rounds, so a bound on the error of M in the spectral norm travels
along: with it, every bound of the exact tier speaks about the training data, not only about
what float64 made of them.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InvalidOptionError, InvalidTensorError, StatisticsMismatchError
from core.factorisation import factorise
from core.problem import Ridge, SampleSet, require_matrix, require_shape
from core.products import rows_times
from core.rounding import UNIT_ROUND_OFF, gamma, upward
from core.statistics import factor as factors
from core.statistics.factor import JointGram, StoredFactor

# Larger deletions, as a share of d, cost less by a factorisation than by updating inverses.
_SMALL_DELETION = 0.25
# Sums over blocks round as often as a block has rows, plus once a block: near √n at its best. With
# fewer rows than columns, adding up the blocks would take longer than the products.
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
        factor: What makes small deletions fast; no result depends on it. `prepare` builds it.
    """

    gram: Tensor
    cross: Tensor
    target_gram: Tensor
    n_samples: int
    round_off: float
    factor: StoredFactor | None = None

    def __post_init__(self) -> None:
        width = self.gram.shape[0] if self.gram.ndim else None
        require_matrix("gram", self.gram, width, width)
        require_matrix("cross", self.cross, width)
        outputs = self.cross.shape[1]
        require_matrix("target_gram", self.target_gram, outputs, outputs)
        if self.n_samples < 1:
            raise InvalidOptionError(f"n_samples: expected at least 1, got {self.n_samples}")
        if not _is_round_off(self.round_off):
            raise InvalidOptionError(f"round_off: expected a number >= 0, got {self.round_off}")
        if self.factor is not None:
            self.factor.require_fit(*self.cross.shape)

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

    def training_gradient_and_change(
        self, weights: Tensor, directions: Tensor, ridge: Ridge
    ) -> tuple[Tensor, Tensor]:
        """Return ∇L(W; D) and how it changes along directions, in one pass over G.

        Args:
            weights: W, shape (d, C), float64.
            directions: Rows v, shape (m, d), float64.
            ridge: The L2 term.

        Returns:
            `training_gradient`, shape (d, C), and the rows Hv, shape (m, d), float64.

        Raises:
            InvalidTensorError: `weights` does not fit the statistics.
        """
        self._require_weights(weights)
        shift = ridge.shift(self.n_samples)
        # G is symmetric.
        products = rows_times(self.gram, weights.T, directions)
        gradient = products[: self.num_outputs].T.sub_(self.cross).add_(weights, alpha=shift)
        return gradient, products[self.num_outputs :].add_(directions, alpha=shift)

    def evaluation_round_off(self, weights: Tensor, ridge: Ridge) -> float:
        r"""Return what one rounding of each term of the training gradient can amount to.

        No computation of the gradient in float64 can be expected to come nearer to 0 than that.

        Args:
            weights: W, shape (d, C), float64.
            ridge: The L2 term.

        Returns:
            A number near u·‖|G||W| + s|W| + |B|‖_F, from above, u being half an ulp.

        Raises:
            InvalidTensorError: `weights` does not fit the statistics.
        """
        self._require_weights(weights)
        return UNIT_ROUND_OFF * self._magnitude(weights, ridge)

    def training_gradient_round_off(
        self, weights: Tensor, ridge: Ridge, evaluation: float | None = None
    ) -> float:
        r"""Bound how far `training_gradient` may be from that of the exact samples.

        Evaluating GW + sW − B rounds each term at most d+3 times (s = λn once), which gives
        γ_{d+3}(|G||W| + s|W| + |B|). The exact Gram matrix is positive semidefinite, so by
        Cauchy–Schwarz |Ĝ_ij| ≤ √(Ĝ_ii + ρ)√(Ĝ_jj + ρ) + ρ, which bounds |Ĝ||W| in O(dC) without
        reading Ĝ. The stored matrices are off by E = M̂ − M, which changes
        the gradient by the first d rows of E·[W; −I], at most ‖E‖₂·√(‖W‖²_F + C).

        Args:
            weights: W, shape (d, C), float64, the exact value of what is stored.
            ridge: The L2 term.
            evaluation: `evaluation_round_off(weights, ridge)`, if it has been computed before.

        Returns:
            A number >= the Frobenius norm of the difference.

        Raises:
            InvalidTensorError: `weights` does not fit the statistics.
        """
        if evaluation is None:
            evaluation = self.evaluation_round_off(weights, ridge)
        # The unit is a power of 2, so that the quotient is the magnitude itself.
        evaluated = gamma(self.num_features + 3) * (evaluation / UNIT_ROUND_OFF)
        reach = math.sqrt(float(weights.square().sum()) + self.num_outputs)
        return upward(evaluated + self.round_off * reach)

    def retain_loss(self, weights: Tensor, ridge: Ridge, gradient: Tensor | None = None) -> float:
        """Return L(W; D) of these samples with the ridge, in sum form, exact but for round-off.

        ½(tr WᵀGW − 2 tr WᵀB + tr YᵀY) + (shift(n)/2)‖W‖²_F. After a downdate the samples are the
        retain set.

        Args:
            weights: W, shape (d, C), float64.
            ridge: The L2 term.
            gradient: ∇L(W; D), if it has been computed before.

        Returns:
            A number >= 0.

        Raises:
            InvalidTensorError: `weights` does not fit the statistics.
        """
        self._require_weights(weights)
        # GW + sW = ∇L + B, so that twice the loss is tr Wᵀ(∇L − B) + tr YᵀY.
        if gradient is None:
            gradient = self.training_gradient(weights, ridge)
        inner = torch.sub(gradient, self.cross).mul_(weights)
        twice = float(inner.sum()) + float(self.target_gram.trace())
        penalty = ridge.shift(self.n_samples) * float(weights.square().sum())
        # A perfect fit cancels to round-off of either sign; ‖XW − Y‖² itself is never negative.
        return 0.5 * max(twice, penalty)

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
        rest = _without(self, forget)
        if rest.factor is None:
            rest._require_possible()  # noqa: SLF001 - its own class
        return rest

    def prepare(self, ridge: Ridge) -> "StoredStatistics":
        """Return the same statistics with a factor, which makes the next small deletions fast.

        Args:
            ridge: The L2 term of the model.

        Returns:
            New statistics that share the sums; without a factor where float64 has none.
        """
        factor = factors.build(self._joint(), ridge.shift(self.n_samples))
        return dataclasses.replace(self, factor=factor)

    def with_stored_factor(
        self, inverse: Tensor, shift: float, joint_inverse: Tensor
    ) -> "StoredStatistics":
        """Return the same statistics with a factor that was stored beside them.

        Args:
            inverse: `StoredFactor.inverse`, shape (d, d), float64; nothing but its shape matters.
            shift: `StoredFactor.shift`.
            joint_inverse: `StoredFactor.joint_inverse`, shape (d + C, d + C), float64; as above.

        Returns:
            New statistics; without a factor where a Cholesky factorisation cannot show that they
            are a data set's.

        Raises:
            InvalidTensorError: A shape, dtype or value does not fit.
            InvalidOptionError: The shift is out of range.
        """
        factor = factors.restore(self._joint(), inverse, shift, joint_inverse)
        return dataclasses.replace(self, factor=factor)

    def _gram_times(self, weights: Tensor) -> Tensor:
        # G is symmetric, and WᵀG takes half the time of GW: W has few columns.
        return rows_times(self.gram, weights.T).T

    def _magnitude(self, weights: Tensor, ridge: Ridge) -> float:
        # At least ‖|G||W| + s|W| + |B|‖_F: see `training_gradient_round_off`.
        size = _norm(weights)
        scales = self.gram.diagonal().clamp_min(0.0).add_(self.round_off).sqrt_()
        products = _norm(scales) * _norm(scales @ weights.abs())
        products += self.round_off * self.num_features * size
        return products + _norm(self.cross) + ridge.shift(self.n_samples) * size

    def _joint(self) -> JointGram:
        return JointGram(self.gram, self.cross, self.target_gram, self.round_off)

    def _require_possible(self) -> None:
        # A factorisation, not eigenvalues, which are ten times dearer.
        joint = self._joint()
        tolerance = joint.tolerance()
        if factorise(joint.shifted(tolerance)).failed_minor > 0:
            raise StatisticsMismatchError(
                "forget set: without it the statistics would have an eigenvalue below "
                f"-{0.5 * tolerance:.3g}, which those of no data set have: samples were never in "
                "the training set, or were removed before, or the statistics are less precise "
                "than they declare"
            )

    def _require_weights(self, weights: Tensor) -> None:
        # No look at the numbers: `LinearModel` had one, and a gradient of NaN is never small.
        if weights.dtype != torch.float64 or weights.shape != self.cross.shape:
            raise InvalidTensorError(
                f"weights: expected float64 of shape {tuple(self.cross.shape)}, "
                f"got {weights.dtype} of {tuple(weights.shape)}"
            )

    def _require_samples(self, samples: SampleSet) -> None:
        # `SampleSet` had a look at the numbers.
        require_shape("features", samples.features, columns=self.num_features)
        require_shape("targets", samples.targets, columns=self.num_outputs)

    @classmethod
    def _computed(
        cls, joint: JointGram, n_samples: int, factor: StoredFactor | None
    ) -> "StoredStatistics":
        # What statistics that were checked led to. The Frobenius norm in its round-off had a look
        # at every number: it is finite only if all of them are.
        if not _is_round_off(joint.round_off):
            return cls(joint.gram, joint.cross, joint.target_gram, n_samples, joint.round_off)
        result = object.__new__(cls)
        for name, value in (
            ("gram", joint.gram),
            ("cross", joint.cross),
            ("target_gram", joint.target_gram),
            ("n_samples", n_samples),
            ("round_off", joint.round_off),
            ("factor", factor),
        ):
            object.__setattr__(result, name, value)
        return result


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
    # A sum is off by at most u times itself; the spectral norm is below the Frobenius norm.
    rounded = UNIT_ROUND_OFF * _frobenius(gram, cross, target_gram)
    round_off = upward(first.round_off + second.round_off + rounded)
    count = first.n_samples + sign * second.n_samples
    return StoredStatistics(gram, cross, target_gram, count, round_off)


def _without(whole: StoredStatistics, forget: SampleSet) -> StoredStatistics:
    before = whole._joint()  # noqa: SLF001 - its own class
    after = _joint_without_one(before, forget) if len(forget) == 1 else None
    if after is None:
        after = _combine(whole, _sum_of(forget), sign=-1)._joint()  # noqa: SLF001
    factor = None
    if whole.factor is not None and is_small(len(forget), whole.num_features):
        factor = whole.factor.downdate(before, after, forget.features, forget.targets)
    count = whole.n_samples - len(forget)
    return StoredStatistics._computed(after, count, factor)  # noqa: SLF001 - its own module


def _joint_without_one(whole: JointGram, forget: SampleSet) -> JointGram:
    # One product takes half the time of a matrix product of one row. Each entry rounds once, and so
    # does its difference, as in `_combine`; torch.addr is faster still, but not symmetric.
    x, y = forget.features[0], forget.targets[0]
    gram = _minus_outer(whole.gram, x, x)
    cross = torch.addr(whole.cross, x, y, alpha=-1)
    target_gram = _minus_outer(whole.target_gram, y, y)
    size = float(torch.dot(x, x)) + float(torch.dot(y, y))
    rounded = UNIT_ROUND_OFF * _frobenius(gram, cross, target_gram) + gamma(1) * size
    round_off = upward(whole.round_off + upward(rounded))
    return JointGram(gram, cross, target_gram, round_off)


def _minus_outer(matrix: Tensor, first: Tensor, second: Tensor) -> Tensor:
    product = torch.outer(first, second)
    return torch.sub(matrix, product, out=product)


def is_small(n_forget: int, num_features: int) -> bool:
    """Tell whether a deletion is faster by updating a factor than by factorising anew.

    Args:
        n_forget: n_f.
        num_features: d.

    Returns:
        Whether n_f ≤ d/4, or n_f = 1.
    """
    return n_forget <= max(1.0, _SMALL_DELETION * num_features)


def _sum_of(samples: SampleSet) -> StoredStatistics:
    blocks = (_sum_of_block(*block) for block in _blocks(samples))
    total = next(blocks)
    for block in blocks:
        total = merge(total, block)
    return total


def _blocks(samples: SampleSet) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(_BLOCK_ROWS, samples.features.shape[1])
    yield from zip(
        torch.split(samples.features, size), torch.split(samples.targets, size), strict=True
    )


def _sum_of_block(features: Tensor, targets: Tensor) -> StoredStatistics:
    rows = features.shape[0]
    size = float(features.square().sum()) + float(targets.square().sum())
    return StoredStatistics(
        _square(features),
        features.T @ targets,
        _square(targets),
        rows,
        # |M̂ − M| ≤ γ_{rows+1}|A|ᵀ|A| entry by entry, and ‖|A|ᵀ|A|‖₂ ≤ ‖A‖²_F for A = [X Y].
        upward(gamma(rows + 1) * size),
    )


def _square(matrix: Tensor) -> Tensor:
    # Exactly symmetric, as what a factor proves about statistics needs them to be; the mean of two
    # products of the same numbers rounds once more.
    product = matrix.T @ matrix
    return product.add_(product.T.clone()).mul_(0.5)


def _is_round_off(value: float) -> bool:
    return 0 <= value < math.inf


def _frobenius(gram: Tensor, cross: Tensor, target_gram: Tensor) -> float:
    # The cross block stands in M twice.
    return math.sqrt(_squares(gram) + 2.0 * _squares(cross) + _squares(target_gram))


def _squares(matrix: Tensor) -> float:
    # A dot product takes a third of the time of torch's norm.
    flat = matrix.reshape(-1)
    return float(torch.dot(flat, flat))


def _norm(matrix: Tensor) -> float:
    return math.sqrt(_squares(matrix))


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
