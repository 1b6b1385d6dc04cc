"""What records of versions 2 and 3 say alike, field by field, and what they may not say.

A record that claims more than was done is the worst defect this service can have. So the words of
the verdict are fixed here, a certificate without a certifying bound cannot be expressed, and
whatever contradicts itself is refused before it is signed. A version keeps its meaning for ever, so
nothing here is changed: another meaning is another version, and what that says differently stands
in the module of that version.
"""

import uuid
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from app.evidence._fields import Count, Name, NonNegative, Prose, Seed, Sha256, Strict, exactly
from app.evidence.records._parts import (
    FAILURE_VERDICT,
    REFUSAL_VERDICT,
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
from app.evidence.records.schemas_v1 import ESTIMATE_VERDICT
from core.privacy import delta_of
from core.vocabulary import (
    Anchor,
    Floor,
    Loss,
    Mechanism,
    Method,
    Prior,
    RefusalCause,
    Task,
    Tier,
    tier_of,
)

_EXACT = (
    "The forget samples' influence on these weights was removed: the weights are what training on "
    "the remaining samples gives, up to the certifying bounds stated here, if every assumption "
    "stated here holds."
)
_CERTIFIED = (
    "The forget samples' influence on these weights was reduced to within a bound: what is "
    "certified is that the gradient on the remaining samples is at most the certifying residual "
    "bound stated here, if every assumption stated here holds."
)
_NO_NOISE = "No (ε, δ) guarantee is made."
_OBJECTIVE = (
    "With the noise that the model was declared to be trained with, a published theorem takes "
    "this to give the (ε, δ) stated here; its proof is assumed, as the assumptions say."
)
_OUTPUT = (
    "These are the weights before noise. The digest is of the weights that were released, which "
    "have the declared noise added; this gives the (ε, δ) guarantee stated here, under its "
    "assumptions."
)
# None for exact deletions with objective perturbation: statistics of squared loss do not hold b.
CERTIFICATE_VERDICTS: Mapping[tuple[Tier, Mechanism | None], str] = {
    (Tier.EXACT, None): _EXACT,
    (Tier.EXACT, Mechanism.OUTPUT): f"{_EXACT} {_OUTPUT}",
    (Tier.CERTIFIED, None): f"{_CERTIFIED} {_NO_NOISE}",
    (Tier.CERTIFIED, Mechanism.OBJECTIVE): f"{_CERTIFIED} {_OBJECTIVE}",
    (Tier.CERTIFIED, Mechanism.OUTPUT): f"{_CERTIFIED} {_OUTPUT}",
}
_CONDITIONAL = (
    "The weights were moved towards what training on the remaining samples would give, with the "
    "curvature of surrogate features in place of the training set's."
)
CONDITIONAL_VERDICT = (
    f"{_CONDITIONAL} The bounds stated here are conditional on the declared distance of the two, "
    "which nobody here could check: this is not a certificate."
)
# Without a declaration there is nothing that a bound could be conditional on.
UNDECLARED_VERDICT = (
    f"{_CONDITIONAL} No distance of the two was declared for this revision, so how much of the "
    "forget samples' influence is left is not guaranteed: this is not a certificate."
)
# What a certificate of tier `certified` has to admit where nothing hides the residual.
NO_NOISE_LIMIT = "No noise was declared: the residual is bounded, but no (ε, δ) guarantee is made."
# The only bounds that may certify, by name; published ones and worst cases never do.
CERTIFYING_BOUNDS = frozenset({"residual_gradient_norm", "distance_to_retraining"})
MEASURES: Mapping[Mechanism, str] = {
    Mechanism.OBJECTIVE: "residual_gradient_norm",
    Mechanism.OUTPUT: "distance_to_retraining",
}
_ANCHORS: Mapping[Anchor, str] = {Anchor.MOVE: "moved", Anchor.KEEP: "kept_as_secret"}

# The limit is rounded downward by 1e-6 of itself; this is for the rounding of the check alone.
_DELTA_SLACK = 1.0 + 1e-6

# A cosine may exceed 1 by round-off.
_Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
_Cosine = Annotated[FiniteFloat, Field(ge=0, le=1 + 1e-9)]
_Positive = Annotated[FiniteFloat, Field(gt=0)]


class MembershipInferenceStatement(Strict):
    """How well a loss threshold tells forget samples from holdout samples; ½ proves nothing."""

    auc: _Share
    tpr_at_1_percent_fpr: _Share


class ReconstructionLeakStatement(Strict):
    """What the old and the new weights, as released, together reveal of the forget samples."""

    cosine: _Cosine = Field(description="Of the best guess from the difference of the weights")
    cosine_with_statistics: _Cosine | None = Field(
        description="As `cosine`, for a thief of the statistics; null where none are stored"
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
    membership_before: MembershipInferenceStatement | None
    membership_after: MembershipInferenceStatement | None
    reconstruction: ReconstructionLeakStatement | None
    missing: Mapping[str, Prose] = Field(
        description="Why figures are null: holdout, retain_loss, membership, reconstruction, ..."
    )

    @model_validator(mode="after")
    def _explains_what_is_missing(self) -> Self:
        figures: Mapping[str, tuple[object, ...]] = {
            "holdout": (self.holdout_before, self.holdout_after),
            "retain_loss": (self.retain_loss_before, self.retain_loss_after),
            "membership": (self.membership_before, self.membership_after),
            "reconstruction": (self.reconstruction,),
        }
        for name, values in figures.items():
            if None in values and name not in self.missing:
                raise ValueError(f"metrics: {name} is null, and `missing` does not say why")
        return self


class GatePolicyStatement(Strict):
    """The thresholds in force, which were set before the request was looked at."""

    threshold: _Positive
    splits: Annotated[Count, Field(ge=1)]
    require_identified: bool
    skew_level: Annotated[FiniteFloat, Field(ge=0, lt=1)] = Field(
        description="Level of significance of all skew tests together; 0: they were switched off"
    )


class PriorStatement(Strict):
    """What the semidefinite program was drawn towards."""

    kind: Prior
    weight: _Positive


class ParametersStatement(Strict):
    """Everything that steers the computation beside data and seeds; null where it plays no part."""

    gate: GatePolicyStatement
    perturbation: PerturbationStatement | None
    floor: Floor | None
    solver: Name | None = Field(description="Of the semidefinite program, e.g. CLARABEL")
    prior: PriorStatement | None
    anchor: Anchor | None = Field(
        description="What becomes of the weights that statistics with an anchor were collected at"
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
    weights_sha256: Sha256 = Field(description="Of the safetensors bytes as delivered")
    delivered: Literal["weights", "weights_with_noise"] = Field(
        description="What those bytes hold; with noise, the weights before it never leave"
    )
    statistics_sha256: Sha256 | None = Field(
        description="Of the safetensors bytes as stored, keyed where noise was declared and they "
        "are secret; null where none are stored"
    )


class PrivacyStatement(Strict):
    """An (ε, δ) guarantee, what it costs, and how much of its budget is used."""

    mechanism: Mechanism
    epsilon: _Positive
    delta: Annotated[FiniteFloat, Field(gt=0, lt=1)]
    sigma: _Positive = Field(description="Standard deviation of each entry of the noise")
    measure: Name = Field(description="Name of the bound that is held against the limit")
    limit: _Positive = Field(description="Largest value of it that the noise hides")
    spent: NonNegative = Field(description="Its value now, all deletions of the lineage included")
    left: NonNegative = Field(description="limit less spent")
    assumptions: Annotated[tuple[AssumptionStatement, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _keeps_within_its_budget(self) -> Self:
        if self.spent > self.limit:
            raise ValueError(f"privacy.spent: {self.spent} is more than the limit {self.limit}")
        if self.left != self.limit - self.spent:
            raise ValueError(f"privacy.left: {self.left} is not {self.limit} less {self.spent}")
        if self.measure != MEASURES[self.mechanism]:
            raise ValueError(f"privacy.measure: {self.measure} is not what {self.mechanism} hides")
        return self

    @model_validator(mode="after")
    def _hides_no_more_than_its_noise_does(self) -> Self:
        delta = delta_of(self.epsilon, self.sigma, self.limit)
        if not delta <= self.delta * _DELTA_SLACK:
            raise ValueError(
                f"privacy.limit: noise of {self.sigma} hides {self.limit} at ε = {self.epsilon} "
                f"with δ = {delta:.3g} only, not {self.delta:.3g}"
            )
        return self


class SurrogateStatement(Strict):
    """What stood in for the training features."""

    features_sha256: Sha256 = Field(description="Of the safetensors bytes as stored")
    declared_distance: NonNegative | None = Field(
        description="Declared bound on the spectral distance of the mean Hessians; null: none"
    )


class Disposal(Strict):
    """What became of what was superseded; each version says which words it has for it."""

    forget_samples: str
    superseded_weights: str
    superseded_statistics: str
    superseded_anchor: Literal["moved", "kept_as_secret", "none"] = Field(
        description="The weights that logistic statistics or a sketch were collected at: replaced "
        "by the new weights, or still inside the encrypted statistics; none: those of other "
        "statistics play no part"
    )
    release_noise: Literal["never_recorded", "none"]


class Record(Strict):
    """What every record says; a version narrows what is left open here."""

    standard_limits: ClassVar[tuple[str, ...]]

    version: str
    id: uuid.UUID = Field(description="Of this record")
    request: RequestStatement
    model: ModelStatement
    revision_before: RevisionStatement
    parameters: ParametersStatement
    seeds: Mapping[str, Seed] = Field(
        description="Every seed that was used, by purpose; that of a release's noise is a secret"
    )
    environment: EnvironmentStatement
    scope: ScopeStatement
    limits: tuple[Prose, ...]
    times: TimesStatement
    how_to_verify: str

    @model_validator(mode="after")
    def _admits_the_limits(self) -> Self:
        if missing := [text for text in self.standard_limits if text not in self.limits]:
            raise ValueError(f"limits: lacks {missing}; begin with STANDARD_LIMITS")
        return self


class Completed(Record):
    """What a record about new weights says beside."""

    tier: Tier
    method: Method
    revision_after: RevisionStatement
    assumptions: Annotated[tuple[AssumptionStatement, ...], Field(min_length=1)] = Field(
        description="What the tier rests on; whether membership was checked or attested is there"
    )
    solvers: Annotated[tuple[SolverStatement, ...], Field(min_length=1)]
    bounds: Annotated[tuple[BoundStatement, ...], Field(min_length=1)]
    gates: tuple[GateStatement, ...] = Field(description="Every gate, all passed")
    metrics: MetricsStatement
    disposal: Disposal

    @model_validator(mode="after")
    def _is_of_the_tier_that_its_method_has(self) -> Self:
        if self.tier is not tier_of(self.method, self.model.loss):
            raise ValueError(
                f"tier: {self.tier} is not that of {self.method} for the {self.model.loss} loss"
            )
        return self

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
        if before.delivered != after.delivered:
            raise ValueError("revision_after.delivered: a lineage is released in one way only")
        return self

    @model_validator(mode="after")
    def _says_what_became_of_the_old_revision(self) -> Self:
        disposal, before = self.disposal, self.revision_before
        if (before.statistics_sha256 is None) != (disposal.superseded_statistics == "none_stored"):
            raise ValueError("disposal.superseded_statistics contradicts revision_before")
        stored, anchored = before.statistics_sha256 is not None, self._had_an_anchor
        if anchored and not stored:
            raise ValueError("disposal.superseded_anchor: without statistics there is none")
        if stored and self.model.loss is Loss.LOGISTIC and not anchored:
            raise ValueError("disposal.superseded_anchor: logistic statistics have one")
        noisy = self.revision_after.delivered == "weights_with_noise"
        if noisy != (disposal.release_noise == "never_recorded"):
            raise ValueError("disposal.release_noise contradicts revision_after.delivered")
        return self

    @model_validator(mode="after")
    def _passed_every_gate(self) -> Self:
        if failed := [gate.name for gate in self.gates if not gate.passed]:
            raise ValueError(f"gates: {failed} failed, so this is a refusal")
        return self

    @property
    def _had_an_anchor(self) -> bool:
        return self.disposal.superseded_anchor != "none"

    def _certifying(self) -> dict[str, float]:
        """Return the values of the bounds that certify, by name."""
        return {
            bound.name: bound.value
            for bound in self.bounds
            if bound.certifies and bound.value is not None
        }


class Certificate(Completed):
    """Weights with a proved bound on what is left of the forget samples, under the assumptions."""

    kind: Literal["certificate"] = "certificate"
    verdict: Prose = Field(
        description="By tier and mechanism",
        json_schema_extra={"enum": list(CERTIFICATE_VERDICTS.values())},
    )
    tier: Literal[Tier.EXACT, Tier.CERTIFIED]
    method: Literal[Method.STORED, Method.SKETCH]
    privacy: PrivacyStatement | None = Field(description="null: no (ε, δ) guarantee is made")

    @model_validator(mode="after")
    def _claims_for_a_sketch_what_one_can_give(self) -> Self:
        if self.method is Method.SKETCH:
            if self.model.loss is not Loss.SQUARED:
                raise ValueError(f"method: a sketch is of the squared loss, not {self.model.loss}")
            if self.privacy is not None:
                raise ValueError("privacy: a sketch's bound holds with a probability of its own")
        return self

    @model_validator(mode="after")
    def _certifies_something(self) -> Self:
        found = set(self._certifying())
        if "residual_gradient_norm" not in found:
            raise ValueError("bounds: no residual_gradient_norm certifies: this is no certificate")
        if more := found - CERTIFYING_BOUNDS:
            raise ValueError(f"bounds: {sorted(more)} cannot certify anything")
        if self.revision_before.statistics_sha256 is None:
            raise ValueError(f"revision_before: tier `{self.tier}` needs stored statistics")
        return self

    @model_validator(mode="after")
    def _says_no_more_than_its_tier_and_noise_allow(self) -> Self:
        mechanism = None if self.privacy is None else self.privacy.mechanism
        if self.verdict != CERTIFICATE_VERDICTS.get((self.tier, mechanism)):
            raise ValueError(f"verdict: not the one of tier {self.tier} with {mechanism} noise")
        unguarded = self.tier is Tier.CERTIFIED and self.privacy is None
        if unguarded != (NO_NOISE_LIMIT in self.limits):
            raise ValueError("limits: NO_NOISE_LIMIT belongs there where tier certified has none")
        noisy = self.revision_after.delivered == "weights_with_noise"
        if noisy != (mechanism is Mechanism.OUTPUT):
            raise ValueError(
                "revision_after.delivered: with output perturbation the digest is of the release "
                "with its noise, else of the weights"
            )
        return self

    @model_validator(mode="after")
    def _spends_what_its_bound_says(self) -> Self:
        privacy, values = self.privacy, self._certifying()
        if privacy is not None and values.get(privacy.measure, float("inf")) > privacy.spent:
            raise ValueError(f"privacy.spent: less than the certifying bound {privacy.measure}")
        return self

    @model_validator(mode="after")
    def _treats_the_anchor_as_asked(self) -> Self:
        anchor = self.parameters.anchor
        expected = "none" if self.tier is Tier.EXACT or anchor is None else _ANCHORS[anchor]
        if (anchor is None) != (self.tier is Tier.EXACT):
            raise ValueError("parameters.anchor: tier `certified` has one, and no other")
        if self.disposal.superseded_anchor != expected:
            raise ValueError(f"disposal.superseded_anchor: expected {expected} with {anchor}")
        return self


class Conditional(Completed):
    """New weights whose bounds rest on a declaration that nobody checked; no certificate."""

    kind: Literal["conditional"] = "conditional"
    verdict: Prose = Field(
        description="By whether a distance was declared",
        json_schema_extra={"enum": [CONDITIONAL_VERDICT, UNDECLARED_VERDICT]},
    )
    tier: Literal[Tier.SURROGATE] = Tier.SURROGATE
    method: Literal[Method.SURROGATE] = Method.SURROGATE
    surrogate: SurrogateStatement

    @model_validator(mode="after")
    def _certifies_nothing(self) -> Self:
        if claims := sorted(self._certifying()):
            raise ValueError(f"bounds: {claims} certify, which tier `surrogate` never does")
        declared = self.surrogate.declared_distance is not None
        if self.verdict != (CONDITIONAL_VERDICT if declared else UNDECLARED_VERDICT):
            raise ValueError("verdict: not the one for what was declared of the surrogate")
        return self


class Estimate(Completed):
    """New weights about which nothing is guaranteed."""

    kind: Literal["estimate"] = "estimate"
    verdict: Annotated[str, exactly(ESTIMATE_VERDICT)] = ESTIMATE_VERDICT
    tier: Literal[Tier.ESTIMATED] = Tier.ESTIMATED
    method: Literal[Method.FORGET_CURVATURE, Method.PAPER_SDP]

    @model_validator(mode="after")
    def _certifies_nothing(self) -> Self:
        if claims := sorted(self._certifying()):
            raise ValueError(f"bounds: {claims} certify, which tier `estimated` never does")
        return self


class Unchanged(Record):
    """What a record about a request without new weights says beside."""

    tier: None = Field(None, description="Nothing was unlearned, so no tier applies")
    method: Method = Field(description="What was asked for")
    gates: tuple[GateStatement, ...] = Field(description="Every gate that was evaluated")
    disposal: SampleDisposal


class Refusal(Unchanged):
    """A gate failed, and what would help."""

    kind: Literal["refusal"] = "refusal"
    verdict: Annotated[str, exactly(REFUSAL_VERDICT)] = REFUSAL_VERDICT
    cause: RefusalCause
    detail: Prose = Field(description="The finding in words; no value of any sample")
    remedy: Prose = Field(description="What would help")


class Failure(Unchanged):
    """Something broke."""

    kind: Literal["failure"] = "failure"
    verdict: Annotated[str, exactly(FAILURE_VERDICT)] = FAILURE_VERDICT
    cause: Name = Field(description="Stable identifier, e.g. attempts-exhausted")
    detail: Prose = Field(description="What broke; no value of any sample")
