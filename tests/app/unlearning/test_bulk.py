import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from sqlalchemy import select

from app.artifacts.blobs import BlobFolder
from app.auth import Scope
from app.evidence.models import AuditEntry
from app.jobs import QUEUE
from app.unlearning.models import UnlearningRequest

URL = "/v1/unlearning-requests"
BULK = f"{URL}/bulk"
NOBODY = "00000000-0000-7000-8000-000000000000"


def log(session, event):
    bodies = session.scalars(select(AuditEntry.body).order_by(AuditEntry.index)).all()
    return [entry for entry in map(json.loads, bodies) if entry["event"] == event]


def mixed(trained, model_id):
    """Good and bad items by turns."""
    return [
        trained.request(model_id, subject_reference="a"),
        trained.request(NOBODY),
        trained.request(model_id, slice(2, 3), subject_reference="b"),
        trained.request(model_id, method="surrogate"),
        {"model_id": model_id},
        "no object",
        trained.request(model_id, samples={"x": [[9.0] * 4], "y": [0]}),
        trained.request(model_id, slice(3, 5), subject_reference="c"),
    ]


def test_each_item_gets_what_it_would_have_got_alone_in_order(api, trained, model_id):
    items = mixed(trained, model_id)
    answer = api.post(BULK, json={"requests": items})
    assert answer.status_code == 207, answer.text
    found = answer.json()
    assert (found["accepted"], found["rejected"]) == (3, 5)
    for item, result in zip(items, found["items"], strict=True):
        alone = api.post(URL, json=item)
        if alone.status_code == 202:
            assert result["status"] == 202
            assert result["problem"] is None
            shown = api.get(result["location"]).json()
            assert shown == result["request"]
            assert shown["subject_reference"] == item["subject_reference"]
            assert shown["sample_count"] == alone.json()["sample_count"]
        elif isinstance(item, dict):
            assert (result["problem"], result["status"]) == (alone.json(), alone.status_code)
            assert result["request"] is None
        else:
            assert result["status"] == 422


def test_only_accepted_items_are_written_each_is_logged_and_the_bell_rings_once(
    api, trained, model_id, session, settings
):
    with redis.Redis.from_url(settings.redis_url) as broker:
        broker.delete(QUEUE)
        found = api.post(BULK, json={"requests": mixed(trained, model_id)}).json()
        assert broker.llen(QUEUE) == 1
    accepted = [one["request"]["id"] for one in found["items"] if one["request"]]
    rows = session.scalars(select(UnlearningRequest).order_by(UnlearningRequest.arrival)).all()
    assert [str(row.id) for row in rows] == accepted
    entries = log(session, "unlearning-request.received")
    assert [entry["subject"]["request_id"] for entry in entries] == accepted
    assert [entry["payload"]["sample_count"] for entry in entries] == [2, 1, 2]


def test_of_wrong_items_alone_nothing_is_written_and_nobody_is_rung(
    api, trained, written, settings
):
    before = written()
    with redis.Redis.from_url(settings.redis_url) as broker:
        broker.delete(QUEUE)
        answer = api.post(BULK, json={"requests": [trained.request(NOBODY), 3, {}]})
        assert broker.llen(QUEUE) == 0
    assert answer.status_code == 207
    assert [one["status"] for one in answer.json()["items"]] == [404, 422, 422]
    assert written() == before


def test_the_same_key_makes_the_requests_once(api, trained, model_id, session):
    body = {"requests": mixed(trained, model_id)}
    key = {"Idempotency-Key": "bulk-1"}
    first, second = (api.post(BULK, json=body, headers=key) for _ in range(2))
    assert second.content == first.content
    assert (second.status_code, second.headers["Idempotent-Replayed"]) == (207, "true")
    assert len(session.scalars(select(UnlearningRequest)).all()) == 3
    other = api.post(BULK, json={"requests": body["requests"][:1]}, headers=key)
    assert other.status_code == 422
    assert other.json()["field"] == "Idempotency-Key"


@pytest.mark.parametrize("count", [0, 1001])
def test_between_one_and_a_thousand_items_are_taken(api, trained, model_id, written, count):
    before = written()
    answer = api.post(BULK, json={"requests": [trained.request(model_id)] * count})
    assert answer.status_code == 422
    assert answer.json()["field"] == "requests"
    assert written() == before


def test_forms_and_bodies_over_the_limit_are_refused(make_api, trained):
    api = make_api(max_body_bytes=2000)
    assert api.post(BULK, files={"requests": ("r", b"[]")}).status_code == 415
    item = trained.request(NOBODY)
    assert api.post(BULK, json={"requests": [item] * 100}).status_code == 413


def test_it_takes_the_scope_of_those_who_ask_for_deletions(api, make_token, trained, model_id):
    body = {"requests": [trained.request(model_id)]}
    assert api.with_token(None).post(BULK, json=body).status_code == 401
    assert api.with_token(make_token(Scope.READ)).post(BULK, json=body).status_code == 403
    writer = api.with_token(make_token(Scope.UNLEARNING_WRITE))
    assert writer.post(BULK, json=body).json()["accepted"] == 1


def test_a_disk_that_fails_in_the_middle_undoes_all_of_it(
    api, trained, model_id, session, monkeypatch
):
    write, calls = BlobFolder.write, []

    def fail_at_the_third(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(self, *args)

    monkeypatch.setattr(BlobFolder, "write", fail_at_the_third)
    key = {"Idempotency-Key": "bulk-2"}
    body = {"requests": [trained.request(model_id)] * 4}
    assert api.post(BULK, json=body, headers=key).status_code == 500
    assert session.scalars(select(UnlearningRequest)).all() == []
    monkeypatch.setattr(BlobFolder, "write", write)
    assert api.post(BULK, json=body, headers=key).json()["accepted"] == 4


def test_calls_that_name_the_same_models_in_other_orders_do_not_block_each_other(live_api, trained):
    models = [live_api.register(trained.parts(name=f"m{i}")).json()["id"] for i in range(4)]
    barrier = threading.Barrier(4)

    def send(i):
        order = models[i:] + models[:i]
        requests = [trained.request(model) for model in (order if i % 2 else order[::-1]) * 3]
        barrier.wait(10)
        return live_api.post(BULK, json={"requests": requests})

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(send, range(4)))
    assert [(one.status_code, one.json()["accepted"]) for one in answers] == [(207, 12)] * 4
