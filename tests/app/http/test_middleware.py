import json
import logging

from fastapi import Request

from tests.reference.leaving import leave


def test_every_answer_carries_a_request_id_and_its_log_line_too(api, log_lines):
    first, second = api.get("/livez"), api.get("/livez")
    assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"]
    lines = [line for line in log_lines() if line["event"] == "request"]
    assert [line["request_id"] for line in lines] == [
        first.headers["X-Request-ID"],
        second.headers["X-Request-ID"],
    ]
    assert lines[0]["path"] == "/livez"
    assert lines[0]["status"] == 200
    assert lines[0]["level"] == "info"


def test_a_callers_id_is_kept_unless_it_could_forge_a_log_line(api):
    kept = api.get("/livez", headers={"X-Request-ID": "trace-1.2_3"})
    assert kept.headers["X-Request-ID"] == "trace-1.2_3"
    for forged in ('"}{"event":"x', "x" * 65, "a b"):
        answer = api.get("/livez", headers={"X-Request-ID": forged})
        assert answer.headers["X-Request-ID"] != forged


def test_an_error_that_nobody_foresaw_is_a_problem_with_an_id_and_a_traceback(api, log_lines):
    @api.app.get("/broken")
    def broken():
        raise ZeroDivisionError("secret detail")

    answer = api.get("/broken")
    assert answer.status_code == 500
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "secret" not in answer.text
    (failure,) = [line for line in log_lines() if line["event"] == "request.failed"]
    assert failure["request_id"] == answer.headers["X-Request-ID"]
    assert "ZeroDivisionError: secret detail" in failure["exception"]


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_failure_of_ours(api, log_lines):
    @api.app.post("/slow")
    async def slow(request: Request):
        return await request.body()

    assert leave(api.app, "/slow") == []
    events = [(line["event"], line["level"]) for line in log_lines()]
    assert ("request.client_left", "info") in events
    assert "request.failed" not in [event for event, _ in events]


def test_the_log_holds_no_key_and_no_sample(api, trained, model_id, log_lines):
    api.post("/v1/unlearning-requests", json=trained.request(model_id, subject_reference="Jane"))
    text = json.dumps(log_lines())
    assert api.token.split("_", 2)[2] not in text
    assert "Jane" not in text
    assert repr(float(trained.x[0, 0])) not in text


def test_records_of_the_standard_library_are_json_too(log_lines):
    logging.getLogger("uvicorn.error").info("started on %s", "port 1")
    logging.getLogger("uvicorn.access").info("not twice")
    (line,) = log_lines()
    assert line["event"] == "started on port 1"
    assert line["logger"] == "uvicorn.error"
