"""Tables of the append-only audit log, its checkpoints, signed records and signing keys.

Triggers refuse changes (migrations 0001 and 0004).
"""

import datetime
import enum
import uuid

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Id
from app.tenants.models import OF_THE_DEFAULT, PartOfRequest


class RecordKind(enum.StrEnum):
    """What a signed record is. Only tiers that guarantee something get a certificate."""

    CERTIFICATE = "certificate"
    CONDITIONAL = "conditional"  # completed; bounds rest on a declared distance
    ESTIMATE = "estimate"  # completed, but nothing is guaranteed
    REFUSAL = "refusal"
    FAILURE = "failure"


class KeyRole(enum.StrEnum):
    """What a signing key may sign; a signature of the other role's key counts for nothing."""

    RECORDS = "records"  # DSSE envelopes
    CHECKPOINTS = "checkpoints"  # signed notes


class AnchorKind(enum.StrEnum):
    """Where a checkpoint went, out of reach of whoever holds the database."""

    FOLDER = "folder"
    WEBHOOK = "webhook"
    TIMESTAMP = "timestamp"  # RFC 3161


class AuditLog(Base):
    """One log: an origin and a Merkle tree (RFC 9162 §2.1). Its row lock puts entries in order.

    There is one open log. It is closed when its signing key is compromised; then a new one opens.
    """

    __tablename__ = "audit_log"
    __table_args__ = (
        UniqueConstraint("origin"),
        Index(
            "uq_audit_log_one_open",
            text("(closed_at IS NULL)"),
            unique=True,
            postgresql_where=text("closed_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    origin: Mapped[str | None]  # of its checkpoints; None until the first is signed
    size: Mapped[int] = mapped_column(BigInteger)
    frontier: Mapped[bytes]  # hashes of the tree's complete subtrees, the largest first
    opened_at: Mapped[CreatedAt]
    closed_at: Mapped[datetime.datetime | None]


# Which request an entry is about. Its body is canonical JSON: keys are sorted, so that it ends with
# the subject and the time. As text and not as jsonb: an index must not refuse a damaged body.
REQUEST_OF_ENTRY = (
    "\"substring\"(encode(body, 'escape'),"
    ' \'"request_id":"([0-9a-f-]{36})"[^{}]*\\},"time":"[^"]*"\\}$\')'
)


class AuditEntry(Base):
    """One entry of a log. The stored bytes are what is hashed, never re-serialised JSON."""

    __tablename__ = "audit_entry"
    __table_args__ = (Index("ix_audit_entry_request_id", text(REQUEST_OF_ENTRY)),)

    log_id: Mapped[int] = mapped_column(
        ForeignKey("audit_log.id"), primary_key=True, autoincrement=False
    )
    # 0-based and gap-free: taken from `audit_log` under its row lock, in commit order.
    index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    body: Mapped[bytes]  # RFC 8785 canonical JSON
    # Hashes of every complete subtree that ends with this entry, the leaf's own first. So each node
    # of the tree is stored once, with the entry that completed it, and never changes.
    subtrees: Mapped[bytes]
    # Who may read its body; None: what is the service's own. Beside what is hashed, not in it.
    tenant_id: Mapped[uuid.UUID | None] = mapped_column(server_default=OF_THE_DEFAULT)
    created_at: Mapped[CreatedAt]


class AuditCheckpoint(Base):
    """A signed statement of a log's size and root (C2SP tlog-checkpoint)."""

    __tablename__ = "audit_checkpoint"

    log_id: Mapped[int] = mapped_column(
        ForeignKey("audit_log.id"), primary_key=True, autoincrement=False
    )
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    root: Mapped[bytes]
    note: Mapped[str]
    created_at: Mapped[CreatedAt]


class AuditAnchor(Base):
    """That a checkpoint went somewhere outside this database; for timestamps, the answer."""

    __tablename__ = "audit_anchor"
    __table_args__ = (
        CheckConstraint("kind IN ('folder', 'webhook', 'timestamp')", name="kind"),
        ForeignKeyConstraint(
            ["log_id", "size"],
            ["audit_checkpoint.log_id", "audit_checkpoint.size"],
            name="fk_audit_anchor_log_id_audit_checkpoint",
        ),
        Index("ix_audit_anchor_log_id_size", "log_id", "size"),
    )

    id: Mapped[Id]
    log_id: Mapped[int]
    size: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str]
    target: Mapped[str]  # without credentials
    content: Mapped[bytes | None]  # DER of the TimeStampResp
    created_at: Mapped[CreatedAt]


class EvidenceRecord(PartOfRequest, Base):
    """A signed record about one unlearning request, in a DSSE envelope."""

    __tablename__ = "evidence_record"
    __table_args__ = (
        UniqueConstraint("log_id", "entry_index"),
        ForeignKeyConstraint(
            ["log_id", "entry_index"],
            ["audit_entry.log_id", "audit_entry.index"],
            name="fk_evidence_record_log_id_audit_entry",
        ),
    )

    id: Mapped[Id]
    request_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("unlearning_request.id"), unique=True)
    kind: Mapped[str]
    # Canonical JSON; its payload is what was signed and what the entry hashes.
    envelope: Mapped[bytes]
    log_id: Mapped[int]
    entry_index: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[CreatedAt]


class SigningKey(Base):
    """The public half of a key that signs, or once signed, and how long it counts."""

    __tablename__ = "signing_key"
    __table_args__ = (
        CheckConstraint("role IN ('records', 'checkpoints')", name="role"),
        CheckConstraint(
            "(role = 'checkpoints') = (log_id IS NOT NULL)", name="checkpoints_are_of_a_log"
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)  # SHA-256 of SubjectPublicKeyInfo, hex
    role: Mapped[str]
    public_key: Mapped[bytes]  # SubjectPublicKeyInfo, DER
    log_id: Mapped[int | None] = mapped_column(ForeignKey("audit_log.id"))
    valid_from: Mapped[datetime.datetime]
    valid_until: Mapped[datetime.datetime | None]
    revoked_at: Mapped[datetime.datetime | None]
    compromised: Mapped[bool] = mapped_column(default=False)
    endorsement: Mapped[bytes | None]  # by its predecessor; canonical JSON of a DSSE envelope
