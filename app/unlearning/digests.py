"""Keyed digests of samples: they name a sample to whoever holds the key, and to nobody else."""

import hashlib
import hmac

import numpy as np

from app.registry import samples as sample_files
from app.registry.samples import Samples


def of_each(samples: Samples, key: bytes) -> list[bytes]:
    """Return HMAC-SHA256 of each sample: float64 little-endian bytes of x then y (METHOD §4)."""
    rows = np.ascontiguousarray(np.hstack([samples.features, samples.targets]), dtype="<f8")
    return [hmac.digest(key, row.tobytes(), hashlib.sha256) for row in rows]


def commitment(samples: Samples, key: bytes) -> str:
    """Return HMAC-SHA256 of the canonical file: binds a record to samples that nobody can guess."""
    return hmac.new(key, sample_files.to_bytes(samples), hashlib.sha256).hexdigest()
