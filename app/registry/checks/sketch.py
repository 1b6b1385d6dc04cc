"""A stored sketch of a network: can a training set have it, and these weights?

It is that of `core.linearised.sketch`: G·p of G = ΣJᵀJ along random directions p, and all p·G·p'.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from app.errors import InvalidInputError
from app.registry import tensors
from app.registry.checks import _numbers
from app.registry.schemas import Manifest
from app.registry.tensors import AnyArray, Array
from core.linearised import probes
from core.linearised.probes import FEWEST_ERROR_PROBES, SEED_LIMIT
from core.rounding import PRODUCT_ROUND_OFF

_BOUND_SLACK = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """A checked sketch.

    Attributes:
        stored: Tensors by their names, as they were sent.
    """

    stored: Mapping[str, AnyArray]

    def __getitem__(self, name: str) -> Array:
        return self.stored[name].astype(np.float64, copy=False)

    def number(self, name: str) -> float:
        """Return a tensor of one real number as one."""
        return float(self.stored[name][0])

    def count(self, name: str) -> int:
        """Return a tensor of one integer as one."""
        return int(self.stored[name][0])

    @property
    def rank(self) -> int:
        """Return ℓ, how many of the m directions the estimate is made of; the rest are probes."""
        return len(self.stored["sketch"]) - self.count("error_probes")

    def to_bytes(self) -> bytes:
        """Return the canonical file."""
        return tensors.write(self.stored)

    def training_gradient_norm(self, weights: Array, manifest: Manifest) -> float:
        """Return a bound on ‖∇L(w; D)‖ at the anchor, which w has to be.

        What the targets add up to is not stored: the gradient is held against √(n·tr G), its size
        where residuals are about 1.

        Raises:
            InvalidInputError: The anchor is not w, or the gradient is beyond the tolerance.
        """
        _numbers.require_anchor(self["anchor"], weights)
        return _numbers.norm_at_anchor(
            "data_gradient",
            self["data_gradient"],
            weights,
            manifest,
            uncertainty=self.number("gradient_uncertainty"),
            scale=("√(n·trace)", (manifest.n_samples * self.number("trace")) ** 0.5),
            remedy="Send the sketch of the training set of these weights, its gradient without the"
            " ridge; check the ridge convention and strength, train to convergence, or declare a"
            " larger tolerance.",
        )


def read(content: bytes, manifest: Manifest) -> Statistics:
    """Return a sketch that some training set of the manifest's can have.

    Raises:
        InvalidInputError: No such set has it; the message names the figure.
    """
    d = manifest.num_features
    found = _numbers.read(
        content,
        {
            "sketch": (None, d),
            "core": (None, None),
            "anchor": (d, 1),
            "data_gradient": (d, 1),
            "gradient_uncertainty": (1,),
            "trace": (1,),
            "seed": (1,),
            "error_probes": (1,),
            "n_samples": (1,),
            "basis": (None, d),
        },
        optional={"basis"},
        counts={"seed", "error_probes", "n_samples"},
        singles={"basis"},
    )
    statistics = Statistics(found)
    _numbers.require_count(statistics.count("n_samples"), manifest)
    _require_directions(statistics)
    _require_numbers(statistics, manifest)
    core = statistics["core"]
    _numbers.require_symmetric("core", core, manifest.n_samples * manifest.num_outputs)
    _require_semidefinite(core)
    _require_the_seeds_directions(statistics)
    return statistics


def _require_directions(statistics: Statistics) -> None:
    """Check that there are directions of both kinds, and everything is of all of them."""
    size = len(statistics.stored["sketch"])
    probes_given, seed = statistics.count("error_probes"), statistics.count("seed")
    if not FEWEST_ERROR_PROBES <= probes_given < size:
        raise InvalidInputError(
            f"statistics.error_probes: {probes_given} of {size} directions; expected at least"
            f" {FEWEST_ERROR_PROBES}, and at least one direction beside them",
            field="statistics.error_probes",
            remedy="Collect a sketch of a larger rank, or with more probes"
            " (`core.linearised.sketch.collect_sketch`).",
        )
    if not 0 <= seed < SEED_LIMIT:
        raise InvalidInputError(
            f"statistics.seed: {seed} is outside 0 to 2^53",
            field="statistics.seed",
            remedy="Draw it with `secrets.randbits(53)`, and collect the sketch with it.",
        )
    tensors.require_shape(
        statistics.stored["core"],
        (size, size),
        field="statistics.core",
        remedy="It has a row and a column for each row of `sketch`.",
    )
    if "basis" in statistics.stored:
        tensors.require_shape(
            statistics.stored["basis"],
            (statistics.rank, None),
            field="statistics.basis",
            remedy="It has a row for each row of `sketch` that is no error probe's.",
        )


def _require_numbers(statistics: Statistics, manifest: Manifest) -> None:
    """Check that 0 < tr G ≤ n·C·R_J², and that no uncertainty is negative."""
    trace, most = statistics.number("trace"), _largest_trace(manifest)
    if not 0 < trace <= most * (1 + _BOUND_SLACK):
        raise InvalidInputError(
            f"statistics.trace: expected a positive number up to n·C·R_J² = {most:.6g}, got"
            f" {trace:.6g}",
            field="statistics.trace",
            remedy="Declare the feature_norm_bound R_J that ‖J(x)‖₂ of all training samples"
            " satisfies, and collect the sketch over them.",
        )
    if (uncertainty := statistics.number("gradient_uncertainty")) < 0:
        raise InvalidInputError(
            f"statistics.gradient_uncertainty: expected a number from 0, got {uncertainty:.6g}",
            field="statistics.gradient_uncertainty",
            remedy="Send what was collected: a bound on the rounding of the gradient's sum.",
        )


def _largest_trace(manifest: Manifest) -> float:
    return manifest.n_samples * manifest.num_outputs * manifest.feature_norm_bound**2


def _require_semidefinite(core: Array) -> None:
    """Check PGPᵀ ⪰ 0, as that of any data set is, to the rounding of products with a Jacobian."""
    tolerance = PRODUCT_ROUND_OFF * max(float(np.trace(core)), 0.0)
    if not _numbers.has_no_eigenvalue_below(core, tolerance):
        raise InvalidInputError(
            "statistics.core: it has a negative eigenvalue below round-off"
            f" (−{tolerance:.6g}); no data set has this sketch",
            field="statistics.core",
            remedy="Collect sketch and core over the same samples, in float64.",
        )


def _require_the_seeds_directions(statistics: Statistics) -> None:
    """Check that what is stored was taken along the directions that the seed (or basis) gives.

    A bound that rests on others would be none.
    """
    sketch, core = statistics["sketch"], statistics["core"]
    norms = np.linalg.norm(sketch, axis=1)
    for column, direction in enumerate(_directions(statistics)):
        allowed = PRODUCT_ROUND_OFF * norms * float(np.linalg.norm(direction))
        differs = ~(np.abs(sketch @ direction - core[:, column]) <= allowed)
        if differs.any():
            row = int(np.argmax(differs))
            raise InvalidInputError(
                f"statistics.core: {core[row, column]:.6g} at index [{row}, {column}], where row"
                f" {row} of the sketch along direction {column} gives"
                f" {float(sketch[row] @ direction):.6g}",
                field="statistics.core",
                remedy="Send the seed (and the basis) that this very sketch was collected with.",
            )


def _directions(statistics: Statistics) -> Iterator[Array]:
    rank, (size, width) = statistics.rank, statistics.stored["sketch"].shape
    seed = statistics.count("seed")
    for row in range(size):
        if row >= rank:
            yield probes.gaussian_rows(seed, row - rank, 1, width)[0]
        elif "basis" in statistics.stored:
            yield statistics.stored["basis"][row].astype(np.float64)
        else:
            yield probes.sign_rows(seed, row, 1, width)[0]
