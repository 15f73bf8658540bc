"""Gives the tensors of a source our names and shapes, and reports what became of each of them."""

from dataclasses import dataclass

from torch import Tensor

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop import rules
from emocap_pretrain.interop.layouts.layout import WeightsLayout
from emocap_pretrain.interop.tensors import Tensors
from emocap_pretrain.model.weights import Fit, listed


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """Says what became of the tensors of a source and of the parameters of the model.

    Attributes:
        key: The setting that names the source.
        source: The value of the setting.
        layout: The name of the source's layout.
        loaded: Number of our tensors that got weights of the source.
        resized: What was resized, with the sizes before and after.
        copied: Parameters that began as a copy of others, such as "to_patch.weight from to_image.weight".
        fresh: Parameters that have no weights in the source and keep their initial values.
        left_out: Tensors of the source that the model does not need.
        remarks: Further lines for the user.
    """

    key: str
    source: str
    layout: str
    loaded: int
    resized: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def lines(self) -> tuple[str, ...]:
        """Returns the report as lines of text, each with what happened, how often, and the names."""
        rows = (("resized", self.resized), ("copied", self.copied), ("new", self.fresh), ("left out", self.left_out))
        head = f"{self.key}={self.source} ({self.layout}): {self.loaded} tensors are loaded"
        counts = (f"{self.key}: {len(names)} {what}: {listed(names)}" for what, names in rows if names)
        return (head, *counts, *self.remarks)


def translated(layout: WeightsLayout, tensors: Tensors, where: str, *, values: bool) -> dict[str, Tensor]:
    """Returns the tensors of a source with the names and shapes of ours.

    Args:
        layout: The layout of the source. If it has no rules, the names are not changed.
        tensors: The tensors of the source.
        where: First words of an error message: the setting and its value.
        values: Whether the numbers are read. Without them, the results are placeholders on the device "meta".

    Raises:
        ConfigError: If the file lacks a tensor of the layout, has another one, or has one of an impossible shape.
    """
    found = layout.rules
    names = [name for rule in found for name in rule.theirs] if found else list(tensors.shapes)
    if found:
        missing = tuple(sorted(set(names) - tensors.shapes.keys()))
        unexpected = tuple(sorted(tensors.shapes.keys() - set(names) - layout.constants))
        Fit(missing, unexpected).require(where, layout.name, "The file is incomplete, or of another model.")
    theirs = tensors.load(names) if values else tensors.placeholders()
    if not found:
        return theirs
    try:
        return rules.read(found, theirs)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.") from error
