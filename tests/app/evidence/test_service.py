import json

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from app.db import new_id
from app.errors import (
    AuditEntryNotFoundError,
    InvalidInputError,
    NoCertificateError,
    RecordNotFoundError,
    RequestNotFoundError,
)
from app.evidence import repository, service
from app.evidence.models import AuditLog, EvidenceRecord, RecordKind
from app.evidence.transparency.notes import Checkpoint, LogProof

KINDS = ["certificate", "estimate", "refusal", "failure"]


def issue(session, signer, request, statement):
    return service.issue_record(
        session, signer, kind=RecordKind(statement["kind"]), request=request, statement=statement
    )


def records_issued(session):
    entries = repository.entries(session, 1, start=0, limit=100)
    return [entry for entry in entries if json.loads(entry.body)["event"] == "record.issued"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_is_signed_and_logged(session, signer, new_request, new_statement, kind):
    service.append(session, "earlier", subject={}, payload={})
    request = new_request(session, kind)
    statement = new_statement(session, request, kind)
    record = issue(session, signer, request, statement)
    assert (str(record.id), record.kind) == (statement["id"], kind)
    (written,) = records_issued(session)
    assert (record.log_id, record.entry_index) == (written.log_id, written.index)
    entry = json.loads(written.body)
    assert entry["event"] == "record.issued"
    assert entry["subject"] == {
        "model_id": str(request.model_id),
        "request_id": str(request.id),
    }
    assert set(entry["payload"]) == {"kind", "record_id", "statement_sha256"}


def test_neither_the_log_nor_the_record_tells_more_than_digests_of_the_samples(
    session, signer, notary, new_request, new_statement
):
    request = new_request(session)
    request.subject_reference = "jane@example.org"
    record = issue(session, signer, request, new_statement(session, request))
    session.commit()
    bundle = json.dumps(service.bundle(session, record, notary))
    assert "jane" not in bundle


@pytest.mark.parametrize(
    "lie",
    [
        ("request", "id", str(new_id())),
        ("request", "n_forget", 2),
        ("request", "sample_commitment", "0" * 64),
        ("model", "id", str(new_id())),
        ("times", "received", "2020-01-01T00:00:00.000000Z"),
    ],
)
def test_a_record_that_contradicts_its_request_is_neither_signed_nor_logged(
    session, signer, new_request, new_statement, lie
):
    request = new_request(session, "refusal")
    statement = new_statement(session, request, "refusal")
    part, field, value = lie
    statement[part] = statement[part] | {field: value}
    with pytest.raises(ValueError, match=f"{part}.{field}"):
        issue(session, signer, request, statement)
    assert records_issued(session) == []
    assert session.scalars(select(EvidenceRecord)).all() == []


def test_an_estimate_is_not_issued_as_a_certificate(session, signer, new_request, new_statement):
    request = new_request(session, "estimate")
    statement = new_statement(session, request, "estimate")
    with pytest.raises(ValueError, match="kind"):
        service.issue_record(
            session,
            signer,
            kind=RecordKind.CERTIFICATE,
            request=request,
            statement=statement,
        )
    with pytest.raises(ValueError, match="tier"):
        issue(session, signer, request, statement | {"kind": "certificate"})
    assert records_issued(session) == []


def test_a_request_gets_one_record(session, signer, new_request, new_statement):
    request = new_request(session)
    issue(session, signer, request, new_statement(session, request))
    with pytest.raises(DBAPIError, match="uq_evidence_record_request_id"):
        issue(session, signer, request, new_statement(session, request))


def test_a_record_is_found_by_its_request_and_a_certificate_only_if_it_is_one(
    session, signer, new_request, new_statement
):
    refused = new_request(session, "refusal")
    with pytest.raises(RecordNotFoundError, match="running"):
        service.find_record(session, refused.id)
    record = issue(session, signer, refused, new_statement(session, refused, "refusal"))
    assert service.find_record(session, refused.id) is record
    with pytest.raises(NoCertificateError) as caught:
        service.find_certificate(session, refused.id)
    assert f"/v1/unlearning-requests/{refused.id}/record" in caught.value.remedy
    certified = new_request(session)
    certificate = issue(session, signer, certified, new_statement(session, certified))
    assert service.find_certificate(session, certified.id) is certificate
    with pytest.raises(RequestNotFoundError):
        service.find_record(session, new_id())


@pytest.fixture
def record(session, signer, new_record):
    service.append(session, "earlier", subject={}, payload={})
    record = new_record(session, signer, "certificate")
    session.commit()
    return record


def test_a_bundle_carries_the_first_checkpoint_that_covers_its_record(session, notary, record):
    bundle = service.bundle(session, record, notary)
    assert (bundle["consistency"], bundle["timestamp"]) == (None, None)
    proof = LogProof.parse(bundle["proof"])
    covered = Checkpoint.parse(proof.checkpoint.partition("\n\n")[0] + "\n")
    assert proof.index == record.entry_index < covered.size
    for _ in range(3):
        service.append(session, "later", subject={}, payload={})
        session.commit()
        notary.sign()
    assert service.bundle(session, record, notary) == bundle


@pytest.mark.parametrize("since", [0, 1, 2, 7])
def test_a_bundle_proves_that_its_log_continues_a_kept_checkpoint_or_comes_before_it(
    session, notary, record, since
):
    size = notary.sign().size
    for _ in range(5):
        service.append(session, "later", subject={}, payload={})
    session.commit()
    bundle = service.bundle(session, record, notary, since=since)
    assert bundle["consistency"]["size"] == since
    log = session.get(AuditLog, 1)
    first, second = sorted((since, size))
    proof = service.prove_consistency(session, log, first, second, field="since")
    assert len(bundle["consistency"]["hashes"]) == len(proof)


def test_a_checkpoint_of_a_larger_log_than_there_is_is_named_as_a_sign_of_a_cut_off_log(
    session, notary, record
):
    with pytest.raises(InvalidInputError, match="entries") as caught:
        service.bundle(session, record, notary, since=4711)
    assert caught.value.field == "since"
    assert "cut off" in caught.value.remedy


def test_an_entry_and_a_log_that_there_are_not_are_named(session):
    with pytest.raises(AuditEntryNotFoundError, match="no entry 4711"):
        service.find_entry(session, 1, 4711)
    with pytest.raises(InvalidInputError, match="no log 7"):
        service.find_log(session, 7)
    assert service.find_log(session, None).id == 1
