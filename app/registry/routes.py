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
from app.http.dependencies import (
    KeysDep,
    ModelWriter,
    Reader,
    SessionDep,
    SettingsDep,
    StoreDep,
    WeightsReader,
)
from app.http.idempotency import IdempotencyDep
from app.http.paging import DEFAULT_LIMIT, Cursor, Limit, Page, fetch_page
from app.http.problems import responses
from app.http.uploads import MULTIPART, UploadDep, parse_json
from app.registry import policy, repository, service
from app.registry.models import Model, ModelState, Revision
from app.registry.schemas import Manifest, ModelOut, RevisionOut
from app.settings import Settings

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
                            "description": "safetensors with `weight` (d, C) float64; of a network"
                            " w, (D, 1), its parameters flattened in the order of the state dict",
                        },
                        "network": {
                            **_BINARY,
                            "description": "safetensors with w_c, what a network is linearised"
                            " around, under the keys of the architecture's state dict: all layers,"
                            " or with samples `features` the last k alone; float64 or float32,"
                            " counts int64. Sent if and only if the manifest has a `network`",
                        },
                        "statistics": {
                            **_BINARY,
                            "description": "safetensors, all float64 but counts. Squared loss:"
                            " `gram` (d, d), `cross` (d, C), `target_gram` (C, C), `n_samples` (1,)"
                            " int64, optionally `round_off` (1,). Logistic loss: `anchor` (d, C)"
                            " equal to the weights, `hessians` (C, d, d), `gram` (d, d),"
                            " `gradient` (d, C), `feature_sums` (d,), `target_sums` (C,),"
                            " `n_samples` (1,) int64, optionally `largest_norm`,"
                            " `hessian_round_off`, `gram_round_off`, `gradient_round_off` (1,), and"
                            " `drift`, `residual` (C,), `n_drifted` (1,) int64, which are zero."
                            " Networks: with statistics `gram` as for squared loss, of the n·C rows"
                            " of the Jacobians: `gram` (D, D), `cross` (D, 1), `target_gram`"
                            " (1, 1); with `sketch` `sketch` (m, D), `core` (m, m), `anchor` (D, 1)"
                            " equal to the weights, `gradient` (D, 1), `gradient_uncertainty`,"
                            " `trace` (1,), `seed`, `error_probes`, `n_samples` (1,) int64,"
                            " optionally `basis` (m − error_probes, D) float32",
                        },
                        "holdout": {
                            **_BINARY,
                            "description": "safetensors with `x` (n, d) float64 or float32, and"
                            " `y` (n,) int64 labels or (n, C) targets; of a network `x` (n, ...)"
                            " has the shape of its samples, or is flattened",
                        },
                        "surrogate": {
                            **_BINARY,
                            "description": "safetensors with `x` (n_S, d) float64 or float32:"
                            " public or synthetic features that stand in for the training set's",
                        },
                        "membership": {
                            **_BINARY,
                            "description": "safetensors with `digests` (n, 32) uint8, the"
                            " HMAC-SHA256 of every training row (`core.digests`), and `key` (32,)"
                            " uint8, what they are keyed with. Whoever may send requests can then"
                            " test whether a record was trained on: a refusal says so",
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
    """Register a model. What is sent beside the weights decides what its deletions guarantee.

    With stored statistics they are exact (squared loss) or certified (logistic, or a sketch of a
    network); with a surrogate conditional on its declared distance; else estimated.
    """
    if upload.is_json:
        raise InvalidInputError(
            "body: weights do not travel in JSON",
            field="body",
            remedy=f"Send {MULTIPART} with the parts `manifest` and `weights`.",
        )
    parts = upload.take(
        {"manifest", "weights"}, {"statistics", "holdout", "surrogate", "membership", "network"}
    )
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
            surrogate=parts["surrogate"],
            membership=parts["membership"],
            network=parts["network"],
            actor=caller.actor,
        )
        shown = _show(model, service.current_revision(session, model), settings)
        headers = {"Location": f"{router.prefix}/{model.id}", "ETag": _etag(model)}
        return JSONResponse(shown.model_dump(mode="json"), 201, headers)

    return idempotency.once(answer)


@router.get("", responses=responses())
def list_models(
    _caller: Reader,
    session: SessionDep,
    settings: SettingsDep,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[ModelOut]:
    """List models, newest first."""
    models, following = fetch_page(
        session, repository.list_models(), limit=limit, cursor=cursor, ordered_by=uuid.UUID
    )
    current = repository.current_revisions(session, models)
    return Page(
        items=[_show(model, current[model.id], settings) for model in models],
        next_cursor=following,
    )


@router.get("/{model_id}", responses=responses(ModelNotFoundError))
def get_model(
    model_id: uuid.UUID,
    _caller: Reader,
    session: SessionDep,
    settings: SettingsDep,
    response: Response,
) -> ModelOut:
    """Return a model."""
    model = service.get(session, model_id)
    response.headers["ETag"] = _etag(model)
    return _show(model, service.current_revision(session, model), settings)


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
    caller: WeightsReader,
    session: SessionDep,
    store: StoreDep,
) -> Response:
    """Download a revision's weights as safetensors; the audit log notes who did.

    With output perturbation these are the weights with noise, the same at every download. Old
    weights and new ones together reveal what was forgotten, so superseded weights are gone (410)
    unless the service serves them for a while, and no route returns a difference of weights.
    """
    model = service.get(session, model_id)
    revision = service.get_revision(session, model, number)
    content = service.download_weights(session, store, revision, actor=caller.actor)
    return Response(
        content,
        media_type="application/octet-stream",
        headers={
            "Content-Disposition": f'attachment; filename="{model.id}-{number}.safetensors"',
            "ETag": f'"{service.served_sha256(revision)}"',
        },
    )


def _show(model: Model, current: Revision, settings: Settings) -> ModelOut:
    manifest = service.manifest_of(model)
    has_statistics = current.statistics_artifact_id is not None
    has_surrogate = model.surrogate_artifact_id is not None
    return ModelOut(
        id=model.id,
        name=model.name,
        state=ModelState(model.state),
        state_reason=model.state_reason,
        loss=manifest.loss,
        manifest=manifest,
        current_revision=model.current_revision,
        network_sha256=model.network_sha256,
        has_statistics=has_statistics,
        has_surrogate=has_surrogate,
        has_membership=model.has_membership,
        privacy=manifest.privacy,
        policy=policy.in_force(
            manifest, settings, has_statistics=has_statistics, has_surrogate=has_surrogate
        ),
        n_samples=current.n_samples,
        created_at=model.created_at,
    )


def _show_revision(revision: Revision, available: set[uuid.UUID]) -> RevisionOut:
    return RevisionOut(
        number=revision.number,
        n_samples=revision.n_samples,
        gradient_norm_bound=revision.gradient_norm_bound,
        weights_sha256=service.served_sha256(revision),
        weights_available=repository.served_artifact_id(revision) in available,
        statistics_sha256=revision.statistics_sha256,
        request_id=revision.request_id,
        created_at=revision.created_at,
    )


def _etag(model: Model) -> str:
    """Return what changes whenever the model does."""
    return f'"{model.current_revision}-{model.state}"'
