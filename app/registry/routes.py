"""HTTP of models: register, list, read, download weights."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse
from starlette.responses import Response

from app.errors import (
    IdempotencyInProgressError,
    IdempotencyMismatchError,
    InvalidInputError,
    ModelNotFoundError,
    PayloadTooLargeError,
    RevisionNotFoundError,
    UnsupportedMediaTypeError,
    WeightsPurgedError,
)
from app.http.dependencies import KeysDep, ModelWriter, Reader, SessionDep, SettingsDep, StoreDep
from app.http.idempotency import IdempotencyDep
from app.http.paging import DEFAULT_LIMIT, Cursor, Limit, Page, fetch_page
from app.http.problems import responses
from app.http.uploads import MULTIPART, UploadDep, parse_json
from app.registry import repository, service
from app.registry.models import Model, ModelState, Revision
from app.registry.schemas import Manifest, ModelOut, RevisionOut

router = APIRouter(prefix="/v1/models", tags=["models"])

_BINARY = {"type": "string", "contentMediaType": "application/octet-stream"}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            MULTIPART: {
                "schema": {
                    "type": "object",
                    "required": ["manifest", "weights"],
                    "additionalProperties": False,
                    "properties": {
                        "manifest": {"$ref": "#/components/schemas/Manifest"},
                        "weights": {
                            **_BINARY,
                            "description": "safetensors with `weight` (d, C) float64",
                        },
                        "statistics": {
                            **_BINARY,
                            "description": "safetensors with `gram` (d, d), `cross` (d, C),"
                            " `target_gram` (C, C) float64, `n_samples` (1,) int64, and"
                            " optionally `round_off` (1,) float64",
                        },
                        "holdout": {
                            **_BINARY,
                            "description": "safetensors with `x` (n, d) float64 or float32, and"
                            " `y` (n,) int64 labels or (n, C) targets",
                        },
                    },
                },
                "encoding": {"manifest": {"contentType": "application/json"}},
            }
        },
    }
}


@router.post(
    "",
    status_code=201,
    response_model=ModelOut,
    openapi_extra=_BODY,
    responses=responses(
        UnsupportedMediaTypeError,
        PayloadTooLargeError,
        IdempotencyMismatchError,
        IdempotencyInProgressError,
    ),
)
def register_model(
    *,
    caller: ModelWriter,
    upload: UploadDep,
    idempotency: IdempotencyDep,
    session: SessionDep,
    store: StoreDep,
    keys: KeysDep,
    settings: SettingsDep,
) -> Response:
    """Register a model. With stored statistics its deletions are exact; without, estimated."""
    if upload.is_json:
        raise InvalidInputError(
            "body: weights do not travel in JSON",
            field="body",
            remedy=f"Send {MULTIPART} with the parts `manifest` and `weights`.",
        )
    parts = upload.take({"manifest", "weights"}, {"statistics", "holdout"})
    manifest = parse_json(parts["manifest"] or b"", Manifest, field="manifest")

    def answer() -> Response:
        model = service.register(
            session,
            store,
            keys,
            settings,
            manifest=manifest,
            weights=parts["weights"] or b"",
            statistics=parts["statistics"],
            holdout=parts["holdout"],
            actor=caller.actor,
        )
        shown = _show(model, service.current_revision(session, model))
        headers = {"Location": f"{router.prefix}/{model.id}", "ETag": _etag(model)}
        return JSONResponse(shown.model_dump(mode="json"), 201, headers)

    return idempotency.once(answer)


@router.get("", responses=responses())
def list_models(
    _caller: Reader,
    session: SessionDep,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[ModelOut]:
    """List models, newest first."""
    models, following = fetch_page(
        session, repository.list_models(), limit=limit, cursor=cursor, ordered_by=uuid.UUID
    )
    current = repository.current_revisions(session, models)
    return Page(items=[_show(model, current[model.id]) for model in models], next_cursor=following)


@router.get("/{model_id}", responses=responses(ModelNotFoundError))
def get_model(
    model_id: uuid.UUID, _caller: Reader, session: SessionDep, response: Response
) -> ModelOut:
    """Return a model."""
    model = service.get(session, model_id)
    response.headers["ETag"] = _etag(model)
    return _show(model, service.current_revision(session, model))


@router.get("/{model_id}/revisions", responses=responses(ModelNotFoundError))
def list_revisions(
    model_id: uuid.UUID,
    _caller: Reader,
    session: SessionDep,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[RevisionOut]:
    """List a model's revisions, newest first."""
    model = service.get(session, model_id)
    revisions, following = fetch_page(
        session,
        repository.list_revisions(model.id),
        limit=limit,
        cursor=cursor,
        ordered_by=int,
    )
    available = repository.available(session, revisions)
    return Page(
        items=[_show_revision(revision, available) for revision in revisions],
        next_cursor=following,
    )


@router.get(
    "/{model_id}/revisions/{number}/weights",
    response_class=Response,
    responses={
        **responses(ModelNotFoundError, RevisionNotFoundError, WeightsPurgedError),
        200: {"content": {"application/octet-stream": {"schema": _BINARY}}},
    },
)
def download_weights(
    model_id: uuid.UUID,
    number: Annotated[int, Path(ge=0, le=2**31 - 1)],
    caller: Reader,
    session: SessionDep,
    store: StoreDep,
) -> Response:
    """Download a revision's weights as safetensors; the audit log notes who did."""
    model = service.get(session, model_id)
    revision = service.get_revision(session, model, number)
    content = service.download_weights(session, store, revision, actor=caller.actor)
    return Response(
        content,
        media_type="application/octet-stream",
        headers={
            "Content-Disposition": f'attachment; filename="{model.id}-{number}.safetensors"',
            "ETag": f'"{revision.weights_sha256}"',
        },
    )


def _show(model: Model, current: Revision) -> ModelOut:
    return ModelOut(
        id=model.id,
        name=model.name,
        state=ModelState(model.state),
        manifest=Manifest.model_validate(model.manifest),
        current_revision=model.current_revision,
        has_statistics=current.statistics_artifact_id is not None,
        n_samples=current.n_samples,
        created_at=model.created_at,
    )


def _show_revision(revision: Revision, available: set[uuid.UUID]) -> RevisionOut:
    return RevisionOut(
        number=revision.number,
        n_samples=revision.n_samples,
        gradient_norm_bound=revision.gradient_norm_bound,
        weights_sha256=revision.weights_sha256,
        weights_available=revision.weights_artifact_id in available,
        statistics_sha256=revision.statistics_sha256,
        request_id=revision.request_id,
        created_at=revision.created_at,
    )


def _etag(model: Model) -> str:
    """Return what changes whenever the model does."""
    return f'"{model.current_revision}-{model.state}"'
