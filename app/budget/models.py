"""Tables of the privacy budget: one account a model, and an append-only ledger of its entries."""

import enum
import uuid

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt
from app.tenants.models import PartOfModel


class EntryKind(enum.StrEnum):
    """What moved in an account."""

    OPEN = "open"  # amount: the limit
    RESERVE = "reserve"  # amount: all that was left, for one job
    SPEND = "spend"  # amount: by how much `spent` changed; ends the reservation
    RELEASE = "release"  # amount: what a job that changed nothing gives back


class BudgetAccount(PartOfModel, Base):
    """How much of what a model's noise hides its deletions have used (METHOD §5)."""

    __tablename__ = "budget_account"
    __table_args__ = (
        CheckConstraint("0 < limit_value", name="limit_positive"),
        CheckConstraint("0 <= spent AND spent <= limit_value", name="spent_within_limit"),
        CheckConstraint("0 <= reserved AND reserved <= limit_value", name="reserved_within_limit"),
        CheckConstraint("reserved = 0 OR reserved_by IS NOT NULL", name="reserved_by_somebody"),
    )

    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("model.id"), primary_key=True)
    mechanism: Mapped[str]
    epsilon: Mapped[float]
    delta: Mapped[float]
    sigma: Mapped[float]
    # Name of the bound that is held against the limit; all amounts are values of it.
    measure: Mapped[str]
    limit_value: Mapped[float]
    # A state, not a sum: the bound at the current weights, every deletion of the lineage included.
    spent: Mapped[float] = mapped_column(default=0.0)
    reserved: Mapped[float] = mapped_column(default=0.0)
    reserved_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("unlearning_job.id"))
    created_at: Mapped[CreatedAt]


class BudgetEntry(PartOfModel, Base):
    """One movement of an account; triggers refuse changes."""

    __tablename__ = "budget_entry"
    __table_args__ = (
        CheckConstraint("kind IN ('open', 'reserve', 'spend', 'release')", name="kind"),
        Index("ix_budget_entry_model_id_id", "model_id", "id"),
    )

    # The account's row lock makes its order within a model that of the commits.
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("budget_account.model_id"))
    # The request whose job moved it; None for the opening.
    request_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("unlearning_request.id"))
    kind: Mapped[str]
    amount: Mapped[float]
    spent_after: Mapped[float]
    at: Mapped[CreatedAt]
