"""What a manifest may declare beside its numbers: privacy, policy, a surrogate's distance."""

import numpy as np
import pytest
import safetensors.numpy

from app.registry import service
from app.registry.models import Model

PRIVACY = {"mechanism": "objective-perturbation", "epsilon": 1.0, "delta": 1e-3, "sigma": 2.0}


def surrogate(x=None):
    rng = np.random.default_rng(1)
    return safetensors.numpy.save({"x": rng.normal(size=(20, 4)) / 10 if x is None else x})


@pytest.fixture
def refuse(make_api, written):
    def send(parts, field, **settings):
        api = make_api(**settings)
        before = written()
        answer = api.register(parts)
        assert answer.status_code == 422, answer.text
        problem = answer.json()
        assert problem["field"] == field, problem
        assert problem["remedy"]
        assert written() == before
        return problem

    return send


def test_what_was_declared_is_shown(api, logistic):
    policy = {
        "methods": ["stored"],
        "gate": {"threshold": 0.5, "splits": 20, "skew_level": 0.05},
        "anchor": "keep",
    }
    model = api.register(logistic.parts(privacy=PRIVACY, policy=policy)).json()
    assert model["privacy"] == PRIVACY
    assert model["policy"] == policy
    assert model["manifest"]["policy"] == policy
    assert api.get(f"/v1/models/{model['id']}").json() == model


def test_without_a_policy_the_settings_are_in_force(make_api, trained):
    api = make_api(
        gate_threshold=0.7, gate_splits=9, gate_skew_level=0.02, statistics_anchor="keep"
    )
    model = api.register(trained.parts()).json()
    assert model["policy"] == {
        "methods": ["forget-curvature", "paper-sdp"],
        "gate": {"threshold": 0.7, "splits": 9, "skew_level": 0.02},
        "anchor": "keep",
    }
    assert model["manifest"]["policy"]["gate"] == dict.fromkeys(
        ("threshold", "splits", "skew_level")
    )


def test_settings_that_became_stricter_count(make_api, trained):
    gate = {"threshold": 0.5, "splits": 20, "skew_level": 0.05}
    model = make_api().register(trained.parts(policy={"gate": gate})).json()["id"]
    later = make_api(gate_threshold=0.25, gate_splits=30, gate_skew_level=0.1)
    request = later.post("/v1/unlearning-requests", json=trained.request(model)).json()
    assert request["options"]["gate"] == {"threshold": 0.25, "splits": 30, "skew_level": 0.1}


@pytest.mark.parametrize(
    ("gate", "operators"),
    [
        ({"threshold": 1.5}, {}),
        ({"threshold": 0.6}, {"gate_threshold": 0.5}),
        ({"splits": 7}, {}),
        ({"skew_level": 0.009}, {}),
    ],
)
def test_a_gate_looser_than_the_services_is_refused(refuse, trained, gate, operators):
    (name,) = gate
    problem = refuse(
        trained.parts(policy={"gate": gate}), f"manifest.policy.gate.{name}", **operators
    )
    assert "looser" in problem["detail"]
    assert f"{gate[name]:g}" in problem["detail"]


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"methods": []}, "methods"),
        ({"methods": ["magic"]}, "methods.0"),
        ({"methods": "stored"}, "methods"),
        ({"methods": ["stored"]}, "methods"),
        ({"methods": ["surrogate", "stored"]}, "methods"),
        ({"anchor": "hold"}, "anchor"),
        ({"gate": {"threshold": 0}}, "gate.threshold"),
        ({"gate": {"threshold": "0.5"}}, "gate.threshold"),
        ({"gate": {"splits": 0}}, "gate.splits"),
        ({"gate": {"splits": 10**6}}, "gate.splits"),
        ({"gate": {"splits": 8.5}}, "gate.splits"),
        ({"gate": {"skew_level": 0.0}}, "gate.skew_level"),
        ({"gate": {"skew_level": 1.0}}, "gate.skew_level"),
        ({"gate": {"require_identified": False}}, "gate.require_identified"),
        ({"keep": True}, "keep"),
    ],
)
def test_a_policy_that_cannot_hold_is_refused_by_name(refuse, trained, policy, field):
    refuse(trained.parts(policy=policy), f"manifest.policy.{field}")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mechanism": "magic"}, "mechanism"),
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": 10.5}, "epsilon"),
        ({"epsilon": 1e-7}, "epsilon"),
        ({"epsilon": "1"}, "epsilon"),
        ({"delta": 0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": 0.025}, "delta"),  # 1/n
        ({"delta": 1e-301}, "delta"),
        ({"sigma": 0}, "sigma"),
        ({"sigma": 1e17}, "sigma"),
        ({"seed": 7}, "seed"),
    ],
)
def test_a_guarantee_that_says_nothing_is_refused_by_name(refuse, logistic, change, field):
    problem = refuse(logistic.parts(privacy=PRIVACY | change), f"manifest.privacy.{field}")
    assert field in problem["detail"]


def test_the_largest_epsilon_is_the_operators_choice(refuse, make_api, logistic):
    parts = logistic.parts(privacy=PRIVACY | {"epsilon": 2.0})
    problem = refuse(parts, "manifest.privacy.epsilon", largest_epsilon=1.5)
    assert "1.5" in problem["detail"]
    assert "LARGEST_EPSILON" in problem["remedy"]
    loose = logistic.parts(privacy=PRIVACY | {"epsilon": 12.0})
    assert make_api(largest_epsilon=20.0).register(loose).status_code == 201


def test_objective_perturbation_is_not_for_the_squared_loss(refuse, trained):
    parts = trained.parts(statistics=trained.statistics_file(), privacy=PRIVACY)
    problem = refuse(parts, "manifest.privacy.mechanism")
    assert "output-perturbation" in problem["remedy"]


def test_noise_without_a_bound_to_hold_against_it_is_refused(refuse, logistic):
    parts = logistic.parts(privacy=PRIVACY)
    del parts["statistics"]
    refuse(parts, "manifest.privacy")
    refuse(parts | {"surrogate": surrogate()}, "manifest.privacy")


def test_a_declared_distance_is_no_bound_that_noise_is_held_against(api, refuse, logistic):
    parts = logistic.parts(privacy=PRIVACY, surrogate_distance=0.125) | {"surrogate": surrogate()}
    model = api.register(parts).json()
    assert model["policy"]["methods"] == ["stored"]
    assert model["has_surrogate"] is True
    del parts["statistics"]
    refuse(parts, "manifest.privacy")


def test_privacy_leaves_only_methods_with_a_true_bound(api, logistic):
    model = api.register(logistic.parts(privacy=PRIVACY)).json()
    assert model["policy"]["methods"] == ["stored"]
    samples = {"x": logistic.x[:2].tolist(), "y": logistic.labels[:2].tolist()}
    body = {"model_id": model["id"], "samples": samples}
    assert api.post("/v1/unlearning-requests", json=body).json()["tier"] == "certified"
    answer = api.post("/v1/unlearning-requests", json=body | {"method": "forget-curvature"})
    assert (answer.status_code, answer.json()["field"]) == (422, "method")
    assert "no true bound" in answer.json()["detail"]
    assert "stored" in answer.json()["remedy"]


def test_a_model_with_noise_opens_its_budget(api, logistic):
    model = api.register(logistic.parts(privacy=PRIVACY)).json()["id"]
    events = [one["event"] for one in api.get("/v1/audit/entries").json()["items"]]
    assert {"model.registered", "budget.open"} <= set(events), (model, events)


def test_a_surrogate_is_stored_as_float64(api, trained, session, services):
    x = np.array([[0.25, -0.0, 0.5, 0.0]], np.float32)
    answer = api.register(trained.parts() | {"surrogate": surrogate(x)})
    assert answer.status_code == 201, answer.text
    model = session.get_one(Model, answer.json()["id"])
    stored = safetensors.numpy.load(service.load_surrogate(session, services.store, model))
    assert list(stored) == ["x"]
    assert stored["x"].dtype == np.float64
    np.testing.assert_array_equal(stored["x"], x)


def test_a_distance_without_a_surrogate_is_refused(refuse, trained):
    refuse(trained.parts(surrogate_distance=0.1), "manifest.surrogate_distance")
    parts = trained.parts(surrogate_distance=-0.1) | {"surrogate": surrogate()}
    refuse(parts, "manifest.surrogate_distance")


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"", "surrogate"),
        (b"\x80\x04\x95", "surrogate"),
        (surrogate(np.ones((0, 4))), "surrogate.x"),
        (surrogate(np.ones((3, 5)) / 10), "surrogate.x"),
        (surrogate(np.ones(4) / 10), "surrogate.x"),
        (surrogate(np.full((3, 4), np.nan)), "surrogate.x"),
        (surrogate(np.full((3, 4), np.inf, np.float32)), "surrogate.x"),
        (surrogate(np.ones((3, 4))), "surrogate.x"),  # norm 2 above R_x
        (surrogate(np.ones((3, 4), np.int64)), "surrogate.x"),
        (safetensors.numpy.save({"x": np.ones((3, 4)) / 10, "y": np.ones(3)}), "surrogate"),
    ],
)
def test_a_surrogate_of_another_kind_is_refused(refuse, trained, content, field):
    refuse(trained.parts() | {"surrogate": content}, field)
