"""The tree against published vectors and against the RFC's own recursive definitions."""

import hashlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.evidence.transparency import merkle
from app.evidence.transparency.merkle import (
    EMPTY_ROOT,
    Frontier,
    InvalidProofError,
    MissingNodeError,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_at,
    verify_consistency,
    verify_inclusion,
)
from tests.reference import merkle as reference

# The reference tree of Certificate Transparency, as transparency-dev/merkle publishes it
# (testonly/constants.go and reference_test.go).
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
NODES = [
    [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "0298d122906dcfc10892cb53a73992fc5b9f493ea4c9badb27b791b4127a7fe7",
        "07506a85fd9dd2f120eb694f86011e5bb4662e5c415a62917033d4a9624487e7",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "4271a26be0d8a84f0bd54c8c302e7cb3a3b5d1fa6780a40bcce2873477dab658",
        "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
        "46f6ffadd3d06a09ff3c5860d2755c8b9819db7df44251788c7d8e3180de8eb1",
    ],
    [
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    ],
    [
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    ["5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"],
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# As (level, index) of the nodes above.
INCLUSION = {
    (0, 1): [],
    (0, 2): [(0, 1)],
    (1, 2): [(0, 0)],
    (2, 3): [(1, 0)],
    (1, 5): [(0, 0), (1, 1), (0, 4)],
    (0, 8): [(0, 1), (1, 1), (2, 1)],
    (5, 8): [(0, 4), (1, 3), (2, 0)],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [(0, 1), (1, 1), (2, 1)],
    (2, 5): [(1, 1), (0, 4)],
    (2, 8): [(1, 1), (2, 1)],
    (6, 7): [(1, 2), (0, 6), (2, 0)],
    (6, 8): [(1, 2), (1, 3), (2, 0)],
}
LARGEST = 70


class Tree:
    """All complete subtrees of a log, stored the way that the service stores them."""

    def __init__(self, entries):
        self.nodes, self.calls = {}, 0
        self.frontier = Frontier()
        self.roots = [self.frontier.root()]
        for index, entry in enumerate(entries):
            self.frontier, completed = self.frontier.append(leaf_hash(entry))
            for level, node in enumerate(completed):
                self.nodes[level, index >> level] = node
            self.roots.append(self.frontier.root())

    def fetch(self, nodes):
        self.calls += 1
        return {node: self.nodes[node] for node in nodes}


def entries_of(size):
    return [b"entry %d" % index for index in range(size)]


@pytest.fixture(scope="module")
def tree():
    return Tree(entries_of(LARGEST))


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_the_published_tree_has_its_hashes_and_its_roots():
    published = Tree(LEAVES)
    for level, nodes in enumerate(NODES):
        for index, node in enumerate(nodes):
            assert published.nodes[level, index].hex() == node
    assert len(published.nodes) == sum(map(len, NODES))
    assert [root.hex() for root in published.roots] == ROOTS
    assert [root_at(size, published.fetch).hex() for size in range(9)] == ROOTS
    assert ROOTS[0] == EMPTY_ROOT.hex()


@pytest.mark.parametrize(("place", "proof"), INCLUSION.items())
def test_the_published_inclusion_proofs_are_made_and_verified(place, proof):
    index, size = place
    expected = tuple(bytes.fromhex(NODES[level][number]) for level, number in proof)
    assert inclusion_proof(index, size, Tree(LEAVES).fetch) == expected
    verify_inclusion(leaf_hash(LEAVES[index]), index, size, expected, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("sizes", "proof"), CONSISTENCY.items())
def test_the_published_consistency_proofs_are_made_and_verified(sizes, proof):
    old, new = sizes
    expected = tuple(bytes.fromhex(NODES[level][number]) for level, number in proof)
    assert consistency_proof(old, new, Tree(LEAVES).fetch) == expected
    verify_consistency(old, bytes.fromhex(ROOTS[old]), new, bytes.fromhex(ROOTS[new]), expected)


def test_leaves_and_nodes_are_hashed_apart():
    assert leaf_hash(b"L123456") == hashlib.sha256(b"\x00L123456").digest()
    assert node_hash(b"N123", b"N456") == hashlib.sha256(b"\x01N123N456").digest()


def test_every_root_and_proof_is_that_of_the_definitions(tree):
    entries = entries_of(LARGEST)
    for size in range(LARGEST + 1):
        assert root_at(size, tree.fetch) == tree.roots[size] == reference.tree_hash(entries[:size])
    for size in range(1, 34):
        for index in range(size):
            assert inclusion_proof(index, size, tree.fetch) == tuple(
                reference.path(index, entries[:size])
            )
        for old in range(size + 1):
            assert consistency_proof(old, size, tree.fetch) == tuple(
                reference.proof(old, entries[:size])
            )


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_proofs_of_the_definitions_verify(data):
    size = data.draw(st.integers(1, 400))
    old, index = data.draw(st.integers(0, size)), data.draw(st.integers(0, size - 1))
    entries = entries_of(size)
    root = reference.tree_hash(entries)
    path = reference.path(index, entries)
    verify_inclusion(leaf_hash(entries[index]), index, size, path, root)
    old_root = reference.tree_hash(entries[:old])
    verify_consistency(old, old_root, size, root, reference.proof(old, entries))


def test_each_proof_asks_for_its_hashes_once(tree):
    for make in (
        lambda: root_at(13, tree.fetch),
        lambda: inclusion_proof(11, 13, tree.fetch),
        lambda: consistency_proof(6, 13, tree.fetch),
    ):
        tree.calls = 0
        make()
        assert tree.calls == 1


def test_every_changed_bit_of_an_inclusion_proof_is_noticed(tree):
    index, size = 20, 45
    leaf, root = leaf_hash(b"entry 20"), tree.roots[45]
    proof = inclusion_proof(index, size, tree.fetch)
    verify_inclusion(leaf, index, size, proof, root)
    for bit in range(256):
        with pytest.raises(InvalidProofError):
            verify_inclusion(flipped(leaf, bit), index, size, proof, root)
        with pytest.raises(InvalidProofError):
            verify_inclusion(leaf, index, size, proof, flipped(root, bit))
        for place, value in enumerate(proof):
            changed = [*proof[:place], flipped(value, bit), *proof[place + 1 :]]
            with pytest.raises(InvalidProofError):
                verify_inclusion(leaf, index, size, changed, root)


def test_every_changed_bit_of_a_consistency_proof_is_noticed(tree):
    for old, new in ((20, 45), (32, 45), (1, 2), (44, 45)):
        old_root, new_root = tree.roots[old], tree.roots[new]
        proof = consistency_proof(old, new, tree.fetch)
        verify_consistency(old, old_root, new, new_root, proof)
        for bit in range(256):
            with pytest.raises(InvalidProofError):
                verify_consistency(old, flipped(old_root, bit), new, new_root, proof)
            with pytest.raises(InvalidProofError):
                verify_consistency(old, old_root, new, flipped(new_root, bit), proof)
            for place, value in enumerate(proof):
                changed = [*proof[:place], flipped(value, bit), *proof[place + 1 :]]
                with pytest.raises(InvalidProofError):
                    verify_consistency(old, old_root, new, new_root, changed)


def is_included(*arguments):
    try:
        verify_inclusion(*arguments)
    except InvalidProofError:
        return False
    return True


def is_consistent(*arguments):
    try:
        verify_consistency(*arguments)
    except InvalidProofError:
        return False
    return True


def test_an_inclusion_proof_holds_for_no_other_place_root_or_length(tree):
    for size in range(1, 20):
        for index in range(size):
            leaf, root = tree.nodes[0, index], tree.roots[size]
            proof = inclusion_proof(index, size, tree.fetch)
            for other in range(-1, size + 2):
                assert is_included(leaf, other, size, proof, root) == (other == index)
            for other in range(20):
                assert is_included(leaf, index, size, proof, tree.roots[other]) == (other == size)
            assert not is_included(leaf, index, size, (*proof, root), root)
            assert not is_included(leaf, index, size, (leaf, *proof), root)
            assert not proof or not is_included(leaf, index, size, proof[:-1], root)
            assert not proof or not is_included(leaf, index, size, proof[1:], root)
            assert proof[::-1] == proof or not is_included(leaf, index, size, proof[::-1], root)


def test_a_consistency_proof_holds_between_no_other_roots(tree):
    for old, new in itertools.combinations(range(1, 20), 2):
        old_root, new_root = tree.roots[old], tree.roots[new]
        proof = consistency_proof(old, new, tree.fetch)
        assert is_consistent(old, old_root, new, new_root, proof)
        assert not is_consistent(new, new_root, old, old_root, proof)
        assert not is_consistent(old, old_root, new, new_root, (*proof, new_root))
        assert not is_consistent(old, old_root, new, new_root, (old_root, *proof))
        assert not is_consistent(old, old_root, new, new_root, proof[:-1])
        assert not is_consistent(old, old_root, new, new_root, proof[1:])
        assert not is_consistent(old, old_root, new, new_root, ())
        for other in range(20):
            assert is_consistent(old, tree.roots[other], new, new_root, proof) == (other == old)
            assert is_consistent(old, old_root, new, tree.roots[other], proof) == (other == new)


def test_a_rewritten_log_is_not_consistent_with_its_checkpoint(tree):
    entries = entries_of(LARGEST)
    for changed in range(20):
        other = Tree([*entries[:changed], b"another", *entries[changed + 1 :]])
        proof = consistency_proof(20, LARGEST, other.fetch)
        with pytest.raises(InvalidProofError, match="do not lead"):
            verify_consistency(20, tree.roots[20], LARGEST, other.roots[LARGEST], proof)


def test_equal_sizes_have_equal_roots_and_no_proof(tree):
    root, other = tree.roots[7], tree.roots[6]
    verify_consistency(7, root, 7, root, ())
    with pytest.raises(InvalidProofError, match="two different logs of 7 entries"):
        verify_consistency(7, root, 7, other, ())
    with pytest.raises(InvalidProofError, match="has 1 hashes, and has to have 0"):
        verify_consistency(7, root, 7, root, (root,))


def test_the_empty_log_has_one_root_and_every_log_continues_it(tree):
    verify_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, ())
    verify_consistency(0, EMPTY_ROOT, 5, tree.roots[5], ())
    for arguments in (
        (0, tree.roots[5], 5, tree.roots[5], ()),
        (0, EMPTY_ROOT, 0, tree.roots[5], ()),
        (0, tree.roots[5], 0, tree.roots[5], ()),
        (0, EMPTY_ROOT, 5, tree.roots[5], (EMPTY_ROOT,)),
    ):
        assert not is_consistent(*arguments)


def test_sizes_and_places_that_no_log_has_are_refused(tree):
    assert not is_consistent(-1, EMPTY_ROOT, 5, tree.roots[5], ())
    assert not is_included(EMPTY_ROOT, 0, 0, (), EMPTY_ROOT)
    assert not is_included(EMPTY_ROOT, -1, -1, (), EMPTY_ROOT)
    with pytest.raises(ValueError, match="size: expected 0 or more, found -1"):
        root_at(-1, tree.fetch)
    with pytest.raises(ValueError, match="a tree of 5 leaves has no leaf 5"):
        inclusion_proof(5, 5, tree.fetch)
    with pytest.raises(ValueError, match="a tree of 5 leaves never had 6"):
        consistency_proof(6, 5, tree.fetch)


def test_what_is_no_hash_is_refused_before_it_is_hashed(tree):
    proof, root = inclusion_proof(2, 4, tree.fetch), tree.roots[4]
    with pytest.raises(InvalidProofError, match="expected hashes of 32 bytes, found 31"):
        verify_inclusion(leaf_hash(b"entry 2"), 2, 4, [proof[0][:-1], proof[1]], root)
    # Joined differently, the same bytes would be hashed.
    node = proof[0] + proof[1][:1]
    with pytest.raises(InvalidProofError, match="found 33"):
        verify_consistency(2, node, 4, root, [proof[1][1:]])


def test_a_missing_hash_is_named():
    with pytest.raises(MissingNodeError, match="entries 4 to 5 is not stored"):
        root_at(6, lambda nodes: {node: bytes(32) for node in nodes if node[0] == 2})


@settings(deadline=None)
@given(st.integers(0, 300))
def test_a_frontier_is_read_as_it_was_written(size):
    written = Tree(entries_of(size)).frontier
    assert written.size == size
    assert len(written.hashes) == size.bit_count()
    read = Frontier.from_bytes(size, written.to_bytes())
    assert read == written
    assert read.append(bytes(32)) == written.append(bytes(32))


def test_a_frontier_of_another_size_is_refused():
    for size, content in ((3, bytes(32)), (0, bytes(32)), (1, bytes(31)), (-1, bytes(32))):
        with pytest.raises(ValueError, match="do not belong to a tree"):
            Frontier.from_bytes(size, content)


def test_an_appended_leaf_does_not_change_the_frontier_before_it():
    before = Tree(entries_of(7)).frontier
    root = before.root()
    after, completed = before.append(leaf_hash(b"entry 7"))
    assert before.root() == root
    assert [len(value) for value in completed] == [merkle.HASH_SIZE] * 4
    assert completed[-1] == after.root()
