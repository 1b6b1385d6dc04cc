"""Which HTTP request made an unlearning request, for the logs; the index that metrics are read by.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("unlearning_request", sa.Column("http_request_id", sa.String(), nullable=True))
    op.create_index(
        "ix_unlearning_request_figures",
        "unlearning_request",
        ["state", "tier"],
        postgresql_include=["created_at", "started_at", "finished_at"],
    )


def downgrade() -> None:
    op.drop_index("ix_unlearning_request_figures", "unlearning_request")
    op.drop_column("unlearning_request", "http_request_id")
