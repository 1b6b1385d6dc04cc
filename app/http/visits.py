"""What is found out about a request on its way in, for what surrounds the routes."""

from dataclasses import dataclass

from starlette.types import Scope

from app.auth import Caller

_PLACE = "lethe.visit"  # in the scope's state, which middleware and routes share


@dataclass(slots=True)
class Visit:
    """One request.

    Attributes:
        caller: Whose key it was, once that was checked.
    """

    caller: Caller | None = None


def visit_of(scope: Scope) -> Visit:
    """Return what is known about a request; the same object wherever it is asked for."""
    state = scope.setdefault("state", {})
    visit: Visit = state.setdefault(_PLACE, Visit())
    return visit
