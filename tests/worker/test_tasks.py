import pytest

from worker import tasks


@pytest.fixture
def waiting(services, shop, make_problem, monkeypatch):
    """Two requests, and a pool's child that the messages about them were lost to."""
    monkeypatch.setattr(tasks, "get_services", lambda: services)
    problem = make_problem()
    model = shop.register(problem)
    requests = [shop.request(model, problem, [row]) for row in (1, 2)]
    shop.silence()
    return requests


def test_a_message_is_answered_by_one_request_and_the_next_message(shop, waiting):
    # So a worker that was told to stop ends after the request that it is at.
    tasks.work()
    assert [shop.find(request).state for request in waiting] == ["completed", "queued"]
    assert shop.rings() == 1
    tasks.work()
    assert shop.find(waiting[1]).state == "completed"
    shop.silence()
    tasks.work()
    assert shop.rings() == 0


def test_without_a_broker_all_that_waits_is_worked_off(shop, waiting, valkey):
    valkey.stop()
    tasks.work()
    assert {shop.find(request).state for request in waiting} == {"completed"}
