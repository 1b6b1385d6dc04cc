"""Table of what changed a request's deadline, and the codes that say why."""

import datetime
import enum
import uuid

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Id
from app.tenants.models import PartOfRequest


class IntervalKind(enum.StrEnum):
    """What kept a deadline from being one month after receipt."""

    EXTENSION = "extension"  # Art. 12(3) GDPR
    IDENTITY_CHECK = "identity-check"  # Art. 12(6): the clock stands still


class ExtensionReason(enum.StrEnum):
    """What Article 12(3) GDPR lets a controller take into account."""

    COMPLEXITY = "complexity"
    NUMBER_OF_REQUESTS = "number-of-requests"


class CheckOutcome(enum.StrEnum):
    """How a check of the person's identity ended."""

    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    ENDED = "ended"  # with the request, which was cancelled or rejected for another reason


class RejectionGround(enum.StrEnum):
    """Why a controller does not act on a request; copied, never judged here."""

    EXPRESSION_AND_INFORMATION = "art-17-3-a"
    LEGAL_OBLIGATION = "art-17-3-b"  # or a task in the public interest
    PUBLIC_HEALTH = "art-17-3-c"
    ARCHIVING_AND_RESEARCH = "art-17-3-d"
    LEGAL_CLAIMS = "art-17-3-e"
    UNFOUNDED_OR_EXCESSIVE = "art-12-5"
    NOT_IDENTIFIED = "art-12-2"  # the end of an identity check alone


class DeadlineInterval(PartOfRequest, Base):
    """An extension, or a time during which the clock stood still. Rows are closed, never removed.

    The period itself is none: the request has its beginning, and the earliest row its first end.
    """

    __tablename__ = "deadline_interval"
    __table_args__ = (
        CheckConstraint("kind IN ('extension', 'identity-check')", name="kind"),
        CheckConstraint(
            "(kind = 'extension') = (months IS NOT NULL AND reason IS NOT NULL)", name="extension"
        ),
        CheckConstraint(
            "(ended_at IS NULL) = (outcome IS NULL)"
            " AND (kind = 'identity-check' OR ended_at IS NULL)",
            name="outcome",
        ),
        Index("ix_deadline_interval_request_id_began_at", "request_id", "began_at"),
        Index(
            "uq_deadline_interval_one_extension",
            "request_id",
            unique=True,
            postgresql_where=text("kind = 'extension'"),
        ),
        Index(
            "uq_deadline_interval_one_open_check",
            "request_id",
            unique=True,
            postgresql_where=text("kind = 'identity-check' AND ended_at IS NULL"),
        ),
    )

    id: Mapped[Id]
    request_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("unlearning_request.id"))
    kind: Mapped[str]
    began_at: Mapped[datetime.datetime]
    ended_at: Mapped[datetime.datetime | None]  # of a check
    outcome: Mapped[str | None]  # of a check that ended
    months: Mapped[int | None]  # of an extension
    reason: Mapped[str | None]  # of an extension, coded
    # The controller's own words. They may name a person, so the log does not have them.
    explanation: Mapped[str]
    due_before: Mapped[datetime.datetime]  # the deadline that it found
    due_after: Mapped[datetime.datetime | None]  # what it made of it; None while the clock stands
