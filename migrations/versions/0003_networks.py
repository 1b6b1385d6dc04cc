"""Networks that are linearised in their last layers: the weights that they are linearised around.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

# The version before would take their samples for those of a linear head.
REFUSE_TO_FORGET_NETWORKS = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM model WHERE network_artifact_id IS NOT NULL) THEN
        RAISE EXCEPTION 'models that are networks exist: downgrade refused'
            USING ERRCODE = 'restrict_violation',
                  HINT = 'The version before cannot compute with them.';
    END IF;
END $$
"""


def upgrade() -> None:
    op.add_column("model", sa.Column("network_artifact_id", sa.Uuid(), nullable=True))
    op.add_column("model", sa.Column("network_sha256", sa.String(), nullable=True))
    op.create_foreign_key(
        op.f("fk_model_network_artifact_id_artifact"),
        "model",
        "artifact",
        ["network_artifact_id"],
        ["id"],
    )
    op.create_check_constraint(
        op.f("ck_model_network_has_a_digest"),
        "model",
        "(network_artifact_id IS NULL) = (network_sha256 IS NULL)",
    )


def downgrade() -> None:
    op.execute(REFUSE_TO_FORGET_NETWORKS)
    # Dropping a column takes its constraints along.
    op.drop_column("model", "network_sha256")
    op.drop_column("model", "network_artifact_id")
