"""What may be told of a request to who counts or traces it: words of ours, never a client's."""

from http import HTTPMethod

from starlette.types import Scope

_METHODS = frozenset(method.value for method in HTTPMethod)


def method_of(scope: Scope, *, other: str) -> str:
    """Return a request's method, or `other` for one that its client invented."""
    method: str = scope["method"]
    return method if method in _METHODS else other


def route_of(scope: Scope) -> str | None:
    """Return the template of the route that the router has found; None before, or if none fits."""
    return getattr(scope.get("route"), "path", None)
