import socket
import threading
import time

import pytest
import redis
from sqlalchemy import text

from app.jobs import QUEUE, TASK, JobQueue, broker_url


@pytest.fixture
def broker(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.delete(QUEUE)
        yield client


@pytest.fixture
def queue(redis_url):
    queue = JobQueue(redis_url)
    yield queue
    queue.close()


def test_the_broker_is_named_as_celery_names_it():
    assert broker_url("unix:///run/valkey.sock") == "redis+socket:///run/valkey.sock"
    assert broker_url("redis://host:6379/0") == "redis://host:6379/0"


def test_a_commit_rings_once(session, queue, broker):
    queue.ring(session)
    queue.ring(session)
    assert broker.llen(QUEUE) == 0
    session.commit()
    assert broker.llen(QUEUE) == 1
    assert TASK.encode() in broker.lindex(QUEUE, 0)
    session.execute(text("SELECT 1"))
    session.commit()
    assert broker.llen(QUEUE) == 1


def test_a_rollback_rings_nobody_now_or_later(session, queue, broker):
    queue.ring(session)
    session.rollback()
    session.execute(text("SELECT 1"))
    session.commit()
    assert broker.llen(QUEUE) == 0


def test_the_end_of_a_savepoint_is_not_the_commit(session, queue, broker):
    with session.begin_nested():
        queue.ring(session)
    with session.begin_nested():
        session.execute(text("SELECT 1"))
    assert broker.llen(QUEUE) == 0
    session.commit()
    assert broker.llen(QUEUE) == 1


def test_a_session_can_ring_again(session, queue, broker):
    for rings in (1, 2):
        queue.ring(session)
        session.commit()
        assert broker.llen(QUEUE) == rings


def test_nobody_at_the_brokers_address_is_logged_and_done_with(tmp_path):
    queue = JobQueue(f"unix://{tmp_path}/nobody.sock")
    started = time.monotonic()
    assert queue.ring_now() is False
    assert time.monotonic() - started < 4
    queue.close()


def test_a_broker_that_accepts_and_never_answers_is_given_up(tmp_path):
    path = str(tmp_path / "mute.sock")
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(path)
        mute.listen()
        accepted = []
        thread = threading.Thread(target=lambda: accepted.append(mute.accept()), daemon=True)
        thread.start()
        queue = JobQueue(f"unix://{path}")
        started = time.monotonic()
        assert queue.ring_now() is False
        assert time.monotonic() - started < 8
        queue.close()
        thread.join(5)
        for connection, _ in accepted:
            connection.close()


def test_a_broker_that_came_back_is_rung_again(tmp_path, redis_url, broker):
    link = tmp_path / "broker.sock"
    queue = JobQueue(f"unix://{link}")
    assert queue.ring_now() is False
    link.symlink_to(redis_url.removeprefix("unix://").partition("?")[0])
    assert queue.ring_now() is True
    assert broker.llen(QUEUE) == 1
    queue.close()


def test_a_message_that_waits_already_is_enough(queue, broker):
    assert queue.ring_unless_waiting() is True
    assert queue.ring_unless_waiting() is True
    assert broker.llen(QUEUE) == 1
    broker.delete(QUEUE)
    assert queue.ring_unless_waiting() is True
    assert broker.llen(QUEUE) == 1


def test_whether_a_message_waits_cannot_be_said_without_a_broker(tmp_path):
    queue = JobQueue(f"unix://{tmp_path}/nobody.sock")
    assert queue.ring_unless_waiting() is False
    queue.close()
