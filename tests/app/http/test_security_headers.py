"""What every answer tells browsers and caches, and what it tells nobody."""

import json
import tracemalloc

import pytest

from app.http import uploads
from app.unlearning.schemas import UnlearningWithSamplesIn

PATHS = ["/livez", "/v1/models", "/v1/nothing", "/openapi.json", "/docs"]


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_says_what_may_be_done_with_it(api, path):
    for one in (api, api.with_token(None)):
        headers = one.get(path, headers={"Origin": "https://elsewhere.example"}).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert not [name for name in headers if name.lower().startswith("access-control-")]
        assert not {"server", "x-powered-by", "strict-transport-security"} & headers.keys()
        assert (headers.get("Cache-Control") == "no-store") is (path != "/docs")


def test_an_error_that_nobody_foresaw_has_them_too(api):
    @api.app.get("/broken")
    def broken():
        raise ZeroDivisionError

    answer = api.get("/broken")
    assert answer.status_code == 500
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_strict_transport_security_is_sent_where_it_is_set(make_api):
    headers = make_api(hsts_seconds=31_536_000).get("/livez").headers
    assert headers["Strict-Transport-Security"] == "max-age=31536000"


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "OPTIONS", "PROPFIND", "X", "HEAD"])
def test_methods_that_no_route_has_are_not_allowed(api, method):
    for path in api.app.openapi()["paths"]:
        answer = api(method, path.replace("{", "").replace("}", ""))
        assert answer.status_code == 405, path
        assert answer.headers["Allow"]


def test_a_preflight_of_another_origin_is_refused(api):
    headers = {
        "Origin": "https://elsewhere.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "Authorization",
    }
    answer = api("OPTIONS", "/v1/models", headers=headers)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


WORST = {
    "empty arrays": b"[],",
    "empty objects": b"{},",
    "objects": b'{"":0},',
    "arrays": b"[0],",
    "fractions": b"1e9,",
    "digits": b"0,",
    "words": b'"ab",',
}


@pytest.mark.parametrize("name", WORST)
@pytest.mark.parametrize("share", [1.0, "as many as are taken"])
def test_the_worst_body_takes_no_more_than_a_bounded_memory(name, share):
    piece = WORST[name]
    room = uploads.MAX_JSON_BYTES - 100
    count = room // len(piece)
    if share != 1.0:
        opens = piece.count(b"[") + piece.count(b"{")
        count = min(
            count,
            (uploads.MAX_JSON_VALUES - 10) // (opens + 1),
            (uploads.MAX_JSON_CONTAINERS - 10) // opens if opens else count,
        )
    body = b'{"samples":{"x":[' + piece * count + b'0],"y":[0]}}'
    tracemalloc.start()
    try:
        with pytest.raises((uploads.PayloadTooLargeError, uploads.InvalidInputError)):
            uploads.parse_json(body, UnlearningWithSamplesIn)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150 * 2**20, f"{peak / 2**20:.0f} MiB"


@pytest.mark.parametrize("path", ["/v1/certificates/verify", "/v1/unlearning-requests"])
def test_ten_million_elements_are_refused_before_they_are_parsed(api, path):
    many = b'{"bundle":{"a":[' + b"0," * 3_000_000 + b"0]}}"
    answer = api.post(path, content=many, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "values in JSON" in answer.json()["detail"]
    assert json.dumps(answer.json()).count("safetensors")
