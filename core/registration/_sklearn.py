"""scikit-learn's fitted linear models, as far as their objective is exactly ours (METHOD §1, §4).

Ours is Σ ℓ(x, y) + (shift/2)‖W‖²_F, every weight penalised alike. What scikit-learn minimises is
brought to that form without approximation, or refused.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import InvalidOptionError, InvalidTensorError
from core.problem import Ridge
from core.registration._encoding import Encoding
from core.registration._record import (
    DEFAULT_TOLERANCE,
    Declaration,
    Registration,
    Trained,
    register,
)
from core.vocabulary import Loss, RidgeConvention, Task

_APPEND_ONES = (
    "append a column of ones to X and fit with fit_intercept=False; the constant is then penalised "
    "like every other weight"
)
_FREE_INTERCEPT = (
    f"the intercept is not penalised, and our ridge penalises every weight; {_APPEND_ONES}"
)
_CONSTRAINED = (
    "with constrained weights the gradient at the optimum is not zero; fit with positive=False"
)
_LEAST_SQUARES_REMEDY = (
    "fit in float64 with tol=1e-12 and without sample_weight, and pass the X and y that the "
    "estimator was fitted on"
)
_RIDGE_REMEDY = (
    "fit in float64 with solver='cholesky' and without sample_weight, and pass the X and y that "
    "the estimator was fitted on"
)
_LOGISTIC_REMEDY = (
    "fit in float64 with tol=1e-10 and max_iter=10000 (solver='newton-cholesky' gets there in a "
    "few steps) and without sample_weight, and pass the X and y that the estimator was fitted on"
)


def from_sklearn(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    name: str,
    task: Task | None = None,
    feature_norm_bound: float | None = None,
    membership: bool | bytes = False,
    tolerance: float = DEFAULT_TOLERANCE,
    holdout: tuple[Any, Any] | None = None,
    declared: Mapping[str, Any] | None = None,
) -> Registration:
    """Turn a fitted estimator and its training set into all that the service needs.

    | estimator | objective of ours |
    |---|---|
    | `Ridge(alpha)` | squared, ridge `total` α |
    | `LinearRegression` | squared, ridge `total` 0; the intercept becomes a constant feature |
    | `RidgeClassifier(alpha)` | squared on targets ±1, ridge `total` α, task `regression` |
    | `LogisticRegression(C)`, two classes | logistic, one output, ridge `total` 1/C |
    | `OneVsRestClassifier(LogisticRegression(C))` | logistic, an output a class, ridge as above |

    Args:
        estimator: Fitted, with fit_intercept=False (or liblinear, which penalises the intercept, or
            `LinearRegression`, which penalises nothing: then a constant feature is appended).
        X: What it was fitted on, shape (n, d): array, data frame, tensor or sparse matrix.
        y: What it was fitted on.
        name: Of the model.
        task: Of a `Ridge` or `LinearRegression`: `classification` where y has one-hot rows; None
            says `regression`.
        feature_norm_bound: R_x. None takes the longest row of X, a number that is derived from
            the data and may reveal something of one sample: declare a bound known beforehand.
        membership: Whether to hash every sample, so that the service can check that samples to be
            forgotten are members; under a fresh secret key, or under this one of 32 bytes.
        tolerance: Largest ‖∇L(W; D)‖_F / ‖∇L(0; D)‖_F at the weights; below it the gradient is
            kept in the statistics, not neglected.
        holdout: X and y that were never trained on, for the scores.
        declared: Further fields of the manifest, such as `backbone`.

    Returns:
        The registration.

    Raises:
        InvalidOptionError: The estimator or a setting has no exact counterpart, or the weights are
            no optimum; the message names the reason and the remedy.
        InvalidTensorError: X or y does not fit the estimator.
    """
    trained = _read(estimator, task, y)
    _require_same_columns(estimator, X)
    encoding = trained.encoding
    return register(
        trained,
        encoding.batches(X, y),
        Declaration(
            name=name,
            feature_norm_bound=feature_norm_bound,
            membership=membership,
            tolerance=tolerance,
            holdout=None if holdout is None else encoding.samples(*holdout),
            further=declared,
        ),
    )


def _read(estimator: Any, task: Task | None, y: Any) -> Trained:
    kind = type(estimator)
    # By name, so that nothing of scikit-learn is imported here; a subclass may train otherwise.
    reader = _READERS.get(kind.__name__) if kind.__module__.startswith("sklearn.") else None
    if reader is None:
        raise InvalidOptionError(
            f"estimator: {kind.__module__}.{kind.__qualname__} is none of {', '.join(_READERS)}; "
            "fit one of these (of a Pipeline pass the last step with the transformed X; of a "
            "search or CV estimator refit the plain one with the chosen strength)"
        )
    if task is not None and reader not in {_read_ridge, _read_linear_regression}:
        raise InvalidOptionError(f"task: {kind.__name__} settles it; leave it out")
    return reader(estimator, task, y)


def _read_ridge(estimator: Any, task: Task | None, _y: Any) -> Trained:
    weights = _coefficients(estimator)
    _require_ridge_settings(estimator)
    return Trained(
        weights=weights,
        task=task or Task.REGRESSION,
        loss=Loss.SQUARED,
        ridge=Ridge(RidgeConvention.TOTAL, _alpha(estimator)),
        encoding=Encoding(weights.shape[0], weights.shape[1]),
        remedy=_RIDGE_REMEDY,
    )


def _read_ridge_classifier(estimator: Any, _task: Task | None, y: Any) -> Trained:
    # Its targets are ±1, and its weights the optimum for these. One-hot targets would have another
    # optimum, so deletions speak of ±1, which the service knows as a regression.
    weights = _coefficients(estimator)
    _require_ridge_settings(estimator)
    _require_plain(estimator)
    _require_single_label(estimator, y)
    return Trained(
        weights=weights,
        task=Task.REGRESSION,
        loss=Loss.SQUARED,
        ridge=Ridge(RidgeConvention.TOTAL, _alpha(estimator)),
        encoding=Encoding(
            weights.shape[0], weights.shape[1], classes=_labels(estimator), negative=-1.0
        ),
        remedy=_RIDGE_REMEDY,
    )


def _read_linear_regression(estimator: Any, task: Task | None, _y: Any) -> Trained:
    # Without a ridge a free intercept is the weight of a constant feature like any other.
    weights = _coefficients(estimator)
    if estimator.positive:
        raise _refuse(estimator, "positive", _CONSTRAINED)
    constant = bool(estimator.fit_intercept)
    if constant:
        intercept = np.broadcast_to(np.asarray(estimator.intercept_), (weights.shape[1],))
        weights = torch.vstack([weights, _float64(intercept).reshape(1, -1)])
    return Trained(
        weights=weights,
        task=task or Task.REGRESSION,
        loss=Loss.SQUARED,
        ridge=Ridge(RidgeConvention.TOTAL, 0.0),
        encoding=Encoding(weights.shape[0] - constant, weights.shape[1], constant=constant),
        remedy=_LEAST_SQUARES_REMEDY,
    )


def _read_logistic(estimator: Any, _task: Task | None, y: Any) -> Trained:
    _require_single_label(estimator, y)
    weights, constant = _logistic_coefficients(estimator)
    classes = _labels(estimator)
    if len(classes) > 2:  # noqa: PLR2004 - two classes are binary
        raise InvalidOptionError(
            f"LogisticRegression: with {len(classes)} classes it minimises the multinomial loss, "
            "which couples the classes; fit OneVsRestClassifier(LogisticRegression(...)) instead"
        )
    return _logistic(estimator, weights, classes, constant=constant)


def _read_one_vs_rest(estimator: Any, _task: Task | None, y: Any) -> Trained:
    if not hasattr(estimator, "estimators_"):
        raise _not_fitted(estimator)
    _require_single_label(estimator, y)
    for part in estimator.estimators_:
        if type(part).__name__ != "LogisticRegression":
            raise InvalidOptionError(
                f"OneVsRestClassifier: of {type(part).__name__}, supported is LogisticRegression, "
                "fitted on at least two classes"
            )
    first = estimator.estimators_[0]
    parts = [_logistic_coefficients(part) for part in estimator.estimators_]
    return _logistic(
        first,
        torch.cat([weights for weights, _ in parts], dim=1),
        _labels(estimator),
        constant=parts[0][1],
    )


def _logistic(
    estimator: Any, weights: Tensor, classes: tuple[Any, ...], *, constant: bool
) -> Trained:
    return Trained(
        weights=weights,
        task=Task.CLASSIFICATION,
        loss=Loss.LOGISTIC,
        # C·Σℓ + ½‖w‖² has the optimum of Σℓ + (1/(2C))‖w‖².
        ridge=Ridge(RidgeConvention.TOTAL, 1.0 / float(estimator.C)),
        encoding=Encoding(
            weights.shape[0] - constant, weights.shape[1], classes=classes, constant=constant
        ),
        remedy=_LOGISTIC_REMEDY,
    )


_READERS: Mapping[str, Callable[[Any, Task | None, Any], Trained]] = {
    "Ridge": _read_ridge,
    "RidgeClassifier": _read_ridge_classifier,
    "LinearRegression": _read_linear_regression,
    "LogisticRegression": _read_logistic,
    "OneVsRestClassifier": _read_one_vs_rest,
}


# --- Settings ----------------------------------------------------------------------------------


def _refuse(estimator: Any, setting: str, reason: str) -> InvalidOptionError:
    value = getattr(estimator, setting)
    return InvalidOptionError(f"{type(estimator).__name__}({setting}={value!r}): {reason}")


def _require_plain(estimator: Any) -> None:
    if estimator.class_weight is not None:
        raise _refuse(
            estimator, "class_weight", "weighs samples, which our sums do not; fit without it"
        )


def _require_ridge_settings(estimator: Any) -> None:
    if estimator.fit_intercept:
        raise _refuse(estimator, "fit_intercept", _FREE_INTERCEPT)
    if estimator.positive:
        raise _refuse(estimator, "positive", _CONSTRAINED)


def _alpha(estimator: Any) -> float:
    values = np.unique(np.asarray(estimator.alpha, dtype=np.float64))
    if len(values) != 1:
        raise _refuse(
            estimator,
            "alpha",
            "has another strength for each target; fit with one alpha, or one model a target",
        )
    if not 0 < values[0] < float("inf"):
        raise _refuse(
            estimator,
            "alpha",
            "without a ridge no optimum need be unique; fit with a positive alpha",
        )
    return float(values[0])


def _require_l2(estimator: Any) -> None:
    # `penalty` is deprecated since scikit-learn 1.8, where l1_ratio and C say it all.
    remedy = "fit with a finite C, l1_ratio=0 and no other penalty"
    if not 0 < float(estimator.C) < float("inf"):
        raise _refuse(estimator, "C", f"has no ridge; {remedy}")
    if estimator.penalty not in {"l2", "deprecated"}:
        raise _refuse(estimator, "penalty", f"is not the ridge alone; {remedy}")
    if estimator.penalty == "deprecated" and estimator.l1_ratio not in {None, 0}:
        raise _refuse(estimator, "l1_ratio", f"an L1 term has no Hessian; {remedy}")


def _logistic_coefficients(estimator: Any) -> tuple[Tensor, bool]:
    # With whether the intercept is one of them, as the weight of a constant feature.
    weights = _coefficients(estimator)
    _require_l2(estimator)
    _require_plain(estimator)
    if not estimator.fit_intercept:
        return weights, False
    if estimator.solver != "liblinear":
        raise _refuse(estimator, "fit_intercept", _FREE_INTERCEPT)
    # liblinear appends a feature of this value itself, and penalises its weight.
    if estimator.intercept_scaling != 1:
        raise _refuse(
            estimator, "intercept_scaling", f"the constant feature has to be 1; {_APPEND_ONES}"
        )
    intercept = _float64(estimator.intercept_).reshape(1, -1)
    return torch.vstack([weights, intercept]), True


# --- Fitted attributes -------------------------------------------------------------------------


def _not_fitted(estimator: Any) -> InvalidOptionError:
    return InvalidOptionError(
        f"{type(estimator).__name__}: is not fitted; call fit(X, y) on the training set first"
    )


def _coefficients(estimator: Any) -> Tensor:
    if not hasattr(estimator, "coef_"):
        raise _not_fitted(estimator)
    coefficients: NDArray[Any] = np.atleast_2d(np.asarray(estimator.coef_))
    return _float64(coefficients).T.contiguous()


def _float64(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float64), device="cpu")


def _labels(estimator: Any) -> tuple[Any, ...]:
    # Python's own values, so that messages read well and JSON takes them.
    return tuple(np.asarray(estimator.classes_).tolist())


def _require_single_label(estimator: Any, y: Any) -> None:
    shape = np.shape(y)
    if len(shape) > 1 and shape[1] > 1:
        raise InvalidOptionError(
            f"{type(estimator).__name__}: y of shape {shape} gives several labels a row; fit and "
            "register one model a label"
        )


def _require_same_columns(estimator: Any, X: Any) -> None:
    expected = getattr(estimator, "feature_names_in_", None)
    columns = getattr(X, "columns", None)
    if expected is not None and columns is not None and list(columns) != list(expected):
        raise InvalidTensorError(
            "X: its columns are not those that the estimator was fitted on, or in another order; "
            "pass X[estimator.feature_names_in_]"
        )
