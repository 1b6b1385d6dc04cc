"""Models and their revisions: registering, reading, and extending the chain by one deletion.

Functions flush; whoever opened the session commits.
"""

import os
import uuid

from sqlalchemy.orm import Session

from app.artifacts.keys import KEY_BYTES, MasterKey
from app.artifacts.models import ArtifactKind
from app.artifacts.store import ArtifactStore
from app.db import new_id
from app.errors import (
    ArtifactShreddedError,
    ConcurrentUpdateError,
    InvalidInputError,
    ModelNotFoundError,
    RevisionNotFoundError,
    WeightsPurgedError,
)
from app.evidence import service as evidence
from app.evidence.canonical import canonical_json, sha256_hex
from app.registry import checks, repository, samples, tensors
from app.registry.models import Model, Revision
from app.registry.schemas import Manifest
from app.settings import Settings


def register(
    session: Session,
    store: ArtifactStore,
    keys: MasterKey,
    settings: Settings,
    *,
    manifest: Manifest,
    weights: bytes,
    statistics: bytes | None,
    holdout: bytes | None,
    actor: str,
) -> Model:
    """Register a model with its first revision, once everything about it was checked.

    Raises:
        InvalidInputError: A file is malformed, or contradicts the manifest or another file.
    """
    _require_size(manifest, settings)
    weight = checks.read_weights(weights, manifest)
    stored = None if statistics is None else checks.read_statistics(statistics, manifest)
    gradient_norm = manifest.training_gradient_norm
    if stored is not None:
        gradient_norm = checks.training_gradient_norm(weight, stored, manifest)
    held_out = None
    if holdout is not None:
        held_out = samples.to_bytes(samples.from_file(holdout, manifest, field="holdout"))

    model = Model(
        id=new_id(),
        name=manifest.name,
        manifest=manifest.model_dump(mode="json"),
        current_revision=0,
        holdout_artifact_id=None
        if held_out is None
        else store.put(session, ArtifactKind.HOLDOUT, held_out).id,
    )
    model.wrapped_digest_key = keys.wrap(os.urandom(KEY_BYTES), _digest_key_purpose(model))
    session.add(model)
    session.flush()
    revision = _store_revision(
        session,
        store,
        model,
        number=0,
        n_samples=manifest.n_samples,
        gradient_norm_bound=gradient_norm,
        weights=tensors.write({"weight": weight}),
        statistics=None if stored is None else stored.to_bytes(),
        request_id=None,
    )
    evidence.append(
        session,
        "model.registered",
        subject={"model_id": str(model.id)},
        payload={
            "actor": actor,
            "manifest_sha256": sha256_hex(canonical_json(model.manifest)),
            "weights_sha256": revision.weights_sha256,
            "has_statistics": stored is not None,
            "has_holdout": held_out is not None,
        },
    )
    return model


def add_revision(
    session: Session,
    store: ArtifactStore,
    model: Model,
    *,
    expected_revision: int,
    n_samples: int,
    gradient_norm_bound: float,
    weights: bytes,
    statistics: bytes | None,
    request_id: uuid.UUID,
    keep_superseded_weights: bool,
) -> Revision:
    """Extend a model's chain by one revision; what it supersedes is shredded.

    Old statistics always go: they still contain the forgotten samples. Old weights go unless told
    otherwise: both revisions together reveal a single forgotten record (METHOD §5).

    Raises:
        ConcurrentUpdateError: The model is at another revision than expected, or not active.
    """
    if not repository.advance(session, model, expected_revision):
        raise ConcurrentUpdateError(
            f"model {model.id} is {model.state} at revision {model.current_revision}, expected an"
            f" active one at revision {expected_revision}",
            remedy="Compute the deletion again from the current revision.",
        )
    superseded = get_revision(session, model, expected_revision)
    revision = _store_revision(
        session,
        store,
        model,
        number=expected_revision + 1,
        n_samples=n_samples,
        gradient_norm_bound=gradient_norm_bound,
        weights=weights,
        statistics=statistics,
        request_id=request_id,
    )
    if superseded.statistics_artifact_id is not None:
        _shred(session, store, superseded.statistics_artifact_id)
    if not keep_superseded_weights:
        _shred(session, store, superseded.weights_artifact_id)
    evidence.append(
        session,
        "model.revision-added",
        subject={"model_id": str(model.id), "request_id": str(request_id)},
        payload={
            "revision": revision.number,
            "n_samples": n_samples,
            "weights_sha256": revision.weights_sha256,
            "superseded_weights_sha256": superseded.weights_sha256,
            "superseded_weights_shredded": not keep_superseded_weights,
        },
    )
    return revision


def get(session: Session, model_id: uuid.UUID) -> Model:
    """Return a model.

    Raises:
        ModelNotFoundError: There is none with this id.
    """
    model = session.get(Model, model_id)
    if model is None:
        raise not_found(model_id)
    return model


def get_revision(session: Session, model: Model, number: int) -> Revision:
    """Return one revision of a model.

    Raises:
        RevisionNotFoundError: It has no such revision.
    """
    revision = repository.find_revision(session, model.id, number)
    if revision is None:
        raise RevisionNotFoundError(
            f"model {model.id} has no revision {number}",
            field="number",
            remedy=f"Its revisions go from 0 to {model.current_revision}.",
        )
    return revision


def current_revision(session: Session, model: Model) -> Revision:
    """Return the revision that a model is at."""
    return get_revision(session, model, model.current_revision)


def load_weights(session: Session, store: ArtifactStore, revision: Revision) -> bytes:
    """Return a revision's weights: the canonical safetensors bytes that `weights_sha256` is of.

    Raises:
        WeightsPurgedError: They were superseded and shredded.
        ArtifactCorruptError: They are not what was stored.
    """
    try:
        return store.get(repository.get_artifact(session, revision.weights_artifact_id))
    except ArtifactShreddedError as error:
        raise WeightsPurgedError(
            f"the weights of revision {revision.number} were superseded and shredded",
            field="number",
            remedy="Download the current revision; KEEP_SUPERSEDED_WEIGHTS keeps later ones.",
        ) from error


def download_weights(
    session: Session, store: ArtifactStore, revision: Revision, *, actor: str
) -> bytes:
    """Return a revision's weights and log who took them.

    Raises:
        WeightsPurgedError: They were superseded and shredded.
        ArtifactCorruptError: They are not what was stored.
    """
    content = load_weights(session, store, revision)
    evidence.append(
        session,
        "model.weights-downloaded",
        subject={"model_id": str(revision.model_id)},
        payload={
            "actor": actor,
            "revision": revision.number,
            "weights_sha256": revision.weights_sha256,
        },
    )
    return content


def load_statistics(session: Session, store: ArtifactStore, revision: Revision) -> bytes | None:
    """Return a revision's stored statistics, None if it has none.

    Raises:
        ArtifactShreddedError: They were superseded.
        ArtifactCorruptError: They are not what was stored.
    """
    if revision.statistics_artifact_id is None:
        return None
    return store.get(repository.get_artifact(session, revision.statistics_artifact_id))


def load_holdout(session: Session, store: ArtifactStore, model: Model) -> bytes | None:
    """Return a model's canonical holdout samples, None if it has none.

    Raises:
        ArtifactCorruptError: They are not what was stored.
    """
    if model.holdout_artifact_id is None:
        return None
    return store.get(repository.get_artifact(session, model.holdout_artifact_id))


def digest_key(keys: MasterKey, model: Model) -> bytes:
    """Return the key of the digests of what this model has forgotten."""
    return keys.unwrap(model.wrapped_digest_key, _digest_key_purpose(model))


def not_found(model_id: uuid.UUID) -> ModelNotFoundError:
    """Return the error for an id that no model has."""
    return ModelNotFoundError(
        f"no model {model_id}", field="model_id", remedy="GET /v1/models lists them."
    )


def _store_revision(
    session: Session,
    store: ArtifactStore,
    model: Model,
    *,
    number: int,
    n_samples: int,
    gradient_norm_bound: float,
    weights: bytes,
    statistics: bytes | None,
    request_id: uuid.UUID | None,
) -> Revision:
    revision = Revision(
        model_id=model.id,
        number=number,
        n_samples=n_samples,
        gradient_norm_bound=gradient_norm_bound,
        weights_artifact_id=store.put(session, ArtifactKind.WEIGHTS, weights).id,
        weights_sha256=sha256_hex(weights),
        request_id=request_id,
    )
    if statistics is not None:
        revision.statistics_artifact_id = store.put(session, ArtifactKind.STATISTICS, statistics).id
        revision.statistics_sha256 = sha256_hex(statistics)
    session.add(revision)
    session.flush()
    return revision


def _shred(session: Session, store: ArtifactStore, artifact_id: uuid.UUID) -> None:
    store.shred(session, repository.get_artifact(session, artifact_id))


def _require_size(manifest: Manifest, settings: Settings) -> None:
    limits = {"num_features": settings.max_features, "num_outputs": settings.max_outputs}
    for name, limit in limits.items():
        found: int = getattr(manifest, name)
        if found > limit:
            raise InvalidInputError(
                f"manifest.{name}: {found} is above this service's limit {limit}",
                field=f"manifest.{name}",
                remedy="Reduce the features' dimension, or ask the operator to raise MAX_FEATURES"
                " or MAX_OUTPUTS.",
            )


def _digest_key_purpose(model: Model) -> str:
    return f"lethe/model-digest/{model.id}"
