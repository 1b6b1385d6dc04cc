"""Canonical bytes and digests: what is signed, logged and compared.

Bytes are made once (RFC 8785), stored, and hashed as stored: nothing is verified by writing JSON
again from what was read.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import rfc8785


def canonical_json(value: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """Return the RFC 8785 bytes of `value`.

    Raises:
        ValueError: It holds NaN, an infinity, an integer beyond 2⁵³, a key that is no string or a
            type that JSON lacks; nothing is coerced.
    """
    return rfc8785.dumps(value)


def sha256_hex(content: bytes) -> str:
    """Return SHA-256 in hexadecimal, the form in which statements carry digests."""
    return hashlib.sha256(content).hexdigest()
