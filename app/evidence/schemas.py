"""The record statement: what a signed record says, field by field, and what it may not say.

A record that claims more than was done is the worst defect this service can have. So the words of
the verdict are fixed here, a certificate without a certifying bound cannot be expressed, and
whatever contradicts itself is refused before it is signed. Version 1 keeps its meaning for ever:
another meaning is another version and other classes.
"""

import uuid
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, TypeAdapter, model_validator

from app.evidence._fields import (
    Count,
    Name,
    NonNegative,
    Prose,
    Remark,
    Seed,
    Sha256,
    Strict,
    Timestamp,
    exactly,
)
from core.vocabulary import (
    Floor,
    Loss,
    Method,
    PerturbationLaw,
    RefusalCause,
    Standing,
    Task,
    Tier,
)

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
REFUSAL_VERDICT = (
    "The request was refused. The model's weights were not changed and nothing was unlearned."
)
FAILURE_VERDICT = (
    "The request failed. The model's weights were not changed and nothing was unlearned."
)
HOW_TO_VERIFY = (
    "lethe verify FILE --key KEY.pem [--weights WEIGHTS.safetensors], offline, with a public key "
    "that was obtained from the operator by another way than this file."
)

# What every record has to admit; `limits` may add to these sentences but not leave one out.
STANDARD_LIMITS = (
    "A valid signature shows who stated this and that it is unaltered, not that it is true.",
    "The log shows what was entered up to the checkpoint, not events that were never entered.",
    "Whoever holds the database and the signing key can rewrite what no kept checkpoint covers.",
    "A destroyed key lives on in database backups and write-ahead logs until these expire.",
)
STANDARD_EXCLUSIONS = (
    "the backbone that computed the features",
    "copies of earlier weights that left this service",
    "models derived from earlier weights",
    "the training data itself, wherever it is kept",
)


class AssumptionStatement(Strict):
    """Something a bound or the tier rests on."""

    text: Prose = Field(description="The assumption, as a sentence")
    standing: Standing = Field(description="computed here, attested by the owner, or assumed")


class BoundStatement(Strict):
    """One bound on what is left of the forget samples, and whether it certifies anything."""

    name: Name = Field(description="Stable identifier, e.g. residual_gradient_norm")
    equation: Name = Field(description="Where it comes from, e.g. METHOD (5)")
    value: NonNegative | None = Field(description="null where it cannot be computed; see note")
    certifies: bool = Field(description="false for published bounds and estimates")
    note: Remark = Field(description="What a reader has to know beside the number")
    assumptions: tuple[AssumptionStatement, ...] = Field(description="What the bound rests on")

    @model_validator(mode="after")
    def _says_what_it_rests_on(self) -> Self:
        if self.certifies and (self.value is None or not self.assumptions):
            raise ValueError(
                f"bound {self.name}: certifies, but value is {self.value} and it states "
                f"{len(self.assumptions)} assumptions; a certifying bound has a value and says "
                "what it rests on"
            )
        if self.value is None and not self.note:
            raise ValueError(f"bound {self.name}: value is null; note has to say why")
        return self


class GateStatement(Strict):
    """One test that a request had to pass, with the threshold that was set beforehand."""

    name: Name = Field(description="Stable identifier, e.g. cross_fitted_residual")
    passed: bool
    value: FiniteFloat | None = Field(description="The figure; null where none could be measured")
    threshold: FiniteFloat | None = Field(description="What it was held against; null if none")
    detail: Prose = Field(description="The finding in words")


class SolverStatement(Strict):
    """How an estimate or a linear solve came about; a solver's status is never dropped."""

    name: Name = Field(description="Program and method, e.g. cvxpy/CLARABEL or cholesky")
    status: Name = Field(description="The solver's own word, e.g. optimal_inaccurate")
    figures: Mapping[str, FiniteFloat | None] = Field(description="null: not a finite number")


class ScoreStatement(Strict):
    """Loss and accuracy on one set of samples."""

    mean_loss: NonNegative = Field(description="Without the ridge term, mean over the samples")
    accuracy: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = Field(
        description="null for regression"
    )
    n_samples: Annotated[Count, Field(ge=1)]


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


class PerturbationStatement(Strict):
    """How the loss was probed around the old weights."""

    law: PerturbationLaw
    count: Annotated[Count, Field(ge=1)] = Field(description="m, as drawn, not as asked for")
    scale: Annotated[FiniteFloat, Field(gt=0)]


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


class RequestStatement(Strict):
    """What was asked for, without personal data."""

    id: uuid.UUID
    n_forget: Annotated[Count, Field(ge=1)] = Field(description="How many samples to forget")
    sample_commitment: Sha256 = Field(
        description="HMAC-SHA256 of the samples under a key of this request alone"
    )


class ModelStatement(Strict):
    """Which model, and what its owner declared about it."""

    id: uuid.UUID
    name: Name
    manifest_sha256: Sha256 = Field(description="Of the manifest's RFC 8785 canonical JSON")
    task: Task
    loss: Loss


class RevisionStatement(Strict):
    """One link in the model's chain of weights."""

    number: Count
    n_samples: Annotated[Count, Field(ge=1)] = Field(description="Training samples behind it")
    weights_sha256: Sha256 = Field(description="Of the safetensors bytes as stored and delivered")
    statistics_sha256: Sha256 | None = Field(description="Likewise; null where none are stored")


class EnvironmentStatement(Strict):
    """What computed it."""

    lethe_version: Name
    code_sha256: Sha256 = Field(
        description="Of the canonical JSON {path: SHA-256} of every source file of core and worker"
    )
    python_version: Name
    libraries: Annotated[Mapping[str, Name], Field(min_length=1)] = Field(
        description="Version of each library that takes part in the computation"
    )
    device: Name = Field(description="cpu, or the accelerator's name")


class ScopeStatement(Strict):
    """What the record covers, and what it does not."""

    covered: Prose = Field(description="E.g. the 64 × 10 weights of the linear head, revision 3")
    backbone: Literal["public", "dp", "unknown"] = Field(
        description="The owner's word on the data behind the features"
    )
    not_covered: tuple[Prose, ...]

    @model_validator(mode="after")
    def _excludes_what_no_record_covers(self) -> Self:
        if missing := [text for text in STANDARD_EXCLUSIONS if text not in self.not_covered]:
            raise ValueError(f"scope.not_covered: lacks {missing}; begin with STANDARD_EXCLUSIONS")
        return self


class TimesStatement(Strict):
    """When, by the database's clock, UTC."""

    received: Timestamp
    started: Timestamp = Field(description="When the last attempt began")
    finished: Timestamp

    @model_validator(mode="after")
    def _runs_forward(self) -> Self:
        if not self.received <= self.started <= self.finished:
            raise ValueError(
                f"times: {self.received}, {self.started}, {self.finished} are out of order; take "
                "all three from the database's clock"
            )
        return self


class SampleDisposal(Strict):
    """What became of the forget samples when nothing was unlearned."""

    forget_samples: Literal["key_destroyed", "kept"]


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
    method: Method = Field(description="What was asked for")
    gates: tuple[GateStatement, ...] = Field(description="Every gate that was evaluated")
    disposal: SampleDisposal


class RefusalStatement(_Unchanged):
    """A gate failed, and what would help."""

    kind: Literal["refusal"] = "refusal"
    verdict: Annotated[str, exactly(REFUSAL_VERDICT)] = REFUSAL_VERDICT
    cause: RefusalCause
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
