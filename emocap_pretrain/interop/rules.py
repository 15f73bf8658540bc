"""Defines the rules that translate the tensors of another library's model into those of a `TowerPair`, and back.

A layout is a list of rules. Each rule names some tensors of the other model and some tensors of ours that hold the same
numbers, and a form that says how they differ. For example, transformers has one matrix for each of query, key and
value, and timm has a single matrix with the rows of all three. Every form can be applied in both directions, so the
same list of rules reads weights and exports them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Form(Protocol):
    """Converts the tensors of one rule. `write` must be the inverse of `read`."""

    def read(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        """Returns our tensors, made from those of the other model."""
        ...

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        """Returns the tensors of the other model, made from ours."""
        ...


@dataclass(frozen=True, slots=True)
class Same:
    """Both models have the same tensor, but ours has `leading` more axes of size 1 in front."""

    leading: int = 0

    def read(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        (tensor,) = theirs
        return [tensor.reshape((1,) * self.leading + tensor.shape)]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        (tensor,) = ours
        return [tensor.reshape(tensor.shape[self.leading :])]


@dataclass(frozen=True, slots=True)
class Spliced:
    """Our tensor has the first `rows` rows of one tensor of the other model, and the later rows of another one.

    Both tensors of the other model have the shape of ours. The other model ignores their remaining rows.
    """

    rows: int

    def read(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        first, second = theirs
        return [torch.cat([first[: self.rows], second[self.rows :]])]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        (tensor,) = ours
        return [tensor, tensor]


@dataclass(frozen=True, slots=True)
class Transposed:
    """The matrix of one model is the transposed matrix of the other."""

    def read(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.T for tensor in theirs]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.T for tensor in ours]


@dataclass(frozen=True, slots=True)
class Concatenated:
    """Our tensor has the rows of `count` tensors of the other model, one after another. All have equally many rows."""

    count: int

    def read(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat(list(theirs))]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        (tensor,) = ours
        return list(tensor.chunk(self.count))


@dataclass(frozen=True, slots=True)
class Split:
    """Our tensors have the rows of one tensor of the other model, one after another, in the ratio of `shares`."""

    shares: tuple[int, ...]

    def read(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        (tensor,) = theirs
        unit, rest = divmod(tensor.shape[0], sum(self.shares))
        if rest:
            raise ValueError(f"{tensor.shape[0]} rows cannot be divided in the ratio {self.shares}")
        return list(tensor.split([unit * share for share in self.shares]))

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat(list(ours))]


@dataclass(frozen=True, slots=True)
class Rule:
    """States that some tensors of ours and some tensors of another model hold the same numbers.

    Attributes:
        ours: Names in the state dict of a `TowerPair`.
        theirs: Names in the state dict of the other model.
        form: How the tensors differ.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    form: Form = field(default_factory=Same)


def renamed(pairs: Mapping[str, str], ours: str, theirs: str, form: Form | None = None) -> list[Rule]:
    """Returns one rule for each pair of names, for tensors that differ in the same way.

    Args:
        pairs: Maps a name in the other model to our name, both without their prefixes.
        ours: Prefix of our names.
        theirs: Prefix of the names in the other model.
        form: How the tensors differ; None if they are equal.
    """
    return [Rule((ours + mine,), (theirs + other,), form or Same()) for other, mine in pairs.items()]


def layers(pairs: Mapping[str, str], ours: str, theirs: str) -> list[Rule]:
    """Returns the rules for modules that have a weight and a bias and are equal in both models.

    `pairs` maps the name of a module in the other model to our name; `ours` and `theirs` are the prefixes.
    """
    both = {f"{other}.{kind}": f"{mine}.{kind}" for other, mine in pairs.items() for kind in ("weight", "bias")}
    return renamed(both, ours, theirs)


def read(rules: Iterable[Rule], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns our tensors by name, made from those of the other model. A rule is skipped if it lacks a tensor.

    Raises:
        ValueError: If a rule cannot convert a tensor of this shape. The message begins with the tensor's name.
    """
    found: dict[str, Tensor] = {}
    for rule in rules:
        if not all(name in tensors for name in rule.theirs):
            continue
        try:
            made = rule.form.read([tensors[name] for name in rule.theirs])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{', '.join(rule.theirs)}: {str(error).splitlines()[0]}") from error
        found |= dict(zip(rule.ours, made, strict=True))
    return found


def write(rules: Iterable[Rule], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of the other model by name, made from ours.

    Raises:
        KeyError: If a tensor of ours is missing.
    """
    found: dict[str, Tensor] = {}
    for rule in rules:
        made = rule.form.write([tensors[name] for name in rule.ours])
        found |= {name: tensor.contiguous() for name, tensor in zip(rule.theirs, made, strict=True)}
    return found
