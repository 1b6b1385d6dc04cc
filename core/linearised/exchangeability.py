"""Is the forget set of a network drawn like its training set? As `core.gate.skew`, for rows of J.

Σ_D J(x)ᵀe = ∇L − shift(n)·w is known without any data, e the residual of a sample. So is its
product with any direction p, whose share of one sample is e·J(x)p: along the weights; along the
bias of the outputs, where J is the identity, so that it is e itself; and along the mean of some of
the forget set's own gradients, tested on the others.
"""

import numpy as np
import torch
from torch import Tensor

from core.gate import SkewTest, judge, mean_p_value, require_testable
from core.gate._p_values import array
from core.linearised.problem import FeatureSamples, MixedLinearModel
from core.results import GateResult


def require_exchangeable(
    model: MixedLinearModel, forget: FeatureSamples, *, level: float, seed: int
) -> GateResult:
    """Check that nothing tells the forget set from a random subset of the training set.

    Args:
        model: The network before.
        forget: D_f.
        level: Of significance, over all tests together, in (0, 1).
        seed: Of the halves and of random mixtures; both are drawn on the CPU.

    Returns:
        The passed gate: the smallest p-value times the number of tests, against the level.

    Raises:
        GateFailedError: The forget set differs, or is too small for any test.
    """
    require_testable(len(forget), level)
    rng = np.random.default_rng(seed)
    linearisation = model.linearisation
    errors = model.outputs(forget.features).sub_(forget.targets)
    order = torch.from_numpy(rng.permutation(len(forget))).to(errors.device)
    first, second = order[: len(forget) // 3], order[len(forget) // 3 :]
    direction = linearisation.vjp(forget.features[first], errors[first][None]).T

    def along(rows: Tensor, name: str, vector: Tensor) -> SkewTest:
        pushed = linearisation.jvp(forget.features[rows], vector.T)[0]
        shares = pushed.mul_(errors[rows]).sum(dim=1, keepdim=True)
        reach = float(torch.linalg.vector_norm(vector))
        products = vector.T @ model.weights
        compared = f"gradients along {name}"
        return _test(model, rng, compared, shares, products=products, reach=reach)

    # Every architecture ends on a dense layer, whose bias is its last parameter.
    bias = model.weights[-linearisation.num_outputs :]
    tests = [
        along(order, "the weights", model.weights),
        _test(model, rng, "errors of each output", errors, products=bias, reach=1.0),
        along(second, "the mean gradient", direction),
    ]
    return judge(tests, level)


def _test(
    model: MixedLinearModel,
    rng: np.random.Generator,
    compared: str,
    shares: Tensor,
    *,
    products: Tensor,
    reach: float,
) -> SkewTest:
    # `shares` (m, k) of the samples along k directions p of norm `reach`, orthogonal to each other,
    # and all p·w, (k, 1).
    shift = model.ridge.shift(model.n_samples)
    expected = products[:, 0] * (-shift / model.n_samples)
    slack = reach * model.gradient_norm_bound / model.n_samples
    p_value = mean_p_value(array(shares), array(expected), slack, model.n_samples, rng)
    return SkewTest(p_value, compared)
