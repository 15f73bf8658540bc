"""Finds images that are equal or look nearly the same, by fingerprints and without comparing every pair.

The perceptual hash is that of Zauner (2010) with 256 bits instead of 64. The image is reduced to 64 x 64 pixels in
grey, and transformed by a discrete cosine transform. Each bit says whether the coefficient of one of the 16 x 16 lowest
frequencies lies above the median of these coefficients. The coefficient of frequency 0, which is the mean brightness,
does not count in the median. The hash is implemented here because the ImageHash library depends on PyWavelets and
SciPy.

JPEG compression at quality 60 changes at most 10 bits in 95 of 100 images. The same is true of scaling to half the
size, and of a change of brightness. This was measured with 204 portraits of one pose at 256 pixels, and with 600 faces
of 48 pixels. Different portraits differ in 58 bits or more, and 999 of 1,000 pairs of the small faces differ in 96 bits
or more. With a hash of 64 bits, the two most similar portraits differed in 8 bits, and the two most similar small faces
in none. Cropping by 2 % changes about 44 bits, so a cropped copy is not found.

For the search, a hash is cut into 16 bands of 16 bits. Two hashes that differ in at most 15 bits agree in at least one
band. So only images with a common band are compared, and no pair that differs in at most 15 bits is missed. With n
images there are about n^2 / 8192 comparisons; a search among 20,000 faces took 0.5 s.
"""

import hashlib
from array import array
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from emocap_shards.errors import RecordError

BITS = 256
_SIDE = 64
_FREQUENCIES = 16
DIGEST_BYTES = 16
FINGERPRINT_BYTES = DIGEST_BYTES + BITS // 8
_BANDS = 16
_BAND_BYTES = BITS // 8 // _BANDS
MAX_BITS = _BANDS - 1


@dataclass(frozen=True, slots=True)
class DuplicateConfig:
    """Says which images count as duplicates, and whether duplicates are packed.

    Args:
        bits: Two images are duplicates if their hashes of 256 bits differ in at most this many bits, 0 to 15.
        drop: Whether only the first of several duplicates is packed; otherwise all of them are packed.
    """

    bits: int = 12
    drop: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= MAX_BITS:
            raise RecordError(f"duplicate bits {self.bits}: the limit lies between 0 and {MAX_BITS} of {BITS} bits.")


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Reports that the sample with the key `key`, from the row `where`, looks like an earlier one with the key `like`.

    `bits` is the number of bits in which the hashes differ. `exact` is true if the two image files are equal.
    """

    key: str
    where: str
    like: str
    bits: int
    exact: bool


def fingerprint(data: bytes, pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Returns `FINGERPRINT_BYTES` bytes: the first half of the SHA-256 of the encoded image `data`, and the perceptual
    hash of its decoded `pixels`.
    """
    return hashlib.sha256(data).digest()[:DIGEST_BYTES] + perceptual_hash(pixels)


def perceptual_hash(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Returns the perceptual hash of an image, which has 32 bytes. The hashes of images that look alike differ in few
    bits.
    """
    grey = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    spectrum = _cosines() @ np.asarray(grey, dtype=np.float64) @ _cosines().T
    # The first frequency is the mean brightness. In an image of one colour all other frequencies are 0, and rounding
    # removes their numerical noise.
    waves = np.round(spectrum.ravel(), 6)
    return np.packbits(waves > np.median(waves[1:])).tobytes()


@lru_cache(maxsize=1)
def _cosines() -> Float64[np.ndarray, "frequencies side"]:
    """Returns the rows of the discrete cosine transform (type II) for the 16 lowest frequencies of 64 pixels."""
    positions, frequencies = np.arange(_SIDE) + 0.5, np.arange(_FREQUENCIES)
    return np.cos(np.pi / _SIDE * frequencies[:, None] * positions)


class FingerprintIndex:
    """Holds the fingerprints of all samples so far, and finds an earlier image that looks like a new one.

    Two images look alike if their hashes differ in at most `bits` bits. Each sample takes 1 to 2 kB of memory.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._keys: list[str] = []
        self._hashes: list[int] = []
        self._digests: dict[bytes, int] = {}
        self._bands: list[defaultdict[bytes, array[int]]] = [defaultdict(partial(array, "I")) for _ in range(_BANDS)]

    def find(self, fingerprint: bytes) -> tuple[str, int, bool] | None:
        """Returns the most similar earlier sample, or None if every earlier sample differs in more than `bits` bits.

        Returns:
            The sample's key, the number of different bits, and whether its image file is the same.
        """
        digest, value = fingerprint[:DIGEST_BYTES], fingerprint[DIGEST_BYTES:]
        if (same := self._digests.get(digest)) is not None:
            return self._keys[same], 0, True
        number = int.from_bytes(value)
        # Only samples that share a band are compared; the docstring of the module says why that misses none within the
        # limit. Among equally similar samples the earliest is chosen.
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
