"""Errors of the numerical core; free of torch."""


class CoreError(Exception):
    """Base of the core's errors, never raised itself."""


class InvalidTensorError(CoreError):
    """An array has the wrong shape, dtype or a value that is not finite."""


class InvalidOptionError(CoreError):
    """An option lies outside its range."""


class IllConditionedError(CoreError):
    """A matrix that has to be positive definite is not, in float64.

    Never answered by jitter: a changed Hessian would void the residual that a bound states.
    """


class SolverError(CoreError):
    """A solver ended without a usable solution; the message carries its status."""


class StatisticsMismatchError(CoreError):
    """A downdate would leave statistics that no data set has: the samples were never in it."""


class BudgetError(CoreError):
    """More would be reserved, spent or given back than a privacy budget has."""
