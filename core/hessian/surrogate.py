"""Method `surrogate`: public or synthetic features for the training set's (METHOD §4)."""

from core import curvature, losses
from core.hessian._estimate import HessianEstimate
from core.problem import LinearModel, SampleSet, Surrogate
from core.results import SolverReport


def surrogate_curvature(
    model: LinearModel, surrogate: Surrogate, forget: SampleSet
) -> HessianEstimate:
    """Return n·H̄_S − n_f·H̄_f + shift(n_r)·I, with H̄_S in the place of the training set's H̄.

    The forget set's own share is subtracted exactly, so that Ĥ − H_r = n(H̄_S − H̄): how far it is
    off does not depend on the forget set, and a single record can be forgotten.

    Args:
        model: W, its loss and its ridge.
        surrogate: S, n_S samples without targets: the Hessian needs none.
        forget: D_f.

    Returns:
        An estimate as good as S is like D. It need not be positive definite: where S lacks what
        the forget set has, too much is subtracted.
    """
    functions = losses.OF[model.loss]
    scale = model.n_samples / surrogate.features.shape[0]
    matrix = functions.hessian(model.weights, surrogate.features).mul_(scale)
    matrix.sub_(functions.hessian(model.weights, forget.features))
    curvature.shift(matrix, model.ridge.shift(model.n_samples - len(forget)))
    figures = {"surrogate_samples": float(surrogate.features.shape[0]), "scale": scale}
    return HessianEstimate(matrix, SolverReport("surrogate", "closed-form", figures))
