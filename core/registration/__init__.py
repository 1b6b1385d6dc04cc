"""One line at the end of training: from a fitted model to all that the service needs of it."""

from core.registration._networks import NetworkRegistration, from_network
from core.registration._record import Registration
from core.registration._sklearn import from_sklearn
from core.registration._torch import from_torch
from core.registration._watcher import Watcher

__all__ = [
    "NetworkRegistration",
    "Registration",
    "Watcher",
    "from_network",
    "from_sklearn",
    "from_torch",
]
