"""Narrows a session to one tenant: whatever it asks for, rows of others are not there.

The condition is added to every ORM statement of such a session, its subqueries and aliases too, so
that no route has to think of it and none can forget it. Sessions of the worker, the sweeper and the
commands are not narrowed: they work for all tenants.
"""

import functools
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, TextClause, event, select
from sqlalchemy.orm import ORMExecuteState, Session, UOWTransaction, with_loader_criteria
from sqlalchemy.orm.interfaces import ORMOption

from app.registry.models import Model
from app.tenants.models import OWNERS, Owned, PartOfModel, PartOfRequest, PartOfWebhook
from app.unlearning.models import UnlearningRequest
from app.webhooks.models import Webhook

# Tables that are of no tenant, or that no route reaches but through a row that is.
APART = {
    "tenant": "what tenants are told apart by",
    "audit_log": "one tree for all: what is appended proves the same to everybody",
    "audit_entry": "proofs need the hashes of all entries; `list_entries` hides others' bodies",
    "audit_checkpoint": "the tree's size and root alone",
    "audit_anchor": "where checkpoints went",
    "signing_key": "the service's own, public",
    "artifact": "no route takes its id: it is reached through a model, revision or request alone",
    "idempotent_answer": "found by the caller's own key alone, which is part of its primary key",
}

_TENANT = "lethe.tenant"  # in the session's info


class ForeignRowError(RuntimeError):
    """A session of one tenant was about to write a row of another: a mistake of ours."""


def narrow(session: Session, tenant_id: uuid.UUID) -> None:
    """Have a new session see and write rows of one tenant alone, as long as it lives."""
    session.info[_TENANT] = tenant_id


def tenant_of_session(session: Session) -> uuid.UUID | None:
    """Return whom a session was narrowed to; None if it works for all."""
    tenant_id: uuid.UUID | None = session.info.get(_TENANT)
    return tenant_id


def tenant_of(session: Session, subject: Mapping[str, Any]) -> uuid.UUID | None:
    """Return whose a log entry or a message is, by the ids in it; None if it is the service's own.

    A narrowed session knows. In another, a row that it has not got at hand is asked for.
    """
    if (narrowed := tenant_of_session(session)) is not None:
        return narrowed
    for name, owner in OWNERS.items():
        if (found := _id_in(subject, name)) is not None:
            row = session.get(owner, found)
            if row is not None:
                return row.tenant_id
    return None


def _id_in(subject: Mapping[str, Any], name: str) -> uuid.UUID | None:
    """Return an id; None if there is none. The log takes any text, and what is no id is no row."""
    try:
        return uuid.UUID(str(subject[name]))
    except (KeyError, ValueError):
        return None


@functools.lru_cache(maxsize=1024)
def _criteria(tenant_id: uuid.UUID) -> tuple[ORMOption, ...]:
    # Lambdas, which SQLAlchemy analyses once and whose SQL it caches, with the tenant as a bound
    # value; each written out, since it knows them by their code.
    return (
        _criterion(Owned, lambda table: table.tenant_id == tenant_id),
        _criterion(
            PartOfModel,
            lambda table: table.model_id.in_(select(Model.id).where(Model.tenant_id == tenant_id)),
        ),
        _criterion(
            PartOfRequest,
            lambda table: table.request_id.in_(
                select(UnlearningRequest.id).where(UnlearningRequest.tenant_id == tenant_id)
            ),
        ),
        _criterion(
            PartOfWebhook,
            lambda table: table.webhook_id.in_(
                select(Webhook.id).where(Webhook.tenant_id == tenant_id)
            ),
        ),
    )


def _criterion(mark: type, condition: Callable[[Any], ColumnElement[bool]]) -> ORMOption:
    return with_loader_criteria(mark, condition, include_aliases=True, propagate_to_loaders=False)


@event.listens_for(Session, "do_orm_execute")
def _narrow_statement(state: ORMExecuteState) -> None:
    tenant_id = tenant_of_session(state.session)
    # A column load completes a row that the session has got already.
    if tenant_id is None or state.is_column_load:
        return
    if isinstance(state.statement, TextClause):
        raise ForeignRowError("a session of one tenant cannot narrow SQL that is plain text")
    if state.is_orm_statement and (state.is_select or state.is_update or state.is_delete):
        statement: Any = state.statement
        state.statement = statement.options(*_criteria(tenant_id))


@event.listens_for(Session, "before_flush")
def _check_rows(session: Session, _context: UOWTransaction, _instances: object) -> None:
    tenant_id = tenant_of_session(session)
    if tenant_id is None:
        return
    for row in (*session.new, *session.dirty):
        if isinstance(row, Owned):
            if row in session.new and row.tenant_id is None:
                row.tenant_id = tenant_id
            if row.tenant_id != tenant_id:
                raise ForeignRowError(
                    f"a row of {type(row).__name__} is of tenant {row.tenant_id}, not {tenant_id}"
                )
