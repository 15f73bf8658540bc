"""Defines the description of a model in the layout of another library, and what several layouts have in common."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from emocap_pretrain.config.fields import ImageCrop
from emocap_pretrain.config.model import PartLengthsConfig
from emocap_pretrain.data.transform import BICUBIC, Resize
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.rules import Rule, Same
from emocap_pretrain.model.weights import Shapes

Tree = dict[str, Any]
Triple = tuple[float, float, float]
# A name in timm's registry. For a name with the prefix `hf-hub:` or `local-dir:` timm would open a hub or files.
TIMM_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")
LARGEST_SIZE = 1 << 24  # As for the config of a checkpoint (`restore`).
IMAGE, TEXT = "image.backbone.", "text.backbone."
"""The prefixes of the names of both towers' tensors in the state dict of a `TowerPair`."""

# Mean and standard deviation with which OpenAI trained CLIP; nearly all later CLIP models use them too.
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN: Triple = (0.5, 0.5, 0.5)
SIGLIP_STD = SIGLIP_MEAN

# timm's names of common vision transformers of CLIP, by width, depth, heads and patch size.
_TIMM_CLIP = {
    (768, 12, 12, 32): "vit_base_patch32_clip_224",
    (768, 12, 12, 16): "vit_base_patch16_clip_224",
    (1024, 24, 16, 14): "vit_large_patch14_clip_224",
    (1280, 32, 16, 14): "vit_huge_patch14_clip_224",
}
_TIMM_SIGLIP = {
    (768, 12, 12, 16): "vit_base_patch16_siglip_224",
    (768, 12, 12, 32): "vit_base_patch32_siglip_256",
    (1024, 24, 16, 16): "vit_large_patch16_siglip_256",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsLayout:
    """Describes the weights of a source: the settings of their model, and how their tensors are translated into ours.

    Attributes:
        name: What messages call the layout, such as "OpenAI CLIP".
        settings: The settings of the section `model` that the weights determine, as nested mappings.
        rules: The rules that translate the tensors of the file into the tensors of our model. They are empty for
            weights of timm, because timm converts their names, and for weights of a run of this project.
        ignored: Names of tensors in the file that are not loaded, such as a mask. If only the image tower of a CLIP is
            loaded, these are also all other tensors of the CLIP.
        kind: Which library writes and reads this layout: "openai", "open_clip" or "transformers"; for an image tower
            alone "timm", "torchvision" or "efficientnet"; for a run of this project "emocap".
        crop: The part of an image that the model was published to read.
        resize: How this part is resized.
    """

    name: str
    settings: Tree
    rules: tuple[Rule, ...]
    ignored: frozenset[str] = frozenset()
    kind: str
    crop: ImageCrop = "center"
    resize: Resize = BICUBIC


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTransformer:
    """Holds the sizes of the vision transformer of a CLIP or SigLIP model.

    Attributes:
        family: "clip" with a class token and a norm before the blocks, or "siglip" with attention pooling.
        width: Size of a token.
        layers: Number of blocks.
        heads: Number of attention heads of each block.
        patch: Side of a patch in pixels.
        pixels: Side of the images with which the model was trained.
        mlp_width: Hidden size of each MLP.
        activation: "gelu", "gelu_tanh" or "quick_gelu".
        mean: Mean of the colour channels in [0, 1] that the model subtracts.
        std: Standard deviations of the colour channels, by which the model divides.
    """

    family: str
    width: int
    layers: int
    heads: int
    patch: int
    pixels: int
    mlp_width: int
    activation: str
    mean: Triple
    std: Triple

    @property
    def positions(self) -> int:
        """Returns the number of rows of the position embedding."""
        return (self.pixels // self.patch) ** 2 + (self.family == "clip")

    def settings(self) -> Tree:
        """Returns the settings of `model.image`."""
        known = _TIMM_CLIP if self.family == "clip" else _TIMM_SIGLIP
        name = known.get((self.width, self.layers, self.heads, self.patch))
        options: Tree = {}
        if name is None:
            name = "vit_base_patch16_clip_224" if self.family == "clip" else "vit_base_patch16_siglip_224"
            options = {
                "embed_dim": self.width,
                "depth": self.layers,
                "num_heads": self.heads,
                "patch_size": self.patch,
            }
        if self.mlp_width != 4 * self.width:
            # timm computes int(width * ratio). The added 0.5 prevents that rounding makes the MLP smaller by one.
            options["mlp_ratio"] = (self.mlp_width + 0.5) / self.width
        if self.activation != "gelu":
            options["act_layer"] = self.activation
        # A convolution without padding leaves out the pixels beyond the last whole patch.
        pixels = self.pixels // self.patch * self.patch
        return {"name": name, "pixels": pixels, "options": options, "mean": list(self.mean), "std": list(self.std)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTransformer:
    """Holds the sizes of the text transformer of a CLIP or SigLIP model.

    Attributes:
        family: "clip" with causal attention and the vector of the end token, or "siglip" with full attention and the
            vector of the last position.
        width: Size of a token.
        layers: Number of blocks.
        heads: Number of attention heads of each block.
        positions: Rows of the position embedding.
        tokens: Rows of the token embedding.
        mlp_width: Hidden size of each MLP.
        activation: "gelu", "gelu_tanh" or "quick_gelu".
        norm_eps: Epsilon of the layer norms.
        end_id: Id of the end token, whose vector is taken, for "clip".
        pad_id: Id of the padding token, for "siglip"; None takes the padding token of the tokenizer.
    """

    family: str
    width: int
    layers: int
    heads: int
    positions: int
    tokens: int
    mlp_width: int
    activation: str
    norm_eps: float
    end_id: int | None = None
    pad_id: int | None = None

    def settings(self) -> Tree:
        """Returns the settings of `model.text`."""
        architecture = {
            "family": self.family,
            "width": self.width,
            "layers": self.layers,
            "heads": self.heads,
            "mlp_width": self.mlp_width,
            "activation": self.activation,
            "positions": self.positions,
            "tokens": self.tokens,
            "norm_eps": self.norm_eps,
        }
        return {
            "architecture": architecture,
            "pooling": "eos" if self.family == "clip" else "last",
            "end_id": self.end_id,
            "pad_id": self.pad_id,
            "tokenizer": "from",
            # The defaults of the lengths may exceed the positions of these weights.
            "lengths": {name: min(length, self.positions) for name, length in PartLengthsConfig().by_part.items()},
        }


def count_layers(shapes: Shapes, prefix: str) -> int:
    """Returns the number of blocks of a transformer, from names of the form `prefix` + number + "." + rest.

    Distinct numbers are counted, and their values are not used. So a huge number in a name cannot make a huge model.
    """
    return len({name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)})


def size_of(config: Mapping[str, Any], key: str, default: int | None, where: str) -> int:
    """Returns a size in a config that is not trusted; `default` if the config does not have it.

    Raises:
        ConfigError: If the value is not a whole number from 1 to `LARGEST_SIZE`, or if it is missing and `default` is
            None.
    """
    value = default if config.get(key) is None else config[key]
    if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
        raise ConfigError(f"{where}: {key}={str(value)[:40]!r}; a whole number from 1 to {LARGEST_SIZE:,} is needed.")
    return value


def statistics_of(
    config: Mapping[str, Any], keys: tuple[str, str], default: tuple[Triple, Triple], where: str
) -> tuple[Triple, Triple]:
    """Returns the mean and standard deviation by which images are normalized, from a config that is not trusted.

    Args:
        config: The config.
        keys: The keys of the mean and of the standard deviation in the config.
        default: The mean and the standard deviation to use if a key is missing.
        where: First words of an error message: the setting and its value.

    Raises:
        ConfigError: If a value is not a list of three numbers.
    """
    mean, std = (_triple(config.get(key) or own, key, where) for key, own in zip(keys, default, strict=True))
    return mean, std


def _triple(value: Any, key: str, where: str) -> Triple:
    try:
        red, green, blue = (float(each) for each in value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {key}={str(value)[:60]!r}; a list of three numbers is needed.") from error
    return red, green, blue


def shape_of(shapes: Shapes, name: str, axes: int, where: str) -> tuple[int, ...]:
    """Returns the shape of a tensor from which sizes of the model are read.

    Raises:
        ConfigError: If there is no such tensor, or it has another number of axes or an axis of size 0.
    """
    shape = shapes.get(name)
    if shape is None:
        raise ConfigError(f"{where}: the tensor {name} is missing in these weights.")
    if len(shape) != axes or 0 in shape:
        raise ConfigError(f"{where}: the tensor {name} has the shape {list(shape)}, and {axes} axes are needed.")
    return shape


def grid_side(tokens: int, name: str, where: str) -> int:
    """Returns the side of the square grid that has as many patches as there are position embeddings.

    Raises:
        ConfigError: If the number of patches is not a square.
    """
    side = round(tokens**0.5)
    if side < 1 or side * side != tokens:
        raise ConfigError(f"{where}: the tensor {name} has {tokens} patches, which do not form a square grid.")
    return side


def scalar(name: str, shapes: Shapes) -> tuple[Rule, ...]:
    """Returns the rule for a learned scale or bias, which has one axis in some files and none in others.

    The result is empty if the file has no such tensor.
    """
    return (Rule((name,), (name,), Same(leading=1 - min(1, len(shapes[name])))),) if name in shapes else ()


def present(names: Iterable[str], shapes: Mapping[str, Any]) -> frozenset[str]:
    """Returns those of the names that the file contains."""
    return frozenset(name for name in names if name in shapes)
