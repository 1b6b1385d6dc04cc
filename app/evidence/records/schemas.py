"""The record statement, version 3: what is signed today. `_records` holds most of it.

It is the predicate of an in-toto statement (`intoto`). Beside what version 2 said, it names the
legal ground that the controller gave, the place of the revision in the model's lineage, the threads
and instructions that a result depends on to its last bit, and what was kept instead of destroyed.
`schemas_v1` and `schemas_v2` read what was signed before.
"""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from app.evidence._fields import Count, Name, Prose, Sha256, Strict, Timestamp, exactly
from app.evidence.records import _common, _parts
from app.evidence.records._common import (
    CERTIFICATE_VERDICTS,
    CERTIFYING_BOUNDS,
    CONDITIONAL_VERDICT,
    MEASURES,
    NO_NOISE_LIMIT,
    UNDECLARED_VERDICT,
    GatePolicyStatement,
    MembershipInferenceStatement,
    MetricsStatement,
    ModelStatement,
    ParametersStatement,
    PriorStatement,
    PrivacyStatement,
    ReconstructionLeakStatement,
    RevisionStatement,
    SurrogateStatement,
)
from app.evidence.records._parts import (
    FAILURE_VERDICT,
    REFUSAL_VERDICT,
    STANDARD_EXCLUSIONS,
    AssumptionStatement,
    BoundStatement,
    GateStatement,
    PerturbationStatement,
    SampleDisposal,
    ScopeStatement,
    ScoreStatement,
    SolverStatement,
    TimesStatement,
)
from app.evidence.records.schemas_v1 import ESTIMATE_VERDICT

__all__ = [
    "CERTIFICATE_VERDICTS",
    "CERTIFYING_BOUNDS",
    "CONDITIONAL_VERDICT",
    "ESTIMATE_VERDICT",
    "FAILURE_VERDICT",
    "MEASURES",
    "NO_NOISE_LIMIT",
    "REFUSAL_VERDICT",
    "STANDARD_EXCLUSIONS",
    "UNDECLARED_VERDICT",
    "AssumptionStatement",
    "BoundStatement",
    "GatePolicyStatement",
    "GateStatement",
    "MembershipInferenceStatement",
    "MetricsStatement",
    "ModelStatement",
    "ParametersStatement",
    "PerturbationStatement",
    "PriorStatement",
    "PrivacyStatement",
    "ReconstructionLeakStatement",
    "RevisionStatement",
    "SampleDisposal",
    "ScopeStatement",
    "ScoreStatement",
    "SolverStatement",
    "SurrogateStatement",
    "TimesStatement",
]

# in-toto's media type: the predicate's type inside says that the statement is one of ours.
STATEMENT_TYPE = "application/vnd.in-toto+json"

HOW_TO_VERIFY = (
    "lethe verify FILE --key KEYS.json [--weights WEIGHTS.safetensors] [--since CHECKPOINT], "
    "offline, with keys that were obtained from the operator by another way than this file."
)
# What every record has to admit; `limits` may add to these sentences but not leave one out.
STANDARD_LIMITS = (
    (
        "A valid signature shows that a holder of the signing key stated this and that it is "
        "unaltered, not that it is true."
    ),
    (
        "The log shows what was entered and in which order, not that it is true, and not events "
        "that were never entered."
    ),
    (
        "Whoever holds the database and the signing keys can rewrite what no checkpoint covers "
        "that somebody else kept, or show different logs to different readers."
    ),
    (
        "A timestamp shows that a checkpoint existed by then, and a witness's signature that the "
        "witness was shown no other log; without them, times are on the operator's word."
    ),
    "A destroyed key lives on in database backups and write-ahead logs until these expire.",
)
# What a record has to admit where the disposal names anything as kept.
KEPT_LIMIT = (
    "What the disposal names as kept can still be opened by this service; this record does not "
    "show that it is destroyed later."
)


class LegalGround(StrEnum):
    """The ground of Article 17(1) GDPR that the controller gives; copied, never judged here."""

    NO_LONGER_NECESSARY = "art-17-1-a"
    CONSENT_WITHDRAWN = "art-17-1-b"
    OBJECTION = "art-17-1-c"
    UNLAWFULLY_PROCESSED = "art-17-1-d"
    LEGAL_OBLIGATION = "art-17-1-e"
    OFFERED_TO_A_CHILD = "art-17-1-f"  # collected for an information society service


class RequestStatement(_parts.RequestStatement):
    """What was asked for, without personal data."""

    legal_ground: LegalGround | None = Field(
        description="The ground that the controller gave, copied and not judged; null: none given"
    )


class LineageStatement(Strict):
    """Where the old revision comes from."""

    registered_weights_sha256: Sha256 = Field(
        description="Of the weights of revision 0 as delivered, with which the lineage began"
    )
    deletions: Count = Field(description="How many were completed before this request")
    previous_statement_sha256: Sha256 | None = Field(
        description="Of the signed payload of the record that the old revision came with; null "
        "for revision 0, which was registered"
    )


class EnvironmentStatement(_parts.EnvironmentStatement):
    """What computed it. Another machine repeats a result to the last bit only if all agrees."""

    threads: Count = Field(
        description="Computing threads, on which sums depend in their last bits; 0: none computed"
    )
    cpu_capability: Name = Field(
        description="Instructions of the CPU that torch used, e.g. AVX512; unknown: no torch ran"
    )


class Disposal(_common.Disposal):
    """What was destroyed in the transaction that wrote this record, and what was not."""

    forget_samples: Literal["key_destroyed", "kept_for_replay"]
    superseded_weights: Literal["key_destroyed", "kept_by_policy", "kept_for_replay"] = Field(
        description="kept_by_policy: as delivered, while any before noise were destroyed; "
        "kept_for_replay: those before noise, where there is any, and perhaps those delivered"
    )
    superseded_statistics: Literal["key_destroyed", "none_stored", "kept_for_replay"] = Field(
        description="With the weights that they were collected at, if any are inside them"
    )
    kept_until: Timestamp | None = Field(
        description="When the last of what was kept is due to be destroyed; null: nothing was kept"
    )

    @property
    def keeps_something(self) -> bool:
        """Whether anything can still be opened."""
        fates = (self.forget_samples, self.superseded_weights, self.superseded_statistics)
        return any(fate.startswith("kept") for fate in fates)

    @model_validator(mode="after")
    def _says_until_when(self) -> Self:
        if (self.kept_until is not None) != self.keeps_something:
            raise ValueError("disposal.kept_until: a time where something is kept, else null")
        return self


class _Version3(_common.Record):
    """What every record of this version says."""

    standard_limits: ClassVar[tuple[str, ...]] = STANDARD_LIMITS

    version: Literal["lethe.record/v3"] = "lethe.record/v3"
    request: RequestStatement
    lineage: LineageStatement
    environment: EnvironmentStatement
    limits: tuple[Prose, ...] = Field(
        description="What a reader must not take the record for; some of it stands in every one",
        json_schema_extra={"allOf": [{"contains": {"const": text}} for text in STANDARD_LIMITS]},
    )
    how_to_verify: Annotated[str, exactly(HOW_TO_VERIFY)] = HOW_TO_VERIFY

    @model_validator(mode="after")
    def _continues_the_lineage(self) -> Self:
        lineage, before = self.lineage, self.revision_before
        if lineage.deletions != before.number:
            raise ValueError(
                f"lineage.deletions: {lineage.deletions}, but every deletion makes one revision "
                f"and the old one has number {before.number}"
            )
        registered = before.number == 0
        if registered != (lineage.previous_statement_sha256 is None):
            raise ValueError("lineage.previous_statement_sha256: null for revision 0, and only so")
        if registered and lineage.registered_weights_sha256 != before.weights_sha256:
            raise ValueError("lineage.registered_weights_sha256: revision 0 has other weights")
        return self


class _Completed(_Version3):
    """What a record about new weights says in this version.

    Apart from `_common.Completed`: of two bases with the same field pydantic takes the first one's
    word, and would forget what the kinds narrow.
    """

    disposal: Disposal

    @model_validator(mode="after")
    def _admits_what_is_kept(self) -> Self:
        if self.disposal.keeps_something != (KEPT_LIMIT in self.limits):
            raise ValueError("limits: KEPT_LIMIT belongs there where the disposal keeps something")
        until = self.disposal.kept_until
        if until is not None and until <= self.times.finished:
            raise ValueError(f"disposal.kept_until: {until} had passed when this was signed")
        return self


class CertificateStatement(_Completed, _common.Certificate):
    """Weights with a proved bound on what is left of the forget samples, under the assumptions."""


class ConditionalStatement(_Completed, _common.Conditional):
    """New weights whose bounds rest on a declaration that nobody checked; no certificate."""


class EstimateStatement(_Completed, _common.Estimate):
    """New weights about which nothing is guaranteed."""


class RefusalStatement(_Version3, _common.Refusal):
    """A gate failed, and what would help."""


class FailureStatement(_Version3, _common.Failure):
    """Something broke."""


RecordStatement = Annotated[
    CertificateStatement
    | ConditionalStatement
    | EstimateStatement
    | RefusalStatement
    | FailureStatement,
    Field(discriminator="kind"),
]
RECORD_STATEMENT: TypeAdapter[RecordStatement] = TypeAdapter(RecordStatement)
