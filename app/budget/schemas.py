"""What clients see of a budget."""

import datetime
import uuid

from pydantic import BaseModel, ConfigDict, Field

from app.budget.models import EntryKind
from core.vocabulary import Mechanism


class BudgetEntryOut(BaseModel):
    """One movement of an account."""

    model_config = ConfigDict(from_attributes=True)

    kind: EntryKind
    amount: float = Field(
        description="open: the limit; spend: by how much `spent` changed, which may be negative"
    )
    spent_after: float
    request_id: uuid.UUID | None = Field(description="null for the opening")
    at: datetime.datetime


class BudgetOut(BaseModel):
    """How much of what a model's noise hides its deletions have used.

    These figures have no noise: the (ε, δ) guarantee is of the weights, and does not cover them.
    """

    mechanism: Mechanism
    epsilon: float
    delta: float
    sigma: float
    measure: str = Field(description="Name of the bound that is held against the limit")
    limit: float = Field(description="Largest value of it that the noise hides")
    spent: float = Field(description="Its value at the current weights, all deletions included")
    reserved: float = Field(description="All that was left, while a deletion is being computed")
    left: float = Field(description="Neither spent nor reserved")
    entries: list[BudgetEntryOut] = Field(description="Newest first")
    next_cursor: str | None = Field(None, description="null on the last page")
