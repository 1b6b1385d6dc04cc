"""What receivers are told of requests that workers really run, and who sends it."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from sqlalchemy import func, select
from standardwebhooks.webhooks import Webhook as Standard

from app.evidence.auditing import verify_log
from app.evidence.models import AuditEntry
from app.registry import service as registry
from app.registry.models import Model
from app.tenants import service as tenants
from app.unlearning.models import UnlearningJob
from app.webhooks import service
from app.webhooks.addresses import Guard
from app.webhooks.models import Webhook, WebhookDelivery
from app.webhooks.schemas import WebhookIn
from worker.runner import run_next
from worker.sweeper import Sweeper, sweep


@pytest.fixture
def receiver():
    """A receiver in plain HTTP on loopback, as a developer has it; and what it has received."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((dict(self.headers), body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments):
            """Say nothing: the test does."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server.server_port, received
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def told(make_shop, receiver):
    """A shop with one webhook, and its secret."""
    port, _ = receiver
    shop = make_shop(
        webhook_allow_http=True,
        webhook_allow_private_networks="127.0.0.1/32",
        webhook_ports=str(port),
        sweep_seconds=0.02,
    )
    services = shop.services
    with services.sessions.begin() as session:
        _, secret = service.create(
            session,
            services.keys,
            Guard.from_settings(services.settings),
            wanted=WebhookIn(url=f"http://127.0.0.1:{port}/"),
            most=1,
            actor="test",
        )
    return shop, secret


def outbox(shop):
    """Return what was written to be sent, in order."""
    with shop.services.sessions() as session:
        rows = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id))
        messages = [json.loads(row.body) for row in rows]
    return [(message["type"], message["data"]) for message in messages]


def of_request(model_id, request_id, *states):
    """Return the messages that a request in these states is told of by."""
    names = {"queued": "received", "running": "started"}
    return [
        (
            f"unlearning-request.{names.get(state, state)}",
            {"model_id": str(model_id), "request_id": str(request_id), "state": state},
        )
        for state in states
    ]


def test_a_request_that_completes_is_told_of_three_times_and_the_sweeper_sends_it(
    told, receiver, make_problem
):
    shop, secret = told
    problem = make_problem()
    model = shop.register(problem)
    request = shop.request(model, problem, [1, 2])
    run_next(shop.services)
    expected = of_request(model, request, "queued", "running", "completed")
    assert outbox(shop) == expected
    sweeper = Sweeper(shop.services)
    sweeper.start()
    deadline = time.monotonic() + 20
    while len(receiver[1]) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    sweeper.stop()
    messages = [Standard(secret).verify(body, headers) for headers, body in receiver[1]]
    messages.sort(key=lambda message: message["id"])
    assert [(message["type"], message["data"]) for message in messages] == expected
    with shop.services.sessions() as session:
        assert verify_log(session).ok


def test_a_refused_request_and_a_spent_model_are_told_of_without_a_reason(told, make_problem):
    shop, _ = told
    problem = make_problem()
    model = shop.register(problem)
    first, again = (shop.request(model, problem, [1]) for _ in range(2))
    while run_next(shop.services):
        pass
    assert outbox(shop)[-1:] == of_request(model, again, "refused")
    assert outbox(shop)[:1] == of_request(model, first, "queued")
    with shop.services.sessions.begin() as session:
        found = registry.get(session, model)
        registry.require_retraining(session, found, "spent, says a test")
    assert outbox(shop)[-1] == (
        "model.retraining-required",
        {"model_id": str(model), "state": "retraining_required"},
    )


def test_a_request_that_breaks_every_worker_is_told_of_as_failed_and_not_of_each_attempt(
    told, make_problem
):
    shop, _ = told
    problem = make_problem()
    model = shop.register(problem)
    request = shop.request(model, problem, np.arange(3))
    for _ in range(shop.services.settings.max_attempts):
        assert shop.claim() is not None
        with shop.services.sessions.begin() as session:
            session.query(UnlearningJob).update({"lease_expires_at": UnlearningJob.created_at})
        sweep(shop.services)
    assert outbox(shop) == of_request(
        model, request, "queued", "running", "running", "running", "failed"
    )


def test_a_job_of_a_tenant_tells_and_logs_to_that_tenant_alone(told, make_problem):
    shop, _ = told  # its webhook is the default tenant's
    problem = make_problem()
    with shop.services.sessions.begin() as session:
        other = tenants.create(session, "other", actor="test").id
    model = shop.register(problem)
    with shop.services.sessions.begin() as session:
        session.get_one(Model, model).tenant_id = other
        webhook = Webhook(url="https://other.example.org/", consecutive_failures=0, tenant_id=other)
        session.add(webhook)
    request = shop.request(model, problem, [1, 2])
    with shop.services.sessions() as session:
        began = session.scalars(select(func.max(AuditEntry.index))).one()
    run_next(shop.services)
    assert shop.find(request).state == "completed"
    assert shop.find(request).tenant_id == other
    with shop.services.sessions() as session:
        told_to = set(session.scalars(select(WebhookDelivery.webhook_id)))
        assert told_to == {webhook.id}
        written = session.scalars(select(AuditEntry).where(AuditEntry.index >= began)).all()
        of_the_job = [entry for entry in written if b'"model_id"' in entry.body]
        assert {entry.tenant_id for entry in of_the_job} == {other}
        assert len(of_the_job) > 3
        rest = [json.loads(entry.body)["event"] for entry in written if entry not in of_the_job]
        assert all(event.startswith("signing-key.") for event in rest), rest
        assert verify_log(session).ok
    assert outbox(shop) == of_request(model, request, "queued", "running", "completed")
