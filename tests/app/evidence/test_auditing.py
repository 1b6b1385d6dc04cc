import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import event, select, text
from sqlalchemy.orm import Session

from app.errors import AuditEntryNotFoundError
from app.evidence import service
from app.evidence.canonical import GENESIS, canonical_json, chain_hash, leaf_hash
from app.evidence.models import EvidenceRecord, RecordKind
from app.evidence.signing import Signer

TRIGGERS = ("audit_entry", "evidence_record", "audit_head")


@pytest.fixture
def damaged(fresh_engine, signer, new_record):
    """A log of four entries, two of them of records, on which a superuser did his worst."""
    with Session(fresh_engine) as session:
        for kind in ("certificate", "refusal"):
            service.append(session, "before", subject={}, payload={"kind": kind})
            new_record(session, signer, kind)
        session.commit()
        report = service.verify_log(session, signer.verifier())
        assert (report.ok, report.size, report.records) == (True, 4, 2)
        for table in TRIGGERS:
            session.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER ALL"))
        session.commit()
        yield session


def test_a_bundle_from_a_log_with_a_hole_is_not_delivered(damaged):
    record = damaged.scalars(select(EvidenceRecord).where(EvidenceRecord.entry_index == 1)).one()
    assert service.bundle(damaged, record)
    damaged.execute(text("DELETE FROM audit_entry WHERE index = 0"))
    damaged.expire_all()
    with pytest.raises(AuditEntryNotFoundError, match="lacks entry 0"):
        service.bundle(damaged, record)


def test_what_is_committed_during_the_look_waits_for_the_next(
    fresh_engine, signer, new_request, new_statement
):
    def issue(session):
        request = new_request(session)
        service.issue_record(
            session,
            signer,
            "tests.lethe/audit",
            kind=RecordKind.CERTIFICATE,
            request=request,
            statement=new_statement(session, request),
        )
        session.commit()

    with Session(fresh_engine) as session, Session(fresh_engine) as other:
        issue(session)
        read = []

        def commit_another(*_cursor):
            read.append(1)
            if len(read) == 2:  # The head was read, the entries not yet.
                issue(other)

        connection = session.connection()
        event.listen(connection, "before_cursor_execute", commit_another)
        report = service.verify_log(session, signer.verifier())
        assert (report.size, report.records, report.problems) == (1, 1, ())
        report = service.verify_log(session, signer.verifier())
        assert (report.size, report.records, report.problems) == (2, 2, ())


def test_a_changed_entry_is_named_once(damaged):
    damaged.execute(
        text(
            "UPDATE audit_entry SET body = replace(body::text, '6265', '6266')::bytea"
            " WHERE index = 0"
        )
    )
    report = service.verify_log(damaged)
    assert [problem for problem in report.problems if "Entry 0" in problem]
    assert not [problem for problem in report.problems if "Entry 1" in problem]


def test_a_removed_entry_is_missed(damaged):
    damaged.execute(text("DELETE FROM audit_entry WHERE index = 2"))
    assert any(
        "Entries 2 to 2 are missing" in text for text in service.verify_log(damaged).problems
    )


def test_a_truncated_log_is_missed(damaged):
    damaged.execute(text("DELETE FROM audit_entry WHERE index > 1"))
    problems = service.verify_log(damaged).problems
    assert any("Entries 2 to 3 are missing" in problem for problem in problems)
    assert any("its log entry is missing" in problem for problem in problems)


def test_a_log_cut_back_with_its_head_contradicts_the_records_it_issued(damaged, signer):
    damaged.execute(text("DELETE FROM audit_entry WHERE index = 3"))
    damaged.execute(
        text(
            "UPDATE audit_head SET size = 3,"
            " chain_hash = (SELECT chain_hash FROM audit_entry WHERE index = 2)"
        )
    )
    report = service.verify_log(damaged, signer.verifier())
    (problem,) = report.problems
    assert "its log entry is missing" in problem


def test_a_log_that_was_hashed_anew_contradicts_its_signed_checkpoints(damaged, signer):
    bodies = damaged.execute(text("SELECT body FROM audit_entry ORDER BY index")).scalars().all()
    chain = GENESIS
    for index, body in enumerate(bodies):
        forged = body.replace(b"certificate", b"certificatf") if index == 0 else body
        leaf = leaf_hash(forged)
        chain = chain_hash(chain, leaf)
        damaged.execute(
            text("UPDATE audit_entry SET body=:b, leaf_hash=:l, chain_hash=:c WHERE index=:i"),
            {"b": forged, "l": leaf, "c": chain, "i": index},
        )
    damaged.execute(text("UPDATE audit_head SET chain_hash = :c"), {"c": chain})
    problems = service.verify_log(damaged, signer.verifier()).problems
    assert len(problems) == 2
    assert all("its checkpoint is not of the log" in problem for problem in problems)


def test_a_record_turned_into_a_certificate_is_noticed(damaged):
    damaged.execute(text("UPDATE evidence_record SET kind = 'certificate'"))
    (problem,) = service.verify_log(damaged).problems
    assert "its row says something else" in problem


def test_swapped_records_are_noticed(damaged):
    damaged.execute(
        text(
            "UPDATE evidence_record record SET envelope ="
            " (SELECT envelope FROM evidence_record other WHERE other.id <> record.id)"
        )
    )
    problems = service.verify_log(damaged).problems
    assert sum("its log entry is about another statement" in problem for problem in problems) == 2


def test_a_record_that_another_key_signed_is_noticed_only_with_the_key(damaged, signer):
    stranger = Signer(Ed25519PrivateKey.generate())
    assert service.verify_log(damaged).ok
    assert service.verify_log(damaged, signer.verifier()).ok
    problems = service.verify_log(damaged, stranger.verifier()).problems
    assert len(problems) == 2
    assert all(signer.key_id[:16] in problem for problem in problems)


def test_an_unreadable_record_is_a_finding_and_no_crash(damaged):
    damaged.execute(text("UPDATE evidence_record SET envelope = 'junk'"))
    problems = service.verify_log(damaged).problems
    assert sum("cannot be read" in problem for problem in problems) == 2


def test_an_entry_that_names_another_index_is_a_finding(damaged):
    body = canonical_json({"index": 7})
    leaf = leaf_hash(body)
    before = damaged.execute(
        text("SELECT chain_hash FROM audit_entry WHERE index = 3")
    ).scalar_one()
    chain = chain_hash(before, leaf)
    damaged.execute(
        text("INSERT INTO audit_entry VALUES (4, :b, :l, :c, now())"),
        {"b": body, "l": leaf, "c": chain},
    )
    damaged.execute(text("UPDATE audit_head SET size = 5, chain_hash = :c"), {"c": chain})
    (problem,) = service.verify_log(damaged).problems
    assert problem == "Entry 4 is not in the form of an entry of that index."
