"""GET /metrics."""

import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from app.errors import AuthenticationError
from app.http.dependencies import SettingsDep
from app.http.problems import responses

router = APIRouter(tags=["health"])

_bearer = HTTPBearer(
    auto_error=False, scheme_name="MetricsToken", description="The operator's METRICS_TOKEN"
)


def require_token(
    settings: SettingsDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> None:
    """Let only who has the token pass; looks at no database, which may be what is wrong.

    Raises:
        AuthenticationError: No token was sent, it is another one, or none is set.
    """
    expected = settings.metrics_token
    sent = "" if credentials is None else credentials.credentials
    if expected is None or not hmac.compare_digest(
        sent.encode(), expected.get_secret_value().encode()
    ):
        raise AuthenticationError(
            "metrics are shown to whoever sends METRICS_TOKEN only"
            + (", and none is set" if expected is None else ""),
            field="Authorization",
            remedy="Set METRICS_TOKEN, and send `Authorization: Bearer <METRICS_TOKEN>`.",
        )


@router.get(
    "/metrics",
    dependencies=[Depends(require_token)],
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        401: responses(AuthenticationError)[401],
    },
)
def show_metrics(request: Request) -> Response:
    """Return the figures of the service in Prometheus' text format; docs/operations-metrics.md."""
    body: bytes = request.app.state.metrics.render()
    return Response(body, media_type=CONTENT_TYPE_LATEST)
