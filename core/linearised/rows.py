"""The same problem as rows: every sample is C rows of the Jacobian, for one column of weights.

What is proved and computed for linear models holds for these rows, as long as D×D numbers fit
(METHOD §6, "primal").
"""

import dataclasses
from collections.abc import Iterable

import torch

from core.errors import InvalidOptionError, InvalidTensorError
from core.linearised.linearisation import Linearisation
from core.linearised.problem import FeatureSamples, MixedLinearModel
from core.problem import LinearModel, Ridge, SampleSet
from core.statistics import StoredStatistics, collect
from core.vocabulary import Loss, RidgeConvention

# 512 MiB for G; an operator who wants more takes a sketch.
MOST_PARAMETERS = 8192
# Rows of one batch times their length: 128 MiB.
_BLOCK_FLOATS = 2**24


def row_ridge(ridge: Ridge, num_outputs: int) -> Ridge:
    """Return the ridge as rows see it, which are C times as many as samples.

    Args:
        ridge: The L2 term, n counting samples.
        num_outputs: C.

    Returns:
        The ridge with the same shift when n counts rows.

    >>> row_ridge(Ridge(RidgeConvention.PER_SAMPLE, 0.5), 4).shift(8)
    1.0
    """
    if ridge.convention is RidgeConvention.TOTAL:
        return ridge
    return dataclasses.replace(ridge, strength=ridge.strength / num_outputs)


def row_model(model: MixedLinearModel) -> LinearModel:
    """Return the linear model of the rows.

    Args:
        model: The network.

    Returns:
        d = D, one output, n·C samples, and norms bounded by R_J: no row of a matrix is longer than
        its spectral norm.
    """
    outputs = model.linearisation.num_outputs
    return LinearModel(
        weights=model.weights,
        ridge=row_ridge(model.ridge, outputs),
        n_samples=model.n_samples * outputs,
        feature_norm_bound=model.jacobian_norm_bound,
        gradient_norm_bound=model.gradient_norm_bound,
        loss=Loss.SQUARED,
        privacy=model.privacy,
    )


def rows_of(linearisation: Linearisation, samples: FeatureSamples) -> SampleSet:
    """Return the rows of samples with what the linear part has to fit: y − f_{w_c}(x).

    Args:
        linearisation: f_{w_c} and J.
        samples: n samples; n·C·D numbers have to fit.

    Returns:
        n·C rows of length D, one target each.
    """
    targets = samples.targets - linearisation.centre_outputs(samples.features)
    return SampleSet(linearisation.rows(samples.features), targets.reshape(-1, 1))


def collect_gram(
    linearisation: Linearisation, batches: Iterable[FeatureSamples]
) -> StoredStatistics:
    """Collect what exact deletion needs, in one pass: G = Σ J(x)ᵀJ(x), and the like.

    Args:
        linearisation: f_{w_c} and J, D at most 8,192.
        batches: The training set, in any number of batches; gone through once.

    Returns:
        Statistics of the rows: `gram` (D, D), `cross` (D, 1), `target_gram` (1, 1), and n·C as
        `n_samples`.

    Raises:
        InvalidOptionError: D is too large for D² numbers.
        InvalidTensorError: There is no batch.
    """
    width = linearisation.num_parameters
    if width > MOST_PARAMETERS:
        raise InvalidOptionError(
            f"layers: expected at most {MOST_PARAMETERS} parameters for a Gram matrix, got {width};"
            " linearise fewer layers, or collect a sketch"
        )
    total: StoredStatistics | None = None
    size = max(1, _BLOCK_FLOATS // (width * linearisation.num_outputs))
    for batch in batches:
        order = torch.arange(len(batch), device=batch.features.device)
        for part in torch.split(order, size):
            found = collect([rows_of(linearisation, batch.take(part))])
            total = found if total is None else total + found
    if total is None:
        raise InvalidTensorError("batches: there is none, so there is nothing to collect")
    return total
