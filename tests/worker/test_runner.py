import datetime
import json
import threading

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from app.artifacts.models import Artifact
from app.errors import AppError, RecordNotFoundError
from app.evidence import service as evidence
from app.evidence.auditing import verify_log
from app.registry import service as registry
from app.unlearning import service as unlearning
from app.unlearning.models import ForgottenSample, UnlearningJob, UnlearningRequest
from core.errors import IllConditionedError
from tests.reference.registered import LogisticProblem
from worker import leases, runner
from worker.runner import run_next
from worker.sweeper import clean, sweep


def test_nothing_to_do_is_said(services):
    assert run_next(services) is False


def test_an_exact_deletion_equals_retraining_and_is_certified(services, shop, make_problem):
    problem = make_problem()
    model = shop.register(problem)
    request_id = shop.request(model, problem, [7])
    assert run_next(services) is True
    request = shop.find(request_id)
    assert request.state == "completed"
    np.testing.assert_allclose(shop.weights(model), problem.train_without([7]), rtol=0, atol=1e-10)
    statement = shop.statement(request_id)
    assert statement["kind"] == "certificate"
    assert statement["revision_after"]["number"] == 1
    assert statement["revision_after"]["weights_sha256"] == request.result["weights_sha256"]
    assert statement["environment"]["libraries"]["torch"]
    assert any("owner's word" in assumption["text"] for assumption in statement["assumptions"])


def test_samples_and_superseded_artifacts_are_shredded_with_the_completion(
    services, shop, make_problem
):
    problem = make_problem()
    model = shop.register(problem)
    request = shop.find(shop.request(model, problem, [7]))
    run_next(services)
    with services.sessions() as session:
        artifacts = session.query(Artifact).all()
        kept = sorted(item.kind for item in artifacts if item.wrapped_key is not None)
        assert session.get(Artifact, request.samples_artifact_id).wrapped_key is None
        assert session.query(ForgottenSample).count() == 1
    assert kept == ["holdout", "statistics", "weights"]
    assert shop.statement(request.id)["disposal"] == {
        "forget_samples": "key_destroyed",
        "superseded_weights": "key_destroyed",
        "superseded_statistics": "key_destroyed",
        "superseded_anchor": "none",
        "release_noise": "none",
        "kept_until": None,
    }


KEPT = {
    (0, 0): ("key_destroyed", "key_destroyed", "key_destroyed", 0),
    (3, 0): ("kept_by_policy", "key_destroyed", "key_destroyed", 3),
    (0, 9): ("kept_for_replay", "kept_for_replay", "kept_for_replay", 9),
    (3, 9): ("kept_by_policy", "kept_for_replay", "kept_for_replay", 9),
}
# With noise, what is kept for a replay is what the noise hides, and the release is another file.
KEPT_OF_NOISY = KEPT | {(3, 9): ("kept_for_replay", "kept_for_replay", "kept_for_replay", 9)}


@pytest.fixture(params=["plain", "noisy"])
def kind(request, make_problem):
    """A model, and what its records say by the days that things are kept."""
    if request.param == "plain":
        return make_problem(), KEPT
    problem = LogisticProblem.draw()
    return problem.with_output_noise(np.arange(10), deletions=2.5), KEPT_OF_NOISY


@pytest.mark.parametrize("days", KEPT)
def test_the_record_says_what_was_kept_and_how_long_and_nothing_else_is(make_shop, kind, days):
    problem, told = kind
    shop = make_shop(superseded_weights_days=days[0], replay_days=days[1])
    model = shop.register(problem)
    with shop.services.sessions() as session:
        old = registry.current_revision(session, registry.get(session, model))
    request = shop.request(model, problem, np.arange(2))
    run_next(shop.services)
    disposal = shop.statement(request)["disposal"]
    weights, statistics, samples, longest = told[days]
    assert disposal["superseded_weights"] == weights
    assert disposal["superseded_statistics"] == statistics
    assert disposal["forget_samples"] == samples
    until = disposal["kept_until"] and datetime.datetime.fromisoformat(disposal["kept_until"])
    with shop.services.sessions() as session:
        ends = {}
        for name, artifact_id in {
            "weights": old.weights_artifact_id,
            "release": old.release_artifact_id,
            "statistics": old.statistics_artifact_id,
            "samples": shop.find(request).samples_artifact_id,
        }.items():
            if artifact_id is not None:
                artifact = session.get_one(Artifact, artifact_id)
                assert (artifact.wrapped_key is None) == (artifact.retain_until is None)
                ends[name] = artifact.retain_until
        assert shop.find(request).wrapped_commitment_key is None
    # What is called destroyed is; what is called kept has an end, and the record names the last.
    noisy = old.release_artifact_id is not None
    assert (ends["samples"] is None) == (samples == "key_destroyed")
    assert (ends["statistics"] is None) == (statistics == "key_destroyed")
    assert (ends["weights"] is None) == (weights != "kept_for_replay" if noisy else days == (0, 0))
    if noisy:
        assert (ends["release"] is None) == (days[0] == 0)
    assert max((end for end in ends.values() if end), default=None) == until
    if longest:
        finished = shop.find(request).finished_at
        assert until - finished < datetime.timedelta(days=longest, minutes=1)
        assert until - finished > datetime.timedelta(days=longest, minutes=-1)


def test_one_entry_of_the_log_names_every_key_that_a_deletion_destroyed(make_shop, make_problem):
    shop, problem = make_shop(), make_problem()
    model = shop.register(problem)
    with shop.services.sessions() as session:
        old = registry.current_revision(session, registry.get(session, model))
    request = shop.request(model, problem, [7])
    run_next(shop.services)
    (entry,) = shop.log("artifact.keys-destroyed")
    assert entry["subject"] == {"model_id": str(model), "request_id": str(request)}
    assert entry["payload"]["reason"] == "request-completed"
    assert entry["payload"]["other_keys"] == ["sample-commitment"]
    assert {item["id"]: item["kind"] for item in entry["payload"]["artifacts"]} == {
        str(old.weights_artifact_id): "weights",
        str(old.statistics_artifact_id): "statistics",
        str(shop.find(request).samples_artifact_id): "forget_samples",
    }


def break_off(*_arguments, **_options):
    raise RuntimeError("broken")


@pytest.mark.parametrize("days", [{}, {"superseded_weights_days": 1, "replay_days": 1}])
def test_no_key_is_destroyed_without_an_entry_however_a_request_ends(
    make_shop, make_problem, monkeypatch, days
):
    shop, problem = make_shop(max_attempts=1, **days), make_problem()
    services = shop.services
    model, bare = shop.register(problem), shop.register(problem, statistics=False)
    ended = {"completed": shop.request(model, problem, [1])}
    run_next(services)
    ended["refused"] = shop.request(bare, problem, [2])
    run_next(services)
    ended["cancelled"] = shop.request(model, problem, [3])
    with services.sessions.begin() as session:
        unlearning.cancel(session, services.store, ended["cancelled"], actor="test")
        unlearning.cancel(session, services.store, ended["cancelled"], actor="test")
    ended["failed"] = shop.request(model, problem, [4])
    with monkeypatch.context() as broken:
        broken.setattr(runner, "_compute", break_off)
        run_next(services)
    ended["exhausted"] = shop.request(model, problem, [5])
    shop.claim()
    expire(services)
    sweep(services)
    due(services)
    clean(services)
    states = {name: shop.find(request).state for name, request in ended.items()}
    assert states == {name: name for name in states} | {"exhausted": "failed"}
    entries = shop.log("artifact.keys-destroyed")
    logged = [item for entry in entries for item in entry["payload"]["artifacts"]]
    with services.sessions() as session:
        destroyed = {
            str(artifact.id): artifact.kind
            for artifact in session.scalars(select(Artifact))
            if artifact.wrapped_key is None
        }
        forgotten = session.scalars(select(UnlearningRequest)).all()
    # Each once, and none beside: the log is the table's double.
    assert len(logged) == len(destroyed) == 7
    assert {item["id"]: item["kind"] for item in logged} == destroyed
    commitments = {
        entry["subject"]["request_id"]
        for entry in entries
        if "sample-commitment" in entry["payload"]["other_keys"]
    }
    assert commitments == {
        str(request.id) for request in forgotten if request.wrapped_commitment_key is None
    }
    assert commitments == set(map(str, ended.values()))
    # Whatever is kept for a replay is of completed requests alone.
    retained = [item for entry in entries for item in entry["payload"]["retained"]]
    samples = [item["id"] for item in retained if item["kind"] == "forget_samples"]
    assert samples == ([str(shop.find(ended["completed"]).samples_artifact_id)] if days else [])


def due(services):
    """Let the time of everything that is kept be over."""
    with services.sessions.begin() as session:
        session.query(Artifact).filter(Artifact.retain_until.is_not(None)).update(
            {"retain_until": Artifact.created_at}
        )


def test_an_estimate_states_its_options_and_certifies_nothing(services, shop, make_problem):
    problem = make_problem(n=1500, d=5)
    model = shop.register(problem, statistics=False)
    request = shop.request(model, problem, np.arange(200), method="paper-sdp", solver="SCS")
    run_next(services)
    statement = shop.statement(request)
    assert statement["kind"] == "estimate", statement
    assert not any(bound["certifies"] for bound in statement["bounds"])
    assert statement["parameters"]["solver"] == "SCS"
    assert statement["parameters"]["perturbation"]["count"] == 18  # 1.2·5·6/2
    assert statement["seeds"] == {"gate": "5", "perturbation": "6", "skew": "7"}
    assert shop.find(request).result["residual_bound"] > 0


def test_a_refusal_changes_nothing_and_is_signed(services, shop, make_problem):
    problem = make_problem()
    model = shop.register(problem, statistics=False)
    request_id = shop.request(model, problem, [7])
    assert run_next(services) is True
    request = shop.find(request_id)
    assert (request.state, shop.revision(model)) == ("refused", 0)
    statement = shop.statement(request_id)
    assert statement["kind"] == "refusal"
    assert statement["cause"] == request.refusal["cause"] == "forget-set-too-small"
    assert statement["disposal"] == {"forget_samples": "key_destroyed"}
    np.testing.assert_array_equal(shop.weights(model), problem.train())


def test_double_deletions_are_refused_before_anything_is_computed(
    services, shop, make_problem, monkeypatch
):
    problem = make_problem()
    model = shop.register(problem)
    shop.request(model, problem, [7])
    run_next(services)
    again = shop.request(model, problem, [8, 7])
    copies = shop.request(model, problem, [8, 9, 8])
    monkeypatch.setattr(runner, "_compute", None)  # must not be called
    while run_next(services):
        pass
    assert shop.find(again).refusal["cause"] == "already-forgotten"
    assert shop.find(copies).refusal["cause"] == "duplicate-samples"
    assert shop.revision(model) == 1


def failing(error):
    def unlearn(*_args, **_options):
        raise error

    return unlearn


SECRET = 0.7182818284


def test_an_unexpected_error_gives_the_request_another_attempt(
    services, shop, make_problem, monkeypatch
):
    problem = make_problem()
    model = shop.register(problem)
    request_id = shop.request(model, problem, [7])
    with monkeypatch.context() as broken:
        broken.setattr(runner, "_compute", failing(RuntimeError(f"x[0] = {SECRET}")))
        assert run_next(services) is False  # the sweeper rings again, later
    request = shop.find(request_id)
    assert (request.state, request.attempts) == ("queued", 1)
    assert run_next(services) is True
    assert shop.find(request_id).state == "completed"
    np.testing.assert_allclose(shop.weights(model), problem.train_without([7]), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError(f"x[0] = {SECRET}"), "RuntimeError: its message is in the worker's log only"),
        (
            IllConditionedError(f"pivot {SECRET}"),
            "IllConditionedError: A matrix that has to be positive definite is not, in float64.",
        ),
    ],
)
def test_the_last_attempt_ends_in_a_signed_failure_that_quotes_no_data(
    make_shop, make_problem, monkeypatch, error, told
):
    shop, problem = make_shop(max_attempts=2), make_problem()
    model = shop.register(problem)
    request_id = shop.request(model, problem, [7], subject_reference="Jane Doe")
    monkeypatch.setattr(runner, "_compute", failing(error))
    run_next(shop.services)
    run_next(shop.services)
    request = shop.find(request_id)
    assert (request.state, request.attempts, shop.revision(model)) == ("failed", 2, 0)
    statement = shop.statement(request_id)
    assert statement["kind"] == "failure"
    assert statement["cause"] == "unexpected-error"
    assert statement["detail"].startswith(told)
    for text in (json.dumps(statement), json.dumps(request.failure)):
        assert str(SECRET) not in text
        assert "Jane Doe" not in text


def test_a_request_whose_options_cannot_be_read_fails_and_the_next_one_has_its_turn(
    make_shop, make_problem
):
    shop, problem = make_shop(max_attempts=1), make_problem()
    model = shop.register(problem)
    poison, behind = shop.request(model, problem, [7]), shop.request(model, problem, [8])
    with shop.services.sessions.begin() as session:
        session.get(UnlearningRequest, poison).options = {"seed": "none that can be read"}
    # No record can be signed about it either: what it asked for is unknown.
    assert run_next(shop.services) is True
    assert shop.find(poison).state == "failed"
    assert run_next(shop.services) is True
    assert shop.find(behind).state == "completed"


@pytest.mark.parametrize("step", ["_load", "_complete", "_refuse"])
def test_a_database_that_is_away_for_a_moment_costs_no_attempt(
    services, shop, make_problem, monkeypatch, step
):
    problem = make_problem()
    request_id = shop.request(shop.register(problem, statistics=step != "_refuse"), problem, [7])
    monkeypatch.setattr(leases, "RETRY_SECONDS", 0.01)
    real, calls = getattr(runner, step), []

    def flaky(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise OperationalError("SELECT", {}, ConnectionError("restarting"))
        return real(*arguments)

    monkeypatch.setattr(runner, step, flaky)
    assert run_next(services) is True
    request = shop.find(request_id)
    assert (request.state, request.attempts) == (
        "refused" if step == "_refuse" else "completed",
        1,
    )


def test_a_commit_whose_answer_was_lost_is_not_done_twice(
    services, shop, make_problem, monkeypatch
):
    problem = make_problem()
    model = shop.register(problem)
    request_id = shop.request(model, problem, [7])
    monkeypatch.setattr(leases, "RETRY_SECONDS", 0.01)
    complete = runner._complete

    def lose_the_answer(*arguments):
        complete(*arguments)
        raise OperationalError("COMMIT", {}, ConnectionError("connection lost"))

    monkeypatch.setattr(runner, "_complete", lose_the_answer)
    assert run_next(services) is True
    assert (shop.find(request_id).state, shop.revision(model)) == ("completed", 1)
    assert shop.find(request_id).attempts == 1


def test_the_log_keeps_the_message_that_the_record_may_not_quote(
    services, shop, make_problem, monkeypatch, capsys
):
    problem = make_problem()
    shop.request(shop.register(problem), problem, [7])
    monkeypatch.setattr(runner, "_compute", failing(RuntimeError("solver exploded")))
    run_next(services)
    assert "solver exploded" in capsys.readouterr().out


def expire(services):
    """Let every lease run out, as if the worker had been away for long."""
    with services.sessions.begin() as session:
        session.query(UnlearningJob).update({"lease_expires_at": UnlearningJob.created_at})


def test_a_worker_that_lost_its_lease_writes_nothing(services, shop, make_problem, monkeypatch):
    problem = make_problem()
    model = shop.register(problem)
    request_id = shop.request(model, problem, [7])
    compute = runner._compute

    def too_slow(*arguments, **options):
        result = compute(*arguments, **options)
        expire(services)
        return result

    monkeypatch.setattr(runner, "_compute", too_slow)
    assert run_next(services) is True
    assert shop.find(request_id).state == "running"  # until a sweeper gives it to another
    assert shop.revision(model) == 0
    with services.sessions() as session, pytest.raises(RecordNotFoundError):
        evidence.find_record(session, request_id)


def test_an_error_after_the_lease_was_lost_is_left_to_the_new_holder(
    services, shop, make_problem, monkeypatch
):
    problem = make_problem()
    request_id = shop.request(shop.register(problem), problem, [7])

    def break_late(*_arguments, **_options):
        expire(services)
        raise RuntimeError("too late")

    monkeypatch.setattr(runner, "_compute", break_late)
    run_next(services)
    request = shop.find(request_id)
    assert (request.state, request.attempts) == ("running", 1)


def test_the_closing_transaction_is_all_or_nothing(services, shop, make_problem, monkeypatch):
    problem = make_problem()
    model = shop.register(problem)
    request_id = shop.request(model, problem, [7])
    with monkeypatch.context() as broken:
        # The very last step: revision, statistics, digests and states are written by then.
        broken.setattr(runner.records, "issue_completion", failing(OSError("signing failed")))
        run_next(services)
    assert (shop.find(request_id).state, shop.revision(model)) == ("queued", 0)
    with services.sessions() as session:
        assert session.query(ForgottenSample).count() == 0
    assert run_next(services) is True
    assert shop.find(request_id).state == "completed"
    np.testing.assert_allclose(shop.weights(model), problem.train_without([7]), rtol=0, atol=1e-10)


def test_many_workers_at_once_forget_each_sample_once(make_services, make_shop, make_problem):
    shop, problem = make_shop(), make_problem(n=200)
    models = [shop.register(problem) for _ in range(2)]
    requests = [shop.request(model, problem, [row]) for row in range(6) for model in models]
    errors = []

    def work():
        own = make_services()
        try:
            # A worker that finds every model busy leaves; the others go on.
            while run_next(own):
                pass
        except AppError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while run_next(shop.services):
        pass
    assert errors == []
    assert {shop.find(request).state for request in requests} == {"completed"}
    for model in models:
        assert shop.revision(model) == 6
        retrained = problem.train_without(np.arange(6))
        np.testing.assert_allclose(shop.weights(model), retrained, rtol=0, atol=1e-9)
    with shop.services.sessions() as session:
        assert verify_log(session).ok
