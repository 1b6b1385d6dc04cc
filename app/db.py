"""Database: engine, declarative base, and the few types that every table uses."""

import datetime
import uuid
from typing import Annotated, Any

import uuid_utils.compat
from sqlalchemy import DateTime, Engine, MetaData, Uuid, create_engine, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column, sessionmaker


class Base(DeclarativeBase):
    """Base of all tables; constraint names are fixed so that migrations can drop them."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own attribute
        datetime.datetime: DateTime(timezone=True),
        # Without it a None that is set would become JSON's null instead of SQL's.
        dict[str, Any]: JSONB(none_as_null=True),
        list[str]: JSONB,
    }
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def new_id() -> uuid.UUID:
    """Return a new UUIDv7 (RFC 9562 §5.7): ids sort by the time they were made."""
    return uuid_utils.compat.uuid7()


Id = Annotated[uuid.UUID, mapped_column(Uuid, primary_key=True, default=new_id)]
# The database's clock, not the hosts': all of a deployment's processes agree on it.
CreatedAt = Annotated[datetime.datetime, mapped_column(server_default=func.now())]


def make_engine(database_url: str) -> Engine:
    """Return an engine whose connections notice a lost server instead of hanging on it."""
    return create_engine(
        database_url,
        pool_pre_ping=True,
        hide_parameters=True,  # a logged SQL error would quote samples and keys
        connect_args={"connect_timeout": 5, "options": "-c timezone=UTC"},
    )


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Return the session factory of an engine; objects stay readable after a commit."""
    return sessionmaker(engine, expire_on_commit=False)
