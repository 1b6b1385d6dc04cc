"""Indexes for following one request's audit entries, and for finding requests by what was asked.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | None = None
depends_on: str | None = None

# The body is canonical JSON: its keys are sorted, so that it ends with the subject and the time. As
# text and not as jsonb: an index must not refuse a body that somebody has damaged.
REQUEST_OF_ENTRY = (
    "\"substring\"(encode(body, 'escape'),"
    ' \'"request_id":"([0-9a-f-]{36})"[^{}]*\\},"time":"[^"]*"\\}$\')'
)


def upgrade() -> None:
    op.create_index("ix_audit_entry_request_id", "audit_entry", [sa.text(REQUEST_OF_ENTRY)])
    op.create_index(
        "ix_unlearning_request_subject_reference_arrival",
        "unlearning_request",
        ["subject_reference", "arrival"],
        postgresql_where=sa.text("subject_reference IS NOT NULL"),
    )
    op.create_index(
        "ix_unlearning_request_state_arrival", "unlearning_request", ["state", "arrival"]
    )
    op.create_index("ix_unlearning_request_created_at", "unlearning_request", ["created_at"])


def downgrade() -> None:
    op.drop_index("ix_unlearning_request_created_at", "unlearning_request")
    op.drop_index("ix_unlearning_request_state_arrival", "unlearning_request")
    op.drop_index("ix_unlearning_request_subject_reference_arrival", "unlearning_request")
    op.drop_index("ix_audit_entry_request_id", "audit_entry")
