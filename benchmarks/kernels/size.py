"""The size of a batch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a batch on one device.

    Attributes:
        rows: Number of images.
        width: Number of elements in a vector.
        patches: Number of patches of each image; None where the loss knows whole images only.
        sentences: Number of sentences of all images together; None as well.
    """

    rows: int
    width: int
    patches: int | None = None
    sentences: int | None = None

    @property
    def regions(self) -> tuple[int, int]:
        """Patches of an image and sentences of the batch, of a size that has them."""
        if self.patches is None or self.sentences is None:
            raise ValueError(f"{self} has no patches and sentences.")
        return self.patches, self.sentences

    @property
    def order(self) -> tuple[int, int, int, int]:
        """The key by which sizes are sorted."""
        return (self.width, self.rows, self.patches or 0, self.sentences or 0)
