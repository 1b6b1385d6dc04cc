"""Logistic models from claim to record: bounds, noise, budget, membership, surrogates."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from sqlalchemy import select

from app.artifacts.models import Artifact
from app.budget import service as budget
from app.budget.models import BudgetEntry
from app.evidence.auditing import verify_log
from app.evidence.canonical import sha256_hex
from app.evidence.records.schemas import NO_NOISE_LIMIT
from app.registry import service as registry
from app.registry.models import TrainingDigest
from app.unlearning.models import UnlearningJob
from tests.reference.far_device import FAR, far_device
from tests.reference.registered import LogisticProblem
from worker import loading, records, runner
from worker.runner import run_next
from worker.sweeper import sweep


@pytest.fixture(scope="module")
def problem():
    return LogisticProblem.draw()


@pytest.fixture(scope="module")
def noisy(problem):
    """Noise for two deletions of ten rows and a half."""
    return problem.with_output_noise(np.arange(10), deletions=2.5)


def bound_of(statement, name):
    (found,) = [bound for bound in statement["bounds"] if bound["name"] == name]
    return found


def account_of(services, model):
    with services.sessions() as session:
        return budget.find_account(session, model)


def ledger(services, model):
    with services.sessions() as session:
        statement = select(BudgetEntry).where(BudgetEntry.model_id == model)
        return [entry.kind for entry in session.scalars(statement.order_by(BudgetEntry.id))]


def released(services, model):
    """Return the file that is served of the current revision."""
    with services.sessions() as session:
        revision = registry.current_revision(session, registry.get(session, model))
        return registry.load_release(session, services.store, revision)


def test_a_certified_deletion_without_noise_is_bounded_and_promises_no_more(
    services, shop, problem
):
    model = shop.register(problem)
    request = shop.request(model, problem, np.arange(10))
    assert run_next(services) is True
    statement = shop.statement(request)
    assert (statement["kind"], statement["tier"]) == ("certificate", "certified")
    assert statement["privacy"] is None
    assert records.PRIVACY_LIMIT not in statement["limits"]
    assert NO_NOISE_LIMIT in statement["limits"]
    assert "No (ε, δ) guarantee" in statement["verdict"]
    assert statement["disposal"]["superseded_anchor"] == "moved"
    assert statement["disposal"]["release_noise"] == "none"
    retrained = problem.train_without(np.arange(10))
    distance = np.linalg.norm(shop.weights(model) - retrained)
    assert distance <= bound_of(statement, "distance_to_retraining")["value"]
    assert distance < 0.1 * np.linalg.norm(problem.train() - retrained)
    assert statement["metrics"]["membership_after"]["auc"] >= 0
    assert ledger(services, model) == []


def test_a_kept_anchor_gives_the_same_weights_in_any_batching(services, shop, problem):
    kept = problem.but(policy={"anchor": "keep"})
    batched, one_by_one = shop.register(kept), shop.register(kept)
    request = shop.request(batched, kept, np.arange(6))
    for part in (np.arange(2), np.arange(2, 6)):
        shop.request(one_by_one, kept, part)
    while run_next(services):
        pass
    np.testing.assert_allclose(shop.weights(batched), shop.weights(one_by_one), rtol=0, atol=1e-10)
    statement = shop.statement(request)
    assert statement["parameters"]["anchor"] == "keep"
    assert statement["disposal"]["superseded_anchor"] == "kept_as_secret"


def test_a_kept_anchor_is_kept_even_where_the_weights_do_not_move(services, shop):
    # Each row has its mirror image in its class, so the optimum is 0 with or without a pair; sums
    # of eighths are exact, so it is 0 to the last bit.
    drawn = LogisticProblem.draw(n=40)
    half = np.round(drawn.features * 4) / 8
    mirrored = drawn.but(
        features=np.vstack([half, -half]),
        labels=np.append(drawn.labels, drawn.labels),
        policy={"anchor": "keep"},
    )
    model = shop.register(mirrored)
    request = shop.request(model, mirrored, [0, 40])
    run_next(services)
    assert shop.find(request).state == "completed", shop.find(request).failure
    np.testing.assert_array_equal(shop.weights(model), mirrored.train())
    assert shop.statement(request)["disposal"]["superseded_anchor"] == "kept_as_secret"


def test_a_deletion_with_output_perturbation_spends_its_bound_and_releases_noise(
    services, shop, noisy
):
    model = shop.register(noisy)
    before = released(services, model)
    request = shop.request(model, noisy, np.arange(10))
    assert run_next(services) is True
    statement = shop.statement(request)
    privacy, account = statement["privacy"], account_of(services, model)
    assert privacy["mechanism"] == "output-perturbation"
    assert privacy["spent"] == bound_of(statement, "distance_to_retraining")["value"]
    assert (account.spent, account.reserved) == (privacy["spent"], 0.0)
    assert privacy["limit"] == account.limit_value
    assert privacy["left"] == privacy["limit"] - privacy["spent"] > 0
    assert ledger(services, model) == ["open", "reserve", "spend"]
    # What is named and served is the release; the weights stay where they are.
    after = released(services, model)
    assert statement["revision_before"]["weights_sha256"] == sha256_hex(before)
    assert statement["revision_after"]["weights_sha256"] == sha256_hex(after)
    assert statement["revision_after"]["delivered"] == "weights_with_noise"
    assert statement["disposal"]["release_noise"] == "never_recorded"
    noise = safetensors.numpy.load(after)["weight"] - shop.weights(model)
    assert 0.4 < noise.std() / noisy.privacy["sigma"] < 1.8
    assert shop.find(request).result["weights_sha256"] == sha256_hex(after)
    assert shop.find(request).result["privacy"]["spent"] == privacy["spent"]
    text = json.dumps(statement)
    for secret in (shop.weights(model), noise):
        assert str(float(secret[0, 0])) not in text
    assert "noise" not in statement["seeds"]


def test_deletions_beyond_the_budget_are_refused_and_the_model_has_to_be_retrained(
    services, shop, noisy
):
    model = shop.register(noisy)
    requests = [
        shop.request(model, noisy, np.arange(start, start + 10)) for start in range(0, 60, 10)
    ]
    while run_next(services):
        pass
    states = [shop.find(request).state for request in requests]
    done = states.count("completed")
    assert 1 <= done < len(states) - 1
    assert states == ["completed"] * done + ["refused"] * (len(states) - done)
    causes = [shop.find(request).refusal["cause"] for request in requests[done:]]
    assert causes == ["budget-spent"] + ["retraining-required"] * (len(causes) - 1)
    statement = shop.statement(requests[done])
    assert (statement["kind"], statement["cause"]) == ("refusal", "budget-spent")
    assert records.PRIVACY_LIMIT in statement["limits"]
    assert shop.statement(requests[-1])["cause"] == "retraining-required"
    account = account_of(services, model)
    last = shop.statement(requests[done - 1])
    assert account.spent == last["privacy"]["spent"] <= account.limit_value
    assert (account.reserved, account.reserved_by) == (0.0, None)
    assert shop.revision(model) == done
    assert ledger(services, model) == [
        "open",
        *["reserve", "spend"] * done,
        "reserve",
        "release",
    ]
    with services.sessions() as session:
        assert registry.get(session, model).state == "retraining_required"
        report = verify_log(session, store=services.store)
        assert report.ok, report.findings
        assert report.weights == 2  # without noise, and as delivered


def test_objective_perturbation_holds_the_gradient_against_its_budget(services, shop, problem):
    privacy = {
        "mechanism": "objective-perturbation",
        "epsilon": 1.0,
        "delta": 1e-6,
        "sigma": 50.0,
    }
    guarded = problem.but(privacy=privacy)
    model = shop.register(guarded)
    request = shop.request(model, guarded, [3])
    run_next(services)
    statement = shop.statement(request)
    assert statement["privacy"]["measure"] == "residual_gradient_norm"
    assert statement["privacy"]["spent"] == bound_of(statement, "residual_gradient_norm")["value"]
    assert statement["revision_after"]["delivered"] == "weights"
    assert account_of(services, model).spent == statement["privacy"]["spent"]


def test_a_worker_that_dies_leaves_a_reservation_that_the_next_one_takes_over(
    services, shop, noisy, monkeypatch
):
    model = shop.register(noisy)
    request = shop.request(model, noisy, np.arange(5))
    with monkeypatch.context() as broken:
        # As if the process had ended in the middle: nobody gives anything back.
        broken.setattr(runner, "_compute", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            run_next(services)
    dead = account_of(services, model)
    assert dead.reserved == dead.limit_value
    with services.sessions.begin() as session:
        session.query(UnlearningJob).update({"lease_expires_at": UnlearningJob.created_at})
    sweep(services)
    assert account_of(services, model).reserved == 0.0
    assert run_next(services) is True
    assert shop.find(request).state == "completed"
    assert ledger(services, model) == ["open", "reserve", "release", "reserve", "spend"]
    assert account_of(services, model).reserved == 0.0


def test_an_attempt_that_breaks_gives_its_reservation_back(services, shop, noisy, monkeypatch):
    model = shop.register(noisy)
    request = shop.request(model, noisy, np.arange(5))

    def fail(*_arguments, **_options):
        raise RuntimeError("solver exploded")

    with monkeypatch.context() as broken:
        broken.setattr(runner, "_compute", fail)
        run_next(services)
    assert account_of(services, model).reserved == 0.0
    with monkeypatch.context() as broken:
        broken.setattr(runner.records, "issue_completion", fail)
        run_next(services)
    account = account_of(services, model)
    assert (account.spent, account.reserved) == (0.0, 0.0)
    assert run_next(services) is True
    assert shop.find(request).state == "completed"


def copies_left(services, model):
    with services.sessions() as session:
        rows = session.scalars(select(TrainingDigest).where(TrainingDigest.model_id == model))
        return sum(row.copies for row in rows)


def test_members_are_checked_counted_down_and_the_certificate_says_so(services, shop, problem):
    model = shop.register(problem, membership=True)
    request = shop.request(model, problem, [4, 5])
    run_next(services)
    statement = shop.statement(request)
    assert any(
        assumption["standing"] == "computed" and "digest" in assumption["text"]
        for assumption in statement["assumptions"]
    )
    assert shop.find(request).result["membership"] == "computed"
    assert copies_left(services, model) == len(problem.labels) - 2
    again = shop.request(model, problem, [5, 6])
    run_next(services)
    assert shop.find(again).refusal["cause"] == "already-forgotten"
    assert copies_left(services, model) == len(problem.labels) - 2


def test_a_stranger_and_one_copy_too_many_are_refused(services, shop, problem):
    twin = problem.but(
        features=np.vstack([problem.features, problem.features[:1]]),
        labels=np.append(problem.labels, problem.labels[0]),
    )
    model = shop.register(twin, membership=True)
    stranger = twin.but(features=twin.features * 0.5)
    cases = {
        "not-in-training-set": shop.request(model, stranger, [0]),
        "duplicate-samples": shop.request(model, twin, [0, 0, 0]),
    }
    both = shop.request(model, twin, [0, len(problem.labels)])
    while run_next(services):
        pass
    for cause, request in cases.items():
        assert shop.find(request).refusal["cause"] == cause
        assert shop.statement(request)["cause"] == cause
    # Both copies there are may go at once.
    assert shop.find(both).state == "completed"


@pytest.mark.parametrize("distance", [0.0, None])
def test_a_surrogate_gives_a_conditional_record_and_never_a_certificate(
    services, shop, problem, distance
):
    public = problem.but(distance=distance)
    model = shop.register(public, statistics=False, surrogate=True)
    request = shop.request(model, public, np.arange(60), method="surrogate")
    run_next(services)
    statement = shop.statement(request)
    assert (statement["kind"], statement["tier"]) == ("conditional", "surrogate"), statement
    assert not any(bound["certifies"] for bound in statement["bounds"])
    assert statement["surrogate"]["declared_distance"] == distance
    promised = "conditional on the declared distance" in statement["verdict"]
    assert promised is (distance is not None)

    # What was declared of the training set at registration says nothing of what is left of it.
    second = shop.request(model, public, np.arange(60, 120), method="surrogate")
    run_next(services)
    statement = shop.statement(second)
    assert statement["kind"] == "conditional", statement
    assert statement["surrogate"]["declared_distance"] is None
    assert "conditional on the declared distance" not in statement["verdict"]


def test_artifacts_of_a_release_are_shredded_with_their_revision(services, shop, noisy):
    model = shop.register(noisy)
    shop.request(model, noisy, [1])
    run_next(services)
    with services.sessions() as session:
        artifacts = session.query(Artifact).all()
        kept = sorted(item.kind for item in artifacts if item.wrapped_key is not None)
    assert kept == ["holdout", "release", "statistics", "weights"]


@pytest.mark.parametrize("kind", ["certified", "noisy", "surrogate"])
def test_everything_is_computed_on_the_chosen_device_and_stored_from_there(
    shop, problem, noisy, monkeypatch, kind
):
    trained = {"certified": problem, "noisy": noisy, "surrogate": problem.but(distance=0.0)}[kind]
    parts = {"statistics": kind != "surrogate", "surrogate": kind == "surrogate"}
    near, far = shop.register(trained, **parts), shop.register(trained, **parts)
    requests = [shop.request(model, trained, np.arange(10)) for model in (near, far)]
    assert run_next(shop.services) is True
    monkeypatch.setattr(loading, "choose", lambda _name: FAR)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a far device")
    with far_device():
        assert run_next(shop.services) is True
    np.testing.assert_allclose(shop.weights(far), shop.weights(near), rtol=0, atol=1e-12)
    described = [shop.statement(request)["environment"] for request in requests]
    assert [environment["device"] for environment in described] == ["cpu", "a far device"]


@pytest.mark.parametrize("method", ["forget-curvature", "surrogate"])
def test_other_methods_downdate_logistic_statistics_too_and_certify_nothing(
    services, shop, problem, method
):
    model = shop.register(problem.but(distance=0.0), surrogate=True)
    rows = np.random.default_rng(1).choice(len(problem.labels), 120, replace=False)
    request = shop.request(model, problem, rows, method=method)
    run_next(services)
    assert shop.find(request).state == "completed", shop.find(request).refusal
    statement = shop.statement(request)
    assert statement["kind"] in {"estimate", "conditional"}
    assert statement["disposal"]["superseded_statistics"] == "key_destroyed"
    assert statement["disposal"]["superseded_anchor"] in {"moved", "kept_as_secret"}
    assert statement["parameters"]["anchor"] is None
    # From the same statistics a certified deletion comes back to retraining.
    more = np.setdiff1d(np.arange(len(problem.labels)), rows)[:3]
    certified = shop.request(model, problem, more)
    run_next(services)
    found = shop.statement(certified)
    assert (found["kind"], found["tier"]) == ("certificate", "certified"), found
    distance = np.linalg.norm(shop.weights(model) - problem.train_without([*rows, *more]))
    assert distance <= bound_of(found, "distance_to_retraining")["value"]
