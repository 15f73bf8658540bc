"""Computes which rank holds which part of the optimizer's state, from names and sizes alone.

It restates how DeepSpeed 0.19.8 cuts a group of the optimizer; `zero.py` holds it to the tensors that are there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, chain
from math import ceil
from typing import Any

from emocap_pretrain.checkpoint.layout import ENGINE
from emocap_pretrain.errors import CheckpointError

Group = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """Elements [offset, offset + length) of a parameter that is laid out flat."""

    name: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    def overlap(self, other: "Slice") -> "Slice | None":
        """Returns the elements that both hold; None if there are none, or if the parameters differ."""
        begin, end = max(self.offset, other.offset), min(self.end, other.end)
        return Slice(self.name, begin, end - begin) if self.name == other.name and begin < end else None


@dataclass(frozen=True, slots=True)
class Layout:
    """The parameters that are trained, as (name, elements) in the optimizer's groups, over how many ranks, and by what.

    `optimizer` is the value of `optimizer.name`; version 0.1.0, which had AdamW alone, did not store it.
    """

    zero_stage: int
    ranks: int
    groups: tuple[Group, ...]
    optimizer: str = "adamw"

    def slices(self, rank: int) -> tuple[Slice, ...]:
        """Returns the slices that the rank writes; those of all ranks cover every element once."""
        if self.zero_stage > 0:
            return self.held(rank)
        # Every rank holds all of it: an even share each spreads the upload.
        whole = tuple(chain.from_iterable(self.groups))
        elements = sum(length for _, length in whole)
        bounds = [elements * edge // self.ranks for edge in (rank, rank + 1)]
        return tuple(each for _, each in _cut(whole, *bounds))

    def held(self, rank: int) -> tuple[Slice, ...]:
        """Returns the slices that the rank's optimizer works on."""
        return tuple(each for tensor in self.tensors(rank) for _, each in tensor)

    def tensors(self, rank: int) -> tuple[tuple[tuple[int, Slice], ...], ...]:
        """Returns the slices in each flat tensor of the rank's optimizer, in its order, with their positions in it."""
        if self.zero_stage == 0:
            return tuple(((0, Slice(name, 0, length)),) for name, length in chain.from_iterable(self.groups))
        cut = _of_each if self.zero_stage == 3 else _of_all
        return tuple(tuple(cut(group, rank, self.ranks)) for group in self.groups)

    def files_for(self, mine: "Layout", rank: int) -> tuple[str, ...]:
        """Returns the files of a checkpoint of this layout that `rank` reads under the layout `mine`; at least one.

        Raises:
            CheckpointError: If the two are not of the same parameters and optimizer.
        """
        self._check(mine)
        wanted = {each.name: each for each in mine.held(rank)}
        readers = (
            saver
            for saver in range(self.ranks)
            if any(each.name in wanted and each.overlap(wanted[each.name]) for each in self.slices(saver))
        )
        # A rank of padding alone still has to learn how many updates were done.
        return tuple(file_of(saver) for saver in readers) or (file_of(0),)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Layout":
        """Reads what `to_json` returned.

        Raises:
            CheckpointError: If the tree is something else.
        """
        try:
            groups = tuple(tuple((str(name), int(length)) for name, length in group) for group in tree["groups"])
            optimizer = str(tree.get("optimizer", "adamw"))
            return cls(int(tree["zero_stage"]), int(tree["ranks"]), groups, optimizer)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint does not say how its optimizer state lies ({error!r}): "
                "another version of this package wrote it; use that one."
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
    """Stages 1 and 2: one flat tensor of the whole group, padded to pairs for every rank and cut evenly."""
    share = 2 * ceil(sum(length for _, length in group) / (2 * ranks))
    return _cut(group, rank * share, (rank + 1) * share)


def _of_each(group: Group, rank: int, ranks: int) -> Iterator[tuple[int, Slice]]:
    """Stage 3: every parameter is padded and cut evenly, and the rank's shares follow one another."""
    shares = [ceil(length / ranks) for _, length in group]
    for (name, length), share, position in zip(group, shares, _starts(shares), strict=True):
        offset = rank * share
        if offset < length:
            yield position, Slice(name, offset, min(share, length - offset))


def _cut(group: Group, begin: int, end: int) -> Iterator[tuple[int, Slice]]:
    """Yields elements [begin, end) of the parameters in a row, with their positions after `begin`."""
    for (name, length), start in zip(group, _starts([length for _, length in group]), strict=True):
        first, last = max(begin, start), min(end, start + length)
        if first < last:
            yield first - begin, Slice(name, first - start, last - first)


def _starts(lengths: Sequence[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))[:-1]


def _counted(sizes: Mapping[str, int], name: str) -> str:
    return f"{name} with {sizes[name]} elements" if name in sizes else f"no {name}"
