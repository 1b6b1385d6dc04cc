"""HTTP of the privacy budget: read it."""

import uuid

from fastapi import APIRouter

from app.budget import repository, service
from app.budget.schemas import BudgetEntryOut, BudgetOut
from app.errors import BudgetNotFoundError, ModelNotFoundError
from app.http.dependencies import Reader, SessionDep
from app.http.paging import DEFAULT_LIMIT, Cursor, Limit, fetch_page
from app.http.problems import responses
from app.registry import service as registry
from core.vocabulary import Mechanism

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("/{model_id}/budget", responses=responses(ModelNotFoundError, BudgetNotFoundError))
def read_budget(
    model_id: uuid.UUID,
    _caller: Reader,
    session: SessionDep,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> BudgetOut:
    """Read what deletions have spent of a model's (ε, δ) budget, and each movement of it."""
    account = service.find_account(session, registry.get(session, model_id).id)
    entries, following = fetch_page(
        session,
        repository.list_entries(account.model_id),
        limit=limit,
        cursor=cursor,
        ordered_by=int,
    )
    return BudgetOut(
        mechanism=Mechanism(account.mechanism),
        epsilon=account.epsilon,
        delta=account.delta,
        sigma=account.sigma,
        measure=account.measure,
        limit=account.limit_value,
        spent=account.spent,
        reserved=account.reserved,
        left=service.budget_of(account).left,
        entries=[BudgetEntryOut.model_validate(entry) for entry in entries],
        next_cursor=following,
    )
