"""Webhooks of the real service: told by its worker, and told again when that is killed."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
from sqlalchemy import create_engine, text
from standardwebhooks.webhooks import Webhook as Standard

from app.embedded.stack import Stack

pytestmark = pytest.mark.e2e


@pytest.fixture
def receiver():
    """A receiver that answers only while it is told to."""
    received, may_answer = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((dict(self.headers), body))
            may_answer.wait(60)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments):
            """Say nothing: the test does."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_arguments):
            """A killed worker does not wait for its answers."""

    server = Server(("127.0.0.1", 0), Handler)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever, 0.02)
        yield server.server_port, received, may_answer
        may_answer.set()
        server.shutdown()
    server.server_close()


def kill(process):
    """SIGKILL a process and what it started, as the kernel would on a crash."""
    killed = [process, *process.children(recursive=True)]
    for one in killed:
        one.kill()
    psutil.wait_procs(killed, 20)


def test_what_a_killed_worker_was_sending_is_sent_again_with_the_same_id_by_the_next(
    state_dir, make_client, make_problem, receiver, watch
):
    port, received, may_answer = receiver
    environment = {
        "SWEEP_SECONDS": "0.2",
        "WEBHOOK_ALLOW_HTTP": "true",
        "WEBHOOK_ALLOW_PRIVATE_NETWORKS": "127.0.0.1/32",
        "WEBHOOK_PORTS": str(port),
    }
    with Stack(state_dir, environment=environment) as stack:
        service = make_client(stack.url, stack.admin_key)
        wanted = {
            "url": f"http://127.0.0.1:{port}/",
            "events": ["unlearning-request.completed"],
        }
        webhook = service.http.post("/v1/webhooks", json=wanted).json()
        problem = make_problem()
        model = service.register(problem, "told", statistics=True)
        request = service.forget(model, problem.samples_file([1, 2]))
        watch.until("a message", lambda: received)
        kill(psutil.Process(stack.parts["worker"].process.pid))
        may_answer.set()
        # The dead worker's claim lasts a minute: the clock is moved, not waited for.
        engine = create_engine(stack.environment["DATABASE_URL"])
        with engine.begin() as database:
            moved = database.execute(
                text("UPDATE webhook_delivery SET next_attempt_at = now() WHERE state = 'pending'")
            )
        engine.dispose()
        assert moved.rowcount == 1
        path = f"/v1/webhooks/{webhook['id']}/deliveries?state=delivered"
        watch.until("the delivery", lambda: service.get(path)["items"])
        (delivery,) = service.get(path)["items"]
        assert delivery["attempts"] == 2
        service.http.close()
    assert len(received) == 2
    assert received[0][0]["webhook-id"] == received[1][0]["webhook-id"] == delivery["message_id"]
    message = Standard(webhook["secret"]).verify(received[1][1], received[1][0])
    assert json.loads(received[0][1]) == message
    assert message["data"] == {"model_id": model, "request_id": request, "state": "completed"}
