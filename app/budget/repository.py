"""Queries on budgets.

Whoever locks an account holds the lease of its model's job (app.unlearning), and there is one: so
nobody waits for an account, whether the log's head is locked before it or after.
"""

import uuid

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from app.budget.models import BudgetAccount, BudgetEntry


def find(session: Session, model_id: uuid.UUID) -> BudgetAccount | None:
    """Return a model's account, if noise was declared for it."""
    return session.get(BudgetAccount, model_id)


def lock(session: Session, model_id: uuid.UUID) -> BudgetAccount | None:
    """Return a model's account as it is now, locked until the transaction ends."""
    return session.scalar(
        select(BudgetAccount)
        .where(BudgetAccount.model_id == model_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def list_entries(model_id: uuid.UUID) -> Select[BudgetEntry]:
    """Return the statement for an account's entries, newest first."""
    return (
        select(BudgetEntry).where(BudgetEntry.model_id == model_id).order_by(BudgetEntry.id.desc())
    )
