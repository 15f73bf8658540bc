"""The size of a batch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a batch on one device.

    Attributes:
        rows: Number of images.
        width: Number of elements in a vector.
        patches: Number of patches of each image; None if the loss has whole images only.
        sentences: Number of sentences of all images together; None if the loss has whole images only.
    """

    rows: int
    width: int
    patches: int | None = None
    sentences: int | None = None

    @property
    def regions(self) -> tuple[int, int]:
        """Patches of an image, and sentences of the batch.

        Raises:
            ValueError: If the size has none.
        """
        if self.patches is None or self.sentences is None:
            raise ValueError(f"{self} has no patches and sentences.")
        return self.patches, self.sentences

    @property
    def order(self) -> tuple[int, int, int, int]:
        """The key by which sizes are sorted."""
        return (self.width, self.rows, self.patches or 0, self.sentences or 0)
