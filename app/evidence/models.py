"""Tables of the append-only audit log and of the signed records; triggers refuse changes."""

import enum
import uuid
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Id


class RecordKind(enum.StrEnum):
    """What a signed record is. Only tiers that guarantee something get a certificate."""

    CERTIFICATE = "certificate"
    CONDITIONAL = "conditional"  # completed; bounds rest on a declared distance
    ESTIMATE = "estimate"  # completed, but nothing is guaranteed
    REFUSAL = "refusal"
    FAILURE = "failure"


class AuditEntry(Base):
    """One entry of the log. The stored bytes are what is hashed, never re-serialised JSON."""

    __tablename__ = "audit_entry"

    # 0-based and gap-free: taken from `audit_head` under its row lock, in commit order.
    index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    body: Mapped[bytes]  # RFC 8785 canonical JSON
    leaf_hash: Mapped[bytes]
    chain_hash: Mapped[bytes]
    created_at: Mapped[CreatedAt]


class AuditHead(Base):
    """The single row whose lock puts entries in order: how many there are, and the chain's end."""

    __tablename__ = "audit_head"
    __table_args__ = (CheckConstraint("id = 1", name="single_row"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    size: Mapped[int] = mapped_column(BigInteger)
    chain_hash: Mapped[bytes]


class EvidenceRecord(Base):
    """A signed record about one unlearning request, in a DSSE envelope."""

    __tablename__ = "evidence_record"

    id: Mapped[Id]
    request_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("unlearning_request.id"), unique=True)
    kind: Mapped[str]
    envelope: Mapped[
        bytes
    ]  # canonical JSON; its payload is what was signed and what the entry hashes
    entry_index: Mapped[int] = mapped_column(ForeignKey("audit_entry.index"), unique=True)
    checkpoint: Mapped[dict[str, Any]]  # signed envelope, of size entry_index + 1
    created_at: Mapped[CreatedAt]
