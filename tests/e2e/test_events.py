"""A real deletion watched through its events; connection and server are lost on the way."""

import contextlib
import json

import httpx
import numpy as np
import psutil
import pytest

pytestmark = pytest.mark.e2e


def events(service, request_id, last=None):
    """Yield (id, event, data) of a stream until it ends, or breaks off."""
    headers = {} if last is None else {"Last-Event-ID": last}
    path = f"/v1/unlearning-requests/{request_id}/events"
    with service.http.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        fields = {}
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            if "data" in fields:
                yield fields.get("id"), fields["event"], json.loads(fields["data"])
            fields = {}


def states(seen):
    return [data["state"] for _, kind, data in seen if kind == "state"]


def logged(service, request_id):
    """Return the log's indices and events about a request, by the route for auditors."""
    found, cursor = [], None
    while True:
        page = service.get(f"/v1/audit/entries?limit=200{f'&cursor={cursor}' if cursor else ''}")
        for item in page["items"]:
            entry = json.loads(item["body"])
            if entry["subject"].get("request_id") == request_id:
                found.append((str(entry["index"]), entry["event"]))
        cursor = page.get("next_cursor")
        if cursor is None:
            return [one for one in found if one[1].startswith("unlearning-request.")]


def slow_request(service, make_problem, name):
    """Send a deletion whose semidefinite program takes seconds."""
    problem = make_problem(n=6000, d=28, seed=11)
    rows = np.random.default_rng(3).choice(6000, 1500, replace=False)
    model = service.register(problem, name, statistics=True)
    return service.forget(model, problem.samples_file(rows), method="paper-sdp")


def test_a_deletion_is_watched_to_its_end_across_a_lost_connection_and_a_restart(
    stack, service, make_problem, watch
):
    request_id = slow_request(service, make_problem, "watched")
    seen = []
    for one in events(service, request_id):
        seen.append(one)
        if one[1] == "progress":
            break  # the client's connection is lost in the middle
    assert states(seen) == ["queued", "running"]

    last = [one[0] for one in seen if one[0]][-1]
    api = psutil.Process(stack.parts["API"].process.pid)
    # Cut in the middle of an answer without an end, if the deletion was not faster.
    with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
        for one in events(service, request_id, last):
            seen.append(one)
            api.kill()  # the server's process, at the first event after that

    watch.until("the old server's end", lambda: not watch.alive(api))
    last = [one[0] for one in seen if one[0]][-1]
    if states(seen)[-1] != "completed":
        seen += events(service, request_id, last)
    assert service.finished(request_id)["state"] == "completed"
    told = [(i, data["event"]) for i, kind, data in seen if kind == "state"]
    assert told == logged(service, request_id)
    assert states(seen)[-1] == "completed"
    fractions = [data["fraction"] for _, kind, data in seen if kind == "progress"]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert fractions


def test_after_the_end_the_whole_story_can_be_read_again_and_then_nothing_follows(
    service, make_problem
):
    problem = make_problem(seed=31)
    model = service.register(problem, "story", statistics=True)
    request_id = service.forget(model, problem.samples_file(np.array([3])))
    first = list(events(service, request_id))
    assert states(first)[0] == "queued"
    assert states(first)[-1] == "completed"
    assert service.record(request_id)
    again = list(events(service, request_id))
    assert [one for one in first if one[1] == "state"] == again
    ended = service.http.get(
        f"/v1/unlearning-requests/{request_id}/events", headers={"Last-Event-ID": again[-1][0]}
    )
    assert ended.status_code == 204
