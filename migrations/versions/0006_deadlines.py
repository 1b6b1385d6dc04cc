"""When requests were received and are due, what changed that, and requests held back in doubt.

What was asked for before was received when the service got it. Its deadline is counted in UTC, past
weekends alone: the settings of the calendar are from now on.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None

STATES = "'queued', 'running', 'completed', 'refused', 'failed', 'cancelled'"

# PostgreSQL's months are those of Regulation 1182/71: a month without the date ends with its last.
COUNT_FROM_ARRIVAL = """
UPDATE unlearning_request SET received_at = created_at, due_at = due.end_of_day
FROM (
    SELECT id, (last + CASE extract(isodow FROM last) WHEN 6 THEN 3 WHEN 7 THEN 2 ELSE 1 END::int)
               ::timestamp AT TIME ZONE 'UTC' AS end_of_day
    FROM (
        SELECT id, ((created_at AT TIME ZONE 'UTC')::date + interval '1 month')::date AS last
        FROM unlearning_request
    ) AS counted
) AS due
WHERE due.id = unlearning_request.id
"""

# The version before would compute what is in doubt, and cannot show why a controller said no.
REFUSE_TO_FORGET_DEADLINES = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM deadline_interval)
       OR EXISTS (SELECT FROM unlearning_request
                  WHERE state = 'identity_check' OR refusal->>'cause' = 'rejected-by-controller')
    THEN
        RAISE EXCEPTION 'deadlines were extended or suspended, or requests rejected: downgrade '
                        'refused'
            USING ERRCODE = 'restrict_violation',
                  HINT = 'The version before can neither show nor keep it.';
    END IF;
END $$
"""


def upgrade() -> None:
    for name in ("received_at", "due_at"):
        op.add_column(
            "unlearning_request", sa.Column(name, sa.DateTime(timezone=True), nullable=True)
        )
    op.add_column(
        "unlearning_request",
        sa.Column("extension_months", sa.Integer(), server_default="0", nullable=False),
    )
    op.execute(COUNT_FROM_ARRIVAL)
    op.alter_column(
        "unlearning_request", "received_at", nullable=False, server_default=sa.text("now()")
    )
    _allow_states(f"{STATES}, 'identity_check'")
    op.create_index(
        "ix_unlearning_request_due_at_arrival", "unlearning_request", ["due_at", "arrival"]
    )
    op.create_table(
        "deadline_interval",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("months", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("explanation", sa.String(), nullable=False),
        sa.Column("due_before", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_after", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "kind IN ('extension', 'identity-check')", name=op.f("ck_deadline_interval_kind")
        ),
        sa.CheckConstraint(
            "(kind = 'extension') = (months IS NOT NULL AND reason IS NOT NULL)",
            name=op.f("ck_deadline_interval_extension"),
        ),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (outcome IS NULL)"
            " AND (kind = 'identity-check' OR ended_at IS NULL)",
            name=op.f("ck_deadline_interval_outcome"),
        ),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["unlearning_request.id"],
            name=op.f("fk_deadline_interval_request_id_unlearning_request"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deadline_interval")),
    )
    op.create_index(
        "ix_deadline_interval_request_id_began_at", "deadline_interval", ["request_id", "began_at"]
    )
    op.create_index(
        "uq_deadline_interval_one_extension",
        "deadline_interval",
        ["request_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'extension'"),
    )
    op.create_index(
        "uq_deadline_interval_one_open_check",
        "deadline_interval",
        ["request_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'identity-check' AND ended_at IS NULL"),
    )


def downgrade() -> None:
    op.execute(REFUSE_TO_FORGET_DEADLINES)
    op.drop_table("deadline_interval")
    op.drop_index("ix_unlearning_request_due_at_arrival", "unlearning_request")
    _allow_states(STATES)
    for name in ("extension_months", "due_at", "received_at"):
        op.drop_column("unlearning_request", name)


def _allow_states(states: str) -> None:
    name = op.f("ck_unlearning_request_state")
    op.drop_constraint(name, "unlearning_request")
    op.create_check_constraint(name, "unlearning_request", f"state IN ({states})")
