"""Networks at the border: what fits the declared architecture is taken, all else is refused."""

import hashlib
import json
import math

import numpy as np
import pytest
import safetensors.numpy

from app.errors import InvalidInputError
from app.registry import checks, networks, samples, service
from app.registry.models import Model
from app.registry.schemas import Manifest
from app.unlearning import digests
from core.linearised import probes
from core.linearised import sketch as core_sketch
from core.linearised.architectures import head_tensors, is_count
from core.serialization import load_statistics
from core.statistics import StoredStatistics
from tests.reference.networks import NetworkProblem

URL = "/v1/unlearning-requests"
ROWS = np.arange(2)


def tensors(**named):
    return safetensors.numpy.save(named)


def changed(content, **changes):
    """Return a safetensors file with some tensors replaced, or left out if None."""
    merged = safetensors.numpy.load(content) | changes
    return tensors(**{name: value for name, value in merged.items() if value is not None})


@pytest.fixture(scope="module")
def gram():
    return NetworkProblem.digits(60)


@pytest.fixture(scope="module")
def sketched(gram):
    return gram.but(statistics="sketch", rank=20, error_probes=10)


@pytest.fixture(scope="module")
def as_features(gram):
    return gram.but(samples="features")


@pytest.fixture(scope="module")
def files(gram, sketched):
    """The statistics, collected once."""
    return {"gram": gram.statistics_file(), "sketch": sketched.statistics_file()}


@pytest.fixture
def parts(files):
    """Return a function that makes a multipart body; keyword arguments change the manifest."""

    def make(problem, *, statistics=False, centre=None, **changes):
        made = {
            "manifest": json.dumps(problem.manifest("network", **changes)).encode(),
            "weights": problem.weights_file(),
            "network": problem.network_file() if centre is None else centre,
        }
        if statistics is not False:
            content = files[problem.statistics] if statistics is True else statistics
            made["statistics"] = content
        return made

    return make


@pytest.fixture
def refuse(make_api, written):
    def send(sent, field, **settings):
        api = make_api(**settings)
        before = written()
        answer = api.register(sent)
        assert answer.status_code == 422, answer.text
        problem = answer.json()
        assert problem["field"] == field, problem
        assert problem["remedy"]
        assert written() == before
        return problem

    return send


@pytest.fixture
def register(api, parts):
    def send(problem, **options):
        answer = api.register(parts(problem, **options))
        assert answer.status_code == 201, answer.text
        return answer.json()

    return send


def test_with_a_gram_matrix_deletions_are_exact(register, gram):
    model = register(gram, statistics=True)
    assert model["policy"]["methods"] == ["stored", "forget-curvature"]
    assert model["has_statistics"] is True
    assert model["manifest"]["network"] == gram.network()


def test_with_a_sketch_deletions_are_certified(api, register, sketched):
    model = register(sketched, statistics=True)
    assert model["policy"]["methods"] == ["stored-sketch", "forget-curvature"]
    (revision,) = api.get(f"/v1/models/{model['id']}/revisions").json()["items"]
    norm = np.linalg.norm(sketched.gradient_without([], sketched.weights.numpy()))
    assert norm <= revision["gradient_norm_bound"] + 1e-12 < 1e-6


@pytest.mark.parametrize("statistics", ["gram", "sketch"])
def test_without_statistics_they_are_estimated(register, gram, statistics):
    assert register(gram.but(statistics=statistics))["policy"]["methods"] == ["forget-curvature"]


def test_a_linear_head_has_no_network(api, trained):
    model = api.register(trained.parts()).json()
    assert model["network_sha256"] is None
    assert model["manifest"]["network"] is None


def test_the_centre_is_stored_as_it_was_sent_and_its_digest_shown(
    api, register, gram, session, services
):
    centre = safetensors.numpy.load(gram.network_file())
    centre = {name: value.astype(np.float32) for name, value in centre.items()}
    shown = register(gram, centre=tensors(**dict(reversed(centre.items()))))
    stored = service.load_network(session, services.store, session.get_one(Model, shown["id"]))
    assert hashlib.sha256(stored).hexdigest() == shown["network_sha256"]
    assert stored == safetensors.numpy.save(centre)
    assert api.get(f"/v1/models/{shown['id']}").json()["network_sha256"] == shown["network_sha256"]
    entries = api.get("/v1/audit/entries").json()["items"]
    (entry,) = [one for one in entries if one["subject"].get("model_id") == shown["id"]]
    assert entry["payload"]["network_sha256"] == shown["network_sha256"]


def test_where_features_are_sent_the_frozen_layers_are_not(register, refuse, parts, as_features):
    register(as_features, statistics=True)
    everything = as_features.but(samples="inputs").network_file()
    refuse(parts(as_features, centre=everything), "network")


def test_what_is_stored_is_what_the_core_loads(register, gram, sketched, session, services):
    def stored(problem):
        model = session.get_one(Model, register(problem, statistics=True)["id"])
        revision = service.current_revision(session, model)
        return load_statistics(service.load_statistics(session, services.store, revision))

    exact = stored(gram)
    assert isinstance(exact, StoredStatistics)
    assert exact.n_samples == 60 * 10
    assert isinstance(stored(sketched), core_sketch.SketchStatistics)


def test_the_total_ridge_convention_is_taken_at_its_word(api, parts, gram):
    total = {"convention": "total", "strength": gram.strength * 60}
    assert api.register(parts(gram, statistics=True, ridge=total)).status_code == 201
    twice = total | {"strength": 2 * total["strength"]}
    assert api.register(parts(gram, statistics=True, ridge=twice)).status_code == 422


WRONG_NETWORKS = [
    ({"architecture": "transformer"}, "network.architecture"),
    ({"architecture": "mlp"}, "network.channels"),
    ({"architecture": "linear", "channels": []}, "network.widths"),
    ({"architecture": "resnet18", "channels": [], "widths": []}, "network.input_shape"),
    ({"input_shape": []}, "network.input_shape"),
    ({"input_shape": [64]}, "network.input_shape"),
    ({"input_shape": [1, 8, 1]}, "network.input_shape"),
    ({"input_shape": [1, 8, 0]}, "network.input_shape.2"),
    ({"input_shape": "1x8x8"}, "network.input_shape"),
    ({"input_shape": [1] * 65}, "network.input_shape"),
    ({"input_shape": [1, 8, 2**22]}, "num_features"),
    ({"layers": 0}, "network.layers"),
    ({"layers": 4}, "network.layers"),
    ({"layers": 1}, "num_features"),
    ({"layers": 1.5}, "network.layers"),
    ({"widths": [9]}, "num_features"),
    ({"widths": [True]}, "network.widths.0"),
    ({"channels": []}, "network.channels"),
    ({"samples": "images"}, "network.samples"),
    ({"samples": "features"}, "network.input_range"),
    ({"input_range": None}, "network.input_range"),
    ({"input_range": [1.0, 0.0]}, "network.input_range"),
    ({"input_range": [0.5, 0.5]}, "network.input_range"),
    ({"input_range": [0.0]}, "network.input_range"),
    ({"input_range": [0.0, 2.0**53]}, "network.input_range.1"),
    ({"statistics": "factor"}, "network.statistics"),
    ({"code": "import os"}, "network.code"),
]


@pytest.mark.parametrize(("change", "field"), WRONG_NETWORKS)
def test_a_network_that_there_is_not_is_refused_by_name(refuse, parts, gram, change, field):
    refuse(parts(gram, network=gram.network(**change)), f"manifest.{field}")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_features": 609}, "num_features"),
        ({"num_outputs": 9}, "num_features"),
        ({"loss": "logistic"}, "loss"),
        ({"ridge": {"convention": "total", "strength": 0}}, "ridge.strength"),
        ({"network": "small-cnn"}, "network"),
        ({"network": None}, "network"),
        ({"policy": {"methods": ["paper-sdp"]}}, "policy.methods"),
        ({"policy": {"methods": ["stored"]}}, "policy.methods"),
    ],
)
def test_a_manifest_that_contradicts_its_network_is_refused(refuse, parts, gram, change, field):
    prefix = "" if change == {"network": None} else "manifest."
    refuse(parts(gram, **change), prefix + field)


@pytest.mark.parametrize("part", ["network", "weights"])
def test_declared_digests_are_held_against_the_files(api, refuse, parts, gram, part):
    name = {"network": "centre_sha256", "weights": "weights_sha256"}[part]
    digest = hashlib.sha256(parts(gram)[part]).hexdigest()
    answer = api.register(parts(gram, network=gram.network(**{name: digest})))
    assert answer.status_code == 201, answer.text
    assert answer.json()["manifest"]["network"][name] == digest

    other = hashlib.sha256(b"another file").hexdigest()
    problem = refuse(parts(gram, network=gram.network(**{name: other})), part)
    assert digest in problem["detail"]
    assert other in problem["detail"]


def test_a_digest_of_weights_that_noise_hides_is_refused(refuse, parts, gram):
    digest = hashlib.sha256(parts(gram)["weights"]).hexdigest()
    privacy = {"mechanism": "output-perturbation", "epsilon": 1.0, "delta": 1e-4, "sigma": 1.0}
    sent = parts(
        gram, statistics=True, privacy=privacy, network=gram.network(weights_sha256=digest)
    )
    refuse(sent, "manifest.network.weights_sha256")


def test_a_digest_is_64_hexadecimal_digits(refuse, parts, gram):
    declared = gram.network(centre_sha256="abc")
    refuse(parts(gram, network=declared), "manifest.network.centre_sha256")


def test_the_width_is_told(refuse, parts, gram):
    problem = refuse(parts(gram, num_features=64), "manifest.num_features")
    assert "D = 610" in problem["detail"]
    assert "610" in problem["remedy"]


def test_a_layer_that_no_worker_can_hold_is_refused(refuse, parts, gram):
    wide = {"architecture": "mlp", "input_shape": [2**24], "channels": [], "layers": 1}
    sent = parts(gram, network=gram.network(**wide), num_features=90)
    problem = refuse(sent, "manifest.network.input_shape")
    assert str(2**24) in problem["detail"]


def test_the_limits_are_the_operators(refuse, make_api, parts, gram, sketched):
    problem = refuse(parts(gram), "manifest.num_features", max_parameters=609)
    assert "MAX_PARAMETERS" in problem["remedy"]
    # D² numbers are another matter than D, if they are sent.
    problem = refuse(parts(gram, statistics=True), "manifest.num_features", max_features=609)
    assert "sketch" in problem["remedy"]
    few = make_api(max_features=609)
    assert few.register(parts(gram)).status_code == 201
    assert few.register(parts(sketched, statistics=True)).status_code == 201


def test_noise_may_hide_what_a_gram_matrix_leaves_but_not_what_a_sketch_does(
    api, refuse, parts, gram, sketched
):
    noise = {"mechanism": "output-perturbation", "epsilon": 1.0, "delta": 1e-3, "sigma": 2.0}
    answer = api.register(parts(gram, statistics=True, privacy=noise))
    assert answer.json()["policy"]["methods"] == ["stored"]
    problem = refuse(parts(sketched, statistics=True, privacy=noise), "manifest.privacy")
    assert "probability" in problem["detail"]
    refuse(parts(gram, privacy=noise), "manifest.privacy")
    trained_with = noise | {"mechanism": "objective-perturbation"}
    refuse(parts(gram, statistics=True, privacy=trained_with), "manifest.privacy.mechanism")


def test_a_surrogate_is_for_linear_heads(refuse, parts, gram):
    refuse(parts(gram) | {"surrogate": tensors(x=np.ones((3, 610)))}, "surrogate")


def test_the_part_comes_with_the_declaration_and_only_with_it(refuse, parts, trained, gram):
    sent = parts(gram)
    del sent["network"]
    problem = refuse(sent, "network")
    assert "missing" in problem["detail"]
    problem = refuse(trained.parts() | {"network": gram.network_file()}, "network")
    assert "no network" in problem["detail"]


WRONG_CENTRES = {
    "no safetensors": (lambda _: b"\x80\x04\x95", ""),
    "empty": (lambda _: b"", ""),
    "a key is missing": (lambda f: changed(f, **{"dense.1.bias": None}), ".dense.1.bias"),
    "a key too many": (lambda f: changed(f, **{"dense.2.bias": np.ones(10)}), ""),
    "a name that misleads": (lambda f: changed(f, **{"dense.0.bias: x; y": np.ones(1)}), ""),
    "another shape": (lambda f: changed(f, **{"dense.1.bias": np.ones(9)}), ".dense.1.bias"),
    "transposed": (lambda f: changed(f, **{"dense.1.weight": np.ones((8, 10))}), ".dense.1.weight"),
    "half precision": (
        lambda f: changed(f, **{"dense.1.bias": np.ones(10, np.float16)}),
        ".dense.1.bias",
    ),
    "integers": (lambda f: changed(f, **{"dense.1.bias": np.ones(10, np.int64)}), ".dense.1.bias"),
    "NaN": (lambda f: changed(f, **{"dense.1.bias": np.full(10, np.nan)}), ".dense.1.bias"),
    "infinite": (
        lambda f: changed(f, **{"convolutions.0.bias": np.full(4, np.inf)}),
        ".convolutions.0.bias",
    ),
}


@pytest.mark.parametrize("name", WRONG_CENTRES)
def test_a_centre_of_another_kind_is_refused(refuse, parts, gram, name):
    change, field = WRONG_CENTRES[name]
    refuse(parts(gram, centre=change(gram.network_file())), f"network{field}")


@pytest.fixture(scope="module")
def resnet():
    """The last block of a ResNet and what comes after it, as a file with samples `features`."""
    declared = Manifest.model_validate(
        {
            "name": "resnet",
            "task": "classification",
            "num_features": 4725760,
            "num_outputs": 10,
            "ridge": {"convention": "per_sample", "strength": 0.1},
            "n_samples": 100,
            "feature_norm_bound": 10.0,
            "network": {
                "architecture": "resnet18",
                "input_shape": [3, 32, 32],
                "layers": 2,
                "samples": "features",
            },
        }
    )
    shapes = head_tensors(declared.network.to_core(10))
    centre = {
        name: np.zeros(shape, np.int64 if is_count(name) else np.float32)
        for name, shape in shapes.items()
    }
    return declared, centre


def test_counts_may_be_missing_and_variances_are_not_negative(resnet):
    declared, centre = resnet
    without = {name: value for name, value in centre.items() if not is_count(name)}
    for some in (centre, without):
        kept = safetensors.numpy.load(networks.read(tensors(**some), declared))
        assert kept.keys() == some.keys()
    below = without | {"layer4.1.bn2.running_var": np.full(512, -1e-9, np.float32)}
    with pytest.raises(InvalidInputError, match="a variance is at least 0") as caught:
        networks.read(tensors(**below), declared)
    assert caught.value.field == "network.layer4.1.bn2.running_var"
    real = centre | {"layer4.1.bn1.num_batches_tracked": np.zeros(())}
    with pytest.raises(InvalidInputError, match="I64") as caught:
        networks.read(tensors(**real), declared)
    assert caught.value.field == "network.layer4.1.bn1.num_batches_tracked"


@pytest.mark.parametrize(
    "weight", [np.zeros((610, 10)), np.zeros((1, 610)), np.zeros(610), np.full((610, 1), np.nan)]
)
def test_the_weights_of_a_network_are_one_column(refuse, parts, gram, weight):
    refuse(parts(gram) | {"weights": tensors(weight=weight)}, "weights.weight")


WRONG_GRAMS = {
    "counts samples, not rows": ({"n_samples": np.array([60])}, ".n_samples"),
    "of targets, not residuals": ({"cross": np.ones((610, 10))}, ".cross"),
    "of other rows": ({"gram": np.eye(610)}, ""),
    "trace above n·C·R_J²": ({"gram": 1e9 * np.eye(610)}, ".gram"),
}


@pytest.mark.parametrize("name", WRONG_GRAMS)
def test_a_gram_matrix_of_something_else_is_refused(refuse, parts, files, gram, name):
    change, field = WRONG_GRAMS[name]
    content = changed(files["gram"], round_off=None, **change)
    refuse(parts(gram, statistics=content), f"statistics{field}")


def test_the_part_is_of_the_declared_kind(refuse, parts, files, gram, sketched):
    refuse(parts(gram, statistics=files["sketch"]), "statistics")
    refuse(parts(sketched, statistics=files["gram"]), "statistics")


def bent(matrix, place, by):
    copy = matrix.copy()
    copy[place] += by
    return copy


WRONG_SKETCHES = {
    "another D": (lambda f: {"sketch": f["sketch"][:, 1:].copy()}, "sketch"),
    "single precision": (lambda f: {"sketch": f["sketch"].astype(np.float32)}, "sketch"),
    "not finite": (lambda f: {"sketch": bent(f["sketch"], (3, 4), np.inf)}, "sketch"),
    "a direction less": (lambda f: {"sketch": f["sketch"][1:].copy()}, "core"),
    "of another direction": (lambda f: {"sketch": bent(f["sketch"], 3, 0.5)}, "core"),
    "core of another shape": (lambda _: {"core": np.eye(29)}, "core"),
    "core not symmetric": (lambda f: {"core": bent(f["core"], (0, 1), 1e-3)}, "core"),
    "core indefinite": (lambda f: {"core": f["core"] - np.eye(30)}, "core"),
    "core of other samples": (lambda f: {"core": 1.001 * f["core"]}, "core"),
    "another seed": (lambda _: {"seed": np.array([12])}, "core"),
    "negative seed": (lambda _: {"seed": np.array([-1])}, "seed"),
    "seed too large": (lambda _: {"seed": np.array([2**53])}, "seed"),
    "more probes than directions": (lambda _: {"error_probes": np.array([30])}, "error_probes"),
    "too few probes": (lambda _: {"error_probes": np.array([9])}, "error_probes"),
    "other probes": (lambda _: {"error_probes": np.array([11])}, "core"),
    "anchor a bit off": (
        lambda f: {"anchor": np.nextafter(f["anchor"], np.inf)},
        "anchor",
    ),
    "anchor of another shape": (lambda f: {"anchor": f["anchor"][1:].copy()}, "anchor"),
    "gradient with the ridge": (
        lambda f: {"data_gradient": f["data_gradient"] + 0.3 * 60 * f["anchor"]},
        "data_gradient",
    ),
    "gradient overflows": (lambda _: {"data_gradient": np.full((610, 1), 1e308)}, "data_gradient"),
    "negative uncertainty": (
        lambda _: {"gradient_uncertainty": np.array([-1e-9])},
        "gradient_uncertainty",
    ),
    "no trace": (lambda _: {"trace": np.array([0.0])}, "trace"),
    "trace above n·C·R_J²": (lambda _: {"trace": np.array([1e9])}, "trace"),
    "another n": (lambda _: {"n_samples": np.array([600])}, "n_samples"),
    "basis of another shape": (lambda _: {"basis": np.ones((19, 610), np.float32)}, "basis"),
    "basis in double precision": (lambda _: {"basis": np.ones((20, 610))}, "basis"),
    "basis of another sketch": (lambda _: {"basis": np.ones((20, 610), np.float32)}, "core"),
}


@pytest.mark.parametrize("name", WRONG_SKETCHES)
def test_a_sketch_that_no_training_set_has_is_refused(refuse, parts, files, sketched, name):
    change, field = WRONG_SKETCHES[name]
    content = files["sketch"]
    content = changed(content, **change(safetensors.numpy.load(content)))
    refuse(parts(sketched, statistics=content), f"statistics.{field}")


@pytest.mark.parametrize("key", ["sketch", "core", "trace", "seed", "gradient_uncertainty"])
def test_a_sketch_without_a_tensor_is_refused(refuse, parts, files, sketched, key):
    refuse(parts(sketched, statistics=changed(files["sketch"], **{key: None})), "statistics")


def test_a_sketch_along_a_chosen_basis_is_taken(api, parts, sketched, session, services):
    drawn = np.random.default_rng(2).normal(size=(610, 20))
    basis = np.ascontiguousarray(np.linalg.qr(drawn)[0].T, np.float32)
    jacobians = sketched.jacobians.reshape(-1, 610)
    found = safetensors.numpy.load(sketched.statistics_file())
    directions = np.vstack([basis.astype(np.float64), along_probes()])
    images = jacobians @ directions.T
    content = tensors(
        **found | {"basis": basis, "sketch": images.T @ jacobians, "core": images.T @ images}
    )
    answer = api.register(parts(sketched, statistics=content))
    assert answer.status_code == 201, answer.text
    revision = service.current_revision(session, session.get_one(Model, answer.json()["id"]))
    kept = load_statistics(service.load_statistics(session, services.store, revision))
    assert (kept.rank, kept.error_probes) == (20, 10)


def along_probes():
    return probes.gaussian_rows(11, 0, 10, 610)


def test_the_uncertainty_is_added_to_the_bound(files, sketched):
    declared = Manifest.model_validate(sketched.manifest("m"))
    content = changed(files["sketch"], gradient_uncertainty=np.array([0.25]))
    read = checks.read_statistics(content, declared)
    assert 0.25 <= read.training_gradient_norm(sketched.weights.numpy(), declared) < 0.2500001


# What requests send


def request_of(api, model, samples, **options):
    body = json.dumps({"model_id": model["id"], "seed": 1} | options)
    files = {"request": ("r", body), "samples": ("s", samples)}
    return api.post(URL, files=files)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 64)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inputs_come_in_their_own_shape_or_flattened(api, register, gram, shape, dtype):
    x = gram.images[ROWS].reshape(shape).astype(dtype)
    answer = request_of(api, register(gram), tensors(x=x, y=gram.labels[ROWS]))
    assert answer.status_code == 202, answer.text
    assert answer.json()["sample_count"] == 2


def test_in_json_they_are_flattened(api, register, gram):
    x = gram.images[ROWS].reshape(2, 64).tolist()
    body = {"model_id": register(gram)["id"], "samples": {"x": x, "y": [0, 1]}}
    assert api.post(URL, json=body).status_code == 202


def test_features_have_any_norm_that_the_worker_finds_fit(api, register, as_features):
    model = register(as_features)
    long = 1e6 * as_features.features[ROWS]
    assert request_of(api, model, tensors(x=long, y=ROWS)).status_code == 202
    wrong = tensors(x=as_features.images[ROWS], y=ROWS)
    # An image of 8×8 has 64 points, and there are 64 features: only the shape tells them apart.
    assert request_of(api, model, wrong).json()["field"] == "samples.x"


@pytest.mark.parametrize(
    "shape", [(2, 8, 8), (2, 1, 8, 9), (2, 63), (1, 64, 2), (64,), (2, 8, 8, 1)]
)
def test_samples_of_another_shape_are_refused_with_both(api, register, written, gram, shape):
    model = register(gram)
    before = written()
    problem = request_of(api, model, tensors(x=np.zeros(shape), y=np.zeros(2, np.int64))).json()
    assert (problem["status"], problem["field"]) == (422, "samples.x")
    assert "(1, 8, 8)" in problem["remedy"]
    assert str(shape) in problem["detail"]
    assert written() == before


def with_one(gram, value):
    """Return three inputs, one of which has one value that it should not have."""
    x = gram.images[:3].copy()
    x[1, 0, 4, 2] = value
    return tensors(x=x, y=gram.labels[:3])


@pytest.mark.parametrize("value", [-1e-6, 1.000001, 255.0])
def test_an_input_out_of_range_is_refused_with_its_row_and_the_range(
    api, register, written, gram, value
):
    model = register(gram)
    before = written()
    problem = request_of(api, model, with_one(gram, value)).json()
    assert (problem["status"], problem["field"]) == (422, "samples.x")
    assert f"row 1 has the value {value:.6g}" in problem["detail"]
    assert "0 to 1" in problem["detail"]
    assert written() == before


def test_a_holdout_is_held_to_the_same_range(refuse, parts, gram):
    refuse(parts(gram) | {"holdout": with_one(gram, 1.5)}, "holdout.x")


def test_samples_on_the_ends_of_the_range_pass(api, register, gram):
    x = np.stack([np.zeros((1, 8, 8)), np.ones((1, 8, 8))])
    assert request_of(api, register(gram), tensors(x=x, y=ROWS)).status_code == 202


def test_as_many_numbers_are_taken_as_of_a_head(api, register, gram):
    most = 2**25 // (64 + 10)
    assert math.prod((most + 1, 74)) > 2**25
    x = np.zeros((most + 1, 1, 8, 8), np.float32)
    problem = request_of(api, register(gram), tensors(x=x[:1], y=ROWS[:1])).json()
    assert problem["state"] == "queued"
    declared = Manifest.model_validate(gram.manifest("m"))

    with pytest.raises(InvalidInputError, match="74 features and targets"):
        samples.from_arrays(x, np.zeros(most + 1, np.int64), declared, field="s")


def test_the_default_method_is_what_the_statistics_are_for(api, register, gram, sketched):
    found = {
        "gram": register(gram, statistics=True),
        "sketch": register(sketched, statistics=True),
        "nothing": register(gram),
    }
    asked = {
        name: request_of(api, model, gram.samples_file(ROWS)).json()
        for name, model in found.items()
    }
    assert {name: (one["method"], one["tier"]) for name, one in asked.items()} == {
        "gram": ("stored", "exact"),
        "sketch": ("stored-sketch", "certified"),
        "nothing": ("forget-curvature", "estimated"),
    }


@pytest.mark.parametrize(
    "case",
    [
        ("gram", "stored-sketch", "statistics of the kind 'gram'"),
        ("sketch", "stored", "statistics of the kind 'sketch'"),
        ("sketch", "surrogate", "is for linear heads"),
        ("gram", "paper-sdp", "is for linear heads"),
        (None, "stored", "needs stored statistics"),
    ],
)
def test_a_method_that_does_not_suit_is_refused_with_those_that_do(api, register, gram, case):
    kind, method, finding = case
    small = gram.but(statistics=kind or "gram", rank=20, error_probes=10)
    model = register(small, statistics=kind is not None)
    answer = request_of(api, model, gram.samples_file(ROWS), method=method).json()
    assert (answer["status"], answer["field"]) == (422, "method")
    assert finding in answer["detail"]
    assert "forget-curvature" in answer["remedy"]


def test_a_head_takes_no_sketch(api, trained, model_id):
    answer = api.post(URL, json=trained.request(model_id, method="stored-sketch"))
    assert (answer.status_code, answer.json()["field"]) == (422, "method")
    assert "is for networks" in answer.json()["detail"]


def test_digests_are_of_flattened_samples(gram):
    declared = Manifest.model_validate(gram.manifest("m"))
    membership = safetensors.numpy.load(gram.membership_file())

    sent = samples.from_file(gram.samples_file(ROWS), declared, field="s")
    found = {row.tobytes() for row in membership["digests"]}
    assert set(digests.of_each(sent, gram.key)) <= found
