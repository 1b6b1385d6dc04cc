"""Output perturbation: what is served has noise, and what it hides cannot be found by guessing."""

import hashlib
import json
import uuid

import numpy as np
import pytest
import safetensors.numpy

from app.artifacts.models import Artifact
from app.artifacts.retention import Deadlines
from app.errors import ArtifactShreddedError, WeightsPurgedError
from app.jobs import JobQueue
from app.registry import service
from app.registry.models import Model
from app.registry.samples import Samples
from app.unlearning import service as unlearning
from app.unlearning.schemas import UnlearningIn
from core import noise

SIGMA = 0.25
PRIVACY = {"mechanism": "output-perturbation", "epsilon": 1.0, "delta": 1e-3, "sigma": SIGMA}


@pytest.fixture(params=["squared", "logistic"])
def some(request, trained, logistic):
    """Parts of a model with output perturbation, and its weights."""
    if request.param == "squared":
        parts = trained.parts(statistics=trained.statistics_file(), privacy=PRIVACY)
        return parts, trained.weight
    return logistic.parts(privacy=PRIVACY), logistic.weight


@pytest.fixture
def registered(api, some, session):
    answer = api.register(some[0])
    assert answer.status_code == 201, answer.text
    return session.get_one(Model, answer.json()["id"])


def ask(session, services, model, trained):
    return unlearning.create(
        session,
        services.store,
        services.keys,
        JobQueue(services.settings.redis_url),
        services.settings,
        wanted=UnlearningIn(model_id=model.id),
        forget=Samples(trained.x[:1], trained.y[:1]),
        actor="test",
    )


def extend(session, services, model, request, *, release=b"noisy", **kept):
    """Extend a model's chain; `kept` are days, of downloads or of a replay."""
    settings = services.settings.model_copy(update=kept)
    with unlearning.ending(session, services.store, request) as shredding:
        return service.add_revision(
            session,
            services.store,
            model,
            expected_revision=0,
            n_samples=39,
            gradient_norm_bound=0.0,
            weights=b"secret",
            statistics=b"statistics",
            request_id=request.id,
            shredding=shredding,
            deadlines=Deadlines.of(session, settings),
            release=release,
        )


def download(api, model, number=0):
    return api.get(f"/v1/models/{model.id}/revisions/{number}/weights")


def test_the_first_release_is_the_weights_with_the_models_noise(
    api, registered, services, some, session
):
    answer = download(api, registered)
    served = safetensors.numpy.load(answer.content)["weight"]
    key = service.noise_key(services.keys, registered, 0)
    np.testing.assert_array_equal(served, noise.perturbed(some[1], SIGMA, key))
    assert SIGMA / 4 < np.std(served - some[1]) < SIGMA * 4
    assert download(api, registered).content == answer.content
    revision = service.current_revision(session, registered)
    secret = service.load_weights(session, services.store, revision)
    np.testing.assert_array_equal(safetensors.numpy.load(secret)["weight"], some[1])


def test_the_digest_that_is_told_is_of_what_is_served(api, registered, session):
    content = download(api, registered).content
    (shown,) = api.get(f"/v1/models/{registered.id}/revisions").json()["items"]
    assert shown["weights_sha256"] == hashlib.sha256(content).hexdigest()
    revision = service.current_revision(session, registered)
    assert service.served_sha256(revision) == shown["weights_sha256"]
    assert download(api, registered).headers["ETag"] == f'"{shown["weights_sha256"]}"'


def test_no_answer_and_no_log_entry_lets_anybody_test_a_guess(api, registered, services, session):
    revision = service.current_revision(session, registered)
    secrets = [
        service.load_weights(session, services.store, revision),
        service.load_statistics(session, services.store, revision),
    ]
    told = (
        api.get(f"/v1/models/{registered.id}").text
        + api.get(f"/v1/models/{registered.id}/revisions").text
        + api.get("/v1/audit/entries").text
        + repr((revision.weights_sha256, revision.statistics_sha256))
    )
    for secret in secrets:
        assert hashlib.sha256(secret).hexdigest() not in told


@pytest.mark.parametrize("sigma", [1e-12, 1e-200, 1e-310, 5e-324])
def test_noise_that_vanishes_in_the_weights_rounding_is_refused(api, written, some, sigma):
    # 1 + 1e-200 is 1: such a release would be the very weights that it is to hide.
    parts, before = dict(some[0]), written()
    manifest = json.loads(parts["manifest"])
    manifest["privacy"]["sigma"] = sigma
    parts["manifest"] = json.dumps(manifest).encode()
    answer = api.register(parts)
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == "manifest.privacy.sigma"
    assert answer.json()["remedy"]
    assert written() == before


def test_every_model_and_revision_has_noise_of_its_own(api, some, services, session):
    models = [session.get_one(Model, api.register(some[0]).json()["id"]) for _ in range(2)]
    keys = {
        service.noise_key(services.keys, model, number) for model in models for number in range(3)
    }
    assert len(keys) == 6
    assert download(api, models[0]).content != download(api, models[1]).content


def test_a_model_without_output_perturbation_has_no_noise_key(api, trained, services, session):
    model = session.get_one(Model, api.register(trained.parts()).json()["id"])
    with pytest.raises(ValueError, match="no noise"):
        service.noise_key(services.keys, model, 0)
    assert not service.has_noisy_releases(model)


def test_a_new_release_is_served_and_the_old_one_shredded(
    api, registered, services, session, trained
):
    before = service.current_revision(session, registered)
    after = extend(session, services, registered, ask(session, services, registered, trained))
    session.commit()
    assert download(api, registered, 1).content == b"noisy"
    assert service.load_weights(session, services.store, after) == b"secret"
    assert download(api, registered, 0).status_code == 410
    for load in (service.load_weights, service.load_release):
        with pytest.raises(WeightsPurgedError, match="revision 0"):
            load(session, services.store, before)
    new, old = api.get(f"/v1/models/{registered.id}/revisions").json()["items"]
    assert (new["weights_available"], old["weights_available"]) == (True, False)
    assert new["weights_sha256"] == hashlib.sha256(b"noisy").hexdigest()
    assert new["statistics_sha256"] != hashlib.sha256(b"statistics").hexdigest()


def test_what_was_kept_is_the_old_release_and_never_what_it_hides(
    api, registered, services, session, trained
):
    first = download(api, registered, 0).content
    before = service.current_revision(session, registered)
    request = ask(session, services, registered, trained)
    extend(session, services, registered, request, superseded_weights_days=1)
    session.commit()
    assert download(api, registered, 0).content == first
    with pytest.raises(WeightsPurgedError):
        service.load_weights(session, services.store, before)
    with pytest.raises(ArtifactShreddedError):
        service.load_statistics(session, services.store, before)


def test_what_a_replay_keeps_is_what_the_release_hid_and_nobody_may_download_either(
    api, registered, services, session, trained
):
    before = service.current_revision(session, registered)
    secret = service.load_weights(session, services.store, before)
    extend(
        session, services, registered, ask(session, services, registered, trained), replay_days=1
    )
    session.commit()
    assert service.load_weights(session, services.store, before) == secret
    assert service.load_statistics(session, services.store, before)
    assert download(api, registered, 0).status_code == 410
    with pytest.raises(WeightsPurgedError):
        service.load_release(session, services.store, before)


def test_a_release_is_given_exactly_when_there_is_noise(
    api, registered, services, session, trained
):
    request = ask(session, services, registered, trained)
    with pytest.raises(ValueError, match="release"):
        extend(session, services, registered, request, release=None)
    identifier = uuid.UUID(api.register(trained.parts()).json()["id"])
    plain = session.get_one(Model, identifier)
    with pytest.raises(ValueError, match="release"):
        extend(session, services, plain, ask(session, services, plain, trained))
    assert (registered.current_revision, plain.current_revision) == (0, 0)


def test_objective_perturbation_serves_the_weights_themselves(api, logistic, services, session):
    privacy = PRIVACY | {"mechanism": "objective-perturbation"}
    model = session.get_one(Model, api.register(logistic.parts(privacy=privacy)).json()["id"])
    served = safetensors.numpy.load(download(api, model).content)["weight"]
    np.testing.assert_array_equal(served, logistic.weight)
    revision = service.current_revision(session, model)
    assert revision.release_artifact_id is None
    assert session.get_one(Artifact, revision.weights_artifact_id).kind == "weights"
    # They hold b, and sums over the training set that no noise hides.
    statistics = service.load_statistics(session, services.store, revision)
    assert revision.statistics_sha256 != hashlib.sha256(statistics).hexdigest()


def test_noise_in_the_objective_too_small_to_hide_anything_is_refused(api, written, logistic):
    privacy = PRIVACY | {"mechanism": "objective-perturbation", "sigma": 5e-324}
    before = written()
    answer = api.register(logistic.parts(privacy=privacy))
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == "manifest.privacy.sigma"
    assert written() == before
