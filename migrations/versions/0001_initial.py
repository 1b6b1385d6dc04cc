"""Models, revisions, unlearning requests, artifacts, API keys, and the append-only audit log.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

# Triggers a statement fire even for one that touches no row, and ALWAYS means that
# session_replication_role = replica does not switch them off.
REFUSE_CHANGE = """
CREATE FUNCTION lethe_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'The log is never changed; append an entry that corrects the earlier one.';
END $$
"""

HEAD_MOVES_BY_ONE = """
CREATE FUNCTION lethe_head_moves_by_one() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.size IS DISTINCT FROM OLD.size + 1 OR NEW.id IS DISTINCT FROM OLD.id
       OR NOT EXISTS (SELECT FROM audit_entry
                      WHERE index = OLD.size AND chain_hash = NEW.chain_hash) THEN
        RAISE EXCEPTION 'audit_head moves by exactly one written entry: % -> % refused',
                        OLD.size, NEW.size
            USING ERRCODE = 'restrict_violation',
                  HINT = 'Append through app.evidence.service.append.';
    END IF;
    RETURN NEW;
END $$
"""

# Table, trigger, when it fires, function.
TRIGGERS = (
    (
        "audit_entry",
        "audit_entry_append_only",
        "BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entry FOR EACH STATEMENT",
        "lethe_refuse_change",
    ),
    (
        "evidence_record",
        "evidence_record_append_only",
        "BEFORE UPDATE OR DELETE OR TRUNCATE ON evidence_record FOR EACH STATEMENT",
        "lethe_refuse_change",
    ),
    (
        "audit_head",
        "audit_head_stays",
        "BEFORE DELETE OR TRUNCATE ON audit_head FOR EACH STATEMENT",
        "lethe_refuse_change",
    ),
    (
        "audit_head",
        "audit_head_moves_by_one",
        "BEFORE UPDATE ON audit_head FOR EACH ROW",
        "lethe_head_moves_by_one",
    ),
)

# The empty log: its chain hash is SHA-256 of nothing.
EMPTY_LOG = r"""
INSERT INTO audit_head (id, size, chain_hash)
VALUES (1, 0, '\xe3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855')
"""


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", JSONB(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
    )
    op.create_table(
        "artifact",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("location", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("ciphertext_sha256", sa.String(), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("shredded_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifact")),
    )
    op.create_table(
        "audit_entry",
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(), nullable=False),
        sa.Column("chain_hash", sa.LargeBinary(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("index", name=op.f("pk_audit_entry")),
    )
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("chain_hash", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_audit_head_single_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_head")),
    )
    op.create_table(
        "idempotent_answer",
        sa.Column("api_key_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", JSONB(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["api_key_id"], ["api_key.id"], name=op.f("fk_idempotent_answer_api_key_id_api_key")
        ),
        sa.PrimaryKeyConstraint("api_key_id", "key", name=op.f("pk_idempotent_answer")),
    )
    op.create_index(
        op.f("ix_idempotent_answer_created_at"), "idempotent_answer", ["created_at"], unique=False
    )
    op.create_table(
        "model",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("manifest", JSONB(), nullable=False),
        sa.Column("current_revision", sa.Integer(), nullable=False),
        sa.Column("wrapped_digest_key", sa.LargeBinary(), nullable=False),
        sa.Column("holdout_artifact_id", sa.Uuid(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "state IN ('active', 'retraining_required', 'retired')", name=op.f("ck_model_state")
        ),
        sa.ForeignKeyConstraint(
            ["holdout_artifact_id"],
            ["artifact.id"],
            name=op.f("fk_model_holdout_artifact_id_artifact"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model")),
    )
    op.create_table(
        "unlearning_job",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["model_id"], ["model.id"], name=op.f("fk_unlearning_job_model_id_model")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_unlearning_job")),
    )
    op.create_index(
        "uq_unlearning_job_one_running_a_model",
        "unlearning_job",
        ["model_id"],
        unique=True,
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_table(
        "unlearning_request",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("arrival", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("options", JSONB(), nullable=False),
        sa.Column("subject_reference", sa.String(), nullable=True),
        sa.Column("sample_count", sa.Integer(), nullable=False),
        sa.Column("sample_commitment", sa.String(), nullable=False),
        sa.Column("wrapped_commitment_key", sa.LargeBinary(), nullable=True),
        sa.Column("samples_artifact_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("progress", JSONB(), nullable=True),
        sa.Column("result", JSONB(), nullable=True),
        sa.Column("refusal", JSONB(), nullable=True),
        sa.Column("failure", JSONB(), nullable=True),
        sa.Column("resulting_revision", sa.Integer(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'completed', 'refused', 'failed', 'cancelled')",
            name=op.f("ck_unlearning_request_state"),
        ),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["unlearning_job.id"],
            name=op.f("fk_unlearning_request_job_id_unlearning_job"),
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["model.id"], name=op.f("fk_unlearning_request_model_id_model")
        ),
        sa.ForeignKeyConstraint(
            ["samples_artifact_id"],
            ["artifact.id"],
            name=op.f("fk_unlearning_request_samples_artifact_id_artifact"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_unlearning_request")),
        sa.UniqueConstraint("arrival", name=op.f("uq_unlearning_request_arrival")),
    )
    op.create_index(
        "ix_unlearning_request_model_id_arrival",
        "unlearning_request",
        ["model_id", "arrival"],
        unique=False,
    )
    op.create_index(
        "ix_unlearning_request_queue",
        "unlearning_request",
        ["arrival"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_table(
        "evidence_record",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("entry_index", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint", JSONB(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["entry_index"],
            ["audit_entry.index"],
            name=op.f("fk_evidence_record_entry_index_audit_entry"),
        ),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["unlearning_request.id"],
            name=op.f("fk_evidence_record_request_id_unlearning_request"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evidence_record")),
        sa.UniqueConstraint("entry_index", name=op.f("uq_evidence_record_entry_index")),
        sa.UniqueConstraint("request_id", name=op.f("uq_evidence_record_request_id")),
    )
    op.create_table(
        "forgotten_sample",
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["model.id"], name=op.f("fk_forgotten_sample_model_id_model")
        ),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["unlearning_request.id"],
            name=op.f("fk_forgotten_sample_request_id_unlearning_request"),
        ),
        sa.PrimaryKeyConstraint("model_id", "digest", name=op.f("pk_forgotten_sample")),
    )
    op.create_table(
        "revision",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("n_samples", sa.Integer(), nullable=False),
        sa.Column("gradient_norm_bound", sa.Double(), nullable=False),
        sa.Column("weights_artifact_id", sa.Uuid(), nullable=False),
        sa.Column("weights_sha256", sa.String(), nullable=False),
        sa.Column("statistics_artifact_id", sa.Uuid(), nullable=True),
        sa.Column("statistics_sha256", sa.String(), nullable=True),
        sa.Column("request_id", sa.Uuid(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["model.id"], name=op.f("fk_revision_model_id_model")
        ),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["unlearning_request.id"],
            name=op.f("fk_revision_request_id_unlearning_request"),
        ),
        sa.ForeignKeyConstraint(
            ["statistics_artifact_id"],
            ["artifact.id"],
            name=op.f("fk_revision_statistics_artifact_id_artifact"),
        ),
        sa.ForeignKeyConstraint(
            ["weights_artifact_id"],
            ["artifact.id"],
            name=op.f("fk_revision_weights_artifact_id_artifact"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_revision")),
        sa.UniqueConstraint("model_id", "number", name=op.f("uq_revision_model_id_number")),
    )

    op.execute(REFUSE_CHANGE)
    op.execute(HEAD_MOVES_BY_ONE)
    for table, name, fires, function in TRIGGERS:
        op.execute(f"CREATE TRIGGER {name} {fires} EXECUTE FUNCTION {function}()")
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")
    op.execute(EMPTY_LOG)


def downgrade() -> None:
    # Dropping a table takes its indexes and triggers along.
    for table in (
        "revision",
        "forgotten_sample",
        "evidence_record",
        "unlearning_request",
        "unlearning_job",
        "model",
        "idempotent_answer",
        "audit_head",
        "audit_entry",
        "artifact",
        "api_key",
    ):
        op.drop_table(table)
    op.execute("DROP FUNCTION lethe_head_moves_by_one()")
    op.execute("DROP FUNCTION lethe_refuse_change()")
