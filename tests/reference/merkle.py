"""RFC 9162 §2.1 as it is written: trees and proofs by recursion over all entries, slow.

It shares no line with the service.
"""

import hashlib


def tree_hash(entries):
    """MTH (§2.1.1)."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = largest_power_below(len(entries))
    return hashlib.sha256(b"\x01" + tree_hash(entries[:k]) + tree_hash(entries[k:])).digest()


def path(index, entries):
    """PATH (§2.1.3.1)."""
    if len(entries) == 1:
        return []
    k = largest_power_below(len(entries))
    if index < k:
        return [*path(index, entries[:k]), tree_hash(entries[k:])]
    return [*path(index - k, entries[k:]), tree_hash(entries[:k])]


def proof(old, entries):
    """PROOF (§2.1.4.1), and nothing from the empty tree, from which the RFC defines none."""
    return subproof(old, entries, known=True) if old else []


def subproof(old, entries, *, known):
    """SUBPROOF (§2.1.4.1)."""
    if old == len(entries):
        return [] if known else [tree_hash(entries)]
    k = largest_power_below(len(entries))
    if old <= k:
        return [*subproof(old, entries[:k], known=known), tree_hash(entries[k:])]
    return [*subproof(old - k, entries[k:], known=False), tree_hash(entries[:k])]


def largest_power_below(count):
    k = 1
    while 2 * k < count:
        k *= 2
    return k
