import json

import httpx
import pytest

URL = "/v1/unlearning-requests"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def small_api(make_api):
    return make_api(max_body_bytes=10_000)


def in_chunks(content, size=1000):
    async def chunks():
        for start in range(0, len(content), size):
            yield content[start : start + size]

    return chunks()


def expect_too_large(answer):
    assert answer.status_code == 413, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-ID"]
    problem = answer.json()
    assert problem["type"] == "urn:lethe:problem:payload-too-large"
    assert "10000" in problem["detail"]
    assert "MAX_BODY_BYTES" in problem["remedy"]


def test_a_declared_length_over_the_limit_is_refused(small_api, written):
    before = written()
    expect_too_large(small_api.post(URL, content=b" " * 10_001, headers=JSON))
    assert written() == before


def test_a_stream_over_the_limit_is_refused_while_it_comes(small_api, written):
    before = written()
    answer = small_api.post(URL, content=in_chunks(b" " * 10_001), headers=JSON)
    assert "Content-Length" not in answer.request.headers
    expect_too_large(answer)
    assert written() == before


def test_a_multipart_stream_over_the_limit_is_refused(small_api, trained, written):
    before = written()
    parts = trained.parts(holdout=b"x" * 10_000)
    expect_too_large(small_api.register(parts))
    form = httpx.Request("POST", "http://lethe.test", files=parts)
    headers = {"Content-Type": form.headers["Content-Type"]}
    expect_too_large(small_api.post("/v1/models", content=in_chunks(form.read()), headers=headers))
    assert written() == before


def test_a_body_at_the_limit_is_read(small_api, trained):
    model_id = small_api.register(trained.parts()).json()["id"]
    content = json.dumps(trained.request(model_id)).encode().ljust(10_000)
    assert small_api.post(URL, content=content, headers=JSON).status_code == 202
    assert small_api.post(URL, content=in_chunks(content), headers=JSON).status_code == 202


def test_a_part_of_many_megabytes_never_reaches_a_temporary_file(make_api, trained, monkeypatch):
    import tempfile  # noqa: PLC0415

    def refuse(*_args, **_kwargs):
        raise AssertionError("a plaintext part was about to reach the disk")

    api = make_api(max_body_bytes=2**23)
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    answer = api.register(trained.parts(holdout=b"x" * 2**22))
    assert answer.status_code == 422
    assert answer.json()["field"] == "holdout"
