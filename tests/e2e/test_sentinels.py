"""On the real stack: however a request ends, its numbers are in clear nowhere that outlives it.

One scene brings requests to every end there is, crashes included, while everything that the parts
say to each other is written down; the tests then search all of it for the numbers that were sent.
"""

import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import psycopg
import pytest
import safetensors.numpy
from sqlalchemy import make_url

from app.embedded.launcher import ValkeyServer
from app.embedded.stack import Stack
from tests.reference.needles import needles, printed

pytestmark = pytest.mark.e2e

QUICK = {"LEASE_SECONDS": "5", "SWEEP_SECONDS": "0.5"}
URL = "/v1/unlearning-requests"
# PostgreSQL writes every statement with its parameters into its log, and keeps all of its WAL.
TELL_ALL = ("log_statement = 'all'", "log_parameter_max_length = -1", "wal_keep_size = '4GB'")


@dataclass
class Planted:
    """Which numbers were sent, and what would give them away."""

    rows: list[np.ndarray] = field(default_factory=list)

    def plant(self, features: np.ndarray) -> np.ndarray:
        """Note samples that will be sent: of a large set the first, the last and one between."""
        self.rows.append(features[sorted({0, len(features) // 2, len(features) - 1})])
        return features

    def search(self) -> Callable[[bytes], list[bytes]]:
        """Return a function that finds what was planted in some bytes."""
        wanted = [needle for rows in self.rows for needle in needles(rows)]
        runs = [printed(rows) for rows in self.rows]

        def find(content: bytes) -> list[bytes]:
            found = [needle for needle in wanted if needle in content]
            return found + [hit for pattern in runs for hit in pattern.findall(content)]

        return find


class Monitor:
    """Writes down every command that reaches Valkey."""

    def __init__(self, socket_path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(socket_path))
        self._socket.sendall(b"MONITOR\r\n")
        self._heard: list[bytes] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while heard := self._socket.recv(2**16):
            self._heard.append(heard)

    def heard(self) -> bytes:
        """Return all that was said so far."""
        return b"".join(self._heard)

    def close(self) -> None:
        """Stop listening."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


@dataclass
class Scene:
    """A stack in folders of its own, its client, and what was seen."""

    stack: Stack
    service: object
    watch: object
    planted: Planted
    temporary: Path
    started_in: Path
    ended: dict[str, str] = field(default_factory=dict)
    answers: list[bytes] = field(default_factory=list)
    said_to_valkey: bytes = b""

    def ask(self, model: str, features: np.ndarray, labels: np.ndarray, **options: object) -> str:
        """Send samples as a file, and return the request's id."""
        content = safetensors.numpy.save({"x": self.planted.plant(features), "y": labels})
        return self.service.forget(model, content, **options)

    def post(self, status: int, **options: object) -> dict[str, object]:
        """Send a body as it is, and keep the answer."""
        answer = self.service.http.post(URL, **options)
        assert answer.status_code == status, answer.text
        self.answers.append(answer.content)
        return answer.json()

    def end(self, name: str, request: str, state: str) -> None:
        """Wait for a request's end."""
        found = self.service.finished(request)
        assert found["state"] == state, found
        self.ended[name] = request

    def sql(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """Run a statement on the stack's database."""
        address = make_url(self.stack.environment["DATABASE_URL"]).set(drivername="postgresql")
        with psycopg.connect(
            address.render_as_string(hide_password=False), autocommit=True
        ) as connection:
            done = connection.execute(statement, parameters)
            return done.fetchall() if done.description else []

    def worker(self) -> psutil.Process:
        """Return the worker's main process."""
        return psutil.Process(self.stack.parts["worker"].process.pid)


@pytest.fixture(scope="module")
def folders() -> Iterator[tuple[Path, Path, Path]]:
    """Folders of the state, of temporary files, and to start in: where a core would be dumped."""
    folder = Path(tempfile.mkdtemp(prefix="lethe-sentinels-"))
    inside = [folder / name for name in ("state", "temporary", "cwd")]
    for path in inside:
        path.mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMPDIR", str(inside[1]))
        patched.chdir(inside[2])
        limits = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
        try:
            yield tuple(inside)
        finally:
            resource.setrlimit(resource.RLIMIT_CORE, limits)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def scene(folders, make_client, watch, make_problem) -> Iterator[Scene]:
    """Bring requests to every end there is."""
    state, temporary, started_in = folders
    with Stack(state, environment=QUICK) as stack:
        service = make_client(stack.url, stack.admin_key)
        scene = Scene(stack, service, watch, Planted(), temporary, started_in)
        for setting in TELL_ALL:
            scene.sql(f"ALTER SYSTEM SET {setting}")
        scene.sql("SELECT pg_reload_conf()")
        monitor = Monitor(ValkeyServer(state / "valkey").socket)
        play(scene, make_problem)
        scene.answers.append(service.http.get(f"{URL}?limit=200").content)
        for request in scene.ended.values():
            scene.answers.append(service.http.get(f"{URL}/{request}/record").content)
        scene.sql("CHECKPOINT")
        scene.said_to_valkey = monitor.heard()
        monitor.close()
        yield scene
        service.http.close()


def play(scene: Scene, make_problem) -> None:
    small = make_problem(seed=101)
    model = scene.service.register(small, "sentinels", statistics=True)
    bare = scene.service.register(small, "bare sentinels", statistics=False)

    def rows(first, last):
        return small.features[first:last].copy(), small.labels[first:last].copy()

    scene.end("completed", scene.ask(model, *rows(0, 3)), "completed")
    scene.end("refused", scene.ask(bare, *rows(3, 4)), "refused")
    send_again(scene, model, *rows(4, 6))
    send_what_is_refused(scene, model, small)
    fail_while_computing(scene, make_problem)
    crash_while_computing(scene, make_problem)


def send_again(scene: Scene, model: str, features: np.ndarray, labels: np.ndarray) -> None:
    """Send JSON twice under one key, and other JSON under it."""
    scene.planted.plant(features)
    headers = {"Idempotency-Key": "again"}

    def body(row):
        samples = {"x": [features[row].tolist()], "y": [int(labels[row])]}
        return {"model_id": model, "samples": samples}

    first = scene.post(202, json=body(0), headers=headers)
    again = scene.post(202, json=body(0), headers=headers)
    assert again["id"] == first["id"]
    scene.post(422, json=body(1), headers=headers)
    scene.end("sent twice", first["id"], "completed")
    scene.post(202, json=body(0), headers=headers)


def send_what_is_refused(scene: Scene, model: str, problem) -> None:
    """Send what is answered 422: numbers of no sample of the model, and broken bodies."""
    features, labels = problem.features[10:20].copy(), problem.labels[10:20]
    scene.planted.plant(features)

    def body(row, **changes):
        samples = {"x": [features[row].tolist()], "y": [int(labels[row])]} | changes
        return {"model_id": model, "samples": samples}

    scene.post(422, json=body(0, x=[(100 * features[0]).tolist()]))
    scene.post(422, json=body(0, y=[99]))
    scene.post(422, json=body(0, x=[[*features[0].tolist(), "text"]]))
    scene.post(422, json=body(0) | {"surprise": features[0].tolist()})
    headers = {"Content-Type": "application/json"}
    whole = json.dumps(body(5))
    for broken in (whole[:-7], whole.replace("[[", "[[NaN,"), whole + whole):
        scene.post(422, content=broken.encode(), headers=headers)
    file = safetensors.numpy.save({"x": features[9:].copy(), "y": labels[9:].copy()})
    for samples in (file[:-3], file + b"\0", features[9].tobytes()):
        request = json.dumps({"model_id": model})
        scene.post(422, files={"request": ("r", request), "samples": ("s", samples)})


def fail_while_computing(scene: Scene, make_problem) -> None:
    """Let every attempt break off with the samples in its frames: the model contradicts itself."""
    problem = make_problem(seed=102)
    model = scene.service.register(problem, "contradicts itself", statistics=True)
    scene.sql("UPDATE revision SET n_samples = n_samples + 1 WHERE model_id = %s", model)
    request = scene.ask(model, problem.features[:2].copy(), problem.labels[:2].copy())
    scene.end("failed", request, "failed")


def crash_while_computing(scene: Scene, make_problem) -> None:
    """Kill a worker at work, abort its successor, and cancel what waits behind; the third ends."""
    problem = make_problem(n=6000, d=28, seed=111)
    chosen = np.random.default_rng(3).choice(6000, 4500, replace=False)
    model = scene.service.register(problem, "crashes", statistics=True)
    features, labels = problem.features[chosen], problem.labels[chosen]
    request = scene.ask(model, features[:1500].copy(), labels[:1500].copy(), method="paper-sdp")
    # More than a megabyte: what multipart parsers like to put into a file.
    waiting = scene.ask(model, features.copy(), labels.copy())
    scene.service.running(request, "estimate")
    killed = [scene.worker(), *scene.worker().children(recursive=True)]
    for process in killed:
        process.kill()
    scene.watch.until("the worker's end", lambda: not any(map(scene.watch.alive, killed)))
    scene.watch.until(
        "the successor at work", lambda: scene.service.request(request)["attempts"] == 2
    )
    scene.service.running(request, "estimate")
    # The pool's child, whose memory holds the samples: a crash as of a broken library.
    child = max(scene.worker().children(recursive=True), key=lambda one: one.memory_info().rss)
    child.send_signal(signal.SIGABRT)
    scene.watch.until("the child's end", lambda: not scene.watch.alive(child))
    cancelled = scene.service.http.post(f"{URL}/{waiting}/cancel")
    assert cancelled.json()["state"] == "cancelled", cancelled.text
    scene.ended["cancelled"] = waiting
    scene.end("crashed twice", request, "completed")
    assert scene.service.request(request)["attempts"] == 3


@pytest.fixture(scope="module")
def find(scene):
    return scene.planted.search()


def test_the_search_finds_what_was_sent(scene, find):
    for rows in scene.planted.rows:
        for row in rows:
            assert find(row.tobytes())
            assert find(json.dumps(row.tolist()).encode())
            assert find(row.tobytes().hex().encode())
            assert find(str(row).encode())


def test_every_end_was_reached(scene):
    assert set(scene.ended) == {
        "completed",
        "refused",
        "sent twice",
        "failed",
        "cancelled",
        "crashed twice",
    }


def test_no_file_of_the_stack_holds_a_number_in_clear(scene, find):
    searched = 0
    for path in scene.stack.state_dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not find(content), path
            searched += len(content)
    # The database with its write-ahead log, blobs, keys, and the logs of four servers.
    assert searched > 2**24
    logs = {name: (scene.stack.log_dir / name).read_text() for name in ("api.log", "worker.log")}
    assert "job.attempt_failed" in logs["worker.log"]
    assert "SIGABRT" in logs["worker.log"]
    assert "Traceback" in logs["worker.log"]
    assert logs["api.log"].count('"status": 422') >= 10


def test_no_number_was_ever_told_to_postgresql(scene, find):
    (log,) = scene.stack.state_dir.joinpath("postgres").glob("*.log")
    content = log.read_bytes()
    # Statements are there with their parameters, so what was sent would be, too.
    assert b"INSERT INTO unlearning_request" in content
    commitment = scene.sql("SELECT sample_commitment FROM unlearning_request LIMIT 1")
    assert str(commitment[0][0]).encode() in content
    assert not find(content)


def test_no_number_was_ever_told_to_valkey(scene, find):
    assert b"lethe.work" in scene.said_to_valkey
    assert not find(scene.said_to_valkey)


def test_no_answer_holds_a_number(scene, find):
    assert len(scene.answers) > 20
    for answer in scene.answers:
        assert not find(answer), answer


def test_neither_temporary_files_nor_memory_are_left(scene):
    left = [path for path in scene.temporary.rglob("*") if path.is_file()]
    assert left == []
    assert list(scene.started_in.iterdir()) == []
    dumped = subprocess.run(
        [sys.executable, "-c", "import os; os.abort()"], cwd=scene.started_in, check=False
    )
    assert dumped.returncode == -signal.SIGABRT
    # Where this system dumps cores at all, it is there, and the service's own would have been.
    for core in scene.started_in.iterdir():
        core.unlink()


def test_every_key_to_the_samples_is_destroyed_and_the_log_says_so(scene):
    left = scene.sql(
        "SELECT count(*) FROM artifact WHERE kind = 'forget_samples' AND wrapped_key IS NOT NULL"
    )
    assert left == [(0,)]
    left = scene.sql(
        "SELECT count(*) FROM unlearning_request WHERE wrapped_commitment_key IS NOT NULL"
    )
    assert left == [(0,)]
    bodies = [json.loads(bytes(body)) for (body,) in scene.sql("SELECT body FROM audit_entry")]
    entries = [body for body in bodies if body["event"] == "artifact.keys-destroyed"]
    logged = [item["id"] for entry in entries for item in entry["payload"]["artifacts"]]
    destroyed = scene.sql("SELECT id FROM artifact WHERE wrapped_key IS NULL")
    assert sorted(logged) == sorted(str(identifier) for (identifier,) in destroyed)
    reasons = sorted(entry["payload"]["reason"] for entry in entries)
    assert reasons == sorted(
        ["request-completed"] * 3 + ["request-refused", "request-failed", "request-cancelled"]
    )
