import datetime
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.numpy
from pydantic import ValidationError
from sqlalchemy import func, select

from app.artifacts.keys import MasterKey
from app.artifacts.models import Artifact
from app.artifacts.retention import Deadlines
from app.artifacts.store import ArtifactStore
from app.db import make_sessions
from app.errors import (
    ArtifactShreddedError,
    ConcurrentUpdateError,
    InvalidInputError,
    WeightsPurgedError,
)
from app.jobs import JobQueue
from app.registry import service
from app.registry.models import Model, ModelState, Revision
from app.registry.samples import Samples
from app.registry.schemas import Manifest
from app.unlearning import service as unlearning
from app.unlearning.schemas import UnlearningIn


def register(session, parts, trained, **changes):
    store, keys, settings = parts
    files = {
        "weights": trained.weights_file(),
        "statistics": trained.statistics_file(),
        "holdout": trained.samples_file(),
    } | changes
    manifest = Manifest.model_validate(trained.manifest())
    return service.register(
        session, store, keys, settings, manifest=manifest, actor="test", **files
    )


def ask(session, parts, trained, model):
    store, keys, settings = parts
    return unlearning.create(
        session,
        store,
        keys,
        JobQueue(settings.redis_url),
        settings,
        wanted=UnlearningIn(model_id=model.id),
        forget=Samples(trained.x[:1], trained.y[:1]),
        actor="test",
    )


NOTHING_KEPT = Deadlines(downloads=None, replay=None)


def extend(
    session,
    store,
    model,
    request,
    *,
    expected=0,
    deadlines=NOTHING_KEPT,
    statistics=b"new statistics",
):
    with unlearning.ending(session, store, request) as shredding:
        return service.add_revision(
            session,
            store,
            model,
            expected_revision=expected,
            n_samples=39,
            gradient_norm_bound=0.25,
            weights=b"new weights",
            statistics=statistics,
            request_id=request.id,
            shredding=shredding,
            deadlines=deadlines,
        )


def later(session, **span):
    """Return a time from now, by the database's clock; a negative span is one that has passed."""
    return session.scalar(select(func.clock_timestamp())) + datetime.timedelta(**span)


@pytest.fixture
def parts(services, settings):
    return services.store, services.keys, settings


@pytest.fixture
def model(session, parts, trained):
    return register(session, parts, trained)


@pytest.fixture
def request_row(session, parts, trained, model):
    return ask(session, parts, trained, model)


def test_what_was_registered_can_be_loaded(session, parts, trained, model):
    store = parts[0]
    revision = service.current_revision(session, model)
    weights = safetensors.numpy.load(service.load_weights(session, store, revision))
    statistics = safetensors.numpy.load(service.load_statistics(session, store, revision))
    holdout = safetensors.numpy.load(service.load_holdout(session, store, model))
    np.testing.assert_array_equal(weights["weight"], trained.weight)
    for key, expected in trained.statistics().items():
        np.testing.assert_array_equal(statistics[key], expected)
    np.testing.assert_array_equal(holdout["y"], trained.y[:2])


def test_a_model_without_statistics_and_holdout_has_none(session, parts, trained):
    model = register(session, parts, trained, statistics=None, holdout=None)
    revision = service.current_revision(session, model)
    assert service.load_statistics(session, parts[0], revision) is None
    assert service.load_holdout(session, parts[0], model) is None


def test_a_revision_supersedes_the_one_before_and_shreds_it(session, parts, model, request_row):
    store = parts[0]
    old = service.current_revision(session, model)
    new = extend(session, store, model, request_row)
    assert model.current_revision == 1
    assert service.current_revision(session, model) is new
    assert (new.number, new.n_samples, new.request_id) == (1, 39, request_row.id)
    assert service.load_weights(session, store, new) == b"new weights"
    assert service.load_statistics(session, store, new) == b"new statistics"
    with pytest.raises(WeightsPurgedError, match="revision 0"):
        service.load_weights(session, store, old)
    with pytest.raises(ArtifactShreddedError):
        service.load_statistics(session, store, old)


def test_superseded_weights_can_be_kept_without_the_statistics(session, parts, model, request_row):
    store = parts[0]
    old = service.current_revision(session, model)
    before = service.load_weights(session, store, old)
    until = later(session, days=3)
    extend(session, store, model, request_row, deadlines=Deadlines(downloads=until, replay=None))
    assert service.download_weights(session, store, old, actor="test") == before
    assert session.get_one(Artifact, old.weights_artifact_id).retain_until == until
    with pytest.raises(ArtifactShreddedError):
        service.load_statistics(session, store, old)


def test_what_a_replay_needs_is_kept_and_never_served(session, parts, model, request_row):
    store = parts[0]
    old = service.current_revision(session, model)
    before = service.load_weights(session, store, old)
    until = later(session, days=3)
    extend(session, store, model, request_row, deadlines=Deadlines(downloads=None, replay=until))
    assert service.load_weights(session, store, old) == before
    assert service.load_statistics(session, store, old) is not None
    for artifact in (old.weights_artifact_id, old.statistics_artifact_id):
        assert session.get_one(Artifact, artifact).retain_until == until
    with pytest.raises(WeightsPurgedError, match="not been served since"):
        service.download_weights(session, store, old, actor="test")


def test_weights_are_served_no_longer_than_their_time_though_a_replay_has_them_for_longer(
    api, model_id, session, parts, trained
):
    store, model = parts[0], service.get(session, uuid.UUID(model_id))
    old = service.current_revision(session, model)
    deadlines = Deadlines(downloads=later(session, days=1), replay=later(session, days=9))
    extend(session, store, model, ask(session, parts, trained, model), deadlines=deadlines)
    session.commit()
    assert session.get_one(Artifact, old.weights_artifact_id).retain_until == deadlines.replay
    path = f"/v1/models/{model_id}/revisions"
    assert api.get(f"{path}/0/weights").status_code == 200
    old.served_until = later(session, seconds=-1)
    session.commit()
    answer = api.get(f"{path}/0/weights")
    assert (answer.status_code, answer.json()["type"]) == (
        410,
        "urn:lethe:problem:weights-purged",
    )
    shown = [item["weights_available"] for item in api.get(path).json()["items"]]
    assert shown == [True, False]
    assert service.load_weights(session, store, old)


def test_deadlines_are_the_settings_days_from_now_and_none_without(session, settings):
    assert Deadlines.of(session, settings) == Deadlines(downloads=None, replay=None)
    days = {"superseded_weights_days": 2, "replay_days": 30}
    found = Deadlines.of(session, settings.model_copy(update=days))
    assert found.replay - found.downloads == datetime.timedelta(days=28)
    assert found.last == found.replay
    assert later(session, days=2) - found.downloads < datetime.timedelta(minutes=1)


def test_days_are_counted_from_zero_and_what_they_replaced_is_refused(make_settings, database_url):
    for name in ("superseded_weights_days", "replay_days"):
        with pytest.raises(ValidationError, match=name):
            make_settings(database_url=database_url, **{name: -1})
    assert make_settings(database_url=database_url, keep_superseded_weights=False)
    with pytest.raises(ValidationError, match="SUPERSEDED_WEIGHTS_DAYS"):
        make_settings(database_url=database_url, keep_superseded_weights=True)


def test_an_unexpected_revision_changes_nothing(session, parts, model, request_row):
    with pytest.raises(ConcurrentUpdateError, match="at revision 0, expected"):
        extend(session, parts[0], model, request_row, expected=1)
    assert model.current_revision == 0
    assert len(session.scalars(select(Revision)).all()) == 1


@pytest.mark.parametrize("state", [ModelState.RETIRED, ModelState.RETRAINING_REQUIRED])
def test_a_model_that_is_not_active_gets_no_revision(session, parts, model, request_row, state):
    model.state = state
    session.flush()
    with pytest.raises(ConcurrentUpdateError, match=state):
        extend(session, parts[0], model, request_row)


def test_of_two_revisions_on_the_same_parent_one_is_written(fresh_engine, fresh_settings, trained):
    sessions = make_sessions(fresh_engine)
    keys = MasterKey.load(fresh_settings.master_key_file)
    store = ArtifactStore(fresh_settings.artifacts_url, keys)
    parts = (store, keys, fresh_settings)
    with sessions.begin() as session:
        model = register(session, parts, trained)
        requests = [ask(session, parts, trained, model) for _ in range(2)]
    barrier = threading.Barrier(2)

    def write(request):
        with sessions() as session:
            row = session.get_one(Model, model.id)
            barrier.wait(10)
            try:
                extend(session, store, row, request)
            except ConcurrentUpdateError:
                return "refused"
            session.commit()
            return "written"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(write, requests)) == ["refused", "written"]
    with sessions() as session:
        assert sorted(session.scalars(select(Revision.number))) == [0, 1]


def test_a_purged_revision_answers_gone(api, model_id, session, parts, trained):
    model = service.get(session, uuid.UUID(model_id))
    extend(session, parts[0], model, ask(session, parts, trained, model))
    session.commit()
    answer = api.get(f"/v1/models/{model_id}/revisions/0/weights")
    assert answer.status_code == 410
    assert answer.json()["type"] == "urn:lethe:problem:weights-purged"
    new, old = api.get(f"/v1/models/{model_id}/revisions").json()["items"]
    assert (new["weights_available"], old["weights_available"]) == (True, False)
    assert api.get(f"/v1/models/{model_id}/revisions/1/weights").content == b"new weights"


def test_the_current_n_decides_what_is_too_much(api, model_id, session, parts, trained):
    model = service.get(session, uuid.UUID(model_id))
    extend(session, parts[0], model, ask(session, parts, trained, model))
    session.commit()
    answer = api.post("/v1/unlearning-requests", json=trained.request(model_id, slice(39)))
    assert answer.status_code == 422
    assert "the model has 39" in answer.json()["detail"]


def test_a_models_digest_key_is_its_own(session, parts, trained, model):
    other = register(session, parts, trained)
    keys = parts[1]
    assert service.digest_key(keys, model) == service.digest_key(keys, model)
    assert service.digest_key(keys, model) != service.digest_key(keys, other)


def test_a_manifest_beyond_the_services_limits_names_the_setting(session, parts, trained):
    store, keys, settings = parts
    small = settings.model_copy(update={"max_features": 3})
    with pytest.raises(InvalidInputError, match="above this service's limit 3") as caught:
        register(session, (store, keys, small), trained)
    assert "MAX_FEATURES" in caught.value.remedy


def test_a_model_that_has_to_be_retrained_says_why_and_takes_nothing_more(
    api, trained, model_id, session
):
    model = service.get(session, uuid.UUID(model_id))
    key, body = {"Idempotency-Key": "before"}, trained.request(model_id)
    accepted = api.post("/v1/unlearning-requests", json=body, headers=key)
    assert accepted.status_code == 202
    size = api.get("/v1/audit/checkpoint").json()["size"]
    service.require_retraining(session, model, "the budget is spent")
    service.require_retraining(session, model, "once more")
    session.commit()
    shown = api.get(f"/v1/models/{model_id}").json()
    assert (shown["state"], shown["state_reason"]) == ("retraining_required", "the budget is spent")
    (entry,) = api.get(f"/v1/audit/entries?cursor={size}").json()["items"]
    assert entry["event"] == "model.retraining-required"
    answer = api.post("/v1/unlearning-requests", json=trained.request(model_id))
    assert answer.status_code == 409
    assert "the budget is spent" in answer.json()["detail"]
    assert answer.json()["remedy"] == "Train and register a new model."
    again = api.post("/v1/unlearning-requests", json=body, headers=key)
    assert (again.status_code, again.json()["id"]) == (202, accepted.json()["id"])


def test_a_retired_model_stays_retired(session, model):
    model.state = ModelState.RETIRED
    session.flush()
    service.require_retraining(session, model, "the budget is spent")
    assert (model.state, model.state_reason) == (ModelState.RETIRED, None)
