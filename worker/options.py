"""What a request's row says about its computation, in the core's words; free of torch."""

from app.unlearning.models import UnlearningRequest
from core.options import GatePolicy, PerturbationOptions, UnlearningOptions
from core.vocabulary import Floor, Method, PerturbationLaw


def options_of(request: UnlearningRequest) -> UnlearningOptions:
    """Return the options that were fixed when the request was accepted."""
    stored = request.options
    perturbation = stored["perturbation"]
    return UnlearningOptions(
        method=Method(request.method),
        seed=stored["seed"],
        gate=GatePolicy(**stored["gate"]),
        perturbation=PerturbationOptions(
            count=perturbation["count"],
            law=PerturbationLaw(perturbation["law"]),
            scale=perturbation["scale"],
        ),
        floor=Floor(stored["floor"]),
        solver=stored["solver"],
    )
