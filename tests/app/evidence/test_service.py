import datetime
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.db import new_id
from app.errors import NoCertificateError, RecordNotFoundError, RequestNotFoundError
from app.evidence import service
from app.evidence.canonical import GENESIS, canonical_json, chain_hash, leaf_hash
from app.evidence.formats import CHECKPOINT_TYPE
from app.evidence.models import AuditEntry, AuditHead, EvidenceRecord, RecordKind

ORIGIN = "tests.lethe/audit"
KINDS = ["certificate", "estimate", "refusal", "failure"]


def issue(session, signer, request, statement):
    return service.issue_record(
        session,
        signer,
        ORIGIN,
        kind=RecordKind(statement["kind"]),
        request=request,
        statement=statement,
    )


def head_of(session):
    return session.execute(select(AuditHead.size, AuditHead.chain_hash)).one()


def test_entries_are_chained_from_the_empty_log_on(session):
    size, chain = head_of(session)
    assert (size, chain) == (0, GENESIS)
    for number in range(3):
        entry = service.append(session, "tried", subject={"id": "x"}, payload={"number": number})
        leaf = leaf_hash(entry.body)
        chain = chain_hash(chain, leaf)
        assert (entry.index, entry.leaf_hash, entry.chain_hash) == (number, leaf, chain)
    assert tuple(head_of(session)) == (3, chain)


def test_an_entry_is_stored_as_the_canonical_bytes_that_were_hashed(session):
    entry = service.append(session, "tried", subject={"b": "ü", "a": 1.0}, payload={})
    session.expire_all()
    stored = session.get(AuditEntry, entry.index)
    said = json.loads(stored.body)
    assert said == {
        "event": "tried",
        "index": 0,
        "payload": {},
        "subject": {"a": 1, "b": "ü"},
        "time": stored.created_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
    }
    assert stored.body == canonical_json(said)


def test_an_entry_bears_the_databases_time_at_writing_not_at_the_transactions_start(session):
    began = session.scalar(text("select now()"))
    entry = service.append(session, "tried", subject={}, payload={})
    assert entry.created_at > began
    assert entry.created_at - began < datetime.timedelta(minutes=5)


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, b"x", {1}, object()])
def test_what_is_not_json_leaves_the_log_as_it_was(session, value):
    before = tuple(head_of(session))
    with pytest.raises(ValueError, match=r"."):
        service.append(session, "tried", subject={}, payload={"value": value})
    assert tuple(head_of(session)) == before


def test_a_rolled_back_entry_leaves_no_gap(session):
    service.append(session, "kept", subject={}, payload={})
    savepoint = session.begin_nested()
    service.append(session, "dropped", subject={}, payload={})
    savepoint.rollback()
    entry = service.append(session, "kept", subject={}, payload={})
    assert entry.index == 1
    assert service.verify_log(session).ok
    assert service.verify_log(session).size == 2


def test_many_threads_append_without_gaps_and_in_the_order_of_their_commits(fresh_engine):
    threads, each = 8, 25
    barrier = threading.Barrier(threads)
    committed = []

    def work(worker):
        barrier.wait()
        for number in range(each):
            with Session(fresh_engine) as session:
                # A snapshot from before the lock must not show through.
                session.get(AuditHead, 1)
                entry = service.append(
                    session, "tried", subject={"worker": worker}, payload={"number": number}
                )
                index = entry.index
                if number % 5 == 4:
                    session.rollback()
                    continue
                # Runs in this thread between the server's commit and the next lock's grant or
                # later; so the list is compared as a set, and the order by commit timestamps.
                session.commit()
                committed.append(index)

    with ThreadPoolExecutor(threads) as pool:
        for result in [pool.submit(work, worker) for worker in range(threads)]:
            result.result()

    expected = threads * each * 4 // 5
    assert sorted(committed) == list(range(expected))
    with Session(fresh_engine) as session:
        report = service.verify_log(session)
        assert (report.size, report.problems) == (expected, ())
        entries = session.scalars(select(AuditEntry).order_by(AuditEntry.index)).all()
        times = [entry.created_at for entry in entries]
        assert times == sorted(times)


def test_an_append_waits_for_the_one_before_to_commit(fresh_engine):
    order = []
    first_has_lock = threading.Event()

    def second():
        first_has_lock.wait()
        with Session(fresh_engine) as session:
            entry = service.append(session, "second", subject={}, payload={})
            order.append(("second appended", entry.index))
            session.commit()

    with Session(fresh_engine) as session, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second)
        entry = service.append(session, "first", subject={}, payload={})
        first_has_lock.set()
        _wait_for_a_blocked_transaction(session)
        order.append(("first commits", entry.index))
        session.commit()
        waiting.result()
    assert order == [("first commits", 0), ("second appended", 1)]


def _wait_for_a_blocked_transaction(session):
    blocked = text("select count(*) from pg_locks where not granted")
    deadline = time.monotonic() + 30
    while session.scalar(blocked) == 0:
        assert time.monotonic() < deadline, "the second transaction never waited"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_entry SET body = body",
        "UPDATE audit_entry SET body = 'x' WHERE index = 4711",
        "DELETE FROM audit_entry",
        "TRUNCATE audit_entry CASCADE",
        "INSERT INTO audit_entry TABLE audit_entry ON CONFLICT (index) DO UPDATE SET body = 'x'",
        "UPDATE evidence_record SET kind = 'certificate'",
        "DELETE FROM evidence_record",
        "TRUNCATE evidence_record",
        "DELETE FROM audit_head",
        "TRUNCATE audit_head",
        "UPDATE audit_head SET size = 0",
        "UPDATE audit_head SET size = size + 2",
        "UPDATE audit_head SET size = size + 1, chain_hash = 'x'",
        "SET session_replication_role = replica; DELETE FROM audit_entry",
    ],
)
def test_the_database_refuses_to_change_the_log(
    session, signer, new_request, new_statement, statement
):
    request = new_request(session)
    issue(session, signer, request, new_statement(session, request))
    before = service.verify_log(session, signer.verifier())
    savepoint = session.begin_nested()
    with pytest.raises(DBAPIError) as caught:
        session.connection().exec_driver_sql(statement)
    assert isinstance(caught.value.orig, psycopg.errors.RestrictViolation)
    savepoint.rollback()
    after = service.verify_log(session, signer.verifier())
    assert after == before
    assert (after.ok, after.size, after.records) == (True, 1, 1)


def test_a_checkpoint_states_the_logs_size_and_hash(session, signer):
    service.append(session, "tried", subject={}, payload={})
    envelope = service.sign_checkpoint(session, signer, ORIGIN)
    said = json.loads(signer.verifier().open(envelope, CHECKPOINT_TYPE))
    size, chain = head_of(session)
    assert {key: said[key] for key in ("origin", "size", "chain_hash")} == {
        "origin": ORIGIN,
        "size": size,
        "chain_hash": chain.hex(),
    }
    assert set(said) == {"origin", "size", "chain_hash", "time"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_is_signed_logged_and_covered_by_its_checkpoint(
    session, signer, new_request, new_statement, kind
):
    service.append(session, "earlier", subject={}, payload={})
    request = new_request(session, kind)
    statement = new_statement(session, request, kind)
    record = issue(session, signer, request, statement)
    assert (str(record.id), record.kind, record.entry_index) == (statement["id"], kind, 1)
    entry = json.loads(session.get(AuditEntry, 1).body)
    assert entry["event"] == "record.issued"
    assert entry["subject"] == {
        "model_id": str(request.model_id),
        "request_id": str(request.id),
    }
    assert set(entry["payload"]) == {"kind", "record_id", "statement_sha256"}
    report = service.verify_log(session, signer.verifier())
    assert (report.ok, report.size, report.records) == (True, 2, 1)


def test_neither_the_log_nor_the_record_tells_more_than_digests_of_the_samples(
    session, signer, new_request, new_statement
):
    request = new_request(session)
    request.subject_reference = "jane@example.org"
    record = issue(session, signer, request, new_statement(session, request))
    bundle = json.dumps(service.bundle(session, record))
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
    assert head_of(session).size == 0
    assert session.scalars(select(EvidenceRecord)).all() == []


def test_an_estimate_is_not_issued_as_a_certificate(session, signer, new_request, new_statement):
    request = new_request(session, "estimate")
    statement = new_statement(session, request, "estimate")
    with pytest.raises(ValueError, match="kind"):
        service.issue_record(
            session,
            signer,
            ORIGIN,
            kind=RecordKind.CERTIFICATE,
            request=request,
            statement=statement,
        )
    with pytest.raises(ValueError, match="tier"):
        issue(session, signer, request, statement | {"kind": "certificate"})
    assert head_of(session).size == 0


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


def test_appending_takes_the_head_from_the_database_and_not_from_memory(fresh_engine):
    with Session(fresh_engine) as one, Session(fresh_engine) as other:
        stale = one.get(AuditHead, 1)
        service.append(other, "tried", subject={}, payload={})
        other.commit()
        assert stale.size == 0
        assert service.append(one, "tried", subject={}, payload={}).index == 1


def test_verifying_the_log_streams_it(session):
    for _ in range(3):
        service.append(session, "tried", subject={}, payload={})
    statements = []

    def remember(_connection, _cursor, statement, *_rest):
        statements.append(statement)

    event.listen(session.connection(), "before_cursor_execute", remember)
    assert service.verify_log(session).size == 3
    assert len(statements) == 3  # head, entries, records: not one an entry
