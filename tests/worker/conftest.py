"""A worker's services on a database and a Valkey of the test's own."""

import base64
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import safetensors.numpy
from sqlalchemy import select

from app.embedded.launcher import ValkeyServer
from app.evidence import service as evidence
from app.evidence.keys import keyring
from app.evidence.keys.trust import TrustedKeys
from app.evidence.models import AuditEntry
from app.evidence.verification import verify_bundle
from app.jobs import QUEUE
from app.registry import samples
from app.registry import service as registry
from app.registry.schemas import Manifest
from app.services import Services
from app.settings import Settings
from app.unlearning import service
from app.unlearning.models import UnlearningRequest
from app.unlearning.schemas import UnlearningIn


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """A broker that no other test rings."""
    folder = Path(tempfile.mkdtemp(prefix="lethe-worker-"))
    with ValkeyServer(folder) as server:
        yield server
    shutil.rmtree(folder)


@pytest.fixture
def make_services(
    make_settings: Callable[..., Settings], fresh_database_url: str, valkey: ValkeyServer
) -> Iterator[Callable[..., Services]]:
    """Return a function that makes a worker's services; settings by name."""
    made = []

    def make(**overrides: object) -> Services:
        settings = make_settings(
            **({"database_url": fresh_database_url, "redis_url": valkey.url} | overrides)
        )
        made.append(Services.from_settings(settings))
        return made[-1]

    yield make
    for services in made:
        services.close()


@pytest.fixture
def services(make_services: Callable[..., Services]) -> Services:
    """A worker's services with the default settings."""
    return make_services()


class Shop:
    """Registers models and sends requests, as the API does, and looks at what came of them."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def register(
        self,
        problem: Any,
        *,
        statistics: bool = True,
        membership: bool = False,
        surrogate: bool = False,
        network: bool = False,
    ) -> uuid.UUID:
        """Register a model and return its id."""
        services = self.services
        with services.sessions.begin() as session:
            model = registry.register(
                session,
                services.store,
                services.keys,
                services.settings,
                manifest=Manifest.model_validate_json(json.dumps(problem.manifest("model"))),
                weights=problem.weights_file(),
                statistics=problem.statistics_file() if statistics else None,
                holdout=problem.samples_file(np.arange(20)),
                membership=problem.membership_file() if membership else None,
                surrogate=problem.surrogate_file() if surrogate else None,
                network=problem.network_file() if network else None,
                actor="test",
            )
        return model.id

    def request(self, model_id: uuid.UUID, problem: Any, rows: Any, **options: Any) -> uuid.UUID:
        """Ask for some rows to be forgotten and return the request's id."""
        services = self.services
        wanted = UnlearningIn.model_validate_json(
            json.dumps({"model_id": str(model_id), "seed": 5} | options)
        )
        with services.sessions.begin() as session:
            _, manifest = service.describe(session, model_id)
            content = problem.samples_file(np.asarray(rows))
            forget = samples.from_file(content, manifest, field="samples")
            request = service.create(
                session,
                services.store,
                services.keys,
                services.queue,
                services.settings,
                wanted=wanted,
                forget=forget,
                actor="test",
            )
        return request.id

    def find(self, request_id: uuid.UUID) -> UnlearningRequest:
        """Return a request as it stands."""
        with self.services.sessions() as session:
            return service.get(session, request_id)

    def statement(self, request_id: uuid.UUID) -> Any:
        """Return the record that a request ended in, once it has verified."""
        services = self.services
        with services.sessions() as session:
            record = evidence.find_record(session, request_id)
            bundle = evidence.bundle(session, record, services.notary)
            keys = TrustedKeys.of(keyring.key_list(session))
        checks = verify_bundle(bundle, keys)
        assert all(check.ok for check in checks), checks
        return json.loads(base64.b64decode(bundle["envelope"]["payload"]))["predicate"]

    def log(self, event: str) -> list[dict[str, Any]]:
        """Return the log's entries of one kind, in order."""
        with self.services.sessions() as session:
            bodies = session.scalars(select(AuditEntry.body).order_by(AuditEntry.index))
            entries = [json.loads(body) for body in bodies]
        return [entry for entry in entries if entry["event"] == event]

    def claim(self) -> Any:
        """Take the next job, as a worker does."""
        settings = self.services.settings
        with self.services.sessions.begin() as session:
            return service.claim(
                session,
                worker="test",
                lease_seconds=settings.lease_seconds,
                max_attempts=settings.max_attempts,
            )

    def weights(self, model_id: uuid.UUID) -> np.ndarray:
        """Return a model's current weights."""
        with self.services.sessions() as session:
            revision = registry.current_revision(session, registry.get(session, model_id))
            content = registry.load_weights(session, self.services.store, revision)
        return safetensors.numpy.load(content)["weight"]

    def revision(self, model_id: uuid.UUID) -> int:
        """Return the number of a model's current revision."""
        with self.services.sessions() as session:
            return registry.get(session, model_id).current_revision

    def rings(self) -> int:
        """Return how many doorbell messages wait."""
        with redis.Redis.from_url(self.services.settings.redis_url) as client:
            return client.llen(QUEUE)

    def silence(self) -> None:
        """Throw waiting messages away."""
        with redis.Redis.from_url(self.services.settings.redis_url) as client:
            client.delete(QUEUE)


@pytest.fixture
def shop(services: Services) -> Shop:
    """The other side of the queue."""
    return Shop(services)


@pytest.fixture
def make_shop(make_services: Callable[..., Services]) -> Callable[..., Shop]:
    """Return a function that makes the other side of a queue; settings by name."""
    return lambda **overrides: Shop(make_services(**overrides))
