"""Translates the tensors of a source into our names and shapes."""

from torch import Tensor

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop import rules
from emocap_pretrain.interop.layouts.layout import WeightsLayout
from emocap_pretrain.interop.tensors import Tensors
from emocap_pretrain.model.weights import Fit


def translated(layout: WeightsLayout, tensors: Tensors, where: str, *, values: bool) -> dict[str, Tensor]:
    """Returns the tensors of a source under our names and in our shapes.

    Args:
        layout: The layout of the source. If it has no rules, the names are not changed.
        tensors: The tensors of the source.
        where: First words of an error message: the setting and its value.
        values: Whether the values are read. If it is False, the results are placeholders on the device "meta".

    Raises:
        ConfigError: If the file lacks a tensor of the layout, has one that the layout does not know, or has one whose
            shape its rule cannot convert.
    """
    found = layout.rules
    names = [name for rule in found for name in rule.theirs] if found else list(tensors.shapes)
    if found:
        missing = tuple(sorted(set(names) - tensors.shapes.keys()))
        unexpected = tuple(sorted(tensors.shapes.keys() - set(names) - layout.ignored))
        Fit(missing, unexpected).require(where, layout.name, "The file is incomplete, or of another model.")
    theirs = tensors.load(names) if values else tensors.placeholders()
    if not found:
        return theirs
    try:
        return rules.read(found, theirs)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.") from error
