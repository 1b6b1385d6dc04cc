"""Verifying records offline: a file, public keys, and nothing else."""

from app.evidence.verification._checks import Check
from app.evidence.verification.bundles import verify_bundle

__all__ = ["Check", "verify_bundle"]
