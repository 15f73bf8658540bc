"""What one rank feeds its towers in one step."""

from dataclasses import dataclass, fields
from typing import Any

from jaxtyping import Bool, Int, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a list of texts, padded to the longest; `mask` is True on real tokens."""

    ids: Int[Tensor, "texts length"]
    mask: Bool[Tensor, "texts length"]

    def to(self, device: str) -> "Tokens":
        return Tokens(self.ids.to(device, non_blocking=True), self.mask.to(device, non_blocking=True))

    def share_memory_(self) -> None:
        self.ids.share_memory_()
        self.mask.share_memory_()

    def pin_memory(self) -> "Tokens":
        return Tokens(self.ids.pin_memory(), self.mask.pin_memory())


@dataclass(frozen=True, slots=True)
class Batch:
    """`batch` faces and the parts of their captions; row `i` of `images` belongs to row `i` of `whole` and `summary`.

    `owner[n]` is the row whose face sentence `n` describes; it ascends. `whole_ids` and `summary_ids` are hashes of the
    token rows: captions that the tower cannot tell apart have equal numbers on every rank.
    """

    images: UInt8[Tensor, "batch 3 height width"]
    whole: Tokens
    summary: Tokens
    sentences: Tokens
    owner: Int64[Tensor, " sentences"]
    whole_ids: Int64[Tensor, " batch"]
    summary_ids: Int64[Tensor, " batch"]

    @property
    def rows(self) -> int:
        return self.images.shape[0]

    @property
    def tokens(self) -> int:
        """Real text tokens, padding not counted."""
        return sum(int(part.mask.sum()) for part in (self.whole, self.summary, self.sentences))

    def to(self, device: str) -> "Batch":
        def move(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tokens) else value.to(device, non_blocking=True)

        return Batch(**{field.name: move(getattr(self, field.name)) for field in fields(self)})

    def share_memory_(self) -> None:
        """Moves the tensors to shared memory, in which they reach another process without a copy.

        Raises:
            RuntimeError: If there is no room in /dev/shm.
        """
        for field in fields(self):
            getattr(self, field.name).share_memory_()

    def pin_memory(self) -> "Batch":
        return Batch(**{field.name: getattr(self, field.name).pin_memory() for field in fields(self)})
