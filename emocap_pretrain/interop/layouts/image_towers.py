"""Recognizes files of image towers without a text tower and without a config, by the names of their tensors.

The towers are MobileNetV2 of torchvision and EfficientNet-lite0. Both consist of inverted residual blocks: a pointwise
convolution that expands the channels, a depthwise convolution, and a pointwise convolution that reduces the channels,
each followed by batch norm. The first block has no expansion. The files number the blocks through the whole network,
and timm numbers them within each stage.
"""

from collections.abc import Iterator, Sequence

from emocap_pretrain.interop.layouts.layout import IMAGE, WeightsLayout
from emocap_pretrain.interop.rules import Rule, renamed
from emocap_pretrain.model.timm_image import COUNTER
from emocap_pretrain.model.weights import Shapes

# Blocks in each stage.
_MOBILENET, _LITE0 = (1, 2, 3, 4, 3, 3, 1), (1, 2, 2, 3, 3, 4, 1)
_NORM = ("weight", "bias", "running_mean", "running_var")
_CLASSIFIERS = ("classifier.1.weight", "classifier.1.bias", "_fc.weight", "_fc.bias")
# timm's modules of the first block and of all others: pairs of a convolution and the batch norm after it.
_FIRST = (("conv_dw", "bn1"), ("conv_pw", "bn2"))
_BLOCK = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))


def describe_image_tower(shapes: Shapes) -> WeightsLayout | None:
    """Returns the layout of a file of torchvision's MobileNetV2 or of EfficientNet-lite0; None for any other file.

    Args:
        shapes: The shapes of all tensors by name.
    """
    if "features.18.0.weight" in shapes and "features.1.conv.0.0.weight" in shapes:
        return _layout("torchvision", "MobileNetV2 of torchvision", "mobilenetv2_100", _torchvision(), shapes)
    if "_conv_stem.weight" in shapes and "_blocks.15._project_conv.weight" in shapes:
        # Other sizes of EfficientNet-lite have the same names and other shapes. They fail in the comparison of shapes.
        return _layout("efficientnet", "EfficientNet-lite0", "tf_efficientnet_lite0", _efficientnet(), shapes)
    return None


def _layout(kind: str, name: str, tower: str, rules: Sequence[Rule], shapes: Shapes) -> WeightsLayout:
    unused = (*_CLASSIFIERS, COUNTER)
    return WeightsLayout(
        name=name,
        kind=kind,
        # timm knows the mean and standard deviation of the images for both towers.
        settings={"image": {"name": tower}},
        rules=tuple(rules),
        ignored=frozenset(each for each in shapes if each.endswith(unused)),
    )


def _torchvision() -> list[Rule]:
    rules = [*_unit("conv_stem", "bn1", "features.0.0", "features.0.1")]
    for number, (block, units) in enumerate(_blocks(_MOBILENET), start=1):
        theirs = f"features.{number}.conv."
        for place, (convolution, norm) in enumerate(units):
            # The last convolution has no activation. So torchvision does not put it into a module with its batch norm.
            is_last = place == len(units) - 1
            modules = (f"{place}", f"{place + 1}") if is_last else (f"{place}.0", f"{place}.1")
            rules += _unit(block + convolution, block + norm, theirs + modules[0], theirs + modules[1])
    return [*rules, *_unit("conv_head", "bn2", "features.18.0", "features.18.1")]


def _efficientnet() -> list[Rule]:
    rules = [*_unit("conv_stem", "bn1", "_conv_stem", "_bn0")]
    names = ("_expand_conv", "_depthwise_conv", "_project_conv")
    for number, (block, units) in enumerate(_blocks(_LITE0)):
        for place, (convolution, norm) in enumerate(units, start=len(names) - len(units)):
            theirs = f"_blocks.{number}."
            rules += _unit(block + convolution, block + norm, theirs + names[place], f"{theirs}_bn{place}")
    return [*rules, *_unit("conv_head", "bn2", "_conv_head", "_bn1")]


def _blocks(stages: Sequence[int]) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    """Yields the prefix of each block's names in timm, and the names of its pairs of a convolution and a batch norm.

    `stages` has the number of blocks in each stage. The blocks come in the order of the network.
    """
    for stage, count in enumerate(stages):
        for number in range(count):
            yield f"blocks.{stage}.{number}.", _BLOCK if stage else _FIRST


def _unit(convolution: str, norm: str, their_convolution: str, their_norm: str) -> list[Rule]:
    """Returns the rules for a convolution and the batch norm after it."""
    pairs = {f"{their_convolution}.weight": f"{convolution}.weight"}
    pairs |= {f"{their_norm}.{kind}": f"{norm}.{kind}" for kind in _NORM}
    return renamed(pairs, IMAGE, "")
