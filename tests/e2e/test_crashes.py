import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import redis
from celery import Celery

from app.embedded.stack import Stack, StackRunningError
from app.jobs import QUEUE, broker_url

pytestmark = pytest.mark.e2e

LETHE = Path(sys.executable).parent / "lethe"


def audit_events(service, request_id):
    """Return the names of the log's events about one request, in order."""
    found, cursor = [], None
    while True:
        page = service.get(f"/v1/audit/entries?limit=200{f'&cursor={cursor}' if cursor else ''}")
        entries = [json.loads(item["body"]) for item in page["items"]]
        found += [e["event"] for e in entries if e["subject"].get("request_id") == request_id]
        cursor = page.get("next_cursor")
        if cursor is None:
            return found


def slow_request(service, make_problem, name):
    """Send a deletion whose semidefinite program takes seconds; return problem, rows, ids."""
    problem = make_problem(n=6000, d=28, seed=11)
    rows = np.random.default_rng(3).choice(6000, 1500, replace=False)
    model = service.register(problem, name, statistics=True)
    request = service.forget(model, problem.samples_file(rows), method="paper-sdp")
    return model, request


def kill_worker(stack, watch):
    """SIGKILL the worker's main process and its pool's children, as the kernel would on a crash."""
    worker = psutil.Process(stack.parts["worker"].process.pid)
    killed = [worker, *watch.descendants(worker.pid)]
    assert len(killed) > 1, "the pool has a child"
    for process in killed:
        process.kill()
    watch.until("the worker's end", lambda: not any(map(watch.alive, killed)))


def test_a_killed_worker_costs_time_but_nothing_else(stack, service, make_problem, watch):
    model, request = slow_request(service, make_problem, "killed worker")
    service.running(request, "estimate")
    kill_worker(stack, watch)
    ended = service.finished(request)
    assert ended["state"] == "completed", ended
    assert service.revisions(model) == [0, 1]
    events = audit_events(service, request)
    assert events.count("unlearning-request.started") >= 2
    assert events.count("unlearning-request.completed") == 1
    assert events.count("record.issued") == 1
    assert service.record(request)


def test_the_pool_dies_with_its_worker(stack, service, make_problem, watch):
    _, request = slow_request(service, make_problem, "orphaned child")
    service.running(request, "estimate")
    worker = psutil.Process(stack.parts["worker"].process.pid)
    children = watch.descendants(worker.pid)
    assert children
    worker.kill()
    watch.until("the children's end", lambda: not any(map(watch.alive, children)))
    assert service.finished(request)["state"] == "completed"


def test_a_lost_message_is_made_up_for(stack, service, make_problem, watch):
    problem = make_problem(seed=21)
    model = service.register(problem, "lost message", statistics=True)
    kill_worker(stack, watch)
    # Nobody listens now: the message waits in Valkey, until it is lost.
    request = service.forget(model, problem.samples_file(np.array([1])))
    with redis.Redis.from_url(stack.environment["REDIS_URL"]) as broker:
        assert broker.delete(QUEUE) == 1
    assert service.finished(request)["state"] == "completed"


def quieten(stack, watch):
    """Throw waiting doorbells away, and wait until the worker has answered the last one."""
    address = stack.environment["REDIS_URL"]
    with redis.Redis.from_url(address) as broker:
        broker.delete(QUEUE)
    with Celery(broker=broker_url(address), set_as_current=False) as client:
        inspect = client.control.inspect(timeout=0.5)
        watch.until("an idle worker", lambda: list((inspect.active() or {}).values()) == [[]])


def test_a_killed_valkey_is_made_up_for(stack, service, make_problem, watch):
    problem = make_problem(seed=22)
    model = service.register(problem, "killed Valkey", statistics=True)
    quieten(stack, watch)
    valkey = psutil.Process(stack.parts["Valkey"].process.pid)
    valkey.kill()
    watch.until("Valkey's end", lambda: not watch.alive(valkey))
    # Accepted all the same: PostgreSQL is the queue.
    request = service.forget(model, problem.samples_file(np.array([1])))
    assert service.finished(request)["state"] == "completed"
    # Nothing but a sweep through the new server can have told the worker.
    assert stack.parts["Valkey"].process.pid != valkey.pid


def test_a_killed_api_comes_back_on_the_same_address(stack, service, watch):
    before = stack.parts["API"].process.pid
    os.kill(before, signal.SIGKILL)
    watch.until("another API process", lambda: stack.parts["API"].process.pid != before)
    # Waits in the socket's queue until the new process serves it.
    assert service.get("/readyz")["ready"] is True


def test_a_killed_postgres_keeps_what_was_committed(stack, service, make_problem, watch):
    problem = make_problem(seed=23)
    model = service.register(problem, "killed PostgreSQL", statistics=True)
    before = stack.parts["PostgreSQL"].process.pid
    os.kill(before, signal.SIGKILL)
    watch.until("another server", lambda: stack.parts["PostgreSQL"].process.pid != before)
    watch.until("readiness", lambda: service.http.get("/readyz").status_code == 200)
    request = service.finished(service.forget(model, problem.samples_file(np.array([1]))))
    assert request["state"] == "completed"


class Up:
    """A `lethe up`, as somebody types it."""

    def __init__(self, state_dir, watch):
        self.process = subprocess.Popen(
            [LETHE, "up", "--state-dir", state_dir, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self.url = watch.until("the start of lethe up", self._find_url)

    def _read(self):
        self.lines.extend(self.process.stdout)

    def _find_url(self):
        assert self.process.poll() is None, self.output
        found = re.search(r"Lethe is up at (http://\S+)", self.output)
        return found and found.group(1)

    @property
    def output(self):
        return "".join(self.lines)

    def end(self):
        """Wait for its end and return its status."""
        status = self.process.wait(60)
        self.reader.join()
        self.process.stdout.close()
        return status


@pytest.fixture
def lethe_up(state_dir, watch):
    """Return a function that runs `lethe up` on the test's state folder."""
    started = []

    def start():
        started.append(Up(state_dir, watch))
        return started[-1]

    yield start
    for up in started:
        up.process.terminate()
        up.end()


def run_lethe(*arguments):
    return subprocess.run(
        [LETHE, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_nothing_survives_a_killed_lethe_up(lethe_up, watch):
    up = lethe_up()
    family = watch.descendants(up.process.pid)
    assert {"postgres", "valkey-server"} <= {process.name() for process in family}
    assert len([process for process in family if "worker.celery" in process.cmdline()]) == 1
    assert len([process for process in family if "app.embedded.serve" in process.cmdline()]) == 1
    up.process.kill()
    watch.until("the end of all its processes", lambda: not any(map(watch.alive, family)), 30)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_start_that_is_interrupted_is_undone_in_order(state_dir, watch, signum):
    up = subprocess.Popen(
        [LETHE, "up", "--state-dir", state_dir, "--port", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = state_dir / "postgres" / "server.log"
    watch.until("PostgreSQL", lambda: log.exists() and "ready to accept" in log.read_text())
    family = watch.descendants(up.pid)
    up.send_signal(signum)
    _, told = up.communicate(timeout=60)
    assert up.returncode == 130, told
    assert "Interrupted before it was up" in told
    assert "Traceback" not in told
    assert not any(map(watch.alive, family))
    assert "database system is shut down" in log.read_text()


def test_a_new_start_finds_everything_that_ctrl_c_stopped(
    lethe_up, state_dir, connect, make_problem, watch
):
    problem = make_problem(seed=31)
    up = lethe_up()
    key_file = state_dir / "keys" / "admin.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    key = key_file.read_text().strip()
    service = connect(up.url, key)
    model = service.register(problem, "survivor", statistics=True)
    request = service.forget(model, problem.samples_file(np.array([4])))
    assert service.finished(request)["state"] == "completed"
    record = service.record(request)
    family = watch.descendants(up.process.pid)
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 0, up.output
    assert not any(map(watch.alive, family))

    service = connect(lethe_up().url, key)
    assert service.record(request) == record
    # The downdated statistics survived as well: the next deletion is exact.
    request = service.forget(model, problem.samples_file(np.array([5])))
    assert service.finished(request)["state"] == "completed"
    retrained = problem.train_without(np.array([4, 5]))
    np.testing.assert_allclose(service.weights(model, 2), retrained, rtol=0, atol=1e-9)


def test_lethe_down_stops_what_lethe_up_started(lethe_up, state_dir):
    up = lethe_up()
    second = run_lethe("up", "--state-dir", state_dir, "--port", "0")
    assert second.returncode == 1
    assert f"a service already runs on {state_dir}" in second.stderr
    assert up.url in second.stderr
    assert "lethe down" in second.stderr
    assert "Traceback" not in second.stderr
    assert run_lethe("down", "--state-dir", state_dir).returncode == 0
    assert up.end() == 0
    nothing = run_lethe("down", "--state-dir", state_dir)
    assert nothing.returncode == 0
    assert "Nothing runs" in nothing.stdout


def test_api_keys_can_be_made_while_the_service_runs(stack, connect):
    made = run_lethe("keys", "create", "auditor", "--scope", "read", "--state-dir", stack.state_dir)
    assert made.returncode == 0, made.stderr
    service = connect(stack.url, made.stdout.strip())
    assert service.get("/v1/models")
    assert service.http.get("/v1/audit/entries").status_code == 403


def test_two_stacks_never_share_a_state_folder(stack):
    second = Stack(stack.state_dir)
    with pytest.raises(StackRunningError, match=f"process {os.getpid()}, {stack.url}"), second:
        pass


def test_a_taken_port_is_told_with_its_remedy(stack, state_dir):
    port = stack.url.rpartition(":")[2]
    refused = run_lethe("up", "--state-dir", state_dir, "--port", port)
    assert refused.returncode == 1
    assert f"127.0.0.1:{port}" in refused.stderr
    assert "--port" in refused.stderr
