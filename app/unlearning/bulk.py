"""Many unlearning requests in one call: each item stands for itself, all of them commit together.

An item that is wrong is undone by its savepoint and answered with its problem; the others go on.
What is not an item's fault (the database, the disk, a closed log) undoes the whole call, which can
then be sent again with the same Idempotency-Key.
"""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.orm import Session

from app.errors import AppError
from app.http import problems
from app.registry import repository as registry_repository
from app.registry.schemas import Declared
from app.unlearning.models import UnlearningRequest
from app.unlearning.schemas import UnlearningOut, UnlearningWithSamplesIn

MAX_ITEMS = 1000


class BulkIn(Declared):
    """Unlearning requests, each as it would be sent alone; checked one by one."""

    requests: Annotated[
        list[Any],
        Field(
            min_length=1,
            max_length=MAX_ITEMS,
            json_schema_extra={"items": {"$ref": "#/components/schemas/UnlearningWithSamplesIn"}},
        ),
    ]


class BulkItemOut(BaseModel):
    """What became of one item: a request, or the problem that it would have got alone."""

    status: int = Field(description="The HTTP status that the item would have got alone")
    location: str | None = None
    request: UnlearningOut | None = None
    problem: problems.Problem | None = None


class BulkOut(BaseModel):
    """What became of the items, in their order."""

    accepted: int
    rejected: int
    items: list[BulkItemOut]


def read_items(items: Sequence[Any]) -> list[UnlearningWithSamplesIn | AppError]:
    """Check each item by itself; return it, or what is wrong with it."""
    return [_read_item(item) for item in items]


def _read_item(item: Any) -> UnlearningWithSamplesIn | AppError:
    try:
        return UnlearningWithSamplesIn.model_validate(item)
    except ValidationError as error:
        return problems.invalid_input(error.errors(include_url=False))


def lock_models(session: Session, items: Sequence[UnlearningWithSamplesIn | AppError]) -> None:
    """Lock every model of the items in one order, before anything is written.

    Locked in the order of the items, two calls could wait for each other's models in a circle.
    """
    for model_id in sorted({one.model_id for one in items if not isinstance(one, AppError)}):
        registry_repository.lock_model(session, model_id)


def each_apart(
    session: Session,
    items: Sequence[UnlearningWithSamplesIn | AppError],
    create: Callable[[UnlearningWithSamplesIn], UnlearningRequest],
) -> list[UnlearningRequest | AppError]:
    """Create each request within a savepoint of its own; return it, or why it was refused."""
    return [
        item if isinstance(item, AppError) else _create(session, item, create) for item in items
    ]


def _create(
    session: Session,
    item: UnlearningWithSamplesIn,
    create: Callable[[UnlearningWithSamplesIn], UnlearningRequest],
) -> UnlearningRequest | AppError:
    try:
        with session.begin_nested():
            return create(item)
    except AppError as error:
        if problems.STATUS[type(error)] >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        return error


def describe(
    results: Sequence[UnlearningRequest | AppError],
    prefix: str,
    show: Callable[[UnlearningRequest], UnlearningOut],
) -> BulkOut:
    """Return what became of the items, as clients get it; `show` tells of one as it would alone."""
    items = [
        _rejected(one) if isinstance(one, AppError) else _accepted(one, prefix, show)
        for one in results
    ]
    accepted = sum(item.request is not None for item in items)
    return BulkOut(accepted=accepted, rejected=len(items) - accepted, items=items)


def _accepted(
    request: UnlearningRequest, prefix: str, show: Callable[[UnlearningRequest], UnlearningOut]
) -> BulkItemOut:
    return BulkItemOut(
        status=HTTPStatus.ACCEPTED,
        location=f"{prefix}/{request.id}",
        request=show(request),
    )


def _rejected(error: AppError) -> BulkItemOut:
    problem = problems.Problem.model_validate_json(bytes(problems.respond_to(error).body))
    return BulkItemOut(status=problem.status, problem=problem)
