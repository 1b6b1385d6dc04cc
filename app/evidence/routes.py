"""What auditors and clients read over HTTP: the log, its proofs and keys, and signed records."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.errors import (
    AnchorUnreadableError,
    AuditEntryNotFoundError,
    InconsistentLogError,
    InvalidInputError,
    KeyNotInForceError,
    NoCertificateError,
    PayloadTooLargeError,
    RecordNotFoundError,
    RequestNotFoundError,
    UnsupportedMediaTypeError,
)
from app.evidence import repository, service
from app.evidence.formats import (
    Bundle,
    CheckOut,
    CheckpointOut,
    ConsistencyProofOut,
    EntryOut,
    EntryPage,
    HiddenEntryOut,
    InclusionProofOut,
    VerificationIn,
    VerificationOut,
)
from app.evidence.keys import keyring
from app.evidence.keys.trust import KeyList, TrustedKeys
from app.evidence.models import AuditCheckpoint, AuditEntry
from app.evidence.records.statements import read_entry
from app.evidence.rendering import content_policy, render_html, render_pdf
from app.evidence.transparency.merkle import root_at
from app.evidence.verification import verify_bundle
from app.http.dependencies import AuditReader, NotaryDep, Reader, SessionDep
from app.http.paging import DEFAULT_LIMIT, Limit
from app.http.problems import responses
from app.http.uploads import UploadDep, json_body, read_json
from app.tenants import service as tenants

router = APIRouter(tags=["evidence"])

HTML = "text/html"
PDF = "application/pdf"
HASH_BYTES = 32

# What stands against a checkpoint, which may have to be signed first.
_SIGNING_ERRORS = (InconsistentLogError, KeyNotInForceError, AnchorUnreadableError)
_RECORD_ERRORS = (RequestNotFoundError, RecordNotFoundError, *_SIGNING_ERRORS)

# PostgreSQL's bigint: a larger number would fail in the database.
_SIZE = {"ge": 0, "lt": 2**63}
Log = Annotated[
    int | None,
    Query(ge=1, lt=2**31, description="Which log; the open one unless a closed one is asked for"),
]
Since = Annotated[
    int | None,
    Query(
        **_SIZE,
        description="Size of a checkpoint that you have kept: the bundle then proves that its log"
        " continues that one",
    ),
]


@router.get("/v1/audit/entries", responses=responses())
def list_entries(
    caller: AuditReader,
    session: SessionDep,
    log: Log = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Annotated[
        int, Query(**_SIZE, description="Index to begin with: `next_cursor` of the page before.")
    ] = 0,
) -> EntryPage:
    """Read the audit log in order, from its first entry on."""
    chosen = service.find_log(session, log)
    found = repository.entries(session, chosen.id, start=cursor, limit=limit + 1)
    following = str(found[limit].index) if len(found) > limit else None
    sees_all = caller.whole_log or not tenants.are_several(session)
    return EntryPage(
        log=chosen.id,
        items=[
            _entry_out(entry)
            if sees_all or entry.tenant_id == caller.tenant_id
            else HiddenEntryOut(index=entry.index, leaf_hash=_leaf_hash(entry))
            for entry in found[:limit]
        ],
        next_cursor=following,
    )


@router.get("/v1/audit/checkpoint", responses=responses(*_SIGNING_ERRORS))
def read_checkpoint(
    _caller: AuditReader, session: SessionDep, notary: NotaryDep, log: Log = None
) -> CheckpointOut:
    """Read the log's size and root, signed. Keep the note: a rewritten log contradicts it."""
    if log is None:
        return _checkpoint_out(session, notary.sign())
    chosen = service.find_log(session, log)
    if chosen.closed_at is None:
        return _checkpoint_out(session, notary.sign())
    found = repository.newest_checkpoint(session, chosen.id)
    if found is None:
        raise InvalidInputError(
            f"log: log {log} was closed before a checkpoint of it was signed",
            field="log",
            remedy="The first entry of the log after it names its size and root.",
        )
    return _checkpoint_out(session, found)


@router.get(
    "/v1/audit/proofs/inclusion",
    responses=responses(AuditEntryNotFoundError, *_SIGNING_ERRORS),
)
def read_inclusion_proof(
    _caller: AuditReader,
    session: SessionDep,
    notary: NotaryDep,
    index: Annotated[int, Query(**_SIZE, description="Of the entry")],
    log: Log = None,
) -> InclusionProofOut:
    """Prove that an entry is in the log, up to a signed checkpoint (RFC 9162 §2.1.3)."""
    entry = service.find_entry(session, service.find_log(session, log).id, index)
    checkpoint = service.checkpoint_covering(session, entry, notary)
    hashes, proof = service.prove_inclusion(session, entry, checkpoint)
    return InclusionProofOut(
        index=index,
        size=checkpoint.size,
        leaf_hash=_leaf_hash(entry),
        hashes=tuple(value.hex() for value in hashes),
        proof=proof,
    )


@router.get("/v1/audit/proofs/consistency", responses=responses(*_SIGNING_ERRORS))
def read_consistency_proof(
    _caller: AuditReader,
    session: SessionDep,
    first: Annotated[int, Query(**_SIZE, description="Size of the earlier checkpoint")],
    second: Annotated[int, Query(**_SIZE, description="Size of the later checkpoint")],
    log: Log = None,
) -> ConsistencyProofOut:
    """Prove that the log of one checkpoint continues that of another (RFC 9162 §2.1.4).

    The two roots are told for convenience only: compare those of the signed checkpoints.
    """
    chosen = service.find_log(session, log)
    hashes = service.prove_consistency(session, chosen, first, second, field="second")
    fetch = repository.fetch_nodes(session, chosen.id)
    return ConsistencyProofOut(
        first=first,
        second=second,
        first_root=root_at(first, fetch).hex(),
        second_root=root_at(second, fetch).hex(),
        hashes=tuple(value.hex() for value in hashes),
    )


@router.get("/v1/audit/keys", responses=responses())
def read_keys(_caller: AuditReader, session: SessionDep) -> KeyList:
    """Read every public key that signs or signed. Compare them with a copy from another source."""
    return keyring.key_list(session)


@router.post(
    "/v1/certificates/verify",
    openapi_extra=json_body(VerificationIn),
    responses=responses(UnsupportedMediaTypeError, PayloadTooLargeError),
)
def verify_certificate(_caller: Reader, upload: UploadDep, session: SessionDep) -> VerificationOut:
    """Verify a bundle with the keys that this service publishes; every check is listed.

    For a second opinion. Who does not trust this service verifies offline: `lethe verify`.
    """
    wanted = read_json(upload, VerificationIn)
    checks = verify_bundle(
        wanted.bundle,
        TrustedKeys.of(keyring.key_list(session)),
        subjects=wanted.weights_sha256,
        since=wanted.since,
    )
    return VerificationOut(
        ok=all(check.ok for check in checks),
        checks=[
            CheckOut(name=check.name, ok=check.ok, sentence=check.sentence) for check in checks
        ],
    )


@router.get(
    "/v1/unlearning-requests/{request_id}/record",
    response_model=Bundle,
    responses=responses(*_RECORD_ERRORS),
)
def read_record(
    _caller: Reader,
    session: SessionDep,
    notary: NotaryDep,
    request_id: uuid.UUID,
    since: Since = None,
) -> dict[str, Any]:
    """Read the signed record of an ended request, of any kind; `lethe verify` checks it offline."""
    return service.bundle(session, service.find_record(session, request_id), notary, since=since)


@router.get(
    "/v1/unlearning-requests/{request_id}/record.html",
    response_class=Response,
    responses=responses(*_RECORD_ERRORS)
    | {200: {"content": {HTML: {"schema": {"type": "string"}}}}},
)
def read_record_as_html(
    _caller: Reader, session: SessionDep, notary: NotaryDep, request_id: uuid.UUID
) -> Response:
    """Read a record as a page for people. The page is no evidence; the bundle is."""
    found = service.bundle(session, service.find_record(session, request_id), notary)
    # In the header, too, what a page cannot say of itself: no other page may frame it.
    policy = f"{content_policy()}; frame-ancestors 'none'"
    headers = {"Content-Security-Policy": policy}
    return Response(render_html(found), media_type=HTML, headers=headers)


@router.get(
    "/v1/unlearning-requests/{request_id}/record.pdf",
    response_class=Response,
    responses=responses(*_RECORD_ERRORS)
    | {200: {"content": {PDF: {"schema": {"type": "string", "format": "binary"}}}}},
)
def read_record_as_pdf(
    _caller: Reader, session: SessionDep, notary: NotaryDep, request_id: uuid.UUID
) -> Response:
    """Read a record as a document for people. The document is no evidence; the bundle is."""
    found = service.bundle(session, service.find_record(session, request_id), notary)
    return Response(
        render_pdf(found),
        media_type=PDF,
        headers={"Content-Disposition": f'attachment; filename="record-{request_id}.pdf"'},
    )


@router.get(
    "/v1/unlearning-requests/{request_id}/certificate",
    response_model=Bundle,
    responses=responses(*_RECORD_ERRORS, NoCertificateError),
)
def read_certificate(
    _caller: Reader,
    session: SessionDep,
    notary: NotaryDep,
    request_id: uuid.UUID,
    since: Since = None,
) -> dict[str, Any]:
    """Read the signed record of a request that ended in a certificate."""
    record = service.find_certificate(session, request_id)
    return service.bundle(session, record, notary, since=since)


def _entry_out(entry: AuditEntry) -> EntryOut:
    return EntryOut(
        **read_entry(entry.body).model_dump(),
        body=entry.body.decode(),
        leaf_hash=_leaf_hash(entry),
    )


def _leaf_hash(entry: AuditEntry) -> str:
    return entry.subtrees[:HASH_BYTES].hex()


def _checkpoint_out(session: SessionDep, checkpoint: AuditCheckpoint) -> CheckpointOut:
    log = service.find_log(session, checkpoint.log_id)
    return CheckpointOut(
        origin=log.origin or "",
        size=checkpoint.size,
        root=checkpoint.root.hex(),
        note=checkpoint.note,
    )
