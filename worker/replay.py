"""Runs a completed deletion again, and compares what comes out with what was signed about it.

Inputs are what the service kept for this (REPLAY_DAYS), or samples that the client sends again. The
measure is the signed record; what the tables say is itself held against it.
"""

import enum
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from sqlalchemy.orm import Session
from torch import Tensor

from app.errors import (
    ArtifactCorruptError,
    ArtifactShreddedError,
    RecordNotFoundError,
    WeightsPurgedError,
)
from app.evidence import service as evidence
from app.evidence.canonical import canonical_json, sha256_hex
from app.evidence.formats import SignedEnvelope
from app.evidence.keys import keyring
from app.evidence.keys.trust import TrustedKeys
from app.evidence.records.statements import (
    RECORD_TYPES,
    RecordStatement,
    read_document,
    read_signed_record,
)
from app.registry import samples as sample_files
from app.registry import service as registry
from app.registry.models import Model, Revision
from app.registry.samples import Samples
from app.services import Services
from app.unlearning import digests as keyed_digests
from app.unlearning import repository as unlearning_repository
from app.unlearning import service as unlearning
from app.unlearning.models import RequestState, UnlearningRequest
from core import noise
from core.device import choose
from core.errors import CoreError
from core.pipeline import ignore_progress
from core.results import Refused, Unlearned
from core.serialization import dump_statistics, dump_weights, load_weights
from worker import loading, records
from worker.environment import CPU, describe_environment
from worker.loading import Computation

REPLAYED = "request.replayed"

# Largest relative Frobenius distance that counts as the same result on another kind of device, with
# another number of threads or with other libraries.
TOLERANCE = 1e-6
# And largest share of the deletion's own step: a tolerance that the weights before the deletion
# would pass too is none.
SHARE_OF_STEP = 1e-2

# What may change the last bits of the very same computation; the other fields of the environment
# are the code's, and other code is another computation.
_ARITHMETIC = ("device", "threads", "cpu_capability", "libraries")


class Outcome(enum.StrEnum):
    """What a replay found."""

    IDENTICAL = "identical"  # to the last bit
    WITHIN_TOLERANCE = "within-tolerance"
    DIFFERENT = "different"
    CANNOT = "cannot-be-replayed"


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay found, for people and for the log.

    Attributes:
        request_id: Whose deletion.
        outcome: The finding.
        findings: What it rests on, in sentences that quote no data.
        environment: How what computed now differs from what the record names; nothing is left out.
        distance: Relative Frobenius distance of the weights without noise from those that are
            stored; None where that was not measured.
    """

    request_id: uuid.UUID
    outcome: Outcome
    findings: tuple[str, ...]
    environment: tuple[str, ...] = ()
    distance: float | None = None


class _CannotReplayError(Exception):
    """There is nothing to compute from, or nothing to compare with; the message says what."""


@dataclass(slots=True)
class _Case:
    """Everything about one deletion: what was signed, what is stored, and what was found so far."""

    services: Services
    request: UnlearningRequest
    model: Model
    before: Revision
    after: Revision
    signed: Any  # a record statement of any version, about new weights
    findings: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)

    @property
    def noisy(self) -> bool:
        """Whether what was delivered has noise on it."""
        return registry.has_noisy_releases(self.model)


def replay(
    services: Services,
    request_id: uuid.UUID,
    *,
    samples: bytes | None = None,
    threads: int | None = None,
) -> Replay:
    """Run a completed request's computation again and log what came of it.

    Args:
        services: The worker's, of the same database and keys.
        request_id: Which request.
        samples: The forget samples as the client sends them again, safetensors; those that the
            service kept if None.
        threads: Compute with so many threads instead of as many as the record names.

    Returns:
        What was found: `identical` only for the very same bits, `within-tolerance` only where
        what computes differs from the record in a way that changes last bits.

    Raises:
        RequestNotFoundError: No such request.
        InvalidInputError: The samples are malformed, or no samples of this model.
    """
    with services.sessions() as session:
        request = unlearning.get(session, request_id)
    try:
        found = _replay(services, request, samples, threads)
    except _CannotReplayError as reason:
        found = Replay(request_id, Outcome.CANNOT, (str(reason),))
    with services.sessions.begin() as session:
        evidence.append(
            session,
            REPLAYED,
            subject={"model_id": str(request.model_id), "request_id": str(request_id)},
            payload={
                "outcome": found.outcome,
                "samples": "kept" if samples is None else "sent-again",
                "findings": list(found.findings),
                "environment": list(found.environment),
                "distance": found.distance,
            },
        )
    return found


def _replay(
    services: Services, request: UnlearningRequest, samples: bytes | None, threads: int | None
) -> Replay:
    with services.sessions() as session:
        case = _open(session, services, request)
        forget = _forget_samples(session, case, samples)
        _hold_against_the_record(session, case)
        computation = _assemble(session, case, forget)
    # Without a transaction that would stay open for as long as it takes.
    recorded = case.signed.environment
    with _threads(threads or getattr(recorded, "threads", None)):
        result = _compute(case, computation)
        environment = _differences(recorded.model_dump(mode="json"), computation.device_name)
    with services.sessions() as session:
        return _judge(session, case, computation, result, environment)


def _assemble(session: Session, case: _Case, forget: Samples) -> Computation:
    """Read what the deletion was computed from, to the kind of device that computed it."""
    services = case.services
    device = choose("cpu" if case.signed.environment.device == CPU else services.settings.device)
    try:
        return loading.assemble(session, services, case.request, case.before, forget, device=device)
    except (WeightsPurgedError, ArtifactShreddedError, ArtifactCorruptError) as error:
        raise _CannotReplayError(
            f"What the deletion was computed from is gone: {error.detail}. REPLAY_DAYS keeps it "
            "for later requests."
        ) from error


def _compute(case: _Case, computation: Computation) -> Unlearned | None:
    """Run it; what stops it now did not stop it then, which is a finding."""
    try:
        result = computation.run(ignore_progress)
    except CoreError as error:
        # By its class alone: a message may quote data.
        case.contradictions.append(f"The computation breaks off now: {type(error).__name__}.")
        return None
    if isinstance(result, Refused):
        case.contradictions.append(f"The computation refuses now: {result.cause}.")
        return None
    return result


# --- What is there -----------------------------------------------------------------------------


def _open(session: Session, services: Services, request: UnlearningRequest) -> _Case:
    if request.state != RequestState.COMPLETED:
        raise _CannotReplayError(
            f"The request is {request.state}; only a completed one has weights to compare."
        )
    signed, key_id = _signed_record(session, request)
    model = registry.get(session, request.model_id)
    case = _Case(
        services,
        request,
        model,
        registry.get_revision(session, model, signed.revision_before.number),
        registry.get_revision(session, model, signed.revision_after.number),
        signed,
    )
    if key_id != services.signer.key_id:
        case.findings.append(
            f"The record is signed with key {key_id[:16]}, a former key of this service by what "
            "the database says; `lethe verify` checks it with keys of your own."
        )
    return case


def _signed_record(session: Session, request: UnlearningRequest) -> tuple[Any, str]:
    """Return the request's record and the id of its key, once its signature was verified."""
    try:
        record = evidence.find_record(session, request.id)
    except RecordNotFoundError as error:
        raise _CannotReplayError("The request has no signed record to compare with.") from error
    envelope = read_document(SignedEnvelope, record.envelope)
    try:
        key = TrustedKeys.of(keyring.key_list(session)).of_record(envelope.signatures[0].keyid)
        key.verifier().open(envelope, *RECORD_TYPES)
    except ValueError as error:
        raise _CannotReplayError(f"The record does not verify: {error}.") from error
    if key.compromised:
        raise _CannotReplayError(
            f"The record is signed with key {key.id[:16]}, which was published as compromised: "
            "verify it first, with a checkpoint that was kept from before."
        )
    statement: RecordStatement
    statement, _ = read_signed_record(envelope)
    if statement.request.id != request.id or not hasattr(statement, "revision_after"):
        raise _CannotReplayError("The signed record is not one about this request's new weights.")
    return statement, key.id


def _forget_samples(session: Session, case: _Case, content: bytes | None) -> Samples:
    request, model = case.request, case.model
    if content is None:
        try:
            found = unlearning.load_samples(session, case.services.store, request)
        except ArtifactShreddedError as error:
            raise _CannotReplayError(
                f"The forget samples are gone: {error.detail}. Whoever has them can send them "
                "again, with --samples."
            ) from error
        except ArtifactCorruptError as error:
            raise _CannotReplayError(f"The forget samples are damaged: {error.detail}.") from error
    else:
        found = sample_files.from_file(content, registry.manifest_of(model), field="samples")
    _require_the_same(session, case, found)
    if content is not None:
        case.findings.append(
            "The samples were sent again, and each has the keyed digest of one that this request "
            "forgot; their order, which the last bits depend on, cannot be checked."
        )
    return found


def _require_the_same(session: Session, case: _Case, found: Samples) -> None:
    """Refuse samples that are not those of the request, by the digests that outlived them."""
    request, model = case.request, case.model
    digests = keyed_digests.of_each(found, registry.digest_key(case.services.keys, model))
    forgotten = unlearning_repository.forgotten(session, model.id, digests)
    own = unlearning_repository.forgotten_by(session, request)
    strangers = sum(digest not in forgotten for digest in digests)
    missing = len(own - set(digests))
    if strangers or missing or len(digests) != case.signed.request.n_forget:
        raise _CannotReplayError(
            "These are not the samples that the request forgot. The key of their commitment was "
            "destroyed with its end, so they are compared by the model's keyed digests: of "
            f"{len(digests)} samples {strangers} were never forgotten, {missing} of the request's "
            f"own are missing, and the record names {case.signed.request.n_forget}."
        )


def _hold_against_the_record(session: Session, case: _Case) -> None:
    """Note where the database contradicts what was signed."""
    signed, request, model, store = case.signed, case.request, case.model, case.services.store
    stated = signed.parameters.model_dump(mode="json")
    options = records.describe_parameters(request, registry.manifest_of(model))
    pairs: dict[str, tuple[object, object]] = {
        "the model's manifest": (
            signed.model.manifest_sha256,
            sha256_hex(canonical_json(model.manifest)),
        ),
        # Of an older version's parameters only what it knew.
        "the request's parameters": (stated, _restricted(options.model_dump(mode="json"), stated)),
        "the method": (str(signed.method), request.method),
        "the samples' commitment": (signed.request.sample_commitment, request.sample_commitment),
    }
    revisions = (
        ("old", signed.revision_before, case.before),
        ("new", signed.revision_after, case.after),
    )
    for age, said, row in revisions:
        pairs |= {
            f"the {age} revision's size": (said.n_samples, row.n_samples),
            f"the digest of the {age} weights": (said.weights_sha256, registry.served_sha256(row)),
            f"the digest of the {age} statistics": (said.statistics_sha256, row.statistics_sha256),
        }
    case.contradictions += [
        f"The database contradicts the signed record about {name}."
        for name, (said, stored) in pairs.items()
        if said != stored
    ]
    for age, said, row in revisions:
        weights = _stored(case, f"{age} weights", registry.load_release, session, row)
        if weights is not None and sha256_hex(weights) != said.weights_sha256:
            case.contradictions.append(f"The {age} weights stored now are not the record's.")
        statistics = _stored(case, f"{age} statistics", registry.load_statistics, session, row)
        if statistics is not None and (
            registry.statistics_sha256(store, model, statistics) != said.statistics_sha256
        ):
            case.contradictions.append(f"The {age} statistics stored now are not the record's.")


def _stored(
    case: _Case, name: str, load: Any, session: Session, revision: Revision
) -> bytes | None:
    """Return a stored file; None where it was destroyed, or is damaged, which is a finding."""
    try:
        content: bytes | None = load(session, case.services.store, revision)
    except (WeightsPurgedError, ArtifactShreddedError):
        return None
    except ArtifactCorruptError:
        case.contradictions.append(f"The {name} stored now are damaged.")
        return None
    return content


def _restricted(value: Any, pattern: Any) -> Any:
    """Return `value` with the keys of `pattern` alone, at every depth."""
    if isinstance(value, dict) and isinstance(pattern, dict):
        return {key: _restricted(value.get(key), pattern[key]) for key in pattern}
    return value


# --- What came out -----------------------------------------------------------------------------


def _judge(
    session: Session,
    case: _Case,
    computation: Computation,
    result: Unlearned | None,
    environment: dict[str, str],
) -> Replay:
    def found(outcome: Outcome, distance: float | None = None) -> Replay:
        findings = (*case.contradictions, *case.findings)
        return Replay(case.request.id, outcome, findings, tuple(environment.values()), distance)

    if result is None:
        return found(Outcome.DIFFERENT)
    same = _is_identical(case, result)
    if case.contradictions:
        return found(Outcome.DIFFERENT)
    if same:
        return found(Outcome.IDENTICAL)
    arithmetic = environment.keys() & set(_ARITHMETIC)
    measured = _measure(session, case, computation, result)
    if measured is None:
        case.findings.append(
            "There is nothing left to measure the distance to: the new weights or statistics were "
            "superseded and destroyed, or cannot be told from others under their noise."
        )
        # Where the bits should be the same, that they are not is the finding.
        return found(Outcome.CANNOT if arithmetic else Outcome.DIFFERENT)
    distance, within = measured
    case.findings.append(f"The weights differ from those stored by {distance:.3g} of their norm.")
    if arithmetic and within:
        case.findings.append(
            f"At most {TOLERANCE:g} of their norm, and {SHARE_OF_STEP:g} of the deletion's step, "
            "count as the same computation."
        )
        return found(Outcome.WITHIN_TOLERANCE, distance)
    if not arithmetic:
        case.findings.append(
            "The record names the same device, threads and libraries: the bits should be the same."
        )
    return found(Outcome.DIFFERENT, distance)


def _is_identical(case: _Case, result: Unlearned) -> bool:
    """Compare digests with the record's, and note what each comparison says."""
    signed, store = case.signed.revision_after, case.services.store
    weights = dump_weights(result.release if case.noisy else result.weights)
    statistics = None
    if result.statistics is not None:
        content = dump_statistics(result.statistics)
        statistics = registry.statistics_sha256(store, case.model, content)
    seeds = {name: str(seed) for name, seed in result.seeds.items()}
    if seeds != {name: str(seed) for name, seed in case.signed.seeds.items()}:
        case.contradictions.append("The seeds are not those of the record.")
    same = {
        "weights": sha256_hex(weights) == signed.weights_sha256,
        "statistics": statistics == signed.statistics_sha256,
    }
    for name, equal in same.items():
        compared = name == "weights" or signed.statistics_sha256 is not None
        if compared:
            case.findings.append(
                f"The {name} that were computed now have "
                f"{'the' if equal else 'another'} SHA-256 {'of' if equal else 'than'} the record."
            )
    return all(same.values())


def _measure(
    session: Session, case: _Case, computation: Computation, result: Unlearned
) -> tuple[float, bool] | None:
    """Return how far the weights are from those stored, and whether all is within tolerance.

    None where what is stored is gone, or is not known to be what the record names.
    """
    new = _stored(case, "new weights", registry.load_weights, session, case.after)
    old = _stored(case, "old weights", registry.load_weights, session, case.before)
    if new is None or old is None or not _belongs_to_the_record(case, computation, new):
        return None
    stored, step_from = load_weights(new), load_weights(old)
    apart = _norm(result.weights.cpu() - stored)
    size, step = _norm(stored), _norm(stored - step_from)
    within = apart <= TOLERANCE * size and apart <= SHARE_OF_STEP * step
    distance = apart / size if size else apart
    if case.signed.revision_after.statistics_sha256 is not None:
        kept = _stored(case, "new statistics", registry.load_statistics, session, case.after)
        if kept is None or result.statistics is None:
            return None
        within &= _statistics_agree(dump_statistics(result.statistics), kept)
    return distance, within


def _belongs_to_the_record(case: _Case, computation: Computation, weights: bytes) -> bool:
    """Whether stored weights are what the record's digest is of, with their noise if there is any.

    Noise cannot be compared within a tolerance: other last bits of the weights draw other noise.
    """
    named: str = case.signed.revision_after.weights_sha256
    privacy = computation.manifest.privacy
    if not case.noisy or privacy is None or computation.noise_key is None:
        return sha256_hex(weights) == named
    noisy = noise.perturbed(load_weights(weights).numpy(), privacy.sigma, computation.noise_key)
    return sha256_hex(dump_weights(torch.from_numpy(noisy))) == named


def _statistics_agree(computed: bytes, stored: bytes) -> bool:
    """Whether all tensors together are within the tolerance, and every count is the same."""
    one, other = safetensors.torch.load(computed), safetensors.torch.load(stored)
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return False
    whole = [name for name in one if not one[name].is_floating_point()]
    if not all(torch.equal(one[name], other[name]) for name in whole):
        return False
    real = sorted(one.keys() - set(whole))
    apart = _norm(torch.cat([(one[name] - other[name]).flatten().double() for name in real]))
    size = _norm(torch.cat([other[name].flatten().double() for name in real]))
    return apart <= TOLERANCE * size


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))


# --- What computes -----------------------------------------------------------------------------


def _differences(recorded: dict[str, Any], device: str) -> dict[str, str]:
    """Return how what computes now differs from the record, by field, each in a sentence."""
    now = describe_environment(device).model_dump(mode="json")
    found = {}
    for name, value in now.items():
        if name not in recorded:
            # Records of earlier versions do not say it.
            found[name] = f"{name} of the record is not known (here {value})."
        elif name == "libraries":
            changed = [
                f"{library} {recorded[name].get(library, 'absent')} (here {version})"
                for library, version in value.items()
                if recorded[name].get(library) != version
            ]
            if changed or recorded[name].keys() - value.keys():
                found[name] = f"libraries of the record: {', '.join(changed) or 'more than here'}."
        elif recorded[name] != value:
            found[name] = f"{name} of the record is {recorded[name]} (here {value})."
    return found


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Compute with so many threads, if the number is known."""
    before = torch.get_num_threads()
    if number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
