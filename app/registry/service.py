"""Models and their revisions: registering, reading, and extending the chain by one deletion.

Functions flush; whoever opened the session commits.
"""

import datetime
import hashlib
import hmac
import os
import uuid
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.artifacts.keys import KEY_BYTES, MasterKey
from app.artifacts.models import ArtifactKind
from app.artifacts.retention import Deadlines
from app.artifacts.store import ArtifactStore, Shredding
from app.budget import service as budget
from app.db import new_id
from app.errors import (
    ArtifactShreddedError,
    ConcurrentUpdateError,
    ModelNotFoundError,
    RevisionNotFoundError,
    WeightsPurgedError,
)
from app.evidence import service as evidence
from app.evidence.canonical import canonical_json, sha256_hex
from app.registry import checks, networks, policy, repository, samples, tensors
from app.registry import membership as multisets
from app.registry.models import Model, ModelState, Revision
from app.registry.schemas import Manifest
from app.registry.tensors import Array
from app.settings import Settings
from app.webhooks import outbox
from app.webhooks.models import WebhookEvent
from core import noise
from core.vocabulary import Mechanism


@dataclass(frozen=True, slots=True, eq=False)
class _Checked:
    """What the files of a registration hold, once they were found to belong together."""

    weight: Array
    gradient_norm_bound: float
    statistics: bytes | None
    holdout: bytes | None
    surrogate: bytes | None
    membership: multisets.Multiset | None
    network: bytes | None


def register(
    session: Session,
    store: ArtifactStore,
    keys: MasterKey,
    settings: Settings,
    *,
    manifest: Manifest,
    weights: bytes,
    statistics: bytes | None = None,
    holdout: bytes | None = None,
    surrogate: bytes | None = None,
    membership: bytes | None = None,
    network: bytes | None = None,
    actor: str,
) -> Model:
    """Register a model with its first revision, once everything about it was checked.

    Args:
        session: Its commit registers the model.
        store: Where the files go, encrypted.
        keys: Wraps the model's own keys.
        settings: Limits and policy, which the manifest may tighten but not loosen.
        manifest: What the owner declares.
        weights: File of W, without noise.
        statistics: File of stored statistics.
        holdout: File of samples that were never trained on.
        surrogate: File of features that stand in for the training set's.
        membership: File of the training rows' keyed digests, with their key.
        network: File of w_c, what a network is linearised around.
        actor: Who registers, for the audit log.

    Raises:
        InvalidInputError: A file is malformed, or contradicts the manifest or another file.
    """
    policy.require_consistent(
        manifest,
        settings,
        has_statistics=statistics is not None,
        has_surrogate=surrogate is not None,
    )
    checked = _check(
        manifest,
        weights=weights,
        statistics=statistics,
        holdout=holdout,
        surrogate=surrogate,
        membership=membership,
        network=network,
    )
    model = _store_model(session, store, keys, manifest, checked)
    revision = _store_revision(
        session,
        store,
        model,
        number=0,
        n_samples=manifest.n_samples,
        gradient_norm_bound=checked.gradient_norm_bound,
        weights=tensors.write({"weight": checked.weight}),
        statistics=checked.statistics,
        release=_first_release(keys, model, checked.weight),
        request_id=None,
    )
    evidence.append(
        session,
        "model.registered",
        subject={"model_id": str(model.id)},
        payload={
            "actor": actor,
            "manifest_sha256": sha256_hex(canonical_json(model.manifest)),
            "weights_sha256": served_sha256(revision),
            "network_sha256": model.network_sha256,
            "has_statistics": checked.statistics is not None,
            "has_holdout": checked.holdout is not None,
            "has_surrogate": checked.surrogate is not None,
            "has_membership": checked.membership is not None,
        },
    )
    if manifest.privacy is not None:
        budget.open_account(session, model, manifest.privacy.to_core())
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
    shredding: Shredding,
    deadlines: Deadlines,
    release: bytes | None = None,
) -> Revision:
    """Extend a model's chain by one revision; what it supersedes is shredded, or has a deadline.

    Old weights and new ones together reveal a single forgotten record, and old statistics still
    contain all of them (METHOD §5): what is kept for a replay is never served, and what is served
    not beyond its time.

    Args:
        session: Its commit makes the revision count.
        store: Where the files go.
        model: Whose chain.
        expected_revision: Where the computation began.
        n_samples: Size of the training set now.
        gradient_norm_bound: Bound on the training gradient's norm at the new weights.
        weights: The canonical file of W, without noise.
        statistics: Downdated; None where the model has none.
        request_id: The request that made it.
        shredding: The occasion that the destroyed keys belong to.
        deadlines: Until when what is superseded is kept.
        release: The canonical file of W with noise; given if and only if the model's releases
            have noise.

    Raises:
        ConcurrentUpdateError: The model is at another revision than expected, or not active.
        ValueError: A release is missing, or not called for.
    """
    if (release is not None) != has_noisy_releases(model):
        raise ValueError(f"model {model.id}: a release is given exactly with output perturbation")
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
        release=release,
        request_id=request_id,
    )
    _supersede(session, superseded, shredding, deadlines)
    evidence.append(
        session,
        "model.revision-added",
        subject={"model_id": str(model.id), "request_id": str(request_id)},
        payload={
            "revision": revision.number,
            "n_samples": n_samples,
            "weights_sha256": served_sha256(revision),
            "superseded_weights_sha256": served_sha256(superseded),
            "superseded_weights_served_until": None
            if deadlines.downloads is None
            else deadlines.downloads.isoformat(),
        },
    )
    return revision


def _supersede(
    session: Session, superseded: Revision, shredding: Shredding, deadlines: Deadlines
) -> None:
    def dispose(artifact_id: uuid.UUID, until: datetime.datetime | None) -> None:
        shredding.dispose(repository.get_artifact(session, artifact_id), until)

    superseded.served_until = deadlines.downloads or _database_time(session)
    session.flush()
    if superseded.statistics_artifact_id is not None:
        dispose(superseded.statistics_artifact_id, deadlines.replay)
    if superseded.release_artifact_id is None:
        # One file is what was served and what a replay needs.
        dispose(superseded.weights_artifact_id, deadlines.last)
    else:
        dispose(superseded.release_artifact_id, deadlines.downloads)
        dispose(superseded.weights_artifact_id, deadlines.replay)


def require_retraining(session: Session, model: Model, reason: str) -> None:
    """Take an active model out of service: from now on it takes no deletions.

    Requests that wait for it are refused when their turn comes.
    """
    locked = repository.lock_model(session, model.id)
    if locked is None or locked.state != ModelState.ACTIVE:
        return
    locked.state = ModelState.RETRAINING_REQUIRED
    locked.state_reason = reason
    session.flush()
    outbox.enqueue(
        session,
        WebhookEvent.RETRAINING_REQUIRED,
        {"model_id": str(model.id), "state": str(locked.state)},
    )
    evidence.append(
        session,
        "model.retraining-required",
        subject={"model_id": str(model.id)},
        payload={"reason": reason, "revision": locked.current_revision},
    )


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
    """Return a revision's weights without noise, to compute with: the canonical safetensors bytes.

    They stay in the service: `download_weights` is what gives weights away.

    Raises:
        WeightsPurgedError: They were superseded and shredded.
        ArtifactCorruptError: They are not what was stored.
    """
    return _load_weights(session, store, revision, revision.weights_artifact_id)


def load_release(session: Session, store: ArtifactStore, revision: Revision) -> bytes:
    """Return the file that `served_sha256` is of, with noise where there is any, to compare with.

    It stays in the service, too, and may be kept for longer than it is served.

    Raises:
        WeightsPurgedError: It was superseded and shredded.
        ArtifactCorruptError: It is not what was stored.
    """
    return _load_weights(session, store, revision, repository.served_artifact_id(revision))


def download_weights(
    session: Session, store: ArtifactStore, revision: Revision, *, actor: str
) -> bytes:
    """Return a revision's weights and log who took them.

    Raises:
        WeightsPurgedError: They were superseded, and shredded or kept for a replay only.
        ArtifactCorruptError: They are not what was stored.
    """
    until = revision.served_until
    if until is not None and until <= _database_time(session):
        raise _purged(revision, f"superseded and have not been served since {until.isoformat()}")
    content = load_release(session, store, revision)
    evidence.append(
        session,
        "model.weights-downloaded",
        subject={"model_id": str(revision.model_id)},
        payload={
            "actor": actor,
            "revision": revision.number,
            "weights_sha256": served_sha256(revision),
        },
    )
    return content


def load_statistics(session: Session, store: ArtifactStore, revision: Revision) -> bytes | None:
    """Return a revision's stored statistics, None if it has none.

    Raises:
        ArtifactShreddedError: They were superseded.
        ArtifactCorruptError: They are not what was stored.
    """
    return _load_optional(session, store, revision.statistics_artifact_id)


def load_holdout(session: Session, store: ArtifactStore, model: Model) -> bytes | None:
    """Return a model's canonical holdout samples, None if it has none.

    Raises:
        ArtifactCorruptError: They are not what was stored.
    """
    return _load_optional(session, store, model.holdout_artifact_id)


def load_surrogate(session: Session, store: ArtifactStore, model: Model) -> bytes | None:
    """Return a model's canonical surrogate, {`x`: (n_S, d) float64}; None if it has none.

    Raises:
        ArtifactCorruptError: It is not what was stored.
    """
    return _load_optional(session, store, model.surrogate_artifact_id)


def load_network(session: Session, store: ArtifactStore, model: Model) -> bytes | None:
    """Return the canonical file of what a network is linearised around; None for a linear head.

    Raises:
        ArtifactCorruptError: It is not what was stored.
    """
    return _load_optional(session, store, model.network_artifact_id)


def manifest_of(model: Model) -> Manifest:
    """Return what the owner declared."""
    return Manifest.model_validate(model.manifest)


def declared_distance(manifest: Manifest, revision: Revision) -> float | None:
    """Return the declared distance of the surrogate, as far as it is about this revision.

    It was declared of the training set and the weights at registration: after a deletion both are
    others, so that it can only be estimated.
    """
    return manifest.surrogate_distance if revision.number == 0 else None


def digest_key(keys: MasterKey, model: Model) -> bytes:
    """Return the key of the digests of what this model was trained on and has forgotten."""
    return keys.unwrap(model.wrapped_digest_key, _digest_key_purpose(model))


def noise_key(keys: MasterKey, model: Model, number: int) -> bytes:
    """Return the secret that the noise of one revision's release is derived from.

    One a revision: the difference of two releases with the same noise would be without any.

    Raises:
        ValueError: The model's releases have no noise.
    """
    if model.wrapped_noise_key is None:
        raise ValueError(f"model {model.id}: releases have no noise")
    key = keys.unwrap(model.wrapped_noise_key, _noise_key_purpose(model))
    return hmac.digest(key, b"release/%d" % number, hashlib.sha256)


def has_noisy_releases(model: Model) -> bool:
    """Tell whether what is served is the weights with noise."""
    return model.wrapped_noise_key is not None


def served_sha256(revision: Revision) -> str:
    """Return the digest of the file that is served: the only one of weights that may be told."""
    return revision.release_sha256 or revision.weights_sha256


def statistics_sha256(store: ArtifactStore, model: Model, content: bytes) -> str:
    """Return the digest of statistics, as records state it: keyed wherever noise was declared."""
    return _digest(store, model, content, secret=manifest_of(model).privacy is not None)


def _digest(store: ArtifactStore, model: Model, content: bytes, *, secret: bool) -> str:
    # What noise hides must not be found by hashing a guess.
    if not secret:
        return sha256_hex(content)
    return store.keyed_sha256(content, purpose=f"lethe/secret-digest/{model.id}")


def not_found(model_id: uuid.UUID) -> ModelNotFoundError:
    """Return the error for an id that no model has."""
    return ModelNotFoundError(
        f"no model {model_id}", field="model_id", remedy="GET /v1/models lists them."
    )


def _check(
    manifest: Manifest,
    *,
    weights: bytes,
    statistics: bytes | None,
    holdout: bytes | None,
    surrogate: bytes | None,
    membership: bytes | None,
    network: bytes | None,
) -> _Checked:
    """Read every file, and hold them against the manifest and each other."""
    centre = networks.read(network, manifest)
    networks.require_digests(manifest, network=network, weights=weights)
    weight = checks.read_weights(weights, manifest)
    checks.require_room_for_noise(weight, manifest)
    gradient_norm, stored = manifest.training_gradient_norm, None
    if statistics is not None:
        view = checks.row_view(manifest)
        read = checks.read_statistics(statistics, view)
        gradient_norm, stored = read.training_gradient_norm(weight, view), read.to_bytes()
    held_out = stand_in = multiset = None
    if holdout is not None:
        held_out = samples.to_bytes(samples.from_file(holdout, manifest, field="holdout"))
    if surrogate is not None:
        stand_in = tensors.write({"x": samples.read_surrogate(surrogate, manifest)})
    if membership is not None:
        multiset = multisets.read(membership, manifest)
    return _Checked(weight, gradient_norm, stored, held_out, stand_in, multiset, centre)


def _store_model(
    session: Session, store: ArtifactStore, keys: MasterKey, manifest: Manifest, checked: _Checked
) -> Model:
    def put(kind: ArtifactKind, content: bytes | None) -> uuid.UUID | None:
        return None if content is None else store.put(session, kind, content).id

    model = Model(
        id=new_id(),
        name=manifest.name,
        state=ModelState.ACTIVE,
        manifest=manifest.model_dump(mode="json"),
        current_revision=0,
        has_membership=False,
        holdout_artifact_id=put(ArtifactKind.HOLDOUT, checked.holdout),
        surrogate_artifact_id=put(ArtifactKind.SURROGATE, checked.surrogate),
        network_artifact_id=put(ArtifactKind.NETWORK, checked.network),
        network_sha256=None if checked.network is None else sha256_hex(checked.network),
    )
    given = checked.membership
    digest_key = os.urandom(KEY_BYTES) if given is None else given.key
    model.wrapped_digest_key = keys.wrap(digest_key, _digest_key_purpose(model))
    privacy = manifest.privacy
    if privacy is not None and privacy.mechanism is Mechanism.OUTPUT:
        model.wrapped_noise_key = keys.wrap(os.urandom(KEY_BYTES), _noise_key_purpose(model))
    session.add(model)
    session.flush()
    if given is not None:
        multisets.store(session, model, given)
    return model


def _first_release(keys: MasterKey, model: Model, weight: Array) -> bytes | None:
    privacy = manifest_of(model).privacy
    if privacy is None or not has_noisy_releases(model):
        return None
    noisy = noise.perturbed(weight, privacy.sigma, noise_key(keys, model, 0))
    return tensors.write({"weight": noisy})


def _load_optional(
    session: Session, store: ArtifactStore, artifact_id: uuid.UUID | None
) -> bytes | None:
    if artifact_id is None:
        return None
    return store.get(repository.get_artifact(session, artifact_id))


def _load_weights(
    session: Session, store: ArtifactStore, revision: Revision, artifact_id: uuid.UUID
) -> bytes:
    try:
        return store.get(repository.get_artifact(session, artifact_id))
    except ArtifactShreddedError as error:
        raise _purged(revision, "superseded and shredded") from error


def _purged(revision: Revision, finding: str) -> WeightsPurgedError:
    return WeightsPurgedError(
        f"the weights of revision {revision.number} were {finding}",
        field="number",
        remedy="Download the current revision; SUPERSEDED_WEIGHTS_DAYS serves later ones longer.",
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
    release: bytes | None,
    request_id: uuid.UUID | None,
) -> Revision:
    revision = Revision(
        model_id=model.id,
        number=number,
        n_samples=n_samples,
        gradient_norm_bound=gradient_norm_bound,
        weights_artifact_id=store.put(session, ArtifactKind.WEIGHTS, weights).id,
        weights_sha256=_digest(store, model, weights, secret=release is not None),
        request_id=request_id,
    )
    if statistics is not None:
        revision.statistics_artifact_id = store.put(session, ArtifactKind.STATISTICS, statistics).id
        revision.statistics_sha256 = statistics_sha256(store, model, statistics)
    if release is not None:
        revision.release_artifact_id = store.put(session, ArtifactKind.RELEASE, release).id
        revision.release_sha256 = sha256_hex(release)
    session.add(revision)
    session.flush()
    return revision


def _database_time(session: Session) -> datetime.datetime:
    # Not now(), which is when the transaction began: it may have waited for a lock since.
    time: datetime.datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return time


def _digest_key_purpose(model: Model) -> str:
    return f"lethe/model-digest/{model.id}"


def _noise_key_purpose(model: Model) -> str:
    return f"lethe/model-noise/{model.id}"
