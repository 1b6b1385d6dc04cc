"""One line at the end of training: from a fitted model to all that the service needs of it."""

from core.registration._record import Registration
from core.registration._sklearn import from_sklearn
from core.registration._torch import from_torch

__all__ = ["Registration", "from_sklearn", "from_torch"]
