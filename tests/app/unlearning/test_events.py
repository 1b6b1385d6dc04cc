"""Streams of events from a real uvicorn; the audit log says what they have to be."""

import json
import os
import re
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from sqlalchemy import select, text

from app.auth import Scope, create_key
from app.evidence.models import AuditEntry
from app.main import create_app
from app.unlearning import event_routes, service

URL = "/v1/unlearning-requests"


@contextmanager
def serving(settings):
    """Serve in a thread on a port of its own; yield the application and a client."""
    app = create_app(settings)
    services = app.state.services
    with services.sessions.begin() as session:
        _, token = create_key(session, name="test", scopes=[Scope.ADMIN])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{listener.getsockname()[1]}",
        headers={"Authorization": f"Bearer {token}"},
        timeout=20,
        limits=httpx.Limits(max_connections=300),
    )
    with client:
        yield app, client
    server.should_exit = True
    thread.join(20)
    listener.close()
    assert not thread.is_alive()


@pytest.fixture
def served(fresh_settings):
    with serving(fresh_settings) as found:
        yield found


def register(client, trained):
    files = {
        name: (name, part)
        for name, part in trained.parts(statistics=trained.statistics_file()).items()
    }
    return client.post("/v1/models", files=files).json()["id"]


def ask(client, trained, model_id=None):
    model_id = model_id or register(client, trained)
    answer = client.post(URL, json=trained.request(model_id))
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def read(answer):
    """Yield a stream's events as (id, event, data), comments as (None, "comment", None)."""
    fields = {}
    for line in answer.iter_lines():
        if line.startswith(":"):
            yield None, "comment", None
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield fields.get("id"), fields["event"], json.loads(fields["data"])
            fields = {}
        else:
            fields = {}


@contextmanager
def following(client, request_id, last=None):
    headers = {} if last is None else {"Last-Event-ID": last}
    with client.stream("GET", f"{URL}/{request_id}/events", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        yield read(answer)


def claim(services):
    with services.sessions.begin() as session:
        return service.claim(session, worker="w", lease_seconds=60, max_attempts=3)


def work(services, job, stage, fraction):
    progress = {"stage": stage, "fraction": fraction}
    with services.sessions.begin() as session:
        assert service.renew(session, job.id, lease_seconds=60, progress=progress)


def complete(services, job):
    with services.sessions.begin() as session:
        service.complete(session, services.store, job, result={}, resulting_revision=0, digests=[])


def logged(services, request_id):
    """Return the log's (index, event) about a request, read by hand."""
    with services.sessions() as session:
        bodies = session.scalars(select(AuditEntry.body).order_by(AuditEntry.index)).all()
    entries = [json.loads(body) for body in bodies]
    return [
        (str(entry["index"]), entry["event"])
        for entry in entries
        if entry["subject"].get("request_id") == request_id
        and entry["event"].startswith("unlearning-request.")
    ]


def until(look):
    deadline = time.monotonic() + 15
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_request_is_followed_from_its_beginning_to_its_end(served, trained):
    app, client = served
    services = app.state.services
    request_id = ask(client, trained)
    with following(client, request_id) as events:
        seen = [next(events)]
        job = claim(services)
        seen.append(next(events))
        work(services, job, "estimate", 0.25)
        seen.append(next(events))
        complete(services, job)
        seen += events
    assert [(one[0], one[1], one[2].get("state")) for one in seen] == [
        (seen[0][0], "state", "queued"),
        (seen[1][0], "state", "running"),
        (None, "progress", None),
        (seen[3][0], "state", "completed"),
    ]
    assert seen[2][2] == {"stage": "estimate", "fraction": 0.25}
    told = [(one[0], one[2]["event"]) for one in seen if one[1] == "state"]
    assert told == logged(services, request_id)
    until(lambda: app.state.events.watchers == 0)


def test_from_each_event_on_exactly_the_later_ones_are_sent(served, trained):
    app, client = served
    services = app.state.services
    request_id = ask(client, trained)
    with services.sessions.begin() as session:
        job = service.claim(session, worker="w", lease_seconds=60, max_attempts=3)
        service.release(session, job)
    complete(services, claim(services))
    expected = logged(services, request_id)
    assert len(expected) == 5
    for i in range(-1, len(expected) - 1):
        last = None if i < 0 else expected[i][0]
        with following(client, request_id, last) as events:
            assert [(one[0], one[2]["event"]) for one in events] == expected[i + 1 :]
    ended = client.get(f"{URL}/{request_id}/events", headers={"Last-Event-ID": expected[-1][0]})
    assert (ended.status_code, ended.content) == (204, b"")


def test_other_requests_events_are_not_sent_and_their_ids_are_refused(served, trained):
    app, client = served
    mine, other = ask(client, trained), ask(client, trained)
    strange = logged(app.state.services, other)[0][0]
    for last in (strange, "999999", "2.0", "x", "-1"):
        answer = client.get(f"{URL}/{mine}/events", headers={"Last-Event-ID": last})
        assert answer.status_code == 422, answer.text
        assert answer.json()["field"] == "Last-Event-ID"
    with following(client, mine) as events:
        next(events)
        client.post(f"{URL}/{other}/cancel")
        client.post(f"{URL}/{mine}/cancel")
        assert [one[2]["request_id"] for one in events] == [mine]


def test_who_may_not_read_or_asks_for_nothing_gets_a_problem(api, make_token, trained, model_id):
    request_id = api.post(URL, json=trained.request(model_id)).json()["id"]
    path = f"{URL}/{request_id}/events"
    assert api.with_token(None).get(path).status_code == 401
    assert api.with_token(make_token(Scope.AUDIT_READ)).get(path).status_code == 403
    assert api.get(f"{URL}/{model_id}/events").status_code == 404


def test_silence_is_filled_with_comments(served, trained, monkeypatch):
    _, client = served
    monkeypatch.setattr(event_routes, "HEARTBEAT_SECONDS", 0.2)
    with following(client, ask(client, trained)) as events:
        assert [next(events)[1] for _ in range(3)] == ["state", "comment", "comment"]


def test_a_stream_that_grew_old_ends_and_can_be_taken_up(served, trained, monkeypatch):
    _, client = served
    monkeypatch.setattr(event_routes, "LONGEST_SECONDS", 0.3)
    request_id = ask(client, trained)
    with following(client, request_id) as events:
        (first, *_) = (one for one in events if one[1] == "state")
    client.post(f"{URL}/{request_id}/cancel")
    with following(client, request_id, first[0]) as events:
        assert [one[2]["state"] for one in events] == ["cancelled"]


def test_a_database_that_goes_away_ends_the_stream_and_nothing_is_lost(served, trained):
    app, client = served
    services = app.state.services
    request_id = ask(client, trained)
    with following(client, request_id) as events:
        last = next(events)[0]
        with services.sessions() as session:
            # The poller's connection dies in the middle of reading, as with a server's restart.
            for _ in range(2000):
                session.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
                session.rollback()
                if app.state.events._task is None:
                    break
        assert list(events) == []
    complete(services, claim(services))
    with following(client, request_id, last) as events:
        assert [one[2]["state"] for one in events] == ["running", "completed"]


def test_two_hundred_clients_share_one_poller_and_leave_nothing_behind(served, trained):
    app, client = served
    services = app.state.services
    model_id = register(client, trained)
    mine = [ask(client, trained, model_id) for _ in range(4)]
    barrier = threading.Barrier(201)

    def follow(i):
        with following(client, mine[i % 4]) as events:
            first = next(events)
            barrier.wait(60)
            seen = [first, *events]
        return mine[i % 4], [(o[0], o[2]["event"]) for o in seen if o[1] == "state"]

    with ThreadPoolExecutor(200) as pool:
        running = [pool.submit(follow, i) for i in range(200)]
        barrier.wait(60)
        assert app.state.events.watchers == 200
        assert services.engine.pool.checkedout() <= 1
        for _ in mine:
            complete(services, claim(services))
        told = [one.result(60) for one in running]
    for request_id, events in told:
        assert events == logged(services, request_id)
    until(lambda: app.state.events.watchers == 0 and app.state.events._task is None)


def test_clients_that_vanish_are_forgotten(served, trained):
    app, client = served
    request_id = ask(client, trained)
    for _ in range(5):
        with following(client, request_id) as events:
            next(events)
    until(lambda: app.state.events.watchers == 0 and app.state.events._task is None)
    assert app.state.events._watches == {}


def test_the_commands_of_the_notes_do_what_they_say(served, trained):
    app, client = served
    model_id = register(client, trained)
    request = trained.request(model_id, subject_reference="ticket 7")
    request_id = client.post(URL, json=request).json()["id"]
    client.post(f"{URL}/{request_id}/cancel")
    ask(client, trained, model_id)
    notes = (Path(__file__).parents[3] / "docs" / "api-notes.md").read_text()
    environment = os.environ | {
        "LETHE_URL": str(client.base_url).rstrip("/"),
        "LETHE_KEY": client.headers["Authorization"].removeprefix("Bearer "),
        "REQUEST_ID": request_id,
        "MODEL_ID": model_id,
    }
    stream, found, bulk = (
        subprocess.run(
            ["/bin/sh", "-c", command],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=40,
        ).stdout
        for command in re.findall(r"```console\n(.*?)```", notes, re.DOTALL)
    )
    told = [one.removeprefix("id: ") for one in stream.splitlines() if one.startswith("id: ")]
    assert told == [index for index, _ in logged(app.state.services, request_id)]
    assert json.loads(found)["items"] == []  # cancelled is neither of the states asked for
    assert [one["status"] for one in json.loads(bulk)["items"]] == [202, 422]
