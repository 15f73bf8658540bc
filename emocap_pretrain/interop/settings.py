"""Completes the settings of a run that starts from weights: of a whole model (`model.from`) or of an image tower.

The weights determine the towers, their sizes, the tokenizer and the statistics of images. So a user need not write
these settings, and the config that a run stores has all of them: a checkpoint can be restored, and a run resumed,
without its source of weights. Settings that the user writes take precedence, for example the size of the images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from emocap_shards.store import open_store

from emocap_pretrain.config import stored
from emocap_pretrain.config.load import load, with_section
from emocap_pretrain.config.location import RUN_PREFIX
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run_folder.folder import RunFolder

Tree = dict[str, Any]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads the config of a run from a file, as `config.load.load` does, and completes it from its source of weights.

    Raises:
        ConfigError: If the config is wrong, or the source of weights cannot be read.
        CheckpointError: If the source is a run without such a checkpoint.
        StoreError: If the store of a run cannot be reached.
    """
    return completed(load(path, overrides))


def completed(config: Config) -> Config:
    """Returns the config with all settings of `model` that its sources of weights determine.

    If the run has begun, the settings that its folder stores are taken, so the source need not exist any more.

    Raises:
        ConfigError: If the source cannot be read, or the user also names pretrained weights of one tower.
        CheckpointError: If the source is a run without such a checkpoint.
        StoreError: If the store of a run cannot be reached.
    """
    model = config.model
    if model.from_ is None:
        return _with_image_tower(config)
    # This import loads torch, which takes seconds, and a config without `model.from` does not need torch.
    from emocap_pretrain.interop.source import source_of

    given = model.model_dump(mode="json", exclude_unset=True)
    for tower in ("image", "text"):
        if given.get(tower, {}).get("pretrained") is not None:
            raise ConfigError(f"model.from gives the weights of both towers: leave model.{tower}.pretrained out.")
    before = _of_the_run(config, "from")
    source = None if before else source_of(model)
    values = _merged(source.layout.settings if source else before or {}, given)
    # The key itself is left out of the changes, so that a text `${oc.env:...}` in the file stays in the stored config.
    del values["from"]
    # When the config is read again, the run may have a newer checkpoint. So the step becomes a part of the name.
    named = {"from": source.name} if source and source.name != model.from_ else {}
    return with_section(config, "model", values | named | _name_as_before(before, config.stored()["model"], "from"))


def _with_image_tower(config: Config) -> Config:
    pretrained = config.model.image.pretrained
    if pretrained in (None, "hub"):
        return config
    from emocap_pretrain.interop.image_weights import image_settings

    given = config.model.model_dump(mode="json", exclude_unset=True)
    before = _of_the_run(config, "image", "pretrained")
    known = before["image"] if before else image_settings(pretrained, "model.image")
    path = _name_as_before(before["image"], config.stored()["model"]["image"], "pretrained") if before else {}
    return with_section(config, "model", {"image": _merged(known, given["image"]) | path}) if known else config


def _of_the_run(config: Config, *keys: str) -> Tree | None:
    """Returns the settings of `model` that the run's folder stores.

    The result is None if the folder stores no settings, or if their source of weights is not that of `config`. `keys`
    leads to the setting that names the source, such as ("image", "pretrained").
    """
    first = RunFolder(open_store(config.url)).settings()
    before = stored.current(first).get("model", {}) if first else {}
    value, old = _at(config.stored()["model"], keys), _at(before, keys)
    if not old:
        return None
    # The user may name a run without a step, but the stored name has one.
    is_same = old in (value, _absolute(value)) or (value.startswith(RUN_PREFIX) and old.rpartition("@")[0] == value)
    return before if is_same else None


def _name_as_before(before: Tree | None, now: Tree, key: str) -> Tree:
    """Returns a change that restores the stored name of a source of weights; empty if the name in `now` is the same.

    When a config is read, a relative path is made absolute only if something exists there. So the path of a source that
    was deleted since would differ from the stored path, and resuming would be refused. The name of a run is stored
    with the step of its checkpoint.
    """
    return {key: before[key]} if before and before[key] != now[key] else {}


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _at(tree: Mapping[str, Any], keys: Sequence[str]) -> Any:
    for key in keys:
        tree = tree.get(key) or {}
    return tree


def _merged(known: Mapping[str, Any], given: Mapping[str, Any]) -> Tree:
    """Returns a tree with the values of both trees. If both have a value, that of `given` is taken.

    If `given` names an image tower, its options replace those of `known` as a whole.
    """
    result = dict(known)
    for key, value in given.items():
        before = result.get(key)
        # Options belong to one model of timm. If the user names a model, the options of the weights are dropped.
        is_other_model = key == "options" and "name" in given
        is_section = isinstance(before, dict) and isinstance(value, dict) and not is_other_model
        result[key] = _merged(cast("Tree", before), cast("Tree", value)) if is_section else value
    return result
