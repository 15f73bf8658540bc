"""Defines the batch that one rank feeds to its towers in one step.

`Collate` in `loader.py` makes batches, the engine encodes them, and `training/representation_cache.py` cuts them into
passes. Batches are plain values: a method that changes tensors returns a new batch, except `share_memory_`, which moves
the tensors in place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Texts:
    """Holds tokenized texts, such as the texts of one caption part for the images of a batch.

    A part that is aligned with whole images has one text for each image, in the order of the images, and `owner` is
    None. A part that is aligned with patches has zero, one or more texts for each image, and `owner` contains the row
    of each text's image.

    Attributes:
        ids: Token ids, padded at the end to the longest text.
        mask: True on real tokens, False on padding.
        owner: The row of the image that each text describes, ascending; None if text `i` describes image `i`.
        identity: A hash of the tokens of each text, which is equal on every rank for equal tokens. With
            `objective.known_positives`, samples with equal hashes are positives of each other. None if no loss needs
            the hashes.
    """

    ids: Int[Tensor, "texts length"]
    mask: Bool[Tensor, "texts length"]
    owner: Int64[Tensor, " texts"] | None = None
    identity: Int64[Tensor, " texts"] | None = None

    def starts(self, rows: Sequence[int]) -> list[int]:
        """Returns, for each of these image rows, the index of its first text. Synchronizes with the device once.

        An image without texts gets the index of the next image's first text. So if `starts([a, b])` returns `[i, j]`,
        the images `a` to `b - 1` have the texts `i` to `j - 1`. For the row after the last image, the result is the
        number of texts.

        >>> owner = torch.tensor([0, 0, 2])
        >>> Texts(torch.zeros(3, 1).long(), torch.ones(3, 1).bool(), owner).starts([0, 1, 2, 3])
        [0, 2, 2, 3]
        """
        if self.owner is None:
            return list(rows)
        # The binary search relies on the ascending order of `owner`.
        return torch.searchsorted(self.owner, self.owner.new_tensor(rows)).tolist()

    def piece(self, span: slice, first_row: int) -> "Texts":
        """Returns the texts at the indices `span`, for a piece of the batch that begins at the image row `first_row`.

        The result counts image rows from the beginning of the piece: `first_row` is subtracted from each `owner`. The
        tensors of the result share the memory of this object, except `owner`.
        """
        owner = None if self.owner is None else self.owner[span] - first_row
        identity = None if self.identity is None else self.identity[span]
        return Texts(self.ids[span], self.mask[span], owner, identity)

    def to(self, device: str) -> "Texts":
        """Returns the texts on a device. A copy from pinned memory does not block the host."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Texts":
        """Returns the texts with `change` applied to every tensor."""
        owner, identity = (None if each is None else change(each) for each in (self.owner, self.identity))
        return Texts(change(self.ids), change(self.mask), owner, identity)


@dataclass(frozen=True, slots=True)
class Batch:
    """Holds a rank's share of one global batch: its images, and its texts by the name of their caption part.

    Parts and labels that the objective does not use are missing in `texts` and `labels`. In the last step of an epoch,
    ranks may have different numbers of rows, and a rank may have none. Then the images have the shape
    [0, 3, height, width].

    Attributes:
        images: The images.
        texts: The texts of each caption part, by the name of the part.
        labels: The target of each image, [batch], by the name of the label. For a label with classes, it is the index
            of the class as int64, or -1 if the label is missing. For a label with numbers, it is the number as float32,
            or NaN if the label is missing.
    """

    images: UInt8[Tensor, "batch 3 height width"]
    texts: Mapping[str, Texts]
    labels: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def rows(self) -> int:
        """Returns the number of images."""
        return self.images.shape[0]

    @property
    def tokens(self) -> int:
        """Returns the number of text tokens of all parts, without padding. Synchronizes with the device."""
        return sum(int(texts.mask.sum()) for texts in self.texts.values())

    def to(self, device: str) -> "Batch":
        """Returns the batch on a device. A copy from pinned memory does not block the host."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Returns the batch in pinned memory. DataLoader calls this method if its `pin_memory` is set."""
        return self.mapped(Tensor.pin_memory)

    def share_memory_(self) -> None:
        """Moves the tensors to shared memory, so that another process can read them without a copy.

        Raises:
            RuntimeError: If /dev/shm is full.
        """
        self.mapped(Tensor.share_memory_)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Returns the batch with `change` applied to every tensor."""
        texts = {name: texts.mapped(change) for name, texts in self.texts.items()}
        return Batch(change(self.images), texts, {name: change(each) for name, each in self.labels.items()})
