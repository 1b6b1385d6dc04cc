import uuid

import pytest

from app.auth import Scope
from app.budget import service
from app.registry.models import Model
from core.privacy import Privacy, covered_norm
from core.vocabulary import Mechanism

PRIVACY = Privacy(Mechanism.OBJECTIVE, epsilon=2.0, delta=1e-6, sigma=3.0)


@pytest.fixture
def guarded_id(session, model_id):
    """A registered model with an account."""
    service.open_account(session, session.get(Model, uuid.UUID(model_id)), PRIVACY)
    session.commit()
    return model_id


def test_a_budget_says_what_is_left_and_how_it_came_to_that(api, guarded_id):
    answer = api.get(f"/v1/models/{guarded_id}/budget")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    limit = covered_norm(PRIVACY)
    assert (found["limit"], found["spent"], found["reserved"]) == (limit, 0.0, 0.0)
    assert found["left"] == limit
    assert found["mechanism"] == "objective-perturbation"
    assert found["measure"] == "residual_gradient_norm"
    assert (found["epsilon"], found["delta"], found["sigma"]) == (2.0, 1e-6, 3.0)
    (entry,) = found["entries"]
    assert (entry["kind"], entry["amount"], entry["request_id"]) == ("open", limit, None)


def test_entries_come_in_pages_newest_first(api, session, guarded_id):
    model = uuid.UUID(guarded_id)
    request = api.get("/v1/unlearning-requests").json()["items"]
    assert request == []
    for kind in ("open", "open"):
        service._enter(session, service.find_account(session, model), kind, 1.0, request_id=None)
    session.commit()
    first = api.get(f"/v1/models/{guarded_id}/budget?limit=2").json()
    assert len(first["entries"]) == 2
    second = api.get(
        f"/v1/models/{guarded_id}/budget", params={"limit": 2, "cursor": first["next_cursor"]}
    ).json()
    assert [entry["amount"] for entry in second["entries"]] == [covered_norm(PRIVACY)]
    assert second["next_cursor"] is None


def test_a_model_without_noise_is_answered_404_with_what_to_do(api, bare_model_id):
    answer = api.get(f"/v1/models/{bare_model_id}/budget")
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:lethe:problem:budget-not-found"
    assert "privacy" in answer.json()["remedy"]


def test_a_model_that_does_not_exist_is_another_404(api):
    answer = api.get(f"/v1/models/{uuid.uuid4()}/budget")
    assert answer.json()["type"] == "urn:lethe:problem:model-not-found"


def test_reading_a_budget_takes_the_scope_for_reading(api, make_token, guarded_id):
    path = f"/v1/models/{guarded_id}/budget"
    assert api.with_token(make_token(Scope.READ)).get(path).status_code == 200
    assert api.with_token(make_token(Scope.UNLEARNING_WRITE)).get(path).status_code == 403
