import datetime
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.errors import LogClosedError
from app.evidence import log, repository
from app.evidence.canonical import canonical_json
from app.evidence.log import NewEntry
from app.evidence.models import AuditEntry, AuditLog
from app.evidence.transparency.merkle import EMPTY_ROOT, leaf_hash, node_hash, root_at


def end_of(session):
    return session.execute(
        select(AuditLog.size, AuditLog.frontier).where(AuditLog.closed_at.is_(None))
    ).one()


def root_of(leaves):
    """Return the root over leaf hashes as RFC 9162 §2.1.1 defines it."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(root_of(leaves[:split]), root_of(leaves[split:]))


def require_tree(session, log_id=1):
    """Check that the stored nodes give the root of the stored bodies, at every size."""
    entries = repository.entries(session, log_id, start=0, limit=10_000)
    assert [entry.index for entry in entries] == list(range(len(entries)))
    leaves = [leaf_hash(entry.body) for entry in entries]
    fetch = repository.fetch_nodes(session, log_id)
    for size in {0, 1, len(leaves) // 2, len(leaves)} & set(range(len(leaves) + 1)):
        assert root_at(size, fetch) == root_of(leaves[:size])


def test_a_log_begins_empty_and_grows_into_the_tree_of_the_rfc(session):
    assert end_of(session) == (0, b"")
    for number in range(13):
        entry = log.append(session, "tried", subject={"id": "x"}, payload={"number": number})
        assert (entry.log_id, entry.index) == (1, number)
        assert entry.subtrees[:32] == leaf_hash(entry.body)
        require_tree(session)


def test_entries_that_are_appended_together_are_those_appended_one_by_one(session):
    log.append(session, "first", subject={}, payload={})
    wanted = [NewEntry("tried", {"id": "x"}, {"number": number}) for number in range(21)]
    written = log.append_many(session, wanted)
    assert [entry.index for entry in written] == list(range(1, 22))
    said = [json.loads(entry.body) for entry in written]
    assert [body["payload"]["number"] for body in said] == list(range(21))
    assert log.append_many(session, []) == []
    assert end_of(session).size == 22
    require_tree(session)


def test_of_entries_that_are_appended_together_none_is_written_if_one_is_no_json(session):
    wanted = [NewEntry("tried", {}, {}), NewEntry("tried", {}, {"value": math.nan})]
    with pytest.raises(ValueError, match=r"."):
        log.append_many(session, wanted)
    assert end_of(session) == (0, b"")


def test_an_entry_is_stored_as_the_canonical_bytes_that_were_hashed(session):
    entry = log.append(session, "tried", subject={"b": "ü", "a": 1.0}, payload={})
    session.expire_all()
    stored = session.get(AuditEntry, (entry.log_id, entry.index))
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
    entry = log.append(session, "tried", subject={}, payload={})
    assert entry.created_at > began
    assert entry.created_at - began < datetime.timedelta(minutes=5)


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, b"x", {1}, object()])
def test_what_is_not_json_leaves_the_log_as_it_was(session, value):
    before = end_of(session)
    with pytest.raises(ValueError, match=r"."):
        log.append(session, "tried", subject={}, payload={"value": value})
    assert end_of(session) == before


def test_a_rolled_back_entry_leaves_no_gap(session):
    log.append(session, "kept", subject={}, payload={})
    savepoint = session.begin_nested()
    log.append(session, "dropped", subject={}, payload={})
    savepoint.rollback()
    entry = log.append(session, "kept", subject={}, payload={})
    assert entry.index == 1
    assert end_of(session).size == 2
    require_tree(session)


def test_many_threads_append_without_gaps_and_in_the_order_of_their_commits(fresh_engine):
    threads, each = 8, 25
    barrier = threading.Barrier(threads)
    committed = []

    def work(worker):
        barrier.wait()
        for number in range(each):
            with Session(fresh_engine) as session:
                # A snapshot from before the lock must not show through.
                session.get(AuditLog, 1)
                entry = log.append(
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
        assert end_of(session).size == expected
        require_tree(session)
        entries = session.scalars(select(AuditEntry).order_by(AuditEntry.index)).all()
        times = [entry.created_at for entry in entries]
        assert times == sorted(times)


def test_an_append_waits_for_the_one_before_to_commit(fresh_engine):
    order = []
    first_has_lock = threading.Event()

    def second():
        first_has_lock.wait()
        with Session(fresh_engine) as session:
            entry = log.append(session, "second", subject={}, payload={})
            order.append(("second appended", entry.index))
            session.commit()

    with Session(fresh_engine) as session, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second)
        entry = log.append(session, "first", subject={}, payload={})
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


CHANGES = [
    "UPDATE audit_entry SET body = body",
    "UPDATE audit_entry SET body = 'x' WHERE index = 4711",
    "DELETE FROM audit_entry",
    "TRUNCATE audit_entry CASCADE",
    "INSERT INTO audit_entry TABLE audit_entry ON CONFLICT (log_id, index) DO UPDATE SET body = ''",
    "DELETE FROM audit_log",
    "TRUNCATE audit_log CASCADE",
    "UPDATE audit_log SET size = 0, frontier = ''",
    "UPDATE audit_log SET size = size + 1",
    "UPDATE audit_log SET frontier = sha256('x')",
    "UPDATE audit_log SET origin = 'other' WHERE origin IS NOT NULL",
    "UPDATE audit_log SET opened_at = now() + interval '1 day'",
    "UPDATE audit_checkpoint SET note = 'x'",
    "DELETE FROM audit_checkpoint",
    "DELETE FROM audit_anchor",
    "SET session_replication_role = replica; DELETE FROM audit_entry",
]


@pytest.mark.parametrize("statement", CHANGES)
def test_the_database_refuses_to_change_the_log(session, statement):
    log.append(session, "tried", subject={}, payload={})
    session.execute(text("UPDATE audit_log SET origin = 'tests.lethe/audit'"))
    before = end_of(session)
    savepoint = session.begin_nested()
    with pytest.raises(DBAPIError) as caught:
        session.connection().exec_driver_sql(statement)
    assert isinstance(caught.value.orig, psycopg.errors.RestrictViolation)
    savepoint.rollback()
    assert end_of(session) == before
    require_tree(session)


def test_a_closed_log_takes_nothing_more_and_its_successor_says_what_came_before(session):
    log.append(session, "tried", subject={}, payload={})
    closed = log.close_log(session, {"reason": "the key was stolen"})
    with pytest.raises(LogClosedError):
        log.append(session, "tried", subject={}, payload={})
    opened = log.open_log(session, "tests.lethe/audit/2", {"size": closed.size})
    assert (closed.id, closed.size, opened.id, opened.size) == (1, 2, 2, 1)
    entry = log.append(session, "tried", subject={}, payload={})
    assert (entry.log_id, entry.index) == (2, 1)
    require_tree(session, 1)
    require_tree(session, 2)
    for statement in (
        "UPDATE audit_log SET closed_at = NULL WHERE id = 1",
        "UPDATE audit_log SET closed_at = now() WHERE id = 1",
    ):
        savepoint = session.begin_nested()
        with pytest.raises(DBAPIError, match=r"never changed"):
            session.execute(text(statement))
        savepoint.rollback()


def test_who_waits_for_a_log_that_is_closed_writes_to_its_successor(fresh_engine):
    appended = []

    def write():
        with Session(fresh_engine) as session:
            entry = log.append(session, "tried", subject={}, payload={})
            appended.append((entry.log_id, entry.index))
            session.commit()

    with Session(fresh_engine) as session, ThreadPoolExecutor(1) as pool:
        log.close_log(session, {})
        waiting = pool.submit(write)
        _wait_for_a_blocked_transaction(session)
        log.open_log(session, "tests.lethe/audit/2", {})
        session.commit()
        waiting.result()
    assert appended == [(2, 1)]
