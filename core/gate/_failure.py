"""How every gate says no."""

from core.errors import CoreError
from core.results import GateResult
from core.vocabulary import RefusalCause

BETTER_MEANS = "store statistics (method `stored`) or retrain"


class GateFailedError(CoreError):
    """A gate failed: the deletion is refused and nothing changes.

    Attributes:
        result: The failed gate.
        cause: Coded reason.
        remedy: What would help.
    """

    def __init__(self, result: GateResult, cause: RefusalCause, remedy: str) -> None:
        super().__init__(result.detail)
        self.result = result
        self.cause = cause
        self.remedy = remedy
