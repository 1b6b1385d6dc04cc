"""The core's complaints in the API's words: which field, what was found, what helps."""

from app.errors import InvalidInputError
from core.errors import CoreError


def reworded(
    error: CoreError, prefix: str, *, field: str | None = None, more: str = ""
) -> InvalidInputError:
    """Return a complaint of the core, `name: finding; remedy`, about what a client sent.

    Args:
        error: The complaint.
        prefix: What names of the core have in front in the API, e.g. `manifest.`.
        field: What it is about, where that is not the name that it begins with.
        more: A further sentence of the remedy.
    """
    finding, found, remedy = str(error).rpartition("; ")
    if not found:
        finding, remedy = remedy, "declare other parameters"
    return InvalidInputError(
        f"{prefix}{finding}",
        field=field or prefix + finding.partition(":")[0],
        remedy=f"{remedy[:1].upper()}{remedy[1:]}.{more}",
    )
