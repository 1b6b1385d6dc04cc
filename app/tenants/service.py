"""Making and finding tenants; for operators alone, on the command line."""

import re

from sqlalchemy import exists, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db import new_id
from app.errors import InvalidInputError
from app.evidence import service as evidence
from app.tenants.models import Tenant

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def create(session: Session, name: str, *, actor: str) -> Tenant:
    """Add a tenant. The log names its id alone: what somebody is called may be personal.

    Raises:
        InvalidInputError: The name is malformed, or another tenant's.
    """
    if NAME.fullmatch(name) is None:
        raise InvalidInputError(
            f"name: expected 1 to 63 of a-z, 0-9 and '-', not at either end, got {name!r}",
            field="name",
            remedy="Choose a name like 'radiology-2'.",
        )
    statement = (
        insert(Tenant).values(id=new_id(), name=name).on_conflict_do_nothing().returning(Tenant)
    )
    tenant = session.scalar(statement)
    if tenant is None:
        raise InvalidInputError(
            f"name: there is a tenant {name!r} already",
            field="name",
            remedy="Choose another name; `lethe tenants list` shows those there are.",
        )
    evidence.append(
        session, "tenant.created", subject={"tenant_id": str(tenant.id)}, payload={"actor": actor}
    )
    return tenant


def find(session: Session, name: str) -> Tenant:
    """Return a tenant by its name.

    Raises:
        InvalidInputError: There is none.
    """
    tenant = session.scalar(select(Tenant).where(Tenant.name == name))
    if tenant is None:
        raise InvalidInputError(
            f"tenant: there is no tenant {name!r}",
            field="tenant",
            remedy=f"`lethe tenants list` shows those there are; `lethe tenants create {name}`"
            " adds it.",
        )
    return tenant


def all_tenants(session: Session) -> list[Tenant]:
    """Return the tenants, the first made first."""
    return list(session.scalars(select(Tenant).order_by(Tenant.id)))


def are_several(session: Session) -> bool:
    """Tell whether there is anybody to keep something from."""
    return bool(session.scalar(select(exists(select(Tenant.id).offset(1)))))
