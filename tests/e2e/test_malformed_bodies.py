"""Malformed bodies over a real connection, where a server parses headers and lengths before us."""

import errno
import os
import socket

import httpx
import numpy as np
import pytest

from tests.reference.malformed import malformed, objection_to, valid_bodies

pytestmark = pytest.mark.e2e

SEED = int(os.environ.get("LETHE_FUZZ_SEED", "2"))
HUNG_UP = {errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN}
SENT = int(os.environ.get("LETHE_LIVE_MALFORMED_BODIES", "600"))


@pytest.fixture
def bodies(service, make_problem):
    problem = make_problem()
    model = service.register(problem, "malformed", statistics=True)
    samples = problem.samples_file(np.array([1]))
    request = service.finished(service.forget(model, samples))
    features = problem.features[:1]
    known = {
        "model_id": model,
        "request_id": request["id"],
        "url": "https://93.184.215.14/a",
        "samples": {"x": features.tolist(), "y": problem.labels[:1].tolist()},
        "weights_sha256": ["0" * 64],
        "bundle": service.get(f"/v1/unlearning-requests/{request['id']}/record"),
    }
    files = {
        "weights": problem.weights_file(),
        "statistics": problem.statistics_file(),
        "samples": samples,
    }
    return valid_bodies(service.get("/openapi.json"), known, files)


def test_a_live_service_refuses_malformed_bodies_and_stays_well(service, stack, bodies):
    secrets = (socket.gethostname() + ":", str(stack.state_dir))
    seen = set()
    for number, sent in enumerate(malformed(bodies, SEED)):
        if number == SENT:
            break
        answer = service.http.request(
            sent.method, sent.path, headers=sent.headers, content=sent.content
        )
        wrong = objection_to(answer.status_code, answer.headers, answer.content, secrets)
        assert wrong is None, (wrong, sent.how, sent.path, sent.content[:600], answer.text)
        assert not sent.is_hopeless or answer.status_code >= 400, sent
        seen.add(answer.status_code)
    assert {413, 415, 422} & seen
    assert service.http.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /v1/models HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /v1/models HTTP/9.9\r\nHost: x\r\n\r\n",
        b"POST /v1/\x00\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET " + b"/" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
    ],
)
def test_what_is_no_http_is_refused_without_a_word_about_the_inside(service, raw):
    address = httpx.URL(service.url)
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        answer = b""
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                answer += part
        except OSError as error:
            if error.errno not in HUNG_UP:
                raise
            # As good an answer to this as a 400, and it may come before all was sent.
    status = answer.split(b" ")[1:2]
    assert status in ([], [b"400"], [b"401"], [b"404"], [b"431"]), answer[:300]
    if answer:
        objection = objection_to(200, {}, answer.partition(b"\r\n\r\n")[2])
        assert objection is None, answer[:500]
    assert service.http.get("/livez").status_code == 200
