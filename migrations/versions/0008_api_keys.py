"""API keys: when each was last used, and which one it follows.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("api_key", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_key", sa.Column("rotated_from", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        op.f("fk_api_key_rotated_from_api_key"), "api_key", "api_key", ["rotated_from"], ["id"]
    )


def downgrade() -> None:
    # Dropping a column takes its constraints along.
    op.drop_column("api_key", "rotated_from")
    op.drop_column("api_key", "last_used_at")
