"""The real service: PostgreSQL, Valkey, uvicorn and Celery as processes, spoken to over HTTP."""

import base64
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import safetensors.numpy

from app.embedded.stack import Stack

DEADLINE_SECONDS = 120.0
FINAL = {"completed", "refused", "failed", "cancelled"}
# Short, so that crashes are noticed within a test; long enough for a busy machine.
QUICK = {"LEASE_SECONDS": "5", "SWEEP_SECONDS": "0.5"}


def poll(what: str, look: Callable[[], Any], timeout: float = DEADLINE_SECONDS) -> Any:
    """Poll until `look` returns something true, and return that."""
    deadline = time.monotonic() + timeout
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)
    return found


class Service:
    """What a client does, as plain HTTP calls, and a look at the processes behind them."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30.0
        )

    def get(self, path: str) -> Any:
        """Return the JSON of a resource that has to exist."""
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def register(
        self,
        problem: Any,
        name: str,
        *,
        statistics: bool,
        membership: bool = False,
        surrogate: bool = False,
        network: bool = False,
    ) -> str:
        """Register a model and return its id."""
        files = {
            "manifest": ("manifest.json", json.dumps(problem.manifest(name)), "application/json"),
            "weights": ("weights.safetensors", problem.weights_file()),
        }
        if statistics:
            files["statistics"] = ("statistics.safetensors", problem.statistics_file())
        if membership:
            files["membership"] = ("membership.safetensors", problem.membership_file())
        if surrogate:
            files["surrogate"] = ("surrogate.safetensors", problem.surrogate_file())
        if network:
            files["network"] = ("network.safetensors", problem.network_file())
        answer = self.http.post("/v1/models", files=files)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def forget(self, model_id: str, samples: bytes, **options: Any) -> str:
        """Send an unlearning request and return its id."""
        request = json.dumps({"model_id": model_id, "seed": 7} | options)
        files = {
            "request": ("request.json", request, "application/json"),
            "samples": ("samples.safetensors", samples),
        }
        answer = self.http.post("/v1/unlearning-requests", files=files)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def request(self, request_id: str) -> dict[str, Any]:
        """Return a request as it stands."""
        found: dict[str, Any] = self.get(f"/v1/unlearning-requests/{request_id}")
        return found

    def finished(self, request_id: str) -> dict[str, Any]:
        """Wait for a request to end and return it."""

        def look() -> dict[str, Any] | None:
            found = self.request(request_id)
            return found if found["state"] in FINAL else None

        ended: dict[str, Any] = poll(f"the end of request {request_id}", look)
        return ended

    def running(self, request_id: str, stage: str) -> None:
        """Wait until a request is being computed, in that stage."""

        def look() -> bool:
            found = self.request(request_id)
            assert found["state"] not in FINAL, f"ended too soon: {found}"
            return bool(found["progress"]) and found["progress"]["stage"] == stage

        poll(f"stage {stage} of request {request_id}", look)

    def weights(self, model_id: str, revision: int) -> np.ndarray:
        """Download the weights of a revision."""
        return safetensors.numpy.load(self.weights_file(model_id, revision))["weight"]

    def weights_file(self, model_id: str, revision: int) -> bytes:
        """Download the weights of a revision, as delivered."""
        answer = self.http.get(f"/v1/models/{model_id}/revisions/{revision}/weights")
        assert answer.status_code == 200, answer.text
        return answer.content

    def revisions(self, model_id: str) -> list[int]:
        """Return the numbers of a model's revisions, in order."""
        found = self.get(f"/v1/models/{model_id}/revisions")
        items = found["items"] if isinstance(found, dict) else found
        return sorted(item["number"] for item in items)

    def record(self, request_id: str) -> bytes:
        """Download the signed record of a finished request."""
        answer = self.http.get(f"/v1/unlearning-requests/{request_id}/record")
        assert answer.status_code == 200, answer.text
        return answer.content

    def statement(self, request_id: str, what: str = "record") -> dict[str, Any]:
        """Return what the signed record of a finished request says."""
        bundle = self.get(f"/v1/unlearning-requests/{request_id}/{what}")
        said = json.loads(base64.b64decode(bundle["envelope"]["payload"]))
        return dict(said["predicate"])

    def keys(self) -> bytes:
        """Download the keys that records and checkpoints are verified with."""
        answer = self.http.get("/v1/audit/keys")
        assert answer.status_code == 200, answer.text
        return answer.content


@pytest.fixture(scope="session")
def make_client() -> type[Service]:
    """Return what makes a client, for fixtures that outlive a test; they close it themselves."""
    return Service


@pytest.fixture
def connect() -> Iterator[Callable[[str, str], Service]]:
    """Return a function that makes a client of a running service."""
    with ExitStack() as clients:

        def connect_to(url: str, key: str) -> Service:
            service = Service(url, key)
            clients.enter_context(service.http)
            return service

        yield connect_to


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A folder that does not exist yet, under a name that has to be quoted in URLs."""
    folder = Path(tempfile.mkdtemp(prefix="lethe e2e-"))
    yield folder / "state"
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The service, started once; crash tests leave it running again."""
    folder = Path(tempfile.mkdtemp(prefix="lethe-e2e-"))
    with Stack(folder / "state", environment=QUICK) as stack:
        yield stack
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def service(stack: Stack) -> Iterator[Service]:
    """A client of the session's stack, with every right."""
    service = Service(stack.url, stack.admin_key)
    yield service
    service.http.close()


class Watch:
    """A look at processes, with a deadline."""

    until = staticmethod(poll)

    @staticmethod
    def descendants(parent: int) -> list[psutil.Process]:
        """Return every process below one."""
        return psutil.Process(parent).children(recursive=True)

    @staticmethod
    def alive(process: psutil.Process) -> bool:
        """Whether a process runs; one that only waits to be reaped does not."""
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@pytest.fixture(scope="session")
def watch() -> Watch:
    """Return what crash tests look at processes with."""
    return Watch()
