"""The audit log as a Merkle tree, with checkpoints, anchors and signing keys; retention.

A log that was kept as a chain of hashes is verified, converted, and goes on with an entry that says
where the chain ended; a chain that does not verify stops the upgrade instead of being made good.

Revision ID: 0004
Revises: 0003
"""

import hashlib
import json

import rfc8785
import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

BATCH = 10_000

# The end of a log moves forward only, over entries that were written, to the hash that they give;
# a closed log does not move. `frontier` is one hash for each 1 in the binary form of `size`.
LOG_MOVES_FORWARD = r"""
CREATE FUNCTION lethe_log_moves_forward() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last bytea;
    written bigint;
BEGIN
    IF NEW.id IS DISTINCT FROM OLD.id OR NEW.opened_at IS DISTINCT FROM OLD.opened_at
       OR (OLD.origin IS NOT NULL AND NEW.origin IS DISTINCT FROM OLD.origin)
       OR (OLD.closed_at IS NOT NULL AND NEW IS DISTINCT FROM OLD) THEN
        RAISE EXCEPTION 'audit_log %: its origin, beginning and end are never changed', OLD.id
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.size = OLD.size AND NEW.frontier = OLD.frontier THEN
        RETURN NEW;
    END IF;
    SELECT count(*) INTO written FROM audit_entry
    WHERE log_id = OLD.id AND index >= OLD.size AND index < NEW.size;
    SELECT subtrees INTO last FROM audit_entry WHERE log_id = OLD.id AND index = NEW.size - 1;
    IF NEW.size <= OLD.size OR written <> NEW.size - OLD.size
       OR octet_length(NEW.frontier) <> 32 * bit_count(NEW.size::bit(64))
       OR substring(NEW.frontier FROM octet_length(NEW.frontier) - 31)
          IS DISTINCT FROM substring(last FROM octet_length(last) - 31) THEN
        RAISE EXCEPTION 'audit_log moves forward over written entries only: % -> % refused',
                        OLD.size, NEW.size
            USING ERRCODE = 'restrict_violation',
                  HINT = 'Append through app.evidence.service.append.';
    END IF;
    RETURN NEW;
END $$
"""

# What rotation and revocation change of a key; everything else about it stands.
KEY_STAYS = """
CREATE FUNCTION lethe_key_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF ROW(NEW.id, NEW.role, NEW.public_key, NEW.log_id, NEW.valid_from, NEW.endorsement)
       IS DISTINCT FROM
       ROW(OLD.id, OLD.role, OLD.public_key, OLD.log_id, OLD.valid_from, OLD.endorsement)
       OR (OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at)
       OR (OLD.valid_until IS NOT NULL
           AND (NEW.valid_until IS NULL OR NEW.valid_until > OLD.valid_until))
       OR (OLD.compromised AND NOT NEW.compromised) THEN
        RAISE EXCEPTION 'signing_key: what was published of a key is never changed'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""

APPEND_ONLY = "BEFORE UPDATE OR DELETE OR TRUNCATE ON {0} FOR EACH STATEMENT"
STAYS = "BEFORE DELETE OR TRUNCATE ON {0} FOR EACH STATEMENT"
# Table, trigger, when it fires, function.
TRIGGERS = (
    ("audit_log", "audit_log_stays", STAYS, "lethe_refuse_change"),
    (
        "audit_log",
        "audit_log_moves_forward",
        "BEFORE UPDATE ON {0} FOR EACH ROW",
        "lethe_log_moves_forward",
    ),
    ("audit_checkpoint", "audit_checkpoint_append_only", APPEND_ONLY, "lethe_refuse_change"),
    ("audit_anchor", "audit_anchor_append_only", APPEND_ONLY, "lethe_refuse_change"),
    ("signing_key", "signing_key_stays", STAYS, "lethe_refuse_change"),
    ("signing_key", "signing_key_is_published", "BEFORE UPDATE ON {0} FOR EACH ROW",
     "lethe_key_stays"),
)  # fmt: skip

REFUSE_TO_FORGET_THE_TREE = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM audit_entry) THEN
        RAISE EXCEPTION 'the audit log has entries: downgrade refused'
            USING ERRCODE = 'restrict_violation',
                  HINT = 'The version before has neither its tree nor its checkpoints.';
    END IF;
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


def upgrade() -> None:
    _create_tables()
    op.add_column("artifact", sa.Column("retain_until", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_artifact_due",
        "artifact",
        ["retain_until"],
        postgresql_where=sa.text("retain_until IS NOT NULL AND wrapped_key IS NOT NULL"),
    )
    op.add_column("revision", sa.Column("served_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("unlearning_request", sa.Column("legal_ground", sa.String(), nullable=True))
    op.execute(
        """UPDATE api_key SET scopes = scopes || '["weights:read"]'"""
        " WHERE jsonb_exists(scopes, 'read') AND NOT jsonb_exists(scopes, 'weights:read')"
    )
    _convert_log()
    op.execute(LOG_MOVES_FORWARD)
    op.execute(KEY_STAYS)
    for table, name, fires, function in TRIGGERS:
        op.execute(f"CREATE TRIGGER {name} {fires.format(table)} EXECUTE FUNCTION {function}()")
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")


def downgrade() -> None:
    op.execute(REFUSE_TO_FORGET_THE_TREE)
    op.execute(
        "UPDATE api_key SET scopes = scopes - 'weights:read' WHERE jsonb_exists(scopes, 'read')"
    )
    op.drop_column("unlearning_request", "legal_ground")
    op.drop_column("revision", "served_until")
    op.drop_column("artifact", "retain_until")
    op.drop_constraint(op.f("fk_evidence_record_log_id_audit_entry"), "evidence_record")
    op.drop_constraint(op.f("uq_evidence_record_log_id_entry_index"), "evidence_record")
    op.drop_column("evidence_record", "log_id")
    op.add_column("evidence_record", sa.Column("checkpoint", JSONB(), nullable=False))
    for table in ("signing_key", "audit_anchor", "audit_checkpoint"):
        op.drop_table(table)
    op.drop_constraint(op.f("pk_audit_entry"), "audit_entry")
    op.drop_column("audit_entry", "log_id")
    op.drop_column("audit_entry", "subtrees")
    for name in ("leaf_hash", "chain_hash"):
        op.add_column("audit_entry", sa.Column(name, sa.LargeBinary(), nullable=False))
    op.create_primary_key(op.f("pk_audit_entry"), "audit_entry", ["index"])
    op.create_unique_constraint(
        op.f("uq_evidence_record_entry_index"), "evidence_record", ["entry_index"]
    )
    op.create_foreign_key(
        op.f("fk_evidence_record_entry_index_audit_entry"),
        "evidence_record",
        "audit_entry",
        ["entry_index"],
        ["index"],
    )
    op.drop_table("audit_log")
    op.execute("DROP FUNCTION lethe_log_moves_forward()")
    op.execute("DROP FUNCTION lethe_key_stays()")
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("chain_hash", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_audit_head_single_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_head")),
    )
    op.execute(HEAD_MOVES_BY_ONE)
    for name, fires, function in (
        ("audit_head_stays", STAYS.format("audit_head"), "lethe_refuse_change"),
        (
            "audit_head_moves_by_one",
            "BEFORE UPDATE ON audit_head FOR EACH ROW",
            "lethe_head_moves_by_one",
        ),
    ):
        op.execute(f"CREATE TRIGGER {name} {fires} EXECUTE FUNCTION {function}()")
        op.execute(f"ALTER TABLE audit_head ENABLE ALWAYS TRIGGER {name}")
    op.execute("INSERT INTO audit_head (id, size, chain_hash) VALUES (1, 0, sha256(''::bytea))")


def _create_tables() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("origin", sa.String(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("frontier", sa.LargeBinary(), nullable=False),
        sa.Column(
            "opened_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
        sa.UniqueConstraint("origin", name=op.f("uq_audit_log_origin")),
    )
    op.create_index(
        "uq_audit_log_one_open",
        "audit_log",
        [sa.text("(closed_at IS NULL)")],
        unique=True,
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_table(
        "audit_checkpoint",
        sa.Column("log_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["log_id"], ["audit_log.id"], name=op.f("fk_audit_checkpoint_log_id_audit_log")
        ),
        sa.PrimaryKeyConstraint("log_id", "size", name=op.f("pk_audit_checkpoint")),
    )
    op.create_table(
        "audit_anchor",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("log_id", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "kind IN ('folder', 'webhook', 'timestamp')", name=op.f("ck_audit_anchor_kind")
        ),
        sa.ForeignKeyConstraint(
            ["log_id", "size"],
            ["audit_checkpoint.log_id", "audit_checkpoint.size"],
            name=op.f("fk_audit_anchor_log_id_audit_checkpoint"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_anchor")),
    )
    op.create_index("ix_audit_anchor_log_id_size", "audit_anchor", ["log_id", "size"])
    op.create_table(
        "signing_key",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("log_id", sa.Integer(), nullable=True),
        sa.Column("valid_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("compromised", sa.Boolean(), nullable=False),
        sa.Column("endorsement", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("role IN ('records', 'checkpoints')", name=op.f("ck_signing_key_role")),
        sa.CheckConstraint(
            "(role = 'checkpoints') = (log_id IS NOT NULL)",
            name=op.f("ck_signing_key_checkpoints_are_of_a_log"),
        ),
        sa.ForeignKeyConstraint(
            ["log_id"], ["audit_log.id"], name=op.f("fk_signing_key_log_id_audit_log")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signing_key")),
    )


def _convert_log() -> None:
    """Turn the chain into the first log."""
    op.execute("ALTER TABLE audit_entry DISABLE TRIGGER audit_entry_append_only")
    op.execute("ALTER TABLE evidence_record DISABLE TRIGGER evidence_record_append_only")
    op.add_column(
        "audit_entry", sa.Column("log_id", sa.Integer(), server_default="1", nullable=False)
    )
    op.add_column("audit_entry", sa.Column("subtrees", sa.LargeBinary(), nullable=True))
    size, frontier, converted = _rebuild()
    op.get_bind().execute(
        sa.text("INSERT INTO audit_log (id, size, frontier) VALUES (1, :size, :frontier)"),
        {"size": size, "frontier": b"".join(frontier)},
    )
    op.drop_constraint(op.f("fk_evidence_record_entry_index_audit_entry"), "evidence_record")
    op.drop_constraint(op.f("uq_evidence_record_entry_index"), "evidence_record")
    op.drop_constraint(op.f("pk_audit_entry"), "audit_entry")
    op.drop_column("audit_entry", "leaf_hash")
    op.drop_column("audit_entry", "chain_hash")
    op.alter_column("audit_entry", "subtrees", nullable=False)
    op.alter_column("audit_entry", "log_id", server_default=None)
    op.create_primary_key(op.f("pk_audit_entry"), "audit_entry", ["log_id", "index"])
    op.create_foreign_key(
        op.f("fk_audit_entry_log_id_audit_log"), "audit_entry", "audit_log", ["log_id"], ["id"]
    )
    op.add_column(
        "evidence_record", sa.Column("log_id", sa.Integer(), server_default="1", nullable=False)
    )
    op.alter_column("evidence_record", "log_id", server_default=None)
    op.create_unique_constraint(
        op.f("uq_evidence_record_log_id_entry_index"), "evidence_record", ["log_id", "entry_index"]
    )
    op.create_foreign_key(
        op.f("fk_evidence_record_log_id_audit_entry"),
        "evidence_record",
        "audit_entry",
        ["log_id", "entry_index"],
        ["log_id", "index"],
    )
    op.drop_column("evidence_record", "checkpoint")
    op.drop_table("audit_head")
    op.execute("DROP FUNCTION lethe_head_moves_by_one()")
    for table in ("audit_entry", "evidence_record"):
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only")
    if converted is not None:
        _append(size, frontier, converted)


def _rebuild() -> tuple[int, list[bytes], dict[str, object] | None]:
    """Hash the entries anew, along the chain; return the tree's end and where the chain ended."""
    bind = op.get_bind()
    size, end = bind.execute(sa.text("SELECT size, chain_hash FROM audit_head")).one()
    chain, frontier = hashlib.sha256(b"").digest(), list[bytes]()
    for start in range(0, size, BATCH):
        rows = bind.execute(
            sa.text(
                "SELECT index, body, chain_hash FROM audit_entry"
                " WHERE index >= :start AND index < :stop ORDER BY index"
            ),
            {"start": start, "stop": start + BATCH},
        ).all()
        updates = []
        for expected, (index, body, stored) in enumerate(rows, start):
            leaf = hashlib.sha256(b"\x00" + body).digest()
            chain = hashlib.sha256(b"\x01" + chain + leaf).digest()
            if (index, stored) != (expected, chain):
                raise RuntimeError(
                    f"audit log: entry {expected} does not follow from the chain; the log was"
                    " damaged or altered, so it is not converted. Restore the database first."
                )
            updates.append({"i": index, "s": b"".join(_extend(frontier, index, leaf))})
        bind.execute(sa.text("UPDATE audit_entry SET subtrees = :s WHERE index = :i"), updates)
    if chain != end:
        raise RuntimeError("audit log: its end is not the one that its head names; restore it")
    if size == 0:
        return 0, [], None
    newest = bind.scalar(
        sa.text("SELECT checkpoint FROM evidence_record ORDER BY entry_index DESC LIMIT 1")
    )
    return size, frontier, {"chain_hash": end.hex(), "newest_checkpoint": newest, "size": size}


def _extend(frontier: list[bytes], index: int, leaf: bytes) -> list[bytes]:
    """Add a leaf to a tree of `index` leaves (RFC 9162 §2.1.1); return what it completes."""
    completed = [leaf]
    while index & 1:
        completed.append(hashlib.sha256(b"\x01" + frontier.pop() + completed[-1]).digest())
        index >>= 1
    frontier.append(completed[-1])
    return completed


def _append(size: int, frontier: list[bytes], payload: dict[str, object]) -> None:
    """Write the entry that ties the tree to the chain it was."""
    bind = op.get_bind()
    now = bind.scalar(sa.text("SELECT clock_timestamp() AT TIME ZONE 'UTC'"))
    body = rfc8785.dumps(
        json.loads(
            json.dumps(
                {
                    "index": size,
                    "time": now.isoformat(timespec="microseconds") + "Z",
                    "event": "log.converted",
                    "subject": {},
                    "payload": payload,
                }
            )
        )
    )
    leaf = hashlib.sha256(b"\x00" + body).digest()
    subtrees = b"".join(_extend(frontier, size, leaf))
    bind.execute(
        sa.text(
            "INSERT INTO audit_entry (log_id, index, body, subtrees, created_at)"
            " VALUES (1, :i, :b, :s, :t AT TIME ZONE 'UTC')"
        ),
        {"i": size, "b": body, "s": subtrees, "t": now},
    )
    bind.execute(
        sa.text("UPDATE audit_log SET size = :n, frontier = :f WHERE id = 1"),
        {"n": size + 1, "f": b"".join(frontier)},
    )
