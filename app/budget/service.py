"""The privacy budget of a lineage: open, reserve, spend, release, read (METHOD §5).

The arithmetic is `core.privacy.Budget`; here it gets rows, locks and a log. What is spent is a
state: the bound at the current weights, all deletions of the lineage included. A deletion reserves
whatever is left, since only its result tells what it needs, and one job at a time runs a model.

Functions flush; whoever opened the session commits. A model without an account has no budget to
keep: then `reserve`, `spend` and `release` do nothing.
"""

import uuid
from typing import Any

from sqlalchemy.orm import Session

from app.budget import repository
from app.budget.models import BudgetAccount, BudgetEntry, EntryKind
from app.errors import BudgetNotFoundError, LeaseLostError
from app.evidence import service as evidence
from app.evidence.records.schemas import MEASURES
from app.registry.models import Model
from core.privacy import Budget, Privacy, covered_norm


def open_account(session: Session, model: Model, privacy: Privacy) -> BudgetAccount:
    """Open the account of a model that is being registered; nothing is spent of it."""
    account = BudgetAccount(
        model_id=model.id,
        mechanism=str(privacy.mechanism),
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sigma=privacy.sigma,
        measure=MEASURES[privacy.mechanism],
        limit_value=covered_norm(privacy),
        spent=0.0,
        reserved=0.0,
    )
    session.add(account)
    session.flush()
    _enter(session, account, EntryKind.OPEN, account.limit_value, request_id=None)
    return account


def reserve(
    session: Session, model_id: uuid.UUID, *, job_id: uuid.UUID, request_id: uuid.UUID
) -> None:
    """Reserve all that is left for a job that holds the model's lease.

    Only one job of a model runs at a time: whatever another one still holds died with it, and is
    given back first. A job that reserves twice holds what it held.
    """
    account = repository.lock(session, model_id)
    if account is None or account.reserved_by == job_id:
        return
    if account.reserved_by is not None:
        _give_back(session, account, request_id=request_id)
    amount = budget_of(account).left
    if amount > 0:
        _move(account, budget_of(account).reserve(amount))
    account.reserved_by = job_id
    _enter(session, account, EntryKind.RESERVE, amount, request_id=request_id)


def spend(
    session: Session,
    model_id: uuid.UUID,
    total: float | None,
    *,
    job_id: uuid.UUID,
    request_id: uuid.UUID,
) -> None:
    """Say what the lineage has spent with this job's deletion; its reservation ends.

    Args:
        session: The transaction that writes the new revision.
        model_id: Whose account.
        total: `PrivacyStatement.spent`: the bound at the new weights. It may be less than before:
            a bound on the net step of all deletions does not grow with each of them. None where
            the deletion came without a bound that the noise could hide: then nothing is left
            until another deletion comes with one.
        job_id: Who reserved.
        request_id: For the ledger.

    Raises:
        LeaseLostError: The job holds no reservation.
        BudgetError: The total is beyond the limit.
    """
    account = repository.lock(session, model_id)
    if account is None:
        return
    if account.reserved_by != job_id:
        raise LeaseLostError(
            f"job {job_id} holds no reservation of the budget of model {model_id}",
            remedy="Drop what was computed; whoever holds the request now computes it again.",
        )
    before = account.spent
    budget = budget_of(account)
    if budget.reserved > 0:
        budget = budget.release(budget.reserved)
    _move(account, budget.settle(budget.limit if total is None else total))
    account.reserved_by = None
    _enter(session, account, EntryKind.SPEND, account.spent - before, request_id=request_id)


def release(
    session: Session, model_id: uuid.UUID, *, job_id: uuid.UUID, request_id: uuid.UUID
) -> None:
    """Give back what a job reserved and did not use; a job that holds nothing gives nothing."""
    account = repository.lock(session, model_id)
    if account is not None and account.reserved_by == job_id:
        _give_back(session, account, request_id=request_id)


def find_account(session: Session, model_id: uuid.UUID) -> BudgetAccount:
    """Return a model's account.

    Raises:
        BudgetNotFoundError: The model declared no noise.
    """
    account = repository.find(session, model_id)
    if account is None:
        raise BudgetNotFoundError(
            f"model {model_id} declared no noise, so it has no (ε, δ) budget",
            field="model_id",
            remedy="Train with objective perturbation, or release with output perturbation, and"
            " declare it in the manifest's `privacy` when registering.",
        )
    return account


def budget_of(account: BudgetAccount) -> Budget:
    """Return an account's figures as the value that knows their arithmetic."""
    return Budget(account.limit_value, spent=account.spent, reserved=account.reserved)


def _give_back(session: Session, account: BudgetAccount, *, request_id: uuid.UUID) -> None:
    amount = account.reserved
    if amount > 0:
        _move(account, budget_of(account).release(amount))
    account.reserved_by = None
    _enter(session, account, EntryKind.RELEASE, amount, request_id=request_id)


def _move(account: BudgetAccount, budget: Budget) -> None:
    account.spent, account.reserved = budget.spent, budget.reserved


def _enter(
    session: Session,
    account: BudgetAccount,
    kind: EntryKind,
    amount: float,
    *,
    request_id: uuid.UUID | None,
) -> None:
    """Write the ledger's entry and the audit log's."""
    session.add(
        BudgetEntry(
            model_id=account.model_id,
            request_id=request_id,
            kind=kind,
            amount=amount,
            spent_after=account.spent,
        )
    )
    session.flush()
    subject: dict[str, Any] = {"model_id": str(account.model_id)}
    if request_id is not None:
        subject["request_id"] = str(request_id)
    evidence.append(
        session,
        f"budget.{kind}",
        subject=subject,
        payload={
            "amount": amount,
            "spent": account.spent,
            "limit": account.limit_value,
            "measure": account.measure,
        },
    )
