"""Loads pretrained weights into an image tower (`model.image.pretrained`, `objective.teacher.pretrained`).

The weights come from timm's hub, from a file or folder with the weights of an image tower, or from a whole CLIP or
SigLIP, of which only the image tower is taken. Rules (`rules.py`) translate the weights of other libraries into timm's
names. timm then resizes tensors that depend on the size of the images. Every tensor of the tower must get weights.

A source also determines settings of the tower, such as its name. `settings.py` takes those that the user leaves out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from emocap_pretrain.config.fields import ImageCrop
from emocap_pretrain.config.location import located
from emocap_pretrain.config.model import ImageTowerConfig
from emocap_pretrain.config.objective import TeacherConfig
from emocap_pretrain.errors import CheckpointError, ConfigError
from emocap_pretrain.interop.layouts import clip, open_clip
from emocap_pretrain.interop.layouts.image_towers import describe_image_tower
from emocap_pretrain.interop.layouts.layout import IMAGE, TIMM_NAME, Tree, WeightsLayout, size_of
from emocap_pretrain.interop.report import LoadReport
from emocap_pretrain.interop.restore import WeightShapes, is_plain, too_large
from emocap_pretrain.interop.source import CONFIG_FILE, is_openai, open_source
from emocap_pretrain.interop.tensors import Tensors, open_tensors
from emocap_pretrain.interop.translation import translated
from emocap_pretrain.model.json_files import read_json
from emocap_pretrain.model.lora import is_of_adapter
from emocap_pretrain.model.teacher import Teacher, teacher_tower
from emocap_pretrain.model.timm_image import COUNTER, FACTORY_ARGUMENTS, TimmImageTower, converted

_HUB = "hub"
_TEXT_TABLES = {"positional_embedding", "text.positional_embedding"}  # Tensors of the text tower of OpenAI's CLIP.
# Arguments in timm's config.json that are not options of a tower (`model.image.options`).
_NO_OPTIONS = FACTORY_ARGUMENTS | {"num_classes", "in_chans", "img_size"}


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Describes weights of an image tower.

    Attributes:
        layout: The names of the tensors, and the settings that they determine. If it has no rules, timm's own code
            converts the names.
        tensors: The tensors of the source.
        written: Texts that may show who trained the weights: names of the file and its folders, metadata of the file,
            and the activation.
    """

    layout: WeightsLayout
    tensors: Tensors
    written: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadedImageTower:
    """Holds an image tower of another library in evaluation mode on the CPU.

    Attributes:
        tower: The tower.
        report: Says which tensors were loaded.
        crop: The part of an image that the tower was published to read.
    """

    tower: TimmImageTower
    report: LoadReport
    crop: ImageCrop


def image_settings(pretrained: str, key: str) -> Tree:
    """Returns the settings of an image tower that its weights determine; empty if they determine none.

    Args:
        pretrained: The value of the setting `pretrained`, which must not be "hub".
        key: The key of the tower's settings, for the error message.

    Raises:
        ConfigError: If the weights cannot be read.
    """
    return dict(_opened(pretrained, f"{key}.pretrained").layout.settings.get("image", {}))


def load_image_weights(tower: TimmImageTower, settings: ImageTowerConfig) -> LoadReport | None:
    """Loads the weights that the settings name into a tower that was built with these settings.

    Returns:
        The report; None if the settings name no weights.

    Raises:
        ConfigError: If the weights cannot be read, or if a tensor is missing, superfluous or of another shape. The
            message then has the name of the tensor.
    """
    if settings.pretrained is None:
        return None
    source = None if settings.pretrained == _HUB else _opened(settings.pretrained, f"{settings.key}.pretrained")
    tensors, report = _converted(settings, source, values=True)
    # The source has no adapters, so those of the tower keep their values.
    adapters = {name: each for name, each in tower.backbone.state_dict().items() if is_of_adapter(name)}
    tower.backbone.load_state_dict({**tensors, **adapters})
    return report


def load_teacher(teacher: Teacher) -> LoadReport | None:
    """Loads the weights of a teacher, as `load_image_weights` does."""
    return load_image_weights(teacher.tower, teacher.settings)


def check_image_weights(settings: ImageTowerConfig) -> tuple[str, ...]:
    """Compares the weights with the tower by names and shapes, before a run starts. It reads no values of weights.

    Weights on timm's hub are not downloaded here; they are compared when the run starts.

    Returns:
        Lines for the user; empty if the settings name no weights.

    Raises:
        ConfigError: As `load_image_weights` does.
    """
    if settings.pretrained is None:
        return ()
    if settings.pretrained == _HUB:
        return (f"{settings.key}.pretrained=hub: the weights are compared with the tower when the run starts",)
    source = _opened(settings.pretrained, f"{settings.key}.pretrained")
    with torch.device("meta"):
        return _converted(settings, source, values=False)[1].lines()


def check_teacher(settings: TeacherConfig | None, *, pixels: int) -> tuple[str, ...]:
    """Compares the weights of a teacher with its tower for images of `pixels` pixels, as `check_image_weights` does."""
    return check_image_weights(teacher_tower(settings, pixels)) if settings else ()


def is_image_tower(path: Path, where: str) -> bool:
    """Returns whether a local file or folder has the weights of an image tower alone, and not of a CLIP or SigLIP.

    Every file whose tensors do not have the names of a CLIP counts as an image tower. A folder counts as one if it has
    a config.json of timm.

    Args:
        path: The file or folder.
        where: First words of an error message: the argument or setting that names the source, and its value.

    Raises:
        ConfigError: If the file or the config of the folder cannot be read.
    """
    if path.is_file():
        return not clip.is_clip(open_tensors(path, where).shapes)
    config = path / CONFIG_FILE
    has_other = (path / open_clip.CONFIG_FILE).is_file() or not config.is_file()
    return not has_other and "architecture" in read_json(config, where)


def load_image_tower(name: str, *, key: str) -> LoadedImageTower:
    """Loads an image tower of another library as it is, for evaluation. Its files are not trusted.

    Args:
        name: A folder that timm has written, or a file whose model follows from the names of its tensors
            (`describe_image_tower`).
        key: What error messages call the name.

    Raises:
        ConfigError: If the weights or their config cannot be read, if the model does not follow from them, or if the
            config does not fit the weights.
    """
    where = f"{key}={name}"
    source = _opened(name, key)
    if "name" not in source.layout.settings.get("image", {}):
        raise ConfigError(
            f"{where}: the names in this file are neither those of a CLIP nor those of a tower that needs no config: "
            "give the folder with the weights and their config, as timm's save_for_hf and transformers write it."
        )
    try:
        settings = ImageTowerConfig.model_validate({**source.layout.settings["image"], "pretrained": name})
    except ValidationError as error:
        raise ConfigError(f"{where}: {error.errors()[0]['msg']}.") from error
    shapes = WeightShapes(source.tensors.shapes)
    if reason := too_large(settings, settings.options, shapes):
        raise ConfigError(f"{where}: its config {reason}.")
    try:
        with shapes.budget():
            check_image_weights(settings)
    except CheckpointError as error:
        raise ConfigError(f"{where}: {error}") from error
    tower = TimmImageTower(settings)
    report = load_image_weights(tower, settings)
    assert report is not None
    return LoadedImageTower(tower.eval(), report, source.layout.crop)


def _opened(pretrained: str, key: str) -> ImageSource:
    where = f"{key}={pretrained}"
    path = Path(located(pretrained, key))
    if not path.exists():
        raise ConfigError(f"{where}: give 'hub', or an existing file or folder of weights.")
    tensors = open_tensors(path, where)
    # In the hub's cache the name of the weights is that of a folder two levels above the file.
    written = (path.name, *(folder.name for folder in list(path.parents)[:3]), *tensors.metadata.values())
    layout = _layout(path, tensors, pretrained, key)
    # The settings of the layout say whether the weights need QuickGELU. The user may have replaced these settings.
    activation = layout.settings.get("image", {}).get("options", {}).get("act_layer", "")
    return ImageSource(layout, tensors, (*written, str(activation)))


def _layout(path: Path, tensors: Tensors, pretrained: str, key: str) -> WeightsLayout:
    where = f"{key}={pretrained}"
    if path.is_dir() and ((path / CONFIG_FILE).is_file() or (path / open_clip.CONFIG_FILE).is_file()):
        tree = {} if (path / open_clip.CONFIG_FILE).is_file() else read_json(path / CONFIG_FILE, where)
        if "architecture" in tree:
            layout = _of_timm(_settings_of_timm(tree, where))
            return replace(layout, crop="whole" if tree["pretrained_cfg"].get("crop_mode") == "squash" else "center")
        return _image_part(open_source(pretrained, key=key).layout, tensors)
    if found := describe_image_tower(tensors.shapes):
        return found
    if "visual.class_embedding" in tensors.shapes and _TEXT_TABLES & tensors.shapes.keys():
        activation = "quick_gelu" if is_openai(tensors) else "gelu"
        layout = _image_part(clip.describe(tensors.shapes, {}, activation=activation, where=where), tensors)
        # Other files do not tell the right activation. So they determine no settings: the user must name the tower.
        return layout if is_openai(tensors) else replace(layout, settings={})
    return _of_timm({})


def _of_timm(settings: Tree) -> WeightsLayout:
    return WeightsLayout(name="weights of timm", kind="timm", settings={"image": settings}, rules=())


def _settings_of_timm(tree: Tree, where: str) -> Tree:
    """Returns the settings of an image tower from the config.json that timm's `save_for_hf` writes.

    The config is not trusted.

    Raises:
        ConfigError: If the config cannot be read, if it names a model in another form than timm's registry does, or if
            an option is a text that is not a short name.
    """
    name, known, options = str(tree["architecture"]), tree.get("pretrained_cfg") or {}, tree.get("model_args") or {}
    if not TIMM_NAME.fullmatch(name):
        raise ConfigError(f"{where}: architecture={name[:60]!r} is not the name of a model in timm.")
    try:
        found: Tree = {
            "name": name,
            "pixels": size_of({"input_size": known["input_size"][-1]}, "input_size", None, where),
            "options": {key: value for key, value in options.items() if key not in _NO_OPTIONS},
            "mean": list(known["mean"]),
            "std": list(known["std"]),
        }
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ConfigError(f"{where}: {CONFIG_FILE} cannot be read ({error!r}).") from error
    if not is_plain(found["options"]):
        raise ConfigError(f"{where}: model_args contains a text that is not a short name.")
    return found


def _image_part(layout: WeightsLayout, tensors: Tensors) -> WeightsLayout:
    """Returns the part of a CLIP's layout that belongs to the image tower. All other tensors are ignored."""
    own = tuple(rule for rule in layout.rules if all(name.startswith(IMAGE) for name in rule.ours))
    others = {name for rule in layout.rules if rule not in own for name in rule.theirs}
    return replace(
        layout,
        name=f"image tower of {layout.name}",
        settings={"image": layout.settings["image"]},
        rules=own,
        ignored=layout.ignored | frozenset(others & tensors.shapes.keys()),
    )


def _converted(
    settings: ImageTowerConfig, source: ImageSource | None, *, values: bool
) -> tuple[Mapping[str, Tensor], LoadReport]:
    """Returns the weights in the form of the tower, and the report. If `source` is None, timm's hub is the source.

    Raises:
        ConfigError: If the weights do not fit the tower, or cannot be read.
    """
    where = f"{settings.key}.pretrained={settings.pretrained}"
    given = None
    if source:
        found = translated(source.layout, source.tensors, where, values=values)
        given = {name.removeprefix(IMAGE): tensor for name, tensor in found.items()}
    made = converted(settings, given, written=source.written if source else ())
    unused = {*made.left_out, *(source.layout.ignored if source else ())}
    report = LoadReport(
        source=str(settings.pretrained),
        layout=source.layout.name if source else "weights of timm",
        loaded=tuple(made.tensors),
        resized=made.resized,
        left_out=tuple(sorted(name for name in unused if not name.endswith(COUNTER))),
        key=f"{settings.key}.pretrained",
        remarks=(made.activation,) if made.activation else (),
    )
    return made.tensors, report
