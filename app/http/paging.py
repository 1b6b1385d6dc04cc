"""Cursor paging: `?limit=&cursor=`, the cursor being what `next_cursor` of the page before said."""

from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel
from sqlakeyset import BadBookmark, select_page, unserialize_bookmark
from sqlalchemy import Select
from sqlalchemy.exc import DataError
from sqlalchemy.orm import Session

from app.errors import InvalidInputError

MAX_LIMIT = 200

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="How many items a page has at most.")]
Cursor = Annotated[
    str | None, Query(max_length=200, description="`next_cursor` of the page before.")
]
DEFAULT_LIMIT = 50

Item = TypeVar("Item")
Row = TypeVar("Row")


class Page(BaseModel, Generic[Item]):
    """Some items, and where the next ones are."""

    items: list[Item]
    next_cursor: str | None = None


def fetch_page(
    session: Session,
    statement: Select[Row],
    *,
    limit: int,
    cursor: str | None,
    ordered_by: type | tuple[type, ...],
) -> tuple[list[Row], str | None]:
    """Return one page of an ordered statement, and the cursor of the next one if there is one.

    Args:
        session: Where to look.
        statement: What to look for.
        limit: How many items the page has at most.
        cursor: Where it begins; None for the first page.
        ordered_by: Type of the column that the statement is ordered by; several in their order.

    Raises:
        InvalidInputError: The cursor is none of ours.
    """
    kinds = ordered_by if isinstance(ordered_by, tuple) else (ordered_by,)
    place = None if cursor is None else _read_cursor(cursor, kinds)
    try:
        page: Any = select_page(session, statement, per_page=limit, after=place)
    except DataError as error:  # a number that the column cannot hold
        raise _foreign(cursor) from error
    following = page.paging.bookmark_next if page.paging.has_next else None
    return [row for (row,) in page], following


def _read_cursor(cursor: str, kinds: tuple[type, ...]) -> tuple[Any, ...]:
    try:
        place, backwards = unserialize_bookmark(cursor)
    except (BadBookmark, ValueError, KeyError, IndexError, OverflowError):
        place, backwards = None, False
    # A value of another type would only fail inside the database.
    if not place or backwards or tuple(map(type, place)) != kinds:
        raise _foreign(cursor)
    return tuple(place)


def _foreign(cursor: str | None) -> InvalidInputError:
    return InvalidInputError(
        f"cursor: {cursor!r} was not given out by this list",
        field="cursor",
        remedy="Send `next_cursor` of the page before, or none for the first page.",
    )
