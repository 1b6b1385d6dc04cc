"""The test of what estimates take for granted: that the forget set is like the training set."""

from core import gate
from core.results import GateResult
from core.tiers._deletion import Deletion


def require_exchangeable(deletion: Deletion) -> GateResult:
    """Test whether the forget set is drawn like the training set, unless the policy says no.

    Args:
        deletion: An admitted deletion.

    Returns:
        The passed gate, which says so where nothing was tested.

    Raises:
        GateFailedError: The forget set differs, or is too small for any test.
    """
    level = deletion.options.gate.skew_level
    if level == 0:
        return gate.skew_not_tested()
    return gate.require_exchangeable(
        deletion.model,
        deletion.forget,
        deletion.statistics,
        level=level,
        seed=deletion.seed("skew"),
    )
