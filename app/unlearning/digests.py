"""Keyed digests of samples: they name a sample to whoever holds the key, and to nobody else."""

import hashlib
import hmac

from app.registry import samples as sample_files
from app.registry.samples import Samples
from core import digests


def of_each(samples: Samples, key: bytes) -> list[bytes]:
    """Return HMAC-SHA256 of each sample, as whoever trained the model computes it (METHOD §4)."""
    return digests.of_each(samples.features, samples.targets, key)


def commitment(samples: Samples, key: bytes) -> str:
    """Return HMAC-SHA256 of the canonical file: binds a record to samples that nobody can guess."""
    return hmac.new(key, sample_files.to_bytes(samples), hashlib.sha256).hexdigest()
