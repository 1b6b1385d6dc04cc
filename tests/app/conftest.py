"""A trained model, the API over the test's transaction, and a look at all that was written."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import anyio
import httpx
import numpy as np
import pytest
import safetensors.numpy
from fastapi import FastAPI
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from app import auth, tables
from app.auth import Scope
from app.embedded.launcher import ValkeyServer
from app.evidence.transparency.checkpoints import Notary
from app.main import create_app
from app.services import Services
from app.settings import Settings

D, C, N = 4, 3, 40
RIDGE = 0.01
LETHE = Path(sys.executable).parent / "lethe"
Snapshot = tuple[dict[str, int], list[Path]]


@dataclass
class Trained:
    """A one-hot ridge classifier with its training data, as its owner has it."""

    x: NDArray[np.float64]
    labels: NDArray[np.int64]
    y: NDArray[np.float64]
    weight: NDArray[np.float64]

    def manifest(self, **changes: object) -> dict[str, object]:
        return {
            "name": "digits",
            "task": "classification",
            "num_features": D,
            "num_outputs": C,
            "ridge": {"convention": "per_sample", "strength": RIDGE},
            "n_samples": N,
            "feature_norm_bound": 1.0,
        } | changes

    def weights_file(self) -> bytes:
        return safetensors.numpy.save({"weight": self.weight})

    def statistics(self) -> dict[str, NDArray[Any]]:
        return {
            "gram": self.x.T @ self.x,
            "cross": self.x.T @ self.y,
            "target_gram": self.y.T @ self.y,
            "n_samples": np.array([N]),
        }

    def statistics_file(self, **changes: NDArray[Any]) -> bytes:
        return safetensors.numpy.save(self.statistics() | changes)

    def samples_file(self, rows: slice = slice(2)) -> bytes:
        return safetensors.numpy.save({"x": self.x[rows].copy(), "y": self.labels[rows].copy()})

    def parts(
        self,
        *,
        statistics: bytes | None = None,
        holdout: bytes | None = None,
        weights: bytes | None = None,
        **changes: object,
    ) -> dict[str, bytes]:
        """Return the multipart body of a registration; keyword arguments change the manifest."""
        parts = {
            "manifest": json.dumps(self.manifest(**changes)).encode(),
            "weights": self.weights_file() if weights is None else weights,
            "statistics": statistics,
            "holdout": holdout,
        }
        return {name: content for name, content in parts.items() if content is not None}

    def request(self, model_id: str, rows: slice = slice(2), **changes: object) -> dict[str, Any]:
        """Return the JSON body of an unlearning request."""
        samples = {"x": self.x[rows].tolist(), "y": self.labels[rows].tolist()}
        return {"model_id": model_id, "samples": samples} | changes


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A broker of this test process: some tests count its messages, and others ring."""
    folder = Path(tempfile.mkdtemp(prefix="lethe-app-"))
    with ValkeyServer(folder) as server:
        yield server.url
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def trained() -> Trained:
    """A model at its optimum, from numpy's own solver."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(N, D))
    x /= 1.01 * np.linalg.norm(x, axis=1, keepdims=True)
    labels = rng.integers(0, C, size=N)
    y = np.eye(C)[labels]
    weight = np.linalg.solve(x.T @ x + RIDGE * N * np.eye(D), x.T @ y)
    return Trained(x, labels, y, weight)


@dataclass
class TrainedLogistic:
    """A one-vs-rest logistic classifier at its optimum, in numpy alone; one output: two classes."""

    x: NDArray[np.float64]
    labels: NDArray[np.int64]
    y: NDArray[np.float64]
    weight: NDArray[np.float64]

    @classmethod
    def draw(cls, num_outputs: int) -> "TrainedLogistic":
        """Draw data and train by Newton's method."""
        rng = np.random.default_rng(11)
        x = rng.normal(size=(N, D))
        x /= 1.01 * np.linalg.norm(x, axis=1, keepdims=True)
        labels = rng.integers(0, max(num_outputs, 2), size=N)
        y = labels[:, None].astype(float) if num_outputs == 1 else np.eye(num_outputs)[labels]
        weight = np.zeros((D, num_outputs))
        for _ in range(20):
            for c in range(num_outputs):
                p = 1 / (1 + np.exp(-x @ weight[:, c]))
                hessian = (x.T * (p * (1 - p))) @ x + RIDGE * N * np.eye(D)
                gradient = x.T @ (p - y[:, c]) + RIDGE * N * weight[:, c]
                weight[:, c] -= np.linalg.solve(hessian, gradient)
        return cls(x, labels, y, weight)

    def manifest(self, **changes: object) -> dict[str, object]:
        return {
            "name": "logistic digits",
            "task": "classification",
            "loss": "logistic",
            "num_features": D,
            "num_outputs": self.weight.shape[1],
            "ridge": {"convention": "per_sample", "strength": RIDGE},
            "n_samples": N,
            "feature_norm_bound": 1.0,
        } | changes

    def statistics(self) -> dict[str, NDArray[Any]]:
        p = 1 / (1 + np.exp(-self.x @ self.weight))
        return {
            "anchor": self.weight,
            "hessians": np.stack([(self.x.T * s) @ self.x for s in (p * (1 - p)).T]),
            "gram": self.x.T @ self.x,
            "gradient": self.x.T @ (p - self.y),
            "feature_sums": self.x.sum(axis=0),
            "target_sums": self.y.sum(axis=0),
            "n_samples": np.array([N]),
        }

    def parts(
        self, *, statistics: dict[str, NDArray[Any]] | None = None, **changes: object
    ) -> dict[str, bytes]:
        """Return the multipart body; `statistics` changes tensors, others change the manifest."""
        stored = self.statistics() | (statistics or {})
        return {
            "manifest": json.dumps(self.manifest(**changes)).encode(),
            "weights": safetensors.numpy.save({"weight": self.weight}),
            "statistics": safetensors.numpy.save(stored),
        }


@pytest.fixture(scope="session")
def logistic() -> TrainedLogistic:
    """Three classes."""
    return TrainedLogistic.draw(C)


@pytest.fixture(scope="session")
def binary() -> TrainedLogistic:
    """Two classes in one output."""
    return TrainedLogistic.draw(1)


class Api:
    """The application, called over ASGI like over HTTP."""

    def __init__(self, app: FastAPI, token: str | None) -> None:
        self.app = app
        self.token = token

    def __call__(self, method: str, url: str, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if self.token is not None:
            headers.setdefault("Authorization", f"Bearer {self.token}")

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://lethe.test") as http:
                return await http.request(method, url, headers=headers, **options)

        return anyio.run(send)

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self("GET", url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        return self("POST", url, **options)

    def register(self, parts: dict[str, bytes], **options: Any) -> httpx.Response:
        return self.post("/v1/models", files=files(parts), **options)

    def with_token(self, token: str | None) -> "Api":
        return Api(self.app, token)


def files(parts: dict[str, bytes]) -> dict[str, tuple[str, bytes]]:
    return {name: (f"{name}.bin", content) for name, content in parts.items()}


@pytest.fixture
def make_token(session: Session) -> Callable[..., str]:
    """Return a function that makes an API key with scopes."""

    def make(*scopes: Scope) -> str:
        _, token = auth.create_key(session, name="test", scopes=scopes)
        session.commit()
        return token

    return make


@pytest.fixture
def services(settings: Settings, session: Session) -> Iterator[Services]:
    """The process's services, with every session inside the test's transaction."""
    services = bind(Services.from_settings(settings), session)
    yield services
    services.close()


def bind(services: Services, session: Session) -> Services:
    sessions = sessionmaker(
        session.connection(), join_transaction_mode="create_savepoint", expire_on_commit=False
    )
    notary = Notary(sessions, services.checkpoint_signer, services.settings.log_origin)
    return dataclasses.replace(services, sessions=sessions, notary=notary)


@pytest.fixture
def make_api(
    settings: Settings, session: Session, make_token: Callable[..., str]
) -> Iterator[Callable[..., Api]]:
    """Return a function that builds the application with changed settings."""
    made = ExitStack()

    def make(**changes: object) -> Api:
        app = create_app(settings.model_copy(update=changes))
        made.callback(app.state.services.close)
        app.state.services = bind(app.state.services, session)
        return Api(app, make_token(Scope.ADMIN))

    yield make
    made.close()


@pytest.fixture
def live_api(fresh_settings: Settings) -> Iterator[Api]:
    """The application over a database of its own: every request really commits."""
    app = create_app(fresh_settings)
    with app.state.services.sessions.begin() as session:
        _, token = auth.create_key(session, name="test", scopes=[Scope.ADMIN])
    yield Api(app, token)
    app.state.services.close()


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    """The application, called with an administrator's key."""
    return make_api()


def one_of_each(api: Api, trained: Trained, **asked: str) -> dict[str, str]:
    """Make one of everything that a path may name; return the ids by their parameters."""
    parts = trained.parts(statistics=trained.statistics_file())
    model = api.register(parts).json()["id"]
    request = api.post("/v1/unlearning-requests", json=trained.request(model, **asked))
    webhook = api.post("/v1/webhooks", json={"url": "https://93.184.215.14/a"}).json()["id"]
    delivery = api.post(f"/v1/webhooks/{webhook}/test")
    key = api.post("/v1/api-keys", json={"name": "other", "scopes": ["read"]})
    return {
        "model_id": model,
        "request_id": request.json()["id"],
        "webhook_id": webhook,
        "delivery_id": delivery.json()["id"],
        "key_id": key.json()["id"],
    }


@pytest.fixture
def written(session: Session, settings: Settings) -> Callable[[], Snapshot]:
    """Return a function that counts every table's rows and lists every artifact's file."""
    folder = Path(urlparse(settings.artifacts_url).path)

    def look() -> Snapshot:
        counts = {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in tables.metadata.tables.items()
        }
        session.commit()
        return counts, sorted(path for path in folder.rglob("*") if path.is_file())

    return look


@pytest.fixture
def model_id(api: Api, trained: Trained) -> str:
    """A registered model with stored statistics."""
    answer = api.register(trained.parts(statistics=trained.statistics_file()))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def bare_model_id(api: Api, trained: Trained) -> str:
    """A registered model without stored statistics."""
    answer = api.register(trained.parts())
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def lethe(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """A function that runs the command in an empty folder."""

    def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        return subprocess.run(
            [LETHE, *arguments],
            cwd=tmp_path,
            env=inherited | {"COLUMNS": "200"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
