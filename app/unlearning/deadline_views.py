"""Requests as they stand now: what is stored of them, and how their deadline stands."""

from dataclasses import asdict
from functools import cached_property
from typing import Annotated, Any

from fastapi import Depends
from sqlalchemy.orm import Session

from app.http.dependencies import SessionDep, SettingsDep
from app.settings import Settings
from app.unlearning import deadline_periods, deadline_service
from app.unlearning import deadline_repository as repository
from app.unlearning.deadline_schemas import DeadlineOut, IntervalOut, StandingOut
from app.unlearning.deadlines import MONTHS, Present
from app.unlearning.models import OPEN_STATES, RequestState, UnlearningRequest
from app.unlearning.schemas import UnlearningOut

_STORED = UnlearningOut.model_fields.keys() - StandingOut.model_fields.keys()


class Views:
    """Shows requests at one moment, that of the first look."""

    def __init__(self, session: Session, settings: Settings) -> None:
        self._session = session
        self._settings = settings

    @cached_property
    def present(self) -> Present:
        """Return the moment."""
        return deadline_periods.at(self._settings, repository.now(self._session))

    def show(self, request: UnlearningRequest) -> UnlearningOut:
        """Return a request as clients see it."""
        stored = {name: getattr(request, name) for name in _STORED}
        return UnlearningOut.model_validate(stored | self._standing(request))

    def show_new(self, request: UnlearningRequest) -> UnlearningOut:
        """Return a request that was just made, without asking the database for the time again."""
        self.present = deadline_periods.at(self._settings, request.created_at)
        return self.show(request)

    def show_deadline(self, request: UnlearningRequest) -> DeadlineOut:
        """Return a request's deadline with its history."""
        return DeadlineOut(
            **self._standing(request),
            months=MONTHS + request.extension_months,
            time_zone=self._settings.deadline_time_zone,
            intervals=[
                IntervalOut.model_validate(interval)
                for interval in deadline_service.history(self._session, request)
            ],
        )

    def _standing(self, request: UnlearningRequest) -> dict[str, Any]:
        standing = self.present.standing(request.due_at, is_open=request.state in OPEN_STATES)
        return {
            "received_at": request.received_at,
            "due_at": request.due_at,
            "paused": request.state == RequestState.IDENTITY_CHECK,
            **asdict(standing),
        }


def get_views(session: SessionDep, settings: SettingsDep) -> Views:
    """Return what shows requests within a route's transaction."""
    return Views(session, settings)


ViewsDep = Annotated[Views, Depends(get_views, scope="function")]
