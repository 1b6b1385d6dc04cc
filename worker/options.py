"""What a request's row says about its computation, in the core's words; free of torch."""

from app.unlearning.models import UnlearningRequest
from core.options import GatePolicy, PerturbationOptions, PriorOptions, UnlearningOptions
from core.vocabulary import Anchor, Floor, Method, PerturbationLaw, Prior


def options_of(request: UnlearningRequest) -> UnlearningOptions:
    """Return the options that were fixed when the request was accepted."""
    stored = request.options
    perturbation = stored["perturbation"]
    # Requests from before release 0.2 have neither of these.
    prior = stored.get("prior")
    anchor = stored.get("anchor")
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
        prior=PriorOptions()
        if prior is None
        else PriorOptions(kind=Prior(prior["kind"]), weight=prior["weight"]),
        anchor=Anchor.MOVE if anchor is None else Anchor(anchor),
    )
