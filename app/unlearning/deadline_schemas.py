"""What controllers say about a request's deadline, and what is shown of it."""

import datetime
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from app.registry.schemas import Declared
from app.unlearning.deadline_models import (
    CheckOutcome,
    ExtensionReason,
    IntervalKind,
    RejectionGround,
)
from app.unlearning.deadlines import MOST_EXTRA_MONTHS

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def _require_rfc_3339(value: Any) -> Any:
    # pydantic would also take seconds since 1970, and dates without a time.
    if isinstance(value, str) and _RFC_3339.fullmatch(value):
        return value
    raise ValueError("expected a time with its offset (RFC 3339), such as 2026-03-05T09:30:00Z")


Moment = Annotated[AwareDatetime, BeforeValidator(_require_rfc_3339), Field(strict=False)]
# Line breaks are welcome; PostgreSQL has no NUL in texts.
Explanation = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=2000,
        pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x08\x0b-\x1f\x7f]*$",
    ),
    Field(description="In the controller's words; kept with the request, never in the log"),
]


class ExtensionIn(Declared):
    """Why more time is needed, and how much (Art. 12(3) GDPR)."""

    months: Annotated[int, Field(ge=1, le=MOST_EXTRA_MONTHS)]
    reason: Annotated[ExtensionReason, Field(strict=False)]
    explanation: Explanation


class IdentityCheckIn(Declared):
    """What makes the identity of the person doubtful, or why it stayed so."""

    explanation: Explanation


class RejectionIn(Declared):
    """Why the controller does not act on the request."""

    ground: Annotated[
        Literal["art-17-3-a", "art-17-3-b", "art-17-3-c", "art-17-3-d", "art-17-3-e", "art-12-5"],
        Field(
            description="Article 17(3), points (a) to (e), or 12(5) GDPR; copied, and not judged."
            " For an identity that stays in doubt there is `identity-check/reject`",
        ),
    ]
    explanation: Explanation


class RejectionOut(BaseModel):
    """Why the controller did not act on a request."""

    cause: Literal["rejected-by-controller"]
    ground: RejectionGround
    explanation: str
    detail: str
    remedy: str


class StandingOut(BaseModel):
    """How a request stands against its deadline, now."""

    received_at: datetime.datetime = Field(description="When the controller got the request")
    due_at: datetime.datetime | None = Field(
        description="An answer is late from this moment on; null while the clock stands still"
    )
    due_on: datetime.date | None = Field(
        description="The day that ends at `due_at`, in the service's time zone"
    )
    days_left: int | None = Field(
        description="Calendar days from today to `due_on`, negative after it; null when the request"
        " has ended or its clock stands still"
    )
    at_risk: bool = Field(description="It waits, and `due_at` is near: AT_RISK_DAYS")
    overdue: bool = Field(description="It waits, and `due_at` has passed")
    paused: bool = Field(description="The clock stands still: the person's identity is in doubt")


class IntervalOut(BaseModel):
    """Something that changed a request's deadline."""

    model_config = ConfigDict(from_attributes=True)

    kind: IntervalKind
    began_at: datetime.datetime
    ended_at: datetime.datetime | None
    outcome: CheckOutcome | None
    months: int | None
    reason: ExtensionReason | None
    explanation: str
    due_before: datetime.datetime
    due_after: datetime.datetime | None


class DeadlineOut(StandingOut):
    """A request's deadline, and everything that changed it."""

    months: int = Field(description="Length of the period, extension included")
    time_zone: str = Field(description="Whose days are counted")
    intervals: list[IntervalOut] = Field(description="The earliest first")
