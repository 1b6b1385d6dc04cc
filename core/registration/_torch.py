"""A linear head of torch, trained with the squared or the one-vs-rest logistic loss and a ridge."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from core.device import DeviceName, choose
from core.errors import InvalidOptionError, InvalidTensorError
from core.problem import Ridge, SampleSet
from core.registration._encoding import Encoding, labels_of
from core.registration._record import (
    DEFAULT_TOLERANCE,
    Declaration,
    Registration,
    Trained,
    register,
)
from core.vocabulary import Loss, Task

LossName = Literal["squared", "logistic"]

_REMEDY = (
    "train to convergence in float64 with this loss and ridge (a bias is penalised as well), for "
    "instance by `core.training`; or declare a larger tolerance: what training left of the "
    "gradient is stored, and a deletion takes it into account"
)


def from_torch(
    module: nn.Linear,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    name: str,
    loss: LossName,
    ridge: Ridge,
    task: Task = Task.CLASSIFICATION,
    feature_norm_bound: float | None = None,
    membership: bool | bytes = False,
    tolerance: float = DEFAULT_TOLERANCE,
    holdout: tuple[Tensor, Tensor] | None = None,
    device: DeviceName = "cpu",
    objective_noise: Tensor | None = None,
    declared: Mapping[str, Any] | None = None,
) -> Registration:
    """Turn a trained `nn.Linear` and its training set into all that the service needs.

    The objective is Σ ℓ(x, y) + (shift/2)‖W‖²_F over all samples, the bias included as the weight
    of a feature that is always 1. torch's optimisers seldom reach its optimum: weights that are
    further from it than `tolerance` are refused.

    Args:
        module: W, of d inputs and C outputs. It is not changed.
        loader: Batches (x, y) of the training set, each sample once: x of shape (b, d), y integer
            labels of shape (b,), or numbers of shape (b, C), or (b,) with one output.
        name: Of the model.
        loss: `squared`: ½‖Wᵀx − y‖²; `logistic`: one-vs-rest, targets 0 and 1.
        ridge: The L2 term. weight_decay=λ beside a mean of losses is `per_sample` λ.
        task: `classification`, with labels, one-hot rows, or 0 and 1 with one output; or
            `regression`.
        feature_norm_bound: R_x, of the features with the 1 of the bias. None takes the longest
            row, a number that is derived from the data: declare a bound known beforehand.
        membership: Whether to hash every sample, so that the service can check that samples to be
            forgotten are members; under a fresh secret key, or under this one of 32 bytes.
        tolerance: Largest ‖∇L(W; D)‖_F / ‖∇L(0; D)‖_F at the weights.
        holdout: x and y that were never trained on, for the scores.
        device: Where the sums are computed.
        objective_noise: b of objective perturbation with the logistic loss, shape (d, C), float64,
            a row for the bias included: the objective has Σ_c b_c·w_c beside. A secret of the
            model that the statistics contain; declare `privacy` with it.
        declared: Further fields of the manifest, such as `backbone`.

    Returns:
        The registration, on `device`.

    Raises:
        InvalidOptionError: The weights are no optimum of the objective, or an option is unknown.
        InvalidTensorError: A batch does not fit the module or the task.
    """
    if loss not in get_args(LossName):
        raise InvalidOptionError(f"loss: expected one of {get_args(LossName)}, got {loss!r}")
    if not isinstance(module, nn.Linear):
        raise InvalidOptionError(
            f"module: expected torch.nn.Linear, got {type(module).__name__}; pass the linear head, "
            "and as x the features that it sees"
        )
    if objective_noise is not None and Loss(loss) is not Loss.LOGISTIC:
        raise InvalidOptionError("objective_noise: belongs to the logistic loss; leave it out")
    place = choose(device)
    weights = _weights(module, place)
    encoding = Encoding(
        module.in_features,
        module.out_features,
        classes=labels_of(module.out_features) if task is Task.CLASSIFICATION else None,
        constant=module.bias is not None,
    )
    return register(
        Trained(
            weights,
            task,
            Loss(loss),
            ridge,
            encoding,
            _REMEDY,
            None if objective_noise is None else objective_noise.to(place),
        ),
        _batches(loader, encoding, place),
        Declaration(
            name=name,
            feature_norm_bound=feature_norm_bound,
            membership=membership,
            tolerance=tolerance,
            holdout=None if holdout is None else encoding.samples(*holdout),
            further=declared,
        ),
    )


def _weights(module: nn.Linear, device: torch.device) -> Tensor:
    rows = [module.weight.detach().T]
    if module.bias is not None:
        rows.append(module.bias.detach()[None, :])
    return torch.vstack(rows).to(device, torch.float64).contiguous()


def _batches(
    loader: Iterable[tuple[Tensor, Tensor]], encoding: Encoding, device: torch.device
) -> Iterator[SampleSet]:
    for batch in loader:
        try:
            features, targets = batch
        except (TypeError, ValueError) as error:
            raise InvalidTensorError("loader: expected batches (x, y)") from error
        yield encoding.samples(features.to(device), targets)
