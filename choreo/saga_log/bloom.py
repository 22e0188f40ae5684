"""Sets of saga ids in a few bytes for each, that may say yes where they should say no, never the other way round."""

from __future__ import annotations

from hashlib import blake2b

BYTES_MAX = 16 * 1_048_576
_BYTES_MIN = 1_024


class BloomFilter:
    """A set of texts (Bloom, CACM, 1970).

    With 16 bits for each text and 4 probes about one answer in 400 is wrong, with 24 and 8 about one in 25,000; where
    more texts than planned are in it, or its size is at its bound, more are. Two halves of one hash make all probes
    (Kirsch and Mitzenmacher, ESA, 2006). The hash is the same in every process, so that whoever repeats a run asks what
    was asked in the first.
    """

    def __init__(self, texts_max: int, *, bits_each: int = 16, probes: int = 4) -> None:
        size = min(max(texts_max * bits_each // 8, _BYTES_MIN), BYTES_MAX)
        self._bits = bytearray(size)
        self._modulus = size * 8
        self._probes = range(probes)

    def add(self, text: str) -> None:
        self.add_hashes(*hashes_of(text))

    def __contains__(self, text: str) -> bool:
        return self.has_hashes(*hashes_of(text))

    def add_hashes(self, first: int, step: int) -> None:
        """Add the text that has these."""
        bits, modulus = self._bits, self._modulus
        at, step = first % modulus, step % modulus
        for _ in self._probes:
            bits[at >> 3] |= 1 << (at & 7)
            at = (at + step) % modulus

    def has_hashes(self, first: int, step: int) -> bool:
        """Whether the text that has these is in it. For who asks several filters for one text."""
        bits, modulus = self._bits, self._modulus
        at, step = first % modulus, step % modulus
        for _ in self._probes:
            if not bits[at >> 3] & (1 << (at & 7)):
                return False
            at = (at + step) % modulus
        return True


def hashes_of(text: str) -> tuple[int, int]:
    """The two halves of a text's hash, of which all probes are made."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big") | 1
