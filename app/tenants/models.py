"""Table of tenants, and the marks by which every other table says whose its rows are."""

import uuid
from typing import ClassVar

from sqlalchemy import ForeignKey, Uuid, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Id

DEFAULT_TENANT = "default"
DEFAULT_TENANT_ID = uuid.UUID("00000000-0000-7000-8000-000000000001")  # migration 0010 made it
# What processes of earlier versions write belongs to the only tenant there was.
OF_THE_DEFAULT = text(f"'{DEFAULT_TENANT_ID}'::uuid")

# Owned tables, by the name under which ids of their rows stand in log entries and messages.
OWNERS: dict[str, type["Owned"]] = {}


class Tenant(Base):
    """Somebody with models, requests and keys of their own. Rows are never removed."""

    __tablename__ = "tenant"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[CreatedAt]


class Owned:
    """Mark of a table whose rows say themselves whose they are."""

    __subject__: ClassVar[str]

    id: Mapped[Id]
    tenant_id: Mapped[uuid.UUID] = mapped_column(
        Uuid, ForeignKey("tenant.id"), default=DEFAULT_TENANT_ID, server_default=OF_THE_DEFAULT
    )

    def __init_subclass__(cls) -> None:
        """Take a table into `OWNERS`."""
        OWNERS[cls.__subject__] = cls
        super().__init_subclass__()


class PartOfModel:
    """Mark of a table whose rows are of the tenant of their `model_id`."""

    model_id: Mapped[uuid.UUID] = mapped_column()  # each table says what it refers to


class PartOfRequest:
    """Mark of a table whose rows are of the tenant of their `request_id`."""

    request_id: Mapped[uuid.UUID] = mapped_column()  # each table says what it refers to


class PartOfWebhook:
    """Mark of a table whose rows are of the tenant of their `webhook_id`."""

    webhook_id: Mapped[uuid.UUID] = mapped_column()  # each table says what it refers to
