"""Membership digests, surrogates, releases with noise, and the privacy budget's ledger.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

# Every model that there was before had the squared loss.
TIERS_SO_FAR = """
UPDATE unlearning_request
SET tier = CASE method WHEN 'stored' THEN 'exact' ELSE 'estimated' END
"""

# As for the log: ALWAYS, so that session_replication_role = replica does not switch it off.
LEDGER_IS_APPEND_ONLY = (
    """CREATE TRIGGER budget_entry_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON budget_entry
    FOR EACH STATEMENT EXECUTE FUNCTION lethe_refuse_change()""",
    "ALTER TABLE budget_entry ENABLE ALWAYS TRIGGER budget_entry_append_only",
)

# The version before knows no releases, and would serve the weights that they hide; nor a ledger,
# which is append-only, or who was trained on, so that strangers would be subtracted again.
REFUSE_TO_UNCOVER = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM revision WHERE release_artifact_id IS NOT NULL) THEN
        RAISE EXCEPTION 'models with output perturbation exist: downgrade refused'
            USING ERRCODE = 'restrict_violation',
                  HINT = 'The version before would serve their weights without noise.';
    END IF;
    IF EXISTS (SELECT FROM budget_entry) THEN
        RAISE EXCEPTION 'models with a privacy budget exist: downgrade refused'
            USING ERRCODE = 'restrict_violation',
                  HINT = 'Their ledger is append-only, and would be dropped.';
    END IF;
    IF EXISTS (SELECT FROM training_digest) THEN
        RAISE EXCEPTION 'models with digests of their training samples exist: downgrade refused'
            USING ERRCODE = 'restrict_violation',
                  HINT = 'The version before would take deletions of samples unchecked.';
    END IF;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "training_digest",
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("copies", sa.Integer(), nullable=False),
        sa.CheckConstraint("copies >= 0", name=op.f("ck_training_digest_copies")),
        sa.ForeignKeyConstraint(
            ["model_id"], ["model.id"], name=op.f("fk_training_digest_model_id_model")
        ),
        sa.PrimaryKeyConstraint("model_id", "digest", name=op.f("pk_training_digest")),
    )
    op.create_table(
        "budget_account",
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("mechanism", sa.String(), nullable=False),
        sa.Column("epsilon", sa.Double(), nullable=False),
        sa.Column("delta", sa.Double(), nullable=False),
        sa.Column("sigma", sa.Double(), nullable=False),
        sa.Column("measure", sa.String(), nullable=False),
        sa.Column("limit_value", sa.Double(), nullable=False),
        sa.Column("spent", sa.Double(), nullable=False),
        sa.Column("reserved", sa.Double(), nullable=False),
        sa.Column("reserved_by", sa.Uuid(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("0 < limit_value", name=op.f("ck_budget_account_limit_positive")),
        sa.CheckConstraint(
            "0 <= spent AND spent <= limit_value",
            name=op.f("ck_budget_account_spent_within_limit"),
        ),
        sa.CheckConstraint(
            "0 <= reserved AND reserved <= limit_value",
            name=op.f("ck_budget_account_reserved_within_limit"),
        ),
        sa.CheckConstraint(
            "reserved = 0 OR reserved_by IS NOT NULL",
            name=op.f("ck_budget_account_reserved_by_somebody"),
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["model.id"], name=op.f("fk_budget_account_model_id_model")
        ),
        sa.ForeignKeyConstraint(
            ["reserved_by"],
            ["unlearning_job.id"],
            name=op.f("fk_budget_account_reserved_by_unlearning_job"),
        ),
        sa.PrimaryKeyConstraint("model_id", name=op.f("pk_budget_account")),
    )
    op.create_table(
        "budget_entry",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.Column("spent_after", sa.Double(), nullable=False),
        sa.Column(
            "at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "kind IN ('open', 'reserve', 'spend', 'release')", name=op.f("ck_budget_entry_kind")
        ),
        sa.ForeignKeyConstraint(
            ["model_id"],
            ["budget_account.model_id"],
            name=op.f("fk_budget_entry_model_id_budget_account"),
        ),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["unlearning_request.id"],
            name=op.f("fk_budget_entry_request_id_unlearning_request"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budget_entry")),
    )
    op.create_index("ix_budget_entry_model_id_id", "budget_entry", ["model_id", "id"])
    for statement in LEDGER_IS_APPEND_ONLY:
        op.execute(statement)

    op.add_column("model", sa.Column("state_reason", sa.String(), nullable=True))
    op.add_column("model", sa.Column("wrapped_noise_key", sa.LargeBinary(), nullable=True))
    op.add_column(
        "model",
        sa.Column("has_membership", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.alter_column("model", "has_membership", server_default=None)
    op.add_column("model", sa.Column("surrogate_artifact_id", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        op.f("fk_model_surrogate_artifact_id_artifact"),
        "model",
        "artifact",
        ["surrogate_artifact_id"],
        ["id"],
    )

    op.add_column("revision", sa.Column("release_artifact_id", sa.Uuid(), nullable=True))
    op.add_column("revision", sa.Column("release_sha256", sa.String(), nullable=True))
    op.create_foreign_key(
        op.f("fk_revision_release_artifact_id_artifact"),
        "revision",
        "artifact",
        ["release_artifact_id"],
        ["id"],
    )
    op.create_check_constraint(
        op.f("ck_revision_release_has_a_digest"),
        "revision",
        "(release_artifact_id IS NULL) = (release_sha256 IS NULL)",
    )

    op.add_column("unlearning_request", sa.Column("tier", sa.String(), nullable=True))
    op.execute(TIERS_SO_FAR)
    op.alter_column("unlearning_request", "tier", nullable=False)


def downgrade() -> None:
    op.execute(REFUSE_TO_UNCOVER)
    op.drop_column("unlearning_request", "tier")
    # Dropping a column takes its constraints along, dropping a table its indexes and triggers.
    op.drop_column("revision", "release_sha256")
    op.drop_column("revision", "release_artifact_id")
    op.drop_column("model", "surrogate_artifact_id")
    op.drop_column("model", "has_membership")
    op.drop_column("model", "wrapped_noise_key")
    op.drop_column("model", "state_reason")
    op.drop_table("budget_entry")
    op.drop_table("budget_account")
    op.drop_table("training_digest")
