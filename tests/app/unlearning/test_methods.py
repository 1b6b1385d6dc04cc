"""Which methods a request may name, what it takes by default, and what is fixed with it."""

import numpy as np
import pytest
import safetensors.numpy
from sqlalchemy import select

from app.unlearning import service
from app.unlearning.models import ForgottenSample, UnlearningRequest

URL = "/v1/unlearning-requests"
SURROGATE = {"surrogate": safetensors.numpy.save({"x": np.full((5, 4), 0.1)})}


def refused(answer, field):
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["field"] == field, problem
    assert problem["remedy"]
    return problem


def test_the_default_is_the_best_that_the_model_has(api, trained):
    statistics = trained.statistics_file()
    ways = {
        "stored": trained.parts(statistics=statistics) | SURROGATE,
        "surrogate": trained.parts() | SURROGATE,
        "forget-curvature": trained.parts(),
        "paper-sdp": trained.parts(policy={"methods": ["paper-sdp"]}),
    }
    tiers = dict(zip(ways, ("exact", "surrogate", "estimated", "estimated"), strict=True))
    for method, parts in ways.items():
        model = api.register(parts).json()["id"]
        shown = api.post(URL, json=trained.request(model)).json()
        assert (shown["method"], shown["tier"]) == (method, tiers[method])


def test_the_tier_is_stored_with_the_request(api, trained, model_id, session):
    api.post(URL, json=trained.request(model_id, method="forget-curvature"))
    assert session.scalars(select(UnlearningRequest.tier)).all() == ["estimated"]


def test_a_surrogate_needs_features(api, trained, model_id, written):
    before = written()
    problem = refused(api.post(URL, json=trained.request(model_id, method="surrogate")), "method")
    assert "surrogate" in problem["detail"]
    assert "part `surrogate`" in problem["remedy"]
    assert written() == before


def test_a_method_that_the_policy_excludes_names_those_that_it_allows(api, trained, written):
    policy = {"methods": ["stored", "surrogate"]}
    parts = trained.parts(statistics=trained.statistics_file(), policy=policy)
    model = api.register(parts).json()["id"]
    before = written()
    problem = refused(api.post(URL, json=trained.request(model, method="paper-sdp")), "method")
    assert "policy" in problem["detail"]
    assert problem["remedy"].endswith("stored.")
    assert written() == before


def test_a_prior_and_the_anchor_are_fixed_with_the_request(api, trained):
    parts = trained.parts(policy={"anchor": "keep"})
    model = api.register(parts).json()["id"]
    prior = {"kind": "forget", "weight": 0.5}
    options = api.post(URL, json=trained.request(model, prior=prior)).json()["options"]
    assert (options["prior"], options["anchor"]) == (prior, "keep")
    default = api.post(URL, json=trained.request(model)).json()["options"]["prior"]
    assert default == {"kind": "none", "weight": 1e-3}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prior": {"kind": "retain"}}, "prior.kind"),
        ({"prior": {"weight": 0}}, "prior.weight"),
        ({"prior": {"weight": "1"}}, "prior.weight"),
        ({"prior": {"strength": 1}}, "prior.strength"),
        ({"solver": "first_order"}, "solver"),
        ({"anchor": "keep"}, "anchor"),  # the owner's choice, not the requester's
        ({"gate": {"threshold": 1}}, "gate"),
    ],
)
def test_an_option_that_a_request_does_not_have_is_refused(api, trained, model_id, change, field):
    refused(api.post(URL, json=trained.request(model_id, **change)), field)


@pytest.mark.parametrize(
    ("solver", "largest"),
    # d = 4: m·16 <= 2^26 for cvxpy; 24·m + (12 + 3)·16 <= 2^28 for our own.
    [("CLARABEL", 2**22), ("SCS", 2**22), ("FIRST_ORDER", (2**28 - 240) // 24)],
)
def test_a_program_has_to_fit_its_solver(api, trained, bare_model_id, solver, largest):
    def send(count):
        change = {"method": "paper-sdp", "solver": solver, "perturbation": {"count": count}}
        return api.post(URL, json=trained.request(bare_model_id, **change))

    assert send(largest).status_code == 202
    problem = refused(send(largest + 1), "perturbation.count")
    assert str(largest + 1) in problem["detail"]
    assert solver in problem["detail"]


def test_a_copy_of_what_was_forgotten_is_remembered_once(api, trained, model_id, session, services):
    for _ in range(2):
        api.post(URL, json=trained.request(model_id))
        job = service.claim(session, worker="w", lease_seconds=60, max_attempts=3)
        digests = [b"d" * 32, b"d" * 32]
        service.complete(
            session, services.store, job, result={}, resulting_revision=1, digests=digests
        )
    assert session.scalars(select(ForgottenSample.digest)).all() == [b"d" * 32]
