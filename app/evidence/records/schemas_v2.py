"""Version 2 of the record statement, signed before records were in-toto statements; only read now.

In it a certificate may be of tier `certified` too, and (ε, δ) has a place.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter

from app.evidence._fields import exactly
from app.evidence.records import _common
from app.evidence.records._parts import HOW_TO_VERIFY, STANDARD_LIMITS

STATEMENT_TYPE = "application/vnd.lethe.record.v2+json"


class Disposal(_common.Disposal):
    """What was destroyed in the transaction that wrote this record."""

    forget_samples: Literal["key_destroyed"]
    superseded_weights: Literal["key_destroyed", "kept_by_policy"] = Field(
        description="As delivered; the weights before noise always go"
    )
    superseded_statistics: Literal["key_destroyed", "none_stored"]


class _Version2(_common.Record):
    """What every record of this version says."""

    standard_limits: ClassVar[tuple[str, ...]] = STANDARD_LIMITS

    version: Literal["lethe.record/v2"] = "lethe.record/v2"
    how_to_verify: Annotated[str, exactly(HOW_TO_VERIFY)] = HOW_TO_VERIFY


class CertificateStatement(_Version2, _common.Certificate):
    """Weights with a proved bound on what is left of the forget samples, under the assumptions."""

    disposal: Disposal


class ConditionalStatement(_Version2, _common.Conditional):
    """New weights whose bounds rest on a declaration that nobody checked; no certificate."""

    disposal: Disposal


class EstimateStatement(_Version2, _common.Estimate):
    """New weights about which nothing is guaranteed."""

    disposal: Disposal


class RefusalStatement(_Version2, _common.Refusal):
    """A gate failed, and what would help."""


class FailureStatement(_Version2, _common.Failure):
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
