"""The Merkle tree of RFC 9162 §2.1 over the log's entries: hashes, roots, proofs. No I/O.

A complete subtree never changes again, so each is stored once, with the entry that completes it;
roots and proofs for any size are put together from those, and nothing else of a tree is kept.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

Hash = bytes
# (level, index): the complete subtree over the leaves [index << level, (index + 1) << level).
NodeId = tuple[int, int]
# Given ids, returns their hashes; called at most once a root or proof.
Fetch = Callable[[Collection[NodeId]], Mapping[NodeId, bytes]]

HASH_SIZE = 32
# RFC 9162 §2.1.1: different first bytes, so that no leaf can be taken for a node.
_LEAF = b"\x00"
_NODE = b"\x01"
EMPTY_ROOT = hashlib.sha256(b"").digest()
_sha256 = hashlib.sha256


class InvalidProofError(ValueError):
    """A proof does not show what it is said to show."""


class MissingNodeError(LookupError):
    """A hash that a root or a proof is made of is not stored."""


def leaf_hash(body: bytes) -> bytes:
    """Return the hash of one log entry: SHA-256(0x00 ‖ body)."""
    return _sha256(_LEAF + body).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of two subtrees side by side: SHA-256(0x01 ‖ left ‖ right)."""
    return _sha256(_NODE + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """The little of a tree that its growth depends on.

    Attributes:
        size: How many leaves the tree has.
        hashes: Of the complete subtrees that it consists of, the largest first: one for each bit
            that is set in `size`.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def append(self, leaf: bytes) -> tuple["Frontier", tuple[bytes, ...]]:
        """Return the frontier with one more leaf, and the hashes of what that leaf completes.

        Args:
            leaf: Its hash.

        Returns:
            The new frontier, and the hashes of all complete subtrees that end with the leaf: level
            0, the leaf itself, first.
        """
        kept, completed = list(self.hashes), [leaf]
        size, node = self.size, leaf
        while size & 1:
            node = _sha256(_NODE + kept.pop() + node).digest()
            completed.append(node)
            size >>= 1
        kept.append(node)
        return Frontier(self.size + 1, tuple(kept)), tuple(completed)

    def root(self) -> bytes:
        """Return the root of the tree."""
        return _fold(self.hashes)

    def to_bytes(self) -> bytes:
        """Return the hashes one after another; `size` says how many there are."""
        return b"".join(self.hashes)

    @classmethod
    def from_bytes(cls, size: int, content: bytes) -> Self:
        """Return the frontier that `to_bytes` wrote.

        Raises:
            ValueError: `content` has not the length that belongs to a tree of `size` leaves.
        """
        if size < 0 or len(content) != HASH_SIZE * size.bit_count():
            raise ValueError(
                f"frontier: {len(content)} bytes do not belong to a tree of {size} leaves"
            )
        starts = range(0, len(content), HASH_SIZE)
        return cls(size, tuple(content[start : start + HASH_SIZE] for start in starts))


def root_at(size: int, fetch: Fetch) -> bytes:
    """Return the root of the first `size` leaves.

    Raises:
        ValueError: `size` is negative.
        MissingNodeError: `fetch` did not return every hash it was asked for.
    """
    if size < 0:
        raise ValueError(f"size: expected 0 or more, found {size}")
    return _hashes_of([(0, size)], fetch)[0]


def inclusion_proof(index: int, size: int, fetch: Fetch) -> tuple[bytes, ...]:
    """Return PATH(index, D_size) of RFC 9162 §2.1.3.1: the leaf's sibling first.

    Raises:
        ValueError: A tree of `size` leaves has no leaf `index`.
        MissingNodeError: `fetch` did not return every hash it was asked for.
    """
    if not 0 <= index < size:
        raise ValueError(f"index: a tree of {size} leaves has no leaf {index}")
    ranges, low, high = [], 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            ranges.append((middle, high))
            high = middle
        else:
            ranges.append((low, middle))
            low = middle
    return _hashes_of(ranges[::-1], fetch)


def consistency_proof(old: int, new: int, fetch: Fetch) -> tuple[bytes, ...]:
    """Return PROOF(old, D_new) of RFC 9162 §2.1.4.1; nothing where `old` is 0 or `new`.

    Raises:
        ValueError: `old` is no earlier size of a tree of `new` leaves.
        MissingNodeError: `fetch` did not return every hash it was asked for.
    """
    if not 0 <= old <= new:
        raise ValueError(f"old: a tree of {new} leaves never had {old}")
    if old in {0, new}:
        return ()
    ranges, low, high = [], 0, new
    while old != high:
        middle = low + _split(high - low)
        if old <= middle:
            ranges.append((middle, high))
            high = middle
        else:
            ranges.append((low, middle))
            low = middle
    if low:  # Else the old tree is itself this subtree: its root is known to whoever verifies.
        ranges.append((low, high))
    return _hashes_of(ranges[::-1], fetch)


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that `leaf` is the hash of leaf `index` in the tree (RFC 9162 §2.1.3.2).

    Raises:
        InvalidProofError: It is not shown to be.
    """
    _require_hashes(leaf, root, *proof)
    if not 0 <= index < size:
        raise InvalidProofError(f"a tree of {size} entries has no entry {index}")
    sides = _sides(index, size - 1)
    _require_length(proof, len(sides))
    node = leaf
    for sibling, is_left in zip(proof, sides, strict=True):
        node = node_hash(sibling, node) if is_left else node_hash(node, sibling)
    if node != root:
        raise InvalidProofError(f"the hashes do not lead from entry {index} to the root")


def verify_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the new tree begins with all leaves of the old one (RFC 9162 §2.1.4.2).

    Raises:
        InvalidProofError: It is not shown to.
    """
    _require_hashes(old_root, new_root, *proof)
    if not 0 <= old_size <= new_size:
        raise InvalidProofError(f"a log of {new_size} entries does not continue one of {old_size}")
    if old_size in {0, new_size}:
        _require_length(proof, 0)
        expected = EMPTY_ROOT if old_size == 0 else new_root
        if old_root != expected or (new_size == 0 and new_root != expected):
            raise InvalidProofError(f"there are two different logs of {old_size} entries")
        return
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    sides = _sides(position, last)
    # An old tree that is a complete subtree of the new one is where the way up starts.
    is_complete = old_size & (old_size - 1) == 0
    _require_length(proof, len(sides) + (not is_complete))
    path = [old_root, *proof] if is_complete else proof
    old_node = new_node = path[0]
    for sibling, is_left in zip(path[1:], sides, strict=True):
        if is_left:
            old_node, new_node = node_hash(sibling, old_node), node_hash(sibling, new_node)
        else:
            new_node = node_hash(new_node, sibling)
    if (old_node, new_node) != (old_root, new_root):
        raise InvalidProofError(
            f"the hashes do not lead from the log of {old_size} entries to that of {new_size}"
        )


def _sides(position: int, last: int) -> list[bool]:
    """Return for each hash on the way up from a subtree whether it stands to the left.

    Args:
        position: Of the subtree among those of its level.
        last: Of the last subtree, complete or not, of that level.
    """
    sides = []
    while last:
        is_left = bool(position & 1) or position == last
        sides.append(is_left)
        if is_left:
            # Levels on which the subtree is the last of an odd number have no sibling.
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        position, last = position >> 1, last >> 1
    return sides


def _require_length(proof: Sequence[bytes], expected: int) -> None:
    if len(proof) != expected:
        raise InvalidProofError(f"the proof has {len(proof)} hashes, and has to have {expected}")


def _split(count: int) -> int:
    """Return the largest power of two below `count` (RFC 9162 §2.1.1: k)."""
    return 1 << ((count - 1).bit_length() - 1)


def _complete_subtrees(low: int, high: int) -> list[NodeId]:
    """Return the complete subtrees that the leaves [low, high) consist of, the largest first.

    `low` is a multiple of every power of two up to their number, as it is wherever RFC 9162
    divides a tree.
    """
    found = []
    while low < high:
        level = (high - low).bit_length() - 1
        found.append((level, low >> level))
        low += 1 << level
    return found


def _hashes_of(ranges: Iterable[tuple[int, int]], fetch: Fetch) -> tuple[bytes, ...]:
    """Return the hash of the tree over each range of leaves."""
    parts = [_complete_subtrees(low, high) for low, high in ranges]
    wanted = [node for part in parts for node in part]
    found = fetch(wanted) if wanted else {}
    for level, index in wanted:
        if (level, index) not in found:
            raise MissingNodeError(
                f"the hash of entries {index << level} to {((index + 1) << level) - 1} is not"
                " stored; check the log with `lethe audit verify`"
            )
    return tuple(_fold([found[node] for node in part]) for part in parts)


def _fold(hashes: Sequence[bytes]) -> bytes:
    """Return the root over complete subtrees, the largest first."""
    if not hashes:
        return EMPTY_ROOT
    node = hashes[-1]
    for left in hashes[-2::-1]:
        node = node_hash(left, node)
    return node


def _require_hashes(*values: bytes) -> None:
    for value in values:
        if len(value) != HASH_SIZE:
            raise InvalidProofError(f"expected hashes of {HASH_SIZE} bytes, found {len(value)}")
