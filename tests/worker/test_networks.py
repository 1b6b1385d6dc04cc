"""Deletions from networks, as a worker does them: every tier, its record and its statistics."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy
import torch

from app.registry import service as registry
from core.linearised.sketch import SketchStatistics
from core.serialization import load_statistics
from tests.reference.far_device import FAR, far_device
from tests.reference.networks import NetworkProblem
from worker import loading, networks, records
from worker.runner import run_next

FEW = np.arange(20, 25)
MANY = np.random.default_rng(1).choice(300, 60, replace=False)


@pytest.fixture(scope="module")
def problem():
    return NetworkProblem.digits(300)


@pytest.fixture(scope="module")
def sketched(problem):
    return problem.but(statistics="sketch", rank=200, error_probes=80)


def bound_of(statement, name):
    (found,) = [bound for bound in statement["bounds"] if bound["name"] == name]
    return found


def statistics_of(services, model):
    with services.sessions() as session:
        revision = registry.current_revision(session, registry.get(session, model))
        return load_statistics(registry.load_statistics(session, services.store, revision))


def forget(shop, problem, rows, *, statistics=True, **options):
    """Register a network, forget some rows, and return its id and the signed statement."""
    model = shop.register(problem, statistics=statistics, network=True)
    return model, forget_more(shop, model, problem, rows, **options)


def forget_more(shop, model, problem, rows, **options):
    request = shop.request(model, problem, rows, **options)
    assert run_next(shop.services) is True
    found = shop.find(request)
    assert found.state in {"completed", "refused"}, found.failure
    return shop.statement(request)


def distance(found, problem, rows):
    """ρ_w: 0 is retraining, 1 is doing nothing."""
    retrained = problem.train_without(rows)
    return np.linalg.norm(found - retrained) / np.linalg.norm(problem.train() - retrained)


def test_a_gram_matrix_gives_what_retraining_gives_again_and_again(services, shop, problem):
    model, statement = forget(shop, problem, FEW)
    assert (statement["kind"], statement["tier"]) == ("certificate", "exact")
    assert distance(shop.weights(model), problem, FEW) < 1e-9
    left = np.linalg.norm(problem.gradient_without(FEW, shop.weights(model)))
    assert left <= bound_of(statement, "residual_gradient_norm")["value"] < 1e-6
    assert statement["parameters"]["anchor"] is None
    assert statement["disposal"]["superseded_anchor"] == "none"
    assert (statement["revision_before"]["n_samples"], statement["request"]["n_forget"]) == (300, 5)
    more = np.arange(100, 160)
    statement = forget_more(shop, model, problem, more)
    assert statement["revision_after"]["n_samples"] == 235
    assert distance(shop.weights(model), problem, [*FEW, *more]) < 1e-9
    assert statistics_of(services, model).n_samples == 2350


def test_the_record_says_what_of_which_network_it_covers(services, shop, problem):
    model, statement = forget(shop, problem, FEW)
    with services.sessions() as session:
        digest = registry.get(session, model).network_sha256
    assert statement["scope"] == {
        "covered": "the 610 parameters of the last 2 layers of small-cnn, linearised around the"
        f" network with the SHA-256 {digest}, revision 1",
        "backbone": "public",
        "not_covered": [*records.STANDARD_EXCLUSIONS, records.CENTRE_EXCLUSION],
    }


@pytest.mark.parametrize("rows", [FEW[:1], MANY])
def test_a_sketch_gives_a_certificate_whose_bound_holds(services, shop, sketched, rows):
    model, statement = forget(shop, sketched, rows)
    assert (statement["kind"], statement["tier"]) == ("certificate", "certified"), statement
    assert statement["method"] == "stored-sketch"
    assert statement["privacy"] is None
    found = shop.weights(model)
    left = np.linalg.norm(sketched.gradient_without(rows, found))
    assert left <= bound_of(statement, "residual_gradient_norm")["value"]
    apart = np.linalg.norm(found - sketched.train_without(rows))
    assert apart <= bound_of(statement, "distance_to_retraining")["value"]
    assert distance(found, sketched, rows) < 0.2
    assert statement["disposal"]["superseded_anchor"] == "moved"
    rest = statistics_of(services, model)
    assert rest.n_samples == 300 - len(rows)
    np.testing.assert_array_equal(rest.anchor.numpy(), found)


def test_the_anchor_of_a_sketch_may_be_kept(services, shop, sketched):
    kept = sketched.but(policy={"anchor": "keep"})
    model, statement = forget(shop, kept, FEW)
    assert statement["parameters"]["anchor"] == "keep"
    assert statement["disposal"]["superseded_anchor"] == "kept_as_secret"
    np.testing.assert_array_equal(
        statistics_of(services, model).anchor.numpy(), sketched.weights.numpy()
    )
    # Another deletion begins there again, whose bound is on all that was forgotten.
    forget_more(shop, model, kept, np.arange(3))
    assert distance(shop.weights(model), sketched, [*FEW, 0, 1, 2]) < 0.2


def test_an_estimate_downdates_a_sketch_and_certifies_nothing(services, shop, sketched):
    model, statement = forget(shop, sketched.but(strength=1.0), MANY, method="forget-curvature")
    assert (statement["kind"], statement["tier"]) == ("estimate", "estimated"), statement
    assert not any(bound["certifies"] for bound in statement["bounds"])
    assert statement["disposal"]["superseded_statistics"] == "key_destroyed"
    assert statement["disposal"]["superseded_anchor"] == "moved"
    assert statement["parameters"]["anchor"] is None
    rest = statistics_of(services, model)
    assert isinstance(rest, SketchStatistics)
    assert rest.n_samples == 240
    np.testing.assert_array_equal(rest.anchor.numpy(), shop.weights(model))


def test_an_estimate_with_a_gram_matrix_has_no_anchor(services, shop, problem):
    model, statement = forget(shop, problem.but(strength=1.0), MANY, method="forget-curvature")
    assert (statement["kind"], statement["tier"]) == ("estimate", "estimated"), statement
    assert statement["disposal"]["superseded_anchor"] == "none"
    assert statistics_of(services, model).n_samples == 2400


def test_without_statistics_one_record_is_too_few_to_go_by(shop, problem):
    model, statement = forget(shop, problem, FEW[:1], statistics=False)
    assert (statement["kind"], statement["cause"]) == ("refusal", "forget-set-too-small")
    assert "small-cnn" in statement["scope"]["covered"]
    np.testing.assert_array_equal(shop.weights(model), problem.weights.numpy())


def test_features_give_what_inputs_give(shop, problem):
    features = problem.but(samples="features")
    models = [forget(shop, each, FEW)[0] for each in (problem, features)]
    sent, computed = (shop.weights(model) for model in models)
    np.testing.assert_allclose(sent, computed, rtol=0, atol=1e-12)


def test_a_sample_beyond_the_declared_norm_is_refused(shop, problem):
    features = problem.but(samples="features")
    model = shop.register(features, network=True)
    far = problem.but(samples="features", images=problem.images * 100)
    statement = forget_more(shop, model, far, FEW)
    assert (statement["kind"], statement["cause"]) == ("refusal", "not-in-training-set")


@pytest.mark.parametrize("kind", ["gram", "sketch"])
def test_what_was_never_in_the_training_set_is_not_subtracted(shop, problem, sketched, kind):
    one = {"gram": problem, "sketch": sketched}[kind]
    model = shop.register(one, network=True)
    # The same point so often that no data set of 300 has it.
    images = (
        np.tile(one.images[:1], (250, 1, 1, 1)) + np.linspace(0, 1e-6, 250)[:, None, None, None]
    )
    forged = one.but(images=images.clip(0, 1), labels=np.zeros(250, np.int64))
    statement = forget_more(shop, model, forged, np.arange(250))
    assert (statement["kind"], statement["cause"]) == ("refusal", "not-in-training-set")
    np.testing.assert_array_equal(shop.weights(model), one.weights.numpy())


def test_members_are_checked_by_digests_of_what_is_sent(shop, problem):
    model = shop.register(problem, membership=True, network=True)
    statement = forget_more(shop, model, problem, FEW)
    assert any(
        assumption["standing"] == "computed" and "digest" in assumption["text"]
        for assumption in statement["assumptions"]
    )
    assert forget_more(shop, model, problem, FEW[:1])["cause"] == "already-forgotten"
    dimmed = problem.but(images=problem.images * 0.5)
    assert forget_more(shop, model, dimmed, [3])["cause"] == "not-in-training-set"


def test_output_perturbation_covers_a_network_with_a_gram_matrix(services, shop, problem):
    noise = {"mechanism": "output-perturbation", "epsilon": 1.0, "delta": 1e-4, "sigma": 0.01}
    model, statement = forget(shop, problem.but(privacy=noise), FEW)
    assert (statement["kind"], statement["tier"]) == ("certificate", "exact")
    assert statement["privacy"]["measure"] == "distance_to_retraining"
    with services.sessions() as session:
        revision = registry.current_revision(session, registry.get(session, model))
        release = registry.load_release(session, services.store, revision)
    added = safetensors.numpy.load(release)["weight"] - shop.weights(model)
    assert 0.9 < added.std() / 0.01 < 1.1
    assert distance(shop.weights(model), problem, FEW) < 1e-9


@pytest.mark.parametrize("samples", ["inputs", "features"])
def test_everything_of_a_network_is_on_the_chosen_device(shop, sketched, monkeypatch, samples):
    # What the core does there is the core's to test: `torch.func` does not know the far device.
    one = sketched.but(samples=samples)
    model = shop.register(one, network=True)
    request = shop.request(model, one, FEW)
    given = {}

    def look(model, forget, **options):
        given.update(options, model=model, forget=forget)
        raise KeyboardInterrupt

    monkeypatch.setattr(networks.pipeline, "unlearn", look)
    monkeypatch.setattr(loading, "choose", lambda _name: FAR)
    with far_device(), pytest.raises(KeyboardInterrupt):
        run_next(shop.services)
    with far_device():
        found = list(tensors_in(given))
        assert {tensor.device for tensor in found} == {FAR}
    # Six of the network (four, without the convolution), w, X and Y twice, and four of a sketch.
    assert len(found) == {"inputs": 15, "features": 13}[samples]
    assert shop.find(request).state == "running"


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.init:
                yield from tensors_in(getattr(value, field.name))
