"""The codes of a record in words, and its numbers digit by digit."""

from collections.abc import Mapping

from app.evidence.canonical import canonical_json

STANDINGS = {
    "computed": "computed here",
    "attested": "attested by the model's owner",
    "assumed": "assumed, and checked by nobody",
}
GROUNDS = {
    "art-17-1-a": "Article 17(1)(a) GDPR: no longer necessary for its purpose",
    "art-17-1-b": "Article 17(1)(b) GDPR: consent was withdrawn",
    "art-17-1-c": "Article 17(1)(c) GDPR: objection to the processing",
    "art-17-1-d": "Article 17(1)(d) GDPR: unlawfully processed",
    "art-17-1-e": "Article 17(1)(e) GDPR: a legal obligation to erase",
    "art-17-1-f": "Article 17(1)(f) GDPR: collected for a service offered to a child",
}
TIERS = {
    "exact": "exact: what retraining gives, up to the certifying bounds",
    "certified": "certified: what is left is within the certifying bound",
    "surrogate": "surrogate: conditional on a declaration that nobody checked",
    "estimated": "estimated: nothing is guaranteed",
}
METHODS = {
    "stored": "stored: from statistics that were stored at registration",
    "stored-sketch": "stored-sketch: from a stored sketch of the training rows",
    "surrogate": "surrogate: with features that stand in for the training set's",
    "forget-curvature": "forget-curvature: an estimate from the forget samples alone",
    "paper-sdp": "paper-sdp: an estimate by a semidefinite program",
}
BOUNDS = {
    "residual_gradient_norm": "Gradient that is left on the remaining samples, at most",
    "distance_to_retraining": "Distance of the new weights from retrained ones, at most",
}
FATES = {
    "key_destroyed": "the key that opens them was destroyed (on backups, see the limits)",
    "kept": "kept",
    "kept_by_policy": "kept by the operator's policy",
    "kept_for_replay": "kept, so that the computation can be repeated",
    "none_stored": "there were none",
    "moved": "replaced by the new weights",
    "kept_as_secret": "still inside the encrypted statistics",
    "none": "there are none",
    "never_recorded": "never recorded",
}
DELIVERED = {"weights": "the weights", "weights_with_noise": "the weights with noise added"}
BACKBONES = {
    "public": "public data, by the owner's word",
    "dp": "trained with differential privacy, by the owner's word",
    "unknown": "unknown",
}


def pairs(values: Mapping[str, str]) -> str:
    """Return names and what they are, in one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def number(value: float | None, missing: str = "—") -> str:
    """Return a number as the record spells it."""
    if value is None:
        return missing
    if isinstance(value, bool):
        return "yes" if value else "no"
    return canonical_json([value]).decode()[1:-1]
