"""Stored statistics of the logistic loss: can a training set have them, and these weights?

They are those of `core.statistics.logistic`, at the weights that they were collected at (the
anchor): per output c the Hessian H_c = Σσ'(x·w_c)xxᵀ, and G = XᵀX, Σ(σ−y)x, Σx, Σy, n.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from app.errors import InvalidInputError
from app.registry import tensors
from app.registry.checks import _numbers
from app.registry.schemas import Manifest
from app.registry.tensors import AnyArray, Array
from core.rounding import UNIT_ROUND_OFF, gamma, upward

_REQUIRED = (
    "anchor",
    "hessians",
    "gram",
    "gradient",
    "feature_sums",
    "target_sums",
    "n_samples",
)
# What moves of the anchor left: nothing has moved yet.
_MOVES = ("drift", "residual", "n_drifted")
_OPTIONAL = frozenset(
    {"largest_norm", "hessian_round_off", "gram_round_off", "gradient_round_off", *_MOVES}
)

_NORM_SLACK = 1e-9
# The collector's own figure is rounded upward.
_BOUND_SLACK = 1e-5
_LARGEST_CURVATURE = 0.25  # σ' ≤ ¼
# Two sigmoids and their product, in units in the last place; as `core.losses.logistic` has it.
_SIGMOID_ROUND_OFF = 40 * UNIT_ROUND_OFF


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Checked statistics: what was left out is at the worst that float64 sums can give.

    Attributes:
        stored: Tensors by their names, all of them.
        n_samples: n.
    """

    stored: Mapping[str, AnyArray]
    n_samples: int

    def __getitem__(self, name: str) -> Array:
        return self.stored[name].astype(np.float64)

    def number(self, name: str) -> float:
        """Return a tensor of one number as one."""
        return float(self.stored[name][0])

    def to_bytes(self) -> bytes:
        """Return the canonical file."""
        return tensors.write(self.stored)

    def training_gradient_norm(self, weights: Array, manifest: Manifest) -> float:
        """Return a bound on ‖∇L(W; D)‖_F = ‖Σ(σ−y)x + shift·W‖_F at the anchor, which W has to be.

        Raises:
            InvalidInputError: The anchor is not W, or the gradient is beyond the tolerance.
        """
        _numbers.require_anchor(self["anchor"], weights)
        return _numbers.norm_at_anchor(
            "gradient",
            self["gradient"],
            weights,
            manifest,
            uncertainty=self.number("gradient_round_off"),
            scale=("n·R_x", manifest.n_samples * manifest.feature_norm_bound),
            remedy="Send the statistics of the training set of these weights, without the ridge"
            " and, where the objective was perturbed, with b; check the ridge convention and"
            " strength, train to convergence, or declare a larger tolerance.",
        )


def read(content: bytes, manifest: Manifest) -> Statistics:
    """Return statistics that some training set of the manifest's can have.

    Raises:
        InvalidInputError: No such set has them; the message names the figure.
    """
    d, num_outputs = manifest.num_features, manifest.num_outputs
    shapes: dict[str, _numbers.Shape] = {
        "anchor": (d, num_outputs),
        "hessians": (num_outputs, d, d),
        "gram": (d, d),
        "gradient": (d, num_outputs),
        "feature_sums": (d,),
        "target_sums": (num_outputs,),
        "drift": (num_outputs,),
        "residual": (num_outputs,),
    }
    found = _numbers.read(
        content,
        {name: shapes.get(name, (1,)) for name in (*_REQUIRED, *sorted(_OPTIONAL))},
        optional=_OPTIONAL,
        counts={"n_samples", "n_drifted"},
    )
    _require_sizes(found, manifest)
    worst = _worst_case(found, manifest)
    statistics = Statistics({**worst, **found}, manifest.n_samples)
    _require_unmoved(statistics)
    _require_symmetric(statistics)
    _numbers.require_norms(statistics["gram"], manifest)
    _require_norm_of_samples(statistics, manifest)
    _require_target_sums(statistics)
    _require_feature_sums(statistics, worst)
    _require_curvature(statistics, worst)
    return statistics


def _require_sizes(found: Mapping[str, AnyArray], manifest: Manifest) -> None:
    with np.errstate(over="ignore"):
        gram_trace = float(np.trace(found["gram"]))
        hessian_traces = np.trace(found["hessians"], axis1=1, axis2=2)
    _numbers.require_finite_trace(gram_trace, "XᵀX = Σ‖x‖²")
    _numbers.require_finite_trace(float(np.abs(hessian_traces).max()), "Σσ'(x·w)xxᵀ")
    _numbers.require_count(int(found["n_samples"][0]), manifest)
    sizes = {
        "hessian_round_off": float(hessian_traces.max()),
        "gram_round_off": gram_trace,
        # Σ‖(σ−y)x‖_F ≤ Σ√C‖x‖.
        "gradient_round_off": manifest.n_samples
        * manifest.feature_norm_bound
        * manifest.num_outputs**0.5,
    }
    for name, size in sizes.items():
        if name in found:
            _numbers.require_round_off(name, float(found[name][0]), max(size, 0.0))


def _worst_case(found: Mapping[str, AnyArray], manifest: Manifest) -> dict[str, AnyArray]:
    """Return what may be left out: bounds on the round-off of float64 sums, and no moves.

    A margin is off by at most ζ = γ_{d+1}R_x‖w_c‖, which changes σ' by at most a factor of e^ζ and
    σ by ¼ζ; a 1 − σ that was computed so by some units of 1. Sums of n products add γ_{n+3}. All in
    norms: ‖|X|ᵀ|X|‖₂ ≤ trace(G), and Σ‖x‖ ≤ nR_x (`core.losses.logistic` has it by samples).
    """
    n, bound = manifest.n_samples, manifest.feature_norm_bound
    gram_trace = max(float(np.trace(found["gram"])), 0.0)
    hessian_traces = np.maximum(np.trace(found["hessians"], axis1=1, axis2=2), 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        reach = gamma(manifest.num_features + 1) * bound * np.linalg.norm(found["anchor"], axis=0)
        relative = np.expm1(reach) + _SIGMOID_ROUND_OFF * np.exp(reach) + gamma(n + 3)
        hessian = float((relative * hessian_traces).max()) + _SIGMOID_ROUND_OFF * gram_trace
        entries = n * bound * (0.25 * reach + _SIGMOID_ROUND_OFF + gamma(n + 3))
        # The last rounding is that of adding b.
        gradient = float(np.linalg.norm(entries)) + UNIT_ROUND_OFF * float(
            np.linalg.norm(found["gradient"])
        )
    outputs = manifest.num_outputs
    return {
        "largest_norm": np.array([bound]),
        "hessian_round_off": _finite("anchor", upward(hessian)),
        "gram_round_off": np.array([upward(gamma(n + 1) * gram_trace)]),
        "gradient_round_off": _finite("gradient", upward(gradient)),
        "drift": np.zeros(outputs),
        "residual": np.zeros(outputs),
        "n_drifted": np.zeros(1, np.int64),
    }


def _finite(name: str, round_off: float) -> Array:
    if not np.isfinite(round_off):
        raise InvalidInputError(
            f"statistics.{name}: its numbers are so large that nothing is known of their rounding",
            field=f"statistics.{name}",
            remedy="Scale the features, or train with a stronger ridge.",
        )
    return np.array([round_off])


def _require_unmoved(statistics: Statistics) -> None:
    for name in _MOVES:
        moved = statistics.stored[name]
        if np.any(moved != 0):
            raise InvalidInputError(
                f"statistics.{name}: expected zeros, got up to {np.abs(moved).max():.6g}",
                field=f"statistics.{name}",
                remedy="Collect the statistics anew at the weights that you register, or leave the"
                " tensor out: no deletion has moved them yet.",
            )


def _require_symmetric(statistics: Statistics) -> None:
    _numbers.require_symmetric("gram", statistics["gram"], statistics.n_samples)
    for hessian in statistics["hessians"]:
        _numbers.require_symmetric("hessians", hessian, statistics.n_samples + 2)


def _require_norm_of_samples(statistics: Statistics, manifest: Manifest) -> None:
    """Check that R = `largest_norm` satisfies Σ‖x‖² ≤ nR² and R ≤ R_x."""
    found, n = statistics.number("largest_norm"), statistics.n_samples
    least = (max(float(np.trace(statistics["gram"])), 0.0) / n) ** 0.5
    largest = manifest.feature_norm_bound
    if not least * (1 - _NORM_SLACK) <= found <= largest * (1 + _BOUND_SLACK):
        raise InvalidInputError(
            f"statistics.largest_norm: expected a number between √(trace(G)/n) = {least:.6g} and"
            f" the feature_norm_bound {largest:.6g}, got {found:.6g}",
            field="statistics.largest_norm",
            remedy="Send the largest ‖x‖₂ of the training set, or leave it out, and declare the"
            " feature_norm_bound that the training features satisfy.",
        )


def _require_target_sums(statistics: Statistics) -> None:
    sums, n = statistics["target_sums"], statistics.n_samples
    possible = (sums >= 0) & (sums <= n) & (sums == np.floor(sums))
    if not possible.all():
        output = int(np.argmin(possible))
        raise InvalidInputError(
            f"statistics.target_sums: output {output} has {sums[output]:.17g}; expected how many of"
            f" the {n} samples have the target 1",
            field="statistics.target_sums",
            remedy="Train on targets 0 and 1, and sum each column.",
        )
    if len(sums) > 1 and sums.sum() != n:
        raise InvalidInputError(
            f"statistics.target_sums: {sums.sum():.17g} samples in {len(sums)} classes, but there"
            f" are {n}; one-hot rows have one 1 each",
            field="statistics.target_sums",
            remedy="Train one-vs-rest on one-hot rows.",
        )


def _require_feature_sums(statistics: Statistics, worst: Mapping[str, AnyArray]) -> None:
    """Check [X 1]ᵀ[X 1] = [[G, s], [sᵀ, n]] ⪰ 0 to round-off, as any data set's is; so G ⪰ 0."""
    sums, n = statistics["feature_sums"], statistics.n_samples
    augmented = np.block([[statistics["gram"], sums[:, None]], [sums[None, :], np.float64(n)]])
    tolerance = _round_off(statistics, worst, "gram_round_off") + gamma(n + len(augmented) + 1) * (
        max(float(np.trace(augmented)), 0.0)
    )
    if not _numbers.has_no_eigenvalue_below(augmented, tolerance):
        raise InvalidInputError(
            "statistics.gram: with feature_sums and n it makes a matrix [X 1]ᵀ[X 1] that has a"
            f" negative eigenvalue below round-off (−{tolerance:.6g}); no data set has these",
            field="statistics.gram",
            remedy="Collect gram and feature_sums over the same samples, in float64.",
        )


def _require_curvature(statistics: Statistics, worst: Mapping[str, AnyArray]) -> None:
    """Check 0 ⪯ H_c ⪯ ¼G to round-off; the factorisations add γ_{d+2} of the traces."""
    quarter = _LARGEST_CURVATURE * statistics["gram"]
    trace = max(float(np.trace(quarter)), 0.0)
    rounding = _round_off(statistics, worst, "hessian_round_off") + gamma(len(quarter) + 2) * trace
    headroom = rounding + _round_off(statistics, worst, "gram_round_off")
    for output, hessian in enumerate(statistics["hessians"]):
        if not _numbers.has_no_eigenvalue_below(hessian, rounding):
            raise _impossible(output, "is not positive semidefinite", rounding)
        if not _numbers.has_no_eigenvalue_below(quarter - hessian, headroom):
            raise _impossible(output, "is above ¼·gram", headroom)


def _round_off(statistics: Statistics, worst: Mapping[str, AnyArray], name: str) -> float:
    # Of the declared and the worst case the larger: whoever declares too little is not refused for
    # that here, where nothing is at stake but a mistake.
    return 2 * max(statistics.number(name), float(worst[name][0]))


def _impossible(output: int, finding: str, tolerance: float) -> InvalidInputError:
    return InvalidInputError(
        f"statistics.hessians: that of output {output} {finding}, by more than round-off"
        f" ({tolerance:.6g}); no data set has it, since 0 < σ' ≤ ¼",
        field="statistics.hessians",
        remedy="Collect Σσ'(x·w)xxᵀ without the ridge, over the samples of gram, in float64.",
    )
