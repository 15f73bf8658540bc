"""Computes which rank holds which part of the optimizer's state, from names and sizes alone.

It applies the rule by which DeepSpeed 0.19.8 divides a parameter group of the optimizer over the ranks. `zero.py` maps
this layout to the tensors of the optimizer.

The manifest of a checkpoint stores the layout with which the checkpoint was written. A run may resume with another
number of ranks and another stage of ZeRO. Each rank then compares the stored layout with its own, and reads only the
files that contain elements of its own slices (decision 16). This module uses no tensors and no files, so tests need
only plain numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, chain
from math import ceil
from typing import Any

from emocap_pretrain.checkpoint.layout import ENGINE
from emocap_pretrain.errors import CheckpointError

Group = tuple[tuple[str, int], ...]  # The name and the number of elements of each parameter, in the group's order.


@dataclass(frozen=True, slots=True)
class Slice:
    """Describes the elements [offset, offset + length) of a flattened parameter.

    Example:
        Slice("image.norm.weight", 10, 20).overlap(Slice("image.norm.weight", 25, 10))
        # Slice(name="image.norm.weight", offset=25, length=5)
    """

    name: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    def overlap(self, other: "Slice") -> "Slice | None":
        """Returns the elements that are in both slices; None if there are none, or if the parameters differ."""
        begin, end = max(self.offset, other.offset), min(self.end, other.end)
        return Slice(self.name, begin, end - begin) if self.name == other.name and begin < end else None


@dataclass(frozen=True, slots=True)
class Layout:
    """Describes how the state of the optimizer is divided over the ranks.

    `tensors` returns the slices that the optimizer of a rank holds, with their positions in the optimizer's tensors.
    `held` returns the same slices without the positions. `slices` returns the slices that the rank writes into a
    checkpoint. They differ from `held` only at stage 0, where each rank holds the whole state and writes an even share
    of it.

    Attributes:
        zero_stage: Stage of ZeRO, 0 to 3.
        ranks: World size.
        groups: The trained parameters in the optimizer's groups, each as its name and its number of elements.
        optimizer: The value of `optimizer.name`. The default is for checkpoints of version 0.1.0, which had only AdamW
            and did not store the name.
    """

    zero_stage: int
    ranks: int
    groups: tuple[Group, ...]
    optimizer: str = "adamw"

    def slices(self, rank: int) -> tuple[Slice, ...]:
        """Returns the slices that the rank writes. The slices of all ranks contain every element exactly once."""
        if self.zero_stage > 0:
            return self.held(rank)
        # Without ZeRO every rank has the whole state. Each rank writes an even share, so that all of them upload.
        whole = tuple(chain.from_iterable(self.groups))
        elements = sum(length for _, length in whole)
        bounds = [elements * edge // self.ranks for edge in (rank, rank + 1)]
        return tuple(each for _, each in _cut(whole, *bounds))

    def held(self, rank: int) -> tuple[Slice, ...]:
        """Returns the slices whose state is in the rank's optimizer."""
        return tuple(each for tensor in self.tensors(rank) for _, each in tensor)

    def tensors(self, rank: int) -> tuple[tuple[tuple[int, Slice], ...], ...]:
        """Returns, for each tensor of the rank's optimizer, the slices in it with their positions in the tensor.

        At stage 0 each parameter is a tensor of the optimizer. At stages 1 to 3 each group has one flat tensor. The
        tensors have the order of the optimizer. A position is the index of the slice's first element in the tensor.
        """
        if self.zero_stage == 0:
            return tuple(((0, Slice(name, 0, length)),) for name, length in chain.from_iterable(self.groups))
        # Stage 3 divides each parameter by itself, stages 1 and 2 divide the concatenation of the group.
        cut = _of_each if self.zero_stage == 3 else _of_all
        return tuple(tuple(cut(group, rank, self.ranks)) for group in self.groups)

    def files_for(self, mine: "Layout", rank: int) -> tuple[str, ...]:
        """Returns which files of a checkpoint `rank` must read to continue training.

        The checkpoint was written with this layout, and the run continues with the layout `mine`. There is always at
        least one file, because every rank reads the number of updates.

        Raises:
            CheckpointError: If the layouts have different parameters or optimizers.
        """
        self._check(mine)
        wanted = {each.name: each for each in mine.held(rank)}
        readers = (
            saver
            for saver in range(self.ranks)
            if any(each.name in wanted and each.overlap(wanted[each.name]) for each in self.slices(saver))
        )
        # A rank whose tensors are padding alone reads one file too, for the number of updates.
        return tuple(file_of(saver) for saver in readers) or (file_of(0),)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Layout":
        """Returns the layout that a JSON value from `to_json` describes.

        Raises:
            CheckpointError: If the value does not describe a layout.
        """
        try:
            groups = tuple(tuple((str(name), int(length)) for name, length in group) for group in tree["groups"])
            optimizer = str(tree.get("optimizer", "adamw"))
            return cls(int(tree["zero_stage"]), int(tree["ranks"]), groups, optimizer)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint does not describe the layout of its optimizer state ({error!r}): "
                "another version of this package wrote it; use that version."
            ) from error

    def _check(self, mine: "Layout") -> None:
        if self.optimizer != mine.optimizer:
            raise CheckpointError(
                f"the checkpoint holds the state of {self.optimizer}, and optimizer.name is {mine.optimizer}: "
                f"set optimizer.name={self.optimizer}, or start a new run from another url."
            )
        saved, wanted = dict(chain.from_iterable(self.groups)), dict(chain.from_iterable(mine.groups))
        for name in sorted(saved.keys() | wanted.keys()):
            if saved.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"the checkpoint does not fit the model: it has {_counted(saved, name)} where the model has "
                    f"{_counted(wanted, name)}; set model as it was, or start a new run from another url."
                )


def file_of(rank: int) -> str:
    """Returns the name of a rank's file within a checkpoint."""
    return f"{ENGINE}/rank-{rank:05d}.safetensors"


def _of_all(group: Group, rank: int, ranks: int) -> Iterator[tuple[int, Slice]]:
    """Yields the rank's slices under ZeRO 1 and 2, with their positions in the rank's part of the group's flat tensor.

    DeepSpeed concatenates the group, pads it to a multiple of twice the number of ranks, and divides it evenly. The
    factor 2 is DeepSpeed's `nccl_start_alignment_factor`. The padding is at the end, so the last ranks may hold only
    padding.
    """
    share = 2 * ceil(sum(length for _, length in group) / (2 * ranks))
    return _cut(group, rank * share, (rank + 1) * share)


def _of_each(group: Group, rank: int, ranks: int) -> Iterator[tuple[int, Slice]]:
    """Yields the rank's slices under ZeRO 3, with their positions in the rank's flat tensor of the group.

    DeepSpeed pads each parameter and divides it evenly. The rank's flat tensor is the concatenation of the rank's
    shares of all parameters. The shares contain padding, and the slices do not. The position of a slice is therefore
    the sum of the lengths of all shares before it, padding included.
    """
    shares = [ceil(length / ranks) for _, length in group]
    for (name, length), share, position in zip(group, shares, _starts(shares), strict=True):
        offset = rank * share
        if offset < length:
            yield position, Slice(name, offset, min(share, length - offset))


def _cut(group: Group, begin: int, end: int) -> Iterator[tuple[int, Slice]]:
    """Yields the slices of the elements [begin, end) of the concatenated parameters, each with its position.

    The position is the index of the slice's first element, counted from `begin`.
    """
    for (name, length), start in zip(group, _starts([length for _, length in group]), strict=True):
        first, last = max(begin, start), min(end, start + length)
        if first < last:
            yield first - begin, Slice(name, first - start, last - first)


def _starts(lengths: Sequence[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))[:-1]


def _counted(sizes: Mapping[str, int], name: str) -> str:
    return f"{name} with {sizes[name]} elements" if name in sizes else f"no {name}"
