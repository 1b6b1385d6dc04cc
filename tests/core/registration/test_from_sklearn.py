"""scikit-learn's estimators as registrations, checked by scikit-learn's own retraining."""

import json
import warnings

import numpy as np
import pytest
import safetensors.numpy
import scipy.sparse
import torch
from numpy.typing import NDArray
from sklearn.linear_model import (
    ElasticNet,
    LinearRegression,
    LogisticRegression,
    Ridge,
    RidgeClassifier,
    RidgeCV,
)
from sklearn.multiclass import OneVsRestClassifier

from app.registry import checks, membership, samples
from app.registry.schemas import Manifest
from core import digests, serialization
from core.errors import InvalidOptionError, InvalidTensorError
from core.options import UnlearningOptions
from core.pipeline import unlearn
from core.registration import Registration, from_sklearn
from core.results import Refused, Unlearned
from core.vocabulary import Loss, Method, RefusalCause, Task

N, D, FORGET = 240, 6, 12

RNG = np.random.default_rng(20260)
X = RNG.standard_normal((N, D)) / 3
SCORES = X @ RNG.standard_normal((D, 3)) + 0.3 * RNG.standard_normal((N, 3))
BINARY = (SCORES[:, 0] > 0).astype(np.int64)
CLASSES = SCORES.argmax(axis=1)
NAMES = np.array(["zebra", "ant", "moth"])[CLASSES]

PRECISE = {"fit_intercept": False, "tol": 1e-12, "max_iter": 10_000}


def rest(y):
    return X[FORGET:], y[FORGET:]


def forget_first(registration: Registration, y: NDArray) -> Unlearned:
    """Delete the first samples as the service would, from the files alone."""
    files = registration.files()
    model = registration.model
    result = unlearn(
        model,
        registration.samples(X[:FORGET], y[:FORGET]),
        statistics=serialization.load_statistics(files["statistics"]),
        task=Task(registration.manifest["task"]),
        options=UnlearningOptions(Method.STORED),
    )
    assert isinstance(result, Unlearned), result
    assert torch.equal(serialization.load_weights(files["weights"]), model.weights)
    return result


def rho(before, after, retrained) -> float:
    return float(np.linalg.norm(after - retrained) / np.linalg.norm(before - retrained))


SQUARED = {
    "ridge-one-column": (Ridge(alpha=0.7, fit_intercept=False), SCORES[:, 0]),
    "ridge-three-columns": (Ridge(alpha=0.7, fit_intercept=False), SCORES),
    "ridge-equal-alphas": (Ridge(alpha=np.full(3, 0.7), fit_intercept=False), SCORES),
    "ridge-svd": (Ridge(alpha=1e-3, fit_intercept=False, solver="svd"), SCORES),
    "classifier-binary": (RidgeClassifier(alpha=2.0, fit_intercept=False), BINARY),
    "classifier-three": (RidgeClassifier(alpha=2.0, fit_intercept=False), CLASSES),
    "classifier-strings": (RidgeClassifier(alpha=2.0, fit_intercept=False), NAMES),
}


@pytest.mark.parametrize("case", SQUARED)
def test_deletion_from_the_files_equals_refitting_on_the_rest(case):
    estimator, y = SQUARED[case]
    registration = from_sklearn(estimator.fit(X, y), X, y, name=case)
    before = np.atleast_2d(estimator.coef_).T.copy()
    retrained = np.atleast_2d(estimator.fit(*rest(y)).coef_).T

    assert np.array_equal(registration.weights.numpy(), before)
    assert rho(before, forget_first(registration, y).weights.numpy(), retrained) < 1e-11


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_least_squares_needs_no_ridge_and_its_intercept_is_a_feature(fit_intercept, columns):
    y = SCORES[:, :columns] + 2.0
    estimator = LinearRegression(fit_intercept=fit_intercept)
    registration = from_sklearn(estimator.fit(X, y), X, y, name="least squares")
    manifest = Manifest.model_validate_json(registration.multipart()["manifest"][1])
    result = forget_first(registration, y)

    estimator.fit(*rest(y))
    parts = (
        [estimator.coef_.T, estimator.intercept_[None]] if fit_intercept else [estimator.coef_.T]
    )
    retrained = np.vstack(parts)
    assert rho(registration.weights.numpy(), result.weights.numpy(), retrained) < 1e-11
    assert (manifest.ridge.strength, manifest.num_features) == (0.0, D + fit_intercept)
    residual, distance = result.bounds[:2]
    assert residual.certifies
    assert distance.value is None
    assert "without a ridge" in distance.note


def test_least_squares_on_too_few_samples_is_refused_not_guessed():
    few, y = X[: D + 1], SCORES[: D + 1]
    registration = from_sklearn(
        LinearRegression(fit_intercept=False).fit(few, y), few, y, name="few"
    )
    result = unlearn(
        registration.model,
        registration.samples(few[:2], y[:2]),
        statistics=registration.statistics,
        task=Task.REGRESSION,
        options=UnlearningOptions(Method.STORED),
    )
    assert isinstance(result, Refused)
    assert result.cause is RefusalCause.ILL_CONDITIONED


@pytest.mark.parametrize("case", SQUARED)
def test_the_service_accepts_the_manifest(case):
    estimator, y = SQUARED[case]
    registration = from_sklearn(estimator.fit(X, y), X, y, name=case)

    manifest = Manifest.model_validate_json(registration.multipart()["manifest"][1])

    assert manifest.loss is Loss.SQUARED
    assert manifest.ridge.strength == pytest.approx(np.unique(estimator.alpha)[0], rel=0)
    assert (manifest.num_features, manifest.n_samples) == (D, N)
    assert manifest.feature_norm_bound == pytest.approx(np.linalg.norm(X, axis=1).max(), rel=1e-12)


LOGISTIC = {
    "binary-newton-cholesky": (LogisticRegression(solver="newton-cholesky", **PRECISE), BINARY),
    "binary-strong": (LogisticRegression(C=0.05, solver="newton-cg", **PRECISE), BINARY),
    "binary-weak": (LogisticRegression(C=50.0, solver="newton-cholesky", **PRECISE), BINARY),
    "binary-lbfgs": (LogisticRegression(solver="lbfgs", **PRECISE), BINARY),
    "binary-saga": (LogisticRegression(solver="saga", random_state=0, **PRECISE), BINARY),
    "binary-dual": (
        LogisticRegression(solver="liblinear", dual=True, random_state=0, **PRECISE),
        BINARY,
    ),
    "binary-liblinear-intercept": (
        LogisticRegression(solver="liblinear", tol=1e-12, max_iter=10_000),
        BINARY,
    ),
    "binary-strings": (
        LogisticRegression(solver="newton-cholesky", **PRECISE),
        np.array(["no", "maybe"])[BINARY],
    ),
    "one-vs-rest": (
        OneVsRestClassifier(LogisticRegression(C=2.0, solver="newton-cholesky", **PRECISE)),
        CLASSES,
    ),
    "one-vs-rest-strings": (
        OneVsRestClassifier(LogisticRegression(solver="newton-cholesky", **PRECISE)),
        NAMES,
    ),
    "one-vs-rest-of-two": (
        OneVsRestClassifier(LogisticRegression(solver="newton-cholesky", **PRECISE)),
        BINARY,
    ),
    "one-vs-rest-intercept": (
        OneVsRestClassifier(LogisticRegression(solver="liblinear", tol=1e-12, max_iter=10_000)),
        CLASSES,
    ),
}


def logistic_weights(estimator) -> NDArray[np.float64]:
    parts = getattr(estimator, "estimators_", [estimator])
    columns = np.hstack([part.coef_.T for part in parts])
    if not parts[0].fit_intercept:
        return columns
    return np.vstack([columns, np.hstack([part.intercept_ for part in parts])[None, :]])


@pytest.mark.parametrize("case", LOGISTIC)
def test_logistic_deletion_comes_close_to_refitting_and_stays_below_its_bound(case):
    estimator, y = LOGISTIC[case]
    registration = from_sklearn(estimator.fit(X, y), X, y, name=case)
    before = logistic_weights(estimator)
    retrained = logistic_weights(estimator.fit(*rest(y)))

    assert np.array_equal(registration.weights.numpy(), before)
    result = forget_first(registration, y)
    after = result.weights.numpy()
    bound = next(found for found in result.bounds if found.name == "distance_to_retraining")
    # One Newton step: what it leaves is of second order in what it removes.
    assert rho(before, after, retrained) < 0.1
    assert np.linalg.norm(after - retrained) <= bound.value + 1e-6
    assert registration.relative_gradient < 1e-7


@pytest.mark.parametrize("case", LOGISTIC)
def test_one_newton_step_on_the_registered_statistics_finds_the_optimum_again(case):
    # Independent of the pipeline: at the weights the known gradient is round-off, and the known
    # Hessian is that of the loss, summed row by row.
    estimator, y = LOGISTIC[case]
    registration = from_sklearn(estimator.fit(X, y), X, y, name=case)
    written = registration.samples(X, y)
    x, targets = written.features.numpy(), written.targets.numpy()
    probabilities = 1 / (1 + np.exp(-x @ logistic_weights(estimator)))
    penalty = 1 / getattr(estimator, "estimator", estimator).C

    ridge = registration.model.ridge
    statistics = registration.statistics
    np.testing.assert_allclose(
        statistics.training_gradient(ridge).numpy(),
        x.T @ (probabilities - targets) + penalty * logistic_weights(estimator),
        atol=1e-11,
    )
    for output, hessian in enumerate(statistics.hessian(ridge).numpy()):
        spread = probabilities[:, output] * (1 - probabilities[:, output])
        wanted = (x.T * spread) @ x + penalty * np.eye(x.shape[1])
        np.testing.assert_allclose(hessian, wanted, atol=1e-11)


@pytest.mark.parametrize("case", LOGISTIC)
def test_the_service_accepts_a_logistic_manifest(case):
    estimator, y = LOGISTIC[case]
    registration = from_sklearn(estimator.fit(X, y), X, y, name=case)
    manifest = Manifest.model_validate_json(registration.multipart()["manifest"][1])
    assert (manifest.loss, manifest.task) == (Loss.LOGISTIC, Task.CLASSIFICATION)
    assert manifest.num_features == registration.weights.shape[0]
    assert manifest.ridge.strength == 1 / getattr(estimator, "estimator", estimator).C


def test_the_second_label_is_the_positive_one():
    y = np.array(["no", "maybe"])[BINARY]
    estimator = LogisticRegression(solver="newton-cholesky", **PRECISE).fit(X, y)
    registration = from_sklearn(estimator, X, y, name="m")
    written = registration.samples(X[:2], ["no", "maybe"])
    assert estimator.classes_.tolist() == ["maybe", "no"]
    assert written.targets.tolist() == [[1.0], [0.0]]


def test_liblinears_intercept_becomes_the_weight_of_a_constant_feature():
    estimator = LogisticRegression(solver="liblinear", tol=1e-12, max_iter=10_000).fit(X, BINARY)
    registration = from_sklearn(estimator, X, BINARY, name="m")
    written = registration.samples(X[:4], BINARY[:4])
    assert registration.manifest["num_features"] == D + 1
    assert written.features[:, -1].tolist() == [1.0] * 4
    np.testing.assert_allclose(
        (written.features @ registration.weights)[:, 0].numpy(),
        estimator.decision_function(X[:4]),
        rtol=1e-12,
    )


@pytest.mark.parametrize("case", ["ridge-three-columns", "classifier-three", "one-vs-rest"])
def test_the_service_takes_every_part(case):
    estimator, y = (SQUARED | LOGISTIC)[case]
    registration = from_sklearn(
        estimator.fit(X, y),
        X,
        y,
        name=case,
        membership=True,
        holdout=(X[:9], y[:9]),
    )
    parts = registration.multipart()
    manifest = Manifest.model_validate_json(parts["manifest"][1])
    weights = checks.read_weights(parts["weights"][1], manifest)
    statistics = checks.read_statistics(parts["statistics"][1], manifest)

    norm = statistics.training_gradient_norm(weights, manifest)
    assert manifest.training_gradient_norm <= norm < 1e-6 * N
    assert membership.read(parts["membership"][1], manifest).copies.sum() == N
    held_out = samples.from_file(parts["holdout"][1], manifest, field="holdout")
    assert held_out.features.shape == (9, D)


def test_string_labels_keep_the_order_of_the_estimators_classes():
    estimator = RidgeClassifier(fit_intercept=False).fit(X, NAMES)
    registration = from_sklearn(estimator, X, NAMES, name="m")

    written = registration.samples(X[:1], ["moth"])

    assert estimator.classes_.tolist() == ["ant", "moth", "zebra"]
    assert written.targets.tolist() == [[-1.0, 1.0, -1.0]]


def test_a_ridge_on_one_hot_rows_can_be_a_classification():
    rows = np.eye(3)[CLASSES]
    estimator = Ridge(fit_intercept=False).fit(X, rows)
    registration = from_sklearn(estimator, X, rows, name="m", task=Task.CLASSIFICATION)
    assert registration.manifest["task"] == "classification"

    with pytest.raises(InvalidTensorError, match="one-hot rows"):
        from_sklearn(
            Ridge(fit_intercept=False).fit(X, SCORES),
            X,
            SCORES,
            name="m",
            task=Task.CLASSIFICATION,
        )


@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "list", "tensor", "frame"])
def test_every_layout_of_the_features_gives_the_same_registration(layout):
    estimator = Ridge(fit_intercept=False, solver="cholesky").fit(X, SCORES)
    plain = from_sklearn(estimator, X, SCORES, name="m")
    layouts = {
        "csr": scipy.sparse.csr_array,
        "csc": scipy.sparse.csc_array,
        "coo": scipy.sparse.coo_array,
        "list": np.ndarray.tolist,
        "tensor": torch.from_numpy,
        "frame": Frame,
    }
    other = from_sklearn(estimator, layouts[layout](X), SCORES, name="m")
    assert other.files() == plain.files()


class Frame:
    """As much of a data frame as is used."""

    def __init__(self, values, columns=None):
        self.values = values
        self.columns = columns

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype, copy=copy)


def test_a_data_frame_with_its_columns_in_another_order_is_refused():
    estimator = Ridge(fit_intercept=False).fit(X, SCORES)
    estimator.feature_names_in_ = np.array(list("abcdef"), dtype=object)
    from_sklearn(estimator, Frame(X, list("abcdef")), SCORES, name="m")
    with pytest.raises(InvalidTensorError, match=r"X\[estimator.feature_names_in_\]"):
        from_sklearn(estimator, Frame(X, list("fedcba")), SCORES, name="m")


def test_a_model_fitted_in_float32_is_refused_unless_the_tolerance_says_so():
    narrow = X.astype(np.float32)
    estimator = Ridge(alpha=1e-2, fit_intercept=False, solver="cholesky").fit(narrow, SCORES)
    estimator.coef_ = estimator.coef_.astype(np.float32)
    with pytest.raises(InvalidOptionError, match=r"no optimum .* fit in float64"):
        from_sklearn(estimator, narrow, SCORES, name="m", tolerance=1e-9)
    registration = from_sklearn(estimator, narrow, SCORES, name="m", tolerance=1e-5)
    assert registration.weights.dtype == torch.float64
    assert 1e-9 < registration.relative_gradient < 1e-5
    assert registration.manifest["training_gradient_tolerance"] == 1e-5


def test_what_training_left_over_is_taken_into_account():
    # An iterative solver that stopped early: the gradient is in the statistics, so deletion
    # still ends where exact retraining does.
    rough = Ridge(alpha=0.5, fit_intercept=False, solver="sag", tol=1e-4, random_state=0)
    registration = from_sklearn(rough.fit(X, SCORES), X, SCORES, name="m", tolerance=0.1)
    exact = Ridge(alpha=0.5, fit_intercept=False, solver="cholesky").fit(*rest(SCORES))
    assert registration.relative_gradient > 1e-7
    after = forget_first(registration, SCORES).weights.numpy()
    assert rho(rough.coef_.T, after, exact.coef_.T) < 1e-11


UNSUPPORTED = {
    "ridge-intercept": (Ridge(), SCORES, r"fit_intercept=True\).*append a column of ones"),
    "ridge-positive": (
        Ridge(fit_intercept=False, positive=True),
        SCORES,
        r"positive=True\).*fit with positive=False",
    ),
    "ridge-zero": (Ridge(alpha=0.0, fit_intercept=False), SCORES, r"fit with a positive alpha"),
    "ridge-alphas": (
        Ridge(alpha=np.array([1.0, 2.0, 3.0]), fit_intercept=False),
        SCORES,
        r"another strength for each target; fit with one alpha",
    ),
    "classifier-intercept": (RidgeClassifier(), CLASSES, r"append a column of ones"),
    "classifier-weights": (
        RidgeClassifier(fit_intercept=False, class_weight="balanced"),
        CLASSES,
        r"class_weight='balanced'\): weighs samples.*fit without it",
    ),
    "classifier-several-labels": (
        RidgeClassifier(fit_intercept=False),
        np.eye(3, dtype=int)[CLASSES],
        r"several labels a row; fit and register one model a label",
    ),
    "linear-regression-positive": (
        LinearRegression(positive=True),
        SCORES,
        r"constrained weights.*fit with positive=False",
    ),
    "elastic-net": (ElasticNet(fit_intercept=False), SCORES, r"is none of Ridge, "),
    "cross-validated": (RidgeCV(fit_intercept=False), SCORES, r"refit the plain one"),
    "logistic-intercept": (LogisticRegression(), BINARY, r"append a column of ones"),
    "logistic-multinomial": (
        LogisticRegression(fit_intercept=False),
        CLASSES,
        r"multinomial loss.*OneVsRestClassifier",
    ),
    "logistic-l1": (
        LogisticRegression(fit_intercept=False, l1_ratio=1.0, solver="liblinear"),
        BINARY,
        r"l1_ratio=1.0\): an L1 term has no Hessian",
    ),
    "logistic-elastic-net": (
        LogisticRegression(fit_intercept=False, l1_ratio=0.5, solver="saga", max_iter=2000),
        BINARY,
        r"l1_ratio=0.5\): an L1 term has no Hessian",
    ),
    "logistic-unpenalised": (
        LogisticRegression(fit_intercept=False, C=np.inf),
        BINARY,
        r"C=inf\): has no ridge; fit with a finite C",
    ),
    "logistic-weights": (
        LogisticRegression(fit_intercept=False, class_weight={0: 1, 1: 2}),
        BINARY,
        r"class_weight=.*weighs samples",
    ),
    "logistic-intercept-scaling": (
        LogisticRegression(solver="liblinear", intercept_scaling=2.0),
        BINARY,
        r"intercept_scaling=2.0\): the constant feature has to be 1",
    ),
    "logistic-default-tolerance": (
        LogisticRegression(fit_intercept=False),
        BINARY,
        r"above the tolerance 1e-06; fit in float64 with tol=1e-10 and max_iter=10000",
    ),
    "one-vs-rest-intercept": (
        OneVsRestClassifier(LogisticRegression()),
        CLASSES,
        r"LogisticRegression\(fit_intercept=True\).*append a column of ones",
    ),
    "one-vs-rest-of-ridge": (
        OneVsRestClassifier(RidgeClassifier(fit_intercept=False)),
        CLASSES,
        r"of RidgeClassifier, supported is LogisticRegression",
    ),
    "one-vs-rest-several-labels": (
        OneVsRestClassifier(LogisticRegression(fit_intercept=False)),
        np.eye(3, dtype=int)[CLASSES],
        r"several labels a row",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_has_no_exact_counterpart_is_refused_with_reason_and_remedy(case):
    estimator, y, message = UNSUPPORTED[case]
    with warnings.catch_warnings():
        # Of scikit-learn, about settings that are refused here anyway.
        warnings.simplefilter("ignore")
        estimator.fit(X, y)
    with pytest.raises(InvalidOptionError, match=f"(?s){message}"):
        from_sklearn(estimator, X, y, name="m")


def test_a_deprecated_penalty_is_still_understood():
    estimator = LogisticRegression(fit_intercept=False).fit(X, BINARY)
    estimator.penalty = "l1"
    with pytest.raises(InvalidOptionError, match=r"penalty='l1'\): is not the ridge alone"):
        from_sklearn(estimator, X, BINARY, name="m")


@pytest.mark.parametrize(
    "estimator",
    [Ridge(fit_intercept=False), OneVsRestClassifier(LogisticRegression(fit_intercept=False))],
    ids=["ridge", "one-vs-rest"],
)
def test_an_estimator_that_is_not_fitted_is_refused(estimator):
    with pytest.raises(InvalidOptionError, match=r"is not fitted; call fit\(X, y\)"):
        from_sklearn(estimator, X, CLASSES, name="m")


def test_a_subclass_is_refused_because_it_may_train_otherwise():
    class Mine(Ridge):
        pass

    with pytest.raises(InvalidOptionError, match="Mine is none of"):
        from_sklearn(Mine(fit_intercept=False).fit(X, SCORES), X, SCORES, name="m")


def test_the_task_of_a_classifier_is_not_to_be_chosen():
    estimator = RidgeClassifier(fit_intercept=False).fit(X, CLASSES)
    with pytest.raises(InvalidOptionError, match="task: RidgeClassifier settles it"):
        from_sklearn(estimator, X, CLASSES, name="m", task=Task.CLASSIFICATION)


def test_weighted_samples_show_in_the_gradient():
    estimator = Ridge(fit_intercept=False).fit(X, SCORES, sample_weight=np.linspace(1, 2, N))
    with pytest.raises(InvalidOptionError, match="without sample_weight"):
        from_sklearn(estimator, X, SCORES, name="m")


def test_other_data_than_the_training_set_shows_in_the_gradient():
    estimator = Ridge(fit_intercept=False).fit(X, SCORES)
    with pytest.raises(InvalidOptionError, match="pass the X and y that the estimator was fitted"):
        from_sklearn(estimator, X[1:], SCORES[1:], name="m")


BAD_DATA = {
    "width": (X[:, 1:], SCORES, r"X: expected shape \(n, 6\)"),
    "rows": (X[1:], SCORES, "y: expected as many rows as X has, 239, got 240"),
    "outputs": (X, SCORES[:, :2], r"y: expected shape \(n, 3\)"),
    "empty": (X[:0], SCORES[:0], "X: has no rows"),
    "text": (np.full((N, D), "a"), SCORES, "X: expected rows of numbers"),
    "text-targets": (X, np.full((N, 3), "a"), "y: expected numbers"),
    "nan": (np.where(X > 0.5, np.nan, X), SCORES, "NaN"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_does_not_fit_the_estimator_is_refused(case):
    features, targets, message = BAD_DATA[case]
    estimator = Ridge(fit_intercept=False).fit(X, SCORES)
    with pytest.raises(InvalidTensorError, match=message):
        from_sklearn(estimator, features, targets, name="m")


def test_a_label_that_the_estimator_never_saw_is_refused():
    registration = from_sklearn(
        RidgeClassifier(fit_intercept=False).fit(X, NAMES), X, NAMES, name="m"
    )
    with pytest.raises(InvalidTensorError, match="'gnu' is none of the classes"):
        registration.samples(X[:2], ["ant", "gnu"])
    with pytest.raises(InvalidTensorError, match="one label a row"):
        registration.samples(X[:1], [["ant", "gnu"]])
    with pytest.raises(InvalidTensorError, match="rows of -1 and 1 as they were trained on"):
        registration.samples(X[:1], [[0.0, 1.0, 0.0]])


def test_labels_may_stand_in_a_column_or_as_rows_of_targets():
    registration = from_sklearn(
        RidgeClassifier(fit_intercept=False).fit(X, NAMES), X, NAMES, name="m"
    )
    plain = registration.samples(X[:5], NAMES[:5])
    for targets in (NAMES[:5, None], plain.targets):
        assert torch.equal(registration.samples(X[:5], targets).targets, plain.targets)


def test_a_declared_norm_bound_has_to_hold():
    estimator = Ridge(fit_intercept=False).fit(X, SCORES)
    registration = from_sklearn(estimator, X, SCORES, name="m", feature_norm_bound=5.0)
    assert registration.manifest["feature_norm_bound"] == 5.0
    with pytest.raises(InvalidOptionError, match="a training row has norm"):
        from_sklearn(estimator, X, SCORES, name="m", feature_norm_bound=0.1)
    zeros = np.zeros((4, 2))
    with pytest.raises(InvalidOptionError, match="every training row is zero"):
        from_sklearn(
            Ridge(fit_intercept=False).fit(zeros, np.zeros(4)), zeros, np.zeros(4), name="m"
        )


def test_a_tolerance_has_to_be_positive():
    estimator = Ridge(fit_intercept=False).fit(X, SCORES)
    with pytest.raises(InvalidOptionError, match="tolerance: expected a positive number"):
        from_sklearn(estimator, X, SCORES, name="m", tolerance=0.0)


def test_further_fields_and_a_holdout_reach_the_service():
    estimator = RidgeClassifier(fit_intercept=False).fit(X, NAMES)
    registration = from_sklearn(
        estimator,
        X,
        NAMES,
        name="m",
        holdout=(X[:3], NAMES[:3]),
        declared={"backbone": {"provenance": "public"}},
    )
    parts = registration.multipart()
    manifest = json.loads(parts["manifest"][1])
    assert Manifest.model_validate_json(parts["manifest"][1]).backbone.provenance == "public"
    assert manifest["backbone"] == {"provenance": "public"}
    assert set(parts) == {"manifest", "weights", "statistics", "holdout"}
    assert len(serialization.load_samples(parts["holdout"][1], 3)) == 3


@pytest.mark.parametrize("given", [True, bytes(range(32))], ids=["fresh-key", "given-key"])
def test_digests_of_all_samples_recognise_those_to_be_forgotten(given):
    estimator = RidgeClassifier(fit_intercept=False).fit(X, NAMES)
    registration = from_sklearn(estimator, X, NAMES, name="m", membership=given)
    stored = safetensors.numpy.load(registration.files()["membership"])
    key = stored["key"].tobytes()
    rows = [row.tobytes() for row in stored["digests"]]
    sent = registration.samples(X[:FORGET], NAMES[:FORGET])

    assert len(rows) == N
    assert rows == sorted(rows)
    assert given is True or key == given
    assert set(digests.of_each(sent.features, sent.targets, key)) <= set(rows)
    assert "membership" in registration.multipart()


def test_a_digest_key_of_another_length_is_refused():
    estimator = RidgeClassifier(fit_intercept=False).fit(X, NAMES)
    with pytest.raises(InvalidTensorError, match="key: expected 32 bytes, got 0"):
        from_sklearn(estimator, X, NAMES, name="m", membership=b"")


def test_the_owners_data_is_not_changed_or_kept():
    features, targets = X.copy(), SCORES.copy()
    estimator = Ridge(fit_intercept=False).fit(features, targets)
    registration = from_sklearn(estimator, features, targets, name="m")
    before = registration.files()
    assert np.array_equal(features, X)
    features[:] = 0.0
    estimator.coef_[:] = 0.0
    assert registration.files() == before
