"""Merkle trees as RFC 6962 (section 2.1) has them: SHA-256, leaves and nodes hashed under different prefixes.

The prefixes keep a node from being passed off as a leaf. The tree over n > 1 leaves is split at the largest power of
two below n, so that appending leaves never changes a full subtree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

LEAF, NODE = b"\x00", b"\x01"


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf."""
    return sha256(LEAF + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash over two subtrees."""
    return sha256(NODE + left + right).digest()


class Growing:
    """A tree to which leaves are appended; it keeps one hash for each full subtree, log2 n in all."""

    def __init__(self) -> None:
        self.size = 0
        self._full: list[bytes] = []  # the largest first

    def append(self, leaf: bytes) -> None:
        """Add a leaf's hash."""
        size, self.size = self.size, self.size + 1
        while size & 1:
            leaf = node_hash(self._full.pop(), leaf)
            size >>= 1
        self._full.append(leaf)

    def root(self) -> bytes:
        """The root over all leaves so far; the hash of nothing for none."""
        if not self._full:
            return sha256().digest()
        root = self._full[-1]
        for left in reversed(self._full[:-1]):
            root = node_hash(left, root)
        return root


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over these leaf hashes."""
    tree = Growing()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


class Tree:
    """A whole tree in memory, for paths. Levels are kept, so that each path is read off."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.size = len(leaves)
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            above = [node_hash(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)]
            if len(below) % 2:
                above.append(below[-1])  # has no sibling yet and moves up as it is
            self._levels.append(above)

    @property
    def root(self) -> bytes:
        return self._levels[-1][0] if self.size else sha256().digest()

    def path(self, index: int) -> list[bytes]:
        """The hashes beside the way from a leaf to the root, the lowest first (RFC 6962, 2.1.1)."""
        assert 0 <= index < self.size, "a path begins at a leaf"
        found = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                found.append(level[sibling])
            index >>= 1
        return found


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a path leads to (RFC 9162, 2.1.3.2); ``None`` if no tree of that size has such a path."""
    if not 0 <= index < size:
        return None
    at, last, root = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return None
        if at & 1 or at == last:
            root = node_hash(sibling, root)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        at, last = at >> 1, last >> 1
    return root if last == 0 else None
