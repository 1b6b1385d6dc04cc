"""From a computation's result to what is stored and signed about it.

Free of torch: the sweeper, which lives in a process without it, signs failures too.
"""

import dataclasses
import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import structlog
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.artifacts.keys import MasterKeyError
from app.db import new_id
from app.errors import AppError
from app.evidence import service as evidence
from app.evidence.canonical import canonical_json, sha256_hex
from app.evidence.models import EvidenceRecord, RecordKind
from app.evidence.records.schemas import (
    CERTIFICATE_VERDICTS,
    CONDITIONAL_VERDICT,
    KEPT_LIMIT,
    NO_NOISE_LIMIT,
    STANDARD_EXCLUSIONS,
    STANDARD_LIMITS,
    UNDECLARED_VERDICT,
    AssumptionStatement,
    BoundStatement,
    CertificateStatement,
    ConditionalStatement,
    Disposal,
    EstimateStatement,
    FailureStatement,
    GatePolicyStatement,
    GateStatement,
    LegalGround,
    LineageStatement,
    MetricsStatement,
    ModelStatement,
    ParametersStatement,
    PerturbationStatement,
    PriorStatement,
    PrivacyStatement,
    RefusalStatement,
    RequestStatement,
    RevisionStatement,
    SampleDisposal,
    ScopeStatement,
    SolverStatement,
    SurrogateStatement,
    TimesStatement,
)
from app.evidence.records.statements import statement_sha256
from app.registry import service as registry
from app.registry.models import Model, Revision
from app.registry.schemas import Manifest
from app.services import Services
from app.unlearning.models import UnlearningRequest
from core.errors import CoreError
from core.vocabulary import Method, Prior, Standing, Tier, tier_of
from worker.environment import CPU, describe_environment
from worker.options import options_of

if TYPE_CHECKING:  # core.results imports torch
    from core import results as core_results
    from core.results import GateResult, Refused, SolverReport, Unlearned

logger = structlog.get_logger(__name__)

UNEXPECTED_ERROR = "unexpected-error"

CERTIFIED_TIERS = frozenset({Tier.EXACT, Tier.CERTIFIED})

AnchorFate = Literal["moved", "kept_as_secret", "none"]
WeightsFate = Literal["key_destroyed", "kept_by_policy", "kept_for_replay"]


@dataclass(frozen=True, slots=True)
class Retention:
    """What a completed request did not destroy.

    Attributes:
        weights: What became of the superseded weights; kept for a replay, also those before noise.
        statistics: Whether the superseded statistics were kept, if there were any.
        samples: Whether the forget samples were kept.
        until: When the last of it is due to be destroyed; None where nothing was kept.
    """

    weights: WeightsFate = "key_destroyed"
    statistics: bool = False
    samples: bool = False
    until: datetime.datetime | None = None


LIMITS = (
    *STANDARD_LIMITS,
    "Scores and losses describe the weights; they are no evidence that anything was forgotten.",
)
CENTRE_EXCLUSION = (
    "the centre of the linearisation, w_c, and everything below the linearised layers"
)
PRIVACY_LIMIT = (
    "The (ε, δ) guarantee is of the weights that were released: it does not cover the figures in "
    "this record."
)


def describe_result(
    unlearned: "Unlearned", after: Revision, membership: Standing, seconds: float
) -> dict[str, Any]:
    """Return the figures of a completed request, as the API shows them."""
    return {
        "tier": str(unlearned.tier),
        "method": str(unlearned.method),
        "n_samples": unlearned.n_samples,
        # The number to look at: METHOD (5), a bound on the gradient that is left.
        "residual_bound": _finite(unlearned.gradient_norm_bound),
        "weights_sha256": registry.served_sha256(after),
        "membership": str(membership),
        "privacy": None if unlearned.privacy is None else _dump(_privacy(unlearned.privacy)),
        "bounds": [_dump(BoundStatement.model_validate(bound)) for bound in unlearned.bounds],
        "gates": [_dump(_gate(gate)) for gate in unlearned.gates],
        "solvers": [_dump(_solver(report)) for report in unlearned.solvers],
        "metrics": _dump(MetricsStatement.model_validate(unlearned.metrics)),
        "seeds": dict(unlearned.seeds),
        "seconds": seconds,
    }


def describe_refusal(refused: "Refused") -> dict[str, Any]:
    """Return why a request was refused, as the API shows it."""
    return {
        "cause": str(refused.cause),
        "detail": refused.detail,
        "remedy": refused.remedy,
        "gates": [_dump(_gate(gate)) for gate in refused.gates],
    }


def describe_failure(error: BaseException) -> dict[str, Any]:
    """Return what a client may know of an unexpected error: nothing that could quote a sample.

    The project's own errors are told by their class and its meaning. The message, of those and of
    any other, goes to the log of the worker only.
    """
    kind = type(error)
    meaning = "its message is in the worker's log only, since it might quote data"
    if isinstance(error, CoreError | AppError | MasterKeyError) and kind.__doc__:
        meaning = " ".join(kind.__doc__.partition("\n\n")[0].split())
    return {"cause": UNEXPECTED_ERROR, "detail": f"{kind.__qualname__}: {meaning}"}


def issue_completion(
    session: Session,
    services: Services,
    request: UnlearningRequest,
    unlearned: "Unlearned",
    *,
    before: Revision,
    after: Revision,
    anchor: AnchorFate,
    device: str,
    retention: Retention,
) -> EvidenceRecord:
    """Sign what was done, in the kind of record that its tier allows."""
    model = registry.get(session, request.model_id)
    disposal = _disposal(before, after, anchor, retention)
    common = _common(session, request, model, before, after, device=device) | {
        "tier": unlearned.tier,
        "method": unlearned.method,
        "seeds": dict(unlearned.seeds),
        "revision_after": _revision(after),
        "assumptions": tuple(map(AssumptionStatement.model_validate, unlearned.assumptions)),
        "solvers": tuple(map(_solver, unlearned.solvers)),
        "bounds": tuple(map(BoundStatement.model_validate, unlearned.bounds)),
        "gates": tuple(map(_gate, unlearned.gates)),
        "metrics": MetricsStatement.model_validate(unlearned.metrics),
        "disposal": disposal,
    }
    if disposal.keeps_something:
        common["limits"] += (KEPT_LIMIT,)
    kind, statement = _completed(session, services, unlearned, before, common)
    return _issue(session, services, kind, request, statement)


def _completed(
    session: Session,
    services: Services,
    unlearned: "Unlearned",
    before: Revision,
    common: dict[str, Any],
) -> tuple[RecordKind, BaseModel]:
    if unlearned.tier in CERTIFIED_TIERS:
        privacy = unlearned.privacy
        mechanism = None if privacy is None else privacy.mechanism
        unguarded = unlearned.tier is Tier.CERTIFIED and privacy is None
        if unguarded:
            common["limits"] += (NO_NOISE_LIMIT,)
        certificate = CertificateStatement(
            **common,
            verdict=CERTIFICATE_VERDICTS[unlearned.tier, mechanism],
            privacy=None if privacy is None else _privacy(privacy),
        )
        return RecordKind.CERTIFICATE, certificate
    if unlearned.tier is Tier.SURROGATE:
        surrogate = _surrogate(session, services, before)
        declared = surrogate.declared_distance is not None
        conditional = ConditionalStatement(
            **common,
            verdict=CONDITIONAL_VERDICT if declared else UNDECLARED_VERDICT,
            surrogate=surrogate,
        )
        return RecordKind.CONDITIONAL, conditional
    return RecordKind.ESTIMATE, EstimateStatement(**common)


def _privacy(privacy: "core_results.PrivacyStatement") -> PrivacyStatement:
    return PrivacyStatement(
        mechanism=privacy.mechanism,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sigma=privacy.sigma,
        measure=privacy.measure,
        limit=privacy.limit,
        spent=privacy.spent,
        left=privacy.limit - privacy.spent,
        assumptions=tuple(map(AssumptionStatement.model_validate, privacy.assumptions)),
    )


def _surrogate(session: Session, services: Services, before: Revision) -> SurrogateStatement:
    model = registry.get(session, before.model_id)
    stored = registry.load_surrogate(session, services.store, model)
    manifest = registry.manifest_of(model)
    return SurrogateStatement(
        features_sha256=sha256_hex(stored or b""),
        declared_distance=registry.declared_distance(manifest, before),
    )


def _disposal(
    before: Revision, after: Revision, anchor: AnchorFate, retention: Retention
) -> Disposal:
    statistics: Literal["key_destroyed", "none_stored", "kept_for_replay"] = "none_stored"
    if before.statistics_sha256 is not None:
        statistics = "kept_for_replay" if retention.statistics else "key_destroyed"
    return Disposal(
        forget_samples="kept_for_replay" if retention.samples else "key_destroyed",
        superseded_weights=retention.weights,
        superseded_statistics=statistics,
        superseded_anchor=anchor,
        release_noise="none" if after.release_sha256 is None else "never_recorded",
        kept_until=retention.until,
    )


def issue_refusal(
    session: Session, services: Services, request: UnlearningRequest, refused: "Refused"
) -> EvidenceRecord:
    """Sign that a gate failed, and that nothing was changed."""
    statement = RefusalStatement(
        **_unchanged(session, request),
        tier=None,
        gates=tuple(map(_gate, refused.gates)),
        seeds=dict(refused.seeds),
        cause=refused.cause,
        detail=refused.detail,
        remedy=refused.remedy,
    )
    return _issue(session, services, RecordKind.REFUSAL, request, statement)


def issue_failure(
    session: Session, services: Services, request: UnlearningRequest, failure: Mapping[str, Any]
) -> EvidenceRecord:
    """Sign that something broke, and that nothing was changed."""
    statement = FailureStatement(
        **_unchanged(session, request),
        tier=None,
        gates=(),
        seeds={},
        cause=failure["cause"],
        detail=failure["detail"],
    )
    return _issue(session, services, RecordKind.FAILURE, request, statement)


def issue_failure_if_possible(
    session: Session, services: Services, request: UnlearningRequest, failure: Mapping[str, Any]
) -> None:
    """Sign a failure; a request that no record can be made about ends without one.

    Else it would be tried, and block its model, for ever. The log's entry on its end remains.
    """
    try:
        with session.begin_nested():
            issue_failure(session, services, request, failure)
    except OperationalError:
        raise  # The database is away, and the request as it was.
    except Exception:
        logger.exception("record.not_issued", request_id=str(request.id))


def _issue(
    session: Session,
    services: Services,
    kind: RecordKind,
    request: UnlearningRequest,
    statement: BaseModel,
) -> EvidenceRecord:
    return evidence.issue_record(
        session,
        services.signer,
        kind=kind,
        request=request,
        statement=_dump(statement),
    )


def _unchanged(session: Session, request: UnlearningRequest) -> dict[str, Any]:
    """Return what a record without new weights says in any case."""
    model = registry.get(session, request.model_id)
    revision = registry.current_revision(session, model)
    return {
        **_common(session, request, model, revision, revision),
        "method": Method(request.method),
        "disposal": SampleDisposal(forget_samples="key_destroyed"),
    }


def _common(
    session: Session,
    request: UnlearningRequest,
    model: Model,
    before: Revision,
    valid: Revision,
    *,
    device: str = CPU,
) -> dict[str, Any]:
    """Return what every record says; `valid` is the revision that is in force from now on."""
    manifest = registry.manifest_of(model)
    return {
        "id": new_id(),
        "request": RequestStatement(
            id=request.id,
            n_forget=request.sample_count,
            sample_commitment=request.sample_commitment,
            legal_ground=_legal_ground(request),
        ),
        "lineage": _lineage(session, model, before),
        "model": ModelStatement(
            id=model.id,
            name=model.name,
            manifest_sha256=sha256_hex(canonical_json(model.manifest)),
            task=manifest.task,
            loss=manifest.loss,
        ),
        "revision_before": _revision(before),
        "parameters": describe_parameters(request, manifest),
        "environment": describe_environment(device),
        "scope": _scope(model, manifest, valid),
        # Of refusals, too: a figure that was held against the budget is one without noise.
        "limits": LIMITS if manifest.privacy is None else (*LIMITS, PRIVACY_LIMIT),
        "times": TimesStatement(
            received=request.created_at,
            # A request whose every worker fell silent at once may not even have begun.
            started=request.started_at or request.created_at,
            finished=_database_time(session),
        ),
    }


def _legal_ground(request: UnlearningRequest) -> LegalGround | None:
    return None if request.legal_ground is None else LegalGround(request.legal_ground)


def _lineage(session: Session, model: Model, before: Revision) -> LineageStatement:
    """Return where the old revision comes from: the first weights, and the record it came with."""
    deletions = select(func.count()).where(
        Revision.model_id == model.id,
        Revision.number <= before.number,
        Revision.request_id.is_not(None),
    )
    previous = None
    if before.request_id is not None:
        previous = statement_sha256(evidence.find_record(session, before.request_id).envelope)
    return LineageStatement(
        registered_weights_sha256=registry.served_sha256(registry.get_revision(session, model, 0)),
        deletions=session.execute(deletions).scalar_one(),
        previous_statement_sha256=previous,
    )


def _scope(model: Model, manifest: Manifest, valid: Revision) -> ScopeStatement:
    """Return which weights a record is about, and what it leaves out."""
    network = manifest.network
    weights = f"{manifest.num_features} × {manifest.num_outputs} weights of the linear head"
    excluded: tuple[str, ...] = STANDARD_EXCLUSIONS
    if network is not None:
        layers = "layer" if network.layers == 1 else f"{network.layers} layers"
        weights = (
            f"{manifest.num_features:,} parameters of the last {layers} of {network.architecture}, "
            f"linearised around the network with the SHA-256 {model.network_sha256}"
        )
        excluded += (CENTRE_EXCLUSION,)
    return ScopeStatement(
        covered=f"the {weights}, revision {valid.number}",
        backbone=manifest.backbone.provenance.value,
        not_covered=excluded,
    )


def describe_parameters(request: UnlearningRequest, manifest: Manifest) -> ParametersStatement:
    """Return what steers a request's computation, as its record states it."""
    options = options_of(request)
    gate = GatePolicyStatement(**dataclasses.asdict(options.gate))
    anchored = tier_of(options.method, manifest.loss) is Tier.CERTIFIED
    anchor = options.anchor if anchored else None
    if options.method is not Method.PAPER_SDP:
        return ParametersStatement(
            gate=gate, perturbation=None, floor=None, solver=None, prior=None, anchor=anchor
        )
    perturbation = PerturbationStatement(
        law=options.perturbation.law,
        count=options.perturbation.equations(manifest.num_features),
        scale=options.perturbation.scale,
    )
    prior = PriorStatement(kind=options.prior.kind, weight=options.prior.weight)
    return ParametersStatement(
        gate=gate,
        perturbation=perturbation,
        floor=options.floor,
        solver=options.solver,
        prior=None if prior.kind is Prior.NONE else prior,
        anchor=anchor,
    )


def _revision(revision: Revision) -> RevisionStatement:
    return RevisionStatement(
        number=revision.number,
        n_samples=revision.n_samples,
        weights_sha256=registry.served_sha256(revision),
        delivered="weights" if revision.release_sha256 is None else "weights_with_noise",
        statistics_sha256=revision.statistics_sha256,
    )


def _gate(gate: "GateResult") -> GateStatement:
    # JSON has no infinity; the words of `detail` keep what the number loses.
    return GateStatement(
        name=gate.name,
        passed=gate.passed,
        value=_finite(gate.value),
        threshold=_finite(gate.threshold),
        detail=gate.detail,
    )


def _solver(report: "SolverReport") -> SolverStatement:
    figures = {name: _finite(value) for name, value in report.figures.items()}
    return SolverStatement(name=report.name, status=report.status, figures=figures)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _database_time(session: Session) -> datetime.datetime:
    # clock_timestamp(), not now(): that is when the transaction began.
    time: datetime.datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return time


def _dump(statement: BaseModel) -> dict[str, Any]:
    return statement.model_dump(mode="json")
