"""Finds images that are equal or look nearly the same, without comparing every pair.

A hash of 256 bits is cut into 16 bands of 16 bits. Two hashes that differ in at most 15 bits agree in at least one
band. Only images with a common band are compared, so no pair within the limit is missed. With n images there are about
n^2 / 8192 comparisons; a search among 20,000 faces took 0.5 s.
"""

from array import array
from collections import defaultdict
from dataclasses import dataclass

from emocap_shards.errors import RecordError
from emocap_shards.writing.fingerprint import BITS, DIGEST_BYTES

_BANDS = 16
_BAND_BYTES = BITS // 8 // _BANDS
MAX_BITS = _BANDS - 1


@dataclass(frozen=True, slots=True)
class DuplicateConfig:
    """Says which images count as duplicates, and whether duplicates are packed.

    Args:
        bits: Two images are duplicates if their hashes of 256 bits differ in at most this many bits, 0 to 15.
        drop: Packs only the first of several duplicates.
    """

    bits: int = 12
    drop: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= MAX_BITS:
            raise RecordError(f"duplicate bits {self.bits}: the limit lies between 0 and {MAX_BITS} of {BITS} bits.")


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Reports that the sample `key`, from the row `where`, looks like the earlier sample `like`.

    `bits` is the number of bits in which the hashes differ. `exact` is true if the two image files are equal.
    """

    key: str
    where: str
    like: str
    bits: int
    exact: bool


class FingerprintIndex:
    """Holds the fingerprints of all samples so far, and finds an earlier image that looks like a new one.

    Two images look alike if their hashes differ in at most `bits` bits. Each sample takes 1 to 2 kB of memory.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._keys: list[str] = []
        self._hashes: list[int] = []
        self._digests: dict[bytes, int] = {}
        self._bands: list[defaultdict[bytes, array[int]]] = [defaultdict(_numbers) for _ in range(_BANDS)]

    def find(self, fingerprint: bytes) -> tuple[str, int, bool] | None:
        """Returns the most similar earlier sample, or None if every earlier sample differs in more than `bits` bits.

        Returns:
            The sample's key, the number of different bits, and whether its image file is the same.
        """
        digest, value = fingerprint[:DIGEST_BYTES], fingerprint[DIGEST_BYTES:]
        if (same := self._digests.get(digest)) is not None:
            return self._keys[same], 0, True
        number = int.from_bytes(value)
        near = {other for band, bits in zip(self._bands, _bands(value), strict=True) for other in band.get(bits, ())}
        best = min((((self._hashes[other] ^ number).bit_count(), other) for other in near), default=None)
        if best is None or best[0] > self._bits:
            return None
        return self._keys[best[1]], best[0], False

    def add(self, key: str, fingerprint: bytes) -> None:
        digest, value = fingerprint[:DIGEST_BYTES], fingerprint[DIGEST_BYTES:]
        number = len(self._keys)
        self._keys.append(key)
        self._hashes.append(int.from_bytes(value))
        self._digests.setdefault(digest, number)
        for band, bits in zip(self._bands, _bands(value), strict=True):
            band[bits].append(number)


def _bands(value: bytes) -> list[bytes]:
    return [value[start : start + _BAND_BYTES] for start in range(0, len(value), _BAND_BYTES)]


def _numbers() -> "array[int]":
    return array("I")
