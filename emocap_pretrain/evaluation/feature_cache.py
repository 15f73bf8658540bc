"""Keeps the vectors of batches between evaluations, by a digest of everything that decides them.

A batch is found again if the model, the contents of its examples and the texts are the same, wherever the files lie.
A batch is kept or computed as a whole, because the last bits of a vector may depend on the size of its batch. So on one
device with one number of threads, the results are the same with an empty cache, with a full one, and with the one that
an interrupted evaluation has left. The last bits of a vector also depend on the device and on the number of threads,
and the cache returns those of the evaluation that computed it.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from emocap_shards.errors import NotFound, StoreError
from emocap_shards.store import Store
from safetensors import SafetensorError
from safetensors.numpy import load, save

FORM = "features-3"
_MOST_BYTES = 1 << 30
_CHECKSUM = "checksum"  # The name of a further array of each file.

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """Keeps arrays in a store. Several processes may share it.

    Attributes:
        store: The store.
        model: A digest of the model (`Embedder.digest`).
    """

    store: Store
    model: str

    def path(self, contents: Sequence[bytes], texts: Sequence[str]) -> str:
        """Returns the path in the store at which the vectors of a batch are kept.

        Args:
            contents: The digests of the examples' contents.
            texts: How the contents are processed, such as the crop; and each text of the batch, together with how it is
                processed, such as the number of tokens to which it is cut.
        """
        digest = hashlib.blake2b(f"{FORM} {self.model} {len(contents)} {len(texts)}".encode(), digest_size=32)
        for content in contents:
            digest.update(len(content).to_bytes(4, "little") + content)
        for text in texts:
            encoded = text.encode(errors="surrogatepass")
            digest.update(len(encoded).to_bytes(4, "little") + encoded)
        name = digest.hexdigest()
        return f"{name[:2]}/{name[2:]}.safetensors"

    def read(self, path: str) -> Mapping[str, np.ndarray] | None:
        """Returns the arrays at a path; None if there are none, or if they cannot be read or are not those written."""
        try:
            arrays = load(self.store.read(path, limit_bytes=_MOST_BYTES))
        except (NotFound, SafetensorError):
            return None
        except StoreError as error:
            _log.warning("the cache of features is not read: %s", error)
            return None
        checksum = arrays.pop(_CHECKSUM, None)
        if checksum is None or checksum.tobytes() != _checksum(path, arrays):
            _log.warning("a file of the cache of features is damaged, and its vectors are computed again: %s", path)
            return None
        return arrays

    def write(self, path: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Stores arrays. If this fails, a warning is logged: the evaluation continues without the cache."""
        try:
            checksum = np.frombuffer(_checksum(path, arrays), dtype=np.uint8)
            self.store.put(path, save({**arrays, _CHECKSUM: checksum}))
        except (StoreError, OSError) as error:
            _log.warning("the cache of features is not written: %s", error)


def _checksum(path: str, arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns a digest of the path and of the names, types, shapes and values of the arrays.

    The path decides which arrays a file has, so a file in the place of another one has another checksum.
    """
    digest = hashlib.blake2b(path.encode(), digest_size=32)
    for name, array in sorted(arrays.items()):
        digest.update(f" {name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
