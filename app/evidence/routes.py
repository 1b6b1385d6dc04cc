"""What auditors and clients read over HTTP: the log, its checkpoint and key, and signed records."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.errors import NoCertificateError, RecordNotFoundError, RequestNotFoundError
from app.evidence import repository, service
from app.evidence.formats import (
    CHECKPOINT_TYPE,
    Bundle,
    CheckpointOut,
    CheckpointStatement,
    EntryOut,
    EntryPage,
)
from app.evidence.models import AuditEntry
from app.evidence.signing import read_payload
from app.evidence.statements import read_document, read_entry
from app.http.dependencies import AuditReader, Reader, SessionDep, SettingsDep, SignerDep
from app.http.paging import DEFAULT_LIMIT, Limit
from app.http.problems import responses

router = APIRouter(tags=["evidence"])

PEM = "application/x-pem-file"
# PostgreSQL's bigint: a larger index would fail in the database.
FirstIndex = Annotated[
    int, Query(ge=0, lt=2**63, description="Index to begin with: `next_cursor` of the page before.")
]


@router.get("/v1/audit/entries", responses=responses())
def list_entries(
    _caller: AuditReader, session: SessionDep, limit: Limit = DEFAULT_LIMIT, cursor: FirstIndex = 0
) -> EntryPage:
    """Read the audit log in order, from its first entry on."""
    found = repository.entries(session, start=cursor, limit=limit + 1)
    following = str(found[limit].index) if len(found) > limit else None
    return EntryPage(items=[_entry_out(entry) for entry in found[:limit]], next_cursor=following)


@router.get("/v1/audit/checkpoint", responses=responses())
def read_checkpoint(
    _caller: AuditReader, session: SessionDep, settings: SettingsDep, signer: SignerDep
) -> CheckpointOut:
    """Read the log's size and hash, signed. Keep it: a log that is rewritten contradicts it."""
    envelope = service.sign_checkpoint(session, signer, settings.log_origin)
    checkpoint = read_document(CheckpointStatement, read_payload(envelope, CHECKPOINT_TYPE))
    return CheckpointOut(**checkpoint.model_dump(), envelope=envelope)


@router.get(
    "/v1/audit/key",
    response_class=Response,
    responses=responses() | {200: {"content": {PEM: {"schema": {"type": "string"}}}}},
)
def read_key(_caller: AuditReader, signer: SignerDep) -> Response:
    """Read the public key of records and checkpoints. Compare it with one from another source."""
    return Response(signer.public_pem(), media_type=PEM)


@router.get(
    "/v1/unlearning-requests/{request_id}/record",
    response_model=Bundle,
    responses=responses(RequestNotFoundError, RecordNotFoundError),
)
def read_record(_caller: Reader, session: SessionDep, request_id: uuid.UUID) -> dict[str, Any]:
    """Read the signed record of an ended request, of any kind; `lethe verify` checks it offline."""
    return service.bundle(session, service.find_record(session, request_id))


@router.get(
    "/v1/unlearning-requests/{request_id}/certificate",
    response_model=Bundle,
    responses=responses(RequestNotFoundError, RecordNotFoundError, NoCertificateError),
)
def read_certificate(_caller: Reader, session: SessionDep, request_id: uuid.UUID) -> dict[str, Any]:
    """Read the signed record of a request that ended in a certificate."""
    return service.bundle(session, service.find_certificate(session, request_id))


def _entry_out(entry: AuditEntry) -> EntryOut:
    return EntryOut(
        **read_entry(entry.body).model_dump(),
        body=entry.body.decode(),
        leaf_hash=entry.leaf_hash.hex(),
        chain_hash=entry.chain_hash.hex(),
    )
