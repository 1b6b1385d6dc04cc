"""HTTP of a request's events: server-sent events that a client can take up where it left off."""

import asyncio
import datetime
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel
from starlette.responses import Response

from app.errors import EventsUnavailableError, RequestNotFoundError
from app.http.dependencies import Reader, ServicesDep
from app.http.problems import responses
from app.tenants.scope import narrow
from app.unlearning import service
from app.unlearning.events import Change, EventFeed, Position, Watch, unknown_event
from app.unlearning.models import RequestState
from app.unlearning.schemas import ProgressOut

router = APIRouter(prefix="/v1/unlearning-requests", tags=["unlearning requests"])

HEARTBEAT_SECONDS = 15.0  # proxies cut connections that are silent for longer
# A client comes back with its key, which may have been revoked meanwhile; and a server that is told
# to stop does not wait for streams without an end.
LONGEST_SECONDS = 300.0
RETRY_MILLISECONDS = 1000


class StateEvent(BaseModel):
    """A change of state; the audit log's entry of the same index says so, too."""

    request_id: uuid.UUID
    event: str
    state: RequestState
    time: datetime.datetime


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`state` events with the audit log's index as their id, `progress` events"
        " without one, and comments while nothing happens. Ends after the final state; any earlier"
        " end asks the client to come back with `Last-Event-ID`.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": "event: state\n"
                'data: {"request_id":"019bd2c8-6f1e-7c3a-9a55-0d1d6f6a3f10",'
                '"event":"unlearning-request.started","state":"running",'
                '"time":"2026-05-25T09:00:00.250000Z"}\n'
                "id: 41\n\n"
                'event: progress\ndata: {"stage":"estimate","fraction":0.5}\n\n',
            }
        },
    },
    204: {"description": "Nothing follows `Last-Event-ID`: the request has ended"},
}


def find_request(request_id: uuid.UUID, services: ServicesDep, caller: Reader) -> uuid.UUID:
    """Return the id of a request that exists; no connection is held while its stream is open."""
    with services.sessions() as session:
        narrow(session, caller.tenant_id)
        return service.get(session, request_id).id


def get_feed(request: Request) -> EventFeed:
    """Return the process's feed."""
    feed: EventFeed = request.app.state.events
    return feed


async def get_watch(
    request_id: Annotated[uuid.UUID, Depends(find_request)],
    feed: Annotated[EventFeed, Depends(get_feed)],
) -> AsyncIterator[Watch]:
    """Watch until the answer has been sent, or its client has gone."""
    with feed.watching(request_id) as watch:
        yield watch


@router.get(
    "/{request_id}/events",
    response_class=Response,  # a class of events would make FastAPI expect a generator: no 204
    responses=_STREAM | responses(RequestNotFoundError, EventsUnavailableError),
)
async def stream_events(
    _caller: Reader,
    watch: Annotated[Watch, Depends(get_watch)],
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            max_length=40,
            description="Of the last `state` event that arrived; only later ones are sent.",
        ),
    ] = None,
) -> Response:
    """Follow a request: its changes of state from the first one on, and its progress."""
    last = None if not last_event_id else Position.parse(last_event_id)
    if not await watch.opened():
        raise EventsUnavailableError(
            "the request's events could not be read: the database is away",
            remedy="Connect again with the same Last-Event-ID.",
        )
    past = list(watch.changes)
    if last is not None:
        if all(change.position != last for change in past):
            raise unknown_event(str(last_event_id))
        if past[-1].position == last and past[-1].is_final:
            return Response(status_code=204)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return EventSourceResponse(_events(watch, last), headers=headers)


async def _events(watch: Watch, last: Position | None) -> AsyncGenerator[bytes, None]:
    # At once, so that the client knows its stream is open.
    yield format_sse_event(retry=RETRY_MILLISECONDS)
    clock = asyncio.get_running_loop().time
    ends_at = clock() + LONGEST_SECONDS
    shown: dict[str, Any] | None = None
    while True:
        while watch.changes:
            change = watch.changes.popleft()
            if last is None or change.position > last:
                yield _show_state(change)
            if change.is_final and not watch.changes:
                return
        if watch.is_lost:
            return
        if watch.progress is not None and watch.progress != shown:
            shown = watch.progress
            yield _show_progress(shown)
        if clock() >= ends_at:
            return
        if not await watch.news(min(HEARTBEAT_SECONDS, max(ends_at - clock(), 0.0))):
            yield KEEPALIVE_COMMENT


def _show_state(change: Change) -> bytes:
    shown = StateEvent(
        request_id=change.request_id, event=change.event, state=change.state, time=change.time
    )
    return format_sse_event(
        event="state", data_str=shown.model_dump_json(), id=str(change.position)
    )


def _show_progress(progress: dict[str, Any]) -> bytes:
    return format_sse_event(
        event="progress", data_str=ProgressOut.model_validate(progress).model_dump_json()
    )
