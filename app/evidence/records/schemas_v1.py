"""Version 1 of the record statement, as it was signed up to release 0.1; only read from now on.

Its vocabularies are spelled out: a word that a later version learnt is still none of version 1.
"""

import uuid
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, TypeAdapter, model_validator

from app.evidence._fields import Count, Name, NonNegative, Prose, Seed, Sha256, Strict, exactly
from app.evidence.records._parts import (
    FAILURE_VERDICT,
    HOW_TO_VERIFY,
    REFUSAL_VERDICT,
    STANDARD_LIMITS,
    AssumptionStatement,
    BoundStatement,
    EnvironmentStatement,
    GateStatement,
    PerturbationStatement,
    RequestStatement,
    SampleDisposal,
    ScopeStatement,
    ScoreStatement,
    SolverStatement,
    TimesStatement,
)
from core.vocabulary import Floor, Loss, Method, RefusalCause, Task, Tier

STATEMENT_TYPE = "application/vnd.lethe.record.v1+json"

CERTIFICATE_VERDICT = (
    "The forget samples' influence on these weights was removed: the weights are what training on "
    "the remaining samples gives, up to the certifying bounds stated here, if every assumption "
    "stated here holds."
)
ESTIMATE_VERDICT = (
    "The weights were moved towards what training on the remaining samples would give, by an "
    "estimate. How much of the forget samples' influence is left is not guaranteed: this is not a "
    "certificate."
)


class MetricsStatement(Strict):
    """Scores before and after. They describe the model; they are no evidence of forgetting."""

    forget_before: ScoreStatement
    forget_after: ScoreStatement
    holdout_before: ScoreStatement | None
    holdout_after: ScoreStatement | None
    retain_loss_before: FiniteFloat | None
    retain_loss_after: FiniteFloat | None
    weight_change: NonNegative = Field(description="Frobenius norm of new minus old weights")
    missing: Mapping[str, Prose] = Field(description="Why a figure is null, by its name")

    @model_validator(mode="after")
    def _explains_what_is_missing(self) -> Self:
        pairs = (
            (self.holdout_before, self.holdout_after),
            (
                self.retain_loss_before,
                self.retain_loss_after,
            ),
        )
        if any(None in pair for pair in pairs) and not self.missing:
            raise ValueError("metrics: a figure is null, and `missing` does not say why")
        return self


class GatePolicyStatement(Strict):
    """The thresholds in force, which were set before the request was looked at."""

    threshold: Annotated[FiniteFloat, Field(gt=0)]
    splits: Annotated[Count, Field(ge=1)]
    require_identified: bool


class ParametersStatement(Strict):
    """Everything that steers the computation beside data and seeds; null where it plays no part."""

    gate: GatePolicyStatement
    perturbation: PerturbationStatement | None
    floor: Floor | None
    solver: Name | None = Field(description="Of the semidefinite program, e.g. CLARABEL")


class ModelStatement(Strict):
    """Which model, and what its owner declared about it."""

    id: uuid.UUID
    name: Name
    manifest_sha256: Sha256 = Field(description="Of the manifest's RFC 8785 canonical JSON")
    task: Task
    loss: Literal[Loss.SQUARED]


class RevisionStatement(Strict):
    """One link in the model's chain of weights."""

    number: Count
    n_samples: Annotated[Count, Field(ge=1)] = Field(description="Training samples behind it")
    weights_sha256: Sha256 = Field(description="Of the safetensors bytes as stored and delivered")
    statistics_sha256: Sha256 | None = Field(description="Likewise; null where none are stored")


class Disposal(Strict):
    """What was destroyed in the transaction that wrote this record."""

    forget_samples: Literal["key_destroyed"]
    superseded_weights: Literal["key_destroyed", "kept_by_policy"]
    superseded_statistics: Literal["key_destroyed", "none_stored"]


class _Record(Strict):
    """What every record says."""

    version: Literal["lethe.record/v1"] = "lethe.record/v1"
    id: uuid.UUID = Field(description="Of this record")
    request: RequestStatement
    model: ModelStatement
    revision_before: RevisionStatement
    parameters: ParametersStatement
    seeds: Mapping[str, Seed] = Field(description="Every seed that was used, by purpose")
    environment: EnvironmentStatement
    scope: ScopeStatement
    limits: tuple[Prose, ...]
    times: TimesStatement
    how_to_verify: Annotated[str, exactly(HOW_TO_VERIFY)] = HOW_TO_VERIFY

    @model_validator(mode="after")
    def _admits_the_limits(self) -> Self:
        if missing := [text for text in STANDARD_LIMITS if text not in self.limits]:
            raise ValueError(f"limits: lacks {missing}; begin with STANDARD_LIMITS")
        return self


class _Completed(_Record):
    """What a record about new weights says beside."""

    revision_after: RevisionStatement
    assumptions: Annotated[tuple[AssumptionStatement, ...], Field(min_length=1)] = Field(
        description="What the tier rests on, membership of the samples in the training set included"
    )
    solvers: Annotated[tuple[SolverStatement, ...], Field(min_length=1)]
    bounds: Annotated[tuple[BoundStatement, ...], Field(min_length=1)]
    gates: tuple[GateStatement, ...] = Field(description="Every gate, all passed")
    metrics: MetricsStatement
    disposal: Disposal

    @model_validator(mode="after")
    def _follows_from_the_old_revision(self) -> Self:
        before, after = self.revision_before, self.revision_after
        if after.number != before.number + 1:
            raise ValueError(f"revision_after.number: {after.number} follows {before.number}")
        if after.n_samples != before.n_samples - self.request.n_forget:
            raise ValueError(
                f"revision_after.n_samples: {after.n_samples} is not {before.n_samples} less "
                f"{self.request.n_forget}"
            )
        if (before.statistics_sha256 is None) != (after.statistics_sha256 is None):
            raise ValueError("revision_after: statistics are replaced by every deletion, or absent")
        if (before.statistics_sha256 is None) != (
            self.disposal.superseded_statistics == "none_stored"
        ):
            raise ValueError("disposal.superseded_statistics contradicts revision_before")
        return self

    @model_validator(mode="after")
    def _passed_every_gate(self) -> Self:
        if failed := [gate.name for gate in self.gates if not gate.passed]:
            raise ValueError(f"gates: {failed} failed, so this is a refusal")
        return self


class CertificateStatement(_Completed):
    """Weights that equal retraining up to the certifying bounds, under the stated assumptions."""

    kind: Literal["certificate"] = "certificate"
    verdict: Annotated[str, exactly(CERTIFICATE_VERDICT)] = CERTIFICATE_VERDICT
    tier: Literal[Tier.EXACT] = Tier.EXACT
    method: Literal[Method.STORED] = Method.STORED

    @model_validator(mode="after")
    def _certifies_something(self) -> Self:
        if not any(bound.certifies for bound in self.bounds):
            raise ValueError("bounds: none certifies, so this is no certificate")
        if self.revision_before.statistics_sha256 is None:
            raise ValueError("revision_before: tier `exact` needs stored statistics")
        return self


class EstimateStatement(_Completed):
    """New weights about which nothing is guaranteed."""

    kind: Literal["estimate"] = "estimate"
    verdict: Annotated[str, exactly(ESTIMATE_VERDICT)] = ESTIMATE_VERDICT
    tier: Literal[Tier.ESTIMATED] = Tier.ESTIMATED
    method: Literal[Method.FORGET_CURVATURE, Method.PAPER_SDP]

    @model_validator(mode="after")
    def _certifies_nothing(self) -> Self:
        if claims := [bound.name for bound in self.bounds if bound.certifies]:
            raise ValueError(f"bounds: {claims} certify, which tier `estimated` never does")
        return self


class _Unchanged(_Record):
    """What a record about a request without new weights says beside."""

    tier: None = Field(None, description="Nothing was unlearned, so no tier applies")
    method: Literal[Method.STORED, Method.FORGET_CURVATURE, Method.PAPER_SDP] = Field(
        description="What was asked for"
    )
    gates: tuple[GateStatement, ...] = Field(description="Every gate that was evaluated")
    disposal: SampleDisposal


class RefusalStatement(_Unchanged):
    """A gate failed, and what would help."""

    kind: Literal["refusal"] = "refusal"
    verdict: Annotated[str, exactly(REFUSAL_VERDICT)] = REFUSAL_VERDICT
    cause: Literal[
        RefusalCause.NOT_IN_TRAINING_SET,
        RefusalCause.ALREADY_FORGOTTEN,
        RefusalCause.DUPLICATE_SAMPLES,
        RefusalCause.FORGET_SET_TOO_SMALL,
        RefusalCause.ESTIMATE_UNRELIABLE,
        RefusalCause.ESTIMATE_NOT_IDENTIFIED,
        RefusalCause.ILL_CONDITIONED,
        RefusalCause.NOTHING_WOULD_REMAIN,
    ]
    detail: Prose = Field(description="The finding in words; no value of any sample")
    remedy: Prose = Field(description="What would help")


class FailureStatement(_Unchanged):
    """Something broke."""

    kind: Literal["failure"] = "failure"
    verdict: Annotated[str, exactly(FAILURE_VERDICT)] = FAILURE_VERDICT
    cause: Name = Field(description="Stable identifier, e.g. attempts-exhausted")
    detail: Prose = Field(description="What broke; no value of any sample")


RecordStatement = Annotated[
    CertificateStatement | EstimateStatement | RefusalStatement | FailureStatement,
    Field(discriminator="kind"),
]
RECORD_STATEMENT: TypeAdapter[RecordStatement] = TypeAdapter(RecordStatement)
