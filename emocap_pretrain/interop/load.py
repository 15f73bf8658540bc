"""Loads the weights of a source into a model, and reports for each tensor whether and how it was used.

The comparison is strict. Every parameter that a CLIP model also has, in the towers and in the projections, must get
weights of its own shape. Every tensor of the source must be used, except a head, tensors that the layout names as not
needed, and the bias of another objective. Only tables of positions are resized. Models of other libraries have no
projections of patches and of local sentences. In our model these begin as copies of the projections of images and
texts, so that patches and sentences are comparable from the first step. A head, which predicts labels, always begins at
zero.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import ValidationError
from torch import Tensor

from emocap_pretrain.config.fields import ImageCrop
from emocap_pretrain.config.model import ModelConfig
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.data.transform import Resize
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.layouts.layout import IMAGE, TEXT
from emocap_pretrain.interop.positions import resized_grid, resized_positions
from emocap_pretrain.interop.report import LoadReport
from emocap_pretrain.interop.source import Source, open_source
from emocap_pretrain.interop.tensors import Tensors
from emocap_pretrain.interop.translation import translated
from emocap_pretrain.model.lora import is_of_adapter
from emocap_pretrain.model.pair import HEAD, MAX_SCALE, TowerPair
from emocap_pretrain.model.weights import Fit, shapes_of

IMAGE_POSITIONS, TEXT_POSITIONS = f"{IMAGE}pos_embed", f"{TEXT}embeddings.position_embedding.weight"
# Our parameters that no other library has, and the parameter whose weights each of them begins with.
_COPIES = {"to_patch.weight": "to_image.weight", "to_sentence.weight": "to_text.weight"}
_OWN = (*_COPIES, "local_logit_scale", "logit_bias", *HEAD)
LARGEST_EXPONENT = 100.0  # Far above any learned scale; the exponential of a larger one could overflow.


@dataclass(frozen=True, slots=True)
class Loaded:
    """Holds the model of another library, in evaluation mode on the CPU, and its tokenizer.

    Attributes:
        settings: The settings of the model.
        model: The towers with the weights of the source. The projections of patches and sentences are copies of those
            of images and texts.
        tokenizer: The tokenizer of the source.
        report: Says which tensors of the source were loaded, and where each parameter got its values.
        crop: The part of an image that the model was published to read.
        resize: How this part is resized.
    """

    settings: ModelConfig
    model: TowerPair
    tokenizer: Tokenizer
    report: LoadReport
    crop: ImageCrop
    resize: Resize


def load_source(name: str, *, key: str, activation: str | None = None) -> Loaded:
    """Loads a model that another library has written, without training it.

    Args:
        name: A folder, a file or a name on the hub, as for `model.from`.
        key: What error messages call the name.
        activation: The activation for a file that does not contain it.

    Raises:
        ConfigError: If there are no weights that this project can read, or if they do not fit the config beside them.
    """
    source = open_source(name, activation=activation, key=key)
    try:
        settings = ModelConfig.model_validate({**source.layout.settings, "from": name})
    except ValidationError as error:
        raise ConfigError(f"{source.where}: {error.errors()[0]['msg']}.") from error
    tokenizer = source.read_tokenizer()
    build = partial(TowerPair.of, settings, ObjectiveConfig.model_validate({}), tokenizer.vocabulary, weights=False)
    with torch.device("meta"):  # The comparison allocates nothing.
        load_weights(build(), source, values=False)
    model = build()
    report = load_weights(model, source)
    return Loaded(settings, model.eval(), tokenizer, report, source.layout.crop, source.layout.resize)


def load_weights(model: TowerPair, source: Source, *, extend: str = "interpolate", values: bool = True) -> LoadReport:
    """Loads the weights of a source into a model that was built with the settings of the source.

    Args:
        model: The model, on the CPU. If `values` is False, it may be on the device "meta".
        source: The source.
        extend: How text positions are resized, "interpolate" or "stretch" (`model.text.extend_positions`).
        values: Whether the weights are read and loaded. If it is False, only names and shapes are compared.

    Raises:
        ConfigError: If a tensor is missing, superfluous or of another shape. The message has its name. Further errors
            are those of `Source.open_tensors`: for a run, those of `restore`.
    """
    tensors = source.open_tensors()
    given = translated(source.layout, tensors, source.where, values=values)
    expected = model.state_dict()
    given, resized = _resized(model, given, expected, extend)
    # The head of another run is never taken, because its outputs may belong to other classes.
    unused = sorted(name for name in given if name in HEAD or (name in _OWN and name not in expected))
    given = {name: tensor for name, tensor in given.items() if name not in unused}
    started = _started(given, expected)
    given |= {name: tensor for name, (tensor, _) in started.items()}
    needed = {
        name: shape
        for name, shape in shapes_of(expected).items()
        if name in given or not (name in _OWN or is_of_adapter(name))
    }
    _fit(source, needed, given).require(source.where, f"the model ({source.layout.name})", _ADVICE)
    if values:
        model.load_state_dict(given, strict=False)
    return LoadReport(
        key=source.key,
        source=source.name,
        layout=source.layout.name,
        loaded=tuple(name for name in expected if name in given and name not in started),
        resized=tuple(resized),
        copied=tuple(f"{name} from {origin}" for name, (_, origin) in started.items()),
        fresh=tuple(name for name in expected if name not in given),
        left_out=tuple(sorted({*unused, *source.layout.ignored})),
        remarks=_on_scale(tensors),
    )


_ADVICE = "Remove the settings of `model` that contradict the weights, or name the weights of this model."


def _on_scale(tensors: Tensors) -> tuple[str, ...]:
    """Returns a remark if the learned scale of the source exceeds `MAX_SCALE`; otherwise an empty tuple."""
    name = "logit_scale"
    if name not in tensors.shapes:
        return ()
    scale = math.exp(min(float(tensors.load([name])[name].flatten()[0]), LARGEST_EXPONENT))
    if scale <= MAX_SCALE:
        return ()
    bound = f"The model uses its upper bound {MAX_SCALE:.4g} until training has lowered the scale."
    return (f"the learned scale of these weights is {scale:.4g}. {bound}",)


def _started(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
    """Returns initial weights of the projections that no other library has, each with a text that names its origin.

    The projections of patches and local sentences begin as copies of those of images and texts. If the model does not
    project images, as in SigLIP, the projection of patches begins as the identity.
    """
    found: dict[str, tuple[Tensor, str]] = {}
    for name, origin in _COPIES.items():
        shape = expected[name].shape
        if name in given:
            continue
        if origin in given and given[origin].shape == shape:
            found[name] = given[origin], origin
        elif origin not in expected and shape[0] == shape[1]:
            found[name] = torch.eye(shape[0]), "the identity"
    return found


def _fit(source: Source, expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor]) -> Fit:
    """Compares the shapes. The result names tensors as the source does, because the user knows its file."""
    names = {mine: " + ".join(rule.theirs) for rule in source.layout.rules for mine in rule.ours}
    fit = Fit.of(expected, shapes_of(given))
    return Fit(
        tuple(names.get(name, name) for name in fit.missing),
        tuple(names.get(name, name) for name in fit.unexpected),
        tuple((names.get(name, name), has, wants) for name, has, wants in fit.reshaped),
    )


def _resized(
    model: TowerPair, given: dict[str, Tensor], expected: Mapping[str, Tensor], extend: str
) -> tuple[dict[str, Tensor], list[str]]:
    changes: list[str] = []
    for name in (IMAGE_POSITIONS, TEXT_POSITIONS):
        old, new = given.get(name), expected.get(name)
        if old is None or new is None or old.shape == new.shape or old.shape[-1] != new.shape[-1]:
            continue
        with torch.device(old.device):
            if name == IMAGE_POSITIONS:
                made = resized_grid(old, new.shape[1], prefix_tokens=getattr(model.image, "prefix_tokens", 0))
            else:
                made = resized_positions(old, new.shape[0], how=extend)
        given = {**given, name: made}
        changes.append(f"{name} {list(old.shape)} to {list(made.shape)}")
    return given, changes
