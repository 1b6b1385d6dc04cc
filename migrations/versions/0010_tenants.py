"""Tenants: who owns models, requests, webhooks and API keys, and who may read a log entry.

Every row there is joins the tenant `default`, by a constant default: no row is rewritten, so that
the triggers which refuse changes to the log have nothing to refuse. The default stays, for what
processes of the earlier version write until they are replaced.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | None = None
depends_on: str | None = None

DEFAULT_ID = "00000000-0000-7000-8000-000000000001"
REFERRING = ("api_key", "model", "webhook")


def _tenant_id(*, nullable: bool = False) -> sa.Column[object]:
    default = sa.text(f"'{DEFAULT_ID}'::uuid")
    return sa.Column("tenant_id", sa.Uuid(), nullable=nullable, server_default=default)


def upgrade() -> None:
    op.create_table(
        "tenant",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenant")),
        sa.UniqueConstraint("name", name=op.f("uq_tenant_name")),
    )
    op.execute(f"INSERT INTO tenant (id, name) VALUES ('{DEFAULT_ID}', 'default')")  # noqa: S608
    for table in REFERRING:
        op.add_column(table, _tenant_id())
        op.create_foreign_key(
            op.f(f"fk_{table}_tenant_id_tenant"), table, "tenant", ["tenant_id"], ["id"]
        )
    op.add_column("unlearning_request", _tenant_id())
    op.create_index(
        "ix_unlearning_request_tenant_id_arrival", "unlearning_request", ["tenant_id", "arrival"]
    )
    op.add_column("audit_entry", _tenant_id(nullable=True))
    op.add_column(
        "api_key",
        sa.Column("whole_log", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )


def downgrade() -> None:
    # Without the columns everybody would read what everybody has.
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM tenant")) != 1:
        raise RuntimeError("there are several tenants, which the earlier version cannot tell apart")
    op.drop_column("api_key", "whole_log")
    op.drop_column("audit_entry", "tenant_id")
    op.drop_index("ix_unlearning_request_tenant_id_arrival", "unlearning_request")
    op.drop_column("unlearning_request", "tenant_id")
    for table in REFERRING:
        op.drop_column(table, "tenant_id")
    op.drop_table("tenant")
