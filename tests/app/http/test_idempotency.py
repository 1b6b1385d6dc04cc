import datetime
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, func, select, update
from sqlalchemy.exc import OperationalError
from starlette.responses import Response

from app import auth
from app.auth import Scope
from app.http.idempotency import Idempotency, IdempotentAnswer
from app.registry.models import Model
from app.unlearning.models import UnlearningRequest

URL = "/v1/unlearning-requests"
KEY = {"Idempotency-Key": "a-key"}


def count(session, table):
    return session.scalar(select(func.count()).select_from(table))


def test_the_same_key_and_body_make_one_request_and_the_same_answer(
    api, trained, model_id, session, written
):
    request = trained.request(model_id)
    first = api.post(URL, json=request, headers=KEY)
    after_first = written()
    second = api.post(URL, json=request, headers=KEY)
    assert (first.status_code, second.status_code) == (202, 202)
    assert second.content == first.content
    for name in ("Location", "Retry-After", "Content-Type"):
        assert second.headers[name] == first.headers[name]
    assert second.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert count(session, UnlearningRequest) == 1
    assert written() == after_first


def test_the_same_key_with_another_body_is_refused(api, trained, model_id, written):
    assert api.post(URL, json=trained.request(model_id), headers=KEY).status_code == 202
    before = written()
    answer = api.post(URL, json=trained.request(model_id, slice(3)), headers=KEY)
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:lethe:problem:idempotency-mismatch"
    assert answer.json()["field"] == "Idempotency-Key"
    assert written() == before


def test_the_same_key_on_another_route_is_refused(api, trained, model_id):
    identifier = api.post(URL, json=trained.request(model_id), headers=KEY).json()["id"]
    assert api.post(f"{URL}/{identifier}/cancel", headers=KEY).status_code == 422
    assert api.get(f"{URL}/{identifier}").json()["state"] == "queued"


def test_a_multipart_body_is_the_same_under_another_boundary(api, trained, session):
    parts = trained.parts(statistics=trained.statistics_file())
    first = api.register(parts, headers=KEY)
    second = api.register(parts, headers=KEY)
    assert first.request.headers["Content-Type"] != second.request.headers["Content-Type"]
    assert second.status_code == 201
    assert second.json() == first.json()
    assert count(session, Model) == 1
    other = api.register(trained.parts(), headers=KEY)
    assert other.status_code == 422


def test_another_key_and_another_caller_are_others(api, trained, model_id, session, make_token):
    request = trained.request(model_id)
    api.post(URL, json=request, headers=KEY)
    api.post(URL, json=request, headers={"Idempotency-Key": "b-key"})
    other = api.with_token(make_token(Scope.UNLEARNING_WRITE))
    other.post(URL, json=request, headers=KEY)
    assert count(session, UnlearningRequest) == 3


def test_without_a_key_every_request_is_a_new_one(api, trained, model_id, session):
    for _ in range(2):
        api.post(URL, json=trained.request(model_id))
    assert count(session, UnlearningRequest) == 2
    assert count(session, IdempotentAnswer) == 0


def test_a_refused_request_leaves_its_key_free(api, trained, model_id):
    wrong = trained.request(model_id, samples={"x": [], "y": []})
    assert api.post(URL, json=wrong, headers=KEY).status_code == 422
    assert api.post(URL, json=trained.request(model_id), headers=KEY).status_code == 202


def test_cancelling_twice_with_a_key_answers_the_same(api, trained, model_id):
    identifier = api.post(URL, json=trained.request(model_id)).json()["id"]
    first = api.post(f"{URL}/{identifier}/cancel", headers=KEY)
    second = api.post(f"{URL}/{identifier}/cancel", headers=KEY)
    assert second.content == first.content
    assert second.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "caf\u00e9".encode()])
def test_a_malformed_key_is_refused_by_name(api, trained, model_id, written, key):
    before = written()
    answer = api.post(URL, json=trained.request(model_id), headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert answer.json()["field"] == "Idempotency-Key"
    assert written() == before


def test_an_answer_is_forgotten_after_a_day_when_others_come(api, trained, model_id, session):
    api.post(URL, json=trained.request(model_id), headers=KEY)
    yesterday = func.now() - datetime.timedelta(hours=25)
    session.execute(update(IdempotentAnswer).values(created_at=yesterday))
    session.commit()
    api.post(URL, json=trained.request(model_id), headers={"Idempotency-Key": "b-key"})
    assert session.scalars(select(IdempotentAnswer.key)).all() == ["b-key"]


def test_of_equal_requests_at_once_one_is_done_and_the_others_wait_or_get_its_answer(
    live_api, trained
):
    model_id = live_api.register(trained.parts()).json()["id"]
    barrier = threading.Barrier(6)

    def send():
        barrier.wait(10)
        return live_api.post(URL, json=trained.request(model_id), headers=KEY)

    with ThreadPoolExecutor(6) as pool:
        answers = [done.result(30) for done in [pool.submit(send) for _ in range(6)]]
    accepted = {answer.content for answer in answers if answer.status_code == 202}
    assert len(accepted) == 1
    busy = [answer for answer in answers if answer.status_code != 202]
    assert {answer.status_code for answer in busy} <= {409}
    with live_api.app.state.services.sessions() as session:
        assert count(session, UnlearningRequest) == 1
    assert live_api.post(URL, json=trained.request(model_id), headers=KEY).content == accepted.pop()


def test_a_key_that_is_being_answered_is_a_conflict(live_api, trained):
    model_id = live_api.register(trained.parts()).json()["id"]
    sessions = live_api.app.state.services.sessions
    with sessions() as session:
        # Another request with the key, in the middle of its transaction.
        key_id = session.scalars(select(auth.ApiKey.id)).one()
        caller = auth.Caller(key_id, "test", frozenset({Scope.ADMIN}))
        Idempotency(session, caller, KEY["Idempotency-Key"], b"f").once(Response)
        answer = live_api.post(URL, json=trained.request(model_id), headers=KEY)
        assert answer.status_code == 409
        assert answer.json()["type"] == "urn:lethe:problem:idempotency-in-progress"
        assert int(answer.headers["Retry-After"]) >= 1
        session.rollback()
    assert live_api.post(URL, json=trained.request(model_id), headers=KEY).status_code == 202


def test_a_commit_that_fails_answers_an_error_and_stores_nothing(live_api, trained):
    model_id = live_api.register(trained.parts()).json()["id"]
    sessions = live_api.app.state.services.sessions

    def break_commit(_):
        raise OperationalError("COMMIT", {}, Exception("connection lost"))

    event.listen(sessions, "before_commit", break_commit)
    answer = live_api.post(URL, json=trained.request(model_id), headers=KEY)
    event.remove(sessions, "before_commit", break_commit)
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:lethe:problem:database-unavailable"
    with sessions() as session:
        assert count(session, UnlearningRequest) == count(session, IdempotentAnswer) == 0
    assert live_api.post(URL, json=trained.request(model_id), headers=KEY).status_code == 202
