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
        first, step = _hashes(text)
        bits, modulus = self._bits, self._modulus
        for probe in self._probes:
            at = (first + probe * step) % modulus
            bits[at >> 3] |= 1 << (at & 7)

    def __contains__(self, text: str) -> bool:
        first, step = _hashes(text)
        bits, modulus = self._bits, self._modulus
        for probe in self._probes:
            at = (first + probe * step) % modulus
            if not bits[at >> 3] & (1 << (at & 7)):
                return False
        return True


def _hashes(text: str) -> tuple[int, int]:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big") | 1
