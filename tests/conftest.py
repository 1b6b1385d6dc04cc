"""Servers and databases for every test that needs them: real ones, started once a run.

The run's controller starts PostgreSQL and Valkey and migrates one template database; each xdist
worker copies it. Set TEST_DATABASE_URL (a role that may create databases) and TEST_REDIS_URL to
use others.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
import pytest
import safetensors.numpy
from psycopg import sql
from sqlalchemy import Engine, make_url
from sqlalchemy.orm import Session

import migrations
from app.artifacts.keys import MasterKey
from app.db import make_engine
from app.embedded.launcher import EPHEMERAL, PostgresServer, ValkeyServer
from app.evidence.keys.keysources import derived_passphrase
from app.evidence.keys.signing import CheckpointSigner, Signer
from app.settings import Settings
from tests.reference.collector import Collector, collecting

POSTGRES = "TEST_DATABASE_URL"
REDIS = "TEST_REDIS_URL"
TEMPLATE = "TEST_DATABASE_TEMPLATE"

servers = ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    """Start the servers in the controller; xdist's workers inherit the addresses."""
    if hasattr(config, "workerinput"):
        return
    folder = Path(tempfile.mkdtemp(prefix="lethe-test-"))
    servers.callback(shutil.rmtree, folder, ignore_errors=True)
    try:
        if POSTGRES not in os.environ:
            postgres = servers.enter_context(PostgresServer(folder / "postgres", EPHEMERAL))
            os.environ[POSTGRES] = postgres.url("postgres")
            servers.callback(os.environ.pop, POSTGRES)
        if REDIS not in os.environ:
            os.environ[REDIS] = servers.enter_context(ValkeyServer(folder / "valkey")).url
            servers.callback(os.environ.pop, REDIS)
        template = f"lethe_template_{secrets.token_hex(4)}"
        create_database(template)
        servers.callback(drop_database, template)
        migrations.upgrade(database_url_of(template))
        os.environ[TEMPLATE] = template
        servers.callback(os.environ.pop, TEMPLATE)
    except BaseException:
        servers.close()
        raise


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what the controller started."""
    if not hasattr(config, "workerinput"):
        servers.close()


def database_url_of(name: str) -> str:
    """Return the URL of a database of the test server."""
    return make_url(os.environ[POSTGRES]).set(database=name).render_as_string(hide_password=False)


def _execute(statement: sql.Composed) -> None:
    address = make_url(os.environ[POSTGRES]).set(drivername="postgresql")
    with psycopg.connect(address.render_as_string(hide_password=False), autocommit=True) as server:
        server.execute(statement)


def create_database(name: str, template: str = "template0") -> None:
    """Create a database as a copy of another."""
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    _execute(statement.format(sql.Identifier(name), sql.Identifier(template)))


def drop_database(name: str) -> None:
    """Drop a database, with whoever is still connected to it."""
    _execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def redis_url() -> str:
    """Address of the run's Valkey, as redis-py takes it."""
    return os.environ[REDIS]


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector of OpenTelemetry traces."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """A migrated database of this test process. Use it through `session`, which rolls back."""
    name = f"lethe_{secrets.token_hex(8)}"
    create_database(name, os.environ[TEMPLATE])
    yield database_url_of(name)
    drop_database(name)


@pytest.fixture(scope="session")
def engine(database_url: str) -> Iterator[Engine]:
    """Engine of the test process's database."""
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session whose commits are savepoints: the test's end undoes all of it."""
    with engine.connect() as connection:
        transaction = connection.begin()
        with Session(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            yield session
        transaction.rollback()


@pytest.fixture
def empty_database_url() -> Iterator[str]:
    """A database of this test alone, before any migration."""
    name = f"lethe_{secrets.token_hex(8)}"
    create_database(name)
    yield database_url_of(name)
    drop_database(name)


@pytest.fixture
def fresh_database_url() -> Iterator[str]:
    """A migrated database of this test alone, for what has to commit or to run concurrently."""
    name = f"lethe_{secrets.token_hex(8)}"
    create_database(name, os.environ[TEMPLATE])
    yield database_url_of(name)
    drop_database(name)


@pytest.fixture
def fresh_engine(fresh_database_url: str) -> Iterator[Engine]:
    """Engine of the test's own database."""
    engine = make_engine(fresh_database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def make_settings(tmp_path: Path, redis_url: str) -> Callable[..., Settings]:
    """Return a function that builds settings with keys and an artifact folder of this test."""
    master_key = tmp_path / "master.key"
    passphrase = derived_passphrase(MasterKey.generate(master_key))
    signing_key, log_key = tmp_path / "signing.pem", tmp_path / "log.pem"
    Signer.generate(signing_key, passphrase)
    CheckpointSigner.generate(log_key, passphrase)
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()

    def make(**overrides: object) -> Settings:
        values: dict[str, object] = {
            "redis_url": redis_url,
            "artifacts_url": artifacts.as_uri(),
            "master_key_file": master_key,
            "signing_key_file": signing_key,
            "log_key_file": log_key,
            "environment": "development",
            # All tests come from one address; those of the limits set them.
            "rate_limit_per_minute": 0,
            "rate_limit_expensive_per_minute": 0,
            "rate_limit_failures_per_minute": 0,
        }
        return Settings.model_validate(values | overrides)

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database_url: str) -> Settings:
    """Settings of the shared test database."""
    return make_settings(database_url=database_url)


@pytest.fixture
def fresh_settings(make_settings: Callable[..., Settings], fresh_database_url: str) -> Settings:
    """Settings of the test's own database."""
    return make_settings(database_url=fresh_database_url)


@dataclass(frozen=True)
class RidgeProblem:
    """A trained one-hot ridge classifier and its data, in numpy alone: the independent truth."""

    features: np.ndarray
    labels: np.ndarray
    num_outputs: int
    convention: str
    strength: float

    @property
    def targets(self) -> np.ndarray:
        """One-hot rows."""
        return np.eye(self.num_outputs)[self.labels]

    def train(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Solve the normal equations over some rows, all if None."""
        chosen = np.arange(len(self.labels)) if rows is None else rows
        x, y = self.features[chosen], self.targets[chosen]
        shift = self.strength * (len(x) if self.convention == "per_sample" else 1)
        return np.linalg.solve(x.T @ x + shift * np.eye(x.shape[1]), x.T @ y)

    def train_without(self, rows: np.ndarray) -> np.ndarray:
        """Retrain on the rest: what unlearning is compared with."""
        return self.train(np.setdiff1d(np.arange(len(self.labels)), rows))

    def manifest(self, name: str) -> dict[str, object]:
        """What its owner declares."""
        return {
            "name": name,
            "task": "classification",
            "num_features": self.features.shape[1],
            "num_outputs": self.num_outputs,
            "ridge": {"convention": self.convention, "strength": self.strength},
            "n_samples": len(self.labels),
            "feature_norm_bound": float(np.linalg.norm(self.features, axis=1).max()),
        }

    def weights_file(self) -> bytes:
        """The trained weights as a client uploads them."""
        return safetensors.numpy.save({"weight": self.train()})

    def statistics_file(self) -> bytes:
        """The stored statistics as a client uploads them."""
        x, y = self.features, self.targets
        return safetensors.numpy.save(
            {
                "gram": x.T @ x,
                "cross": x.T @ y,
                "target_gram": y.T @ y,
                "n_samples": np.array([len(x)], np.int64),
            }
        )

    def samples_file(self, rows: np.ndarray) -> bytes:
        """Some of its training samples as a client sends them."""
        return safetensors.numpy.save({"x": self.features[rows], "y": self.labels[rows]})


@pytest.fixture(scope="session")
def make_problem() -> Callable[..., RidgeProblem]:
    """Return a function that draws a classification problem."""

    def make(
        *, n: int = 400, d: int = 8, seed: int = 0, convention: str = "per_sample"
    ) -> RidgeProblem:
        random = np.random.default_rng(seed)
        labels = random.integers(0, 3, n)
        features = random.normal(size=(n, d)) + 0.5 * random.normal(size=(3, d))[labels]
        strength = {"per_sample": 1e-3, "total": 0.7}[convention]
        return RidgeProblem(features / np.sqrt(d), labels, 3, convention, strength)

    return make
