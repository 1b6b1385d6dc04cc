"""Networks as registrations, checked with written-out Jacobians and numpy's solver."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from app.registry import checks, membership, networks, samples
from app.registry.schemas import Manifest
from core import digests
from core.errors import InvalidOptionError, InvalidTensorError, SolverError
from core.linearised.architectures import NetworkSpec
from core.linearised.networks import initialise
from core.linearised.pipeline import unlearn
from core.options import UnlearningOptions
from core.problem import Ridge
from core.registration import Watcher, from_network
from core.results import Unlearned
from core.serialization import load_statistics, load_weights
from core.vocabulary import Method, RidgeConvention, Task
from tests.reference.networks import NetworkProblem

N, C, FORGET = 120, 10, 7
FORGOTTEN = np.arange(FORGET)


@pytest.fixture(scope="module")
def problem():
    return NetworkProblem.digits(N)


@pytest.fixture(scope="module")
def register(problem):
    """Return a function that registers the problem, or with other arguments by name."""

    def make(images=problem.images, labels=problem.labels, **options):
        options = {"name": "digits", "ridge": problem.ridge} | options
        return from_network(problem.spec, problem.centre, images, labels, **options)

    return make


@pytest.fixture(scope="module")
def gram(register):
    return register()


@pytest.fixture(scope="module")
def sketch(register):
    return register(statistics="sketch", rank=150, error_probes=60)


@pytest.fixture(scope="module")
def hessian(problem):
    rows = problem.jacobians.reshape(N * C, -1)
    return rows.T @ rows


# --- What is registered ------------------------------------------------------------------------


@pytest.mark.parametrize("convention", list(RidgeConvention))
def test_the_weights_are_the_optimum_of_the_normal_equations(
    register, problem, hessian, convention
):
    strength = {RidgeConvention.PER_SAMPLE: 0.01, RidgeConvention.TOTAL: 0.7}[convention]
    found = register(ridge=Ridge(convention, strength), tolerance=1e-12)
    shift = {RidgeConvention.PER_SAMPLE: 0.01 * N, RidgeConvention.TOTAL: 0.7}[convention]
    rows, residuals = problem._rows(np.arange(N))
    expected = np.linalg.solve(hessian + shift * np.eye(len(hessian)), rows.T @ residuals)
    np.testing.assert_allclose(found.weights.numpy(), expected, rtol=1e-8, atol=1e-11)
    assert found.relative_gradient <= 1e-12
    assert found.ridge == Ridge(convention, strength)


def test_the_gram_matrix_is_that_of_the_jacobians(gram, problem, hessian):
    stored = load_statistics(gram.files()["statistics"])
    _, residuals = problem._rows(np.arange(N))
    rows = problem.jacobians.reshape(N * C, -1)
    np.testing.assert_allclose(stored.gram.numpy(), hessian, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(stored.cross.numpy(), rows.T @ residuals, rtol=1e-9, atol=1e-9)
    assert stored.n_samples == N * C


def test_the_sketch_is_the_gram_matrix_along_its_directions(sketch, problem, hessian):
    stored = load_statistics(sketch.files()["statistics"])
    directions = stored.directions(0, 210).numpy()
    np.testing.assert_allclose(stored.sketch.numpy(), directions @ hessian, rtol=1e-8, atol=1e-7)
    np.testing.assert_allclose(stored.trace, np.trace(hessian), rtol=1e-12)
    assert torch.equal(stored.anchor, sketch.weights)
    assert (stored.rank, stored.error_probes, stored.n_samples) == (150, 60, N)
    gradient = problem.gradient_without([], sketch.weights.numpy())
    np.testing.assert_allclose(stored.gradient(problem.ridge).numpy(), gradient, atol=1e-9)


def test_the_seed_of_a_sketch_is_drawn_and_kept_in_it_alone(register, sketch):
    other = register(statistics="sketch", rank=20, error_probes=10)
    assert other.statistics.seed != sketch.statistics.seed
    assert str(other.statistics.seed) not in json.dumps(other.manifest)
    given = register(statistics="sketch", rank=20, error_probes=10, seed=3)
    assert given.statistics.seed == 3


def test_a_sketch_is_taken_along_public_samples(register, problem, sketch):
    # One line of the image tells a flattened public sample from a shaped one.
    public = problem.images[:40]
    shaped = register(statistics="sketch", rank=50, public_inputs=public, seed=1)
    flat = register(statistics="sketch", rank=50, public_inputs=public.reshape(40, -1), seed=1)
    basis = shaped.statistics.basis
    assert torch.equal(basis, flat.statistics.basis)
    assert sketch.statistics.basis is None
    # A third of the rank covers nearly as much.
    rows = problem.jacobians.reshape(N * C, -1)
    seen = np.linalg.norm(rows @ np.linalg.qr(basis.double().numpy().T)[0]) ** 2
    assert seen > 0.9 * np.linalg.norm(rows) ** 2


def test_the_manifest_says_what_was_trained(gram, problem):
    longest = np.linalg.norm(problem.jacobians, 2, axis=(1, 2)).max()
    gradient = np.linalg.norm(problem.gradient_without([], gram.weights.numpy()))
    manifest = dict(gram.manifest)
    assert longest <= manifest.pop("feature_norm_bound") <= longest * (1 + 1e-8)
    assert manifest.pop("training_gradient_norm") == pytest.approx(gradient, rel=1e-3)
    assert manifest == {
        "name": "digits",
        "task": "classification",
        "loss": "squared",
        "num_features": problem.num_parameters,
        "num_outputs": C,
        "ridge": {"convention": "per_sample", "strength": problem.strength},
        "n_samples": N,
        "training_gradient_tolerance": 1e-10,
        "network": problem.network(**digests_of(gram)),
    }


def digests_of(found):
    files = found.files()
    return {
        f"{name}_sha256": hashlib.sha256(files[part]).hexdigest()
        for name, part in (("centre", "network"), ("weights", "weights"))
    }


def test_of_weights_that_noise_will_hide_no_digest_is_published(register):
    privacy = {"mechanism": "output-perturbation", "epsilon": 1.0, "delta": 1e-6, "sigma": 0.1}
    found = register(statistics=None, declared={"privacy": privacy})
    assert found.manifest["network"]["centre_sha256"] == digests_of(found)["centre_sha256"]
    assert "weights_sha256" not in found.manifest["network"]
    assert found.model.privacy.sigma == 0.1


def test_further_fields_of_the_manifest_are_the_owners(register):
    declared = {"backbone": {"provenance": "public"}, "feature_norm_bound": 50.0}
    manifest = register(statistics=None, declared=declared).manifest
    assert manifest["backbone"] == {"provenance": "public"}
    assert manifest["feature_norm_bound"] == 50.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"statistics": "sketch", "rank": 40, "error_probes": 20},
        {"statistics": "sketch", "rank": 40, "error_probes": 20, "tolerance": 1e-3},
        {"statistics": None, "tolerance": 1e-4},
        {"tolerance": 1e-13},
        {"tolerance": 0.3},
    ],
    ids=["gram", "sketch", "loose-sketch", "none", "tight", "loose"],
)
def test_the_service_takes_the_files(register, problem, options):
    held = (problem.images[:5], problem.labels[:5])
    found = register(membership=True, holdout=held, **options)
    manifest = Manifest.model_validate_json(found.multipart()["manifest"][1])
    files = found.files()
    networks.require_consistent(manifest, has_surrogate=False)
    networks.read(files["network"], manifest)
    networks.require_digests(manifest, network=files["network"], weights=files["weights"])
    weights = checks.read_weights(files["weights"], manifest)
    if "statistics" in files:
        seen = checks.row_view(manifest)
        norm = checks.read_statistics(files["statistics"], seen).training_gradient_norm(
            weights, seen
        )
        # It adds what rounding may hide.
        assert norm == pytest.approx(manifest.training_gradient_norm, rel=0.01, abs=1e-5)
    read = samples.from_file(files["holdout"], manifest, field="holdout")
    np.testing.assert_array_equal(read.features, problem.images[:5].reshape(5, -1))
    assert membership.read(files["membership"], manifest).copies.sum() == N


def test_without_statistics_nothing_of_the_training_set_is_sent(register):
    assert register(statistics=None).files().keys() == {"network", "weights"}


def test_digests_are_those_of_the_samples_as_they_are_sent(register, problem):
    key = bytes(range(32))
    found = register(membership=key, statistics=None)
    stored = safetensors.numpy.load(found.files()["membership"])
    expected = sorted(digests.of_each(problem.images.reshape(N, -1), problem.targets, key))
    assert [row.tobytes() for row in stored["digests"]] == expected
    shaped = found.samples(problem.images[:3], problem.labels[:3])
    flat = found.samples(problem.images[:3].reshape(3, -1), problem.targets[:3])
    assert torch.equal(shaped.features, flat.features)
    assert torch.equal(shaped.targets, flat.targets)


def test_the_centre_is_sent_as_it_was_given(problem):
    narrow = {name: tensor.float() for name, tensor in problem.centre.items()}
    found = from_network(
        problem.spec, narrow, problem.images, problem.labels, name="m", ridge=problem.ridge
    )
    sent = safetensors.torch.load(found.files()["network"])
    assert sent.keys() == narrow.keys()
    assert all(torch.equal(sent[name], narrow[name]) for name in narrow)


@pytest.mark.parametrize("whole", [True, False], ids=["all-layers", "last-layers"])
def test_where_requests_send_features_the_frozen_layers_stay_with_the_owner(problem, gram, whole):
    other = problem.but(samples="features")
    kept = safetensors.torch.load(other.network_file())
    found = from_network(
        problem.spec,
        problem.centre if whole else kept,
        problem.features,
        problem.labels,
        name="digits",
        ridge=problem.ridge,
        samples="features",
    )
    assert found.manifest["network"] == other.network(**digests_of(found))
    assert safetensors.torch.load(found.files()["network"]).keys() == kept.keys()
    torch.testing.assert_close(found.weights, gram.weights, rtol=1e-9, atol=1e-12)


def test_targets_of_a_regression_are_numbers(register, problem):
    targets = problem.targets * 3 - 1
    found = register(labels=targets, task=Task.REGRESSION)
    np.testing.assert_array_equal(found.samples(problem.images, targets).targets, targets)
    jacobians, residuals = problem._rows(np.arange(N))
    residuals += (targets - problem.targets).reshape(-1, 1)
    shifted = jacobians.T @ jacobians + problem.strength * N * np.eye(problem.num_parameters)
    expected = np.linalg.solve(shifted, jacobians.T @ residuals)
    np.testing.assert_allclose(found.weights.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_a_network_that_fits_already_stays_as_it_is(register, problem, gram):
    features = gram.features(problem.images, problem.labels).features
    targets = gram.linearisation.centre_outputs(features)
    found = register(labels=targets, task=Task.REGRESSION)
    assert not found.weights.any()
    assert found.relative_gradient == found.manifest["training_gradient_norm"] == 0


def test_the_range_of_inputs_is_declared_or_the_datas_own(register, problem):
    held = (problem.images[:3] * 1.5, problem.labels[:3])
    derived = register(statistics=None, holdout=held).manifest["network"]["input_range"]
    assert derived == [0.0, float(held[0].max())]
    declared = register(statistics=None, input_range=(-1, 2)).manifest["network"]["input_range"]
    assert declared == [-1.0, 2.0]


# --- What comes of it --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gram", "sketch"])
def test_a_deletion_from_the_files_is_retraining(kind, gram, sketch, problem):
    found = {"gram": gram, "sketch": sketch}[kind]
    files, model = found.files(), found.model
    method = {"gram": Method.STORED, "sketch": Method.SKETCH}[kind]
    result = unlearn(
        model,
        found.features(problem.images[:FORGET], problem.labels[:FORGET]),
        statistics=load_statistics(files["statistics"]),
        task=Task.CLASSIFICATION,
        options=UnlearningOptions(method),
    )
    assert isinstance(result, Unlearned), result
    assert torch.equal(load_weights(files["weights"]), model.weights)
    retrained, before = problem.train_without(FORGOTTEN), problem.train()
    left = np.linalg.norm(result.weights.numpy() - retrained) / np.linalg.norm(before - retrained)
    assert left < {"gram": 1e-7, "sketch": 0.5}[kind]


def test_a_start_near_the_optimum_saves_iterations(register, gram):
    class Count(Watcher):
        iterations = 0

        def training(self, iteration, *_):
            self.iterations = iteration

    cold, warm, done = Count(), Count(), Count()
    register(statistics=None, watcher=cold)
    near = gram.weights * (1 + 1e-6)
    again = register(statistics=None, start=near, watcher=warm)
    register(statistics=None, start=gram.weights, watcher=done)
    assert 0 < warm.iterations < cold.iterations
    assert done.iterations == 0
    torch.testing.assert_close(again.weights, gram.weights, rtol=1e-7, atol=1e-10)


def test_weights_that_were_trained_elsewhere_are_taken_if_they_are_an_optimum(register, problem):
    weights = torch.from_numpy(problem.train())
    found = register(weights=weights)
    assert torch.equal(found.weights, weights)
    assert found.relative_gradient <= 1e-10
    with pytest.raises(InvalidOptionError, match=r"^weights: no optimum .* as `start`"):
        register(weights=weights * 1.01)
    with pytest.raises(InvalidTensorError, match=r"^weights: expected shape \(610, 1\)"):
        register(weights=weights[1:])
    with pytest.raises(InvalidTensorError, match=r"^start: expected shape \(610, 1\)"):
        register(start=weights[1:])


def test_whoever_watches_hears_of_each_stage_and_may_stop_it(register):
    class Notes(Watcher):
        def __init__(self):
            self.heard = []

        def features(self, fraction):
            self.heard.append(("features", fraction))

        def training(self, _iteration, relative_gradient, _weights):
            self.heard.append(("training", relative_gradient))

        def statistics(self, fraction):
            self.heard.append(("statistics", fraction))

    notes = Notes()
    register(statistics="sketch", rank=40, error_probes=20, watcher=notes)
    stages = [stage for stage, _ in notes.heard]
    assert stages == sorted(stages, key=["features", "training", "statistics"].index)
    assert [share for stage, share in notes.heard if stage == "features"][-1] == 1.0
    shares = [share for stage, share in notes.heard if stage == "statistics"]
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert shares == sorted(shares)

    class Impatient(Watcher):
        def training(self, *_):
            raise TimeoutError

    with pytest.raises(TimeoutError):
        register(watcher=Impatient())


# --- What is refused ---------------------------------------------------------------------------

BAD_OPTIONS = {
    "samples": ({"samples": "pixels"}, "samples: expected `inputs` or `features`, got 'pixels'"),
    "statistics": ({"statistics": "kfac"}, "statistics: expected `gram`, `sketch` or none"),
    "rank": ({"statistics": "sketch", "rank": 0}, "rank: expected 1 to D = 610, got 0"),
    "large-rank": ({"statistics": "sketch", "rank": 611}, "rank: expected 1 to D = 610, got 611"),
    "probes": ({"statistics": "sketch", "error_probes": 2}, "error_probes: expected at least"),
    "seed": ({"statistics": "sketch", "seed": 2**53}, "seed: expected a number in"),
    "tolerance": ({"tolerance": 0.0}, "tolerance: expected a positive number, got 0"),
    "no-ridge": ({"ridge": Ridge(RidgeConvention.TOTAL, 0.0)}, "ridge strength: expected a pos"),
    "public": ({"public_inputs": np.zeros((2, 64))}, "public_inputs: a sketch alone"),
    "device": ({"device": "tpu"}, "device: expected one of auto, cpu, cuda, got 'tpu'"),
    "narrow": ({"input_range": (0, 0.5)}, "input_range: an input holds 1, outside the declared"),
    "reversed": ({"input_range": (1, 0)}, r"input_range: \(1, 0\) is no range"),
    "high": ({"input_range": (0.5, 2)}, "input_range: an input holds 0, outside the declared"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_an_option_out_of_range_is_named(register, case):
    options, message = BAD_OPTIONS[case]
    with pytest.raises(InvalidOptionError, match=f"^{message}"):
        register(**options)


def test_samples_that_do_not_fit_are_named(register, problem):
    with pytest.raises(InvalidTensorError, match=r"^X: expected shape \(n, 1, 8, 8\), .* 64, 1\)"):
        register(images=problem.images.reshape(N, 64, 1))
    with pytest.raises(InvalidTensorError, match=r"^y: expected as many rows as X has, 120, got 7"):
        register(labels=problem.labels[:7])
    with pytest.raises(InvalidTensorError, match=r"^y: '10' is none of the classes"):
        register(labels=problem.labels + 1)
    with pytest.raises(InvalidTensorError, match=r"^y: the task `classification` takes one-hot"):
        register(labels=np.ones((N, C)))
    with pytest.raises(InvalidTensorError, match=r"^holdout: y: the task `classification`"):
        register(holdout=(problem.images[:2], np.ones((2, C))))
    with pytest.raises(InvalidTensorError, match=r"^holdout: X: expected shape \(n, 1, 8, 8\)"):
        register(holdout=(problem.images[:2, :, 1:], problem.labels[:2]))
    with pytest.raises(InvalidTensorError, match=r"^public_inputs: X: expected shape"):
        register(statistics="sketch", public_inputs=problem.images[:, :, 1:])
    with pytest.raises(InvalidOptionError, match=r"^rank: expected 1 to 10, as many as the public"):
        register(statistics="sketch", public_inputs=problem.images[:1])


def test_inputs_that_say_nothing_of_their_range_need_a_declared_one(register, problem):
    with pytest.raises(InvalidOptionError, match=r"^input_range: \(0, 0\) is no range"):
        register(images=np.zeros_like(problem.images))


def test_a_range_belongs_to_inputs(register, problem):
    with pytest.raises(InvalidOptionError, match=r"^input_range: \(0, 1\) is about inputs"):
        register(images=problem.features, samples="features", input_range=(0, 1))


def test_inputs_that_overflow_are_refused(register, problem):
    with pytest.raises(InvalidTensorError, match=r"^X: the Jacobian of a sample overflows"):
        register(images=problem.images * 1e200)


def test_tensors_of_another_network_are_named(problem):
    changed = {f"{name}x": tensor for name, tensor in problem.centre.items()}
    with pytest.raises(InvalidTensorError, match=r"convolutions.0.weight: expected shape"):
        from_network(
            problem.spec, changed, problem.images, problem.labels, name="m", ridge=problem.ridge
        )
    with pytest.raises(InvalidTensorError, match="'foreign': expected no such key"):
        from_network(
            problem.spec,
            problem.centre | {"foreign": torch.zeros(1)},
            problem.features,
            problem.labels,
            name="m",
            ridge=problem.ridge,
            samples="features",
        )


def test_a_gram_matrix_that_would_not_fit_is_refused_before_the_training():
    spec = NetworkSpec("mlp", (90,), 10, 2, widths=(90,))
    with pytest.raises(InvalidOptionError, match=r"^statistics: .* at most D = 8192 .* and 9100"):
        from_network(
            spec,
            initialise(spec, 0),
            np.zeros((1, 90)),
            [0],
            name="m",
            ridge=Ridge(RidgeConvention.TOTAL, 1.0),
        )


def test_one_output_is_no_classification():
    spec = NetworkSpec("linear", (3,), 1, 1)
    with pytest.raises(InvalidOptionError, match=r"^task: `classification` takes one output"):
        from_network(
            spec,
            initialise(spec, 0),
            np.eye(3),
            [0, 1, 1],
            name="m",
            ridge=Ridge(RidgeConvention.TOTAL, 1.0),
        )


def test_training_that_does_not_come_down_says_so(register, gram):
    with pytest.raises(SolverError, match="conjugate gradients"):
        register(start=torch.full_like(gram.weights, 1e307))
