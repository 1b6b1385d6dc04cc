"""Replays on a real database: what differs is never called the same, and nothing is left out."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from sqlalchemy import update

from app.artifacts.models import Artifact, ArtifactKind
from app.errors import InvalidInputError, RequestNotFoundError
from app.evidence.canonical import sha256_hex
from app.evidence.keys.signing import Signer
from app.evidence.models import EvidenceRecord, SigningKey
from app.registry import service as registry
from app.registry.models import Revision
from app.unlearning.models import ForgottenSample, UnlearningRequest
from app.unlearning.service import new_id
from tests.reference.networks import NetworkProblem
from tests.reference.registered import LogisticProblem
from worker import environment, loading, replay
from worker.replay import Outcome
from worker.runner import run_next
from worker.sweeper import clean

LETHE = Path(sys.executable).parent / "lethe"


@pytest.fixture
def shop(make_shop):
    """A service that keeps what a replay needs."""
    return make_shop(replay_days=5)


def complete(shop, problem, rows, *, statistics=True, network=False, **options):
    """Bring a deletion to its end, and return its model and request."""
    model = shop.register(problem, statistics=statistics, network=network)
    return model, complete_next(shop, model, problem, rows, **options)


def complete_next(shop, model, problem, rows, **options):
    request = shop.request(model, problem, rows, **options)
    run_next(shop.services)
    assert shop.find(request).state == "completed", shop.find(request).refusal
    return request


def run(shop, request, **how):
    return replay.replay(shop.services, request, **how)


def revision_of(shop, model, number):
    with shop.services.sessions() as session:
        return registry.get_revision(session, registry.get(session, model), number)


LOGISTIC = LogisticProblem.draw()
SIMPLE = ("squared", "logistic", "estimated", "forget-curvature", "noise")


@pytest.fixture(params=SIMPLE)
def completed(request, shop, make_problem):
    """A completed deletion of every kind of linear head, with the samples' rows."""
    rows = np.arange(3)
    if request.param == "squared":
        return complete(shop, make_problem(), rows)
    if request.param == "logistic":
        return complete(shop, LOGISTIC, rows)
    if request.param == "noise":
        return complete(shop, LOGISTIC.with_output_noise(np.arange(10), deletions=2.5), rows)
    method = "paper-sdp" if request.param == "estimated" else request.param
    problem = make_problem(n=1500, d=5)
    rows = np.arange(200)
    return complete(shop, problem, rows, statistics=False, method=method, seed=41)


def test_a_replay_from_what_was_kept_gives_the_same_bits(shop, completed):
    model, request = completed
    found = run(shop, request)
    assert found.outcome is Outcome.IDENTICAL, found
    assert found.environment == ()
    assert any("weights" in sentence and "the SHA-256" in sentence for sentence in found.findings)
    (entry,) = shop.log("request.replayed")
    assert entry["subject"] == {"model_id": str(model), "request_id": str(request)}
    assert entry["payload"] == {
        "outcome": "identical",
        "samples": "kept",
        "findings": list(found.findings),
        "environment": [],
        "distance": None,
    }


def test_a_replay_changes_nothing_but_the_log(shop, make_problem):
    model, request = complete(shop, make_problem(), [1])
    with shop.services.sessions() as session:
        before = [
            (artifact.id, artifact.wrapped_key, artifact.retain_until)
            for artifact in session.query(Artifact).order_by(Artifact.id)
        ]
    run(shop, request)
    with shop.services.sessions() as session:
        after = [
            (artifact.id, artifact.wrapped_key, artifact.retain_until)
            for artifact in session.query(Artifact).order_by(Artifact.id)
        ]
    assert after == before
    assert shop.revision(model) == 1


def test_a_network_is_replayed_too(shop):
    problem = NetworkProblem.digits(200).but(statistics="sketch", rank=100, error_probes=20)
    _, request = complete(shop, problem, np.arange(3), network=True)
    assert run(shop, request).outcome is Outcome.IDENTICAL


def test_a_deletion_amid_a_lineage_is_replayed_though_others_followed(shop, make_problem):
    problem = make_problem()
    model, first = complete(shop, problem, [1])
    second = complete_next(shop, model, problem, [2, 3])
    complete_next(shop, model, problem, [4])
    assert [run(shop, one).outcome for one in (first, second)] == [Outcome.IDENTICAL] * 2


def test_without_what_was_kept_it_cannot_be_replayed_and_says_why(make_shop, make_problem):
    shop, problem = make_shop(), make_problem()
    _, request = complete(shop, problem, [7])
    found = run(shop, request)
    assert found.outcome is Outcome.CANNOT
    assert "forget samples are gone" in found.findings[0]
    assert "--samples" in found.findings[0]
    # The samples alone do not help where the statistics are gone as well.
    again = run(shop, request, samples=problem.samples_file([7]))
    assert again.outcome is Outcome.CANNOT
    assert "computed from is gone" in again.findings[0]
    outcomes = [entry["payload"]["outcome"] for entry in shop.log("request.replayed")]
    assert outcomes == ["cannot-be-replayed"] * 2


def test_after_its_time_it_cannot_be_replayed(shop, make_problem):
    _, request = complete(shop, make_problem(), [7])
    with shop.services.sessions.begin() as session:
        session.execute(
            update(Artifact)
            .where(Artifact.retain_until.is_not(None))
            .values(retain_until=Artifact.created_at)
        )
    clean(shop.services)
    assert run(shop, request).outcome is Outcome.CANNOT


@pytest.mark.parametrize("state", ["queued", "cancelled"])
def test_only_completed_requests_are_replayed(shop, make_problem, state):
    problem = make_problem()
    request = shop.request(shop.register(problem), problem, [1])
    with shop.services.sessions.begin() as session:
        session.get_one(UnlearningRequest, request).state = state
    found = run(shop, request)
    assert (found.outcome, found.findings) == (
        Outcome.CANNOT,
        (f"The request is {state}; only a completed one has weights to compare.",),
    )


def test_an_unknown_request_is_told_and_not_logged(shop):
    with pytest.raises(RequestNotFoundError):
        run(shop, new_id())
    assert shop.log("request.replayed") == []


# --- Samples that are sent again ---------------------------------------------------------------


@pytest.fixture
def keeps_weights(make_shop):
    """A service that serves old weights for a while and keeps nothing for replays."""
    return make_shop(superseded_weights_days=5)


def estimate(shop, problem):
    return complete(shop, problem, np.arange(200), statistics=False, method="paper-sdp", seed=3)


def test_samples_sent_again_serve_as_well_as_those_that_were_kept(keeps_weights, make_problem):
    shop, problem = keeps_weights, make_problem(n=1500, d=5)
    _, request = estimate(shop, problem)
    assert run(shop, request).outcome is Outcome.CANNOT
    found = run(shop, request, samples=problem.samples_file(np.arange(200)))
    assert found.outcome is Outcome.IDENTICAL, found
    assert any("keyed digest" in sentence for sentence in found.findings)
    assert shop.log("request.replayed")[-1]["payload"]["samples"] == "sent-again"


@pytest.mark.parametrize(
    "rows",
    [np.arange(1, 201), np.arange(199), np.append(np.arange(199), 198), np.arange(300)],
    ids=["one other", "one less", "one twice", "more"],
)
def test_other_samples_are_refused_by_their_digests(keeps_weights, make_problem, rows):
    shop, problem = keeps_weights, make_problem(n=1500, d=5)
    _, request = estimate(shop, problem)
    found = run(shop, request, samples=problem.samples_file(rows))
    assert found.outcome is Outcome.CANNOT
    assert "key of their commitment was destroyed" in found.findings[0]
    assert "keyed digests" in found.findings[0]


def test_samples_of_another_shape_are_refused(keeps_weights, make_problem):
    shop, problem = keeps_weights, make_problem(n=1500, d=5)
    _, request = estimate(shop, problem)
    with pytest.raises(InvalidInputError, match="samples"):
        run(shop, request, samples=b"no safetensors")


def test_samples_in_another_order_are_declared_and_never_called_identical_by_mistake(
    keeps_weights, make_problem
):
    shop, problem = keeps_weights, make_problem(n=1500, d=5)
    _, request = estimate(shop, problem)
    found = run(shop, request, samples=problem.samples_file(np.arange(200)[::-1]))
    assert found.outcome in {Outcome.IDENTICAL, Outcome.DIFFERENT}
    assert any("order" in sentence for sentence in found.findings)


# --- What was tampered with --------------------------------------------------------------------


def replace(shop, artifact_id, kind, change):
    """Put another file in the place of a stored one, with a key and digests that fit it."""
    services = shop.services
    with services.sessions.begin() as session:
        content = services.store.get(session.get_one(Artifact, artifact_id))
        tensors = safetensors.numpy.load(content)
        change(tensors)
        changed = safetensors.numpy.save(tensors)
        return services.store.put(session, kind, changed).id, changed


def nudge(name):
    def change(tensors):
        tensors[name].flat[0] += 1e-12

    return change


def test_tampered_new_weights_are_different_though_the_table_was_made_to_fit(shop, make_problem):
    model, request = complete(shop, make_problem(), [1])
    revision = revision_of(shop, model, 1)
    forged, content = replace(
        shop, revision.weights_artifact_id, ArtifactKind.WEIGHTS, nudge("weight")
    )
    change = {"weights_artifact_id": forged, "weights_sha256": sha256_hex(content)}
    with shop.services.sessions.begin() as session:
        session.execute(update(Revision).where(Revision.id == revision.id).values(**change))
    found = run(shop, request)
    assert found.outcome is Outcome.DIFFERENT
    assert "The new weights stored now are not the record's." in found.findings
    assert any("digest of the new weights" in sentence for sentence in found.findings)
    # What was computed anew is what was signed: so it is the store that lies.
    assert any("now have the SHA-256 of the record" in sentence for sentence in found.findings)


@pytest.mark.parametrize(
    ("column", "kind", "tensor"),
    [("weights", ArtifactKind.WEIGHTS, "weight"), ("statistics", ArtifactKind.STATISTICS, "cross")],
)
def test_tampered_inputs_are_different(shop, make_problem, column, kind, tensor):
    model, request = complete(shop, make_problem(), [1])
    revision = revision_of(shop, model, 0)
    forged, _ = replace(shop, getattr(revision, f"{column}_artifact_id"), kind, nudge(tensor))
    with shop.services.sessions.begin() as session:
        session.execute(
            update(Revision)
            .where(Revision.id == revision.id)
            .values({f"{column}_artifact_id": forged})
        )
    found = run(shop, request)
    assert found.outcome is Outcome.DIFFERENT
    assert f"The old {column} stored now are not the record's." in found.findings


def test_a_damaged_blob_is_a_finding_and_no_crash(shop, make_problem, tmp_path):
    model, request = complete(shop, make_problem(), [1])
    revision = revision_of(shop, model, 1)
    with shop.services.sessions() as session:
        location = session.get_one(Artifact, revision.weights_artifact_id).location
    (tmp_path / "artifacts" / location).write_bytes(b"damaged")
    found = run(shop, request)
    assert found.outcome is Outcome.DIFFERENT
    assert "The new weights stored now are damaged." in found.findings


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 99}, "The seeds are not those of the record."),
        (
            {"perturbation": {"count": 30, "law": "gaussian", "scale": 1.0}},
            "The database contradicts the signed record about the request's parameters.",
        ),
    ],
)
def test_options_that_were_changed_in_the_database_are_a_finding(shop, make_problem, change, told):
    problem = make_problem(n=1500, d=5)
    _, request = estimate(shop, problem)
    with shop.services.sessions.begin() as session:
        row = session.get_one(UnlearningRequest, request)
        row.options = row.options | change
    found = run(shop, request)
    assert found.outcome is Outcome.DIFFERENT, found
    assert told in found.findings


def test_a_computation_that_breaks_off_or_refuses_now_is_a_finding(shop, make_problem):
    model, request = complete(shop, make_problem(), [1])
    with shop.services.sessions.begin() as session:
        registry.get_revision(session, registry.get(session, model), 0).n_samples += 1
    found = run(shop, request)
    assert found.outcome is Outcome.DIFFERENT
    assert "The computation breaks off now: InvalidOptionError." in found.findings
    assert any("old revision's size" in sentence for sentence in found.findings)

    _, request = estimate(shop, make_problem(n=1500, d=5))
    with shop.services.sessions.begin() as session:
        row = session.get_one(UnlearningRequest, request)
        row.options = row.options | {"gate": row.options["gate"] | {"threshold": 1e-9}}
    found = run(shop, request)
    assert found.outcome is Outcome.DIFFERENT
    assert "The computation refuses now: estimate-unreliable." in found.findings


def test_a_request_that_is_only_called_completed_has_nothing_to_compare(shop, make_problem):
    problem = make_problem()
    request = shop.request(shop.register(problem), problem, [1])
    with shop.services.sessions.begin() as session:
        session.get_one(UnlearningRequest, request).state = "completed"
    found = run(shop, request)
    assert found.outcome is Outcome.CANNOT
    assert found.findings == ("The request has no signed record to compare with.",)
    # Nor has one whose record is about something else.
    bare = shop.register(problem, statistics=False)
    refused = shop.request(bare, problem, [1])
    run_next(shop.services)
    with shop.services.sessions.begin() as session:
        session.get_one(UnlearningRequest, refused).state = "completed"
    found = run(shop, refused)
    assert found.findings == ("The signed record is not one about this request's new weights.",)


def test_damaged_samples_are_told_from_destroyed_ones(shop, make_problem, tmp_path):
    _, request = complete(shop, make_problem(), [1])
    with shop.services.sessions() as session:
        artifact = session.get_one(Artifact, shop.find(request).samples_artifact_id)
    (tmp_path / "artifacts" / artifact.location).write_bytes(b"damaged")
    found = run(shop, request)
    assert found.outcome is Outcome.CANNOT
    assert "The forget samples are damaged" in found.findings[0]


def test_a_manifest_that_was_changed_is_a_finding(shop, make_problem):
    model, request = complete(shop, make_problem(), [1])
    with shop.services.sessions.begin() as session:
        row = registry.get(session, model)
        row.manifest = row.manifest | {"ridge": {"convention": "per_sample", "strength": 0.5}}
    found = run(shop, request)
    assert found.outcome is Outcome.DIFFERENT
    assert any("manifest" in sentence for sentence in found.findings)


def test_digests_of_other_requests_are_not_taken_for_this_ones(shop, make_problem):
    problem = make_problem()
    _, request = complete(shop, problem, [1, 2])
    with shop.services.sessions.begin() as session:
        session.delete(session.query(ForgottenSample).first())
    found = run(shop, request)
    assert found.outcome is Outcome.CANNOT
    assert "were never forgotten" in found.findings[0]


def test_a_record_that_does_not_verify_is_no_measure(shop, make_problem, monkeypatch):
    _, request = complete(shop, make_problem(), [1])
    read = replay.read_document

    def forged(kind, content):
        return read(kind, content).model_copy(update={"payload": "e30="})

    monkeypatch.setattr(replay, "read_document", forged)
    found = run(shop, request)
    assert found.outcome is Outcome.CANNOT
    assert "does not verify" in found.findings[0]


def test_a_record_of_a_former_key_is_taken_at_the_databases_word_which_is_said(
    make_shop, make_problem, tmp_path
):
    shop = make_shop(replay_days=5)
    _, request = complete(shop, make_problem(), [1])
    Signer.generate(tmp_path / "next.pem")
    others = dataclasses.replace(shop.services, signer=Signer.load(tmp_path / "next.pem"))
    found = replay.replay(others, request)
    assert found.outcome is Outcome.IDENTICAL
    assert "a former key of this service by what the database says" in found.findings[0]


def test_a_record_of_a_compromised_key_is_no_measure(shop, make_problem):
    _, request = complete(shop, make_problem(), [1])
    with shop.services.sessions.begin() as session:
        now = session.query(EvidenceRecord).one().created_at
        session.execute(
            update(SigningKey)
            .where(SigningKey.role == "records")
            .values(compromised=True, revoked_at=now)
        )
    found = run(shop, request)
    assert found.outcome is Outcome.CANNOT
    assert "compromised" in found.findings[0]


# --- Other environments ------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch):
    """Return a function that makes a replay believe that it computes elsewhere."""

    def pretend(**changes):
        real = environment.describe_environment

        def describe(device):
            return real(device).model_copy(update=changes)

        monkeypatch.setattr(replay, "describe_environment", describe)

    return pretend


@pytest.fixture
def last_bits(monkeypatch):
    """Return a function that makes computations round differently, by so much of their weights."""

    def disturb(share):
        real = loading.Computation.run

        def run(self, progress):
            result = real(self, progress)
            weights = result.weights * (1 + share)
            return dataclasses.replace(result, weights=weights, release=weights)

        monkeypatch.setattr(loading.Computation, "run", run)

    return disturb


def test_the_threads_are_those_of_the_record_and_put_back(shop, make_problem, monkeypatch):
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        _, request = complete(shop, make_problem(), [1])
        torch.set_num_threads(1)
        seen = []
        real = loading.Computation.run

        def look(self, progress):
            seen.append(torch.get_num_threads())
            return real(self, progress)

        monkeypatch.setattr(loading.Computation, "run", look)
        found = run(shop, request)
        assert (found.outcome, found.environment, seen) == (Outcome.IDENTICAL, (), [3])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(torch_threads)


def test_another_number_of_threads_is_declared_even_where_the_bits_agree(shop, make_problem):
    _, request = complete(shop, make_problem(), [1])
    recorded = shop.statement(request)["environment"]["threads"]
    found = run(shop, request, threads=recorded + 1)
    assert found.outcome is Outcome.IDENTICAL
    assert found.environment == (f"threads of the record is {recorded} (here {recorded + 1}).",)
    assert shop.log("request.replayed")[0]["payload"]["environment"] == list(found.environment)


ARITHMETIC = [
    {"device": "NVIDIA H100"},
    {"threads": 64},
    {"cpu_capability": "AVX512-of-another-kind"},
    {"libraries": {"torch": "99.0"}},
]


@pytest.mark.parametrize("change", ARITHMETIC, ids=lambda change: next(iter(change)))
def test_other_last_bits_are_within_tolerance_where_the_arithmetic_may_differ(
    completed, shop, elsewhere, last_bits, change
):
    _, request = completed
    elsewhere(**change)
    last_bits(1e-12)
    found = run(shop, request)
    assert found.outcome is Outcome.WITHIN_TOLERANCE, found
    assert 0 < found.distance < 1e-11
    assert len(found.environment) == 1
    assert next(iter(change)) in found.environment[0]
    assert any("count as the same computation" in sentence for sentence in found.findings)


def test_the_same_last_bits_are_different_where_the_arithmetic_is_the_same(
    completed, shop, last_bits
):
    _, request = completed
    last_bits(1e-12)
    found = run(shop, request)
    assert found.outcome is Outcome.DIFFERENT
    assert 0 < found.distance < 1e-11
    assert any("should be the same" in sentence for sentence in found.findings)


@pytest.mark.parametrize(
    "change", [{"code_sha256": "0" * 64}, {"python_version": "4.0"}, {"lethe_version": "9"}]
)
def test_other_code_excuses_nothing_and_is_declared(
    shop, make_problem, elsewhere, last_bits, change
):
    _, request = complete(shop, make_problem(), [1])
    elsewhere(**change)
    assert run(shop, request).outcome is Outcome.IDENTICAL
    last_bits(1e-12)
    found = run(shop, request)
    assert found.outcome is Outcome.DIFFERENT
    assert next(iter(change)) in found.environment[0]


def test_weights_beyond_the_tolerance_are_different_wherever_they_were_computed(
    shop, make_problem, elsewhere, last_bits
):
    _, request = complete(shop, make_problem(), [1])
    elsewhere(threads=64)
    last_bits(2 * replay.TOLERANCE)
    found = run(shop, request)
    assert found.outcome is Outcome.DIFFERENT
    assert found.distance > replay.TOLERANCE


def test_a_tolerance_that_the_old_weights_would_pass_is_none(
    shop, make_problem, elsewhere, monkeypatch
):
    # One row of many moves the weights by less than the tolerance allows; doing nothing must not
    # pass for the deletion.
    problem = make_problem(n=400)
    model, request = complete(shop, problem, [1])
    elsewhere(threads=64)
    monkeypatch.setattr(replay, "TOLERANCE", 1.0)
    old = torch.from_numpy(problem.train())
    real = loading.Computation.run

    def do_nothing(self, progress):
        return dataclasses.replace(real(self, progress), weights=old, release=old)

    monkeypatch.setattr(loading.Computation, "run", do_nothing)
    found = run(shop, request)
    assert found.outcome is Outcome.DIFFERENT
    assert found.distance < 1.0
    assert shop.revision(model) == 1


def test_where_nothing_is_left_to_measure_against_it_says_so(
    make_shop, make_problem, elsewhere, last_bits
):
    shop, problem = make_shop(superseded_weights_days=5), make_problem(n=1500, d=5)
    model, request = estimate(shop, problem)
    later = complete_next(shop, model, problem, np.arange(200, 420), method="paper-sdp")
    assert later
    with shop.services.sessions.begin() as session:
        revision = registry.get_revision(session, registry.get(session, model), 1)
        artifact = session.get_one(Artifact, revision.weights_artifact_id)
        with shop.services.store.shredding(session, reason="test", subject={}) as shredding:
            shredding.shred(artifact)
    samples = problem.samples_file(np.arange(200))
    assert run(shop, request, samples=samples).outcome is Outcome.IDENTICAL
    elsewhere(threads=64)
    last_bits(1e-12)
    found = run(shop, request, samples=samples)
    assert found.outcome is Outcome.CANNOT
    assert "nothing left to measure" in found.findings[-1]
    assert [sentence.split()[0] for sentence in found.environment] == ["threads"]


@pytest.mark.parametrize("gone", ["weights", "statistics"])
def test_a_part_that_is_gone_is_not_passed_over(shop, make_problem, elsewhere, last_bits, gone):
    problem = make_problem()
    model, request = complete(shop, problem, [1])
    complete_next(shop, model, problem, [2])
    with shop.services.sessions.begin() as session:
        revision = registry.get_revision(session, registry.get(session, model), 1)
        artifact = session.get_one(Artifact, getattr(revision, f"{gone}_artifact_id"))
        with shop.services.store.shredding(session, reason="test", subject={}) as shredding:
            shredding.shred(artifact)
    last_bits(1e-12)
    found = run(shop, request)
    assert (found.outcome, found.distance) == (Outcome.DIFFERENT, None)
    elsewhere(threads=64)
    assert run(shop, request).outcome is Outcome.CANNOT


def test_statistics_agree_only_where_all_of_them_do():
    stored = {"gram": np.eye(3), "n_samples": np.array([5])}

    def agree(**changes):
        files = (safetensors.numpy.save(tensors) for tensors in (stored | changes, stored))
        return replay._statistics_agree(*files)

    assert agree()
    assert agree(gram=np.eye(3) * (1 + 1e-9))
    assert not agree(gram=np.eye(3) * (1 + 1e-5))
    assert not agree(gram=np.eye(2))
    assert not agree(n_samples=np.array([6]))
    assert not agree(more=np.eye(3))


def test_a_record_that_does_not_name_its_threads_says_so(shop, make_problem, monkeypatch):
    _, request = complete(shop, make_problem(), [1])
    read = replay.read_signed_record

    def of_version_2(envelope):
        statement, payload = read(envelope)
        known = statement.environment.model_dump(exclude={"threads", "cpu_capability"})
        base = type(statement.environment).__mro__[1]
        return statement.model_copy(update={"environment": base(**known)}), payload

    monkeypatch.setattr(replay, "read_signed_record", of_version_2)
    found = run(shop, request)
    assert found.outcome is Outcome.IDENTICAL
    assert [sentence.split(" of")[0] for sentence in found.environment] == [
        "threads",
        "cpu_capability",
    ]
    assert all("is not known" in sentence for sentence in found.environment)


# --- The command -------------------------------------------------------------------------------


@pytest.fixture
def lethe(shop):
    """Return a function that runs `lethe replay` as an operator does, beside the service."""
    settings = shop.services.settings
    names = (
        "database_url",
        "redis_url",
        "artifacts_url",
        "master_key_file",
        "signing_key_file",
        "log_key_file",
    )
    variables = {name.upper(): str(getattr(settings, name)) for name in names}

    def call(*arguments, **changes):
        return subprocess.run(
            [LETHE, "replay", *map(str, arguments)],
            env=os.environ | variables | changes,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return call


def test_the_command_says_what_it_found_by_its_exit_status(shop, make_problem, lethe, tmp_path):
    problem = make_problem()
    model, request = complete(shop, problem, [1])
    done = lethe(request)
    assert done.returncode == 0, done.stderr
    assert f"identical  request {request}" in done.stdout
    assert "environment: as in the record." in done.stdout

    other = tmp_path / "other.safetensors"
    other.write_bytes(problem.samples_file(np.array([2])))
    cannot = lethe(request, "--samples", other)
    assert cannot.returncode == 2
    assert "cannot-be-replayed" in cannot.stdout

    with shop.services.sessions.begin() as session:
        revision = registry.get_revision(session, registry.get(session, model), 1)
        revision.weights_sha256 = "0" * 64
    different = lethe(request, "--threads", "1")
    assert different.returncode == 1
    assert "different" in different.stdout
    outcomes = [entry["payload"]["outcome"] for entry in shop.log("request.replayed")]
    assert outcomes == ["identical", "cannot-be-replayed", "different"]


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS", "FIRST_ORDER"])
def test_the_commands_own_environment_does_not_decide_the_bits(shop, make_problem, lethe, solver):
    problem = make_problem(n=4000, d=16)
    rows = np.arange(900)
    options = {"statistics": False, "method": "paper-sdp", "solver": solver}
    _, request = complete(shop, problem, rows, **options)
    for threads in ("1", "2", "5"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        done = lethe(request, **dict.fromkeys(names, threads))
        assert "environment: as in the record." in done.stdout
        assert done.returncode == 0, done.stdout


def test_the_command_names_what_is_wrong_and_its_remedy(shop, lethe, tmp_path):
    unknown = lethe(new_id())
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "no unlearning request" in unknown.stderr
    for changes, told in (
        ({"MASTER_KEY_FILE": str(tmp_path / "none")}, "lethe keys init"),
        ({"SIGNING_KEY_FILE": ""}, "SIGNING_KEY_FILE"),
    ):
        broken = lethe(new_id(), **changes)
        assert broken.returncode == 2
        assert "Traceback" not in broken.stderr
        assert told in broken.stderr
    # A crash must not end with the status of `different`.
    away = lethe(new_id(), DATABASE_URL="postgresql+psycopg://nobody@localhost:1/none")
    assert (away.returncode, away.stdout) == (2, "")
    assert "OperationalError" in away.stderr
    assert shop.log("request.replayed") == []


def test_without_a_service_the_command_says_how_to_name_one(tmp_path):
    names = ("DATABASE_URL", "REDIS_URL", "ARTIFACTS_URL")
    bare = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [LETHE, "replay", str(new_id()), "--state-dir", tmp_path],
        env=bare,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "lethe up" in done.stderr
