"""A sketch of the Gauss–Newton matrix G = Σ J(x)ᵀJ(x) for networks whose D×D numbers do not fit.

Stored is G·p along random directions p, and the small matrix of all p·G·p'. Both are linear in G,
so that they add up over shards and a deletion subtracts exactly what the forget set had put in:
what is left is the sketch that the retain set alone would have given, in any order and batching.

Some of the directions, Ω, span the estimate (Nyström): T = GΩ(ΩᵀGΩ)⁻¹ΩᵀG. The others, Ψ, are kept
from it, and measure what it lacks: see `core.linearised.sketched_curvature`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InvalidOptionError, InvalidTensorError, StatisticsMismatchError
from core.linearised import probes
from core.linearised.linearisation import Linearisation
from core.linearised.problem import FeatureSamples
from core.problem import Ridge, require_matrix
from core.rounding import PRODUCT_ROUND_OFF

# Directions that are worked on at a time: 64, and no more than 256 MiB of them.
_MOST_DIRECTIONS = 64
_DIRECTION_FLOATS = 2**25

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True, eq=False)
class SketchStatistics:
    """What is stored of a training set; no row of it is a sample's.

    Attributes:
        sketch: Rows G·p, shape (m, D), float64: first along Ω, then along Ψ.
        core: All p·G·p', shape (m, m), float64, symmetric up to round-off.
        anchor: Weights that the gradient is of, shape (D, 1), float64.
        data_gradient: Σ J(x)ᵀ(f(x; anchor) − y), shape (D, 1), float64, without the ridge.
        gradient_uncertainty: Bound on how far `data_gradient` may be from that of the samples: the
            rounding of sums, which cancel at an optimum, and what deletions left undetermined.
        trace: tr G.
        seed: Of the random directions. A secret, as all of this is: a bound says nothing to
            somebody who chose samples by what it does not see.
        error_probes: How many of the m directions are Ψ.
        n_samples: n, at least 1.
        basis: Ω where it was chosen, shape (m − error_probes, D), float32: from public data, since
            it stays as it is for ever. None where Ω is random.
    """

    sketch: Tensor
    core: Tensor
    anchor: Tensor
    data_gradient: Tensor
    gradient_uncertainty: float
    trace: float
    seed: int
    error_probes: int
    n_samples: int
    basis: Tensor | None = None

    def __post_init__(self) -> None:
        require_matrix("sketch", self.sketch)
        count, width = self.sketch.shape
        require_matrix("core", self.core, count, count)
        require_matrix("anchor", self.anchor, width, 1)
        require_matrix("data_gradient", self.data_gradient, width, 1)
        require_error_probes(self.error_probes, count)
        _require_seed(self.seed)
        if self.n_samples < 1:
            raise InvalidOptionError(f"n_samples: expected at least 1, got {self.n_samples}")
        for name in ("gradient_uncertainty", "trace"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise InvalidOptionError(f"{name}: expected a number >= 0, got {value}")
        if self.basis is not None:
            _require_basis(self.basis, self.rank, width)

    @property
    def rank(self) -> int:
        """Return ℓ, how many directions the estimate is made of."""
        return len(self.sketch) - self.error_probes

    @property
    def num_parameters(self) -> int:
        """Return D."""
        return self.sketch.shape[1]

    def gradient(self, ridge: Ridge) -> Tensor:
        """Return ∇L at the anchor, sum form, off by at most `gradient_uncertainty`.

        Args:
            ridge: The L2 term.

        Returns:
            Shape (D, 1), float64.
        """
        return torch.add(self.data_gradient, self.anchor, alpha=ridge.shift(self.n_samples))

    def directions(self, start: int, stop: int) -> Tensor:
        """Return some of the directions p, made anew.

        Args:
            start: Number of the first; Ω comes first.
            stop: Number behind the last.

        Returns:
            Shape (stop − start, D), float64, on the sketch's device.
        """
        source = _Directions(self.seed, self.rank, self.num_parameters, self.basis)
        return source.rows(start, stop).to(self.sketch.device)

    def downdate(self, linearisation: Linearisation, forget: FeatureSamples) -> "SketchStatistics":
        """Return the sketch of the rest: these samples without the forget set.

        What is left of true members is P·G_r·Pᵀ ⪰ 0 with tr G_r ≥ 0; what breaks that was never a
        member. What passes need not have been one.

        Args:
            linearisation: f_{w_c} and J.
            forget: D_f, fewer samples than the set has.

        Returns:
            A new sketch; this one is unchanged.

        Raises:
            StatisticsMismatchError: The forget set cannot have been part of the samples.
        """
        if len(forget) >= self.n_samples:
            raise StatisticsMismatchError(
                f"forget set: {len(forget)} samples cannot leave a rest of the {self.n_samples} "
                "that the sketch was collected from"
            )
        rest = _Sums.copy_of(self)
        source = _Directions(self.seed, self.rank, self.num_parameters, self.basis)
        rest.add(linearisation, forget, source, sign=-1)
        if not rest.is_finite():
            raise StatisticsMismatchError(
                "forget set: its Jacobian or its errors overflow float64, as those of no sample do "
                "that a sketch was collected from"
            )
        tolerance = PRODUCT_ROUND_OFF * float(self.core.diagonal().max())
        lowest = float(torch.linalg.eigvalsh(rest.core)[0])
        if lowest < -tolerance or rest.trace < -PRODUCT_ROUND_OFF * self.trace:
            raise StatisticsMismatchError(
                f"forget set: without it the sketch would have the eigenvalue {lowest:.3g} and the "
                f"trace {rest.trace:.3g}, which those of no data set have: samples were never in "
                "the training set, or were removed before"
            )
        return dataclasses.replace(
            self,
            sketch=rest.sketch,
            core=rest.core,
            data_gradient=rest.data_gradient,
            gradient_uncertainty=rest.gradient_uncertainty,
            trace=max(rest.trace, 0.0),
            n_samples=self.n_samples - len(forget),
        )


def collect_sketch(
    linearisation: Linearisation,
    batches: Iterable[FeatureSamples],
    *,
    weights: Tensor,
    rank: int,
    seed: int,
    error_probes: int = 80,
    basis: Tensor | None = None,
    progress: Progress = lambda _fraction: None,
) -> SketchStatistics:
    """Collect a sketch in one pass over the training set, in (ℓ + probes)·D numbers.

    Args:
        linearisation: f_{w_c} and J.
        batches: The training set in pieces, gone through once. Directions are drawn anew for each
            piece, so that a few large ones take less time than many small ones.
        weights: w, shape (D, 1), float64, what was trained on these samples.
        rank: ℓ.
        seed: Of the random directions, 0 <= seed < 2^53; drawn by the operating system, and kept.
        error_probes: How many directions measure the error; twice as many bring a bound from about
            2.2 times the truth to 1.7 times.
        basis: Ω, shape (ℓ, D), float32, from public data (`public_basis`); None: random.
        progress: Told which share of a batch's directions is done.

    Returns:
        The sketch.

    Raises:
        InvalidOptionError: `rank`, `error_probes` or `seed` is out of range.
        InvalidTensorError: There is no batch, or something does not fit.
    """
    width = linearisation.num_parameters
    require_matrix("weights", weights, width, 1)
    if rank < 1:
        raise InvalidOptionError(f"rank: expected at least 1, got {rank}")
    require_error_probes(error_probes, rank + error_probes)
    _require_seed(seed)
    if basis is not None:
        _require_basis(basis, rank, width)
    sums = _Sums.zeros(weights, rank + error_probes)
    source = _Directions(seed, rank, width, basis)
    for batch in batches:
        sums.add(linearisation, batch, source, sign=1, progress=progress)
    if sums.n_samples == 0:
        raise InvalidTensorError("batches: there is none, so there is nothing to collect")
    return SketchStatistics(
        sums.sketch,
        sums.core,
        weights,
        sums.data_gradient,
        gradient_uncertainty=sums.gradient_uncertainty,
        trace=sums.trace,
        seed=seed,
        error_probes=error_probes,
        n_samples=sums.n_samples,
        basis=basis,
    )


def merge_sketches(first: SketchStatistics, second: SketchStatistics) -> SketchStatistics:
    """Return the sketch of two disjoint sets together.

    Args:
        first: Of one set.
        second: Of another, along the same directions and at the same anchor.

    Returns:
        A new sketch; both are unchanged.

    Raises:
        InvalidOptionError: Directions or anchors differ.
    """
    same = (
        first.seed == second.seed
        and first.error_probes == second.error_probes
        and first.sketch.shape == second.sketch.shape
        and torch.equal(first.anchor, second.anchor)
        and _same_basis(first.basis, second.basis)
    )
    if not same:
        raise InvalidOptionError(
            "sketches: expected the same seed, rank, probes, basis and anchor in both; collect "
            "every shard with the same ones"
        )
    return dataclasses.replace(
        first,
        sketch=first.sketch + second.sketch,
        core=first.core + second.core,
        data_gradient=first.data_gradient + second.data_gradient,
        gradient_uncertainty=first.gradient_uncertainty + second.gradient_uncertainty,
        trace=first.trace + second.trace,
        n_samples=first.n_samples + second.n_samples,
    )


def public_basis(linearisation: Linearisation, public: Tensor, *, rank: int, seed: int) -> Tensor:
    """Return directions along which public data has most curvature.

    If the training set resembles them, a sketch along these says as much as a random one of two
    to three times its rank. They never change, so they must not depend on the training set.

    Args:
        linearisation: f_{w_c} and J.
        public: Features of public samples, shape (n, ...), float64.
        rank: ℓ.
        seed: Of the random directions that it starts from.

    Returns:
        Shape (ℓ, D), float32, nearly orthonormal rows.

    Raises:
        InvalidOptionError: `rank` exceeds n·C: there are no more directions with curvature; or
            `seed` is out of range.
    """
    most = min(len(public) * linearisation.num_outputs, linearisation.num_parameters)
    if not 1 <= rank <= most:
        raise InvalidOptionError(
            f"rank: expected 1 to {most}, as many as the public samples have rows, got {rank}"
        )
    _require_seed(seed)
    source = _Directions(seed, rank, linearisation.num_parameters, None)
    image = torch.empty(rank, linearisation.num_parameters, dtype=torch.float64)
    for start, stop in _chunks(rank, linearisation.num_parameters):
        rows = source.rows(start, stop).to(public.device)
        image[start:stop] = linearisation.gauss_newton(public, rows).cpu()
    orthonormal: Tensor = torch.linalg.qr(image.T).Q
    return orthonormal.T.to(torch.float32).contiguous()


def require_error_probes(error_probes: int, directions: int) -> None:
    """Check that some directions are left for the estimate, and enough for its error.

    Args:
        error_probes: How many measure the error.
        directions: m, how many there are in all.

    Raises:
        InvalidOptionError: They are out of range.
    """
    if not probes.FEWEST_ERROR_PROBES <= error_probes < directions:
        raise InvalidOptionError(
            f"error_probes: expected at least {probes.FEWEST_ERROR_PROBES} and fewer than the "
            f"{directions} directions, got {error_probes}"
        )


@dataclass(slots=True, eq=False)
class _Sums:
    """Everything that adds up over samples, while it does."""

    sketch: Tensor
    core: Tensor
    anchor: Tensor
    data_gradient: Tensor
    gradient_uncertainty: float
    trace: float
    n_samples: int

    @classmethod
    def zeros(cls, anchor: Tensor, count: int) -> "_Sums":
        width = len(anchor)
        return cls(
            anchor.new_zeros(count, width),
            anchor.new_zeros(count, count),
            anchor,
            torch.zeros_like(anchor),
            0.0,
            0.0,
            0,
        )

    @classmethod
    def copy_of(cls, whole: SketchStatistics) -> "_Sums":
        return cls(
            whole.sketch.clone(),
            whole.core.clone(),
            whole.anchor,
            whole.data_gradient.clone(),
            whole.gradient_uncertainty,
            whole.trace,
            whole.n_samples,
        )

    def is_finite(self) -> bool:
        # A sum is finite only if every entry is.
        sums = (self.sketch.sum(), self.core.sum(), self.data_gradient.sum())
        return all(map(math.isfinite, (*map(float, sums), self.gradient_uncertainty, self.trace)))

    def add(
        self,
        linearisation: Linearisation,
        samples: FeatureSamples,
        source: "_Directions",
        sign: int,
        progress: Progress = lambda _fraction: None,
    ) -> None:
        features, count = samples.features, len(self.sketch)
        images = features.new_empty(count, len(features) * linearisation.num_outputs)
        # Of few samples, the rows of J take no more than the directions that are worked on.
        few = images.shape[1] <= _most_directions(source.width)
        rows = linearisation.rows(features) if few else None
        for start, stop in _chunks(count, source.width):
            directions, sums = source.rows(start, stop).to(features.device), self.sketch[start:stop]
            if rows is not None:
                torch.mm(directions, rows.T, out=images[start:stop])
                sums.addmm_(images[start:stop], rows, alpha=sign)
            else:
                pushed = linearisation.jvp(features, directions)
                images[start:stop] = pushed.flatten(1)
                linearisation.vjp(features, pushed.mul_(sign), sums)
            progress(stop / count)
        self.core.addmm_(images, images.T, alpha=sign)
        errors = linearisation.centre_outputs(features).sub_(samples.targets)
        errors.add_(linearisation.jvp(features, self.anchor.T)[0])
        self.data_gradient.add_(linearisation.vjp(features, errors[None]).T, alpha=sign)
        squares = linearisation.blocks(features).diagonal(dim1=1, dim2=2).sum(dim=1)
        # Adding as subtracting rounds, relative to each sample's share.
        shares = squares.sqrt() * torch.linalg.vector_norm(errors, dim=1)
        self.gradient_uncertainty += PRODUCT_ROUND_OFF * float(shares.sum())
        self.trace += sign * float(squares.sum())
        self.n_samples += sign * len(samples)


@dataclass(frozen=True, slots=True, eq=False)
class _Directions:
    """P: first Ω, of a basis or random, then Ψ."""

    seed: int
    rank: int
    width: int
    basis: Tensor | None

    def rows(self, start: int, stop: int) -> Tensor:
        middle = min(max(start, self.rank), stop)
        parts = []
        if start < middle:
            parts.append(self._range(start, middle))
        if middle < stop:
            first = middle - self.rank
            drawn = probes.gaussian_rows(self.seed, first, stop - middle, self.width)
            parts.append(torch.from_numpy(drawn).contiguous())
        return torch.cat(parts)

    def _range(self, start: int, stop: int) -> Tensor:
        if self.basis is not None:
            return self.basis[start:stop].cpu().to(torch.float64)
        return torch.from_numpy(probes.sign_rows(self.seed, start, stop - start, self.width))


def _most_directions(width: int) -> int:
    return max(1, min(_MOST_DIRECTIONS, _DIRECTION_FLOATS // width))


def _chunks(count: int, width: int) -> Iterator[tuple[int, int]]:
    size = _most_directions(width)
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _same_basis(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def _require_seed(seed: int) -> None:
    if not 0 <= seed < probes.SEED_LIMIT:
        raise InvalidOptionError(f"seed: expected a number in [0, 2^53), got {seed}")


def _require_basis(basis: Tensor, rank: int, width: int) -> None:
    if basis.dtype != torch.float32 or tuple(basis.shape) != (rank, width):
        raise InvalidTensorError(
            f"basis: expected float32 of shape ({rank}, {width}), got {basis.dtype} of "
            f"{tuple(basis.shape)}"
        )
    if not math.isfinite(float(basis.sum())):
        raise InvalidTensorError("basis: contains NaN or infinite values")
