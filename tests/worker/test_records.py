import hashlib
import json

import numpy as np
import pytest
import torch
from sqlalchemy import text

from app.evidence import service as evidence
from app.evidence.formats import SignedEnvelope
from app.evidence.keys.signing import read_payload
from app.evidence.records.statements import RECORD_TYPES, read_document
from app.registry import service as registry
from tests.reference.registered import LogisticProblem
from worker.runner import run_next


def signed_payload(services, request_id):
    with services.sessions() as session:
        record = evidence.find_record(session, request_id)
        return read_payload(read_document(SignedEnvelope, record.envelope), *RECORD_TYPES)


def test_each_record_names_the_first_weights_and_the_record_before_it(services, shop, make_problem):
    problem = make_problem()
    model = shop.register(problem)
    with services.sessions() as session:
        first = registry.current_revision(session, registry.get(session, model))
    requests = [shop.request(model, problem, [row]) for row in (7, 7, 8)]
    for _ in requests:
        assert run_next(services) is True
    done, refused, again = map(shop.statement, requests)
    assert [one["kind"] for one in (done, refused, again)] == [
        "certificate",
        "refusal",
        "certificate",
    ]
    for statement in (done, refused, again):
        assert statement["lineage"]["registered_weights_sha256"] == first.weights_sha256
    assert done["lineage"]["deletions"] == 0
    assert done["lineage"]["previous_statement_sha256"] is None
    # The refusal made no revision: both name the record that the old weights came with.
    digest = hashlib.sha256(signed_payload(services, requests[0])).hexdigest()
    for statement in (refused, again):
        assert statement["lineage"]["deletions"] == 1
        assert statement["lineage"]["previous_statement_sha256"] == digest
    (entry,) = [
        entry
        for entry in shop.log("record.issued")
        if entry["subject"]["request_id"] == str(requests[0])
    ]
    assert entry["payload"]["statement_sha256"] == digest


def test_a_model_with_noise_names_its_first_release_and_not_the_secret_weights(services, shop):
    problem = LogisticProblem.draw().with_output_noise(np.arange(10), deletions=2.5)
    model = shop.register(problem)
    with services.sessions() as session:
        first = registry.current_revision(session, registry.get(session, model))
    request = shop.request(model, problem, np.arange(10))
    run_next(services)
    lineage = shop.statement(request)["lineage"]
    assert lineage["registered_weights_sha256"] == first.release_sha256 != first.weights_sha256


@pytest.mark.parametrize("ground", ["art-17-1-d", None])
def test_the_legal_ground_of_the_request_is_copied_into_its_record(
    services, shop, make_problem, ground
):
    problem = make_problem()
    request = shop.request(shop.register(problem), problem, [7], legal_ground=ground)
    run_next(services)
    assert shop.find(request).legal_ground == ground
    assert shop.statement(request)["request"]["legal_ground"] == ground


def test_a_record_says_by_how_many_threads_and_which_instructions(services, shop, make_problem):
    problem = make_problem()
    request = shop.request(shop.register(problem), problem, [7])
    run_next(services)
    environment = shop.statement(request)["environment"]
    assert environment["threads"] == torch.get_num_threads()
    assert environment["cpu_capability"] == torch.backends.cpu.get_cpu_capability()


def test_what_is_signed_is_an_intoto_statement_about_the_weights_that_are_served(
    services, shop, make_problem
):
    problem = make_problem()
    model = shop.register(problem)
    request = shop.request(model, problem, [7])
    run_next(services)
    document = json.loads(signed_payload(services, request))
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "urn:lethe:record:certificate:v3"
    with services.sessions() as session:
        found = registry.get(session, model)
        digests = [
            registry.served_sha256(registry.get_revision(session, found, number))
            for number in (0, 1)
        ]
    assert [subject["digest"]["sha256"] for subject in document["subject"]] == digests


def test_no_record_is_signed_whose_predecessor_the_database_has_lost(services, shop, make_problem):
    problem = make_problem()
    model = shop.register(problem)
    first, second = (shop.request(model, problem, [row]) for row in (7, 8))
    run_next(services)
    with services.sessions.begin() as session:
        session.execute(text("ALTER TABLE evidence_record DISABLE TRIGGER USER"))
        session.execute(text("DELETE FROM evidence_record WHERE request_id = :id"), {"id": first})
        session.execute(text("ALTER TABLE evidence_record ENABLE TRIGGER USER"))
    run_next(services)
    assert shop.revision(model) == 1
    assert shop.find(second).state == "queued"
