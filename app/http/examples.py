"""Examples of what clients send, for the API's schema; a test parses each as the routes do."""

from typing import Any

_MODEL = "019bd2c8-6f1e-7c3a-9a55-0d1d6f6a3f10"

MANIFEST: dict[str, Any] = {
    "name": "digits",
    "task": "classification",
    "num_features": 2,
    "num_outputs": 3,
    "ridge": {"convention": "per_sample", "strength": 0.01},
    "n_samples": 1000,
    "feature_norm_bound": 1.0,
}
UNLEARNING: dict[str, Any] = {
    "model_id": _MODEL,
    "subject_reference": "ticket 7",
    "legal_ground": "art-17-1-b",
}
UNLEARNING_WITH_SAMPLES = UNLEARNING | {"samples": {"x": [[0.1, 0.2]], "y": [1]}}
BULK = {"requests": [UNLEARNING_WITH_SAMPLES]}

BODIES: dict[str, dict[str, Any]] = {
    "Manifest": MANIFEST,
    "UnlearningIn": UNLEARNING,
    "UnlearningWithSamplesIn": UNLEARNING_WITH_SAMPLES,
    "BulkIn": BULK,
}


def add_bodies(schema: dict[str, Any]) -> None:
    """Give the schemas of parsed bodies their examples."""
    for name, example in BODIES.items():
        schema["components"]["schemas"][name]["examples"] = [example]
