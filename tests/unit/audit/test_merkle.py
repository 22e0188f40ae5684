"""Merkle trees, held to the vectors that implementations of RFC 6962 share, and to the recursive definition."""

from __future__ import annotations

from hashlib import sha256

import pytest

from choreo.audit.merkle import Growing, Tree, leaf_hash, node_hash, root_from_path, root_of

# The leaves and roots of Certificate Transparency's reference tests.
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
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def by_definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1."""
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(by_definition(leaves[:split]), by_definition(leaves[split:]))


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_the_reference_vectors(size: int) -> None:
    assert root_of(map(leaf_hash, LEAVES[:size])).hex() == ROOTS[size - 1]


def test_the_empty_tree_is_the_hash_of_nothing() -> None:
    assert Growing().root() == Tree([]).root == sha256().digest()


@pytest.mark.parametrize("size", [*range(1, 35), 63, 64, 65, 100])
def test_every_path_leads_to_the_root_and_no_other_leaf_or_place_does(size: int) -> None:
    leaves = [leaf_hash(b"%d" % number) for number in range(size)]
    tree = Tree(leaves)
    assert tree.root == by_definition(leaves) == root_of(leaves)
    for index in range(size):
        path = tree.path(index)
        assert root_from_path(leaves[index], index, size, path) == tree.root
        assert root_from_path(leaf_hash(b"another"), index, size, path) != tree.root
        if size > 1:
            assert root_from_path(leaves[index], (index + 1) % size, size, path) != tree.root
            assert root_from_path(leaves[index], index, size, path[:-1]) != tree.root
        assert root_from_path(leaves[index], index, size, [*path, bytes(32)]) != tree.root
        assert root_from_path(leaves[index], size, size, path) is None
