"""A request of a model, as rows alone."""

import secrets

import pytest

from app.artifacts.models import Artifact
from app.db import new_id
from app.registry.models import Model
from app.unlearning.models import UnlearningRequest


def add_request(session):
    """Write a model and a request of it; the model is at `request.model`."""
    samples = Artifact(
        kind="forget_samples",
        location=f"aa/{new_id()}",
        size_bytes=1,
        ciphertext_sha256=secrets.token_hex(32),
        wrapped_key=b"wrapped",
    )
    model = Model(name="digits", manifest={"d": 64}, wrapped_digest_key=b"wrapped")
    session.add_all([samples, model])
    session.flush()
    request = UnlearningRequest(
        model_id=model.id,
        state="running",
        method="stored",
        tier="certified",
        options={},
        sample_count=1,
        sample_commitment=secrets.token_hex(32),
        samples_artifact_id=samples.id,
    )
    session.add(request)
    session.flush()
    request.model = model
    return request


@pytest.fixture
def new_request():
    return add_request
