"""What records of every version say alike: words that are fixed, and the parts of a statement.

A change of meaning here would change what records that were signed long ago say. So nothing here is
changed: what has to mean something else gets a class of its own in the newer version's module.
"""

import uuid
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from app.evidence._fields import Count, Name, NonNegative, Prose, Remark, Sha256, Strict, Timestamp
from core.vocabulary import PerturbationLaw, Standing

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


class PerturbationStatement(Strict):
    """How the loss was probed around the old weights."""

    law: PerturbationLaw
    count: Annotated[Count, Field(ge=1)] = Field(description="m, as drawn, not as asked for")
    scale: Annotated[FiniteFloat, Field(gt=0)]


class RequestStatement(Strict):
    """What was asked for, without personal data."""

    id: uuid.UUID
    n_forget: Annotated[Count, Field(ge=1)] = Field(description="How many samples to forget")
    sample_commitment: Sha256 = Field(
        description="HMAC-SHA256 of the samples under a key of this request alone"
    )


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
